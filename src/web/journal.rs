//! The last lines of the log, in memory, for the admin page.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that are kept.
const LINES: usize = 500;
/// The longest line that is kept whole, in characters.
const LONGEST: usize = 2000;

/// The last lines of the log; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Journal(Arc<Mutex<VecDeque<String>>>);

impl Journal {
    /// The lines, the oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn add(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while lines.len() >= LINES {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(LONGEST).collect());
    }
}

/// Takes what one event is written as.
#[derive(Debug)]
pub struct Entry {
    journal: Journal,
    text: Vec<u8>,
}

impl Write for Entry {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        String::from_utf8_lossy(&self.text).lines().for_each(|line| self.journal.add(line));
    }
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Entry;

    fn make_writer(&'a self) -> Entry {
        Entry { journal: self.clone(), text: vec![] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let journal = Journal::default();
        for number in 0..LINES + 3 {
            writeln!(journal.make_writer(), "line {number}").unwrap();
        }
        write!(journal.make_writer(), "{}", "x".repeat(LONGEST + 1)).unwrap();
        let lines = journal.lines();
        assert_eq!((lines.len(), lines[0].as_str()), (LINES, "line 4"));
        assert_eq!(lines[LINES - 1].len(), LONGEST);
    }
}
