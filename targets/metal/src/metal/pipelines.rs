//! Our kernels, compiled once for each device and type of activations.

use crate::kernels;
use crate::machine::{Kind, SIMD, THREADGROUP};
use candle_core::metal_backend::DeviceId;
use candle_core::{Error, MetalDevice, Result, bail};
use candle_metal_kernels::metal::ComputePipeline;
use objc2_metal::{MTLCompileOptions, MTLComputePipelineState};
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

type Pipelines = HashMap<&'static str, ComputePipeline>;

/// Of every device. candle's ops have no place of their own to keep them, as its own kernels' have one in the device.
static COMPILED: OnceLock<Mutex<HashMap<(DeviceId, Kind), Pipelines>>> = OnceLock::new();

/// The kernel called `name` for activations of a type.
///
/// # Errors
/// If Metal cannot compile our kernels, with what it says.
pub(crate) fn pipeline(device: &MetalDevice, kind: Kind, name: &str) -> Result<ComputePipeline> {
    let all = COMPILED.get_or_init(Mutex::default);
    let mut all = all.lock().map_err(|_| Error::msg("another thread failed while it compiled kernels"))?;
    let key = (device.id(), kind);
    if !all.contains_key(&key) {
        all.insert(key, compile(device, kind)?);
    }
    match all.get(&key).and_then(|pipelines| pipelines.get(name)) {
        Some(pipeline) => Ok(pipeline.clone()),
        None => bail!("there is no kernel {name}"),
    }
}

/// Compiles them all.
///
/// # Errors
/// As above.
pub(crate) fn probe(device: &MetalDevice, kind: Kind) -> Result<()> {
    pipeline(device, kind, "add").map(drop)
}

fn compile(device: &MetalDevice, kind: Kind) -> Result<Pipelines> {
    let options = MTLCompileOptions::new();
    // Infinities are computed with: SiLU of a large negative number divides by one. What replaces this setting is not
    // known to macOS 14.
    #[allow(deprecated)]
    options.setFastMathEnabled(false);
    let metal = device.metal_device();
    let library = metal.new_library_with_source(&kernels::source(kind), Some(&options)).map_err(Error::wrap)?;
    let mut pipelines = Pipelines::new();
    for name in kernels::names() {
        let function = library.get_function(name, None).map_err(Error::wrap)?;
        let pipeline = metal.new_compute_pipeline_state_with_function(&function).map_err(Error::wrap)?;
        let (threads, simd) = (pipeline.max_total_threads_per_threadgroup(), pipeline.as_ref().threadExecutionWidth());
        if threads < THREADGROUP || simd != SIMD {
            bail!("it runs {threads} threads of the kernel {name} together, {simd} in a row; Apple silicon has more")
        }
        pipelines.insert(name, pipeline);
    }
    Ok(pipelines)
}
