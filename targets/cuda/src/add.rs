//! The sum of two maps, as a block adds its result to its input.

use crate::kernels::Module;
use crate::values::{Value, contiguous, kernel, not_on_the_cpu, size, unwritten, width, with_type};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// Threads of a block of the pointwise kernels.
pub(crate) const THREADS: u32 = 256;

/// A thread for each of so many packs.
pub(crate) fn one_each(packs: usize) -> Result<LaunchConfig> {
    let blocks = size(packs)?.div_ceil(THREADS);
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 })
}

/// `a + b`, both of one shape and type (f32 or f16) and without gaps.
#[derive(Debug, Clone, Copy)]
pub struct Add;

impl Add {
    fn forward<T: Value>(a: &CudaStorage, al: &Layout, b: &CudaStorage, bl: &Layout) -> Result<CudaStorage> {
        let device = a.device();
        let (left, right) = (contiguous::<T>(a, al)?, contiguous::<T>(b, bl)?);
        let width = width::<T>(left.len(), &[al.start_offset(), bl.start_offset()]);
        let packs = left.len() / width;
        let mut y = unwritten::<T>(device, left.len())?;
        let count = size(packs)?;
        let add = kernel::<T>(device, Module::Pointwise, "add", width)?;
        let mut launch = add.builder();
        launch.arg(&left).arg(&right).arg(&mut y).arg(&count);
        // SAFETY: the kernel's arguments; all three have so many packs in line.
        unsafe { launch.launch(one_each(packs)?) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    }
}

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, a: &CudaStorage, al: &Layout, b: &CudaStorage, bl: &Layout) -> Result<(CudaStorage, Shape)> {
        if al.shape() != bl.shape() || a.dtype() != b.dtype() {
            bail!("a sum of {:?} {:?} and {:?} {:?}", al.shape(), a.dtype(), bl.shape(), b.dtype())
        }
        let y = with_type!(a, "a sum", T => Add::forward::<T>(a, al, b, bl))?;
        Ok((y, al.shape().clone()))
    }

    fn bwd(&self, _a: &Tensor, _b: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}
