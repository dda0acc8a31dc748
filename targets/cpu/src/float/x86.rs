//! AVX-512 and AVX2 with FMA.

use super::Floats;
use crate::isa::{Amx, Avx2, Avx512Bf16, Avx512Vnni, AvxVnni};
use std::arch::x86_64::*;

macro_rules! avx512 {
    ($($token:ident)*) => {$(
        impl Floats for $token {
            const LANES: usize = 16;
            type Vector = __m512;

            #[inline(always)]
            fn splat(self, x: f32) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_set1_ps(x) }
            }

            #[inline(always)]
            fn load(self, x: &[f32]) -> __m512 {
                assert!(x.len() >= 16);
                // SAFETY: as above, and 16 numbers are there.
                unsafe { _mm512_loadu_ps(x.as_ptr()) }
            }

            #[inline(always)]
            fn store(self, x: __m512, into: &mut [f32]) {
                assert!(into.len() >= 16);
                // SAFETY: as above, and there is room for 16 numbers.
                unsafe { _mm512_storeu_ps(into.as_mut_ptr(), x) }
            }

            #[inline(always)]
            fn add(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_add_ps(a, b) }
            }

            #[inline(always)]
            fn sub(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_sub_ps(a, b) }
            }

            #[inline(always)]
            fn mul(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_mul_ps(a, b) }
            }

            #[inline(always)]
            fn div(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_div_ps(a, b) }
            }

            #[inline(always)]
            fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_fmadd_ps(a, b, c) }
            }

            #[inline(always)]
            fn max(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_max_ps(a, b) }
            }

            #[inline(always)]
            fn abs(self, a: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_abs_ps(a) }
            }

            #[inline(always)]
            fn round(self, a: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
            }

            #[inline(always)]
            fn if_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
            }

            #[inline(always)]
            fn scale(self, x: __m512, n: __m512) -> __m512 {
                // SAFETY: the token exists, so the CPU has AVX-512.
                unsafe { _mm512_scalef_ps(x, n) }
            }
        }
    )*};
}

avx512!(Amx Avx512Bf16 Avx512Vnni);

macro_rules! avx2 {
    ($($token:ident)*) => {$(
        impl Floats for $token {
            const LANES: usize = 8;
            type Vector = __m256;

            #[inline(always)]
            fn splat(self, x: f32) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_set1_ps(x) }
            }

            #[inline(always)]
            fn load(self, x: &[f32]) -> __m256 {
                assert!(x.len() >= 8);
                // SAFETY: as above, and 8 numbers are there.
                unsafe { _mm256_loadu_ps(x.as_ptr()) }
            }

            #[inline(always)]
            fn store(self, x: __m256, into: &mut [f32]) {
                assert!(into.len() >= 8);
                // SAFETY: as above, and there is room for 8 numbers.
                unsafe { _mm256_storeu_ps(into.as_mut_ptr(), x) }
            }

            #[inline(always)]
            fn add(self, a: __m256, b: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_add_ps(a, b) }
            }

            #[inline(always)]
            fn sub(self, a: __m256, b: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_sub_ps(a, b) }
            }

            #[inline(always)]
            fn mul(self, a: __m256, b: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_mul_ps(a, b) }
            }

            #[inline(always)]
            fn div(self, a: __m256, b: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_div_ps(a, b) }
            }

            #[inline(always)]
            fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_fmadd_ps(a, b, c) }
            }

            #[inline(always)]
            fn max(self, a: __m256, b: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_max_ps(a, b) }
            }

            #[inline(always)]
            fn abs(self, a: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
            }

            #[inline(always)]
            fn round(self, a: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
            }

            #[inline(always)]
            fn if_less(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
            }

            #[inline(always)]
            fn scale(self, x: __m256, n: __m256) -> __m256 {
                // SAFETY: the token exists, so the CPU has AVX2 and FMA.
                unsafe {
                    let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
                    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent))
                }
            }
        }
    )*};
}

avx2!(AvxVnni Avx2);
