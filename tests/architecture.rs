//! The order of the rooms: no room of `src/` uses one to its right, and crates depend on each other in one direction.

use std::fs;
use std::path::{Path, PathBuf};

/// In path order. `painter` and `cli` see every room; `error`, `config`, `stages` and `strings` are seen by all.
const ROOMS: [&str; 12] =
    ["bundle", "camera", "prompt", "net", "side", "sampler", "style", "train", "canvas", "display", "daemon", "web"];
/// Rooms that look back at the painter: learning borrows its networks, and the daemon has it paint.
const ABOVE_THE_PAINTER: [&str; 3] = ["train", "daemon", "web"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// Rooms that a source text uses through `crate::`, its tests left out.
fn used(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: String = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let word = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms: Vec<_> = code.match_indices("crate::").map(|(i, m)| word(&code[i + m.len()..])).collect();
    for (i, m) in code.match_indices("crate::{") {
        rooms.extend(first_words(&code[i + m.len()..]).map(|w| word(w.trim())));
    }
    rooms
}

/// Each item of a `{a::{b, c}, d}` whose first brace is cut off.
fn first_words(group: &str) -> impl Iterator<Item = &str> {
    let (mut depth, mut starts, mut end) = (0, vec![0], group.len());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                end = i;
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => starts.push(i + 1),
            _ => {}
        }
    }
    starts.into_iter().filter(move |&start| start < end).map(move |start| &group[start..end])
}

fn place(room: &str) -> Option<usize> {
    ROOMS.iter().position(|r| *r == room)
}

/// `file uses room` for every use of a room to the right.
fn faults(room: &str, file: &str, source: &str) -> Vec<String> {
    let own = place(room).expect("a room");
    let may_paint = ABOVE_THE_PAINTER.contains(&room);
    let wrong = |r: &String| place(r).is_some_and(|p| p > own) || r == "cli" || (r == "painter" && !may_paint);
    used(source).into_iter().filter(wrong).map(|r| format!("{file} uses {r}")).collect()
}

#[test]
fn no_room_uses_one_to_its_right() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = vec![];
    for room in ROOMS {
        let (folder, file) = (src.join(room), src.join(room).with_extension("rs"));
        let files = if folder.is_dir() { sources(&folder) } else { vec![file] };
        assert!(!files.is_empty());
        for file in files {
            all.extend(faults(room, &file.display().to_string(), &fs::read_to_string(&file).unwrap()));
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn the_check_finds_a_wrong_use() {
    assert_eq!(faults("net", "f", "use crate::style::Style;"), ["f uses style"]);
    assert_eq!(faults("net", "f", "use crate::{Error, train, prompt::Tokens};"), ["f uses train"]);
    assert_eq!(faults("net", "f", "use crate::{prompt::{Tokens, Template}, train::learn};"), ["f uses train"]);
    assert_eq!(faults("net", "f", "#[cfg(test)]\nuse crate::canvas;"), ["f uses canvas"]);
    assert_eq!(faults("side", "f", "use crate::painter::Painter;"), ["f uses painter"]);
    assert!(faults("train", "f", "use crate::painter::Painter;").is_empty());
    let fine = "// crate::cli\nuse crate::net::Unet;\n#[cfg(test)]\nmod tests { use crate::train; }";
    assert!(faults("style", "f", fine).is_empty());
}

#[test]
fn crates_depend_in_one_direction() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let dependencies = |text: &str| text.split("\n[dependencies]").nth(1).unwrap().to_string();
    for target in ["cpu", "cuda", "metal"] {
        let all = dependencies(&manifest(&format!("targets/{target}/Cargo.toml")));
        // tests may compare with another target's kernels
        let own = all.split("\n[dev-dependencies]").next().unwrap();
        assert!(!own.contains("pleinair"), "{target}: {own}");
    }
    assert!(!dependencies(&manifest("Cargo.toml")).contains("quantize"));
    let quantize = dependencies(&manifest("quantize/Cargo.toml"));
    assert!(quantize.contains("pleinair.workspace") && !quantize.contains("pleinair-"), "{quantize}");
}
