//! What a lesson needs to go on bit for bit: vectors, AdamW's moments, the random stream and the step, as safetensors.

use super::adamw::AdamW;
use super::log::by_stage;
use super::{Lesson, Options, Study};
use crate::bundle::manifest::hexadecimal;
use crate::bundle::write::write_atomically;
use crate::sampler::{RngState, TorchRng};
use crate::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// Weight of the past in the smoothed losses.
const SMOOTHING: f32 = 0.98;
const FORMAT: &str = "pleinair-learning/1";

/// A lesson in progress.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progress {
    /// Steps done.
    pub(super) step: usize,
    /// `[T][D]`.
    pub(super) vectors: Vec<Vec<f32>>,
    pub(super) optimiser: AdamW,
    pub(super) rng: RngState,
    /// Smoothed loss of each stage seen so far.
    pub(super) smoothed: Vec<Option<f32>>,
    /// Seconds spent.
    pub(super) seconds: f64,
    /// The vectors with the lowest validation loss, where any was evaluated.
    pub(super) best: Option<Best>,
    /// Evaluations of the validation loss since.
    pub(super) waited: usize,
}

/// Vectors that were better than all before.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Best {
    pub(super) vectors: Vec<Vec<f32>>,
    /// Validation loss.
    pub(super) loss: f32,
    /// The step after which they were so.
    pub(super) step: usize,
}

impl Progress {
    /// Every stage starts as a copy of `start: [n * D]`.
    pub(super) fn new(start: Vec<f32>, lesson: &Lesson) -> Self {
        Progress {
            step: 0,
            optimiser: AdamW::new(lesson.stages, start.len()),
            vectors: vec![start; lesson.stages],
            rng: TorchRng::new(lesson.seed).state(),
            smoothed: vec![None; lesson.stages],
            seconds: 0.0,
            best: None,
            waited: 0,
        }
    }

    /// Takes in the validation loss of the vectors as they are.
    pub(super) fn judge(&mut self, loss: f32) {
        self.waited += 1;
        if self.best.as_ref().is_none_or(|best| loss < best.loss) {
            self.best = Some(Best { vectors: self.vectors.clone(), loss, step: self.step });
            self.waited = 0;
        }
    }

    /// Whether the validation loss has not fallen for as long as the options have patience.
    pub(super) fn has_stalled(&self, options: &Options) -> bool {
        options.early_stop.is_some_and(|patience| self.waited >= patience)
    }

    /// Takes a step's losses in; returns the mean of the stages' smoothed losses.
    pub(super) fn smooth(&mut self, stages: &[usize], losses: &[f32]) -> f32 {
        for (stage, loss) in by_stage(stages, losses) {
            let smoothed = &mut self.smoothed[stage];
            *smoothed = Some(smoothed.map_or(loss, |past| SMOOTHING * past + (1.0 - SMOOTHING) * loss));
        }
        let seen: Vec<_> = self.smoothed.iter().flatten().collect();
        seen.iter().copied().sum::<f32>() / seen.len() as f32
    }

    /// Writes the checkpoint beside its place, then into it.
    pub(super) fn save(&self, path: &Path, fingerprint: &str) -> Result<()> {
        let shape = vec![self.vectors.len(), self.vectors[0].len()];
        let matrices =
            [("vectors", &self.vectors), ("first", &self.optimiser.first), ("second", &self.optimiser.second)];
        let smoothed: Vec<_> = self.smoothed.iter().map(|s| s.unwrap_or(f32::NAN)).collect();
        let mut parts: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> =
            matrices.iter().map(|(name, m)| (*name, Dtype::F32, shape.clone(), bytes(m.iter().flatten()))).collect();
        parts.push(("smoothed", Dtype::F32, vec![smoothed.len()], bytes(smoothed.iter())));
        let words = self.rng.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        parts.push(("rng", Dtype::U32, vec![self.rng.words.len()], words));
        if let Some(best) = &self.best {
            parts.push(("best", Dtype::F32, shape, bytes(best.vectors.iter().flatten())));
        }
        let views = parts
            .iter()
            .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
        let mut metadata = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("fingerprint".into(), fingerprint.into()),
            ("step".into(), self.step.to_string()),
            ("seconds".into(), self.seconds.to_string()),
        ]);
        if let Some(normal) = self.rng.normal {
            metadata.insert("normal".into(), normal.to_string());
        }
        if let Some(best) = &self.best {
            metadata.insert("best_loss".into(), best.loss.to_string());
            metadata.insert("best_step".into(), best.step.to_string());
            metadata.insert("waited".into(), self.waited.to_string());
        }
        let buffer = views
            .and_then(|views| safetensors::serialize(views, Some(metadata)))
            .map_err(|e| Error::file(path, format!("cannot be written as safetensors: {e}")))?;
        write_atomically(path, |file| file.write_all(&buffer))
    }

    /// Reads a checkpoint of the same lesson.
    pub(super) fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::file(path, "there is no checkpoint to resume; leave out --resume to start afresh"));
        }
        let buffer = std::fs::read(path).map_err(Error::io(path))?;
        let damaged = |what: &str| Error::file(path, format!("{what}; leave out --resume to start afresh"));
        let file = SafeTensors::deserialize(&buffer).map_err(|e| damaged(&format!("a damaged checkpoint: {e}")))?;
        let (_, metadata) = SafeTensors::read_metadata(&buffer).map_err(|e| damaged(&e.to_string()))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        if metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(damaged("not a checkpoint of a lesson"));
        }
        if metadata.get("fingerprint").map(String::as_str) != Some(fingerprint) {
            let what = "a checkpoint of another lesson (pictures, contexts, stages, batch, seed, word, name, options or \
                        model differ)";
            return Err(damaged(what));
        }
        let tensor = |name: &str| file.tensor(name).map_err(|e| damaged(&format!("a damaged checkpoint: {e}")));
        let number = |key: &str| metadata.get(key).ok_or_else(|| damaged(&format!("a checkpoint without its {key}")));
        let parse_failed = |_| damaged("a checkpoint with a damaged number");
        let vectors = matrix(&tensor("vectors")?);
        let step: usize = number("step")?.parse().map_err(parse_failed)?;
        let finite = vectors.iter().flatten().all(|v| v.is_finite());
        if vectors.is_empty() || !finite {
            return Err(damaged("a checkpoint whose vectors are missing or not finite"));
        }
        let (first, second) = (matrix(&tensor("first")?), matrix(&tensor("second")?));
        let smoothed: Vec<_> = floats(tensor("smoothed")?.data()).map(|s| s.is_finite().then_some(s)).collect();
        let widths = |m: &[Vec<f32>]| m.iter().map(Vec::len).collect::<Vec<_>>();
        let alike = widths(&first) == widths(&vectors) && widths(&second) == widths(&vectors);
        if !alike || smoothed.len() != vectors.len() {
            return Err(damaged("a checkpoint whose parts do not fit together"));
        }
        let best = match file.tensor("best") {
            Err(_) => None,
            Ok(_) if !metadata.contains_key("waited") => return Err(damaged("a checkpoint without its waited")),
            Ok(best) => Some(Best {
                vectors: matrix(&best),
                loss: number("best_loss")?.parse().map_err(|_| damaged("a checkpoint with a damaged number"))?,
                step: number("best_step")?.parse().map_err(parse_failed)?,
            }),
        };
        if best.as_ref().is_some_and(|best| widths(&best.vectors) != widths(&vectors)) {
            return Err(damaged("a checkpoint whose parts do not fit together"));
        }
        let waited = metadata.get("waited").map(|n| n.parse()).transpose().map_err(parse_failed)?.unwrap_or(0);
        let normal = metadata.get("normal").map(|n| n.parse()).transpose().map_err(parse_failed)?;
        let words =
            tensor("rng")?.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Progress {
            step,
            optimiser: AdamW { steps: step, first, second },
            smoothed,
            seconds: number("seconds")?.parse().map_err(|_| damaged("a checkpoint with a damaged number"))?,
            rng: RngState { words, normal },
            vectors,
            best,
            waited,
        })
    }
}

fn bytes<'a>(values: impl Iterator<Item = &'a f32>) -> Vec<u8> {
    values.flat_map(|v| v.to_le_bytes()).collect()
}

fn floats(data: &[u8]) -> impl Iterator<Item = f32> {
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn matrix(view: &TensorView<'_>) -> Vec<Vec<f32>> {
    let values: Vec<f32> = floats(view.data()).collect();
    values.chunks(view.shape().last().copied().unwrap_or(1).max(1)).map(<[f32]>::to_vec).collect()
}

/// What makes two lessons on the text encoder `base` the same: a checkpoint of one must not be resumed by another. The
/// number of steps and the learning rate are left out, so that a lesson can be resumed with more or, after it exploded,
/// with a lower one.
pub(super) fn fingerprint(base: &str, lesson: &Lesson) -> String {
    let mut sha = Sha256::new();
    sha.update(base);
    for Study { frame, context } in &lesson.studies {
        sha.update([frame.width() as u64, frame.height() as u64].map(u64::to_le_bytes).concat());
        sha.update(frame.rgb());
        sha.update(format!("{context:?}"));
    }
    let Lesson { token, stages, batch, init, seed, options, .. } = lesson;
    sha.update(format!("{token:?} {stages} {batch} {init:?} {seed}{}", options.fingerprint()));
    hexadecimal(sha)
}
