//! What the tests of the ops share: the device, given numbers, and how far a result may be from what it should be.

use candle_core::{DType, Device, Result, Shape, Tensor};
use half::f16;
use pleinair_cpu::Isa;

/// Unit roundoffs.
pub const U16: f64 = 1.0 / (1 << 11) as f64;
pub const U32: f64 = 1.0 / (1 << 24) as f64;
/// Half the distance of the f16 numbers that are closest to zero.
pub const TINY16: f64 = 1.0 / (1 << 25) as f64;

/// The types of activations.
pub const TYPES: [DType; 2] = [DType::F32, DType::F16];

pub fn device() -> Device {
    pleinair_cuda::open().expect("the tests need a device; targets/cuda.sh runs them on an emulated one")
}

/// What the CPU's ops run on. Addition has no choice.
#[allow(dead_code, reason = "every test includes this file and takes what it needs")]
pub fn isa() -> Isa {
    pleinair_cpu::isa::best()
}

/// Numbers from -1 to 1 that look random and that f16 has: xorshift.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| f16::from_f32(next()).to_f32()).collect()
}

/// The same in main memory and on the device, there as `dtype`.
pub fn both(values: Vec<f32>, shape: impl Into<Shape>, device: &Device, dtype: DType) -> Result<(Tensor, Tensor)> {
    let cpu = Tensor::from_vec(values, shape, &Device::Cpu)?;
    let there = cpu.to_dtype(dtype)?.to_device(device)?;
    // what the CPU gets is what the device has
    Ok((there.to_device(&Device::Cpu)?.to_dtype(DType::F32)?, there))
}

/// A tensor's numbers in row-major order.
pub fn read(tensor: &Tensor) -> Vec<f32> {
    let cpu = tensor.to_device(&Device::Cpu).and_then(|t| t.to_dtype(DType::F32)).and_then(|t| t.flatten_all());
    cpu.and_then(|t| t.to_vec1()).expect("a tensor that can be read")
}

/// What writing `value` as `dtype` may change.
pub fn rounding(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F16 => value.abs() * U16 + TINY16,
        _ => value.abs() * U32,
    }
}

/// The first number that is not as near as `bound` (of its index and what it should be) allows; NaN never is.
pub fn far(got: &[f32], want: &[f32], bound: impl Fn(usize, f64) -> f64) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} numbers for {}", got.len(), want.len()));
    }
    got.iter().zip(want).enumerate().find_map(|(i, (&got, &want))| {
        let bound = bound(i, want as f64);
        let near = (got as f64 - want as f64).abs() <= bound;
        (!near).then(|| format!("number {i} is {got}, not {want} within {bound:e}"))
    })
}

/// Panics, with what was computed, where a number is too far off.
pub fn assert_near(what: &str, got: &Tensor, want: &[f32], bound: impl Fn(usize, f64) -> f64) {
    if let Some(far) = far(&read(got), want, bound) {
        panic!("{what}: {far}");
    }
}

#[test]
fn the_comparison_can_fail() {
    let want = [1.0, 2.0];
    assert_eq!(far(&[1.0, 2.0], &want, |_, _| 0.0), None);
    assert_eq!(far(&[1.0, 2.5], &want, |_, _| 0.5), None);
    for wrong in [&[1.0, 2.6][..], &[1.0, f32::NAN], &[f32::INFINITY, 2.0], &[1.0], &[1.0, 2.0, 3.0]] {
        assert!(far(wrong, &want, |_, _| 0.5).is_some(), "{wrong:?}");
    }
    assert!(far(&[1.0, 2.0], &want, |_, _| f64::NAN).is_some());
}
