//! Bad input gets a clear error and loses nothing.

use super::*;
use pleinair::style::Style;

#[test]
fn pictures_that_are_none() {
    let studio = Studio::new();
    let photo = std::fs::read(PHOTO).unwrap();
    studio.write("short.jpg", &photo[..photo.len() / 2]);
    studio.write("text.jpg", "this is not a picture");
    studio.write("empty.png", "");
    // Signature, header chunk, and the size; nothing else is read of it.
    let side = 30_000u32.to_be_bytes();
    studio
        .write("huge.png", [b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", &side[..], &side, b"\x08\x02\0\0\0\0\0\0\0"].concat());
    for (picture, words) in [
        ("short.jpg", "cut short"),
        ("text.jpg", "is not a picture"),
        ("empty.png", "is empty"),
        ("huge.png", "30000x30000"),
        ("missing.png", "No such file"),
        (".", "is a folder"),
    ] {
        studio.refuses(&with(&PAINT, &["--content", picture, "--out", "a.png"]), 1, &[picture, words]);
        let learn = ["learn", "--bundle", TINY, "--image", picture, "--out", "mine.safetensors"];
        studio.refuses(&learn, 1, &[picture, words]);
        studio.refuses(&["sheet", "--cell", &format!("a={picture}"), "--out", "a.png"], 1, &[picture, words]);
    }
}

#[test]
fn styles_that_are_none() {
    let studio = Studio::new();
    let good = std::fs::read(learned()).unwrap();
    studio.write("empty.safetensors", "");
    studio.write("vast.safetensors", [&(1u64 << 60).to_le_bytes()[..], &good[8..]].concat());
    studio.write("short.safetensors", &good[..good.len() - 100]);
    studio.write("text.safetensors", "this is not a style");
    let mut holed = good.clone();
    let end = holed.len();
    holed[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    studio.write("nan.safetensors", holed);
    let format = good.windows(16).position(|bytes| bytes == b"pleinair-style/1").unwrap();
    let mut of_tomorrow = good;
    of_tomorrow[format + 15] = b'9';
    studio.write("newer.safetensors", of_tomorrow);
    studio.write("painting.jpg", std::fs::read(PHOTO).unwrap());
    for (style, words) in [
        ("painting.jpg", "pleinair learn --image painting.jpg"),
        ("empty.safetensors", "zero bytes"),
        ("vast.safetensors", "1152921504606846976"),
        ("short.safetensors", "damaged"),
        ("text.safetensors", "safetensors"),
        ("nan.safetensors", "not finite"),
        ("newer.safetensors", "use a newer pleinair"),
        ("missing.safetensors", "no such style file"),
        ("no/such/style", "no such style file"),
    ] {
        studio.refuses(&with(&PAINT, &["--style", style, "--out", "a.png"]), 1, &[style, words]);
        studio.refuses(&["styles", "show", style, "--bundle", TINY], 1, &[style, words]);
    }
    let mix = ["mix", "--stage", "0=empty.safetensors", "--out", "m.safetensors"];
    studio.refuses(&mix, 1, &["empty.safetensors", "zero bytes"]);
    studio.refuses(&with(&PAINT, &["--style", " ", "--out", "a.png"]), 2, &["--style is empty"]);
}

#[test]
fn styles_of_another_text_encoder() {
    let studio = Studio::new();
    let style = Style::open(learned()).unwrap();
    let mut wide = style.clone();
    wide.vectors.iter_mut().for_each(|vector| vector.push(0.0));
    wide.save(studio.path("wide.safetensors")).unwrap();
    Style { base: "cd".repeat(32), ..style.clone() }.save(studio.path("other.safetensors")).unwrap();
    style.save(studio.path("fits.safetensors")).unwrap();
    for (style, words) in [("wide.safetensors", "33 numbers wide"), ("other.safetensors", "cdcdcdcdcdcd")] {
        let paint = with(&PAINT, &["--style", style, "--out", "a.png"]);
        studio.refuses(&paint, 2, &["learned for another text encoder", words, "learn it again"]);
        let rules = [format!("5..3={style}"), "2..0=fits.safetensors".to_owned()];
        let mix = ["mix", "--stage", &rules[0], "--stage", &rules[1], "--out", "m.safetensors"];
        studio.refuses(&mix, 2, &["different text encoders", style]);
        let off = [format!("5..1={style}"), "0=off".to_owned()];
        let mix = ["mix", "--stage", &off[0], "--stage", &off[1], "--bundle", TINY, "--out", "m.safetensors"];
        studio.refuses(&mix, 2, &["another text encoder", words]);
    }
}

/// Overwrites the first value of a tensor in a safetensors file.
fn poison(file: &Path, tensor: &str) {
    let mut bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let info = &header[tensor];
    let start = 8 + length + info["data_offsets"][0].as_u64().unwrap() as usize;
    match info["dtype"].as_str().unwrap() {
        "F32" => bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes()),
        // All ones is not a number in either.
        "F16" | "BF16" => bytes[start..start + 2].fill(0xff),
        other => panic!("{tensor} is {other}"),
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn models_with_damaged_weights() {
    let studio = Studio::new();
    let text = studio.copy_model("model").join("text_encoder/model.safetensors");
    let good = std::fs::read(&text).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&good).unwrap();
    let name = header.tensors().into_keys().find(|name| name.ends_with("final_layer_norm.weight")).unwrap();
    poison(&text, &name);
    let paint = ["paint", "--bundle", "model", "--prompt", "a boat", "--out", "a.png"];
    let learn = ["learn", "--bundle", "model", "--image", PHOTO, "--out", "mine.safetensors"];
    for command in [&paint[..], &learn, &["doctor", "--bundle", "model"]] {
        studio.refuses(command, 1, &["text_encoder", &name, "not finite"]);
    }
    for (contents, words) in [
        (&b""[..], "too short for safetensors"),
        (&[&(1u64 << 60).to_le_bytes()[..], &good[8..]].concat(), "header of 1152921504606846976 bytes"),
        (&good[..good.len() - 1], "cut off"),
    ] {
        std::fs::write(&text, contents).unwrap();
        studio.refuses(&paint, 1, &["model.safetensors", words]);
        studio.refuses(&["doctor", "--bundle", "model"], 1, &["model.safetensors", words]);
    }
}

#[test]
fn models_with_unknown_keys_or_missing_parts() {
    let studio = Studio::new();
    let model = studio.copy_model("model");
    let config = model.join("unet/config.json");
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, good.replacen('{', "{\"class_embed_type\": \"timestep\",", 1)).unwrap();
    let paint = ["paint", "--bundle", "model", "--prompt", "a boat", "--out", "a.png"];
    let doctor = ["doctor", "--bundle", "model"];
    for command in [&paint[..], &doctor] {
        studio.refuses(command, 1, &["unet", "class_embed_type", "not supported"]);
    }
    std::fs::write(&config, &good[..good.len() / 2]).unwrap();
    studio.refuses(&paint, 1, &["unet/config.json", "JSON"]);
    std::fs::write(&config, good).unwrap();

    // The doctor names both of two faults.
    std::fs::write(model.join("vae/diffusion_pytorch_model.safetensors"), "this is not a network").unwrap();
    std::fs::remove_file(model.join("tokenizer/merges.txt")).unwrap();
    studio.refuses(&doctor, 1, &["vae/diffusion_pytorch_model.safetensors", "merges.txt"]);
    let report = studio.run(&["doctor", "--bundle", "model", "--json"]).json();
    assert_eq!(report["problems"].as_array().unwrap().len(), 2, "{report}");
    studio.refuses(&["doctor", "--bundle", "missing"], 1, &["missing", "no such model folder", "--bundle"]);
}

#[test]
fn options_and_words_that_do_not_exist() {
    let studio = Studio::new();
    studio.write("a.png", "an earlier picture");
    let paint = with(&PAINT, &["--out", "a.png"]);
    for (more, words) in [
        (&["--sampler", "magic"][..], &["magic", "dpm++2m, unipc, ddim, euler, lcm"][..]),
        (&["--sharpness", "3"], &["--sharpness"]),
        (&["--invert", "sideways"], &["noise, ddim"]),
        (&["--device", "cuda"], &["no CUDA", "--device cpu"]),
        (&["--device", "metal"], &["no Metal"]),
        (&["--size", "64x"], &["WIDTHxHEIGHT"]),
        (&["--size", "0x64"], &["above 0"]),
        (&["--size", "9999999x9999999"], &["at most"]),
        (&["--steps", "0"], &["give 1 to 1000"]),
        (&["--steps", "-1"], &["-1"]),
        (&["--content", PHOTO, "--strength", "1.5"], &["strength is 1.5"]),
        (&["--content", PHOTO, "--strength", "0.1"], &["leaves none of 2 steps"]),
        (&["--guidance", "NaN"], &["prompt guidance is NaN"]),
        (&["--content", PHOTO, "--control-scale", "inf"], &["control scale is inf"]),
        (&["--seed", "18446744073709551615", "--count", "2", "--out", "many"], &["no seeds that high"]),
        (&["--out", "a.gif"], &["a.gif", ".png or .jpg"]),
        (&["--prompt", "a {boat}"], &["\"boat\"", "none is given"]),
        (&["--prompt", "a {boat}", "--style", "oil"], &["\"boat\"", "given are: oil"]),
        (&["--prompt", "a boat in {}"], &["--style"]),
        (&["--prompt", "a } boat"], &["without its partner"]),
        (&["--progress", "loud"], &["auto, json, none"]),
    ] {
        // An option is given once: those of `more` take the place of the usual ones.
        let usual = paint[1..].chunks(2).filter(|pair| !more.contains(&pair[0]));
        let base: Vec<&str> = [&paint[..1]].into_iter().chain(usual).flatten().copied().collect();
        studio.refuses(&with(&base, more), 2, words);
    }
    studio.refuses(&["paint", "--out", "a.png"], 2, &["give a style, a prompt or both"]);
    studio.refuses(&["paint", "--prompt", "a boat"], 2, &["--out"]);
    studio.refuses(&["varnish"], 2, &["varnish"]);
    studio.refuses(&[], 2, &["Usage"]);
    for asked in ["--help", "--version"] {
        assert!(!studio.done(&[asked]).stdout.is_empty());
    }
}

/// Where no file can be made, it is said before anything is painted or learned.
#[test]
fn outputs_that_cannot_be_written() {
    let studio = Studio::new();
    studio.write("file", "an earlier file");
    std::fs::create_dir(studio.path("folder.png")).unwrap();
    std::fs::create_dir(studio.path("folder.safetensors")).unwrap();
    for folder in ["file", "missing", "/proc"] {
        if folder == "/proc" && !cfg!(target_os = "linux") {
            continue;
        }
        let picture = format!("{folder}/a.png");
        let style = format!("{folder}/a.safetensors");
        let before = studio.files();
        let run = studio.run(&with(&PAINT, &["--out", &picture]));
        run.failed(1, &[&picture]);
        assert_eq!(run.stdout, "");
        let run = studio.run(&with(&LEARN, &["--out", &style]));
        run.failed(1, &[&style]);
        assert_eq!(run.stdout, "");
        let rule = format!("5..0={}", learned().display());
        studio.run(&["mix", "--stage", &rule, "--out", &style]).failed(1, &[&style]);
        studio.run(&["sheet", "--cell", &format!("a={PHOTO}"), "--out", &picture]).failed(1, &[&picture]);
        studio.unchanged(&before);
    }
    studio.refuses(&with(&PAINT, &["--count", "2", "--out", "file"]), 1, &["file"]);
    studio.refuses(&with(&LEARN, &["--out", "folder.safetensors"]), 1, &["is a folder"]);
    studio.refuses(&["sheet", "--cell", &format!("a={PHOTO}"), "--out", "folder.png"], 1, &["is a folder"]);
}

/// Runs the program where no file may grow beyond `blocks` of 512 or 1024 bytes, as on a disk that fills up.
#[cfg(unix)]
fn on_a_full_disk(studio: &Studio, blocks: u32, arguments: &[&str]) -> Run {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    Run::of(&mut studio.command("sh", &with(&["-c", &script, PROGRAM], arguments)))
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_earlier_file_and_no_half_one() {
    let studio = Studio::new();
    let rule = format!("5..0={}", learned().display());
    for (out, blocks, command) in [
        ("a.png", 4, PAINT.to_vec()),
        ("m.safetensors", 1, vec!["mix", "--stage", &rule]),
        (
            "sheet.png",
            4,
            vec!["sheet", "--cell", concat!("a=", env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mountain2.jpg")],
        ),
    ] {
        let command = with(&command, &["--out", out]);
        on_a_full_disk(&studio, blocks, &command).failed(1, &[out, "too large"]);
        assert!(!studio.exists(out));
        studio.write(out, "an earlier file");
        let before = studio.files();
        on_a_full_disk(&studio, blocks, &command).failed(1, &[out, "too large"]);
        studio.unchanged(&before);
    }
}

/// The checkpoint is the largest file that learning writes: it is the first that finds no room.
#[cfg(unix)]
#[test]
fn learning_on_a_full_disk_keeps_what_was_there() {
    let studio = Studio::new();
    studio.write("mine.safetensors", "an earlier style");
    let learn = with(&LEARN, &["--steps", "2", "--out", "mine.safetensors"]);
    on_a_full_disk(&studio, 2, &learn).failed(1, &["mine.checkpoint.safetensors", "too large"]);
    assert_eq!(studio.names(), ["mine.loss.csv", "mine.safetensors"]);
    assert_eq!(studio.read("mine.safetensors"), b"an earlier style");
}

#[test]
fn ctrl_c_while_painting_leaves_no_file() {
    let studio = Studio::new();
    let paint = ["paint", "--bundle", TINY, "--prompt", "a boat", "--steps", "900", "--sampler", "euler"];
    let mut run = Watched::start(studio.command(PROGRAM, &with(&paint, &["--progress", "json", "--out", "a.png"])));
    run.wait_for("\"step\"");
    run.signal("-INT");
    run.end().failed(130, &["interrupted"]);
    assert!(studio.names().is_empty());
}
