//! The UNet of Stable Diffusion (arXiv 2112.10752; diffusers `UNet2DConditionModel`).

use super::blocks::{DownPath, KvReader, TextKv, UpPath};
use super::controlnet::Residuals;
use super::layers::{Conv3x3, GroupNorm};
use super::recorder::Recorder;
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
    recorder: Recorder,
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
            recorder: Recorder::default(),
        };
        weights.finish()?;
        Ok(unet)
    }

    /// Keys and values of the text states for every cross-attention.
    ///
    /// # Errors
    /// If the states are not `[B, 77, cross_attention_dim]`.
    pub fn text_kv(&self, states: &Conditioning) -> Result<TextKv> {
        let states = self.target.take_in(&states.0)?;
        let mut text = self.down.text_kv(&states)?;
        self.up.text_kv(&states, &mut text)?;
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
        let (latent, waves) = (self.target.take_in(latent)?, self.down.waves(timesteps)?);
        let mut changing = vec![&latent, &waves];
        changing.extend(control.into_iter().flat_map(Residuals::maps));
        let settled: Vec<_> = text.tensors().collect();
        let answer = self.recorder.play(&settled, &changing, 0, |text, changing| {
            let (inputs, residuals) = changing.split_at(2);
            let control = Residuals::from_maps(residuals);
            Ok(vec![self.predict(&inputs[0], &inputs[1], &TextKv::from_tensors(text), control.as_ref())?])
        })?;
        self.target.hand_out(&answer[0])
    }

    /// Why evaluations are not recorded, where the device could and refused.
    pub fn not_recorded(&self) -> Option<String> {
        self.recorder.refusal()
    }

    /// As [`Unet::forward`], with everything on the target, where the result stays.
    fn predict(&self, latent: &Tensor, waves: &Tensor, text: &TextKv, control: Option<&Residuals>) -> Result<Tensor> {
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
