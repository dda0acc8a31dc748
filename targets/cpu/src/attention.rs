//! Multi-head attention without ever holding the whole matrix of scores: a block of queries at a time.

mod tiled;

use crate::Isa;
use crate::isa::with_token;
use crate::matrix::{Into, Mat, ONE_CORE, matmul};
use crate::output;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Queries whose scores are held at once.
const BLOCK: usize = 64;

/// `softmax(q k^T / sqrt(d)) v` per head; `q: [B, N, C]`, `kv: [B, M, 2C]` (keys, then values), result `[B, N, C]`.
///
/// Both arguments may be narrowed views of a wider tensor, such as the parts of a joint projection.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Number of heads; divides C.
    pub heads: usize,
    /// Whether a query sees only the keys up to its own position (text encoder).
    pub causal: bool,
    /// What the forward runs on.
    pub isa: Isa,
}

/// `[B, rows, width]` whose rows are contiguous but may lie `row_stride` apart.
struct Rows<'a> {
    data: &'a [f32],
    batch_stride: usize,
    row_stride: usize,
}

impl<'a> Rows<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let &[batch_stride, row_stride, 1] = layout.stride() else {
            bail!("attention takes rows of contiguous values, got strides {:?}", layout.stride())
        };
        Ok(Rows { data: &storage.as_slice::<f32>()?[layout.start_offset()..], batch_stride, row_stride })
    }

    /// Row `row` of picture `b`, and whatever follows it.
    #[inline(always)]
    fn row(&self, b: usize, row: usize) -> &'a [f32] {
        &self.data[b * self.batch_stride + row * self.row_stride..]
    }

    /// `rows x cols` of picture `b`, from row `row` and column `col` on.
    fn mat(&self, b: usize, row: usize, rows: usize, col: usize, cols: usize) -> Mat<'a> {
        Mat::rows(&self.data[b * self.batch_stride + row * self.row_stride + col..], rows, cols, self.row_stride)
    }
}

#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    queries: usize,
    keys: usize,
    channels: usize,
    per_head: usize,
}

impl Attention {
    fn dims(&self, ql: &Layout, kvl: &Layout) -> Result<Dims> {
        let (batch, queries, channels) = ql.shape().dims3()?;
        let (kv_batch, keys, width) = kvl.shape().dims3()?;
        let fits = self.heads > 0 && channels % self.heads == 0 && width == 2 * channels && kv_batch == batch;
        let empty = queries * keys * channels == 0;
        if !fits || empty || (self.causal && queries != keys) {
            bail!("attention with {} heads got q {:?} and kv {:?}", self.heads, ql.shape(), kvl.shape())
        }
        Ok(Dims { batch, queries, keys, channels, per_head: channels / self.heads })
    }

    /// Probabilities of queries `first..first + n` over all keys, `[n, keys]`, for one head of one picture.
    fn probabilities(&self, d: Dims, first: usize, q: Mat<'_>, k: Mat<'_>, n: usize, scores: &mut [f32]) {
        let scale = 1.0 / (d.per_head as f32).sqrt();
        matmul(scores, d.keys, Into::Overwrite, scale, q, k.t(), ONE_CORE);
        for (i, row) in scores.chunks_exact_mut(d.keys).take(n).enumerate() {
            let seen = if self.causal { first + i + 1 } else { d.keys };
            let (row, hidden) = row.split_at_mut(seen);
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for s in row.iter_mut() {
                *s = (*s - max).exp();
                sum += *s;
            }
            row.iter_mut().for_each(|s| *s /= sum);
            hidden.fill(0.0);
        }
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qs: &CpuStorage, ql: &Layout, kvs: &CpuStorage, kvl: &Layout) -> Result<(CpuStorage, Shape)> {
        let d = self.dims(ql, kvl)?;
        let (q, kv) = (Rows::new(qs, ql)?, Rows::new(kvs, kvl)?);
        let mut y = vec![0.0; d.batch * d.queries * d.channels];
        with_token!(self.isa, token => tiled::forward(token, &q, &kv, d, self.causal, &mut y));
        Ok(output(y, (d.batch, d.queries, d.channels)))
    }

    fn bwd(&self, q: &Tensor, kv: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let both = q.apply_op3_no_bwd(kv, &grad.contiguous()?, &AttentionBackward(*self))?;
        let dq = both.narrow(0, 0, q.elem_count())?.reshape(q.shape())?;
        let dkv = both.narrow(0, q.elem_count(), kv.elem_count())?.reshape(kv.shape())?;
        Ok((Some(dq), Some(dkv)))
    }
}

/// The gradients of `q` and `kv`, one after the other in one flat tensor; the probabilities are computed again.
struct AttentionBackward(Attention);

/// One head's gradients: `dq: [N, d]`, `dk, dv: [M, d]`.
struct HeadGradient {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl AttentionBackward {
    /// With P the probabilities and dP = dy v^T: dS = P (dP - rowsum(P dP)), dq = dS k, dk = dS^T q, dv = P^T dy.
    fn head(&self, d: Dims, q: &Rows<'_>, kv: &Rows<'_>, dy: &Rows<'_>, b: usize, col: usize) -> HeadGradient {
        let size = d.per_head;
        let scale = 1.0 / (size as f32).sqrt();
        let keys = kv.mat(b, 0, d.keys, col, size);
        let values = kv.mat(b, 0, d.keys, d.channels + col, size);
        let mut g = HeadGradient {
            dq: vec![0.0; d.queries * size],
            dk: vec![0.0; d.keys * size],
            dv: vec![0.0; d.keys * size],
        };
        let (mut p, mut ds) = (vec![0.0; BLOCK * d.keys], vec![0.0; BLOCK * d.keys]);
        for first in (0..d.queries).step_by(BLOCK) {
            let n = BLOCK.min(d.queries - first);
            let queries = q.mat(b, first, n, col, size);
            let dy = dy.mat(b, first, n, col, size);
            self.0.probabilities(d, first, queries, keys, n, &mut p);
            matmul(&mut ds, d.keys, Into::Overwrite, 1.0, dy, values.t(), ONE_CORE);
            for (ds, p) in ds.chunks_exact_mut(d.keys).zip(p.chunks_exact(d.keys)).take(n) {
                let dot: f32 = ds.iter().zip(p).map(|(d, p)| d * p).sum();
                ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot));
            }
            let (p, ds) = (Mat::rows(&p, n, d.keys, d.keys), Mat::rows(&ds, n, d.keys, d.keys));
            matmul(&mut g.dq[first * size..], size, Into::Overwrite, scale, ds, keys, ONE_CORE);
            matmul(&mut g.dk, size, Into::Add, scale, ds.t(), queries, ONE_CORE);
            matmul(&mut g.dv, size, Into::Add, 1.0, p.t(), dy, ONE_CORE);
        }
        g
    }
}

impl CustomOp3 for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention-backward"
    }

    fn cpu_fwd(
        &self,
        qs: &CpuStorage,
        ql: &Layout,
        kvs: &CpuStorage,
        kvl: &Layout,
        gs: &CpuStorage,
        gl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let d = self.0.dims(ql, kvl)?;
        let (q, kv, dy) = (Rows::new(qs, ql)?, Rows::new(kvs, kvl)?, Rows::new(gs, gl)?);
        let heads: Vec<_> = (0..d.batch * self.0.heads)
            .into_par_iter()
            .map(|i| self.head(d, &q, &kv, &dy, i / self.0.heads, i % self.0.heads * d.per_head))
            .collect();
        let queries = d.batch * d.queries * d.channels;
        let mut both = vec![0.0; queries + d.batch * d.keys * 2 * d.channels];
        let (dq, dkv) = both.split_at_mut(queries);
        for (i, g) in heads.iter().enumerate() {
            let (b, col) = (i / self.0.heads, i % self.0.heads * d.per_head);
            scatter(&g.dq, d.per_head, &mut dq[b * d.queries * d.channels..], d.channels, col);
            let dkv = &mut dkv[b * d.keys * 2 * d.channels..];
            scatter(&g.dk, d.per_head, dkv, 2 * d.channels, col);
            scatter(&g.dv, d.per_head, dkv, 2 * d.channels, d.channels + col);
        }
        let len = both.len();
        Ok(output(both, len))
    }
}

/// Puts rows of `width` values into rows of `row_stride` values, from column `col` on.
fn scatter(rows: &[f32], width: usize, into: &mut [f32], row_stride: usize, col: usize) {
    for (row, into) in rows.chunks_exact(width).zip(into.chunks_mut(row_stride)) {
        into[col..col + width].copy_from_slice(row);
    }
}
