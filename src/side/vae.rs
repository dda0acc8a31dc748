//! The VAE (arXiv 1312.6114), frozen: pictures to latents and back. An `AutoencoderKL` whose weights are known by name runs
//! in this program's own layers; every other (an `AutoencoderTiny`, ONNX from elsewhere) in tract.

use super::onnx::OnnxModel;
use crate::bundle::part::Part;
use crate::bundle::{Bundle, VaeFiles, VaeHalf, VaeWeights};
use crate::camera::Frame;
use crate::net::{Latent, VaeDecoder, VaeEncoder};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Encoder and decoder.
#[derive(Debug)]
pub struct Vae {
    encoder: Half<VaeEncoder>,
    decoder: Half<VaeDecoder>,
    tiny_decoder: Option<OnnxModel>,
    scaling_factor: f32,
    factor: usize,
    latent_channels: usize,
}

/// The way in or the way out: in this program's own layers where the weights are known by name, else in tract.
enum Half<N> {
    Net(Part<N>),
    Onnx(Box<OnnxModel>),
}

impl<N: 'static> Half<N> {
    /// # Errors
    /// If the weights are missing or damaged; every tensor that is wrong is named.
    fn open(
        bundle: &Arc<Bundle>,
        half: VaeHalf,
        load: fn(VaeWeights, usize, usize) -> Result<N>,
        file: fn(VaeFiles) -> PathBuf,
    ) -> Result<Self> {
        let Some(weights) = bundle.vae_weights(half)? else {
            return Ok(Half::Onnx(OnnxModel::open(&file(bundle.vae_files()?))?.into()));
        };
        let first = Mutex::new(Some(weights)); // they were looked for already
        let bundle = bundle.clone();
        let network = move || {
            let found = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let weights = match found {
                Some(weights) => Some(weights),
                None => bundle.vae_weights(half)?,
            };
            let gone = || Error::file(bundle.folder(), "the VAE's weights were taken away while the program ran");
            load(weights.ok_or_else(gone)?, bundle.vae.block_out_channels.len(), bundle.vae.latent_channels)
        };
        Ok(Half::Net(Part::open(network)?))
    }

    fn release(&self) {
        if let Half::Net(part) = self {
            part.release();
        }
    }
}

impl<N> std::fmt::Debug for Half<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Half::Net(_) => f.write_str("own layers"),
            Half::Onnx(model) => model.fmt(f),
        }
    }
}

/// The encoder's answer for a picture: a normal distribution over latents, before scaling.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// `[1, 4, H/f, W/f]`.
    pub mean: Tensor,
    /// Logarithm of the variance, of the same shape.
    pub logvar: Tensor,
    scaling_factor: f32,
}

impl Posterior {
    /// The most likely latent.
    ///
    /// # Errors
    /// If candle runs out of memory.
    pub fn mode(&self) -> Result<Latent> {
        Ok(Latent((&self.mean * self.scaling_factor as f64)?))
    }

    /// A random latent: `mean + std * noise`, scaled. `noise` is unit noise of the mean's shape.
    ///
    /// # Errors
    /// If the noise has another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Latent> {
        let std = (self.logvar.clamp(-30f32, 20f32)? * 0.5)?.exp()?; // diffusers' DiagonalGaussianDistribution
        let sample = (&self.mean + (std * noise)?)?;
        Ok(Latent((sample * self.scaling_factor as f64)?))
    }
}

impl Vae {
    /// Loads both halves.
    ///
    /// # Errors
    /// If they are missing or damaged; every tensor that is wrong is named.
    pub fn open(bundle: &Arc<Bundle>) -> Result<Self> {
        Ok(Vae {
            encoder: Half::open(bundle, VaeHalf::Encoder, VaeEncoder::load, |files| files.encoder)?,
            decoder: Half::open(bundle, VaeHalf::Decoder, VaeDecoder::load, |files| files.decoder)?,
            tiny_decoder: bundle.tiny_decoder().map(|path| OnnxModel::open(&path)).transpose()?,
            scaling_factor: bundle.vae.scaling_factor as f32,
            factor: bundle.factor(),
            latent_channels: bundle.vae.latent_channels,
        })
    }

    /// Gives the memory of the weights back until a picture is encoded or decoded again.
    pub fn release(&self) {
        self.encoder.release();
        self.decoder.release();
        pleinair_cpu::return_freed_memory();
    }

    /// Pixels a side of one latent cell.
    pub fn factor(&self) -> usize {
        self.factor
    }

    /// The posterior of a picture whose sides are multiples of the factor.
    ///
    /// # Errors
    /// If they are not, or the encoder does not answer with moments.
    pub fn encode(&self, frame: &Frame) -> Result<Posterior> {
        let (w, h) = (frame.width(), frame.height());
        if w % self.factor != 0 || h % self.factor != 0 {
            return Err(Error::Usage(format!("{w}x{h} pixels do not divide by the VAE's factor {}", self.factor)));
        }
        self.encode_planar(&frame.to_planar(&Device::Cpu)?)
    }

    /// As [`Vae::encode`], of pixels `[1, 3, H, W]` in `[-1, 1]`.
    ///
    /// # Errors
    /// If the encoder does not answer with moments.
    pub fn encode_planar(&self, pixels: &Tensor) -> Result<Posterior> {
        let moments = match &self.encoder {
            Half::Net(encoder) => encoder.get()?.forward(pixels)?,
            Half::Onnx(model) => model.moments(pixels, 2 * self.latent_channels)?,
        };
        Ok(Posterior {
            mean: moments.narrow(1, 0, self.latent_channels)?.contiguous()?,
            logvar: moments.narrow(1, self.latent_channels, self.latent_channels)?.contiguous()?,
            scaling_factor: self.scaling_factor,
        })
    }

    /// The picture of a latent, `[1, 3, H, W]`, about -1 to 1.
    ///
    /// # Errors
    /// If the latent is not `[B, 4, h, w]`.
    pub fn decode(&self, latent: &Latent) -> Result<Tensor> {
        let latent = (&latent.0 / self.scaling_factor as f64)?;
        match &self.decoder {
            Half::Net(decoder) => decoder.get()?.forward(&latent),
            Half::Onnx(model) => model.run(&latent),
        }
    }

    /// About the same picture, from the tiny decoder where the bundle has one.
    ///
    /// # Errors
    /// If the latent is not `[B, 4, h, w]`.
    pub fn preview(&self, latent: &Latent) -> Result<Tensor> {
        match &self.tiny_decoder {
            Some(tiny) => tiny.run(&latent.0),
            None => self.decode(latent),
        }
    }
}
