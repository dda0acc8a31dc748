//! Matrix products and 3x3 convolutions of f32 activations with frozen weights, in f32 or in bf16 with f32 sums, forward
//! and backward to the activations.
//!
//! The weight is packed part by part from however it is stored, beside the product. A weight's values enter as they are:
//! the scales and the smoothing of int8 are multiplied into the activations before and into the results after the
//! product, so that its integers, which bf16 has exactly, need no rounding.

#[cfg(target_arch = "x86_64")]
mod amx;
mod block;
mod float;
mod kernel;
mod pack;
mod source;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use source::{Grid, Neighbourhoods, Rows, Source};

use crate::isa::{Isa, with_token};
use crate::weight::{Int8, Values, Weight};
use block::{Product, multiply};
#[cfg(target_arch = "x86_64")]
use half::bf16;
use pack::Factor;

/// The type of a product's factors; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Exact for every weight.
    F32,
    /// Exact for weights in bf16 and for the integers of int8; activations are rounded. In f32 where the instruction set
    /// has no such products.
    Bf16,
}

/// `y[m, n] = sum over k of x[m, k] W[n, k] + bias[n]`, on rayon's pool.
///
/// # Panics
/// If source, bias and smoothing do not fit the weight.
pub(crate) fn forward(weight: &Weight, x: impl Source, bias: Option<&[f32]>) -> Vec<f32> {
    let (in_scales, out_scales) = scales(weight);
    let product = Product { source: x, in_scales, factor: Factor::forward(weight), out_scales, bias };
    run(weight.isa(), weight.forward_precision(), &product)
}

/// `dx[m, n] = sum over (t, o) of dy[m, (t, o)] W[o, (taps - 1 - t, n)]`, on rayon's pool.
///
/// # Panics
/// If source and smoothing do not fit the weight, or its inputs are not so many taps.
pub(crate) fn backward(weight: &Weight, taps: usize, dy: impl Source) -> Vec<f32> {
    let (out_scales, in_scales) = scales(weight);
    let product = Product { source: dy, in_scales, factor: Factor::backward(weight, taps), out_scales, bias: None };
    run(weight.isa(), weight.backward_precision(), &product)
}

/// What the inputs and the outputs are multiplied with besides the values.
fn scales(weight: &Weight) -> (Option<&[f32]>, Option<&[f32]>) {
    match weight.values() {
        Values::Int8(Int8 { scales, .. }) => (weight.reciprocals(), Some(scales)),
        _ => (None, None),
    }
}

fn run(isa: Isa, precision: Precision, product: &Product<'_, impl Source>) -> Vec<f32> {
    match (isa, precision) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx(token), Precision::Bf16) => multiply::<bf16, _, _>(token, product),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16(token), Precision::Bf16) => multiply::<bf16, _, _>(token, product),
        (isa, _) => with_token!(isa, token => multiply::<f32, _, _>(token, product)),
    }
}
