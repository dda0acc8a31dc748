//! One file of tensors, in safetensors or as torch saves it, whatever its name ends in.

use pleinair::bundle::pickle::{Checkpoint, TensorPlace};
use pleinair::bundle::read_json;
use pleinair::bundle::weights::Weights;
use pleinair::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What Git leaves in place of a large file that was not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// What diffusers calls the weights of a part.
const STEM: &str = "diffusion_pytorch_model";
/// What transformers calls them where they are not safetensors.
const TORCH_STEM: &str = "pytorch_model";

/// An opened file: names and shapes are known, no tensor is loaded.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    format: Format,
}

#[derive(Debug)]
enum Format {
    /// One file or all shards of a part.
    Safetensors(Weights),
    Torch(Checkpoint, BTreeMap<String, TensorPlace>),
}

impl TensorFile {
    /// Opens a file by its contents.
    ///
    /// # Errors
    /// If it is neither of the formats, or damaged.
    pub(crate) fn open(path: &Path) -> Result<TensorFile> {
        let mut start = vec![];
        File::open(path).and_then(|file| file.take(32).read_to_end(&mut start)).map_err(Error::io(path))?;
        let named_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
        let format = if start.starts_with(LFS_POINTER) {
            return Err(Error::file(
                path,
                "only Git LFS's pointer to the file; fetch the file itself with git lfs pull",
            ));
        } else if named_safetensors || start.get(8) == Some(&b'{') {
            Format::Safetensors(Weights::open_file(path)?)
        } else {
            let checkpoint = Checkpoint::open(path)?;
            let tensors = checkpoint.tensors()?;
            Format::Torch(checkpoint, tensors)
        };
        Ok(TensorFile { path: path.to_path_buf(), format })
    }

    /// The weights in the folder of one part: safetensors as [`Weights::open`] finds them, else torch's files.
    ///
    /// # Errors
    /// If there are none, or they are damaged.
    pub(super) fn open_part(place: &Path) -> Result<Vec<TensorFile>> {
        let (folder, part) = (place.parent().unwrap_or(place), place.file_name().unwrap_or_default().to_string_lossy());
        let torch = match has_safetensors(place) {
            true => None,
            false => torch_files(place, TORCH_STEM)?.or(torch_files(place, STEM)?),
        };
        if let Some(files) = torch {
            return files.iter().map(|file| TensorFile::open(file)).collect();
        }
        let stem = if part == "text_encoder" { "model" } else { STEM };
        let format = Format::Safetensors(Weights::open(folder, &part, stem)?);
        Ok(vec![TensorFile { path: place.to_path_buf(), format }])
    }

    /// Whether a folder has weights of any kind.
    pub(super) fn has_weights(place: &Path) -> bool {
        has_safetensors(place) || !matches!(torch_files(place, STEM), Ok(None))
    }

    /// The file, or the folder of its shards.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of its tensors, sorted.
    pub(crate) fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.format {
            Format::Safetensors(weights) => Box::new(weights.headers().map(|header| header.name)),
            Format::Torch(_, tensors) => Box::new(tensors.keys().map(String::as_str)),
        }
    }

    /// A tensor's shape as stored.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.format {
            Format::Safetensors(weights) => weights.shape(name),
            Format::Torch(_, tensors) => tensors.get(name).map(TensorPlace::shape),
        }
    }

    /// An entry of a safetensors header's metadata.
    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        match &self.format {
            Format::Safetensors(weights) => weights.metadata().get(key).map(String::as_str),
            Format::Torch(..) => None,
        }
    }

    /// A tensor's values, row by row.
    ///
    /// # Errors
    /// If there is no such tensor, it holds no floating-point numbers, or the file cannot be read.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>> {
        match &self.format {
            Format::Safetensors(weights) => weights.read_f32(name),
            Format::Torch(checkpoint, tensors) => {
                let missing = || Error::file(&self.path, format!("tensor {name} is missing"));
                let tensor = tensors.get(name).ok_or_else(missing)?;
                checkpoint.read_f32(tensor).map_err(|error| match error {
                    Error::File { path, what } => Error::File { path, what: format!("tensor {name} {what}") },
                    other => other,
                })
            }
        }
    }
}

fn has_safetensors(place: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(place) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "safetensors"))
}

/// `stem[.fp16].bin`, or the shards that `stem.bin.index[.fp16].json` names; none where there are neither.
fn torch_files(place: &Path, stem: &str) -> Result<Option<Vec<PathBuf>>> {
    for variant in ["", ".fp16"] {
        let whole = place.join(format!("{stem}{variant}.bin"));
        if whole.is_file() {
            return Ok(Some(vec![whole]));
        }
        let index = place.join(format!("{stem}.bin.index{variant}.json"));
        if index.is_file() {
            let shards: Value = read_json(&index)?;
            let fault = |what: &str| Error::file(&index, what);
            let map = shards["weight_map"].as_object().ok_or_else(|| fault("no weight_map in it"))?;
            let names = map.values().map(Value::as_str).collect::<Option<BTreeSet<_>>>();
            let names = names.ok_or_else(|| fault("its weight_map does not name files"))?;
            if names.iter().any(|name| name.contains(['/', '\\'])) {
                return Err(fault("a shard that lies outside this folder"));
            }
            return Ok(Some(names.into_iter().map(|name| place.join(name)).collect()));
        }
    }
    Ok(None)
}
