//! Numbers for tests, what the CPU's ops make of them, and the comparison.
#![allow(dead_code, reason = "each test uses what it needs")]

use candle_core::{CustomOp1, Device, Tensor, Var};
use half::f16;
use pleinair_metal::machine::Kind;

/// Pseudorandom numbers in [-1, 1) that f16 has.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f16::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0).to_f32()
    };
    (0..count).map(|_| next()).collect()
}

/// Unit roundoff.
pub fn unit(kind: Kind) -> f32 {
    match kind {
        Kind::F32 => 1.0 / (1 << 24) as f32,
        Kind::F16 => 1.0 / (1 << 11) as f32,
    }
}

/// No number may be off by more than so many roundings of the largest, and of `terms`: what its largest terms, where they
/// cancel, add up to, times a unit roundoff.
pub fn near(what: &str, kind: Kind, roundings: f32, terms: f32, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0f32, |size, w| size.max(w.abs()));
    // f16 has nothing between the multiples of 2^-24
    let bound = roundings * (unit(kind) * size + terms + if kind == Kind::F16 { 6e-8 } else { 0.0 });
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (got - want).abs();
        assert!(off <= bound, "{what} {kind:?}: number {i} is {got}, not {want}: off by {off}, more than {bound}");
    }
}

pub fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

pub fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// The CPU's result and gradient.
pub fn oracle(op: impl CustomOp1 + Send + Sync + 'static, x: &Tensor, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let x = Var::from_tensor(x).unwrap();
    let y = x.apply_op1(op).unwrap();
    let dy = tensor(dy, y.dims());
    let gradients = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    (flat(&y), flat(gradients.get(&x).unwrap()))
}

/// What an f32 number minus the mean may be off by, over the standard deviation, in the result and in the gradient, where
/// one more deviation divides it.
pub fn norm_terms(members: &[Vec<f32>]) -> (f32, f32) {
    let mut terms = (0.0f32, 0.0f32);
    for group in members {
        let mean = group.iter().sum::<f32>() / group.len() as f32;
        let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / group.len() as f32;
        let reciprocal = 1.0 / (variance + 1e-5).sqrt();
        let off = unit(Kind::F32) * group.iter().fold(1.0f32, |size, x| size.max(x.abs())) * reciprocal;
        terms = (terms.0.max(off), terms.1.max(off * reciprocal));
    }
    terms
}
