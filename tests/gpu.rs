//! What only a GPU does: half precision, parts that are freed in turn, a recorded step. The parity tests themselves run
//! there too, in f32, where `PLEINAIR_TEST_DEVICE` names it.
#![cfg(any(feature = "cuda", feature = "metal"))]

mod reference;

use candle_core::Tensor;
use pleinair::bundle::Bundle;
use pleinair::bundle::control::Control;
use pleinair::camera::Frame;
use pleinair::canvas::psnr;
use pleinair::net::Unet;
use pleinair::painter::{ControlChoice, Inversion, Order, Painter, StyleChoice};
use pleinair::prompt::{Conditioning, Template};
use pleinair::sampler::{Guidance, GuidanceForm, Sampler, TorchRng};
use pleinair::style::Style;
use pleinair::target::Numbers;
use pleinair::train::{Batch, Lesson, Options, Prompts, Study, gradient};
use reference::{Reference, bundle, max_difference, model_folder, target};

const TINY: &str = "tiny-sd15";

/// The device under test in half precision, with so much memory.
fn half(memory_bytes: Option<u64>) -> Painter {
    let target = target().with_numbers(Numbers::F16).with_memory(memory_bytes);
    assert!(!target.is_cpu(), "PLEINAIR_TEST_DEVICE must name the GPU");
    Painter::new(Bundle::open(&model_folder(TINY)).unwrap().on(target)).unwrap()
}

fn on_the_processor() -> Painter {
    Painter::open(&model_folder(TINY)).unwrap()
}

/// Transfer in a style of six stages, so that text and recording change on the way.
fn order(painter: &Painter) -> Order {
    let shades = (0..64 * 64 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let word = painter.text_encoder().word_vector(painter.tokenizer().word("painting").unwrap()).unwrap();
    let word: Vec<f32> = word.to_vec1().unwrap();
    let vectors = (0..6).map(|t| word.iter().map(|w| w * (1.0 + 0.1 * t as f32)).collect()).collect();
    let base = painter.text_encoder().base().unwrap();
    Order {
        prompt: Template::parse("a boat on a lake, in the style of {}").unwrap(),
        negative: "blurred".into(),
        styles: vec![StyleChoice::Learned(Style { token: "mine".into(), vectors, base, ..Style::default() })],
        content: Some(Frame::new(64, 64, shades).unwrap()),
        size: (64, 64),
        steps: 12,
        strength: 0.8,
        sampler: Sampler::UniPc,
        guidance: Guidance::new(1.0, 2.0, 3.0, GuidanceForm::Paper).unwrap(),
        controls: vec![ControlChoice::of_content(Control::SoftEdge, 0.8)],
        inversion: Inversion::Noise,
        seed: 11,
    }
}

fn painted(painter: &Painter) -> Tensor {
    painter.paint_latent(&order(painter), &mut |_| Ok(())).unwrap().0
}

/// Signal over error, in dB.
fn snr(got: &Tensor, want: &Tensor) -> f64 {
    let energy = |x: &Tensor| f64::from(x.sqr().unwrap().mean_all().unwrap().to_vec0::<f32>().unwrap());
    10.0 * (energy(want) / energy(&(got - want).unwrap())).log10()
}

#[test]
fn half_precision_predicts_the_same_noise() {
    let reference = Reference::open(&format!("{TINY}-networks"));
    let unet = Unet::load(&bundle(TINY).on(target().with_numbers(Numbers::F16))).unwrap();
    let text = unet.text_kv(&Conditioning(reference.tensor("unet.states"))).unwrap();
    let timesteps = reference.tensor("unet.timesteps").to_vec1::<f32>().unwrap();
    let timesteps: Vec<_> = timesteps.into_iter().map(f64::from).collect();
    let got = unet.forward(&reference.tensor("unet.sample"), &timesteps, &text, None).unwrap();
    let agreement = snr(&got, &reference.tensor("unet.noise_pred"));
    println!("half precision agrees to {agreement:.1} dB");
    // a rounding of 2^-12 at worst is 72 dB each; a path of some 150 of them adds up to about 22 dB
    assert!(agreement >= 48.0, "{agreement:.1} dB");
}

#[test]
fn half_precision_paints_the_same_picture() {
    let (gpu, processor) = (half(None), on_the_processor());
    let (got, want) = (painted(&gpu), painted(&processor));
    let agreement = snr(&got, &want);
    let pictures = [&gpu, &processor].map(|painter| painter.paint(&order(painter), &mut |_| Ok(())).unwrap());
    let equal = psnr(&pictures[0], &pictures[1]).unwrap();
    println!("a painting in half precision: latents {agreement:.1} dB, picture {equal:.1} dB");
    // the guidance's scales sum to six and multiply every rounding, in a network of random weights: 40.6 dB where measured
    assert!(agreement >= 36.0 && equal >= 40.0, "latents {agreement:.1} dB, picture {equal:.1} dB");
}

#[test]
fn the_same_order_gives_the_same_painting_again_and_in_little_memory() {
    let painter = half(None);
    let first = painted(&painter);
    // the second painting runs from what the first recorded, where the device records
    assert_eq!(max_difference(&painted(&painter), &first), 0.0);
    assert_eq!(painter.not_recorded(), None);
    let in_turn = half(Some(1));
    for _ in 0..2 {
        assert_eq!(max_difference(&painted(&in_turn), &first), 0.0);
        in_turn.paint(&order(&in_turn), &mut |_| Ok(())).unwrap();
    }
}

#[test]
fn half_precision_learns_in_the_same_direction() {
    let frame = Frame::new(8, 8, vec![128; 192]).unwrap();
    let context = Template::parse("a painting of a boat, in the style of {}").unwrap();
    let lesson = Lesson {
        token: "style".into(),
        studies: vec![Study { frame, context }],
        stages: 2,
        steps: 1,
        batch: 2,
        lr: 0.002.into(),
        init: "painting".into(),
        seed: 0,
        license: String::new(),
        options: Options::default(),
    };
    let mut rng = TorchRng::new(2);
    let mut randn = || rng.randn((2, 4, 8, 8)).unwrap();
    let batch = Batch { latents: randn(), noise: randn(), timesteps: vec![100.0, 800.0], pictures: vec![0, 0] };
    let [got, want] = [half(None), on_the_processor()].map(|painter| {
        let word = painter.text_encoder().word_vector(painter.tokenizer().word("painting").unwrap()).unwrap();
        let vectors = vec![word.to_vec1().unwrap(); 2];
        gradient(&painter, &Prompts::new(&painter, &lesson).unwrap(), &batch, &vectors).unwrap()
    });
    for (got, want) in got.0.iter().zip(&want.0) {
        assert!((got - want).abs() <= 0.002 * want, "loss {got}, in f32 {want}");
    }
    let (got, want) = (got.1.concat(), want.1.concat());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let cosine = dot(&got, &want) / (dot(&got, &got) * dot(&want, &want)).sqrt();
    let longer = (dot(&got, &got) / dot(&want, &want)).sqrt();
    println!("the gradient in half precision: cosine {cosine:.6}, {longer:.4} times as long");
    assert!(cosine >= 0.999 && (longer - 1.0).abs() <= 0.02, "cosine {cosine}, {longer} times as long");
}
