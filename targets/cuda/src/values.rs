//! Activations on the device as the kernels take them, see `kernels/values.cuh`.

use crate::kernels::{self, CudaFunc, Module};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::f16;

/// A type of activations.
pub(crate) trait Value: CudaDType + DeviceRepr {
    /// In the kernels' names.
    const NAME: &'static str;
    /// How many of them are 16 bytes, which a thread takes at a time where they lie so.
    const WIDTH: usize;
}

impl Value for f32 {
    const NAME: &'static str = "f32";
    const WIDTH: usize = 4;
}

impl Value for f16 {
    const NAME: &'static str = "f16";
    const WIDTH: usize = 8;
}

/// Calls a function with the type of the activations.
macro_rules! with_type {
    ($storage:expr, $op:expr, $T:ident => $call:expr) => {
        match candle_core::backend::BackendStorage::dtype($storage) {
            candle_core::DType::F32 => {
                type $T = f32;
                $call
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $call
            }
            other => candle_core::bail!("{} on CUDA takes f32 or f16, got {other:?}; convert it first", $op),
        }
    };
}
pub(crate) use with_type;

/// The numbers of an argument without gaps.
pub(crate) fn contiguous<'a, T: Value>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("this op takes contiguous tensors, got strides {:?}", layout.stride())
    };
    if start == end {
        bail!("this op takes at least one number, got {:?}", layout.shape())
    }
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// Runs `read` on the f32 numbers of a frozen weight and on whether they lie in line with 16 bytes.
pub(crate) fn with_floats<R>(weight: &Tensor, read: impl FnOnce(&CudaView<'_, f32>, bool) -> Result<R>) -> Result<R> {
    let (storage, layout) = weight.storage_and_layout();
    let Storage::Cuda(cuda) = &*storage else { bail!("the weight of a CUDA op must be on its device") };
    if cuda.dtype() != DType::F32 {
        bail!("the weight of a norm must be f32, got {:?}", cuda.dtype())
    }
    read(&contiguous(cuda, layout)?, layout.start_offset().is_multiple_of(f32::WIDTH))
}

/// Numbers that nobody has written yet.
pub(crate) fn unwritten<T: Value>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: all numbers are plain; whoever asks for them launches a kernel that writes all of them before one that reads
    // any, on the device's only stream.
    unsafe { device.alloc(len) }
}

/// How many numbers a thread takes at a time: a pack where `rows`, the numbers from one row to the next, and the `starts`
/// of all arguments allow it.
pub(crate) fn width<T: Value>(row: usize, starts: &[usize]) -> usize {
    match row.is_multiple_of(T::WIDTH) && starts.iter().all(|start| start.is_multiple_of(T::WIDTH)) {
        true => T::WIDTH,
        false => 1,
    }
}

/// The kernel for a type of activations and so many of them at a time.
pub(crate) fn kernel<T: Value>(device: &CudaDevice, module: Module, name: &str, width: usize) -> Result<CudaFunc> {
    kernels::function(device, module, &format!("{name}_{}x{width}", T::NAME))
}

/// A size as the kernels count.
pub(crate) fn size(size: usize) -> Result<u32> {
    // half of what there is, so that no kernel's sum of two sizes overflows
    match u32::try_from(size) {
        Ok(small) if small <= u32::MAX / 2 => Ok(small),
        _ => bail!("{size} is more than the GPU's kernels count"),
    }
}

/// What the CPU side of every op here says.
pub(crate) fn not_on_the_cpu(op: &str) -> Result<(CpuStorage, Shape)> {
    bail!("{op} of the CUDA target got a tensor in main memory; move it to the device")
}
