//! `--calibrate`: what it measures decides, and is written down.

use super::*;
use pleinair::bundle::manifest::{Dtype, Layer};
use pleinair::bundle::weights::{Packing, Values, Weights};
use pleinair_quantize::calibrate::{Budget, calibrate};
use pleinair_quantize::network::Network;
use pleinair_quantize::tensors;

/// Rules that leave the middle of the UNet and of the ControlNet to be measured, for the tests' sake.
const MIDDLE: [&str; 2] = ["*.{down,up}_blocks.*=int8", "controlnet.controlnet_*=int8"];

fn options<'a>(rules: &[&'a str]) -> Vec<&'a str> {
    rules.iter().flat_map(|rule| ["--keep", *rule]).collect()
}

fn middle(layers: &BTreeMap<String, Layer>) -> BTreeMap<String, Layer> {
    layers.clone().into_iter().filter(|(name, _)| name.starts_with("mid_block.")).collect()
}

/// Calibrates the middle of the tiny UNet alone; `full` is the model as a bundle of f32.
fn calibrated(full: &Path, budget: f64) -> BTreeMap<String, Layer> {
    let rules: Vec<_> = MIDDLE.iter().map(|rule| rule.parse().unwrap()).collect();
    let list = tensors::unet(&manifest(full).unet.config);
    let mut unet = Network::new("unet", &list, Dtype::Int8, &rules, Packing::Panels);
    let budget = Budget { samplings: 1, layer: budget };
    calibrate(full, budget, &mut [&mut unet], &AtomicBool::new(false), &mut |_| ()).unwrap();
    middle(&unet.manifest())
}

#[test]
fn a_budget_nobody_meets_keeps_every_layer() {
    let studio = Studio::new();
    let more = [options(&MIDDLE), vec!["--calibrate", "1", "--layer-budget", "1000"]].concat();
    let bundle = studio.convert(&tiny(), "int8", &more, "bundle");
    let manifest = manifest(&bundle);
    for (part, layers) in
        [("unet", &manifest.unet.layers), ("controlnet", &manifest.controlnet.as_ref().unwrap().layers)]
    {
        let layers = middle(layers);
        assert_eq!(layers.len(), 15);
        for (name, layer) in &layers {
            let psnr = layer.psnr.unwrap_or_else(|| panic!("{part}.{name} was not measured"));
            assert_eq!(
                (layer.dtype, layer.kept.clone()),
                (Dtype::F16, Some(format!("{psnr:.1} dB as int8"))),
                "{name}"
            );
            assert!((40.0..160.0).contains(&psnr), "{name}: {psnr}");
        }
        println!("{part}: alone as int8 {:.1?} dB", layers.values().filter_map(|l| l.psnr).collect::<Vec<_>>());
    }
    // rules and defaults stand, and are not measured
    let conv = &manifest.unet.layers["down_blocks.0.resnets.0.conv1"];
    assert_eq!((conv.dtype, conv.psnr), (Dtype::Int8, None));
    assert_eq!(manifest.unet.layers["conv_in"].kept.as_deref(), Some("default"));

    // what was measured when the bundle was made can be measured again
    let written = manifest.quality.unwrap();
    assert_eq!((&written["seeds"], written["latents_psnr"].as_array().unwrap().len()), (&8.into(), 8));
    let full = studio.convert(&tiny(), "f32", &[], "full");
    let again = quality(&full, &bundle, 2);
    let first = |key: &str| written[key].as_array().unwrap()[..2].to_vec();
    let figures = |values: &[Option<f64>]| values.iter().map(|db| serde_json::json!(db)).collect::<Vec<_>>();
    println!("when made {:?}, again {:?}", first("latents_psnr"), again.latents_psnr);
    assert_eq!(first("latents_psnr"), figures(&again.latents_psnr), "against the model in f32, VAE included");
    assert_eq!(first("pictures_psnr"), figures(&again.pictures_psnr));
    let inspected = studio.run(&["inspect", "bundle"]).stdout;
    let worst = written["worst_latents_psnr"].as_f64().unwrap();
    for words in [format!("8 paintings agreed with full precision to {worst:.1} dB"), "dB as int8)".into()] {
        assert!(inspected.contains(&words), "no {words:?} in: {inspected}");
    }
    assert_eq!(names(&bundle), FILES, "what was measured with is gone");
}

#[test]
fn a_budget_divides_the_layers_where_it_lies() {
    let studio = Studio::new();
    let full = studio.convert(&tiny(), "f32", &[], "full");
    let lax = calibrated(&full, 0.0);
    assert!(lax.len() == 15 && lax.values().all(|layer| layer.dtype == Dtype::Int8 && layer.kept.is_none()));
    let mut psnrs: Vec<f64> = lax.values().map(|layer| layer.psnr.unwrap()).collect();
    psnrs.sort_by(f64::total_cmp);
    let budget = (psnrs[4] + psnrs[5]) / 2.0;
    let divided = calibrated(&full, budget);
    assert_eq!(divided.values().filter(|layer| layer.dtype == Dtype::F16).count(), 5);
    for (name, layer) in &divided {
        assert_eq!(layer.psnr, lax[name].psnr, "{name}: what is measured does not depend on the budget");
        assert_eq!(layer.dtype == Dtype::F16, layer.psnr.unwrap() < budget, "{name}");
    }
}

/// A channel of a layer's input that is a hundred times louder than the others, under quiet weights, changes nothing in
/// exact arithmetic; in int8 the others drown. Smoothing brings them back.
#[test]
fn smoothing_evens_out_a_loud_channel() {
    let studio = Studio::new();
    let model = studio.synth(1, "model");
    // the layer is behind a normalisation, whose scale makes the channel loud
    let (norm, layer) = ("up_blocks.3.resnets.2.norm2", "up_blocks.3.resnets.2.conv2");
    edit(&model.join("unet/diffusion_pytorch_model.safetensors"), |tensors| {
        let scaled = |values: &mut [u8], by: f32| {
            for value in values.as_chunks_mut::<4>().0 {
                *value = (f32::from_le_bytes(*value) * by).to_le_bytes();
            }
        };
        scaled(&mut tensors.get_mut(&format!("{norm}.weight")).unwrap().2[4 * 5..][..4], 100.0);
        scaled(&mut tensors.get_mut(&format!("{norm}.bias")).unwrap().2[4 * 5..][..4], 100.0);
        let (_, shape, kernel) = tensors.get_mut(&format!("{layer}.weight")).unwrap();
        assert_eq!(*shape, [16, 16, 3, 3]);
        kernel.chunks_mut(4 * 9 * 16).for_each(|row| scaled(&mut row[4 * 9 * 5..][..4 * 9], 0.01));
    });
    // no other layer has a part in it
    let rest = options(&[
        "controlnet.*=f32",
        "unet.{down_blocks,mid_block}.*=f32",
        "unet.up_blocks.{0,1,2}.*=f32",
        "unet.up_blocks.3.{attentions,resnets.0,resnets.1}.*=f32",
        "unet.up_blocks.3.resnets.2.{conv1,conv_shortcut,time_emb_proj}=f32",
    ]);
    let more = [&rest[..], &["--calibrate", "1", "--layer-budget", "0"]].concat();
    let smoothed = studio.convert(&model, "int8", &more, "smoothed");
    let plain = studio.convert(&model, "int8", &rest, "plain");
    let weight = |bundle: &Path| {
        let weights = Weights::map(bundle, "unet").unwrap();
        let weight = weights.root().pp(layer).kernel3x3(16, 16).unwrap().weight().clone();
        weights.finish().unwrap();
        weight
    };
    let (even, uneven) = (weight(&smoothed), weight(&plain));
    let Values::Int8(int8) = even.values() else { panic!("not int8") };
    let smooth = int8.smooth.as_ref().expect("the layer is smoothed");
    assert!(smooth.len() == 16 && (0..16).all(|i| i == 5 || smooth[5] > 5.0 * smooth[i]), "{:?}", &smooth[..]);
    assert!(matches!(uneven.values(), Values::Int8(int8) if int8.smooth.is_none()));

    // in rows only the weights are int8, and they are better off alone
    let rows = studio.convert(&model, "int8", &[&more[..], &["--target", "portable"]].concat(), "rows");
    assert!(matches!(weight(&rows).values(), Values::Int8(int8) if int8.smooth.is_none()));

    let worst = |bundle: &Path| quality(&model, bundle, 1).worst_latents_psnr;
    let (with, without) = (worst(&smoothed), worst(&plain));
    let alone = manifest(&smoothed).unet.layers[layer].psnr.unwrap();
    println!("a loud channel: {with:.1} dB smoothed ({alone:.1} dB when calibrated), {without:.1} dB not");
    assert!(with >= without + 6.0 && with >= 40.0, "{with:.1} dB smoothed, {without:.1} dB not");
    assert!((alone - with).abs() <= 12.0, "{alone:.1} dB in two steps, {with:.1} dB in twenty");
}
