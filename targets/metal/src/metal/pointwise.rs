//! GEGLU and the sum of two maps.

use super::{Argument, OnCpu, not_here};
use crate::plan::pointwise;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor, bail};

/// `[.., 2C] -> [.., C]` f32 or f16, arXiv 2002.05202: the first half of the channels times the exact GELU of the second.
#[derive(Debug, Clone, Copy)]
pub struct Geglu;

/// Rows and C, from a last dimension of 2C.
fn halves(layout: &Layout) -> Result<(usize, usize)> {
    match layout.dims().last() {
        Some(&last) if last > 0 && last % 2 == 0 => Ok((layout.shape().elem_count() / last, last / 2)),
        _ => bail!("GEGLU takes an even number of channels, got {:?}", layout.shape()),
    }
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (x, size) = (Argument::new(storage, layout)?, halves(layout)?);
        let place = x.dense()?;
        let mut dims = layout.dims().to_vec();
        dims.pop();
        dims.push(size.1);
        x.result(dims, |bench, y| pointwise::geglu(bench, size, place, y))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GegluBackward)?))
    }
}

struct GegluBackward;

impl CustomOp2 for GegluBackward {
    fn name(&self) -> &'static str {
        "geglu-backward"
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
        let (x, size) = (Argument::new(xs, xl)?, halves(xl)?);
        let dy = x.beside(gs, gl)?;
        if gl.shape().elem_count() != size.0 * size.1 {
            bail!("a gradient of {:?} for {:?}", gl.shape(), xl.shape())
        }
        let (x_place, dy_place) = (x.dense()?, dy.dense()?);
        x.result(xl.shape().clone(), |bench, dx| pointwise::geglu_backward(bench, size, x_place, dy_place, dx))
    }
}

/// `a + b`, both of one shape and type, f32 or f16.
#[derive(Debug, Clone, Copy)]
pub struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> OnCpu {
        not_here(self.name())
    }

    fn metal_fwd(
        &self,
        s1: &MetalStorage,
        l1: &Layout,
        s2: &MetalStorage,
        l2: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        if l1.shape() != l2.shape() {
            bail!("a sum of {:?} and {:?}", l1.shape(), l2.shape())
        }
        let a = Argument::new(s1, l1)?;
        let (a_place, b_place) = (a.dense()?, a.beside(s2, l2)?.dense()?);
        let count = l1.shape().elem_count();
        a.result(l1.shape().clone(), |bench, y| pointwise::add(bench, count, a_place, b_place, y))
    }

    fn bwd(&self, _a: &Tensor, _b: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}
