//! GEGLU and its gradient against the CPU's in f32 on the same numbers.
#![cfg(feature = "cuda")]

mod numbers;

use candle_core::{DType, Device, Result, Tensor, Var};
use numbers::*;
use pleinair_cuda::Geglu;

/// The distribution functions of both sides are off by at most 1e-7 each, and a handful of f32 roundings come to it.
const CDF: f64 = 4e-7;

fn given(rows: usize, channels: usize, seed: u64) -> Vec<f32> {
    // gates up to 6, where the distribution function is flat
    numbers(rows * 2 * channels, seed).iter().map(|x| 6.0 * x).collect()
}

#[test]
fn values_and_gradients_are_the_cpus() -> Result<()> {
    let device = device();
    for dtype in TYPES {
        for (rows, channels) in [(1, 1), (3, 7), (5, 8), (33, 16), (2, 320), (70, 12)] {
            let (x, x_there) = both(given(rows, channels, 1), (1, rows, 2 * channels), &device, dtype)?;
            let (dy, dy_there) = both(numbers(rows * channels, 2), (1, rows, channels), &device, dtype)?;
            let cpu = pleinair_cpu::Geglu { isa: isa() };
            let (x, x_there) = (Var::from_tensor(&x)?, Var::from_tensor(&x_there)?);
            let (y, y_there) = (x.apply_op1(cpu)?, x_there.apply_op1(Geglu)?);
            let what = format!("{dtype:?} {rows} rows of {channels}");
            assert_eq!((y_there.dims(), y_there.dtype()), (y.dims(), dtype));
            let of = |i: usize| (i / channels * 2 * channels + i % channels, channels);
            let inputs = read(&x);
            // y = value * gate * cdf
            let bound = |i: usize, y: f64| {
                let (at, c) = of(i);
                rounding(dtype, y) * 1.01 + (inputs[at] * inputs[at + c]).abs() as f64 * CDF
            };
            assert_near(&what, &y_there, &read(&y), bound);
            let gradients = (&y * &dy)?.sum_all()?.backward()?;
            let there = (&y_there * &dy_there)?.sum_all()?.backward()?;
            let want = read(gradients.get(&x).expect("a gradient"));
            // the slope is at most 1.13, a gate at most 6
            let bound = |i: usize, dx: f64| {
                let other = if (i / channels).is_multiple_of(2) { i + channels } else { i - channels };
                rounding(dtype, dx) * 1.01 + (inputs[other].abs() as f64 + 1.0) * 4.0 * CDF
            };
            assert_near(&format!("{what}, backward"), there.get(&x_there).expect("a gradient"), &want, bound);
        }
    }
    Ok(())
}

#[test]
fn nan_and_infinity_stay() -> Result<()> {
    let device = device();
    let x = Tensor::from_vec(vec![f32::NAN, 1.0, 1.0, 1.0, f32::NAN, f32::INFINITY], (1, 6), &device)?;
    let y = read(&x.apply_op1_no_bwd(&Geglu)?);
    assert!(y[0].is_nan() && y[1].is_nan() && y[2] == f32::INFINITY, "{y:?}");
    Ok(())
}

#[test]
fn bad_arguments_are_errors() -> Result<()> {
    let device = device();
    for x in [
        Tensor::zeros((1, 2, 7), DType::F16, &device)?,
        Tensor::zeros((1, 2, 8), DType::U32, &device)?,
        Tensor::zeros((1, 8, 2), DType::F32, &device)?.transpose(1, 2)?,
        Tensor::zeros((1, 2, 8), DType::F32, &Device::Cpu)?,
    ] {
        assert!(x.apply_op1_no_bwd(&Geglu).is_err(), "{x:?}");
    }
    Ok(())
}
