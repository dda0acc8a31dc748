//! What is asked for: rules for layers, the words of the command line, exit codes, and what the other commands say of a
//! bundle.

use super::*;
use pleinair::bundle::manifest::{Dtype, Layer};
use safetensors::Dtype as Stored;
use serde_json::Value;

fn kept(dtype: Dtype, why: &str) -> (Dtype, Option<String>) {
    (dtype, Some(why.to_owned()))
}

#[test]
fn rules_are_seen_in_the_manifest_and_in_the_file() {
    let studio = Studio::new();
    let rules = ["up_blocks.3.*=f16", "unet.conv_in=int8", "*.attn2.to_kv=f32", "text_encoder.*.fc1=int8"];
    let rules: Vec<&str> = rules.iter().flat_map(|rule| ["--keep", rule]).collect();
    let bundle = studio.convert(&tiny(), "int8", &rules, "bundle");
    let manifest = manifest(&bundle);
    let of = |layer: &Layer| (layer.dtype, layer.kept.clone());
    let unet = |layer: &str| of(&manifest.unet.layers[layer]);
    assert_eq!(unet("up_blocks.3.resnets.0.conv1"), kept(Dtype::F16, "rule up_blocks.3.*=f16"));
    assert_eq!(unet("conv_in"), (Dtype::Int8, None));
    assert_eq!(unet("conv_out"), kept(Dtype::F16, "default"));
    let attention = "mid_block.attentions.0.transformer_blocks.0.attn2";
    assert_eq!(unet(&format!("{attention}.to_kv")), kept(Dtype::F32, "rule *.attn2.to_kv=f32"));
    assert_eq!(unet("mid_block.resnets.0.conv1"), (Dtype::Int8, None));
    // the last rule that matches: this one is in up_blocks.3 as well
    let up = "up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_kv";
    assert_eq!(unet(up), kept(Dtype::F32, "rule *.attn2.to_kv=f32"));
    let text = "text_model.encoder.layers.0.mlp.fc1";
    assert_eq!(of(&manifest.text_encoder.layers[text]), (Dtype::Int8, None));

    let headers = |file: &str| {
        let bytes = std::fs::read(bundle.join(file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let header = |(name, view): (String, TensorView)| (name, (view.dtype(), view.shape().to_vec()));
        tensors.tensors().into_iter().map(header).collect::<BTreeMap<_, _>>()
    };
    let (unet, text_encoder) = (headers("unet.safetensors"), headers("text_encoder.safetensors"));
    assert_eq!(unet["up_blocks.3.resnets.0.conv1.weight"].0, Stored::F16);
    assert_eq!(unet[&format!("{attention}.to_kv.weight")], (Stored::F32, vec![64, 32]));
    assert_eq!(unet["conv_in.weight"], (Stored::I8, vec![1, 16, 16, 4]), "16 x 36 in panels of 64");
    assert_eq!(unet["conv_in.weight_scale"], (Stored::F32, vec![16]));
    assert_eq!(unet["conv_in.bias"].0, Stored::F16);
    assert_eq!(text_encoder[&format!("{text}.weight")].0, Stored::I8);
    let scales = unet.keys().filter(|name| name.ends_with("_scale")).count();
    assert_eq!(scales, manifest.unet.layers.values().filter(|layer| layer.dtype == Dtype::Int8).count());
    open(&bundle);
}

#[test]
fn a_rule_may_be_coarser_than_the_rest() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "f16", &["--keep", "mid_block.*=int8"], "bundle");
    let layers = manifest(&bundle).unet.layers;
    let int8: Vec<_> = layers.iter().filter(|(_, layer)| layer.dtype == Dtype::Int8).map(|(name, _)| name).collect();
    assert!(int8.len() >= 10 && int8.iter().all(|name| name.starts_with("mid_block.")), "{int8:?}");
    let run = studio.run(&["inspect", "bundle"]);
    run.ended(0, &[]);
    assert!(!run.stdout.contains("is kept as"), "{}", run.stdout);
}

#[test]
fn words_that_mean_nothing_are_refused_before_anything_is_read() {
    let studio = Studio::new();
    let from = tiny();
    let from = from.to_str().unwrap();
    let base = ["convert", "--from", from, "--out", "bundle"];
    for (more, words) in [
        (&["--dtype", "int4"][..], &["int4", "int8"][..]),
        (&[], &["--dtype"]),
        (&["--dtype", "int8", "--target", "abacus"], &["abacus", "portable"]),
        (&["--dtype", "int8", "--control", "smell"], &["smell", "soft-edge"]),
        (&["--dtype", "int8", "--keep", "up_blocks"], &["not a rule", "up_blocks.3.*=f16"]),
        (&["--dtype", "int8", "--keep", "up_blocks.*=f64"], &["f64"]),
        (&["--dtype", "int8", "--keep", "[=f16"], &["not a pattern"]),
        (&["--dtype", "int8", "--keep", "upblocks.*=f16"], &["upblocks.*=f16", "matches none", "unet."]),
        (&["--dtype", "int8", "--lora", "a.safetensors"], &["no weight", "style.safetensors:0.8"]),
        (&["--dtype", "int8", "--lora", "a.safetensors:much"], &["much"]),
        (&["--dtype", "int8", "--calibrate", "0"], &["--calibrate 0"]),
        (&["--dtype", "f16", "--calibrate", "1"], &["--calibrate", "f16"]),
        (&["--dtype", "int8", "--layer-budget", "50"], &["--calibrate"]),
    ] {
        studio.run(&[&base, more].concat()).ended(2, words);
        assert!(studio.names().is_empty(), "{more:?}");
    }
    studio.run(&[&base[..], &["--dtype", "int8", "--lora", "missing.safetensors:1"]].concat()).ended(1, &["missing"]);
    studio.run(&["convert", "--from", "missing", "--dtype", "int8", "--out", "bundle"]).ended(1, &["missing"]);
}

#[test]
fn the_command_line_converts_and_says_what_became_of_it() {
    let studio = Studio::new();
    let from = tiny();
    let convert = ["convert", "--from", from.to_str().unwrap(), "--dtype", "int8", "--out", "bundle"];
    let notes = ["--source", "random numbers", "--license", "CC0-1.0"];
    let run = studio.run(&[&convert[..], &notes].concat());
    run.ended(0, &[]);
    assert!(run.stdout.contains("unet: 234 layers, 230 int8, 4 kept finer than int8"), "{}", run.stdout);
    assert_eq!(names(&studio.path("bundle")), FILES);
    studio.run(&convert).ended(2, &["bundle exists", "--force"]);
    studio.run(&[&convert[..], &["--force"]].concat()).ended(0, &[]);

    studio.run(&[&convert[..], &["--force"], &notes].concat()).ended(0, &[]);
    let run = studio.run(&["inspect", "bundle"]);
    run.ended(0, &[]);
    for words in [
        "int8, laid out for cpu",
        "unet.conv_in is kept as f16 (default)",
        "source: random numbers",
        "licence: CC0-1.0",
        "reads soft-edge pictures",
    ] {
        assert!(run.stdout.contains(words), "no {words:?} in: {}", run.stdout);
    }
    assert_eq!(run.stderr, "");
    let json = studio.run(&["inspect", "bundle", "--json"]).json();
    let part = |name: &str| json["parts"].as_array().unwrap().iter().find(|part| part["name"] == name).unwrap().clone();
    let unet = part("unet");
    let file = studio.path("bundle/unet.safetensors").metadata().unwrap().len();
    assert_eq!(unet["dtypes"], serde_json::json!({"int8": 230, "f16": 4}));
    assert_eq!((&unet["parameters"], &unet["bytes"], &unet["files"]), (&715700.into(), &file.into(), &1.into()));
    assert_eq!(part("vae (onnx)")["parameters"], 111839);
    assert_eq!((json["problems"].as_array().unwrap().len(), part("tokenizer")["files"].as_u64()), (0, Some(1)));
}

#[test]
fn inspect_names_every_problem_of_a_damaged_bundle() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &[], "bundle");
    let text = bundle.join("text_encoder.safetensors");
    let mut bytes = std::fs::read(&text).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&text, bytes).unwrap();
    std::fs::remove_file(bundle.join("vae_decoder.onnx")).unwrap();
    let run = studio.run(&["inspect", "bundle"]);
    run.ended(1, &["text_encoder.safetensors: was changed", "vae_decoder.onnx: No such file"]);
    assert!(run.stdout.contains("unet "), "the rest is listed all the same: {}", run.stdout);
    let run = studio.run(&["inspect", "bundle", "--json"]);
    run.ended(1, &["vae_decoder.onnx"]);
    let problems = run.json()["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 2, "{problems}");

    std::fs::write(bundle.join("bundle.json"), "{").unwrap();
    studio.run(&["inspect", "bundle"]).ended(1, &["bundle.json", "not a bundle's manifest"]);
}

/// A wrong configuration under right checksums: the tensors are compared with it.
#[test]
fn inspect_compares_the_tensors_with_the_configuration() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &[], "bundle");
    let mut manifest = manifest(&bundle);
    manifest.text_encoder.config.intermediate_size = 64;
    manifest.unet.config.sample_size = 16; // no tensor shows it
    std::fs::write(bundle.join("bundle.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    let inspection = pleinair_quantize::inspect::inspect(&bundle).unwrap();
    let wrong = |problem: &String| problem.contains("text_encoder") && problem.contains("mlp.fc");
    assert!(inspection.problems.len() >= 4 && inspection.problems.iter().all(wrong), "{:#?}", inspection.problems);
    let error = Painter::open(&bundle).unwrap_err().to_string();
    assert!(error.contains("mlp.fc1.weight has the shape [128, 32], wanted [64, 32]"), "{error}");
}

#[test]
fn report_tells_what_was_lost_and_fails_over_a_budget() {
    let studio = Studio::new();
    let from = tiny();
    let from = from.to_str().unwrap();
    studio.convert(&tiny(), "int8", &[], "bundle");
    let report = ["report", "bundle", "--against", from, "--seeds", "1"];
    let with = |more: &[&str]| studio.run(&[&report[..], more].concat());
    let run = with(&["--json", "--max-psnr-loss", "3", "--min-psnr", "40", "--min-layer-snr", "30"]);
    run.ended(0, &[]);
    let json = run.json();
    let layers = json["layers"].as_array().unwrap();
    let named = |name: &str| layers.iter().find(|layer| layer["layer"] == name).unwrap();
    assert_eq!(layers.len(), 234 + 122 + 8);
    let conv = named("unet.mid_block.resnets.0.conv1");
    let snr = conv["snr"].as_f64().unwrap();
    // 127 steps to the largest of about 300 numbers, which is some three times their spread
    assert!((38.0..48.0).contains(&snr) && conv["dtype"] == "int8" && conv["weights"] == 32 * 32 * 9, "{conv}");
    assert!(conv["sign_flips"] == 0 && conv["zeroed"].as_u64().unwrap() > 0, "{conv}");
    assert_eq!((&named("unet.conv_in")["snr"], &named("unet.conv_in")["dtype"]), (&Value::Null, &"f16".into()));
    let quality = &json["quality"];
    assert_eq!((&quality["seeds"], quality["latents_psnr"].as_array().unwrap().len()), (&1.into(), 1));
    assert!(quality["worst_latents_psnr"].as_f64().unwrap() >= 40.0, "{quality}");
    assert!(json["bytes_after"].as_u64().unwrap() < json["bytes_before"].as_u64().unwrap());
    assert_eq!(json["over_budget"], serde_json::json!([]));

    let run = with(&["--json", "--max-psnr-loss=-9", "--min-psnr", "200", "--min-layer-snr", "35"]);
    let layers_below = layers.iter().filter(|layer| layer["snr"].as_f64().is_some_and(|snr| snr < 35.0)).count();
    run.ended(1, &["bundle: over budget:", "repaintings lose", "denoised latents agree"]);
    assert_eq!(run.json()["over_budget"].as_array().unwrap().len(), 2 + layers_below);
    for (budget, words) in [
        ("--max-psnr-loss=-9", "repaintings lose"),
        ("--min-psnr=200", "denoised latents agree"),
        ("--min-layer-snr=200", "unet.mid_block.resnets.0.conv1: "),
    ] {
        let run = with(&[budget]);
        run.ended(1, &[words]);
        assert!(run.stdout.contains("unet.mid_block.resnets.0.conv1") && run.stdout.contains("repainting, dB lost"));
    }
}

#[test]
fn report_refuses_what_it_cannot_compare() {
    let studio = Studio::new();
    let (from, bundle) = (tiny(), studio.convert(&tiny(), "f16", &[], "bundle"));
    let from = from.to_str().unwrap();
    studio.run(&["report", from, "--against", from]).ended(1, &["is not a bundle", "pleinair-quantize convert"]);
    studio.run(&["report", "missing", "--against", from]).ended(1, &["missing"]);
    studio.run(&["report", "bundle", "--against", from, "--seeds", "0"]).ended(2, &["--seeds 0"]);
    studio.run(&["report", "bundle"]).ended(2, &["--against"]);
    let atelier = atelier();
    let run = studio.run(&["report", "bundle", "--against", atelier.to_str().unwrap()]);
    run.ended(1, &["unet: tensor", "wanted"]);
    std::fs::write(bundle.join("scheduler.json"), "{}").unwrap();
    studio.run(&["report", "bundle", "--against", from]).ended(1, &["scheduler.json"]);
}
