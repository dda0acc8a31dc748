//! The KL VAE (arXiv 2112.10752; diffusers `AutoencoderKL`), frozen: pictures to the moments of a latent, and back. No
//! gradient flows through it. A picture's finest maps are the largest of the whole program, so every map is given up as
//! soon as the next one is there.

use super::layers::{Attention, Conv3x3, FeatureMap, GroupNorm, Linear};
use crate::bundle::VaeWeights;
use crate::bundle::weights::{Names, Weights};
use crate::{Error, Result, Target};
use candle_core::Tensor;

/// Added to the variance in each GroupNorm of a VAE (the UNet's is another).
const EPS: f64 = 1e-6;
/// More ResNet blocks in a level than any VAE has: a damaged file, not a network.
const MOST_BLOCKS: usize = 64;
/// Names of the attention's queries, keys, values and output: now, and before diffusers 0.17.
const ATTENTION: [([&str; 3], &str); 2] =
    [(["to_q", "to_k", "to_v"], "to_out.0"), (["query", "key", "value"], "proj_attn")];

/// Pictures to moments.
#[derive(Debug)]
pub struct VaeEncoder {
    conv_in: Conv3x3,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
    quant_conv: Option<Linear>,
    target: Target,
}

/// Latents to pictures.
#[derive(Debug)]
pub struct VaeDecoder {
    post_quant_conv: Option<Linear>,
    conv_in: Conv3x3,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
    target: Target,
}

/// The ResNets of one resolution, and the convolution that leads to the next.
#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    sampler: Option<Conv3x3>,
}

/// As the UNet's, without a timestep (diffusers `ResnetBlock2D` with `temb_channels=None`).
#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv3x3,
    norm2: GroupNorm,
    conv2: Conv3x3,
    conv_shortcut: Option<Linear>,
}

/// The coarsest level's middle.
#[derive(Debug)]
struct MidBlock {
    resnets: [Resnet; 2],
    attention: Option<MidAttention>,
}

/// One head over all places of the coarsest map.
#[derive(Debug)]
struct MidAttention {
    group_norm: GroupNorm,
    to_qkv: Linear,
    to_out: Linear,
    attention: Attention,
}

/// Reads layers, and off the tensors' names and shapes what layers there are.
struct Loader<'a> {
    weights: &'a Weights,
    groups: usize,
}

impl VaeEncoder {
    /// Loads the encoder for latents of `latent_channels`, with `levels` resolutions.
    ///
    /// # Errors
    /// If tensors are missing, misshapen or not finite; each is named.
    pub fn load(weights: VaeWeights, levels: usize, latent_channels: usize) -> Result<Self> {
        let VaeWeights { tensors, norm_num_groups } = weights;
        let (loader, root) = (Loader { weights: &tensors, groups: norm_num_groups }, tensors.root());
        let names = root.pp("encoder");
        let mut channels = loader.outputs("encoder.conv_in").unwrap_or(1);
        let conv_in = Conv3x3::load(&names.pp("conv_in"), 3, channels, 1)?;
        let mut down_blocks = vec![];
        for level in 0..levels {
            let at = format!("encoder.down_blocks.{level}");
            let resnets = loader.resnets(&root.pp(&at), &at, &mut channels)?;
            let sampler = match level + 1 < levels {
                true => Some(Conv3x3::load(&root.pp(&at).pp("downsamplers.0.conv"), channels, channels, 2)?),
                false => None,
            };
            down_blocks.push(Level { resnets, sampler });
        }
        let moments = 2 * latent_channels;
        let encoder = VaeEncoder {
            conv_in,
            down_blocks,
            mid_block: loader.mid_block(&names.pp("mid_block"), "encoder.mid_block", channels)?,
            conv_norm_out: loader.norm(&names.pp("conv_norm_out"), channels, true)?,
            conv_out: Conv3x3::load(&names.pp("conv_out"), channels, moments, 1)?,
            quant_conv: loader.pointwise(&root, "quant_conv", moments)?,
            target: root.target(),
        };
        tensors.finish()?;
        Ok(encoder)
    }

    /// `pixels: [B, 3, H, W]`, -1 to 1, the sides multiples of the VAE's factor, to `[B, 2 latent, H/f, W/f]`: mean and
    /// log-variance, not scaled.
    ///
    /// # Errors
    /// If the pixels are of another shape.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        // 1. way down
        let mut map = self.conv_in.forward(&FeatureMap::from_planar(&self.target.take_in(&pixels.detach())?)?)?;
        for level in &self.down_blocks {
            for resnet in &level.resnets {
                map = resnet.forward(map)?;
            }
            if let Some(conv) = &level.sampler {
                map = halved(conv, map)?;
            }
        }
        // 2. middle
        map = self.mid_block.forward(map)?;
        // 3. moments
        map = convolved(&self.conv_norm_out, &self.conv_out, map)?;
        if let Some(conv) = &self.quant_conv {
            map = map.with(conv.forward(&map.x)?);
        }
        self.target.hand_out(&map.to_planar()?)
    }
}

impl VaeDecoder {
    /// Loads the decoder for latents of `latent_channels`, with `levels` resolutions.
    ///
    /// # Errors
    /// If tensors are missing, misshapen or not finite; each is named.
    pub fn load(weights: VaeWeights, levels: usize, latent_channels: usize) -> Result<Self> {
        let VaeWeights { tensors, norm_num_groups } = weights;
        let (loader, root) = (Loader { weights: &tensors, groups: norm_num_groups }, tensors.root());
        let names = root.pp("decoder");
        let mut channels = loader.outputs("decoder.conv_in").unwrap_or(1);
        let post_quant_conv = loader.pointwise(&root, "post_quant_conv", latent_channels)?;
        let conv_in = Conv3x3::load(&names.pp("conv_in"), latent_channels, channels, 1)?;
        let mid_block = loader.mid_block(&names.pp("mid_block"), "decoder.mid_block", channels)?;
        let mut up_blocks = vec![];
        for level in 0..levels {
            let at = format!("decoder.up_blocks.{level}");
            let resnets = loader.resnets(&root.pp(&at), &at, &mut channels)?;
            let sampler = match level + 1 < levels {
                true => Some(Conv3x3::load_upsampling(&root.pp(&at).pp("upsamplers.0.conv"), channels)?),
                false => None,
            };
            up_blocks.push(Level { resnets, sampler });
        }
        let decoder = VaeDecoder {
            post_quant_conv,
            conv_in,
            mid_block,
            up_blocks,
            conv_norm_out: loader.norm(&names.pp("conv_norm_out"), channels, true)?,
            conv_out: Conv3x3::load(&names.pp("conv_out"), channels, 3, 1)?,
            target: root.target(),
        };
        tensors.finish()?;
        Ok(decoder)
    }

    /// `latent: [B, latent, h, w]`, divided by the scaling factor, to a picture `[B, 3, f h, f w]`, about -1 to 1.
    ///
    /// # Errors
    /// If the latent is of another shape.
    pub fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        // 1. middle
        let mut map = FeatureMap::from_planar(&self.target.take_in(&latent.detach())?)?;
        if let Some(conv) = &self.post_quant_conv {
            map = map.with(conv.forward(&map.x)?);
        }
        map = self.mid_block.forward(self.conv_in.forward(&map)?)?;
        // 2. way up
        for level in &self.up_blocks {
            for resnet in &level.resnets {
                map = resnet.forward(map)?;
            }
            if let Some(conv) = &level.sampler {
                map = conv.forward(&map)?;
            }
        }
        // 3. picture
        self.target.hand_out(&convolved(&self.conv_norm_out, &self.conv_out, map)?.to_planar()?)
    }
}

/// The convolution of a map that nobody needs afterwards, normalised.
fn convolved(norm: &GroupNorm, conv: &Conv3x3, map: FeatureMap) -> Result<FeatureMap> {
    let normal = norm.forward(&map)?;
    drop(map);
    conv.forward(&normal)
}

/// A map of half the size: `conv` with stride 2, one row of zeros below and one column to the right, none above and to
/// the left (diffusers' `Downsample2D` with `padding=0`). The convolutions here have zeros on all sides; of a map that
/// begins one row and one column earlier, all outputs but the first row and column are those wanted.
fn halved(conv: &Conv3x3, map: FeatureMap) -> Result<FeatureMap> {
    let (b, _, c) = map.x.dims3()?;
    let (height, width) = (map.height + 1, map.width + 1);
    let x = map.x.reshape((b, map.height, map.width, c))?;
    drop(map);
    let x = x.pad_with_zeros(2, 1, 0)?.pad_with_zeros(1, 1, 0)?.reshape((b, height * width, c))?;
    let FeatureMap { x, height, width } = conv.forward(&FeatureMap { x, height, width })?;
    let c = x.dim(2)?;
    let x = x.reshape((b, height, width, c))?.narrow(1, 1, height - 1)?.narrow(2, 1, width - 1)?.contiguous()?;
    let (height, width) = (height - 1, width - 1);
    Ok(FeatureMap { x: x.reshape((b, height * width, c))?, height, width })
}

impl Resnet {
    fn forward(&self, map: FeatureMap) -> Result<FeatureMap> {
        let h = self.conv1.forward(&self.norm1.forward(&map)?)?;
        let h = convolved(&self.norm2, &self.conv2, h)?;
        match &self.conv_shortcut {
            Some(conv) => {
                let shortcut = conv.forward(&map.x)?;
                drop(map);
                h.add(&shortcut)
            }
            None => h.add(&map.x),
        }
    }
}

impl MidBlock {
    fn forward(&self, map: FeatureMap) -> Result<FeatureMap> {
        let mut map = self.resnets[0].forward(map)?;
        if let Some(attention) = &self.attention {
            map = attention.forward(map)?;
        }
        self.resnets[1].forward(map)
    }
}

impl MidAttention {
    fn forward(&self, map: FeatureMap) -> Result<FeatureMap> {
        let c = map.x.dim(2)?;
        let qkv = self.to_qkv.forward(&self.group_norm.forward(&map)?.x)?;
        let seen = self.attention.forward(&qkv.narrow(2, 0, c)?, &qkv.narrow(2, c, 2 * c)?)?;
        map.add(&self.to_out.forward(&seen)?)
    }
}

impl Loader<'_> {
    /// Channels that a convolution gives, if it exists.
    fn outputs(&self, at: &str) -> Option<usize> {
        self.weights.shape(&format!("{at}.weight"))?.first().copied()
    }

    fn has(&self, at: &str) -> bool {
        self.weights.headers().any(|tensor| tensor.name.strip_prefix(at).is_some_and(|rest| rest.starts_with('.')))
    }

    fn norm(&self, names: &Names, channels: usize, silu: bool) -> Result<GroupNorm> {
        let groups = self.groups;
        if groups == 0 || !channels.is_multiple_of(groups) {
            let what = format!("{channels} channels of the VAE do not divide into norm_num_groups = {groups}");
            return Err(Error::file(&self.weights.place_of_part(), what));
        }
        GroupNorm::load(names, channels, groups, EPS, silu)
    }

    /// The blocks of a level; `channels` changes to what they give. One that is missing altogether is missed.
    fn resnets(&self, names: &Names, at: &str, channels: &mut usize) -> Result<Vec<Resnet>> {
        let below = format!("{at}.resnets.");
        let index = |name: &str| name.strip_prefix(&below)?.split('.').next()?.parse::<usize>().ok();
        let last = self.weights.headers().filter_map(|tensor| index(tensor.name)).filter(|&i| i < MOST_BLOCKS).max();
        let load = |i: usize| {
            let output = self.outputs(&format!("{below}{i}.conv1")).unwrap_or(*channels);
            let resnet = self.resnet(&names.pp("resnets").pp(i), *channels, output)?;
            *channels = output;
            Ok(resnet)
        };
        (0..=last.unwrap_or(0)).map(load).collect()
    }

    fn resnet(&self, names: &Names, input: usize, output: usize) -> Result<Resnet> {
        Ok(Resnet {
            norm1: self.norm(&names.pp("norm1"), input, true)?,
            conv1: Conv3x3::load(&names.pp("conv1"), input, output, 1)?,
            norm2: self.norm(&names.pp("norm2"), output, true)?,
            conv2: Conv3x3::load(&names.pp("conv2"), output, output, 1)?,
            conv_shortcut: match input == output {
                true => None,
                false => Some(Linear::load(&names.pp("conv_shortcut"), input, output)?),
            },
        })
    }

    fn mid_block(&self, names: &Names, at: &str, channels: usize) -> Result<MidBlock> {
        let [first, second] = [0, 1].map(|i| self.resnet(&names.pp("resnets").pp(i), channels, channels));
        let attention = format!("{at}.attentions.0");
        Ok(MidBlock {
            resnets: [first?, second?],
            attention: match self.has(&attention) {
                true => Some(self.attention(&names.pp("attentions.0"), &attention, channels)?),
                false => None,
            },
        })
    }

    fn attention(&self, names: &Names, at: &str, channels: usize) -> Result<MidAttention> {
        let old = self.has(&format!("{at}.{}", ATTENTION[1].0[0]));
        let (projections, output) = &ATTENTION[usize::from(old)];
        let to_qkv = Linear::load_joined(names, "to_qkv", projections, channels, channels)?;
        Ok(MidAttention {
            group_norm: self.norm(&names.pp("group_norm"), channels, false)?,
            attention: Attention::new(names, 1, false, &to_qkv),
            to_qkv,
            to_out: Linear::load(&names.pp(output), channels, channels)?,
        })
    }

    /// The 1x1 convolution between moments and latents, where the VAE has one.
    fn pointwise(&self, root: &Names, name: &str, channels: usize) -> Result<Option<Linear>> {
        self.has(name).then(|| Linear::load(&root.pp(name), channels, channels)).transpose()
    }
}
