//! Opening a model folder: what is wrong with it is named, all of it at once.

mod reference;

use pleinair::bundle::Bundle;
use pleinair::bundle::weights::Weights;
use pleinair::camera::Frame;
use pleinair::net::{ControlNet, TextEncoder, Unet};
use pleinair::painter::Painter;
use pleinair::side::vae::Vae;
use reference::model_folder;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let into = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &into)
        } else {
            fs::copy(entry.path(), into).map(|_| ()).unwrap()
        }
    }
}

fn tiny() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("model");
    copy(&model_folder("tiny-sd15"), &folder);
    (dir, folder)
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Rewrites a safetensors file.
fn edit(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors =
        file.tensors().into_iter().map(|(n, t)| (n, (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn set(path: &Path, key: &str, value: serde_json::Value) {
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn both_structures_open_from_the_same_code() {
    for model in reference::MODELS {
        let painter = Painter::open(&model_folder(model)).unwrap();
        let bundle = painter.bundle();
        let (factor, step) = if model == "atelier" { (4, 16) } else { (8, 64) };
        assert_eq!((bundle.factor(), bundle.size_step()), (factor, step));
    }
}

#[test]
fn missing_misshapen_and_not_finite_tensors_are_named_together() {
    let (_dir, folder) = tiny();
    edit(&folder.join("controlnet/diffusion_pytorch_model.safetensors"), |tensors| {
        tensors.remove("conv_in.weight").unwrap();
        tensors.remove("mid_block.resnets.1.conv2.bias").unwrap();
        let bias = tensors.get_mut("time_embedding.linear_1.bias").unwrap();
        (bias.1, bias.2) = (vec![3], vec![0; 12]);
        let norm = tensors.get_mut("down_blocks.0.resnets.0.norm1.weight").unwrap();
        norm.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let error = ControlNet::load(&Bundle::open(&folder).unwrap(), pleinair::bundle::control::Control::SoftEdge)
        .unwrap_err()
        .to_string();
    for part in [
        "controlnet: ",
        "conv_in.weight [16, 4, 3, 3] is missing",
        "mid_block.resnets.1.conv2.bias [32] is missing",
        "time_embedding.linear_1.bias has the shape [3], wanted [64]",
        "down_blocks.0.resnets.0.norm1.weight holds values that are not finite",
    ] {
        let text = error.replace("tensor ", "");
        assert!(text.contains(part), "no {part:?} in: {error}");
    }
    assert_eq!(error.lines().count(), 5, "one line a problem: {error}");
}

#[test]
fn damaged_weight_files_are_refused() {
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damage: [Damage; 4] = [
        ("0 bytes long", &|p| fs::write(p, b"").unwrap()),
        ("claims a header of 1152921504606846976 bytes", &|p| {
            fs::write(p, [&(1u64 << 60).to_le_bytes()[..], &[0; 64]].concat()).unwrap();
        }),
        ("it was cut off", &|p| {
            let bytes = fs::read(p).unwrap();
            fs::write(p, &bytes[..bytes.len() - 7]).unwrap();
        }),
        ("header is damaged", &|p| {
            let mut bytes = fs::read(p).unwrap();
            bytes[9] = b'}';
            fs::write(p, bytes).unwrap();
        }),
    ];
    for (message, damage) in damage {
        let (_dir, folder) = tiny();
        let file = folder.join("text_encoder/model.safetensors");
        damage(&file);
        let error = TextEncoder::load(&Bundle::open(&folder).unwrap()).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("model.safetensors"), "{error}");
    }
}

#[test]
fn a_missing_shard_is_named() {
    let (_dir, folder) = tiny();
    let shard = fs::read_dir(folder.join("unet"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("00002-of"))
        .expect("the tiny UNet comes in shards");
    fs::remove_file(&shard).unwrap();
    let error = Unet::load(&Bundle::open(&folder).unwrap()).unwrap_err().to_string();
    assert!(error.contains("00002-of"), "{error}");
}

#[test]
fn a_shard_outside_the_folder_is_refused() {
    let (_dir, folder) = tiny();
    let index = folder.join("unet/diffusion_pytorch_model.safetensors.index.json");
    set(&index, "weight_map", serde_json::json!({"conv_in.weight": "../../secret.safetensors"}));
    let error = Unet::load(&Bundle::open(&folder).unwrap()).unwrap_err().to_string();
    assert!(error.contains("outside this folder"), "{error}");
}

#[test]
fn configurations_of_other_networks_are_refused_key_by_key() {
    let (_dir, folder) = tiny();
    let unet = folder.join("unet/config.json");
    set(&unet, "addition_embed_type", "text_time".into());
    set(&unet, "resnet_time_scale_shift", "scale_shift".into());
    set(&unet, "cross_attention_dim", 48.into());
    set(&folder.join("text_encoder/config.json"), "hidden_act", "relu".into());
    let error = Bundle::open(&folder).unwrap_err().to_string();
    for part in [
        "unet: addition_embed_type = \"text_time\"",
        "unet: resnet_time_scale_shift = \"scale_shift\"",
        "unet: cross_attention_dim is 48, but the text encoder gives 32",
        "text_encoder: hidden_act relu",
    ] {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }

    let (_dir, folder) = tiny();
    set(&folder.join("unet/config.json"), "attention_heads_dim", 4.into());
    set(&folder.join("controlnet/config.json"), "attention_head_dim", 4.into());
    set(&folder.join("controlnet/config.json"), "norm_num_groups", 4.into());
    set(&folder.join("controlnet/config.json"), "conditioning_embedding_out_channels", serde_json::json!([8, 8]));
    let error = Bundle::open(&folder).unwrap_err().to_string();
    for part in [
        "unet: the key attention_heads_dim = 4 is unknown",
        "controlnet: attention_head_dim is [4, 4, 4, 4], the UNet's [8, 8, 8, 8]",
        "controlnet: norm_num_groups is 4, the UNet's 8",
        "controlnet: a control picture of 3 channels in 2 sizes",
    ] {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }

    let (_dir, folder) = tiny();
    set(&folder.join("model_index.json"), "_class_name", "StableDiffusionXLPipeline".into());
    let error = Bundle::open(&folder).unwrap_err().to_string();
    assert!(error.contains("StableDiffusionXLPipeline") && error.contains("Stable Diffusion 1.x"), "{error}");
}

/// Numbers that overflowed, divided by zero or had memory allocated without end; most were found by the fuzzers.
#[test]
fn configurations_out_of_all_bounds_are_refused() {
    let levels = |n: usize| serde_json::json!(vec![8; n]);
    for (part, key, value, message) in [
        ("vae", "block_out_channels", levels(0), "vae: the number of block_out_channels is 0, must be 1 to 16"),
        ("vae", "block_out_channels", levels(65), "vae: the number of block_out_channels is 65"),
        ("vae", "scaling_factor", 1e-320.into(), "vae: scaling_factor is 0.000"),
        ("vae", "scaling_factor", 0.into(), "vae: scaling_factor is 0, must be"),
        ("unet", "block_out_channels", levels(0), "unet: the number of block_out_channels is 0"),
        ("unet", "block_out_channels", levels(100), "unet: the number of block_out_channels is 100"),
        ("unet", "block_out_channels", vec![1u64 << 62; 4].into(), "level 0 has 4611686018427387904 channels"),
        ("unet", "layers_per_block", u64::MAX.into(), "unet: layers_per_block is 18446744073709551615"),
        ("unet", "layers_per_block", 0.into(), "unet: layers_per_block is 0, must be 1 to 256"),
        ("unet", "norm_num_groups", 0.into(), "unet: norm_num_groups is 0"),
        ("unet", "sample_size", (1u64 << 61).into(), "unet: sample_size is 2305843009213693952"),
        ("unet", "sample_size", 0.into(), "unet: sample_size is 0"),
        ("unet", "transformer_layers_per_block", (1u64 << 40).into(), "1099511627776 transformer layers"),
        ("unet", "norm_eps", (-1).into(), "unet: norm_eps is -1, must be 0 to 1"),
        ("unet", "freq_shift", 16.into(), "unet: freq_shift is 16, must be less than"),
        ("controlnet", "conditioning_embedding_out_channels", levels(65), "3 channels in 65 sizes"),
        ("controlnet", "conditioning_embedding_out_channels", levels(0), "3 channels in 0 sizes"),
        (
            "controlnet",
            "conditioning_embedding_out_channels",
            vec![u64::MAX; 4].into(),
            "conditioning_embedding_out_channels is 18446744073709551615",
        ),
        ("text_encoder", "num_hidden_layers", (1u64 << 60).into(), "text_encoder: num_hidden_layers is 11529215"),
        ("text_encoder", "vocab_size", 0.into(), "text_encoder: vocab_size is 0, must be 1 to 4194304"),
        ("text_encoder", "num_attention_heads", 0.into(), "text_encoder: hidden_size 32 does not divide into 0"),
    ] {
        let (_dir, folder) = tiny();
        set(&folder.join(part).join("config.json"), key, value);
        let error = Bundle::open(&folder).unwrap_err().to_string();
        assert!(error.contains(message), "no {message:?} in: {error}");
    }
}

/// Eight tensors of 2^61 - 1 bytes and the header end beyond what 64 bits can count.
#[test]
fn a_header_that_claims_more_than_there_can_be_is_refused() {
    let size = (1u64 << 61) - 1;
    let tensor =
        |i: u64| format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{},{}]}}"#, i * size, (i + 1) * size);
    let header = format!("{{{}}}", (0..8).map(tensor).collect::<Vec<_>>().join(","));
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let error =
        Weights::from_start(Path::new("far.safetensors"), &start[..], start.len() as u64).unwrap_err().to_string();
    assert!(error.contains("its header wants 18446744073709551615; it was cut off"), "{error}");
}

#[test]
fn a_folder_without_a_vae_says_how_to_make_it() {
    let (_dir, folder) = tiny();
    for file in ["vae/decoder.onnx", "vae/encoder.onnx"] {
        fs::remove_file(folder.join(file)).unwrap();
    }
    Painter::open(&folder).unwrap(); // its weights are enough
    let weights = folder.join(VAE);
    fs::rename(&weights, weights.with_extension("bin")).unwrap();
    let error = Painter::open(&folder).unwrap_err().to_string();
    assert!(error.contains("encoder.onnx and decoder.onnx") && error.contains("pleinair-quantize convert"), "{error}");
    assert!(Painter::open(Path::new("no/such/model")).unwrap_err().to_string().contains("--bundle"));
}

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

fn without_onnx() -> (TempDir, PathBuf) {
    let (dir, folder) = tiny();
    ["vae/decoder.onnx", "vae/encoder.onnx"].iter().for_each(|file| fs::remove_file(folder.join(file)).unwrap());
    (dir, folder)
}

/// What becomes of a picture in the VAE, in and out.
fn through_the_vae(folder: &Path) -> [Vec<f32>; 3] {
    let vae = Vae::open(&Arc::new(Bundle::open(folder).unwrap())).unwrap();
    let frame = Frame::new(64, 24, (0..64 * 24 * 3).map(|i| (i * i % 251) as u8).collect()).unwrap();
    let posterior = vae.encode(&frame).unwrap();
    let picture = vae.decode(&posterior.mode().unwrap()).unwrap();
    assert_eq!((posterior.mean.dims(), picture.dims()), (&[1, 4, 3, 8][..], &[1, 3, 24, 64][..]));
    [posterior.mean, posterior.logvar, picture].map(|t| t.flatten_all().unwrap().to_vec1().unwrap())
}

#[test]
fn missing_and_misshapen_tensors_of_the_vae_are_named_together() {
    let (_dir, folder) = without_onnx();
    for (half, block, other) in
        [("encoder", "down_blocks.0", "down_blocks.1"), ("decoder", "up_blocks.3", "up_blocks.1")]
    {
        let path = folder.join(VAE);
        let good = fs::read(&path).unwrap();
        edit(&path, |tensors| {
            tensors.remove(&format!("{half}.{block}.resnets.0.conv2.weight")).unwrap();
            tensors.remove(&format!("{half}.mid_block.attentions.0.to_v.bias")).unwrap();
            tensors.retain(|name, _| !name.starts_with(&format!("{half}.{other}.resnets.")));
            tensors.get_mut(&format!("{half}.conv_norm_out.bias")).unwrap().1.push(1);
        });
        let error = Painter::open(&folder).unwrap_err().to_string();
        for words in [
            format!("vae: tensor {half}.{block}.resnets.0.conv2.weight [8, 8, 3, 3] is missing"),
            format!("vae: tensor {half}.mid_block.attentions.0.to_v.bias [16] is missing"),
            format!("vae: tensor {half}.{other}.resnets.0.norm1.weight [16] is missing")
                .replace("[16]", if half == "encoder" { "[8]" } else { "[16]" }),
            format!("vae: tensor {half}.conv_norm_out.bias has the shape"),
        ] {
            assert!(error.contains(&words), "no {words:?} in: {error}");
        }
        fs::write(&path, good).unwrap();
    }
    Painter::open(&folder).unwrap();
}

/// As diffusers named the attention's layers before 0.17, with the kernels that the original checkpoints have.
#[test]
fn the_old_names_of_the_vaes_attention_are_read() {
    let (_dir, folder) = without_onnx();
    let new = through_the_vae(&folder);
    edit(&folder.join(VAE), |tensors| {
        let old = |name: &str| {
            let names =
                [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
            names.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
        };
        let renamed = std::mem::take(tensors).into_iter().map(|(name, (dtype, mut shape, bytes))| {
            if old(&name) != name && shape.len() == 2 {
                shape.extend([1, 1]);
            }
            (old(&name), (dtype, shape, bytes))
        });
        *tensors = renamed.collect();
    });
    assert!(through_the_vae(&folder) == new);
}

/// Own layers first; where they do not know a configuration, the ONNX files say what it computes.
#[test]
fn a_vae_of_another_kind_needs_onnx() {
    for (key, value, words) in [
        ("act_fn", "relu".into(), "act_fn = \"relu\" is not supported"),
        ("up_block_types", vec!["AttnUpDecoderBlock2D"; 4].into(), "up_block_types \"AttnUpDecoderBlock2D\""),
        ("norm_num_grops", 4.into(), "norm_num_grops = 4 is unknown"),
    ] {
        let (_dir, folder) = tiny();
        set(&folder.join("vae/config.json"), key, value);
        let vae = Vae::open(&Arc::new(Bundle::open(&folder).unwrap())).unwrap();
        assert!(format!("{vae:?}").contains("decoder.onnx"), "{vae:?}");
        fs::remove_file(folder.join("vae/decoder.onnx")).unwrap();
        let error = Painter::open(&folder).unwrap_err().to_string();
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
    let (_dir, folder) = without_onnx();
    assert!(format!("{:?}", Vae::open(&Arc::new(Bundle::open(&folder).unwrap()))).contains("own layers"));
    set(&folder.join("vae/config.json"), "norm_num_groups", 5.into());
    let error = Painter::open(&folder).unwrap_err().to_string();
    assert!(error.contains("do not divide into norm_num_groups = 5"), "{error}");
}
