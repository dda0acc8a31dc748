//! When a lost camera is tried again.

use std::time::{Duration, Instant};

/// The waits between attempts to open a camera: half a second, doubled with each failure up to fifteen seconds, so that
/// a plug pulled for a moment is not noticed and a camera gone for good costs nothing. Time is told by the caller.
#[derive(Debug, Clone)]
pub struct Backoff {
    wait: Duration,
    due: Option<Instant>,
}

impl Backoff {
    /// The wait after the first failure.
    pub const SHORTEST: Duration = Duration::from_millis(500);
    /// The longest wait.
    pub const LONGEST: Duration = Duration::from_secs(15);

    /// Nothing has failed yet.
    pub fn new() -> Backoff {
        Backoff { wait: Backoff::SHORTEST, due: None }
    }

    /// The camera could not be opened or was lost at `now`; how long to wait before it is tried again.
    pub fn lost(&mut self, now: Instant) -> Duration {
        let wait = self.wait;
        self.due = Some(now + wait);
        self.wait = (wait * 2).min(Backoff::LONGEST);
        wait
    }

    /// A good frame came: the next failure is the first again. An opened camera is not enough, for many open and then
    /// give nothing.
    pub fn good(&mut self) {
        *self = Backoff::new();
    }

    /// How long it still is to the next attempt; zero when it is due.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_fifteen_seconds_and_begin_anew_after_a_good_frame() {
        let mut now = Instant::now();
        let mut backoff = Backoff::new();
        assert_eq!(backoff.remaining(now), Duration::ZERO, "the first attempt is due at once");
        for expected in [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0] {
            let wait = backoff.lost(now);
            assert_eq!(wait.as_secs_f64(), expected);
            assert_eq!(backoff.remaining(now), wait);
            assert_eq!(backoff.remaining(now + wait / 4), wait * 3 / 4);
            now += wait;
            assert_eq!(backoff.remaining(now), Duration::ZERO);
            assert_eq!(backoff.remaining(now + wait), Duration::ZERO, "late is due too");
        }
        backoff.good();
        assert_eq!(backoff.remaining(now), Duration::ZERO);
        assert_eq!(backoff.lost(now), Backoff::SHORTEST);
    }
}
