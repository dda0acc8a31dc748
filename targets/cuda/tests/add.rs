//! The sum of two maps: exactly the CPU's, rounded once.
#![cfg(feature = "cuda")]

mod numbers;

use candle_core::{CustomOp2, DType, Device, Result, Tensor, Var};
use numbers::*;
use pleinair_cuda::Add;

#[test]
fn sums_are_the_cpus_rounded_once() -> Result<()> {
    let device = device();
    for dtype in TYPES {
        for shape in [(1, 1, 1), (1, 3, 7), (2, 16, 8), (1, 257, 8), (3, 85, 24)] {
            let count = shape.0 * shape.1 * shape.2;
            let (a, a_there) = both(numbers(count, 1), shape, &device, dtype)?;
            let (b, b_there) = both(numbers(count, 2), shape, &device, dtype)?;
            let want = read(&a.apply_op2_no_bwd(&b, &pleinair_cpu::Add)?);
            let got = a_there.apply_op2_no_bwd(&b_there, &Add)?;
            assert_eq!((got.dims(), got.dtype()), (a.dims(), dtype));
            assert_near(&format!("{dtype:?} {shape:?}"), &got, &want, |_, y| rounding(dtype, y));
        }
    }
    Ok(())
}

#[test]
fn parts_of_a_map_out_of_line() -> Result<()> {
    let device = device();
    for dtype in TYPES {
        let (a, a_there) = both(numbers(5 * 40, 3), (5, 40), &device, dtype)?;
        let (b, b_there) = both(numbers(5 * 40, 4), (5, 40), &device, dtype)?;
        let (flat, flat_there) = (a.flatten_all()?, a_there.flatten_all()?);
        for start in [1, 4, 8] {
            let want = read(&flat.narrow(0, start, 96)?.add(&b.flatten_all()?.narrow(0, 16, 96)?)?);
            let right = b_there.flatten_all()?.narrow(0, 16, 96)?;
            let got = flat_there.narrow(0, start, 96)?.apply_op2_no_bwd(&right, &Add)?;
            assert_near(&format!("{dtype:?} from {start}"), &got, &want, |_, y| rounding(dtype, y));
        }
    }
    Ok(())
}

#[test]
fn both_gradients_are_the_sums() -> Result<()> {
    let device = device();
    let (_, a) = both(numbers(48, 5), (2, 3, 8), &device, DType::F32)?;
    let (dy, dy_there) = both(numbers(48, 6), (2, 3, 8), &device, DType::F32)?;
    let (a, b) = (Var::from_tensor(&a)?, Var::from_tensor(&a)?);
    let loss = (a.apply_op2(&b, Add)? * dy_there)?.sum_all()?;
    let gradients = loss.backward()?;
    for x in [&a, &b] {
        assert_near("the gradient", gradients.get(x).expect("a gradient"), &read(&dy), |_, _| 0.0);
    }
    Ok(())
}

#[test]
fn bad_arguments_are_errors() -> Result<()> {
    let device = device();
    let x = Tensor::zeros((2, 3, 8), DType::F32, &device)?;
    for other in [
        Tensor::zeros((2, 3, 4), DType::F32, &device)?,
        Tensor::zeros((2, 3, 8), DType::F16, &device)?,
        Tensor::zeros((2, 8, 3), DType::F32, &device)?.transpose(1, 2)?,
    ] {
        assert!(x.apply_op2_no_bwd(&other, &Add).is_err(), "{other:?}");
    }
    let whole = Tensor::zeros((2, 3), DType::U32, &device)?;
    assert!(whole.apply_op2_no_bwd(&whole, &Add).is_err());
    let here = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
    let error = here.apply_op2_no_bwd(&here, &Add).expect_err("the CPU has its own").to_string();
    assert!(error.contains("main memory"), "{error}");
    assert_eq!(Add.name(), "add");
    Ok(())
}
