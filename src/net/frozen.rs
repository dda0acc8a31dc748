//! The frozen weight of a product, brought to where the network runs.

use crate::Result;
use crate::bundle::weights::{LayerWeight, Names};
#[cfg(any(feature = "cuda", feature = "metal"))]
use std::sync::Arc;

/// A weight `[outputs, inputs]` on its target.
#[derive(Debug, Clone)]
pub(super) enum Frozen {
    /// In main memory, where it lies, as it is stored.
    Cpu(LayerWeight),
    /// In an NVIDIA GPU's memory.
    #[cfg(feature = "cuda")]
    Cuda(Arc<pleinair_cuda::Weight>),
    /// In a buffer that an Apple GPU reads.
    #[cfg(feature = "metal")]
    Metal(Arc<pleinair_metal::Weight>),
}

/// Brings a weight to the GPU of `$names`: f32 and bf16 as the numbers it is computed in there, f16 and int8 as stored.
/// `$upload` takes a device, outputs, inputs, values, and the file that these lie in if they lie in one.
#[cfg(any(feature = "cuda", feature = "metal"))]
macro_rules! placed {
    ($target:ident, $names:expr, $weight:expr, $upload:expr) => {{
        use candle_core::DType;
        use half::f16;
        use pleinair_cpu::Values as Stored;
        use $target::Values;

        let (target, weight) = ($names.target(), $weight.weight());
        let (outputs, inputs) = (weight.outputs(), weight.inputs());
        let upload = |values: Values<'_>, file| $upload(target.device(), outputs, inputs, values, file);
        Arc::new(match weight.values() {
            Stored::F16(values) => upload(Values::F16(values), values.file()),
            Stored::Int8(int8) => {
                let rows = int8.rows(outputs, inputs);
                let values = Values::Int8 { rows: &rows, scales: &int8.scales, smooth: int8.smooth.as_deref() };
                upload(values, int8.values.file())
            }
            Stored::F32(_) | Stored::Bf16(_) => match target.numbers() {
                DType::F32 => upload(Values::F32(&weight.to_f32()), None),
                _ => {
                    let halves: Vec<_> = weight.to_f32().iter().map(|&w| f16::from_f32(w)).collect();
                    upload(Values::F16(&halves), None)
                }
            },
        }?)
    }};
}

#[cfg(any(feature = "cuda", feature = "metal"))]
type File<'a> = Option<&'a Arc<pleinair_cpu::MappedFile>>;

#[cfg(feature = "cuda")]
fn to_cuda(names: &Names, weight: &LayerWeight) -> Result<Arc<pleinair_cuda::Weight>> {
    use pleinair_cuda::Weight;
    Ok(placed!(pleinair_cuda, names, weight, |device, outputs, inputs, values, _: File<'_>| {
        Weight::new(device, outputs, inputs, values)
    }))
}

/// Processor and GPU share memory: what lies mapped is used where it lies.
#[cfg(feature = "metal")]
fn to_metal(names: &Names, weight: &LayerWeight) -> Result<Arc<pleinair_metal::Weight>> {
    use pleinair_metal::Weight;
    Ok(placed!(pleinair_metal, names, weight, |device, outputs, inputs, values, file: File<'_>| match file {
        Some(file) => Weight::mapped(device, outputs, inputs, values, file),
        None => Weight::new(device, outputs, inputs, values),
    }))
}

impl Frozen {
    /// `weight`, which `names` gave, on the target of `names`.
    pub(super) fn place(names: &Names, weight: LayerWeight) -> Result<Self> {
        Ok(match names.target().device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => Frozen::Cuda(to_cuda(names, &weight)?),
            #[cfg(feature = "metal")]
            candle_core::Device::Metal(_) => Frozen::Metal(to_metal(names, &weight)?),
            _ => Frozen::Cpu(weight),
        })
    }
}
