//! The forward of attention: blocks of queries against blocks of keys with a running softmax (arXiv 1805.02867,
//! 2205.14135), so that no more than a block of scores ever exists.
//!
//! Queries lie in the lanes of registers, so that the softmax needs no sums across lanes and any number of channels a head
//! fills whole registers.

use super::{Dims, Rows};
use crate::float::{Floats, exp2_of_nonpositive};
use crate::isa::{self, Work};
use rayon::prelude::*;
use std::cell::RefCell;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// The most keys of a block, but for whole tiles: its scores stay in the first-level cache.
const KEYS: usize = 128;
/// Parts of the work that a thread gets, if there are enough: threads that are disturbed leave theirs to others.
const PARTS_PER_THREAD: usize = 4;
/// Numbers in a cache line.
const LINE: usize = 16;

/// How an instruction set computes a part.
pub(super) trait Tiles: Floats {
    /// Queries of a block: those in the registers of a tile.
    const QUERIES: usize;

    /// Must be `#[inline(always)]`.
    fn attend(self, part: Part<'_, '_>);
}

/// `token: rows of a tile x registers of a row`.
macro_rules! tiles {
    ($($(#[$cfg:meta])* $token:ident: $rows:literal x $registers:literal,)*) => {$(
        $(#[$cfg])*
        impl Tiles for isa::$token {
            const QUERIES: usize = $registers * <isa::$token as Floats>::LANES;

            #[inline(always)]
            fn attend(self, part: Part<'_, '_>) {
                attend::<_, $rows, $registers, { <isa::$token as Tiles>::QUERIES }>(self, part);
            }
        }
    )*};
}

tiles! {
    #[cfg(target_arch = "x86_64")] Amx: 8 x 3,
    #[cfg(target_arch = "x86_64")] Avx512Bf16: 8 x 3,
    #[cfg(target_arch = "x86_64")] Avx512Vnni: 8 x 3,
    #[cfg(target_arch = "x86_64")] AvxVnni: 6 x 2,
    #[cfg(target_arch = "x86_64")] Avx2: 6 x 2,
    #[cfg(target_arch = "aarch64")] NeonI8mm: 8 x 3,
    #[cfg(target_arch = "aarch64")] NeonDotprod: 8 x 3,
    #[cfg(target_arch = "aarch64")] Neon: 8 x 3,
    Scalar: 4 x 2,
}

/// The result, `[B, N, C]`, of which each part writes its own values.
struct Destination {
    start: *mut f32,
    len: usize,
}

// SAFETY: parts write through it from several threads, but no two of them the same values.
unsafe impl Sync for Destination {}

impl Destination {
    /// # Safety
    /// No two live slices may overlap.
    #[expect(clippy::mut_from_ref, reason = "parts share the destination and write different values")]
    unsafe fn part(&self, from: usize, len: usize) -> &mut [f32] {
        assert!(from + len <= self.len);
        // SAFETY: it lies inside what was borrowed for the call that made this; the caller sees to it that no two overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

/// Some queries of one head of one picture, computed by one thread.
pub(super) struct Part<'a, 'b> {
    q: &'a Rows<'b>,
    kv: &'a Rows<'b>,
    dims: Dims,
    causal: bool,
    picture: usize,
    /// The head's first channel.
    column: usize,
    queries: Range<usize>,
    y: &'a Destination,
    scratch: &'a mut Scratch,
}

struct Attend<'a, 'b, K>(K, Part<'a, 'b>);

impl<K: Tiles> Work for Attend<'_, '_, K> {
    #[inline(always)]
    fn run(self) {
        self.0.attend(self.1);
    }
}

/// What a thread keeps from one part to the next, since pages that are given back must be cleared to be had again.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    y: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `len` numbers, whatever they are, that begin with a cache line.
fn lines(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    let skip = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut buffer[skip..skip + len]
}

/// `y: [B, N, C]`, computed on rayon's pool.
pub(super) fn forward<K: Tiles>(kernel: K, q: &Rows<'_>, kv: &Rows<'_>, dims: Dims, causal: bool, y: &mut [f32]) {
    let heads = dims.channels / dims.per_head;
    let threads = rayon::current_num_threads();
    let parts = if threads == 1 { 1 } else { (threads * PARTS_PER_THREAD).div_ceil(dims.batch * heads) };
    let queries = dims.queries.div_ceil(parts).next_multiple_of(K::QUERIES);
    let parts = dims.queries.div_ceil(queries);
    let y = &Destination { start: y.as_mut_ptr(), len: y.len() };
    let part = |i: usize| {
        let (head, first) = (i / parts, i % parts * queries);
        SCRATCH.with_borrow_mut(|scratch| {
            let (picture, column) = (head / heads, head % heads * dims.per_head);
            let queries = first..(first + queries).min(dims.queries);
            kernel.vectorize(Attend(kernel, Part { q, kv, dims, causal, picture, column, queries, y, scratch }));
        });
    };
    match dims.batch * heads * parts {
        1 => part(0),
        all => (0..all).into_par_iter().with_max_len(1).for_each(part),
    }
}

/// The keys and values of a part, packed for the tiles.
struct Packed<'a, const ROWS: usize> {
    /// `[keys / ROWS][channels][ROWS]`, zero beyond the last key.
    k: &'a [[f32; ROWS]],
    /// Block by block, `[channels / ROWS][keys of the block][ROWS]`, zero beyond the last channel.
    v: &'a [[f32; ROWS]],
    /// Keys.
    keys: usize,
    /// Keys of each block but the last, a multiple of ROWS.
    block: usize,
    /// Channels.
    channels: usize,
}

impl<'a, const ROWS: usize> Packed<'a, ROWS> {
    #[inline(always)]
    fn new(kv: &Rows<'_>, dims: Dims, picture: usize, column: usize, keys: usize, into: [&'a mut Vec<f32>; 2]) -> Self {
        let channels = dims.per_head;
        let block = keys.div_ceil(keys.div_ceil(KEYS)).next_multiple_of(ROWS);
        let tiles = channels.div_ceil(ROWS);
        let [k, v] = into;
        let k = lines(k, keys.next_multiple_of(ROWS) * channels).as_chunks_mut::<ROWS>().0;
        let v = lines(v, keys * tiles * ROWS).as_chunks_mut::<ROWS>().0;
        for (tile, into) in k.chunks_exact_mut(channels).enumerate() {
            for r in 0..ROWS {
                let key = tile * ROWS + r;
                if key < keys {
                    let row = &kv.row(picture, key)[column..column + channels];
                    into.iter_mut().zip(row).for_each(|(into, &x)| into[r] = x);
                } else {
                    into.iter_mut().for_each(|into| into[r] = 0.0);
                }
            }
        }
        for key in 0..keys {
            let row = &kv.row(picture, key)[dims.channels + column..][..channels];
            let (first, in_block) = (key / block * block, key % block);
            let count = block.min(keys - first);
            for (tile, x) in row.chunks(ROWS).enumerate() {
                let into = &mut v[first * tiles + tile * count + in_block];
                match x.first_chunk::<ROWS>() {
                    Some(x) => *into = *x,
                    None => {
                        *into = [0.0; ROWS];
                        into[..x.len()].copy_from_slice(x);
                    }
                }
            }
        }
        Packed { k, v, keys, block, channels }
    }
}

/// Numbers of every query of a block.
#[repr(align(64))]
struct PerQuery<const QUERIES: usize>([f32; QUERIES]);

/// A block of queries: what is known of the keys so far.
struct Block<'a, const QUERIES: usize> {
    /// Queries times log2(e) / sqrt(d): `[channels]`.
    q: &'a mut [[f32; QUERIES]],
    /// `[keys]`: scores, then their exponentials.
    scores: &'a mut [[f32; QUERIES]],
    /// Weighted sums of values, `[channels]`, those of the last tile beyond the head's included.
    y: &'a mut [[f32; QUERIES]],
    /// Largest score.
    max: PerQuery<QUERIES>,
    /// Sum of exponentials of score minus largest score.
    sum: PerQuery<QUERIES>,
    /// What sums are multiplied with where the largest score grows.
    correction: PerQuery<QUERIES>,
}

#[inline(always)]
fn attend<F: Floats, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(f: F, part: Part<'_, '_>) {
    let Part { q, kv, dims, causal, picture, column, queries, y, scratch } = part;
    let Scratch { q: q_buffer, k, v, scores, y: y_buffer } = scratch;
    let keys = if causal { queries.end } else { dims.keys };
    let packed = Packed::<ROWS>::new(kv, dims, picture, column, keys, [k, v]);
    let d = dims.per_head;
    let mut block = Block::<QUERIES> {
        q: lines(q_buffer, d * QUERIES).as_chunks_mut().0,
        scores: lines(scores, packed.block * QUERIES).as_chunks_mut().0,
        y: lines(y_buffer, d.next_multiple_of(ROWS) * QUERIES).as_chunks_mut().0,
        max: PerQuery([0.0; QUERIES]),
        sum: PerQuery([0.0; QUERIES]),
        correction: PerQuery([0.0; QUERIES]),
    };
    for first in queries.clone().step_by(QUERIES) {
        let count = QUERIES.min(queries.end - first);
        block.begin((first..first + count).map(|i| &q.row(picture, i)[column..column + d]));
        let seen = if causal { first + count } else { keys };
        for first_key in (0..seen).step_by(packed.block) {
            let count = packed.block.min(seen - first_key);
            block.score::<F, ROWS, REGISTERS>(f, &packed, first_key, count);
            if causal {
                block.hide(first, first_key, count);
            }
            block.soften::<F, REGISTERS>(f, count);
            block.weigh::<F, ROWS, REGISTERS>(f, &packed, first_key, count);
        }
        for i in 0..count {
            let from = (picture * dims.queries + first + i) * dims.channels + column;
            // SAFETY: every row of every head belongs to one part, and to one block of it.
            let y = unsafe { y.part(from, d) };
            let share = 1.0 / block.sum.0[i];
            y.iter_mut().zip(&*block.y).for_each(|(y, sums)| *y = sums[i] * share);
        }
    }
}

impl<const QUERIES: usize> Block<'_, QUERIES> {
    /// Takes up other queries; those that are missing are zero.
    #[inline(always)]
    fn begin<'q>(&mut self, queries: impl ExactSizeIterator<Item = &'q [f32]>) {
        let scale = LOG2_E / (self.q.len() as f32).sqrt();
        if queries.len() < QUERIES {
            self.q.as_flattened_mut().fill(0.0);
        }
        for (i, query) in queries.enumerate() {
            self.q.iter_mut().zip(query).for_each(|(q, &x)| q[i] = x * scale);
        }
        self.y.as_flattened_mut().fill(0.0);
        self.max.0.fill(f32::NEG_INFINITY);
        self.sum.0.fill(0.0);
    }

    /// The scores of all queries with `count` keys.
    #[inline(always)]
    fn score<F: Floats, const ROWS: usize, const REGISTERS: usize>(
        &mut self,
        f: F,
        packed: &Packed<'_, ROWS>,
        first_key: usize,
        count: usize,
    ) {
        let d = packed.channels;
        for tile in 0..count.div_ceil(ROWS) {
            let k = &packed.k[(first_key / ROWS + tile) * d..][..d];
            let mut sums = [[f.splat(0.0); REGISTERS]; ROWS];
            accumulate(f, k, self.q, &mut sums);
            let into = &mut self.scores[tile * ROWS..][..ROWS];
            for r in 0..ROWS {
                for i in 0..REGISTERS {
                    f.store(sums[r][i], &mut into[r][i * F::LANES..]);
                }
            }
        }
    }

    /// Scores of keys behind their query become minus infinity.
    #[inline(always)]
    fn hide(&mut self, first_query: usize, first_key: usize, count: usize) {
        for (key, scores) in (first_key..).zip(&mut self.scores[..count]) {
            let hidden = key.saturating_sub(first_query).min(QUERIES);
            scores[..hidden].fill(f32::NEG_INFINITY);
        }
    }

    /// Scores become exponentials; largest scores and sums are brought up to date.
    #[inline(always)]
    fn soften<F: Floats, const REGISTERS: usize>(&mut self, f: F, count: usize) {
        let scores = &mut self.scores[..count];
        let mut max = [f.splat(0.0); REGISTERS];
        let mut sum = max;
        for i in 0..REGISTERS {
            max[i] = f.load(&self.max.0[i * F::LANES..]);
        }
        let before = max;
        for scores in &*scores {
            for i in 0..REGISTERS {
                max[i] = f.max(max[i], f.load(&scores[i * F::LANES..]));
            }
        }
        for scores in scores {
            for i in 0..REGISTERS {
                let score = &mut scores[i * F::LANES..];
                let exp = exp2_of_nonpositive(f, f.sub(f.load(score), max[i]));
                sum[i] = f.add(sum[i], exp);
                f.store(exp, score);
            }
        }
        for i in 0..REGISTERS {
            let at = i * F::LANES;
            let correction = exp2_of_nonpositive(f, f.sub(before[i], max[i]));
            let sum = f.mul_add(f.load(&self.sum.0[at..]), correction, sum[i]);
            f.store(max[i], &mut self.max.0[at..]);
            f.store(sum, &mut self.sum.0[at..]);
            f.store(correction, &mut self.correction.0[at..]);
        }
    }

    /// Adds `count` values, each times its exponential, to the sums so far.
    #[inline(always)]
    fn weigh<F: Floats, const ROWS: usize, const REGISTERS: usize>(
        &mut self,
        f: F,
        packed: &Packed<'_, ROWS>,
        first_key: usize,
        count: usize,
    ) {
        let tiles = packed.channels.div_ceil(ROWS);
        let rows = packed.block.min(packed.keys - first_key);
        for tile in 0..tiles {
            let v = &packed.v[first_key * tiles + tile * rows..][..count];
            let y = &mut self.y[tile * ROWS..][..ROWS];
            let mut sums = [[f.splat(0.0); REGISTERS]; ROWS];
            for r in 0..ROWS {
                for i in 0..REGISTERS {
                    let at = i * F::LANES;
                    sums[r][i] = f.mul(f.load(&y[r][at..]), f.load(&self.correction.0[at..]));
                }
            }
            accumulate(f, v, &self.scores[..count], &mut sums);
            for r in 0..ROWS {
                for i in 0..REGISTERS {
                    f.store(sums[r][i], &mut y[r][i * F::LANES..]);
                }
            }
        }
    }
}

/// `sums[r][i] += sum over k of a[k][r] * b[k][i]`, i counting registers.
#[inline(always)]
fn accumulate<F: Floats, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(
    f: F,
    a: &[[f32; ROWS]],
    b: &[[f32; QUERIES]],
    sums: &mut [[F::Vector; REGISTERS]; ROWS],
) {
    let mut local = *sums;
    for (a, b) in a.iter().zip(b) {
        let mut registers = [f.splat(0.0); REGISTERS];
        for i in 0..REGISTERS {
            registers[i] = f.load(&b[i * F::LANES..]);
        }
        for r in 0..ROWS {
            let a = f.splat(a[r]);
            for i in 0..REGISTERS {
                local[r][i] = f.mul_add(a, registers[i], local[r][i]);
            }
        }
    }
    *sums = local;
}
