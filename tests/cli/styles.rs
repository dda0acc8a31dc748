//! `styles` and `mix`.

use super::*;
use pleinair::style::Style;

#[test]
fn styles_that_ship_with_a_model_are_listed_and_called_by_name() {
    let studio = Studio::new();
    let model = studio.copy_model("model");
    let model = model.to_str().unwrap();
    let run = studio.done(&["styles", "list", "--bundle", model]);
    assert!(run.stdout.starts_with("no styles in "), "{}", run.stdout);

    std::fs::create_dir(studio.path("model/styles")).unwrap();
    std::fs::copy(learned(), studio.path("model/styles/hills.safetensors")).unwrap();
    let run = studio.done(&["styles", "list", "--bundle", model]);
    let row: Vec<_> = run.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..3], ["hills", "6", "CC0-1.0"]);
    let listed = studio.done(&["styles", "list", "--bundle", model, "--json"]).json();
    assert_eq!((&listed[0]["name"], &listed[0]["stages"]), (&"hills".into(), &6.into()));
    assert_eq!(listed[0]["context"], serde_json::json!(["A painting in the style of {}"]));

    let paint = ["paint", "--bundle", model, "--steps", "2", "--style", "hills"];
    studio.done(&with(&paint, &["--out", "a.png"])).says(&["style hills: ", "hills.safetensors"]);
    let shown = studio.done(&["styles", "show", "hills", "--bundle", model, "--json"]).json();
    assert_eq!(shown["token"], "mine");

    // One that is damaged does not hide the others, but it is no success either.
    studio.write("model/styles/empty.safetensors", "");
    let run = studio.run(&["styles", "list", "--bundle", model]);
    run.failed(1, &["empty.safetensors", "zero bytes"]);
    assert!(run.stdout.contains("hills"));
}

#[test]
fn a_style_is_shown_with_and_without_its_model() {
    let studio = Studio::new();
    let style = learned().to_str().unwrap();
    let shown = studio.done(&["styles", "show", style, "--bundle", TINY, "--json"]).json();
    let cosines: Vec<_> = shown["cosines"].as_array().unwrap().iter().map(|c| c.as_f64().unwrap()).collect();
    assert_eq!((shown["norms"].as_array().unwrap().len(), cosines.len()), (6, 6));
    // Three steps turn a vector a little and no more.
    assert!(cosines.iter().all(|cosine| (0.5..1.000001).contains(cosine)), "{cosines:?}");
    let run = studio.done(&["styles", "show", style, "--bundle", TINY]);
    for part in ["cosine to \"painting\"", "licence  CC0-1.0", "6 of 32 numbers"] {
        assert!(run.stdout.contains(part), "{}", run.stdout);
    }

    let mut foreign = Style::open(style).unwrap();
    foreign.base = "cd".repeat(32);
    foreign.save(studio.path("foreign.safetensors")).unwrap();
    let shown = studio.done(&["styles", "show", "foreign.safetensors", "--bundle", TINY, "--json"]).json();
    assert!(shown["cosines"].is_null());
    assert!(shown["note"].as_str().unwrap().contains("another text encoder"), "{shown}");
}

#[test]
fn a_style_goes_to_other_programs_and_comes_back() {
    let studio = Studio::new();
    let style = learned().to_str().unwrap();
    let own = Style::open(learned()).unwrap();
    let convert = ["styles", "convert", style, "--bundle", TINY];
    for (form, file) in [
        ("dreamstyler-bin", "all.bin"),
        ("safetensors", "all.safetensors"),
        ("a1111-pt", "one.pt"),
        ("diffusers", "one.safetensors"),
        ("diffusers-bin", "one.bin"),
        ("png-card", "one.png"),
    ] {
        let stage: &[&str] = if file.starts_with("one") { &["--stage", "2"] } else { &[] };
        studio.done(&with(&with(&convert, &["--to", form, "--out", file]), stage)).says(&["wrote"]);
        let read = Style::open(studio.path(file)).unwrap();
        let wanted = if stage.is_empty() { &own.vectors[..] } else { &own.vectors[2..3] };
        assert_eq!((&read.vectors[..], read.token.as_str()), (wanted, "mine"), "{form}");
        studio.done(&["paint", "--bundle", TINY, "--steps", "1", "--style", file, "--out", "a.png"]);
    }
    let card = ["--to", "png-card", "--stage", "0", "--image", PHOTO, "--name", "<hills>", "--out", "card.png"];
    studio.done(&with(&convert, &card));
    assert_eq!(Style::open(studio.path("card.png")).unwrap().token, "<hills>");
    let shown = studio.done(&["styles", "show", "card.png", "--bundle", TINY, "--json"]).json();
    assert_eq!((&shown["token"], &shown["stages"]), (&"<hills>".into(), &1.into()));

    for (more, words) in [
        (&["--to", "a1111-pt", "--out", "a.pt"][..], "6 stages"),
        (&["--to", "a1111-pt", "--stage", "6", "--out", "a.pt"], "stages 0 to 5"),
        (&["--to", "a1111-pt", "--stage", "1", "--out", "a.bin"], "called .pt"),
        (&["--to", "onnx", "--out", "a.onnx"], "choose one of safetensors"),
        (&["--to", "safetensors", "--image", PHOTO, "--out", "a.safetensors"], "has none"),
        (&["--to", "safetensors", "--name", "{}", "--out", "a.safetensors"], "no name for a style"),
    ] {
        studio.refuses(&with(&convert, more), 2, &[words]);
    }
    // a picture that is no card is to be learned from
    studio.done(&["paint", "--bundle", TINY, "--steps", "1", "--prompt", "a boat", "--out", "boat.png"]);
    let paint = ["paint", "--bundle", TINY, "--style", "boat.png", "--out", "b.png"];
    studio.refuses(&paint, 1, &["boat.png", "learn its style first", "pleinair learn --image"]);
}

#[test]
fn stages_are_mixed_and_switched_off() {
    let studio = Studio::new();
    std::fs::copy(learned(), studio.path("a.safetensors")).unwrap();
    let mut other = Style::open(learned()).unwrap();
    other.vectors.iter_mut().flatten().for_each(|value| *value *= 2.0);
    other.save(studio.path("b.safetensors")).unwrap();
    let rules = ["mix", "--stage", "5..3=a.safetensors", "--stage", "2..1=a.safetensors*0.5+b.safetensors*0.5"];
    let off = ["--stage", "0=off", "--bundle", TINY, "--out", "m.safetensors"];
    studio.done(&with(&rules, &off));

    let (a, mixed) = (Style::open(learned()).unwrap(), Style::open(studio.path("m.safetensors")).unwrap());
    assert_eq!((mixed.token.as_str(), mixed.stages()), ("m", 6));
    assert_eq!(mixed.vectors[3..], a.vectors[3..]);
    assert!(mixed.vectors[1].iter().zip(&a.vectors[1]).all(|(m, a)| (m - 1.5 * a).abs() <= 1e-6));
    let shown = studio.done(&["styles", "show", "m.safetensors", "--bundle", TINY, "--json"]).json();
    assert!((shown["cosines"][0].as_f64().unwrap() - 1.0).abs() <= 1e-6, "{shown}");

    let run = studio.done(&with(&rules, &["--stage", "0=b.safetensors*0.5", "--out", "n.safetensors", "--name", "n2"]));
    run.says(&["0=b.safetensors*0.5 sum to 0.5"]);
    assert_eq!(Style::open(studio.path("n.safetensors")).unwrap().token, "n2");
    studio.refuses(&with(&rules, &["--out", "x.safetensors"]), 2, &["stage 0 is not", "=off"]);
    studio.refuses(&["mix", "--stage", "0=a.safetensors", "--out", "x.bin"], 2, &["x.bin", ".safetensors"]);
    studio.refuses(&["mix", "--stage", "zero=a.safetensors", "--out", "x.safetensors"], 2, &["\"zero\""]);
}
