//! The words of the text encoder: a folder's, or CLIP's own, which every Stable Diffusion 1.x model has and which a
//! single file does not carry.

use crate::configs::Model;
use pleinair::prompt::Tokenizer;
use pleinair::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// CLIP's merges in the order they were learned (`models/clip/README.md`).
const MERGES: &str = include_str!("../../../models/clip/merges.txt");
/// The files that make up a tokenizer folder, whichever of them there are.
const FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// Where the words come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vocabulary {
    /// A tokenizer folder, as [`Tokenizer::open`] reads it.
    Folder(PathBuf),
    /// CLIP's 49,408 entries.
    Clip,
}

impl Vocabulary {
    /// Opens it.
    ///
    /// # Errors
    /// If the folder is not a tokenizer's, or there is no room for temporary files.
    pub fn open(&self) -> Result<Tokenizer> {
        match self {
            Vocabulary::Folder(folder) => Tokenizer::open(folder),
            Vocabulary::Clip => {
                let folder = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir()))?;
                for (name, contents) in self.files()? {
                    let path = folder.path().join(name);
                    std::fs::write(&path, contents).map_err(Error::io(&path))?;
                }
                Tokenizer::open(folder.path())
            }
        }
    }

    /// Name and contents of the files of a tokenizer folder with these words.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        match self {
            Vocabulary::Folder(folder) => {
                let there = FILES.into_iter().filter(|name| folder.join(name).is_file());
                let read = |name: &str| std::fs::read(folder.join(name)).map_err(Error::io(&folder.join(name)));
                there.map(|name| Ok((name, read(name)?))).collect()
            }
            Vocabulary::Clip => {
                let mut files = vec![("vocab.json", json(&vocabulary())), ("merges.txt", MERGES.as_bytes().to_vec())];
                for (path, value) in Model::Sd15.files() {
                    let name = FILES.into_iter().find(|name| path.strip_prefix("tokenizer/") == Some(name));
                    files.extend(name.map(|name| (name, json(&value))));
                }
                Ok(files)
            }
        }
    }

    /// That it can be the vocabulary of a text encoder with that many words.
    pub(super) fn check(&self, words: usize) -> Result<()> {
        match self {
            Vocabulary::Clip if words != Model::Sd15.words() => Err(Error::Usage(format!(
                "the text encoder has {words} words, CLIP's vocabulary {}; name the model's tokenizer folder with \
                 --tokenizer",
                Model::Sd15.words()
            ))),
            Vocabulary::Folder(folder) if !holds_words(folder) => Err(Error::file(
                folder,
                "no tokenizer.json and no vocab.json here; name a tokenizer folder with --tokenizer",
            )),
            _ => Ok(()),
        }
    }
}

fn holds_words(folder: &Path) -> bool {
    ["tokenizer.json", "vocab.json"].iter().any(|name| folder.join(name).is_file())
}

fn json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value can be written")
}

/// `vocab.json`: the 256 bytes, the 256 bytes that end a word, what each merge gives, start and end of a text
/// (`simple_tokenizer.py` of CLIP).
fn vocabulary() -> Value {
    let bytes = byte_characters();
    let singles = bytes.iter().map(char::to_string);
    let ending = bytes.iter().map(|character| format!("{character}</w>"));
    let merged = MERGES.lines().skip(1).map(|pair| pair.replacen(' ', "", 1));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    let words = singles.chain(ending).chain(merged).chain(special);
    let ids = words.enumerate().map(|(id, word)| (word, Value::from(id)));
    Value::Object(ids.collect::<Map<_, _>>())
}

/// A visible character for each byte, the visible ones first, as GPT-2 introduced it.
fn byte_characters() -> Vec<char> {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let visible = (0..=255).filter(|&byte| is_visible(byte)).map(char::from);
    let hidden = (0..=255).filter(|&byte| !is_visible(byte)).count() as u32;
    visible.chain((256..256 + hidden).filter_map(char::from_u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_has_every_entry_once() {
        let vocabulary = vocabulary();
        let words = vocabulary.as_object().unwrap();
        assert_eq!(words.len(), 49_408);
        for (word, id) in [
            ("!", 0),
            ("\u{100}", 188),
            ("!</w>", 256),
            ("in", 512),
            ("<|startoftext|>", 49_406),
            ("<|endoftext|>", 49_407),
        ] {
            assert_eq!(words[word], id, "{word}");
        }
    }
}
