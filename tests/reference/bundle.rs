//! A bundle put together by hand, from the words of its format: what the program reads must not depend on its own writer.
#![allow(dead_code)] // each test binary uses its share

use candle_core::{DType, Device, Tensor};
use pleinair::prompt::Tokenizer;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Type, shape and bytes of each tensor.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Layers that read the same input are one in a bundle.
const JOINED: [(&str, &[&str], &str); 3] = [
    (".attn1.", &["to_q", "to_k", "to_v"], "to_qkv"),
    (".attn2.", &["to_k", "to_v"], "to_kv"),
    (".self_attn.", &["q_proj", "k_proj", "v_proj"], "qkv_proj"),
];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A part of a diffusers folder as a bundle has it: matrices, 3x3 kernels with the channels last, layers joined.
fn part(model: &Path, part: &str) -> Tensors {
    let mut stored: BTreeMap<String, Tensor> = BTreeMap::new();
    for file in fs::read_dir(model.join(part)).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|e| e == "safetensors") {
            stored.extend(candle_core::safetensors::load(file, &Device::Cpu).unwrap());
        }
    }
    stored.retain(|_, tensor| tensor.dtype().is_float());
    let rows = |tensor: &Tensor| {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        match tensor.rank() {
            4 => tensor.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().flatten_from(1).unwrap(),
            _ => tensor,
        }
    };
    let mut all = Tensors::new();
    for (name, tensor) in &stored {
        let layers = JOINED.iter().find(|(place, layers, _)| {
            name.contains(place) && layers.iter().any(|layer| name.contains(&format!("{place}{layer}.")))
        });
        let (name, tensor) = match layers {
            None => (name.clone(), rows(tensor)),
            Some((place, layers, joined)) => {
                let own = layers.iter().find(|layer| name.contains(&format!("{place}{layer}."))).unwrap();
                let other = |to: &str| name.replace(&format!("{place}{own}."), &format!("{place}{to}."));
                let parts: Vec<_> = layers.iter().map(|layer| rows(&stored[&other(layer)])).collect();
                (other(joined), Tensor::cat(&parts, 0).unwrap())
            }
        };
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        all.insert(name, (Dtype::F32, tensor.dims().to_vec(), f32_bytes(&values)));
    }
    all
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The bundle of a diffusers folder in f32, its UNet changed; the VAE is the folder's own.
pub fn write(model: &Path, out: &Path, change_unet: impl FnOnce(&mut Tensors)) {
    fs::create_dir_all(out).unwrap();
    let mut manifest = json!({"format": "pleinair-bundle/1", "target": "portable", "dtype": "f32", "control": "soft-edge",
        "source": "random numbers", "license": "CC0-1.0"});
    let mut change = Some(change_unet);
    for (name, kind) in
        [("unet", "UNet2DConditionModel"), ("controlnet", "ControlNetModel"), ("text_encoder", "CLIPTextModel")]
    {
        let mut tensors = part(model, name);
        let values: usize = tensors.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        if name == "unet" {
            change.take().unwrap()(&mut tensors);
        }
        write_tensors(&out.join(format!("{name}.safetensors")), &tensors);
        let config = json(&model.join(name).join("config.json"));
        manifest[name] = json!({"kind": kind, "dtype": "f32", "config": config, "parameters": values});
    }
    let config = json(&model.join("vae/config.json"));
    manifest["vae"] = json!({"kind": "AutoencoderKL", "dtype": "f32", "config": config, "parameters": 0});
    for (from, to) in [
        ("vae/encoder.onnx", "vae_encoder.onnx"),
        ("vae/decoder.onnx", "vae_decoder.onnx"),
        ("scheduler/scheduler_config.json", "scheduler.json"),
    ] {
        fs::copy(model.join(from), out.join(to)).unwrap();
    }
    let tokenizer = Tokenizer::open(model.join("tokenizer")).unwrap().to_json().unwrap();
    fs::write(out.join("tokenizer.json"), tokenizer).unwrap();
    seal(out, manifest);
}

/// Writes the manifest with the length and checksum of every file.
pub fn seal(out: &Path, mut manifest: Value) {
    manifest["files"] = json!({});
    for file in fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()) {
        let (name, bytes) = (file.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&file).unwrap());
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if name != "bundle.json" {
            manifest["files"][name] = json!({"bytes": bytes.len(), "sha256": sha256});
        }
    }
    fs::write(out.join("bundle.json"), serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
}
