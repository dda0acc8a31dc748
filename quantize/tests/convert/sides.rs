//! What goes into a bundle besides its networks: a tiny decoder, a depth estimator, another VAE, styles.

use super::*;
use candle_core::Tensor;
use pleinair::bundle::Bundle;
use pleinair::bundle::manifest::{Control, FileEntry};
use pleinair::camera::Frame;
use pleinair::canvas::psnr;
use pleinair::painter::Order;
use pleinair::sampler::TorchRng;
use pleinair::side::vae::Vae;
use pleinair::style::Style;
use pleinair_quantize::trial;
use prost::Message;
use std::sync::Arc;
use tract_onnx::pb::ModelProto;

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

/// Every ControlNet, the depth estimator with what it wants to be shown, and the network that draws lines; the bundle
/// paints what the folder paints.
#[test]
fn several_controlnets_and_their_networks_come_along() {
    let studio = Studio::new();
    let model = studio.copy(&tiny(), "model");
    let controls = repository().join("tests/fixtures/controls");
    std::fs::rename(model.join("controlnet"), model.join("controlnet_canny")).unwrap();
    for folder in ["controlnet_lineart", "controlnet_depth"] {
        std::fs::create_dir(model.join(folder)).unwrap();
        for file in model.join("controlnet_canny").read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            std::fs::copy(&file, model.join(folder).join(file.file_name().unwrap())).unwrap();
        }
    }
    for folder in ["depth_estimator", "lineart"] {
        std::fs::create_dir(model.join(folder)).unwrap();
    }
    for file in ["config.json", "preprocessor_config.json", "model.onnx"] {
        std::fs::copy(controls.join("dpt").join(file), model.join("depth_estimator").join(file)).unwrap();
    }
    std::fs::copy(controls.join("lineart.onnx"), model.join("lineart/model.onnx")).unwrap();

    let bundle = studio.convert(&model, "f32", &[], "bundle");
    let found = manifest(&bundle);
    assert_eq!(found.control, Some(Control::Depth), "the first by name");
    assert_eq!(found.controlnets.keys().copied().collect::<Vec<_>>(), [Control::Canny, Control::LineArt]);
    assert_eq!(found.depth.as_ref().unwrap().size.height, 64);
    for file in ["controlnet.safetensors", "controlnet_canny.safetensors", "controlnet_lineart.safetensors"] {
        assert!(found.files.contains_key(file), "{file}");
    }
    let (folder, packed) = (open(&model), open(&bundle));
    let order = trial::order(packed.bundle(), 0, 2, 2.0).unwrap();
    assert_eq!(order.controls.len(), 3);
    let [a, b] = [folder, packed].map(|painter| painter.paint(&order, &mut |_| Ok(())).unwrap());
    assert!(psnr(&a, &b).unwrap() > 50.0);
    let inspected = studio.run(&["inspect", "bundle"]).stdout;
    for words in ["the ControlNet reads depth pictures", "controlnet_canny reads canny pictures"] {
        assert!(inspected.contains(words), "{words}: {inspected}");
    }
    let parts = pleinair_quantize::inspect::inspect(&bundle).unwrap().parts;
    let size = |file: &str| bundle.join(file).metadata().unwrap().len();
    for (name, file) in [("depth", "depth.onnx"), ("lineart", "lineart.onnx")] {
        assert!(parts.iter().any(|part| part.name == name && part.bytes == size(file)), "{name}");
    }
    let report = studio.run(&["report", "bundle", "--against", "model", "--json"]);
    assert!(report.stdout.contains("controlnet_lineart.conv_in"), "{}", report.stderr);

    // one damaged byte of a further ControlNet is found
    let file = bundle.join("controlnet_canny.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = Bundle::open(&bundle).unwrap_err().to_string();
    assert!(error.contains("controlnet_canny.safetensors: was changed"), "{error}");
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
        (["--lineart", &text], &["text.onnx", "cannot be a network that draws lines"]),
        (["--lineart", &encoder], &["encoder.onnx", "wanted [1, 1, H, W]"]),
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
    let error = depth.paint(&photograph, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("no ControlNet for soft-edge pictures, only for depth"), "{error}");
    depth.paint(&Order { controls: vec![], ..photograph }, &mut |_| Ok(())).unwrap();
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
    assert!(
        manifest.controlnet.is_none() && manifest.control.is_none() && open(&bundle).bundle().controlnets.is_empty()
    );
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

/// Mean, logarithm of the variance and picture of a wide frame.
fn through_the_vae(folder: &Path) -> [Tensor; 3] {
    let vae = Vae::open(&Arc::new(Bundle::open(folder).unwrap())).unwrap();
    let frame = Frame::new(96, 32, (0..96 * 32 * 3).map(|i| (i % 97 * 2) as u8).collect()).unwrap();
    let posterior = vae.encode(&frame).unwrap();
    let picture = vae.decode(&posterior.mode().unwrap()).unwrap();
    [posterior.mean, posterior.logvar, picture]
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn decibels(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (flat(got), flat(want));
    let power = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let error = power(&mut got.iter().zip(&want).map(|(a, b)| a - b));
    10.0 * (power(&mut want.iter().copied()) / error).log10()
}

/// The weights of both models' VAE are f16, so that f16 and f32 hold them as they are; int8 and bf16 run them in bf16.
#[test]
fn a_bundles_vae_runs_in_own_layers_as_the_folders() {
    let studio = Studio::new();
    for (name, model) in [("tiny", tiny()), ("atelier", atelier())] {
        let want = through_the_vae(&model);
        for dtype in ["f32", "f16", "bf16", "int8"] {
            let bundle = studio.convert(&model, dtype, &[], &format!("{name}-{dtype}"));
            let got = through_the_vae(&bundle);
            for ((got, want), what) in got.iter().zip(&want).zip(["mean", "log-variance", "picture"]) {
                if dtype == "f32" || dtype == "f16" {
                    assert!(flat(got) == flat(want), "{name} {dtype}: {what}");
                } else {
                    // weights of 8 bits: 2^-9 of each at most, which is 54 dB, and errors add up over forty layers
                    let snr = decibels(got, want);
                    println!("{name} {dtype} {what}: {snr:.1} dB");
                    assert!(snr >= 30.0 && flat(got) != flat(want), "{name} {dtype}: {what} has {snr:.1} dB");
                }
            }
        }
    }
}

/// Changes the model of a bundle's ONNX file, and the file's length and checksum in the manifest.
fn change_onnx(bundle: &Path, name: &str, change: impl FnOnce(&mut ModelProto)) {
    let path = bundle.join(name);
    let mut model = ModelProto::decode(&std::fs::read(&path).unwrap()[..]).unwrap();
    change(&mut model);
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let mut manifest = manifest(bundle);
    manifest.files.insert(name.to_owned(), FileEntry::of(&path).unwrap());
    std::fs::write(bundle.join("bundle.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
}

#[test]
fn tensors_that_are_wrong_in_a_bundles_vae_are_named() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &[], "bundle");
    let (good, manifest) =
        (std::fs::read(bundle.join("vae_decoder.onnx")).unwrap(), std::fs::read(bundle.join("bundle.json")).unwrap());
    let tensor = |model: &mut ModelProto, name: &str| {
        let tensors = &model.graph.as_ref().unwrap().initializer;
        tensors.iter().position(|t| t.name.trim_end_matches(".f16") == name).unwrap()
    };
    type Change<'a> = (&'a dyn Fn(&mut ModelProto), &'a str);
    let changes: [Change<'_>; 4] = [
        (
            &|model| {
                let i = tensor(model, "decoder.up_blocks.1.resnets.2.conv1.weight");
                model.graph.as_mut().unwrap().initializer.remove(i);
            },
            "vae_decoder.onnx: tensor decoder.up_blocks.1.resnets.2.conv1.weight [16, 16, 3, 3] is missing",
        ),
        (
            &|model| {
                let i = tensor(model, "decoder.conv_out.weight");
                model.graph.as_mut().unwrap().initializer[i].dims[1] = 9;
            },
            "tensor decoder.conv_out.weight [3, 9, 3, 3] has",
        ),
        (
            &|model| {
                let i = tensor(model, "decoder.conv_out.weight");
                model.graph.as_mut().unwrap().initializer[i].dims = vec![-1, i64::MAX];
            },
            "tensor decoder.conv_out.weight [",
        ),
        (&|model| model.graph = None, "do not divide into norm_num_groups = 0"),
    ];
    for (change, words) in changes {
        change_onnx(&bundle, "vae_decoder.onnx", change);
        let error = Painter::open(&bundle).unwrap_err().to_string();
        assert!(error.contains(words), "no {words:?} in: {error}");
        std::fs::write(bundle.join("vae_decoder.onnx"), &good).unwrap();
        std::fs::write(bundle.join("bundle.json"), &manifest).unwrap();
    }
    // written by someone else: what it computes is known, but not from what
    let own = through_the_vae(&bundle);
    change_onnx(&bundle, "vae_decoder.onnx", |model| model.producer_name = "somebody".into());
    let vae = Vae::open(&Arc::new(Bundle::open(&bundle).unwrap())).unwrap();
    assert!(format!("{vae:?}").contains("own layers") && format!("{vae:?}").contains("vae_decoder.onnx"), "{vae:?}");
    assert!(decibels(&through_the_vae(&bundle)[2], &own[2]) >= 30.0);
}
