//! Matrix products and 3x3 convolutions of int8 weights and int8 activations.
//!
//! `y = f32(sum of products) * activation scale * weight scale + bias`, in that order and with a rounding after each
//! step, on every instruction set. Sums are exact in i32, so all kernels agree to the last bit.

mod block;
mod conv;
mod kernel;
pub mod pack;
mod quantize;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

pub use conv::{Picture, conv3x3};
pub(crate) use kernel::for_rows;
pub use quantize::{quantize_pictures, quantize_rows};

use crate::isa::{Isa, with_token};
use block::{Product, Source, multiply};
use candle_core::{Result, bail};
use pack::packed_len;

/// Sums stay in i32 up to this many inputs: 2^31 / (255 * 128), the shifted activation times the weight.
pub const MAX_INPUTS: usize = 65_793;

/// A symmetric int8 weight `[outputs, inputs]`, packed as [`pack`] says, with a scale for each output.
#[derive(Debug, Clone, Copy)]
pub struct PackedWeight<'a> {
    packed: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
    inputs: usize,
}

impl<'a> PackedWeight<'a> {
    /// A weight of `scales.len()` outputs; `sums` as [`pack::sums`] gives them.
    ///
    /// # Errors
    /// If the lengths do not belong together, or there are more than [`MAX_INPUTS`] inputs.
    pub fn new(packed: &'a [i8], scales: &'a [f32], sums: &'a [i32], inputs: usize) -> Result<Self> {
        let outputs = scales.len();
        if packed.len() != packed_len(outputs, inputs) || sums.len() != outputs || inputs > MAX_INPUTS {
            bail!(
                "an int8 weight of {outputs} outputs and {inputs} inputs (at most {MAX_INPUTS}) is not {} bytes and {} sums",
                packed.len(),
                sums.len()
            )
        }
        Ok(PackedWeight { packed, scales, sums, inputs })
    }

    /// Outputs, N.
    pub fn outputs(&self) -> usize {
        self.scales.len()
    }

    /// Inputs, K.
    pub fn inputs(&self) -> usize {
        self.inputs
    }
}

/// Quantised activations `[M, K]`, row after row `stride` bytes apart, with a scale for each row.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// `values[m * stride + k]`.
    pub values: &'a [i8],
    /// Bytes from one row to the next, at least K.
    pub stride: usize,
    /// `[M]`.
    pub scales: &'a [f32],
}

impl Source for Rows<'_> {
    fn len(&self) -> usize {
        self.scales.len()
    }

    #[inline(always)]
    fn gather(&self, row: usize, flip: u8, into: &mut [u8]) {
        kernel::copy_flipped(&self.values[row * self.stride..][..into.len()], flip, into);
    }

    #[inline(always)]
    fn scale(&self, row: usize) -> f32 {
        self.scales[row]
    }
}

/// `y[m, n] = f32(sum over k of a[m, k] w[n, k]) * a.scales[m] * w.scales[n] + bias[n]`, `y: [M, N]`, on rayon's pool.
///
/// # Panics
/// If `a`, `bias` or `y` are too short for the weight.
pub fn matmul(isa: Isa, a: Rows<'_>, w: PackedWeight<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    assert!(a.stride >= w.inputs, "rows of {} inputs lie {} bytes apart", w.inputs, a.stride);
    let product = Product::new(a, w, bias, y);
    with_token!(isa, token => multiply(token, product));
}
