//! The fixtures that the scripts in this folder made, and how a result is compared with them.
#![allow(dead_code)] // each test binary uses its share

use candle_core::{Device, Tensor};
use pleinair::Target;
use pleinair::bundle::Bundle;
use pleinair::painter::Painter;
use pleinair::target::{Kind, Numbers};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The models that parity is proved on.
pub const MODELS: [&str; 2] = ["atelier", "tiny-sd15"];

/// The project's folder: where it was built, or on another machine the one that the tests are started in.
pub fn root() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built.is_dir() { built.to_owned() } else { std::env::current_dir().unwrap() }
}

/// The folder of one of [`MODELS`].
pub fn model_folder(model: &str) -> PathBuf {
    match model {
        "atelier" => root().join("models/atelier"),
        tiny => root().join("tests/fixtures").join(tiny),
    }
}

/// Where the tests run: on the processor, or where `PLEINAIR_TEST_DEVICE` says, in f32, so that parity is to rounding.
pub fn target() -> Target {
    let device = std::env::var("PLEINAIR_TEST_DEVICE").unwrap_or_default();
    let kind = match device.as_str() {
        "" | "cpu" => Kind::Cpu,
        "cuda" => Kind::Cuda,
        "metal" => Kind::Metal,
        other => panic!("PLEINAIR_TEST_DEVICE={other}: cpu, cuda or metal"),
    };
    let (target, _) = Target::open(kind, pleinair_cpu::isa::best()).unwrap_or_else(|e| panic!("{e}"));
    target.with_numbers(Numbers::F32)
}

/// One of [`MODELS`], on the device under test.
pub fn bundle(model: &str) -> Bundle {
    Bundle::open(&model_folder(model)).unwrap().on(target())
}

/// The same, opened.
pub fn painter(model: &str) -> Painter {
    Painter::new(bundle(model)).unwrap_or_else(|e| panic!("{e}"))
}

/// One fixture file.
pub struct Reference {
    tensors: HashMap<String, Tensor>,
    /// The recipe that made it.
    pub recipe: serde_json::Value,
}

impl Reference {
    pub fn open(name: &str) -> Self {
        let path = root().join(format!("tests/fixtures/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let recipe = metadata.metadata().as_ref().and_then(|m| m.get("recipe")).expect("fixtures carry their recipe");
        Reference {
            recipe: serde_json::from_str(recipe).unwrap(),
            tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(),
        }
    }

    pub fn tensor(&self, name: &str) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("no {name} in the fixture")).clone()
    }

    /// Distance of PyTorch's own f32 result from its float64 one.
    pub fn rounding(&self, name: &str) -> f32 {
        self.recipe["rounding"][name].as_f64().unwrap_or_else(|| panic!("no rounding of {name}")) as f32
    }
}

/// Largest absolute difference; NaN anywhere gives NaN.
pub fn max_difference(got: &Tensor, want: &Tensor) -> f32 {
    assert_eq!(got.dims(), want.dims());
    let got = got.to_device(&Device::Cpu).unwrap();
    let difference = (got.contiguous().unwrap() - want).unwrap().abs().unwrap().flatten_all().unwrap();
    let values = difference.to_vec1::<f32>().unwrap();
    values.into_iter().fold(0.0, |max, d| if d.is_nan() || d > max { d } else { max })
}

/// Asserts that `got` is within `times` the reference's own rounding error of the reference.
pub fn assert_close(got: &Tensor, reference: &Reference, name: &str, times: f32) {
    let difference = max_difference(got, &reference.tensor(name));
    let tolerance = times * reference.rounding(name).max(f32::EPSILON);
    println!("{name}: {difference:.2e} (tolerance {tolerance:.2e})");
    assert!(difference <= tolerance, "{name} differs by {difference:.3e}, more than {tolerance:.3e}");
}

#[test]
#[should_panic(expected = "differs by NaN")]
fn the_comparator_fails_on_nan() {
    let reference = Reference::open("atelier-networks");
    let mut values = reference.tensor("unet.sample").flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[7] = f32::NAN;
    let shape = reference.tensor("unet.sample").shape().clone();
    assert_close(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap(), &reference, "unet.sample", 1e9);
}

#[test]
#[should_panic(expected = "differs by")]
fn the_comparator_fails_on_a_small_error() {
    let reference = Reference::open("atelier-networks");
    let off = (reference.tensor("unet.sample") + 1e-5).unwrap();
    assert_close(&off, &reference, "unet.sample", 1.0);
}
