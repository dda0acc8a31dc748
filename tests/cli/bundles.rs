//! Bundles at the command line: what the doctor says of them, and that nobody paints with a tampered one.

use super::*;

/// The tiny model as a bundle `bundle` in the studio.
fn bundle_in(studio: &Studio) -> PathBuf {
    let path = studio.path("bundle");
    bundle::write(Path::new(TINY), &path, |_| ());
    path
}

const DOCTOR: [&str; 3] = ["doctor", "--bundle", "bundle"];
const PAINT_BUNDLE: [&str; 9] = ["paint", "--bundle", "bundle", "--steps", "2", "--prompt", "a boat", "--out", "a.png"];

#[test]
fn the_doctor_finds_a_whole_bundle_well() {
    let studio = Studio::new();
    let bundle = bundle_in(&studio);
    let text = studio.done(&DOCTOR).stdout;
    assert!(text.contains("f32 for portable, 0 layers finer, every checksum right"), "{text}");
    let report = studio.done(&with(&DOCTOR, &["--json"])).json();
    assert_eq!(report["problems"], serde_json::json!([]));
    let model = &report["model"];
    assert_eq!((&model["packing"]["dtype"], &model["packing"]["target"]), (&"f32".into(), &"portable".into()));
    assert_eq!(
        (&model["packing"]["source"], &model["packing"]["license"]),
        (&"random numbers".into(), &"CC0-1.0".into())
    );
    assert!(model["self_test"]["seconds"].as_f64().unwrap() > 0.0);
    let files = model["files"].as_array().unwrap();
    assert_eq!(files.len(), std::fs::read_dir(&bundle).unwrap().count());
    let manifest: serde_json::Value = serde_json::from_slice(&studio.read("bundle/bundle.json")).unwrap();
    for file in files.iter().filter(|file| file["path"] != "bundle.json") {
        assert_eq!(file["sha256"], manifest["files"][file["path"].as_str().unwrap()]["sha256"]);
    }
}

#[test]
fn every_command_refuses_a_tampered_bundle_by_the_files_name() {
    let studio = Studio::new();
    let bundle = bundle_in(&studio);
    let unet = bundle.join("unet.safetensors");
    let good = std::fs::read(&unet).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&unet, bad).unwrap();
    let learn = ["learn", "--bundle", "bundle", "--image", PHOTO, "--steps", "1", "--out", "mine.safetensors"];
    let changed = ["unet.safetensors: was changed after it was written", "copy the bundle again"];
    for command in [&DOCTOR[..], &PAINT_BUNDLE, &learn] {
        studio.refuses(command, 1, &changed);
        assert!(!studio.run(command).stderr.contains("text_encoder"), "the other files are whole");
    }
    let report = studio.run(&with(&DOCTOR, &["--json"]));
    report.failed(1, &changed);
    let problems = report.json()["problems"].as_array().unwrap().clone();
    assert!(matches!(&problems[..], [one] if one.as_str().unwrap().starts_with("unet.safetensors: ")), "{problems:?}");

    std::fs::write(&unet, &good[..good.len() - 1]).unwrap();
    studio.refuses(&DOCTOR, 1, &["unet.safetensors", "bytes long where"]);
    std::fs::write(&unet, good).unwrap();
    let manifest = String::from_utf8(studio.read("bundle/bundle.json")).unwrap();
    studio.write("bundle/bundle.json", manifest.replace("pleinair-bundle/1", "pleinair-bundle/7"));
    studio.refuses(&DOCTOR, 1, &["bundle.json", "pleinair-bundle/7", "convert the model again"]);
    studio.write("bundle/bundle.json", &manifest[..manifest.len() / 2]);
    studio.refuses(&PAINT_BUNDLE, 1, &["bundle.json", "not a bundle's manifest"]);
    studio.write("bundle/bundle.json", manifest);
    studio.done(&DOCTOR);
}

#[test]
fn a_controlnet_of_depth_is_left_out_and_said_so() {
    let studio = Studio::new();
    bundle_in(&studio);
    let manifest = String::from_utf8(studio.read("bundle/bundle.json")).unwrap();
    studio.write("bundle/bundle.json", manifest.replace("\"soft-edge\"", "\"depth\""));
    let run = studio.done(&with(&PAINT_BUNDLE, &["--content", PHOTO]));
    run.says(&["ControlNet reads depth pictures", "left out"]);
    let left_out = studio.read("a.png");
    // but not where its picture is given
    let given = format!("{PHOTO}:depth");
    let run = studio.done(&with(&PAINT_BUNDLE, &["--content", PHOTO, "--control-image", &given]));
    assert!(!run.stderr.contains("left out") && studio.read("a.png") != left_out);
    let report = studio.done(&with(&DOCTOR, &["--json"])).json();
    assert_eq!(report["model"]["controls"], serde_json::json!([{"control": "depth", "from_photographs": false}]));
    let text = studio.done(&DOCTOR).stdout;
    assert!(text.contains("depth pictures, which have to be given"), "{text}");
}

/// A style is of a text encoder, which a bundle and its model share.
#[test]
fn a_style_learned_from_the_folder_paints_with_the_bundle() {
    let studio = Studio::new();
    bundle_in(&studio);
    let style = learned().to_str().unwrap();
    studio.done(&with(&PAINT_BUNDLE, &["--style", style]));
    assert!(studio.exists("a.png"));
}
