//! AVX-512's two-way dot products of bf16, and the turning of words in AVX-512 and AVX2.

use super::kernel::{Bytes, Element, Kernel, Sums, Tile, Turn};
use crate::int8::for_rows;
use crate::int8::pack::PANEL;
use crate::isa::{Amx, Avx2, Avx512Bf16, Avx512Vnni, AvxVnni};
use half::bf16;
use std::arch::x86_64::*;

impl Kernel<bf16> for Avx512Bf16 {
    const ROWS: usize = 14;
    const PANELS: usize = 2;

    #[inline(always)]
    fn sums(self, tile: &Tile<'_, bf16>, sums: &mut Sums) {
        // SAFETY: the token exists, so the CPU has AVX-512 BF16; the numbers are the tile's.
        unsafe {
            match tile.panels() {
                1 => for_rows!(tile: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, R => dot::<R, 1>(tile, sums)),
                _ => for_rows!(tile: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, R => dot::<R, 2>(tile, sums)),
            }
        }
    }
}

/// # Safety
/// The tile must have R rows and P panels.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn dot<const R: usize, const P: usize>(tile: &Tile<'_, bf16>, sums: &mut Sums) {
    const GROUP: usize = <bf16 as Element>::GROUP;
    let panels: [_; P] = std::array::from_fn(|p| tile.panel(p).as_ptr());
    let (activations, stride) = (tile.row(0).as_ptr(), tile.stride());
    let mut sum = [[_mm512_setzero_ps(); P]; R];
    for group in 0..tile.depth() / GROUP {
        // SAFETY: a panel holds `depth / 2` groups of 64 bytes.
        let weights: [__m512bh; P] = std::array::from_fn(|p| unsafe {
            std::mem::transmute(_mm512_loadu_si512(panels[p].add(group * PANEL * GROUP).cast()))
        });
        for r in 0..R {
            // SAFETY: every one of the R rows holds `depth` numbers.
            let two = unsafe { activations.add(r * stride + group * GROUP).cast::<i32>().read_unaligned() };
            // SAFETY: both are 64 bytes.
            let two: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(two)) };
            for p in 0..P {
                sum[r][p] = _mm512_dpbf16_ps(sum[r][p], two, weights[p]);
            }
        }
    }
    for (sums, sum) in sums.0.iter_mut().zip(sum) {
        for (sums, sum) in sums.chunks_exact_mut(PANEL).zip(sum) {
            // SAFETY: a chunk is 16 `f32`s, as is the register.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sum) }
        }
    }
}

macro_rules! turn_in_avx512 {
    ($($token:ident)*) => {$(
        impl Turn for $token {
            #[inline(always)]
            unsafe fn turn(self, from: *const u8, stride: usize, into: *mut u32) {
                // SAFETY: the token exists, so the CPU has AVX-512; the rest is the caller's promise.
                unsafe { turn_16x16(from, stride, into) }
            }

            #[inline(always)]
            fn turn_bytes(self, groups: &[i8; PANEL * PANEL], rows: &mut Bytes) {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { turn_4x16(groups, rows) }
            }
        }
    )*};
}
turn_in_avx512!(Amx Avx512Bf16 Avx512Vnni);

macro_rules! turn_in_avx2 {
    ($($token:ident)*) => {$(
        impl Turn for $token {
            #[inline(always)]
            unsafe fn turn(self, from: *const u8, stride: usize, into: *mut u32) {
                for (r, c) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
                    // SAFETY: the token exists, so the CPU has AVX2; a quarter of what the caller promised.
                    unsafe { turn_8x8(from.add(r * stride + 4 * c), stride, into.add(PANEL * c + r)) }
                }
            }
        }
    )*};
}
turn_in_avx2!(AvxVnni Avx2);

/// # Safety
/// As [`Turn::turn`].
#[target_feature(enable = "avx512f")]
unsafe fn turn_16x16(from: *const u8, stride: usize, into: *mut u32) {
    // SAFETY: 16 rows of 64 bytes.
    let rows: [_; 16] = std::array::from_fn(|r| unsafe { _mm512_loadu_si512(from.add(r * stride).cast()) });
    // pairs of rows, then fours: `fours[4 q + c]`, lane l, is column 4 l + c of rows 4 q to 4 q + 3
    let pairs: [_; 16] = std::array::from_fn(|i| match i % 2 {
        0 => _mm512_unpacklo_epi32(rows[i], rows[i + 1]),
        _ => _mm512_unpackhi_epi32(rows[i - 1], rows[i]),
    });
    let fours: [_; 16] = std::array::from_fn(|i| {
        let (low, high) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
        if i % 2 == 0 { _mm512_unpacklo_epi64(low, high) } else { _mm512_unpackhi_epi64(low, high) }
    });
    for c in 0..4 {
        let [a, b, c4, d] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (even2, odd2) = (_mm512_shuffle_i32x4::<0x88>(c4, d), _mm512_shuffle_i32x4::<0xdd>(c4, d));
        let columns = [
            _mm512_shuffle_i32x4::<0x88>(even, even2),
            _mm512_shuffle_i32x4::<0x88>(odd, odd2),
            _mm512_shuffle_i32x4::<0xdd>(even, even2),
            _mm512_shuffle_i32x4::<0xdd>(odd, odd2),
        ];
        for (lane, column) in columns.into_iter().enumerate() {
            // SAFETY: there is room for 16 columns of 16 words.
            unsafe { _mm512_storeu_si512(into.add(PANEL * (4 * lane + c)).cast(), column) }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn turn_4x16(groups: &[i8; PANEL * PANEL], rows: &mut Bytes) {
    let (groups, rows) = (groups.as_ptr(), rows.0.as_mut_ptr().cast::<i8>());
    // SAFETY: four groups of 64 bytes.
    let [a, b, c, d] = std::array::from_fn(|g| unsafe { _mm512_loadu_si512(groups.add(64 * g).cast()) });
    let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (low2, high2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let turned = [
        _mm512_unpacklo_epi64(low, low2),
        _mm512_unpackhi_epi64(low, low2),
        _mm512_unpacklo_epi64(high, high2),
        _mm512_unpackhi_epi64(high, high2),
    ];
    for (i, four) in turned.into_iter().enumerate() {
        // SAFETY: there is room for four times four rows of 16 bytes.
        unsafe { _mm512_storeu_si512(rows.add(64 * i).cast(), four) }
    }
}

/// 8 rows of 8 words, the columns 16 words apart.
///
/// # Safety
/// They must be there to be read, and room for 8 columns.
#[target_feature(enable = "avx2")]
unsafe fn turn_8x8(from: *const u8, stride: usize, into: *mut u32) {
    // SAFETY: 8 rows of 32 bytes.
    let rows: [_; 8] = std::array::from_fn(|r| unsafe { _mm256_loadu_si256(from.add(r * stride).cast()) });
    let pairs: [_; 8] = std::array::from_fn(|i| match i % 2 {
        0 => _mm256_unpacklo_epi32(rows[i], rows[i + 1]),
        _ => _mm256_unpackhi_epi32(rows[i - 1], rows[i]),
    });
    let fours: [_; 8] = std::array::from_fn(|i| {
        let (low, high) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
        if i % 2 == 0 { _mm256_unpacklo_epi64(low, high) } else { _mm256_unpackhi_epi64(low, high) }
    });
    for c in 0..4 {
        let low = _mm256_permute2x128_si256::<0x20>(fours[c], fours[4 + c]);
        let high = _mm256_permute2x128_si256::<0x31>(fours[c], fours[4 + c]);
        // SAFETY: there is room for columns 0 to 7.
        unsafe {
            _mm256_storeu_si256(into.add(PANEL * c).cast(), low);
            _mm256_storeu_si256(into.add(PANEL * (4 + c)).cast(), high);
        }
    }
}
