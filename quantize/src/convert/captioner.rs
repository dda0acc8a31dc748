//! The captioner that goes into a bundle: matrices and convolutions in f16 as the VAE's, the rest as it is.

use super::Convert;
use crate::folder::write_synced;
use crate::network::in_pieces;
use crate::source::TensorFile;
use crate::writer::{self, Entry};
use pleinair::bundle::manifest::{Dtype, FileEntry, Manifest};
use pleinair::side::captioner::{self, Captioner};
use pleinair::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What lies beside the weights, as transformers calls it; some have the one, some the other.
const BESIDE: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

impl Convert {
    /// Where the captioner comes from: the folder that was named, or else the model's own.
    fn captioner_folder(&self) -> Option<PathBuf> {
        let own = || captioner::is_in(&self.from).then(|| self.from.join(captioner::FOLDER));
        self.captioner.clone().or_else(own)
    }

    /// Writes the captioner's files and lists them; nothing where there is none.
    ///
    /// # Errors
    /// As [`Captioner::open`], of the source: what cannot be opened does not go into a bundle. [`Error::Usage`] for
    /// weights beyond f16.
    pub(super) fn captioner(&self, folder: &Path, manifest: &mut Manifest, interrupted: &AtomicBool) -> Result<()> {
        let Some(from) = self.captioner_folder() else { return Ok(()) };
        drop(Captioner::open(&from)?);
        let to = folder.join(captioner::FOLDER);
        let mut list = |name: &str, entry: FileEntry| {
            manifest.files.insert(format!("{}/{name}", captioner::FOLDER), entry);
        };
        let weights = captioner::weights_file(&from);
        list(captioner::WEIGHTS, write_weights(&weights, &to.join(captioner::WEIGHTS), manifest.dtype, interrupted)?);
        for name in BESIDE.into_iter().filter(|name| from.join(name).is_file()) {
            let (from, to) = (from.join(name), to.join(name));
            let contents = std::fs::read(&from).map_err(Error::io(&from))?;
            write_synced(&to, |file| file.write_all(&contents))?;
            list(name, FileEntry::of(&to).map_err(Error::io(&to))?);
        }
        Ok(())
    }
}

/// Tensor by tensor, so that it takes the memory of one.
fn write_weights(from: &Path, to: &Path, asked: Dtype, interrupted: &AtomicBool) -> Result<FileEntry> {
    let source = TensorFile::open(from)?;
    // buffers that count positions are no weights
    let names = source.names().filter(|name| !name.ends_with("position_ids"));
    let entry = |name: &str| {
        let shape = source.shape(name).unwrap_or_default().to_vec();
        let half = asked != Dtype::F32 && shape.len() > 1;
        let dtype = if half { safetensors::Dtype::F16 } else { safetensors::Dtype::F32 };
        Entry { name: name.to_owned(), dtype, shape }
    };
    let entries = writer::in_file_order(names.map(entry).collect());
    writer::write(to, &entries, |entry, sink| {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let values = source.read(&entry.name)?;
        if entry.dtype == safetensors::Dtype::F32 {
            return in_pieces(&values, f32::to_le_bytes, sink);
        }
        if !values.iter().all(|value| half::f16::from_f32(*value).is_finite()) {
            let name = &entry.name;
            let what = format!("the captioner's {name} has values beyond f16's 65504; convert with --dtype f32");
            return Err(Error::Usage(what));
        }
        in_pieces(&values, |value| half::f16::from_f32(value).to_le_bytes(), sink)
    })
}
