//! The way down and the way up of the UNet, level by level.

use super::attention::Transformer;
use super::layers::{Conv3x3, FeatureMap, Linear};
use super::resnet::ResnetBlock;
use crate::bundle::config::UnetConfig;
use crate::bundle::weights::Names;
use crate::{Result, Target};
use candle_core::{Device, Tensor};

/// Keys and values of a prompt for every cross-attention of one network, in path order: `[B, 77, 2C]` each. They do not
/// depend on the timestep, so they are computed once a prompt.
#[derive(Debug, Clone)]
pub struct TextKv(Vec<Tensor>);

impl TextKv {
    /// The keys and values themselves.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter()
    }

    pub(super) fn from_tensors(tensors: &[Tensor]) -> Self {
        TextKv(tensors.to_vec())
    }

    /// The texts of several batches as one.
    ///
    /// # Errors
    /// If they come from different networks.
    pub fn cat(parts: &[&TextKv]) -> Result<Self> {
        let layers = parts.first().map_or(0, |p| p.0.len());
        let layer = |i: usize| Tensor::cat(&parts.iter().map(|p| &p.0[i]).collect::<Vec<_>>(), 0);
        Ok(TextKv((0..layers).map(layer).collect::<candle_core::Result<_>>()?))
    }

    /// The texts of the given rows of the batch, `[rows, 77, 2C]` each.
    ///
    /// # Errors
    /// If a row does not exist.
    pub fn rows(&self, rows: &[u32]) -> Result<Self> {
        let select = |kv: &Tensor| kv.index_select(&Tensor::new(rows, kv.device())?, 0);
        Ok(TextKv(self.0.iter().map(select).collect::<candle_core::Result<_>>()?))
    }
}

/// Hands out keys and values in path order.
pub(super) struct KvReader<'a>(std::slice::Iter<'a, Tensor>);

impl<'a> KvReader<'a> {
    pub(super) fn new(text: &'a TextKv) -> Self {
        KvReader(text.0.iter())
    }

    fn next(&mut self) -> Result<&'a Tensor> {
        self.0.next().ok_or_else(|| candle_core::Error::msg("this text was prepared for another network").into())
    }
}

/// ResNets of one level, each followed by a transformer where the level has them.
#[derive(Debug)]
struct Level {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer>,
}

impl Level {
    fn load(names: &Names, config: &UnetConfig, level: usize, inputs: &[usize], cross_attention: bool) -> Result<Self> {
        let resnet = |(i, &input): (usize, &usize)| {
            ResnetBlock::load(&names.pp("resnets").pp(i), config, input, config.block_out_channels[level])
        };
        let attentions = if cross_attention { inputs.len() } else { 0 };
        Ok(Level {
            resnets: inputs.iter().enumerate().map(resnet).collect::<Result<_>>()?,
            attentions: (0..attentions)
                .map(|i| Transformer::load(&names.pp("attentions").pp(i), config, level))
                .collect::<Result<_>>()?,
        })
    }

    fn step(&self, i: usize, map: &FeatureMap, time: &Tensor, text: &mut KvReader<'_>) -> Result<FeatureMap> {
        let map = self.resnets[i].forward(map, time)?;
        match self.attentions.get(i) {
            Some(attention) => attention.forward(&map, text.next()?),
            None => Ok(map),
        }
    }
}

/// What a timestep becomes before the blocks see it.
#[derive(Debug)]
struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    target: Target,
}

fn silu(x: &Tensor) -> Result<Tensor> {
    Ok(x.silu()?)
}

impl TimeEmbedding {
    fn load(names: &Names, config: &UnetConfig) -> Result<Self> {
        let (channels, wide) = (config.block_out_channels[0], config.time_channels());
        Ok(TimeEmbedding {
            linear_1: Linear::load(&names.pp("linear_1"), channels, wide)?,
            linear_2: Linear::load(&names.pp("linear_2"), wide, wide)?,
            channels,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
            target: names.target(),
        })
    }

    /// Sinusoids `[B, C]` of the timesteps, as in diffusers' `get_timestep_embedding`.
    fn waves(&self, timesteps: &[f64]) -> Result<Tensor> {
        let half = self.channels / 2;
        let mut waves = Vec::with_capacity(timesteps.len() * self.channels);
        for &t in timesteps {
            let angle = |i: usize| {
                let exponent = -(10000f32.ln()) * i as f32 / (half as f64 - self.freq_shift) as f32;
                t as f32 * exponent.exp()
            };
            let (sines, cosines) = ((0..half).map(|i| angle(i).sin()), (0..half).map(|i| angle(i).cos()));
            match self.flip_sin_to_cos {
                true => waves.extend(cosines.chain(sines)),
                false => waves.extend(sines.chain(cosines)),
            }
            waves.resize(waves.len() + self.channels % 2, 0.0);
        }
        self.target.take_in(&Tensor::from_vec(waves, (timesteps.len(), self.channels), &Device::Cpu)?)
    }

    /// SiLU of the embedding, `[B, 4C]`: every block begins with that SiLU.
    fn forward(&self, waves: &Tensor) -> Result<Tensor> {
        silu(&self.linear_2.forward(&silu(&self.linear_1.forward(waves)?)?)?)
    }
}

/// From the latent to the coarsest level: the half that a UNet and its ControlNet share.
#[derive(Debug)]
pub(super) struct DownPath {
    conv_in: Conv3x3,
    time_embedding: TimeEmbedding,
    down_blocks: Vec<(Level, Option<Conv3x3>)>,
    mid_block: Level,
}

/// What the way down leaves behind.
pub(super) struct Descent {
    /// After `conv_in`, each ResNet (with its transformer) and each downsampler: what the way up takes in again.
    pub(super) skips: Vec<FeatureMap>,
    /// The coarsest level's result.
    pub(super) mid: FeatureMap,
    /// SiLU of the timestep embedding.
    pub(super) time: Tensor,
}

impl DownPath {
    pub(super) fn load(names: &Names, config: &UnetConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let last = config.levels() - 1;
        let mut down_blocks = vec![];
        for (i, kind) in config.down_block_types.iter().enumerate() {
            let names = names.pp("down_blocks").pp(i);
            let mut inputs = vec![channels[i]; config.layers_per_block];
            inputs[0] = channels[i.saturating_sub(1)];
            let level = Level::load(&names, config, i, &inputs, kind == "CrossAttnDownBlock2D")?;
            let downsampler = match i < last {
                true => Some(Conv3x3::load(&names.pp("downsamplers.0.conv"), channels[i], channels[i], 2)?),
                false => None,
            };
            down_blocks.push((level, downsampler));
        }
        // the middle is a level with a transformer between its two ResNets
        let mut mid_block = Level::load(&names.pp("mid_block"), config, last, &[channels[last]; 2], false)?;
        mid_block.attentions.push(Transformer::load(&names.pp("mid_block.attentions.0"), config, last)?);
        Ok(DownPath {
            conv_in: Conv3x3::load(&names.pp("conv_in"), config.in_channels, channels[0], 1)?,
            time_embedding: TimeEmbedding::load(&names.pp("time_embedding"), config)?,
            down_blocks,
            mid_block,
        })
    }

    fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.down_blocks.iter().flat_map(|(level, _)| &level.attentions).chain(&self.mid_block.attentions)
    }

    pub(super) fn text_kv(&self, states: &Tensor) -> Result<TextKv> {
        Ok(TextKv(self.transformers().map(|t| t.text_kv(states)).collect::<Result<_>>()?))
    }

    /// What the network sees of timesteps, `[B, C]` on its target.
    pub(super) fn waves(&self, timesteps: &[f64]) -> Result<Tensor> {
        self.time_embedding.waves(timesteps)
    }

    /// `latent: [B, 4, h, w]` on the target, `waves` of its timesteps; `hint` is added after `conv_in`.
    pub(super) fn forward(
        &self,
        latent: &Tensor,
        waves: &Tensor,
        hint: Option<&Tensor>,
        text: &mut KvReader<'_>,
    ) -> Result<Descent> {
        let time = self.time_embedding.forward(waves)?;
        let mut map = self.conv_in.forward(&FeatureMap::from_planar(latent)?)?;
        if let Some(hint) = hint {
            map = map.with(map.x.broadcast_add(hint)?);
        }
        let mut skips = vec![map.clone()];
        for (level, downsampler) in &self.down_blocks {
            for i in 0..level.resnets.len() {
                map = level.step(i, &map, &time, text)?;
                skips.push(map.clone());
            }
            if let Some(conv) = downsampler {
                map = conv.forward(&map)?;
                skips.push(map.clone());
            }
        }
        for i in 0..self.mid_block.resnets.len() {
            map = self.mid_block.step(i, &map, &time, text)?;
        }
        Ok(Descent { skips, mid: map, time })
    }
}

/// From the coarsest level back to the finest.
#[derive(Debug)]
pub(super) struct UpPath {
    up_blocks: Vec<(Level, Option<Conv3x3>)>,
}

impl UpPath {
    pub(super) fn load(names: &Names, config: &UnetConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let last = config.levels() - 1;
        let mut up_blocks = vec![];
        for (i, kind) in config.up_block_types.iter().enumerate() {
            let names = names.pp("up_blocks").pp(i);
            let level = last - i;
            // each ResNet takes the channels so far and those of one skip of the way down
            let (from, finer) = (channels[(level + 1).min(last)], channels[level.saturating_sub(1)]);
            let inputs: Vec<_> = (0..=config.layers_per_block)
                .map(|j| {
                    let so_far = if j == 0 { from } else { channels[level] };
                    let skip = if j == config.layers_per_block { finer } else { channels[level] };
                    so_far + skip
                })
                .collect();
            let upsampler = match level > 0 {
                true => Some(Conv3x3::load_upsampling(&names.pp("upsamplers.0.conv"), channels[level])?),
                false => None,
            };
            up_blocks.push((Level::load(&names, config, level, &inputs, kind == "CrossAttnUpBlock2D")?, upsampler));
        }
        Ok(UpPath { up_blocks })
    }

    pub(super) fn text_kv(&self, states: &Tensor, text: &mut TextKv) -> Result<()> {
        for transformer in self.up_blocks.iter().flat_map(|(level, _)| &level.attentions) {
            text.0.push(transformer.text_kv(states)?);
        }
        Ok(())
    }

    pub(super) fn forward(&self, descent: Descent, text: &mut KvReader<'_>) -> Result<FeatureMap> {
        let Descent { mut skips, mid: mut map, time } = descent;
        for (level, upsampler) in &self.up_blocks {
            for i in 0..level.resnets.len() {
                let skip = skips.pop().ok_or_else(|| candle_core::Error::msg("more ResNets up than down"))?;
                map = level.step(i, &map.concat(&skip)?, &time, text)?;
            }
            if let Some(conv) = upsampler {
                map = conv.forward(&map)?;
            }
        }
        Ok(map)
    }
}
