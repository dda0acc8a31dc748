//! A product cut into blocks for the caches and the cores.

use super::kernel::{Element, Kernel, Scratch, Sums, Tile, elements};
use super::pack::{Factor, Part};
use super::source::Source;
use crate::int8::pack::PANEL;
use crate::isa::Work;
use rayon::prelude::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of an input's part of a row: a block's part of the activations and four panels' of the weights stay in a
/// second-level cache of 1 MiB, two panels' in the first-level one.
const PART_BYTES: usize = 1536;
/// The most rows of a block, but for whole tiles.
const MOST_ROWS: usize = 384;
/// Panels that are packed at once: runs of 64 columns, when the weight has them side by side.
const PACKED_PANELS: usize = 4;
/// Blocks a thread gets, if there are enough: threads that are disturbed leave theirs to others.
const BLOCKS_PER_THREAD: usize = 4;
/// Bytes of a cache line: rows begin with one and lie one more apart, so that not all meet in the same cache sets.
const LINE: usize = 64;

/// `y[m, n] = sum over k of (source[m, k] * in_scales[k]) * factor[k, n] * out_scales[n] + bias[n]`, where what is scaled
/// first is rounded to the product's type.
pub(super) struct Product<'a, S> {
    pub(super) source: S,
    /// One number for each input, or as many inputs as it has, again and again.
    pub(super) in_scales: Option<&'a [f32]>,
    pub(super) factor: Factor<'a>,
    /// `[N]`.
    pub(super) out_scales: Option<&'a [f32]>,
    /// `[N]`.
    pub(super) bias: Option<&'a [f32]>,
}

/// The result, `[M, N]`, of which each block writes its own part.
struct Destination {
    start: *mut f32,
    rows: usize,
    width: usize,
}

// SAFETY: blocks write through it from several threads, but no two of them the same values.
unsafe impl Sync for Destination {}

impl Destination {
    /// Part of a row.
    ///
    /// # Safety
    /// No two live slices may overlap.
    #[expect(clippy::mut_from_ref, reason = "blocks share the result and write different parts")]
    unsafe fn part(&self, row: usize, outputs: Range<usize>) -> &mut [MaybeUninit<f32>] {
        assert!(row < self.rows && outputs.end <= self.width);
        // SAFETY: it lies inside the result, which is borrowed for as long; the caller sees to it that none overlaps.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.width + outputs.start).cast(), outputs.len())
        }
    }
}

/// How a product is cut: `rows` times `panels` a block, the last ones smaller.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cut {
    rows: usize,
    panels: usize,
}

impl Cut {
    /// A block gathers its rows and packs its panels: all together do the least of both.
    fn new(step: (usize, usize), rows: usize, panels: usize, threads: usize) -> Self {
        let blocks = if threads == 1 { 1 } else { threads * BLOCKS_PER_THREAD };
        let least = match rows.div_ceil(MOST_ROWS) {
            1 => 1,
            more => more.next_multiple_of(threads),
        };
        let cut = |down: usize| Cut {
            rows: evenly(rows, rows.div_ceil(down), step.0),
            panels: evenly(panels, panels.div_ceil(blocks.div_ceil(down)), step.1).min(panels),
        };
        let work = |cut: &Cut| rows.div_ceil(cut.rows) * panels.div_ceil(cut.panels) * (cut.rows + cut.panels * PANEL);
        (least..=blocks.max(least)).map(cut).min_by_key(work).expect("at least one block")
    }
}

/// The smallest part, a multiple of `step`, that cuts `whole` into as few parts as parts of `largest` do.
fn evenly(whole: usize, largest: usize, step: usize) -> usize {
    whole.div_ceil(whole.div_ceil(largest)).next_multiple_of(step)
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `len` elements, whatever they are, that begin with a cache line.
fn lines<T: Copy>(buffer: &mut Vec<T>, len: usize, zero: T) -> &mut [T] {
    let line = LINE / size_of::<T>();
    if buffer.len() < len + line {
        buffer.resize(len + line, zero);
    }
    let skip = buffer.as_ptr().align_offset(LINE);
    &mut buffer[skip..skip + len]
}

/// Computes the product on rayon's pool, `[M, N]`.
///
/// # Panics
/// If scales or bias are not as long as the factor says, or it does not fit the source.
pub(super) fn multiply<E: Element, K: Kernel<E>, S: Source>(kernel: K, product: &Product<'_, S>) -> Vec<f32> {
    let (rows, width, depth) = (product.source.len(), product.factor.width(), product.factor.depth());
    assert_eq!(product.source.depth(), depth, "inner dimensions");
    assert!(product.in_scales.is_none_or(|s| !s.is_empty() && depth.is_multiple_of(s.len())), "scales of inputs");
    assert!(product.out_scales.is_none_or(|s| s.len() == width), "a scale for each of {width} outputs");
    assert!(product.bias.is_none_or(|b| b.len() == width), "a bias for each of {width} outputs");
    let mut y = Vec::with_capacity(rows * width);
    if rows == 0 || width == 0 {
        return y;
    }
    assert!(depth > 0, "no inputs");
    let panels = width.div_ceil(PANEL);
    let cut = Cut::new((K::ROW_STEP, K::PANELS), rows, panels, rayon::current_num_threads());
    let (down, across) = (rows.div_ceil(cut.rows), panels.div_ceil(cut.panels));
    let destination = Destination { start: y.as_mut_ptr(), rows, width };
    let block = |index: usize| {
        let part = |i: usize, size: usize, whole: usize| i * size..((i + 1) * size).min(whole);
        let (rows, panels) = (part(index / across, cut.rows, rows), part(index % across, cut.panels, panels));
        SCRATCH.with_borrow_mut(|scratch| {
            let y = &destination;
            kernel.vectorize(Block::<E, K, S> { kernel, product, y, rows, panels, scratch, element: PhantomData });
        });
    };
    match down * across {
        1 => block(0),
        blocks => (0..blocks).into_par_iter().with_max_len(1).for_each(block),
    }
    // SAFETY: there is room for as many, and the blocks, which cover the result, have written every one.
    unsafe { y.set_len(rows * width) };
    y
}

/// A part of the result, computed by one thread.
struct Block<'a, E, K, S> {
    kernel: K,
    product: &'a Product<'a, S>,
    y: &'a Destination,
    rows: Range<usize>,
    panels: Range<usize>,
    scratch: &'a mut Scratch,
    element: PhantomData<E>,
}

impl<E: Element, K: Kernel<E>, S: Source> Work for Block<'_, E, K, S> {
    #[inline(always)]
    fn run(self) {
        let Block { kernel, product, y, rows, panels, scratch, .. } = self;
        let buffers = E::buffers(scratch);
        let whole = product.factor.depth();
        // depends on the depth alone: so do the sums
        let part = evenly(whole, PART_BYTES / size_of::<E>(), 2 * PANEL);
        let stride = (part.next_multiple_of(K::DEPTH_STEP) * size_of::<E>()).next_multiple_of(LINE) + LINE;
        let stride = stride / size_of::<E>();
        let activations = lines(&mut buffers.activations, rows.len().next_multiple_of(K::ROW_STEP) * stride, E::ZERO);
        let tile_rows = evenly(rows.len(), K::ROWS, K::ROW_STEP);
        let mut sums = Sums::new();
        kernel.begin();
        for first in (0..whole).step_by(part) {
            let ks = first..(first + part).min(whole);
            let depth = ks.len().next_multiple_of(K::DEPTH_STEP);
            for (row, into) in rows.clone().zip(activations.chunks_exact_mut(stride)) {
                gather(&product.source, row, ks.clone(), product.in_scales, &mut into[..depth]);
            }
            let stage = Stage { first: first == 0, last: ks.end == whole };
            for packed in panels.clone().step_by(PACKED_PANELS) {
                let packed = packed..(packed + PACKED_PANELS).min(panels.end);
                let part = Part { panels: packed.clone(), ks: ks.clone(), groups: depth / E::GROUP };
                let weights = lines(&mut buffers.weights, packed.len() * part.groups * PANEL, 0);
                product.factor.pack::<E>(kernel, &part, weights);
                for panel in packed.clone().step_by(K::PANELS) {
                    let count = K::PANELS.min(packed.end - panel);
                    let weights = elements(&weights[(panel - packed.start) * part.groups * PANEL..]);
                    let outputs = Outputs::new(product, panel * PANEL, count * PANEL);
                    for top in (0..rows.len()).step_by(tile_rows) {
                        let height = tile_rows.min(rows.len() - top);
                        let size = (height.next_multiple_of(K::ROW_STEP), count);
                        kernel
                            .sums(&Tile::new((&activations[top * stride..], stride), weights, depth, size), &mut sums);
                        finish(y, &sums, rows.start + top..rows.start + top + height, &outputs, stage);
                    }
                }
            }
        }
        kernel.end();
    }
}

/// Part `ks` of a row's inputs, scaled and rounded, then zeros.
#[inline(always)]
fn gather<E: Element, S: Source>(source: &S, row: usize, ks: Range<usize>, scales: Option<&[f32]>, into: &mut [E]) {
    let place = source.place(row);
    let mut k = ks.start;
    while k < ks.end {
        let (values, mut len) = source.run(place, k);
        len = len.min(ks.end - k);
        let scales = scales.map(|scales| {
            let scales = &scales[k % scales.len()..];
            len = len.min(scales.len());
            scales
        });
        let into = &mut into[k - ks.start..][..len];
        match (values, scales) {
            (None, _) => into.fill(E::ZERO),
            (Some(values), None) => into.iter_mut().zip(&values[..len]).for_each(|(into, &x)| *into = E::round(x)),
            (Some(values), Some(scales)) => {
                let scaled = values[..len].iter().zip(&scales[..len]);
                into.iter_mut().zip(scaled).for_each(|(into, (&x, &scale))| *into = E::round(x * scale));
            }
        }
        k += len;
    }
    into[ks.len()..].fill(E::ZERO);
}

/// Whether a part of the inputs is the first or the last, or both.
#[derive(Clone, Copy)]
struct Stage {
    first: bool,
    last: bool,
}

/// What the outputs of some panels need, nothing beyond the last output.
struct Outputs {
    first: usize,
    count: usize,
    scales: [f32; Sums::STRIDE],
    bias: [f32; Sums::STRIDE],
}

impl Outputs {
    #[inline(always)]
    fn new<S>(product: &Product<'_, S>, first: usize, most: usize) -> Self {
        let count = most.min(product.factor.width() - first);
        // nothing changes when it is multiplied by 1 or -0 is added to it, not even -0
        let (mut scales, mut bias) = ([1.0; _], [-0.0; _]);
        if let Some(from) = product.out_scales {
            scales[..count].copy_from_slice(&from[first..][..count]);
        }
        if let Some(from) = product.bias {
            bias[..count].copy_from_slice(&from[first..][..count]);
        }
        Outputs { first, count, scales, bias }
    }
}

/// Adds a tile's sums to what there is of the result.
#[inline(always)]
fn finish(y: &Destination, sums: &Sums, rows: Range<usize>, outputs: &Outputs, stage: Stage) {
    match (stage.first, stage.last) {
        (true, true) => finish_stage::<true, true>(y, sums, rows, outputs),
        (true, false) => finish_stage::<true, false>(y, sums, rows, outputs),
        (false, true) => finish_stage::<false, true>(y, sums, rows, outputs),
        (false, false) => finish_stage::<false, false>(y, sums, rows, outputs),
    }
}

#[inline(always)]
fn finish_stage<const FIRST: bool, const LAST: bool>(
    y: &Destination,
    sums: &Sums,
    rows: Range<usize>,
    outputs: &Outputs,
) {
    for (row, sums) in rows.zip(&sums.0) {
        // SAFETY: blocks do not overlap, and within a block each row of each panel is visited once a part.
        let y = unsafe { y.part(row, outputs.first..outputs.first + outputs.count) };
        for (panel, y) in y.chunks_mut(PANEL).enumerate() {
            let at = panel * PANEL;
            match y.first_chunk_mut::<PANEL>() {
                Some(y) => add::<FIRST, LAST>(y, &sums[at..at + PANEL], outputs, at),
                None => add::<FIRST, LAST>(y, &sums[at..at + y.len()], outputs, at),
            }
        }
    }
}

#[inline(always)]
fn add<const FIRST: bool, const LAST: bool>(y: &mut [MaybeUninit<f32>], sums: &[f32], outputs: &Outputs, at: usize) {
    let (scales, bias) = (&outputs.scales[at..][..y.len()], &outputs.bias[at..][..y.len()]);
    for i in 0..y.len() {
        let mut sum = sums[i];
        if !FIRST {
            // SAFETY: the first part has written it.
            sum += unsafe { y[i].assume_init() };
        }
        y[i].write(if LAST { sum * scales[i] + bias[i] } else { sum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_result_and_fit() {
        for threads in [1, 2, 3, 64] {
            for rows in [1, 2, 63, 64, 65, 256, 4096, 100_000] {
                for panels in [1, 2, 7, 20, 320] {
                    for step in [(1, 1), (1, 2), (16, 2)] {
                        let cut = Cut::new(step, rows, panels, threads);
                        assert!(cut.rows >= 1 && cut.rows.is_multiple_of(step.0), "{cut:?}");
                        assert!(cut.panels >= 1 && cut.panels <= panels, "{cut:?}");
                        assert!(cut.rows <= MOST_ROWS + step.0, "{cut:?}");
                        // only the last block of panels may end in a half tile
                        assert!(cut.panels == panels || cut.panels.is_multiple_of(step.1), "{cut:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_in_the_unet_are_cut_into_blocks_like_squares() {
        assert_eq!(Cut::new((1, 2), 64, 80, 2), Cut { rows: 64, panels: 10 });
        assert_eq!(Cut::new((1, 2), 4096, 20, 2), Cut { rows: 342, panels: 20 });
    }
}
