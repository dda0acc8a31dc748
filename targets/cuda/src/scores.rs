//! Attention with its scores in memory, all in f32: the form for f32 activations and for the gradients of heads that the
//! tiled kernels have no room for. Heads, and where one head is too much its queries, are taken so many at a time that memory stays bounded.

use crate::add::one_each;
use crate::attention::{Arguments, Dims, Rows};
use crate::kernels::{self, Module};
use crate::matmul::{Matmul, Matrix, matmul};
use crate::values::{size, unwritten};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::{CudaDevice, Result};
use half::f16;

/// Bytes that scores and probabilities may take, or those and their gradients.
const MOST_BYTES: usize = 64 << 20;
/// Rows that a block takes, a warp each.
const ROWS_OF_BLOCK: u32 = 4;

/// A warp for each row.
pub(crate) fn each_row(rows: usize) -> Result<LaunchConfig> {
    let grid_dim = (size(rows)?.div_ceil(ROWS_OF_BLOCK), 1, 1);
    Ok(LaunchConfig { grid_dim, block_dim: (32 * ROWS_OF_BLOCK, 1, 1), shared_mem_bytes: 0 })
}

/// Some queries of some heads of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Chunk {
    picture: usize,
    first_head: usize,
    heads: usize,
    first_query: usize,
    queries: usize,
}

/// All of a batch, so many at a time that two f32 for each score fit into `bytes`; several queries at least.
fn chunks(dims: Dims, bytes: usize) -> Vec<Chunk> {
    let Dims { batch, queries, keys, heads, .. } = dims;
    let scores = (bytes / 8).max(1);
    let most_queries = (scores / keys).clamp(16, queries.max(16)).min(queries);
    let most_heads = if most_queries < queries { 1 } else { (scores / (keys * queries)).clamp(1, heads) };
    let mut all = Vec::new();
    for picture in 0..batch {
        for first_head in (0..heads).step_by(most_heads) {
            for first_query in (0..queries).step_by(most_queries) {
                all.push(Chunk {
                    picture,
                    first_head,
                    heads: most_heads.min(heads - first_head),
                    first_query,
                    queries: most_queries.min(queries - first_query),
                });
            }
        }
    }
    all
}

/// Scores and probabilities of one chunk at a time.
struct Scores<'a> {
    device: &'a CudaDevice,
    arguments: &'a Arguments,
    q: &'a CudaSlice<f32>,
    kv: &'a CudaSlice<f32>,
    scores: CudaSlice<f32>,
    probabilities: CudaSlice<f32>,
}

impl<'a> Scores<'a> {
    fn new(
        device: &'a CudaDevice,
        arguments: &'a Arguments,
        q: &'a CudaSlice<f32>,
        kv: &'a CudaSlice<f32>,
        chunks: &[Chunk],
    ) -> Result<Self> {
        let most = chunks.iter().map(|c| c.heads * c.queries * arguments.dims.keys).max().unwrap_or(0);
        let (scores, probabilities) = (unwritten(device, most)?, unwritten(device, most)?);
        Ok(Scores { device, arguments, q, kv, scores, probabilities })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.arguments.dims.per_head as f32).sqrt()
    }

    /// A chunk's heads of rows of a tensor, from row `first` and column `column` on.
    fn operand(&self, rows: Rows, chunk: Chunk, first: usize, column: usize) -> Matrix {
        let per_head = self.arguments.dims.per_head;
        let offset =
            rows.offset + chunk.picture * rows.picture + first * rows.row + column + chunk.first_head * per_head;
        Matrix { offset, row_stride: rows.row, head_stride: per_head, batch_stride: 0, transposed: false }
    }

    /// A chunk's scores, probabilities or their gradients.
    fn square(&self, chunk: Chunk) -> Matrix {
        let keys = self.arguments.dims.keys;
        Matrix { offset: 0, row_stride: keys, head_stride: chunk.queries * keys, batch_stride: 0, transposed: false }
    }

    /// A product of `m` rows, `n` columns and `k` summands for each head of a chunk.
    fn product(&self, chunk: Chunk, [m, n, k]: [usize; 3], [a, b, c]: [Matrix; 3], alpha: f32) -> Matmul {
        Matmul { m, n, k, batch: 1, heads: chunk.heads, a, b, c, alpha }
    }

    /// The probabilities of a chunk.
    fn softmax(&mut self, chunk: Chunk) -> Result<()> {
        let Arguments { q, kv, dims: Dims { keys, per_head, .. }, causal } = *self.arguments;
        let q = self.operand(q, chunk, chunk.first_query, 0);
        let k = Matrix { transposed: true, ..self.operand(kv, chunk, 0, 0) };
        let sizes = [chunk.queries, keys, per_head];
        let product = self.product(chunk, sizes, [q, k, self.square(chunk)], self.scale());
        matmul(self.device, self.q, self.kv, &mut self.scores, &product)?;
        let rows = chunk.heads * chunk.queries;
        let (queries, first, keys, causal) =
            (size(chunk.queries)?, size(chunk.first_query)?, size(keys)?, u32::from(causal));
        let softmax = kernels::function(self.device, Module::Scores, "softmax")?;
        let mut launch = softmax.builder();
        launch.arg(&self.scores).arg(&mut self.probabilities);
        launch.arg(&rows).arg(&queries).arg(&first).arg(&keys).arg(&causal);
        // SAFETY: the kernel's arguments; both hold so many rows of so many keys.
        unsafe { launch.launch(each_row(rows)?) }.w()?;
        Ok(())
    }

    /// The gradients of a chunk's scores, in the place of its probabilities.
    fn gradients(&mut self, chunk: Chunk, dy: &CudaSlice<f32>, dy_rows: Rows) -> Result<()> {
        let Arguments { kv, dims: Dims { keys, per_head, channels, .. }, .. } = *self.arguments;
        let dy_at = self.operand(dy_rows, chunk, chunk.first_query, 0);
        let v = Matrix { transposed: true, ..self.operand(kv, chunk, 0, channels) };
        let product = self.product(chunk, [chunk.queries, keys, per_head], [dy_at, v, self.square(chunk)], 1.0);
        matmul(self.device, dy, self.kv, &mut self.scores, &product)?;
        let (rows, keys) = (chunk.heads * chunk.queries, size(keys)?);
        let gradients = kernels::function(self.device, Module::Scores, "score_gradients")?;
        let mut launch = gradients.builder();
        launch.arg(&mut self.probabilities).arg(&self.scores).arg(&rows).arg(&keys);
        // SAFETY: the kernel's arguments; both hold so many rows of so many keys.
        unsafe { launch.launch(each_row(rows)?) }.w()?;
        Ok(())
    }
}

/// The result, without gaps.
pub(crate) fn forward(
    device: &CudaDevice,
    arguments: &Arguments,
    q: &CudaSlice<f32>,
    kv: &CudaSlice<f32>,
) -> Result<CudaSlice<f32>> {
    forward_within(device, arguments, q, kv, MOST_BYTES)
}

fn forward_within(
    device: &CudaDevice,
    arguments: &Arguments,
    q: &CudaSlice<f32>,
    kv: &CudaSlice<f32>,
    bytes: usize,
) -> Result<CudaSlice<f32>> {
    let Dims { queries, keys, channels, per_head, .. } = arguments.dims;
    let chunks = chunks(arguments.dims, bytes);
    let mut scores = Scores::new(device, arguments, q, kv, &chunks)?;
    let mut y = unwritten(device, arguments.dims.result())?;
    for &chunk in &chunks {
        scores.softmax(chunk)?;
        let v = scores.operand(arguments.kv, chunk, 0, channels);
        let to = scores.operand(Rows::contiguous(queries, channels), chunk, chunk.first_query, 0);
        let product = scores.product(chunk, [chunk.queries, per_head, keys], [scores.square(chunk), v, to], 1.0);
        matmul(device, &scores.probabilities, kv, &mut y, &product)?;
    }
    Ok(y)
}

/// The gradients of `q` and `kv`, one after the other. `dy` has no gaps and begins at `dy_offset`.
pub(crate) fn backward(
    device: &CudaDevice,
    arguments: &Arguments,
    q: &CudaSlice<f32>,
    kv: &CudaSlice<f32>,
    dy: &CudaSlice<f32>,
    dy_offset: usize,
) -> Result<CudaSlice<f32>> {
    backward_within(device, arguments, [q, kv, dy], dy_offset, MOST_BYTES)
}

fn backward_within(
    device: &CudaDevice,
    arguments: &Arguments,
    [q, kv, dy]: [&CudaSlice<f32>; 3],
    dy_offset: usize,
    bytes: usize,
) -> Result<CudaSlice<f32>> {
    let Dims { batch, queries, keys, channels, per_head, .. } = arguments.dims;
    let chunks = chunks(arguments.dims, bytes);
    let mut scores = Scores::new(device, arguments, q, kv, &chunks)?;
    let mut both = unwritten(device, arguments.dims.result() + batch * keys * 2 * channels)?;
    let dy_rows = Rows { offset: dy_offset, ..Rows::contiguous(queries, channels) };
    let dkv_rows = Rows { offset: arguments.dims.result(), ..Rows::contiguous(keys, 2 * channels) };
    for &chunk in &chunks {
        scores.softmax(chunk)?;
        let square = Matrix { transposed: true, ..scores.square(chunk) };
        let dy_at = scores.operand(dy_rows, chunk, chunk.first_query, 0);
        let dv = scores.operand(dkv_rows, chunk, 0, channels);
        let product = scores.product(chunk, [keys, per_head, chunk.queries], [square, dy_at, dv], 1.0);
        add_product(&scores, chunk, dy, &mut both, product)?;
        scores.gradients(chunk, dy, dy_rows)?;
        let q_at = scores.operand(arguments.q, chunk, chunk.first_query, 0);
        let dk = scores.operand(dkv_rows, chunk, 0, 0);
        let product = scores.product(chunk, [keys, per_head, chunk.queries], [square, q_at, dk], scores.scale());
        add_product(&scores, chunk, q, &mut both, product)?;
        let k = scores.operand(arguments.kv, chunk, 0, 0);
        let dq = scores.operand(Rows::contiguous(queries, channels), chunk, chunk.first_query, 0);
        let sizes = [chunk.queries, per_head, keys];
        let product = scores.product(chunk, sizes, [scores.square(chunk), k, dq], scores.scale());
        matmul(device, &scores.probabilities, kv, &mut both, &product)?;
    }
    Ok(both)
}

/// What a chunk's queries give to the gradients of the keys or values; those of the first queries are written, others
/// added.
fn add_product(
    scores: &Scores<'_>,
    chunk: Chunk,
    rows: &CudaSlice<f32>,
    to: &mut CudaSlice<f32>,
    product: Matmul,
) -> Result<()> {
    if chunk.first_query == 0 {
        return matmul(scores.device, &scores.probabilities, rows, to, &product);
    }
    // only a single head has its queries taken in turn
    let count = product.m * product.n;
    let mut share = unwritten(scores.device, count)?;
    let c = Matrix { offset: 0, row_stride: product.n, ..product.c };
    matmul(scores.device, &scores.probabilities, rows, &mut share, &Matmul { c, ..product })?;
    let mut to = to.slice_mut(product.c.offset..);
    let (numbers, width) = (size(count)?, size(product.n)?);
    let add = kernels::function(scores.device, Module::Scores, "add_rows")?;
    let mut launch = add.builder();
    launch.arg(&share).arg(&mut to).arg(&numbers).arg(&width).arg(&product.c.row_stride);
    // SAFETY: the kernel's arguments; the rows are those that a product of these sizes writes.
    unsafe { launch.launch(one_each(count)?) }.w()?;
    Ok(())
}

/// f16 arguments in f32 and without gaps.
pub(crate) fn widened(
    device: &CudaDevice,
    arguments: &Arguments,
    q: &CudaSlice<f16>,
    kv: &CudaSlice<f16>,
) -> Result<(Arguments, CudaSlice<f32>, CudaSlice<f32>)> {
    let Dims { batch, queries, keys, channels, .. } = arguments.dims;
    let wide_q = widened_rows(device, &q.as_view(), arguments.q, [batch, queries, channels])?;
    let wide_kv = widened_rows(device, &kv.as_view(), arguments.kv, [batch, keys, 2 * channels])?;
    let (q_rows, kv_rows) = (Rows::contiguous(queries, channels), Rows::contiguous(keys, 2 * channels));
    Ok((Arguments { q: q_rows, kv: kv_rows, ..*arguments }, wide_q, wide_kv))
}

/// A tensor `[B, rows, width]` of f16 in f32 and without gaps.
pub(crate) fn widened_rows(
    device: &CudaDevice,
    from: &CudaView<'_, f16>,
    at: Rows,
    [batch, rows, width]: [usize; 3],
) -> Result<CudaSlice<f32>> {
    let count = batch * rows * width;
    let (from, mut to) = (from.slice(at.offset..), unwritten(device, count)?);
    let (numbers, rows, width) = (size(count)?, size(rows)?, size(width)?);
    let widen = kernels::function(device, Module::Scores, "widen_rows")?;
    let mut launch = widen.builder();
    launch.arg(&from).arg(&mut to).arg(&numbers).arg(&rows).arg(&width).arg(&at.picture).arg(&at.row);
    // SAFETY: the kernel's arguments; sizes and strides are those of a view that lies in its storage.
    unsafe { launch.launch(one_each(count)?) }.w()?;
    Ok(to)
}

/// f32 rounded to f16.
pub(crate) fn narrowed(device: &CudaDevice, from: &CudaSlice<f32>) -> Result<CudaSlice<f16>> {
    let (numbers, mut to) = (size(from.len())?, unwritten(device, from.len())?);
    let narrow = kernels::function(device, Module::Scores, "narrow_all")?;
    let mut launch = narrow.builder();
    launch.arg(from).arg(&mut to).arg(&numbers);
    // SAFETY: the kernel's arguments; both have so many numbers.
    unsafe { launch.launch(one_each(from.len())?) }.w()?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: Dims = Dims { batch: 2, queries: 100, keys: 70, channels: 24, heads: 3, per_head: 8 };

    /// How often each query of each head of each picture is taken.
    fn taken(chunks: &[Chunk]) -> Vec<usize> {
        let mut times = vec![0; DIMS.batch * DIMS.heads * DIMS.queries];
        for c in chunks {
            for head in c.first_head..c.first_head + c.heads {
                for query in c.first_query..c.first_query + c.queries {
                    times[(c.picture * DIMS.heads + head) * DIMS.queries + query] += 1;
                }
            }
        }
        times
    }

    #[test]
    fn chunks_are_everything_once_within_memory() {
        let of_head = 8 * DIMS.queries * DIMS.keys;
        for bytes in [0, 1, of_head / 3, of_head - 1, of_head, 2 * of_head, 2 * of_head + 1, 3 * of_head, 1 << 30] {
            let chunks = chunks(DIMS, bytes);
            assert!(taken(&chunks).iter().all(|&times| times == 1), "{bytes} bytes: {chunks:?}");
            for c in &chunks {
                let least = 8 * 16 * DIMS.keys;
                assert!(8 * c.heads * c.queries * DIMS.keys <= bytes.max(least), "{bytes} bytes: {c:?}");
                assert!(c.queries == DIMS.queries || c.heads == 1, "{c:?}");
            }
        }
    }

    /// Numbers from -1 to 1.
    fn numbers(device: &CudaDevice, count: usize, factor: usize) -> Result<CudaSlice<f32>> {
        let numbers: Vec<f32> = (0..count).map(|i| (i * factor % 1009) as f32 / 504.0 - 1.0).collect();
        device.clone_htod(&numbers)
    }

    #[test]
    fn chunks_make_no_difference() -> Result<()> {
        let candle_core::Device::Cuda(device) = crate::open().expect("the tests need a device") else { panic!() };
        let Dims { batch, queries, keys, channels, .. } = DIMS;
        let (q, kv) = (Rows::contiguous(queries, channels), Rows::contiguous(keys, 2 * channels));
        let arguments = Arguments { q, kv, dims: DIMS, causal: false };
        let of_q = numbers(&device, DIMS.result(), 617)?;
        let of_kv = numbers(&device, batch * keys * 2 * channels, 331)?;
        let dy = numbers(&device, DIMS.result() + 3, 211)?;
        let whole = device.clone_dtoh(&forward_within(&device, &arguments, &of_q, &of_kv, 1 << 30)?)?;
        let gradients = |bytes| -> Result<Vec<f32>> {
            device.clone_dtoh(&backward_within(&device, &arguments, [&of_q, &of_kv, &dy], 3, bytes)?)
        };
        let whole_gradients = gradients(1 << 30)?;
        for bytes in [1, 8 * 33 * keys, 8 * queries * keys, 16 * queries * keys] {
            let y = device.clone_dtoh(&forward_within(&device, &arguments, &of_q, &of_kv, bytes)?)?;
            // the same sums, and those over queries in parts: of at most 100 products up to 1 and of their gradients up to 48
            for (i, (part, whole)) in
                y.iter().zip(&whole).chain(gradients(bytes)?.iter().zip(&whole_gradients)).enumerate()
            {
                let near = (part - whole).abs() <= 100.0 * 48.0 * 100.0 * f32::EPSILON;
                assert!(near, "{bytes} bytes, number {i}: {part} for {whole}");
            }
        }
        assert!(whole.iter().any(|y| y.abs() > 0.1) && whole_gradients.iter().any(|g| g.abs() > 0.1));
        Ok(())
    }
}
