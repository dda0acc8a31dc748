//! What the fuzzers start from: good files, made from the fixtures, and the inputs kept in `corpus/`.

use crate::{Target, header_length};
use pleinair::style::{FileFormat, Style};
use serde_json::{Value, json};
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use zip::ZipArchive;

/// Headers longer than this would only slow the fuzzers down.
const LONGEST_HEADER: u64 = 4096;

/// A name and the bytes.
pub type Input = (String, Vec<u8>);

/// Good files for a target, and some that are refused late.
///
/// # Panics
/// If the fixtures are not where they belong.
pub fn of(target: Target) -> Vec<Input> {
    match target {
        Target::Safetensors => headers(),
        Target::Checkpoint => files(&fixtures().join("checkpoints"), &["ckpt", "pt", "zip"]),
        Target::Pickle => of(Target::Checkpoint).iter().filter_map(pickle).collect(),
        Target::Manifest => vec![
            ("tiny-sd15".into(), manifest(&fixtures().join("tiny-sd15"), false)),
            ("tiny-sd15-controlnet".into(), manifest(&fixtures().join("tiny-sd15"), true)),
            ("atelier".into(), manifest(&repository().join("models/atelier"), true)),
        ],
        Target::Scheduler => vec![
            ("tiny-sd15".into(), scheduler(&fixtures().join("tiny-sd15"))),
            ("atelier".into(), scheduler(&repository().join("models/atelier"))),
        ],
        Target::Style => styles(),
        Target::Mjpeg => jpegs(),
        Target::Y4m => films(),
        Target::Multipart => forms(),
        Target::Configuration => files(&repository().join("targets/service"), &["toml"]),
        Target::Planted => vec![("seed".into(), vec![0; 16])],
    }
}

/// Forms as browsers and curl send them.
fn forms() -> Vec<Input> {
    let part = |head: &str, body: &str| format!("--b\r\nContent-Disposition: form-data; name={head}\r\n\r\n{body}\r\n");
    let form = |parts: &[String]| format!("b\n{}--b--\r\n", parts.concat()).into_bytes();
    let frame = part("\"frame\"; filename=\"a.png\"\r\nContent-Type: image/png", "\u{1}\u{2}\u{3}");
    vec![
        ("fields".into(), form(&[part("\"prompt\"", "a house"), part("steps", "7"), part("\"styles\"", "ink")])),
        ("wish".into(), form(&[part("\"wish\"", "{\"prompt\":\"a\",\"styles\":[\"ink\"]}"), frame.clone()])),
        ("files".into(), form(&[frame, part("\"context\"", "a {}"), part("\"image\"; filename*=UTF-8''a", "x")])),
        ("empty".into(), form(&[])),
    ]
}

/// The inputs kept for a target, if there are any.
///
/// # Panics
/// If they cannot be read.
pub fn kept(target: Target) -> Vec<Input> {
    let folder = repository().join("tests/fuzz/corpus").join(target.name());
    if folder.is_dir() { files(&folder, &[""]) } else { vec![] }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/fuzz is in the repository").to_path_buf()
}

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures")
}

/// The files of a folder with one of these endings, in the order of their names.
fn files(folder: &Path, endings: &[&str]) -> Vec<Input> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    let ending = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().into_owned();
    paths.retain(|path| path.is_file() && endings.contains(&ending(path).as_str()));
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    paths.into_iter().map(|path| (name(&path), fs::read(&path).expect("a readable file"))).collect()
}

/// The short headers of the fixtures, without their numbers, and a whole file.
fn headers() -> Vec<Input> {
    let folders = [fixtures(), fixtures().join("checkpoints"), repository().join("models/atelier/styles")];
    let mut headers: Vec<Input> = folders.iter().flat_map(|folder| files(folder, &["safetensors"])).collect();
    headers.retain(|(_, data)| header_length(data).is_some_and(|length| length <= LONGEST_HEADER));
    for (_, data) in &mut headers {
        data.truncate(8 + header_length(data).expect("kept above") as usize);
    }
    headers.push(("small-style".into(), small_style().to_bytes()));
    headers
}

/// The pickle of a checkpoint, where it can be had.
fn pickle((name, data): &Input) -> Option<Input> {
    let mut zip = ZipArchive::new(Cursor::new(data)).ok()?;
    let entry = zip.file_names().flatten().find(|name| name.ends_with("data.pkl"))?.into_owned();
    let mut pickle = vec![];
    zip.by_name(&entry).ok()?.read_to_end(&mut pickle).ok()?;
    Some((name.clone(), pickle))
}

/// The manifest that a bundle of this diffusers folder would have.
fn manifest(folder: &Path, control: bool) -> Vec<u8> {
    let config = |part: &str| -> Value {
        let path = folder.join(part).join("config.json");
        serde_json::from_slice(&fs::read(&path).expect("a fixture")).expect("JSON")
    };
    let network = |part: &str, kind: &str, dtype: &str, layers: Value| json!({"kind": kind, "dtype": dtype, "config": config(part), "parameters": 1000, "layers": layers});
    let layers = json!({
        "conv_in": {"shape": [32, 4, 3, 3], "dtype": "f16", "kept": "first"},
        "mid_block.attentions.0.proj_in": {"shape": [64, 64], "dtype": "int8", "psnr": 41.5},
    });
    let file = json!({"bytes": 10, "sha256": "00"});
    let mut manifest = json!({
        "format": pleinair::bundle::manifest::FORMAT,
        "target": "cpu",
        "dtype": "int8",
        "source": "a fixture",
        "license": "Apache-2.0",
        "unet": network("unet", "UNet2DConditionModel", "int8", layers.clone()),
        "text_encoder": network("text_encoder", "CLIPTextModel", "f16", json!({})),
        "vae": network("vae", "AutoencoderKL", "f32", json!({})),
        "files": {
            "unet.safetensors": file, "text_encoder.safetensors": file, "tokenizer.json": file, "scheduler.json": file,
            "vae_encoder.onnx": file, "vae_decoder.onnx": file, "tiny_vae_decoder.onnx": file, "a/b.json": file,
        },
        "quality": {"psnr": [40.0, 41.0], "seeds": 8},
    });
    if control {
        manifest["controlnet"] = network("controlnet", "ControlNetModel", "int8", layers);
        manifest["control"] = json!("soft-edge");
        manifest["files"]["controlnet.safetensors"] = file;
    }
    manifest.to_string().into_bytes()
}

fn scheduler(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("scheduler/scheduler_config.json")).expect("a fixture")
}

fn small_style() -> Style {
    Style {
        token: "gogh".into(),
        vectors: vec![vec![0.5, -1.0], vec![0.25, 2.0]],
        vectors_per_stage: 1,
        base: "ab".repeat(32),
        context: vec!["A {}".into(), "B".into()],
        steps: Some(500),
        seed: Some(7),
        license: "CC0-1.0".into(),
        init: "painting".into(),
        mix: Some("1..0=a".into()),
    }
}

fn styles() -> Vec<Input> {
    let one = Style { vectors: vec![vec![1.0]], steps: None, mix: None, context: vec![], ..small_style() };
    let mut styles = files(&repository().join("models/atelier/styles"), &["safetensors"]);
    styles.truncate(1);
    styles.extend([("small".into(), small_style().to_bytes()), ("one".into(), one.to_bytes())]);
    // what other programs read, and what their libraries wrote
    let other = |format: FileFormat| (format.name().to_owned(), one.to_format(format, None).expect("one stage"));
    styles.extend(FileFormat::ALL.into_iter().filter(|format| *format != FileFormat::PngCard).map(other));
    styles.extend(files(&repository().join("tests/fixtures/styles"), &["bin", "pt", "png"]));
    styles
}

/// A JPEG of 16 by 8 pixels, each its own grey.
fn jpeg() -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    let picture = image::GrayImage::from_fn(16, 8, |x, y| image::Luma([(x * 16 + y) as u8]));
    picture.write_to(&mut bytes, image::ImageFormat::Jpeg).expect("memory takes every byte");
    bytes.into_inner()
}

/// Streams of JPEGs: bare, in parts, and with a thumbnail in each.
fn jpegs() -> Vec<Input> {
    let jpeg = jpeg();
    let part = [&b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"[..], &jpeg, b"\r\n"].concat();
    let length = (jpeg.len() as u16 + 2).to_be_bytes();
    let thumbnail = [&jpeg[..2], b"\xFF\xE1", &length, &jpeg, &jpeg[2..]].concat();
    vec![
        ("bare".into(), jpeg.repeat(2)),
        ("parts".into(), part.repeat(3)),
        ("thumbnails".into(), thumbnail.repeat(2)),
        ("cut".into(), [&jpeg[..jpeg.len() / 2], &jpeg.repeat(2)].concat()),
    ]
}

/// Films of two frames of 3 by 2 pixels.
fn films() -> Vec<Input> {
    let film = |name: &str, chroma: usize| {
        let frame = [&b"FRAME\n"[..], &[90; 6], &vec![200; 2 * chroma]].concat();
        let header = format!("YUV4MPEG2 W3 H2 F25:1 Ip A1:1 C{name} XYSCSS=X XCOLORRANGE=FULL\n");
        (name.to_string(), [header.as_bytes(), &frame.repeat(2)].concat())
    };
    vec![film("420jpeg", 2), film("422", 4), film("444", 6), film("mono", 0)]
}
