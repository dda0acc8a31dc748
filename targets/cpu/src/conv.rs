//! A frozen 3x3 convolution with padding 1, channels last, as an implicit matrix product: each block of output pixels
//! gathers its neighbourhoods (im2col of that block only).

use crate::int8::{Picture, conv3x3, quantize_pictures};
use crate::weight::Int8Product;
use crate::wide::{self, Grid, Neighbourhoods};
use crate::{Weight, feature_map, floats, output, with_weight};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

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
        let (x, shape) = check(&self.weight, grid, storage, layout, (cin, cout))?;
        let y = with_weight(&self.bias, |bias| {
            if bias.len() != cout {
                bail!("a 3x3 convolution for {cout} channels got {} biases", bias.len())
            }
            Ok(match self.weight.int8()? {
                Some(int8) => self.int8_forward(x, &int8, bias, shape.elem_count()),
                None => wide::forward(&self.weight, Neighbourhoods::new(x, cin, grid), Some(bias)),
            })
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
    fn int8_forward(&self, x: &[f32], w: &Int8Product<'_>, bias: &[f32], results: usize) -> Vec<f32> {
        let channels = self.weight.inputs() / 9;
        let pictures = x.len() / (self.height * self.width * channels);
        let (mut values, mut scales, mut y) = (vec![0; x.len()], vec![0.0; pictures], vec![0.0; results]);
        quantize_pictures(w.isa, x, channels, w.reciprocals, &mut values, &mut scales);
        let &Conv3x3 { height, width, stride, repeat, .. } = self;
        let picture = Picture { height, width, channels, stride, repeat };
        conv3x3(w.isa, (&values, &scales), picture, w.weight, Some(bias), &mut y);
        y
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
        let (dy, shape) = check(self.weight, self.grid, storage, layout, (cout, cin))?;
        Ok(output(wide::backward(self.weight, 9, Neighbourhoods::new(dy, cout, self.grid)), shape))
    }
}

/// The argument's values and the result's shape, for so many channels in and out.
fn check<'a>(
    weight: &Weight,
    grid: Grid,
    storage: &'a CpuStorage,
    layout: &Layout,
    (from, to): (usize, usize),
) -> Result<(&'a [f32], Shape)> {
    let (batch, pixels, channels) = feature_map(layout)?;
    if grid.stride * grid.spread * grid.repeat == 0 {
        bail!("a 3x3 convolution needs a stride and a repeat of at least 1")
    }
    if !weight.inputs().is_multiple_of(9) || !weight.fits_channels(weight.inputs() / 9) {
        bail!("a 3x3 convolution has a weight for {} inputs, smoothed otherwise or not nine taps", weight.inputs())
    }
    let ((in_height, in_width), (height, width)) = (grid.stored_size(), grid.output_size());
    if pixels != in_height * in_width || channels != from {
        bail!("a 3x3 convolution {from} -> {to} on {in_height}x{in_width} pixels got {:?}", layout.shape())
    }
    Ok((floats(storage, layout)?, (batch, height * width, to).into()))
}
