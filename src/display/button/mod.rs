//! Buttons: a key of any input device, a GPIO line, or a pipe that scripts write into.
//!
//! Each has a thread that turns what it sees into short and long presses and hands them to one channel. A device that
//! goes away is looked for with growing pauses; nothing else stops.

mod hold;
#[cfg(target_os = "linux")]
mod key;
#[cfg(target_os = "linux")]
mod line;
mod pipe;
mod source;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use hold::Hold;
pub use hold::{Press, Timing};
pub use source::{Device, Source};

/// How long a thread waits for its button before it looks whether it should end.
const WAIT: Duration = Duration::from_millis(50);
/// The first and the longest pause before a lost device is looked for again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// What a button's device reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "keys and lines are read on Linux alone"))]
enum Event {
    Down,
    Up,
    /// A device that counts presses itself.
    Whole(Press),
}

/// An open device of a button.
trait Button {
    /// What has happened since the last call, after at most about `up_to` of waiting.
    fn wait(&mut self, up_to: Duration) -> io::Result<Vec<Event>>;
}

/// A press of one of the buttons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressed {
    /// Index of the button among the sources.
    pub button: usize,
    /// How long.
    pub press: Press,
}

/// The threads that watch the buttons; dropping it ends them.
pub struct Buttons {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Buttons {
    /// Watches every button of `sources`; their presses go `to` the channel, and are lost while it is full.
    ///
    /// A device that is not there yet is waited for.
    ///
    /// # Errors
    /// [`Error::Usage`] for a source that this system cannot have, [`Error::Io`] when no thread can be started.
    pub fn watch(sources: &[Source], timing: Timing, to: &SyncSender<Pressed>) -> Result<Buttons> {
        sources.iter().try_for_each(Source::check)?;
        let mut buttons = Buttons { stop: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        for (button, source) in sources.iter().enumerate() {
            let (source, to, stop) = (source.clone(), to.clone(), Arc::clone(&buttons.stop));
            let thread = thread::Builder::new()
                .name(format!("button-{button}"))
                .spawn(move || watch(&source, timing, &stop, |press| send(&to, Pressed { button, press })))
                .map_err(Error::io(std::path::Path::new("a thread for a button")))?;
            buttons.threads.push(thread);
        }
        Ok(buttons)
    }
}

impl Drop for Buttons {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a button's thread panicked");
            }
        }
    }
}

/// Hands on a press; whether anybody will ever want another.
fn send(to: &SyncSender<Pressed>, pressed: Pressed) -> bool {
    match to.try_send(pressed) {
        Ok(()) => true,
        Err(TrySendError::Full(_)) => {
            tracing::debug!(button = pressed.button, "a press came while others still wait; it is lost");
            true
        }
        Err(TrySendError::Disconnected(_)) => false,
    }
}

/// Opens the button again and again and follows it until `stop` or until `send` says that nobody listens.
fn watch(source: &Source, timing: Timing, stop: &AtomicBool, mut send: impl FnMut(Press) -> bool) {
    let (mut pause, mut told) = (PAUSES.0, false);
    while !stop.load(Ordering::Relaxed) {
        let lost = match source.open(timing) {
            Ok(mut button) => {
                tracing::info!(%source, "button connected");
                (pause, told) = (PAUSES.0, false);
                match follow(button.as_mut(), timing, stop, &mut send) {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%source, error = %lost, "button is not there; it is looked for from time to time");
        }
        let until = Instant::now() + pause;
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            thread::sleep(WAIT);
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Follows an open button until it is lost, or until all is over.
fn follow(
    button: &mut dyn Button,
    timing: Timing,
    stop: &AtomicBool,
    send: &mut impl FnMut(Press) -> bool,
) -> io::Result<()> {
    let mut hold = Hold::new(timing);
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let events = button.wait(WAIT)?;
        let now = began.elapsed();
        // a press that is long by now is so before what came after it
        let presses = events.into_iter().map(|event| match event {
            Event::Whole(press) => Some(press),
            Event::Down => hold.moved(true, now),
            Event::Up => hold.moved(false, now),
        });
        let mut presses: Vec<Press> = presses.flatten().collect();
        presses.extend(hold.waited(now));
        if !presses.into_iter().all(&mut *send) {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
