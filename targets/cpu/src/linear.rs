//! A frozen linear layer (and so a 1x1 convolution).

use crate::int8::{Rows, matmul as matmul_int8, quantize_rows};
use crate::matrix::{ALL_CORES, Into, Mat, matmul};
use crate::weight::Int8Product;
use crate::{Weight, floats, output, with_weight};
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
        if let Some(int8) = self.weight.int8()? {
            return Ok(output(self.int8_forward(x, m, &int8)?, shape));
        }
        let mut y = Vec::with_capacity(m * n);
        let into = match &self.bias {
            Some(bias) => with_weight(bias, |b| {
                (0..m).for_each(|_| y.extend_from_slice(b));
                Ok(Into::Add)
            })?,
            None => {
                y.resize(m * n, 0.0);
                Into::Overwrite
            }
        };
        let w = self.weight.to_f32();
        matmul(&mut y, n, into, 1.0, Mat::rows(x, m, k, k), Mat::rows(&w, n, k, k).t(), ALL_CORES);
        Ok(output(y, shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&LinearBackward(&self.weight))?))
    }
}

impl Linear {
    /// Each row of the input with a scale of its own.
    fn int8_forward(&self, x: &[f32], m: usize, w: &Int8Product<'_>) -> Result<Vec<f32>> {
        let (n, k) = (self.weight.outputs(), self.weight.inputs());
        let (mut values, mut scales, mut y) = (vec![0; m * k], vec![0.0; m], vec![0.0; m * n]);
        quantize_rows(w.isa, x, w.reciprocals, &mut values, &mut scales);
        let rows = Rows { values: &values, stride: k, scales: &scales };
        match &self.bias {
            Some(bias) => with_weight(bias, |bias| {
                if bias.len() != n {
                    bail!("a linear layer for {n} features got {} biases", bias.len())
                }
                matmul_int8(w.isa, rows, w.weight, Some(bias), &mut y);
                Ok(())
            })?,
            None => matmul_int8(w.isa, rows, w.weight, None, &mut y),
        }
        Ok(y)
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
        let (dy, m, shape) = rows(storage, layout, n, k)?;
        let mut dx = vec![0.0; m * k];
        let w = self.0.to_f32();
        matmul(&mut dx, k, Into::Overwrite, 1.0, Mat::rows(dy, m, n, n), Mat::rows(&w, n, k, k), ALL_CORES);
        Ok(output(dx, shape))
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
