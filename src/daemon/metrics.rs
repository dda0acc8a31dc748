//! What the daemon counts, for Prometheus.

use super::job::Kind;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// A job's kind and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ending {
    kind: Label,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: Label,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "these become the labels' values")]
enum Label {
    painting,
    learning,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "these become the labels' values")]
enum State {
    finished,
    failed,
    cancelled,
}

impl From<Kind> for Label {
    fn from(kind: Kind) -> Label {
        match kind {
            Kind::Painting => Label::painting,
            Kind::Learning => Label::learning,
        }
    }
}

/// The counters. They cost next to nothing to change.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    jobs: Family<Ending, Counter>,
    steps: Family<OfKind, Counter>,
    waiting: Family<OfKind, Gauge>,
    painting_seconds: Histogram,
    step_seconds: Histogram,
    camera_up: Gauge,
    listeners: Gauge,
    resident: Gauge,
    painting_bytes: Gauge,
    loss: Gauge<f64, AtomicU64>,
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("pleinair");
        let metrics = Metrics {
            jobs: Family::default(),
            steps: Family::default(),
            waiting: Family::default(),
            painting_seconds: Histogram::new(exponential_buckets(0.25, 2.0, 13)),
            step_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 13)),
            camera_up: Gauge::default(),
            listeners: Gauge::default(),
            resident: Gauge::default(),
            painting_bytes: Gauge::default(),
            loss: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("jobs", "Jobs that are over, by how they ended", metrics.jobs.clone());
        registry.register("steps", "Steps of paintings and lessons taken", metrics.steps.clone());
        registry.register("jobs_unfinished", "Jobs that wait or run", metrics.waiting.clone());
        let painting = metrics.painting_seconds.clone();
        registry.register_with_unit("painting", "Time of a painting, without waiting", Unit::Seconds, painting);
        let step = metrics.step_seconds.clone();
        registry.register_with_unit("painting_step", "Time of a denoising step", Unit::Seconds, step);
        registry.register("camera_up", "Whether frames come from the camera", metrics.camera_up.clone());
        registry.register("event_listeners", "Open streams of events", metrics.listeners.clone());
        let resident = metrics.resident.clone();
        registry.register_with_unit("resident_memory", "Resident memory of the process", Unit::Bytes, resident);
        let bytes = metrics.painting_bytes.clone();
        registry.register_with_unit("paintings", "Size of all paintings on disk", Unit::Bytes, bytes);
        registry.register("learning_loss", "Smoothed loss of the lesson in progress", metrics.loss.clone());
        Metrics { registry, ..metrics }
    }

    pub(super) fn finished(&self, kind: Kind) {
        self.ended(kind, State::finished);
    }

    pub(super) fn failed(&self, kind: Kind) {
        self.ended(kind, State::failed);
    }

    pub(super) fn cancelled(&self, kind: Kind) {
        self.ended(kind, State::cancelled);
    }

    fn ended(&self, kind: Kind, state: State) {
        self.jobs.get_or_create(&Ending { kind: kind.into(), state }).inc();
    }

    pub(super) fn painted(&self, seconds: f64) {
        self.painting_seconds.observe(seconds);
    }

    pub(super) fn painting_step(&self, seconds: f64) {
        self.step_seconds.observe(seconds);
        self.steps.get_or_create(&OfKind { kind: Label::painting }).inc();
    }

    pub(super) fn learning_step(&self, smoothed: f32) {
        self.loss.set(smoothed.into());
        self.steps.get_or_create(&OfKind { kind: Label::learning }).inc();
    }

    /// What is looked up only when somebody asks.
    pub(super) fn set_now(&self, now: &Now) {
        for (kind, count) in [(Label::painting, now.paintings), (Label::learning, now.lessons)] {
            self.waiting.get_or_create(&OfKind { kind }).set(count as i64);
        }
        self.camera_up.set(now.camera_up.into());
        self.listeners.set(now.listeners as i64);
        self.resident.set(now.resident_bytes as i64);
        self.painting_bytes.set(now.painting_bytes as i64);
    }

    /// All of them in Prometheus' (OpenMetrics) text format.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes whatever is written to it");
        text
    }
}

/// The state of the moment.
pub(super) struct Now {
    pub(super) paintings: usize,
    pub(super) lessons: usize,
    pub(super) camera_up: bool,
    pub(super) listeners: usize,
    pub(super) resident_bytes: u64,
    pub(super) painting_bytes: u64,
}
