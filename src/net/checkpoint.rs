//! Block checkpointing: a block's inside is not kept for the backward but computed again from its inputs, so that
//! learning holds one block's activations at a time (arXiv 1604.06174).

use crate::Result;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Error, Layout, MetalStorage, Shape, Storage, Tensor, Var,
};

/// The block as a function of its input and, where it has one, the text's keys and values.
type Block = dyn Fn(&Tensor, Option<&Tensor>) -> Result<Tensor> + Send + Sync;

/// `block(x, kv)`. If a gradient can flow through neither argument (all of painting, and of learning everything before
/// the first cross-attention), this is a plain call.
pub(super) fn checkpointed(
    x: &Tensor,
    kv: Option<&Tensor>,
    block: impl Fn(&Tensor, Option<&Tensor>) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() && !kv.is_some_and(Tensor::track_op) {
        return block(x, kv);
    }
    let y = block(&x.detach(), kv.map(Tensor::detach).as_ref())?.contiguous()?;
    let op = Recompute { y, block: Box::new(block) };
    Ok(match kv {
        Some(kv) => x.apply_op2(kv, op)?,
        None => x.apply_op1(op)?,
    })
}

struct Recompute {
    y: Tensor,
    block: Box<Block>,
}

/// Copies the finished result out; `$variant` is the device's storage.
macro_rules! finished {
    ($self:ident, $variant:ident) => {{
        let (storage, layout) = $self.y.storage_and_layout();
        match &*storage {
            Storage::$variant(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
            _ => Err(Error::msg("a block's result lies on another device than its input")),
        }
    }};
}

impl Recompute {
    /// Gradients of the arguments that a gradient can flow to.
    fn gradients(
        &self,
        x: &Tensor,
        kv: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let leaf = |t: &Tensor| if t.track_op() { Var::from_tensor(&t.detach()).map(Some) } else { Ok(None) };
        let (x_leaf, kv_leaf) = (leaf(x)?, kv.map(leaf).transpose()?.flatten());
        let x_in = x_leaf.as_ref().map_or(x.detach(), |v| v.as_tensor().clone());
        let kv_in = kv.map(|kv| kv_leaf.as_ref().map_or(kv.detach(), |v| v.as_tensor().clone()));
        let y = (self.block)(&x_in, kv_in.as_ref()).map_err(Error::wrap)?;
        let mut grads = (y * grad)?.sum_all()?.backward()?;
        Ok((x_leaf.and_then(|v| grads.remove(&v)), kv_leaf.and_then(|v| grads.remove(&v))))
    }
}

impl CustomOp1 for Recompute {
    fn name(&self) -> &'static str {
        "checkpointed-block"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        finished!(self, Cpu)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        finished!(self, Cuda)
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> candle_core::Result<(MetalStorage, Shape)> {
        finished!(self, Metal)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(self.gradients(x, None, grad)?.0)
    }
}

impl CustomOp2 for Recompute {
    fn name(&self) -> &'static str {
        "checkpointed-block"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        finished!(self, Cpu)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        finished!(self, Cuda)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        finished!(self, Metal)
    }

    fn bwd(
        &self,
        x: &Tensor,
        kv: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, Some(kv), grad)
    }
}
