//! Captions against transformers' BLIP. `tests/reference/blip.py` made the fixtures.

mod reference;

use candle_core::{DType, Tensor};
use pleinair::Error;
use pleinair::camera::Frame;
use pleinair::side::captioner::Captioner;
use reference::{Reference, assert_close, max_difference, root};
use std::path::{Path, PathBuf};

/// As for the networks: ours may round a few times as far as the reference does, in another order.
const ROUNDING: f32 = 8.0;

fn folder(name: &str) -> PathBuf {
    root().join("tests/fixtures/captioners").join(name)
}

fn frame(reference: &Reference, k: usize) -> Frame {
    let tensor = reference.tensor(&format!("rgb.{k}"));
    let (height, width, _) = tensor.dims3().unwrap();
    Frame::new(width, height, tensor.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
}

fn tokens(reference: &Reference, name: &str) -> Vec<u32> {
    let tensor: Tensor = reference.tensor(name);
    tensor.to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

#[test]
fn both_kinds_see_and_say_what_transformers_does() {
    let reference = Reference::open("captioners");
    for name in ["base", "large"] {
        let mut captioner = Captioner::open(&folder(name)).unwrap();
        for k in 0..3 {
            let own = captioner.pixels(&frame(&reference, k)).unwrap();
            // Pillow 13, which made the fixture, resizes columns before rows where one side grows and the other shrinks;
            // earlier versions and we never do, which hard edges show. The networks are compared on its pixels then.
            let pixels = match (name, k) {
                ("base", 1) => reference.tensor("base.pixels.1"),
                ("large", 1) => continue,
                _ => own,
            };
            if k == 0 {
                // a division, a subtraction and a division of numbers up to 3
                let difference = max_difference(&pixels, &reference.tensor(&format!("{name}.pixels.0")));
                assert!(difference <= 3.0 * 3.0 * f32::EPSILON, "{name}: {difference}");
                let said = captioner.caption(&frame(&reference, k)).unwrap();
                assert_eq!(said, reference.recipe[format!("{name}.caption.{k}")].as_str().unwrap(), "{name}");
            }
            let features = captioner.features(&pixels).unwrap();
            assert_close(&features, &reference, &format!("{name}.features.{k}"), ROUNDING);
            let expected = tokens(&reference, &format!("{name}.tokens.{k}"));
            let logits = captioner.logits(&features, &expected[..expected.len() - 1]).unwrap();
            assert_close(&logits, &reference, &format!("{name}.logits.{k}"), ROUNDING);
            assert_eq!(captioner.tokens(&pixels).unwrap(), expected, "{name} {k}");
        }
    }
}

#[test]
fn words_are_joined_as_in_python() {
    let reference = Reference::open("captioners");
    let captioner = Captioner::open(&folder("base")).unwrap();
    for case in reference.recipe["decoded"].as_array().unwrap() {
        let ids: Vec<u32> = case[0].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(captioner.text(&ids).unwrap(), case[1].as_str().unwrap(), "{ids:?}");
    }
}

#[test]
fn what_is_no_captioner_is_refused() {
    let changed = |change: &dyn Fn(&Path)| {
        let place = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(folder("base")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), place.path().join(file.file_name())).unwrap();
        }
        change(place.path());
        Captioner::open(place.path())
    };
    let broken = |change: &dyn Fn(&Path)| changed(change).unwrap_err();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let missing = broken(&|place| std::fs::remove_file(place.join(file)).unwrap());
        assert!(missing.to_string().contains(file), "{file}: {missing}");
        let error = broken(&|place| std::fs::write(place.join(file), "{").unwrap());
        assert!(matches!(error, Error::File { .. }), "{file}: {error}");
    }
    let narrow = |place: &Path| {
        let path = place.join("config.json");
        let text = std::fs::read_to_string(&path).unwrap().replace("\"hidden_size\": 24", "\"hidden_size\": 48");
        std::fs::write(path, text).unwrap();
    };
    assert!(broken(&narrow).to_string().contains("do not fit"));
    for (from, to, said) in [
        ("\"num_hidden_layers\": 2", "1152921504606846976", "sizes are those of no network"),
        ("\"image_size\": 32", "1099511627776", "sizes are those of no network"),
        ("\"vocab_size\": 58", "0", "sizes are those of no network"),
        ("\"bos_token_id\": 56", "58", "bos_token_id is 58, outside a vocabulary of 58"),
        ("\"bos_token_id\": 56", "-1", "bos_token_id is -1, outside a vocabulary of 58"),
        ("\"sep_token_id\": 3", "\"[SEP]\"", "sep_token_id is \"[SEP]\", outside a vocabulary"),
        ("\"sep_token_id\": 3", "4", "sep_token_id is 4, the tokenizer's [SEP] 3"),
        ("\"model_type\": \"blip\"", "\"clip\"", "its model_type is \"clip\", must be \"blip\""),
        ("\"model_type\": \"blip\"", "null", "its model_type is null"),
    ] {
        let change = |place: &Path| {
            let path = place.join("config.json");
            let name = from.split(':').next().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{from}");
            std::fs::write(path, text.replace(from, &format!("{name}: {to}"))).unwrap();
        };
        let error = broken(&change).to_string();
        assert!(error.contains(said), "{from}: {error}");
    }
    for (text, said) in [
        (r#"{"image_std": [1]}"#, "image_std is [1], must be three numbers"),
        (r#"{"image_std": [1, 0, 1]}"#, "above 0"),
        (r#"{"do_normalize": false}"#, "do_normalize is false"),
        (r#"{"resample": 2}"#, "must be 3 (bicubic)"),
        (r#"{"resample": "bicubic"}"#, "must be 3 (bicubic)"),
        (r#"{"do_resize": "no"}"#, "do_resize is \"no\", must be true"),
        (r#"{"do_center_crop": true}"#, "do_center_crop is true, must be false"),
        (r#"{"rescale_factor": 1}"#, "must be 1/255"),
        (r#"{"rescale_factor": "1/255"}"#, "must be 1/255"),
        (r#"{"size": 384}"#, "must be 32x32"),
        (r#"{"size": {"height": 32, "width": 33}}"#, "must be 32x32"),
        (r#"{"size": {"shortest_edge": 32}}"#, "must be 32x32"),
        (r#"[1]"#, "no preprocessor's configuration"),
    ] {
        let error = broken(&|place| std::fs::write(place.join("preprocessor_config.json"), text).unwrap()).to_string();
        assert!(error.contains(said) && error.contains("preprocessor_config.json"), "{text}: {error}");
        let among = |place: &Path| {
            std::fs::remove_file(place.join("preprocessor_config.json")).unwrap();
            std::fs::write(place.join("processor_config.json"), format!("{{\"image_processor\": {text}}}")).unwrap();
        };
        let error = broken(&among).to_string();
        assert!(error.contains(said) && error.contains("/processor_config.json"), "{text}: {error}");
    }
    // what it does not say is as BLIP has it
    let silent = |place: &Path| std::fs::remove_file(place.join("preprocessor_config.json")).unwrap();
    let [silent, whole] = [&silent as &dyn Fn(&Path), &|_: &Path| {}].map(|change| changed(change).unwrap());
    let picture = frame(&Reference::open("captioners"), 0);
    assert_eq!(max_difference(&silent.pixels(&picture).unwrap(), &whole.pixels(&picture).unwrap()), 0.0);
    let not_finite = |place: &Path| {
        let path = place.join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
        let name = "vision_model.post_layernorm.bias";
        let nan = (tensors[name].ones_like().unwrap() * f64::NAN).unwrap();
        tensors.insert(name.into(), nan);
        candle_core::safetensors::save(&tensors, path).unwrap();
    };
    let error = broken(&not_finite);
    assert!(matches!(&error, Error::NotFinite { what, .. } if what.contains("post_layernorm.bias")), "{error}");
}
