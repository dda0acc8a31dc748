//! ControlNet (arXiv 2302.05543; diffusers `ControlNetModel`): a copy of the UNet's way down that reads a control picture
//! and speaks through zero-initialised 1x1 convolutions.

use super::blocks::{DownPath, KvReader, TextKv};
use super::layers::{Conv3x3, FeatureMap, Linear, add};
use super::recorder::Recorder;
use crate::bundle::Bundle;
use crate::bundle::config::{ControlNetConfig, UnetConfig};
use crate::bundle::control::{Control, ControlNetPart};
use crate::bundle::weights::Names;
use crate::prompt::Conditioning;
use crate::{Error, Result, Target};
use candle_core::Tensor;

/// The network and the layers that read the control picture.
#[derive(Debug)]
pub struct ControlNet {
    cond_embedding: CondEmbedding,
    down: DownPath,
    controlnet_down_blocks: Vec<Linear>,
    controlnet_mid_block: Linear,
    target: Target,
    recorder: Recorder,
}

/// What a ControlNet adds to the UNet's skips and middle: feature maps `[B, h*w, C]`.
#[derive(Debug, Clone)]
pub struct Residuals {
    pub(super) down: Vec<Tensor>,
    pub(super) mid: Tensor,
}

/// A control picture as the network sees it, `[1, h*w, C]`; it does not depend on the timestep, so it is computed once.
#[derive(Debug, Clone)]
pub struct ControlHint(Tensor);

impl ControlNet {
    /// Loads the bundle's ControlNet for pictures of this kind, its weights as they are stored.
    ///
    /// # Errors
    /// If the bundle has none, or every tensor that is missing or misshapen, by name.
    pub fn load(bundle: &Bundle, control: Control) -> Result<Self> {
        let Some(ControlNetPart { part, config, .. }) = bundle.controlnet(control) else {
            let what = format!("this model has no ControlNet for {control} pictures; paint without them");
            return Err(Error::file(bundle.folder(), what));
        };
        let weights = bundle.weights(part)?;
        let (names, unet) = (weights.root(), &bundle.unet);
        let zero_conv = |(i, c): (usize, usize)| Linear::load(&names.pp("controlnet_down_blocks").pp(i), c, c);
        let coarsest = unet.block_out_channels[unet.levels() - 1];
        let net = ControlNet {
            cond_embedding: CondEmbedding::load(
                &names.pp("controlnet_cond_embedding"),
                config,
                unet.block_out_channels[0],
            )?,
            down: DownPath::load(&names, unet)?,
            controlnet_down_blocks: skip_channels(unet)
                .into_iter()
                .enumerate()
                .map(zero_conv)
                .collect::<Result<_>>()?,
            controlnet_mid_block: Linear::load(&names.pp("controlnet_mid_block"), coarsest, coarsest)?,
            target: names.target(),
            recorder: Recorder::default(),
        };
        weights.finish()?;
        Ok(net)
    }

    /// Keys and values of the text states for every cross-attention.
    ///
    /// # Errors
    /// If the states are not `[B, 77, cross_attention_dim]`.
    pub fn text_kv(&self, states: &Conditioning) -> Result<TextKv> {
        self.down.text_kv(&self.target.take_in(&states.0)?)
    }

    /// Reads a control picture `[B, 3, H, W]` in `[0, 1]`.
    ///
    /// # Errors
    /// If it has not three channels.
    pub fn hint(&self, picture: &Tensor) -> Result<ControlHint> {
        Ok(ControlHint(self.cond_embedding.forward(&FeatureMap::from_planar(&self.target.take_in(picture)?)?)?.x))
    }

    /// What to add to the UNet for `latent: [B, 4, h, w]` at `timesteps: [B]`, times `scale`.
    ///
    /// # Errors
    /// If the hint belongs to another size.
    pub fn forward(
        &self,
        latent: &Tensor,
        timesteps: &[f64],
        text: &TextKv,
        hint: &ControlHint,
        scale: f64,
    ) -> Result<Residuals> {
        let (latent, waves) = (self.target.take_in(latent)?, self.down.waves(timesteps)?);
        let mut settled: Vec<_> = text.tensors().collect();
        settled.push(&hint.0);
        let maps = self.recorder.play(&settled, &[&latent, &waves], scale.to_bits(), |settled, inputs| {
            let (hint, text) = settled.split_last().expect("put there above");
            let residuals = self.speak(&inputs[0], &inputs[1], &TextKv::from_tensors(text), hint, scale)?;
            Ok(residuals.maps().cloned().collect())
        })?;
        Ok(Residuals::from_maps(&maps).expect("a network has a middle"))
    }

    /// As [`ControlNet::forward`], with everything on the target.
    fn speak(&self, latent: &Tensor, waves: &Tensor, text: &TextKv, hint: &Tensor, scale: f64) -> Result<Residuals> {
        let descent = self.down.forward(latent, waves, Some(hint), &mut KvReader::new(text))?;
        let residual = |conv: &Linear, map: &FeatureMap| -> Result<Tensor> { Ok((conv.forward(&map.x)? * scale)?) };
        let down = self.controlnet_down_blocks.iter().zip(&descent.skips).map(|(conv, map)| residual(conv, map));
        Ok(Residuals { down: down.collect::<Result<_>>()?, mid: residual(&self.controlnet_mid_block, &descent.mid)? })
    }
}

impl Residuals {
    /// The residuals of each skip and of the middle, `[B, h*w, C]`, finest first.
    pub fn maps(&self) -> impl Iterator<Item = &Tensor> {
        self.down.iter().chain([&self.mid])
    }

    /// What several ControlNets say together (diffusers' `MultiControlNetModel`): their sum, in this order.
    ///
    /// # Errors
    /// If they speak of different sizes.
    pub fn sum(several: Vec<Residuals>) -> Result<Option<Residuals>> {
        let mut several = several.into_iter();
        let Some(mut sum) = several.next() else { return Ok(None) };
        for next in several {
            for (own, other) in sum.down.iter_mut().zip(&next.down) {
                *own = add(own, other)?;
            }
            sum.mid = add(&sum.mid, &next.mid)?;
        }
        Ok(Some(sum))
    }

    /// From what [`Residuals::maps`] gave, if that was anything.
    pub(super) fn from_maps(maps: &[Tensor]) -> Option<Self> {
        let (mid, down) = maps.split_last()?;
        Some(Residuals { down: down.to_vec(), mid: mid.clone() })
    }
}

/// Channels of each skip of the way down: `conv_in`, then every ResNet and downsampler.
fn skip_channels(unet: &UnetConfig) -> Vec<usize> {
    let mut channels = vec![unet.block_out_channels[0]];
    for (i, &c) in unet.block_out_channels.iter().enumerate() {
        channels.resize(channels.len() + unet.layers_per_block, c);
        if i + 1 < unet.levels() {
            channels.push(c);
        }
    }
    channels
}

/// 3x3 convolutions from the control picture's size down to the latent's.
#[derive(Debug)]
struct CondEmbedding {
    conv_in: Conv3x3,
    blocks: Vec<Conv3x3>,
    conv_out: Conv3x3,
}

impl CondEmbedding {
    fn load(names: &Names, config: &ControlNetConfig, output: usize) -> Result<Self> {
        let channels = &config.conditioning_embedding_out_channels;
        let mut blocks = vec![];
        for (i, pair) in channels.windows(2).enumerate() {
            blocks.push(Conv3x3::load(&names.pp("blocks").pp(2 * i), pair[0], pair[0], 1)?);
            blocks.push(Conv3x3::load(&names.pp("blocks").pp(2 * i + 1), pair[0], pair[1], 2)?);
        }
        Ok(CondEmbedding {
            conv_in: Conv3x3::load(&names.pp("conv_in"), config.conditioning_channels, channels[0], 1)?,
            blocks,
            conv_out: Conv3x3::load(&names.pp("conv_out"), channels[channels.len() - 1], output, 1)?,
        })
    }

    fn forward(&self, picture: &FeatureMap) -> Result<FeatureMap> {
        let mut map = self.conv_in.forward(picture)?;
        for conv in &self.blocks {
            map = conv.forward(&map.with(map.x.silu()?))?;
        }
        self.conv_out.forward(&map.with(map.x.silu()?))
    }
}
