//! A named pipe, or a file that grows: every line `press` or `long` is a press. For scripts and remote controls.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::{Button, Event, Press};

/// The longest line that is waited for; more without an end is no press.
const LONGEST: usize = 64;

/// An open pipe or file.
pub(super) struct Pipe {
    file: File,
    /// The start of a line whose end has not come.
    line: Vec<u8>,
}

impl Pipe {
    /// Opens the pipe at `path` without waiting for a writer; of a file, only what is added from now on counts.
    pub(super) fn open(path: &Path) -> io::Result<Pipe> {
        let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_file() {
            file.seek(SeekFrom::End(0))?;
        } else if !kind.is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a named pipe nor a file"));
        }
        Ok(Pipe { file, line: Vec::new() })
    }

    /// The presses whose lines end in `bytes`.
    fn take(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                self.line.truncate(LONGEST);
                continue;
            }
            match self.line.trim_ascii() {
                b"press" => events.push(Event::Whole(Press::Short)),
                b"long" => events.push(Event::Whole(Press::Long)),
                other => tracing::warn!(line = %other.escape_ascii(), "a button's line is neither `press` nor `long`"),
            }
            self.line.clear();
        }
        events
    }
}

impl Button for Pipe {
    fn wait(&mut self, up_to: Duration) -> io::Result<Vec<Event>> {
        let mut bytes = [0; 256];
        match self.file.read(&mut bytes) {
            Ok(0) => {}
            Ok(read) => return Ok(self.take(&bytes[..read])),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        thread::sleep(up_to);
        Ok(Vec::new())
    }
}
