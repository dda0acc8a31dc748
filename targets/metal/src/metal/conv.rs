//! A frozen 3x3 convolution with padding 1, channels last.

use super::{Argument, OnCpu, Weight, not_here, with_frozen};
use crate::plan::conv::{self, Geometry};
use candle_core::{CpuStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// `y[b, p, :] = bias + sum over the 3x3 neighbourhood of p`, `x: [B, H*W, in]` f32 or f16, `y: [B, H'*W', out]`.
#[derive(Debug, Clone)]
pub struct Conv3x3 {
    /// `[out, (ky, kx, in)]`.
    pub weight: Arc<Weight>,
    /// `[out]` f32.
    pub bias: Tensor,
    /// Height of the input in pixels.
    pub height: usize,
    /// Width of the input in pixels.
    pub width: usize,
    /// How often each pixel of the input is repeated both ways before the convolution: 2 is the UNet's upsampling, else 1.
    pub repeat: usize,
    /// 1 or 2; the output has `ceil(repeat H / stride)` rows.
    pub stride: usize,
}

impl Conv3x3 {
    fn geometry(&self, batch: usize) -> Result<Geometry> {
        let &Conv3x3 { height, width, repeat, stride, .. } = self;
        if stride * repeat == 0 {
            bail!("a 3x3 convolution needs a stride and a repeat of at least 1")
        }
        Ok(Geometry { batch, height, width, repeat, stride })
    }

    /// The pictures of an argument with so many pixels each, and channels.
    fn pictures(&self, layout: &Layout, pixels: usize, channels: usize) -> Result<usize> {
        match layout.shape().dims3()? {
            (batch, p, c) if p == pixels && c == channels && batch * p * c > 0 => Ok(batch),
            _ => {
                let (height, width) = (self.height, self.width);
                bail!("a 3x3 convolution on {height}x{width} pixels got {:?}", layout.shape())
            }
        }
    }
}

impl CustomOp1 for Conv3x3 {
    fn name(&self) -> &'static str {
        "frozen-conv3x3"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let x = Argument::new(storage, layout)?;
        let (outputs, channels) = (self.weight.outputs(), self.weight.inputs() / 9);
        let g = self.geometry(self.pictures(layout, self.height * self.width, channels)?)?;
        let (height, width) = g.output();
        let (place, weight) = (x.dense()?, self.weight.on_device());
        x.result((g.batch, height * width, outputs), |bench, y| {
            with_frozen(&self.bias, outputs, |bias| conv::forward(bench, &weight, bias, g, place, y))
        })
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&Conv3x3Backward(self))?))
    }
}

struct Conv3x3Backward<'a>(&'a Conv3x3);

impl CustomOp1 for Conv3x3Backward<'_> {
    fn name(&self) -> &'static str {
        "frozen-conv3x3-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (dy, op) = (Argument::new(storage, layout)?, self.0);
        let (height, width) = op.geometry(1)?.output();
        let g = op.geometry(op.pictures(layout, height * width, op.weight.outputs())?)?;
        let (place, weight) = (dy.dense()?, op.weight.on_device());
        dy.result((g.batch, op.height * op.width, op.weight.inputs() / 9), |bench, dx| {
            conv::backward(bench, &weight, g, place, dx)
        })
    }
}
