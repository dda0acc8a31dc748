//! Text large enough for two metres: Inter, drawn smoothly at any size, wrapped and shrunk to the room there is.

use ab_glyph::{Font, FontRef, Glyph, Point as GlyphPoint, PxScale, ScaleFont};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::Point;

use super::raster::Raster;

/// Distance of two lines' feet, in sizes.
const LINE: f32 = 1.3;
/// What the next smaller try is to the last.
const SMALLER: f32 = 0.94;

/// How heavy the letters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Regular,
    SemiBold,
}

/// Both weights of Inter with the letters of Western and Central European languages.
pub(super) struct Fonts {
    regular: FontRef<'static>,
    semi_bold: FontRef<'static>,
}

/// Lines of text at a size: what [`Fonts::lay_out`] found to fit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Block {
    pub(super) lines: Vec<String>,
    /// Height of the letters' square in pixels (the em).
    pub(super) size: f32,
    pub(super) weight: Weight,
    /// Width of the longest line in pixels.
    pub(super) width: u32,
    pub(super) height: u32,
    /// Whether even the smallest size did not suffice, so that the end is missing.
    pub(super) cut: bool,
}

/// The room a text has and the sizes it may take, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) size: f32,
    pub(super) smallest: f32,
}

impl Fonts {
    /// The fonts inside the program.
    pub(super) fn new() -> Fonts {
        let font = |bytes| FontRef::try_from_slice(bytes).expect("the fonts in the program are whole");
        Fonts {
            regular: font(include_bytes!("fonts/Inter-Regular.ttf")),
            semi_bold: font(include_bytes!("fonts/Inter-SemiBold.ttf")),
        }
    }

    fn font(&self, weight: Weight) -> &FontRef<'static> {
        match weight {
            Weight::Regular => &self.regular,
            Weight::SemiBold => &self.semi_bold,
        }
    }

    /// `size` as the crate counts: from the highest to the lowest point of any letter.
    fn scale(&self, weight: Weight, size: f32) -> PxScale {
        let font = self.font(weight);
        let em = font.units_per_em().expect("a TrueType font has units");
        PxScale::from(size * font.height_unscaled() / em)
    }

    /// Width of `text` on one line, in pixels.
    pub(super) fn width(&self, weight: Weight, size: f32, text: &str) -> f32 {
        let font = self.font(weight).as_scaled(self.scale(weight, size));
        text.chars().map(|letter| font.h_advance(font.glyph_id(letter))).sum()
    }

    /// `text` in lines at the largest size that fits `room`, words kept whole; where not even the smallest does, words
    /// are broken and what is too much is cut off with an ellipsis.
    pub(super) fn lay_out(&self, weight: Weight, text: &str, room: Room) -> Block {
        let mut size = room.size.max(room.smallest);
        loop {
            let lines = self.wrap(weight, size, text, room.width, false);
            if let Some(lines) = lines.filter(|lines| height(lines.len(), size) <= room.height) {
                return self.block(lines, size, weight, false);
            }
            if size <= room.smallest {
                return self.cut(weight, text, Room { size, ..room });
            }
            size = (size * SMALLER).max(room.smallest);
        }
    }

    /// As many lines as there is room for, with an ellipsis.
    fn cut(&self, weight: Weight, text: &str, room: Room) -> Block {
        let size = room.size;
        let mut lines = self.wrap(weight, size, text, room.width, true).unwrap_or_default();
        let most = ((room.height as f32 / (size * LINE)) as usize).max(1);
        let cut = lines.len() > most;
        lines.truncate(most);
        if let Some(last) = lines.last_mut().filter(|_| cut) {
            while !last.is_empty() && self.width(weight, size, &format!("{last}…")) > room.width as f32 {
                last.pop();
            }
            last.push('…');
        }
        self.block(lines, size, weight, cut)
    }

    fn block(&self, lines: Vec<String>, size: f32, weight: Weight, cut: bool) -> Block {
        let width = lines.iter().map(|line| self.width(weight, size, line)).fold(0.0, f32::max).ceil() as u32;
        Block { height: height(lines.len(), size), lines, size, weight, width, cut }
    }

    /// `text` in lines of at most `width` pixels; none when a word is longer and must not be broken.
    fn wrap(&self, weight: Weight, size: f32, text: &str, width: u32, breaking: bool) -> Option<Vec<String>> {
        let fits = |line: &str| self.width(weight, size, line) <= width as f32;
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        // a no-break space is part of its word
        for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if fits(&longer) {
                line = longer;
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            if !fits(word) && !breaking {
                return None;
            }
            for letter in word.chars() {
                if !line.is_empty() && !fits(&format!("{line}{letter}")) {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(letter);
            }
        }
        if !line.is_empty() {
            lines.push(line);
        }
        Some(lines)
    }

    /// `block` with its lines centred on `middle`, the first from `top` on.
    pub(super) fn draw(&self, raster: &mut Raster, block: &Block, middle: i32, top: i32, colour: Rgb888) {
        let font = self.font(block.weight).as_scaled(self.scale(block.weight, block.size));
        for (i, line) in block.lines.iter().enumerate() {
            // letters with ascender and descender in the middle of the line's height
            let foot = top as f32 + (i as f32 + 0.5) * block.size * LINE + (font.ascent() + font.descent()) / 2.0;
            let mut x = middle as f32 - self.width(block.weight, block.size, line) / 2.0;
            for letter in line.chars() {
                let id = font.glyph_id(letter);
                let position = GlyphPoint { x, y: foot.round() };
                x += font.h_advance(id);
                let glyph = Glyph { id, scale: font.scale(), position };
                let Some(outline) = font.outline_glyph(glyph) else { continue };
                let corner = outline.px_bounds().min;
                let corner = Point::new(corner.x as i32, corner.y as i32);
                outline.draw(|x, y, coverage| {
                    let at = corner + Point::new(x as i32, y as i32);
                    raster.blend(at, colour, (coverage.clamp(0.0, 1.0) * 255.0).round() as u8);
                });
            }
        }
    }
}

/// Height of `lines` lines in pixels.
fn height(lines: usize, size: f32) -> u32 {
    (lines as f32 * size * LINE).ceil() as u32
}
