//! Style files of other programs: `tests/reference/style_files.py` made them with the libraries that those programs save
//! with. Every number of theirs is [`value`]; what must be refused is refused in a sentence.

mod reference;

use pleinair::bundle::pickle::{Item, write as torch_save};
use pleinair::style::{FileFormat, Style};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    reference::root().join("tests/fixtures/styles").join(name)
}

/// As the script has it; exact in every type of number.
fn value(stage: usize, row: usize, column: usize) -> f32 {
    ((stage * 7 + row * 3 + column) % 64) as f32 / 64.0 - 0.5
}

fn rows(rows: usize, width: usize, stage: usize) -> Vec<f32> {
    (0..rows).flat_map(|row| (0..width).map(move |column| value(stage, row, column))).collect()
}

#[test]
fn every_form_is_read() {
    for (file, token, stages, several, width, steps) in [
        ("dreamstyler.bin", "<hills>", 6, 1, 32, None),
        ("learned_embeds.bin", "<cat-toy>", 1, 1, 768, None),
        ("learned_embeds-2.bin", "<cat-toy>", 1, 2, 32, None),
        ("learned_embeds-f16.bin", "<cat-toy>", 1, 2, 32, None),
        ("learned_embeds.safetensors", "<cat-toy>", 1, 1, 768, None),
        ("learned_embeds-3.safetensors", "<cat-toy>", 1, 3, 32, None),
        ("emb_params.safetensors", "emb_params", 1, 2, 32, None),
        ("a1111.pt", "probe", 1, 2, 768, Some(300)),
        ("a1111-old.pt", "probe", 1, 2, 32, Some(300)),
        ("a1111-f64.pt", "probe", 1, 1, 32, Some(300)),
        ("original.pt", "original", 1, 1, 32, None),
        ("original-old.pt", "original-old", 1, 1, 32, None),
        ("card.png", "card", 1, 2, 32, Some(300)),
        ("card-edges.png", "card", 1, 2, 32, Some(300)),
    ] {
        let style = Style::open(fixture(file)).unwrap_or_else(|error| panic!("{error}"));
        let shape = (style.stages(), style.vectors_per_stage, style.width());
        assert_eq!(shape, (stages, several, width), "{file}");
        assert_eq!((style.token.as_str(), style.steps), (token, steps), "{file}");
        let wanted: Vec<_> = (0..stages).map(|stage| rows(several, width, stage)).collect();
        assert_eq!(style.vectors, wanted, "{file}");
        assert!(style.base.is_empty(), "{file}: no program says which text encoder it was");
        style.check_fits(&"ab".repeat(32), width).unwrap();
        let error = style.check_fits(&"ab".repeat(32), width + 1).unwrap_err().to_string();
        assert!(error.contains(&format!("{width} numbers wide")), "{error}");
    }
}

/// Stage t of the style, two vectors, `value`.
fn several(stages: usize) -> Style {
    Style {
        token: "hills".into(),
        vectors: (0..stages).map(|stage| rows(2, 32, stage)).collect(),
        vectors_per_stage: 2,
        base: "ab".repeat(32),
        context: vec!["A hill, {}".into()],
        steps: Some(500),
        ..Style::default()
    }
}

#[test]
fn every_form_is_written_and_comes_back() {
    for format in FileFormat::ALL {
        assert_eq!(format.name().parse::<FileFormat>().unwrap(), format);
        let staged = matches!(format, FileFormat::Safetensors | FileFormat::DreamstylerBin);
        for per_stage in [1, 2] {
            let all = Style {
                vectors: (0..6).map(|stage| rows(per_stage, 32, stage)).collect(),
                vectors_per_stage: per_stage,
                ..several(6)
            };
            let style = if staged { all.clone() } else { all.stage(2).unwrap() };
            let bytes = style.to_format(format, None).unwrap();
            assert_eq!(bytes, style.to_format(format, None).unwrap(), "{format}: the same bytes each time");
            let read = Style::from_bytes(&bytes).unwrap_or_else(|what| panic!("{format} {what}"));
            assert_eq!((&read.vectors, read.vectors_per_stage), (&style.vectors, per_stage), "{format}");
            assert_eq!(read.token, "hills", "{format}");
            if !staged {
                let error = all.to_format(format, None).unwrap_err().to_string();
                assert!(error.contains("6 stages") && error.contains("--stage"), "{error}");
            }
        }
    }
    assert_eq!(Style::from_bytes(&several(6).to_bytes()).unwrap(), several(6));
    let error = "onnx".parse::<FileFormat>().unwrap_err().to_string();
    assert!(error.contains("a1111-pt"), "{error}");
    assert!(several(6).stage(6).unwrap_err().to_string().contains("stages 0 to 5"));
}

/// What the bytes are, beyond that this program reads them.
#[test]
fn others_find_what_they_look_for() {
    let stage = several(3).stage(2).unwrap();
    let bytes = stage.to_format(FileFormat::Diffusers, None).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names(), ["hills"]);
    assert_eq!(file.tensor("hills").unwrap().shape(), [2, 32]);

    // A1111 lets only these names of entries pass, and only these functions (its modules/safe.py)
    let bytes = stage.to_format(FileFormat::A1111Pt, None).unwrap();
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap();
    let names: Vec<_> = (0..zip.len()).map(|i| zip.by_index_raw(i).unwrap().name().unwrap().into_owned()).collect();
    assert_eq!(names, ["archive/data.pkl", "archive/data/0", "archive/version"]);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let globals: Vec<_> = text.split("ctorch").skip(1).map(|rest| rest.split('(').next().unwrap()).collect();
    assert!(globals[0].starts_with("._utils\n_rebuild_tensor_v2\n"), "{globals:?}");
    assert!(globals[1].starts_with("\nFloatStorage\n") && globals.len() == 2, "{globals:?}");

    let bytes = stage.to_format(FileFormat::PngCard, None).unwrap();
    let reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
    let chunks = &reader.info().uncompressed_latin1_text;
    assert_eq!(chunks.iter().map(|chunk| chunk.keyword.as_str()).collect::<Vec<_>>(), ["sd-ti-embedding"]);
    assert_eq!((reader.info().width, reader.info().height), (512, 512));
}

/// A safetensors file with this header and so many bytes of zeros behind it.
fn raw(header: &str, zeros: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; zeros]].concat()
}

/// This program's file of stages of two numbers each.
fn own(tensors: &str, zeros: usize) -> Vec<u8> {
    let metadata = r#""__metadata__":{"format":"pleinair-style/1","token":"a","stages":"2","base":"x"}"#;
    raw(&format!("{{{metadata},{tensors}}}"), zeros)
}

#[test]
fn bad_files_are_refused_in_a_sentence() {
    let read = |name: &str| std::fs::read(fixture(name)).unwrap();
    let tensor = |name: &str, dtype: &str, shape: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let two = |second: String| format!("{},{second}", tensor("a-T0", "F32", "[2]", 0, 8));
    let not_a_number = torch_save(&Item::Dict(vec![("a".into(), Item::Tensor(vec![2], vec![1.0, f32::NAN]))])).unwrap();
    let cube = torch_save(&Item::Dict(vec![("a".into(), Item::Tensor(vec![1, 1, 2], vec![1.0; 2]))])).unwrap();
    let many = torch_save(&Item::Dict(vec![("a".into(), Item::Tensor(vec![76, 1], vec![1.0; 76]))])).unwrap();
    let (card, zip, old) = (read("card.png"), read("a1111.pt"), read("a1111-old.pt"));
    let edges = read("card-edges.png");
    // the entry with the numbers under another name, in both of the places a zip file names it
    let mut lost = zip.clone();
    let places: Vec<_> = (0..lost.len() - 8).filter(|&i| &lost[i..i + 7] == b"/data/0").collect();
    places.iter().for_each(|&i| lost[i + 6] = b'7');
    assert_eq!(places.len(), 2);

    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "is empty (zero bytes)"),
        ("2 GB header", [&(2u64 << 30).to_le_bytes()[..], &[b' '; 64]].concat(), "announces a header of 2147483648"),
        ("NaN", not_a_number, "not finite"),
        ("no tensor but a call", read("call.bin"), "eval under \"<cat-toy>\", which is no tensor and is not run"),
        ("a call alone", read("call-alone.bin"), "it holds __builtin__.eval, which is no tensor and is not run"),
        ("a pickle that torch did not write", read("call-plain.bin"), "no checkpoint of torch"),
        ("card cut short", card[..card.len() - 300].to_vec(), ""),
        ("card cut in its text", card[..400].to_vec(), "is a PNG card that is cut short"),
        ("edges cut short", edges[..edges.len() - 100].to_vec(), "is a PNG card that is cut short"),
        ("picture without a card", read("no-card.png"), "is a picture without a style in it; learn its style first"),
        ("overlapping", own(&two(tensor("a-T1", "F32", "[2]", 4, 12)), 12), "damaged"),
        ("gap between stages", read("gap.bin"), "lacks the vectors of stage 2 of 0 to 3"),
        ("differing widths", read("widths.bin"), "stage 1 is 9 numbers wide, that of stage 0 is 8"),
        ("record missing in the zip", lost, "no data/0 in it"),
        ("zip cut short", zip[..zip.len() / 2].to_vec(), "a damaged zip file"),
        ("old form cut short", old[..old.len() - 8].to_vec(), "was cut off"),
        ("f64 in this program's form", own(&two(tensor("a-T1", "F64", "[2]", 8, 24)), 24), "in F64"),
        ("integers", read("integers.bin"), "\"<cat-toy>\" in I64"),
        ("integers", raw(&format!("{{{}}}", tensor("a", "I32", "[2]", 0, 8)), 8), "\"a\" in I32"),
        ("three dimensions", cube, "in the shape [1, 1, 2]"),
        ("more vectors than a prompt has room for", many, "76 vectors a stage"),
        ("SDXL", read("sdxl.safetensors"), "learned for SDXL"),
        ("a model", read("model.safetensors"), "2 tensors that are no stages"),
        ("anything", b"this is no style at all".to_vec(), "is not a safetensors file"),
    ];
    for (what, bytes, expected) in cases {
        if expected.is_empty() {
            // the style stands before the pixels: a card whose picture is cut is whole
            assert!(Style::from_bytes(&bytes).is_ok(), "{what}");
            continue;
        }
        let error = Style::from_bytes(&bytes).expect_err(what);
        assert!(error.contains(expected), "{what}: {error:?}");
        assert!(!error.contains('\n') && error.len() < 250, "{what}: {error:?}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.style");
        std::fs::write(&path, &bytes).unwrap();
        let told = Style::open(&path).unwrap_err().to_string();
        assert!(told.starts_with(&*path.to_string_lossy()), "{told}");
    }
    let wide = Style::open(fixture("a1111.pt")).unwrap().check_fits("", 32).unwrap_err().to_string();
    assert!(wide.contains("768 numbers wide, this model's words are 32"), "{wide}");
}

/// Whatever the bytes, nothing but a style or a sentence comes back.
#[test]
fn damaged_files_never_panic() {
    let mut rng = rand_mt::Mt::new(7);
    let mut refused = 0;
    for name in ["a1111.pt", "a1111-old.pt", "original-old.pt", "dreamstyler.bin", "card.png", "card-edges.png"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for round in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..1 + round % 4 {
                let at = rng.next_u32() as usize % bytes.len();
                bytes[at] ^= 1 << (rng.next_u32() % 8);
            }
            if round % 10 == 0 {
                bytes.truncate(rng.next_u32() as usize % bytes.len());
            }
            refused += usize::from(Style::from_bytes(&bytes).is_err());
        }
    }
    assert!(refused > 300, "{refused} of 1800");
}

#[test]
fn a_file_that_names_no_style_gives_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("aquarelle.pt");
    std::fs::copy(fixture("original.pt"), path).unwrap();
    assert_eq!(Style::open(path).unwrap().token, "aquarelle");
}
