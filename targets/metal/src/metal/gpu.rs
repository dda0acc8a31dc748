//! Metal as the machine of the plans: our kernels and candle's (MLX's) on candle's command encoder, which orders what works
//! on the same buffers and lets the rest run side by side.

use super::pipelines;
use crate::gemm::{self, Constants, Gemm};
use crate::machine::{Call, FusedAttention, Kind, Machine, Matrix, Product, Strided, THREADGROUP};
use candle_core::{DType, Error, MetalDevice, Result, bail};
use candle_metal_kernels::metal::{
    Buffer, ComputeCommandEncoder, ComputePipeline, ConstantValues, MetalDeviceType, Value,
};
use candle_metal_kernels::source::Source;
use candle_metal_kernels::{SdpaDType, call_sdpa_full};
use objc2_metal::MTLSize;
use std::sync::Arc;

/// A device that candle has opened.
pub(crate) struct Gpu<'a>(pub(crate) &'a MetalDevice);

fn group(width: usize, height: usize, depth: usize) -> MTLSize {
    MTLSize { width, height, depth }
}

impl Gpu<'_> {
    /// Fails where the products' kernels do not compile.
    pub(crate) fn probe(&self, kind: Kind) -> Result<()> {
        self.product_pipeline(gemm::pipeline(kind, gemm::LINEAR, (false, true), (64, 32, 32))).map(drop)
    }

    fn product_pipeline(&self, (name, constants): (String, Constants)) -> Result<ComputePipeline> {
        let constants = constants.map(|(index, value)| (index, Value::Bool(value)));
        let constants = Some(ConstantValues::new(Vec::from(constants)));
        let kernels = self.0.kernels();
        kernels.load_pipeline_with_constants(self.0.metal_device(), Source::Gemm, name, constants).map_err(Error::wrap)
    }
}

/// What a kernel's constant structure or array is made of.
fn set_plain<T>(encoder: &ComputeCommandEncoder, index: usize, values: &[T]) {
    encoder.set_bytes_directly(index, size_of_val(values), values.as_ptr().cast());
}

impl Machine for Gpu<'_> {
    type Memory = Buffer;

    fn temporary(&self, bytes: usize) -> Result<Arc<Buffer>> {
        self.0.new_buffer_builder().with_size_for(bytes.max(1), DType::U8).build()
    }

    fn run(&self, call: Call<'_, Buffer>) -> Result<()> {
        let pipeline = pipelines::pipeline(self.0, call.kind, call.kernel)?;
        let guard = self.0.command_encoder()?;
        let encoder: &ComputeCommandEncoder = guard.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        for (i, place) in call.reads.iter().enumerate() {
            encoder.set_input_buffer(i, Some(place.memory), place.offset);
        }
        for (i, place) in call.writes.iter().enumerate() {
            encoder.set_output_buffer(call.reads.len() + i, Some(place.memory), place.offset);
        }
        set_plain(encoder, call.reads.len() + call.writes.len(), call.parameters);
        let groups = call.threads.div_ceil(THREADGROUP);
        encoder.dispatch_thread_groups(group(groups, 1, 1), group(THREADGROUP, 1, 1));
        Ok(())
    }

    fn multiply(&self, product: Product<'_, Buffer>) -> Result<()> {
        let device = self.0.metal_device().device_type();
        let small = matches!(device, MetalDeviceType::Phone | MetalDeviceType::BasePro);
        let gemm = Gemm::new(&product, small)?;
        let pipeline = self.product_pipeline((gemm.name, gemm.constants))?;
        let Product { batch, a, b, d, .. } = &product;
        let guard = self.0.command_encoder()?;
        let encoder: &ComputeCommandEncoder = guard.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        let read = |i, matrix: &Matrix<'_, Buffer>| {
            encoder.set_input_buffer(i, Some(matrix.place.memory), matrix.place.offset);
        };
        read(0, a);
        read(1, b);
        encoder.set_output_buffer(3, Some(d.place.memory), d.place.offset);
        encoder.set_bytes(4, &gemm.params);
        // declared, if not read, without a batch of another kind
        set_plain(encoder, 6, &[1i32]);
        set_plain(encoder, 7, &[a.batch_stride, b.batch_stride]);
        let [x, y] = gemm.threadgroups;
        let [simd, across, down] = gemm.threads;
        encoder.dispatch_thread_groups(group(x, y, *batch), group(simd, across, down));
        Ok(())
    }

    fn attend(&self, f: FusedAttention<'_, Buffer>) -> Result<()> {
        if f.y.place.offset != 0 {
            bail!("the fused attention writes to a buffer's start only")
        }
        let shape = |rows| [f.batch, f.heads, rows, f.per_head];
        let offset = |x: &Strided<'_, Buffer>| x.place.offset;
        call_sdpa_full(
            self.0.metal_device(),
            &self.0.command_encoder()?,
            self.0.kernels(),
            offset(&f.q),
            &shape(f.queries),
            &f.q.strides,
            f.q.place.memory,
            offset(&f.k),
            &shape(f.keys),
            &f.k.strides,
            f.k.place.memory,
            offset(&f.v),
            f.v.place.memory,
            &f.v.strides,
            None,
            None,
            None,
            f.y.place.memory,
            &f.y.strides,
            f.scale,
            false,
            SdpaDType::F16,
        )
        .map_err(Error::wrap)
    }
}
