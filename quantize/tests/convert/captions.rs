//! The captioner in a bundle: it says what its source says.

use super::*;
use candle_core::{DType, Device, Tensor};
use pleinair::bundle::Bundle;
use pleinair::camera::Frame;
use pleinair::side::captioner::{self, Captioner};
use std::collections::HashMap;

fn source(name: &str) -> PathBuf {
    repository().join("tests/fixtures/captioners").join(name)
}

/// A model with a captioner of its own; the weights of `base` are f32, between f16's numbers.
fn model(studio: &Studio, captioner: &str) -> PathBuf {
    let model = studio.copy(&tiny(), "model");
    let place = model.join(captioner::FOLDER);
    copy_folder(&source(captioner), &place);
    if captioner == "base" {
        change(&place, &|tensors| {
            for tensor in tensors.values_mut().filter(|tensor| tensor.dtype().is_float()) {
                *tensor = (tensor.to_dtype(DType::F32).unwrap() * 1.0003).unwrap();
            }
        });
    }
    model
}

fn change(captioner: &Path, change: &dyn Fn(&mut HashMap<String, Tensor>)) {
    let file = captioner.join(captioner::WEIGHTS);
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, file).unwrap();
}

/// A photograph, and pictures of random colours.
fn frames() -> Vec<Frame> {
    let mut frames = vec![Frame::open(repository().join("tests/fixtures/mountain2.jpg")).unwrap()];
    for k in 1..8u32 {
        let random = |i: u32| ((i / 3 / (k * k)).wrapping_mul(2_654_435_761).wrapping_add(i % 3 * k * 97) >> 13) as u8;
        frames.push(Frame::new(48, 36, (0..48 * 36 * 3).map(random).collect()).unwrap());
    }
    frames
}

/// Of the likelihoods of words, in dB, after the words that `want` says.
fn signal_to_noise(got: &mut Captioner, want: &mut Captioner, frame: &Frame) -> f64 {
    let pixels = want.pixels(frame).unwrap();
    let words = want.tokens(&pixels).unwrap();
    let logits = |captioner: &mut Captioner| {
        let features = captioner.features(&pixels).unwrap();
        let logits = captioner.logits(&features, &words).unwrap().flatten_all().unwrap();
        logits.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let (got, want) = (logits(got), logits(want));
    let noise: f64 = got.iter().zip(&want).map(|(got, want)| (got - want).powi(2)).sum();
    10.0 * (want.iter().map(|value| value.powi(2)).sum::<f64>() / noise).log10()
}

/// Both kinds of files, taken from the folder and named; every file is in the manifest, and its words are the source's.
#[test]
fn the_captioner_comes_along_and_says_the_same() {
    for (kind, tokenizer) in [("base", "tokenizer.json"), ("large", "vocab.txt")] {
        let studio = Studio::new();
        let model = model(&studio, kind);
        let source = model.join(captioner::FOLDER);
        let mut want = Captioner::open(&source).unwrap();
        let said: Vec<String> = frames().iter().map(|frame| want.caption(frame).unwrap()).collect();
        assert!(said.iter().any(|words| *words != said[0]), "the pictures do not tell captioners apart: {said:?}");
        let full = contents(&studio.convert(&model, "f32", &[], "f32"));
        for dtype in ["f32", "f16", "int8"] {
            let bundle = studio.convert(&model, dtype, &["--force"], dtype);
            let (listed, found) = (manifest(&bundle).files, contents(&bundle));
            let mut names: Vec<&str> = listed.keys().filter_map(|name| name.strip_prefix("captioner/")).collect();
            names.sort_unstable();
            let mut expected = ["config.json", "model.safetensors", "preprocessor_config.json", tokenizer];
            expected.sort_unstable();
            assert_eq!(names, expected, "{kind} {dtype}");
            for name in names.into_iter().filter(|name| *name != captioner::WEIGHTS) {
                let own = std::fs::read(source.join(name)).unwrap();
                assert!(found[&format!("captioner/{name}")] == own, "{kind} {dtype}: {name}");
            }
            let mut got = Captioner::open(&bundle.join(captioner::FOLDER)).unwrap();
            if kind == "large" || dtype == "f32" {
                let again: Vec<String> = frames().iter().map(|frame| got.caption(frame).unwrap()).collect();
                assert_eq!(again, said, "{kind} {dtype}");
            } else {
                // Numbers of 11 bits are 2^-12 of themselves apart at most, which is 72 dB, and errors add up over four
                // layers; words that are as likely as others may change with that, and in this network many are.
                let apart = signal_to_noise(&mut got, &mut want, &frames()[0]);
                assert!((50.0..100.0).contains(&apart), "{kind} {dtype}: {apart} dB");
            }
            assert_eq!(got.parameters(), want.parameters(), "{kind} {dtype}");
            let (half, whole) = (&found["captioner/model.safetensors"], &full["captioner/model.safetensors"]);
            let weights = SafeTensors::deserialize(half).unwrap();
            for (name, tensor) in weights.tensors() {
                let expected = if dtype == "f32" || tensor.shape().len() == 1 { Dtype::F32 } else { Dtype::F16 };
                assert_eq!(tensor.dtype(), expected, "{kind} {dtype}: {name}");
            }
            assert_eq!(half == whole, dtype == "f32", "{kind} {dtype}");
            let inspected = pleinair_quantize::inspect::inspect(&bundle).unwrap();
            let part = inspected.parts.iter().find(|part| part.name == "captioner").unwrap();
            assert!(inspected.problems.is_empty() && part.files == 4 && part.parameters == Some(want.parameters()));
        }
        let named = studio.convert(&tiny(), "int8", &["--captioner", source.to_str().unwrap()], "named");
        assert!(contents(&named) == contents(&studio.path("int8")), "{kind}");
    }
}

#[test]
fn a_captioner_that_was_changed_or_cannot_be_opened_is_no_part_of_a_bundle() {
    let studio = Studio::new();
    let model = model(&studio, "base");
    let bundle = studio.convert(&model, "f16", &[], "bundle");
    let weights = bundle.join("captioner/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = Bundle::open(&bundle).unwrap_err().to_string();
    assert!(error.contains("captioner/model.safetensors: was changed"), "{error}");

    let place = model.join("captioner");
    const NAME: &str = "vision_model.encoder.layers.0.mlp.fc1.weight";
    change(&place, &|tensors| {
        let large = (tensors[NAME].ones_like().unwrap() * 70_000.0).unwrap();
        tensors.insert(NAME.to_owned(), large);
    });
    studio.refuses(&model, "int8", &[], &[NAME, "beyond f16's 65504", "--dtype f32"]);
    studio.convert(&model, "f32", &[], "large-numbers");
    change(&place, &|tensors| drop(tensors.remove(NAME)));
    studio.refuses(&model, "f32", &[], &["captioner", "do not fit"]);
    std::fs::write(place.join("preprocessor_config.json"), r#"{"resample": 2}"#).unwrap();
    studio.refuses(&tiny(), "f32", &["--captioner", place.to_str().unwrap()], &["captioner"]);
    let missing = studio.path("missing").display().to_string();
    studio.refuses(&tiny(), "f32", &["--captioner", &missing], &["missing", "config.json"]);
}
