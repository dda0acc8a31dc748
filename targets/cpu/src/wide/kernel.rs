//! What an instruction set must do: the sums of one tile, and the turning of 16 x 16 words.

use crate::int8::pack::PANEL;
use crate::isa::Token;
use half::bf16;

/// The most rows and panels of any kernel's tile.
pub(super) const MAX_ROWS: usize = 32;
pub(super) const MAX_PANELS: usize = 2;

/// The type of both factors of a product; sums are f32.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// Inputs that lie side by side in a panel: as many as fill 32 bits.
    const GROUP: usize;
    const ZERO: Self;

    /// To the nearest, ties to even.
    fn round(x: f32) -> Self;

    /// Exactly.
    fn from_bf16(x: bf16) -> Self;

    /// The 32 bits of a group; what is beyond it does not count.
    fn word(group: [Self; 2]) -> u32;

    /// The 32 bits of a group of integers, exactly.
    fn word_of_i8(group: [i8; 2]) -> u32;

    /// The numbers themselves, if they are of this type.
    fn same_f32(x: &[f32]) -> Option<&[Self]>;

    /// The numbers themselves, if they are of this type.
    fn same_bf16(x: &[bf16]) -> Option<&[Self]>;

    /// The buffers for this type.
    fn buffers(scratch: &mut Scratch) -> &mut Buffers<Self>;
}

impl Element for f32 {
    const GROUP: usize = 1;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn round(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn from_bf16(x: bf16) -> Self {
        f32::from_bits((x.to_bits() as u32) << 16)
    }

    #[inline(always)]
    fn word([x, _]: [Self; 2]) -> u32 {
        x.to_bits()
    }

    #[inline(always)]
    fn word_of_i8([x, _]: [i8; 2]) -> u32 {
        (x as f32).to_bits()
    }

    #[inline(always)]
    fn same_f32(x: &[f32]) -> Option<&[Self]> {
        Some(x)
    }

    #[inline(always)]
    fn same_bf16(_: &[bf16]) -> Option<&[Self]> {
        None
    }

    fn buffers(scratch: &mut Scratch) -> &mut Buffers<Self> {
        &mut scratch.f32
    }
}

impl Element for bf16 {
    const GROUP: usize = 2;
    const ZERO: Self = bf16::ZERO;

    /// Without a branch, so that the compiler does many at once.
    #[inline(always)]
    fn round(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    fn from_bf16(x: bf16) -> Self {
        x
    }

    #[inline(always)]
    fn word([low, high]: [Self; 2]) -> u32 {
        low.to_bits() as u32 | (high.to_bits() as u32) << 16
    }

    /// Seven bits and a sign are in the upper half of an f32.
    #[inline(always)]
    fn word_of_i8([low, high]: [i8; 2]) -> u32 {
        (low as f32).to_bits() >> 16 | (high as f32).to_bits() & 0xffff_0000
    }

    #[inline(always)]
    fn same_f32(_: &[f32]) -> Option<&[Self]> {
        None
    }

    #[inline(always)]
    fn same_bf16(x: &[bf16]) -> Option<&[Self]> {
        Some(x)
    }

    fn buffers(scratch: &mut Scratch) -> &mut Buffers<Self> {
        &mut scratch.bf16
    }
}

/// What a thread keeps from one block to the next, since pages that are given back must be cleared to be had again.
#[derive(Default)]
pub(super) struct Scratch {
    f32: Buffers<f32>,
    bf16: Buffers<bf16>,
}

/// A part of a block's activations, and of some panels of its weights.
pub(super) struct Buffers<E> {
    pub(super) activations: Vec<E>,
    /// Groups.
    pub(super) weights: Vec<u32>,
}

impl<E> Default for Buffers<E> {
    fn default() -> Self {
        Buffers { activations: Vec::new(), weights: Vec::new() }
    }
}

/// The sums of a tile, row by row.
#[repr(align(64))]
pub(super) struct Sums(pub [[f32; Self::STRIDE]; MAX_ROWS]);

impl Sums {
    /// `f32`s from one row to the next.
    pub(super) const STRIDE: usize = MAX_PANELS * PANEL;

    pub(super) fn new() -> Self {
        Sums([[0.0; Self::STRIDE]; MAX_ROWS])
    }
}

/// Some rows of activations and some panels of weights.
pub(super) struct Tile<'a, E> {
    activations: &'a [E],
    stride: usize,
    weights: &'a [E],
    depth: usize,
    rows: usize,
    panels: usize,
}

impl<'a, E: Element> Tile<'a, E> {
    /// `activations` in rows `stride` elements apart, `weights` in panels of `16 * depth` elements.
    ///
    /// # Panics
    /// If either is too short for `rows` and `panels`.
    #[inline(always)]
    pub(super) fn new(
        (activations, stride): (&'a [E], usize),
        weights: &'a [E],
        depth: usize,
        (rows, panels): (usize, usize),
    ) -> Self {
        assert!((1..=MAX_ROWS).contains(&rows) && (1..=MAX_PANELS).contains(&panels), "{rows} rows, {panels} panels");
        assert!(depth.is_multiple_of(E::GROUP), "{depth} inputs are not whole groups");
        assert!(stride >= depth && activations.len() >= rows * stride, "too few activations");
        assert!(weights.len() >= panels * PANEL * depth, "too few weights");
        Tile { activations, stride, weights, depth, rows, panels }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn panels(&self) -> usize {
        self.panels
    }

    /// Inputs with their padding: every row and every panel is readable so far.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Elements from one row of activations to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// `depth` activations.
    pub(super) fn row(&self, row: usize) -> &'a [E] {
        &self.activations[row * self.stride..][..self.depth]
    }

    /// `[depth / GROUP][16 outputs][GROUP]`.
    pub(super) fn panel(&self, index: usize) -> &'a [E] {
        assert!(index < self.panels);
        &self.weights[index * PANEL * self.depth..][..PANEL * self.depth]
    }
}

/// An instruction set that multiplies tiles of `E`.
///
/// A new one names the size of its tiles and gives [`Kernel::sums`]; who calls it sees to it that
/// - a tile has at most `ROWS` rows, a multiple of `ROW_STEP`, of which those beyond the matrix hold any numbers and are
///   dropped, and at most `PANELS` panels;
/// - its depth is a multiple of `DEPTH_STEP`, itself one of `E::GROUP`; activations and weights beyond the matrix are zero;
/// - panels are `[depth / GROUP][16 outputs][GROUP inputs]`, so that 16 groups of bf16 are one AMX tile of 16 rows of 64
///   bytes as `tdpbf16ps` takes its second factor, and rows of activations lie [`Tile::stride`] apart and begin with
///   a multiple of 64 bytes;
/// - `begin` comes before the first tile of a thread's task and `end` after the last.
///
/// The order in which the products of one output are added may depend on the depth but not on rows and panels: results are
/// the same however a product is cut for any number of threads.
pub(super) trait Kernel<E: Element>: Turn {
    /// The most rows of a tile.
    const ROWS: usize;
    /// Tiles have a multiple of this many rows.
    const ROW_STEP: usize = 1;
    /// The most panels of 16 outputs of a tile.
    const PANELS: usize;
    /// Depths are padded to a multiple of this.
    const DEPTH_STEP: usize = E::GROUP;

    /// Before the first tile of a thread's task.
    fn begin(self) {}

    /// After the last one.
    fn end(self) {}

    /// `sums[row][output] = sum over inputs of activation * weight`.
    fn sums(self, tile: &Tile<'_, E>, sums: &mut Sums);
}

/// An instruction set that turns 16 rows of 16 words into columns.
pub(super) trait Turn: Token {
    /// `into[16 c + r] = from[r][c]`, `from[r]` beginning `r * stride` bytes on. Must be `#[inline(always)]`.
    ///
    /// # Safety
    /// 16 rows of 16 words must be there to be read, and as much room.
    #[inline(always)]
    unsafe fn turn(self, from: *const u8, stride: usize, into: *mut u32) {
        for r in 0..PANEL {
            for c in 0..PANEL {
                // SAFETY: as the caller says.
                unsafe { *into.add(PANEL * c + r) = from.add(r * stride).cast::<u32>().add(c).read_unaligned() }
            }
        }
    }

    /// `rows[r]` is row `4 * (r % 4) + r / 4` of 16 rows of 4 times 4 bytes, which come as `[4][16 rows][4]`. Must be
    /// `#[inline(always)]`.
    #[inline(always)]
    fn turn_bytes(self, groups: &[i8; PANEL * PANEL], rows: &mut Bytes) {
        for g in 0..4 {
            for r in 0..PANEL {
                let four = &groups[(g * PANEL + r) * 4..][..4];
                rows.0[Bytes::place(r)][g * 4..][..4].copy_from_slice(four);
            }
        }
    }
}

/// 16 rows of 16 bytes, in the order of [`Turn::turn_bytes`].
#[repr(align(64))]
pub(super) struct Bytes(pub [[i8; PANEL]; PANEL]);

impl Bytes {
    /// Where a row is.
    #[inline(always)]
    pub(super) fn place(row: usize) -> usize {
        row % 4 * 4 + row / 4
    }
}

/// Turns 16 rows of 64 bytes, `stride` elements apart: a part of a panel.
#[inline(always)]
pub(super) fn turn<E: Element>(token: impl Turn, from: &[E], stride: usize, into: &mut [u32]) {
    const { assert!(E::GROUP * size_of::<E>() == size_of::<u32>()) };
    assert!(from.len() >= (PANEL - 1) * stride + PANEL * E::GROUP && into.len() >= PANEL * PANEL);
    // SAFETY: both are as long as they must be.
    unsafe { token.turn(from.as_ptr().cast(), stride * size_of::<E>(), into.as_mut_ptr()) }
}

/// The elements of words.
pub(super) fn elements<E: Element>(words: &[u32]) -> &[E] {
    const { assert!(E::GROUP * size_of::<E>() == size_of::<u32>() && align_of::<E>() <= align_of::<u32>()) };
    // SAFETY: every bit pattern is a number of either type; so long is what is borrowed.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * E::GROUP) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Work, found, with_token};

    #[test]
    fn bf16_is_rounded_as_half_does() {
        let bits =
            (0..1 << 16).flat_map(|high: u32| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
        for x in bits.map(f32::from_bits) {
            let (got, want) = (<bf16 as Element>::round(x), bf16::from_f32(x));
            assert_eq!(got.to_bits(), want.to_bits(), "{x:e} {:x}", x.to_bits());
        }
    }

    struct Turned<'a, K, E>(K, &'a [E], usize, &'a mut [u32]);

    impl<K: Turn, E: Element> Work for Turned<'_, K, E> {
        #[inline(always)]
        fn run(self) {
            turn(self.0, self.1, self.2, self.3);
        }
    }

    struct TurnedBytes<'a, K>(K, &'a [i8; 256], &'a mut Bytes);

    impl<K: Turn> Work for TurnedBytes<'_, K> {
        #[inline(always)]
        fn run(self) {
            self.0.turn_bytes(self.1, self.2);
        }
    }

    #[test]
    fn every_token_turns() {
        let words: Vec<f32> = (0..16 * 21).map(|i| i as f32).collect();
        let halves: Vec<bf16> = (0..16 * 37).map(bf16::from_bits).collect();
        let bytes = std::array::from_fn(|i| i as u8 as i8);
        for isa in found().into_iter().filter_map(|(_, isa)| isa) {
            let (mut into, mut pairs, mut rows) = (vec![0; 256], vec![0; 256], Bytes([[0; 16]; 16]));
            with_token!(isa, token => {
                token.vectorize(Turned(token, &words, 21, &mut into));
                token.vectorize(Turned(token, &halves, 37, &mut pairs));
                token.vectorize(TurnedBytes(token, &bytes, &mut rows));
            });
            for (i, &x) in elements::<f32>(&into).iter().enumerate() {
                assert_eq!(x, words[i % 16 * 21 + i / 16], "{isa} {i}");
            }
            for (i, &x) in elements::<bf16>(&pairs).iter().enumerate() {
                assert_eq!(x.to_bits(), halves[i / 2 % 16 * 37 + i / 32 * 2 + i % 2].to_bits(), "{isa} {i}");
            }
            for (i, &x) in bytes.iter().enumerate() {
                let (group, row, column) = (i / 64, i / 4 % 16, i % 4);
                assert_eq!(rows.0[Bytes::place(row)][4 * group + column], x, "{isa} {i}");
            }
        }
    }

    #[test]
    fn words_of_integers_are_exact() {
        for (low, high) in (i8::MIN..=i8::MAX).flat_map(|low| [(low, 77), (-5, low)]) {
            assert_eq!(elements::<f32>(&[f32::word_of_i8([low, high])]), [low as f32]);
            let pair = [low, high].map(|x| bf16::from_f32(x as f32));
            assert_eq!(elements::<bf16>(&[bf16::word_of_i8([low, high])]), pair);
            assert_eq!(elements::<bf16>(&[bf16::word(pair)]), pair);
        }
    }
}
