//! The first NVIDIA GPU as a candle device.

use crate::kernels::{self, BUILT_WITH, COMPILED_FOR, Module};
use candle_core::cuda::cudarc::driver::{CudaContext, DriverError, result, sys};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{Device, Error};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The first GPU, with one stream of its own on which everything is launched. Tensors do not track their uses with events:
/// there is no second stream to wait for, and a graph could not be captured with them.
///
/// # Errors
/// One sentence that says what is missing: CUDA's libraries, a GPU, a GPU or a driver new enough for this program's kernels.
pub fn open() -> Result<Device, String> {
    // a library without a function that it should have makes the bindings panic
    catch_unwind(AssertUnwindSafe(open_first)).unwrap_or_else(|_| {
        Err("CUDA's libraries here do not have all that this program needs: install the CUDA it was built for"
            .to_string())
    })
}

fn open_first() -> Result<Device, String> {
    missing_library()?;
    check_driver()?;
    let count = CudaContext::device_count().map_err(|e| no_driver(&e))?;
    if count < 1 {
        return Err(NO_GPU.to_string());
    }
    let failed = |e: &dyn std::fmt::Display| format!("the NVIDIA GPU cannot be opened: {e}");
    let capability = CudaContext::new(0).and_then(|context| context.compute_capability()).map_err(|e| failed(&e))?;
    check_capability(capability)?;
    let device = CudaDevice::new_with_stream(0).map_err(|e| failed(&e))?;
    keep_freed_memory(device.cuda_stream().context()).map_err(|e| failed(&e))?;
    // SAFETY: every tensor of this device is made, used and freed in the order of its one stream.
    unsafe { device.disable_event_tracking() };
    kernels::function(&device, Module::PtxTest, "multiply").map_err(|e| unloadable(&e))?;
    Ok(Device::Cuda(device))
}

/// Has freed memory stay with the process. Else the driver gives it back whenever the program waits for the GPU, which is
/// once a step, to take it again for the next.
fn keep_freed_memory(context: &CudaContext) -> std::result::Result<(), DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut everything = u64::MAX;
    // SAFETY: the context is of that device, and the attribute is a 64-bit number, which is copied.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut everything).cast())
    }
}

/// Gives what the process has freed back to the driver. Graphs take their memory from another pool, which does not find it
/// in this one.
pub(crate) fn give_back_freed_memory(device: &CudaDevice) -> candle_core::Result<()> {
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    // SAFETY: the pool is of the context's device.
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device()).w()?;
        result::mem_pool::trim_to(pool, 0).w()
    }
}

/// The same with what graphs have used and no launch of them is using.
pub(crate) fn give_back_memory_of_graphs(device: &CudaDevice) -> candle_core::Result<()> {
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    // SAFETY: the device is the context's.
    unsafe { sys::cuDeviceGraphMemTrim(stream.context().cu_device()) }.result().w()
}

const NO_GPU: &str = "there is no NVIDIA GPU here that its driver can use";
const OLD_DRIVER: &str = "the NVIDIA driver is older than the CUDA that this program was built with: update the driver";

/// Where CUDA is loaded at run time a library that is not there would make the bindings panic.
#[cfg(feature = "dynamic-loading")]
fn missing_library() -> Result<(), String> {
    use candle_core::cuda::cudarc::{cublas, curand};
    // SAFETY: loading these libraries runs their initialisers, which is what using them does anyway.
    let present = unsafe {
        [
            ("driver (libcuda.so.1)", sys::is_culib_present()),
            ("cuBLAS (libcublas)", cublas::sys::is_culib_present()),
            ("cuRAND (libcurand)", curand::sys::is_culib_present()),
        ]
    };
    match present.iter().find(|(_, present)| !present) {
        Some((name, _)) => {
            Err(format!("NVIDIA's {name} is not here: install it, or name its folder in LD_LIBRARY_PATH"))
        }
        None => Ok(()),
    }
}

/// Linked libraries are there, or the program would not have started.
#[cfg(not(feature = "dynamic-loading"))]
fn missing_library() -> Result<(), String> {
    Ok(())
}

/// A driver of the major version that the bindings were made for, at least: an older one lacks functions.
fn check_driver() -> Result<(), String> {
    let mut version = 0;
    // SAFETY: the driver writes one number.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) };
    if asked == sys::CUresult::CUDA_SUCCESS && version / 1000 < BUILT_WITH {
        Err(OLD_DRIVER.to_string())
    } else {
        Ok(())
    }
}

fn no_driver(error: &DriverError) -> String {
    match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => NO_GPU.to_string(),
        _ => format!("the NVIDIA driver does not start: {error:?}"),
    }
}

/// PTX runs on every later GPU, except what candle compiles for 9.0 and later: that is for one capability alone.
fn check_capability((major, minor): (i32, i32)) -> Result<(), String> {
    let of_gpu = u32::try_from(10 * major + minor).unwrap_or(0);
    let wanted = format!("{}.{}", COMPILED_FOR / 10, COMPILED_FOR % 10);
    if of_gpu < COMPILED_FOR || (COMPILED_FOR >= 90 && of_gpu != COMPILED_FOR) {
        return Err(format!(
            "this program's kernels are for compute capability {wanted} and this GPU has {major}.{minor}: \
             build it with CUDA_COMPUTE_CAP={of_gpu}"
        ));
    }
    Ok(())
}

fn unloadable(error: &Error) -> String {
    // candle may have appended a backtrace
    let text = error.to_string();
    let text = text.lines().take_while(|line| !line.trim_start().starts_with("0: ")).collect::<Vec<_>>().join(": ");
    if text.contains("UNSUPPORTED_PTX_VERSION") {
        return "the NVIDIA driver is older than the CUDA that this program was built with: update the driver"
            .to_string();
    }
    format!("the GPU does not take this program's kernels: {text}")
}
