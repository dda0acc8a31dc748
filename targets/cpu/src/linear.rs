//! A frozen linear layer (and so a 1x1 convolution).

use crate::int8::{Rows, matmul as matmul_int8, quantize_rows};
use crate::weight::Int8Product;
use crate::{Weight, floats, output, wide, with_weight};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// `y = x W^T + b`, `x: [.., in]`, `W: [out, in]`, `b: [out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Arc<Weight>,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, k) = (self.weight.outputs(), self.weight.inputs());
        let (x, m, shape) = rows(storage, layout, k, n)?;
        check_smoothing(&self.weight)?;
        let forward = |bias: Option<&[f32]>| {
            if bias.is_some_and(|bias| bias.len() != n) {
                bail!("a linear layer for {n} features got another number of biases")
            }
            Ok(match self.weight.int8()? {
                Some(int8) => int8_forward(x, m, &int8, bias),
                None => wide::forward(&self.weight, wide::Rows::new(x, k), bias),
            })
        };
        let y = match &self.bias {
            Some(bias) => with_weight(bias, |bias| forward(Some(bias)))?,
            None => forward(None)?,
        };
        Ok(output(y, shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&LinearBackward(&self.weight))?))
    }
}

/// Each row of the input with a scale of its own.
fn int8_forward(x: &[f32], m: usize, w: &Int8Product<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let (n, k) = (w.weight.outputs(), w.weight.inputs());
    let (mut values, mut scales, mut y) = (vec![0; m * k], vec![0.0; m], vec![0.0; m * n]);
    quantize_rows(w.isa, x, w.reciprocals, &mut values, &mut scales);
    matmul_int8(w.isa, Rows { values: &values, stride: k, scales: &scales }, w.weight, bias, &mut y);
    y
}

fn check_smoothing(weight: &Weight) -> Result<()> {
    match weight.fits_channels(weight.inputs()) {
        true => Ok(()),
        false => bail!("a linear layer for {} features has a weight smoothed for others", weight.inputs()),
    }
}

/// `dx = dy W`.
struct LinearBackward<'a>(&'a Weight);

impl CustomOp1 for LinearBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-linear-backward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, k) = (self.0.outputs(), self.0.inputs());
        let (dy, _, shape) = rows(storage, layout, n, k)?;
        check_smoothing(self.0)?;
        Ok(output(wide::backward(self.0, 1, wide::Rows::new(dy, n)), shape))
    }
}

/// The argument as `m` rows of `width`, and the result's shape with rows of `out`.
fn rows<'a>(storage: &'a CpuStorage, layout: &Layout, width: usize, out: usize) -> Result<(&'a [f32], usize, Shape)> {
    let mut dims = layout.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == width => *last = out,
        _ => bail!("a linear layer for {width} features got {:?}", layout.shape()),
    }
    let x = floats(storage, layout)?;
    Ok((x, x.len() / width, dims.into()))
}
