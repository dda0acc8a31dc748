//! `inspect` counts what Python counts, and names whatever is wrong.

use pleinair_quantize::configs::Model;
use pleinair_quantize::inspect::{Inspection, Part, inspect};
use pleinair_quantize::synth::{Dtype, Synth};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn part<'a>(inspection: &'a Inspection, name: &str) -> &'a Part {
    inspection.parts.iter().find(|part| part.name == name).unwrap_or_else(|| panic!("no {name}"))
}

/// A tiny model that a test may break.
fn tiny() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tiny");
    let synth = Synth { model: Model::Tiny, seed: 7, dtype: Dtype::F16, out: out.clone(), force: false };
    synth.run(&AtomicBool::new(false)).unwrap();
    (folder, out)
}

/// Replaces a piece of the header with another of the same length.
fn edit_header(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn counts_of_the_models_here() {
    // counted from the headers with Python: parameters, tensors, types, files
    type Row = (&'static str, u64, usize, &'static [(&'static str, usize)], usize);
    let tiny: [Row; 4] = [
        ("unet", 715_700, 686, &[("F16", 686)], 2),
        ("controlnet", 308_624, 340, &[("F32", 340)], 1),
        ("text_encoder", 147_296, 37, &[("BF16", 36), ("I64", 1)], 1),
        ("vae", 111_839, 244, &[("F16", 244)], 1),
    ];
    let atelier: [Row; 4] = [
        ("unet", 5_804_452, 326, &[("F16", 326)], 1),
        ("controlnet", 2_589_712, 168, &[("F16", 168)], 1),
        ("text_encoder", 4_134_144, 68, &[("F16", 68)], 1),
        ("vae", 1_695_271, 156, &[("F16", 156)], 1),
    ];
    for (folder, rows) in [("tests/fixtures/tiny-sd15", tiny), ("models/atelier", atelier)] {
        let inspection = inspect(&repository().join(folder)).unwrap();
        assert!(inspection.problems.is_empty() && inspection.notes.is_empty(), "{inspection:?}");
        for (name, parameters, tensors, dtypes, files) in rows {
            let part = part(&inspection, name);
            let found: Vec<_> = part.dtypes.iter().map(|(dtype, &count)| (dtype.as_str(), count)).collect();
            assert_eq!((part.parameters, part.tensors, part.files), (Some(parameters), Some(tensors), files), "{name}");
            assert_eq!(found, dtypes, "{folder} {name}");
        }
        let onnx = inspection.parts.iter().find(|part| part.name == "vae (onnx)");
        assert_eq!(onnx.map(|part| part.files), (folder != "models/atelier").then_some(2), "its weights are enough");
    }
}

#[test]
fn configurations_in_one_line() {
    let inspection = inspect(&repository().join("tests/fixtures/tiny-sd15")).unwrap();
    let line = |name| part(&inspection, name).configuration.as_str();
    assert_eq!(line("unet"), "levels 16-24-32-32, ResNets per level 2, 8 heads, text 32 wide, latents 4x8x8");
    assert_eq!(line("controlnet"), "the UNet's way down, control picture read through 8-8-16-16");
    assert_eq!(line("text_encoder"), "3730 words, 32 wide, 2 layers, 4 heads, 77 positions, quick_gelu");
    assert_eq!(line("vae"), "levels 8-16-16-16, factor 8, 4 latent channels, scaling 0.18215");
    assert_eq!(line("scheduler"), "predicts epsilon, 1000 timesteps, scaled_linear betas 0.00085 to 0.012");
    assert_eq!(line("tokenizer"), "77 positions, starts with 3728, ends with 3729, pads with 3729");
}

#[test]
fn a_made_model_has_no_problem() {
    let (_kept, folder) = tiny();
    let inspection = inspect(&folder).unwrap();
    assert_eq!(inspection.problems, [""; 0]);
    assert_eq!(inspection.notes, [""; 0]);
    let unet = part(&inspection, "unet");
    let file = folder.join("unet/diffusion_pytorch_model.safetensors");
    assert_eq!((unet.tensors, unet.bytes), (Some(686), file.metadata().unwrap().len()));
}

#[test]
fn tensors_missing_misshapen_and_of_other_types_are_named_all_at_once() {
    let (_kept, folder) = tiny();
    let unet = folder.join("unet/diffusion_pytorch_model.safetensors");
    edit_header(&unet, "\"conv_in.bias\"", "\"conv_in.bosh\"");
    edit_header(&unet, r#"{"dtype":"F16","shape":[16,4,3,3]"#, r#"{"dtype":"F16","shape":[4,16,3,3]"#);
    edit_header(&unet, r#"{"dtype":"F16","shape":[64,16]"#, r#"{"dtype":"I16","shape":[64,16]"#);
    let inspection = inspect(&folder).unwrap();
    let wanted = [
        "unet: tensor conv_in.weight has the shape [4, 16, 3, 3], wanted [16, 4, 3, 3]",
        "unet: tensor conv_in.bias [16] is missing",
        "unet: tensor time_embedding.linear_1.weight is I16; supported are F32, F16 and BF16",
    ];
    assert_eq!(inspection.problems, wanted);
    assert!(inspection.notes.iter().any(|note| note.contains("conv_in.bosh")), "{:?}", inspection.notes);
}

#[test]
fn damaged_and_missing_files_are_named_all_at_once() {
    let (_kept, folder) = tiny();
    let text = folder.join("text_encoder/model.safetensors");
    let bytes = std::fs::read(&text).unwrap();
    std::fs::write(&text, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(folder.join("controlnet/config.json"), b"{").unwrap();
    std::fs::write(folder.join("scheduler/scheduler_config.json"), b"{}").unwrap();
    std::fs::write(folder.join("controlnet/diffusion_pytorch_model.safetensors"), [0xff; 16]).unwrap();
    std::fs::remove_file(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    std::fs::remove_file(folder.join("tokenizer/vocab.json")).unwrap();
    let inspection = inspect(&folder).unwrap();
    let named = |piece: &str| inspection.problems.iter().filter(|problem| problem.contains(piece)).count();
    for piece in [
        "controlnet/config.json",
        "text_encoder/model.safetensors",
        "claims a header",
        "no diffusion_pytorch_model.safetensors",
        "vocab.json",
        "scheduler_config.json",
    ] {
        assert_eq!(named(piece), 1, "{piece} in {:#?}", inspection.problems);
    }
    assert_eq!(inspection.problems.len(), 6, "{:#?}", inspection.problems);
}

#[test]
fn a_configuration_that_does_not_fit_is_named() {
    let (_kept, folder) = tiny();
    let path = folder.join("text_encoder/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("\"vocab_size\": 1024", "\"vocab_size\": 1023")).unwrap();
    let problems = inspect(&folder).unwrap().problems;
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(
        problems[0].contains("token_embedding.weight has the shape [1024, 32], wanted [1023, 32]"),
        "{problems:#?}"
    );
    assert!(problems[1].contains("token 1023"), "{problems:#?}");
    std::fs::write(&path, config.replace("\"hidden_size\": 32", "\"hidden_size\": 36")).unwrap();
    let found = inspect(&folder).unwrap();
    assert!(matches!(&found.problems[..], [one] if one.contains("cross_attention_dim")), "{:#?}", found.problems);
    assert!(found.notes.iter().any(|note| note.contains("not compared")));
}

#[test]
fn the_command_line_prints_a_table_or_json_and_fails_with_the_problems() {
    let run = |arguments: &[&str], folder: &Path| {
        let program = env!("CARGO_BIN_EXE_pleinair-quantize");
        let output = Command::new(program).arg("inspect").args(arguments).arg(folder).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (_kept, folder) = tiny();
    let (code, table, err) = run(&[], &folder);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(table.lines().any(|line| line.starts_with("unet ") && line.contains(" 686 ")), "{table}");
    let (code, json, _) = run(&["--json"], &folder);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let unet = json["parts"].as_array().unwrap().iter().find(|part| part["name"] == "unet").unwrap();
    assert_eq!((code, &unet["tensors"], &unet["dtypes"]["F16"]), (Some(0), &686.into(), &686.into()));

    std::fs::remove_file(folder.join("text_encoder/model.safetensors")).unwrap();
    let (code, table, err) = run(&[], &folder);
    assert!(code == Some(1) && err.contains("text_encoder") && table.contains("unet"), "{code:?} {err}");
    let (code, json, _) = run(&["--json"], &folder);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json["problems"].as_array().unwrap().len()), (Some(1), 1));
    let (code, out, err) = run(&[], &folder.join("nowhere"));
    assert!(code == Some(1) && out.is_empty() && err.contains("nowhere"), "{code:?} {err}");
}
