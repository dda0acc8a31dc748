//! What attention multiplies, in the order in which its tiles read it.

use super::products::{Products, Vector};
use super::squares::{SIDE, Turn};
use super::{Destination, put};
use crate::float::Floats;
use std::ops::Range;

/// Numbers in a cache line.
const LINE: usize = 16;

/// The channels of one head in all rows of one picture.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    /// From the head's first channel on.
    pub(super) data: &'a [f32],
    /// From one row to the next.
    pub(super) stride: usize,
    pub(super) channels: usize,
}

impl<'a> HeadRows<'a> {
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..self.channels]
    }
}

/// `len` numbers, whatever they are, that begin with a cache line.
#[inline(always)]
pub(super) fn lines(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    let skip = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut buffer[skip..skip + len]
}

/// Channels up to whole tiles of `ROWS` and whole registers.
#[inline(always)]
pub(super) fn whole<const ROWS: usize>(channels: usize) -> usize {
    channels.next_multiple_of(LINE).next_multiple_of(ROWS)
}

/// The first numbers of a slice, and zeros beyond it.
#[inline(always)]
fn load<F: Floats>(f: F, x: &[f32]) -> F::Vector {
    if x.len() >= F::LANES {
        return f.load(x);
    }
    // copies of a length known here are a move each, others a call
    let mut padded = [0.0; LINE];
    let mut at = 0;
    if x.len() >= 8 {
        padded[..8].copy_from_slice(&x[..8]);
        at = 8;
    }
    for (into, &x) in padded[at..].iter_mut().zip(&x[at..]) {
        *into = x;
    }
    f.load(&padded)
}

/// Cells of neighbouring numbers times `scale`; the last register is filled with zeros.
#[inline(always)]
pub(super) fn neighbours<P: Products>(p: P, x: &[f32], scale: f32, into: &mut [f32]) {
    let f = p.floats();
    let scale = f.splat(scale);
    for at in (0..x.len()).step_by(<P::Floats as Floats>::LANES) {
        p.store_neighbours(f.mul(load(f, &x[at..]), scale), &mut into[at / P::DEPTH..]);
    }
}

/// Cells of the numbers of two rows, of which the second may be missing, each times a scale of its own; the last register
/// is filled with zeros.
#[inline(always)]
pub(super) fn beside<P: Products>(p: P, first: &[f32], second: &[f32], scales: [f32; 2], into: &mut [f32]) {
    let f = p.floats();
    let scales: [Vector<P>; 2] = [f.splat(scales[0]), f.splat(scales[1])];
    for at in (0..first.len()).step_by(<P::Floats as Floats>::LANES) {
        let first = f.mul(load(f, &first[at..]), scales[0]);
        let second = match second.is_empty() {
            true => f.splat(0.0),
            false => f.mul(load(f, &second[at..]), scales[1]),
        };
        f.store(p.beside(first, second), &mut into[at..]);
    }
}

/// Room for the cells of one row, with zeros behind them up to whole tiles of `width` and whole registers.
#[inline(always)]
pub(super) fn line(buffer: &mut Vec<f32>, channels: usize, width: usize) -> &mut [f32] {
    let line = lines(buffer, channels.next_multiple_of(LINE).next_multiple_of(width));
    line.fill(0.0);
    line
}

/// Rows for products over their channels: `[rows / ROWS][cells of channels][ROWS]`, zero beyond the last row.
#[inline(always)]
pub(super) fn rows_in_tiles<'a, P: Products, const ROWS: usize>(
    p: P,
    rows: HeadRows<'_>,
    count: usize,
    row_buffer: &mut Vec<f32>,
    into: &'a mut Vec<f32>,
) -> &'a [[f32; ROWS]] {
    let cells = rows.channels.div_ceil(P::DEPTH);
    let row = line(row_buffer, rows.channels, ROWS);
    let into = lines(into, count.next_multiple_of(ROWS) * cells).as_chunks_mut::<ROWS>().0;
    for (tile, into) in into.chunks_exact_mut(cells).enumerate() {
        for r in 0..ROWS {
            let i = tile * ROWS + r;
            if i < count {
                neighbours(p, rows.row(i), 1.0, row);
                for (into, &cell) in into.iter_mut().zip(&*row) {
                    into[r] = cell;
                }
            } else {
                for into in into.iter_mut() {
                    into[r] = 0.0;
                }
            }
        }
    }
    into
}

/// Rows for sums over them: block by block `[channels / ROWS][cells of the block's rows][ROWS]`, zero beyond the last
/// channel and, where cells have two, the last row. All blocks but the last have `block` rows, whole cells.
#[inline(always)]
pub(super) fn channels_in_tiles<'a, P: Products, const ROWS: usize>(
    p: P,
    rows: HeadRows<'_>,
    count: usize,
    block: usize,
    row_buffer: &mut Vec<f32>,
    into: &'a mut Vec<f32>,
) -> &'a [[f32; ROWS]] {
    let tiles = rows.channels.div_ceil(ROWS);
    let row = line(row_buffer, rows.channels, ROWS);
    let into = lines(into, count.div_ceil(P::DEPTH) * tiles * ROWS).as_chunks_mut::<ROWS>().0;
    for first in (0..count).step_by(block) {
        let cells = block.min(count - first).div_ceil(P::DEPTH);
        let into = &mut into[first / P::DEPTH * tiles..][..cells * tiles];
        for cell in 0..cells {
            let i = first + cell * P::DEPTH;
            let second = if P::DEPTH == 2 && i + 1 < count { rows.row(i + 1) } else { &[] };
            beside(p, rows.row(i), second, [1.0; 2], row);
            for (tile, row) in row.as_chunks::<ROWS>().0.iter().enumerate().take(tiles) {
                into[tile * cells + cell] = *row;
            }
        }
    }
    into
}

/// Queries as columns, each times a scale of its own: `[cells of channels][QUERIES]`; those that are missing are zero.
#[inline(always)]
pub(super) fn columns<P: Products, const QUERIES: usize>(
    p: P,
    rows: HeadRows<'_>,
    queries: Range<usize>,
    scales: &[f32; QUERIES],
    into: &mut [[f32; QUERIES]],
) {
    let (f, lanes) = (p.floats(), <P::Floats as Floats>::LANES);
    let (mut of_rows, mut turned) = ([[0.0; SIDE]; SIDE], [[0.0; SIDE]; SIDE]);
    for i in (0..QUERIES).step_by(lanes) {
        for cell in (0..into.len()).step_by(lanes) {
            for r in 0..lanes {
                let query = queries.start + i + r;
                let mut cells = [f.splat(0.0); 2];
                if query < queries.end {
                    let x = &rows.row(query)[cell * P::DEPTH..];
                    cells[0] = f.mul(load(f, x), f.splat(scales[i + r]));
                    if P::DEPTH == 2 && x.len() > lanes {
                        cells[1] = f.mul(load(f, &x[lanes..]), f.splat(scales[i + r]));
                    }
                }
                p.store_neighbours(cells[0], &mut of_rows[r]);
                if P::DEPTH == 2 {
                    p.store_neighbours(cells[1], &mut of_rows[r][lanes / 2..]);
                }
            }
            f.turn(&of_rows, 0, &mut turned);
            for (into, turned) in into[cell..].iter_mut().zip(&turned[..lanes]) {
                into[i..i + lanes].copy_from_slice(&turned[..lanes]);
            }
        }
    }
}

/// The columns of `count` queries, each times a scale of its own, as rows of a result: `channels` numbers from `at` on,
/// those of the next query `stride` behind. There must be columns up to whole registers.
///
/// # Safety
/// Nothing else may write these rows' numbers.
#[inline(always)]
pub(super) unsafe fn put_rows<F: Turn, const QUERIES: usize>(
    f: F,
    columns: &mut [[f32; QUERIES]],
    scales: &[f32; QUERIES],
    count: usize,
    into: &Destination<'_>,
    [at, stride, channels]: [usize; 3],
) {
    for i in (0..QUERIES).step_by(F::LANES) {
        let scale = f.load(&scales[i..]);
        for column in &mut columns[..channels] {
            f.store(f.mul(f.load(&column[i..]), scale), &mut column[i..]);
        }
    }
    let mut turned = [[0.0; SIDE]; SIDE];
    for channel in (0..channels).step_by(F::LANES) {
        for i in (0..count).step_by(F::LANES) {
            f.turn(&columns[channel..], i, &mut turned);
            for (r, row) in turned.iter().enumerate().take(F::LANES.min(count - i)) {
                let at = at + (i + r) * stride + channel;
                let width = F::LANES.min(channels - channel);
                // SAFETY: says the caller.
                let into = unsafe { into.part(at, width) };
                match width == F::LANES {
                    true => put(&mut into[..F::LANES], &row[..F::LANES]),
                    false => put(into, &row[..width]),
                }
            }
        }
    }
}

/// Queries for sums over them, each times a scale of its own: `[channels / QUERIES][cells of queries][QUERIES]`, zero
/// beyond the last channel and the last query. `row`: as [`line`] makes it for tiles of `QUERIES`.
#[inline(always)]
pub(super) fn queries_in_tiles<P: Products, const QUERIES: usize>(
    p: P,
    rows: HeadRows<'_>,
    queries: Range<usize>,
    scales: &[f32; QUERIES],
    row: &mut [f32],
    into: &mut [[f32; QUERIES]],
) {
    let cells = QUERIES / P::DEPTH;
    let used = queries.len().div_ceil(P::DEPTH);
    for cell in 0..cells {
        if cell < used {
            let i = cell * P::DEPTH;
            let (query, last) = (queries.start + i, i + P::DEPTH - 1);
            let second = if P::DEPTH == 2 && query + 1 < queries.end { rows.row(query + 1) } else { &[] };
            beside(p, rows.row(query), second, [scales[i], scales[last]], row);
        } else {
            row.fill(0.0);
        }
        for (tile, row) in row.as_chunks::<QUERIES>().0.iter().enumerate() {
            if let Some(into) = into.get_mut(tile * cells + cell) {
                *into = *row;
            }
        }
    }
}
