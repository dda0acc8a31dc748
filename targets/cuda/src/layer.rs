//! What a linear layer and a convolution have in common: a product with a frozen weight.

use crate::gemm::{Activation, Gather, Gemm, Product, Strides, size};
use crate::weight::{Direction, Weight};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Storage, Tensor, bail};

/// One pass through a weight: `m` rows, which the gather finds in the input, become `m` rows of `n` numbers.
pub(crate) struct Layer<'a> {
    pub(crate) weight: &'a Weight,
    pub(crate) direction: Direction,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) gather: Gather,
    pub(crate) m: usize,
    pub(crate) n: usize,
}

impl Layer<'_> {
    /// `x` begins `start` numbers into its memory.
    pub(crate) fn pass<T: Activation>(
        &self,
        device: &CudaDevice,
        x: CudaView<'_, T>,
        start: usize,
    ) -> Result<CudaSlice<T>> {
        let &Layer { weight, direction, bias, gather, m, n } = self;
        let scaling = weight.scaling(direction);
        let (b_row, forward) = (weight.inputs() as i64, direction == Direction::Forward);
        let taps = (gather.taps_across * gather.taps_across) as usize;
        let guard = bias.map(Tensor::storage_and_layout);
        let bias = match &guard {
            None => None,
            Some((storage, layout)) => Some(bias_view(storage, layout, device, n)?),
        };
        let gemm = Gemm {
            product: Product {
                a: Strides { row: gather.channels.into(), ..Strides::default() },
                b: Strides { row: b_row, ..Strides::default() },
                c: Strides { row: n as i64, ..Strides::default() },
                gather,
                m: size(m)?,
                n: size(n)?,
                k: size(taps * gather.channels as usize)?,
                steps: 0,
                heads: 1,
                a_transposed: 0,
                b_transposed: forward.into(),
                alpha: scaling.unit,
            },
            matrices: 1,
            a: x,
            b: weight.stored(),
            factors: scaling.factors,
            scales: scaling.scales,
            bias,
            aligned: start.is_multiple_of(8) && weight.inputs().is_multiple_of(8),
        };
        // SAFETY: the product writes every number of it.
        let mut y = unsafe { device.alloc::<T>(m * n)? };
        gemm.run(device, &mut y.as_view_mut())?;
        Ok(y)
    }
}

/// The numbers of a contiguous tensor, and where they begin in its memory.
pub(crate) fn contiguous<'a, T: Activation>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<(CudaView<'a, T>, usize)> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("this op takes contiguous tensors, got strides {:?}", layout.stride())
    };
    Ok((storage.as_cuda_slice::<T>()?.slice(start..end), start))
}

fn bias_view<'a>(
    storage: &'a Storage,
    layout: &Layout,
    device: &CudaDevice,
    outputs: usize,
) -> Result<CudaView<'a, f32>> {
    use candle_core::backend::BackendDevice;
    let Storage::Cuda(storage) = storage else { bail!("the bias of a frozen layer is not on the GPU: move it there") };
    if !storage.device.same_device(device) {
        bail!("a frozen layer got an input on another device than its bias: open one device for both")
    }
    let (bias, _) = contiguous::<f32>(storage, layout)?;
    match bias.len() == outputs {
        true => Ok(bias),
        false => bail!("a frozen layer for {outputs} features got {} biases", bias.len()),
    }
}
