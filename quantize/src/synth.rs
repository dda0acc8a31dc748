//! `synth`: a diffusers folder with seeded random weights, for measuring speed and memory where the real model cannot
//! be had. Tensor by tensor, so that a model larger than memory can be made; the folder appears only when it is complete.

use crate::configs::Model;
use crate::folder::{NewFolder, make_folder, write_json, write_synced};
use crate::onnx::{FileTensors, Storage, VaeKind};
use crate::tensors::{self, Role, TensorSpec};
use crate::writer::{self, Entry};
use pleinair::sampler::TorchRng;
use pleinair::{Error, Result};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Values drawn and written at once; a multiple of the 16 that the generator deals in.
const CHUNK: usize = 1 << 16;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// 4 bytes a weight
    F32,
    /// 2 bytes a weight
    F16,
}

impl Dtype {
    fn safetensors(self) -> safetensors::Dtype {
        match self {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
        }
    }

    fn onnx(self) -> Storage {
        match self {
            Dtype::F32 => Storage::F32,
            Dtype::F16 => Storage::F16,
        }
    }

    fn append(self, value: f32, bytes: &mut Vec<u8>) {
        match self {
            Dtype::F32 => bytes.extend(value.to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
        }
    }
}

/// What to make and where.
#[derive(Debug, Clone, clap::Args)]
pub struct Synth {
    /// The model whose shape it gets
    #[arg(value_enum)]
    pub model: Model,
    /// Seed of the weights; the same seed gives the same files
    #[arg(long, value_name = "N")]
    pub seed: u32,
    /// How the weights are stored
    #[arg(long, value_enum, default_value = "f16")]
    pub dtype: Dtype,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace the model folder that is there
    #[arg(long)]
    pub force: bool,
}

/// One part that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its folder's name.
    pub part: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values in them.
    pub parameters: usize,
    /// Bytes of its weight file.
    pub bytes: u64,
}

impl Synth {
    /// Makes the folder; `interrupted` ends the work within milliseconds.
    ///
    /// # Errors
    /// [`Error::Usage`] if the folder exists (with `force`: if it is not a model folder), [`Error::Io`] if the disk is
    /// full or the place cannot be written, [`Error::Interrupted`]. Nothing is left behind and an old folder is as it was.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Vec<Written>> {
        let folder = NewFolder::begin(&self.out, self.force)?;
        let mut rng = TorchRng::new(self.seed.into());
        let mut written = vec![];
        for (part, file, tensors) in self.parts() {
            make_folder(&folder.path().join(part))?;
            let path = folder.path().join(part).join(file);
            let bytes = write_weights(&path, &tensors, self.dtype, &mut rng, interrupted)?;
            let parameters = tensors.iter().map(TensorSpec::parameters).sum();
            written.push(Written { part, tensors: tensors.len(), parameters, bytes });
        }
        for (path, value) in self.model.files() {
            write_json(&folder.path().join(path), &value)?;
        }
        self.write_onnx(&folder.path().join("vae"))?;
        write_json(&folder.path().join("tokenizer/vocab.json"), &vocabulary(self.model.words()))?;
        write_synced(&folder.path().join("tokenizer/merges.txt"), |file| file.write_all(b"#version: 0.2\n"))?;
        folder.finish()?;
        Ok(written)
    }

    /// The VAE in the form in which it runs.
    fn write_onnx(&self, folder: &Path) -> Result<()> {
        let (vae, storage) = (VaeKind::Kl(self.model.vae()), self.dtype.onnx());
        let mut tensors = FileTensors::open(folder)?;
        for (name, bytes) in [
            ("encoder.onnx", vae.encoder(&mut tensors, storage)?),
            ("decoder.onnx", vae.decoder(&mut tensors, storage)?),
        ] {
            write_synced(&folder.join(name), |file| file.write_all(&bytes))?;
        }
        Ok(())
    }

    fn parts(&self) -> [(&'static str, &'static str, Vec<TensorSpec>); 4] {
        let unet = self.model.unet();
        let controlnet = tensors::controlnet(&self.model.controlnet(), &unet);
        [
            ("text_encoder", "model.safetensors", tensors::text_encoder(&self.model.text_encoder())),
            ("unet", "diffusion_pytorch_model.safetensors", tensors::unet(&unet)),
            ("controlnet", "diffusion_pytorch_model.safetensors", controlnet),
            ("vae", "diffusion_pytorch_model.safetensors", tensors::vae(&self.model.vae())),
        ]
    }
}

/// Draws the tensors one after the other into a safetensors file; returns its length.
fn write_weights(
    path: &Path,
    tensors: &[TensorSpec],
    dtype: Dtype,
    rng: &mut TorchRng,
    interrupted: &AtomicBool,
) -> Result<u64> {
    let entry = |tensor: &TensorSpec| Entry {
        name: tensor.name.clone(),
        dtype: dtype.safetensors(),
        shape: tensor.shape.clone(),
    };
    let entries: Vec<_> = tensors.iter().map(entry).collect();
    let (mut next, mut bytes) = (tensors.iter(), Vec::with_capacity(4 * CHUNK));
    let written = writer::write(path, &entries, |_, sink| {
        let tensor = next.next().expect("an entry for each tensor");
        for start in (0..tensor.parameters()).step_by(CHUNK) {
            if interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            bytes.clear();
            let values = draw(tensor, CHUNK.min(tensor.parameters() - start), rng)?;
            values.into_iter().for_each(|value| dtype.append(value, &mut bytes));
            sink(&bytes)?;
        }
        Ok(())
    })?;
    Ok(written.bytes)
}

/// The next `count` values of a tensor. Every layer keeps the spread of its input and normalisations do little, so
/// activations stay sane through the whole depth.
fn draw(tensor: &TensorSpec, count: usize, rng: &mut TorchRng) -> Result<Vec<f32>> {
    let (mean, deviation) = match tensor.role {
        Role::Weight => (0.0, 1.0 / (tensor.fan_in() as f32).sqrt()),
        Role::NormScale => (1.0, 0.1),
        Role::Bias | Role::Table => (0.0, 0.02), // CLIP's own initialisation of its word table
    };
    let normals = rng.randn(count)?.to_vec1::<f32>()?;
    Ok(normals.into_iter().map(|normal| mean + deviation * normal).collect())
}

/// A vocabulary in the order of CLIP's: the 256 bytes, the same at a word's end, what would be merged (here words that
/// no text contains), start and end of a text.
fn vocabulary(words: usize) -> Value {
    let bytes = byte_letters();
    let at_the_end = bytes.iter().map(|letter| format!("{letter}</w>"));
    let mut entries: Vec<String> = bytes.iter().map(char::to_string).chain(at_the_end).collect();
    let specials = ["<|startoftext|>", "<|endoftext|>"];
    let unused = entries.len()..words - specials.len();
    entries.extend(unused.map(|id| format!("<|unused {id}|>")));
    entries.extend(specials.map(str::to_owned));
    entries.into_iter().enumerate().map(|(id, entry)| (entry, Value::from(id))).collect::<Map<_, _>>().into()
}

/// The letters that byte-level vocabularies write for bytes (GPT-2's `bytes_to_unicode`): printable ones for
/// themselves, then the rest as the letters from U+0100 on.
fn byte_letters() -> Vec<char> {
    let printable = (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF);
    let rest = 256 - printable.clone().count();
    printable.map(char::from).chain((0x100..).map_while(char::from_u32).take(rest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_vocabulary_has_every_byte_once_and_the_size_asked_for() {
        let letters: BTreeSet<char> = byte_letters().into_iter().collect();
        assert_eq!(letters.len(), 256);
        // Ġ, the blank, and Ń, the soft hyphen, are the best-known letters and the last of the rest.
        assert!(letters.contains(&'\u{120}') && letters.contains(&'\u{143}') && !letters.contains(&'\u{144}'));
        for model in [Model::Sd15, Model::Tiny] {
            let vocabulary = vocabulary(model.words());
            let ids: BTreeSet<u64> = vocabulary.as_object().unwrap().values().map(|id| id.as_u64().unwrap()).collect();
            assert_eq!((ids.len(), ids.last()), (model.words(), Some(&(model.words() as u64 - 1))));
            assert_eq!(
                (&vocabulary["!"], &vocabulary["a"], &vocabulary["!</w>"]),
                (&0.into(), &64.into(), &256.into())
            );
        }
        assert_eq!(vocabulary(49408)["<|startoftext|>"], 49406);
        assert_eq!(vocabulary(49408)["<|endoftext|>"], 49407);
    }

    #[test]
    fn values_follow_their_role() {
        let spec = |role, shape: &[usize]| TensorSpec { name: "x".into(), shape: shape.to_vec(), role };
        let cases = [
            (spec(Role::Weight, &[1000, 4, 5, 5]), 0.0, 0.1),
            (spec(Role::NormScale, &[100_000]), 1.0, 0.1),
            (spec(Role::Bias, &[100_000]), 0.0, 0.02),
            (spec(Role::Table, &[1000, 100]), 0.0, 0.02),
        ];
        for (tensor, mean, deviation) in cases {
            let values = draw(&tensor, 100_000, &mut TorchRng::new(3)).unwrap();
            let found = values.iter().sum::<f32>() / values.len() as f32;
            let variance = values.iter().map(|v| (v - found).powi(2)).sum::<f32>() / values.len() as f32;
            // The standard errors are deviation/316 and deviation/447; five of them are never met by chance.
            assert!((found - mean).abs() <= 0.016 * deviation, "{:?}: mean {found}", tensor.role);
            assert!((variance.sqrt() - deviation).abs() <= 0.012 * deviation, "{:?}: {}", tensor.role, variance.sqrt());
        }
    }
}
