//! The camera loop: a thread that keeps the newest frame, tells when the camera comes and goes, and tries a lost one again.

use super::job::Event;
use super::{Daemon, Events};
use crate::camera::{self, Backoff, Frame, Source};
use crate::{Error, Result};
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A frame older than this is no longer what the camera sees.
const FRESH: Duration = Duration::from_secs(3);

pub(super) fn start(daemon: Daemon) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("camera".into());
    thread.spawn(move || run(&daemon)).map_err(Error::io(Path::new("the camera's thread")))
}

/// One camera after the other, until the end.
fn run(daemon: &Daemon) {
    while !daemon.stopping() {
        let (source, stop) = daemon.camera_now();
        look_through(daemon, &source, &stop);
    }
}

/// One camera, until another is chosen or the daemon ends; a lost one is tried again.
fn look_through(daemon: &Daemon, source: &Source, stop: &Arc<AtomicBool>) {
    let (frames, viewfinder, events) = (&daemon.config().camera.frames, daemon.viewfinder(), daemon.events());
    let mut backoff = Backoff::new();
    while !stop.load(Ordering::SeqCst) {
        if *source == Source::Browser {
            std::thread::sleep(GLANCE); // pages send their frames themselves
            continue;
        }
        let lost = camera::open(source, frames, stop.clone()).and_then(|mut camera| -> Result<Infallible> {
            loop {
                let frame = camera.next_frame()?;
                viewfinder.show(frame, events, stop);
                backoff.good();
            }
        });
        match lost {
            Err(Error::Interrupted) => break,
            Err(fault) => viewfinder.lose(fault.to_string(), events, stop),
        }
        backoff.lost(Instant::now());
        while !stop.load(Ordering::SeqCst) && !backoff.remaining(Instant::now()).is_zero() {
            std::thread::sleep(GLANCE);
        }
    }
}

/// How often a waiting camera looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(50);

/// The newest frame and the camera's state; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Viewfinder(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    shot: Option<Shot>,
    fault: Option<String>,
    /// Whether it was told that frames come.
    announced: bool,
    /// Frames there were of cameras before this one.
    forgotten: u64,
    closed: bool,
}

/// A frame and when it came.
#[derive(Debug, Clone)]
pub struct Shot {
    /// The frame, turned and cut as configured.
    pub frame: Arc<Frame>,
    /// Counts the frames.
    pub number: u64,
    /// When it came.
    pub taken: Instant,
}

impl Viewfinder {
    /// The newest frame.
    ///
    /// # Errors
    /// Why there is none.
    pub fn latest(&self) -> std::result::Result<Shot, String> {
        let now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        match (&now.shot, &now.fault) {
            (Some(shot), _) if shot.taken.elapsed() < FRESH => Ok(shot.clone()),
            (_, Some(fault)) => Err(fault.clone()),
            _ => Err("the camera has not sent a picture yet".into()),
        }
    }

    /// The first frame after frame `number`, waiting for it at most `patience`.
    pub fn next(&self, number: u64, patience: Duration) -> Option<Shot> {
        let now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        let old = |now: &mut Now| !now.closed && now.shot.as_ref().is_none_or(|shot| shot.number <= number);
        let (now, _) = self.0.changed.wait_timeout_while(now, patience, old).unwrap_or_else(PoisonError::into_inner);
        now.shot.clone().filter(|shot| shot.number > number)
    }

    /// Whether frames come; else what is wrong.
    ///
    /// # Errors
    /// As [`Viewfinder::latest`].
    pub fn state(&self) -> std::result::Result<(), String> {
        self.latest().map(drop)
    }

    /// What was last told of the camera, for who listens only from now on; nothing before the first frame or fault.
    pub fn announced(&self) -> Option<Event> {
        let now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        let up = now.fault.is_none();
        (now.shot.is_some() || !up).then(|| Event::Camera { up, message: now.fault.clone() })
    }

    /// A new frame; of a camera that is no longer wanted it is not shown.
    pub(super) fn show(&self, frame: Frame, events: &Events, unwanted: &AtomicBool) {
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        if unwanted.load(Ordering::SeqCst) {
            return;
        }
        let number = now.shot.as_ref().map_or(now.forgotten, |shot| shot.number) + 1;
        now.shot = Some(Shot { frame: Arc::new(frame), number, taken: Instant::now() });
        let was_down = now.fault.take().is_some() || !now.announced;
        now.announced = true;
        drop(now);
        self.0.changed.notify_all();
        if was_down {
            events.tell(Event::Camera { up: true, message: None });
        }
    }

    /// Another camera was chosen: nothing of the last one is shown any more.
    pub(super) fn forget(&self) {
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        // the count goes on, so that who waits for the next frame is not deceived
        now.forgotten = now.shot.take().map_or(now.forgotten, |shot| shot.number);
        (now.fault, now.announced) = (None, false);
    }

    pub(super) fn lose(&self, fault: String, events: &Events, unwanted: &AtomicBool) {
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        if unwanted.load(Ordering::SeqCst) {
            return;
        }
        let news = now.fault.as_ref() != Some(&fault);
        now.fault = Some(fault.clone());
        drop(now);
        if news {
            tracing::warn!(%fault, "the camera is lost");
            events.tell(Event::Camera { up: false, message: Some(fault) });
        }
    }

    pub(super) fn close(&self) {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.changed.notify_all();
    }
}
