//! 64-bit Arm. The intrinsics for `sdot` and `smmla` are unstable, hence the inline assembly.

use super::kernel::{Kernel, Sums, Tile, for_rows};
use super::pack::{GROUP, PANEL};
use crate::isa::{Neon, NeonDotprod, NeonI8mm};
use std::arch::aarch64::*;
use std::arch::asm;

impl Kernel for NeonI8mm {
    /// 3 pairs of rows of 8 registers of sums, each 2 x 2, leave 8 registers.
    const ROWS: usize = 6;
    const ROW_STEP: usize = 2;
    const PANELS: usize = 1;

    #[inline(always)]
    fn sums(self, tile: &Tile<'_>, sums: &mut Sums) {
        // SAFETY: the token exists, so the CPU has i8mm; the numbers are the tile's.
        unsafe { for_rows!(tile: 2 4 6, R => matrix::<R>(tile, sums)) }
    }
}

impl Kernel for NeonDotprod {
    /// 6 rows of 4 registers of sums leave 8 registers.
    const ROWS: usize = 6;
    const PANELS: usize = 1;

    #[inline(always)]
    fn sums(self, tile: &Tile<'_>, sums: &mut Sums) {
        // SAFETY: the token exists, so the CPU has dot products; the numbers are the tile's.
        unsafe { for_rows!(tile: 1 2 3 4 5 6, R => dot::<R>(tile, sums)) }
    }
}

impl Kernel for Neon {
    /// 2 rows of 8 registers of sums, each with two halves of 2 outputs' sums, leave 16 registers.
    const ROWS: usize = 2;
    const PANELS: usize = 1;

    #[inline(always)]
    fn sums(self, tile: &Tile<'_>, sums: &mut Sums) {
        // SAFETY: every CPU of this architecture has NEON; the numbers are the tile's.
        unsafe { for_rows!(tile: 1 2, R => widened::<R>(tile, sums)) }
    }
}

/// `sum += the 2x8 matrix a times the 8x2 matrix b`, rows of `a` and columns of `b` side by side.
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: works on registers alone.
    unsafe {
        asm!("smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `sum[i] += the four bytes i of a times those of b`.
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: works on registers alone.
    unsafe {
        asm!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// # Safety
/// The tile must have R rows, an even number.
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn matrix<const R: usize>(tile: &Tile<'_>, sums: &mut Sums) {
    let panel = tile.panel(0).as_ptr();
    let (activations, stride) = (tile.row(0).as_ptr().cast::<i8>(), tile.stride());
    // of R / 2 pairs of rows; the rest is never touched and costs nothing
    let mut sum = [[vdupq_n_s32(0); 8]; R];
    for pair in 0..tile.depth() / (2 * GROUP) {
        let eight: [_; R] = std::array::from_fn(|r| {
            // SAFETY: every one of the R rows holds `depth` bytes.
            unsafe { vld1_s8(activations.add(r * stride + pair * 2 * GROUP)) }
        });
        for quarter in 0..4 {
            // SAFETY: a panel holds `depth / 4` groups of four times 16 bytes.
            let [first, second] = [0, 1].map(|half| unsafe {
                vreinterpretq_s32_s8(vld1q_s8(panel.add((2 * pair + half) * PANEL * GROUP + quarter * 16)))
            });
            // two outputs with 8 inputs each
            let low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
            let high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
            for r in 0..R / 2 {
                let rows = vcombine_s8(eight[2 * r], eight[2 * r + 1]);
                sum[r][2 * quarter] = smmla(sum[r][2 * quarter], rows, low);
                sum[r][2 * quarter + 1] = smmla(sum[r][2 * quarter + 1], rows, high);
            }
        }
    }
    for (r, sum) in sum.iter().take(R / 2).enumerate() {
        for (i, &square) in sum.iter().enumerate() {
            // SAFETY: two outputs of either row.
            unsafe {
                vst1_s32(sums.0[2 * r][2 * i..][..2].as_mut_ptr(), vget_low_s32(square));
                vst1_s32(sums.0[2 * r + 1][2 * i..][..2].as_mut_ptr(), vget_high_s32(square));
            }
        }
    }
}

/// # Safety
/// The tile must have R rows.
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot<const R: usize>(tile: &Tile<'_>, sums: &mut Sums) {
    let panel = tile.panel(0).as_ptr();
    let (activations, stride) = (tile.row(0).as_ptr(), tile.stride());
    let mut sum = [[vdupq_n_s32(0); 4]; R];
    for group in 0..tile.depth() / GROUP {
        // SAFETY: a panel holds `depth / 4` groups of four times 16 bytes.
        let weights: [_; 4] = std::array::from_fn(|q| unsafe { vld1q_s8(panel.add(group * PANEL * GROUP + q * 16)) });
        for r in 0..R {
            // SAFETY: every one of the R rows holds `depth` bytes.
            let four = unsafe { activations.add(r * stride + group * GROUP).cast::<i32>().read_unaligned() };
            let four = vreinterpretq_s8_s32(vdupq_n_s32(four));
            for quarter in 0..4 {
                sum[r][quarter] = sdot(sum[r][quarter], weights[quarter], four);
            }
        }
    }
    for (sums, sum) in sums.0.iter_mut().zip(sum) {
        for (sums, sum) in sums.chunks_exact_mut(4).zip(sum) {
            // SAFETY: a chunk is 4 `i32`s, as is the register.
            unsafe { vst1q_s32(sums.as_mut_ptr(), sum) }
        }
    }
}

/// Products in 16 bits, pairs of them added in 32.
///
/// # Safety
/// The tile must have R rows.
#[target_feature(enable = "neon")]
unsafe fn widened<const R: usize>(tile: &Tile<'_>, sums: &mut Sums) {
    let panel = tile.panel(0).as_ptr();
    let (activations, stride) = (tile.row(0).as_ptr(), tile.stride());
    let mut sum = [[vdupq_n_s32(0); 8]; R];
    for group in 0..tile.depth() / GROUP {
        let four: [_; R] = std::array::from_fn(|r| {
            // SAFETY: every one of the R rows holds `depth` bytes.
            let four = unsafe { activations.add(r * stride + group * GROUP).cast::<i32>().read_unaligned() };
            vreinterpret_s8_s32(vdup_n_s32(four))
        });
        for eighth in 0..8 {
            // SAFETY: a panel holds `depth / 4` groups of eight times 8 bytes.
            let weights = unsafe { vld1_s8(panel.add(group * PANEL * GROUP + eighth * 8)) };
            for r in 0..R {
                sum[r][eighth] = vpadalq_s16(sum[r][eighth], vmull_s8(weights, four[r]));
            }
        }
    }
    for (sums, sum) in sums.0.iter_mut().zip(sum) {
        for (quarter, sums) in sums[..PANEL].chunks_exact_mut(4).enumerate() {
            // SAFETY: a chunk is 4 `i32`s, as is the register.
            unsafe { vst1q_s32(sums.as_mut_ptr(), vpaddq_s32(sum[2 * quarter], sum[2 * quarter + 1])) }
        }
    }
}
