//! Squares of numbers turned over: where rows of a tensor become columns of a block, and the other way round.

use crate::float::Floats;
use crate::isa;

/// As many rows and columns as the widest register has numbers; narrower ones use a part of them.
pub(super) const SIDE: usize = 16;

/// See [`Turn::turn`].
pub(super) type Square = [[f32; SIDE]; SIDE];

/// How an instruction set turns a square over. Must be `#[inline(always)]`.
pub(super) trait Turn: Floats {
    /// `into[i][r] = rows[r][at + i]` for i and r below `LANES`.
    #[inline(always)]
    fn turn<const WIDTH: usize>(self, rows: &[[f32; WIDTH]], at: usize, into: &mut Square) {
        for (r, row) in rows[..Self::LANES].iter().enumerate() {
            for (into, &x) in into.iter_mut().zip(&row[at..at + Self::LANES]) {
                into[r] = x;
            }
        }
    }
}

impl Turn for isa::Scalar {}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{Turn, isa};

    impl Turn for isa::NeonI8mm {}
    impl Turn for isa::NeonDotprod {}
    impl Turn for isa::Neon {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Square, Turn, isa};
    use crate::float::Floats;
    use std::arch::x86_64::*;

    impl Turn for isa::AvxVnni {}
    impl Turn for isa::Avx2 {}

    macro_rules! avx512 {
        ($($token:ident)*) => {$(
            impl Turn for isa::$token {
                #[inline(always)]
                fn turn<const WIDTH: usize>(self, rows: &[[f32; WIDTH]], at: usize, into: &mut Square) {
                    let mut x = [self.splat(0.0); 16];
                    for (x, row) in x.iter_mut().zip(&rows[..16]) {
                        *x = self.load(&row[at..at + 16]);
                    }
                    // SAFETY: the token exists, so the CPU has AVX-512.
                    let x = unsafe { turned(x) };
                    for (into, x) in into.iter_mut().zip(x) {
                        self.store(x, into);
                    }
                }
            }
        )*};
    }

    avx512!(Amx Avx512Bf16 Avx512Vnni);

    /// Pairs of numbers, then fours, trade places within registers, then quarters of registers.
    ///
    /// # Safety
    /// The CPU must have AVX-512.
    #[inline(always)]
    unsafe fn turned(x: [__m512; 16]) -> [__m512; 16] {
        let mut pairs = x;
        let mut fours = x;
        // SAFETY: says the caller, here and below.
        unsafe {
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
            }
            // fours[4 i + j]: rows 4 i to 4 i + 3 of columns j, j + 4, j + 8 and j + 12
            for i in 0..4 {
                for j in 0..2 {
                    let a = _mm512_castps_pd(pairs[4 * i + j]);
                    let b = _mm512_castps_pd(pairs[4 * i + 2 + j]);
                    fours[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    fours[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            let mut y = x;
            for j in 0..4 {
                let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
                let low = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
                let high = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
                y[j] = _mm512_shuffle_f32x4::<0x88>(low[0], low[1]);
                y[8 + j] = _mm512_shuffle_f32x4::<0xdd>(low[0], low[1]);
                y[4 + j] = _mm512_shuffle_f32x4::<0x88>(high[0], high[1]);
                y[12 + j] = _mm512_shuffle_f32x4::<0xdd>(high[0], high[1]);
            }
            y
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Token, Work, found, with_token};

    struct Turned<'a, F>(F, &'a [[f32; 40]], usize, &'a mut Square);

    impl<F: Turn> Work for Turned<'_, F> {
        #[inline(always)]
        fn run(self) {
            self.0.turn(self.1, self.2, self.3);
        }
    }

    fn lanes<F: Floats>(_: F) -> usize {
        F::LANES
    }

    #[test]
    fn rows_become_columns() {
        let mut rows = [[0.0; 40]; 17];
        rows.as_flattened_mut().iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
        for isa in found().into_iter().filter_map(|(_, isa)| isa) {
            for at in [0, 1, 24] {
                let mut square = [[-1.0; SIDE]; SIDE];
                with_token!(isa, f => f.vectorize(Turned(f, &rows, at, &mut square)));
                let lanes = with_token!(isa, f => lanes(f));
                for i in 0..lanes {
                    for r in 0..lanes {
                        assert_eq!(square[i][r], rows[r][at + i], "{isa}, row {r}, column {}", at + i);
                    }
                }
            }
        }
    }
}
