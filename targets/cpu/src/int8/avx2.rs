//! 256-bit registers: AVX-VNNI, and AVX2 without any dot product of bytes.

use super::kernel::{Kernel, Sums, Tile, for_rows};
use super::pack::{GROUP, PANEL};
use crate::isa::{Avx2, AvxVnni};
use std::arch::x86_64::*;

impl Kernel for AvxVnni {
    /// 6 rows of 2 registers of sums, 2 of weights, 1 of activations: 15 of 16.
    const ROWS: usize = 6;
    const PANELS: usize = 1;
    const FLIP: u8 = 0x80;

    #[inline(always)]
    fn sums(self, tile: &Tile<'_>, sums: &mut Sums) {
        // SAFETY: the token exists, so the CPU has AVX-VNNI; the numbers are the tile's.
        unsafe { for_rows!(tile: 1 2 3 4 5 6, R => dot::<R>(tile, sums)) }
    }
}

/// # Safety
/// The tile must have R rows.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn dot<const R: usize>(tile: &Tile<'_>, sums: &mut Sums) {
    let panel = tile.panel(0).as_ptr().cast::<__m256i>();
    let (activations, stride) = (tile.row(0).as_ptr(), tile.stride());
    let mut sum = [[_mm256_setzero_si256(); 2]; R];
    for group in 0..tile.depth() / GROUP {
        // SAFETY: a panel holds `depth / 4` groups of twice 32 bytes.
        let weights: [_; 2] = std::array::from_fn(|half| unsafe { _mm256_loadu_si256(panel.add(2 * group + half)) });
        for r in 0..R {
            // SAFETY: every one of the R rows holds `depth` bytes.
            let four = unsafe { activations.add(r * stride + group * GROUP).cast::<i32>().read_unaligned() };
            for half in 0..2 {
                sum[r][half] = _mm256_dpbusd_avx_epi32(sum[r][half], _mm256_set1_epi32(four), weights[half]);
            }
        }
    }
    for (sums, sum) in sums.0.iter_mut().zip(sum) {
        for (sums, sum) in sums.chunks_exact_mut(PANEL / 2).zip(sum) {
            // SAFETY: a chunk is 8 `i32`s, as is the register.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum) }
        }
    }
}

impl Kernel for Avx2 {
    /// 3 rows of 4 registers of sums, each with two halves of 4 outputs' sums, leave 4 registers.
    const ROWS: usize = 3;
    const PANELS: usize = 1;

    #[inline(always)]
    fn sums(self, tile: &Tile<'_>, sums: &mut Sums) {
        // SAFETY: the token exists, so the CPU has AVX2; the numbers are the tile's.
        unsafe { for_rows!(tile: 1 2 3, R => widened::<R>(tile, sums)) }
    }
}

/// Widens bytes to 16 bits and adds pairs of products in 32 bits; `vpmaddubsw`, which saturates, is never used.
///
/// # Safety
/// The tile must have R rows.
#[target_feature(enable = "avx2")]
unsafe fn widened<const R: usize>(tile: &Tile<'_>, sums: &mut Sums) {
    let panel = tile.panel(0).as_ptr().cast::<__m128i>();
    let (activations, stride) = (tile.row(0).as_ptr(), tile.stride());
    let mut sum = [[_mm256_setzero_si256(); 4]; R];
    for group in 0..tile.depth() / GROUP {
        let four: [_; R] = std::array::from_fn(|r| {
            // SAFETY: every one of the R rows holds `depth` bytes.
            let four = unsafe { activations.add(r * stride + group * GROUP).cast::<i32>().read_unaligned() };
            _mm256_cvtepi8_epi16(_mm_set1_epi32(four))
        });
        for quarter in 0..4 {
            // SAFETY: a panel holds `depth / 4` groups of four times 16 bytes.
            let weights = unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(panel.add(4 * group + quarter))) };
            for r in 0..R {
                sum[r][quarter] = _mm256_add_epi32(sum[r][quarter], _mm256_madd_epi16(weights, four[r]));
            }
        }
    }
    for (sums, sum) in sums.0.iter_mut().zip(sum) {
        for half in 0..2 {
            // [0 1 4 5 | 2 3 6 7] as 64-bit pairs of outputs, so the middle ones change places
            let pairs = _mm256_hadd_epi32(sum[2 * half], sum[2 * half + 1]);
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            // SAFETY: the half of a panel is 8 `i32`s, as is the register.
            unsafe { _mm256_storeu_si256(sums[half * PANEL / 2..][..PANEL / 2].as_mut_ptr().cast(), ordered) }
        }
    }
}
