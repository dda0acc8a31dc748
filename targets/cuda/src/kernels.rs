//! The kernels of `kernels/*.cu`, one PTX module each, made by the build script; a module is loaded when its first function is
//! asked for.

use candle_core::Result;
use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaStream, LaunchArgs};
use std::sync::Arc;

mod modules {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
pub(crate) use modules::{BUILT_WITH, COMPILED_FOR};

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
