//! Latent consistency sampling, arXiv 2310.04378 (multistep sampling of arXiv 2303.01469, algorithm 1).

use super::{NoiseSource, Solver, Step, weighted_sum};
use crate::Result;
use candle_core::Tensor;

const SIGMA_DATA: f64 = 0.5;

pub(super) struct Lcm {
    pub timestep_scaling: f64,
}

impl Solver for Lcm {
    fn step(&mut self, step: &Step, x: &Tensor, x0: &Tensor, noise: &mut NoiseSource<'_>) -> Result<Tensor> {
        // The consistency function's boundary condition: f(x, 0) = x.
        let t = step.timestep * self.timestep_scaling;
        let norm = t * t + SIGMA_DATA * SIGMA_DATA;
        let (c_skip, c_out) = (SIGMA_DATA * SIGMA_DATA / norm, t / norm.sqrt());
        let f = weighted_sum(&[(c_skip, x), (c_out, x0)])?;
        if step.to.sigma == 0.0 {
            return Ok(f);
        }
        let z = noise(x.dims())?.to_device(x.device())?;
        weighted_sum(&[(step.to.alpha, &f), (step.to.sigma, &z)])
    }
}
