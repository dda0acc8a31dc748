//! What every 64-bit Arm has.

use super::Floats;
use crate::isa::{Neon, NeonDotprod, NeonI8mm};
use std::arch::aarch64::*;

macro_rules! neon {
    ($($token:ident)*) => {$(
        impl Floats for $token {
            const LANES: usize = 4;
            type Vector = float32x4_t;

            #[inline(always)]
            fn splat(self, x: f32) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vdupq_n_f32(x) }
            }

            #[inline(always)]
            fn load(self, x: &[f32]) -> float32x4_t {
                assert!(x.len() >= 4);
                // SAFETY: as above, and 4 numbers are there.
                unsafe { vld1q_f32(x.as_ptr()) }
            }

            #[inline(always)]
            fn store(self, x: float32x4_t, into: &mut [f32]) {
                assert!(into.len() >= 4);
                // SAFETY: as above, and there is room for 4 numbers.
                unsafe { vst1q_f32(into.as_mut_ptr(), x) }
            }

            #[inline(always)]
            fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vaddq_f32(a, b) }
            }

            #[inline(always)]
            fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vsubq_f32(a, b) }
            }

            #[inline(always)]
            fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vmulq_f32(a, b) }
            }

            #[inline(always)]
            fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vdivq_f32(a, b) }
            }

            #[inline(always)]
            fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vfmaq_f32(c, a, b) }
            }

            #[inline(always)]
            fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vmaxq_f32(a, b) }
            }

            #[inline(always)]
            fn abs(self, a: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vabsq_f32(a) }
            }

            #[inline(always)]
            fn round(self, a: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vrndnq_f32(a) }
            }

            #[inline(always)]
            fn if_less(self, a: float32x4_t, b: float32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe { vbslq_f32(vcltq_f32(a, b), yes, no) }
            }

            #[inline(always)]
            fn scale(self, x: float32x4_t, n: float32x4_t) -> float32x4_t {
                // SAFETY: every CPU of this architecture has NEON.
                unsafe {
                    let exponent = vshlq_n_s32::<23>(vcvtnq_s32_f32(n));
                    vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), exponent))
                }
            }
        }
    )*};
}

neon!(NeonI8mm NeonDotprod Neon);
