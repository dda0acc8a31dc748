//! Mutations that know the format, so that most mutants get past its first check: values of JSON are changed one at a
//! time and headers keep the right length, pickles get whole instructions. Half of the time libFuzzer's own blind
//! mutations are taken instead.

use crate::{Target, header_json};
use rand_mt::Mt;
use serde_json::{Value, json};

/// Numbers at which arithmetic goes wrong.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    4,
    8,
    31,
    32,
    63,
    64,
    65,
    255,
    256,
    1 << 16,
    (1 << 31) - 1,
    1 << 32,
    1 << 53,
    1 << 61,
    1 << 62,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];
const TEXTS: [&str; 8] = ["", "F32", "F4", "I64", "../x", "gelu", "DownBlock2D", "\u{1F3A8}"];
/// Whole pickle instructions, as `torch.save` writes them and as it never does.
const INSTRUCTIONS: [&[u8]; 34] = [
    b"N",
    b"0",
    b"1",
    b"2",
    b"(",
    b")",
    b"t",
    b"]",
    b"}",
    b"a",
    b"e",
    b"s",
    b"u",
    b"b",
    b"R",
    b"Q",
    b".",
    b"\x81",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x94",
    b"h\x00",
    b"h\x01",
    b"q\x01",
    b"K\x00",
    b"K\x02",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"ccollections\nOrderedDict\n)R",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"X\x01\x00\x00\x00a",
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ",
];
/// Markers of JPEG and what stands between its pictures.
const JPEG_PIECES: &[&[u8]] = &[
    b"\xFF\xD8",
    b"\xFF\xD9",
    b"\xFF\xDA\x00\x03\x01",
    b"\xFF\xE1\x00\x06Exif",
    b"\xFF\xE0\x00\x07AVI1\x00",
    b"\xFF\xC4\x00\x02",
    b"\xFF\xC2\x00\x0b\x08",
    b"\xFF\xDD\x00\x04\x00\x01",
    b"\xFF\xD0",
    b"\xFF\x00",
    b"\xFF\xFF",
    b"\xFF",
    b"\x00\x00",
    b"--frame\r\nContent-Length: 5\r\n\r\n",
];
/// Words of the headers of YUV4MPEG2.
const Y4M_PIECES: &[&[u8]] = &[
    b"YUV4MPEG2 ",
    b"FRAME\n",
    b"FRAME Ip\n",
    b"\n",
    b" W2",
    b" H1",
    b" W0",
    b" H65537",
    b" W4294967297",
    b" H18446744073709551615",
    b" Cmono",
    b" C420jpeg",
    b" C422",
    b" C444",
    b" C444p12",
    b" F0:0",
    b" XCOLORRANGE=FULL",
];
/// Pieces of forms whose boundary is `b`, and names that mean something.
const FORM_PIECES: &[&[u8]] = &[
    b"--b\r\n",
    b"--b--\r\n",
    b"\r\n--b\r\n",
    b"\r\n\r\n",
    b"\r\n",
    b"\n",
    b"Content-Disposition: form-data; name=\"wish\"\r\n\r\n",
    b"Content-Disposition: form-data; name=styles\r\n\r\n",
    b"Content-Disposition: form-data; name=\"frame\"; filename=\"../a\"\r\n\r\n",
    b"Content-Type: text/plain; charset=x\r\n",
    b"Content-Transfer-Encoding: base64\r\n",
    b"{\"styles\":7,\"mix\":[]}",
    b"[[[[",
    b"1e999",
    b"\xFF",
    b"\0",
];
/// Pieces of configurations.
const TOML_PIECES: &[&[u8]] = &[
    b"\n[camera]\nsource = \"",
    b"\n[painting.wish]\n",
    b"\n[display]\n",
    b"\n[security]\nhosts = [",
    b"command:",
    b"http://u:p@h/",
    b"folder:",
    b"v4l2:",
    b"\"\n",
    b" = ",
    b"nan",
    b"-1",
    b"18446744073709551616",
    b"1e400",
    b"[[",
    b"]]",
    b"\"\"\"",
    b"#",
];
/// Copies of one item that are added at once; more than the bits of a word.
const MOST_COPIES: u32 = 70;

/// A mutant of `data` of at most `longest` bytes. `blindly` mutates bytes up to a length without knowing what they mean.
pub fn mutated(
    target: Target,
    data: &[u8],
    longest: usize,
    seed: u32,
    mut blindly: impl FnMut(&[u8], usize) -> Vec<u8>,
) -> Vec<u8> {
    let mut rng = Mt::new(seed);
    let mutant = match target {
        _ if below(&mut rng, 2) == 0 => None,
        Target::Safetensors => with_other_header(data, longest, &mut rng, &mut blindly),
        // those of other programs are pickles, bare or in a zip file, or pictures, which instructions only damage
        Target::Style if header_json(data).is_none() => Some(other_program(data, &mut rng)),
        Target::Style => with_other_header(data, longest, &mut rng, &mut blindly),
        Target::Manifest | Target::Scheduler => other_json(data, &mut rng),
        Target::Pickle => Some(other_program(data, &mut rng)),
        Target::Mjpeg => Some(other_segments(data, JPEG_PIECES, &mut rng)),
        Target::Y4m => Some(other_segments(data, Y4M_PIECES, &mut rng)),
        Target::Multipart => Some(other_segments(data, FORM_PIECES, &mut rng)),
        Target::Configuration => Some(other_segments(data, TOML_PIECES, &mut rng)),
        Target::Checkpoint | Target::Planted => None,
    };
    mutant.filter(|mutant| mutant.len() <= longest).unwrap_or_else(|| blindly(data, longest))
}

/// A number in `0..end`; `end` is at least 1.
fn below(rng: &mut Mt, end: usize) -> usize {
    rng.next_u32() as usize % end
}

/// The same data behind a header that says something else, with its right length.
fn with_other_header(
    data: &[u8],
    longest: usize,
    rng: &mut Mt,
    blindly: &mut impl FnMut(&[u8], usize) -> Vec<u8>,
) -> Option<Vec<u8>> {
    let header = header_json(data)?;
    let numbers = &data[8 + header.len()..];
    let header = match below(rng, 3) {
        0 => blindly(header, longest.checked_sub(8 + numbers.len()).filter(|&left| left > header.len())?),
        _ => other_json(header, rng)?,
    };
    Some([&(header.len() as u64).to_le_bytes(), &header[..], numbers].concat())
}

/// The document with one to three of its values changed.
fn other_json(json: &[u8], rng: &mut Mt) -> Option<Vec<u8>> {
    let mut document: Value = serde_json::from_slice(json).ok()?;
    for _ in 0..=below(rng, 3) {
        let mut place = below(rng, count(&document));
        let other = nth(&document, &mut below(rng, count(&document))).cloned()?;
        change(nth_mut(&mut document, &mut place)?, other, rng);
    }
    Some(document.to_string().into_bytes())
}

/// Values in a document, containers included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(items) => items.values().map(count).sum(),
        _ => 0usize,
    }
}

fn nth<'a>(value: &'a Value, left: &mut usize) -> Option<&'a Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter().find_map(|item| nth(item, left)),
        Value::Object(items) => items.values().find_map(|item| nth(item, left)),
        _ => None,
    }
}

fn nth_mut<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth_mut(item, left)),
        Value::Object(items) => items.values_mut().find_map(|item| nth_mut(item, left)),
        _ => None,
    }
}

/// Changes one value; `other` is another one of the same document.
fn change(value: &mut Value, other: Value, rng: &mut Mt) {
    match (below(rng, 4), &mut *value) {
        (0, _) => *value = other,
        (1, _) => *value = interesting(rng),
        (2, Value::Array(items)) if !items.is_empty() => drop(items.remove(below(rng, items.len()))),
        (_, Value::Array(items)) => {
            let at = below(rng, items.len() + 1);
            let copies = 1 + below(rng, MOST_COPIES as usize);
            items.splice(at..at, vec![other; if rng.next_u32().is_multiple_of(4) { copies } else { 1 }]);
        }
        (2, Value::Object(items)) => {
            let key = items.keys().nth(below(rng, items.len().max(1))).cloned();
            key.and_then(|key| items.remove(&key));
        }
        (_, Value::Object(items)) => {
            let key = items.keys().nth(below(rng, items.len().max(1))).cloned().unwrap_or_default();
            items.insert(if rng.next_u32().is_multiple_of(2) { key } else { format!("{key}1") }, other);
        }
        (2, Value::Number(number)) => {
            let step = [-1, 1, 4, -4][below(rng, 4)];
            *value = match number.as_u64() {
                Some(whole) => json!(whole.wrapping_add_signed(step)),
                None => json!(-number.as_f64().unwrap_or_default()),
            };
        }
        (_, Value::Number(_)) => *value = json!(NUMBERS[below(rng, NUMBERS.len())]),
        _ => *value = interesting(rng),
    }
}

fn interesting(rng: &mut Mt) -> Value {
    match below(rng, 8) {
        0 => Value::Null,
        1 => json!(rng.next_u32().is_multiple_of(2)),
        2 => json!([]),
        3 => json!({}),
        4 => json!([-1.0, 0.5, -0.0, 1e-320, 1e308, f64::MIN][below(rng, 6)]),
        5 => json!(TEXTS[below(rng, TEXTS.len())]),
        _ => json!(NUMBERS[below(rng, NUMBERS.len())]),
    }
}

/// The program with instructions put in, or a piece of it left out, doubled or moved.
fn other_program(pickle: &[u8], rng: &mut Mt) -> Vec<u8> {
    let mut program = pickle.to_vec();
    for _ in 0..=below(rng, 3) {
        let at = below(rng, program.len() + 1);
        let end = (at + 1 + below(rng, 24)).min(program.len());
        let piece = program[at..end].to_vec();
        match below(rng, 4) {
            0 => drop(program.drain(at..end)),
            1 => {
                let to = below(rng, program.len() + 1);
                program.splice(to..to, piece);
            }
            _ => {
                let instruction = INSTRUCTIONS[below(rng, INSTRUCTIONS.len())];
                let copies = if rng.next_u32().is_multiple_of(8) { 1 + below(rng, MOST_COPIES as usize) } else { 1 };
                program.splice(at..at, instruction.repeat(copies));
            }
        }
    }
    program
}

/// The stream with pieces of its format put in, or a part of it left out, doubled or moved.
fn other_segments(data: &[u8], pieces: &[&[u8]], rng: &mut Mt) -> Vec<u8> {
    let mut stream = data.to_vec();
    for _ in 0..=below(rng, 3) {
        let at = below(rng, stream.len() + 1);
        let end = (at + 1 + below(rng, 64)).min(stream.len());
        match below(rng, 4) {
            0 => drop(stream.drain(at..end)),
            1 => {
                let part = stream[at..end].to_vec();
                let to = below(rng, stream.len() + 1);
                stream.splice(to..to, part);
            }
            _ => drop(stream.splice(at..at, pieces[below(rng, pieces.len())].iter().copied())),
        }
    }
    stream
}
