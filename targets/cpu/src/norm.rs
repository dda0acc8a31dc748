//! GroupNorm (with SiLU folded in) and LayerNorm, frozen.

use crate::float::{Floats, Lanewise, lanewise, sigmoid};
use crate::isa::{Token, Work, with_token};
use crate::{Isa, feature_map, floats, output, with_weight};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Values a thread takes at a time.
const TASK: usize = 1 << 15;

/// GroupNorm over `[B, H*W, C]`, arXiv 1803.08494, optionally followed by SiLU.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// `[C]`.
    pub weight: Tensor,
    /// `[C]`.
    pub bias: Tensor,
    /// Number of groups; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
    /// What it runs on.
    pub isa: Isa,
}

impl CustomOp1 for GroupNorm {
    fn name(&self) -> &'static str {
        "frozen-group-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = self.dims(layout)?;
        let x = floats(storage, layout)?;
        let Affine { scale, shift } = &self.affine(&self.moments(x, dims), dims)?;
        let mut y = vec![0.0; x.len()];
        let task = dims.rows_of_task() * dims.channels;
        let pictures = y.par_chunks_mut(dims.picture()).zip(x.par_chunks(dims.picture()));
        with_token!(self.isa, f => pictures.enumerate().for_each(|(picture, (y, x))| {
            let (scale, shift) = (dims.of_picture(scale, picture), dims.of_picture(shift, picture));
            y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| match self.silu {
                true => f.vectorize(Rows { f, function: ScaledSilu, x, scale, shift, y }),
                false => f.vectorize(Rows { f, function: Scaled, x, scale, shift, y }),
            });
        }));
        Ok(output(y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GroupNormBackward(self))?))
    }
}

#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
}

impl Dims {
    fn per_group(&self) -> usize {
        self.channels / self.groups
    }

    /// Values of a picture.
    fn picture(&self) -> usize {
        self.pixels * self.channels
    }

    /// Pixels that a thread takes at a time.
    fn rows_of_task(&self) -> usize {
        (TASK / self.channels).max(1)
    }

    /// The per-channel values of a picture.
    fn of_picture<'a>(&self, values: &'a [f32], picture: usize) -> &'a [f32] {
        &values[picture * self.channels..][..self.channels]
    }

    /// Two sums over each group of each picture, `[B * groups]`, in f64, from those over the channels of some rows:
    /// `of_rows(first, sums)`, where `first` is the index of their first value. They are added in order, so that the
    /// result does not depend on the number of threads.
    fn group_sums(&self, of_rows: impl Fn(Span, [&mut [f64]; 2]) + Sync) -> Vec<[f64; 2]> {
        let rows = self.rows_of_task();
        let (tasks, size) = (self.pixels.div_ceil(rows), self.per_group());
        let partial: Vec<_> = (0..self.batch * tasks)
            .into_par_iter()
            .map(|task| {
                let (picture, first) = (task / tasks, task % tasks * rows);
                let (mut a, mut b) = (vec![0.0; self.channels], vec![0.0; self.channels]);
                let at = |row: usize| (picture * self.pixels + row) * self.channels;
                let values = at(first)..at((first + rows).min(self.pixels));
                of_rows(Span { picture, values }, [&mut a, &mut b]);
                let groups = a.chunks_exact(size).zip(b.chunks_exact(size));
                groups.map(|(a, b)| [a.iter().sum::<f64>(), b.iter().sum::<f64>()]).collect::<Vec<_>>()
            })
            .collect();
        let mut sums = vec![[0.0; 2]; self.batch * self.groups];
        for (task, partial) in partial.iter().enumerate() {
            for (sum, part) in sums[task / tasks * self.groups..].iter_mut().zip(partial) {
                *sum = [sum[0] + part[0], sum[1] + part[1]];
            }
        }
        sums
    }
}

/// Some rows of a picture.
struct Span {
    picture: usize,
    /// Their values in the batch.
    values: Range<usize>,
}

/// What values are multiplied with and what is added then, `[B * C]` each.
struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// `x * scale + shift`.
struct Scaled;

impl Lanewise<3, 1> for Scaled {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [x, scale, shift]: [F::Vector; 3]) -> [F::Vector; 1] {
        [f.mul_add(x, scale, shift)]
    }
}

/// SiLU of `x * scale + shift`.
struct ScaledSilu;

impl Lanewise<3, 1> for ScaledSilu {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [x, scale, shift]: [F::Vector; 3]) -> [F::Vector; 1] {
        let z = f.mul_add(x, scale, shift);
        [f.mul(z, sigmoid(f, z))]
    }
}

/// A function of some rows, of which each channel has its own scale and shift.
struct Rows<'a, F, L> {
    f: F,
    function: L,
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    y: &'a mut [f32],
}

impl<F: Floats, L: Lanewise<3, 1>> Work for Rows<'_, F, L> {
    #[inline(always)]
    fn run(self) {
        let Rows { f, function, x, scale, shift, y } = self;
        for (x, y) in x.chunks_exact(scale.len()).zip(y.chunks_exact_mut(scale.len())) {
            lanewise(f, &function, [x, scale, shift], [y]);
        }
    }
}

/// The sums of each channel and of its squares over some rows. Squares of f32 are exact in f64, so that nothing is lost
/// when the mean's is taken off but for values whose spread f32 itself cannot tell from their mean.
struct Sums<'a> {
    x: &'a [f32],
    sums: &'a mut [f64],
    squares: &'a mut [f64],
}

impl Work for Sums<'_> {
    #[inline(always)]
    fn run(self) {
        let Sums { x, sums, squares } = self;
        let channels = sums.len();
        let fours = x.chunks_exact(4 * channels);
        let rest = fours.remainder();
        for four in fours {
            let (a, rows) = four.split_at(channels);
            let (b, rows) = rows.split_at(channels);
            let (c, d) = rows.split_at(channels);
            let (sums, squares, d) = (&mut sums[..channels], &mut squares[..channels], &d[..channels]);
            for i in 0..channels {
                let [a, b, c, d] = [a[i] as f64, b[i] as f64, c[i] as f64, d[i] as f64];
                sums[i] += (a + b) + (c + d);
                squares[i] += (a * a + b * b) + (c * c + d * d);
            }
        }
        for row in rest.chunks_exact(channels) {
            for ((&x, sum), square) in row.iter().zip(&mut *sums).zip(&mut *squares) {
                *sum += x as f64;
                *square += x as f64 * x as f64;
            }
        }
    }
}

impl GroupNorm {
    fn dims(&self, layout: &Layout) -> Result<Dims> {
        let (batch, pixels, channels) = feature_map(layout)?;
        if self.groups == 0 || channels % self.groups != 0 || self.weight.dims1()? != channels {
            bail!("a GroupNorm of {} channels in {} groups got {:?}", self.weight.dims1()?, self.groups, layout.shape())
        }
        Ok(Dims { batch, pixels, channels, groups: self.groups })
    }

    /// Mean and reciprocal standard deviation of every group, `[B * groups]`, accumulated in f64.
    fn moments(&self, x: &[f32], dims: Dims) -> Vec<(f64, f64)> {
        let count = (dims.pixels * dims.per_group()) as f64;
        let sums = dims.group_sums(|span, [sums, squares]| {
            with_token!(self.isa, token => token.vectorize(Sums { x: &x[span.values.clone()], sums, squares }));
        });
        sums.iter().map(|&sums| moments(sums, count, self.eps)).collect()
    }

    /// What turns a value into the normalised one, for every picture and channel.
    fn affine(&self, moments: &[(f64, f64)], dims: Dims) -> Result<Affine> {
        with_weight(&self.weight, |weight| {
            with_weight(&self.bias, |bias| {
                let each = (0..dims.batch * dims.channels).map(|i| {
                    let (picture, channel) = (i / dims.channels, i % dims.channels);
                    let (mean, rstd) = moments[picture * dims.groups + channel / dims.per_group()];
                    let scale = rstd * weight[channel] as f64;
                    (scale as f32, (bias[channel] as f64 - mean * scale) as f32)
                });
                let (scale, shift) = each.unzip();
                Ok(Affine { scale, shift })
            })
        })
    }
}

/// Mean and reciprocal standard deviation, from the sums of `count` values and of their squares.
#[inline(always)]
fn moments([sum, squares]: [f64; 2], count: f64, eps: f64) -> (f64, f64) {
    let mean = sum / count;
    // a rounding below zero is zero; `max` would make NaN zero
    let variance = match squares / count - mean * mean {
        negative if negative < 0.0 => 0.0,
        variance => variance,
    };
    (mean, 1.0 / (variance + eps).sqrt())
}

struct GroupNormBackward<'a>(&'a GroupNorm);

impl CustomOp2 for GroupNormBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-group-norm-backward"
    }

    /// With `n` the normalised value, `g` the gradient of `n` and means over a group:
    /// `dx = (g - mean(g) - n mean(g n)) / std`.
    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, gs: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let norm = self.0;
        let dims = norm.dims(xl)?;
        let (x, dy) = (floats(xs, xl)?, floats(gs, gl)?);
        let moments = norm.moments(x, dims);
        let affine = norm.affine(&moments, dims)?;
        let dx = with_weight(&norm.weight, |weight| {
            // the gradient of the normalised value, needed twice: kept
            let mut g = vec![0.0; x.len()];
            g.par_chunks_mut(dims.channels).enumerate().for_each(|(row, g)| {
                let picture = row / dims.pixels;
                let (scale, shift) = (dims.of_picture(&affine.scale, picture), dims.of_picture(&affine.shift, picture));
                let (x, dy) = (&x[row * dims.channels..], &dy[row * dims.channels..]);
                let slope = SiluSlope { silu: norm.silu };
                for (channel, g) in g.iter_mut().enumerate() {
                    *g = dy[channel] * slope.at(x[channel] * scale[channel] + shift[channel]) * weight[channel];
                }
            });
            let count = (dims.pixels * dims.per_group()) as f64;
            let sums = dims.group_sums(|span, [sums, dots]| {
                let moments = &moments[span.picture * dims.groups..];
                let (x, g) = (&x[span.values.clone()], &g[span.values]);
                for (x, g) in x.chunks_exact(dims.channels).zip(g.chunks_exact(dims.channels)) {
                    for channel in 0..dims.channels {
                        let (mean, rstd) = moments[channel / dims.per_group()];
                        sums[channel] += g[channel] as f64;
                        dots[channel] += g[channel] as f64 * (x[channel] as f64 - mean) * rstd;
                    }
                }
            });
            let mut dx = vec![0.0; x.len()];
            dx.par_chunks_mut(dims.channels).enumerate().for_each(|(row, dx)| {
                for (channel, dx) in dx.iter_mut().enumerate() {
                    let i = row * dims.channels + channel;
                    let group = row / dims.pixels * dims.groups + channel / dims.per_group();
                    let ((mean, rstd), [sum, dot]) = (moments[group], sums[group]);
                    let normalised = (x[i] as f64 - mean) * rstd;
                    *dx = (rstd * (g[i] as f64 - sum / count - normalised * dot / count)) as f32;
                }
            });
            Ok(dx)
        })?;
        Ok(output(dx, xl.shape().clone()))
    }
}

/// The slope of what follows the normalisation.
struct SiluSlope {
    silu: bool,
}

impl SiluSlope {
    fn at(&self, z: f32) -> f32 {
        if !self.silu {
            return 1.0;
        }
        let s = 1.0 / (1.0 + (-z).exp());
        s * (1.0 + z * (1.0 - s))
    }
}

/// LayerNorm over the last dimension, arXiv 1607.06450.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[C]`.
    pub weight: Tensor,
    /// `[C]`.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
    /// What it runs on.
    pub isa: Isa,
}

/// Mean and reciprocal standard deviation of one row.
#[inline(always)]
fn row_moments(x: &[f32], eps: f64) -> (f32, f32) {
    /// Sums side by side: two of the widest registers.
    const SUMS: usize = 16;
    let (mut sums, mut squares) = ([0.0; SUMS], [0.0; SUMS]);
    let (parts, rest) = x.as_chunks::<SUMS>();
    for part in parts {
        for i in 0..SUMS {
            let x = part[i] as f64;
            sums[i] += x;
            squares[i] += x * x;
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        let x = x as f64;
        sums[i] += x;
        squares[i] += x * x;
    }
    let (mean, rstd) = moments([sums.iter().sum(), squares.iter().sum()], x.len() as f64, eps);
    (mean as f32, rstd as f32)
}

/// `(x - mean) * rstd * weight + bias`.
struct Normalised {
    mean: f32,
    rstd: f32,
}

impl Lanewise<3, 1> for Normalised {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [x, weight, bias]: [F::Vector; 3]) -> [F::Vector; 1] {
        let normalised = f.mul(f.sub(x, f.splat(self.mean)), f.splat(self.rstd));
        [f.mul_add(normalised, weight, bias)]
    }
}

/// Some rows, each normalised by itself.
struct NormalisedRows<'a, F> {
    f: F,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f64,
    y: &'a mut [f32],
}

impl<F: Floats> Work for NormalisedRows<'_, F> {
    #[inline(always)]
    fn run(self) {
        let NormalisedRows { f, x, weight, bias, eps, y } = self;
        for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
            let (mean, rstd) = row_moments(x, eps);
            lanewise(f, &Normalised { mean, rstd }, [x, weight, bias], [y]);
        }
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "frozen-layer-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let channels = self.weight.dims1()?;
        if layout.dims().last() != Some(&channels) {
            bail!("a LayerNorm of {channels} channels got {:?}", layout.shape())
        }
        let x = floats(storage, layout)?;
        let mut y = vec![0.0; x.len()];
        with_weight(&self.weight, |weight| {
            with_weight(&self.bias, |bias| {
                let task = (TASK / channels).max(1) * channels;
                let tasks = y.par_chunks_mut(task).zip(x.par_chunks(task));
                with_token!(self.isa, f => tasks.for_each(|(y, x)| {
                    f.vectorize(NormalisedRows { f, x, weight, bias, eps: self.eps, y });
                }));
                Ok(())
            })
        })?;
        Ok(output(y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &LayerNormBackward(self))?))
    }
}

struct LayerNormBackward<'a>(&'a LayerNorm);

impl CustomOp2 for LayerNormBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-layer-norm-backward"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, gs: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let channels = self.0.weight.dims1()?;
        let (x, dy) = (floats(xs, xl)?, floats(gs, gl)?);
        let mut dx = vec![0.0; x.len()];
        with_weight(&self.0.weight, |weight| {
            let rows = dx.par_chunks_mut(channels).zip(x.par_chunks(channels)).zip(dy.par_chunks(channels));
            rows.for_each(|((dx, x), dy)| {
                let (mean, rstd) = row_moments(x, self.0.eps);
                let (mut sum, mut dot) = (0.0, 0.0);
                for c in 0..channels {
                    let g = dy[c] * weight[c];
                    sum += g;
                    dot += g * (x[c] - mean) * rstd;
                }
                let (sum, dot) = (sum / channels as f32, dot / channels as f32);
                for c in 0..channels {
                    dx[c] = rstd * (dy[c] * weight[c] - sum - (x[c] - mean) * rstd * dot);
                }
            });
            Ok(())
        })?;
        Ok(output(dx, xl.shape().clone()))
    }
}
