//! `paint`, `sheet` and `doctor` where all is well.

use super::*;
use pleinair::camera::Frame;

/// The PNG's `parameters` and `pleinair` texts.
pub(super) fn texts(file: Vec<u8>) -> (String, serde_json::Value) {
    let reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let info = reader.info();
    let parameters = info.uncompressed_latin1_text.iter().find(|text| text.keyword == "parameters").unwrap();
    let recipe = info.utf8_text.iter().find(|text| text.keyword == "pleinair").unwrap().get_text().unwrap();
    (parameters.text.clone(), serde_json::from_str(&recipe).unwrap())
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_they_say_how() {
    let studio = Studio::new();
    for (out, seed) in [("a.png", "7"), ("b.png", "7"), ("c.png", "8")] {
        let run = studio.done(&with(&PAINT, &["--seed", seed, "--out", out]));
        let events = run.events();
        let steps: Vec<_> = events.iter().filter(|e| e["event"] == "step").map(|e| e["index"].as_u64()).collect();
        assert_eq!(steps, [Some(0), Some(1)]);
        assert!(events[..2].iter().all(|e| e["count"] == 2 && e["timestep"].is_f64()), "{events:?}");
        assert_eq!(events[2], serde_json::json!({"event": "finished", "file": out}));
        assert_eq!(run.stderr, "");
    }
    assert_eq!(studio.read("a.png"), studio.read("b.png"));
    assert_ne!(studio.read("a.png"), studio.read("c.png"));

    let (parameters, recipe) = texts(studio.read("a.png"));
    let lines: Vec<_> = parameters.lines().collect();
    assert_eq!(lines[0], "a boat");
    assert!(lines[1].starts_with("Negative prompt: low resolution, poorly drawn,"), "{parameters}");
    let numbers = "Steps: 2, Sampler: dpm++2m, CFG scale: 5, Seed: 7, Size: 64x64, Model hash: ";
    let hash = lines[2].strip_prefix(numbers).unwrap_or_else(|| panic!("{parameters}"));
    assert!(hash.len() == 10 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{hash}");
    assert_eq!((&recipe["bundle"], &recipe["seed"]), (&"tiny-sd15".into(), &7.into()));
    assert_eq!(recipe["program"], concat!("pleinair ", env!("CARGO_PKG_VERSION")));
    assert!(!recipe.to_string().contains(env!("CARGO_MANIFEST_DIR")), "{recipe}");
}

#[test]
fn a_photograph_is_painted_in_words_and_in_a_learned_style() {
    let studio = Studio::new();
    let base = ["paint", "--bundle", TINY, "--content", PHOTO, "--steps", "3", "--progress", "json"];
    let run = studio.done(&with(&base, &["--style", "engraving", "--out", "a.png"]));
    run.says(&["engraving", "taken as words"]);
    // Of three steps the strength of 0.8 leaves two.
    assert_eq!(run.events().iter().filter(|e| e["event"] == "step").count(), 2);
    let (parameters, recipe) = texts(studio.read("a.png"));
    assert!(parameters.starts_with("A painting in the style of engraving\n"), "{parameters}");
    assert!(parameters.contains("Sampler: unipc") && parameters.ends_with("Denoising strength: 0.8"), "{parameters}");
    assert_eq!((&recipe["content"]["width"], &recipe["control_scale"]), (&720.into(), &0.8.into()));
    assert_eq!(recipe["content"]["sha256"].as_str().unwrap().len(), 64);

    let style = learned().to_str().unwrap();
    let more = ["--prompt", "a mountain", "--style", style, "--invert", "ddim", "--style-strength", "1"];
    let run = studio.done(&with(&base, &with(&more, &["--guidance-form", "half", "--out", "b.png"])));
    run.says(&["mine.safetensors", "6 stages"]);
    let (parameters, recipe) = texts(studio.read("b.png"));
    assert!(parameters.starts_with("a mountain, in the style of mine\n"), "{parameters}");
    assert_eq!((&recipe["inversion"], &recipe["guidance"]["form"]), (&"ddim".into(), &"half".into()));
    assert_ne!(studio.read("a.png"), studio.read("b.png"));
}

#[test]
fn strengths_change_from_stage_to_stage() {
    let studio = Studio::new();
    let style = learned().to_str().unwrap();
    let wish = ["paint", "--bundle", TINY, "--prompt", "a boat, {}", "--style", style, "--steps", "8", "--out"];
    let painted = |name: &str, scales: &[&str]| {
        studio.done(&with(&with(&wish, &[name]), scales));
        (Frame::open(studio.path(name)).unwrap(), texts(studio.read(name)).1["guidance"].clone())
    };
    let (number, guidance) = painted("a.png", &["--style-strength", "2", "--content-strength", "-1"]);
    assert_eq!((&guidance["style"], &guidance["content"]), (&2.0.into(), &(-1.0).into()));
    let same = ["--style-strength", "5..3=2,2..0=2", "--content-strength", "0..5=-1..-1"];
    let (flat, guidance) = painted("b.png", &same);
    assert_eq!(flat.rgb(), number.rgb());
    assert_eq!((&guidance["style"], &guidance["content"]), (&"5..3=2,2..0=2".into(), &"5..0=-1".into()));
    let (curve, guidance) = painted("c.png", &["--style-strength", "2..0=2", "--content-strength", "5..0=0..-1"]);
    assert_ne!(curve.rgb(), number.rgb());
    // what the picture says of itself paints it again
    let recorded = [guidance["style"].as_str().unwrap(), guidance["content"].as_str().unwrap()];
    let (again, _) = painted("d.png", &["--style-strength", recorded[0], "--content-strength", recorded[1]]);
    assert_eq!(again.rgb(), curve.rgb());

    let refused: [(&[&str], &str); 4] = [
        (&["--style-strength", "6=1"], "the style strength of stage 6 is given, but there are only the stages 0 to 5"),
        (&["--content-strength", "5..3=1,4=2"], "names a stage twice"),
        (&["--content-strength", "x=1"], "names something that is no stage"),
        (&["--style-strength", "5..0=1..inf"], "give a finite number"),
    ];
    for (scales, said) in refused {
        studio.refuses(&with(&with(&wish, &["e.png"]), scales), 2, &[said]);
    }
    // in a sheet commas part the rows, and what is not named is 0 there too
    let grid = |name: &str, strengths: &str| {
        let scales = ["--content-strength", "1", "--style-strength", strengths, "--out", name];
        studio.done(&with(&with(&["grid"], &wish[1..9]), &scales));
        Frame::open(studio.path(name)).unwrap()
    };
    let (one, two) = (grid("one.png", "2..0=2"), grid("two.png", "2..0=2,0"));
    assert!(two.height() > one.height() && two.width() == one.width(), "{one:?} {two:?}");
    let refused = ["--style-strength", "0,6=1", "--out", "e.png"];
    studio.refuses(&with(&with(&["grid"], &wish[1..9]), &refused), 2, &["stage 6"]);
}

#[test]
fn several_pictures_are_numbered_and_none_is_written_over() {
    let studio = Studio::new();
    studio.done(&with(&PAINT, &["--count", "2", "--seed", "5", "--out", "many"]));
    studio.done(&with(&PAINT, &["--seed", "6", "--out", "many/"]));
    assert_eq!(studio.names(), ["many/1-seed5.png", "many/2-seed6.png", "many/3-seed6.png"]);
    assert_eq!(studio.read("many/2-seed6.png"), studio.read("many/3-seed6.png"));
    studio.refuses(&with(&PAINT, &["--count", "2", "--out", "one.png"]), 2, &["one.png", "name a folder"]);
}

#[test]
fn previews_are_pictures_too() {
    let studio = Studio::new();
    let run = studio.done(&with(&PAINT, &["--preview-every", "1", "--count", "2", "--out", "many"]));
    // The last step's is the picture itself.
    assert_eq!(studio.names().len(), 4);
    for preview in ["many/1-seed0-step01.png", "many/2-seed1-step01.png"] {
        assert!(run.events().contains(&serde_json::json!({"event": "preview", "file": preview})));
        let frame = Frame::open(studio.path(preview)).unwrap();
        assert_eq!((frame.width(), frame.height()), (64, 64));
    }
}

#[test]
fn a_size_that_does_not_divide_is_rounded_and_said() {
    let studio = Studio::new();
    let run = studio.done(&with(&PAINT, &["--size", "100x50", "--out", "a.png"]));
    run.says(&["100x50", "divide by 64", "128x64"]);
    let frame = Frame::open(studio.path("a.png")).unwrap();
    assert_eq!((frame.width(), frame.height()), (128, 64));
}

#[test]
fn the_longer_side_alone_keeps_the_photographs_shape() {
    let studio = Studio::new();
    let base = ["paint", "--bundle", TINY, "--content", PHOTO, "--style", "oil", "--steps", "2"];
    studio.done(&with(&base, &["--size", "128", "--out", "a.png"]));
    let frame = Frame::open(studio.path("a.png")).unwrap();
    // the photograph is 720x360
    assert_eq!((frame.width(), frame.height()), (128, 64));
    studio.refuses(&with(&base, &["--size", "0", "--out", "b.png"]), 2, &["above 0"]);
    studio.refuses(&with(&base, &["--size", "wide", "--out", "b.png"]), 2, &["longer side"]);
}

#[test]
fn prompts_that_are_too_long_are_cut_and_it_is_said() {
    let studio = Studio::new();
    let prompt = "boat ".repeat(100) + "in the style of {}";
    let run = studio
        .done(&with(&PAINT[..5], &["--prompt", &prompt, "--style", learned().to_str().unwrap(), "--out", "a.png"]));
    run.says(&["longer than the 75", "mine, which has no effect"]);
}

#[test]
fn progress_is_sparse_where_there_is_no_terminal_and_can_be_silenced() {
    let studio = Studio::new();
    let run = studio.done(&with(&PAINT[..3], &["--prompt", "a boat", "--steps", "60", "--out", "a.png"]));
    assert_eq!((run.stdout.as_str(), run.stderr.lines().count()), ("", 11), "{}", run.stderr);
    run.says(&["step 60 of 60", "wrote a.png"]);
    let run = studio.done(&with(&PAINT[..7], &["--progress", "none", "--out", "a.png"]));
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
}

/// The default model, found as a newcomer has it: beside where the program is run.
#[test]
fn the_model_is_found_here_or_as_the_environment_says() {
    let studio = Studio::new();
    let out = studio.path("a.png");
    let paint = ["paint", "--content", PHOTO, "--style", "pointillism", "--steps", "3", "--size", "64x48", "--out"];
    let mut command = studio.command(PROGRAM, &with(&paint, &[out.to_str().unwrap()]));
    let run = Run::of(command.current_dir(env!("CARGO_MANIFEST_DIR")));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(texts(studio.read("a.png")).1["bundle"], "atelier");

    let run = Run::of(studio.command(PROGRAM, &["doctor", "--json"]).env("PLEINAIR_BUNDLE", TINY));
    assert_eq!(run.json()["model"]["name"], "tiny-sd15");
}

#[test]
fn a_missing_model_is_an_error_that_says_where_it_was_looked_for() {
    let studio = Studio::new();
    let copy = studio.path("pleinair");
    std::fs::copy(PROGRAM, &copy).unwrap();
    for command in [&["paint", "--prompt", "a boat", "--out", "a.png"][..], &["doctor"], &["styles", "list"]] {
        let run = Run::of(&mut studio.command(copy.to_str().unwrap(), command));
        let beside = studio.0.path().canonicalize().unwrap().join("models/atelier");
        run.failed(1, &["--bundle", "PLEINAIR_BUNDLE", beside.to_str().unwrap()]);
    }
    assert_eq!(studio.names().len(), 1);
}

/// A profile's size bounds what nobody gave, its steps are those of such paintings, and a GPU that only it wants is no must.
#[test]
fn a_profile_says_how_pictures_are_painted() {
    let studio = Studio::new();
    let profile = "about = \"a small board\"\ndevice = \"cuda\"\nthreads = 1\nsize = 64\nsteps = 2\n";
    std::fs::write(studio.path("board.toml"), profile).unwrap();
    // its own size is 128
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/atelier");
    let paint = ["paint", "--bundle", model, "--prompt", "a boat", "--profile", "board.toml", "--out", "a.png"];
    let run = studio.done(&paint);
    assert!(
        run.stderr.contains("no CUDA; the networks run on the processor") || cfg!(feature = "cuda"),
        "{}",
        run.stderr
    );
    let recipe = texts(studio.read("a.png")).1;
    assert_eq!((&recipe["steps"], &recipe["size"]), (&2.into(), &serde_json::json!([64, 64])), "{recipe}");
    studio.done(&with(&paint, &["--size", "128x64", "--steps", "3"]));
    let recipe = texts(studio.read("a.png")).1;
    assert_eq!((&recipe["steps"], &recipe["size"]), (&3.into(), &serde_json::json!([128, 64])), "{recipe}");

    let report = studio.done(&["doctor", "--bundle", TINY, "--json", "--profile", "board.toml"]).json();
    assert_eq!(report["profile"]["name"], "board");
    std::fs::write(studio.path("board.toml"), "about = \"a small board\"\nspeed = 2\n").unwrap();
    Run::of(&mut studio.command(PROGRAM, &paint)).failed(1, &["board.toml", "speed"]);
    Run::of(&mut studio.command(PROGRAM, &["doctor", "--bundle", TINY, "--profile", "nope"]))
        .failed(1, &["no profile nope", "jetson-thor"]);
}

#[test]
fn the_doctor_finds_nothing_wrong() {
    let studio = Studio::new();
    let run = studio.done(&["doctor", "--bundle", TINY]);
    assert!(run.stdout.contains("everything works") && run.stdout.contains("self-test"), "{}", run.stdout);
    assert!(run.stdout.contains("captioner     none"), "{}", run.stdout);
    let report = studio.done(&["doctor", "--bundle", TINY, "--json"]).json();
    assert_eq!((&report["device"], &report["problems"]), (&"cpu".into(), &serde_json::json!([])));
    assert!(report["cores"].as_u64() > Some(0));
    let model = &report["model"];
    assert_eq!((&model["native_size"], &model["size_step"]), (&64.into(), &64.into()));
    assert_eq!(model["parts"].as_array().unwrap().len(), 3);
    let file = |path: &str| model["files"].as_array().unwrap().iter().find(|file| file["path"] == path).unwrap();
    let index = std::fs::read(Path::new(TINY).join("model_index.json")).unwrap();
    assert_eq!(file("model_index.json")["bytes"], index.len());
    let sha256: String = {
        use sha2::Digest;
        sha2::Sha256::digest(&index).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!(file("model_index.json")["sha256"], sha256);
    assert!(report["model"]["self_test"]["seconds"].as_f64() > Some(0.0));
}

#[test]
fn a_sheet_holds_every_cell_at_one_height() {
    let studio = Studio::new();
    studio.done(&with(&PAINT, &["--out", "a.png"]));
    let photograph = format!("the photograph={PHOTO}");
    let cells = ["sheet", "--cell", &photograph, "--cell", "painted=a.png", "--columns", "1"];
    studio.done(&with(&cells, &["--height", "96", "--out", "sheet.png"]));
    let photo = Frame::open(PHOTO).unwrap();
    let wide = (photo.width() as f64 * 96.0 / photo.height() as f64).round() as usize;
    let sheet = Frame::open(studio.path("sheet.png")).unwrap();
    assert!(sheet.height() > 2 * 96 && sheet.width() > wide && sheet.width() < 2 * wide, "{sheet:?}");
    studio.refuses(&["sheet", "--cell", "painted", "--out", "b.png"], 2, &["LABEL=IMG"]);
    studio.refuses(&["sheet", "--cell", "a=a.png", "--columns", "0", "--out", "b.png"], 2, &["one column"]);
    studio.refuses(&["sheet", "--cell", "a=a.png", "--out", "b.gif"], 2, &["b.gif", ".png or .jpg"]);
}

#[test]
fn a_grid_is_a_sheet_of_the_same_pictures() {
    let studio = Studio::new();
    let style = learned().to_str().unwrap();
    let wish = ["--bundle", TINY, "--content", PHOTO, "--style", style, "--prompt", "a mountain", "--steps", "3"];
    let mut cells = vec![];
    for (row, ls) in ["0", "2.5"].iter().enumerate() {
        for (column, lc) in ["1", "-1"].iter().enumerate() {
            let out = format!("{row}{column}.png");
            let scales = ["--style-strength", ls, "--content-strength", lc, "--out", &out];
            studio.done(&with(&with(&["paint"], &wish), &scales));
            cells.push(format!("style {ls}, content {lc}={out}"));
        }
    }
    let sheet: Vec<&str> = cells.iter().flat_map(|cell| ["--cell", cell]).collect();
    studio.done(&with(&with(&["sheet", "--columns", "2"], &sheet), &["--out", "sheet.png"]));
    let scales = ["--style-strength", "0,2.5", "--content-strength", "1,-1", "--progress", "json", "--out", "grid.png"];
    let run = studio.done(&with(&with(&["grid"], &wish), &scales));
    assert_eq!(studio.read("grid.png"), studio.read("sheet.png"));
    assert_ne!(studio.read("00.png"), studio.read("11.png"));
    assert_eq!(run.events().iter().filter(|event| event["event"] == "finished").count(), 1);

    let many = (0..11).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let refused: [(&[&str], &str); 3] = [
        (&["--style-strength", &many, "--content-strength", &many], "121 pictures"),
        (&["--style-strength", "inf"], "finite"),
        (&["--style-strength", "much"], "much"),
    ];
    for (scales, said) in refused {
        studio.refuses(&with(&with(&with(&["grid"], &wish), scales), &["--out", "b.png"]), 2, &[said]);
    }
}
