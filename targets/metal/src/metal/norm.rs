//! GroupNorm (with SiLU folded in) and LayerNorm, frozen. Statistics are f32.

use super::{Argument, OnCpu, not_here, with_frozen};
use crate::plan::norm::{self, Affine, GroupShape};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor, bail};
use candle_metal_kernels::metal::Buffer;

/// GroupNorm over `[B, H*W, C]` f32 or f16, arXiv 1803.08494, optionally followed by SiLU.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// `[C]` f32.
    pub weight: Tensor,
    /// `[C]` f32.
    pub bias: Tensor,
    /// Number of groups; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// LayerNorm over the last dimension, f32 or f16.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[C]` f32.
    pub weight: Tensor,
    /// `[C]` f32.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

fn with_affine<R>(
    (weight, bias, eps): (&Tensor, &Tensor, f64),
    channels: usize,
    run: impl FnOnce(&Affine<'_, Buffer>) -> Result<R>,
) -> Result<R> {
    with_frozen(weight, channels, |weight| {
        with_frozen(bias, channels, |bias| run(&Affine { weight, bias, eps: eps as f32 }))
    })
}

impl GroupNorm {
    fn shape(&self, layout: &Layout) -> Result<GroupShape> {
        let (batch, pixels, channels) = layout.shape().dims3()?;
        Ok(GroupShape { batch, pixels, channels, groups: self.groups, silu: self.silu })
    }
}

impl CustomOp1 for GroupNorm {
    fn name(&self) -> &'static str {
        "frozen-group-norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (x, shape) = (Argument::new(storage, layout)?, self.shape(layout)?);
        let place = x.dense()?;
        x.result(layout.shape().clone(), |bench, y| {
            with_affine((&self.weight, &self.bias, self.eps), shape.channels, |affine| {
                norm::group_norm(bench, shape, affine, place, y)
            })
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GroupNormBackward(self))?))
    }
}

struct GroupNormBackward<'a>(&'a GroupNorm);

impl CustomOp2 for GroupNormBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-group-norm-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(
        &self,
        xs: &MetalStorage,
        xl: &Layout,
        gs: &MetalStorage,
        gl: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let (x, shape) = (Argument::new(xs, xl)?, self.0.shape(xl)?);
        let dy = same_shape(&x, gs, gl)?;
        let (x_place, dy_place) = (x.dense()?, dy.dense()?);
        x.result(xl.shape().clone(), |bench, dx| {
            with_affine((&self.0.weight, &self.0.bias, self.0.eps), shape.channels, |affine| {
                norm::group_norm_backward(bench, shape, affine, x_place, dy_place, dx)
            })
        })
    }
}

fn same_shape<'a>(x: &Argument<'a>, storage: &'a MetalStorage, layout: &'a Layout) -> Result<Argument<'a>> {
    if layout.shape() != x.layout.shape() {
        bail!("a gradient of {:?} for {:?}", layout.shape(), x.layout.shape())
    }
    x.beside(storage, layout)
}

/// Rows and columns.
fn rows(layout: &Layout) -> Result<(usize, usize)> {
    match layout.dims().last() {
        Some(&last) if layout.shape().elem_count() > 0 => Ok((layout.shape().elem_count() / last, last)),
        _ => bail!("LayerNorm takes rows, got {:?}", layout.shape()),
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "frozen-layer-norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (x, size) = (Argument::new(storage, layout)?, rows(layout)?);
        let place = x.dense()?;
        x.result(layout.shape().clone(), |bench, y| {
            with_affine((&self.weight, &self.bias, self.eps), size.1, |affine| {
                norm::layer_norm(bench, size, affine, place, y)
            })
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &LayerNormBackward(self))?))
    }
}

struct LayerNormBackward<'a>(&'a LayerNorm);

impl CustomOp2 for LayerNormBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-layer-norm-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(
        &self,
        xs: &MetalStorage,
        xl: &Layout,
        gs: &MetalStorage,
        gl: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let (x, size) = (Argument::new(xs, xl)?, rows(xl)?);
        let dy = same_shape(&x, gs, gl)?;
        let (x_place, dy_place) = (x.dense()?, dy.dense()?);
        x.result(xl.shape().clone(), |bench, dx| {
            with_affine((&self.0.weight, &self.0.bias, self.0.eps), size.1, |affine| {
                norm::layer_norm_backward(bench, size, affine, x_place, dy_place, dx)
            })
        })
    }
}
