//! Learning a style: T vectors in the text encoder's word space, fitted to one picture (or a few) through the frozen
//! networks (DreamStyler, arXiv 2309.06933, section 3; textual inversion, arXiv 2208.01618).

mod adamw;
mod checkpoint;
mod curve;
mod data;
mod log;
mod loss;
mod options;

pub use adamw::AdamW;
pub use curve::curve;
pub use data::{Batch, Studies};
pub use loss::{Prompts, losses, min_snr_weights, validation};
pub use options::Options;

use crate::camera::Frame;
use crate::painter::Painter;
use crate::prompt::Template;
use crate::sampler::TorchRng;
use crate::stages::PerStage;
use crate::style::{Style, stage_of};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use checkpoint::{Best, Progress};
use log::LossLog;
use std::path::PathBuf;
use std::time::Instant;

/// A picture whose style is to be learned, and what it shows besides its style.
#[derive(Debug, Clone)]
pub struct Study {
    /// The picture.
    pub frame: Frame,
    /// `A painting of pencil, pears and apples on a cloth, in the style of {}`.
    pub context: Template,
}

/// What to learn and how. The defaults of the command line are the paper's and the reference code's.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// The style's name in prompts.
    pub token: String,
    /// At least one picture.
    pub studies: Vec<Study>,
    /// Number of stages T.
    pub stages: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Noised latents a step.
    pub batch: usize,
    /// Learning rate, constant, for all stages or for each.
    pub lr: PerStage,
    /// The word whose vector every stage starts from.
    pub init: String,
    /// Of everything random.
    pub seed: u64,
    /// Licence of the vectors, kept in the style file.
    pub license: String,
    /// Whatever else.
    pub options: Options,
}

/// Where a lesson keeps what must survive an interruption.
#[derive(Debug, Clone)]
pub struct Files {
    /// Vectors, optimiser moments, random state and step; written every [`CHECKPOINT_EVERY`] steps, on interruption and at
    /// the end. One that is there when a lesson starts afresh is kept under the same name with `.old` appended.
    pub checkpoint: PathBuf,
    /// The losses as CSV; kept like the checkpoint.
    pub log: PathBuf,
}

impl Files {
    /// The validation losses as CSV, beside the log; written where the lesson evaluates any on its way.
    pub fn validation(&self) -> PathBuf {
        let name = self.log.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = name.strip_suffix("loss.csv").map_or_else(|| format!("{name}."), str::to_owned);
        self.log.with_file_name(format!("{stem}validation.csv"))
    }

    /// An unfinished lesson is not overwritten by one that starts afresh: `.old` is appended to the names of its files.
    fn set_aside(&self) -> Result<()> {
        for file in [&self.log, &self.validation(), &self.checkpoint].into_iter().filter(|file| file.is_file()) {
            let mut old = file.clone().into_os_string();
            old.push(".old");
            std::fs::rename(file, old).map_err(Error::io(file))?;
        }
        Ok(())
    }
}

/// Steps between two checkpoints.
pub const CHECKPOINT_EVERY: usize = 25;

/// Told after every step; an error from the listener (such as [`Error::Interrupted`]) ends the lesson and, unless it is
/// [`Error::NotFinite`], writes a checkpoint.
#[derive(Debug)]
pub struct Step<'a> {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Mean loss of this step's batch.
    pub loss: f32,
    /// Loss smoothed over about fifty steps.
    pub smoothed: f32,
    /// The same of each stage, as far as any step has looked at it.
    pub stages: &'a [Option<f32>],
    /// The validation loss, where it was evaluated after this step.
    pub validation: Option<f32>,
    /// The style as it is now.
    pub style: &'a Style,
}

/// A finished lesson.
#[derive(Debug)]
pub struct Learned {
    /// The style.
    pub style: Style,
    /// Validation loss (fixed noise and timesteps) with the initial word at every stage.
    pub loss_before: f32,
    /// The same with the learned vectors.
    pub loss_after: f32,
    /// The step after which the lesson ended early, if it did.
    pub stopped: Option<usize>,
}

/// Learns a style.
///
/// # Errors
/// [`Error::Usage`] for a lesson that cannot be taught; [`Error::NotFinite`] when the loss explodes (the last good
/// checkpoint stays); [`Error::Interrupted`] or whatever else `listener` returns, after a checkpoint.
pub fn learn(
    painter: &Painter,
    lesson: &Lesson,
    files: &Files,
    resume: bool,
    listener: &mut dyn FnMut(Step<'_>) -> Result<()>,
) -> Result<Learned> {
    lesson.check()?;
    let (options, prompts) = (&lesson.options, Prompts::new(painter, lesson)?);
    let mut studies = Studies::encode(painter, &lesson.studies)?;
    let learning = options.learning(lesson.stages);
    studies.keep_stages(&learning, lesson.stages);
    let rates: Vec<_> = (0..lesson.stages).map(|s| lesson.lr.of(s).filter(|_| learning.contains(&s))).collect();
    let word = painter.text_encoder().word_vector(painter.tokenizer().word(&lesson.init)?)?;
    let start = word.to_vec1::<f32>()?.repeat(options.vectors_per_stage);
    let base = painter.text_encoder().base()?;
    let fingerprint = checkpoint::fingerprint(&base, lesson);
    let mut now = match resume {
        true => Progress::open(&files.checkpoint, &fingerprint)?,
        false => {
            files.set_aside()?;
            Progress::new(start.clone(), lesson)
        }
    };
    if now.step > lesson.steps {
        let done = now.step;
        return Err(Error::Usage(format!(
            "the checkpoint is at step {done} already; resume with --steps {done} or more"
        )));
    }
    let mut log = LossLog::open(&files.log, &log::LOSSES, now.step)?;
    let validates = (1..=lesson.steps).any(|step| options.validates(step));
    let opened = validates.then(|| LossLog::open(&files.validation(), &log::VALIDATION, now.step));
    let mut validation_log = opened.transpose()?;
    let mut rng = TorchRng::from_state(&now.rng)?;
    let began = Instant::now();
    let (step_before, seconds_before) = (now.step, now.seconds);

    while now.step < lesson.steps && !now.has_stalled(options) {
        let batch = studies.draw(lesson.batch * options.accumulate, &mut rng)?;
        let (losses, gradient) = accumulated(painter, &prompts, &batch, &now.vectors, options)?;
        let loss = losses.iter().sum::<f32>() / losses.len() as f32;
        if !loss.is_finite() || !gradient.iter().flatten().all(|g| g.is_finite()) {
            let what = if loss.is_finite() { "the gradient of the loss" } else { "the loss" };
            return Err(exploded(what, now.step + 1, files));
        }
        // Only this tells that the last step's vectors are any good, so this is the state that may be kept.
        let good = now.clone();
        if good.step > step_before && good.step % CHECKPOINT_EVERY == 0 {
            log.flush()?;
            validation_log.as_mut().map_or(Ok(()), LossLog::flush)?;
            good.save(&files.checkpoint, &fingerprint)?;
        }
        now.optimiser.step_each(&mut now.vectors, &gradient, &rates);
        now.step += 1;
        now.rng = rng.state();
        now.seconds = seconds_before + began.elapsed().as_secs_f64();
        let stages: Vec<_> = batch.timesteps.iter().map(|&t| stage_of(t, lesson.stages)).collect();
        let smoothed = now.smooth(&stages, &losses);
        log.write(now.step, &stages, &losses, &now.smoothed, now.seconds)?;
        let mut validated = None;
        if let Some(log) = validation_log.as_mut().filter(|_| options.validates(now.step)) {
            let loss = validation(painter, &prompts, &studies, &tensors(painter, &now.vectors)?)?;
            if !loss.is_finite() {
                return Err(exploded("the validation loss", now.step, files));
            }
            log.write_validation(now.step, loss, now.seconds)?;
            now.judge(loss);
            validated = Some(loss);
        }
        let style = lesson.style(&base, &now.vectors, now.step);
        let told = listener(Step {
            step: now.step,
            steps: lesson.steps,
            loss,
            smoothed,
            stages: &now.smoothed,
            validation: validated,
            style: &style,
        });
        // vectors that cannot even be painted with are not worth keeping
        let stopped = matches!(&told, Err(error) if !matches!(error, Error::NotFinite { .. }));
        let over = now.step == lesson.steps || now.has_stalled(options);
        if stopped || (told.is_ok() && over && good.step > step_before) {
            log.flush()?;
            validation_log.as_mut().map_or(Ok(()), LossLog::flush)?;
            good.save(&files.checkpoint, &fingerprint)?;
        }
        told?;
    }
    let loss_after = validation(painter, &prompts, &studies, &tensors(painter, &now.vectors)?)?;
    if !loss_after.is_finite() {
        return Err(exploded("the validation loss", now.step, files));
    }
    now.save(&files.checkpoint, &fingerprint)?;
    let initial = tensors(painter, &vec![start; lesson.stages])?;
    let loss_before = validation(painter, &prompts, &studies, &initial)?;
    let stopped = now.has_stalled(options).then_some(now.step);
    let best = now.best.filter(|best| options.early_stop.is_some() && best.loss < loss_after);
    let last = Best { vectors: now.vectors, loss: loss_after, step: now.step };
    let kept = best.unwrap_or(last);
    let style = lesson.style(&base, &kept.vectors, kept.step);
    Ok(Learned { style, loss_before, loss_after: kept.loss, stopped })
}

/// [`gradient`] of a batch in as many parts as are accumulated, weighted as the options say: the same as of the whole
/// batch, in the memory of a part.
fn accumulated(
    painter: &Painter,
    prompts: &Prompts,
    batch: &Batch,
    vectors: &[Vec<f32>],
    options: &Options,
) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
    let mut losses = vec![];
    let mut sum: Option<Vec<Vec<f32>>> = None;
    for part in batch.split(options.accumulate)? {
        let weights = options.min_snr.map(|gamma| min_snr_weights(painter, &part.timesteps, gamma)).transpose()?;
        let (some, gradient) = weighted_gradient(painter, prompts, &part, vectors, weights.as_deref())?;
        losses.extend(some);
        match &mut sum {
            None => sum = Some(gradient),
            Some(sum) => sum.iter_mut().flatten().zip(gradient.iter().flatten()).for_each(|(sum, g)| *sum += g),
        }
    }
    let mut mean = sum.unwrap_or_default();
    mean.iter_mut().flatten().for_each(|g| *g /= options.accumulate as f32);
    Ok((losses, mean))
}

/// A loss that is not finite at `step`, and how to go on.
fn exploded(what: &str, step: usize, files: &Files) -> Error {
    let remedy = if files.checkpoint.is_file() {
        let checkpoint = files.checkpoint.display();
        format!(
            "learning stopped at step {step}; go on from the last good checkpoint, {checkpoint}, with --resume and a \
             lower --lr"
        )
    } else {
        format!("learning stopped at step {step}, before the first checkpoint; start again with a lower --lr")
    };
    Error::NotFinite { what: what.into(), remedy }
}

/// Losses of a batch's samples and the gradient of their mean with respect to each stage's vector; a stage that the
/// batch did not visit has a gradient of zero.
///
/// Half precision has no number for the tiny slope of a mean over a whole latent. There the loss is multiplied so that
/// the slope at the network's output is about as large as its error (arXiv 1710.03740, section 3.2), by a power of two,
/// which rounds nothing; should that overflow somewhere, by less.
///
/// # Errors
/// If a network fails.
pub fn gradient(
    painter: &Painter,
    prompts: &Prompts,
    batch: &Batch,
    vectors: &[Vec<f32>],
) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
    weighted_gradient(painter, prompts, batch, vectors, None)
}

/// As [`gradient`], of the mean of the losses times `weights: [B]`. The losses that come back are without them.
///
/// # Errors
/// If a network fails.
pub fn weighted_gradient(
    painter: &Painter,
    prompts: &Prompts,
    batch: &Batch,
    vectors: &[Vec<f32>],
    weights: Option<&[f64]>,
) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
    let weights: Option<Vec<f32>> = weights.map(|weights| weights.iter().map(|&weight| weight as f32).collect());
    let leaves: Vec<_> = tensors(painter, vectors)?.iter().map(Var::from_tensor).collect::<candle_core::Result<_>>()?;
    let inputs: Vec<_> = leaves.iter().map(|v| v.as_tensor().clone()).collect();
    let mut scale = match painter.bundle().target().numbers() {
        DType::F16 => (batch.latents.elem_count() as f64).log2().floor().exp2() / 2.0,
        _ => 1.0,
    };
    loop {
        let losses = losses(painter, prompts, batch, &inputs)?;
        let weighted = match &weights {
            Some(weights) => losses.mul(&Tensor::new(weights.as_slice(), losses.device())?)?,
            None => losses.clone(),
        };
        let gradients = (weighted.mean_all()? * scale)?.backward()?;
        let of = |(leaf, vector): (&Var, &Vec<f32>)| match gradients.get(leaf) {
            Some(gradient) => (gradient / scale)?.flatten_all()?.to_vec1::<f32>(),
            None => Ok(vec![0.0; vector.len()]),
        };
        let gradient = leaves.iter().zip(vectors).map(of).collect::<candle_core::Result<Vec<_>>>()?;
        let losses = losses.to_vec1()?;
        let overflow = losses.iter().all(|l: &f32| l.is_finite()) && !gradient.iter().flatten().all(|g| g.is_finite());
        if !overflow || scale <= 1.0 {
            return Ok((losses, gradient));
        }
        scale /= 16.0;
    }
}

/// Each stage's vectors, `[n, D]`.
fn tensors(painter: &Painter, vectors: &[Vec<f32>]) -> Result<Vec<Tensor>> {
    let width = painter.text_encoder().width();
    let tensor = |stage: &Vec<f32>| Tensor::from_slice(stage, (stage.len() / width, width), &Device::Cpu);
    Ok(vectors.iter().map(tensor).collect::<candle_core::Result<_>>()?)
}

impl Lesson {
    /// Whether it can be taught.
    ///
    /// # Errors
    /// [`Error::Usage`] if not.
    pub fn check(&self) -> Result<()> {
        let fault = if self.studies.is_empty() {
            "no picture to learn from; give --image"
        } else if self.stages == 0 || self.stages > 1000 {
            "the number of stages must be between 1 and 1000"
        } else if self.batch == 0 || self.steps == 0 {
            "batch and steps must be at least 1"
        } else if let Some(fault) = self.options.fault(&self.lr, self.stages) {
            return Err(Error::Usage(fault));
        } else if self.studies.iter().any(|s| !s.context.has_style_place()) {
            "every context needs {} where the style goes, as in \"A painting of pears on a cloth, in the style of {}\""
        } else {
            return Ok(());
        };
        Err(Error::Usage(fault.into()))
    }

    fn style(&self, base: &str, vectors: &[Vec<f32>], steps: usize) -> Style {
        Style {
            token: self.token.clone(),
            vectors: vectors.to_vec(),
            vectors_per_stage: self.options.vectors_per_stage,
            base: base.to_owned(),
            context: self.studies.iter().map(|study| study.context.source()).collect(),
            steps: Some(steps as u64),
            seed: Some(self.seed),
            license: self.license.clone(),
            init: self.init.clone(),
            mix: None,
        }
    }
}
