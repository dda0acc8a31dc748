//! Whole paintings against diffusers from the same seed: every solver's latents at every step, and the pictures.
//! `tests/reference/paint.py` made the fixtures.

mod reference;

use candle_core::{DType, Tensor};
use pleinair::bundle::control::Control;
use pleinair::camera::Frame;
use pleinair::canvas::{Canvas, psnr};
use pleinair::painter::{ControlChoice, Inversion, Order, Painter, StyleChoice};
use pleinair::prompt::Template;
use pleinair::sampler::{Guidance, GuidanceForm, Sampler};
use pleinair::style::Style;
use reference::{MODELS, Reference, max_difference, painter};

/// Pictures from the same seed agree at least this well, in dB.
const PSNR: f64 = 50.0;

fn picture(reference: &Reference, name: &str) -> (usize, usize, Vec<u8>) {
    let tensor = reference.tensor(name);
    let (height, width, _) = tensor.dims3().unwrap();
    (width, height, tensor.flatten_all().unwrap().to_vec1().unwrap())
}

/// The order that a fixture's recipe describes, without content.
fn order(reference: &Reference, sampler: Sampler) -> Order {
    let recipe = &reference.recipe;
    let number = |key: &str| recipe[key].as_f64().unwrap();
    Order {
        prompt: Template::parse(recipe["text2image"]["prompt"].as_str().unwrap()).unwrap(),
        negative: recipe["negative_prompt"].as_str().unwrap().into(),
        styles: vec![],
        content: None,
        size: (number("width") as usize, number("height") as usize),
        steps: number("steps") as usize,
        strength: 1.0,
        sampler,
        guidance: Guidance::new(0.0, 0.0, number("guidance"), GuidanceForm::Paper).unwrap(),
        controls: vec![],
        inversion: Inversion::Noise,
        seed: number("seed") as u64,
    }
}

/// Paints and asserts every step's latent. `scale(i)` carries ours to the reference's scaling; `rounding(i)` is how far
/// the reference itself moves at step i when its start moves by one part in a million.
fn paint(
    painter: &Painter,
    order: &Order,
    want: &Tensor,
    scale: impl Fn(usize) -> f64,
    rounding: impl Fn(usize) -> f32,
) -> Canvas {
    let mut seen = 0;
    let canvas = painter.paint(order, &mut |report| {
        let i = report.index + 1;
        let ours = (report.latent * scale(i)).unwrap();
        let difference = max_difference(&ours, &want.narrow(0, i, 1).unwrap());
        assert!(difference <= rounding(i), "{} step {i}: {difference:.2e} > {:.2e}", order.sampler, rounding(i));
        seen += 1;
        Ok(())
    });
    let canvas = canvas.unwrap();
    assert_eq!(seen + 1, want.dims()[0], "as many steps as the reference");
    canvas
}

/// The reference's own sensitivity at each step, with room for two differently ordered evaluations.
fn sensitivity(reference: &Reference, name: &str) -> impl Fn(usize) -> f32 {
    let steps: Vec<_> = reference.recipe["sensitivity"][name]
        .as_array()
        .unwrap_or_else(|| panic!("no sensitivity of {name}"))
        .iter()
        .map(|s| s.as_f64().unwrap() as f32)
        .collect();
    move |i| 4.0 * steps[i].max(1e-5)
}

#[test]
fn text_to_image_equals_diffusers_at_every_step() {
    for model in MODELS {
        let reference = Reference::open(&format!("{model}-paint"));
        let painter = painter(model);
        for sampler in [Sampler::DpmSolverPp2M, Sampler::UniPc, Sampler::Ddim, Sampler::Euler] {
            let name = format!("text2image.{sampler}.latents");
            let latents = reference.tensor(&name);
            let sigmas = match sampler {
                Sampler::Euler => reference.tensor(&name.replace("latents", "sigmas")).to_vec1::<f32>().unwrap(),
                _ => vec![],
            };
            // diffusers' Euler scheduler works on x / alpha
            let scale = |i: usize| sigmas.get(i).map_or(1.0, |&s| (1.0 + s as f64 * s as f64).sqrt());
            let rounding = sensitivity(&reference, &name);
            let canvas = paint(&painter, &order(&reference, sampler), &latents, scale, rounding);
            if sampler == Sampler::DpmSolverPp2M {
                let (width, height, rgb) = picture(&reference, "text2image.image");
                let equal = psnr(&canvas, &Canvas::new(width, height, rgb).unwrap()).unwrap();
                println!("{model}: text to image agrees to {equal:.1} dB");
                assert!(equal >= PSNR, "{model}: text to image agrees to {equal:.1} dB only");
            }
        }
    }
}

fn transfer_order(reference: &Reference, painter: &Painter) -> Order {
    let recipe = &reference.recipe["transfer"];
    let (width, height, rgb) = picture(reference, "content");
    let style = Style {
        token: "style".into(),
        vectors: reference.tensor("style.vectors").to_dtype(DType::F32).unwrap().to_vec2().unwrap(),
        base: painter.text_encoder().base().unwrap(),
        ..Style::default()
    };
    Order {
        prompt: Template::parse(recipe["prompt"].as_str().unwrap()).unwrap(),
        styles: vec![StyleChoice::Learned(style)],
        content: Some(Frame::new(width, height, rgb).unwrap()),
        strength: recipe["strength"].as_f64().unwrap(),
        controls: vec![ControlChoice::of_content(Control::SoftEdge, recipe["control_scale"].as_f64().unwrap())],
        ..order(reference, Sampler::UniPc)
    }
}

#[test]
fn style_transfer_equals_diffusers_at_every_step() {
    for model in MODELS {
        let reference = Reference::open(&format!("{model}-paint"));
        let painter = painter(model);
        let order = transfer_order(&reference, &painter);
        let latents = reference.tensor("transfer.latents");
        let canvas = paint(&painter, &order, &latents, |_| 1.0, sensitivity(&reference, "transfer.latents"));
        let (width, height, rgb) = picture(&reference, "transfer.image");
        let equal = psnr(&canvas, &Canvas::new(width, height, rgb).unwrap()).unwrap();
        println!("{model}: transfer agrees to {equal:.1} dB");
        assert!(equal >= PSNR, "{model}: transfer agrees to {equal:.1} dB only");
    }
}

#[test]
fn ddim_inversion_finds_the_way_back_and_noise_does_not() {
    let reference = Reference::open("atelier-paint");
    let painter = painter("atelier");
    let content = transfer_order(&reference, &painter).content.unwrap();
    let there_and_back = |inversion| {
        let order = Order {
            prompt: Template::parse("a photo of a mountain").unwrap(),
            content: Some(content.clone()),
            steps: 50,
            strength: 0.6,
            guidance: Guidance::new(0.0, 0.0, 1.0, GuidanceForm::Paper).unwrap(),
            inversion,
            ..order(&reference, Sampler::Ddim)
        };
        painter.paint(&order, &mut |_| Ok(())).unwrap()
    };
    // what the VAE alone makes of the photograph is the best that can come back
    let latent = painter.vae().encode(&content).unwrap().mode().unwrap();
    let best = Canvas::from_planar(&painter.vae().decode(&latent).unwrap()).unwrap();
    let (inverted, noised) = (
        psnr(&there_and_back(Inversion::Ddim), &best).unwrap(),
        psnr(&there_and_back(Inversion::Noise), &best).unwrap(),
    );
    println!("DDIM inversion comes back at {inverted:.1} dB, noise at {noised:.1} dB");
    assert!(inverted >= 30.0 && inverted >= noised + 8.0, "{inverted:.1} dB against {noised:.1} dB");
}
