//! Euler's method, arXiv 2206.00364, algorithm 1 without its second-order correction; k-diffusion's `sample_euler`.

use super::{NoiseSource, Solver, Step, weighted_sum};
use crate::Result;
use candle_core::Tensor;

pub(super) struct Euler;

impl Solver for Euler {
    fn step(&mut self, step: &Step, x: &Tensor, denoised: &Tensor, _: &mut NoiseSource<'_>) -> Result<Tensor> {
        let Step { from, to, .. } = *step;
        // The paper's latents are x_0 + sigma eps: alpha is divided out on the way in and put back on the way out.
        let (sigma, sigma_next) = (from.sigma / from.alpha, to.sigma / to.alpha);
        let x = (x / from.alpha)?;
        let d = weighted_sum(&[(1.0 / sigma, &x), (-1.0 / sigma, denoised)])?;
        let dt = sigma_next - sigma;
        weighted_sum(&[(to.alpha, &x), (to.alpha * dt, &d)])
    }
}
