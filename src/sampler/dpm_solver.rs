//! DPM-Solver++ (2M), arXiv 2211.01095, algorithm 2: second order, reusing the previous data prediction.

use super::{Level, NoiseSource, Solver, Step, weighted_sum};
use crate::Result;
use candle_core::Tensor;

/// The symbols are the paper's: a step goes from `t_{i-1}` to `t_i`, `x_theta` is the data prediction at `t_{i-1}`.
#[derive(Default)]
pub(super) struct DpmSolverPp2M {
    /// Level and data prediction at `t_{i-2}`.
    previous: Option<(Level, Tensor)>,
}

impl Solver for DpmSolverPp2M {
    fn step(&mut self, step: &Step, x: &Tensor, x_theta: &Tensor, _: &mut NoiseSource<'_>) -> Result<Tensor> {
        let Step { from, to, .. } = *step;
        let h = to.lambda() - from.lambda();
        let d = match &self.previous {
            // The last step, to lambda = infinity, is of first order, as in diffusers (final_sigmas_type zero).
            Some((before, x_theta_before)) if to.sigma > 0.0 => {
                let r = (from.lambda() - before.lambda()) / h;
                weighted_sum(&[(1.0 + 0.5 / r, x_theta), (-0.5 / r, x_theta_before)])?
            }
            _ => x_theta.clone(),
        };
        self.previous = Some((from, x_theta.clone()));
        weighted_sum(&[(to.sigma / from.sigma, x), (-to.alpha * (-h).exp_m1(), &d)])
    }
}
