//! The ResNet block of the UNet (diffusers `ResnetBlock2D`).

use super::checkpoint::checkpointed;
use super::layers::{Conv3x3, FeatureMap, GroupNorm, Linear, add};
use crate::Result;
use crate::bundle::config::UnetConfig;
use crate::bundle::weights::Names;
use candle_core::Tensor;
use std::sync::Arc;

#[derive(Debug)]
struct Layers {
    norm1: GroupNorm,
    conv1: Conv3x3,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv3x3,
    conv_shortcut: Option<Linear>,
}

/// `[B, H*W, in] -> [B, H*W, out]`, told the timestep.
#[derive(Debug)]
pub(super) struct ResnetBlock(Arc<Layers>);

impl ResnetBlock {
    pub(super) fn load(names: &Names, config: &UnetConfig, input: usize, output: usize) -> Result<Self> {
        let norm =
            |name, channels| GroupNorm::load(&names.pp(name), channels, config.norm_num_groups, config.norm_eps, true);
        Ok(ResnetBlock(Arc::new(Layers {
            norm1: norm("norm1", input)?,
            conv1: Conv3x3::load(&names.pp("conv1"), input, output, 1)?,
            time_emb_proj: Linear::load(&names.pp("time_emb_proj"), config.time_channels(), output)?,
            norm2: norm("norm2", output)?,
            conv2: Conv3x3::load(&names.pp("conv2"), output, output, 1)?,
            conv_shortcut: if input == output {
                None
            } else {
                Some(Linear::load(&names.pp("conv_shortcut"), input, output)?)
            },
        })))
    }

    /// `time`: SiLU of the timestep embedding, `[B, time channels]`.
    pub(super) fn forward(&self, map: &FeatureMap, time: &Tensor) -> Result<FeatureMap> {
        let (layers, time, place) = (self.0.clone(), time.clone(), map.with(map.x.detach()));
        let y = checkpointed(&map.x, None, move |x, _| layers.forward(&place.with(x.clone()), &time))?;
        Ok(map.with(y))
    }
}

impl Layers {
    fn forward(&self, map: &FeatureMap, time: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward(map)?)?;
        let time = self.time_emb_proj.forward(time)?.unsqueeze(1)?;
        let h = h.with(h.x.broadcast_add(&time)?);
        let h = self.conv2.forward(&self.norm2.forward(&h)?)?;
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(&map.x)?,
            None => map.x.clone(),
        };
        add(&shortcut, &h.x)
    }
}
