//! Each network against diffusers and transformers, on the default model and on a tiny random model of SD 1.5's exact
//! structure. `tests/reference/networks.py` made the fixtures.

mod reference;

use pleinair::bundle::Bundle;
use pleinair::bundle::control::Control;
use pleinair::camera::Frame;
use pleinair::net::{ControlNet, Latent, TextEncoder, Unet};
use pleinair::prompt::{Conditioning, Template, Tokenizer, Tokens};
use pleinair::side::vae::Vae;
use reference::{MODELS, Reference, assert_close, bundle, root};
use std::sync::Arc;

/// Two correct f32 evaluations differ by their rounding. The fixture carries the reference's own distance from a
/// float64 evaluation; ours may be a few times that, since its sums run in another order.
const ROUNDING: f32 = 8.0;

fn open(model: &str) -> (Arc<Bundle>, Reference) {
    (Arc::new(bundle(model)), Reference::open(&format!("{model}-networks")))
}

#[test]
fn text_states_equal_transformers() {
    for model in MODELS {
        let (bundle, reference) = open(model);
        let encoder = TextEncoder::load(&bundle).unwrap();
        let ids = reference.tensor("text.ids").to_vec2::<i64>().unwrap();
        let prompts: Vec<_> = ids
            .iter()
            .map(|ids| {
                let tokens = Tokens { ids: ids.iter().map(|&i| i as u32).collect(), ..Tokens::default() };
                encoder.embed(&tokens, &[]).unwrap()
            })
            .collect();
        let states = encoder.forward(&candle_core::Tensor::cat(&prompts, 0).unwrap()).unwrap();
        assert_close(&states.0, &reference, "text.states", ROUNDING);
    }
}

#[test]
fn noise_prediction_equals_diffusers_with_and_without_control() {
    for model in MODELS {
        let (bundle, reference) = open(model);
        let states = Conditioning(reference.tensor("unet.states"));
        let timesteps: Vec<f64> =
            reference.tensor("unet.timesteps").to_vec1::<f32>().unwrap().iter().map(|&t| t as f64).collect();
        let sample = reference.tensor("unet.sample");

        let unet = Unet::load(&bundle).unwrap();
        let text = unet.text_kv(&states).unwrap();
        let plain = unet.forward(&sample, &timesteps, &text, None).unwrap();
        assert_close(&plain, &reference, "unet.noise_pred", ROUNDING);

        let net = ControlNet::load(&bundle, Control::SoftEdge).unwrap();
        let hint = net.hint(&reference.tensor("control.image")).unwrap();
        let scale = reference.tensor("control.scale").to_vec0::<f32>().unwrap() as f64;
        let control = net.forward(&sample, &timesteps, &net.text_kv(&states).unwrap(), &hint, scale).unwrap();
        let maps: Vec<_> = control.maps().collect();
        for (i, map) in maps.iter().enumerate() {
            let name = if i + 1 == maps.len() { "control.mid".into() } else { format!("control.down.{i}") };
            let (b, c, h, w) = reference.tensor(&name).dims4().unwrap();
            let planar = map.reshape((b, h, w, c)).unwrap().permute((0, 3, 1, 2)).unwrap();
            assert_close(&planar, &reference, &name, ROUNDING);
        }
        let controlled = unet.forward(&sample, &timesteps, &text, Some(&control)).unwrap();
        assert_close(&controlled, &reference, "unet.noise_pred_controlled", ROUNDING);
    }
}

#[test]
fn the_vae_equals_diffusers() {
    for model in MODELS {
        let (bundle, reference) = open(model);
        let vae = Vae::open(&bundle).unwrap();
        let posterior = vae.encode_planar(&reference.tensor("vae.image")).unwrap();
        let moments = candle_core::Tensor::cat(&[&posterior.mean, &posterior.logvar], 1).unwrap();
        assert_close(&moments, &reference, "vae.moments", ROUNDING);
        // `vae.latent` is what the decoder itself takes; the program's latents are scaled
        let latent = (reference.tensor("vae.latent") * bundle.vae.scaling_factor).unwrap();
        assert_close(&vae.decode(&Latent(latent)).unwrap(), &reference, "vae.decoded", ROUNDING);
    }
}

#[test]
fn the_vae_takes_any_size_its_factor_divides() {
    let (bundle, _) = open("tiny-sd15");
    let vae = Vae::open(&bundle).unwrap();
    for (width, height) in [(8, 8), (24, 40), (40, 24), (24, 40)] {
        let frame = Frame::new(width, height, vec![77; width * height * 3]).unwrap();
        let latent = vae.encode(&frame).unwrap().mode().unwrap();
        assert_eq!(latent.0.dims(), [1, 4, height / 8, width / 8]);
        assert_eq!(vae.decode(&latent).unwrap().dims(), [1, 3, height, width]);
    }
    let odd = Frame::new(12, 8, vec![77; 12 * 8 * 3]).unwrap();
    assert!(vae.encode(&odd).unwrap_err().to_string().contains("factor 8"));
}

#[test]
fn token_ids_equal_transformers() {
    for model in MODELS {
        let (bundle, _) = open(model);
        let tokenizer = Tokenizer::open(bundle.tokenizer()).unwrap();
        let path = root().join(format!("tests/fixtures/{model}-tokens.json"));
        let prompts: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let prompts = prompts.as_array().unwrap();
        assert!(prompts.len() >= 17);
        for prompt in prompts {
            let text = prompt["text"].as_str().unwrap();
            let want: Vec<_> = prompt["ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
            let got = Template::literal(text).tokens(&tokenizer, &[]).unwrap().ids;
            assert_eq!(got, want, "{model}: {text:?}");
        }
    }
}
