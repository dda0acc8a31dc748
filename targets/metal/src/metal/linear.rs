//! A frozen linear layer (and so a 1x1 convolution).

use super::{Argument, OnCpu, Weight, not_here, with_frozen};
use crate::plan::linear;
use candle_core::{CpuStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// `y = x W^T + b`, `x: [.., in]` f32 or f16, `W: [out, in]`, `b: [out]` f32.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Arc<Weight>,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let x = Argument::new(storage, layout)?;
        let (rows, shape) = rows(layout, self.weight.inputs(), self.weight.outputs())?;
        let (place, weight) = (x.dense()?, self.weight.on_device());
        x.result(shape, |bench, y| match &self.bias {
            None => linear::forward(bench, &weight, None, rows, place, y),
            Some(bias) => with_frozen(bias, self.weight.outputs(), |bias| {
                linear::forward(bench, &weight, Some(bias), rows, place, y)
            }),
        })
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&LinearBackward(&self.weight))?))
    }
}

/// `dx = dy W`.
struct LinearBackward<'a>(&'a Weight);

impl CustomOp1 for LinearBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-linear-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let dy = Argument::new(storage, layout)?;
        let (rows, shape) = rows(layout, self.0.outputs(), self.0.inputs())?;
        let (place, weight) = (dy.dense()?, self.0.on_device());
        dy.result(shape, |bench, dx| linear::backward(bench, &weight, rows, place, dx))
    }
}

/// How many rows of `width` the argument has, and the result's shape with rows of `out`.
fn rows(layout: &Layout, width: usize, out: usize) -> Result<(usize, Shape)> {
    let mut dims = layout.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == width => *last = out,
        _ => bail!("a linear layer for {width} features got {:?}", layout.shape()),
    }
    Ok((layout.shape().elem_count() / width, dims.into()))
}
