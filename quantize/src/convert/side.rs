//! What goes into a bundle besides its networks and its captioner: VAE, depth estimator, tokenizer, schedule, styles.

use super::Convert;
use crate::folder::write_synced;
use crate::onnx::{self, FileTensors, Storage, VaeKind};
use crate::source::{Part, Source};
use pleinair::bundle::control::Preprocessing;
use pleinair::bundle::manifest::{Dtype, FileEntry, Manifest};
use pleinair::bundle::read_json;
use pleinair::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

impl Convert {
    /// The kind of the source's VAE.
    pub(super) fn vae_kind(&self, source: &Source) -> Result<VaeKind> {
        match source.config(Part::Vae) {
            Some(_) if !source.has(Part::Vae) => {
                let what = "has its VAE as ONNX only; name its weights with --vae";
                Err(Error::file(&self.from, what))
            }
            Some(config) => VaeKind::from_json(config).map_err(|error| in_folder(error, &self.from)),
            None => Err(Error::file(&self.from, "has no VAE; name one with --vae")),
        }
    }

    /// Everything that is not a network on the hot path: VAE, depth, tokenizer, schedule.
    pub(super) fn side_models(&self, source: &Source, folder: &Path, manifest: &mut Manifest) -> Result<()> {
        let mut put = |name: &str, bytes: &[u8]| -> Result<()> {
            let path = folder.join(name);
            write_synced(&path, |file| file.write_all(bytes))?;
            manifest.files.insert(name.to_owned(), FileEntry::of(&path).map_err(Error::io(&path))?);
            Ok(())
        };
        let storage = if manifest.dtype == Dtype::F32 { Storage::F32 } else { Storage::F16 };
        let (vae, mut tensors) = (self.vae_kind(source)?, VaeTensors::new(source));
        let named = |error| in_folder(error, &self.from);
        put("vae_encoder.onnx", &vae.encoder(&mut tensors, storage).map_err(named)?)?;
        put("vae_decoder.onnx", &vae.decoder(&mut tensors, storage).map_err(named)?)?;
        if let Some(tiny) = &self.tiny_vae {
            put("tiny_vae_decoder.onnx", &tiny_decoder(tiny, storage, manifest.unet.config.in_channels)?)?;
        }
        if let Some(depth) = self.own_or(&self.depth, "depth_estimator/model.onnx") {
            onnx::check(&depth, onnx::Kind::Depth)?;
            put("depth.onnx", &std::fs::read(&depth).map_err(Error::io(&depth))?)?;
        }
        if let Some(lineart) = self.own_or(&self.lineart, "lineart/model.onnx") {
            onnx::check(&lineart, onnx::Kind::LineArt)?;
            put("lineart.onnx", &std::fs::read(&lineart).map_err(Error::io(&lineart))?)?;
        }
        put("tokenizer.json", source.tokenizer().open()?.to_json()?.as_bytes())?;
        let schedule = serde_json::to_vec_pretty(&plain(source.scheduler())).expect("JSON can be written as JSON");
        put("scheduler.json", &schedule)?;
        for style in self.styles()? {
            let name = format!("styles/{}", style.file_name().unwrap_or_default().to_string_lossy());
            put(&name, &std::fs::read(&style).map_err(Error::io(&style))?)?;
        }
        manifest.vae.parameters = tensors.parameters;
        Ok(())
    }

    /// The file that was named, or else the folder's own.
    fn own_or(&self, named: &Option<PathBuf>, own: &str) -> Option<PathBuf> {
        named.clone().or_else(|| Some(self.from.join(own)).filter(|path| path.is_file()))
    }

    /// What the depth estimator wants to be shown, by the files beside it.
    pub(super) fn depth_preprocessing(&self) -> Result<Option<Preprocessing>> {
        let depth = self.own_or(&self.depth, "depth_estimator/model.onnx");
        let folder = depth.as_deref().and_then(Path::parent);
        folder.map(Preprocessing::of_folder).transpose()
    }

    /// The styles that come with a model folder; they were learned for its text encoder, which stays the same.
    fn styles(&self) -> Result<Vec<PathBuf>> {
        let folder = self.from.join("styles");
        if !folder.is_dir() {
            return Ok(vec![]);
        }
        let entries = folder.read_dir().map_err(Error::io(&folder))?;
        let paths: Vec<_> =
            entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(Error::io(&folder))?;
        let mut styles: Vec<_> =
            paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
        styles.sort();
        Ok(styles)
    }
}

/// A VAE's tensors for the ONNX writer.
struct VaeTensors<'a> {
    source: &'a Source,
    /// Values read so far.
    parameters: u64,
}

impl<'a> VaeTensors<'a> {
    fn new(source: &'a Source) -> Self {
        VaeTensors { source, parameters: 0 }
    }
}

impl onnx::Tensors for VaeTensors<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(Part::Vae, name)
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let values = self.source.read(Part::Vae, name)?;
        self.parameters += values.len() as u64;
        debug_assert_eq!(values.len(), shape.iter().product::<usize>());
        Ok(values)
    }
}

/// The decoder of an AutoencoderTiny, for latents as the UNet has them.
fn tiny_decoder(from: &Path, storage: Storage, latent_channels: usize) -> Result<Vec<u8>> {
    if from.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
        onnx::check(from, onnx::Kind::Decoder { latent_channels })?;
        return std::fs::read(from).map_err(Error::io(from));
    }
    // a file alone has the configuration that diffusers gives the class
    let (mut tensors, config) = match from.is_dir() {
        true => (FileTensors::open(from)?, read_json(&from.join("config.json"))?),
        false => (FileTensors::open(from)?, json!({"_class_name": "AutoencoderTiny"})),
    };
    let kind = VaeKind::from_json(&config).map_err(|error| in_folder(error, from))?;
    let VaeKind::Tiny(_) = &kind else {
        return Err(Error::file(from, "is not an AutoencoderTiny; name one, or give the whole VAE with --vae"));
    };
    if kind.latent_channels() != latent_channels || kind.scaling_factor() != 1.0 {
        let (channels, scale) = (kind.latent_channels(), kind.scaling_factor());
        let what =
            format!("takes latents of {channels} channels scaled by {scale}, the UNet's have {latent_channels} and 1");
        return Err(Error::file(from, what));
    }
    kind.decoder(&mut tensors, storage).map_err(|error| in_folder(error, from))
}

/// The error with the place that it is about.
fn in_folder(error: Error, folder: &Path) -> Error {
    match error {
        Error::Model { problems, .. } => Error::Model { folder: folder.to_path_buf(), problems },
        other => other,
    }
}

/// A configuration without the notes of the library that wrote it and without keys that say nothing, in the order of the
/// alphabet: the same for everyone who means the same.
fn plain(config: &Value) -> BTreeMap<&String, &Value> {
    let says = |(key, value): &(&String, &Value)| !key.starts_with('_') && !value.is_null();
    config.as_object().into_iter().flatten().filter(says).collect()
}
