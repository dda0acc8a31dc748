//! What happens, told to whoever listens.

use super::job::Event;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::broadcast;

/// A listener that is further behind than this misses events, which it is told.
const KEPT: usize = 1024;

/// An event and its number.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// Counts events since the start.
    pub number: u64,
    /// What happened.
    pub event: Event,
}

/// Where events are told; cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    channel: broadcast::Sender<Numbered>,
    count: Arc<AtomicU64>,
}

impl Events {
    pub(super) fn new() -> Events {
        Events { channel: broadcast::Sender::new(KEPT), count: Arc::default() }
    }

    /// Tells everybody who listens; nobody need.
    pub fn tell(&self, event: Event) {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = self.channel.send(Numbered { number, event });
    }

    /// Listens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Numbered> {
        self.channel.subscribe()
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.channel.receiver_count()
    }
}
