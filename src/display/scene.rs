//! What the screen can show: [`Scene`].

use embedded_graphics::prelude::Size;

use crate::camera::Frame;
use crate::canvas::Canvas;

/// A borrowed picture, `[H, W, 3]` u8 sRGB: a [`Frame`] of the camera or a painted [`Canvas`].
#[derive(Clone, Copy)]
pub struct Picture<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) rgb: &'a [u8],
}

impl Picture<'_> {
    /// The pixels, `[H, W, 3]` u8 sRGB.
    pub fn rgb(&self) -> &[u8] {
        self.rgb
    }

    pub(super) fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl std::fmt::Debug for Picture<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}

impl<'a> From<&'a Frame> for Picture<'a> {
    fn from(frame: &'a Frame) -> Picture<'a> {
        Picture { width: frame.width(), height: frame.height(), rgb: frame.rgb() }
    }
}

impl<'a> From<&'a Canvas> for Picture<'a> {
    fn from(canvas: &'a Canvas) -> Picture<'a> {
        Picture { width: canvas.width(), height: canvas.height(), rgb: canvas.rgb() }
    }
}

/// One state of the kiosk as a visitor sees it.
#[derive(Debug, Clone, Copy)]
pub enum Scene<'a> {
    /// Nobody is there: a picture of the gallery and what to do.
    Idle {
        /// The picture; none while the gallery is empty.
        picture: Option<Picture<'a>>,
        /// The style it was painted in.
        style: Option<&'a str>,
    },
    /// The live view with the styles to choose from.
    Live {
        /// What the camera sees, already mirrored.
        frame: Picture<'a>,
        /// The names of all styles, in order; empty when there is nothing to choose.
        styles: &'a [String],
        /// Index of the chosen style.
        chosen: usize,
        /// Whether a short press goes to the next style and a long one takes the picture; else any press takes it.
        hold_to_take: bool,
    },
    /// The live view, darker, under a large number.
    Countdown {
        /// What the camera sees, already mirrored.
        frame: Picture<'a>,
        /// Whole seconds until the picture is taken; at 0 the view is bright and the number gone.
        seconds_left: u32,
    },
    /// The painting as it grows.
    Painting {
        /// The last preview, or the frame that is painted; none while there is neither.
        picture: Option<Picture<'a>>,
        /// How much is done, in [0, 1].
        progress: f32,
        /// The style it is painted in; empty when it has no name.
        style: &'a str,
        /// How many paintings come first; none once it is being painted.
        before: Option<usize>,
    },
    /// The finished painting.
    Result {
        /// The painting.
        picture: Picture<'a>,
        /// The address its QR code opens; none where nothing can be reached.
        qr: Option<&'a str>,
        /// Whole seconds until the start is shown again.
        seconds_left: u32,
    },
    /// A sentence instead of a picture: no camera, a full queue, a failure.
    Message {
        /// What is the matter, a few words.
        title: &'a str,
        /// What to do.
        text: &'a str,
    },
}
