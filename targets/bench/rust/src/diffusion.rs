//! candle's own stable diffusion 1.5 in f32, as candle's example runs it on the CPU.

use crate::{Arguments, TEXT, TIMESTEP, noise};
use anyhow::Result;
use candle::{DType, Device, Module, Tensor};
use candle_transformers::models::stable_diffusion::unet_2d::UNet2DConditionModel;
use candle_transformers::models::stable_diffusion::vae::AutoEncoderKL;
use candle_transformers::models::stable_diffusion::{StableDiffusionConfig, build_clip_transformer};
use std::path::Path;

const GUIDANCE: f64 = 5.0;
/// Of Stable Diffusion 1.5's latents.
const VAE_SCALE: f64 = 0.18215;
const START: u32 = 49406;
const END: u32 = 49407;

fn config(size: usize) -> StableDiffusionConfig {
    StableDiffusionConfig::v1_5(None, Some(size), Some(size))
}

fn unet(model: &Path, size: usize) -> Result<UNet2DConditionModel> {
    let file = model.join("unet/diffusion_pytorch_model.safetensors");
    Ok(config(size).build_unet(file, &Device::Cpu, 4, false, DType::F32)?)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// One evaluation.
pub(crate) struct Unet {
    unet: UNet2DConditionModel,
    latent: Tensor,
    states: Tensor,
}

impl Unet {
    pub(crate) fn open(arguments: &Arguments) -> Result<Self> {
        let (latent, states) = (arguments.latent(), arguments.states());
        Ok(Unet {
            unet: unet(&arguments.model, arguments.size)?,
            latent: Tensor::from_vec(noise(0, latent.iter().product()), &latent, &Device::Cpu)?,
            states: Tensor::from_vec(noise(1, states.iter().product()), &states, &Device::Cpu)?,
        })
    }

    pub(crate) fn run(&self) -> Result<Vec<f32>> {
        numbers(&self.unet.forward(&self.latent, TIMESTEP as f64, &self.states)?)
    }
}

/// A whole painting: text encoder, DDIM with guidance, decoder.
pub(crate) struct Painter {
    config: StableDiffusionConfig,
    clip: Box<dyn Module>,
    unet: UNet2DConditionModel,
    vae: AutoEncoderKL,
    noise: Tensor,
    steps: usize,
}

impl Painter {
    pub(crate) fn open(arguments: &Arguments) -> Result<Self> {
        let (model, latent) = (&arguments.model, arguments.latent());
        let config = config(arguments.size);
        let text = model.join("text_encoder/model.safetensors");
        Ok(Painter {
            clip: Box::new(build_clip_transformer(&config.clip, text, &Device::Cpu, DType::F32)?),
            unet: unet(model, arguments.size)?,
            vae: config.build_vae(model.join("vae/diffusion_pytorch_model.safetensors"), &Device::Cpu, DType::F32)?,
            noise: Tensor::from_vec(noise(0, latent.iter().product()), &latent, &Device::Cpu)?,
            steps: arguments.steps,
            config,
        })
    }

    pub(crate) fn run(&self) -> Result<Vec<f32>> {
        let mut prompt = [END; TEXT[0]];
        prompt[0] = START;
        let negative = Tensor::new(&[prompt], &Device::Cpu)?;
        prompt[1..9].copy_from_slice(&[320, 321, 322, 323, 324, 325, 326, 327]);
        let positive = Tensor::new(&[prompt], &Device::Cpu)?;
        let text = Tensor::cat(&[self.clip.forward(&negative)?, self.clip.forward(&positive)?], 0)?;

        let mut schedule = self.config.build_scheduler(self.steps)?;
        let mut latent = (&self.noise * schedule.init_noise_sigma())?;
        for timestep in schedule.timesteps().to_vec() {
            let both = schedule.scale_model_input(Tensor::cat(&[&latent, &latent], 0)?, timestep)?;
            let answer = self.unet.forward(&both, timestep as f64, &text)?.chunk(2, 0)?;
            let guided = (&answer[0] + ((&answer[1] - &answer[0])? * GUIDANCE)?)?;
            latent = schedule.step(&guided, timestep, &latent)?;
        }
        let pixels = ((self.vae.decode(&(latent / VAE_SCALE)?)? / 2.0)? + 0.5)?.clamp(0f32, 1f32)?;
        numbers(&pixels)
    }
}
