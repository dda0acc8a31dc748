//! The same tensors come out by the same names, whatever a pipeline comes as.

use candle_core::{Device, Tensor};
use pleinair::Error;
use pleinair::bundle::weights::Weights;
use pleinair_quantize::source::{Options, Part, Source, Vocabulary};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn tiny() -> PathBuf {
    fixture("tiny-sd15")
}

fn only(from: &Path) -> Options<'_> {
    Options { from, config: None, tokenizer: None, controlnet: None, vae: None, loras: &[] }
}

fn fault(options: &Options) -> String {
    Source::open(options).map(drop).unwrap_err().to_string()
}

/// All tensors of a safetensors part or file.
fn tensors(paths: &[PathBuf]) -> HashMap<String, Tensor> {
    paths.iter().flat_map(|path| candle_core::safetensors::load(path, &Device::Cpu).unwrap()).collect()
}

/// The safetensors files of a part.
fn part_files(folder: &Path, part: Part) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join(part.to_string())).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect()
}

/// A part's tensors under the original names that `tests/reference/ldm_names.py` found for them.
fn original(folder: &Path, model: &str, part: Part) -> HashMap<String, Tensor> {
    let stored = tensors(&part_files(folder, part));
    if part == Part::TextEncoder {
        let prefixed = |name: &str| format!("text_model.{}", name.trim_start_matches("text_model."));
        return stored.into_iter().map(|(name, tensor)| (prefixed(&name), tensor)).collect();
    }
    let names: Value = serde_json::from_slice(&std::fs::read(fixture("ldm-names.json")).unwrap()).unwrap();
    let pairs: BTreeMap<String, String> = serde_json::from_value(names[model][part.to_string()].clone()).unwrap();
    let by_layer: HashMap<String, String> = pairs.into_iter().map(|(ldm, name)| (name, ldm)).collect();
    let renamed = |(name, tensor): (String, Tensor)| {
        let (layer, kind) = name.rsplit_once('.').unwrap();
        let ldm = &by_layer[layer];
        let is_convolution = part == Part::Vae && ldm.contains("attn_1") && tensor.rank() == 2;
        let tensor = if is_convolution { tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap() } else { tensor };
        (format!("{ldm}.{kind}"), tensor)
    };
    stored.into_iter().map(renamed).collect()
}

const PREFIXES: [(Part, &str); 4] = [
    (Part::Unet, "model.diffusion_model."),
    (Part::TextEncoder, "cond_stage_model.transformer."),
    (Part::Vae, "first_stage_model."),
    (Part::ControlNet, "control_model."),
];

/// The folder's parts as one file in the original naming.
fn write_single(folder: &Path, model: &str, parts: &[Part], out: &Path) {
    let mut all = HashMap::new();
    for (part, prefix) in PREFIXES.into_iter().filter(|(part, _)| parts.contains(part)) {
        all.extend(original(folder, model, part).into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
    }
    candle_core::safetensors::save(&all, out).unwrap();
}

/// Names and shapes.
type Zeros<'a> = Vec<(&'a str, &'a [usize])>;

/// A file with tensors of zeros.
fn write_zeros(out: &Path, tensors: &[(&str, &[usize])]) {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let tensors: HashMap<_, _> = tensors.iter().map(|(name, shape)| (name.to_string(), zeros(shape))).collect();
    candle_core::safetensors::save(&tensors, out).unwrap();
}

/// Names, shapes, values and configuration of a part are those of another source.
fn assert_same(part: Part, got: &Source, want: &Source) {
    assert!(want.has(part), "{part}");
    assert_eq!(got.names(part), want.names(part), "{part}");
    for name in want.names(part) {
        assert_eq!(got.shape(part, &name), want.shape(part, &name), "{part} {name}");
        let (values, wanted) = (got.read(part, &name).unwrap(), want.read(part, &name).unwrap());
        assert_eq!(values.len(), want.shape(part, &name).unwrap().iter().product::<usize>(), "{part} {name}");
        assert!(values == wanted, "{part} {name}");
    }
}

#[test]
fn a_folder_gives_what_its_files_hold() {
    let source = Source::open(&only(&tiny())).unwrap();
    assert!(source.warnings().is_empty(), "{:?}", source.warnings());
    for (part, count) in [(Part::Unet, 686), (Part::ControlNet, 340), (Part::TextEncoder, 36), (Part::Vae, 244)] {
        let stored = tensors(&part_files(&tiny(), part));
        assert_eq!(source.names(part).len(), count, "{part}");
        for name in source.names(part) {
            let wanted = stored[&name].to_dtype(candle_core::DType::F32).unwrap();
            assert_eq!(source.shape(part, &name).unwrap(), wanted.dims(), "{name}");
            let wanted = wanted.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(source.read(part, &name).unwrap() == wanted, "{name}");
        }
    }
    assert_eq!(source.config(Part::Unet).unwrap()["block_out_channels"], serde_json::json!([16, 24, 32, 32]));
    assert_eq!(source.scheduler()["steps_offset"], 1);
    assert_eq!(source.tokenizer(), &Vocabulary::Folder(tiny().join("tokenizer")));
    assert!(source.tokenizer().open().is_ok());
    let files: Vec<_> = source.tokenizer().files().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(files, ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]);
    assert!(source.read(Part::Unet, "nonsense").unwrap_err().to_string().contains("unet: tensor nonsense is missing"));
}

#[test]
fn several_threads_read_at_once() {
    let source = Source::open(&only(&tiny())).unwrap();
    let names = source.names(Part::Unet);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| names.iter().for_each(|name| drop(source.read(Part::Unet, name).unwrap())));
        }
    });
}

#[test]
fn one_file_in_the_original_naming_gives_what_the_folder_gives() {
    let folder = tempfile::tempdir().unwrap();
    // their text encoders differ: one has the prefix and the buffer of positions, one neither
    for (model, names, from) in [("tiny", "tiny-sd15", tiny()), ("atelier", "atelier", root().join("models/atelier"))] {
        let file = folder.path().join(format!("{model}.safetensors"));
        write_single(&from, names, &Part::ALL, &file);
        let want = Source::open(&only(&from)).unwrap();
        let got = Source::open(&Options { config: Some(&from), ..only(&file) }).unwrap();
        assert!(got.warnings().is_empty(), "{:?}", got.warnings());
        for part in Part::ALL {
            assert_same(part, &got, &want);
        }
        for part in [Part::Unet, Part::TextEncoder, Part::Vae] {
            assert_eq!(got.config(part), want.config(part), "{part}");
        }
        assert_eq!(got.scheduler(), want.scheduler());
        assert_eq!(got.tokenizer(), want.tokenizer());
        assert!(got.names(Part::TextEncoder).iter().all(|name| name.starts_with("text_model.")));
        assert_eq!(got.shape(Part::Vae, "encoder.mid_block.attentions.0.to_q.weight").unwrap().len(), 2);
    }
}

#[test]
fn a_trainers_checkpoint_gives_what_the_folder_of_pickles_gives() {
    let (folder, file) = (fixture("nano-sd15/folder"), fixture("nano-sd15/nano.ckpt"));
    let want = Source::open(&only(&folder)).unwrap();
    assert!(want.warnings().is_empty(), "{:?}", want.warnings());
    let got = Source::open(&Options { config: Some(&folder), ..only(&file) }).unwrap();
    for part in Part::ALL {
        assert_same(part, &got, &want);
    }
    assert_eq!(got.scheduler()["steps_offset"], 0);
    let warnings = [
        "vae: 1 tensors are not used, such as first_stage_model.encoder.strange.weight",
        "1 tensors belong to no part, such as someone.elses.weight",
    ];
    assert_eq!(got.warnings(), warnings);
}

#[test]
fn a_controlnet_comes_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let want = Source::open(&only(&tiny())).unwrap();
    let stored = tensors(&part_files(&tiny(), Part::ControlNet));
    candle_core::safetensors::save(&stored, at("diffusers.safetensors")).unwrap();
    candle_core::safetensors::save(&original(&tiny(), "tiny-sd15", Part::ControlNet), at("bare.safetensors")).unwrap();
    write_single(&tiny(), "tiny-sd15", &[Part::ControlNet], &at("prefixed.safetensors"));
    write_single(&tiny(), "tiny-sd15", &Part::ALL, &at("whole.safetensors"));
    // a pipeline without one
    let without = at("without");
    copy_folder(&tiny(), &without);
    std::fs::remove_dir_all(without.join("controlnet")).unwrap();
    assert!(!Source::open(&only(&without)).unwrap().has(Part::ControlNet));
    let names = ["diffusers.safetensors", "bare.safetensors", "prefixed.safetensors", "whole.safetensors"];
    let files = names.map(at).into_iter().chain([tiny(), tiny().join("controlnet")]);
    for controlnet in files {
        let got = Source::open(&Options { controlnet: Some(&controlnet), ..only(&without) }).unwrap();
        assert_same(Part::ControlNet, &got, &want);
        assert!(got.warnings().is_empty(), "{:?}", got.warnings());
        let hint = &got.config(Part::ControlNet).unwrap()["conditioning_embedding_out_channels"];
        assert_eq!(hint, &serde_json::json!([8, 8, 16, 16]));
    }
    let other = at("other.safetensors");
    let hints = [("0", 8), ("4", 8), ("8", 16), ("12", 16)]
        .map(|(i, c)| (format!("input_hint_block.{i}.weight"), [c, 3, 3, 3]));
    let mut layers: Vec<(&str, &[usize])> = hints.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
    layers.extend([("input_blocks.0.0.weight", &[320, 4, 3, 3][..]), ("time_embed.0.weight", &[1280, 320])]);
    write_zeros(&other, &layers);
    for (controlnet, what) in [
        (root().join("models/atelier/controlnet"), "it belongs to another model"),
        (fixture("nano-sd15/nano.ckpt"), "does not come down to the latent's"),
        (other, "input_blocks.0.0.weight has the shape [320, 4, 3, 3], by"),
        (tiny().join("vae"), "that of a AutoencoderKL, not of a controlnet"),
        (tiny().join("tokenizer"), "no config.json of a controlnet here"),
        (fixture("loras/kohya.safetensors"), "this is a LoRA alone; --controlnet takes a ControlNet"),
    ] {
        let fault = fault(&Options { controlnet: Some(&controlnet), ..only(&without) });
        assert!(fault.contains(what), "{fault}");
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn another_vae_takes_the_place_of_the_pipelines_own() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let want = Source::open(&only(&tiny())).unwrap();
    candle_core::safetensors::save(&original(&tiny(), "tiny-sd15", Part::Vae), at("bare.safetensors")).unwrap();
    write_single(&tiny(), "tiny-sd15", &[Part::Vae], &at("prefixed.safetensors"));
    // SD 1.5's own folder has the names that the attention's layers had in 2022
    let old = |name: String| {
        [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
            .into_iter()
            .fold(name, |name, (new, old)| name.replace(new, old))
    };
    let stored = tensors(&part_files(&tiny(), Part::Vae)).into_iter().map(|(name, tensor)| (old(name), tensor));
    candle_core::safetensors::save(&stored.collect::<HashMap<_, _>>(), at("old.safetensors")).unwrap();
    write_single(&tiny(), "tiny-sd15", &[Part::Unet, Part::TextEncoder], &at("without.safetensors"));
    let without = at("without.safetensors");
    let options = Options { config: Some(&tiny()), ..only(&without) };
    let what = "there is no VAE in it; name one with --vae";
    assert!(fault(&options).contains(what), "{}", fault(&options));
    let names = ["bare.safetensors", "prefixed.safetensors", "old.safetensors"];
    for vae in names.map(at).into_iter().chain([tiny().join("vae"), tiny()]) {
        let got = Source::open(&Options { vae: Some(&vae), ..options }).unwrap();
        assert_same(Part::Vae, &got, &want);
        assert!(got.warnings().is_empty(), "{vae:?} {:?}", got.warnings());
    }
    for (vae, what) in [
        (root().join("models/atelier/vae"), "its latents have 4 channels at 1/4 of the picture, the model's 4 at 1/8"),
        (tiny().join("controlnet"), "ControlNetModel, not of a vae"),
        (fixture("checkpoints/embedding.pt"), "this is a textual-inversion embedding alone; --vae takes"),
    ] {
        let fault = fault(&Options { vae: Some(&vae), ..options });
        assert!(fault.contains(what), "{fault}");
    }
}

#[test]
fn a_folder_whose_vae_is_onnx_only_opens() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&tiny(), folder.path());
    std::fs::remove_file(folder.path().join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let source = Source::open(&only(folder.path())).unwrap();
    assert!(!source.has(Part::Vae) && source.config(Part::Vae).is_some());
    std::fs::remove_file(part_files(folder.path(), Part::TextEncoder).pop().unwrap()).unwrap();
    assert!(fault(&only(folder.path())).contains("no model.safetensors"), "{}", fault(&only(folder.path())));
}

#[test]
fn every_naming_of_a_lora_gives_the_weights_that_diffusers_fuses() {
    let expected = Weights::open_file(&fixture("loras/expected.safetensors")).unwrap();
    let recipe: Value = serde_json::from_str(&expected.metadata()["recipe"]).unwrap();
    let weight = recipe["weight"].as_f64().unwrap() as f32;
    let plain = Source::open(&only(&tiny())).unwrap();
    for (file, layers) in
        [("kohya.safetensors", 15), ("original.safetensors", 15), ("processors.bin", 7), ("diffusers.safetensors", 12)]
    {
        let loras = [(fixture("loras").join(file), weight)];
        let source = Source::open(&Options { loras: &loras, ..only(&tiny()) }).unwrap();
        // a few sums of ranks up to 4 in another order than PyTorch's
        let tolerance = 4.0 * recipe["rounding"][file].as_f64().unwrap() as f32;
        let mut changed = 0;
        for part in [Part::Unet, Part::TextEncoder] {
            for name in source.names(part) {
                let (got, before) = (source.read(part, &name).unwrap(), plain.read(part, &name).unwrap());
                let key = format!("{file}/{part}.{name}");
                if !expected.contains(&key) {
                    assert!(got == before, "{key} is none of the LoRA's layers");
                    continue;
                }
                let want = expected.read_f32(&key).unwrap();
                let largest = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(got.len() == want.len() && largest <= tolerance, "{key}: {largest} > {tolerance}");
                let moved = before.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(moved > 100.0 * tolerance, "{key} hardly changes: {moved}");
                changed += 1;
            }
        }
        assert_eq!(changed, layers, "{file}");
    }
}

#[test]
fn loras_add_up_and_go_with_single_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.safetensors");
    write_single(&tiny(), "tiny-sd15", &Part::ALL, &file);
    let name = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight";
    let read = |weights: &[f32]| {
        let loras: Vec<_> = weights.iter().map(|&weight| (fixture("loras/kohya.safetensors"), weight)).collect();
        let options = Options { config: Some(&tiny()), loras: &loras, ..only(&file) };
        Source::open(&options).unwrap().read(Part::Unet, name).unwrap()
    };
    let (none, once, halves) = (read(&[]), read(&[1.0]), read(&[0.5, 0.5]));
    assert!(none != once);
    // two roundings of each of the sums instead of one
    assert!(once.iter().zip(&halves).all(|(a, b)| (a - b).abs() <= 2.0 * f32::EPSILON * a.abs().max(1.0)));
}

#[test]
fn a_lora_that_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |tensors: &[(&str, &[usize])]| {
        let file = folder.path().join("lora.safetensors");
        write_zeros(&file, tensors);
        let loras = [(file, 1.0)];
        fault(&Options { loras: &loras, ..only(&tiny()) })
    };
    let to_q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let (down, up) = (format!("{to_q}.lora_down.weight"), format!("{to_q}.lora_up.weight"));
    let sdxl: Vec<_> = (0..12).map(|i| format!("lora_unet_input_blocks_7_1_transformer_blocks_{i}_x.alpha")).collect();
    let sdxl: Vec<(&str, &[usize])> = sdxl.iter().map(|name| (name.as_str(), &[][..])).collect();
    let fault = refused(&sdxl);
    assert!(
        fault.contains("12 of its keys fit no layer") && fault.contains("blocks_7_x.alpha, ...); it may"),
        "{fault}"
    );
    assert!(!fault.contains("blocks_8_x") && fault.contains("SDXL"), "ten are listed: {fault}");
    for (tensors, what) in [
        (vec![(down.as_str(), &[2, 16][..])], "1 of its layers do not fit this model: lora_unet_down_blocks_0_"),
        (vec![(&down, &[2, 16]), (&up, &[16, 3])], "with [16, 3] by [2, 16] for a layer of [16, 16]"),
        (vec![(&down, &[2, 24]), (&up, &[16, 2])], "with [16, 2] by [2, 24] for a layer of [16, 16]"),
        (vec![(&down, &[0, 16]), (&up, &[16, 0])], "for a layer of [16, 16]"),
        (vec![(&down, &[2, 16]), (&up, &[16, 2]), ("other.weight", &[1])], "1 of its keys fit no layer"),
        (
            vec![("lora_unet_conv_in.hada_w1_a", &[1])],
            "kind LoHa (lora_unet_conv_in.hada_w1_a), which is not supported",
        ),
        (vec![("lora_unet_conv_in.lokr_w1", &[1])], "kind LoKr"),
        (vec![("lora_unet_conv_in.dora_scale", &[1])], "kind DoRA"),
        (vec![("unet.conv_in.lora_magnitude_vector", &[1])], "kind DoRA"),
        (vec![("lora_unet_conv_in.lora_mid.weight", &[1])], "Tucker"),
        (vec![("text_model.embeddings.token_embedding.lora_A.weight", &[1, 1])], "1 of its keys fit no layer"),
        (vec![("model.diffusion_model.input_blocks.0.0.weight", &[4, 4, 3, 3])], "pipeline; --lora takes a LoRA file"),
        (vec![("emb_params", &[1, 768])], "this is a textual-inversion embedding alone; --lora takes a LoRA file"),
    ] {
        let fault = refused(&tensors);
        assert!(fault.contains(what) && fault.contains("lora.safetensors"), "{fault}");
    }
    let twice: Vec<(&str, &[usize])> = vec![
        (&down, &[2, 16]),
        (&up, &[16, 2]),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", &[2, 16]),
    ];
    assert!(refused(&twice).contains("are for the same layer"));
    let loras = [(fixture("loras/kohya.safetensors"), f32::NAN)];
    let nan = Source::open(&Options { loras: &loras, ..only(&tiny()) });
    assert!(matches!(nan, Err(Error::Usage(_))));
}

#[test]
fn clips_own_words_are_those_of_transformers() {
    let cases: Value = serde_json::from_slice(&std::fs::read(fixture("clip-tokens.json")).unwrap()).unwrap();
    let tokenizer = Vocabulary::Clip.open().unwrap();
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(serde_json::to_value(tokenizer.encode(text).unwrap()).unwrap(), case["ids"], "{text}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (49406, 49407, 49407));
    let files: Vec<_> = Vocabulary::Clip.files().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(files, ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]);
}

#[test]
fn a_file_with_other_widths_than_the_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.safetensors");
    write_single(&tiny(), "tiny-sd15", &Part::ALL, &file);
    let as_sd15 = fault(&only(&file));
    assert!(as_sd15.contains("Stable Diffusion 1.5's configuration [320, 4, 3, 3]"), "{as_sd15}");
    assert!(as_sd15.contains("--config"), "{as_sd15}");
    // the right configuration but no tokenizer of 3730 words
    let config = folder.path().join("config");
    copy_folder(&tiny(), &config);
    std::fs::remove_dir_all(config.join("tokenizer")).unwrap();
    let options = Options { config: Some(&config), ..only(&file) };
    assert!(fault(&options).contains("3730 words, CLIP's vocabulary 49408"), "{}", fault(&options));
    let words = tiny().join("tokenizer");
    let opened = Source::open(&Options { tokenizer: Some(&words), ..options }).unwrap();
    assert_eq!(opened.tokenizer(), &Vocabulary::Folder(words.clone()));
    let elsewhere = Options { tokenizer: Some(folder.path()), ..options };
    assert!(fault(&elsewhere).contains("name a tokenizer folder"), "{}", fault(&elsewhere));
    let folder_with_config = tiny();
    let options = Options { config: Some(&config), ..only(&folder_with_config) };
    assert!(matches!(Source::open(&options), Err(Error::Usage(what)) if what.contains("--config is for single files")));
}

#[test]
fn other_architectures_and_other_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let unet = "model.diffusion_model.";
    let conv_in = format!("{unet}input_blocks.0.0.weight");
    let to_k = format!("{unet}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight");
    let conv = |channels| [320, channels, 3, 3];
    let (conv4, conv9, conv8) = (conv(4), conv(9), conv(8));
    let label = format!("{unet}label_emb.0.0.weight");
    let double = format!("{unet}double_blocks.0.img_attn.qkv.weight");
    let joint = format!("{unet}joint_blocks.0.x_block.attn.qkv.weight");
    let remedy = "supported are Stable Diffusion 1.x text-to-image models";
    let cases: Vec<(Zeros, &str)> = vec![
        (vec![(&conv_in, &conv4), (&to_k, &[640, 2048])], "Stable Diffusion XL"),
        (vec![(&conv_in, &conv4), ("conditioner.embedders.1.model.ln_final.weight", &[8])], "Stable Diffusion XL"),
        (vec![(&conv_in, &conv4), (&label, &[8, 8])], "Stable Diffusion XL"),
        (vec![("add_embedding.linear_1.weight", &[8, 8]), ("conv_in.weight", &conv4)], "Stable Diffusion XL"),
        (vec![(&conv_in, &conv4), ("cond_stage_model.model.ln_final.weight", &[1024])], "Stable Diffusion 2.x"),
        (vec![(&conv_in, &conv4), (&to_k, &[320, 1024])], "Stable Diffusion 2.x"),
        (vec![(&double, &[8, 8])], "a transformer model (Flux)"),
        (vec![("double_blocks.0.img_attn.qkv.weight", &[8, 8])], "a transformer model (Flux)"),
        (vec![(&joint, &[8, 8])], "a transformer model (Stable Diffusion 3)"),
        (vec![(&conv_in, &conv9), (&to_k, &[320, 768])], "an inpainting model (its UNet reads 9 channels)"),
        (vec![(&conv_in, &conv8), (&to_k, &[320, 768])], "a model whose UNet reads 8 channels"),
        (vec![("lora_unet_mid_block.lora_down.weight", &[1, 1])], "a LoRA alone"),
        (vec![("unet.mid_block.to_q.lora_A.weight", &[1, 1])], "a LoRA alone"),
        (vec![("emb_params", &[4, 768])], "a textual-inversion embedding alone"),
        (vec![("<mine>", &[768])], "a textual-inversion embedding alone"),
        (vec![("first_stage_model.encoder.conv_in.weight", &[128, 3, 3, 3])], "a VAE alone"),
        (vec![("decoder.conv_in.weight", &[128, 3, 3, 3])], "a VAE alone"),
        (vec![("control_model.input_hint_block.0.weight", &[16, 3, 3, 3])], "a ControlNet alone"),
        (vec![("input_hint_block.0.weight", &[16, 3, 3, 3])], "a ControlNet alone"),
        (vec![("input_hint_block.0.weight", &[16, 3, 3, 3]), ("difference", &[1])], "stored as a difference"),
        (vec![("lora_controlnet", &[1]), ("input_hint_block.0.weight", &[16, 3, 3, 3])], "a Control-LoRA"),
        (vec![("adapter.body.0.in_conv.weight", &[16, 3, 3, 3])], "a T2I-Adapter"),
        (vec![("down_blocks.0.resnets.0.conv1.weight", &[320, 320, 3, 3])], "a UNet alone"),
        (vec![("text_model.final_layer_norm.weight", &[768])], "a text encoder alone"),
        (vec![("layers.0.weight", &[1, 2, 3])], "no Stable Diffusion model"),
        (vec![], "no Stable Diffusion model"),
    ];
    for (tensors, what) in cases {
        let file = folder.path().join("model.safetensors");
        write_zeros(&file, &tensors);
        let fault = fault(&only(&file));
        assert!(fault.contains(what) && fault.contains(remedy) && fault.contains("model.safetensors"), "{fault}");
    }
    let embedding = fault(&only(&fixture("checkpoints/embedding.pt")));
    assert!(embedding.contains("a textual-inversion embedding alone"), "{embedding}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for (path, what) in [
        (at("pointer.safetensors", lfs), "Git LFS's pointer"),
        (at("pointer.ckpt", lfs), "Git LFS's pointer"),
        (at("page.safetensors", b"<!DOCTYPE html><html>"), "claims a header"),
        (at("page.ckpt", b"<!DOCTYPE html><html>"), "no checkpoint of torch"),
        (at("empty.safetensors", b""), "too short"),
        (at("empty.ckpt", b""), "no checkpoint of torch"),
        (fixture("checkpoints/old-form.pt"), "textual-inversion embedding alone"),
    ] {
        let fault = fault(&only(&path));
        assert!(fault.contains(what) && fault.contains(&*path.to_string_lossy()), "{fault}");
    }
    assert!(matches!(Source::open(&only(&folder.path().join("missing.ckpt"))), Err(Error::Io { .. })));
    assert!(matches!(Source::open(&only(folder.path())), Err(Error::Io { .. })), "a folder without model_index.json");

    // safetensors under the name of a checkpoint are read for what they are
    let renamed = folder.path().join("renamed.ckpt");
    write_single(&tiny(), "tiny-sd15", &Part::ALL, &renamed);
    assert!(Source::open(&Options { config: Some(&tiny()), ..only(&renamed) }).is_ok());
}

#[test]
fn values_that_are_not_finite_are_found_when_read() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&tiny(), folder.path());
    let mut stored = tensors(&part_files(&tiny(), Part::ControlNet));
    let name = "controlnet_mid_block.bias";
    stored.insert(name.into(), Tensor::full(f32::NAN, 32, &Device::Cpu).unwrap());
    let file = part_files(folder.path(), Part::ControlNet).pop().unwrap();
    candle_core::safetensors::save(&stored, file).unwrap();
    let source = Source::open(&only(folder.path())).unwrap();
    let error = source.read(Part::ControlNet, name).unwrap_err().to_string();
    assert!(error.contains("controlnet: tensor controlnet_mid_block.bias holds values that are not finite"), "{error}");
    // what a part should not have is not given out, but told
    stored.insert("another.layer.weight".into(), Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&stored, part_files(folder.path(), Part::ControlNet).pop().unwrap()).unwrap();
    let source = Source::open(&only(folder.path())).unwrap();
    assert_eq!(source.warnings(), ["controlnet: 1 tensors are not used, such as another.layer.weight"]);
    assert_eq!(source.shape(Part::ControlNet, "another.layer.weight"), None);
}
