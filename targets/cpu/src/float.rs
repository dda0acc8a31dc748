//! Registers of f32 numbers, the same operations on every instruction set, and the functions made of them.

mod lanewise;
mod maths;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use lanewise::{Lanewise, lanewise, lanewise_in_place};
pub(crate) use maths::{density_shape, exp2_of_nonpositive, normal_cdf, sigmoid};

use crate::isa::Token;

/// A register's operations. Everything is `#[inline(always)]`, to be called inside [`crate::isa::Work`].
pub(crate) trait Floats: Token {
    /// Numbers in a register.
    const LANES: usize;
    /// A register.
    type Vector: Copy;

    /// The same number everywhere.
    fn splat(self, x: f32) -> Self::Vector;

    /// The first numbers of a slice.
    ///
    /// # Panics
    /// If there are fewer than `LANES`.
    fn load(self, x: &[f32]) -> Self::Vector;

    /// Into the first numbers of a slice.
    ///
    /// # Panics
    /// If there are fewer than `LANES`.
    fn store(self, x: Self::Vector, into: &mut [f32]);

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `a * b + c`, rounded once where the instruction set has that.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// The larger one; `b` where it is NaN.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    fn abs(self, a: Self::Vector) -> Self::Vector;

    /// To the nearest whole number, ties to even, for magnitudes below 2^22.
    fn round(self, a: Self::Vector) -> Self::Vector;

    /// `yes` where `a < b`, else `no`.
    fn if_less(self, a: Self::Vector, b: Self::Vector, yes: Self::Vector, no: Self::Vector) -> Self::Vector;

    /// `x * 2^n` for `x` in [0.5, 2) and whole `n` in -126..=126; anything where `n` is none of them.
    fn scale(self, x: Self::Vector, n: Self::Vector) -> Self::Vector;
}

#[cfg(test)]
mod tests;
