//! What a newcomer gets: the default model's styles, the pictures of `make demo`, a README whose words hold.

use pleinair::painter::Painter;
use pleinair::style::Style;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn at_least_three_styles_ship_and_fit_the_default_model() {
    let model = root().join("models/atelier");
    let painter = Painter::open(&model).unwrap();
    let base = painter.text_encoder().base().unwrap();
    let mut names = vec![];
    for entry in fs::read_dir(model.join("styles")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let style = Style::open(&path).unwrap();
            style.check_fits(&base, painter.text_encoder().width()).unwrap();
            assert_eq!(style.stages(), 6, "{}", path.display());
            assert!(!style.license.is_empty() && style.context.iter().all(|c| c.contains("{}")));
            names.push(style.token);
        }
    }
    assert!(names.len() >= 3, "{names:?}");
    let script = read("models/styles.sh");
    assert!(names.iter().all(|name| script.contains(&format!("lesson {name} "))), "{names:?}");
}

#[test]
fn the_demo_uses_pictures_and_a_style_that_are_there() {
    let makefile = read("Makefile");
    let value = |name: &str| {
        let line = makefile.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}")).split_once('=').unwrap().1.trim().to_owned()
    };
    let samples = value("SAMPLES");
    for picture in ["PHOTO", "STYLE"] {
        let path = value(picture).replace("$(SAMPLES)", &samples);
        assert!(root().join(&path).is_file(), "{picture} = {path}");
    }
    assert!(root().join(format!("models/atelier/styles/{}.safetensors", value("FIRST"))).is_file());
    for line in read("models/styles.sh").lines().filter(|line| line.starts_with("lesson ")) {
        let picture = line.split(' ').nth(2).unwrap();
        assert!(root().join(&samples).join("style").join(picture).is_file(), "{picture}");
    }
}

#[test]
fn the_readmes_links_lead_somewhere_and_its_figures_are_filled_in() {
    for readme in ["README.md", "models/atelier/README.md"] {
        let text = read(readme);
        assert!(!text.contains('@'), "{readme} has a figure missing");
        let folder = root().join(readme).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(link.starts_with("https://") || folder.join(link).exists(), "{readme}: {link}");
        }
    }
}
