//! A key of an input device, through the kernel's evdev.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use evdev::{EventSummary, KeyCode};

use super::{Button, Device, Event};
use crate::error::{Error, Result};

/// Pause between two looks at a device that has nothing to say: too short to be felt.
const POLL: Duration = Duration::from_millis(10);

/// The key the kernel calls `name`.
///
/// # Errors
/// [`Error::Usage`] when there is none.
pub(super) fn code(name: &str) -> Result<KeyCode> {
    name.parse().map_err(|_| {
        Error::Usage(format!(
            "the kernel knows no key `{name}`; press it in `evtest` to see its name, such as KEY_SPACE or KEY_ENTER"
        ))
    })
}

/// An open input device and the key that counts.
pub(super) struct Key {
    device: evdev::Device,
    key: Option<KeyCode>,
}

impl Key {
    /// Opens `device`, and with `grab` keeps its keys from everyone else.
    pub(super) fn open(device: &Device, key: Option<&str>, grab: bool) -> io::Result<Key> {
        let key = key.map(code).transpose().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let mut device = match device {
            Device::Path(path) => evdev::Device::open(path)?,
            Device::Name(name) => evdev::enumerate()
                .map(|(_, device)| device)
                .find(|device| device.name() == Some(name.as_str()))
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no readable input device calls itself so"))?,
        };
        if let Some(key) = key
            && !device.supported_keys().is_some_and(|keys| keys.contains(key))
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the device has no key {key:?}")));
        }
        device.set_nonblocking(true)?;
        if grab {
            device.grab()?;
        }
        Ok(Key { device, key })
    }

    /// What the device has to say now.
    fn read(&mut self) -> io::Result<Vec<Event>> {
        let events = match self.device.fetch_events() {
            Ok(events) => events,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let wanted = |code| self.key.is_none_or(|key| key == code);
        // a value of 2 is the repetition of a key that is held
        let event = |event: evdev::InputEvent| match event.destructure() {
            EventSummary::Key(_, code, 1) if wanted(code) => Some(Event::Down),
            EventSummary::Key(_, code, 0) if wanted(code) => Some(Event::Up),
            _ => None,
        };
        Ok(events.filter_map(event).collect())
    }
}

impl Button for Key {
    fn wait(&mut self, up_to: Duration) -> io::Result<Vec<Event>> {
        let until = Instant::now() + up_to;
        loop {
            let events = self.read()?;
            if !events.is_empty() || Instant::now() >= until {
                return Ok(events);
            }
            thread::sleep(POLL);
        }
    }
}
