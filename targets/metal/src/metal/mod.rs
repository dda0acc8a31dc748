//! The ops on candle's Metal tensors.

mod attention;
mod conv;
mod gpu;
mod linear;
mod norm;
mod pipelines;
mod pointwise;
mod weight;

pub use attention::Attention;
pub use conv::Conv3x3;
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
pub use pointwise::{Add, Geglu};
pub use weight::{Values, Weight};

use crate::machine::{Kind, Place};
use crate::plan::Bench;
use candle_core::{CpuStorage, DType, Device, Layout, MetalDevice, MetalStorage, Result, Shape, Storage, Tensor, bail};
use candle_metal_kernels::metal::Buffer;
use gpu::Gpu;
use std::sync::Arc;

/// The first GPU, with our kernels compiled for it.
///
/// # Errors
/// One sentence on why it cannot be used.
pub fn open() -> std::result::Result<Device, String> {
    // candle takes the first of an empty list without looking
    if candle_metal_kernels::metal::Device::all().is_empty() {
        return Err("This machine has no GPU that Metal knows.".to_owned());
    }
    let sentence = |error: candle_core::Error| format!("The GPU cannot be used through Metal: {error}.");
    let device = Device::new_metal(0).map_err(sentence)?;
    let metal = device.as_metal_device().map_err(sentence)?;
    for kind in [Kind::F16, Kind::F32] {
        pipelines::probe(metal, kind).map_err(sentence)?;
        Gpu(metal).probe(kind).map_err(sentence)?;
    }
    Ok(device)
}

/// An op's argument.
struct Argument<'a> {
    storage: &'a MetalStorage,
    layout: &'a Layout,
    kind: Kind,
}

impl<'a> Argument<'a> {
    fn new(storage: &'a MetalStorage, layout: &'a Layout) -> Result<Self> {
        use candle_core::backend::BackendStorage;
        let kind = match storage.dtype() {
            DType::F32 => Kind::F32,
            DType::F16 => Kind::F16,
            other => bail!("this op takes f32 and f16 tensors, got {other:?}"),
        };
        Ok(Argument { storage, layout, kind })
    }

    /// Another argument of the same op, of the same type.
    fn beside(&self, storage: &'a MetalStorage, layout: &'a Layout) -> Result<Self> {
        let other = Argument::new(storage, layout)?;
        if other.kind != self.kind {
            bail!("an op got activations in {:?} and in {:?}", self.kind, other.kind)
        }
        Ok(other)
    }

    fn gpu(&self) -> Gpu<'a> {
        use candle_core::backend::BackendStorage;
        Gpu(self.storage.device())
    }

    /// Where it begins.
    fn place(&self) -> Place<'a, Buffer> {
        Place::start(self.storage.buffer()).after(self.layout.start_offset(), self.kind)
    }

    /// Where it lies; it must be contiguous.
    fn dense(&self) -> Result<Place<'a, Buffer>> {
        match self.layout.is_contiguous() {
            true => Ok(self.place()),
            false => bail!("this op takes contiguous tensors, got strides {:?}", self.layout.stride()),
        }
    }

    /// A new tensor of this one's type, which `compute` writes.
    fn result(
        &self,
        shape: impl Into<Shape>,
        compute: impl FnOnce(Bench<'_, Gpu<'a>>, Place<'_, Buffer>) -> Result<()>,
    ) -> Result<(MetalStorage, Shape)> {
        let (shape, gpu) = (shape.into(), self.gpu());
        let dtype = match self.kind {
            Kind::F32 => DType::F32,
            Kind::F16 => DType::F16,
        };
        let device: &MetalDevice = gpu.0;
        let count = shape.elem_count();
        let buffer: Arc<Buffer> = device.new_buffer_builder().with_size_for(count, dtype).build()?;
        compute(Bench::new(&gpu, self.kind), Place::start(&*buffer))?;
        Ok((MetalStorage::new(buffer, device.clone(), count, dtype), shape))
    }
}

/// Runs `read` on the numbers of a frozen f32 tensor, of which there must be `len`.
fn with_frozen<R>(tensor: &Tensor, len: usize, read: impl FnOnce(Place<'_, Buffer>) -> Result<R>) -> Result<R> {
    if tensor.dtype() != DType::F32 || tensor.elem_count() != len || !tensor.is_contiguous() {
        bail!("a layer of {len} channels has frozen numbers of {:?} {:?}", tensor.dtype(), tensor.shape())
    }
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Metal(metal) => read(Argument::new(metal, layout)?.place()),
        _ => bail!("the frozen numbers of a Metal op must be on that device"),
    }
}

/// What an op says to a tensor that is not on the device.
fn not_here<R>(op: &'static str) -> Result<(R, Shape)> {
    bail!("{op} is a Metal op and got a tensor in main memory")
}

type OnCpu = Result<(CpuStorage, Shape)>;
