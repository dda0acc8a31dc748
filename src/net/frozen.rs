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

/// Brings a weight to the GPU of `$target`: f32 and bf16 as the numbers it is computed in there, f16 and int8 as stored.
#[cfg(any(feature = "cuda", feature = "metal"))]
macro_rules! upload {
    ($target:ident, $names:expr, $weight:expr) => {{
        use candle_core::DType;
        use half::f16;
        use pleinair_cpu::Values as Stored;
        use $target::{Values, Weight};

        let (target, weight) = ($names.target(), $weight.weight());
        let (outputs, inputs) = (weight.outputs(), weight.inputs());
        let upload = |values: Values<'_>| Weight::new(target.device(), outputs, inputs, values);
        Arc::new(match weight.values() {
            Stored::F16(values) => upload(Values::F16(values)),
            Stored::Int8(int8) => {
                let rows = int8.rows(outputs, inputs);
                upload(Values::Int8 { rows: &rows, scales: &int8.scales, smooth: int8.smooth.as_deref() })
            }
            Stored::F32(_) | Stored::Bf16(_) => match target.numbers() {
                DType::F32 => upload(Values::F32(&weight.to_f32())),
                _ => upload(Values::F16(&weight.to_f32().iter().map(|&w| f16::from_f32(w)).collect::<Vec<_>>())),
            },
        }?)
    }};
}

impl Frozen {
    /// `weight`, which `names` gave, on the target of `names`.
    pub(super) fn place(names: &Names, weight: LayerWeight) -> Result<Self> {
        Ok(match names.target().device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => Frozen::Cuda(upload!(pleinair_cuda, names, weight)),
            #[cfg(feature = "metal")]
            candle_core::Device::Metal(_) => Frozen::Metal(upload!(pleinair_metal, names, weight)),
            _ => Frozen::Cpu(weight),
        })
    }
}
