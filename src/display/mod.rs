//! A screen without a browser: scenes of the kiosk drawn into a Linux framebuffer or into pictures, and its buttons.
//!
//! The room knows nothing of queues and cameras: it draws the [`Scene`] it is given and hands on each [`button::Press`].

pub mod button;
mod framebuffer;
mod layout;
mod pictures;
mod raster;
mod scale;
mod scene;
mod setup;
mod text;

use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::prelude::{OriginDimensions, Point, Size};
use embedded_graphics::primitives::Rectangle;

use crate::camera::Frame;
use crate::error::{Error, Result};
use crate::strings::Strings;
use framebuffer::Framebuffer;
use layout::{Composer, Ink, Item};
use pictures::Folder;
use raster::Raster;
use text::{Block, Fonts};

pub use scene::{Picture, Scene};
pub use setup::{Order, Setup};

/// The smallest and the largest side of a screen, in pixels.
const SIDES: std::ops::RangeInclusive<usize> = 240..=8192;

/// Where what is drawn goes.
enum Surface {
    Framebuffer(Framebuffer),
    Pictures(Folder),
    Memory,
}

/// The colours.
struct Theme {
    background: Rgb888,
    text: Rgb888,
    muted: Rgb888,
    accent: Rgb888,
    on_accent: Rgb888,
    panel: Rgb888,
}

impl Theme {
    /// A dark room with one colour in it; what stands on that colour is dark or light, whichever is read better.
    fn with_accent(accent: Rgb888) -> Theme {
        let luma = 299 * u32::from(accent.r()) + 587 * u32::from(accent.g()) + 114 * u32::from(accent.b());
        let (dark, light) = (Rgb888::new(18, 17, 16), Rgb888::new(243, 239, 232));
        Theme {
            background: dark,
            text: light,
            muted: Rgb888::new(176, 169, 158),
            accent,
            on_accent: if luma > 110_000 { dark } else { light },
            panel: Rgb888::new(52, 49, 46),
        }
    }

    fn colour(&self, ink: Ink) -> Rgb888 {
        match ink {
            Ink::Text => self.text,
            Ink::Muted => self.muted,
            Ink::Accent => self.accent,
            Ink::OnAccent => self.on_accent,
            Ink::Panel => self.panel,
        }
    }
}

/// A screen: draws one [`Scene`] after the other.
pub struct Screen {
    surface: Surface,
    raster: Raster,
    fonts: Fonts,
    theme: Theme,
    strings: Strings,
}

impl Screen {
    /// The screen `setup` asks for, black; none when it names no surface.
    ///
    /// # Errors
    /// [`Error::Usage`] for a setup that does not fit together, [`Error::Io`] and [`Error::File`] for a framebuffer or
    /// folder that cannot be used.
    pub fn open(setup: &Setup, strings: Strings) -> Result<Option<Screen>> {
        let theme = Theme::with_accent(setup.accent()?);
        let (surface, (width, height)) = match setup.surface()? {
            None => return Ok(None),
            Some(setup::Target::Framebuffer(path)) => {
                let framebuffer = Framebuffer::open(&path, setup)?;
                let size = framebuffer.size();
                (Surface::Framebuffer(framebuffer), size)
            }
            Some(setup::Target::Pictures(folder)) => {
                let size = setup.picture_size()?;
                (Surface::Pictures(Folder::open(&folder, setup.pictures_per_second, setup.pictures_kept)?), size)
            }
        };
        Screen::on(surface, width, height, theme, strings).map(Some)
    }

    /// A screen nobody sees, for tests: [`Screen::picture`] gives what it shows.
    ///
    /// # Errors
    /// [`Error::Usage`] when a side is not within 240 to 8192 pixels.
    pub fn in_memory(width: usize, height: usize, strings: Strings) -> Result<Screen> {
        let theme = Theme::with_accent(Setup::default().accent()?);
        Screen::on(Surface::Memory, width, height, theme, strings)
    }

    fn on(surface: Surface, width: usize, height: usize, theme: Theme, strings: Strings) -> Result<Screen> {
        if !SIDES.contains(&width) || !SIDES.contains(&height) {
            let (least, most) = SIDES.into_inner();
            return Err(Error::Usage(format!(
                "a screen of {width}x{height} pixels: both sides must be within {least} and {most}"
            )));
        }
        Ok(Screen { surface, raster: Raster::new(width, height), fonts: Fonts::new(), theme, strings })
    }

    /// Width and height in pixels as a visitor sees them, after rotation.
    pub fn size(&self) -> (usize, usize) {
        (self.raster.width(), self.raster.height())
    }

    /// The texts the screen writes, for messages in the same language.
    pub fn strings(&self) -> &Strings {
        &self.strings
    }

    /// Draws `scene` and shows it.
    ///
    /// A framebuffer gets the rows that changed. A folder gets a picture when something changed and the last one is
    /// long enough ago; a scene that came too soon is written by the next call that draws it still.
    ///
    /// # Errors
    /// [`Error::Io`] when the framebuffer or folder refuses, [`Error::Usage`] for an address no QR code can hold.
    pub fn draw(&mut self, scene: &Scene<'_>) -> Result<()> {
        let items = Composer { fonts: &self.fonts, strings: &self.strings }.compose(scene, self.raster.size())?;
        let whole = Rectangle::new(Point::zero(), self.raster.size());
        let Ok(()) = self.raster.fill_solid(&whole, self.theme.background);
        for item in &items {
            self.paint(item);
        }
        match &mut self.surface {
            Surface::Framebuffer(framebuffer) => framebuffer.show(&self.raster),
            Surface::Pictures(folder) => folder.show(&self.raster),
            Surface::Memory => Ok(()),
        }
    }

    /// What was drawn last, as a visitor sees it.
    pub fn picture(&self) -> Frame {
        let (width, height) = self.size();
        Frame::new(width, height, self.raster.rgb().to_vec()).expect("the raster has as many bytes as its size says")
    }

    fn paint(&mut self, item: &Item<'_>) {
        match item {
            Item::Picture { area, picture, light } => scale::draw(&mut self.raster, *picture, *area, *light),
            Item::Round { area, radius, ink } => self.raster.round(*area, *radius, self.theme.colour(*ink)),
            Item::Ring { area, stroke, progress } => {
                self.raster.ring(*area, *stroke, 1.0, self.theme.panel);
                self.raster.ring(*area, *stroke, *progress, self.theme.accent);
            }
            Item::Code { area, module, code } => self.code(*area, *module, code),
            Item::Text { area, block, ink } => self.text(*area, block, *ink),
        }
    }

    /// Black on white with as much white around as readers ask for, whatever the theme.
    fn code(&mut self, area: Rectangle, module: u32, code: &qrcode::QrCode) {
        let Ok(()) = self.raster.fill_solid(&area, Rgb888::WHITE);
        let quiet = (area.size.width - code.width() as u32 * module) / 2;
        for (i, colour) in code.to_colors().into_iter().enumerate() {
            if colour == qrcode::Color::Dark {
                let (x, y) = ((i % code.width()) as u32 * module + quiet, (i / code.width()) as u32 * module + quiet);
                let at = area.top_left + Point::new(x as i32, y as i32);
                let Ok(()) = self.raster.fill_solid(&Rectangle::new(at, Size::new(module, module)), Rgb888::BLACK);
            }
        }
    }

    fn text(&mut self, area: Rectangle, block: &Block, ink: Ink) {
        let top = area.top_left.y + (area.size.height as i32 - block.height as i32) / 2;
        let middle = area.top_left.x + area.size.width as i32 / 2;
        self.fonts.draw(&mut self.raster, block, middle, top, self.theme.colour(ink));
    }
}

#[cfg(test)]
mod tests;
