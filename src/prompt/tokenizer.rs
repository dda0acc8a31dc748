//! CLIP's byte-pair tokenizer, read from a diffusers `tokenizer/` folder.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::{AddedToken, PaddingParams, PaddingStrategy};

use crate::error::{Error, Result};

/// Positions of CLIP's text encoder.
const POSITIONS: usize = 77;
/// How CLIP cuts text into words (`transformers`, `models/clip/tokenization_clip.py`).
const WORD_PATTERN: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Turns text into token ids as `transformers`' `CLIPTokenizer` does.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    positions: usize,
}

impl Tokenizer {
    /// Opens a folder with `tokenizer.json`, or else with `vocab.json` and `merges.txt`.
    ///
    /// The start, end and padding tokens come from `tokenizer_config.json` and `special_tokens_map.json` where they
    /// are there (SD 1.5 pads with `<|endoftext|>`, SD 2 with `!`), else they are `CLIPTokenizer`'s own.
    ///
    /// # Errors
    /// [`Error::Io`] when the vocabulary is missing or cannot be read, [`Error::File`] when a file is not what it should
    /// be or names a special token that the vocabulary lacks.
    pub fn open(folder: impl AsRef<Path>) -> Result<Tokenizer> {
        let folder = folder.as_ref();
        let whole = folder.join("tokenizer.json");
        let (path, mut inner) = if whole.exists() {
            let inner = tokenizers::Tokenizer::from_bytes(std::fs::read(&whole).map_err(Error::io(&whole))?)
                .map_err(|fault| not_a_tokenizer(&whole, fault))?;
            (whole, inner)
        } else {
            (folder.join("vocab.json"), from_vocabulary(folder)?)
        };
        let padding = inner.get_padding().cloned();
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|fault| not_a_tokenizer(&path, fault))?;

        let config = Config::read(folder, padding)?;
        let mut ids = [0; 4];
        for (id, token) in ids.iter_mut().zip(config.special_tokens()) {
            let content = token.content.clone();
            // To be looked up before it is added, which would give an unknown token an id beyond the word table.
            *id = inner.token_to_id(&content).ok_or_else(|| {
                Error::file(&path, format!("has no token {content:?}, which the tokenizer's configuration asks for"))
            })?;
            if !inner.get_added_tokens_decoder().values().any(|added| added.content == content) {
                inner.add_special_tokens([token]).map_err(|fault| not_a_tokenizer(&path, fault))?;
            }
        }
        let [bos, eos, pad, _unknown] = ids;
        Ok(Tokenizer { inner, bos, eos, pad, positions: config.positions(folder)? })
    }

    /// The ids of `text`, uncut, without start and end.
    ///
    /// # Errors
    /// [`Error::Usage`] when the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|fault| Error::Usage(format!("the text {text:?} cannot be tokenized: {fault}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of a word that is one token, such as the one a style starts from.
    ///
    /// # Errors
    /// [`Error::Usage`] when the word is none or several tokens.
    pub fn word(&self, word: &str) -> Result<u32> {
        match self.encode(word)?[..] {
            [id] => Ok(id),
            ref ids => Err(Error::Usage(format!(
                "{word:?} is {} tokens for this model where one is needed; choose a plainer word",
                ids.len()
            ))),
        }
    }

    /// The id that starts every prompt.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The id that ends every prompt.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The id that fills the positions after the end.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// A `tokenizer.json` that alone opens as this tokenizer: its padding says which token pads and how many positions
    /// there are.
    ///
    /// # Errors
    /// [`Error::Usage`] when the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String> {
        let mut whole = self.inner.clone();
        whole.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::Fixed(self.positions),
            pad_id: self.pad,
            pad_token: self.inner.id_to_token(self.pad).unwrap_or_default(),
            ..PaddingParams::default()
        }));
        whole.to_string(false).map_err(|fault| Error::Usage(format!("the tokenizer cannot be written: {fault}")))
    }

    /// How many positions a prompt has, start and end included: 77.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

fn not_a_tokenizer(path: &Path, fault: impl std::fmt::Display) -> Error {
    Error::file(path, format!("is not a usable tokenizer: {fault}"))
}

/// CLIP's tokenizer from `vocab.json` and `merges.txt`, put together as `CLIPTokenizer` does.
fn from_vocabulary(folder: &Path) -> Result<tokenizers::Tokenizer> {
    let path = folder.join("vocab.json");
    let vocabulary = read_json(&path)?
        .ok_or_else(|| Error::file(folder, "has neither tokenizer.json nor vocab.json; is this a tokenizer folder?"))?;
    let merges_path = folder.join("merges.txt");
    let merges = std::fs::read_to_string(&merges_path).map_err(Error::io(&merges_path))?;
    let mut pairs = Vec::new();
    for (i, line) in merges.lines().enumerate() {
        if line.starts_with("#version") || line.trim().is_empty() {
            continue;
        }
        let pair = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
        pairs.push(pair.ok_or_else(|| Error::file(&merges_path, format!("line {} is not a pair of tokens", i + 1)))?);
    }
    let whole = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": pairs, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "unk_token": "<|endoftext|>",
        },
    });
    tokenizers::Tokenizer::from_bytes(whole.to_string()).map_err(|fault| not_a_tokenizer(&path, fault))
}

/// A JSON file's value; none when there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes);
            value.map(Some).map_err(|fault| Error::file(path, format!("is not valid JSON: {fault}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// What `tokenizer_config.json` and `special_tokens_map.json` say.
struct Config {
    config: Value,
    special_tokens_map: Value,
    /// Of `tokenizer.json`; it speaks where the others are silent.
    padding: Option<PaddingParams>,
}

impl Config {
    fn read(folder: &Path, padding: Option<PaddingParams>) -> Result<Config> {
        Ok(Config {
            padding,
            config: read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default(),
            special_tokens_map: read_json(&folder.join("special_tokens_map.json"))?.unwrap_or_default(),
        })
    }

    /// Start, end, padding and unknown, in this order.
    fn special_tokens(&self) -> [AddedToken; 4] {
        let start = self.special_token("bos_token", "<|startoftext|>");
        let end = self.special_token("eos_token", "<|endoftext|>");
        let pads = self.padding.as_ref().map_or("<|endoftext|>", |padding| &padding.pad_token);
        let pad = self.special_token("pad_token", pads);
        [start, end, pad, self.special_token("unk_token", "<|endoftext|>")]
    }

    /// A special token, given as text or as an object with flags. `special_tokens_map.json` has the last word unless the
    /// configuration is of the newer kind with `added_tokens_decoder` (`transformers`, `tokenization_utils_base.py`).
    fn special_token(&self, key: &str, default: &str) -> AddedToken {
        let decoder = self.config.get("added_tokens_decoder").and_then(Value::as_object);
        let sources = match decoder {
            Some(_) => [&self.config, &Value::Null],
            None => [&self.special_tokens_map, &self.config],
        };
        let given = sources.iter().filter_map(|source| source.get(key)).find(|value| !value.is_null());
        let content = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        let name = given.and_then(content).unwrap_or_else(|| default.to_owned());
        let added = decoder.and_then(|tokens| tokens.values().find(|token| content(token).as_ref() == Some(&name)));
        let flag = |flag: &str| added.or(given).and_then(|value| value.get(flag)?.as_bool()).unwrap_or(false);
        AddedToken::from(name, true)
            .normalized(flag("normalized"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .single_word(flag("single_word"))
    }

    /// `model_max_length`, which some files leave at a huge number: CLIP's text encoder has no more than 77 positions.
    fn positions(&self, folder: &Path) -> Result<usize> {
        let fixed = self.padding.as_ref().and_then(|padding| match padding.strategy {
            PaddingStrategy::Fixed(length) => Some(length as f64),
            PaddingStrategy::BatchLongest => None,
        });
        let given = self.config.get("model_max_length").and_then(Value::as_f64).or(fixed);
        let Some(length) = given else { return Ok(POSITIONS) };
        if length < 3.0 {
            let what = format!("model_max_length is {length}, which leaves no room for a word; 77 is usual");
            return Err(Error::file(&folder.join("tokenizer_config.json"), what));
        }
        Ok(length.min(POSITIONS as f64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::{PromptStyle, Template};
    use std::path::PathBuf;

    fn model_folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/atelier/tokenizer")
    }

    /// A folder with copies of some of the default model's files, and others written.
    fn folder_with(copied: &[&str], written: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in copied {
            std::fs::copy(model_folder().join(name), folder.path().join(name)).unwrap();
        }
        for (name, text) in written {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    const PARTS: [&str; 3] = ["vocab.json", "merges.txt", "tokenizer_config.json"];

    #[test]
    fn one_file_says_everything() {
        let pads_with_an_exclamation_mark = r#"{"pad_token": "!", "model_max_length": 20}"#;
        let parts =
            folder_with(&["vocab.json", "merges.txt"], &[("tokenizer_config.json", pads_with_an_exclamation_mark)]);
        let before = Tokenizer::open(parts.path()).unwrap();
        let whole = folder_with(&[], &[("tokenizer.json", &before.to_json().unwrap())]);
        let after = Tokenizer::open(whole.path()).unwrap();
        let told = |t: &Tokenizer| (t.bos(), t.eos(), t.pad(), t.positions());
        assert_eq!(told(&before), told(&after));
        assert_eq!((before.pad(), before.positions()), (before.word("!").unwrap(), 20));
        for text in ["a photo of a Boat, in the style of X-1!", "", "<|endoftext|> caf\u{e9}  \t 12"] {
            assert_eq!(before.encode(text).unwrap(), after.encode(text).unwrap(), "{text:?}");
        }
        assert_eq!(before.to_json().unwrap(), after.to_json().unwrap());
    }

    /// Ids of the reference, -1 and -2 at the places of two styles, and how many were dropped.
    fn expected(case: &Value) -> (Vec<i64>, u64) {
        let ids = case["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        (ids, case["dropped"].as_u64().unwrap())
    }

    fn found(tokenizer: &Tokenizer, text: &str) -> (Vec<i64>, u64) {
        let styles = ["s0", "s1"].map(|name| PromptStyle::learned(name, 1));
        let text = text.replace('{', "{{").replace('}', "}}").replace("<0>", "{s0}").replace("<1>", "{s1}");
        let tokens = Template::parse(&text).unwrap().tokens(tokenizer, &styles).unwrap();
        let mut ids: Vec<i64> = tokens.ids.iter().map(|&id| i64::from(id)).collect();
        for (position, style) in tokens.styles {
            assert_eq!(ids[position], i64::from(crate::prompt::Tokens::STYLE_PLACEHOLDER));
            ids[position] = -1 - style as i64;
        }
        (ids, tokens.dropped as u64)
    }

    /// `tests/reference/tokens.py`: every id equal, from either kind of file, whatever pads.
    #[test]
    fn ids_equal_those_of_transformers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokens.json");
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let bang = [("special_tokens_map.json", r#"{"pad_token": "!"}"#)];
        let whole = Tokenizer::open(model_folder()).unwrap();
        let parts = Tokenizer::open(folder_with(&PARTS, &[]).path()).unwrap();
        let parts_bang = Tokenizer::open(folder_with(&PARTS, &bang).path()).unwrap();
        let whole_bang =
            Tokenizer::open(folder_with(&["tokenizer.json", "tokenizer_config.json"], &bang).path()).unwrap();
        assert!(cases.len() > 30);
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(found(&whole, text), expected(case), "{text:?}, tokenizer.json");
            assert_eq!(found(&parts, text), expected(case), "{text:?}, vocab.json and merges.txt");
            assert_eq!(found(&parts_bang, text), expected(&case["bang"]), "{text:?}, padded with !");
            assert_eq!(found(&whole_bang, text), expected(&case["bang"]), "{text:?}, tokenizer.json padded with !");
        }
    }

    #[test]
    fn special_tokens_may_be_objects_and_the_newer_configuration_wins() {
        let old = r#"{"pad_token": {"content": "!", "lstrip": false, "normalized": true, "rstrip": false, "single_word": false}}"#;
        let folder = folder_with(&PARTS[..2], &[("special_tokens_map.json", old)]);
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (3728, 3729, 0));

        let new = r##"{"added_tokens_decoder": {"2": {"content": "#"}}, "pad_token": "#", "model_max_length": 1e30}"##;
        let both = [("special_tokens_map.json", old), ("tokenizer_config.json", new)];
        let tokenizer = Tokenizer::open(folder_with(&PARTS[..2], &both).path()).unwrap();
        assert_eq!((tokenizer.pad(), tokenizer.positions()), (2, 77));
    }

    #[test]
    fn a_word_is_one_token() {
        let tokenizer = Tokenizer::open(model_folder()).unwrap();
        assert_eq!(tokenizer.encode("painting").unwrap(), [tokenizer.word(" Painting ").unwrap()]);
        for word in ["", "two words", "antidisestablishmentarianism"] {
            assert!(matches!(tokenizer.word(word), Err(Error::Usage(_))), "{word:?}");
        }
    }

    #[test]
    fn bad_files_are_named() {
        let vocabulary = std::fs::read_to_string(model_folder().join("vocab.json")).unwrap();
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case; 9] = [
            (&[], &[], "neither tokenizer.json nor vocab.json"),
            (&[], &[("tokenizer.json", "")], "tokenizer.json"),
            (&[], &[("tokenizer.json", "{}")], "tokenizer.json"),
            (&["vocab.json"], &[], "merges.txt"),
            (&["merges.txt"], &[("vocab.json", "{\"a\": 1")], "vocab.json"),
            (&["vocab.json"], &[("merges.txt", "#version: 0.2\na b c\n")], "line 2"),
            (&PARTS[..2], &[("tokenizer_config.json", r#"{"pad_token": "nothing"}"#)], "\"nothing\""),
            (&PARTS[..2], &[("tokenizer_config.json", r#"{"model_max_length": 2}"#)], "model_max_length is 2"),
            (&[], &[("vocab.json", &vocabulary[..vocabulary.len() / 2]), ("merges.txt", "")], "vocab.json"),
        ];
        for (copied, written, expected) in cases {
            let text = Tokenizer::open(folder_with(copied, written).path()).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
