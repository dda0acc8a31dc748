//! GEGLU, arXiv 2002.05202: the first half of the channels times the exact GELU of the second.

use crate::float::{Floats, Lanewise, density_shape, lanewise, normal_cdf};
use crate::isa::{Token, Work, with_token};
use crate::memory::unwritten;
use crate::{Isa, floats, output};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `[.., 2C] -> [.., C]`. The distribution function is off by at most 1e-7.
#[derive(Debug, Clone, Copy)]
pub struct Geglu {
    /// What it runs on.
    pub isa: Isa,
}

/// Values a thread takes at a time.
const TASK: usize = 1 << 14;

/// One over the root of two pi.
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

/// Of a value and its gate.
struct Gated;

impl Lanewise<2, 1> for Gated {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [value, gate]: [F::Vector; 2]) -> [F::Vector; 1] {
        let cdf = normal_cdf(f, gate, density_shape(f, gate));
        [f.mul(f.mul(value, gate), cdf)]
    }
}

/// The gradients of a value and its gate.
struct GatedSlope;

impl Lanewise<3, 2> for GatedSlope {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [value, gate, dy]: [F::Vector; 3]) -> [F::Vector; 2] {
        let shape = density_shape(f, gate);
        let cdf = normal_cdf(f, gate, shape);
        let slope = f.mul_add(gate, f.mul(shape, f.splat(DENSITY_AT_ZERO)), cdf);
        [f.mul(f.mul(dy, gate), cdf), f.mul(f.mul(dy, value), slope)]
    }
}

/// Some rows.
struct Forward<'a, F> {
    f: F,
    channels: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<F: Floats> Work for Forward<'_, F> {
    #[inline(always)]
    fn run(self) {
        let Forward { f, channels, x, y } = self;
        for (x, y) in x.chunks_exact(2 * channels).zip(y.chunks_exact_mut(channels)) {
            let (value, gate) = x.split_at(channels);
            lanewise(f, &Gated, [value, gate], [y]);
        }
    }
}

/// Some rows.
struct Backward<'a, F> {
    f: F,
    channels: usize,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl<F: Floats> Work for Backward<'_, F> {
    #[inline(always)]
    fn run(self) {
        let Backward { f, channels, x, dy, dx } = self;
        let rows = x.chunks_exact(2 * channels).zip(dy.chunks_exact(channels)).zip(dx.chunks_exact_mut(2 * channels));
        for ((x, dy), dx) in rows {
            let ((value, gate), (dvalue, dgate)) = (x.split_at(channels), dx.split_at_mut(channels));
            lanewise(f, &GatedSlope, [value, gate, dy], [dvalue, dgate]);
        }
    }
}

/// C, from a last dimension of 2C.
fn channels(layout: &Layout) -> Result<usize> {
    match layout.dims().last() {
        Some(&last) if last > 0 && last % 2 == 0 => Ok(last / 2),
        _ => bail!("GEGLU takes an even number of channels, got {:?}", layout.shape()),
    }
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let c = channels(layout)?;
        let x = floats(storage, layout)?;
        // SAFETY: rows are whole, and each is written.
        let mut y = unsafe { unwritten(x.len() / 2) };
        let rows = (TASK / c).max(1);
        let tasks = y.par_chunks_mut(rows * c).zip(x.par_chunks(rows * 2 * c));
        with_token!(self.isa, f => tasks.for_each(|(y, x)| f.vectorize(Forward { f, channels: c, x, y })));
        let mut dims = layout.dims().to_vec();
        *dims.last_mut().expect("checked by channels()") = c;
        Ok(output(y, dims))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GegluBackward(*self))?))
    }
}

struct GegluBackward(Geglu);

impl CustomOp2 for GegluBackward {
    fn name(&self) -> &'static str {
        "geglu-backward"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, gs: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let c = channels(xl)?;
        let (x, dy) = (floats(xs, xl)?, floats(gs, gl)?);
        if dy.len() != x.len() / 2 {
            bail!("a gradient of {:?} for {:?}", gl.shape(), xl.shape())
        }
        // SAFETY: rows are whole, and each is written.
        let mut dx = unsafe { unwritten(x.len()) };
        let rows = (TASK / c).max(1);
        let (dxs, xs) = (dx.par_chunks_mut(rows * 2 * c), x.par_chunks(rows * 2 * c));
        with_token!(self.0.isa, f => dxs.zip(xs).zip(dy.par_chunks(rows * c)).for_each(|((dx, x), dy)| {
            f.vectorize(Backward { f, channels: c, x, dy, dx });
        }));
        Ok(output(dx, xl.shape().clone()))
    }
}
