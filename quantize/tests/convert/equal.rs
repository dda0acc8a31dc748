//! A bundle of f32 is the model itself; f16 and int8 stay within their distance of it.

use super::*;
use crate::learning::{Outcome, lesson};
use pleinair::canvas::{Canvas, psnr};
use pleinair::painter::Order;
use pleinair::train::Prompts;
use pleinair_quantize::report::Quality;
use pleinair_quantize::trial;

/// Latents and pictures of an int8 bundle agree at least this well with full precision, in dB; see the issue of the
/// converter: below 35 dB differences between two pictures can be seen side by side.
const INT8: (f64, f64) = (40.0, 35.0);
/// Those of an f16 bundle: rounding to 11 bits alone leaves 66 dB at a layer's output.
const F16: f64 = 60.0;

fn never() -> AtomicBool {
    AtomicBool::new(false)
}

/// Paints; every clean estimate and the picture.
fn painted(painter: &Painter, order: &Order) -> (Vec<Vec<u32>>, Canvas) {
    let estimates = trial::estimates(painter, order, &never()).unwrap();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let picture = painter.paint(order, &mut |_| Ok(())).unwrap();
    (estimates.into_iter().map(bits).collect(), picture)
}

/// A copy of a model whose VAE is the bundle's.
fn with_vae_of(studio: &Studio, model: &Path, bundle: &Path) -> PathBuf {
    let copy = studio.copy(model, "with the bundle's VAE");
    for side in ["encoder", "decoder"] {
        std::fs::copy(bundle.join(format!("vae_{side}.onnx")), copy.join(format!("vae/{side}.onnx"))).unwrap();
    }
    copy
}

/// The VAE is written anew by the converter, so its rounding is another than that of the folder's ONNX files, which
/// PyTorch exported; with the same VAE everything is the same, bit for bit.
#[test]
fn f32_paints_and_learns_as_the_folder_bit_for_bit() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "f32", &[], "bundle");
    let folder = with_vae_of(&studio, &tiny(), &bundle);
    let [exported, folder, bundle] = [&tiny(), &folder, &bundle].map(|path| open(path));
    for seed in 0..2 {
        let order = trial::order(bundle.bundle(), seed, 4, 2.0).unwrap();
        let [(_, theirs), (want, picture), (got, own)] = [&exported, &folder, &bundle].map(|p| painted(p, &order));
        assert_eq!(got.len(), if order.content.is_some() { 3 } else { 4 }, "as many steps as the strength leaves");
        assert!(got == want, "seed {seed}: the estimates differ");
        assert!(own.rgb() == picture.rgb(), "seed {seed}: the pictures differ");
        let agreement = psnr(&theirs, &own).unwrap();
        println!("seed {seed}: {agreement:.1} dB from the picture of the exported VAE");
        assert!(agreement >= 50.0, "{agreement}");
    }

    let lessons = [&folder, &bundle].map(|painter| Outcome::of(painter, &lesson()));
    assert!(lessons[0] == lessons[1], "the lessons differ");
    assert!(lessons[0].losses.iter().all(|loss| loss.is_finite()) && lessons[0].losses.len() == 3);
}

/// Every number of the default model is an f16 already, in the bundle of f16 as in that of f32. Text to image: no VAE.
#[test]
fn the_default_model_in_f16_and_f32_is_the_model_itself() {
    let studio = Studio::new();
    let order = |painter: &Painter| trial::order(painter.bundle(), 1, 2, 2.0).unwrap();
    let source = open(&atelier());
    let want = trial::estimates(&source, &order(&source), &never()).unwrap();
    for dtype in ["f16", "f32"] {
        let bundle = open(&studio.convert(&atelier(), dtype, &[], dtype));
        assert!(trial::estimates(&bundle, &order(&bundle), &never()).unwrap() == want, "{dtype}");
    }
}

fn assert_quality(quality: &Quality, (latents, pictures): (f64, f64), what: &str) {
    let Quality { worst_latents_psnr, worst_picture_psnr, .. } = quality;
    println!(
        "{what}: latents {worst_latents_psnr:.1} dB {:.1?}, pictures {worst_picture_psnr:.1} dB {:.1?}, loss {:.3} dB",
        quality.latents_psnr, quality.pictures_psnr, quality.psnr_loss
    );
    assert!(*worst_latents_psnr >= latents, "{what}: latents agree to {worst_latents_psnr:.1} dB only");
    assert!(*worst_picture_psnr >= pictures, "{what}: pictures agree to {worst_picture_psnr:.1} dB only");
    assert!(quality.psnr_loss.is_finite());
}

#[test]
fn int8_keeps_its_distance_over_eight_seeds() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &[], "bundle");
    let measured = quality(&tiny(), &bundle, 8);
    assert_eq!((measured.latents_psnr.len(), measured.pictures_psnr.len(), measured.seeds), (8, 8, 8));
    assert_quality(&measured, INT8, "tiny int8");
}

#[test]
fn the_default_model_in_int8_keeps_its_distance() {
    let studio = Studio::new();
    let bundle = studio.convert(&atelier(), "int8", &[], "bundle");
    assert_quality(&quality(&atelier(), &bundle, 1), INT8, "atelier int8");
}

#[test]
fn f16_keeps_its_distance_from_f32_and_another_model_does_not() {
    let studio = Studio::new();
    let (source, other) = (studio.synth(1, "source"), studio.synth(2, "other"));
    let bundle = studio.convert(&source, "f16", &[], "bundle");
    assert_quality(&quality(&source, &bundle, 2), (F16, F16), "synth f16");
    let other = quality(&source, &other, 2);
    println!("another model: latents {:.1} dB, pictures {:.1} dB", other.worst_latents_psnr, other.worst_picture_psnr);
    assert!(other.worst_latents_psnr < INT8.0 && other.worst_picture_psnr < INT8.1);
}

#[test]
#[should_panic(expected = "only")]
fn the_comparator_fails_on_what_is_not_a_number() {
    let nan = Quality {
        seeds: 1,
        steps: 1,
        size: (64, 64),
        latents_psnr: vec![None],
        worst_latents_psnr: f64::NAN,
        pictures_psnr: vec![None],
        worst_picture_psnr: f64::NAN,
        psnr_loss: 0.0,
    };
    assert_quality(&nan, INT8, "nan");
}

/// The prompt of a lesson is the same tokens for both: the tokenizer has gone through `tokenizer.json`.
#[test]
fn the_tokenizer_says_the_same() {
    let studio = Studio::new();
    for model in [tiny(), atelier()] {
        let bundle = studio.path("bundle");
        std::fs::remove_dir_all(&bundle).ok();
        let [source, bundle] = [open(&model), open(&studio.convert(&model, "f16", &[], "bundle"))];
        let [ours, theirs] = [bundle.tokenizer(), source.tokenizer()];
        for text in ["", "A painting of a café, 3 boats!! it's 絵 <|endoftext|> ok", "UPPER   Case\tand\nlines"] {
            assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{text}");
        }
        let specials = |t: &pleinair::prompt::Tokenizer| (t.bos(), t.eos(), t.pad(), t.positions());
        assert_eq!(specials(ours), specials(theirs));
        assert!(Prompts::new(&bundle, &lesson()).is_ok());
        assert_eq!(bundle.text_encoder().base().unwrap(), source.text_encoder().base().unwrap());
    }
}
