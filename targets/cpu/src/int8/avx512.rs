//! AVX-512 VNNI: 14 rows of 2 panels keep 28 of the 32 registers as sums.

use super::kernel::{Kernel, Sums, Tile, for_rows};
use super::pack::{GROUP, PANEL};
use crate::isa::{Avx512Bf16, Avx512Vnni};
use std::arch::x86_64::*;

macro_rules! vnni {
    ($($token:ident)*) => {$(
        impl Kernel for $token {
            const ROWS: usize = 14;
            const PANELS: usize = 2;
            const FLIP: u8 = 0x80;

            #[inline(always)]
            fn sums(self, tile: &Tile<'_>, sums: &mut Sums) {
                // SAFETY: the token exists, so the CPU has AVX-512 VNNI; the numbers are the tile's.
                unsafe {
                    match tile.panels() {
                        1 => for_rows!(tile: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, R => dot::<R, 1>(tile, sums)),
                        _ => for_rows!(tile: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, R => dot::<R, 2>(tile, sums)),
                    }
                }
            }
        }
    )*};
}
vnni!(Avx512Bf16 Avx512Vnni);

/// # Safety
/// The tile must have R rows and P panels.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot<const R: usize, const P: usize>(tile: &Tile<'_>, sums: &mut Sums) {
    let panels: [_; P] = std::array::from_fn(|p| tile.panel(p).as_ptr());
    let (activations, stride) = (tile.row(0).as_ptr(), tile.stride());
    let mut sum = [[_mm512_setzero_si512(); P]; R];
    for group in 0..tile.depth() / GROUP {
        // SAFETY: a panel holds `depth / 4` groups of 64 bytes.
        let weights: [_; P] =
            std::array::from_fn(|p| unsafe { _mm512_loadu_si512(panels[p].add(group * PANEL * GROUP).cast()) });
        for r in 0..R {
            // SAFETY: every one of the R rows holds `depth` bytes.
            let four = unsafe { activations.add(r * stride + group * GROUP).cast::<i32>().read_unaligned() };
            for p in 0..P {
                sum[r][p] = _mm512_dpbusd_epi32(sum[r][p], _mm512_set1_epi32(four), weights[p]);
            }
        }
    }
    for (sums, sum) in sums.0.iter_mut().zip(sum) {
        for (sums, sum) in sums.chunks_exact_mut(PANEL).zip(sum) {
            // SAFETY: a chunk is 16 `i32`s, as is the register.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum) }
        }
    }
}
