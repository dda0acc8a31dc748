//! From a button that goes down and up to short and long presses.

use std::time::Duration;

/// How long a button was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Press {
    /// Let go before [`Timing::long`].
    Short,
    /// Held for [`Timing::long`]; reported then, not only when it is let go.
    Long,
}

/// The times that tell presses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A press is long from here on.
    pub long: Duration,
    /// A button that goes down again so soon after it went up was bouncing.
    pub debounce: Duration,
    /// Whether the keys of input devices are kept from everyone else.
    pub grab: bool,
}

/// One button's state. Times are since any one moment.
pub(super) struct Hold {
    timing: Timing,
    down_since: Option<Duration>,
    /// Whether the press that lasts was reported as long already.
    told: bool,
    up_since: Option<Duration>,
}

impl Hold {
    /// A button that is up.
    pub(super) fn new(timing: Timing) -> Hold {
        Hold { timing, down_since: None, told: false, up_since: None }
    }

    /// The button went down or up at `now`.
    pub(super) fn moved(&mut self, down: bool, now: Duration) -> Option<Press> {
        if down {
            let bounced = self.up_since.is_some_and(|up| now.saturating_sub(up) < self.timing.debounce);
            if self.down_since.is_none() && !bounced {
                (self.down_since, self.told) = (Some(now), false);
            }
            return None;
        }
        let since = self.down_since.take()?;
        self.up_since = Some(now);
        if self.told {
            return None;
        }
        Some(if now.saturating_sub(since) >= self.timing.long { Press::Long } else { Press::Short })
    }

    /// Nothing more happened until `now`.
    pub(super) fn waited(&mut self, now: Duration) -> Option<Press> {
        let since = self.down_since?;
        let long = !self.told && now.saturating_sub(since) >= self.timing.long;
        self.told |= long;
        long.then_some(Press::Long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing =
        Timing { long: Duration::from_millis(700), debounce: Duration::from_millis(30), grab: false };

    /// What comes of `moves`, each `(milliseconds, down)`, with a look at the clock every 50 ms.
    fn presses(moves: &[(u64, bool)]) -> Vec<(u64, Press)> {
        let mut hold = Hold::new(TIMING);
        let mut found = Vec::new();
        for now in 0..3000 {
            for (_, down) in moves.iter().filter(|(at, _)| *at == now) {
                found.extend(hold.moved(*down, Duration::from_millis(now)).map(|press| (now, press)));
            }
            if now % 50 == 0 {
                found.extend(hold.waited(Duration::from_millis(now)).map(|press| (now, press)));
            }
        }
        found
    }

    #[test]
    fn a_press_is_short_until_it_is_long() {
        assert_eq!(presses(&[(110, true), (200, false)]), [(200, Press::Short)]);
        assert_eq!(presses(&[(101, true), (800, false)]), [(800, Press::Short)]);
        assert_eq!(presses(&[(101, true), (801, false)]), [(801, Press::Long)]);
    }

    #[test]
    fn a_long_press_is_told_while_it_lasts_and_once() {
        assert_eq!(presses(&[(110, true), (2900, false)]), [(850, Press::Long)]);
        assert_eq!(presses(&[(110, true)]), [(850, Press::Long)]);
    }

    #[test]
    fn bouncing_is_one_press() {
        let moves = [(100, true), (200, false), (205, true), (210, false), (240, true), (300, false)];
        assert_eq!(presses(&moves), [(200, Press::Short), (300, Press::Short)]);
        let early = [(100, true), (104, true), (200, false), (201, false)];
        assert_eq!(presses(&early), [(200, Press::Short)]);
    }

    #[test]
    fn a_button_that_was_down_at_the_start_says_nothing_when_let_go() {
        assert_eq!(presses(&[(100, false)]), []);
    }
}
