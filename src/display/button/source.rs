//! Which button: the lines of `display.buttons`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use super::{Button, Timing, pipe};
use crate::error::{Error, Result};

/// How a button is written in the configuration.
const FORMS: &str = "write evdev:/dev/input/event3:KEY_SPACE, evdev:name=NAME:KEY_ENTER, gpio:/dev/gpiochip0:17, \
                     gpio:/dev/gpiochip0:17:high or fifo:PATH";

/// Where a button is. Written as
/// `evdev:DEVICE[:KEY]` (`DEVICE` a path or `name=NAME`; without a key any key is the button),
/// `gpio:CHIP:LINE[:low|high]` (which level is pressed; `low`, to ground, when not said) or
/// `fifo:PATH` (a pipe or file in which every line `press` or `long` is a press).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A key of an input device.
    Key {
        /// The device.
        device: Device,
        /// The key's name in the kernel, such as `KEY_SPACE` or `BTN_TRIGGER`; none is any.
        key: Option<String>,
    },
    /// A GPIO line.
    Line {
        /// The chip's device file.
        chip: PathBuf,
        /// The line's offset on the chip.
        offset: u32,
        /// Whether the line is low while the button is pressed.
        low: bool,
    },
    /// A pipe or file with a line a press.
    Pipe(PathBuf),
}

/// Which input device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The one with this file.
    Path(PathBuf),
    /// The first one that calls itself so; survives being plugged in elsewhere.
    Name(String),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(written: &str) -> Result<Source> {
        let wrong = |what: &str| Error::Usage(format!("the button `{written}`: {what}; {FORMS}"));
        let (kind, rest) = written.split_once(':').ok_or_else(|| wrong("no kind before a colon"))?;
        match kind {
            "evdev" => {
                let (device, key) = match rest.rsplit_once(':') {
                    Some((device, key)) if key.starts_with("KEY_") || key.starts_with("BTN_") => (device, Some(key)),
                    Some((device, key)) if device.starts_with('/') => {
                        return Err(wrong(&format!("{key} is no key after {device}, keys begin with KEY_ or BTN_")));
                    }
                    _ => (rest, None),
                };
                let named = device.strip_prefix("name=");
                if device.is_empty() || named == Some("") {
                    return Err(wrong("no device"));
                }
                let device = named.map_or_else(|| Device::Path(device.into()), |name| Device::Name(name.to_owned()));
                Ok(Source::Key { device, key: key.map(str::to_owned) })
            }
            "gpio" => {
                let (rest, low) = match (rest.strip_suffix(":high"), rest.strip_suffix(":low")) {
                    (Some(rest), _) => (rest, false),
                    (_, Some(rest)) => (rest, true),
                    _ => (rest, true),
                };
                let (chip, offset) = rest.rsplit_once(':').ok_or_else(|| wrong("no line after the chip"))?;
                let offset = offset.parse().map_err(|_| wrong(&format!("`{offset}` is no line's number")))?;
                if chip.is_empty() {
                    return Err(wrong("no chip"));
                }
                Ok(Source::Line { chip: chip.into(), offset, low })
            }
            "fifo" if !rest.is_empty() => Ok(Source::Pipe(rest.into())),
            "fifo" => Err(wrong("no path")),
            _ => Err(wrong(&format!("there is no kind `{kind}`"))),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Key { device, key } => {
                match device {
                    Device::Path(path) => write!(f, "evdev:{}", path.display())?,
                    Device::Name(name) => write!(f, "evdev:name={name}")?,
                }
                key.as_ref().map_or(Ok(()), |key| write!(f, ":{key}"))
            }
            Source::Line { chip, offset, low } => {
                write!(f, "gpio:{}:{offset}:{}", chip.display(), if *low { "low" } else { "high" })
            }
            Source::Pipe(path) => write!(f, "fifo:{}", path.display()),
        }
    }
}

impl Source {
    /// Whether a button can be such on this system, whether it is there or not.
    ///
    /// # Errors
    /// [`Error::Usage`] for a key the kernel does not know, and for keys and lines on another system than Linux.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Source::Pipe(_) => Ok(()),
            #[cfg(target_os = "linux")]
            Source::Key { key: Some(key), .. } => super::key::code(key).map(drop),
            #[cfg(target_os = "linux")]
            _ => Ok(()),
            #[cfg(not(target_os = "linux"))]
            _ => Err(Error::Usage(format!("the button `{self}` needs Linux; elsewhere only fifo:PATH can be used"))),
        }
    }

    pub(super) fn open(&self, timing: Timing) -> io::Result<Box<dyn Button>> {
        Ok(match self {
            Source::Pipe(path) => Box::new(pipe::Pipe::open(path)?),
            #[cfg(target_os = "linux")]
            Source::Key { device, key } => Box::new(super::key::Key::open(device, key.as_deref(), timing.grab)?),
            #[cfg(target_os = "linux")]
            Source::Line { chip, offset, low } => {
                Box::new(super::line::Line::open(chip, *offset, *low, timing.debounce)?)
            }
            #[cfg(not(target_os = "linux"))]
            _ => {
                let _ = timing;
                return Err(io::ErrorKind::Unsupported.into());
            }
        })
    }
}
