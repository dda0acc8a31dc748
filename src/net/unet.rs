//! The UNet of Stable Diffusion (arXiv 2112.10752; diffusers `UNet2DConditionModel`).

use super::blocks::{DownPath, KvReader, TextKv, UpPath};
use super::controlnet::Residuals;
use super::layers::{Conv3x3, GroupNorm};
use crate::bundle::Bundle;
use crate::prompt::Conditioning;
use crate::{Result, Target};
use candle_core::Tensor;

/// Predicts the noise (or velocity) in a latent.
#[derive(Debug)]
pub struct Unet {
    down: DownPath,
    up: UpPath,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
    target: Target,
}

impl Unet {
    /// Loads the bundle's UNet, its weights as they are stored.
    ///
    /// # Errors
    /// Every tensor that is missing or misshapen, by name.
    pub fn load(bundle: &Bundle) -> Result<Self> {
        let weights = bundle.weights("unet")?;
        let (names, config) = (weights.root(), &bundle.unet);
        let finest = config.block_out_channels[0];
        let unet = Unet {
            down: DownPath::load(&names, config)?,
            up: UpPath::load(&names, config)?,
            conv_norm_out: GroupNorm::load(
                &names.pp("conv_norm_out"),
                finest,
                config.norm_num_groups,
                config.norm_eps,
                true,
            )?,
            conv_out: Conv3x3::load(&names.pp("conv_out"), finest, config.out_channels, 1)?,
            target: names.target(),
        };
        weights.finish()?;
        Ok(unet)
    }

    /// Keys and values of the text states for every cross-attention.
    ///
    /// # Errors
    /// If the states are not `[B, 77, cross_attention_dim]`.
    pub fn text_kv(&self, states: &Conditioning) -> Result<TextKv> {
        let mut text = self.down.text_kv(&states.0)?;
        self.up.text_kv(&states.0, &mut text)?;
        Ok(text)
    }

    /// The network's output `[B, 4, h, w]` for `latent: [B, 4, h, w]` at `timesteps: [B]` in `[0, 1000)`; `control` is
    /// added to the skips where a ControlNet has spoken.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub fn forward(
        &self,
        latent: &Tensor,
        timesteps: &[f64],
        text: &TextKv,
        control: Option<&Residuals>,
    ) -> Result<Tensor> {
        let y = self.predict(&self.target.take_in(latent)?, &self.waves(timesteps)?, text, control)?;
        self.target.hand_out(&y)
    }

    /// What the network sees of timesteps, `[B, C]` on its target: numbers to record an evaluation with.
    ///
    /// # Errors
    /// If the target is out of memory.
    pub fn waves(&self, timesteps: &[f64]) -> Result<Tensor> {
        self.down.waves(timesteps)
    }

    /// As [`Unet::forward`], with everything on the target already, and the result left there.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub fn predict(
        &self,
        latent: &Tensor,
        waves: &Tensor,
        text: &TextKv,
        control: Option<&Residuals>,
    ) -> Result<Tensor> {
        // 1. down, keeping every level's result; 2. the ControlNet's word; 3. up again; 4. back to a latent
        let mut text = KvReader::new(text);
        let mut descent = self.down.forward(latent, waves, None, &mut text)?;
        if let Some(control) = control {
            for (skip, residual) in descent.skips.iter_mut().zip(&control.down) {
                *skip = skip.add(residual)?;
            }
            descent.mid = descent.mid.add(&control.mid)?;
        }
        let map = self.up.forward(descent, &mut text)?;
        self.conv_out.forward(&self.conv_norm_out.forward(&map)?)?.to_planar()
    }
}
