//! Products for attention: of f32 numbers, or of pairs of bf16 numbers whose sums are f32.

use super::squares::Turn;
use crate::float::{Floats, exp2_of_nonpositive};

/// How numbers are multiplied. What is multiplied lies in cells as wide as an f32: one number, or two in bf16 with the
/// first in the lower half. Everything is `#[inline(always)]`, to be called inside [`crate::isa::Work`].
pub(super) trait Products: Copy + Send + Sync {
    /// The instructions for everything else.
    type Floats: Turn;
    /// Numbers in a cell, 1 or 2.
    const DEPTH: usize;

    fn floats(self) -> Self::Floats;

    /// `sums` and the products of the numbers in the cells `a` and `b`.
    fn dot(self, a: Vector<Self>, b: Vector<Self>, sums: Vector<Self>) -> Vector<Self>;

    /// `sums` and the numbers in the cells.
    fn total(self, cells: Vector<Self>, sums: Vector<Self>) -> Vector<Self>;

    /// Cells of the numbers of two registers, lane by lane; of the first alone where a cell has one.
    fn beside(self, first: Vector<Self>, second: Vector<Self>) -> Vector<Self>;

    /// As `LANES / DEPTH` cells of neighbouring numbers.
    fn store_neighbours(self, x: Vector<Self>, into: &mut [f32]);

    /// `2^x` for x <= 0 as precisely as the cells ask for.
    fn exp2(self, x: Vector<Self>) -> Vector<Self>;
}

/// A register of numbers or of cells.
pub(super) type Vector<P> = <<P as Products>::Floats as Floats>::Vector;

/// In f32.
#[derive(Clone, Copy)]
pub(super) struct Single<F>(pub(super) F);

impl<F: Turn> Products for Single<F> {
    type Floats = F;
    const DEPTH: usize = 1;

    #[inline(always)]
    fn floats(self) -> F {
        self.0
    }

    #[inline(always)]
    fn dot(self, a: F::Vector, b: F::Vector, sums: F::Vector) -> F::Vector {
        self.0.mul_add(a, b, sums)
    }

    #[inline(always)]
    fn total(self, cells: F::Vector, sums: F::Vector) -> F::Vector {
        self.0.add(sums, cells)
    }

    #[inline(always)]
    fn beside(self, first: F::Vector, _second: F::Vector) -> F::Vector {
        first
    }

    #[inline(always)]
    fn store_neighbours(self, x: F::Vector, into: &mut [f32]) {
        self.0.store(x, into);
    }

    #[inline(always)]
    fn exp2(self, x: F::Vector) -> F::Vector {
        exp2_of_nonpositive(self.0, x)
    }
}

/// In pairs of bf16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Pairs<F>(pub(super) F);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Pairs, Products};
    use crate::float::Floats;
    use crate::isa::{Amx, Avx512Bf16};
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// `2^f` for f in [0, 1) in powers of f, relative error 7.5e-5 (least largest, as in `float::maths`).
    const EXP2: [f32; 4] = [0.999_925_2, 0.695_833_56, 0.226_067_16, 0.078_024_52];

    /// Where the words of two registers go, one after the other, so that they lie side by side.
    const BESIDE: [i16; 32] = {
        let mut from = [0; 32];
        let mut i = 0;
        while i < 16 {
            from[2 * i] = i as i16;
            from[2 * i + 1] = 16 + i as i16;
            i += 1;
        }
        from
    };

    macro_rules! pairs {
        ($($token:ident)*) => {$(
            impl Products for Pairs<$token> {
                type Floats = $token;
                const DEPTH: usize = 2;

                #[inline(always)]
                fn floats(self) -> $token {
                    self.0
                }

                #[inline(always)]
                fn dot(self, a: __m512, b: __m512, sums: __m512) -> __m512 {
                    // SAFETY: the token exists, so the CPU has these instructions; any bits are pairs of bf16.
                    unsafe { _mm512_dpbf16_ps(sums, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)) }
                }

                #[inline(always)]
                fn total(self, cells: __m512, sums: __m512) -> __m512 {
                    // two ones in bf16
                    self.dot(cells, self.0.splat(f32::from_bits(0x3f80_3f80)), sums)
                }

                #[inline(always)]
                fn beside(self, first: __m512, second: __m512) -> __m512 {
                    // SAFETY: the token exists, so the CPU has these instructions.
                    unsafe {
                        let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
                        let from = transmute::<[i16; 32], __m512i>(BESIDE);
                        _mm512_castsi512_ps(_mm512_permutexvar_epi16(from, both))
                    }
                }

                #[inline(always)]
                fn store_neighbours(self, x: __m512, into: &mut [f32]) {
                    let into = &mut into[..8];
                    // SAFETY: the token exists, so the CPU has these instructions, and there is room for 16 halves.
                    unsafe {
                        let cells = transmute::<__m256bh, __m256>(_mm512_cvtneps_pbh(x));
                        _mm256_storeu_ps(into.as_mut_ptr(), cells);
                    }
                }

                #[inline(always)]
                fn exp2(self, x: __m512) -> __m512 {
                    let f = self.0;
                    // SAFETY: the token exists, so the CPU has these instructions.
                    let rest = unsafe { _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x) };
                    let mut y = f.splat(EXP2[3]);
                    y = f.mul_add(y, rest, f.splat(EXP2[2]));
                    y = f.mul_add(y, rest, f.splat(EXP2[1]));
                    y = f.mul_add(y, rest, f.splat(EXP2[0]));
                    // by two to the power of x's whole part, towards minus infinity
                    // SAFETY: as above.
                    unsafe { _mm512_scalef_ps(y, x) }
                }
            }
        )*};
    }

    pairs!(Amx Avx512Bf16);
}
