//! The same weights make the same bundle, whatever they are called and however they are packed: a diffusers folder, one
//! file in the original (LDM) naming, and that with its ControlNet in a file of its own.

use super::*;
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;

const PREFIXES: [(&str, &str); 4] = [
    ("unet", "model.diffusion_model."),
    ("controlnet", "control_model."),
    ("text_encoder", "cond_stage_model.transformer."),
    ("vae", "first_stage_model."),
];

/// The original name of each layer by diffusers' name, as diffusers' own conversion has it (`ldm_names.py`).
fn originals(model: &str, part: &str) -> HashMap<String, String> {
    let path = repository().join("tests/fixtures/ldm-names.json");
    let names: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let pairs = names[model][part].as_object().unwrap();
    pairs.iter().map(|(ldm, name)| (name.as_str().unwrap().to_owned(), ldm.clone())).collect()
}

/// Tensors of a part of a folder under their original names.
fn renamed(folder: &Path, model: &str, part: &str, prefix: &str) -> HashMap<String, Tensor> {
    let files = names(&folder.join(part)).into_iter().filter(|name| name.ends_with(".safetensors"));
    let load = |name: String| candle_core::safetensors::load(folder.join(part).join(name), &Device::Cpu).unwrap();
    let stored: HashMap<String, Tensor> = files.flat_map(load).collect();
    if part == "text_encoder" {
        let bare = |name: &str| name.trim_start_matches("text_model.").to_owned();
        return stored.into_iter().map(|(name, t)| (format!("{prefix}text_model.{}", bare(&name)), t)).collect();
    }
    let originals = originals(model, part);
    let rename = |(name, tensor): (String, Tensor)| {
        let (layer, field) = name.rsplit_once('.').unwrap();
        let original = originals.get(layer).unwrap_or_else(|| panic!("no original name of {layer}"));
        // the original VAE's attention is made of 1x1 convolutions
        let linear = part == "vae" && tensor.rank() == 2;
        let tensor = if linear { tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap() } else { tensor };
        (format!("{prefix}{original}.{field}"), tensor)
    };
    stored.into_iter().map(rename).collect()
}

fn write(path: &Path, folder: &Path, model: &str, parts: &[&str]) {
    let parts = PREFIXES.into_iter().filter(|(part, _)| parts.contains(part));
    let all: HashMap<_, _> = parts.flat_map(|(part, prefix)| renamed(folder, model, part, prefix)).collect();
    candle_core::safetensors::save(&all, path).unwrap();
}

#[test]
fn a_folder_and_a_single_file_give_the_same_bytes() {
    let studio = Studio::new();
    let atelier = studio.copy(&atelier(), "atelier-folder"); // the file has no styles: leave them out
    std::fs::remove_dir_all(atelier.join("styles")).unwrap();
    for (model, folder) in [("tiny-sd15", tiny()), ("atelier", atelier)] {
        let [whole, base, control] =
            ["whole", "base", "control"].map(|name| studio.path(&format!("{model}-{name}.safetensors")));
        write(&whole, &folder, model, &["unet", "controlnet", "text_encoder", "vae"]);
        write(&base, &folder, model, &["unet", "text_encoder", "vae"]);
        write(&control, &folder, model, &["controlnet"]);
        let tokenizer = folder.join("tokenizer");
        let like = ["--config", folder.to_str().unwrap(), "--tokenizer", tokenizer.to_str().unwrap()];
        let with_control = [&like[..], &["--controlnet", control.to_str().unwrap()]].concat();
        for dtype in ["int8", "f16"] {
            let out = |kind: &str| format!("{model}-{dtype}-{kind}");
            let want = contents(&studio.convert(&folder, dtype, &[], &out("folder")));
            for (kind, file, more) in [("whole", &whole, &like[..]), ("two", &base, &with_control)] {
                let got = contents(&studio.convert(file, dtype, more, &out(kind)));
                let differing: Vec<_> = FILES.iter().filter(|name| got.get(**name) != want.get(**name)).collect();
                assert!(differing.is_empty() && got.len() == want.len(), "{model} {dtype} as {kind}: {differing:?}");
            }
        }
    }
}

/// A weight more or less, and the comparison above would tell.
#[test]
fn another_weight_gives_other_bytes() {
    let studio = Studio::new();
    let file = studio.path("model.safetensors");
    write(&file, &tiny(), "tiny-sd15", &["unet", "controlnet", "text_encoder", "vae"]);
    edit(&file, |tensors| {
        let (dtype, _, bytes) = tensors.get_mut("model.diffusion_model.input_blocks.1.0.in_layers.2.weight").unwrap();
        assert_eq!(*dtype, Dtype::F16);
        bytes[1] ^= 0x80; // the sign of the first value
    });
    let folder = tiny();
    let got = contents(&studio.convert(&file, "int8", &["--config", folder.to_str().unwrap()], "got"));
    let want = contents(&studio.convert(&folder, "int8", &[], "want"));
    let differing: Vec<_> = FILES.into_iter().filter(|name| got[*name] != want[*name]).collect();
    assert_eq!(differing, ["bundle.json", "unet.safetensors"]);
}

#[test]
fn what_a_single_file_lacks_is_named() {
    let studio = Studio::new();
    let (file, folder) = (studio.path("model.safetensors"), tiny());
    let like = ["--config", folder.to_str().unwrap()];
    write(&file, &folder, "tiny-sd15", &["unet", "text_encoder", "vae"]);
    studio.refuses(&file, "int8", &[], &["--config"]);
    edit(&file, |tensors| {
        tensors.remove("model.diffusion_model.out.2.bias").unwrap();
        tensors.remove("cond_stage_model.transformer.text_model.final_layer_norm.bias").unwrap();
    });
    studio.refuses(
        &file,
        "int8",
        &like,
        &["unet: tensor conv_out.bias", "text_encoder: tensor text_model.final_layer_norm.bias"],
    );
    write(&file, &folder, "tiny-sd15", &["unet", "text_encoder"]);
    studio.refuses(&file, "int8", &like, &["no VAE", "--vae"]);
    write(&file, &folder, "tiny-sd15", &["unet", "vae"]);
    studio.refuses(&file, "int8", &like, &["no text encoder"]);
    write(&file, &folder, "tiny-sd15", &["vae"]);
    studio.refuses(&file, "int8", &like, &["a VAE alone", "--vae"]);
}
