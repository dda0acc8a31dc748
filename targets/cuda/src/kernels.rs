//! The kernels of `kernels/*.cu`, one PTX module each, made by the build script; a module is loaded when its first function is
//! asked for.

use candle_core::cuda::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaStream, LaunchArgs};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{Error, Result};
use std::sync::Arc;

mod modules {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
pub(crate) use modules::{BUILT_WITH, COMPILED_FOR};

/// What a block may have of shared memory without asking, in bytes.
const SHARED_BYTES: usize = 48 * 1024;

/// A file of `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Module {
    /// `attention.cu`: attention with scores that never leave the registers.
    Attention,
    /// `attention_backward.cu`: its gradients.
    AttentionBackward,
    /// `gemm.cu`: products of matrices.
    Gemm,
    /// `norm.cu`: GroupNorm and LayerNorm.
    Norm,
    /// `pointwise.cu`: numbers that have no neighbours.
    Pointwise,
    /// `scores.cu`: attention with scores in memory.
    Scores,
    /// `ptx_test.cu`: the functions of `ptx.cuh` by themselves.
    PtxTest,
}

impl Module {
    /// The name under which candle keeps the loaded module, and its PTX.
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Module::Attention => ("pleinair-attention", modules::ATTENTION),
            Module::AttentionBackward => ("pleinair-attention-backward", modules::ATTENTION_BACKWARD),
            Module::Gemm => ("pleinair-gemm", modules::GEMM),
            Module::Norm => ("pleinair-norm", modules::NORM),
            Module::Pointwise => ("pleinair-pointwise", modules::POINTWISE),
            Module::Scores => ("pleinair-scores", modules::SCORES),
            Module::PtxTest => ("pleinair-ptx-test", modules::PTX_TEST),
        }
    }
}

/// A kernel and the device's stream.
pub(crate) struct CudaFunc {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl CudaFunc {
    /// A launch on the device's stream, to be given its arguments one by one.
    pub(crate) fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }

    /// Lets a block have `bytes` of dynamic shared memory at launch.
    ///
    /// # Errors
    /// The GPU has less (99 KiB on sm_86 and sm_89, 163 on sm_87, 227 on sm_90).
    pub(crate) fn allow_shared_memory(&self, bytes: usize) -> Result<()> {
        if bytes <= SHARED_BYTES {
            return Ok(());
        }
        let asked = i32::try_from(bytes).map_err(Error::wrap)?;
        let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.function
            .set_attribute(limit, asked)
            .w()
            .map_err(|e: Error| e.context(format!("a block of this GPU may not have {bytes} bytes of shared memory")))
    }
}

/// The kernel `name` of `module`.
///
/// # Errors
/// The module does not load (PTX for a newer GPU or driver) or has no such kernel.
pub(crate) fn function(device: &CudaDevice, module: Module, name: &str) -> Result<CudaFunc> {
    let (module, ptx) = module.source();
    let function = device.get_or_load_custom_func(name, module, ptx);
    let function = function.map_err(|e| e.context(format!("CUDA kernel {name} of {module}")))?;
    Ok(CudaFunc { function: function.into_cuda_function(), stream: device.cuda_stream() })
}
