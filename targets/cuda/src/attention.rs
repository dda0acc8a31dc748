//! Multi-head attention without ever holding the whole matrix of scores; see `kernels/attention.cu`.

use crate::kernels::{self, Module};
use crate::scores;
use crate::values::{contiguous, not_on_the_cpu, size, unwritten};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, CudaViewMut, LaunchConfig, PushKernelArg};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail,
};
use half::f16;

/// `softmax(q k^T / sqrt(d)) v` per head; `q: [B, N, C]`, `kv: [B, M, 2C]` (keys, then values), result `[B, N, C]`.
///
/// Both arguments may be narrowed views of a wider tensor, such as the parts of a joint projection. Of f16 the products are
/// of f16 numbers and all sums, the softmax among them, f32; of f32 everything is f32.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Number of heads; divides C.
    pub heads: usize,
    /// Whether a query sees only the keys up to its own position (text encoder).
    pub causal: bool,
}

/// Rows of a tensor `[B, rows, width]` that are contiguous but may lie `row` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) offset: usize,
    pub(crate) picture: usize,
    pub(crate) row: usize,
}

impl Rows {
    fn new(layout: &Layout) -> Result<Self> {
        let &[picture, row, 1] = layout.stride() else {
            bail!("attention takes rows of contiguous values, got strides {:?}", layout.stride())
        };
        Ok(Rows { offset: layout.start_offset(), picture, row })
    }

    /// Those of a tensor without gaps.
    pub(crate) fn contiguous(rows: usize, width: usize) -> Self {
        Rows { offset: 0, picture: rows * width, row: width }
    }

    /// Whether every row begins at a multiple of 16 bytes of f16.
    fn in_line(self, batch: usize) -> bool {
        self.offset.is_multiple_of(8) && self.row.is_multiple_of(8) && (batch == 1 || self.picture.is_multiple_of(8))
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) channels: usize,
    pub(crate) heads: usize,
    pub(crate) per_head: usize,
}

impl Dims {
    /// Numbers in the result.
    pub(crate) fn result(self) -> usize {
        self.batch * self.queries * self.channels
    }

    /// Queries of all heads of all pictures.
    fn statistics(self) -> usize {
        self.batch * self.heads * self.queries
    }

    /// Where the tiled forward leaves an f32 for each of these: in the result's storage, behind the result. The backward
    /// has no other way to get them from the forward.
    fn result_in_line(self) -> usize {
        self.result().next_multiple_of(2)
    }

    fn result_with_statistics(self) -> usize {
        self.result_in_line() + 2 * self.statistics()
    }
}

/// What attention is computed of, besides the numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arguments {
    pub(crate) q: Rows,
    pub(crate) kv: Rows,
    pub(crate) dims: Dims,
    pub(crate) causal: bool,
}

/// The tiled kernels: channels of a head, padded; queries of a block of the forward.
const TILED: [(usize, usize); 7] = [(16, 128), (32, 128), (48, 128), (64, 128), (80, 64), (128, 64), (160, 64)];
/// The kernel for wider heads: queries of a block, and channels of the values.
const WIDE_QUERIES: usize = 64;
const WIDE_SLICE: usize = 128;
/// Rows of a block of the backward, and threads of every tiled kernel's block.
const OWN_ROWS: usize = 64;
const THREADS: u32 = 128;

impl Arguments {
    /// The tiled kernels for these heads, if there are any, and the queries of a block of the forward.
    fn tiled(&self) -> Option<(usize, usize)> {
        TILED.into_iter().find(|&(depth, _)| self.dims.per_head <= depth)
    }

    /// A block for each tile of so many rows of each head, or part of one, of each picture.
    fn blocks(&self, rows: usize, of_block: usize, heads: usize) -> Result<LaunchConfig> {
        let batch = self.dims.batch;
        if heads > 65535 || batch > 65535 {
            bail!("attention of {batch} pictures with {heads} heads is more than one launch can do")
        }
        let grid_dim = (size(rows)?.div_ceil(of_block as u32), heads as u32, batch as u32);
        Ok(LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 })
    }

    /// Whether the kernels may copy 16 bytes at a time.
    fn in_line(&self) -> bool {
        let Dims { batch, per_head, .. } = self.dims;
        per_head.is_multiple_of(8) && self.q.in_line(batch) && self.kv.in_line(batch)
    }

    /// What a score is multiplied with to be an exponent of 2.
    fn scale(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.dims.per_head as f32).sqrt()
    }

    /// The result with its statistics behind it.
    fn tiled_forward(
        &self,
        device: &CudaDevice,
        (depth, of_block): (usize, usize),
        q: &CudaView<'_, f16>,
        kv: &CudaView<'_, f16>,
    ) -> Result<CudaSlice<f16>> {
        let Dims { queries, keys, channels, per_head, .. } = self.dims;
        let mut both = unwritten::<f16>(device, self.dims.result_with_statistics())?;
        let (mut y, mut behind) = both.split_at_mut(self.dims.result_in_line());
        // SAFETY: twice as many f16 begin there at a multiple of 4 bytes; any bits are numbers, and the kernel writes them.
        let logs: Option<CudaViewMut<'_, f32>> = unsafe { behind.transmute_mut(self.dims.statistics()) };
        let mut logs = logs.expect("allocated for them");
        let [queries_each, keys, per_head, channels] = [size(queries)?, size(keys)?, size(per_head)?, size(channels)?];
        let (scale, causal, in_line) = (self.scale(), u32::from(self.causal), u32::from(self.in_line()));
        let attention = kernels::function(device, Module::Attention, &format!("attention_{depth}"))?;
        let mut launch = attention.builder();
        launch.arg(q).arg(kv).arg(&mut y).arg(&mut logs);
        launch.arg(&self.q.picture).arg(&self.q.row).arg(&self.kv.picture).arg(&self.kv.row);
        launch.arg(&queries_each).arg(&keys).arg(&per_head).arg(&channels).arg(&scale).arg(&causal).arg(&in_line);
        // SAFETY: the kernel's arguments; sizes and strides are those of views that lie in their storage.
        unsafe { launch.launch(self.blocks(queries, of_block, self.dims.heads)?) }.w()?;
        Ok(both)
    }

    /// The result for heads that have no kernel of their own.
    fn wide_forward(
        &self,
        device: &CudaDevice,
        q: &CudaView<'_, f16>,
        kv: &CudaView<'_, f16>,
    ) -> Result<CudaSlice<f16>> {
        let Dims { queries, keys, channels, per_head, heads, .. } = self.dims;
        let mut y = unwritten::<f16>(device, self.dims.result())?;
        let [n, m, per_head_each, values] = [size(queries)?, size(keys)?, size(per_head)?, size(channels)?];
        let (scale, causal, in_line) = (self.scale(), u32::from(self.causal), u32::from(self.in_line()));
        let attention = kernels::function(device, Module::Attention, "attention_wide")?;
        let mut launch = attention.builder();
        launch.arg(q).arg(kv).arg(&mut y);
        launch.arg(&self.q.picture).arg(&self.q.row).arg(&self.kv.picture).arg(&self.kv.row);
        launch.arg(&n).arg(&m).arg(&per_head_each).arg(&values).arg(&scale).arg(&causal).arg(&in_line);
        let blocks = self.blocks(queries, WIDE_QUERIES, heads * per_head.div_ceil(WIDE_SLICE))?;
        // SAFETY: the kernel's arguments; sizes and strides are those of views that lie in their storage.
        unsafe { launch.launch(blocks) }.w()?;
        Ok(y)
    }

    /// The gradients of `q` and `kv`, one after the other.
    fn tiled_backward(
        &self,
        device: &CudaDevice,
        depth: usize,
        [q, kv, dy, y]: [&CudaView<'_, f16>; 4],
        dy_in_line: bool,
    ) -> Result<CudaSlice<f16>> {
        let Dims { queries, keys, .. } = self.dims;
        let (y, behind) = y.split_at(self.dims.result_in_line());
        // SAFETY: the forward wrote them there.
        let logs: Option<CudaView<'_, f32>> = unsafe { behind.transmute(self.dims.statistics()) };
        let logs = logs.expect("checked by the caller");
        let dots = self.dots(device, dy, &y)?;
        let mut both = unwritten::<f16>(device, self.dims.result() + self.dims.batch * keys * 2 * self.dims.channels)?;
        let dkv = self.dims.result();
        for (name, rows, result) in
            [("attention_dq", queries, 0), ("attention_dk", keys, dkv), ("attention_dv", keys, dkv)]
        {
            let mut to = both.slice_mut(result..);
            let [n, m, per_head, channels] =
                [size(queries)?, size(keys)?, size(self.dims.per_head)?, size(self.dims.channels)?];
            let (scale, causal) = (self.scale(), u32::from(self.causal));
            let in_line = u32::from(self.in_line()) | u32::from(dy_in_line) << 1;
            let gradient = kernels::function(device, Module::AttentionBackward, &format!("{name}_{depth}"))?;
            let mut launch = gradient.builder();
            launch.arg(q).arg(kv).arg(dy).arg(&logs).arg(&dots).arg(&mut to);
            launch.arg(&self.q.picture).arg(&self.q.row).arg(&self.kv.picture).arg(&self.kv.row);
            launch.arg(&n).arg(&m).arg(&per_head).arg(&channels).arg(&scale).arg(&causal).arg(&in_line);
            // SAFETY: the kernel's arguments; sizes and strides are those of views that lie in their storage.
            unsafe { launch.launch(self.blocks(rows, OWN_ROWS, self.dims.heads)?) }.w()?;
        }
        Ok(both)
    }

    /// `rowsum(dy y)` of every query of every head.
    fn dots(&self, device: &CudaDevice, dy: &CudaView<'_, f16>, y: &CudaView<'_, f16>) -> Result<CudaSlice<f32>> {
        let count = self.dims.statistics();
        let mut dots = unwritten::<f32>(device, count)?;
        let [queries, heads, per_head] = [size(self.dims.queries)?, size(self.dims.heads)?, size(self.dims.per_head)?];
        let kernel = kernels::function(device, Module::AttentionBackward, "attention_dots")?;
        let mut launch = kernel.builder();
        launch.arg(dy).arg(y).arg(&mut dots).arg(&count).arg(&queries).arg(&heads).arg(&per_head);
        // SAFETY: the kernel's arguments; `dy` and `y` have so many rows of `per_head`.
        unsafe { launch.launch(scores::each_row(count)?) }.w()?;
        Ok(dots)
    }
}

impl Attention {
    fn arguments(&self, ql: &Layout, kvl: &Layout) -> Result<Arguments> {
        let (batch, queries, channels) = ql.shape().dims3()?;
        let (kv_batch, keys, width) = kvl.shape().dims3()?;
        let fits = self.heads > 0 && channels % self.heads == 0 && width == 2 * channels && kv_batch == batch;
        let empty = batch * queries * keys * channels == 0;
        if !fits || empty || (self.causal && queries != keys) {
            bail!("attention with {} heads got q {:?} and kv {:?}", self.heads, ql.shape(), kvl.shape())
        }
        let dims = Dims { batch, queries, keys, channels, heads: self.heads, per_head: channels / self.heads };
        Ok(Arguments { q: Rows::new(ql)?, kv: Rows::new(kvl)?, dims, causal: self.causal })
    }
}

/// The numbers of a view, wherever its rows lie.
fn view<'a>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, f16>> {
    Ok(storage.as_cuda_slice::<f16>()?.slice(layout.start_offset()..))
}

/// Both arguments have one of the types that there are kernels for.
fn check_types(q: &CudaStorage, kv: &CudaStorage) -> Result<()> {
    match (q.dtype(), kv.dtype()) {
        (DType::F16, DType::F16) | (DType::F32, DType::F32) => Ok(()),
        (q, kv) => {
            bail!("attention on CUDA takes f16 or f32, q and kv alike, got {q:?} and {kv:?}; convert them first")
        }
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, qs: &CudaStorage, ql: &Layout, kvs: &CudaStorage, kvl: &Layout) -> Result<(CudaStorage, Shape)> {
        check_types(qs, kvs)?;
        let (device, arguments) = (qs.device(), self.arguments(ql, kvl)?);
        let y = match (qs.dtype(), arguments.tiled()) {
            (DType::F16, Some(tiles)) => {
                let y = arguments.tiled_forward(device, tiles, &view(qs, ql)?, &view(kvs, kvl)?)?;
                CudaStorage::wrap_cuda_slice(y, device.clone())
            }
            (DType::F16, None) => {
                let y = arguments.wide_forward(device, &view(qs, ql)?, &view(kvs, kvl)?)?;
                CudaStorage::wrap_cuda_slice(y, device.clone())
            }
            _ => {
                let y = scores::forward(device, &arguments, qs.as_cuda_slice()?, kvs.as_cuda_slice()?)?;
                CudaStorage::wrap_cuda_slice(y, device.clone())
            }
        };
        Ok((y, ql.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, kv: &Tensor, y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let backward = AttentionBackward { op: *self, y: y.clone() };
        let both = q.apply_op3_no_bwd(kv, &grad.contiguous()?, &backward)?;
        let dq = both.narrow(0, 0, q.elem_count())?.reshape(q.shape())?;
        let dkv = both.narrow(0, q.elem_count(), kv.elem_count())?.reshape(kv.shape())?;
        Ok((Some(dq), Some(dkv)))
    }
}

/// The gradients of `q` and `kv`, one after the other in one flat tensor; the probabilities are computed again.
struct AttentionBackward {
    op: Attention,
    /// What the forward gave, perhaps with statistics behind it.
    y: Tensor,
}

impl AttentionBackward {
    fn of_f16(
        &self,
        arguments: &Arguments,
        [qs, kvs, gs]: [&CudaStorage; 3],
        [ql, kvl, gl]: [&Layout; 3],
    ) -> Result<CudaSlice<f16>> {
        let (device, dy) = (qs.device(), contiguous::<f16>(gs, gl)?);
        let Some((depth, _)) = arguments.tiled() else {
            let (wide, q, kv) = scores::widened(device, arguments, qs.as_cuda_slice()?, kvs.as_cuda_slice()?)?;
            let dy = scores::widened_rows(device, &dy, Rows::contiguous(1, dy.len()), [1, 1, dy.len()])?;
            return scores::narrowed(device, &scores::backward(device, &wide, &q, &kv, &dy, 0)?);
        };
        let (storage, layout) = self.y.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("the result of a CUDA op must be on its device") };
        let y = storage.as_cuda_slice::<f16>()?;
        if y.len() != arguments.dims.result_with_statistics() || layout.start_offset() != 0 {
            bail!("the backward of attention takes what its forward gave")
        }
        let dy_in_line = gl.start_offset().is_multiple_of(8) && arguments.dims.per_head.is_multiple_of(8);
        let all = [&view(qs, ql)?, &view(kvs, kvl)?, &dy, &y.as_view()];
        arguments.tiled_backward(device, depth, all, dy_in_line)
    }
}

impl CustomOp3 for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention-backward"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(
        &self,
        qs: &CudaStorage,
        ql: &Layout,
        kvs: &CudaStorage,
        kvl: &Layout,
        gs: &CudaStorage,
        gl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        check_types(qs, kvs)?;
        let (device, arguments) = (qs.device(), self.op.arguments(ql, kvl)?);
        if gl.shape() != ql.shape() || gs.dtype() != qs.dtype() || !gl.is_contiguous() {
            bail!("a gradient of {:?} {:?} for {:?} {:?}", gl.shape(), gs.dtype(), ql.shape(), qs.dtype())
        }
        let (both, len) = match qs.dtype() {
            DType::F16 => {
                let both = self.of_f16(&arguments, [qs, kvs, gs], [ql, kvl, gl])?;
                let len = both.len();
                (CudaStorage::wrap_cuda_slice(both, device.clone()), len)
            }
            _ => {
                let (q, kv, dy) = (qs.as_cuda_slice()?, kvs.as_cuda_slice()?, gs.as_cuda_slice()?);
                let both = scores::backward(device, &arguments, q, kv, dy, gl.start_offset())?;
                let len = both.len();
                (CudaStorage::wrap_cuda_slice(both, device.clone()), len)
            }
        };
        Ok((both, len.into()))
    }
}
