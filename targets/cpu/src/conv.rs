//! A frozen 3x3 convolution with padding 1, channels last, as an implicit matrix product: each tile of output pixels
//! gathers its neighbourhoods (im2col of that tile only) and is one product with the weight.

use crate::matrix::{Into, Mat, ONE_CORE, matmul};
use crate::{feature_map, floats, output, with_weight};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// Gathered values a tile may hold: 1 MiB of f32, so that a tile and its result stay in the second-level cache.
const TILE_VALUES: usize = 1 << 18;

/// The weights of a 3x3 convolution, in the order the products want them.
#[derive(Debug)]
pub struct Kernel3x3 {
    weight: Tensor,
    bias: Tensor,
    /// For the backward; made when first asked for, since painting never needs it.
    flipped: OnceLock<Tensor>,
}

impl Kernel3x3 {
    /// From a checkpoint's `weight: [out, in, 3, 3]` and `bias: [out]`.
    ///
    /// # Errors
    /// If the weight or the bias is not of that shape.
    pub fn new(weight: &Tensor, bias: Tensor) -> Result<Self> {
        let (cout, cin, 3, 3) = weight.dims4()? else { bail!("a 3x3 kernel got {:?}", weight.shape()) };
        if bias.dims1()? != cout {
            bail!("a 3x3 kernel for {cout} channels got a bias of {:?}", bias.shape())
        }
        let weight = weight.permute((2, 3, 1, 0))?.contiguous()?.reshape((9 * cin, cout))?;
        Ok(Kernel3x3 { weight, bias, flipped: OnceLock::new() })
    }

    /// `[9 * in, out]`, rows ordered (ky, kx, in).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[out]`.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// `[9 * out, in]`: turned by half a circle and transposed, as the gradient of the input needs it.
    ///
    /// # Errors
    /// If candle runs out of memory.
    pub fn flipped(&self) -> Result<Tensor> {
        if let Some(flipped) = self.flipped.get() {
            return Ok(flipped.clone());
        }
        let (rows, cout) = self.weight.dims2()?;
        let backwards = Tensor::new(&[8u32, 7, 6, 5, 4, 3, 2, 1, 0], self.weight.device())?;
        let turned = self.weight.reshape((9, rows / 9, cout))?.index_select(&backwards, 0)?;
        let flipped = turned.transpose(1, 2)?.contiguous()?.reshape((9 * cout, rows / 9))?;
        Ok(self.flipped.get_or_init(|| flipped).clone())
    }
}

/// `y[b, p, :] = bias + sum over the 3x3 neighbourhood of p`, `x: [B, H*W, in]`, `y: [B, H'*W', out]`.
#[derive(Debug, Clone)]
pub struct Conv3x3 {
    /// The frozen weights.
    pub kernel: Arc<Kernel3x3>,
    /// Height of the input in pixels.
    pub height: usize,
    /// Width of the input in pixels.
    pub width: usize,
    /// 1 or 2; the output has `ceil(H / stride)` rows.
    pub stride: usize,
}

impl CustomOp1 for Conv3x3 {
    fn name(&self) -> &'static str {
        "frozen-conv3x3"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let grid = Grid { height: self.height, width: self.width, stride: self.stride, spread: 1 };
        with_weight(self.kernel.bias(), |bias| grid.apply(self.kernel.weight(), Some(bias), storage, layout))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grid = Grid { height: self.height, width: self.width, stride: 1, spread: self.stride };
        let flipped = self.kernel.flipped()?;
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&Conv3x3Backward { grid, flipped })?))
    }
}

/// The gradient of the input: the output's gradient, spread over every `stride`-th pixel, convolved with the flipped kernel.
struct Conv3x3Backward {
    grid: Grid,
    flipped: Tensor,
}

impl CustomOp1 for Conv3x3Backward {
    fn name(&self) -> &'static str {
        "frozen-conv3x3-backward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.grid.apply(&self.flipped, None, storage, layout)
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
}

impl Grid {
    fn sampled(&self, every: usize) -> (usize, usize) {
        (self.height.div_ceil(every), self.width.div_ceil(every))
    }

    fn apply(
        &self,
        weight: &Tensor,
        bias: Option<&[f32]>,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, pixels, cin) = feature_map(layout)?;
        let (rows, cout) = weight.dims2()?;
        let ((in_h, in_w), (out_h, out_w)) = (self.sampled(self.spread), self.sampled(self.stride));
        if pixels != in_h * in_w || rows != 9 * cin {
            bail!("a 3x3 convolution {} -> {cout} on {in_h}x{in_w} pixels got {:?}", rows / 9, layout.shape())
        }
        let x = floats(storage, layout)?;
        let mut y = vec![0.0; batch * out_h * out_w * cout];
        with_weight(weight, |weight| {
            self.convolve(x, cin, Mat::rows(weight, rows, cout, cout), bias, cout, &mut y);
            Ok(())
        })?;
        Ok(output(y, (batch, out_h * out_w, cout)))
    }

    fn convolve(&self, x: &[f32], cin: usize, weight: Mat<'_>, bias: Option<&[f32]>, cout: usize, y: &mut [f32]) {
        let row = 9 * cin;
        let tile = (TILE_VALUES / row).clamp(16, 256);
        y.par_chunks_mut(tile * cout).enumerate().for_each_init(
            || vec![0.0; tile * row],
            |gathered, (i, y)| {
                let n = y.len() / cout;
                for (j, patch) in gathered.chunks_exact_mut(row).take(n).enumerate() {
                    self.gather(x, cin, i * tile + j, patch);
                }
                let into = match bias {
                    Some(bias) => {
                        y.chunks_exact_mut(cout).for_each(|y| y.copy_from_slice(bias));
                        Into::Add
                    }
                    None => Into::Overwrite,
                };
                matmul(y, cout, into, 1.0, Mat::rows(gathered, n, row, row), weight, ONE_CORE);
            },
        );
    }

    /// The 3x3 neighbourhood of output pixel `index` (counted over the whole batch), zero outside the picture.
    fn gather(&self, x: &[f32], cin: usize, index: usize, patch: &mut [f32]) {
        let ((in_h, in_w), (out_h, out_w)) = (self.sampled(self.spread), self.sampled(self.stride));
        let (picture, pixel) = (index / (out_h * out_w), index % (out_h * out_w));
        let (top, left) = (pixel / out_w * self.stride, pixel % out_w * self.stride);
        for (k, into) in patch.chunks_exact_mut(cin).enumerate() {
            // counted from 1, so that the row above the picture is 0
            let (row, col) = (top + k / 3, left + k % 3);
            let inside = (1..=self.height).contains(&row) && (1..=self.width).contains(&col);
            if inside && (row - 1) % self.spread == 0 && (col - 1) % self.spread == 0 {
                let from = (picture * in_h + (row - 1) / self.spread) * in_w + (col - 1) / self.spread;
                into.copy_from_slice(&x[from * cin..][..cin]);
            } else {
                into.fill(0.0);
            }
        }
    }
}
