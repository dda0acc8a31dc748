//! The forward of attention: blocks of queries against blocks of keys with a running softmax (arXiv 1805.02867,
//! 2205.14135), so that no more than a block of scores ever exists.

use super::packed::{HeadRows, channels_in_tiles, columns, lines, put_rows, rows_in_tiles, whole};
use super::products::{Products, Vector};
use super::tiled::{PerQuery, Tiles, across, hide, weigh};
use super::{Arguments, Destination, Precision, put};
use crate::float::{Floats, exp2_of_nonpositive};
use crate::isa::Work;
use rayon::prelude::*;
use std::cell::RefCell;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// The most keys of a block, but for whole tiles: its scores stay in the first-level cache.
const KEYS: usize = 128;
/// Parts of the work that a thread gets, if there are enough: threads that are disturbed leave theirs to others.
const PARTS_PER_THREAD: usize = 4;

/// Some queries of one head of one picture, computed by one thread.
pub(super) struct Part<'a, 'b> {
    pub(super) precision: Precision,
    arguments: &'a Arguments<'b>,
    picture: usize,
    head: usize,
    queries: Range<usize>,
    y: &'a Destination<'a>,
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
    row: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    y: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `y`: the result and what [`super::statistics`] says, computed on rayon's pool.
pub(super) fn forward<K: Tiles>(kernel: K, arguments: &Arguments<'_>, precision: Precision, y: &Destination<'_>) {
    let dims = arguments.dims;
    let threads = rayon::current_num_threads();
    let parts = if threads == 1 { 1 } else { (threads * PARTS_PER_THREAD).div_ceil(dims.batch * dims.heads) };
    let queries = dims.queries.div_ceil(parts).next_multiple_of(K::QUERIES);
    let parts = dims.queries.div_ceil(queries);
    let part = |i: usize| {
        let (head, first) = (i / parts, i % parts * queries);
        SCRATCH.with_borrow_mut(|scratch| {
            let (picture, head) = (head / dims.heads, head % dims.heads);
            let queries = first..(first + queries).min(dims.queries);
            kernel.vectorize(Attend(kernel, Part { precision, arguments, picture, head, queries, y, scratch }));
        });
    };
    match dims.batch * dims.heads * parts {
        1 => part(0),
        all => (0..all).into_par_iter().with_max_len(1).for_each(part),
    }
}

/// A block of queries: what is known of the keys so far.
struct Block<'a, const QUERIES: usize> {
    /// Queries times log2(e) / sqrt(d): `[cells of channels]`.
    q: &'a mut [[f32; QUERIES]],
    /// `[keys]`: scores, then cells of their exponentials.
    scores: &'a mut [[f32; QUERIES]],
    /// Weighted sums of values, `[channels]`, whole tiles and registers.
    y: &'a mut [[f32; QUERIES]],
    /// Channels in whole tiles.
    channels: usize,
    /// Largest score.
    max: PerQuery<QUERIES>,
    /// Sum of exponentials of score minus largest score.
    sum: PerQuery<QUERIES>,
}

#[inline(always)]
pub(super) fn attend<P: Products, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(
    p: P,
    part: Part<'_, '_>,
) {
    let Part { arguments, picture, head, queries, y, scratch, .. } = part;
    let Scratch { row, q: q_buffer, k, v, scores, y: y_buffer } = scratch;
    let (dims, causal) = (arguments.dims, arguments.causal);
    let [q, key_rows, value_rows] = arguments.of_head(picture, head);
    let d = dims.per_head;
    let keys = if causal { queries.end } else { dims.keys };
    // of all keys, also where the part sees fewer: the order of sums must not depend on the parts
    let key_block = dims.keys.div_ceil(dims.keys.div_ceil(KEYS)).next_multiple_of(ROWS);
    let k = rows_in_tiles::<P, ROWS>(p, key_rows, keys, row, k);
    let v = channels_in_tiles::<P, ROWS>(p, value_rows, keys, key_block, row, v);
    let (depth, tiles) = (d.div_ceil(P::DEPTH), d.div_ceil(ROWS));
    let mut block = Block::<QUERIES> {
        q: lines(q_buffer, depth * QUERIES).as_chunks_mut().0,
        scores: lines(scores, key_block * QUERIES).as_chunks_mut().0,
        y: lines(y_buffer, whole::<ROWS>(d) * QUERIES).as_chunks_mut().0,
        channels: tiles * ROWS,
        max: PerQuery([0.0; QUERIES]),
        sum: PerQuery([0.0; QUERIES]),
    };
    for first in queries.clone().step_by(QUERIES) {
        let count = QUERIES.min(queries.end - first);
        block.begin(p, q, first..first + count);
        let seen = if causal { first + count } else { keys };
        for first_key in (0..seen).step_by(key_block) {
            let count = key_block.min(seen - first_key);
            let k = &k[first_key / ROWS * depth..][..count.div_ceil(ROWS) * depth];
            across::<P, ROWS, REGISTERS, QUERIES>(p, k, block.q, block.scores);
            if causal {
                hide(block.scores, first, first_key, count);
            }
            let weights = block.soften::<P, REGISTERS>(p, count);
            let cells = key_block.min(keys - first_key).div_ceil(P::DEPTH);
            let v = &v[first_key / P::DEPTH * tiles..][..cells * tiles];
            weigh::<P, ROWS, REGISTERS, QUERIES>(p, v, cells, &block.scores[..weights], block.y);
        }
        let mut shares = [0.0; QUERIES];
        for (share, sum) in shares.iter_mut().zip(block.sum.0) {
            *share = 1.0 / sum;
        }
        let place = [dims.at(picture, head, first), dims.channels, d];
        // SAFETY: every row of every head belongs to one part, and to one block of it.
        unsafe { put_rows(p.floats(), block.y, &shares, count, y, place) };
        // SAFETY: as above.
        let [max, sum] = dims.statistics(picture, head).map(|start| unsafe { y.part(start + first, count) });
        put(max, &block.max.0[..count]);
        put(sum, &block.sum.0[..count]);
    }
}

impl<const QUERIES: usize> Block<'_, QUERIES> {
    /// Takes up other queries; those that are missing are zero.
    #[inline(always)]
    fn begin<P: Products>(&mut self, p: P, q: HeadRows<'_>, queries: Range<usize>) {
        columns(p, q, queries, &[LOG2_E / (q.channels as f32).sqrt(); QUERIES], self.q);
        self.y.as_flattened_mut().fill(0.0);
        self.max.0.fill(f32::NEG_INFINITY);
        self.sum.0.fill(0.0);
    }

    /// `count` scores become cells of exponentials, whose number this gives; largest scores, their sums and those of
    /// values are brought up to date.
    #[inline(always)]
    fn soften<P: Products, const REGISTERS: usize>(&mut self, p: P, count: usize) -> usize {
        let f = p.floats();
        let cells = count.div_ceil(P::DEPTH);
        if P::DEPTH == 2 && count % 2 == 1 {
            self.scores[count] = [f32::NEG_INFINITY; QUERIES];
        }
        let scores = &mut self.scores[..cells * P::DEPTH];
        let mut max = [f.splat(0.0); REGISTERS];
        for i in 0..REGISTERS {
            max[i] = f.load(&self.max.0[i * <P::Floats as Floats>::LANES..]);
        }
        for scores in &*scores {
            for i in 0..REGISTERS {
                max[i] = f.max(max[i], f.load(&scores[i * <P::Floats as Floats>::LANES..]));
            }
        }
        let mut sum = [f.splat(0.0); REGISTERS];
        for cell in 0..cells {
            for i in 0..REGISTERS {
                let at = i * <P::Floats as Floats>::LANES;
                let first = p.exp2(f.sub(f.load(&scores[cell * P::DEPTH][at..]), max[i]));
                let second = match P::DEPTH {
                    2 => p.exp2(f.sub(f.load(&scores[cell * 2 + 1][at..]), max[i])),
                    _ => first,
                };
                let exps = p.beside(first, second);
                sum[i] = p.total(exps, sum[i]);
                f.store(exps, &mut scores[cell][at..]);
            }
        }
        self.correct::<P, REGISTERS>(p, max, sum);
        cells
    }

    /// Sums so far are of exponentials of score minus the largest score so far; now they are of those minus `max`.
    #[inline(always)]
    fn correct<P: Products, const REGISTERS: usize>(
        &mut self,
        p: P,
        max: [Vector<P>; REGISTERS],
        sum: [Vector<P>; REGISTERS],
    ) {
        let f = p.floats();
        let before = PerQuery(self.max.0);
        for i in 0..REGISTERS {
            f.store(max[i], &mut self.max.0[i * <P::Floats as Floats>::LANES..]);
        }
        let mut grown = false;
        for (now, before) in self.max.0.iter().zip(&before.0) {
            grown |= now != before;
        }
        for i in 0..REGISTERS {
            let at = i * <P::Floats as Floats>::LANES;
            // exactly 1 where it stays
            let correction = exp2_of_nonpositive(f, f.sub(f.load(&before.0[at..]), max[i]));
            let sum = f.mul_add(f.load(&self.sum.0[at..]), correction, sum[i]);
            f.store(sum, &mut self.sum.0[at..]);
            if grown {
                for y in &mut self.y[..self.channels] {
                    f.store(f.mul(f.load(&y[at..]), correction), &mut y[at..]);
                }
            }
        }
    }
}
