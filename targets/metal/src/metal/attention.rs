//! Attention with the heads side by side in the channels.

use super::{Argument, OnCpu, not_here};
use crate::plan::attention::{self, Rows, Shape as Sizes};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Storage, Tensor, bail};
use candle_metal_kernels::metal::Buffer;

/// `softmax(q k^T / sqrt(head size)) v` of each head, `q: [B, N, C]` and `kv: [B, M, 2C]`, keys before values, f32 or f16.
/// Rows must be contiguous, but may lie apart.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Divides C.
    pub heads: usize,
    /// Whether a query sees only keys up to its own place.
    pub causal: bool,
}

impl Attention {
    fn sizes(&self, q: &Layout, kv: &Layout) -> Result<Sizes> {
        let (batch, queries, channels) = q.shape().dims3()?;
        let (kv_batch, keys, width) = kv.shape().dims3()?;
        if width != 2 * channels || kv_batch != batch {
            bail!("attention with {} heads got q {:?} and kv {:?}", self.heads, q.shape(), kv.shape())
        }
        Ok(Sizes { batch, queries, keys, channels, heads: self.heads, causal: self.causal })
    }
}

fn rows<'a>(argument: &Argument<'a>) -> Result<Rows<'a, Buffer>> {
    match *argument.layout.stride() {
        [picture_stride, row_stride, 1] => Ok(Rows { place: argument.place(), picture_stride, row_stride }),
        _ => bail!("attention takes rows of contiguous values, got strides {:?}", argument.layout.stride()),
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(
        &self,
        qs: &MetalStorage,
        ql: &Layout,
        kvs: &MetalStorage,
        kvl: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let (q, sizes) = (Argument::new(qs, ql)?, self.sizes(ql, kvl)?);
        let (q_rows, kv_rows) = (rows(&q)?, rows(&q.beside(kvs, kvl)?)?);
        q.result(ql.shape().clone(), |bench, y| attention::forward(bench, sizes, q_rows, kv_rows, y))
    }

    fn bwd(&self, q: &Tensor, kv: &Tensor, y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let backward = AttentionBackward { op: *self, y: y.clone() };
        let both = q.apply_op3_no_bwd(kv, &grad.contiguous()?, &backward)?;
        let dq = both.narrow(0, 0, q.elem_count())?.reshape(q.shape())?;
        let dkv = both.narrow(0, q.elem_count(), kv.elem_count())?.reshape(kv.shape())?;
        Ok((Some(dq), Some(dkv)))
    }
}

/// The gradients of `q` and `kv`, one after the other in one flat tensor; the probabilities are computed again.
struct AttentionBackward {
    op: Attention,
    /// What the forward gave.
    y: Tensor,
}

impl CustomOp3 for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(
        &self,
        qs: &MetalStorage,
        ql: &Layout,
        kvs: &MetalStorage,
        kvl: &Layout,
        gs: &MetalStorage,
        gl: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let (q, sizes) = (Argument::new(qs, ql)?, self.op.sizes(ql, kvl)?);
        let (kv, dy) = (q.beside(kvs, kvl)?, q.beside(gs, gl)?);
        let (storage, layout) = self.y.storage_and_layout();
        let Storage::Metal(y) = &*storage else { bail!("the result of a Metal op must be on that device") };
        let y = q.beside(y, layout)?;
        if gl.shape() != ql.shape() || layout.shape() != ql.shape() {
            bail!("a gradient of {:?} for {:?}", gl.shape(), ql.shape())
        }
        let (q_rows, kv_rows, given) = (rows(&q)?, rows(&kv)?, (y.dense()?, dy.dense()?));
        let count = ql.shape().elem_count() + kvl.shape().elem_count();
        q.result(count, |bench, both| attention::backward(bench, sizes, q_rows, kv_rows, given, both))
    }
}
