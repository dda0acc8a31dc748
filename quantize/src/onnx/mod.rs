//! The VAE's weights as ONNX files (opset 17), so that tract and every other ONNX runtime can evaluate it.
//!
//! | file | input | output |
//! | --- | --- | --- |
//! | encoder | `image` [B, 3, H, W], -1 to 1 | `moments` [B, 2 c, H/f, W/f]: mean and log-variance, not scaled |
//! | decoder | `latent` [B, c, h, w], divided by the scaling factor | `image` [B, 3, f h, f w], about -1 to 1 |
//!
//! The batch and both sides are free when the file is run; H and W must be multiples of the factor f.

mod check;
mod config;
mod graph;
mod kl;
mod tiny;

pub use check::{Kind, check};
pub use config::{KlConfig, TinyConfig};

use graph::Graph;
use pleinair::bundle::weights::Weights;
use pleinair::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where the VAE's tensors come from.
pub trait Tensors {
    /// The tensor of this name in diffusers, as f32 in PyTorch's layout.
    ///
    /// # Errors
    /// If there is none, if it has another shape, or if reading fails.
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;

    /// The shape of the tensor of this name, if there is one.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
}

/// The tensors of a VAE in safetensors of its own.
#[derive(Debug)]
pub struct FileTensors(Weights);

impl FileTensors {
    /// A file, or a folder with `diffusion_pytorch_model.safetensors`.
    ///
    /// # Errors
    /// If there is none or its header is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        match path.is_dir() {
            true => Ok(FileTensors(Weights::open(path, "", "diffusion_pytorch_model")?)),
            false => Ok(FileTensors(Weights::open_file(path)?)),
        }
    }
}

impl Tensors for FileTensors {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name).map(<[usize]>::to_vec)
    }

    fn read(&mut self, name: &str, _shape: &[usize]) -> Result<Vec<f32>> {
        self.0.read_f32(name)
    }
}

/// How weights are stored in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// As f32.
    F32,
    /// As f16, with a cast to f32 in front of their use: the computation stays f32. Biases, norms and other small
    /// tensors stay f32 in the file as well.
    F16,
}

/// The kinds of VAE that can be written.
#[derive(Debug, Clone)]
pub enum VaeKind {
    /// diffusers' `AutoencoderKL`.
    Kl(KlConfig),
    /// diffusers' `AutoencoderTiny`.
    Tiny(TinyConfig),
}

/// The error for a VAE that cannot be written. Its folder is `vae`: only the caller knows where that lies.
fn refused(problems: impl IntoIterator<Item = String>) -> Error {
    Error::Model { folder: PathBuf::from("vae"), problems: problems.into_iter().collect() }
}

impl VaeKind {
    /// From `vae/config.json`.
    ///
    /// # Errors
    /// [`Error::Model`] with every class, key and value that is not supported.
    pub fn from_json(config: &Value) -> Result<VaeKind> {
        match &config["_class_name"] {
            Value::String(class) if class == "AutoencoderKL" => KlConfig::from_json(config).map(VaeKind::Kl),
            Value::String(class) if class == "AutoencoderTiny" => TinyConfig::from_json(config).map(VaeKind::Tiny),
            Value::Null => Err(refused(["vae: config.json has no _class_name; it is not diffusers'".into()])),
            class => Err(refused([format!(
                "vae: the class {class} is not supported, only \"AutoencoderKL\" and \"AutoencoderTiny\""
            )])),
        }
    }

    /// The encoder as an ONNX file. A tiny VAE answers with its latent and a log-variance of -30: as good as certain.
    ///
    /// # Errors
    /// [`Error::Model`] with every tensor that is missing or cannot be used; what [`Tensors::read`] reports otherwise.
    pub fn encoder(&self, tensors: &mut dyn Tensors, storage: Storage) -> Result<Vec<u8>> {
        let mut graph = Graph::new("vae_encoder", tensors, storage);
        let image = graph.input("image", 3, ["height", "width"]);
        let moments = match self {
            VaeKind::Kl(config) => kl::encoder(&mut graph, config, image),
            VaeKind::Tiny(config) => tiny::encoder(&mut graph, config, image),
        };
        graph.finish(moments, "moments", 2 * self.latent_channels(), ["latent_height", "latent_width"])
    }

    /// The decoder as an ONNX file.
    ///
    /// # Errors
    /// As [`VaeKind::encoder`].
    pub fn decoder(&self, tensors: &mut dyn Tensors, storage: Storage) -> Result<Vec<u8>> {
        let mut graph = Graph::new("vae_decoder", tensors, storage);
        let latent = graph.input("latent", self.latent_channels(), ["latent_height", "latent_width"]);
        let image = match self {
            VaeKind::Kl(config) => kl::decoder(&mut graph, config, latent),
            VaeKind::Tiny(config) => tiny::decoder(&mut graph, config, latent),
        };
        graph.finish(image, "image", 3, ["height", "width"])
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        match self {
            VaeKind::Kl(config) => config.latent_channels,
            VaeKind::Tiny(config) => config.latent_channels,
        }
    }

    /// Pixels a side of one latent cell.
    pub fn factor(&self) -> usize {
        let levels = match self {
            VaeKind::Kl(config) => config.block_out_channels.len(),
            VaeKind::Tiny(config) => config.encoder_block_out_channels.len(),
        };
        1 << (levels - 1)
    }

    /// What the encoder's mean is multiplied with to become a latent of the UNet, and what a latent is divided by
    /// before it is decoded.
    pub fn scaling_factor(&self) -> f64 {
        match self {
            VaeKind::Kl(config) => config.scaling_factor,
            VaeKind::Tiny(config) => config.scaling_factor,
        }
    }
}
