//! PNG cards, A1111's form of an embedding that can be shown: the embedding stands in a text chunk `sd-ti-embedding` (JSON
//! in base64, every tensor a nested list), and in the pixels at both edges of the picture, for where the chunk was lost on
//! the way: low halves of the bytes of compressed JSON in the low halves of the left edge's colour values, high halves in
//! the right one's, both disguised by a fixed sequence of numbers, and two black columns between the edges and the picture.

use super::Style;
use super::foreign::{Facts, Named, style};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use serde_json::{Value, json};
use std::io::{Cursor, Read};

/// How PNG files begin.
pub(super) const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// The text chunk.
const KEY: &str = "sd-ti-embedding";
/// The key under which a tensor's numbers stand.
const TENSOR: &str = "TORCHTENSOR";
/// More JSON than this is no embedding: 75 vectors of 2048 numbers are 4 MB.
const LARGEST_JSON: usize = 32 << 20;
/// Bytes of a card's pixels, decoded.
const LARGEST_PICTURE: usize = 256 << 20;

/// Reads a card.
pub(super) fn read(bytes: &[u8], name: &str) -> Result<Style, String> {
    let damaged = |fault: png::DecodingError| match fault {
        png::DecodingError::IoError(_) => "is a PNG card that is cut short; copy it again".to_owned(),
        other => format!("is a damaged PNG card ({other}); copy it again"),
    };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: LARGEST_PICTURE });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(damaged)?;
    if let Some(text) = chunk(reader.info())? {
        let json = STANDARD.decode(text.trim()).map_err(|fault| format!("has a damaged card in it ({fault})"))?;
        return embedding(&json, name);
    }
    let size = reader.output_buffer_size().filter(|&size| size <= LARGEST_PICTURE);
    let mut pixels = vec![0; size.ok_or("is too large a picture for a card")?];
    let frame = reader.next_frame(&mut pixels).map_err(damaged)?;
    let rgb = rgb(&pixels[..frame.buffer_size()], frame.color_type);
    let none = "is a picture without a style in it; learn its style first: pleinair learn --image";
    let json = edges(&rgb, frame.width as usize).and_then(|data| inflated(&data)).ok_or(none)?;
    embedding(&json, name)
}

/// The text chunk, of whichever kind.
fn chunk(info: &png::Info<'_>) -> Result<Option<String>, String> {
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEY);
    if let Some(chunk) = plain {
        return Ok(Some(chunk.text.clone()));
    }
    let too_long = |fault: png::DecodingError| format!("has a damaged card in it ({fault})");
    if let Some(chunk) = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == KEY) {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(LARGEST_JSON).map_err(too_long)?;
        return chunk.get_text().map(Some).map_err(|fault| format!("has a damaged card in it ({fault})"));
    }
    if let Some(chunk) = info.utf8_text.iter().find(|chunk| chunk.keyword == KEY) {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(LARGEST_JSON).map_err(too_long)?;
        return chunk.get_text().map(Some).map_err(|fault| format!("has a damaged card in it ({fault})"));
    }
    Ok(None)
}

/// The style that the JSON holds.
fn embedding(json: &[u8], name: &str) -> Result<Style, String> {
    let whole: Value =
        serde_json::from_slice(json).map_err(|fault| format!("has a damaged card in it ({fault}); copy it again"))?;
    let parameters = whole.get("string_to_param").and_then(Value::as_object);
    let parameters = parameters.ok_or("has a card without string_to_param in it; export it again")?;
    let tensors = parameters.iter().map(|(key, value)| tensor(key, value)).collect::<Result<Vec<_>, _>>()?;
    let own = whole.get("name").and_then(Value::as_str).map(str::to_owned);
    style(tensors, Facts { name: own, steps: whole.get("step").and_then(Value::as_u64) }, name)
}

fn tensor(key: &str, value: &Value) -> Result<Named, String> {
    let fault = || format!("has a card in which {key:?} is no list of numbers; export it again");
    let rows = value.get(TENSOR).and_then(Value::as_array).ok_or_else(fault)?;
    let numbers = |row: &Vec<Value>| row.iter().map(|n| n.as_f64().map(|n| n as f32)).collect::<Option<Vec<_>>>();
    if let Some(flat) = numbers(rows) {
        return Ok(Named { name: key.to_owned(), shape: vec![flat.len()], numbers: flat });
    }
    let rows: Option<Vec<Vec<f32>>> = rows.iter().map(|row| row.as_array().and_then(numbers)).collect();
    let rows = rows.ok_or_else(fault)?;
    let width = rows.first().map_or(0, Vec::len);
    if rows.iter().any(|row| row.len() != width) {
        return Err(fault());
    }
    Ok(Named { name: key.to_owned(), shape: vec![rows.len(), width], numbers: rows.concat() })
}

/// Eight-bit colours, whatever the file has; transparency is dropped.
fn rgb(pixels: &[u8], colours: png::ColorType) -> Vec<[u8; 3]> {
    match colours {
        png::ColorType::Rgba => pixels.as_chunks::<4>().0.iter().map(|&[r, g, b, _]| [r, g, b]).collect(),
        png::ColorType::GrayscaleAlpha => pixels.as_chunks::<2>().0.iter().map(|&[grey, _]| [grey; 3]).collect(),
        png::ColorType::Grayscale => pixels.iter().map(|&grey| [grey; 3]).collect(),
        _ => pixels.as_chunks::<3>().0.to_vec(),
    }
}

/// The bytes hidden at the edges of a picture; none where there are no such edges.
fn edges(pixels: &[[u8; 3]], width: usize) -> Option<Vec<u8>> {
    let rows: Vec<&[[u8; 3]]> = pixels.chunks_exact(width.max(1)).collect();
    // a frame of black around the whole is not counted
    let lit = |pixel: &[u8; 3]| pixel.iter().all(|&value| value > 0);
    let columns: Vec<usize> = (0..width).filter(|&x| rows.iter().any(|row| lit(&row[x]))).collect();
    let (left, right) = (*columns.first()?, *columns.last()? + 1);
    let top = rows.iter().position(|row| row.iter().any(lit))?;
    let bottom = rows.iter().rposition(|row| row.iter().any(lit))? + 1;
    let rows: Vec<&[[u8; 3]]> = rows[top..bottom].iter().map(|row| &row[left..right]).collect();

    let is_dark = |x: usize| rows.iter().all(|row| row[x].iter().all(|value| value & 0x0f == 0));
    let dark: Vec<usize> = (0..right - left).filter(|&x| is_dark(x)).collect();
    let (first, last) = (*dark.first()?, *dark.last()?);
    if first == last {
        return None;
    }
    let low = undisguised(&rows, 0..first);
    let high = undisguised(&rows, last + 1..right - left);
    (low.len() == high.len() && !low.is_empty())
        .then(|| low.iter().zip(&high).map(|(low, high)| high << 4 | low).collect())
}

/// The low halves of these columns' values, row by row.
fn undisguised(rows: &[&[[u8; 3]]], columns: std::ops::Range<usize>) -> Vec<u8> {
    let values = rows.iter().flat_map(|row| row[columns.clone()].iter().flatten());
    values.zip(Disguise(0)).map(|(value, mask)| (value ^ mask) & 0x0f).collect()
}

/// A linear congruential generator (Numerical Recipes' constants, from 0), each number's remainder by 255.
struct Disguise(u32);

impl Iterator for Disguise {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((self.0 % 255) as u8)
    }
}

/// What was compressed; none for what was not. What follows it is padding.
fn inflated(data: &[u8]) -> Option<Vec<u8>> {
    let mut json = vec![];
    ZlibDecoder::new(data).take(LARGEST_JSON as u64 + 1).read_to_end(&mut json).ok()?;
    (json.len() <= LARGEST_JSON).then_some(json)
}

/// A card: the picture `[height, width, 3]` with the style, which has one stage, in its text chunk.
pub(super) fn write(style: &Style, (width, height): (u32, u32), rgb: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let rows: Vec<Value> = style.vectors[0].chunks(style.width().max(1)).map(|row| json!(row)).collect();
    let json = json!({
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {TENSOR: rows}},
        "name": style.token,
        "step": style.steps,
        "sd_checkpoint": null,
        "sd_checkpoint_name": null,
    });
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_text_chunk(KEY.to_owned(), STANDARD.encode(json.to_string()))?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first of the sequence by hand: 1013904223 mod 255 and so on, in whole numbers.
    #[test]
    fn the_disguise_is_the_sequence() {
        let mut state = 0u64;
        for number in Disguise(0).take(1000) {
            state = (1_664_525 * state + 1_013_904_223) % (1 << 32);
            assert_eq!(u64::from(number), state % 255);
        }
    }
}
