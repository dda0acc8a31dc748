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

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use candle_core::Device;

    /// Real timesteps lie where `c_skip` vanishes, so no run shows it.
    #[test]
    fn boundary_condition() {
        let x = Tensor::full(3.0f32, (1, 4, 2, 2), &Device::Cpu).unwrap();
        let x0 = Tensor::full(2.0f32, (1, 4, 2, 2), &Device::Cpu).unwrap();
        // c_skip = 1 at t = 0, and 1/2 with c_out = sqrt(1/2) where the scaled t is sigma_data.
        for (timestep, expected) in [(0.0, 3.0), (0.05, 1.5 + 2.0 * 0.5f32.sqrt())] {
            let step = Step { timestep, from: Level { alpha: 0.8, sigma: 0.6 }, to: Level::CLEAN };
            let mut lcm = Lcm { timestep_scaling: 10.0 };
            let f = lcm.step(&step, &x, &x0, &mut |shape| panic!("noise {shape:?} at the last step")).unwrap();
            for value in f.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
                // Three roundings of values below 4.
                assert!((value - expected).abs() <= 4.0 * f32::EPSILON, "{value}, not {expected}");
            }
        }
    }
}
