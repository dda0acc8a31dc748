//! What the configuration says of the screen and its buttons: the table `[display]`.

use std::path::PathBuf;
use std::time::Duration;

use embedded_graphics::pixelcolor::Rgb888;
use serde::Deserialize;

use super::button::Timing;
use crate::error::{Error, Result};

/// The table `[display]` of the configuration. Every key may be left out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Setup {
    /// Where the screen is: `framebuffer:/dev/fb0`, or `pictures:FOLDER` for numbered PNG files. None: there is none.
    pub surface: Option<String>,
    /// Width in pixels, before rotation. A framebuffer tells its own; pictures are 1920 wide.
    pub width: Option<usize>,
    /// Height in pixels, before rotation. A framebuffer tells its own; pictures are 1080 high.
    pub height: Option<usize>,
    /// Bits of a framebuffer's pixel, 16 (RGB565), 24 or 32 (XRGB8888). It tells its own.
    pub bits: Option<usize>,
    /// Bytes from one row of a framebuffer to the next. It tells its own.
    pub stride: Option<usize>,
    /// Which colour a framebuffer's pixel has in its highest bits.
    pub order: Order,
    /// How far the picture is turned clockwise on a framebuffer: 0, 90, 180 or 270 degrees.
    pub rotation: u32,
    /// The console whose cursor and screen saver are switched off while a real framebuffer is drawn on; empty for none.
    pub console: PathBuf,
    /// At most so many numbered pictures a second.
    pub pictures_per_second: f64,
    /// So many of the last numbered pictures are kept.
    pub pictures_kept: usize,
    /// The one colour that is not grey, `#rrggbb`.
    pub accent: String,
    /// Buttons: `evdev:/dev/input/event3:KEY_SPACE`, `evdev:name=Big Red Button`, `gpio:/dev/gpiochip0:17`,
    /// `fifo:/run/pleinair/button` (see [`super::button::Source`]).
    pub buttons: Vec<String>,
    /// Whether the live view shows visitors as a mirror does; a camera that mirrors by itself is not mirrored back.
    pub mirror: bool,
    /// With several styles: a short press goes to the next style and a long one takes the picture. Else any press takes it,
    /// and every visitor gets the next style.
    pub hold_to_take: bool,
    /// A press is long from so many milliseconds on.
    pub long_press_millis: u64,
    /// A button that is let go and pressed again within so many milliseconds was bouncing.
    pub debounce_millis: u64,
    /// Whether the keys of an evdev button are kept from the console and everyone else.
    pub grab: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            surface: None,
            width: None,
            height: None,
            bits: None,
            stride: None,
            order: Order::Rgb,
            rotation: 0,
            console: PathBuf::from("/dev/tty0"),
            pictures_per_second: 2.0,
            pictures_kept: 100,
            accent: "#e0a243".to_owned(),
            buttons: Vec::new(),
            mirror: true,
            hold_to_take: true,
            long_press_millis: 700,
            debounce_millis: 30,
            grab: true,
        }
    }
}

/// Which colour is in the highest bits of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Red, as nearly all framebuffers have it.
    #[default]
    Rgb,
    /// Blue.
    Bgr,
}

/// What a surface's name asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Target {
    Framebuffer(PathBuf),
    Pictures(PathBuf),
}

impl Setup {
    pub(super) fn surface(&self) -> Result<Option<Target>> {
        let Some(name) = &self.surface else { return Ok(None) };
        match name.split_once(':') {
            Some(("framebuffer", path)) if !path.is_empty() => Ok(Some(Target::Framebuffer(path.into()))),
            Some(("pictures", folder)) if !folder.is_empty() => Ok(Some(Target::Pictures(folder.into()))),
            _ => Err(Error::Usage(format!(
                "display.surface: `{name}` is none; write framebuffer:/dev/fb0 or pictures:FOLDER"
            ))),
        }
    }

    pub(super) fn accent(&self) -> Result<Rgb888> {
        let digits = self.accent.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii());
        let level = |digits: &str, i: usize| u8::from_str_radix(&digits[i..i + 2], 16).ok();
        digits.and_then(|digits| Some(Rgb888::new(level(digits, 0)?, level(digits, 2)?, level(digits, 4)?))).ok_or_else(
            || Error::Usage(format!("display.accent: `{}` is no colour; write one such as #e0a243", self.accent)),
        )
    }

    /// What tells presses apart.
    pub fn timing(&self) -> Timing {
        let (long, debounce) = (self.long_press_millis, self.debounce_millis);
        Timing { long: Duration::from_millis(long), debounce: Duration::from_millis(debounce), grab: self.grab }
    }

    /// Width and height of numbered pictures.
    pub(super) fn picture_size(&self) -> Result<(usize, usize)> {
        if self.rotation != 0 {
            return Err(Error::Usage(
                "display.rotation: only a framebuffer is turned; give pictures another width and height".to_owned(),
            ));
        }
        Ok((self.width.unwrap_or(1920), self.height.unwrap_or(1080)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_no_screen_and_unknown_keys_are_refused() {
        let setup: Setup = toml::from_str("").unwrap();
        assert_eq!((setup.surface().unwrap(), setup), (None, Setup::default()));
        let error = toml::from_str::<Setup>("rotate = 90").unwrap_err().to_string();
        assert!(error.contains("rotate"), "{error}");
        let setup: Setup = toml::from_str("surface = \"framebuffer:/dev/fb1\"\norder = \"bgr\"").unwrap();
        assert_eq!(setup.surface().unwrap(), Some(Target::Framebuffer("/dev/fb1".into())));
        assert_eq!(setup.order, Order::Bgr);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for surface in ["/dev/fb0", "framebuffer:", "drm:/dev/dri/card0"] {
            let setup = Setup { surface: Some(surface.to_owned()), ..Setup::default() };
            assert!(setup.surface().unwrap_err().to_string().contains(surface));
        }
        for accent in ["red", "#12345", "#12345g", "#1234567", "#ää45"] {
            let setup = Setup { accent: accent.to_owned(), ..Setup::default() };
            assert!(setup.accent().unwrap_err().to_string().contains(accent));
        }
        assert!(Setup { rotation: 90, ..Setup::default() }.picture_size().is_err());
    }
}
