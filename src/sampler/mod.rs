//! From noise to a clean latent: one loop, five solvers, the schedules and noise they run on.
//!
//! Every latent here is `[B, 4, h, w]` f32 in the variance-preserving scaling `x_t = alpha_t x_0 + sigma_t eps`,
//! whatever the solver's paper uses inside.

pub mod ddim;
mod dpm_solver;
mod euler;
pub mod guidance;
mod lcm;
pub mod noise;
mod plan;
mod schedule;
mod unipc;

pub use guidance::{Branch, Guidance, GuidanceForm};
pub use noise::{RngState, TorchRng};
pub use plan::{Plan, Step};
pub use schedule::{BetaSchedule, Level, PredictionType, Schedule, SchedulerConfig, TimestepSpacing};

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The network as a solver sees it; prediction type, guidance and control are inside.
pub trait Denoiser {
    /// Predicted clean latent `x_0` `[B, 4, h, w]` for `x` of the same shape at timestep `t`.
    ///
    /// # Errors
    /// Whatever the network reports; it ends the run.
    fn denoise(&mut self, x: &Tensor, t: f64) -> Result<Tensor>;
}

/// A solver, by the name users give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Sampler {
    /// DPM-Solver++ (2M), `dpm++2m`.
    DpmSolverPp2M,
    /// UniPC of order 2, `unipc`.
    UniPc,
    /// Deterministic DDIM, `ddim`.
    Ddim,
    /// Euler's method, `euler`.
    Euler,
    /// Latent consistency sampling, `lcm`; only for models distilled for it.
    Lcm,
}

impl Sampler {
    /// Every solver.
    pub const ALL: [Sampler; 5] = [Sampler::DpmSolverPp2M, Sampler::UniPc, Sampler::Ddim, Sampler::Euler, Sampler::Lcm];

    /// The name users give it.
    pub fn name(self) -> &'static str {
        match self {
            Sampler::DpmSolverPp2M => "dpm++2m",
            Sampler::UniPc => "unipc",
            Sampler::Ddim => "ddim",
            Sampler::Euler => "euler",
            Sampler::Lcm => "lcm",
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<Sampler> for &'static str {
    fn from(sampler: Sampler) -> Self {
        sampler.name()
    }
}

impl TryFrom<String> for Sampler {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|sampler| sampler.name() == name).ok_or_else(|| {
            Error::Usage(format!(
                "no sampler is called \"{name}\"; use one of {}",
                Self::ALL.map(Sampler::name).join(", ")
            ))
        })
    }
}

/// What a run tells after each step.
#[derive(Debug)]
pub struct StepReport<'a> {
    /// The step just taken, from 0.
    pub index: usize,
    /// Number of steps in the run.
    pub count: usize,
    /// Whether the run goes from the picture up to noise ([`ddim::invert`]) instead of down.
    pub inverting: bool,
    /// The timestep the network was given.
    pub timestep: f64,
    /// The latent after the step `[B, 4, h, w]`.
    pub latent: &'a Tensor,
    /// The network's estimate of the clean latent `[B, 4, h, w]`, fit for a preview.
    pub denoised: &'a Tensor,
}

/// Draws unit noise of a shape.
pub type NoiseSource<'a> = dyn FnMut(&[usize]) -> Result<Tensor> + 'a;

/// Told of each step; its error ends the run.
pub type OnStep<'a> = dyn FnMut(StepReport<'_>) -> Result<()> + 'a;

/// One way of getting from a step's level to the next. A solver keeps its own history and lives for one run.
trait Solver {
    /// The latent at `step.to`, from `x` at `step.from` and the network's clean estimate for it.
    fn step(&mut self, step: &Step, x: &Tensor, denoised: &Tensor, noise: &mut NoiseSource<'_>) -> Result<Tensor>;
}

/// Runs `plan` from the latent `x` `[B, 4, h, w]` f32, which [`Plan::start`], [`Plan::add_noise`] or [`ddim::invert`]
/// made, and returns the clean latent.
///
/// `noise` is drawn from only by [`Sampler::Lcm`], once a step but the last.
///
/// # Errors
/// Those of `denoiser`, `noise` and `on_step` ([`Error::Interrupted`], say); [`Error::NotFinite`] as soon as a latent
/// holds a value that is not finite.
pub fn sample(
    denoiser: &mut dyn Denoiser,
    plan: &Plan,
    mut x: Tensor,
    noise: &mut NoiseSource<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<Tensor> {
    let mut solver = plan.solver();
    let count = plan.steps().len();
    for (index, step) in plan.steps().iter().enumerate() {
        let denoised = denoiser.denoise(&x, step.timestep)?;
        x = solver.step(step, &x, &denoised, noise)?;
        check_finite(&x, step.timestep)?;
        on_step(StepReport {
            index,
            count,
            inverting: false,
            timestep: step.timestep,
            latent: &x,
            denoised: &denoised,
        })?;
    }
    Ok(x)
}

fn check_finite(latent: &Tensor, timestep: f64) -> Result<()> {
    let values = latent.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(Error::NotFinite {
        what: format!("a value of the latent after timestep {timestep}"),
        remedy: "lower the guidance, or check that the model's weights are complete and undamaged".into(),
    })
}

/// `sum of weight * tensor` over tensors of one shape; at least one term.
fn weighted_sum(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let ((weight, tensor), rest) = terms.split_first().expect("callers give at least one term");
    let mut sum = (*tensor * *weight)?;
    for (weight, tensor) in rest {
        sum = (sum + (*tensor * *weight)?)?;
    }
    Ok(sum)
}
