//! The VAE (arXiv 1312.6114; diffusers `AutoencoderKL`), frozen, from ONNX in tract: pictures to latents and back.

use crate::bundle::Bundle;
use crate::camera::Frame;
use crate::net::Latent;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tract_core::prelude::*;
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::{Framework, InferenceModel, InferenceModelExt};

/// Encoder and decoder; a plan is optimised once for each size and kept.
pub struct Vae {
    encoder: Side,
    decoder: Side,
    tiny_decoder: Option<Side>,
    scaling_factor: f32,
    factor: usize,
    latent_channels: usize,
    threads: Executor,
}

impl std::fmt::Debug for Vae {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vae").field("encoder", &self.encoder.path).field("decoder", &self.decoder.path).finish()
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
    /// Reads the bundle's two ONNX files.
    ///
    /// # Errors
    /// If they are missing or not ONNX.
    pub fn open(bundle: &Bundle) -> Result<Self> {
        let files = bundle.vae_files()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Vae {
            encoder: Side::open(&files.encoder)?,
            decoder: Side::open(&files.decoder)?,
            tiny_decoder: bundle.tiny_decoder().map(|path| Side::open(&path)).transpose()?,
            scaling_factor: bundle.vae.scaling_factor as f32,
            factor: bundle.factor(),
            latent_channels: bundle.vae.latent_channels,
            threads: Executor::multithread_with_name(cores, "tract"),
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
        let moments = self.encoder.run(pixels, &self.threads)?;
        let channels = moments.dim(1)?;
        if channels != 2 * self.latent_channels {
            let what = format!(
                "answers with {channels} channels, wanted {} moments (mean and log-variance)",
                2 * self.latent_channels
            );
            return Err(Error::file(&self.encoder.path, what));
        }
        Ok(Posterior {
            mean: moments.narrow(1, 0, self.latent_channels)?.contiguous()?,
            logvar: moments.narrow(1, self.latent_channels, self.latent_channels)?.contiguous()?,
            scaling_factor: self.scaling_factor,
        })
    }

    /// The picture of a latent, `[1, 3, H, W]`, about -1 to 1.
    ///
    /// # Errors
    /// If the latent is not `[1, 4, h, w]`.
    pub fn decode(&self, latent: &Latent) -> Result<Tensor> {
        self.decoder.run(&(&latent.0 / self.scaling_factor as f64)?, &self.threads)
    }

    /// About the same picture, from the tiny decoder where the bundle has one.
    ///
    /// # Errors
    /// If the latent is not `[1, 4, h, w]`.
    pub fn preview(&self, latent: &Latent) -> Result<Tensor> {
        match &self.tiny_decoder {
            Some(tiny) => tiny.run(&latent.0, &self.threads),
            None => self.decode(latent),
        }
    }
}

type Plan = Arc<TypedRunnableModel>;

/// One ONNX file and its plans by input size.
struct Side {
    path: PathBuf,
    model: InferenceModel,
    plans: Mutex<HashMap<Vec<usize>, Plan>>,
}

impl Side {
    fn open(path: &Path) -> Result<Self> {
        let model =
            tract_onnx::onnx().model_for_path(path).map_err(|e| Error::file(path, format!("not ONNX: {e:#}")))?;
        Ok(Side { path: path.to_path_buf(), model, plans: Mutex::default() })
    }

    fn plan(&self, dims: &[usize]) -> Result<Plan> {
        let mut plans = self.plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(plan) = plans.get(dims) {
            return Ok(plan.clone());
        }
        let plan = self
            .model
            .clone()
            .with_input_fact(0, f32::fact(dims).into())
            .and_then(|m| m.into_optimized())
            .and_then(|m| m.into_runnable())
            .map_err(|e| Error::file(&self.path, format!("does not run on an input of {dims:?}: {e:#}")))?;
        plans.insert(dims.to_vec(), plan.clone());
        Ok(plan)
    }

    fn run(&self, input: &candle_core::Tensor, threads: &Executor) -> Result<candle_core::Tensor> {
        let failed = |e: TractError| Error::Side(format!("{}: {e:#}", self.path.display()));
        let plan = self.plan(input.dims())?;
        let values = input.flatten_all()?.to_vec1::<f32>()?;
        let input = tract_core::prelude::Tensor::from_shape(input.dims(), &values).map_err(failed)?;
        let outputs =
            multithread_tract_scope(threads.clone(), || plan.run(tvec!(input.into_tvalue()))).map_err(failed)?;
        let output = outputs.first().ok_or_else(|| Error::Side(format!("{}: no output", self.path.display())))?;
        let view = output.to_plain_array_view::<f32>().map_err(failed)?;
        let values: Vec<f32> = view.iter().copied().collect();
        Ok(candle_core::Tensor::from_vec(values, output.shape(), &Device::Cpu)?)
    }
}
