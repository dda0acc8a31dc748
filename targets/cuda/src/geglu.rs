//! GEGLU, arXiv 2002.05202: the first half of the channels times the exact GELU of the second.

use crate::add::one_each;
use crate::kernels::Module;
use crate::values::{Value, contiguous, kernel, not_on_the_cpu, size, unwritten, width, with_type};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `[.., 2C] -> [.., C]`, f32 or f16; computed in f32.
#[derive(Debug, Clone, Copy)]
pub struct Geglu;

/// C, from a last dimension of 2C.
fn channels(layout: &Layout) -> Result<usize> {
    match layout.dims().last() {
        Some(&last) if last > 0 && last % 2 == 0 => Ok(last / 2),
        _ => bail!("GEGLU takes an even number of channels, got {:?}", layout.shape()),
    }
}

impl Geglu {
    fn forward<T: Value>(storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        let (device, c) = (storage.device(), channels(layout)?);
        let x = contiguous::<T>(storage, layout)?;
        let width = width::<T>(c, &[layout.start_offset()]);
        let packs = x.len() / 2 / width;
        let mut y = unwritten::<T>(device, x.len() / 2)?;
        let (count, channels) = (size(packs)?, size(c)?);
        let geglu = kernel::<T>(device, Module::Pointwise, "geglu", width)?;
        let mut launch = geglu.builder();
        launch.arg(&x).arg(&mut y).arg(&count).arg(&channels);
        // SAFETY: the kernel's arguments; rows are whole, and `y` has so many packs, `x` twice as many, in line.
        unsafe { launch.launch(one_each(packs)?) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    }
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let c = channels(layout)?;
        let y = with_type!(storage, "GEGLU", T => Geglu::forward::<T>(storage, layout))?;
        *dims.last_mut().expect("checked by channels()") = c;
        Ok((y, dims.into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GegluBackward)?))
    }
}

/// The gradient of GEGLU's input, from the input and the gradient of the result.
struct GegluBackward;

impl GegluBackward {
    fn gradient<T: Value>(xs: &CudaStorage, xl: &Layout, gs: &CudaStorage, gl: &Layout) -> Result<CudaStorage> {
        let (device, c) = (xs.device(), channels(xl)?);
        let (x, dy) = (contiguous::<T>(xs, xl)?, contiguous::<T>(gs, gl)?);
        if 2 * dy.len() != x.len() {
            bail!("a gradient of {:?} for {:?}", gl.shape(), xl.shape())
        }
        let width = width::<T>(c, &[xl.start_offset(), gl.start_offset()]);
        let packs = dy.len() / width;
        let mut dx = unwritten::<T>(device, x.len())?;
        let (count, channels) = (size(packs)?, size(c)?);
        let backward = kernel::<T>(device, Module::Pointwise, "geglu_backward", width)?;
        let mut launch = backward.builder();
        launch.arg(&x).arg(&dy).arg(&mut dx).arg(&count).arg(&channels);
        // SAFETY: the kernel's arguments; rows are whole, `dy` has so many packs, `x` and `dx` twice as many, in line.
        unsafe { launch.launch(one_each(packs)?) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(dx, device.clone()))
    }
}

impl CustomOp2 for GegluBackward {
    fn name(&self) -> &'static str {
        "geglu-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, xs: &CudaStorage, xl: &Layout, gs: &CudaStorage, gl: &Layout) -> Result<(CudaStorage, Shape)> {
        let dx = with_type!(xs, "GEGLU", T => GegluBackward::gradient::<T>(xs, xl, gs, gl))?;
        Ok((dx, xl.shape().clone()))
    }
}
