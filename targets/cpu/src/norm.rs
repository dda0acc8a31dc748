//! GroupNorm (with SiLU folded in) and LayerNorm, frozen.

use crate::{feature_map, floats, output, with_weight};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Pixels a thread normalises at a time.
const ROWS: usize = 256;

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
}

impl CustomOp1 for GroupNorm {
    fn name(&self) -> &'static str {
        "frozen-group-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = self.dims(layout)?;
        let x = floats(storage, layout)?;
        let affine = self.affine(&self.moments(x, dims), dims)?;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(ROWS * dims.channels).zip(x.par_chunks(ROWS * dims.channels)).enumerate().for_each(
            |(chunk, (y, x))| {
                let rows = y.chunks_exact_mut(dims.channels).zip(x.chunks_exact(dims.channels));
                for (row, (y, x)) in rows.enumerate() {
                    let affine = dims.of_picture(&affine, chunk * ROWS + row);
                    for ((y, &x), &(scale, shift)) in y.iter_mut().zip(x).zip(affine) {
                        let z = x * scale + shift;
                        *y = if self.silu { z * sigmoid(z) } else { z };
                    }
                }
            },
        );
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

    /// The per-channel values of the picture that `row` (counted over the batch) belongs to.
    fn of_picture<'a, V>(&self, values: &'a [V], row: usize) -> &'a [V] {
        &values[row / self.pixels * self.channels..][..self.channels]
    }

    /// Two sums over each group of each picture, `[B * groups]`, in f64: `terms(group, i)` for every value,
    /// where `i` indexes the feature map and `group` counts over the batch. Chunks of rows are summed side by side and
    /// added in order, so that the result does not depend on the number of threads.
    fn group_sums(&self, terms: impl Fn(usize, usize) -> [f64; 2] + Sync) -> Vec<[f64; 2]> {
        let (chunks, size) = (self.pixels.div_ceil(ROWS), self.per_group());
        let partial: Vec<_> = (0..self.batch * chunks)
            .into_par_iter()
            .map(|chunk| {
                let (picture, first) = (chunk / chunks, chunk % chunks * ROWS);
                let mut sums = vec![[0.0; 2]; self.groups];
                for row in first..(first + ROWS).min(self.pixels) {
                    let at = (picture * self.pixels + row) * self.channels;
                    for (group, sums) in sums.iter_mut().enumerate() {
                        for channel in group * size..(group + 1) * size {
                            let [a, b] = terms(picture * self.groups + group, at + channel);
                            sums[0] += a;
                            sums[1] += b;
                        }
                    }
                }
                sums
            })
            .collect();
        let mut sums = vec![[0.0; 2]; self.batch * self.groups];
        for (chunk, partial) in partial.iter().enumerate() {
            for (sum, part) in sums[chunk / chunks * self.groups..].iter_mut().zip(partial) {
                *sum = [sum[0] + part[0], sum[1] + part[1]];
            }
        }
        sums
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
        let sums = dims.group_sums(|_, i| [x[i] as f64, 0.0]);
        let means: Vec<_> = sums.iter().map(|[sum, _]| sum / count).collect();
        let squares = dims.group_sums(|group, i| [(x[i] as f64 - means[group]).powi(2), 0.0]);
        let rstd = |[sum, _]: &[f64; 2]| 1.0 / (sum / count + self.eps).sqrt();
        means.iter().copied().zip(squares.iter().map(rstd)).collect()
    }

    /// `(scale, shift)` of every picture and channel, `[B * C]`, so that the normalised value is `x * scale + shift`.
    fn affine(&self, moments: &[(f64, f64)], dims: Dims) -> Result<Vec<(f32, f32)>> {
        with_weight(&self.weight, |weight| {
            with_weight(&self.bias, |bias| {
                Ok((0..dims.batch * dims.channels)
                    .map(|i| {
                        let (picture, channel) = (i / dims.channels, i % dims.channels);
                        let (mean, rstd) = moments[picture * dims.groups + channel / dims.per_group()];
                        let scale = rstd * weight[channel] as f64;
                        (scale as f32, (bias[channel] as f64 - mean * scale) as f32)
                    })
                    .collect())
            })
        })
    }
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
                let affine = dims.of_picture(&affine, row);
                for (channel, g) in g.iter_mut().enumerate() {
                    let i = row * dims.channels + channel;
                    let after = if norm.silu {
                        dy[i] * silu_slope(x[i] * affine[channel].0 + affine[channel].1)
                    } else {
                        dy[i]
                    };
                    *g = after * weight[channel];
                }
            });
            let count = (dims.pixels * dims.per_group()) as f64;
            let sums = dims.group_sums(|group, i| {
                let (mean, rstd) = moments[group];
                [g[i] as f64, g[i] as f64 * (x[i] as f64 - mean) * rstd]
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

/// Derivative of SiLU.
fn silu_slope(z: f32) -> f32 {
    let s = sigmoid(z);
    s * (1.0 + z * (1.0 - s))
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
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
}

/// Mean and reciprocal standard deviation of one row.
fn row_moments(x: &[f32], eps: f64) -> (f32, f32) {
    let count = x.len() as f64;
    let mean = x.iter().map(|&x| x as f64).sum::<f64>() / count;
    let variance = x.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / count;
    (mean as f32, (1.0 / (variance + eps).sqrt()) as f32)
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
                y.par_chunks_mut(channels).zip(x.par_chunks(channels)).for_each(|(y, x)| {
                    let (mean, rstd) = row_moments(x, self.eps);
                    for c in 0..channels {
                        y[c] = (x[c] - mean) * rstd * weight[c] + bias[c];
                    }
                });
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
