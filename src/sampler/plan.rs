//! Which timesteps a solver visits and which noise levels it steps between, as diffusers' schedulers lay them out.

use super::schedule::{Level, PredictionType, Schedule, TimestepSpacing};
use super::{Sampler, Solver, weighted_sum};
use crate::{Error, Result};
use candle_core::Tensor;

/// One denoising step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// What the network is told; fractional only for Euler with linspace spacing.
    pub timestep: f64,
    /// Level of the latent before the step.
    pub from: Level,
    /// Level of the latent after it.
    pub to: Level,
}

/// A run of a solver from its first timestep down to the clean latent.
#[derive(Clone, Debug)]
pub struct Plan {
    sampler: Sampler,
    steps: Vec<Step>,
    prediction_type: PredictionType,
    prior_sigma: f64,
    timestep_scaling: f64,
}

impl Plan {
    /// The plan that the diffusers class of `sampler` makes after `from_config` of the model's configuration,
    /// `set_timesteps(steps)` and, for picture to picture, `get_timesteps` with `strength`
    /// (pipeline_controlnet_img2img.py): of `steps` timesteps the last `floor(steps * strength)` are kept.
    ///
    /// Where that leads to a timestep outside the schedule or to the same timestep twice, an error takes its place;
    /// the surplus timestep -1 that rounding gives diffusers for 62 of the step counts with trailing spacing is left
    /// out.
    ///
    /// # Errors
    /// [`Error::Usage`] when `steps` is 0 or more than the schedule allows, when `strength` is outside (0, 1], or when
    /// the two leave no step.
    pub fn new(schedule: &Schedule, sampler: Sampler, steps: usize, strength: f64) -> Result<Plan> {
        let config = schedule.config();
        let n = config.num_train_timesteps;
        if steps == 0 || steps > n {
            return Err(Error::Usage(format!("{steps} steps asked for; give 1 to {n}")));
        }
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(Error::Usage(format!("strength is {strength}; give more than 0 and at most 1")));
        }
        let kept = (steps as f64 * strength) as usize;
        if kept == 0 {
            return Err(Error::Usage(format!(
                "strength {strength} leaves none of {steps} steps; give more steps or a strength of at least {:.3}",
                1.0 / steps as f64
            )));
        }
        let timesteps = timesteps(schedule, sampler, steps)?;
        if timesteps.windows(2).any(|pair| pair[1] >= pair[0]) {
            return Err(Error::Usage(format!("{steps} steps are too many for {sampler} on {n} timesteps; use fewer")));
        }
        let prior_sigma = match (sampler, spacing(schedule, sampler)) {
            // EulerDiscreteScheduler.init_noise_sigma: no clean part is accounted for in these two spacings.
            (Sampler::Euler, TimestepSpacing::Linspace | TimestepSpacing::Trailing) => {
                schedule.level(timesteps[0])?.sigma
            }
            _ => 1.0,
        };
        let ratio = (n / steps) as f64;
        let steps = between_levels(schedule, sampler, &timesteps[steps - kept..], ratio)?;
        let (prediction_type, timestep_scaling) = (config.prediction_type, config.timestep_scaling);
        Ok(Plan { sampler, steps, prediction_type, prior_sigma, timestep_scaling })
    }

    /// The steps in the order they are taken; never empty.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The timesteps alone.
    pub fn timesteps(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.timestep).collect()
    }

    /// What the network predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }

    /// The latent a run from nothing starts with, from unit noise `[B, 4, h, w]`: the noise itself, but for Euler with
    /// linspace or trailing spacing, whose diffusers class scales it a little down.
    ///
    /// # Errors
    /// What candle reports.
    pub fn start(&self, noise: &Tensor) -> Result<Tensor> {
        weighted_sum(&[(self.prior_sigma, noise)])
    }

    /// The latent a run from a picture starts with: the clean latent `x0` `[B, 4, h, w]` with `noise` of the same
    /// shape at the first timestep (SDEdit, arXiv 2108.01073).
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let Level { alpha, sigma } = self.steps[0].from;
        weighted_sum(&[(alpha, x0), (sigma, noise)])
    }

    pub(super) fn solver(&self) -> Box<dyn Solver> {
        match self.sampler {
            Sampler::DpmSolverPp2M => Box::<super::dpm_solver::DpmSolverPp2M>::default(),
            Sampler::UniPc => Box::<super::unipc::UniPc>::default(),
            Sampler::Ddim => Box::new(super::ddim::Ddim),
            Sampler::Euler => Box::new(super::euler::Euler),
            Sampler::Lcm => Box::new(super::lcm::Lcm { timestep_scaling: self.timestep_scaling }),
        }
    }
}

/// Each timestep with the levels before and after it; `ratio` is what DDIM takes for the distance of two timesteps.
fn between_levels(schedule: &Schedule, sampler: Sampler, timesteps: &[f64], ratio: f64) -> Result<Vec<Step>> {
    let step = |(i, &timestep): (usize, &f64)| {
        let to = match (sampler, timesteps.get(i + 1)) {
            // DDIMScheduler.step looks a whole ratio back, whatever the next timestep is.
            (Sampler::Ddim, _) if timestep < ratio => schedule.final_level(),
            (Sampler::Ddim, _) => schedule.level(timestep - ratio)?,
            (_, Some(&next)) => schedule.level(next)?,
            (_, None) => Level::CLEAN,
        };
        Ok(Step { timestep, from: schedule.level(timestep)?, to })
    };
    timesteps.iter().enumerate().map(step).collect()
}

fn spacing(schedule: &Schedule, sampler: Sampler) -> TimestepSpacing {
    schedule.config().timestep_spacing.unwrap_or(match sampler {
        Sampler::Ddim | Sampler::Lcm => TimestepSpacing::Leading,
        Sampler::DpmSolverPp2M | Sampler::UniPc | Sampler::Euler => TimestepSpacing::Linspace,
    })
}

/// All timesteps of a run, highest first: `set_timesteps` of each diffusers class.
fn timesteps(schedule: &Schedule, sampler: Sampler, steps: usize) -> Result<Vec<f64>> {
    let config = schedule.config();
    if sampler == Sampler::Lcm {
        return lcm_timesteps(config.num_train_timesteps, config.original_inference_steps, steps);
    }
    // The multistep classes lay out one node more and drop the last, next to the clean latent.
    let nodes = steps + usize::from(matches!(sampler, Sampler::DpmSolverPp2M | Sampler::UniPc));
    let n = config.num_train_timesteps;
    let last = (n - 1) as f64;
    let mut ascending: Vec<f64> = match spacing(schedule, sampler) {
        TimestepSpacing::Leading => (0..nodes).map(|i| (i * (n / nodes) + config.steps_offset) as f64).collect(),
        TimestepSpacing::Linspace => {
            let stride = last / (nodes.max(2) - 1) as f64;
            let node = |i: usize| if i > 0 && i == nodes - 1 { last } else { i as f64 * stride };
            match sampler {
                // EulerDiscreteScheduler keeps the fraction, in f32.
                Sampler::Euler => (0..nodes).map(|i| f64::from(node(i) as f32)).collect(),
                _ => (0..nodes).map(|i| node(i).round_ties_even()).collect(),
            }
        }
        TimestepSpacing::Trailing => {
            // numpy.arange(n, 0, -n / steps) adds multiples of the difference of its first two values.
            let n = n as f64;
            let delta = (n - n / steps as f64) - n;
            return Ok((0..steps).map(|i| (n + i as f64 * delta).round_ties_even() - 1.0).collect());
        }
    };
    ascending.reverse();
    ascending.truncate(steps);
    Ok(ascending)
}

/// `steps` of the `original` evenly spaced timesteps that the model was distilled on.
fn lcm_timesteps(n: usize, original: usize, steps: usize) -> Result<Vec<f64>> {
    if original > n || steps > original {
        return Err(Error::Usage(format!(
            "{steps} steps asked for, but this latent consistency model was distilled on {original} of {n} timesteps; \
             give at most {}",
            original.min(n)
        )));
    }
    let stride = original as f64 / steps as f64;
    let skipped = |i: usize| (i as f64 * stride).floor() as usize;
    Ok((0..steps).map(|i| ((original - skipped(i)) * (n / original) - 1) as f64).collect())
}

#[cfg(test)]
mod tests {
    use super::super::schedule::SchedulerConfig;
    use super::*;

    const ALL: [Sampler; 5] = Sampler::ALL;

    fn schedule(spacing: &str) -> Schedule {
        let text = format!(
            r#"{{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
                "num_train_timesteps": 1000, "set_alpha_to_one": false, "timestep_spacing": "{spacing}"}}"#
        );
        Schedule::new(SchedulerConfig::from_json(&text).unwrap()).unwrap()
    }

    #[test]
    fn impossible_requests_are_usage_errors() {
        let schedule = schedule("leading");
        for sampler in ALL {
            for (steps, strength) in
                [(0, 1.0), (1001, 1.0), (25, 0.0), (25, -0.5), (25, 1.01), (25, f64::NAN), (4, 0.2), (1000, 1.0)]
            {
                let error = Plan::new(&schedule, sampler, steps, strength).expect_err("impossible");
                assert!(matches!(error, Error::Usage(_)), "{sampler} {steps} {strength}: {error}");
            }
        }
        assert!(Plan::new(&schedule, Sampler::Lcm, 51, 1.0).is_err());
    }

    #[test]
    fn strength_keeps_the_last_steps() {
        for spacing in ["leading", "linspace", "trailing"] {
            let schedule = schedule(spacing);
            for sampler in ALL {
                let whole = Plan::new(&schedule, sampler, 25, 1.0).unwrap();
                let part = Plan::new(&schedule, sampler, 25, 0.8).unwrap();
                assert_eq!(part.steps(), &whole.steps()[5..], "{sampler} {spacing}");
            }
        }
    }

    #[test]
    fn every_trailing_count_has_its_number_of_timesteps() {
        // numpy gives one more for 61, 103, 121, ... and ends those at -1.
        let schedule = schedule("trailing");
        for steps in 1..=1000 {
            let plan = Plan::new(&schedule, Sampler::Euler, steps, 1.0).unwrap();
            assert_eq!(plan.steps().len(), steps);
            assert_eq!(plan.steps()[0].timestep, 999.0);
        }
    }
}
