//! The noise schedule: how much picture (alpha) and how much noise (sigma) a latent holds at timestep t.
//!
//! Variance preserving throughout: `x_t = alpha_t x_0 + sigma_t eps` with `alpha_t^2 + sigma_t^2 = 1`.

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::Deserialize;

/// What the network was trained to predict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise eps.
    #[default]
    Epsilon,
    /// The velocity `alpha_t eps - sigma_t x_0` (arXiv 2202.00512).
    VPrediction,
    /// The clean latent itself.
    Sample,
}

/// How the betas, the variances added by each training step, run from first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// A straight line.
    Linear,
    /// The square of a straight line; Stable Diffusion's.
    ScaledLinear,
    /// Cosine alpha bar, beta capped at 0.999 (arXiv 2102.09672).
    SquaredcosCapV2,
}

/// How the sampling timesteps are laid over the training timesteps (arXiv 2305.08891, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of a whole ratio, plus `steps_offset`.
    Leading,
    /// Evenly from the last timestep to 0.
    Linspace,
    /// Evenly down from the last timestep.
    Trailing,
}

/// A model's `scheduler_config.json` as diffusers writes it, for whichever of its schedulers.
///
/// Keys that only other schedulers know are ignored; a key that would change the result and is not implemented here is
/// an error of [`Schedule::new`].
#[derive(Clone, Debug, Deserialize)]
pub struct SchedulerConfig {
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// The curve between them.
    pub beta_schedule: BetaSchedule,
    /// Betas given one by one instead; one for each training timestep.
    #[serde(default)]
    pub trained_betas: Option<Vec<f32>>,
    /// Number of training timesteps, 1000 for Stable Diffusion.
    pub num_train_timesteps: usize,
    /// What the network predicts.
    #[serde(default)]
    pub prediction_type: PredictionType,
    /// Layout of the sampling timesteps. Absent (as in Stable Diffusion 1.5), each solver keeps the default of its
    /// diffusers class: `leading` for DDIM, `linspace` for DPM-Solver++, UniPC and Euler.
    #[serde(default)]
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to every `leading` timestep.
    #[serde(default)]
    pub steps_offset: usize,
    /// Whether DDIM's last step ends at alpha 1 rather than at the alpha of timestep 0.
    #[serde(default = "yes")]
    pub set_alpha_to_one: bool,
    /// Length of the schedule a latent consistency model was distilled on.
    #[serde(default = "lcm_original_steps")]
    pub original_inference_steps: usize,
    /// Timestep factor in the boundary condition of a latent consistency model.
    #[serde(default = "lcm_timestep_scaling")]
    pub timestep_scaling: f64,
    /// Everything else in the file.
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

/// Training timesteps that a configuration may claim; models have 1000.
const MOST_TIMESTEPS: usize = 100_000;

// Defaults of the diffusers classes (scheduling_ddim.py, scheduling_lcm.py).
fn yes() -> bool {
    true
}
fn lcm_original_steps() -> usize {
    50
}
fn lcm_timestep_scaling() -> f64 {
    10.0
}

/// Keys that change what a scheduler computes, each with the values that mean what is computed here (`null` and absent
/// pass too). `clip_sample` is for pixels: absent, it is taken as off although DDIM's class would turn it on.
const FIXED: [(&str, &[&str]); 19] = [
    ("algorithm_type", &["\"dpmsolver++\""]),
    ("clip_sample", &["false"]),
    ("disable_corrector", &["[]"]),
    ("euler_at_final", &["false"]),
    ("final_sigmas_type", &["\"zero\""]),
    ("interpolation_type", &["\"linear\""]),
    ("lambda_min_clipped", &[]),
    ("lower_order_final", &["true"]),
    ("predict_x0", &["true"]),
    ("rescale_betas_zero_snr", &["false"]),
    ("solver_order", &["2"]),
    ("solver_type", &["\"midpoint\"", "\"bh2\""]),
    ("thresholding", &["false"]),
    ("timestep_type", &["\"discrete\""]),
    ("use_beta_sigmas", &["false"]),
    ("use_exponential_sigmas", &["false"]),
    ("use_flow_sigmas", &["false"]),
    ("use_karras_sigmas", &["false"]),
    ("use_lu_lambdas", &["false"]),
];

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`.
    ///
    /// # Errors
    /// [`Error::Usage`] for what is not JSON, lacks a key or names an unknown curve, spacing or prediction type.
    pub fn from_json(text: &str) -> Result<Self> {
        // Python writes lambda_min_clipped's default as -Infinity, which JSON does not know; it means "no clipping".
        serde_json::from_str(&text.replace("-Infinity", "null"))
            .map_err(|e| Error::Usage(format!("the scheduler configuration cannot be used: {e}; correct that entry")))
    }

    fn check(&self) -> Result<()> {
        for (key, allowed) in FIXED {
            let Some(value) = self.other.get(key).filter(|value| !value.is_null()) else { continue };
            if !allowed.contains(&value.to_string().as_str()) {
                return Err(Error::Usage(format!(
                    "the scheduler configuration asks for {key} = {value}, which is not supported; remove the key or \
                     use a model that does without"
                )));
            }
        }
        let n = self.num_train_timesteps;
        if !(1..=MOST_TIMESTEPS).contains(&n) {
            return Err(Error::Usage(format!(
                "the scheduler configuration has num_train_timesteps = {n}; give 1 to {MOST_TIMESTEPS}"
            )));
        }
        if self.steps_offset >= n {
            return Err(Error::Usage(format!(
                "the scheduler configuration has steps_offset = {} for num_train_timesteps = {n}; give less",
                self.steps_offset
            )));
        }
        match &self.trained_betas {
            Some(betas) if betas.len() != n => Err(Error::Usage(format!(
                "the scheduler configuration has {} trained_betas for num_train_timesteps = {n}; give one for each",
                betas.len()
            ))),
            _ => Ok(()),
        }
    }

    /// The betas in f32, computed in the order of operations of torch.
    fn betas(&self) -> Vec<f32> {
        let n = self.num_train_timesteps;
        if let Some(betas) = &self.trained_betas {
            return betas.clone();
        }
        match self.beta_schedule {
            BetaSchedule::Linear => torch_linspace(self.beta_start, self.beta_end, n),
            BetaSchedule::ScaledLinear => torch_linspace(self.beta_start.sqrt(), self.beta_end.sqrt(), n)
                .into_iter()
                .map(|root| root * root)
                .collect(),
            BetaSchedule::SquaredcosCapV2 => {
                let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                let at = |i: usize| alpha_bar(i as f64 / n as f64);
                (0..n).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
            }
        }
    }
}

/// `torch.linspace` in f32: steps up from the start in the first half and down from the end in the second.
fn torch_linspace(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if n == 1 {
        return vec![start];
    }
    let step = (end - start) / (n - 1) as f32;
    let at = |i: usize| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 };
    (0..n).map(at).collect()
}

/// The make-up of a noisy latent, `x = alpha x_0 + sigma eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Weight of the clean latent.
    pub alpha: f64,
    /// Weight of the unit noise.
    pub sigma: f64,
}

impl Level {
    /// No noise at all.
    pub const CLEAN: Level = Level { alpha: 1.0, sigma: 0.0 };

    /// Half the logarithm of the signal-to-noise ratio, `ln(alpha / sigma)`; infinite when clean.
    pub fn lambda(self) -> f64 {
        (self.alpha / self.sigma).ln()
    }

    fn from_alpha_cumprod(alpha_cumprod: f32) -> Level {
        let alpha_cumprod = f64::from(alpha_cumprod);
        Level { alpha: alpha_cumprod.sqrt(), sigma: (1.0 - alpha_cumprod).sqrt() }
    }
}

/// A model's noise schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    config: SchedulerConfig,
    alphas_cumprod: Vec<f32>,
}

impl Schedule {
    /// Computes the schedule a configuration describes.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key and its value for anything not supported, and for betas outside (0, 1) or so many
    /// that alpha bar comes down to 0.
    pub fn new(config: SchedulerConfig) -> Result<Self> {
        config.check()?;
        let betas = config.betas();
        if let Some((i, beta)) = betas.iter().enumerate().find(|(_, beta)| !(**beta > 0.0 && **beta < 1.0)) {
            return Err(Error::Usage(format!(
                "the scheduler configuration gives beta {beta} at timestep {i}; betas lie between 0 and 1"
            )));
        }
        // torch.cumprod keeps its running product of f32 factors in f64.
        let mut product = 1.0f64;
        let alphas_cumprod: Vec<f32> = betas
            .iter()
            .map(|beta| {
                product *= f64::from(1.0 - beta);
                product as f32
            })
            .collect();
        if let Some(t) = alphas_cumprod.iter().position(|&alpha_cumprod| alpha_cumprod < f32::MIN_POSITIVE) {
            return Err(Error::Usage(format!(
                "the scheduler configuration's betas leave nothing of a picture at timestep {t}; give smaller ones"
            )));
        }
        Ok(Self { config, alphas_cumprod })
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// alpha bar of every training timestep (`alphas_cumprod` in diffusers), `num_train_timesteps` values.
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// Noise level at timestep `t`; between two whole timesteps sigma / alpha is interpolated linearly, as k-diffusion
    /// and diffusers do.
    ///
    /// # Errors
    /// [`Error::Usage`] when `t` is not between 0 and the last training timestep.
    pub fn level(&self, t: f64) -> Result<Level> {
        let last = self.alphas_cumprod.len() - 1;
        if !(t >= 0.0 && t <= last as f64) {
            return Err(Error::Usage(format!("timestep {t} is outside the schedule, 0 to {last}; use fewer steps")));
        }
        let below = Level::from_alpha_cumprod(self.alphas_cumprod[t.floor() as usize]);
        if t.fract() == 0.0 {
            return Ok(below);
        }
        let above = Level::from_alpha_cumprod(self.alphas_cumprod[t.ceil() as usize]);
        let (low, high) = (below.sigma / below.alpha, above.sigma / above.alpha);
        let sigma_hat = low + t.fract() * (high - low);
        let alpha = 1.0 / (1.0 + sigma_hat * sigma_hat).sqrt();
        Ok(Level { alpha, sigma: sigma_hat * alpha })
    }

    /// The level DDIM's last step ends at.
    pub(super) fn final_level(&self) -> Level {
        if self.config.set_alpha_to_one { Level::CLEAN } else { Level::from_alpha_cumprod(self.alphas_cumprod[0]) }
    }

    /// The clean latent `[B, 4, h, w]` that a network's `output` for `x` at timestep `t` stands for (diffusers'
    /// `convert_model_output`).
    ///
    /// # Errors
    /// As [`Schedule::level`], and when the two tensors differ in shape.
    pub fn denoised_from_prediction(
        &self,
        prediction_type: PredictionType,
        x: &Tensor,
        output: &Tensor,
        t: f64,
    ) -> Result<Tensor> {
        let Level { alpha, sigma } = self.level(t)?;
        match prediction_type {
            PredictionType::Epsilon => super::weighted_sum(&[(1.0 / alpha, x), (-sigma / alpha, output)]),
            PredictionType::VPrediction => super::weighted_sum(&[(alpha, x), (-sigma, output)]),
            PredictionType::Sample => Ok(output.clone()),
        }
    }

    /// Noises clean latents `x0` `[B, ...]` with unit `noise` of the same shape, sample b to `timesteps[b]`
    /// (arXiv 2006.11239, eq. 4).
    ///
    /// # Errors
    /// As [`Schedule::level`]; [`Error::Usage`] unless there is one timestep for each sample.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let (alpha, sigma) = self.weights(x0, timesteps)?;
        Ok((x0.broadcast_mul(&alpha)? + noise.broadcast_mul(&sigma)?)?)
    }

    /// What the network should have answered for [`Schedule::add_noise`] of the same arguments: the target of the
    /// training loss, shaped like `x0`.
    ///
    /// # Errors
    /// As [`Schedule::add_noise`].
    pub fn training_target(&self, x0: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let (alpha, sigma) = self.weights(x0, timesteps)?;
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok(noise.clone()),
            PredictionType::VPrediction => Ok((noise.broadcast_mul(&alpha)? - x0.broadcast_mul(&sigma)?)?),
            PredictionType::Sample => Ok(x0.clone()),
        }
    }

    /// alpha and sigma as tensors `[B, 1, ...]` beside `x0`.
    fn weights(&self, x0: &Tensor, timesteps: &[f64]) -> Result<(Tensor, Tensor)> {
        if x0.dims().first() != Some(&timesteps.len()) {
            return Err(Error::Usage(format!(
                "{} timesteps for latents of shape {:?}; give one for each sample",
                timesteps.len(),
                x0.dims()
            )));
        }
        let mut shape = vec![1; x0.rank()];
        shape[0] = timesteps.len();
        let levels = timesteps.iter().map(|&t| self.level(t)).collect::<Result<Vec<_>>>()?;
        let tensor = |weight: fn(&Level) -> f64| -> Result<Tensor> {
            let weights: Vec<f64> = levels.iter().map(weight).collect();
            Ok(Tensor::from_vec(weights, shape.as_slice(), x0.device())?.to_dtype(DType::F32)?)
        };
        Ok((tensor(|level| level.alpha)?, tensor(|level| level.sigma)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE_DIFFUSION: &str = r#"{"_class_name": "PNDMScheduler", "beta_start": 0.00085,
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": false,
        "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;

    fn with(entry: &str) -> Result<Schedule> {
        Schedule::new(SchedulerConfig::from_json(&STABLE_DIFFUSION.replacen('{', &format!("{{{entry},"), 1))?)
    }

    #[test]
    fn unsupported_values_are_named_and_supported_ones_pass() {
        for (key, value) in [
            ("rescale_betas_zero_snr", "true"),
            ("use_karras_sigmas", "true"),
            ("thresholding", "true"),
            ("algorithm_type", "\"sde-dpmsolver++\""),
            ("solver_order", "3"),
            ("lambda_min_clipped", "-5.1"),
        ] {
            let message = with(&format!("\"{key}\": {value}")).expect_err(key).to_string();
            assert!(message.contains(key) && message.contains(value), "{message}");
        }
        for fine in ["\"use_karras_sigmas\": null", "\"solver_type\": \"bh2\"", "\"lambda_min_clipped\": -Infinity"] {
            with(fine).expect(fine);
        }
        let clipped = STABLE_DIFFUSION.replace("\"clip_sample\": false", "\"clip_sample\": true");
        let message = Schedule::new(SchedulerConfig::from_json(&clipped).unwrap()).unwrap_err().to_string();
        assert!(message.contains("clip_sample = true"), "{message}");
    }

    #[test]
    fn broken_configurations_are_refused() {
        assert!(SchedulerConfig::from_json("{}").is_err());
        assert!(SchedulerConfig::from_json("not json").is_err());
        assert!(with("\"prediction_type\": \"flow\"").is_err());
        assert!(with("\"timestep_spacing\": \"karras\"").is_err());
        for (from, to) in [
            ("\"trained_betas\": null", "\"trained_betas\": [0.1, 0.2]"),
            ("\"num_train_timesteps\": 1000", "\"num_train_timesteps\": 0"),
            ("\"num_train_timesteps\": 1000", "\"num_train_timesteps\": 65536"),
            ("\"num_train_timesteps\": 1000", "\"num_train_timesteps\": 18446744073709551615"),
            ("\"steps_offset\": 1", "\"steps_offset\": 18446744073709551615"),
            ("\"beta_end\": 0.012", "\"beta_end\": 1.5"),
            ("\"beta_start\": 0.00085", "\"beta_start\": -0.1"),
        ] {
            let text = STABLE_DIFFUSION.replace(from, to);
            assert!(SchedulerConfig::from_json(&text).and_then(Schedule::new).is_err(), "{to}");
        }
    }

    #[test]
    fn levels_preserve_variance_and_end_at_the_ends() {
        let schedule = with("\"prediction_type\": \"epsilon\"").unwrap();
        for t in [0.0, 1.0, 499.25, 832.5, 999.0] {
            let Level { alpha, sigma } = schedule.level(t).unwrap();
            // Two roundings of f64 each.
            assert!((alpha * alpha + sigma * sigma - 1.0).abs() <= 4.0 * f64::EPSILON, "{t}");
        }
        for t in [-1.0, 999.5, 1000.0, f64::NAN] {
            assert!(schedule.level(t).is_err(), "{t}");
        }
        assert_eq!(schedule.final_level(), schedule.level(0.0).unwrap());
    }
}
