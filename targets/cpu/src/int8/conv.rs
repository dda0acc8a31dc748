//! The 3x3 convolution as a matrix product whose rows are gathered block by block, never the whole picture's.

use super::block::{Product, Source, multiply};
use super::{PackedWeight, kernel::copy_flipped};
use crate::isa::{Isa, with_token};

/// The geometry of a 3x3 convolution with padding 1 over pictures `[H*W, C]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picture {
    /// H, as stored.
    pub height: usize,
    /// W, as stored.
    pub width: usize,
    /// C.
    pub channels: usize,
    /// Distance of neighbouring outputs, 1 or 2.
    pub stride: usize,
    /// How often each stored pixel is repeated both ways before the convolution: 2 is the UNet's upsampling, else 1.
    pub repeat: usize,
}

impl Picture {
    /// Height and width of the result.
    pub fn output_size(&self) -> (usize, usize) {
        ((self.height * self.repeat).div_ceil(self.stride), (self.width * self.repeat).div_ceil(self.stride))
    }
}

/// The neighbourhoods of all output pixels of a batch, in the order (ky, kx, channel).
struct Neighbourhoods<'a> {
    values: &'a [i8],
    scales: &'a [f32],
    picture: Picture,
}

impl Source for Neighbourhoods<'_> {
    fn len(&self) -> usize {
        let (height, width) = self.picture.output_size();
        self.scales.len() * height * width
    }

    #[inline(always)]
    fn gather(&self, row: usize, flip: u8, into: &mut [u8]) {
        let Picture { height, width, channels, stride, repeat } = self.picture;
        let (out_height, out_width) = self.picture.output_size();
        let (picture, pixel) = (row / (out_height * out_width), row % (out_height * out_width));
        let (top, left) = (pixel / out_width * stride, pixel % out_width * stride);
        let values = &self.values[picture * height * width * channels..][..height * width * channels];
        for (ky, into) in into.chunks_exact_mut(3 * channels).enumerate() {
            // counted from 1, so that the row above the picture is 0
            let y = top + ky;
            if !(1..=height * repeat).contains(&y) {
                into.fill(flip);
                continue;
            }
            let line = &values[(y - 1) / repeat * width * channels..][..width * channels];
            if repeat == 1 && (1..width - 1).contains(&left) {
                // the three neighbours lie side by side
                copy_flipped(&line[(left - 1) * channels..][..3 * channels], flip, into);
                continue;
            }
            for (kx, into) in into.chunks_exact_mut(channels).enumerate() {
                let x = left + kx;
                if (1..=width * repeat).contains(&x) {
                    copy_flipped(&line[(x - 1) / repeat * channels..][..channels], flip, into);
                } else {
                    into.fill(flip);
                }
            }
        }
    }

    #[inline(always)]
    fn scale(&self, row: usize) -> f32 {
        let (height, width) = self.picture.output_size();
        self.scales[row / (height * width)]
    }
}

/// A 3x3 convolution with padding 1: `x: [B, H*W, C]` with one scale a picture, `w: [out, 9 * C]` with its inputs
/// ordered (ky, kx, channel), `y: [B, H'*W', out]`, on rayon's pool. Sums, scales and bias as in [`super::matmul`].
///
/// # Panics
/// If the slices' lengths do not belong together, or stride or repeat is 0.
pub fn conv3x3(
    isa: Isa,
    x: (&[i8], &[f32]),
    picture: Picture,
    w: PackedWeight<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let (values, scales) = x;
    let Picture { height, width, channels, stride, repeat } = picture;
    assert!(stride > 0 && repeat > 0, "{picture:?}");
    assert_eq!(w.inputs(), 9 * channels, "a 3x3 weight for {channels} channels");
    assert_eq!(values.len(), scales.len() * height * width * channels, "{} pictures, {picture:?}", scales.len());
    let product = Product::new(Neighbourhoods { values, scales, picture }, w, bias, y);
    with_token!(isa, token => multiply(token, product));
}
