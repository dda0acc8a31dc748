//! DDIM, arXiv 2010.02502, eq. 12 with eta = 0: the deterministic step, and the same walked up from a clean latent.

use super::{Denoiser, NoiseSource, OnStep, Plan, PredictionType, Solver, Step, StepReport, weighted_sum};
use crate::Result;
use candle_core::Tensor;

pub(super) struct Ddim;

impl Solver for Ddim {
    fn step(&mut self, step: &Step, x: &Tensor, x0: &Tensor, _: &mut NoiseSource<'_>) -> Result<Tensor> {
        let Step { from, to, .. } = *step;
        let eps = weighted_sum(&[(1.0 / from.sigma, x), (-from.alpha / from.sigma, x0)])?;
        weighted_sum(&[(to.alpha, x0), (to.sigma, &eps)])
    }
}

/// Deterministic inversion: the latent `[B, 4, h, w]` at `plan`'s first timestep from which sampling leads back to the
/// clean latent `x0`, up to the discretisation.
///
/// The plan's steps are walked backwards: from each step's `to` level up to its `from` level, with the network told the
/// step's own timestep, the one being walked to. For a plan of [`super::Sampler::Ddim`] these are the timesteps, levels
/// and results of diffusers' `DDIMInverseScheduler` with the same configuration and number of steps (its list is the
/// plan's, reversed; with a strength below 1, its beginning); the other solvers' plans give their own timesteps and
/// start from no noise at all. For networks that predict the sample, the noise is read off at the told timestep, as
/// for epsilon, since `x0` itself holds none.
///
/// # Errors
/// As [`super::sample`].
pub fn invert(denoiser: &mut dyn Denoiser, plan: &Plan, x0: &Tensor, on_step: &mut OnStep<'_>) -> Result<Tensor> {
    let mut x = x0.clone();
    let count = plan.steps().len();
    for (index, step) in plan.steps().iter().rev().enumerate() {
        let Step { timestep, from: above, to: below } = *step;
        let denoised = denoiser.denoise(&x, timestep)?;
        // The network's answer, undone at the level it was told, gives eps at the level x is really at.
        let (of_x, of_denoised) = match plan.prediction_type() {
            PredictionType::Epsilon | PredictionType::Sample => (1.0 / above.sigma, -above.alpha / above.sigma),
            PredictionType::VPrediction => {
                (below.sigma + below.alpha * above.alpha / above.sigma, -below.alpha / above.sigma)
            }
        };
        let eps = weighted_sum(&[(of_x, &x), (of_denoised, &denoised)])?;
        let x0 = weighted_sum(&[(1.0 / below.alpha, &x), (-below.sigma / below.alpha, &eps)])?;
        x = weighted_sum(&[(above.alpha, &x0), (above.sigma, &eps)])?;
        super::check_finite(&x, timestep)?;
        on_step(StepReport { index, count, inverting: true, timestep, latent: &x, denoised: &denoised })?;
    }
    Ok(x)
}
