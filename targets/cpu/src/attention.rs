//! Multi-head attention without ever holding the whole matrix of scores: blocks of queries against blocks of keys.

mod backward;
mod forward;
mod packed;
mod products;
mod squares;
mod tiled;

use crate::Isa;
use crate::isa::with_token;
use crate::output;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use packed::HeadRows;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// `softmax(q k^T / sqrt(d)) v` per head; `q: [B, N, C]`, `kv: [B, M, 2C]` (keys, then values), result `[B, N, C]`.
///
/// Both arguments may be narrowed views of a wider tensor, such as the parts of a joint projection.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Number of heads; divides C.
    pub heads: usize,
    /// Whether a query sees only the keys up to its own position (text encoder).
    pub causal: bool,
    /// How its products are computed.
    pub precision: Precision,
    /// What it runs on.
    pub isa: Isa,
}

/// How the products of an op without weights are computed. Their sums are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// In f32.
    F32,
    /// Of numbers rounded to bf16 where the CPU has instructions for that, elsewhere in f32.
    Bf16,
}

/// `[B, rows, width]` whose rows are contiguous but may lie `row_stride` apart.
#[derive(Clone, Copy)]
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

    /// Those of one picture, `channels` of them from `column` on.
    fn head(&self, picture: usize, column: usize, channels: usize) -> HeadRows<'a> {
        HeadRows { data: &self.data[picture * self.batch_stride + column..], stride: self.row_stride, channels }
    }
}

#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    queries: usize,
    keys: usize,
    channels: usize,
    heads: usize,
    per_head: usize,
}

impl Dims {
    /// Numbers in the result.
    fn result(self) -> usize {
        self.batch * self.queries * self.channels
    }

    /// Where a head's channels of a query lie in a tensor like the result.
    fn at(self, picture: usize, head: usize, query: usize) -> usize {
        (picture * self.queries + query) * self.channels + head * self.per_head
    }

    /// Where the largest scores (times log2(e)) of all queries of a head lie, and the sums of exponentials of score minus
    /// largest score: in the result's storage, behind the result. The backward has no other way to get them from the
    /// forward, and to compute them again would take a fifth of its time.
    fn statistics(self, picture: usize, head: usize) -> [usize; 2] {
        let max = self.result() + (picture * self.heads + head) * 2 * self.queries;
        [max, max + self.queries]
    }

    /// Numbers in the result's storage.
    fn result_with_statistics(self) -> usize {
        self.statistics(self.batch, 0)[0]
    }
}

/// What attention is computed of.
#[derive(Clone, Copy)]
struct Arguments<'a> {
    q: Rows<'a>,
    kv: Rows<'a>,
    dims: Dims,
    causal: bool,
}

impl<'a> Arguments<'a> {
    /// A head's queries, keys and values.
    fn of_head(&self, picture: usize, head: usize) -> [HeadRows<'a>; 3] {
        let Dims { per_head, channels, .. } = self.dims;
        let column = head * per_head;
        let q = self.q.head(picture, column, per_head);
        [q, self.kv.head(picture, column, per_head), self.kv.head(picture, channels + column, per_head)]
    }
}

/// A result under construction, of which each part of the work writes its own values.
struct Destination<'a> {
    start: *mut MaybeUninit<f32>,
    len: usize,
    of: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: parts write through it from several threads, but no two of them the same values.
unsafe impl Sync for Destination<'_> {}

impl<'a> Destination<'a> {
    fn new(values: &'a mut [MaybeUninit<f32>]) -> Self {
        Destination { start: values.as_mut_ptr(), len: values.len(), of: PhantomData }
    }

    /// # Safety
    /// No two live slices may overlap.
    #[expect(clippy::mut_from_ref, reason = "parts share the destination and write different values")]
    unsafe fn part(&self, from: usize, len: usize) -> &mut [MaybeUninit<f32>] {
        assert!(from + len <= self.len);
        // SAFETY: it lies inside what was borrowed for the call that made this; the caller sees to it that no two overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

/// Copies numbers of which there are as many.
#[inline(always)]
fn put(into: &mut [MaybeUninit<f32>], from: &[f32]) {
    for (into, &x) in into.iter_mut().zip(from) {
        into.write(x);
    }
}

/// `len` numbers that `write` writes.
///
/// # Safety
/// It must write all of them.
unsafe fn written(len: usize, write: impl FnOnce(&Destination<'_>)) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    write(&Destination::new(&mut values.spare_capacity_mut()[..len]));
    // SAFETY: they have been written, says the caller.
    unsafe { values.set_len(len) };
    values
}

impl Attention {
    fn arguments<'a>(
        &self,
        qs: &'a CpuStorage,
        ql: &Layout,
        kvs: &'a CpuStorage,
        kvl: &Layout,
    ) -> Result<Arguments<'a>> {
        let (batch, queries, channels) = ql.shape().dims3()?;
        let (kv_batch, keys, width) = kvl.shape().dims3()?;
        let fits = self.heads > 0 && channels % self.heads == 0 && width == 2 * channels && kv_batch == batch;
        let empty = batch * queries * keys * channels == 0;
        if !fits || empty || (self.causal && queries != keys) {
            bail!("attention with {} heads got q {:?} and kv {:?}", self.heads, ql.shape(), kvl.shape())
        }
        let dims = Dims { batch, queries, keys, channels, heads: self.heads, per_head: channels / self.heads };
        Ok(Arguments { q: Rows::new(qs, ql)?, kv: Rows::new(kvs, kvl)?, dims, causal: self.causal })
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qs: &CpuStorage, ql: &Layout, kvs: &CpuStorage, kvl: &Layout) -> Result<(CpuStorage, Shape)> {
        let arguments = self.arguments(qs, ql, kvs, kvl)?;
        let d = arguments.dims;
        // SAFETY: the forward writes every query of every head and its statistics.
        let y = unsafe {
            written(d.result_with_statistics(), |y| {
                with_token!(self.isa, token => forward::forward(token, &arguments, self.precision, y));
            })
        };
        Ok(output(y, (d.batch, d.queries, d.channels)))
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
    /// What the forward gave, its statistics behind it.
    y: Tensor,
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
        let arguments = self.op.arguments(qs, ql, kvs, kvl)?;
        let d = arguments.dims;
        let (storage, _) = self.y.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("the result of a CPU op must be in main memory") };
        let y = storage.as_slice::<f32>()?;
        if y.len() != d.result_with_statistics() {
            bail!("the backward of attention takes what its forward gave")
        }
        let sought = backward::Sought { arguments, dy: Rows::new(gs, gl)?, y };
        let both = with_token!(self.op.isa, token => backward::backward(token, &sought, self.op.precision));
        let len = both.len();
        Ok(output(both, len))
    }
}
