//! The painter's thread: paintings before lessons, and small things when there is nothing else.

use super::job::{Event, Id, Kind, State, StyleEntry};
use super::painting::{self, jpeg, within};
use super::store::{Claim, StyleFile, now, write};
use super::{Daemon, Running, lesson};
use crate::painter::Request;
use crate::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two rounds of tidying.
const TIDYING: Duration = Duration::from_secs(60);
/// A painting that does not go into the gallery is kept so long.
const PASSING_MILLIS: i64 = 60 * 60 * 1000;
/// Jobs that are over are remembered so long.
const MEMORY_MILLIS: i64 = 7 * 24 * 60 * 60 * 1000;
const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
/// Weight of the last painting in the mean of how long they take.
const NEWEST: f64 = 0.3;
/// After a fault of the disk.
const BREATH: Duration = Duration::from_secs(1);

pub(super) fn start(daemon: Daemon) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("painter".into());
    thread.spawn(move || run(&daemon)).map_err(Error::io(Path::new("the painter's thread")))
}

fn run(daemon: &Daemon) {
    let mut tidied = None;
    while !daemon.stopping() {
        match round(daemon, &mut tidied) {
            Ok(true) => {}
            Ok(false) => daemon.wait(TIDYING),
            Err(fault) => {
                tracing::error!(%fault, "the painter cannot go on; trying again");
                daemon.desk().running.clear();
                daemon.wait(BREATH);
                // what could not even be put back is: nothing runs now
                if let Err(fault) = daemon.store().recover(daemon.config().queue.attempts) {
                    tracing::error!(%fault, "the queue cannot be put in order");
                }
            }
        }
    }
}

/// Does the most urgent thing; whether there was one.
fn round(daemon: &Daemon, tidied: &mut Option<Instant>) -> Result<bool> {
    if let Some(claim) = daemon.store().claim(Kind::Painting)? {
        return work(daemon, &claim).map(|()| true);
    }
    if let Some(claim) = daemon.store().claim(Kind::Learning)? {
        return work(daemon, &claim).map(|()| true);
    }
    if tidied.is_none_or(|last| last.elapsed() > TIDYING) {
        *tidied = Some(Instant::now());
        tidy(daemon)?;
    }
    portray_a_style(daemon)
}

/// Between two steps of a lesson.
pub(super) fn paint_what_waits(daemon: &Daemon) -> Result<()> {
    while !daemon.stopping() {
        let Some(claim) = daemon.store().claim(Kind::Painting)? else { break };
        work(daemon, &claim)?;
    }
    Ok(())
}

/// A fault in a network's code must not end the daemon: the job has failed then.
fn work(daemon: &Daemon, claim: &Claim) -> Result<()> {
    let (id, kind) = (claim.id, claim.kind);
    daemon.begin(claim);
    tracing::info!(%id, ?kind, attempt = claim.attempts, "begun");
    let job = || match kind {
        Kind::Painting => painting::paint(daemon, claim),
        Kind::Learning => lesson::learn(daemon, claim),
    };
    let outcome = catch_unwind(AssertUnwindSafe(job))
        .unwrap_or_else(|_| Err(Error::Usage("the program made a mistake on this; its log has more".into())));
    let settled = settle(daemon, claim, outcome);
    daemon.let_go(id);
    settled
}

/// What becomes of a job that the painter lays down.
fn settle(daemon: &Daemon, claim: &Claim, outcome: Result<()>) -> Result<()> {
    let (id, kind, store) = (claim.id, claim.kind, daemon.store());
    match outcome {
        Ok(()) => tracing::info!(%id, ?kind, "finished"),
        Err(_) if daemon.is_cancelled(id) => tracing::info!(%id, ?kind, "cancelled"),
        Err(Error::Interrupted) => return store.put_back(id),
        // a disk may have room again; a lesson's checkpoint is not thrown away for it
        Err(fault @ Error::Io { .. }) if claim.attempts < daemon.config().queue.attempts => return Err(fault),
        Err(fault) => {
            tracing::warn!(%id, ?kind, %fault, "failed");
            let error = told(&fault, kind);
            if store.end(id, State::Failed, Some(&error))? {
                daemon.0.metrics.failed(kind);
                daemon.events().tell(Event::Failed { id, kind, error });
            }
        }
    }
    store.files().forget_job(id);
    Ok(())
}

/// Why a job failed, for clients: the log has the paths, and remedies for the command line are none here.
fn told(fault: &Error, kind: Kind) -> String {
    match fault {
        Error::Io { source, .. } => format!("the disk refused: {}; the log has more", source.kind()),
        Error::File { what, .. } => format!("a file of the job {what}"),
        Error::NotFinite { what, .. } if kind == Kind::Learning => {
            format!("{what} is not a finite number; learn it again with a lower learning rate")
        }
        other => other.to_string(),
    }
}

/// Deletes what the configuration does not want kept.
fn tidy(daemon: &Daemon) -> Result<()> {
    let (store, retention) = (daemon.store(), &daemon.config().retention);
    store.forget_jobs(now() - MEMORY_MILLIS)?;
    let oldest = retention.days.map(|days| now().saturating_sub((days as i64).saturating_mul(DAY_MILLIS)));
    let bytes = retention.megabytes.map(|megabytes| megabytes.saturating_mul(1_000_000));
    for id in store.superfluous(now() - PASSING_MILLIS, oldest, retention.paintings, bytes)? {
        tracing::info!(%id, "deleted by the rules of retention");
        daemon.delete_painting(id)?;
    }
    Ok(())
}

/// A style that came without a picture gets one, when there is time; whether there was such a style.
fn portray_a_style(daemon: &Daemon) -> Result<bool> {
    let styles = daemon.styles()?;
    let bare = |entry: &&StyleEntry| !entry.has_picture && !daemon.desk().unpictured.contains(&entry.id);
    let Some(entry) = styles.iter().find(bare) else { return Ok(false) };
    match portray(daemon, entry) {
        Ok(()) => daemon.events().tell(Event::Styles {}),
        Err(Error::Interrupted) => {}
        Err(fault) => {
            tracing::warn!(style = entry.name, %fault, "cannot be shown");
            daemon.desk().unpictured.push(entry.id.clone());
        }
    }
    Ok(true)
}

fn portray(daemon: &Daemon, entry: &StyleEntry) -> Result<()> {
    let style = daemon.fitting(daemon.style_vectors(entry)?)?;
    let order = lesson::sample(daemon, Request { styles: vec![entry.name.clone()], ..Request::default() }, &style)?;
    let canvas = daemon.0.painter.paint(&order, &mut |_| {
        let urgent = daemon.stopping() || daemon.store().waits(Kind::Painting)?;
        if urgent { Err(Error::Interrupted) } else { Ok(()) }
    })?;
    let small = within(&canvas, daemon.config().painting.thumbnail_side)?;
    write(&daemon.store().files().style(&entry.id, StyleFile::Picture), &jpeg(&small)?)?;
    daemon.store().style_has_picture(&entry.id)
}

impl Daemon {
    fn begin(&self, claim: &Claim) {
        let mut desk = self.desk();
        desk.alive = Some(Instant::now());
        desk.running.push(Running {
            id: claim.id,
            began: Instant::now(),
            step_began: None,
            step: 0,
            steps: 0,
            stage: None,
            loss: None,
        });
    }

    /// # Errors
    /// [`Error::Interrupted`] when the job is to end.
    pub(super) fn check(&self, id: Id) -> Result<()> {
        self.desk().alive = Some(Instant::now());
        if self.stopping() || self.is_cancelled(id) { Err(Error::Interrupted) } else { Ok(()) }
    }

    pub(super) fn is_cancelled(&self, id: Id) -> bool {
        self.desk().cancelled.contains(&id)
    }

    pub(super) fn took_step(&self, id: Id, step: usize, steps: usize, stage: Option<usize>, loss: Option<f32>) {
        let mut desk = self.desk();
        if let Some(running) = desk.running.iter_mut().find(|running| running.id == id) {
            // what a lesson had learned before an interruption took no time of this run
            running.step_began.get_or_insert((step - 1, running.began));
            (running.step, running.steps, running.stage, running.loss) = (step, steps, stage, loss);
        }
    }

    pub(super) fn took(&self, time: Duration) {
        self.0.metrics.painted(time.as_secs_f64());
        let mut desk = self.desk();
        let seconds = time.as_secs_f64();
        let mean = desk.painting_seconds.map_or(seconds, |mean| mean + NEWEST * (seconds - mean));
        desk.painting_seconds = Some(mean);
    }

    /// The job is no longer the painter's.
    pub(super) fn let_go(&self, id: Id) {
        let mut desk = self.desk();
        desk.running.retain(|running| running.id != id);
        desk.cancelled.retain(|cancelled| *cancelled != id);
        desk.previews.remove(&id);
    }

    /// Until there is work, at most so long.
    fn wait(&self, patience: Duration) {
        let desk = self.desk();
        let nothing = |desk: &mut super::Desk| !desk.wake && !self.stopping();
        let waited = self.0.work.wait_timeout_while(desk, patience, nothing);
        waited.unwrap_or_else(std::sync::PoisonError::into_inner).0.wake = false;
    }
}
