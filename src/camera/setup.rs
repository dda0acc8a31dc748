//! How a camera's frames are to look, and how often they come.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Frame;
use crate::error::{Error, Result};

/// How a camera is set up: the same for every kind.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Setup {
    /// Mirrors left to right, as people expect to see themselves.
    pub mirror: bool,
    /// Turns the frame clockwise: 0, 90, 180 or 270 degrees.
    pub rotate: Rotation,
    /// The part that is kept, of the frame turned upright but not yet mirrored; all of it by default.
    pub crop: Option<Crop>,
    /// At most so many frames in a second, 0.1 to 120; a camera may give fewer.
    pub frames_per_second: f64,
    /// The width in pixels that is asked of a camera which has a choice, 16 to 8192.
    pub width: u32,
    /// The height in pixels that is asked of a camera which has a choice, 16 to 8192.
    pub height: u32,
    /// A camera that gives nothing for so many seconds counts as lost, 0.5 to 600.
    pub timeout_seconds: f64,
    /// Of a folder of stills: how many seconds each is shown, 0.05 to 86400.
    pub folder_seconds: f64,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            mirror: false,
            rotate: Rotation::None,
            crop: None,
            frames_per_second: 15.0,
            width: 1280,
            height: 720,
            timeout_seconds: 5.0,
            folder_seconds: 8.0,
        }
    }
}

impl Setup {
    /// Whether every setting is within its bounds.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the setting and what it may be.
    pub fn validate(&self) -> Result<()> {
        let bounded = [
            ("frames_per_second", self.frames_per_second, 0.1, 120.0),
            ("width", f64::from(self.width), 16.0, 8192.0),
            ("height", f64::from(self.height), 16.0, 8192.0),
            ("timeout_seconds", self.timeout_seconds, 0.5, 600.0),
            ("folder_seconds", self.folder_seconds, 0.05, 86400.0),
        ];
        for (name, value, least, most) in bounded {
            if !(least..=most).contains(&value) {
                return Err(Error::Usage(format!("the camera's {name} is {value}; it has to be {least} to {most}")));
            }
        }
        self.crop.as_ref().map_or(Ok(()), Crop::validate)
    }

    /// The frame turned, cropped and mirrored as set up.
    ///
    /// # Errors
    /// [`Error::Usage`] when the crop is not within the frame.
    pub fn apply(&self, frame: Frame) -> Result<Frame> {
        let mut frame = match self.rotate {
            Rotation::None => frame,
            rotation => frame.rotate(rotation),
        };
        if let Some(crop) = &self.crop {
            frame = frame.crop(crop)?;
        }
        Ok(if self.mirror { frame.flip_horizontal() } else { frame })
    }

    /// The least time between two frames.
    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.frames_per_second)
    }

    /// How long a camera may be silent.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_seconds)
    }
}

/// A turn clockwise; in the configuration a number of degrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(try_from = "u16", into = "u16")]
pub enum Rotation {
    /// 0: as the camera gives it.
    #[default]
    None,
    /// 90 degrees clockwise.
    Quarter,
    /// 180 degrees.
    Half,
    /// 270 degrees clockwise.
    ThreeQuarters,
}

impl TryFrom<u16> for Rotation {
    type Error = Error;

    fn try_from(degrees: u16) -> Result<Rotation> {
        match degrees {
            0 => Ok(Rotation::None),
            90 => Ok(Rotation::Quarter),
            180 => Ok(Rotation::Half),
            270 => Ok(Rotation::ThreeQuarters),
            _ => Err(Error::Usage(format!("a camera cannot be turned by {degrees} degrees; use 0, 90, 180 or 270"))),
        }
    }
}

impl From<Rotation> for u16 {
    fn from(rotation: Rotation) -> u16 {
        match rotation {
            Rotation::None => 0,
            Rotation::Quarter => 90,
            Rotation::Half => 180,
            Rotation::ThreeQuarters => 270,
        }
    }
}

/// A part of a frame, in fractions of its sides from its top left corner.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Crop {
    /// Where it begins, a fraction of the frame's width.
    pub left: f64,
    /// Where it begins, a fraction of the frame's height.
    pub top: f64,
    /// A fraction of the frame's width.
    pub width: f64,
    /// A fraction of the frame's height.
    pub height: f64,
}

impl Crop {
    /// # Errors
    /// [`Error::Usage`] when it is empty or reaches out of the frame.
    pub fn validate(&self) -> Result<()> {
        // 0.7 + 0.3 is a little more than 1 in binary
        let within = |from: f64, length: f64| from >= 0.0 && length > 0.0 && from + length <= 1.0 + 1e-9;
        if within(self.left, self.width) && within(self.top, self.height) {
            return Ok(());
        }
        let Crop { left, top, width, height } = self;
        Err(Error::Usage(format!(
            "the camera's crop (left {left}, top {top}, width {width}, height {height}) is not within the frame; \
             these are fractions of it, left + width and top + height at most 1"
        )))
    }
}

impl Frame {
    /// Turned clockwise.
    pub fn rotate(&self, rotation: Rotation) -> Frame {
        let (width, height) = (self.width(), self.height());
        let pixels = self.rgb().as_chunks::<3>().0;
        let (new_width, new_height) = match rotation {
            Rotation::None | Rotation::Half => (width, height),
            Rotation::Quarter | Rotation::ThreeQuarters => (height, width),
        };
        let mut rgb = Vec::with_capacity(pixels.len() * 3);
        for y in 0..new_height {
            for x in 0..new_width {
                rgb.extend(match rotation {
                    Rotation::None => pixels[y * width + x],
                    Rotation::Quarter => pixels[(height - 1 - x) * width + y],
                    Rotation::Half => pixels[(height - 1 - y) * width + width - 1 - x],
                    Rotation::ThreeQuarters => pixels[x * width + width - 1 - y],
                });
            }
        }
        Frame { width: new_width, height: new_height, rgb }
    }

    /// The part that `crop` names, its edges at the nearest pixels, at least one pixel wide and high.
    ///
    /// # Errors
    /// [`Error::Usage`] when `crop` is not within the frame.
    pub fn crop(&self, crop: &Crop) -> Result<Frame> {
        crop.validate()?;
        let span = |from: f64, length: f64, side: usize| {
            let pixel = |fraction: f64| (fraction * side as f64).round() as usize;
            let start = pixel(from).min(side - 1);
            (start, pixel(from + length).clamp(start + 1, side))
        };
        let (left, right) = span(crop.left, crop.width, self.width);
        let (top, bottom) = span(crop.top, crop.height, self.height);
        let rows = self.rgb.chunks_exact(self.width * 3).take(bottom).skip(top);
        let rgb = rows.flat_map(|row| &row[left * 3..right * 3]).copied().collect();
        Frame::new(right - left, bottom - top, rgb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3x2, every pixel its own grey: 0 1 2 / 3 4 5.
    fn numbered() -> Frame {
        Frame::new(3, 2, (0..6).flat_map(|v| [v; 3]).collect()).unwrap()
    }

    fn greys(frame: &Frame) -> (usize, Vec<u8>) {
        (frame.width(), frame.rgb().iter().copied().step_by(3).collect())
    }

    fn crop(left: f64, top: f64, width: f64, height: f64) -> Crop {
        Crop { left, top, width, height }
    }

    #[test]
    fn turns_are_clockwise() {
        let cases = [
            (Rotation::None, (3, vec![0, 1, 2, 3, 4, 5])),
            (Rotation::Quarter, (2, vec![3, 0, 4, 1, 5, 2])),
            (Rotation::Half, (3, vec![5, 4, 3, 2, 1, 0])),
            (Rotation::ThreeQuarters, (2, vec![2, 5, 1, 4, 0, 3])),
        ];
        for (rotation, expected) in cases {
            assert_eq!(greys(&numbered().rotate(rotation)), expected, "{rotation:?}");
        }
    }

    #[test]
    fn crops_at_the_nearest_pixels() {
        assert_eq!(numbered().crop(&crop(0.0, 0.0, 1.0, 1.0)).unwrap(), numbered());
        assert_eq!(greys(&numbered().crop(&crop(0.3, 0.5, 0.7, 0.5)).unwrap()), (2, vec![4, 5]));
        assert_eq!(greys(&numbered().crop(&crop(0.0, 0.0, 0.7, 0.6)).unwrap()), (2, vec![0, 1]));
        // thinner than a pixel
        assert_eq!(greys(&numbered().crop(&crop(0.999, 0.999, 0.001, 0.001)).unwrap()), (1, vec![5]));
        let outside = [
            crop(-0.1, 0.0, 0.5, 0.5),
            crop(0.6, 0.0, 0.5, 0.5),
            crop(0.0, 0.6, 0.5, 0.5),
            crop(0.0, 0.0, 0.0, 0.5),
            crop(0.0, f64::NAN, 0.5, 0.5),
            crop(0.0, 0.0, f64::INFINITY, 0.5),
        ];
        for crop in outside {
            assert!(numbered().crop(&crop).unwrap_err().to_string().contains("fractions"), "{crop:?}");
            assert!(Setup { crop: Some(crop), ..Setup::default() }.validate().is_err(), "{crop:?}");
        }
    }

    #[test]
    fn turned_then_cropped_then_mirrored() {
        let half = crop(0.0, 0.0, 0.5, 1.0);
        let setup = Setup { mirror: true, rotate: Rotation::Quarter, crop: Some(half), ..Setup::default() };
        // 3 0 / 4 1 / 5 2, its left column
        assert_eq!(greys(&setup.apply(numbered()).unwrap()), (1, vec![3, 4, 5]));
        let setup = Setup { crop: Some(crop(0.0, 0.0, 0.66, 0.5)), mirror: true, ..Setup::default() };
        assert_eq!(greys(&setup.apply(numbered()).unwrap()), (2, vec![1, 0]));
        assert_eq!(Setup::default().apply(numbered()).unwrap(), numbered());
    }

    #[test]
    fn it_is_read_from_configuration() {
        let text = "mirror = true\nrotate = 270\nframes_per_second = 5\ncrop = { left = 0.1, top = 0, width = 0.5, height = 1 }";
        let setup: Setup = toml::from_str(text).unwrap();
        let expected = Setup {
            mirror: true,
            rotate: Rotation::ThreeQuarters,
            frames_per_second: 5.0,
            crop: Some(crop(0.1, 0.0, 0.5, 1.0)),
            ..Setup::default()
        };
        assert_eq!(setup, expected);
        assert_eq!(toml::from_str::<Setup>(&toml::to_string(&setup).unwrap()).unwrap(), setup);
        assert_eq!(toml::from_str::<Setup>("").unwrap(), Setup::default());
        for (text, about) in [
            ("rotate = 45", "0, 90, 180 or 270"),
            ("miror = true", "miror"),
            ("crop = { left = 0, top = 0, width = 1 }", "height"),
            ("crop = { left = 0, top = 0, width = 1, height = 1, right = 1 }", "right"),
        ] {
            let error = toml::from_str::<Setup>(text).unwrap_err().to_string();
            assert!(error.contains(about), "{text}: {error}");
        }
    }

    /// The section of the configuration holds both, and still refuses what it does not know.
    #[test]
    fn it_may_be_flattened_into_a_section() {
        #[derive(Deserialize, Debug)]
        #[serde(deny_unknown_fields)]
        struct Section {
            source: super::super::Source,
            #[serde(flatten)]
            setup: Setup,
        }
        let text = "source = 'browser'\nrotate = 90\nframes_per_second = 5\n";
        let section: Section = toml::from_str(text).unwrap();
        assert_eq!(section.source, super::super::Source::Browser);
        assert_eq!(section.setup, Setup { rotate: Rotation::Quarter, frames_per_second: 5.0, ..Setup::default() });
        let error = toml::from_str::<Section>(&format!("{text}miror = true")).unwrap_err().to_string();
        assert!(error.contains("miror"), "{error}");
    }

    #[test]
    fn settings_out_of_bounds_are_named() {
        assert!(Setup::default().validate().is_ok());
        let cases = [
            (Setup { frames_per_second: 0.0, ..Setup::default() }, "frames_per_second"),
            (Setup { frames_per_second: f64::NAN, ..Setup::default() }, "frames_per_second"),
            (Setup { width: 0, ..Setup::default() }, "width"),
            (Setup { height: 9000, ..Setup::default() }, "height"),
            (Setup { timeout_seconds: f64::INFINITY, ..Setup::default() }, "timeout_seconds"),
            (Setup { folder_seconds: -1.0, ..Setup::default() }, "folder_seconds"),
        ];
        for (setup, name) in cases {
            let text = setup.validate().unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("has to be"), "{text}");
        }
    }
}
