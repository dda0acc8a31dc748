//! The texts in a PNG, and what its `parameters` say.

use super::super::answer::Problem;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Cursor;

/// The longest text that is read, unpacked, in bytes.
const LONGEST: usize = 1 << 20;

/// Every text in a PNG. The pixels are not decoded.
pub(super) fn texts(png: &[u8], megapixels: u64) -> Result<BTreeMap<String, String>, Problem> {
    let fault = |why: String| Problem::wish(format!("the picture is no PNG that can be read: {why}"));
    let limits = png::Limits { bytes: 64 << 20 };
    let mut reader =
        png::Decoder::new_with_limits(Cursor::new(png), limits).read_info().map_err(|e| fault(e.to_string()))?;
    let (width, height) = reader.info().size();
    if u64::from(width) * u64::from(height) > megapixels.saturating_mul(1_000_000) {
        return Err(fault(format!("{width}x{height} pixels are too many")));
    }
    reader.finish().map_err(|why| fault(why.to_string()))?;
    let info = reader.info();
    let mut texts = BTreeMap::new();
    for chunk in &info.uncompressed_latin1_text {
        texts.insert(chunk.keyword.clone(), chunk.text.clone());
    }
    for mut chunk in info.compressed_latin1_text.clone() {
        chunk.decompress_text_with_limit(LONGEST).map_err(|why| fault(why.to_string()))?;
        texts.insert(chunk.keyword.clone(), chunk.get_text().map_err(|why| fault(why.to_string()))?);
    }
    for mut chunk in info.utf8_text.clone() {
        chunk.decompress_text_with_limit(LONGEST).map_err(|why| fault(why.to_string()))?;
        texts.insert(chunk.keyword.clone(), chunk.get_text().map_err(|why| fault(why.to_string()))?);
    }
    Ok(texts)
}

/// `parameters` field by field, as `modules/infotext_utils.py` of the web UI reads them.
pub(super) fn fields(info: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    let (text, last) = info.trim().rsplit_once('\n').unwrap_or(("", info.trim()));
    let (text, last) = if last.starts_with("Steps: ") { (text, last) } else { (info.trim(), "") };
    let (prompt, negative) = match text.split_once("Negative prompt: ") {
        Some((prompt, negative)) => (prompt, negative),
        None => (text, ""),
    };
    fields.insert("Prompt".into(), prompt.trim().into());
    fields.insert("Negative prompt".into(), negative.trim().into());
    for (key, value) in pairs(last) {
        match value.split_once('x').filter(|_| key == "Size") {
            Some((width, height)) => {
                fields.insert("Size-1".into(), width.into());
                fields.insert("Size-2".into(), height.into());
            }
            None => drop(fields.insert(key, value.into())),
        }
    }
    fields
}

/// `key: value` after `key: value`; a value with a comma is a JSON string.
fn pairs(line: &str) -> Vec<(String, String)> {
    let mut pairs = vec![];
    let mut rest = line;
    while let Some((key, after)) = rest.split_once(": ") {
        let mut quoted = serde_json::Deserializer::from_str(after).into_iter::<String>();
        let (value, next) = match quoted.next().filter(|_| after.starts_with('"')) {
            Some(Ok(value)) => (value, &after[quoted.byte_offset()..]),
            _ => {
                let end = after.find(", ").unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        pairs.push((key.to_owned(), value));
        rest = next.strip_prefix(", ").unwrap_or("");
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canvas::{Canvas, Metadata};

    #[test]
    fn what_is_written_is_read() {
        let metadata = Metadata {
            prompt: "a house\nby the sea".into(),
            negative: "fog, rain".into(),
            steps: 7,
            sampler: "dpm++2m".into(),
            cfg_scale: 5.5,
            seed: 42,
            model_hash: "a, b".into(),
            strength: None,
            recipe: serde_json::json!({"x": 1}),
        };
        let mut png = vec![];
        Canvas::new(4, 2, vec![0; 24]).unwrap().write_png(&metadata, &mut png).unwrap();
        let texts = texts(&png, 1).unwrap();
        assert_eq!(texts["pleinair"], "{\"x\":1}");
        let fields = fields(&texts["parameters"]);
        for (key, value) in [
            ("Prompt", "a house\nby the sea"),
            ("Negative prompt", "fog, rain"),
            ("Steps", "7"),
            ("CFG scale", "5.5"),
            ("Seed", "42"),
            ("Size-1", "4"),
            ("Size-2", "2"),
            ("Model hash", "a, b"),
        ] {
            assert_eq!(fields[key], value, "{key}");
        }
    }

    #[test]
    fn what_is_no_such_text_is_a_prompt() {
        assert_eq!(fields("a house")["Prompt"], "a house");
        assert_eq!(fields("")["Prompt"], "");
    }

    #[test]
    fn what_is_no_png_is_refused() {
        assert!(texts(b"GIF89a", 1).is_err());
        let mut png = vec![];
        Canvas::new(2000, 1000, vec![0; 6_000_000]).unwrap().write_png(&Metadata::default(), &mut png).unwrap();
        assert!(texts(&png, 1).is_err() && texts(&png, 2).is_ok());
        assert!(texts(&png[..png.len() / 2], 2).is_err());
    }
}
