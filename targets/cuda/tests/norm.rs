//! GroupNorm and LayerNorm and their gradients against the CPU's, whose sums are f64, on the same numbers.
#![cfg(feature = "cuda")]

mod numbers;

use candle_core::{DType, Device, Result, Tensor, Var};
use numbers::*;
use pleinair_cuda::{GroupNorm, LayerNorm};

/// Roundings in a row behind any of a result's f32 terms: a thread's own share of the sums (at most the rows given), the
/// merge of 32 threads and of a group's, and the arithmetic around them.
fn roundings(rows: usize) -> f64 {
    (rows as f64 / 32.0 + 64.0) * U32
}

/// A map whose group means are `mean` and whose deviations are about 0.6.
fn map(count: usize, mean: f32, seed: u64) -> Vec<f32> {
    numbers(count, seed).iter().map(|x| x + mean).collect()
}

struct Case {
    batch: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
    mean: f32,
}

/// How far an f32 computation of a norm of numbers around `mean`, with deviation 0.5 or more, may be off at most, for weights
/// up to 2 and |normalised| up to 4: the mean is off by its own roundings, everything else by those of numbers up to 8.
fn forward_slack(mean: f32, rows: usize) -> f64 {
    roundings(rows) * (8.0 + 2.0 * 2.0 * mean.abs() as f64)
}

fn check_group_norm(case: &Case, dtype: DType, silu: bool, device: &Device) -> Result<()> {
    let &Case { batch, pixels, channels, groups, mean } = case;
    let (shape, count) = ((batch, pixels, channels), batch * pixels * channels);
    let what = format!("{dtype:?} {shape:?} in {groups} groups around {mean}, silu {silu}");
    let (x, x_there) = both(map(count, mean, 1), shape, device, dtype)?;
    let (dy, dy_there) = both(numbers(count, 2), shape, device, dtype)?;
    let (weight, weight_there) = both(map(channels, 1.0, 3), channels, device, DType::F32)?;
    let (bias, bias_there) = both(numbers(channels, 4), channels, device, DType::F32)?;
    let (x, x_there) = (Var::from_tensor(&x)?, Var::from_tensor(&x_there)?);
    let eps = 1e-5;
    let y = x.apply_op1(pleinair_cpu::GroupNorm { weight, bias, groups, eps, silu, isa: isa() })?;
    let y_there = x_there.apply_op1(GroupNorm { weight: weight_there, bias: bias_there, groups, eps, silu })?;
    assert_eq!((y_there.dims(), y_there.dtype()), (y.dims(), dtype));
    let slack = forward_slack(mean, pixels);
    assert_near(&what, &y_there, &read(&y), |_, y| rounding(dtype, y) * 1.01 + 1.1 * slack);

    let want = (&y * &dy)?.sum_all()?.backward()?;
    let there = (&y_there * &dy_there)?.sum_all()?.backward()?;
    let (want, there) = (want.get(&x).expect("a gradient"), there.get(&x_there).expect("a gradient"));
    // |g| is at most 2.2, rstd at most 2: every term at most 2 * (2.2 + 2.2 + 4 * 2.2), and SiLU's slope changes by half of
    // what its argument is off
    let slack = 2.0 * (13.2 * roundings(pixels) + 2.0 * 6.0 * slack);
    assert_near(&format!("{what}, backward"), there, &read(want), |_, dx| rounding(dtype, dx) * 1.01 + slack);
    Ok(())
}

#[test]
fn group_norm_is_the_cpus() -> Result<()> {
    let device = device();
    let cases = [
        // a part's edges: 32 threads one below the other, 128 pixels at least
        Case { batch: 1, pixels: 31, channels: 32, groups: 4, mean: 0.0 },
        Case { batch: 2, pixels: 33, channels: 64, groups: 8, mean: 0.5 },
        Case { batch: 1, pixels: 127, channels: 16, groups: 2, mean: 0.0 },
        Case { batch: 2, pixels: 129, channels: 40, groups: 4, mean: -1.0 },
        Case { batch: 1, pixels: 300, channels: 320, groups: 32, mean: 0.0 },
        // groups of channels that no pack holds, and channels that make no pack
        Case { batch: 1, pixels: 40, channels: 72, groups: 24, mean: 0.0 },
        Case { batch: 2, pixels: 40, channels: 15, groups: 5, mean: 0.0 },
        Case { batch: 1, pixels: 50, channels: 12, groups: 1, mean: 2.0 },
        Case { batch: 3, pixels: 20, channels: 8, groups: 2, mean: 0.0 },
    ];
    for case in &cases {
        for dtype in TYPES {
            for silu in [false, true] {
                check_group_norm(case, dtype, silu, &device)?;
            }
        }
    }
    Ok(())
}

/// Sums of squares would leave nothing of the variance here.
#[test]
fn a_large_mean_costs_no_digits() -> Result<()> {
    let device = device();
    let case = Case { batch: 1, pixels: 200, channels: 16, groups: 2, mean: 4096.0 };
    check_group_norm(&case, DType::F32, false, &device)
}

/// More pixels than so many parts of the least size hold.
#[test]
fn parts_grow_with_the_map() -> Result<()> {
    let device = device();
    let (pixels, channels) = (256 * 128 + 5, 4);
    let case = Case { batch: 1, pixels, channels, groups: 2, mean: 1.0 };
    check_group_norm(&case, DType::F16, true, &device)
}

/// A gradient whose sums over a group are nothing.
#[test]
fn a_constant_map_has_a_gradient() -> Result<()> {
    let device = device();
    let ones = Tensor::ones((1, 64, 16), DType::F16, &device)?;
    let x = Var::from_tensor(&ones)?;
    let (weight, bias) = (Tensor::ones(16, DType::F32, &device)?, Tensor::zeros(16, DType::F32, &device)?);
    let y = x.apply_op1(GroupNorm { weight, bias, groups: 4, eps: 1e-5, silu: false })?;
    assert_near("a constant map", &y, &[0.0; 64 * 16], |_, _| 0.0);
    let gradients = y.sum_all()?.backward()?;
    assert_near("its gradient", gradients.get(&x).expect("a gradient"), &[0.0; 64 * 16], |_, _| 0.0);
    Ok(())
}

#[test]
fn layer_norm_is_the_cpus() -> Result<()> {
    let device = device();
    for dtype in TYPES {
        for (rows, channels, mean) in
            [(1, 8, 0.0), (3, 7, 0.5), (4, 320, 0.0), (5, 64, 100.0), (9, 260, -1.0), (2, 31, 0.0)]
        {
            let what = format!("{dtype:?} {rows} rows of {channels} around {mean}");
            let (x, x_there) = both(map(rows * channels, mean, 1), (1, rows, channels), &device, dtype)?;
            let (dy, dy_there) = both(numbers(rows * channels, 2), (1, rows, channels), &device, dtype)?;
            let (weight, weight_there) = both(map(channels, 1.0, 3), channels, &device, DType::F32)?;
            let (bias, bias_there) = both(numbers(channels, 4), channels, &device, DType::F32)?;
            let (x, x_there) = (Var::from_tensor(&x)?, Var::from_tensor(&x_there)?);
            let y = x.apply_op1(pleinair_cpu::LayerNorm { weight, bias, eps: 1e-5, isa: isa() })?;
            let y_there = x_there.apply_op1(LayerNorm { weight: weight_there, bias: bias_there, eps: 1e-5 })?;
            assert_eq!((y_there.dims(), y_there.dtype()), (y.dims(), dtype));
            // the few numbers of a short row may lie closer together
            let slack = 4.0 * forward_slack(mean, channels);
            assert_near(&what, &y_there, &read(&y), |_, y| rounding(dtype, y) * 1.01 + slack);
            let want = (&y * &dy)?.sum_all()?.backward()?;
            let there = (&y_there * &dy_there)?.sum_all()?.backward()?;
            let (want, there) = (want.get(&x).expect("a gradient"), there.get(&x_there).expect("a gradient"));
            let slack = 4.0 * (26.4 * roundings(channels) + 12.0 * slack);
            assert_near(&format!("{what}, backward"), there, &read(want), |_, dx| rounding(dtype, dx) * 1.01 + slack);
        }
    }
    Ok(())
}

#[test]
fn nan_stays_in_its_group_and_its_row() -> Result<()> {
    let device = device();
    let mut values = map(64 * 16, 0.0, 1);
    values[16 * 7 + 3] = f32::NAN;
    let x = Tensor::from_vec(values, (1, 64, 16), &device)?;
    let (weight, bias) = (Tensor::ones(16, DType::F32, &device)?, Tensor::zeros(16, DType::F32, &device)?);
    let norm = GroupNorm { weight: weight.clone(), bias: bias.clone(), groups: 4, eps: 1e-5, silu: true };
    for (i, y) in read(&x.apply_op1_no_bwd(&norm)?).iter().enumerate() {
        assert_eq!(y.is_nan(), i % 16 < 4, "{i}");
    }
    for (i, y) in read(&x.apply_op1_no_bwd(&LayerNorm { weight, bias, eps: 1e-5 })?).iter().enumerate() {
        assert_eq!(y.is_nan(), i / 16 == 7, "{i}");
    }
    Ok(())
}

#[test]
fn bad_arguments_are_errors() -> Result<()> {
    let device = device();
    let of = |channels: usize| Tensor::ones(channels, DType::F32, &device);
    let norm = |groups: usize| -> Result<GroupNorm> {
        Ok(GroupNorm { weight: of(12)?, bias: of(12)?, groups, eps: 1e-5, silu: true })
    };
    let layer = LayerNorm { weight: of(12)?, bias: of(12)?, eps: 1e-5 };
    let good = Tensor::ones((1, 4, 12), DType::F32, &device)?;
    for groups in [0, 5] {
        assert!(good.apply_op1_no_bwd(&norm(groups)?).is_err(), "{groups} groups");
    }
    for x in [
        Tensor::ones((1, 4, 8), DType::F32, &device)?,
        Tensor::ones((1, 4, 12), DType::U32, &device)?,
        Tensor::ones((1, 12, 4), DType::F32, &device)?.transpose(1, 2)?,
        Tensor::ones((1, 4, 12), DType::F32, &Device::Cpu)?,
    ] {
        assert!(x.apply_op1_no_bwd(&norm(4)?).is_err(), "{x:?}");
        assert!(x.apply_op1_no_bwd(&layer).is_err(), "{x:?}");
    }
    let half = LayerNorm { weight: of(12)?.to_dtype(DType::F16)?, ..layer };
    let error = good.apply_op1_no_bwd(&half).expect_err("weights are f32").to_string();
    assert!(error.contains("f32"), "{error}");
    Ok(())
}
