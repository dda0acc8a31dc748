//! What the daemon is asked for, does and keeps, as it is stored and as clients see it.

use crate::bundle::control::Control;
use crate::painter::Request;
use crate::stages::{PerStage, Stages};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;
use uuid::Uuid;

/// Milliseconds since 1970, UTC.
pub type Millis = i64;

/// Names a painting or a learned style, and the job that makes it: a UUID of version 7, which are in order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Id(Uuid);

impl Id {
    /// A new one.
    pub fn now() -> Id {
        Id(Uuid::now_v7())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Id {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Id, uuid::Error> {
        text.parse().map(Id)
    }
}

/// What kind of work a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A painting.
    Painting,
    /// A lesson: a style is learned.
    Learning,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits for its turn.
    Queued,
    /// Is being done.
    Running,
    /// Done.
    Finished,
    /// Could not be done.
    Failed,
    /// Taken back by a person.
    Cancelled,
}

impl State {
    /// Whether nothing more will happen.
    pub fn is_over(self) -> bool {
        matches!(self, State::Finished | State::Failed | State::Cancelled)
    }
}

/// Who asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The kiosk page.
    Kiosk,
    /// The studio page.
    Studio,
    /// The screen without a browser.
    Display,
    /// Some other client.
    #[default]
    Api,
    /// A client of the A1111-compatible interface.
    Sdapi,
}

/// A wish for a painting, with what only the daemon needs to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PaintingWish {
    /// How it is to be painted.
    pub request: Request,
    /// Rules of a mix made for this painting alone, such as `5..3=hiroshige`; styles by id or name. The mix becomes the last
    /// of the request's styles.
    pub mix: Vec<String>,
    /// Who asked.
    pub origin: Origin,
    /// Whether it goes into the gallery; one that does not is deleted after an hour.
    pub kept: bool,
    /// Whether what the ControlNets look at is kept with it.
    pub save_control: bool,
}

/// A wish for a style to be learned. What is left out is as the configuration has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LearningWish {
    /// The style's name; without one it gets a name that can be changed.
    pub name: Option<String>,
    /// What each picture shows besides its style, with `{}` where the style goes; one for all or one each.
    pub contexts: Vec<String>,
    /// What was proposed to the person as contexts, where something was.
    pub proposals: Vec<String>,
    /// Stages T.
    pub stages: Option<usize>,
    /// Optimiser steps.
    pub steps: Option<usize>,
    /// Noised latents a step.
    pub batch: Option<usize>,
    /// Learning rate.
    pub lr: Option<f64>,
    /// Learning rates of stages instead, as in `5..3=0.001,2..0=0.004`.
    pub stage_lr: Option<PerStage>,
    /// Stages that learn, as in `0..3`; the others stay at the initial word.
    #[schema(value_type = Option<String>)]
    pub learn_stages: Option<Stages>,
    /// Vectors of each stage.
    pub vectors_per_stage: Option<usize>,
    /// Batches a step takes together, as one so many times as large.
    pub accumulate: Option<usize>,
    /// Gamma of min-SNR weighting, such as 5.
    pub min_snr: Option<f64>,
    /// Evaluations of the validation loss without a better one after which the lesson ends.
    pub early_stop: Option<usize>,
    /// Steps between two evaluations of the validation loss, and of the validation pictures.
    pub validate_every: Option<usize>,
    /// Prompts to paint as the lesson goes, with `{}` where the style goes.
    pub validate_prompts: Vec<String>,
    /// The word every stage starts from.
    pub init: Option<String>,
    /// Of everything random.
    pub seed: Option<u64>,
    /// Licence of the style.
    pub license: Option<String>,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Ticket {
    /// Of the job and of what it makes.
    pub id: Id,
    /// Jobs of its kind before it.
    pub position: usize,
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Job {
    /// Of the job and of what it makes.
    pub id: Id,
    /// What kind of work.
    pub kind: Kind,
    /// Where it stands.
    pub state: State,
    /// Who asked.
    pub origin: Origin,
    /// Jobs of its kind before it, while it waits.
    pub position: Option<usize>,
    /// When it was asked for.
    pub created: Millis,
    /// When it was last begun.
    pub started: Option<Millis>,
    /// When it was over.
    pub ended: Option<Millis>,
    /// How often it was begun.
    pub attempts: u32,
    /// Steps done.
    pub step: usize,
    /// Steps in all; 0 while not known.
    pub steps: usize,
    /// The stage of the style that the last step of a painting was in.
    pub stage: Option<usize>,
    /// Smoothed loss of a lesson.
    pub loss: Option<f32>,
    /// Counts the previews there have been; 0 for none yet.
    pub preview: u64,
    /// Seconds it will still take, roughly.
    pub seconds_left: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A finished painting.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Painting {
    /// Its id.
    pub id: Id,
    /// When it was finished.
    pub created: Millis,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Of all its files.
    pub bytes: u64,
    /// Of the PNG, in hexadecimal.
    pub sha256: String,
    /// The prompt, styles by name.
    pub prompt: String,
    /// The styles' names.
    pub styles: Vec<String>,
    /// Who asked.
    pub origin: Origin,
    /// Whether it is in the gallery.
    pub kept: bool,
    /// Whether there is a photograph to compare it with.
    pub has_content: bool,
    /// What its control pictures show, where they are kept.
    #[schema(value_type = Vec<String>)]
    pub controls: Vec<Control>,
    /// How often it was printed.
    pub prints: u32,
    /// How it was painted.
    #[schema(value_type = Object)]
    pub recipe: serde_json::Value,
}

/// Where a style comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StyleSource {
    /// With the model.
    Shipped,
    /// Learned here.
    Learned,
    /// A file somebody brought.
    File,
    /// Mixed here from others.
    Mix,
}

/// A style that can be painted with.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct StyleEntry {
    /// Its id; a shipped style's is its name.
    pub id: String,
    /// What people call it, and prompts.
    pub name: String,
    /// Where it comes from.
    pub source: StyleSource,
    /// When it came.
    pub created: Millis,
    /// Whether a person has said that it should stay; one just learned is not yet.
    pub kept: bool,
    /// Whether visitors may choose it.
    pub shown: bool,
    /// Number of stages T.
    pub stages: usize,
    /// What its pictures show besides their style.
    pub contexts: Vec<String>,
    /// What was proposed as contexts.
    pub proposals: Vec<String>,
    /// Licence of the vectors.
    pub license: String,
    /// Whether there is a picture of it.
    pub has_picture: bool,
    /// The recipe, where it was mixed.
    pub mix: Option<String>,
    /// Validation loss with the initial word, where it was learned here.
    pub loss_before: Option<f32>,
    /// Validation loss with what was learned.
    pub loss_after: Option<f32>,
}

/// A change to a style; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StyleChange {
    /// What people call it.
    pub name: Option<String>,
    /// Whether it stays.
    pub kept: Option<bool>,
    /// Whether visitors may choose it.
    pub shown: Option<bool>,
    /// Licence of the vectors.
    pub license: Option<String>,
}

/// A point of a lesson's loss curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LossPoint {
    /// Steps done.
    pub step: usize,
    /// The stage T it is about.
    #[serde(rename = "t_stage")]
    pub stage: usize,
    /// Mean loss of the step's samples at this stage.
    pub loss: f32,
    /// The same, smoothed over about fifty steps.
    #[serde(rename = "smoothed_loss")]
    pub smoothed: f32,
}

/// What happens, as it happens.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A job waits.
    Queued {
        /// Of the job.
        id: Id,
        /// Its kind.
        kind: Kind,
        /// Jobs of its kind before it.
        position: usize,
    },
    /// A step of a painting was taken.
    Step {
        /// Of the painting.
        id: Id,
        /// Steps taken.
        i: usize,
        /// Steps in all.
        n: usize,
        /// The stage of the style it was in, T - 1 next to noise.
        stage: Option<usize>,
    },
    /// There is a new preview of a painting, or of a style being learned.
    Preview {
        /// Of the job.
        id: Id,
        /// Its kind.
        kind: Kind,
        /// How many there have been.
        version: u64,
    },
    /// A step of a lesson was taken.
    Learning {
        /// Of the lesson.
        id: Id,
        /// Steps taken.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// Mean loss of the step.
        loss: f32,
        /// Smoothed over about fifty steps.
        smoothed: f32,
        /// The same of each stage, stage 0 first; null where no step has looked at one yet.
        stages: Vec<Option<f32>>,
        /// The validation loss, where it was evaluated after this step.
        #[serde(skip_serializing_if = "Option::is_none")]
        validation: Option<f32>,
    },
    /// A painting is there, or a style.
    Finished {
        /// Of the job.
        id: Id,
        /// Its kind.
        kind: Kind,
    },
    /// A job could not be done.
    Failed {
        /// Of the job.
        id: Id,
        /// Its kind.
        kind: Kind,
        /// Why.
        error: String,
    },
    /// A job was taken back.
    Cancelled {
        /// Of the job.
        id: Id,
        /// Its kind.
        kind: Kind,
    },
    /// A painting or a style was deleted.
    Deleted {
        /// Its id.
        id: String,
    },
    /// Styles came, went or changed.
    Styles {},
    /// The camera came or went.
    Camera {
        /// Whether frames come.
        up: bool,
        /// What is wrong, if anything is.
        message: Option<String>,
    },
    /// What pages ask for once, when they open, has changed.
    Settings {},
    /// Somebody pressed the shutter, here or from afar.
    Shutter {},
}

impl Event {
    /// Its name, as in the stream of events.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Queued { .. } => "queued",
            Event::Step { .. } => "step",
            Event::Preview { .. } => "preview",
            Event::Learning { .. } => "learning",
            Event::Finished { .. } => "finished",
            Event::Failed { .. } => "failed",
            Event::Cancelled { .. } => "cancelled",
            Event::Deleted { .. } => "deleted",
            Event::Styles {} => "styles",
            Event::Camera { .. } => "camera",
            Event::Settings {} => "settings",
            Event::Shutter {} => "shutter",
        }
    }
}
