//! A frozen linear layer (and so a 1x1 convolution).

use crate::gemm::{Activation, Gather};
use crate::layer::{Layer, contiguous};
use crate::weight::{Direction, Weight};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::f16;
use std::sync::Arc;

/// `y = x W^T + b`, `x: [.., in]`, `W: [out, in]`, `b: [out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Arc<Weight>,
    /// `[out]`, f32.
    pub bias: Option<Tensor>,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("this linear layer's weight is on a GPU and its input is not: move the input there")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        pass(&self.weight, Direction::Forward, self.bias.as_ref(), storage, layout)
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&LinearBackward(&self.weight))?))
    }
}

/// `dx = dy W`.
struct LinearBackward<'a>(&'a Weight);

impl CustomOp1 for LinearBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-linear-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("this linear layer's weight is on a GPU and the gradient is not: move the gradient there")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        pass(self.0, Direction::Backward, None, storage, layout)
    }
}

fn pass(
    weight: &Weight,
    direction: Direction,
    bias: Option<&Tensor>,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (width, out) = match direction {
        Direction::Forward => (weight.inputs(), weight.outputs()),
        Direction::Backward => (weight.outputs(), weight.inputs()),
    };
    let mut dims = layout.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == width => *last = out,
        _ => bail!("a linear layer for {width} features got {:?}", layout.shape()),
    }
    weight.check(&storage.device, weight.inputs())?;
    let y = match storage.dtype() {
        DType::F16 => rows::<f16>(weight, direction, bias, storage, layout, (width, out))?,
        DType::F32 => rows::<f32>(weight, direction, bias, storage, layout, (width, out))?,
        other => bail!("a linear layer takes f16 or f32 numbers, got {other:?}"),
    };
    Ok((y, dims.into()))
}

fn rows<T: Activation>(
    weight: &Weight,
    direction: Direction,
    bias: Option<&Tensor>,
    storage: &CudaStorage,
    layout: &Layout,
    (width, out): (usize, usize),
) -> Result<CudaStorage> {
    let (x, start) = contiguous::<T>(storage, layout)?;
    let m = x.len() / width;
    let layer = Layer { weight, direction, bias, gather: Gather::rows(m, width)?, m, n: out };
    let y = layer.pass(&storage.device, x, start)?;
    Ok(T::wrap_cuda_slice(y, storage.device.clone()))
}
