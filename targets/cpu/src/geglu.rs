//! GEGLU, arXiv 2002.05202: the first half of the channels times the exact GELU of the second.

use crate::{floats, output};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `[.., 2C] -> [.., C]`.
#[derive(Debug, Clone, Copy)]
pub struct Geglu;

/// The standard normal distribution function and its density at `x`.
fn normal(x: f32) -> (f32, f32) {
    let cdf = 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
    let density = (-0.5 * x * x).exp() * 0.398_942_3;
    (cdf, density)
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
        let mut y = vec![0.0; x.len() / 2];
        y.par_chunks_mut(c).zip(x.par_chunks(2 * c)).for_each(|(y, x)| {
            for i in 0..c {
                y[i] = x[i] * x[c + i] * normal(x[c + i]).0;
            }
        });
        let mut dims = layout.dims().to_vec();
        *dims.last_mut().expect("checked by channels()") = c;
        Ok(output(y, dims))
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

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, gs: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let c = channels(xl)?;
        let (x, dy) = (floats(xs, xl)?, floats(gs, gl)?);
        let mut dx = vec![0.0; x.len()];
        dx.par_chunks_mut(2 * c).zip(x.par_chunks(2 * c)).zip(dy.par_chunks(c)).for_each(|((dx, x), dy)| {
            for i in 0..c {
                let (cdf, density) = normal(x[c + i]);
                dx[i] = dy[i] * x[c + i] * cdf;
                dx[c + i] = dy[i] * x[i] * (cdf + x[c + i] * density);
            }
        });
        Ok(output(dx, xl.shape().clone()))
    }
}
