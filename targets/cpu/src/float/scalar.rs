//! Plain Rust, four numbers at a time, which the compiler may put into whatever registers there are.

use super::Floats;
use crate::isa::Scalar;

const LANES: usize = 4;
/// Adding and subtracting it rounds numbers of magnitude below 2^22 to whole ones, ties to even.
const ROUND: f32 = (3 << 22) as f32;

/// `f` of each lane.
macro_rules! lanes {
    (|$i:ident| $f:expr) => {{
        let mut y = [0.0; LANES];
        for $i in 0..LANES {
            y[$i] = $f;
        }
        y
    }};
}

impl Floats for Scalar {
    const LANES: usize = LANES;
    type Vector = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Vector {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::Vector {
        lanes!(|i| x[i])
    }

    #[inline(always)]
    fn store(self, x: Self::Vector, into: &mut [f32]) {
        into[..LANES].copy_from_slice(&x);
    }

    #[inline(always)]
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        lanes!(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        lanes!(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        lanes!(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        lanes!(|i| a[i] / b[i])
    }

    /// Rounded twice: without the instruction, a fused one is a call.
    #[inline(always)]
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        lanes!(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn abs(self, a: Self::Vector) -> Self::Vector {
        lanes!(|i| a[i].abs())
    }

    #[inline(always)]
    fn round(self, a: Self::Vector) -> Self::Vector {
        lanes!(|i| (a[i] + ROUND) - ROUND)
    }

    #[inline(always)]
    fn if_less(self, a: Self::Vector, b: Self::Vector, yes: Self::Vector, no: Self::Vector) -> Self::Vector {
        lanes!(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn scale(self, x: Self::Vector, n: Self::Vector) -> Self::Vector {
        // the low bits of `n + ROUND` are n
        lanes!(|i| f32::from_bits(x[i].to_bits().wrapping_add((n[i] + ROUND).to_bits() << 23)))
    }
}
