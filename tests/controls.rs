//! Control pictures against the programs that ControlNets were trained with, and several ControlNets against diffusers'.
//! `tests/reference/controls.py` and `multi_control.py` made the fixtures.

mod reference;

use candle_core::{DType, Device, Tensor};
use pleinair::bundle::Bundle;
use pleinair::bundle::control::{Control, Preprocessing};
use pleinair::camera::Frame;
use pleinair::net::{ControlNet, Residuals, Unet};
use pleinair::painter::{ControlChoice, Inversion, Order, Painter};
use pleinair::prompt::{Conditioning, Template};
use pleinair::sampler::{Guidance, GuidanceForm, Sampler};
use pleinair::side::canny;
use pleinair::side::depth::Depth;
use pleinair::side::line_art::LineArt;
use reference::{Reference, assert_close, max_difference, model_folder, root, target};
use std::collections::HashMap;
use std::path::Path;

/// As for the networks: ours may round a few times as far as the reference does, in another order.
const ROUNDING: f32 = 8.0;

fn controls() -> Reference {
    Reference::open("controls/controls")
}

fn frame(reference: &Reference, name: &str) -> Frame {
    let tensor = reference.tensor(name);
    let (height, width, _) = tensor.dims3().unwrap();
    Frame::new(width, height, tensor.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
}

fn gray(reference: &Reference, name: &str) -> Vec<u8> {
    reference.tensor(name).flatten_all().unwrap().to_vec1().unwrap()
}

/// One channel, after it was seen that all are alike.
fn one_channel(frame: &Frame) -> Vec<u8> {
    assert!(frame.rgb().chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
    frame.rgb().iter().step_by(3).copied().collect()
}

/// Pixels that differ, other than by one level where `exact` (0 to 255) comes within `room` of the next level.
fn wrong_pixels(got: &[u8], want: &[u8], exact: &[f32], room: f32) -> usize {
    assert_eq!((got.len(), exact.len()), (want.len(), want.len()));
    let wrong = |((got, want), exact): ((&u8, &u8), &f32)| {
        let at_a_step = got.abs_diff(*want) == 1 && (exact - exact.round()).abs() <= room;
        got != want && !at_a_step
    };
    got.iter().zip(want).zip(exact).filter(|pixel| wrong(*pixel)).count()
}

#[test]
fn cannys_edges_are_opencvs_to_the_pixel() {
    let reference = controls();
    for name in ["photograph", "noise", "smooth", "bars", "thin", "dot"] {
        let photograph = frame(&reference, &format!("canny.{name}.rgb"));
        for (low, high) in [(100, 200), (40, 90)] {
            let edges = one_channel(&canny::edges(&photograph, low, high).unwrap());
            let want = gray(&reference, &format!("canny.{name}.{low}-{high}"));
            let differing = edges.iter().zip(&want).filter(|(a, b)| a != b).count();
            assert_eq!(differing, 0, "{name} {low}/{high}: of {} pixels", want.len());
        }
    }
    assert_eq!((canny::LOW, canny::HIGH), (100, 200));
}

#[test]
fn depth_maps_are_those_of_onnxruntime_and_transformers() {
    let reference = controls();
    for name in ["dpt", "depth-anything"] {
        let folder = root().join("tests/fixtures/controls").join(name);
        let depth = Depth::open(&folder.join("model.onnx"), Preprocessing::of_folder(&folder).unwrap()).unwrap();
        for which in ["wide", "tall"] {
            let (photograph, key) = (frame(&reference, &format!("{which}.rgb")), format!("{name}.{which}"));
            // the same pixels from Pillow's cubic; normalised in f32 with three roundings of numbers below 4
            let pixels = depth.pixels(&photograph).unwrap();
            assert!(max_difference(&pixels, &reference.tensor(&format!("{key}.pixels"))) <= 3.0 * 4.0 * f32::EPSILON);

            let shown = reference.tensor(&format!("{key}.pixels"));
            let want = reference.tensor(&format!("{key}.answer"));
            assert_close(
                &depth.answer(&shown).unwrap().unsqueeze(0).unwrap(),
                &reference,
                &format!("{key}.answer"),
                ROUNDING,
            );
            assert_eq!(want.rank(), 3);

            let unit = depth.unit(&photograph).unwrap();
            let shape = (photograph.height(), photograph.width());
            let found = Tensor::from_slice(&unit, shape, &Device::Cpu).unwrap();
            assert_close(&found, &reference, &format!("{key}.unit"), ROUNDING);

            let map = one_channel(&depth.map(&photograph).unwrap());
            let exact: Vec<f32> = unit.iter().map(|near| near * 255.0).collect();
            let room = 255.0 * ROUNDING * reference.rounding(&format!("{key}.unit")).max(f32::EPSILON);
            assert_eq!(wrong_pixels(&map, &gray(&reference, &format!("{key}.image")), &exact, room), 0, "{key}");
        }
    }
}

#[test]
fn line_drawings_are_those_of_onnxruntime_and_controlnet_aux() {
    let reference = controls();
    let line_art = LineArt::open(&root().join("tests/fixtures/controls/lineart.onnx")).unwrap();
    for which in ["wide", "tall"] {
        let (photograph, key) = (frame(&reference, &format!("{which}.rgb")), format!("lineart.{which}"));
        let paper = line_art.paper(&photograph).unwrap();
        let shape = (photograph.height(), photograph.width());
        let found = Tensor::from_slice(&paper, shape, &Device::Cpu).unwrap();
        assert_close(&found, &reference, &format!("{key}.line"), ROUNDING);
        let drawn = one_channel(&line_art.draw(&photograph).unwrap());
        let exact: Vec<f32> = paper.iter().map(|white| white * 255.0).collect();
        let room = 255.0 * ROUNDING * reference.rounding(&format!("{key}.line")).max(f32::EPSILON);
        assert_eq!(wrong_pixels(&drawn, &gray(&reference, &format!("{key}.image")), &exact, room), 0, "{key}");
    }
    let odd = frame(&reference, "wide.rgb").resize(61, 30).unwrap();
    let drawn = line_art.draw(&odd).unwrap();
    assert_eq!((drawn.width(), drawn.height()), (61, 30));
}

#[test]
fn pixels_that_differ_are_counted() {
    assert_eq!(wrong_pixels(&[7, 7, 7], &[7, 8, 8], &[7.2, 7.999, 7.5], 0.01), 1);
    assert_eq!(wrong_pixels(&[7], &[9], &[8.0], 0.01), 1);
    assert_eq!(wrong_pixels(&[7], &[8], &[f32::NAN], 0.01), 1);
}

#[test]
fn far_things_can_be_the_large_ones_and_a_wall_is_black() {
    let reference = controls();
    let (photograph, folder) = (frame(&reference, "wide.rgb"), root().join("tests/fixtures/controls/dpt"));
    let near = Preprocessing::of_folder(&folder).unwrap();
    let mut far = near.clone();
    far.near_is_large = false;
    let maps = [near, far].map(|p| Depth::open(&folder.join("model.onnx"), p).unwrap().unit(&photograph).unwrap());
    assert!(maps[0].iter().zip(&maps[1]).all(|(near, far)| (near + far - 1.0).abs() <= f32::EPSILON));
    assert!(maps[0].contains(&1.0) && maps[0].contains(&0.0));
}

#[test]
fn what_is_no_estimator_is_named() {
    let reference = controls();
    let photograph = frame(&reference, "wide.rgb");
    let fixtures = root().join("tests/fixtures");
    let message = |file: &str| {
        let depth = Depth::open(&fixtures.join(file), Preprocessing::default());
        depth.and_then(|depth| depth.map(&photograph)).unwrap_err().to_string()
    };
    let error = message("tiny-sd15/vae/encoder.onnx");
    assert!(error.contains("encoder.onnx: answers with [1, 8, 48, 48], wanted a depth map"), "{error}");
    // exported for 64x64 alone, and asked for 384x384
    let error = message("controls/dpt/model.onnx");
    assert!(error.contains("dpt/model.onnx: does not run on an input of [1, 3, 384, 384]"), "{error}");
    let error = message("mountain2.jpg");
    assert!(error.contains("mountain2.jpg: not ONNX"), "{error}");
    let error = LineArt::open(&fixtures.join("tiny-sd15/vae/encoder.onnx")).unwrap().draw(&photograph).unwrap_err();
    assert!(error.to_string().contains("wanted [1, 1, 32, 64]"), "{error}");
}

/// The tiny model with a second ControlNet, for depth: the first with the values of its matrices in reverse.
fn with_two_controlnets(place: &Path) {
    copy(&model_folder("tiny-sd15"), place);
    let (first, second) = (place.join("controlnet"), place.join("controlnet_depth"));
    copy(&first, &second);
    let file = second.join("diffusion_pytorch_model.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let reversed = |tensor: &Tensor| {
        let mut values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        if tensor.rank() > 1 {
            values.reverse();
        }
        Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap()
    };
    let tensors: HashMap<_, _> = tensors.iter().map(|(name, tensor)| (name.clone(), reversed(tensor))).collect();
    candle_core::safetensors::save(&tensors, &file).unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy(&entry, &target);
        } else {
            std::fs::copy(&entry, &target).unwrap();
        }
    }
}

#[test]
fn two_controlnets_speak_together_as_in_diffusers() {
    let reference = Reference::open("tiny-sd15-controls");
    let place = tempfile::tempdir().unwrap();
    with_two_controlnets(place.path());
    let bundle = Bundle::open(place.path()).unwrap().on(target());
    let kinds: Vec<_> = bundle.controlnets.iter().map(|net| (net.control, net.part.as_str())).collect();
    assert_eq!(kinds, [(Control::SoftEdge, "controlnet"), (Control::Depth, "controlnet_depth")]);

    let states = Conditioning(reference.tensor("states"));
    let timesteps: Vec<f64> =
        reference.tensor("timesteps").to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
    let sample = reference.tensor("sample");
    let mut said = vec![];
    for (i, (control, _)) in kinds.iter().enumerate() {
        let net = ControlNet::load(&bundle, *control).unwrap();
        let hint = net.hint(&reference.tensor(&format!("image.{i}"))).unwrap();
        let scale = reference.recipe["scales"][i].as_f64().unwrap();
        said.push(net.forward(&sample, &timesteps, &net.text_kv(&states).unwrap(), &hint, scale).unwrap());
    }
    let together = Residuals::sum(said).unwrap().unwrap();
    let maps: Vec<_> = together.maps().collect();
    for (i, map) in maps.iter().enumerate() {
        let name = if i + 1 == maps.len() { "mid".into() } else { format!("down.{i}") };
        let (b, c, h, w) = reference.tensor(&name).dims4().unwrap();
        let planar = map.reshape((b, h, w, c)).unwrap().permute((0, 3, 1, 2)).unwrap();
        assert_close(&planar, &reference, &name, ROUNDING);
    }
    let unet = Unet::load(&bundle).unwrap();
    let predicted = unet.forward(&sample, &timesteps, &unet.text_kv(&states).unwrap(), Some(&together)).unwrap();
    assert_close(&predicted, &reference, "noise_pred", ROUNDING);
    assert!(Residuals::sum(vec![]).unwrap().is_none());
}

fn order(reference: &Reference) -> Order {
    let recipe = &reference.recipe;
    let number = |key: &str| recipe[key].as_f64().unwrap();
    let choice = |i: usize, control| ControlChoice {
        control,
        scale: recipe["scales"][i].as_f64().unwrap(),
        image: Some(frame(reference, &format!("picture.{i}"))),
    };
    Order {
        prompt: Template::parse(recipe["prompt"].as_str().unwrap()).unwrap(),
        negative: recipe["negative_prompt"].as_str().unwrap().into(),
        styles: vec![],
        content: None,
        size: (number("width") as usize, number("height") as usize),
        steps: number("steps") as usize,
        strength: 1.0,
        sampler: Sampler::Ddim,
        guidance: Guidance::new(0.0, 0.0, number("guidance"), GuidanceForm::Paper).unwrap(),
        controls: vec![choice(0, Control::SoftEdge), choice(1, Control::Depth)],
        inversion: Inversion::Noise,
        seed: number("seed") as u64,
    }
}

/// From pictures of other sizes than the painting's.
#[test]
fn a_painting_with_two_controlnets_equals_diffusers_at_every_step() {
    let reference = Reference::open("tiny-sd15-controls");
    let place = tempfile::tempdir().unwrap();
    with_two_controlnets(place.path());
    let painter = Painter::new(Bundle::open(place.path()).unwrap().on(target())).unwrap();
    let (order, latents) = (order(&reference), reference.tensor("latents"));
    let rounding = |i: usize| 4.0 * (reference.recipe["sensitivity"]["latents"][i].as_f64().unwrap() as f32).max(1e-5);
    let mut seen = 0;
    painter
        .paint(&order, &mut |report| {
            let i = report.index + 1;
            let difference = max_difference(report.latent, &latents.narrow(0, i, 1).unwrap());
            println!("step {i}: {difference:.2e} (tolerance {:.2e})", rounding(i));
            assert!(difference <= rounding(i), "step {i}: {difference:.2e} > {:.2e}", rounding(i));
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, order.steps);
    // each of the two counts
    let whole = painter.paint_latent(&order, &mut |_| Ok(())).unwrap();
    for left_out in [0, 1] {
        let mut less = order.clone();
        less.controls[left_out].scale = 0.0;
        let moved = max_difference(&painter.paint_latent(&less, &mut |_| Ok(())).unwrap().0, &whole.0);
        assert!(moved > 100.0 * rounding(order.steps), "{left_out}: {moved:.2e}");
    }
}

#[test]
fn folders_of_controlnets_say_what_they_look_at() {
    let place = tempfile::tempdir().unwrap();
    with_two_controlnets(place.path());
    let second = place.path().join("controlnet_1");
    std::fs::rename(place.path().join("controlnet_depth"), &second).unwrap();
    let message = || Bundle::open(place.path()).unwrap_err().to_string();
    assert!(message().contains("controlnet_1: does not say what it looks at; rename the folder"), "{}", message());
    let config = second.join("config.json");
    let plain = std::fs::read_to_string(&config).unwrap();
    let from = |origin: &str| plain.replacen('{', &format!("{{\"_name_or_path\": {origin:?},"), 1);
    std::fs::write(&config, from("lllyasviel/control_v11f1p_sd15_depth")).unwrap();
    let kinds: Vec<_> = Bundle::open(place.path()).unwrap().controlnets.iter().map(|net| net.control).collect();
    assert_eq!(kinds, [Control::SoftEdge, Control::Depth]);
    std::fs::write(&config, from("lllyasviel/sd-controlnet-hed")).unwrap();
    assert!(message().contains("controlnet_1: looks at soft-edge pictures as controlnet does"), "{}", message());
    let other = from("control_canny").replace("\"cross_attention_dim\": 32", "\"cross_attention_dim\": 64");
    std::fs::write(&config, other).unwrap();
    assert!(message().contains("controlnet_1: cross_attention_dim is 64"), "{}", message());
}
