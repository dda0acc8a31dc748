//! The picture a scene is drawn into: a `DrawTarget` in memory that can also blend.

use std::convert::Infallible;

use embedded_graphics::geometry::AngleUnit;
use embedded_graphics::pixelcolor::{BinaryColor, Rgb888};
use embedded_graphics::prelude::{
    DrawTarget, Drawable, OriginDimensions, Pixel, Point, PointsIter, Primitive, RgbColor, Size,
};
use embedded_graphics::primitives::{
    Arc, Circle, PrimitiveStyle, PrimitiveStyleBuilder, Rectangle, RoundedRectangle, StrokeAlignment,
};

/// Sub-pixels a side that round shapes are drawn with: 16 levels of an edge, enough that no stairs are seen.
const SMOOTH: i32 = 4;

/// A picture in memory, `[H, W, 3]` u8 sRGB.
pub(super) struct Raster {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Raster {
    /// All black.
    pub(super) fn new(width: usize, height: usize) -> Raster {
        Raster { width, height, rgb: vec![0; width * height * 3] }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[H, W, 3]` u8 sRGB.
    pub(super) fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The part of row `y` from `x` on, `width` pixels, for whoever writes whole rows.
    ///
    /// # Panics
    /// When the part is not inside.
    pub(super) fn row(&mut self, x: usize, y: usize, width: usize) -> &mut [u8] {
        assert!(x + width <= self.width, "{x}+{width} of {} pixels", self.width);
        let start = (y * self.width + x) * 3;
        &mut self.rgb[start..start + width * 3]
    }

    fn pixel(&mut self, at: Point) -> Option<&mut [u8]> {
        let (x, y) = (usize::try_from(at.x).ok()?, usize::try_from(at.y).ok()?);
        (x < self.width && y < self.height).then(|| &mut self.rgb[(y * self.width + x) * 3..][..3])
    }

    /// `colour` over the pixel at `at`, as much as `coverage` of 255 says; nothing outside.
    pub(super) fn blend(&mut self, at: Point, colour: Rgb888, coverage: u8) {
        if let Some(pixel) = self.pixel(at) {
            for (below, above) in pixel.iter_mut().zip([colour.r(), colour.g(), colour.b()]) {
                let (a, above, under) = (u32::from(coverage), u32::from(above), u32::from(*below));
                *below = ((above * a + under * (255 - a) + 127) / 255) as u8;
            }
        }
    }

    /// A rectangle with round corners and smooth edges.
    pub(super) fn round(&mut self, area: Rectangle, radius: u32, colour: Rgb888) {
        let fine = Rectangle::new(Point::zero(), area.size * SMOOTH as u32);
        let shape = RoundedRectangle::with_equal_corners(fine, Size::new_equal(radius * SMOOTH as u32));
        self.smooth(area, colour, |mask| shape.into_styled(PrimitiveStyle::with_fill(BinaryColor::On)).draw(mask));
    }

    /// A ring of `stroke` pixels inside the circle in `area` (a square), from the top clockwise, `part` of 1 of it, with
    /// round ends.
    pub(super) fn ring(&mut self, area: Rectangle, stroke: u32, part: f32, colour: Rgb888) {
        let part = part.clamp(0.0, 1.0);
        let (diameter, stroke) = (area.size.width * SMOOTH as u32, stroke * SMOOTH as u32);
        let style = PrimitiveStyleBuilder::new()
            .stroke_color(BinaryColor::On)
            .stroke_width(stroke)
            .stroke_alignment(StrokeAlignment::Inside)
            .build();
        self.smooth(area, colour, |mask| {
            if part >= 1.0 {
                return Circle::new(Point::zero(), diameter).into_styled(style).draw(mask);
            }
            Arc::new(Point::zero(), diameter, (-90.0).deg(), (360.0 * part).deg()).into_styled(style).draw(mask)?;
            let reach = (diameter as f32 - stroke as f32) / 2.0;
            for turned in [0.0, std::f32::consts::TAU * part] {
                let (sine, cosine) = turned.sin_cos();
                let middle = diameter as f32 / 2.0;
                let end = Point::new((middle + reach * sine) as i32, (middle - reach * cosine) as i32);
                let fill = PrimitiveStyle::with_fill(BinaryColor::On);
                Circle::with_center(end, stroke).into_styled(fill).draw(mask)?;
            }
            Ok(())
        });
    }

    /// What `draw` draws in sub-pixels from the corner of `area`, each pixel blended by how much of it is covered.
    fn smooth(&mut self, area: Rectangle, colour: Rgb888, draw: impl FnOnce(&mut Mask) -> Result<(), Infallible>) {
        let size = area.size * SMOOTH as u32;
        let mut mask = Mask { size, covered: vec![false; (size.width * size.height) as usize] };
        let Ok(()) = draw(&mut mask);
        for at in Rectangle::new(Point::zero(), area.size).points() {
            let covered = mask.covered_in(at);
            if covered > 0 {
                self.blend(area.top_left + at, colour, (covered * 255 / (SMOOTH * SMOOTH) as usize) as u8);
            }
        }
    }
}

impl OriginDimensions for Raster {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Raster {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(at, colour) in pixels {
            self.blend(at, colour, 255);
        }
        Ok(())
    }

    fn fill_solid(&mut self, area: &Rectangle, colour: Rgb888) -> Result<(), Infallible> {
        let whole = Rectangle::new(Point::zero(), self.size());
        let inside = area.intersection(&whole);
        let (x, width) = (inside.top_left.x as usize, inside.size.width as usize);
        for y in inside.rows() {
            for pixel in self.row(x, y as usize, width).chunks_exact_mut(3) {
                pixel.copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// Which sub-pixels a shape covers.
struct Mask {
    size: Size,
    covered: Vec<bool>,
}

impl Mask {
    /// How many of the sub-pixels of the pixel at `at`, of `SMOOTH` squared.
    fn covered_in(&self, at: Point) -> usize {
        let corner = at * SMOOTH;
        let row = |y: i32| {
            let start = (corner.y + y) as usize * self.size.width as usize + corner.x as usize;
            self.covered[start..start + SMOOTH as usize].iter().filter(|covered| **covered).count()
        };
        (0..SMOOTH).map(row).sum()
    }
}

impl OriginDimensions for Mask {
    fn size(&self) -> Size {
        self.size
    }
}

impl DrawTarget for Mask {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(at, colour) in pixels {
            let inside = at.x >= 0 && at.y >= 0 && at.x < self.size.width as i32 && at.y < self.size.height as i32;
            if inside {
                self.covered[at.y as usize * self.size.width as usize + at.x as usize] = colour.is_on();
            }
        }
        Ok(())
    }
}
