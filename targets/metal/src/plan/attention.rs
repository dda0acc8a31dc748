//! Attention: in the device maker's fused kernel where it has the head size in f16, else by products and our softmax, some
//! queries at a time and in f32, which on these GPUs costs no more and keeps the scores exact. Backward always so: the
//! probabilities are computed again.

use super::{Bench, pointwise, steps};
use crate::machine::{FUSED_HEADS, FusedAttention, Kind, Machine, Matrix, Place, Product, SIMD, Strided, parameters};
use candle_core::{Result, bail};
use std::ops::Range;

/// `q: [batch, queries, channels]`, `kv: [batch, keys, 2 channels]`, keys before values.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Pictures.
    pub batch: usize,
    /// Rows of `q`.
    pub queries: usize,
    /// Rows of `kv`.
    pub keys: usize,
    /// Of a query, of all heads.
    pub channels: usize,
    /// Divides `channels`.
    pub heads: usize,
    /// Whether a query sees only keys up to its own place.
    pub causal: bool,
}

/// Rows that lie apart; each is contiguous.
#[derive(Debug)]
pub struct Rows<'a, M> {
    /// The first.
    pub place: Place<'a, M>,
    /// Numbers from one picture to the next.
    pub picture_stride: usize,
    /// Numbers from one row to the next.
    pub row_stride: usize,
}

impl<M> Clone for Rows<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Rows<'_, M> {}

impl<'a, M> Rows<'a, M> {
    /// `rows` of `width` numbers without gaps.
    fn dense(place: Place<'a, M>, rows: usize, width: usize) -> Self {
        Rows { place, picture_stride: rows * width, row_stride: width }
    }

    /// From a row of a picture and a column on, in f32.
    fn at(&self, picture: usize, row: usize, column: usize) -> Place<'a, M> {
        self.place.after(picture * self.picture_stride + row * self.row_stride + column, Kind::F32)
    }
}

parameters! {
    /// Rows cut into heads.
    Heads {
        count: usize,
        rows: usize,
        picture_stride: usize,
        row_stride: usize,
        heads: usize,
        per_head: usize,
        padded: usize,
    }
}

parameters! {
    /// Scores of some queries.
    Scores { count: usize, queries: usize, keys: usize, first_query: usize, causal: bool, scale: f32 }
}

impl Shape {
    fn per_head(&self) -> usize {
        self.channels / self.heads
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.per_head() as f64).sqrt()) as f32
    }

    fn check(&self) -> Result<()> {
        let empty = self.batch * self.queries * self.keys * self.channels == 0;
        if self.heads == 0 || !self.channels.is_multiple_of(self.heads) || empty {
            bail!("attention of {} heads got {self:?}", self.heads)
        }
        if self.causal && self.queries != self.keys {
            bail!("causal attention of {} queries to {} keys", self.queries, self.keys)
        }
        Ok(())
    }

    /// How many queries' scores of all heads may be kept at once in so many matrices.
    fn queries_at_once(&self, bytes: usize, matrices: usize) -> usize {
        (bytes / (matrices * self.heads * self.keys * Kind::F32.bytes())).clamp(1, self.queries)
    }
}

/// `y: [batch, queries, channels]`, dense.
///
/// # Errors
/// If the shapes do not belong together; what the device says.
pub fn forward<D: Machine>(
    bench: Bench<'_, D>,
    shape: Shape,
    q: Rows<'_, D::Memory>,
    kv: Rows<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    shape.check()?;
    if bench.kind == Kind::F32 {
        return by_products(bench, shape, q, kv, y);
    }
    let fused = FUSED_HEADS.into_iter().find(|&size| size >= shape.per_head());
    if let (Some(size), false) = (fused, shape.causal) {
        return in_one_kernel(bench, shape, size, q, kv, y);
    }
    let Shape { batch, queries, keys, channels, .. } = shape;
    let [wide_q, wide_kv, wide_y] = [queries * channels, 2 * keys * channels, queries * channels]
        .map(|numbers| bench.machine.temporary(batch * numbers * Kind::F32.bytes()));
    let (wide_q, wide_kv, wide_y) = (wide_q?, wide_kv?, wide_y?);
    let q = widen(bench, (batch, queries, channels), q, Place::start(&*wide_q))?;
    let kv = widen(bench, (batch, keys, 2 * channels), kv, Place::start(&*wide_kv))?;
    by_products(bench.with(Kind::F32), shape, q, kv, Place::start(&*wide_y))?;
    pointwise::narrow(bench, batch * queries * channels, Place::start(&*wide_y), y)
}

/// Rows in f32, dense.
fn widen<'a, D: Machine>(
    bench: Bench<'_, D>,
    (batch, rows, width): (usize, usize, usize),
    x: Rows<'_, D::Memory>,
    into: Place<'a, D::Memory>,
) -> Result<Rows<'a, D::Memory>> {
    let (picture_stride, row_stride, count) = (x.picture_stride, x.row_stride, batch * rows * width);
    let heads = Heads { count, rows, picture_stride, row_stride, heads: 1, per_head: width, padded: width };
    bench.run("widen_rows", &[x.place], &[into], &heads.words()?, count)?;
    Ok(Rows::dense(into, rows, width))
}

/// In heads of `size`, padded with zeros if they are smaller. The scale is that of the true size.
fn in_one_kernel<D: Machine>(
    bench: Bench<'_, D>,
    shape: Shape,
    size: usize,
    q: Rows<'_, D::Memory>,
    kv: Rows<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    let Shape { batch, queries, keys, channels, heads, .. } = shape;
    if size == shape.per_head() {
        return attend(bench, shape, size, q, kv, y);
    }
    let width = heads * size;
    let padded_q = bench.numbers(batch * queries * width)?;
    let padded_kv = bench.numbers(batch * keys * 2 * width)?;
    let padded_y = bench.numbers(batch * queries * width)?;
    let per_head = shape.per_head();
    for (rows, heads, from, into) in [(queries, heads, q, &padded_q), (keys, 2 * heads, kv, &padded_kv)] {
        let (picture_stride, row_stride, count) = (from.picture_stride, from.row_stride, batch * rows * heads * size);
        let heads = Heads { count, rows, picture_stride, row_stride, heads, per_head, padded: size };
        bench.run("pad_heads", &[from.place], &[Place::start(&**into)], &heads.words()?, count)?;
    }
    let q = Rows::dense(Place::start(&*padded_q), queries, width);
    let kv = Rows::dense(Place::start(&*padded_kv), keys, 2 * width);
    attend(bench, shape, size, q, kv, Place::start(&*padded_y))?;
    let count = batch * queries * channels;
    let (picture_stride, row_stride) = (queries * width, width);
    let unpad = Heads { count, rows: queries, picture_stride, row_stride, heads, per_head, padded: size };
    bench.run("unpad_heads", &[Place::start(&*padded_y)], &[y], &unpad.words()?, count)
}

/// Of heads that have `size` channels each; `y` dense.
fn attend<D: Machine>(
    bench: Bench<'_, D>,
    shape: Shape,
    size: usize,
    q: Rows<'_, D::Memory>,
    kv: Rows<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    let width = shape.heads * size;
    let strided = |rows: Rows<'_, _>| [rows.picture_stride, size, rows.row_stride];
    bench.machine.attend(FusedAttention {
        batch: shape.batch,
        heads: shape.heads,
        queries: shape.queries,
        keys: shape.keys,
        per_head: size,
        scale: shape.scale(),
        q: Strided { place: q.place, strides: strided(q) },
        k: Strided { place: kv.place, strides: strided(kv) },
        v: Strided { place: kv.place.after(width, bench.kind), strides: strided(kv) },
        y: Strided { place: y, strides: [shape.queries * width, size, width] },
    })
}

/// One picture of an attention in f32.
struct Picture<'a, 'm, D: Machine> {
    bench: Bench<'a, D>,
    shape: Shape,
    picture: usize,
    q: Rows<'m, D::Memory>,
    kv: Rows<'m, D::Memory>,
}

impl<'m, D: Machine> Picture<'_, 'm, D> {
    /// Multiplies one matrix for each head; they lie `batch_stride` apart.
    fn multiply(
        &self,
        size: (usize, usize, usize),
        a: Matrix<'_, D::Memory>,
        b: Matrix<'_, D::Memory>,
        d: Matrix<'_, D::Memory>,
    ) -> Result<()> {
        self.bench.machine.multiply(Product { kind: Kind::F32, batch: self.shape.heads, size, a, b, d })
    }

    /// Some rows, a matrix for each head.
    fn heads<'r>(&self, rows: &Rows<'r, D::Memory>, row: usize, column: usize) -> Matrix<'r, D::Memory> {
        Matrix::new(rows.at(self.picture, row, column), rows.row_stride).every(self.shape.per_head())
    }

    /// `[heads, some queries, keys]`.
    fn scores<'r>(&self, place: Place<'r, D::Memory>, some: &Range<usize>) -> Matrix<'r, D::Memory> {
        Matrix::new(place, self.shape.keys).every(some.len() * self.shape.keys)
    }

    /// Rows of queries against those of keys or of values, into `[heads, some queries, keys]`.
    fn against(
        &self,
        rows: Matrix<'_, D::Memory>,
        column: usize,
        some: &Range<usize>,
        into: Place<'_, D::Memory>,
    ) -> Result<()> {
        let turned = Matrix { transposed: true, ..self.heads(&self.kv, 0, column) };
        self.multiply((some.len(), self.shape.keys, self.shape.per_head()), rows, turned, self.scores(into, some))
    }

    fn parameters(&self, some: &Range<usize>, count: usize) -> Result<Vec<u32>> {
        let Shape { keys, causal, .. } = self.shape;
        let (queries, first_query) = (some.len(), some.start);
        Scores { count, queries, keys, first_query, causal, scale: self.shape.scale() }.words()
    }

    fn probabilities(&self, some: &Range<usize>, into: Place<'_, D::Memory>) -> Result<()> {
        self.against(self.heads(&self.q, some.start, 0), 0, some, into)?;
        let rows = self.shape.heads * some.len();
        self.bench.run("softmax_rows", &[], &[into], &self.parameters(some, rows)?, rows * SIMD)
    }

    fn forward(&self, y: &Rows<'_, D::Memory>, scores: Place<'_, D::Memory>, step: usize) -> Result<()> {
        let Shape { queries, keys, channels, .. } = self.shape;
        for some in steps(queries, step) {
            self.probabilities(&some, scores)?;
            let (p, v) = (self.scores(scores, &some), self.heads(&self.kv, 0, channels));
            self.multiply((some.len(), self.shape.per_head(), keys), p, v, self.heads(y, some.start, 0))?;
        }
        Ok(())
    }

    /// `dots`: what `dy` times `y` is for each query and head. `summand` has room for a picture's `dkv`.
    fn backward(&self, given: &Given<'_, D::Memory>, work: &Work<'_, D::Memory>) -> Result<()> {
        let Shape { queries, keys, channels, .. } = self.shape;
        let per_head = self.shape.per_head();
        for some in steps(queries, work.step) {
            self.probabilities(&some, work.probabilities)?;
            let dy = || self.heads(&given.dy, some.start, 0);
            self.against(dy(), channels, &some, work.slopes)?;
            let count = self.shape.heads * some.len() * keys;
            let dots = work.dots.after(self.picture * queries * self.shape.heads, Kind::F32);
            let reads = [work.probabilities, dots];
            self.bench.run("score_slopes", &reads, &[work.slopes], &self.parameters(&some, count)?, count)?;

            let ds = || self.scores(work.slopes, &some);
            let dq = self.heads(&given.dq, some.start, 0);
            self.multiply((some.len(), per_head, keys), ds(), self.heads(&self.kv, 0, 0), dq)?;
            // the first queries' share of dkv is written where it belongs, the others' are added to it
            let dkv = given.dkv.at(self.picture, 0, 0);
            let into = if some.start == 0 { dkv } else { work.summand };
            let share = |column| Matrix::new(into.after(column, Kind::F32), 2 * channels).every(per_head);
            let turned = |matrix| Matrix { transposed: true, ..matrix };
            let size = (keys, per_head, some.len());
            self.multiply(size, turned(ds()), self.heads(&self.q, some.start, 0), share(0))?;
            self.multiply(size, turned(self.scores(work.probabilities, &some)), dy(), share(channels))?;
            if some.start != 0 {
                pointwise::add(self.bench, 2 * keys * channels, work.summand, dkv, dkv)?;
            }
        }
        Ok(())
    }
}

/// What the backward reads and writes, in f32.
struct Given<'a, M> {
    dy: Rows<'a, M>,
    dq: Rows<'a, M>,
    dkv: Rows<'a, M>,
}

/// What it needs in passing.
struct Work<'a, M> {
    step: usize,
    probabilities: Place<'a, M>,
    slopes: Place<'a, M>,
    dots: Place<'a, M>,
    summand: Place<'a, M>,
}

/// In f32; `y` dense.
fn by_products<D: Machine>(
    bench: Bench<'_, D>,
    shape: Shape,
    q: Rows<'_, D::Memory>,
    kv: Rows<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    let step = shape.queries_at_once(bench.limits.temporary, 1);
    let scores = bench.numbers(shape.heads * step * shape.keys)?;
    let y = Rows::dense(y, shape.queries, shape.channels);
    for picture in 0..shape.batch {
        Picture { bench, shape, picture, q, kv }.forward(&y, Place::start(&*scores), step)?;
    }
    Ok(())
}

/// The gradients of `q` and `kv`, one behind the other in `both`; `y`, what the forward gave, and `dy` are dense.
///
/// # Errors
/// As [`forward`].
pub fn backward<D: Machine>(
    bench: Bench<'_, D>,
    shape: Shape,
    q: Rows<'_, D::Memory>,
    kv: Rows<'_, D::Memory>,
    (y, dy): (Place<'_, D::Memory>, Place<'_, D::Memory>),
    both: Place<'_, D::Memory>,
) -> Result<()> {
    shape.check()?;
    let Shape { batch, queries, keys, channels, .. } = shape;
    if bench.kind == Kind::F32 {
        let dense = |place| Rows::dense(place, queries, channels);
        return backward_by_products(bench, shape, q, kv, (dense(y), dense(dy)), both);
    }
    let numbers = [queries, 2 * keys, queries, queries, queries + 2 * keys].map(|rows| batch * rows * channels);
    let mut wide = Vec::with_capacity(numbers.len());
    for numbers in numbers {
        wide.push(bench.machine.temporary(numbers * Kind::F32.bytes())?);
    }
    let q = widen(bench, (batch, queries, channels), q, Place::start(&*wide[0]))?;
    let kv = widen(bench, (batch, keys, 2 * channels), kv, Place::start(&*wide[1]))?;
    let size = (batch, queries, channels);
    let y = widen(bench, size, Rows::dense(y, queries, channels), Place::start(&*wide[2]))?;
    let dy = widen(bench, size, Rows::dense(dy, queries, channels), Place::start(&*wide[3]))?;
    let wide_both = Place::start(&*wide[4]);
    backward_by_products(bench.with(Kind::F32), shape, q, kv, (y, dy), wide_both)?;
    pointwise::narrow(bench, numbers[4], wide_both, both)
}

/// In f32.
fn backward_by_products<D: Machine>(
    bench: Bench<'_, D>,
    shape: Shape,
    q: Rows<'_, D::Memory>,
    kv: Rows<'_, D::Memory>,
    (y, dy): (Rows<'_, D::Memory>, Rows<'_, D::Memory>),
    both: Place<'_, D::Memory>,
) -> Result<()> {
    let Shape { batch, queries, keys, channels, heads, .. } = shape;
    let step = shape.queries_at_once(bench.limits.temporary, 2);
    let scores = heads * step * keys;
    let (probabilities, slopes) = (bench.numbers(scores)?, bench.numbers(scores)?);
    let (dots, summand) = (bench.numbers(batch * queries * heads)?, bench.numbers(2 * keys * channels)?);
    let work = Work {
        step,
        probabilities: Place::start(&*probabilities),
        slopes: Place::start(&*slopes),
        dots: Place::start(&*dots),
        summand: Place::start(&*summand),
    };

    let (count, per_head) = (batch * queries * heads, shape.per_head());
    let (picture_stride, row_stride) = (queries * channels, channels);
    let rows = Heads { count, rows: queries, picture_stride, row_stride, heads, per_head, padded: per_head };
    bench.run("head_dots", &[y.place, dy.place], &[work.dots], &rows.words()?, count * SIMD)?;
    let given = Given {
        dy,
        dq: Rows::dense(both, queries, channels),
        dkv: Rows::dense(both.after(batch * queries * channels, Kind::F32), keys, 2 * channels),
    };
    for picture in 0..batch {
        Picture { bench, shape, picture, q, kv }.backward(&given, &work)?;
    }
    Ok(())
}
