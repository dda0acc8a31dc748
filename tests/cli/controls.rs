//! Control pictures at the command line: made, given, saved, weighed.

use super::*;
use pleinair::camera::Frame;

/// The tiny model `model` with a depth estimator, a network that draws lines, and ControlNets for everything.
fn model_with_everything(studio: &Studio) {
    let model = studio.copy_model("model");
    let controls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/controls");
    copy_folder(&controls.join("depth-anything"), &model.join("depth_estimator"));
    std::fs::create_dir(model.join("lineart")).unwrap();
    std::fs::copy(controls.join("lineart.onnx"), model.join("lineart/model.onnx")).unwrap();
    for kind in ["depth", "canny", "lineart"] {
        copy_folder(&model.join("controlnet"), &model.join(format!("controlnet_{kind}")));
    }
}

const BASE: [&str; 9] = ["paint", "--bundle", "model", "--steps", "2", "--prompt", "a boat", "--strength", "1"];
const ALL: &str = "softedge=0.2,depth=0.3,canny=0.2,lineart=0.1";

#[test]
fn every_kind_is_made_of_the_photograph_and_saved() {
    let studio = Studio::new();
    model_with_everything(&studio);
    let more = ["--content", PHOTO, "--control-scale", ALL, "--save-control", "c.png", "--out", "a.png"];
    studio.done(&with(&BASE, &more)).says(&["the depth picture is c-depth.png"]);
    let mut seen = vec![];
    for kind in ["softedge", "depth", "canny", "lineart"] {
        let frame = Frame::open(studio.path(&format!("c-{kind}.png"))).unwrap();
        assert_eq!((frame.width(), frame.height()), (64, 64));
        assert!(frame.rgb().iter().any(|level| *level != frame.rgb()[0]), "{kind} shows something");
        assert!(!seen.contains(&frame), "{kind} is not another's");
        seen.push(frame);
    }
    let text = studio.done(&["doctor", "--bundle", "model"]).stdout;
    assert!(text.contains("controlnet_canny") && text.contains("lineart pictures, made of photographs"), "{text}");
}

/// All but soft edges are pictures of 8 bits.
#[test]
fn a_saved_picture_that_is_given_paints_the_same() {
    let studio = Studio::new();
    model_with_everything(&studio);
    let scale = ["--content", PHOTO, "--control-scale", "depth=0.7,canny=0.5"];
    studio.done(&with(&BASE, &with(&scale, &["--save-control", "c.png", "--out", "made.png"])));
    let given = ["--control-image", "c-depth.png:depth", "--control-image", "c-canny.png:canny"];
    studio.done(&with(&BASE, &with(&scale, &with(&given, &["--out", "given.png"]))));
    let pixels = |name: &str| Frame::open(studio.path(name)).unwrap();
    assert_eq!(pixels("made.png"), pixels("given.png"));
    studio.done(&with(&BASE, &["--content", PHOTO, "--control-scale", "depth=0.7", "--out", "less.png"]));
    assert_ne!(pixels("made.png"), pixels("less.png"), "each counts");

    // and without a photograph, of any size: the painting takes its shape
    let alone = ["--control-image", PHOTO, "--size", "128", "--out", "alone.png", "--save-control", "seen.png"];
    studio.done(&with(&BASE, &alone));
    assert_eq!((pixels("alone.png").width(), pixels("alone.png").height()), (128, 64));
    assert_eq!(pixels("seen.png"), Frame::open(PHOTO).unwrap().resize(128, 64).unwrap());
}

#[test]
fn the_recipe_says_what_was_looked_at() {
    let studio = Studio::new();
    model_with_everything(&studio);
    let more = ["--content", PHOTO, "--control-scale", "depth=0.25", "--out", "a.png"];
    studio.done(&with(&BASE, &more));
    let recipe = super::painting::texts(studio.read("a.png")).1;
    assert_eq!(recipe["control_scale"], serde_json::json!({"depth": 0.25}));
    assert_eq!(recipe["controls"], serde_json::json!([{"control": "depth", "scale": 0.25, "image": null}]));
    // a number alone is about the first
    studio.done(&with(&BASE, &["--content", PHOTO, "--control-scale", "0.25", "--out", "a.png"]));
    assert_eq!(super::painting::texts(studio.read("a.png")).1["control_scale"], 0.25);
}

#[test]
fn what_cannot_be_looked_at_is_refused_in_a_sentence() {
    let studio = Studio::new();
    studio.write("none.png", "no picture");
    let tiny = ["paint", "--bundle", TINY, "--steps", "2", "--prompt", "a", "--out", "a.png"];
    let (pose, depth) = (format!("{PHOTO}:pose"), format!("{PHOTO}:depth"));
    for (more, code, words) in [
        (&["--control-image", &pose][..], 2, &["\"pose\"", "choose soft-edge, depth, canny or lineart"][..]),
        (&["--control-image", &depth], 2, &["no ControlNet for depth pictures, only for soft-edge"]),
        (&["--control-image", PHOTO, "--control-image", PHOTO], 2, &["two soft-edge pictures"]),
        (&["--control-image", "none.png"], 1, &["none.png"]),
        (&["--control-image", "missing.png"], 1, &["missing.png"]),
        (&["--control-scale", "pose=1"], 2, &["\"pose\""]),
        (&["--control-scale", "canny=1", "--content", PHOTO], 2, &["no ControlNet for canny pictures"]),
        (&["--control-scale", "much"], 2, &["\"much\" is no number"]),
        (&["--save-control", "c.png"], 2, &["no control picture to save", "--control-image"]),
        (&["--save-control", "c.gif", "--content", PHOTO], 2, &["c.gif", ".png or .jpg"]),
    ] {
        studio.refuses(&with(&tiny, more), code, words);
    }
    let run = studio.done(&with(&tiny, &["--control-scale", "softedge=1"]));
    run.says(&["no photograph to make a soft-edge picture of"]);
}
