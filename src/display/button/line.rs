//! A GPIO line, through the kernel's character device.

use std::io;
use std::path::Path;
use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::line::{Bias, EdgeDetection, EdgeKind};

use super::{Button, Event};

/// A line that is asked for its edges.
pub(super) struct Line {
    request: Request,
}

impl Line {
    /// Asks for line `offset` of `chip`; with `low` a press pulls it to ground, else to the supply, and a resistor of
    /// the chip, where it has one, pulls it the other way.
    pub(super) fn open(chip: &Path, offset: u32, low: bool, debounce: Duration) -> io::Result<Line> {
        let mut builder = Request::builder();
        builder.with_consumer("pleinair").on_chip(chip).with_line(offset).as_input();
        if low {
            builder.as_active_low().with_bias(Bias::PullUp);
        } else {
            builder.as_active_high().with_bias(Bias::PullDown);
        }
        builder.with_edge_detection(EdgeDetection::BothEdges).with_debounce_period(debounce);
        builder.request().map(|request| Line { request }).map_err(io::Error::other)
    }
}

impl Button for Line {
    fn wait(&mut self, up_to: Duration) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut patience = up_to;
        while self.request.wait_edge_event(patience).map_err(io::Error::other)? {
            // edges are of the logical value: rising is pressed, whichever level that is
            let edge = self.request.read_edge_event().map_err(io::Error::other)?;
            events.push(if edge.kind == EdgeKind::Rising { Event::Down } else { Event::Up });
            patience = Duration::ZERO;
        }
        Ok(events)
    }
}
