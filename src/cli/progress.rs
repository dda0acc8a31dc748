//! How far the work is: bars on a terminal, sparse lines elsewhere, JSON lines for programs.

use indicatif::{ProgressBar, ProgressStyle};
use pleinair::{Error, Result};
use serde::Serialize;
use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::path::Path;

/// How progress is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, clap::ValueEnum)]
pub(super) enum Mode {
    /// Bars on a terminal, a few lines elsewhere, on stderr
    #[default]
    Auto,
    /// One JSON object a line, on stdout
    Json,
    /// Not at all
    None,
}

/// What happened; a JSON line each, under these names.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// A denoising step was taken; `index` counts from 0.
    Step { index: usize, count: usize, timestep: f64, seed: u64 },
    /// A step of the inversion of the content was taken (`--invert ddim`).
    Inverting { index: usize, count: usize, timestep: f64, seed: u64 },
    /// A learning step was taken; `seconds` since this run began.
    Learning {
        step: usize,
        steps: usize,
        loss: f32,
        smoothed: f32,
        /// Smoothed loss of each stage, stage 0 first; null where no step has looked at one yet.
        stages: Vec<Option<f32>>,
        /// Validation loss, where it was evaluated after this step.
        #[serde(skip_serializing_if = "Option::is_none")]
        validation: Option<f32>,
        seconds: f64,
    },
    /// A preview was written.
    Preview { file: String },
    /// What learning achieved, on fixed noise and timesteps.
    Validation { before: f32, after: f32 },
    /// A lesson ended before its last step, and the step whose vectors are kept.
    Stopped { step: usize, kept: u64 },
    /// A file was written.
    Finished { file: String },
}

impl Event {
    pub(super) fn preview(file: &Path) -> Event {
        Event::Preview { file: file.display().to_string() }
    }

    pub(super) fn finished(file: &Path) -> Event {
        Event::Finished { file: file.display().to_string() }
    }

    /// Steps done, steps in all, and what to say beside them.
    fn position(&self) -> Option<(usize, usize, String)> {
        match self {
            Event::Step { index, count, seed, .. } => Some((index + 1, *count, format!("seed {seed}"))),
            Event::Inverting { index, count, .. } => Some((index + 1, *count, "inverting the content".into())),
            Event::Learning { step, steps, loss, smoothed, stages, .. } => {
                let stage = |loss: &Option<f32>| loss.map_or("-".to_owned(), |loss| format!("{loss:.3}"));
                let stages: Vec<String> = stages.iter().map(stage).collect();
                let stages = stages.join(" ");
                Some((*step, *steps, format!("loss {loss:.4}, smoothed {smoothed:.4}, by stage {stages}")))
            }
            _ => None,
        }
    }

    /// What people read about an event that is no step.
    fn text(&self) -> String {
        match self {
            Event::Preview { file } => format!("preview {file}"),
            Event::Validation { before, after } => {
                format!("validation loss {before:.5} with the initial word, {after:.5} with the style")
            }
            Event::Stopped { step, kept } => {
                format!(
                    "stopped early at step {step}: the validation loss falls no more; the vectors of step {kept} are kept"
                )
            }
            Event::Finished { file } => format!("wrote {file}"),
            Event::Step { .. } | Event::Inverting { .. } | Event::Learning { .. } => String::new(),
        }
    }
}

/// Tells events the way the person asked for.
#[derive(Debug)]
pub(super) struct Progress {
    mode: Mode,
    /// On a terminal only: the bar of the run under way.
    bar: Option<RefCell<Option<ProgressBar>>>,
}

/// Lines a run leaves in a log.
const LINES: usize = 10;

impl Progress {
    pub(super) fn new(mode: Mode) -> Self {
        let drawn = mode == Mode::Auto && std::io::stderr().is_terminal();
        Progress { mode, bar: drawn.then(RefCell::default) }
    }

    /// # Errors
    /// [`Error::Io`] when the reader of the JSON lines is gone.
    pub(super) fn tell(&self, event: &Event) -> Result<()> {
        match (self.mode, &self.bar) {
            (Mode::None, _) => {}
            (Mode::Json, _) => {
                let line = serde_json::to_string(event).map_err(std::io::Error::from);
                line.and_then(|line| writeln!(std::io::stdout(), "{line}"))
                    .map_err(Error::io(Path::new("standard output")))?;
            }
            (Mode::Auto, Some(bar)) => draw(&mut bar.borrow_mut(), event),
            (Mode::Auto, None) => {
                if let Some(line) = sparse_line(event) {
                    say(&line);
                }
            }
        }
        Ok(())
    }

    /// Something the person should know, whatever the mode.
    pub(super) fn note(&self, text: &str) {
        let bar = self.bar.as_ref().and_then(|bar| bar.borrow().clone());
        match bar {
            Some(bar) => bar.suspend(|| say(&format!("note: {text}"))),
            None => say(&format!("note: {text}")),
        }
    }
}

/// The bar stays after the last step: decoding or measuring follows, and takes its time.
fn draw(shown: &mut Option<ProgressBar>, event: &Event) {
    if let Some((done, of, message)) = event.position() {
        let bar = shown.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {elapsed}, {eta} left  {msg}");
            ProgressBar::new(of as u64).with_style(style.expect("the template is a constant"))
        });
        bar.set_position(done as u64);
        bar.set_message(message);
        return;
    }
    if matches!(event, Event::Finished { .. })
        && let Some(bar) = shown.take()
    {
        bar.finish_and_clear();
    }
    match shown {
        Some(bar) => bar.suspend(|| say(&event.text())),
        None => say(&event.text()),
    }
}

/// About [`LINES`] lines a run, the last step always among them.
fn sparse_line(event: &Event) -> Option<String> {
    match event.position() {
        Some((done, of, message)) => {
            let due = done == of || done * LINES / of > (done - 1) * LINES / of;
            due.then(|| format!("step {done} of {of}, {message}"))
        }
        None => Some(event.text()),
    }
}

fn say(text: &str) {
    // Progress that cannot be told is no reason to stop painting.
    let _ = writeln!(std::io::stderr(), "pleinair: {text}");
}
