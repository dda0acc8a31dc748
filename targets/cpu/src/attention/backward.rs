//! The backward of attention in tiles (arXiv 2205.14135, algorithm 4): the probabilities P are computed again from the
//! scores and what the forward says of them, block by block.
//!
//! With dP = dy v^T: dS = P (dP - rowsum(P dP)), dq = dS k / sqrt(d), dk = dS^T q / sqrt(d), dv = P^T dy; and
//! rowsum(P dP) is dy y. P is an exponential over the query's sum of them; dy is divided by that sum instead.

use super::packed::{
    HeadRows, channels_in_tiles, columns, line, lines, put_rows, queries_in_tiles, rows_in_tiles, whole,
};
use super::products::{Products, Vector};
use super::tiled::{PerQuery, Tiles, across, hide, weigh};
use super::{Arguments, Destination, Dims, Precision, Rows, written};
use crate::float::Floats;
use crate::isa::Work;
use rayon::prelude::*;
use std::cell::RefCell;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// The most keys of a block, but for whole tiles: four matrices like its scores stay in the first-level cache.
const KEYS: usize = 64;
/// Blocks of queries that meet a block of keys one after the other, so that its sums over queries come from the second-level
/// cache once for all of them.
const BLOCKS: usize = 8;
/// Parts of the work, if the heads are fewer. Each has sums of its own for all keys, which are added in order, so that
/// the number of threads does not matter to the result.
const PARTS: usize = 16;

/// What a backward is computed of.
pub(super) struct Sought<'a> {
    pub(super) arguments: Arguments<'a>,
    pub(super) dy: Rows<'a>,
    /// What the forward gave, its statistics included.
    pub(super) y: &'a [f32],
}

/// Some queries of one head of one picture, computed by one thread.
pub(super) struct Part<'a, 'b> {
    pub(super) precision: Precision,
    sought: &'a Sought<'b>,
    picture: usize,
    head: usize,
    queries: Range<usize>,
    /// The queries' gradients go here.
    both: &'a Destination<'a>,
    /// This part's share in the gradients of keys, then in those of values: [`Sums`].
    sums: &'a mut [f32],
    scratch: &'a mut Scratch,
}

struct Attend<'a, 'b, K>(K, Part<'a, 'b>);

impl<K: Tiles> Work for Attend<'_, '_, K> {
    #[inline(always)]
    fn run(self) {
        self.0.attend_back(self.1);
    }
}

/// What a thread keeps from one part to the next, since pages that are given back must be cleared to be had again.
#[derive(Default)]
struct Scratch {
    row: Vec<f32>,
    k: Vec<f32>,
    k_channels: Vec<f32>,
    v: Vec<f32>,
    blocks: [[Vec<f32>; 5]; BLOCKS],
    matrices: [Vec<f32>; 4],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// How a part's sums lie: for keys and for values `[channels / width][keys][width]`, the last of both padded.
#[derive(Clone, Copy)]
struct Sums {
    width: usize,
    keys: usize,
    tiles: usize,
}

impl Sums {
    fn new<K: Tiles>(dims: Dims) -> Self {
        let width = K::QUERIES;
        Sums { width, keys: dims.keys.next_multiple_of(K::ROWS), tiles: dims.per_head.div_ceil(width) }
    }

    /// Numbers for keys or for values.
    fn half(self) -> usize {
        self.tiles * self.keys * self.width
    }
}

/// The gradients of queries, then those of keys and values.
pub(super) fn backward<K: Tiles>(kernel: K, sought: &Sought<'_>, precision: Precision) -> Vec<f32> {
    let dims = sought.arguments.dims;
    let queries = dims.queries.div_ceil(PARTS.div_ceil(dims.batch * dims.heads)).next_multiple_of(K::QUERIES);
    let parts = dims.queries.div_ceil(queries);
    let shape = Sums::new::<K>(dims);
    let mut sums = vec![0.0; dims.batch * dims.heads * parts * 2 * shape.half()];
    let part = |(i, sums): (usize, &mut [f32]), both: &Destination<'_>| {
        let (head, first) = (i / parts, i % parts * queries);
        SCRATCH.with_borrow_mut(|scratch| {
            let (picture, head) = (head / dims.heads, head % dims.heads);
            let queries = first..(first + queries).min(dims.queries);
            kernel.vectorize(Attend(kernel, Part { precision, sought, picture, head, queries, both, sums, scratch }));
        });
    };
    let len = dims.result() + dims.batch * dims.keys * 2 * dims.channels;
    // SAFETY: the parts write every head's queries, the totals every head's keys and values.
    unsafe {
        written(len, |both| {
            let tasks = sums.par_chunks_exact_mut(2 * shape.half()).enumerate().with_max_len(1);
            tasks.for_each(|task| part(task, both));
            let heads = sums.par_chunks_exact(parts * 2 * shape.half()).enumerate();
            heads.for_each(|(head, sums)| total(dims, shape, head, sums, both));
        })
    }
}

/// The gradients of one head's keys and values, from those of its parts.
fn total(dims: Dims, shape: Sums, head: usize, sums: &[f32], both: &Destination<'_>) {
    let (picture, head) = (head / dims.heads, head % dims.heads);
    // queries were multiplied with log2(e) / sqrt(d)
    for (half, scale) in [LN_2, 1.0].into_iter().enumerate() {
        for tile in 0..shape.tiles {
            let channels = tile * shape.width..dims.per_head.min((tile + 1) * shape.width);
            for key in 0..dims.keys {
                let row = (picture * dims.keys + key) * 2 + half;
                let at = dims.result() + row * dims.channels + head * dims.per_head + channels.start;
                // SAFETY: these channels of this key belong to this head alone.
                let into = unsafe { both.part(at, channels.len()) };
                let from = half * shape.half() + (tile * shape.keys + key) * shape.width;
                let first = &sums[from..][..channels.len()];
                into.iter_mut().zip(first).for_each(|(into, &sum)| _ = into.write(sum * scale));
                for sums in sums.chunks_exact(2 * shape.half()).skip(1) {
                    for (into, sum) in into.iter_mut().zip(&sums[from..]) {
                        // SAFETY: written above.
                        let before = unsafe { into.assume_init() };
                        into.write(before + sum * scale);
                    }
                }
            }
        }
    }
}

/// A block of queries.
struct Block<'a, const QUERIES: usize> {
    /// Queries times log2(e) / sqrt(d) and slopes over the sum of exponentials: `[cells of channels]`.
    q: &'a mut [[f32; QUERIES]],
    dy: &'a mut [[f32; QUERIES]],
    /// The same, channels in the lanes: `[channels / QUERIES][cells of queries]`.
    q_tiles: &'a mut [[f32; QUERIES]],
    dy_tiles: &'a mut [[f32; QUERIES]],
    /// The gradient of queries, `[channels]`, whole tiles and registers.
    dq: &'a mut [[f32; QUERIES]],
    /// Largest score.
    max: PerQuery<QUERIES>,
    /// One over the sum of exponentials.
    share: PerQuery<QUERIES>,
    /// Sum over all keys of probability times slope, with `share` in it.
    dots: PerQuery<QUERIES>,
}

/// What a block of queries and a block of keys have to do with each other.
struct Matrices<'a, const QUERIES: usize> {
    /// `[keys]`: scores, then cells of their slopes, of which two keys may share one.
    scores: &'a mut [[f32; QUERIES]],
    /// `[keys]`: slopes of probabilities.
    slopes: &'a mut [[f32; QUERIES]],
    /// `[keys][cells of queries]`: exponentials, and slopes of scores.
    exps: &'a mut [f32],
    score_slopes: &'a mut [f32],
}

#[inline(always)]
pub(super) fn attend<P: Products, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(
    p: P,
    part: Part<'_, '_>,
) {
    let Part { sought, picture, head, queries, both, sums, scratch, .. } = part;
    let Scratch { row, k, k_channels, v, blocks, matrices } = scratch;
    let Arguments { dims, causal, .. } = sought.arguments;
    let [_, key_rows, value_rows] = sought.arguments.of_head(picture, head);
    let d = dims.per_head;
    let keys = if causal { queries.end } else { dims.keys };
    // of all keys, also where the part sees fewer: the order of sums must not depend on the parts
    let key_block = dims.keys.div_ceil(dims.keys.div_ceil(KEYS)).next_multiple_of(ROWS);
    let k = rows_in_tiles::<P, ROWS>(p, key_rows, keys, row, k);
    let v = rows_in_tiles::<P, ROWS>(p, value_rows, keys, row, v);
    let k_channels = channels_in_tiles::<P, ROWS>(p, key_rows, keys, key_block, row, k_channels);
    let (depth, tiles) = (d.div_ceil(P::DEPTH), d.div_ceil(ROWS));
    let shape = Sums { width: QUERIES, keys: dims.keys.next_multiple_of(ROWS), tiles: d.div_ceil(QUERIES) };
    let (dk, dv) = sums.as_chunks_mut::<QUERIES>().0.split_at_mut(shape.tiles * shape.keys);
    let mut blocks = blocks.each_mut().map(|buffers| Block::<QUERIES>::new::<P, ROWS>(d, buffers));
    let mut matrices = Matrices::<QUERIES>::new::<P>(key_block, matrices);
    for group in queries.clone().step_by(BLOCKS * QUERIES) {
        let firsts = (group..queries.end).step_by(QUERIES);
        for (block, first) in blocks.iter_mut().zip(firsts.clone()) {
            block.begin(p, sought, [picture, head], first..queries.end.min(first + QUERIES), row);
        }
        for first_key in (0..keys).step_by(key_block) {
            let cells = key_block.min(keys - first_key).div_ceil(P::DEPTH);
            let k_channels = &k_channels[first_key / P::DEPTH * tiles..][..cells * tiles];
            for (block, first) in blocks.iter_mut().zip(firsts.clone()) {
                let seen = if causal { queries.end.min(first + QUERIES) } else { keys };
                if seen <= first_key {
                    continue;
                }
                let count = key_block.min(seen - first_key);
                let rows = count.next_multiple_of(ROWS);
                let tile = first_key / ROWS * depth..(first_key + rows) / ROWS * depth;
                across::<P, ROWS, REGISTERS, QUERIES>(p, &k[tile.clone()], block.q, matrices.scores);
                across::<P, ROWS, REGISTERS, QUERIES>(p, &v[tile], block.dy, matrices.slopes);
                if causal {
                    hide(matrices.scores, first, first_key, count);
                }
                matrices.scores[count..rows].as_flattened_mut().fill(f32::NEG_INFINITY);
                matrices.slope::<P, REGISTERS>(p, &block.max, &block.dots, rows);
                let weights = &matrices.scores[..count.div_ceil(P::DEPTH)];
                weigh::<P, ROWS, REGISTERS, QUERIES>(p, k_channels, cells, weights, block.dq);
                let keys = first_key..first_key + rows;
                let of_keys = (&*matrices.score_slopes, &*block.q_tiles);
                collect_all::<P, ROWS, REGISTERS, QUERIES>(p, d, of_keys, dk, shape.keys, keys.clone());
                let of_values = (&*matrices.exps, &*block.dy_tiles);
                collect_all::<P, ROWS, REGISTERS, QUERIES>(p, d, of_values, dv, shape.keys, keys);
            }
        }
        for (block, first) in blocks.iter_mut().zip(firsts) {
            let count = QUERIES.min(queries.end - first);
            let place = [dims.at(picture, head, first), dims.channels, d];
            let scale = [1.0 / (d as f32).sqrt(); QUERIES];
            // SAFETY: every row of every head belongs to one part, and to one block of it.
            unsafe { put_rows(p.floats(), block.dq, &scale, count, both, place) };
        }
    }
}

/// [`collect`] for all channels, `d`; `sums` are of `all` keys, of which it takes up `keys`.
#[inline(always)]
fn collect_all<P: Products, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(
    p: P,
    d: usize,
    (weights, values): (&[f32], &[[f32; QUERIES]]),
    sums: &mut [[f32; QUERIES]],
    all: usize,
    keys: Range<usize>,
) {
    let tiles = values.chunks_exact(QUERIES / P::DEPTH).zip(sums.chunks_exact_mut(all));
    for (tile, (values, sums)) in tiles.enumerate() {
        let sums = &mut sums[keys.clone()];
        let registers = (d - tile * QUERIES).div_ceil(<P::Floats as Floats>::LANES);
        if registers >= REGISTERS {
            collect::<P, ROWS, REGISTERS, QUERIES>(p, weights, values, sums);
        } else if registers == 2 {
            collect::<P, ROWS, 2, QUERIES>(p, weights, values, sums);
        } else {
            collect::<P, ROWS, 1, QUERIES>(p, weights, values, sums);
        }
    }
}

/// `into[key][channel] +=` the sum over queries of `weights[key]` times `values[..][channel]`, for the channels in the
/// first `REGISTERS` registers.
#[inline(always)]
fn collect<P: Products, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(
    p: P,
    weights: &[f32],
    values: &[[f32; QUERIES]],
    into: &mut [[f32; QUERIES]],
) {
    let f = p.floats();
    let cells = QUERIES / P::DEPTH;
    for (weights, into) in weights.chunks_exact(ROWS * cells).zip(into.chunks_exact_mut(ROWS)) {
        let mut sums = [[f.splat(0.0); REGISTERS]; ROWS];
        for r in 0..ROWS {
            for i in 0..REGISTERS {
                sums[r][i] = f.load(&into[r][i * <P::Floats as Floats>::LANES..]);
            }
        }
        let mut rows = [&weights[..cells]; ROWS];
        for r in 0..ROWS {
            rows[r] = &weights[r * cells..][..cells];
        }
        for (cell, values) in (0..cells).zip(values) {
            let mut registers = [f.splat(0.0); REGISTERS];
            for i in 0..REGISTERS {
                registers[i] = f.load(&values[i * <P::Floats as Floats>::LANES..]);
            }
            for r in 0..ROWS {
                let weight = f.splat(rows[r][cell]);
                for i in 0..REGISTERS {
                    sums[r][i] = p.dot(weight, registers[i], sums[r][i]);
                }
            }
        }
        for r in 0..ROWS {
            for i in 0..REGISTERS {
                f.store(sums[r][i], &mut into[r][i * <P::Floats as Floats>::LANES..]);
            }
        }
    }
}

impl<'a, const QUERIES: usize> Block<'a, QUERIES> {
    #[inline(always)]
    fn new<P: Products, const ROWS: usize>(d: usize, buffers: &'a mut [Vec<f32>; 5]) -> Self {
        let [q, dy, q_tiles, dy_tiles, dq] = buffers;
        let depth = d.div_ceil(P::DEPTH);
        let tiled = d.div_ceil(QUERIES) * (QUERIES / P::DEPTH) * QUERIES;
        Block {
            q: lines(q, depth * QUERIES).as_chunks_mut().0,
            dy: lines(dy, depth * QUERIES).as_chunks_mut().0,
            q_tiles: lines(q_tiles, tiled).as_chunks_mut().0,
            dy_tiles: lines(dy_tiles, tiled).as_chunks_mut().0,
            dq: lines(dq, whole::<ROWS>(d) * QUERIES).as_chunks_mut().0,
            max: PerQuery([0.0; QUERIES]),
            share: PerQuery([0.0; QUERIES]),
            dots: PerQuery([0.0; QUERIES]),
        }
    }

    /// Takes up other queries; those that are missing have no slopes.
    #[inline(always)]
    fn begin<P: Products>(
        &mut self,
        p: P,
        sought: &Sought<'_>,
        [picture, head]: [usize; 2],
        queries: Range<usize>,
        row: &mut Vec<f32>,
    ) {
        let dims = sought.arguments.dims;
        let [q, ..] = sought.arguments.of_head(picture, head);
        let dy = sought.dy.head(picture, head * dims.per_head, dims.per_head);
        let y = &sought.y[dims.at(picture, head, 0)..];
        let y = HeadRows { data: y, stride: dims.channels, channels: dims.per_head };
        let [max, sum] = dims.statistics(picture, head).map(|start| &sought.y[start..][..dims.queries]);
        self.max.0.fill(0.0);
        for (i, query) in queries.clone().enumerate() {
            self.max.0[i] = max[query];
            self.share.0[i] = 1.0 / sum[query];
        }
        let scales = [LOG2_E / (dims.per_head as f32).sqrt(); QUERIES];
        columns(p, q, queries.clone(), &scales, self.q);
        columns(p, dy, queries.clone(), &self.share.0, self.dy);
        // in the order of the slopes of probabilities, so that those of a lone key's cancel to the last bit
        columns(p, y, queries.clone(), &[1.0; QUERIES], &mut self.dq[..self.dy.len()]);
        self.sum_dots(p);
        let row = line(row, dims.per_head, QUERIES);
        queries_in_tiles(p, q, queries.clone(), &scales, row, self.q_tiles);
        queries_in_tiles(p, dy, queries, &self.share.0, row, self.dy_tiles);
        self.dq.as_flattened_mut().fill(0.0);
    }

    /// `dots`, of `dy` and results that lie in the place of `dq`.
    #[inline(always)]
    fn sum_dots<P: Products>(&mut self, p: P) {
        let f = p.floats();
        for at in (0..QUERIES).step_by(<P::Floats as Floats>::LANES) {
            let mut sums = f.splat(0.0);
            for (dy, y) in self.dy.iter().zip(&*self.dq) {
                sums = p.dot(f.load(&y[at..]), f.load(&dy[at..]), sums);
            }
            f.store(sums, &mut self.dots.0[at..]);
        }
    }
}

impl<'a, const QUERIES: usize> Matrices<'a, QUERIES> {
    #[inline(always)]
    fn new<P: Products>(keys: usize, buffers: &'a mut [Vec<f32>; 4]) -> Self {
        let [scores, slopes, exps, score_slopes] = buffers;
        Matrices {
            scores: lines(scores, keys * QUERIES).as_chunks_mut().0,
            slopes: lines(slopes, keys * QUERIES).as_chunks_mut().0,
            exps: lines(exps, keys * QUERIES / P::DEPTH),
            score_slopes: lines(score_slopes, keys * QUERIES / P::DEPTH),
        }
    }

    /// From scores and slopes of probabilities to exponentials and slopes of scores, for `rows` keys, whole tiles.
    #[inline(always)]
    fn slope<P: Products, const REGISTERS: usize>(
        &mut self,
        p: P,
        max: &PerQuery<QUERIES>,
        dots: &PerQuery<QUERIES>,
        rows: usize,
    ) {
        let f = p.floats();
        let mut constants = [[f.splat(0.0); 2]; REGISTERS];
        for i in 0..REGISTERS {
            let at = i * <P::Floats as Floats>::LANES;
            constants[i] = [f.load(&max.0[at..]), f.load(&dots.0[at..])];
        }
        for key in (0..rows).step_by(P::DEPTH) {
            for i in 0..REGISTERS {
                let first = self.slope_of(p, key, i, constants[i]);
                let second = if P::DEPTH == 2 { self.slope_of(p, key + 1, i, constants[i]) } else { first };
                let at = i * <P::Floats as Floats>::LANES;
                f.store(p.beside(first, second), &mut self.scores[key / P::DEPTH][at..]);
            }
        }
    }

    /// The slopes of the scores in one register of one key, which along with the exponentials also go where the sums over
    /// queries read them.
    #[inline(always)]
    fn slope_of<P: Products>(&mut self, p: P, key: usize, register: usize, [max, dot]: [Vector<P>; 2]) -> Vector<P> {
        let f = p.floats();
        let at = register * <P::Floats as Floats>::LANES;
        let exp = p.exp2(f.sub(f.load(&self.scores[key][at..]), max));
        let slope = f.mul(exp, f.sub(f.load(&self.slopes[key][at..]), dot));
        let cell = (key * QUERIES + at) / P::DEPTH;
        p.store_neighbours(exp, &mut self.exps[cell..]);
        p.store_neighbours(slope, &mut self.score_slopes[cell..]);
        slope
    }
}
