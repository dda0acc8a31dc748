//! What goes into a bundle besides its networks: a tiny decoder, a depth estimator, another VAE, styles.

use super::*;
use candle_core::Tensor;
use pleinair::canvas::psnr;
use pleinair::painter::Order;
use pleinair::sampler::TorchRng;
use pleinair::style::Style;
use pleinair_quantize::trial;

fn tiny_vae() -> PathBuf {
    repository().join("tests/fixtures/tiny-vae")
}

fn latent() -> Tensor {
    TorchRng::new(3).randn((1, 4, 8, 8)).unwrap()
}

/// From a folder, and from the ONNX file that came of it.
#[test]
fn a_tiny_decoder_makes_the_previews() {
    let studio = Studio::new();
    let plain = open(&studio.convert(&tiny(), "f32", &[], "plain"));
    let full = plain.preview(&latent()).unwrap();
    assert!(plain.decode(&pleinair::net::Latent(latent())).unwrap().rgb() == full.rgb(), "without one, the whole VAE");

    let onnx = studio.path("first/tiny_vae_decoder.onnx");
    let mut previews = vec![];
    for (name, from) in [("first", tiny_vae()), ("second", onnx)] {
        let bundle = studio.convert(&tiny(), "f32", &["--tiny-vae", from.to_str().unwrap()], name);
        assert!(manifest(&bundle).files.contains_key("tiny_vae_decoder.onnx"));
        let painter = open(&bundle);
        let picture = painter.decode(&pleinair::net::Latent(latent())).unwrap();
        assert!(picture.rgb() == full.rgb(), "{name}: paintings are decoded by the whole VAE");
        previews.push(painter.preview(&latent()).unwrap());
        let part = pleinair_quantize::inspect::inspect(&bundle).unwrap();
        assert!(part.problems.is_empty() && part.parts.iter().any(|part| part.name == "tiny vae" && part.files == 1));
    }
    assert!(previews[0].rgb() == previews[1].rgb());
    let apart = psnr(&previews[0], &full).unwrap();
    assert!(apart < 30.0, "{apart}: another decoder gives another picture");
    assert_eq!((previews[0].width(), previews[0].height()), (64, 64));
}

#[test]
fn a_depth_estimator_comes_along() {
    let studio = Studio::new();
    let depth = tiny().join("vae/encoder.onnx");
    let bundle = studio.convert(&tiny(), "int8", &["--depth", depth.to_str().unwrap()], "bundle");
    assert_eq!(std::fs::read(bundle.join("depth.onnx")).unwrap(), std::fs::read(&depth).unwrap());
    let inspection = pleinair_quantize::inspect::inspect(&bundle).unwrap();
    assert!(inspection.parts.iter().any(|part| part.name == "depth" && part.bytes == depth.metadata().unwrap().len()));
}

#[test]
fn side_models_of_the_wrong_kind_are_refused() {
    let studio = Studio::new();
    std::fs::write(studio.path("text.onnx"), "this is no network").unwrap();
    let [text, missing] = ["text.onnx", "missing.onnx"].map(|name| studio.path(name).display().to_string());
    let [vae, encoder, decoder] =
        ["vae", "vae/encoder.onnx", "vae/decoder.onnx"].map(|name| tiny().join(name).display().to_string());
    let weights = tiny_vae().join("diffusion_pytorch_model.safetensors").display().to_string();
    for (more, words) in [
        (["--tiny-vae", &text], &["text.onnx", "not ONNX"][..]),
        (["--tiny-vae", &encoder], &["encoder.onnx", "cannot be a VAE's decoder"]),
        (["--tiny-vae", &vae], &["not an AutoencoderTiny", "--vae"]),
        (["--tiny-vae", &missing], &["missing.onnx"]),
        // the file alone has the widths that the class has when nothing is said, and this one has others
        (["--tiny-vae", &weights], &["decoder.layers.0.weight is [16, 4, 3, 3], wanted [64, 4, 3, 3]"]),
        (["--depth", &text], &["text.onnx", "cannot be a depth estimator"]),
        (["--depth", &decoder], &["decoder.onnx", "cannot be a depth estimator"]),
        (["--depth", &missing], &["missing.onnx"]),
        (["--vae", &text], &["text.onnx"]),
        (["--controlnet", &vae], &["AutoencoderKL", "controlnet"]),
    ] {
        studio.refuses(&tiny(), "int8", &more, words);
    }
    // a VAE of another factor
    let atelier = atelier();
    studio.refuses(&tiny(), "int8", &["--vae", atelier.to_str().unwrap()], &["1/4", "1/8"]);
}

#[test]
fn a_vae_of_onnx_alone_is_told_what_is_missing() {
    let studio = Studio::new();
    let model = studio.copy(&tiny(), "model");
    std::fs::remove_file(model.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    studio.refuses(&model, "int8", &[], &["VAE as ONNX only", "--vae"]);
    let vae = tiny().join("vae");
    let bundle = studio.convert(&model, "int8", &["--vae", vae.to_str().unwrap()], "bundle");
    assert!(contents(&bundle) == contents(&studio.convert(&tiny(), "int8", &[], "own")));
}

/// A ControlNet of depth or of Canny's edges never sees soft edges for want of its own pictures.
#[test]
fn a_controlnet_that_reads_other_pictures_is_not_fed_soft_edges() {
    let studio = Studio::new();
    let painter = open(&studio.convert(&tiny(), "int8", &["--control", "depth"], "bundle"));
    let [soft, depth] = [open(&tiny()), painter];
    let photograph = trial::order(soft.bundle(), 0, 2, 2.0).unwrap();
    assert!(photograph.content.is_some() && trial::order(depth.bundle(), 0, 2, 2.0).unwrap().content.is_none());
    let error = depth.paint(&photograph, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("--control-scale 0")), "{error}");
    depth.paint(&Order { control_scale: 0.0, ..photograph }, &mut |_| Ok(())).unwrap();
    let inspected = studio.run(&["inspect", "bundle"]).stdout;
    assert!(inspected.contains("the ControlNet reads depth pictures"), "{inspected}");
}

/// Another ControlNet and another VAE take the place of the model's own; the rest stays as it was.
#[test]
fn parts_are_exchanged() {
    let studio = Studio::new();
    let other = studio.synth(1, "other");
    let own = contents(&studio.convert(&tiny(), "int8", &[], "own"));
    for (option, files) in [
        ("--controlnet", &["bundle.json", "controlnet.safetensors"][..]),
        ("--vae", &["bundle.json", "vae_decoder.onnx", "vae_encoder.onnx"]),
    ] {
        let exchanged = contents(&studio.convert(&tiny(), "int8", &[option, other.to_str().unwrap()], option));
        let differing: Vec<&str> = FILES.into_iter().filter(|name| own[*name] != exchanged[*name]).collect();
        assert_eq!(differing, files);
    }
    // and a model without a ControlNet makes a bundle without one, to which one can be given
    let bare = studio.copy(&tiny(), "bare");
    std::fs::remove_dir_all(bare.join("controlnet")).unwrap();
    let bundle = studio.convert(&bare, "int8", &[], "without");
    let manifest = manifest(&bundle);
    assert!(manifest.controlnet.is_none() && manifest.control.is_none() && open(&bundle).bundle().controlnet.is_none());
    assert!(!bundle.join("controlnet.safetensors").exists());
    let given = studio.convert(&bare, "int8", &["--controlnet", tiny().join("controlnet").to_str().unwrap()], "given");
    assert!(contents(&given) == own);
}

#[test]
fn the_models_styles_come_along_and_fit() {
    let studio = Studio::new();
    let bundle = studio.convert(&atelier(), "int8", &[], "bundle");
    let painter = open(&bundle);
    let styles: Vec<_> = names(&bundle.join("styles"));
    assert_eq!(styles, ["cafe-terrace.safetensors", "hiroshige.safetensors", "stained-glass.safetensors"]);
    for style in styles {
        let style = Style::open(bundle.join("styles").join(style)).unwrap();
        style.check_fits(&painter.text_encoder().base().unwrap(), painter.text_encoder().width()).unwrap();
    }
    let listed = manifest(&bundle).files.keys().filter(|name| name.starts_with("styles/")).count();
    assert_eq!(listed, 3);
}
