//! Style files: safetensors with one F32 tensor `[D]` a stage (`[n, D]` where a stage has several vectors) under
//! `<token>-T0` …, and metadata. What other programs write is read in [`super::foreign`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::{Style, foreign};
use crate::bundle::write::write_atomically;
use crate::error::{Error, Result};

/// What the metadata key `format` says in a file this version writes and reads.
pub const FORMAT: &str = "pleinair-style/1";
/// What any version of it starts with.
const FORMAT_FAMILY: &str = "pleinair-style/";

/// No style is this large: 1000 stages of 4096 numbers are 16 MiB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// More stages than timesteps make no sense.
const MAX_STAGES: usize = 1000;
/// The header's length comes first, 8 bytes little-endian.
const LENGTH_BYTES: usize = 8;

impl Style {
    /// Reads a style file: this program's, DreamStyler's and diffusers' `.bin`, diffusers' `.safetensors`, A1111's `.pt` and
    /// its PNG cards. A file that does not name its style gets its own name.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::File`] when it is no whole style file of a form known here: empty,
    /// cut short, another kind of file, stages missing, widths that differ, numbers that are not finite.
    pub fn open(path: impl AsRef<Path>) -> Result<Style> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path))?;
        let metadata = file.metadata().map_err(Error::io(path))?;
        if metadata.is_dir() {
            return Err(Error::file(path, "is a folder; name a style file in it"));
        }
        if metadata.len() > MAX_FILE_BYTES {
            let megabytes = metadata.len() >> 20;
            return Err(Error::file(path, format!("is {megabytes} MiB large, too large for a style; is it a model?")));
        }
        let mut bytes = Vec::new();
        // Never more than the limit, should the file grow while it is read.
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(Error::io(path))?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Style::from_bytes_named(&bytes, &name).map_err(|what| Error::file(path, what))
    }

    /// Writes a style file, whole or not at all; the same style gives the same bytes.
    ///
    /// # Errors
    /// [`Error::File`] when the style has no name or vectors, widths that differ or numbers that are not finite; otherwise
    /// as [`write_atomically`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if let Some(fault) = self.fault() {
            return Err(Error::file(path, format!("is not written: {fault}")));
        }
        let bytes = self.to_bytes();
        write_atomically(path, |file| file.write_all(&bytes))
    }

    /// The bytes that [`Style::save`] writes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let several = (self.vectors_per_stage > 1).then_some(self.vectors_per_stage);
        let shape: Vec<usize> = several.into_iter().chain([self.width()]).collect();
        let stages = self.vectors.iter().enumerate();
        let tensors = stages.map(|(stage, vector)| (format!("{}-T{stage}", self.token), &shape[..], &vector[..]));
        safetensors(json!(self.metadata()), tensors)
    }

    /// As diffusers saves an embedding: one tensor `[n, D]` under the token, the first stage's.
    pub(super) fn to_diffusers(&self) -> Vec<u8> {
        let shape = [self.vectors_per_stage, self.width()];
        let tensors = self.vectors.first().map(|vector| (self.token.clone(), &shape[..], &vector[..]));
        safetensors(json!({"format": "pt"}), tensors.into_iter())
    }

    fn metadata(&self) -> BTreeMap<&'static str, String> {
        let mut metadata = BTreeMap::from([
            ("format", FORMAT.to_owned()),
            ("token", self.token.clone()),
            ("stages", self.stages().to_string()),
            ("base", self.base.clone()),
            ("context", context_text(&self.context)),
            ("license", self.license.clone()),
            ("init", self.init.clone()),
        ]);
        metadata.extend(self.steps.map(|steps| ("steps", steps.to_string())));
        metadata.extend(self.seed.map(|seed| ("seed", seed.to_string())));
        metadata.extend(self.mix.clone().map(|recipe| ("mix", recipe)));
        metadata
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// What is wrong with them, as [`Style::open`] has it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Style, String> {
        Style::from_bytes_named(bytes, "style")
    }

    /// As [`Style::from_bytes`]; a style without a name of its own is called `name`.
    ///
    /// # Errors
    /// As [`Style::from_bytes`].
    pub fn from_bytes_named(bytes: &[u8], name: &str) -> Result<Style, String> {
        if let Some(style) = foreign::read(bytes, name) {
            return style;
        }
        check_header_length(bytes)?;
        let not_safetensors = |fault| format!("is not a safetensors file or is damaged ({fault}); copy it again");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_safetensors)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let get = |key: &str| metadata.get(key).map(String::as_str);
        match get("format") {
            Some(FORMAT) => {}
            Some(other) if other.starts_with(FORMAT_FAMILY) => {
                return Err(format!("is of the format {other}, this version reads {FORMAT}; use a newer pleinair"));
            }
            _ => {
                return foreign::from_safetensors(&SafeTensors::deserialize(bytes).map_err(not_safetensors)?, name);
            }
        }
        let required = |key: &str| get(key).ok_or_else(|| format!("lacks {key:?} in its metadata; it cannot be used"));
        let token = required("token")?.to_owned();
        let stages = required("stages")?;
        let stages: usize =
            stages.parse().ok().filter(|stages| (1..=MAX_STAGES).contains(stages)).ok_or_else(|| {
                format!("says it has {stages:?} stages; it has to be a number from 1 to {MAX_STAGES}")
            })?;

        let tensors = SafeTensors::deserialize(bytes).map_err(not_safetensors)?;
        let (vectors, vectors_per_stage) = vectors(&tensors, &token, stages)?;
        let style = Style {
            vectors,
            vectors_per_stage,
            token,
            base: required("base")?.to_owned(),
            context: context_texts(get("context").unwrap_or_default()),
            steps: get("steps").map(|text| whole_number("steps", text)).transpose()?,
            seed: get("seed").map(|text| whole_number("seed", text)).transpose()?,
            license: get("license").unwrap_or_default().to_owned(),
            init: get("init").unwrap_or_default().to_owned(),
            mix: get("mix").map(str::to_owned),
        };
        style.fault().map_or(Ok(style), Err)
    }
}

/// A safetensors file of F32 tensors: names, shapes, numbers. Put together here because the crate keeps metadata in random
/// order.
fn safetensors<'a>(metadata: Value, tensors: impl Iterator<Item = (String, &'a [usize], &'a [f32])>) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), metadata);
    let mut data = Vec::new();
    for (name, shape, numbers) in tensors {
        let start = data.len();
        data.extend(numbers.iter().flat_map(|value| value.to_le_bytes()));
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// What can be wrong before anything is parsed.
pub(super) fn check_header_length(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() {
        return Err("is empty (zero bytes); copy it again or learn the style again".to_owned());
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("is cut short: {} bytes are no safetensors file; copy it again", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 {
        let rest = rest.len();
        return Err(format!(
            "is not a safetensors file or is cut short: it announces a header of {length} bytes, {rest} follow"
        ));
    }
    Ok(())
}

/// The vectors of stages `0..stages`, and how many each has; each has to be there, once, and nothing else.
fn vectors(tensors: &SafeTensors, token: &str, stages: usize) -> Result<(Vec<Vec<f32>>, usize), String> {
    for name in tensors.names() {
        let stage = name.strip_prefix(token).and_then(|rest| rest.strip_prefix("-T")?.parse().ok());
        if !stage.is_some_and(|stage: usize| stage < stages && name == format!("{token}-T{stage}")) {
            return Err(format!("has a tensor {name:?}, which is none of the {stages} stages of {token:?}"));
        }
    }
    let missing: Vec<String> = (0..stages)
        .filter(|stage| tensors.tensor(&format!("{token}-T{stage}")).is_err())
        .map(|stage| stage.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(format!("lacks the vectors of stages {} of {stages}; learn the style again", missing.join(", ")));
    }
    let read = (0..stages).map(|stage| vector(tensors, &format!("{token}-T{stage}"))).collect::<Result<Vec<_>, _>>()?;
    let several = read[0].1;
    match read.iter().position(|(_, own)| *own != several) {
        Some(stage) => Err(format!("has {} vectors in stage {stage} and {several} in stage 0", read[stage].1)),
        None => Ok((read.into_iter().map(|(vector, _)| vector).collect(), several)),
    }
}

/// A stage's numbers, and how many vectors they are.
fn vector(tensors: &SafeTensors, name: &str) -> Result<(Vec<f32>, usize), String> {
    let tensor = tensors.tensor(name).map_err(|fault| format!("has no usable tensor {name:?}: {fault}"))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("has {name:?} in {}, a style's vectors are F32", tensor.dtype()));
    }
    let several = foreign::vectors_in(name, tensor.shape())?;
    let (numbers, _) = tensor.data().as_chunks::<4>();
    Ok((numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(), several))
}

fn whole_number(key: &str, text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("has {key}={text:?} in its metadata; it has to be a whole number"))
}

/// One context as it is, none as nothing, several as a JSON list.
fn context_text(context: &[String]) -> String {
    match context {
        [one] if context_texts(one) == context => one.clone(),
        [] => String::new(),
        several => json!(several).to_string(),
    }
}

fn context_texts(text: &str) -> Vec<String> {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(several) => several,
        Err(_) if text.is_empty() => Vec::new(),
        Err(_) => vec![text.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn style() -> Style {
        Style {
            token: "gogh".into(),
            vectors: (0..12).map(|t| (0..5).map(|d| t as f32 + d as f32 / 8.0).collect()).collect(),
            vectors_per_stage: 1,
            base: "ab".repeat(32),
            context: vec!["A painting of a café, in the style of {}".into()],
            steps: Some(500),
            seed: Some(u64::MAX),
            license: "CC0-1.0".into(),
            init: "painting".into(),
            mix: None,
        }
    }

    fn written(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A file with this header text and so many bytes of zeros behind it.
    fn raw(header: &str, zeros: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; zeros]].concat()
    }

    #[test]
    fn comes_back_as_it_was_and_as_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gogh.safetensors");
        let several = vec!["one {}".to_owned(), "[two] {}".into(), String::new()];
        for (context, steps, mix) in [
            (style().context, Some(500), None),
            (several, None, Some("5..3=a 2..0=b".to_owned())),
            (vec![], Some(0), None),
            (vec!["[\"a list?\"]".to_owned()], None, None),
            (vec!["[broken".to_owned()], None, None),
            (vec![String::new()], None, None),
        ] {
            let style = Style { context, steps, seed: steps, mix, ..style() };
            style.save(&path).unwrap();
            assert_eq!(Style::open(&path).unwrap(), style);
            let first = std::fs::read(&path).unwrap();
            style.clone().save(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), first);
        }
    }

    /// By the crate's own reader: names, type, shape and metadata as the interface has them.
    #[test]
    fn others_can_read_it() {
        let bytes = style().to_bytes();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 12);
        let tensor = tensors.tensor("gogh-T11").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[5][..]));
        assert_eq!(tensor.data()[..4], 11f32.to_le_bytes());
        let (length, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(length % 8, 0);
        let metadata = header.metadata().as_ref().unwrap();
        for (key, value) in [
            ("format", "pleinair-style/1"),
            ("token", "gogh"),
            ("stages", "12"),
            ("context", "A painting of a café, in the style of {}"),
            ("steps", "500"),
            ("seed", "18446744073709551615"),
            ("license", "CC0-1.0"),
            ("init", "painting"),
        ] {
            assert_eq!(metadata[key], value);
        }
        assert_eq!(metadata["base"].len(), 64);
        assert!(!metadata.contains_key("mix"));
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let whole = style().to_bytes();
        let meta = r#""__metadata__":{"format":"pleinair-style/1","token":"a","stages":"2","base":"x"}"#;
        let tensor = |name: &str, dtype: &str, shape: &str, from: usize, to: usize| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
        };
        let file = |tensors: &[String], zeros| raw(&format!("{{{meta},{}}}", tensors.join(",")), zeros);
        let first = tensor("a-T0", "F32", "[2]", 0, 8);
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![], "empty"),
            (vec![1, 2, 3], "cut short"),
            ([&(1u64 << 60).to_le_bytes()[..], b"{}"].concat(), "1152921504606846976"),
            ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "header of 18446744073709551615"),
            (whole[..whole.len() - 1].to_vec(), "damaged"),
            ([&whole[..], b"x"].concat(), "damaged"),
            (whole[..100].to_vec(), "cut short"),
            (raw("not json", 0), "damaged"),
            (raw("{}", 0), "not a style file"),
            (raw(r#"{"__metadata__":{"format":"pt"}}"#, 0), "not a style file"),
            (raw(r#"{"__metadata__":{"format":"pleinair-style/2"}}"#, 0), "newer pleinair"),
            (raw(r#"{"__metadata__":{"format":"pleinair-style/1"}}"#, 0), "\"token\""),
            (raw(&format!("{{{}}}", meta.replace("\"2\"", "\"0\"")), 0), "1 to 1000"),
            (raw(&format!("{{{}}}", meta.replace("\"2\"", "\"99999999999\"")), 0), "1 to 1000"),
            (raw(&format!("{{{}}}", meta.replace("base", "bass")), 0), "lacks the vectors of stages 0, 1"),
            (file(std::slice::from_ref(&first), 8), "stages 1 of 2"),
            (file(&[first.clone(), tensor("a-T2", "F32", "[2]", 8, 16)], 16), "\"a-T2\""),
            (file(&[first.clone(), tensor("a-T01", "F32", "[2]", 8, 16)], 16), "\"a-T01\""),
            (file(&[first.clone(), tensor("b-T1", "F32", "[2]", 8, 16)], 16), "\"b-T1\""),
            (file(&[first.clone(), tensor("a-T1", "F32", "[3]", 8, 20)], 20), "stage 1 is 3 numbers wide"),
            (file(&[first.clone(), tensor("a-T1", "F16", "[2]", 8, 12)], 12), "in F16"),
            (file(&[first.clone(), tensor("a-T1", "F32", "[1,1,2]", 8, 16)], 16), "[1, 1, 2]"),
            (
                file(&[first.clone(), tensor("a-T1", "F32", "[2,2]", 8, 24)], 24),
                "2 vectors in stage 1 and 1 in stage 0",
            ),
            (file(&[tensor("a-T0", "F32", "[0]", 0, 0), tensor("a-T1", "F32", "[0]", 0, 0)], 0), "no vectors"),
            (file(&[first.clone(), tensor("a-T1", "F32", "[2]", 12, 20)], 20), "damaged"),
        ];
        for (bytes, expected) in cases {
            let error = Style::open(written(&folder, &bytes)).unwrap_err();
            assert!(matches!(error, Error::File { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("a.safetensors") && text.contains(expected), "{expected}: {text}");
        }
        assert!(matches!(Style::open(folder.path().join("none")), Err(Error::Io { .. })));
        assert!(matches!(Style::open(folder.path()), Err(Error::File { .. })));
    }

    #[test]
    fn numbers_that_are_not_finite_are_neither_read_nor_written() {
        let folder = tempfile::tempdir().unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut style = style();
            style.vectors[3][4] = bad;
            let text = Style::open(written(&folder, &style.to_bytes())).unwrap_err().to_string();
            assert!(text.contains("stage 3") && text.contains("not finite"), "{text}");
            let path = folder.path().join("new.safetensors");
            assert!(style.save(&path).is_err());
            assert!(!path.exists());
        }
        let mut ragged = style();
        ragged.vectors[1].pop();
        assert!(ragged.save(folder.path().join("new.safetensors")).is_err());
        assert!(Style { token: String::new(), ..style() }.save(folder.path().join("new.safetensors")).is_err());
    }

    #[test]
    fn a_file_far_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        // Sparse: it takes no room.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(Style::open(&path).unwrap_err().to_string().contains("too large"));
    }
}
