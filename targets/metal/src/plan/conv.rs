//! 3x3 convolution with padding 1, channels last. The neighbourhoods of some output pixels at a time are written out
//! (im2col) and multiplied with the weight; backward, the product with the weight is gathered for every input pixel, each
//! sum in a fixed order.

use super::{Bench, Weight, linear, pointwise, steps};
use crate::machine::{Machine, Matrix, Place, Product, parameters};
use candle_core::{Result, bail};
use std::ops::Range;

/// Pictures of `height x width` pixels, each repeated both ways `repeat` times before the convolution.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// Pictures.
    pub batch: usize,
    /// Of the input.
    pub height: usize,
    /// Of the input.
    pub width: usize,
    /// At least 1.
    pub repeat: usize,
    /// At least 1.
    pub stride: usize,
}

impl Geometry {
    /// Height and width of the output.
    pub fn output(&self) -> (usize, usize) {
        ((self.height * self.repeat).div_ceil(self.stride), (self.width * self.repeat).div_ceil(self.stride))
    }

    fn pixels(&self) -> usize {
        let (height, width) = self.output();
        height * width
    }

    fn taps(&self, count: usize, channels: usize) -> Taps {
        let &Geometry { height, width, repeat, stride, .. } = self;
        let (out_height, out_width) = self.output();
        let (first_row, first_channel, all_channels) = (0, 0, channels);
        Taps {
            count,
            height,
            width,
            channels,
            out_height,
            out_width,
            repeat,
            stride,
            first_row,
            first_channel,
            all_channels,
        }
    }
}

parameters! {
    /// A part of the packed matrix or of the gradient.
    Taps {
        count: usize,
        height: usize,
        width: usize,
        channels: usize,
        out_height: usize,
        out_width: usize,
        repeat: usize,
        stride: usize,
        first_row: usize,
        first_channel: usize,
        all_channels: usize,
    }
}

fn channels<M>(weight: &Weight<'_, M>, g: Geometry) -> Result<usize> {
    if g.stride * g.repeat == 0 {
        bail!("a 3x3 convolution needs a stride and a repeat of at least 1")
    }
    if !weight.inputs.is_multiple_of(9) {
        bail!("a 3x3 convolution has a weight for {} inputs, which are not nine taps", weight.inputs)
    }
    weight.check_smoothing(weight.inputs / 9)?;
    Ok(weight.inputs / 9)
}

/// `x: [batch, height * width, inputs / 9]`, `y: [batch, pixels of the output, outputs]`, dense; `bias`: f32.
///
/// # Errors
/// If the weight is none of a 3x3 convolution; what the device says.
pub fn forward<D: Machine>(
    bench: Bench<'_, D>,
    weight: &Weight<'_, D::Memory>,
    bias: Place<'_, D::Memory>,
    g: Geometry,
    x: Place<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    let channels = channels(weight, g)?;
    let rows = g.batch * g.pixels();
    let step = (bench.limits.temporary / (weight.inputs * bench.kind.bytes())).clamp(1, rows);
    let packed = bench.numbers(step * weight.inputs)?;
    let packed = Place::start(&*packed);
    for part in steps(rows, step) {
        let taps = Taps { first_row: part.start, ..g.taps(part.len() * weight.inputs, channels) };
        bench.run("pack_taps", &[x], &[packed], &taps.words()?, taps.count)?;
        linear::product(bench, weight, part.len(), packed, y.after(part.start * weight.outputs, bench.kind))?;
    }
    pointwise::add_bias(bench, bias, weight.outputs, rows, y)
}

/// `dy` and `dx` like `y` and `x` above.
///
/// # Errors
/// As above.
pub fn backward<D: Machine>(
    bench: Bench<'_, D>,
    weight: &Weight<'_, D::Memory>,
    g: Geometry,
    dy: Place<'_, D::Memory>,
    dx: Place<'_, D::Memory>,
) -> Result<()> {
    let channels = channels(weight, g)?;
    let numbers = bench.limits.temporary / bench.kind.bytes();
    // whole pictures as long as one fits, then some channels of a picture: no part needs another's pixels
    let pictures = (numbers / (g.pixels() * weight.inputs)).clamp(1, g.batch);
    let step = (numbers / (g.pixels() * 9)).clamp(1, channels);
    let step = if numbers >= g.pixels() * weight.inputs { channels } else { step };
    let columns = bench.numbers(pictures * g.pixels() * 9 * step)?;
    let columns = Place::start(&*columns);
    for batch in steps(g.batch, pictures) {
        let of_part = Geometry { batch: batch.len(), ..g };
        let dy = dy.after(batch.start * g.pixels() * weight.outputs, bench.kind);
        let dx = dx.after(batch.start * g.height * g.width * channels, bench.kind);
        for some in steps(channels, step) {
            scatter_product(bench, weight, batch.len() * g.pixels(), some.clone(), dy, columns)?;
            let count = batch.len() * g.height * g.width * some.len();
            let taps = Taps { first_channel: some.start, all_channels: channels, ..of_part.taps(count, some.len()) };
            bench.run("gather_taps", &[columns], &[dx], &taps.words()?, count)?;
        }
    }
    Ok(())
}

/// `dy W` for some channels of every tap: `[rows, (ky, kx, some)]`.
fn scatter_product<D: Machine>(
    bench: Bench<'_, D>,
    weight: &Weight<'_, D::Memory>,
    rows: usize,
    some: Range<usize>,
    dy: Place<'_, D::Memory>,
    columns: Place<'_, D::Memory>,
) -> Result<()> {
    let channels = weight.inputs / 9;
    // all taps at once where their channels are neighbours
    let (runs, width) = if some.len() == channels { (1, 9 * channels) } else { (9, some.len()) };
    for run in 0..runs {
        for inner in steps(width, weight.columns_at_once(bench)) {
            let first = run * channels + some.start + inner.start;
            let part = weight.part(bench, 0..weight.outputs, first..first + inner.len())?;
            let into = columns.after(run * width + inner.start, bench.kind);
            bench.machine.multiply(Product {
                kind: bench.kind,
                batch: 1,
                size: (rows, inner.len(), weight.outputs),
                a: Matrix::new(dy, weight.outputs),
                b: part.matrix(),
                d: Matrix::new(into, 9 * some.len()),
            })?;
        }
    }
    Ok(())
}
