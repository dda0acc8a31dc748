//! A frozen 3x3 convolution with padding 1, channels last, as an implicit matrix product: each tile of output pixels
//! gathers its neighbourhoods (im2col of that tile only) and is one product with the weight.

use crate::int8::{Picture, conv3x3, quantize_pictures};
use crate::matrix::{Into, Mat, ONE_CORE, matmul};
use crate::weight::Int8Product;
use crate::{Weight, feature_map, floats, output, with_weight};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// Gathered values a tile may hold: 1 MiB of f32, so that a tile and its result stay in the second-level cache.
const TILE_VALUES: usize = 1 << 18;

/// `y[b, p, :] = bias + sum over the 3x3 neighbourhood of p`, `x: [B, H*W, in]`, `y: [B, H'*W', out]`.
#[derive(Debug, Clone)]
pub struct Conv3x3 {
    /// `[out, (ky, kx, in)]`.
    pub weight: Arc<Weight>,
    /// `[out]`.
    pub bias: Tensor,
    /// Height of the input in pixels.
    pub height: usize,
    /// Width of the input in pixels.
    pub width: usize,
    /// How often each pixel of the input is repeated both ways before the convolution: 2 is the UNet's upsampling, else 1.
    pub repeat: usize,
    /// 1 or 2; the output has `ceil(repeat H / stride)` rows.
    pub stride: usize,
}

impl CustomOp1 for Conv3x3 {
    fn name(&self) -> &'static str {
        "frozen-conv3x3"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let grid = Grid { stride: self.stride, repeat: self.repeat, ..self.grid() };
        let (cin, cout) = (self.weight.inputs() / 9, self.weight.outputs());
        let (x, mut y, shape) = grid.check(storage, layout, cin, cout)?;
        with_weight(&self.bias, |bias| {
            if bias.len() != cout {
                bail!("a 3x3 convolution for {cout} channels got {} biases", bias.len())
            }
            if let Some(int8) = self.weight.int8()? {
                self.int8_forward(x, &int8, bias, &mut y);
                return Ok(());
            }
            let w = self.weight.to_f32();
            grid.convolve(x, cin, cout, &mut y, |patches, n, y| {
                y.chunks_exact_mut(cout).for_each(|y| y.copy_from_slice(bias));
                let (patches, w) = (Mat::rows(patches, n, 9 * cin, 9 * cin), Mat::rows(&w, cout, 9 * cin, 9 * cin));
                matmul(y, cout, Into::Add, 1.0, patches, w.t(), ONE_CORE);
            });
            Ok(())
        })?;
        Ok(output(y, shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grid = Grid { spread: self.stride, ..self.grid() };
        let dx = grad.contiguous()?.apply_op1_no_bwd(&Conv3x3Backward { grid, weight: &self.weight })?;
        let &[batch, _, channels] = dx.dims() else { bail!("a gradient of shape {:?}", dx.shape()) };
        let (height, width, repeat) = (self.height, self.width, self.repeat);
        match repeat {
            1 => Ok(Some(dx)),
            // what goes to several places gathers the gradients of all
            _ => Ok(Some(dx.reshape((batch * height, repeat, width, repeat, channels))?.sum((1, 3))?.reshape((
                batch,
                height * width,
                channels,
            ))?)),
        }
    }
}

impl Conv3x3 {
    /// The convolution over the picture with its pixels repeated.
    fn grid(&self) -> Grid {
        let (height, width) = (self.height * self.repeat, self.width * self.repeat);
        Grid { height, width, stride: 1, spread: 1, repeat: 1 }
    }

    /// Each picture of the input with a scale of its own.
    fn int8_forward(&self, x: &[f32], w: &Int8Product<'_>, bias: &[f32], y: &mut [f32]) {
        let channels = self.weight.inputs() / 9;
        let pictures = x.len() / (self.height * self.width * channels);
        let (mut values, mut scales) = (vec![0; x.len()], vec![0.0; pictures]);
        quantize_pictures(w.isa, x, channels, w.reciprocals, &mut values, &mut scales);
        let &Conv3x3 { height, width, stride, repeat, .. } = self;
        let picture = Picture { height, width, channels, stride, repeat };
        conv3x3(w.isa, (&values, &scales), picture, w.weight, Some(bias), y);
    }
}

/// The gradient of the input: the output's gradient, spread over every `stride`-th pixel, convolved with the kernel
/// turned by half a circle and transposed.
struct Conv3x3Backward<'a> {
    grid: Grid,
    weight: &'a Weight,
}

impl CustomOp1 for Conv3x3Backward<'_> {
    fn name(&self) -> &'static str {
        "frozen-conv3x3-backward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (cin, cout) = (self.weight.inputs() / 9, self.weight.outputs());
        let (dy, mut dx, shape) = self.grid.check(storage, layout, cout, cin)?;
        let w = self.weight.to_f32();
        self.grid.convolve(dy, cout, cin, &mut dx, |patches, n, dx| {
            // tap by tap, so that no turned copy of the weight is needed
            for tap in 0..9 {
                let into = if tap == 0 { Into::Overwrite } else { Into::Add };
                let patches = Mat::rows(&patches[tap * cout..], n, cout, 9 * cout);
                let w = Mat::rows(&w[(8 - tap) * cin..], cout, cin, 9 * cin);
                matmul(dx, cin, into, 1.0, patches, w, ONE_CORE);
            }
        });
        Ok(output(dx, shape))
    }
}

/// The geometry of one convolution over a picture of `height x width`.
struct Grid {
    height: usize,
    width: usize,
    /// Distance of neighbouring outputs.
    stride: usize,
    /// Distance at which the stored input pixels lie in the picture; between them it is zero.
    spread: usize,
    /// How often each stored pixel comes in the picture both ways. Either this or `spread` is 1.
    repeat: usize,
}

impl Grid {
    fn sampled(&self, every: usize) -> (usize, usize) {
        (self.height.div_ceil(every), self.width.div_ceil(every))
    }

    /// The argument's values, a result to fill, and its shape, for `cin` channels in and `cout` out.
    fn check<'a>(
        &self,
        storage: &'a CpuStorage,
        layout: &Layout,
        cin: usize,
        cout: usize,
    ) -> Result<(&'a [f32], Vec<f32>, Shape)> {
        let (batch, pixels, channels) = feature_map(layout)?;
        if self.stride * self.spread * self.repeat == 0 {
            bail!("a 3x3 convolution needs a stride and a repeat of at least 1")
        }
        let ((in_h, in_w), (out_h, out_w)) = (self.sampled(self.spread * self.repeat), self.sampled(self.stride));
        if pixels != in_h * in_w || channels != cin {
            bail!("a 3x3 convolution {cin} -> {cout} on {in_h}x{in_w} pixels got {:?}", layout.shape())
        }
        let y = vec![0.0; batch * out_h * out_w * cout];
        Ok((floats(storage, layout)?, y, (batch, out_h * out_w, cout).into()))
    }

    /// Calls `product(patches, n, y)` with `n` gathered neighbourhoods, `[n, 9 * cin]`, and their `[n, cout]` of the result.
    fn convolve(
        &self,
        x: &[f32],
        cin: usize,
        cout: usize,
        y: &mut [f32],
        product: impl Fn(&[f32], usize, &mut [f32]) + Sync,
    ) {
        let row = 9 * cin;
        let tile = (TILE_VALUES / row).clamp(16, 256);
        y.par_chunks_mut(tile * cout).enumerate().for_each_init(
            || vec![0.0; tile * row],
            |gathered, (i, y)| {
                let n = y.len() / cout;
                for (j, patch) in gathered.chunks_exact_mut(row).take(n).enumerate() {
                    self.gather(x, cin, i * tile + j, patch);
                }
                product(gathered, n, y);
            },
        );
    }

    /// The 3x3 neighbourhood of output pixel `index` (counted over the whole batch), zero outside the picture.
    fn gather(&self, x: &[f32], cin: usize, index: usize, patch: &mut [f32]) {
        let ((in_h, in_w), (out_h, out_w)) = (self.sampled(self.spread * self.repeat), self.sampled(self.stride));
        let (picture, pixel) = (index / (out_h * out_w), index % (out_h * out_w));
        let (top, left) = (pixel / out_w * self.stride, pixel % out_w * self.stride);
        for (k, into) in patch.chunks_exact_mut(cin).enumerate() {
            // counted from 1, so that the row above the picture is 0
            let (row, col) = (top + k / 3, left + k % 3);
            let inside = (1..=self.height).contains(&row) && (1..=self.width).contains(&col);
            if inside && (row - 1) % self.spread == 0 && (col - 1) % self.spread == 0 {
                let every = self.spread * self.repeat;
                let from = (picture * in_h + (row - 1) / every) * in_w + (col - 1) / every;
                into.copy_from_slice(&x[from * cin..][..cin]);
            } else {
                into.fill(0.0);
            }
        }
    }
}
