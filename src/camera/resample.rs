//! Resampling, bit for bit as Pillow's `Image.resize` does it (`libImaging/Resample.c`).
//!
//! Styles and references of the Python world went through Pillow; the same pixels here make the same picture there.
//! Two passes, rows then columns, with 8-bit pixels between them and weights in fixed point.

use std::f64::consts::PI;

use super::Frame;
use crate::error::{Error, Result};

/// The kernel that pixels are weighted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Windowed sinc with three lobes on each side.
    Lanczos,
    /// Straight lines.
    Bilinear,
    /// Keys' cubic, a = -0.5.
    Bicubic,
}

/// Fraction bits of a weight: 32 less 8 for the pixel and 2 for the kernel's overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Resamples the part `[left, top, right, bottom]` of `frame` (in pixels, fractions allowed) to `width` x `height`.
pub(super) fn resample(frame: &Frame, filter: Filter, crop: [f64; 4], width: usize, height: usize) -> Result<Frame> {
    if width == 0 || height == 0 {
        return Err(Error::Usage(format!("a picture cannot be {width}x{height} pixels; give sizes above zero")));
    }
    // Pillow hands the box over in single precision.
    let [left, top, right, bottom] = crop.map(|edge| edge as f32);
    let whole = |from: f32, to: f32, size: usize| from == 0.0 && to == size as f32;

    let mut rgb = frame.rgb.clone();
    if !(width == frame.width && whole(left, right, frame.width)) {
        rgb = resample_rows(&rgb, frame.width, &Taps::new(filter, frame.width, left, right, width));
    }
    if !(height == frame.height && whole(top, bottom, frame.height)) {
        rgb = resample_columns(&rgb, width, &Taps::new(filter, frame.height, top, bottom, height));
    }
    Frame::new(width, height, rgb)
}

/// For each output pixel, the first input pixel it looks at and the weights from there on.
struct Taps(Vec<(usize, Vec<i32>)>);

impl Taps {
    fn new(filter: Filter, in_size: usize, from: f32, to: f32, out_size: usize) -> Taps {
        let scale = f64::from(to - from) / out_size as f64;
        // Shrinking widens the kernel, growing does not narrow it.
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let taps = (0..out_size).map(|i| {
            let center = f64::from(from) + (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(in_size);
            let weights: Vec<f64> = (first..end).map(|x| filter.kernel((x as f64 - center + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| (weight / sum * f64::from(1 << PRECISION_BITS)).round() as i32;
            (first, weights.iter().map(fixed).collect())
        });
        Taps(taps.collect())
    }
}

impl Filter {
    /// Pixels that count on each side.
    fn support(self) -> f64 {
        match self {
            Filter::Lanczos => 3.0,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn kernel(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Bicubic => {
                let (a, x) = (-0.5, x.abs());
                match x {
                    _ if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
                    _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
                    _ => 0.0,
                }
            }
            Filter::Lanczos => 0.0,
        }
    }
}

/// Adds up weighted pixels, one channel each, and rounds to u8.
fn weighted<'a>(pixels: impl Iterator<Item = &'a [u8]>, weights: &[i32]) -> [u8; 3] {
    let mut sums = [1i32 << (PRECISION_BITS - 1); 3];
    for (pixel, weight) in pixels.zip(weights) {
        for c in 0..3 {
            sums[c] += i32::from(pixel[c]) * weight;
        }
    }
    sums.map(|sum| (sum >> PRECISION_BITS).clamp(0, 255) as u8)
}

fn resample_rows(rgb: &[u8], width: usize, taps: &Taps) -> Vec<u8> {
    let rows = rgb.chunks_exact(width * 3);
    let mut out = Vec::with_capacity(rows.len() * taps.0.len() * 3);
    for row in rows {
        for (first, weights) in &taps.0 {
            out.extend(weighted(row[first * 3..].chunks_exact(3), weights));
        }
    }
    out
}

fn resample_columns(rgb: &[u8], width: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(taps.0.len() * width * 3);
    for (first, weights) in &taps.0 {
        for x in 0..width {
            let column = (0..weights.len()).map(|k| &rgb[((first + k) * width + x) * 3..][..3]);
            out.extend(weighted(column, weights));
        }
    }
    out
}
