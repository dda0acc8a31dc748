//! The VAE (arXiv 1312.6114), frozen: pictures to latents and back. An `AutoencoderKL` whose weights are known by name runs
//! in this program's own layers; every other (an `AutoencoderTiny`, ONNX from elsewhere) in tract.

use super::onnx::OnnxModel;
use crate::bundle::{Bundle, VaeHalf};
use crate::camera::Frame;
use crate::net::{Latent, VaeDecoder, VaeEncoder};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// Encoder and decoder.
pub struct Vae {
    encoder: Encoder,
    decoder: Decoder,
    tiny_decoder: Option<OnnxModel>,
    scaling_factor: f32,
    factor: usize,
    latent_channels: usize,
}

/// The way in: in this program's own layers where the weights are known by name, else in tract.
enum Encoder {
    Net(VaeEncoder),
    Onnx(OnnxModel),
}

/// The way out, as [`Encoder`].
enum Decoder {
    Net(VaeDecoder),
    Onnx(OnnxModel),
}

impl std::fmt::Debug for Vae {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vae").field("encoder", &self.encoder).field("decoder", &self.decoder).finish()
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Encoder::Net(_) => f.write_str("own layers"),
            Encoder::Onnx(model) => model.path().fmt(f),
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Decoder::Net(_) => f.write_str("own layers"),
            Decoder::Onnx(model) => model.path().fmt(f),
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
    pub fn open(bundle: &Bundle) -> Result<Self> {
        let (levels, latent_channels) = (bundle.vae.block_out_channels.len(), bundle.vae.latent_channels);
        Ok(Vae {
            encoder: match bundle.vae_weights(VaeHalf::Encoder)? {
                Some(weights) => Encoder::Net(VaeEncoder::load(weights, levels, latent_channels)?),
                None => Encoder::Onnx(OnnxModel::open(&bundle.vae_files()?.encoder)?),
            },
            decoder: match bundle.vae_weights(VaeHalf::Decoder)? {
                Some(weights) => Decoder::Net(VaeDecoder::load(weights, levels, latent_channels)?),
                None => Decoder::Onnx(OnnxModel::open(&bundle.vae_files()?.decoder)?),
            },
            tiny_decoder: bundle.tiny_decoder().map(|path| OnnxModel::open(&path)).transpose()?,
            scaling_factor: bundle.vae.scaling_factor as f32,
            factor: bundle.factor(),
            latent_channels,
        })
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
            Encoder::Net(encoder) => encoder.forward(pixels)?,
            Encoder::Onnx(model) => model.moments(pixels, 2 * self.latent_channels)?,
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
            Decoder::Net(decoder) => decoder.forward(&latent),
            Decoder::Onnx(model) => model.run(&latent),
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
