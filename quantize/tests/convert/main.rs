//! The converter put to the proof: bundles paint and learn as the model they were made from, and what goes wrong on the
//! way is said and leaves nothing behind.

mod calibration;
mod captions;
mod damage;
mod equal;
mod input;
mod learning;
mod naming;
mod places;
mod rules;
mod sides;
mod stored;

use clap::Parser;
use pleinair::Error;
use pleinair::bundle::manifest::Manifest;
use pleinair::painter::Painter;
use pleinair_quantize::convert::{Convert, Summary};
use pleinair_quantize::report::Quality;
use pleinair_quantize::synth::{self, Synth};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

/// Instruction sets on which attention and gradients of an int8 bundle are bf16; on the others they are f32.
const WITH_BF16: [&str; 2] = ["amx", "avx512bf16"];
const PROGRAM: &str = env!("CARGO_BIN_EXE_pleinair-quantize");
/// The files of a bundle with a ControlNet, in the order of the alphabet.
const FILES: [&str; 8] = [
    "bundle.json",
    "controlnet.safetensors",
    "scheduler.json",
    "text_encoder.safetensors",
    "tokenizer.json",
    "unet.safetensors",
    "vae_decoder.onnx",
    "vae_encoder.onnx",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A model of SD 1.5's structure with random weights: an f16 UNet, a bf16 text encoder, an f32 ControlNet.
fn tiny() -> PathBuf {
    repository().join("tests/fixtures/tiny-sd15")
}

/// The default model, in f16.
fn atelier() -> PathBuf {
    repository().join("models/atelier")
}

/// The options as they are parsed from the command line.
#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    convert: Convert,
}

/// A folder of its own to work in.
struct Studio(TempDir);

impl Studio {
    fn new() -> Self {
        Studio(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Everything in it, hidden or not.
    fn names(&self) -> Vec<String> {
        names(self.0.path())
    }

    /// A copy of a model to change.
    fn copy(&self, model: &Path, name: &str) -> PathBuf {
        copy_folder(model, &self.path(name));
        self.path(name)
    }

    /// A random model in f32 of the tiny shape.
    fn synth(&self, seed: u32, name: &str) -> PathBuf {
        let out = self.path(name);
        let model = pleinair_quantize::configs::Model::Tiny;
        let synth = Synth { model, seed, dtype: synth::Dtype::F32, out: out.clone(), force: false };
        synth.run(&AtomicBool::new(false)).unwrap();
        out
    }

    fn options(&self, from: &Path, dtype: &str, more: &[&str], out: &str) -> Convert {
        let (from, out) = (from.to_str().unwrap(), self.path(out));
        let base = ["convert", "--from", from, "--dtype", dtype, "--out", out.to_str().unwrap()];
        Line::try_parse_from(base.iter().chain(more)).unwrap_or_else(|e| panic!("{e}")).convert
    }

    fn try_convert(&self, from: &Path, dtype: &str, more: &[&str], out: &str) -> pleinair::Result<Summary> {
        self.options(from, dtype, more, out).run(&AtomicBool::new(false), &mut |_| ())
    }

    /// Converts; gives the bundle's folder.
    fn convert(&self, from: &Path, dtype: &str, more: &[&str], out: &str) -> PathBuf {
        self.try_convert(from, dtype, more, out).unwrap_or_else(|e| panic!("{e}"));
        self.path(out)
    }

    /// Converts what cannot be converted: the message says all of `words`, and there is nothing new in the folder.
    fn refuses(&self, from: &Path, dtype: &str, more: &[&str], words: &[&str]) -> Error {
        let before = self.names();
        let error = self.try_convert(from, dtype, more, "refused").unwrap_err();
        let text = error.to_string();
        words.iter().for_each(|word| assert!(text.contains(word), "no {word:?} in: {text}"));
        assert_eq!(self.names(), before);
        error
    }

    /// Runs the program in the folder.
    fn run(&self, arguments: &[&str]) -> Run {
        Run::of(Command::new(PROGRAM).args(arguments).current_dir(self.0.path()))
    }
}

/// How a run of the program ended.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(command: &mut Command) -> Run {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn ended(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        words.iter().for_each(|word| assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr));
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The files of a bundle by their paths in it.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in names(folder) {
        let path = folder.join(&name);
        match path.is_dir() {
            true => files.extend(contents(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes))),
            false => drop(files.insert(name, std::fs::read(&path).unwrap())),
        }
    }
    files
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        match from.is_dir() {
            true => copy_folder(&from, &to),
            false => drop(std::fs::copy(&from, &to).unwrap()),
        }
    }
}

fn manifest(bundle: &Path) -> Manifest {
    Manifest::read(bundle).unwrap()
}

fn open(folder: &Path) -> Painter {
    Painter::open(folder).unwrap_or_else(|e| panic!("{e}"))
}

/// What a bundle lost against its source.
fn quality(source: &Path, bundle: &Path, seeds: usize) -> Quality {
    Quality::measure(&open(source), &open(bundle), seeds, &AtomicBool::new(false)).unwrap()
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Rewrites a safetensors file.
fn edit(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let of = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let mut tensors: Tensors = file.tensors().into_iter().map(|(name, view)| (name, of(view))).collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Sets the first value of an f32 tensor.
fn set_first(tensors: &mut Tensors, name: &str, value: f32) {
    let (dtype, _, bytes) = tensors.get_mut(name).unwrap();
    assert_eq!(*dtype, Dtype::F32);
    bytes[..4].copy_from_slice(&value.to_le_bytes());
}

/// Sets a key of a JSON file.
fn set(path: &Path, key: &str, value: serde_json::Value) {
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, serde_json::to_vec_pretty(&json).unwrap()).unwrap();
}
