//! What an instruction set must do: the sums of one tile.

use super::pack::PANEL;
use crate::isa::Token;

/// The most rows and panels of any kernel's tile.
pub(super) const MAX_ROWS: usize = 32;
pub(super) const MAX_PANELS: usize = 2;

/// The sums of a tile, row by row.
#[repr(align(64))]
pub(super) struct Sums(pub [[i32; Self::STRIDE]; MAX_ROWS]);

impl Sums {
    /// `i32`s from one row to the next.
    pub(super) const STRIDE: usize = MAX_PANELS * PANEL;

    pub(super) fn new() -> Self {
        Sums([[0; Self::STRIDE]; MAX_ROWS])
    }
}

/// Some rows of activations and some panels of weights.
pub(super) struct Tile<'a> {
    activations: &'a [u8],
    stride: usize,
    weights: &'a [i8],
    depth: usize,
    rows: usize,
    panels: usize,
}

impl<'a> Tile<'a> {
    /// `activations` in rows `stride` bytes apart, `weights` in panels of `16 * depth` bytes.
    ///
    /// # Panics
    /// If either is too short for `rows` and `panels`.
    #[inline(always)]
    pub(super) fn new(
        (activations, stride): (&'a [u8], usize),
        weights: &'a [i8],
        depth: usize,
        (rows, panels): (usize, usize),
    ) -> Self {
        assert!((1..=MAX_ROWS).contains(&rows) && (1..=MAX_PANELS).contains(&panels), "{rows} rows, {panels} panels");
        assert!(stride >= depth && activations.len() >= rows * stride, "too few activations");
        assert!(weights.len() >= panels * PANEL * depth, "too few weights");
        Tile { activations, stride, weights, depth, rows, panels }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn panels(&self) -> usize {
        self.panels
    }

    /// Inputs with their padding: every row and every panel is readable so far.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes from one row of activations to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// `depth` activations.
    pub(super) fn row(&self, row: usize) -> &'a [u8] {
        &self.activations[row * self.stride..][..self.depth]
    }

    /// `depth / 4` groups of 16 x 4 weights.
    pub(super) fn panel(&self, index: usize) -> &'a [i8] {
        assert!(index < self.panels);
        &self.weights[index * PANEL * self.depth..][..PANEL * self.depth]
    }
}

/// An instruction set that multiplies tiles.
pub(super) trait Kernel: Token {
    /// The most rows of a tile.
    const ROWS: usize;
    /// Tiles have a multiple of this many rows; what is beyond the matrix is computed and dropped.
    const ROW_STEP: usize = 1;
    /// The most panels of 16 outputs of a tile.
    const PANELS: usize;
    /// Xor for every activation: 0x80 makes it unsigned, 128 more than it was.
    const FLIP: u8 = 0;

    /// Before the first tile of a thread's task.
    fn begin(self) {}

    /// After the last one.
    fn end(self) {}

    /// `sums[row][output] = sum over inputs of activation * weight`.
    fn sums(self, tile: &Tile<'_>, sums: &mut Sums);
}

/// Copies activations, xor `flip`.
#[inline(always)]
pub(super) fn copy_flipped(from: &[i8], flip: u8, into: &mut [u8]) {
    for (into, &from) in into.iter_mut().zip(from) {
        *into = from as u8 ^ flip;
    }
}

/// Evaluates `$call` with the constant `$rows`, the number of rows of the tile, one of those listed.
macro_rules! for_rows {
    ($tile:ident: $($number:literal)*, $rows:ident => $call:expr) => {
        match $tile.rows() {
            $($number => {
                const $rows: usize = $number;
                $call
            })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(crate) use for_rows;
