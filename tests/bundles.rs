//! Bundles as the program reads them, written by hand: the same pictures and lessons as from the model's folder.

#[path = "reference/bundle.rs"]
mod bundle;
mod reference;

use bundle::{Tensors, f32_bytes};
use pleinair::bundle::Bundle;
use pleinair::bundle::control::Control;
use pleinair::bundle::manifest::Manifest;
use pleinair::camera::Frame;
use pleinair::painter::{ControlChoice, Inversion, Order, Painter};
use pleinair::prompt::Template;
use pleinair::sampler::{Guidance, GuidanceForm, Sampler, TorchRng};
use pleinair::train::{Batch, Lesson, Options, Prompts, Study, gradient};
use reference::model_folder;
use safetensors::tensor::Dtype;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn tiny_bundle(change: impl FnOnce(&mut Tensors)) -> TempDir {
    let folder = TempDir::new().unwrap();
    bundle::write(&model_folder("tiny-sd15"), folder.path(), change);
    folder
}

fn open(folder: &Path) -> Painter {
    let bundle = Bundle::open(folder).map(|bundle| bundle.on(reference::target()));
    bundle.and_then(Painter::new).unwrap_or_else(|e| panic!("{e}"))
}

/// A painting of three steps, from a picture or from noise.
fn order(content: bool) -> Order {
    let shades = (0..64 * 64 * 3).map(|i| (i * 7 % 251) as u8).collect();
    Order {
        prompt: Template::parse("a boat on a lake").unwrap(),
        negative: "blurred".into(),
        styles: vec![],
        content: content.then(|| Frame::new(64, 64, shades).unwrap()),
        size: (64, 64),
        steps: 4,
        strength: 0.8,
        sampler: Sampler::DpmSolverPp2M,
        guidance: Guidance::new(0.0, 0.0, 3.0, GuidanceForm::Paper).unwrap(),
        controls: content.then(|| ControlChoice::of_content(Control::SoftEdge, 0.8)).into_iter().collect(),
        inversion: Inversion::Noise,
        seed: 11,
    }
}

/// The latent of a painting, and the painting.
fn painted(painter: &Painter, content: bool) -> (Vec<f32>, Vec<u8>) {
    let latent = painter.paint_latent(&order(content), &mut |_| Ok(())).unwrap();
    let picture = painter.decode(&latent).unwrap().rgb().to_vec();
    (latent.0.flatten_all().unwrap().to_vec1().unwrap(), picture)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Equal to rounding.
fn assert_near(got: &[f32], want: &[f32]) {
    let largest = want.iter().fold(0f32, |most, w| w.abs().max(most));
    assert!(got.len() == want.len() && largest > 0.0);
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-4 * largest, "{got}, wanted {want}");
    }
}

#[test]
#[should_panic(expected = "wanted")]
fn a_number_that_is_off_is_not_near() {
    assert_near(&[1.0, 0.501], &[1.0, 0.5]);
}

/// Losses and gradients of one batch.
fn learned(painter: &Painter) -> (Vec<f32>, Vec<Vec<f32>>) {
    let study = Study {
        frame: Frame::new(8, 8, vec![128; 192]).unwrap(),
        context: Template::parse("a painting of a boat, in the style of {}").unwrap(),
    };
    let lesson = Lesson {
        token: "style".into(),
        studies: vec![study],
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
    let (latents, noise) = (randn(), randn());
    let batch = Batch { latents, noise, timesteps: vec![100.0, 800.0], pictures: vec![0, 0] };
    let word = painter.text_encoder().word_vector(painter.tokenizer().word("painting").unwrap()).unwrap();
    let vectors = vec![word.to_vec1().unwrap(); 2];
    gradient(painter, &Prompts::new(painter, &lesson).unwrap(), &batch, &vectors).unwrap()
}

#[test]
fn a_bundle_paints_and_learns_as_the_folder_bit_for_bit() {
    let folder = tiny_bundle(|_| ());
    let (model, bundle) = (open(&model_folder("tiny-sd15")), open(folder.path()));
    let [got, want] = [&bundle, &model].map(|painter| painted(painter, false));
    assert!(bits(&got.0) == bits(&want.0));
    // the bundle's VAE is ONNX from elsewhere and runs in tract, the folder's in this program's own layers
    let [got, want] = [&bundle, &model].map(|painter| painted(painter, true));
    assert_near(&got.0, &want.0);
    assert!(got.1.iter().zip(&want.1).all(|(got, want)| got.abs_diff(*want) <= 1));
    assert!(got.0 != painted(&bundle, false).0, "the comparison can fail");
    let (got, want) = (learned(&bundle), learned(&model));
    assert_eq!(got, want);
    assert!(want.1.iter().flatten().any(|&g| g != 0.0));
    assert_eq!(bundle.text_encoder().base().unwrap(), model.text_encoder().base().unwrap());
    assert_eq!(bundle.bundle().parameters("unet"), Some(715700));
}

/// One int8 layer by the format's definition, `W[o, i] = values[o, i] * scales[o] / smooth[i]`, is the f32 layer with
/// just these numbers.
#[test]
fn int8_and_f16_layers_mean_what_the_format_says() {
    let (conv, linear) = ("mid_block.resnets.0.conv1", "up_blocks.1.attentions.0.proj_in");
    let values = |count: usize| (0..count).map(|i| (i * 37 % 255) as i32 - 127).map(|v| v as i8).collect::<Vec<_>>();
    let scales: Vec<f32> = (0..32).map(|o| 2e-4 + 1e-5 * o as f32).collect();
    let smooth: Vec<f32> = (0..32).map(|i| 0.5 + 0.125 * i as f32).collect();
    // a 3x3 convolution's nine taps share the smoothing of their channel, which lies innermost
    let numbers = |taps: usize, smooth: &[f32]| {
        let columns = taps * 32;
        let value = |(i, q): (usize, i8)| q as f32 * scales[i / columns] / smooth[i % columns % 32];
        f32_bytes(&values(32 * columns).into_iter().enumerate().map(value).collect::<Vec<_>>())
    };
    let halves: Vec<half::f16> = (0..16 * 16).map(|i| half::f16::from_f32((i as f32 * 0.7).sin() * 0.2)).collect();
    let half_layer = "down_blocks.0.attentions.0.proj_in.weight";
    let int8 = tiny_bundle(|tensors| {
        for (layer, taps) in [(conv, 9), (linear, 1)] {
            let bytes = values(32 * taps * 32).into_iter().map(|v| v as u8).collect();
            tensors.insert(format!("{layer}.weight"), (Dtype::I8, vec![32, taps * 32], bytes));
            tensors.insert(format!("{layer}.weight_scale"), (Dtype::F32, vec![32], f32_bytes(&scales)));
        }
        tensors.insert(format!("{conv}.weight_smooth"), (Dtype::F32, vec![32], f32_bytes(&smooth)));
        let bytes = halves.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.insert(half_layer.into(), (Dtype::F16, vec![16, 16], bytes));
    });
    let plain = tiny_bundle(|tensors| {
        tensors.get_mut(&format!("{conv}.weight")).unwrap().2 = numbers(9, &smooth);
        tensors.get_mut(&format!("{linear}.weight")).unwrap().2 = numbers(1, &[1.0; 32]);
        tensors.get_mut(half_layer).unwrap().2 = halves.iter().flat_map(|v| v.to_f32().to_le_bytes()).collect();
    });
    let (int8, plain) = (open(int8.path()), open(plain.path()));
    // scales are multiplied into the other factor, so that both are equal to rounding only
    assert_near(&painted(&int8, true).0, &painted(&plain, true).0);
    let ((losses, gradient), (own_losses, own_gradient)) = (learned(&plain), learned(&int8));
    assert_near(&own_losses, &losses);
    assert_near(&own_gradient.concat(), &gradient.concat());
    assert!(painted(&plain, true).0 != painted(&open(&model_folder("tiny-sd15")), true).0, "the layers matter");
}

#[test]
fn values_that_do_not_lie_at_a_multiple_of_their_size_are_refused() {
    let folder = tiny_bundle(|tensors| {
        // one byte in front of everything that is sorted behind it
        tensors.insert("a".into(), (Dtype::U8, vec![1], vec![0]));
    });
    let path = folder.path().join("unet.safetensors");
    // safetensors itself writes wide types first; move the byte to the front
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (name, entry) in header.as_object_mut().unwrap() {
        let offsets = entry["data_offsets"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap());
        let offsets: Vec<u64> = if name == "a" { vec![0, 1] } else { offsets.map(|v| v + 1).collect() };
        entry["data_offsets"] = offsets.into();
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let data = [&[0], &bytes[8 + length..bytes.len() - 1]].concat();
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
    let manifest = serde_json::from_slice(&fs::read(folder.path().join("bundle.json")).unwrap()).unwrap();
    bundle::seal(folder.path(), manifest);
    let error = Painter::open(folder.path()).unwrap_err().to_string();
    let lines = error.lines().filter(|line| line.contains("does not lie at a multiple of its values' size")).count();
    assert_eq!(lines, 234, "every layer of the UNet: {error}");
}

/// The manifest as it stands is what is written again: nothing in it is lost.
#[test]
fn a_manifest_comes_through_unchanged() {
    let folder = tiny_bundle(|_| ());
    let manifest = Manifest::read(folder.path()).unwrap();
    let again = serde_json::to_vec(&manifest).unwrap();
    let parsed = Manifest::parse(&again).unwrap();
    assert_eq!(serde_json::to_value(&parsed).unwrap(), serde_json::to_value(&manifest).unwrap());
    assert_eq!((manifest.source.as_deref(), manifest.license.as_deref()), (Some("random numbers"), Some("CC0-1.0")));
    assert!(Bundle::is_at(folder.path()) && !Bundle::is_at(Path::new("/")));
}
