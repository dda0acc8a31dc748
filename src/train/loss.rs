//! The denoising loss (arXiv 2309.06933, eq. 4): mean squared difference of predicted and true noise (or velocity), the
//! prompt carrying the vector of each timestep's stage.

use super::{Batch, Lesson, Studies};
use crate::Result;
use crate::painter::Painter;
use crate::prompt::{PromptStyle, Tokens};
use crate::sampler::{PredictionType, TorchRng};
use crate::style::stage_of;
use candle_core::Tensor;
use std::collections::BTreeSet;

/// The context prompt of every picture.
#[derive(Debug, Clone)]
pub struct Prompts(Vec<Tokens>);

impl Prompts {
    /// Tokenises the lesson's contexts.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] if a context is so long that its place for the style is cut off.
    pub fn new(painter: &Painter, lesson: &Lesson) -> Result<Self> {
        let style = [PromptStyle::learned(&lesson.token, lesson.options.vectors_per_stage)];
        let tokens = |study: &super::Study| {
            let tokens = study.context.tokens(painter.tokenizer(), &style)?;
            if !tokens.dropped_styles.is_empty() {
                let what =
                    "a context is longer than the text encoder's 77 tokens and loses a place for the style; shorten it";
                return Err(crate::Error::Usage(what.into()));
            }
            Ok(tokens)
        };
        Ok(Prompts(lesson.studies.iter().map(tokens).collect::<Result<_>>()?))
    }
}

/// Loss of each sample, `[B]`. `vectors[t]`, `[D]` or `[n, D]`, is stage t's; the text encoder runs once for each distinct pair of
/// picture and stage, whatever the batch.
///
/// # Errors
/// If a network fails.
pub fn losses(painter: &Painter, prompts: &Prompts, batch: &Batch, vectors: &[Tensor]) -> Result<Tensor> {
    let stages = batch.timesteps.iter().map(|&t| stage_of(t, vectors.len()));
    let pairs: Vec<_> = batch.pictures.iter().copied().zip(stages).collect();
    let distinct: Vec<_> = pairs.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let embed = |&(picture, stage): &(usize, usize)| {
        painter.text_encoder().embed(&prompts.0[picture], std::slice::from_ref(&vectors[stage]))
    };
    let embedded: Vec<_> = distinct.iter().map(embed).collect::<Result<_>>()?;
    let states = painter.text_encoder().forward(&Tensor::cat(&embedded, 0)?)?;
    let row = |pair| distinct.binary_search(pair).expect("distinct holds every pair, in order") as u32;
    let text = painter.unet()?.text_kv(&states)?.rows(&pairs.iter().map(row).collect::<Vec<_>>())?;
    // not needed again before the very end of the backward
    painter.bundle().release("text_encoder");

    let (schedule, t) = (painter.schedule(), &batch.timesteps);
    let noised = schedule.add_noise(&batch.latents, &batch.noise, t)?;
    let target = schedule.training_target(&batch.latents, &batch.noise, t)?;
    let output = painter.unet()?.forward(&noised, t, &text, None)?;
    Ok((output - target)?.sqr()?.flatten_from(1)?.mean(1)?)
}

/// Weights of the samples' losses under min-SNR weighting (arXiv 2303.09556), as diffusers' training scripts have them: the
/// signal-to-noise ratio, at most `gamma`, over itself for models that predict noise, over itself plus one for those that
/// predict velocity.
///
/// # Errors
/// If a timestep is none of the schedule's.
pub fn min_snr_weights(painter: &Painter, timesteps: &[f64], gamma: f64) -> Result<Vec<f64>> {
    let weight = |&t: &f64| {
        let level = painter.schedule().level(t)?;
        let snr = (level.alpha / level.sigma).powi(2);
        Ok(match painter.schedule().config().prediction_type {
            PredictionType::Epsilon => (gamma / snr).min(1.0),
            PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
            // the loss of the clean latent is that of the noise times the ratio
            PredictionType::Sample => snr.min(gamma),
        })
    };
    timesteps.iter().map(weight).collect()
}

/// Samples in the validation loss, and how many of them are evaluated at once.
const VALIDATION: (usize, usize) = (48, 8);

/// Mean loss over a fixed set of noises and timesteps, the same for every set of vectors.
///
/// # Errors
/// If a network fails.
pub fn validation(painter: &Painter, prompts: &Prompts, studies: &Studies, vectors: &[Tensor]) -> Result<f32> {
    let mut rng = TorchRng::new(0);
    let (samples, at_once) = VALIDATION;
    let mut sum = 0.0;
    for first in (0..samples).step_by(at_once) {
        let batch = studies.fixed(first, at_once, samples, &mut rng)?;
        sum += losses(painter, prompts, &batch, vectors)?.sum_all()?.to_vec0::<f32>()?;
    }
    Ok(sum / samples as f32)
}
