//! Pictures brought to the size they are shown at, fast enough for a live view on one core.
//!
//! Shrinking by two or more averages whole blocks first, the rest is bilinear: no Lanczos, but no flicker either, and
//! every frame of a camera can be shown.

use embedded_graphics::prelude::{Point, Size};
use embedded_graphics::primitives::Rectangle;

use super::Picture;
use super::raster::Raster;

/// Fraction bits of a position between two pixels.
const FRACTION_BITS: u32 = 8;

/// The largest rectangle with the picture's proportions in the middle of `area`.
pub(super) fn fit(picture: Size, area: Rectangle) -> Rectangle {
    let (width, height) = (u64::from(picture.width.max(1)), u64::from(picture.height.max(1)));
    let (most_wide, most_high) = (u64::from(area.size.width), u64::from(area.size.height));
    let size = if most_wide * height <= most_high * width {
        Size::new(most_wide as u32, ((most_wide * height + width / 2) / width) as u32)
    } else {
        Size::new(((most_high * width + height / 2) / height) as u32, most_high as u32)
    };
    let size = size.component_max(Size::new_equal(1)).component_min(area.size);
    let offset = (area.size - size) / 2;
    Rectangle::new(area.top_left + Point::new(offset.width as i32, offset.height as i32), size)
}

/// `picture` stretched over `area`, which lies inside `raster`; `light` of 255 keeps its brightness, 0 is black.
pub(super) fn draw(raster: &mut Raster, picture: Picture<'_>, area: Rectangle, light: u8) {
    let (width, height) = (area.size.width as usize, area.size.height as usize);
    let shrink = (picture.width / width).min(picture.height / height);
    if shrink >= 2 {
        let (smaller_width, smaller_height) = (picture.width / shrink, picture.height / shrink);
        let rgb = average(picture, shrink, smaller_width, smaller_height);
        return bilinear(raster, Picture { width: smaller_width, height: smaller_height, rgb: &rgb }, area, light);
    }
    bilinear(raster, picture, area, light);
}

/// Each block of `side` x `side` pixels as one; up to `side - 1` columns and rows at the ends are left out.
fn average(picture: Picture<'_>, side: usize, width: usize, height: usize) -> Vec<u8> {
    let count = (side * side) as u32;
    let mut rgb = Vec::with_capacity(width * height * 3);
    let mut sums = vec![0u32; width * 3];
    for rows in picture.rgb.chunks_exact(picture.width * 3 * side).take(height) {
        sums.fill(0);
        for row in rows.chunks_exact(picture.width * 3) {
            for (sum, block) in sums.chunks_exact_mut(3).zip(row.chunks_exact(side * 3)) {
                for pixel in block.chunks_exact(3) {
                    sum.iter_mut().zip(pixel).for_each(|(sum, level)| *sum += u32::from(*level));
                }
            }
        }
        rgb.extend(sums.iter().map(|sum| ((sum + count / 2) / count) as u8));
    }
    rgb
}

/// Where each of `to` pixels lies between two of `from`: the first one and the part of the second, pixel centres on
/// pixel centres.
fn positions(from: usize, to: usize) -> Vec<(usize, u32)> {
    let last = ((from - 1) << FRACTION_BITS) as i64;
    let position = |i: usize| {
        let doubled = (2 * i + 1) as i64 * ((from as i64) << FRACTION_BITS) / to as i64;
        ((doubled - (1 << FRACTION_BITS)) / 2).clamp(0, last)
    };
    (0..to).map(position).map(|p| ((p >> FRACTION_BITS) as usize, (p & ((1 << FRACTION_BITS) - 1)) as u32)).collect()
}

/// Two passes: each of the picture's rows across once, then two of them down into each row of the raster.
fn bilinear(raster: &mut Raster, picture: Picture<'_>, area: Rectangle, light: u8) {
    let (left, top) = (area.top_left.x as usize, area.top_left.y as usize);
    let (width, height) = (area.size.width as usize, area.size.height as usize);
    let across = positions(picture.width, width);
    let mut rows = [(usize::MAX, vec![0u8; width * 3]), (usize::MAX, vec![0u8; width * 3])];
    let light = u32::from(light) + 1;
    for (y, (first, part)) in positions(picture.height, height).into_iter().enumerate() {
        let second = (first + 1).min(picture.height - 1);
        if rows[0].0 != first {
            rows.swap(0, 1);
        }
        for (slot, wanted) in rows.iter_mut().zip([first, second]) {
            if slot.0 != wanted {
                stretch(&picture.rgb[wanted * picture.width * 3..][..picture.width * 3], &across, &mut slot.1);
                slot.0 = wanted;
            }
        }
        let (upper, lower) = (&rows[0].1, &rows[1].1);
        let whole = 1 << FRACTION_BITS;
        for ((out, a), b) in raster.row(left, top + y, width).iter_mut().zip(upper).zip(lower) {
            let level = u32::from(*a) * (whole - part) + u32::from(*b) * part + whole / 2;
            *out = (((level >> FRACTION_BITS) * light) >> 8) as u8;
        }
    }
}

/// One row of pixels at the positions `across`.
fn stretch(row: &[u8], across: &[(usize, u32)], out: &mut [u8]) {
    let last = row.len() - 3;
    let whole = 1 << FRACTION_BITS;
    for (out, (first, part)) in out.chunks_exact_mut(3).zip(across) {
        let (a, b) = (&row[first * 3..][..3], &row[(first * 3 + 3).min(last)..][..3]);
        for c in 0..3 {
            let level = u32::from(a[c]) * (whole - part) + u32::from(b[c]) * part + whole / 2;
            out[c] = (level >> FRACTION_BITS) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(picture: Picture<'_>, width: usize, height: usize, light: u8) -> Raster {
        let mut raster = Raster::new(width, height);
        draw(&mut raster, picture, Rectangle::new(Point::zero(), Size::new(width as u32, height as u32)), light);
        raster
    }

    #[test]
    fn the_largest_that_fits_is_in_the_middle() {
        let area = Rectangle::new(Point::new(10, 20), Size::new(800, 480));
        assert_eq!(fit(Size::new(512, 512), area), Rectangle::new(Point::new(170, 20), Size::new(480, 480)));
        assert_eq!(fit(Size::new(1600, 900), area), Rectangle::new(Point::new(10, 35), Size::new(800, 450)));
        assert_eq!(fit(Size::new(1, 100_000), area).size, Size::new(1, 480));
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let rgb: Vec<u8> = (0..7 * 5 * 3).map(|i| (i * 37 % 256) as u8).collect();
        assert_eq!(shown(Picture { width: 7, height: 5, rgb: &rgb }, 7, 5, 255).rgb(), rgb);
    }

    /// Bilinear against the formula in floating point; three roundings of at most half a level and a position that is
    /// off by at most 1/256 of a step of 255 levels, in two directions.
    #[test]
    fn bilinear_is_what_the_formula_says() {
        let (from, to) = ((5usize, 4usize), (13usize, 9usize));
        let rgb: Vec<u8> = (0..from.0 * from.1 * 3).map(|i| (i * 71 % 256) as u8).collect();
        let found = shown(Picture { width: from.0, height: from.1, rgb: &rgb }, to.0, to.1, 255);
        let place = |i: usize, from: usize, to: usize| {
            ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64)
        };
        for (y, x, c) in (0..to.1).flat_map(|y| (0..to.0).flat_map(move |x| (0..3).map(move |c| (y, x, c)))) {
            let (px, py) = (place(x, from.0, to.0), place(y, from.1, to.1));
            let at = |x: f64, y: f64| {
                f64::from(rgb[((y as usize).min(from.1 - 1) * from.0 + (x as usize).min(from.0 - 1)) * 3 + c])
            };
            let row = |y: f64| at(px.floor(), y) * (1.0 - px.fract()) + at(px.floor() + 1.0, y) * px.fract();
            let expected = row(py.floor()) * (1.0 - py.fract()) + row(py.floor() + 1.0) * py.fract();
            let got = f64::from(found.rgb()[(y * to.0 + x) * 3 + c]);
            assert!((got - expected).abs() <= 1.5 + 2.0, "{x},{y}: {got} for {expected}");
        }
    }

    #[test]
    fn shrinking_averages_and_light_dims() {
        let rgb: Vec<u8> = (0..8 * 8).flat_map(|i| [if (i + i / 8) % 2 == 0 { 0 } else { 200 }; 3]).collect();
        let board = Picture { width: 8, height: 8, rgb: &rgb };
        assert!(shown(board, 4, 4, 255).rgb().iter().all(|level| *level == 100));
        assert!(shown(board, 4, 4, 127).rgb().iter().all(|level| *level == 50));
        assert!(shown(board, 3, 3, 255).rgb().iter().all(|level| *level == 100));
    }

    #[test]
    fn one_pixel_fills_everything() {
        assert!(shown(Picture { width: 1, height: 1, rgb: &[9; 3] }, 11, 3, 255).rgb().iter().all(|level| *level == 9));
    }
}
