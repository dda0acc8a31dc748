//! The loss log: a CSV row for each stage that a step visited.

use crate::bundle::write::write_atomically;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// Columns of the loss log.
pub(super) const LOSSES: [&str; 5] = ["step", "t_stage", "loss", "smoothed_loss", "seconds"];
/// Columns of the log of validation losses.
pub(super) const VALIDATION: [&str; 3] = ["step", "loss", "seconds"];

pub(super) struct LossLog {
    path: PathBuf,
    writer: csv::Writer<File>,
}

impl LossLog {
    /// Opens the log to go on after `step`; rows of later steps (written after the checkpoint that is resumed) go.
    pub(super) fn open(path: &Path, columns: &[&str], step: usize) -> Result<Self> {
        let kept = if step > 0 { rows_up_to(path, step) } else { vec![] };
        write_atomically(path, |file| {
            let mut writer = csv::Writer::from_writer(file);
            writer.write_record(columns)?;
            kept.iter().try_for_each(|row| writer.write_record(row))?;
            writer.flush()
        })?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
        Ok(LossLog { path: path.to_path_buf(), writer: csv::Writer::from_writer(file) })
    }

    /// One row for each stage among `stages`, with the mean of its samples' losses.
    pub(super) fn write(
        &mut self,
        step: usize,
        stages: &[usize],
        losses: &[f32],
        smoothed: &[Option<f32>],
        seconds: f64,
    ) -> Result<()> {
        for (stage, loss) in by_stage(stages, losses) {
            let smoothed = smoothed[stage].unwrap_or(loss);
            self.row(&[
                step.to_string(),
                stage.to_string(),
                loss.to_string(),
                smoothed.to_string(),
                format!("{seconds:.3}"),
            ])?;
        }
        Ok(())
    }

    /// A row of the log of validation losses.
    pub(super) fn write_validation(&mut self, step: usize, loss: f32, seconds: f64) -> Result<()> {
        self.row(&[step.to_string(), loss.to_string(), format!("{seconds:.3}")])
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(Error::io(&self.path))
    }

    fn row(&mut self, fields: &[String]) -> Result<()> {
        self.writer.write_record(fields).map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))
    }
}

/// Mean loss of each stage that occurs.
pub(super) fn by_stage(stages: &[usize], losses: &[f32]) -> BTreeMap<usize, f32> {
    let mut sums: BTreeMap<usize, (f32, f32)> = BTreeMap::new();
    for (&stage, &loss) in stages.iter().zip(losses) {
        let (sum, count) = sums.entry(stage).or_default();
        *sum += loss;
        *count += 1.0;
    }
    sums.into_iter().map(|(stage, (sum, count))| (stage, sum / count)).collect()
}

/// A row of the loss log, without its time.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
pub(super) struct Row {
    pub(super) step: usize,
    pub(super) t_stage: usize,
    pub(super) loss: f32,
    pub(super) smoothed_loss: f32,
}

/// The rows of a loss log.
pub(super) fn rows(path: &Path) -> Result<Vec<Row>> {
    read(path)
}

/// Step and loss of each row of a log of validation losses.
pub(super) fn validations(path: &Path) -> Result<Vec<(usize, f32)>> {
    let rows: Vec<(usize, f32, f64)> = read(path)?;
    Ok(rows.into_iter().map(|(step, loss, _)| (step, loss)).collect())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let fault = |fault: csv::Error| Error::file(path, format!("is no log of losses: {fault}"));
    let mut reader = csv::Reader::from_path(path).map_err(fault)?;
    reader.deserialize().collect::<csv::Result<_>>().map_err(fault)
}

/// The whole rows of an earlier log; one that was deleted or cut off loses rows, not the lesson.
fn rows_up_to(path: &Path, step: usize) -> Vec<Vec<String>> {
    let Ok(reader) = csv::Reader::from_path(path) else { return vec![] };
    let rows = reader.into_records().map_while(|row| row.ok());
    let before = |row: &csv::StringRecord| row.get(0).and_then(|s| s.parse::<usize>().ok()).is_some_and(|s| s <= step);
    rows.filter(before).map(|row| row.iter().map(String::from).collect()).collect()
}
