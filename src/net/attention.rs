//! The transformer inside a UNet block (diffusers `Transformer2DModel`).

use super::checkpoint::checkpointed;
use super::layers::{Attention, FeatureMap, Geglu, GroupNorm, LayerNorm, Linear, add};
use crate::Result;
use crate::bundle::config::UnetConfig;
use crate::bundle::weights::Names;
use candle_core::Tensor;
use std::sync::Arc;

/// Rows that the feed-forward layers widen at once.
const WIDENED_ROWS: usize = 2048;

/// `[B, H*W, C] -> [B, H*W, C]`, told the text.
#[derive(Debug)]
pub(super) struct Transformer(Arc<Layers>);

#[derive(Debug)]
struct Layers {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
    channels: usize,
}

impl Transformer {
    pub(super) fn load(names: &Names, config: &UnetConfig, level: usize) -> Result<Self> {
        let (channels, heads) = (config.block_out_channels[level], config.heads(level));
        let blocks = config.transformer_layers_per_block.at(level);
        Ok(Transformer(Arc::new(Layers {
            norm: GroupNorm::load(&names.pp("norm"), channels, config.norm_num_groups, 1e-6, false)?,
            proj_in: Linear::load(&names.pp("proj_in"), channels, channels)?,
            transformer_blocks: (0..blocks)
                .map(|i| {
                    let names = names.pp("transformer_blocks").pp(i);
                    TransformerBlock::load(&names, channels, heads, config.cross_attention_dim)
                })
                .collect::<Result<_>>()?,
            proj_out: Linear::load(&names.pp("proj_out"), channels, channels)?,
            channels,
        })))
    }

    /// Keys and values of the text states `[B, 77, D]` for every layer, side by side: `[B, 77, layers * 2C]`.
    pub(super) fn text_kv(&self, states: &Tensor) -> Result<Tensor> {
        let kvs: Vec<_> =
            self.0.transformer_blocks.iter().map(|b| b.attn2.to_kv.forward(states)).collect::<Result<_>>()?;
        Ok(Tensor::cat(&kvs, 2)?)
    }

    /// `kv`: what [`Transformer::text_kv`] gave.
    pub(super) fn forward(&self, map: &FeatureMap, kv: &Tensor) -> Result<FeatureMap> {
        let (layers, place) = (self.0.clone(), map.with(map.x.detach()));
        let y = checkpointed(&map.x, Some(kv), move |x, kv| {
            layers.forward(&place.with(x.clone()), kv.expect("given to checkpointed() above"))
        })?;
        Ok(map.with(y))
    }
}

impl Layers {
    fn forward(&self, map: &FeatureMap, kv: &Tensor) -> Result<Tensor> {
        let mut x = self.proj_in.forward(&self.norm.forward(map)?.x)?;
        for (i, block) in self.transformer_blocks.iter().enumerate() {
            x = block.forward(&x, &kv.narrow(2, i * 2 * self.channels, 2 * self.channels)?)?;
        }
        add(&self.proj_out.forward(&x)?, &map.x)
    }
}

#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: SelfAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_gate: Geglu,
    ff_out: Linear,
}

/// Attention of the picture to itself; the three projections are one product.
#[derive(Debug)]
struct SelfAttention {
    to_qkv: Linear,
    attention: Attention,
    to_out: Linear,
}

/// Attention of the picture to the text.
#[derive(Debug)]
struct CrossAttention {
    to_q: Linear,
    to_kv: Linear,
    attention: Attention,
    to_out: Linear,
}

impl TransformerBlock {
    fn load(names: &Names, channels: usize, heads: usize, text: usize) -> Result<Self> {
        let norm = |name| LayerNorm::load(&names.pp(name), channels, 1e-5);
        let out = |attn: &Names| Linear::load(&attn.pp("to_out.0"), channels, channels);
        let (attn1, attn2) = (names.pp("attn1"), names.pp("attn2"));
        let to_qkv = Linear::load_joined_without_bias(&attn1, "to_qkv", &["to_q", "to_k", "to_v"], channels, channels)?;
        let to_q = Linear::load_without_bias(&attn2.pp("to_q"), channels, channels)?;
        Ok(TransformerBlock {
            norm1: norm("norm1")?,
            attn1: SelfAttention {
                attention: Attention::new(names, heads, false, &to_qkv),
                to_qkv,
                to_out: out(&attn1)?,
            },
            norm2: norm("norm2")?,
            attn2: CrossAttention {
                attention: Attention::new(names, heads, false, &to_q),
                to_q,
                to_kv: Linear::load_joined_without_bias(&attn2, "to_kv", &["to_k", "to_v"], text, channels)?,
                to_out: out(&attn2)?,
            },
            norm3: norm("norm3")?,
            ff_in: Linear::load(&names.pp("ff.net.0.proj"), channels, 8 * channels)?,
            ff_gate: Geglu::new(names),
            ff_out: Linear::load(&names.pp("ff.net.2"), 4 * channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor, kv: &Tensor) -> Result<Tensor> {
        let x = add(x, &self.attn1.forward(&self.norm1.forward(x)?)?)?;
        let x = add(&x, &self.attn2.forward(&self.norm2.forward(&x)?, kv)?)?;
        self.feed_forward(x)
    }

    /// `[B, N, C] -> [B, N, C]`. The widened map is eight times as wide as `x`, so that of a large one only some rows exist
    /// at once on the processor; learning needs all of them anyway, and a GPU would idle between the parts.
    fn feed_forward(&self, x: Tensor) -> Result<Tensor> {
        let layers = |x: &Tensor| {
            let h = self.ff_gate.forward(&self.ff_in.forward(&self.norm3.forward(x)?)?)?;
            add(x, &self.ff_out.forward(&h)?)
        };
        let (batch, pixels, channels) = x.dims3()?;
        let all = batch * pixels;
        if x.track_op() || all <= WIDENED_ROWS || !x.device().is_cpu() {
            return layers(&x);
        }
        let rows = x.reshape((1, all, channels))?;
        let part = |first| layers(&rows.narrow(1, first, WIDENED_ROWS.min(all - first))?);
        let parts: Vec<_> = (0..all).step_by(WIDENED_ROWS).map(part).collect::<Result<_>>()?;
        Ok(Tensor::cat(&parts, 1)?.reshape((batch, pixels, channels))?)
    }
}

impl SelfAttention {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (c, qkv) = (x.dim(2)?, self.to_qkv.forward(x)?);
        self.to_out.forward(&self.attention.forward(&qkv.narrow(2, 0, c)?, &qkv.narrow(2, c, 2 * c)?)?)
    }
}

impl CrossAttention {
    fn forward(&self, x: &Tensor, kv: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&self.attention.forward(&self.to_q.forward(x)?, kv)?)
    }
}
