//! A product cut into blocks for the caches and the cores, and what is common to all instruction sets in it.

use super::PackedWeight;
use super::kernel::{Kernel, Sums, Tile};
use super::pack::{PANEL, padded_inputs};
use crate::isa::Work;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Bytes of gathered activations that leave room for the weights in a second-level cache of 1 MiB.
const BLOCK_BYTES: usize = 1 << 18;
/// Each panel of weights comes from memory once per block, so a block has at least this many rows...
const MIN_ROWS: usize = 64;
/// ...and gathers its rows once for at least this many panels.
const MIN_PANELS: usize = 8;
/// Blocks a thread gets, if there are enough: threads that are disturbed leave theirs to others.
const BLOCKS_PER_THREAD: usize = 4;
/// Between gathered rows, so that rows of 4096 bytes do not meet in the same cache sets.
const ROW_GAP: usize = 64;

/// Quantised activations, row by row.
pub(super) trait Source: Sync {
    /// Rows, M.
    fn len(&self) -> usize;

    /// Writes the K inputs of a row, xor `flip`.
    fn gather(&self, row: usize, flip: u8, into: &mut [u8]);

    /// The scale of a row.
    fn scale(&self, row: usize) -> f32;
}

/// `y[m, n] = f32(sum) * scale[m] * w.scales[n] + bias[n]`.
pub(super) struct Product<'a, S> {
    source: S,
    weight: PackedWeight<'a>,
    bias: Option<&'a [f32]>,
    y: Destination,
}

/// The result, `[M, N]`, of which each block writes its own part.
struct Destination {
    start: *mut f32,
    width: usize,
}

// SAFETY: blocks write through it from several threads, but no two of them the same values.
unsafe impl Sync for Destination {}

impl<'a, S: Source> Product<'a, S> {
    /// # Panics
    /// If `bias` or `y` are not as long as the weight and the rows say.
    pub(super) fn new(source: S, weight: PackedWeight<'a>, bias: Option<&'a [f32]>, y: &'a mut [f32]) -> Self {
        let outputs = weight.outputs();
        assert!(bias.is_none_or(|b| b.len() == outputs), "a bias of another length than {outputs}");
        assert_eq!(y.len(), source.len() * outputs, "a result of {} rows of {outputs}", source.len());
        Product { source, weight, bias, y: Destination { start: y.as_mut_ptr(), width: outputs } }
    }

    /// Part of a row of the result.
    ///
    /// # Safety
    /// No two live slices may overlap.
    #[expect(clippy::mut_from_ref, reason = "blocks share the product and write different parts")]
    unsafe fn result(&self, row: usize, outputs: Range<usize>) -> &mut [f32] {
        assert!(row < self.source.len() && outputs.end <= self.y.width);
        // SAFETY: it lies inside `y`, which was borrowed for 'a; the caller sees to it that no other slice overlaps.
        unsafe { std::slice::from_raw_parts_mut(self.y.start.add(row * self.y.width + outputs.start), outputs.len()) }
    }
}

/// How a product is cut: `rows` times `panels` a block, the last ones smaller.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cut {
    rows: usize,
    panels: usize,
}

impl Cut {
    fn new<K: Kernel>(rows: usize, panels: usize, depth: usize, threads: usize) -> Self {
        let blocks = if threads == 1 { 1 } else { threads * BLOCKS_PER_THREAD };
        let fitting = (BLOCK_BYTES / (depth + ROW_GAP)).max(MIN_ROWS);
        let wanted = rows.div_ceil(blocks).max(MIN_ROWS);
        let block_rows = evenly(rows, fitting.min(wanted).next_multiple_of(K::ROWS), K::ROW_STEP);
        let columns = blocks.div_ceil(rows.div_ceil(block_rows));
        let block_panels = panels.div_ceil(columns).max(MIN_PANELS).next_multiple_of(K::PANELS);
        Cut { rows: block_rows, panels: block_panels.min(panels) }
    }
}

/// The smallest part, a multiple of `step`, that cuts `whole` into as few parts as parts of `largest` do.
fn evenly(whole: usize, largest: usize, step: usize) -> usize {
    whole.div_ceil(whole.div_ceil(largest)).next_multiple_of(step)
}

thread_local! {
    /// A block's gathered activations; kept, since pages that are given back must be cleared to be had again.
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Computes the product on rayon's pool.
pub(super) fn multiply<K: Kernel, S: Source>(kernel: K, product: Product<'_, S>) {
    let (rows, outputs) = (product.source.len(), product.weight.outputs());
    if rows == 0 || outputs == 0 {
        return;
    }
    let (panels, depth) = (outputs.div_ceil(PANEL), padded_inputs(product.weight.inputs));
    let cut = Cut::new::<K>(rows, panels, depth, rayon::current_num_threads());
    let (down, across) = (rows.div_ceil(cut.rows), panels.div_ceil(cut.panels));
    let block = |index: usize| {
        let part = |i: usize, size: usize, whole: usize| i * size..((i + 1) * size).min(whole);
        let (rows, panels) = (part(index / across, cut.rows, rows), part(index % across, cut.panels, panels));
        GATHERED.with_borrow_mut(|gathered| {
            kernel.vectorize(Block { kernel, product: &product, rows, panels, gathered });
        });
    };
    match down * across {
        1 => block(0),
        blocks => (0..blocks).into_par_iter().with_max_len(1).for_each(block),
    }
}

/// A part of the result, computed by one thread.
struct Block<'a, K, S> {
    kernel: K,
    product: &'a Product<'a, S>,
    rows: Range<usize>,
    panels: Range<usize>,
    gathered: &'a mut Vec<u8>,
}

impl<K: Kernel, S: Source> Work for Block<'_, K, S> {
    #[inline(always)]
    fn run(self) {
        let Block { kernel, product, rows, panels, gathered } = self;
        let inputs = product.weight.inputs;
        let depth = padded_inputs(inputs);
        let stride = depth + ROW_GAP;
        let len = rows.len().next_multiple_of(K::ROW_STEP) * stride;
        if gathered.len() < len {
            gathered.resize(len, 0);
        }
        for (row, into) in rows.clone().zip(gathered.chunks_exact_mut(stride)) {
            product.source.gather(row, K::FLIP, &mut into[..inputs]);
        }
        let tile_rows = evenly(rows.len(), K::ROWS, K::ROW_STEP);
        let mut sums = Sums::new();
        kernel.begin();
        for first_panel in panels.clone().step_by(K::PANELS) {
            let count = K::PANELS.min(panels.end - first_panel);
            let weights = &product.weight.packed[first_panel * PANEL * depth..];
            let outputs = Outputs::new::<K>(&product.weight, product.bias, first_panel * PANEL);
            for top in (0..rows.len()).step_by(tile_rows) {
                let height = tile_rows.min(rows.len() - top);
                let size = (height.next_multiple_of(K::ROW_STEP), count);
                kernel.sums(&Tile::new((&gathered[top * stride..], stride), weights, depth, size), &mut sums);
                finish(product, &sums, rows.start + top..rows.start + top + height, &outputs);
            }
        }
        kernel.end();
    }
}

/// What the outputs of some panels need, zero beyond the last output.
struct Outputs {
    first: usize,
    count: usize,
    corrections: [i32; Sums::STRIDE],
    scales: [f32; Sums::STRIDE],
    bias: [f32; Sums::STRIDE],
}

impl Outputs {
    #[inline(always)]
    fn new<K: Kernel>(weight: &PackedWeight<'_>, bias: Option<&[f32]>, first: usize) -> Self {
        let count = (K::PANELS * PANEL).min(weight.outputs() - first);
        // nothing changes when -0 is added to it, not even -0
        let (mut corrections, mut scales, mut biases) = ([0; _], [0.0; _], [-0.0; _]);
        // xor 0x80 added 128 to every activation
        let excess = if K::FLIP == 0x80 { 128 } else { 0 };
        for (i, output) in (first..first + count).enumerate() {
            corrections[i] = excess * weight.sums[output];
            scales[i] = weight.scales[output];
            if let Some(bias) = bias {
                biases[i] = bias[output];
            }
        }
        Outputs { first, count, corrections, scales, bias: biases }
    }

    /// The results of one row of a panel.
    #[inline(always)]
    fn scale(&self, panel: usize, sums: &[i32; Sums::STRIDE], row_scale: f32, results: &mut [f32; PANEL]) {
        for i in 0..PANEL {
            let o = panel * PANEL + i;
            results[i] = (sums[o] - self.corrections[o]) as f32 * row_scale * self.scales[o] + self.bias[o];
        }
    }
}

/// From sums to results.
#[inline(always)]
fn finish<S: Source>(product: &Product<'_, S>, sums: &Sums, rows: Range<usize>, outputs: &Outputs) {
    for (row, sums) in rows.zip(&sums.0) {
        let scale = product.source.scale(row);
        // SAFETY: blocks do not overlap, and within a block each row of each panel is visited once.
        let y = unsafe { product.result(row, outputs.first..outputs.first + outputs.count) };
        for (panel, y) in y.chunks_mut(PANEL).enumerate() {
            match y.first_chunk_mut::<PANEL>() {
                Some(y) => outputs.scale(panel, sums, scale, y),
                None => {
                    let mut whole = [0.0; PANEL];
                    outputs.scale(panel, sums, scale, &mut whole);
                    y.iter_mut().zip(whole).for_each(|(y, result)| *y = result);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{found, with_token};

    fn check<K: Kernel>(_: K) {
        for threads in [1, 2, 3, 64] {
            for rows in [1, 2, 63, 64, 65, 256, 4096, 100_000] {
                for panels in [1, 2, 7, 20, 320] {
                    for depth in [64, 320, 11520, 65_856] {
                        let cut = Cut::new::<K>(rows, panels, depth, threads);
                        assert!(cut.rows >= 1 && cut.rows.is_multiple_of(K::ROW_STEP), "{cut:?}");
                        assert!(cut.panels >= 1 && cut.panels <= panels, "{cut:?}");
                        // only the last block of panels may end in a half tile
                        assert!(cut.panels == panels || cut.panels.is_multiple_of(K::PANELS), "{cut:?}");
                        let bytes = cut.rows * (depth + ROW_GAP);
                        let least = (MIN_ROWS + K::ROWS) * (depth + ROW_GAP);
                        assert!(bytes <= least.max(BLOCK_BYTES + K::ROWS * (depth + ROW_GAP)), "{cut:?} {bytes}");
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_fit_the_cache_and_are_whole_tiles() {
        for isa in found().into_iter().filter_map(|(_, isa)| isa) {
            with_token!(isa, token => check(token));
        }
    }

    #[test]
    fn parts_are_even() {
        assert_eq!(evenly(64, 14, 1), 13);
        assert_eq!(evenly(28, 14, 1), 14);
        assert_eq!(evenly(33, 32, 16), 32);
        assert_eq!(evenly(1, 14, 1), 1);
    }
}
