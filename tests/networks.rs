//! Each network against diffusers and transformers, on the default model and on a tiny random model of SD 1.5's exact
//! structure. `tests/reference/networks.py` made the fixtures.

mod reference;

use pleinair::bundle::Bundle;
use pleinair::net::{ControlNet, TextEncoder, Unet};
use pleinair::prompt::{Conditioning, Tokens};
use reference::{MODELS, Reference, assert_close, model_folder};

/// Two correct f32 evaluations differ by their rounding. The fixture carries the reference's own distance from a
/// float64 evaluation; ours may be a few times that, since its sums run in another order.
const ROUNDING: f32 = 8.0;

fn open(model: &str) -> (Bundle, Reference) {
    (Bundle::open(&model_folder(model)).unwrap(), Reference::open(&format!("{model}-networks")))
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

        let net = ControlNet::load(&bundle).unwrap();
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
