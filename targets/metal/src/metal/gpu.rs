//! Metal as the machine of the plans: our kernels and candle's (MLX's) on candle's command encoder, which orders what works
//! on the same buffers and lets the rest run side by side.

use super::pipelines;
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

/// What MLX's product is told, with the names and the layout it has there.
#[repr(C)]
#[derive(Debug)]
struct GemmParams {
    m: i32,
    n: i32,
    k: i32,
    lda: i32,
    ldb: i32,
    ldd: i32,
    tiles_n: i32,
    tiles_m: i32,
    batch_stride_a: usize,
    batch_stride_b: usize,
    batch_stride_d: usize,
    swizzle_log: i32,
    gemm_k_iterations_aligned: i32,
    batch_ndim: i32,
}

/// Of MLX's product: rows, columns and depth of a threadgroup's tile, and SIMD groups along rows and columns.
#[derive(Clone, Copy)]
struct TileConfig {
    bm: usize,
    bn: usize,
    bk: usize,
    wm: usize,
    wn: usize,
}

impl TileConfig {
    /// MLX's choice for its middling devices, as candle makes it, without the exceptions.
    fn of(product: &Product<'_, Buffer>, device: MetalDeviceType) -> Self {
        let tile = |bm, bn, bk, wm, wn| TileConfig { bm, bn, bk, wm, wn };
        let (m, n, _) = product.size;
        let small = matches!(device, MetalDeviceType::Phone | MetalDeviceType::BasePro);
        let large_product = product.batch * m * n >= 1 << 20;
        match product.kind {
            _ if m < 16 => tile(32, 32, 16, 2, 2),
            _ if product.b.transposed && !product.a.transposed && (small || !large_product) => tile(64, 32, 32, 2, 2),
            Kind::F16 => tile(64, 64, 16, 1, 2),
            Kind::F32 => tile(64, 64, 16, 2, 2),
        }
    }
}

fn int(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| Error::msg(format!("a matrix of {number} rows or columns is too large")))
}

fn group(width: usize, height: usize, depth: usize) -> MTLSize {
    MTLSize { width, height, depth }
}

impl Gpu<'_> {
    /// Fails where the products' kernels do not compile.
    pub(crate) fn probe(&self, kind: Kind) -> Result<()> {
        let tile = TileConfig { bm: 64, bn: 32, bk: 32, wm: 2, wn: 2 };
        self.product_pipeline(kind, tile, (false, true), (64, 32, 32)).map(drop)
    }

    fn product_pipeline(
        &self,
        kind: Kind,
        tile: TileConfig,
        (a_transposed, b_transposed): (bool, bool),
        (m, n, k): (usize, usize, usize),
    ) -> Result<ComputePipeline> {
        let TileConfig { bm, bn, bk, wm, wn } = tile;
        let turned = |transposed| if transposed { "t" } else { "n" };
        let numbers = match kind {
            Kind::F32 => "f32",
            Kind::F16 => "f16",
        };
        let (a, b) = (turned(a_transposed), turned(b_transposed));
        let name = format!("gemm_{a}{b}_{numbers}_{numbers}_{bm}_{bn}_{bk}_{wm}_{wn}");
        let constants = ConstantValues::new(vec![
            (10, Value::Bool(false)), // has_batch: false, one stride for each matrix says where the next lies
            (100, Value::Bool(false)), // use_out_source
            (110, Value::Bool(false)), // do_axpby
            (200, Value::Bool(m.is_multiple_of(bm))),
            (201, Value::Bool(n.is_multiple_of(bn))),
            (202, Value::Bool(k.is_multiple_of(bk))),
            (300, Value::Bool(false)), // do_gather
        ]);
        let kernels = self.0.kernels();
        kernels
            .load_pipeline_with_constants(self.0.metal_device(), Source::Gemm, name, Some(constants))
            .map_err(Error::wrap)
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
        let Product { kind, batch, size: (m, n, k), a, b, d } = &product;
        let (kind, batch, m, n, k) = (*kind, *batch, *m, *n, *k);
        let tile = TileConfig::of(&product, self.0.metal_device().device_type());
        let pipeline = self.product_pipeline(kind, tile, (a.transposed, b.transposed), (m, n, k))?;
        let (tiles_m, tiles_n) = (m.div_ceil(tile.bm), n.div_ceil(tile.bn));
        let params = GemmParams {
            m: int(m)?,
            n: int(n)?,
            k: int(k)?,
            lda: int(a.stride)?,
            ldb: int(b.stride)?,
            ldd: int(d.stride)?,
            tiles_n: int(tiles_n)?,
            tiles_m: int(tiles_m)?,
            batch_stride_a: a.batch_stride,
            batch_stride_b: b.batch_stride,
            batch_stride_d: d.batch_stride,
            swizzle_log: 0,
            gemm_k_iterations_aligned: int(k / tile.bk)?,
            batch_ndim: 1,
        };
        let guard = self.0.command_encoder()?;
        let encoder: &ComputeCommandEncoder = guard.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        let read = |i, matrix: &Matrix<'_, Buffer>| {
            encoder.set_input_buffer(i, Some(matrix.place.memory), matrix.place.offset);
        };
        read(0, a);
        read(1, b);
        encoder.set_output_buffer(3, Some(d.place.memory), d.place.offset);
        encoder.set_bytes(4, &params);
        // declared, if not read, without a batch of another kind
        set_plain(encoder, 6, &[int(batch)?]);
        set_plain(encoder, 7, &[a.batch_stride, b.batch_stride]);
        encoder.dispatch_thread_groups(group(tiles_n, tiles_m, batch), group(32, tile.wn, tile.wm));
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
