//! A model on disk. Opens a bundle, whose `bundle.json` describes every part and whose weights are used where they lie,
//! or a plain diffusers folder: `model_index.json` names the parts, each part's `config.json` decides its shape,
//! safetensors hold the weights; a VAE may be ONNX as well.

pub mod config;
pub mod control;
pub mod manifest;
mod onnx;
pub mod part;
pub mod pickle;
pub(crate) mod values;
pub mod weights;
pub mod write;

use crate::{Error, Result, Target};
use config::{ModelIndex, TextConfig, UnetConfig, VaeConfig};
use control::{Control, ControlNetPart, Preprocessing};
use manifest::{Dtype, Manifest};
use pleinair_cpu::MappedFile;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use weights::{Probe, Weights};

/// An opened model folder: every configuration read and checked, no weight loaded yet.
#[derive(Debug)]
pub struct Bundle {
    folder: PathBuf,
    /// UNet configuration.
    pub unet: UnetConfig,
    /// Text encoder configuration.
    pub text: TextConfig,
    /// VAE configuration.
    pub vae: VaeConfig,
    /// The ControlNets, one for each thing they look at; the first is the model's own.
    pub controlnets: Vec<ControlNetPart>,
    /// The manifest, where the folder is a bundle.
    pub manifest: Option<Manifest>,
    probe: Option<Arc<dyn Probe>>,
    target: Target,
    /// The files whose weights are used where they lie, by part, for as long as a network uses them.
    maps: Mutex<Vec<(String, Weak<MappedFile>)>>,
}

/// The ONNX files of the VAE.
#[derive(Debug, Clone)]
pub struct VaeFiles {
    /// Picture to moments.
    pub encoder: PathBuf,
    /// Latent to picture.
    pub decoder: PathBuf,
}

/// A half of the VAE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VaeHalf {
    /// Picture to moments.
    Encoder,
    /// Latent to picture.
    Decoder,
}

/// Weights of a half of an `AutoencoderKL`, or of both, and what they do not tell themselves.
#[derive(Debug)]
pub struct VaeWeights {
    /// By diffusers' names.
    pub tensors: Weights,
    /// Groups of each GroupNorm.
    pub norm_num_groups: usize,
}

impl Bundle {
    /// Opens a bundle, comparing every file with its checksum, or a diffusers folder.
    ///
    /// # Errors
    /// If the folder is neither, if a file of the bundle was changed, or if it describes a network that this program does
    /// not run; every such file and key is named.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(folder, "there is no such model folder; name one with --bundle"));
        }
        if !folder.join(manifest::FILE_NAME).is_file() {
            return Self::open_diffusers(folder)?.checked();
        }
        let manifest = Manifest::read(folder)?;
        manifest.verify(folder)?;
        Self::describe(folder, manifest)
    }

    /// The bundle that a manifest describes, wherever its files are; they are not looked at.
    ///
    /// # Errors
    /// If it describes a network that this program does not run; every such key is named.
    pub fn describe(folder: &Path, manifest: Manifest) -> Result<Self> {
        let bundle = Bundle {
            unet: manifest.unet.config.clone(),
            text: manifest.text_encoder.config.clone(),
            vae: manifest.vae.config.clone(),
            controlnets: manifest
                .all_controlnets()
                .map(|(part, control, net)| ControlNetPart {
                    control,
                    part: part.to_owned(),
                    config: net.config.clone(),
                })
                .collect(),
            manifest: Some(manifest),
            probe: None,
            target: Target::default(),
            maps: Mutex::default(),
            folder: folder.to_path_buf(),
        };
        bundle.checked()
    }

    /// Itself, if nothing is wrong with its configurations.
    fn checked(self) -> Result<Self> {
        let problems = self.problems();
        if problems.is_empty() { Ok(self) } else { Err(Error::Model { folder: self.folder, problems }) }
    }

    fn open_diffusers(folder: &Path) -> Result<Self> {
        let index: ModelIndex = read_json(&folder.join("model_index.json"))?;
        index.check(folder)?;
        Ok(Bundle {
            unet: read_json(&folder.join("unet/config.json"))?,
            text: read_json(&folder.join("text_encoder/config.json"))?,
            vae: read_json(&folder.join("vae/config.json"))?,
            controlnets: control::controlnets_of_folder(folder)?,
            manifest: None,
            probe: None,
            target: Target::default(),
            maps: Mutex::default(),
            folder: folder.to_path_buf(),
        })
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.unet.problems();
        problems.extend(self.text.problems());
        let vae = self.vae.problems();
        for net in self.controlnets.iter().filter(|_| vae.is_empty()) {
            let found = net.config.problems(&self.unet, self.factor());
            // configurations name their faults by the class; the folder may have more of it
            problems.extend(found.iter().map(|problem| problem.replacen("controlnet", &net.part, 1)));
        }
        if let Some(depth) = self.manifest.as_ref().and_then(|manifest| manifest.depth.as_ref()) {
            problems.extend(depth.problems().iter().map(|problem| format!("depth: {problem}")));
        }
        let mut kinds: Vec<_> = self.controlnets.iter().map(|net| net.control).collect();
        kinds.sort();
        if let Some(twice) = kinds.windows(2).find(|pair| pair[0] == pair[1]) {
            problems.push(format!("controlnet: two look at {} pictures", twice[0]));
        }
        problems.extend(vae);
        let (sees, gives) = (self.unet.cross_attention_dim, self.text.hidden_size);
        if sees != gives {
            problems.push(format!("unet: cross_attention_dim is {sees}, but the text encoder gives {gives} channels"));
        }
        if self.vae.latent_channels != self.unet.in_channels {
            problems.push(format!(
                "vae: latent_channels {} against the UNet's {}",
                self.vae.latent_channels, self.unet.in_channels
            ));
        }
        problems
    }

    /// Whether there is a bundle or a diffusers folder at `folder`, as far as the names of its files tell.
    pub fn is_at(folder: &Path) -> bool {
        [manifest::FILE_NAME, "model_index.json"].iter().any(|file| folder.join(file).is_file())
    }

    /// Values in the networks' parts, as the manifest of a bundle counts them: its files hold padding and scales as well.
    pub fn parameters(&self, part: &str) -> Option<u64> {
        let manifest = self.manifest.as_ref()?;
        match part {
            "unet" => Some(manifest.unet.parameters),
            "text_encoder" => Some(manifest.text_encoder.parameters),
            other => manifest.all_controlnets().find(|(part, ..)| *part == other).map(|(.., net)| net.parameters),
        }
    }

    /// The ControlNet that looks at pictures of this kind.
    pub fn controlnet(&self, control: Control) -> Option<&ControlNetPart> {
        self.controlnets.iter().find(|net| net.control == control)
    }

    /// Whether this program can make a control picture of this kind of a photograph: a depth map or a line drawing takes
    /// a network that comes with the model.
    pub fn can_draw(&self, control: Control) -> bool {
        match control {
            Control::SoftEdge | Control::Canny => true,
            Control::Depth => self.depth_estimator().is_some(),
            Control::LineArt => self.line_drawer().is_some(),
        }
    }

    /// The depth estimator, where there is one: `depth.onnx`, or `depth_estimator/model.onnx` in a diffusers folder.
    pub fn depth_estimator(&self) -> Option<PathBuf> {
        self.side_network("depth.onnx", "depth_estimator/model.onnx")
    }

    /// What the depth estimator wants to be shown.
    ///
    /// # Errors
    /// As [`Preprocessing::of_folder`].
    pub fn depth_preprocessing(&self) -> Result<Preprocessing> {
        match &self.manifest {
            Some(manifest) => Ok(manifest.depth.clone().unwrap_or_default()),
            None => Preprocessing::of_folder(&self.folder.join("depth_estimator")),
        }
    }

    /// The network that draws lines, where there is one: `lineart.onnx`, or `lineart/model.onnx` in a diffusers folder.
    pub fn line_drawer(&self) -> Option<PathBuf> {
        self.side_network("lineart.onnx", "lineart/model.onnx")
    }

    fn side_network(&self, in_bundle: &str, in_folder: &str) -> Option<PathBuf> {
        match &self.manifest {
            Some(manifest) => manifest.files.contains_key(in_bundle).then(|| self.folder.join(in_bundle)),
            None => Some(self.folder.join(in_folder)).filter(|path| path.is_file()),
        }
    }

    /// The folder's own name, for people and metadata: never the path to it.
    pub fn name(&self) -> String {
        folder_name(&self.folder)
    }

    /// The folder it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The tokenizer's folder.
    pub fn tokenizer(&self) -> PathBuf {
        match self.manifest {
            Some(_) => self.folder.clone(),
            None => self.folder.join("tokenizer"),
        }
    }

    /// `scheduler_config.json`.
    pub fn scheduler(&self) -> PathBuf {
        self.folder.join(match self.manifest {
            Some(_) => "scheduler.json",
            None => "scheduler/scheduler_config.json",
        })
    }

    /// Weights of one part: `unet`, `text_encoder` or a ControlNet's [`ControlNetPart::part`].
    ///
    /// # Errors
    /// If the files are missing or their headers damaged.
    pub fn weights(&self, part: &str) -> Result<Weights> {
        let weights = match self.manifest {
            Some(_) => Weights::map(&self.folder, part)?,
            None if part == "text_encoder" => Weights::open(&self.folder, part, "model")?,
            None => Weights::open(&self.folder, part, "diffusion_pytorch_model")?,
        };
        if let Some(map) = weights.mapped_file() {
            let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
            maps.retain(|(_, map)| map.strong_count() > 0);
            maps.push((part.to_owned(), Arc::downgrade(map)));
        }
        Ok(weights.probed(self.probe.clone()).on(&self.target))
    }

    /// Lets the system have the memory of a part's weights that are used where they lie, until they are used again: parts
    /// that work one after the other then need not fit into memory together.
    pub fn release(&self, part: &str) {
        if !self.target.is_cpu() {
            return; // a GPU has copies, or reads the very pages
        }
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        for map in maps.iter().filter(|(name, _)| name == part).filter_map(|(_, map)| map.upgrade()) {
            // what the system refuses it can still take back by itself
            let _ = map.release();
        }
    }

    /// The same model, to be run on this target.
    pub fn on(self, target: Target) -> Self {
        Bundle { target, ..self }
    }

    /// Where its networks run.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The same model, every product of which `probe` sees once it is loaded.
    pub fn probed(self, probe: Arc<dyn Probe>) -> Self {
        Bundle { probe: Some(probe), ..self }
    }

    /// The weights of half of the VAE, where it is an `AutoencoderKL` whose tensors are known by name: a diffusers
    /// folder's, or those inside a bundle's ONNX files. None where only ONNX from elsewhere, or of another network, can
    /// be run. A bundle whose networks are int8 or bf16 has its VAE multiplied in bf16.
    ///
    /// # Errors
    /// If the file is damaged, or has tensors only that this program does not run.
    pub fn vae_weights(&self, half: VaeHalf) -> Result<Option<VaeWeights>> {
        let found = match &self.manifest {
            Some(manifest) => self.vae_weights_of_bundle(manifest, half)?,
            None => self.vae_weights_of_folder()?,
        };
        Ok(found.map(|found| VaeWeights { tensors: found.tensors.on(&self.target), ..found }))
    }

    fn vae_weights_of_bundle(&self, manifest: &Manifest, half: VaeHalf) -> Result<Option<VaeWeights>> {
        if manifest.vae.kind != "AutoencoderKL" {
            return Ok(None);
        }
        let (file, norm) = match half {
            VaeHalf::Encoder => ("vae_encoder.onnx", "encoder.conv_norm_out.ones"),
            VaeHalf::Decoder => ("vae_decoder.onnx", "decoder.conv_norm_out.ones"),
        };
        let Some(tensors) = onnx::read(&self.folder.join(file))? else { return Ok(None) };
        // the standard deviations' factor in the graph, one for each group
        let norm_num_groups = tensors.shape(norm).map_or(0, |shape| shape.iter().product());
        let bf16 = matches!(manifest.dtype, Dtype::Int8 | Dtype::Bf16);
        Ok(Some(VaeWeights { tensors: tensors.in_bf16(bf16), norm_num_groups }))
    }

    fn vae_weights_of_folder(&self) -> Result<Option<VaeWeights>> {
        let stem = "diffusion_pytorch_model";
        if !self.vae.is_kl() || weights::files(&self.folder.join("vae"), stem).is_err() {
            return Ok(None);
        }
        let problems = self.vae.kl_problems();
        match problems.is_empty() {
            true => {
                let tensors = Weights::open(&self.folder, "vae", stem)?;
                Ok(Some(VaeWeights { tensors, norm_num_groups: self.vae.norm_num_groups }))
            }
            false if self.vae_files().is_ok() => Ok(None),
            false => Err(Error::Model { folder: self.folder.clone(), problems }),
        }
    }

    /// Numbers in both halves of the VAE, as far as the size of its files tells.
    ///
    /// # Errors
    /// If a file is missing.
    pub fn vae_parameters(&self) -> Result<u64> {
        let stem = "diffusion_pytorch_model";
        if self.manifest.is_none() && weights::files(&self.folder.join("vae"), stem).is_ok() {
            return Ok(Weights::open(&self.folder, "vae", stem)?.parameters() as u64);
        }
        let VaeFiles { encoder, decoder } = self.vae_files()?;
        let length = |path: &Path| -> Result<u64> { Ok(std::fs::metadata(path).map_err(Error::io(path))?.len()) };
        let width = if self.manifest.as_ref().is_some_and(|m| m.dtype != Dtype::F32) { 2 } else { 4 };
        Ok((length(&encoder)? + length(&decoder)?) / width)
    }

    /// The VAE's ONNX files: a bundle's, or in a diffusers folder as this project writes them (`vae/encoder.onnx`) or as
    /// ONNX exporters of Stable Diffusion do (`vae_encoder/model.onnx`).
    ///
    /// # Errors
    /// If there are none; the message says how to make them.
    pub fn vae_files(&self) -> Result<VaeFiles> {
        for (encoder, decoder) in [
            ("vae_encoder.onnx", "vae_decoder.onnx"),
            ("vae/encoder.onnx", "vae/decoder.onnx"),
            ("vae_encoder/model.onnx", "vae_decoder/model.onnx"),
        ] {
            let files = VaeFiles { encoder: self.folder.join(encoder), decoder: self.folder.join(decoder) };
            if files.encoder.is_file() && files.decoder.is_file() {
                return Ok(files);
            }
        }
        Err(Error::file(
            &self.folder.join("vae"),
            "no diffusion_pytorch_model.safetensors of an AutoencoderKL, and no encoder.onnx and decoder.onnx here; \
             pleinair-quantize convert makes a bundle that has them",
        ))
    }

    /// A small decoder for previews, where the bundle has one. It takes latents as the UNet has them.
    pub fn tiny_decoder(&self) -> Option<PathBuf> {
        let listed = self.manifest.as_ref().is_some_and(|m| m.files.contains_key("tiny_vae_decoder.onnx"));
        listed.then(|| self.folder.join("tiny_vae_decoder.onnx"))
    }

    /// Pixels a side of one latent cell.
    pub fn factor(&self) -> usize {
        1 << (self.vae.block_out_channels.len() - 1)
    }

    /// Width and height of a picture must be multiples of this many pixels: the VAE's factor times the UNet's halvings.
    pub fn size_step(&self) -> usize {
        self.factor() << (self.unet.block_out_channels.len() - 1)
    }

    /// Side of the square pictures the model was trained with, in pixels.
    pub fn native_size(&self) -> usize {
        self.unet.sample_size * self.factor()
    }

    /// The size nearest to `width` x `height` pixels that the model paints: multiples of [`Bundle::size_step`].
    pub fn nearest_size(&self, width: f64, height: f64) -> (usize, usize) {
        nearest_multiples(width, height, self.size_step())
    }

    /// The size of a picture in the shape of `width` x `height` whose longer side is about `side`.
    pub fn within(&self, width: usize, height: usize, side: usize) -> (usize, usize) {
        let scale = side as f64 / width.max(height) as f64;
        self.nearest_size(width as f64 * scale, height as f64 * scale)
    }

    /// The size of a picture in the shape of `width` x `height` with the area that the model was trained with.
    pub fn native_size_like(&self, width: usize, height: usize) -> (usize, usize) {
        let (side, ratio) = (self.native_size() as f64, (width as f64 / height as f64).sqrt());
        self.nearest_size(side * ratio, side / ratio)
    }
}

/// The folder's own name, whatever way led to it.
pub fn folder_name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn nearest_multiples(width: f64, height: f64, step: usize) -> (usize, usize) {
    let nearest = |side: f64| ((side / step as f64).round() as usize).max(1) * step;
    (nearest(width), nearest(height))
}

/// Reads a JSON file into its type.
///
/// # Errors
/// If it is missing, not JSON, or lacks a key.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("not the JSON that belongs here: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_to_the_nearest_step_and_never_to_nothing() {
        for ((width, height), step, expected) in [
            ((100.0, 60.0), 16, (96, 64)),
            ((128.0, 128.0), 16, (128, 128)),
            ((7.0, 0.0), 64, (64, 64)),
            ((1023.0, 33.0), 64, (1024, 64)),
        ] {
            assert_eq!(nearest_multiples(width, height, step), expected);
        }
    }

    #[test]
    fn the_native_area_takes_the_shape_asked_for() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15");
        let bundle = Bundle::open(&folder).unwrap();
        assert_eq!((bundle.native_size(), bundle.size_step()), (64, 64));
        assert_eq!(bundle.native_size_like(300, 300), (64, 64));
        // 64 * sqrt(9) and 64 / sqrt(9), the latter rounded up from a third of a step.
        assert_eq!(bundle.native_size_like(900, 100), (192, 64));
    }
}
