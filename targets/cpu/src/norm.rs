//! GroupNorm (with SiLU folded in) and LayerNorm, frozen.

use crate::float::{Floats, Lanewise, lanewise, lanewise_in_place, sigmoid};
use crate::isa::{Token, Work, with_token};
use crate::memory::unwritten;
use crate::{Isa, feature_map, floats, output, with_weight};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

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
        // SAFETY: the parts hold every number, and their rows are whole.
        let mut y = unsafe { unwritten(x.len()) };
        let parts = dims.parts_mut(&mut y).zip(dims.parts(x));
        with_token!(self.isa, f => dims.each(parts, |picture, (y, x)| {
            let (scale, shift) = (dims.of_picture(scale, picture), dims.of_picture(shift, picture));
            match self.silu {
                true => f.vectorize(Rows { f, function: ScaledSilu, x, scale, shift, y }),
                false => f.vectorize(Rows { f, function: Scaled, x, scale, shift, y }),
            }
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

    /// Values that a thread takes at a time: whole rows.
    fn task(&self) -> usize {
        (TASK / self.channels).max(1) * self.channels
    }

    /// The per-channel values of a picture.
    fn of_picture<'a>(&self, values: &'a [f32], picture: usize) -> &'a [f32] {
        &values[picture * self.channels..][..self.channels]
    }

    /// The values of a batch as parts of whole rows, picture by picture, equally many of each.
    fn parts(self, values: &[f32]) -> impl Iterator<Item = &[f32]> {
        values.chunks_exact(self.picture().max(1)).flat_map(move |picture| picture.chunks(self.task()))
    }

    fn parts_mut(self, values: &mut [f32]) -> impl Iterator<Item = &mut [f32]> {
        values.chunks_exact_mut(self.picture().max(1)).flat_map(move |picture| picture.chunks_mut(self.task()))
    }

    /// What `of_part` makes of the picture's index and each part, in order, on rayon's pool.
    fn each<P: Send, R: Send>(self, parts: impl Iterator<Item = P>, of_part: impl Fn(usize, P) -> R + Sync) -> Vec<R> {
        let parts: Vec<_> = parts.collect();
        let of_picture = self.picture().div_ceil(self.task());
        parts.into_par_iter().enumerate().map(|(i, part)| of_part(i / of_picture, part)).collect()
    }

    /// Two sums over each group of each picture, `[B * groups]`, in f64, from those over the channels of each part. The
    /// parts' are added in order, so that the result does not depend on the number of threads.
    fn group_sums<P: Send>(
        self,
        parts: impl Iterator<Item = P>,
        of_part: impl Fn(usize, P, [&mut [f64]; 2]) + Sync,
    ) -> Vec<[f64; 2]> {
        let of_groups = self.each(parts, |picture, part| {
            let (mut a, mut b) = (vec![0.0; self.channels], vec![0.0; self.channels]);
            of_part(picture, part, [&mut a, &mut b]);
            let groups = a.chunks_exact(self.per_group()).zip(b.chunks_exact(self.per_group()));
            groups.map(|(a, b)| [a.iter().sum::<f64>(), b.iter().sum::<f64>()]).collect::<Vec<_>>()
        });
        let mut sums = vec![[0.0; 2]; self.batch * self.groups];
        let parts = (of_groups.len() / self.batch.max(1)).max(1);
        for (i, of_part) in of_groups.iter().enumerate() {
            for (sum, part) in sums[i / parts * self.groups..].iter_mut().zip(of_part) {
                *sum = [sum[0] + part[0], sum[1] + part[1]];
            }
        }
        sums
    }
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

/// The sums of each channel of `a`, and of its products with `b`, over some rows. Products of f32 are exact in f64, so that
/// nothing is lost when the mean's is taken off but for values whose spread f32 itself cannot tell from their mean.
struct Sums<'a> {
    a: &'a [f32],
    b: &'a [f32],
    sums: &'a mut [f64],
    products: &'a mut [f64],
}

impl Work for Sums<'_> {
    #[inline(always)]
    fn run(self) {
        let Sums { a, b, sums, products } = self;
        let channels = sums.len();
        let (fours, fours_b) = (a.chunks_exact(4 * channels), b.chunks_exact(4 * channels));
        let (rest, rest_b) = (fours.remainder(), fours_b.remainder());
        for (four, four_b) in fours.zip(fours_b) {
            let (sums, products) = (&mut sums[..channels], &mut products[..channels]);
            let [a, b, c, d] = rows_of_four(four, channels);
            let [p, q, r, s] = rows_of_four(four_b, channels);
            for i in 0..channels {
                let [a, b, c, d] = [a[i] as f64, b[i] as f64, c[i] as f64, d[i] as f64];
                let [p, q, r, s] = [p[i] as f64, q[i] as f64, r[i] as f64, s[i] as f64];
                sums[i] += (a + b) + (c + d);
                products[i] += (a * p + b * q) + (c * r + d * s);
            }
        }
        for (a, b) in rest.chunks_exact(channels).zip(rest_b.chunks_exact(channels)) {
            for i in 0..channels {
                sums[i] += a[i] as f64;
                products[i] += a[i] as f64 * b[i] as f64;
            }
        }
    }
}

#[inline(always)]
fn rows_of_four(x: &[f32], channels: usize) -> [&[f32]; 4] {
    let (a, rows) = x.split_at(channels);
    let (b, rows) = rows.split_at(channels);
    let (c, d) = rows.split_at(channels);
    [a, b, c, &d[..channels]]
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
        let sums = dims.group_sums(dims.parts(x), |_, x, [sums, products]| {
            with_token!(self.isa, token => token.vectorize(Sums { a: x, b: x, sums, products }));
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
        if dy.len() != x.len() {
            bail!("a gradient of {:?} for a map of {:?}", gl.shape(), xl.shape())
        }
        let moments = norm.moments(x, dims);
        let affine = norm.affine(&moments, dims)?;
        // SAFETY: the parts hold every number; the first pass writes all of them.
        let mut dx = unsafe { unwritten(x.len()) };
        // 1. `g` in the place of the result, and its sums
        let sums = with_weight(&norm.weight, |weight| {
            let parts = dims.parts_mut(&mut dx).zip(dims.parts(x)).zip(dims.parts(dy));
            Ok(with_token!(norm.isa, f => dims.group_sums(parts, |picture, ((g, x), dy), [sums, products]| {
                let (scale, shift) = (dims.of_picture(&affine.scale, picture), dims.of_picture(&affine.shift, picture));
                f.vectorize(GradientRows { f, silu: norm.silu, x, dy, scale, shift, weight, g, sums, products });
            })))
        })?;
        // 2. the result
        let terms = &gradient_terms(&moments, &sums, dims);
        with_token!(norm.isa, f => dims.each(dims.parts_mut(&mut dx).zip(dims.parts(x)), |picture, (dx, x)| {
            let terms = terms.each_ref().map(|term| dims.of_picture(term, picture));
            f.vectorize(CentredRows { f, x, terms, dx });
        }));
        Ok(output(dx, xl.shape().clone()))
    }
}

/// What [`Centred`] takes, of every picture and channel, `[B * C]` each, from the groups' moments and the sums of `g` and
/// of `g x`.
fn gradient_terms(moments: &[(f64, f64)], sums: &[[f64; 2]], dims: Dims) -> [Vec<f32>; 4] {
    let count = (dims.pixels * dims.per_group()) as f64;
    let of_groups: Vec<_> = moments
        .iter()
        .zip(sums)
        .map(|(&(mean, rstd), &[sum, product])| {
            let mean_of_gn = rstd * (product - mean * sum) / count;
            [mean, sum / count, -rstd * mean_of_gn, rstd].map(|term| term as f32)
        })
        .collect();
    let channels = dims.batch * dims.channels;
    let group = |i: usize| i / dims.channels * dims.groups + i % dims.channels / dims.per_group();
    std::array::from_fn(|term| (0..channels).map(|i| of_groups[group(i)][term]).collect())
}

/// The gradient of the normalised value: `dy * weight`, and the slope of SiLU at `z = x * scale + shift` where it follows.
struct Gradient;

impl Lanewise<2, 1> for Gradient {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [dy, weight]: [F::Vector; 2]) -> [F::Vector; 1] {
        [f.mul(dy, weight)]
    }
}

struct SiluGradient;

impl Lanewise<5, 1> for SiluGradient {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [x, dy, scale, shift, weight]: [F::Vector; 5]) -> [F::Vector; 1] {
        let z = f.mul_add(x, scale, shift);
        let s = sigmoid(f, z);
        // s (1 + z (1 - s))
        let slope = f.mul_add(f.mul(z, s), f.sub(f.splat(1.0), s), s);
        [f.mul(f.mul(dy, slope), weight)]
    }
}

/// `g` of some rows, and the sums of it and of its products with `x` for every channel.
struct GradientRows<'a, F> {
    f: F,
    silu: bool,
    x: &'a [f32],
    dy: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    weight: &'a [f32],
    g: &'a mut [f32],
    sums: &'a mut [f64],
    products: &'a mut [f64],
}

impl<F: Floats> Work for GradientRows<'_, F> {
    #[inline(always)]
    fn run(self) {
        let GradientRows { f, silu, x, dy, scale, shift, weight, g, sums, products } = self;
        let channels = weight.len();
        // a few rows at a time, which the sums then find in the cache
        let parts = x.chunks(4 * channels).zip(dy.chunks(4 * channels)).zip(g.chunks_mut(4 * channels));
        for ((x, dy), g) in parts {
            let rows = x.chunks_exact(channels).zip(dy.chunks_exact(channels)).zip(g.chunks_exact_mut(channels));
            for ((x, dy), g) in rows {
                match silu {
                    true => lanewise(f, &SiluGradient, [x, dy, scale, shift, weight], [g]),
                    false => lanewise(f, &Gradient, [dy, weight], [g]),
                }
            }
            Sums { a: g, b: x, sums: &mut *sums, products: &mut *products }.run();
        }
    }
}

/// `rstd * (g - mean_of_g + slope * (x - mean))`: differences first, since they may be nothing.
struct Centred;

impl Lanewise<6, 1> for Centred {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [g, x, mean, mean_of_g, slope, rstd]: [F::Vector; 6]) -> [F::Vector; 1] {
        [f.mul(rstd, f.mul_add(slope, f.sub(x, mean), f.sub(g, mean_of_g)))]
    }
}

/// Some rows of `dx`, which hold `g` before.
struct CentredRows<'a, F> {
    f: F,
    x: &'a [f32],
    terms: [&'a [f32]; 4],
    dx: &'a mut [f32],
}

impl<F: Floats> Work for CentredRows<'_, F> {
    #[inline(always)]
    fn run(self) {
        let CentredRows { f, x, terms: [mean, mean_of_g, slope, rstd], dx } = self;
        for (x, dx) in x.chunks_exact(mean.len()).zip(dx.chunks_exact_mut(mean.len())) {
            lanewise_in_place(f, &Centred, dx, [x, mean, mean_of_g, slope, rstd]);
        }
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

/// Sums of a row side by side: two of the widest registers.
const SUMS: usize = 16;

/// Mean and reciprocal standard deviation of one row.
#[inline(always)]
fn row_moments(x: &[f32], eps: f64) -> (f32, f32) {
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
        // SAFETY: rows are whole, and each is written.
        let mut y = unsafe { unwritten(x.len()) };
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

/// To the sums of `x`, of its squares, of `g` and of `g x`.
#[inline(always)]
fn add(sums: &mut [[f64; SUMS]; 4], i: usize, x: f32, dy: f32, weight: f32) {
    // products of two f32 are exact
    let (x, g) = (x as f64, dy as f64 * weight as f64);
    sums[0][i] += x;
    sums[1][i] += x * x;
    sums[2][i] += g;
    sums[3][i] += g * x;
}

/// What the gradient of one row takes: moments, and the means of `g` and of `g n`, with `n` the normalised value and
/// `g` its gradient.
#[inline(always)]
fn row_gradient(x: &[f32], dy: &[f32], weight: &[f32], eps: f64) -> RowGradient {
    let mut sums = [[0.0; SUMS]; 4];
    let ((xs, x_rest), (dys, dy_rest)) = (x.as_chunks::<SUMS>(), dy.as_chunks::<SUMS>());
    let (weights, weight_rest) = weight.as_chunks::<SUMS>();
    for ((x, dy), weight) in xs.iter().zip(dys).zip(weights) {
        for i in 0..SUMS {
            add(&mut sums, i, x[i], dy[i], weight[i]);
        }
    }
    for (i, ((&x, &dy), &weight)) in x_rest.iter().zip(dy_rest).zip(weight_rest).enumerate() {
        add(&mut sums, i, x, dy, weight);
    }
    let [x_sum, squares, g, product]: [f64; 4] =
        [sums[0].iter().sum(), sums[1].iter().sum(), sums[2].iter().sum(), sums[3].iter().sum()];
    let count = x.len() as f64;
    let (mean, rstd) = moments([x_sum, squares], count, eps);
    let dot = rstd * (product - mean * g) / count;
    RowGradient { mean: mean as f32, rstd: rstd as f32, sum: (g / count) as f32, dot: dot as f32 }
}

/// `rstd * (dy * weight - sum - n * dot)` with `n = (x - mean) * rstd`.
struct RowGradient {
    mean: f32,
    rstd: f32,
    sum: f32,
    dot: f32,
}

impl Lanewise<3, 1> for RowGradient {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [x, dy, weight]: [F::Vector; 3]) -> [F::Vector; 1] {
        let rstd = f.splat(self.rstd);
        let normalised = f.mul(f.sub(x, f.splat(self.mean)), rstd);
        let centred = f.sub(f.mul(dy, weight), f.splat(self.sum));
        [f.mul(rstd, f.mul_add(normalised, f.splat(-self.dot), centred))]
    }
}

/// Some rows, each by itself.
struct RowGradients<'a, F> {
    f: F,
    x: &'a [f32],
    dy: &'a [f32],
    weight: &'a [f32],
    eps: f64,
    dx: &'a mut [f32],
}

impl<F: Floats> Work for RowGradients<'_, F> {
    #[inline(always)]
    fn run(self) {
        let RowGradients { f, x, dy, weight, eps, dx } = self;
        let channels = weight.len();
        let rows = x.chunks_exact(channels).zip(dy.chunks_exact(channels)).zip(dx.chunks_exact_mut(channels));
        for ((x, dy), dx) in rows {
            lanewise(f, &row_gradient(x, dy, weight, eps), [x, dy, weight], [dx]);
        }
    }
}

impl CustomOp2 for LayerNormBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-layer-norm-backward"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, gs: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let LayerNorm { weight, eps, isa, .. } = self.0;
        let (channels, eps) = (weight.dims1()?, *eps);
        let (x, dy) = (floats(xs, xl)?, floats(gs, gl)?);
        if dy.len() != x.len() {
            bail!("a gradient of {:?} for {:?}", gl.shape(), xl.shape())
        }
        // SAFETY: rows are whole, and each is written.
        let mut dx = unsafe { unwritten(x.len()) };
        with_weight(weight, |weight| {
            let task = (TASK / channels).max(1) * channels;
            let tasks = dx.par_chunks_mut(task).zip(x.par_chunks(task)).zip(dy.par_chunks(task));
            with_token!(*isa, f => tasks.for_each(|((dx, x), dy)| {
                f.vectorize(RowGradients { f, x, dy, weight, eps, dx });
            }));
            Ok(())
        })?;
        Ok(output(dx, xl.shape().clone()))
    }
}
