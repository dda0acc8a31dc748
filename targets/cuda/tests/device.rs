//! The GPU, or the emulated one, through stock candle: what our ops stand on.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Result, Tensor};

fn device() -> Device {
    pleinair_cuda::open().expect("an NVIDIA GPU, or the emulated one (targets/cuda.sh test)")
}

fn close(a: &Tensor, b: &Tensor, tolerance: f32) -> Result<()> {
    let difference = (a.to_device(&Device::Cpu)?.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?;
    let worst = difference.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    assert!(worst <= tolerance, "{worst} is more than {tolerance}");
    Ok(())
}

#[test]
fn adds_uploaded_numbers() -> Result<()> {
    let device = device();
    let a = Tensor::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &device)?;
    let b = Tensor::new(&[[10f32, 20.0, 30.0], [40.0, 50.0, 60.0]], &device)?;
    assert_eq!((a + b)?.to_vec2::<f32>()?, [[11.0, 22.0, 33.0], [44.0, 55.0, 66.0]]);
    Ok(())
}

/// Views, casts, reductions, softmax pieces, gathering and products as on the CPU.
#[test]
fn computes_as_on_the_cpu() -> Result<()> {
    let device = device();
    let on_cpu = Tensor::arange(0f32, 210.0, &Device::Cpu)?.reshape((2, 15, 7))?.affine(0.013, -1.0)?;
    let on_gpu = on_cpu.to_device(&device)?;
    let weight = Tensor::arange(0f32, 35.0, &Device::Cpu)?.reshape((5, 7))?.sin()?;
    let program = |x: &Tensor, w: &Tensor| -> Result<Vec<Tensor>> {
        let product = x.broadcast_matmul(&w.t()?)?;
        let ids = Tensor::new(&[3u32, 0, 11], x.device())?;
        Ok(vec![
            x.transpose(1, 2)?.contiguous()?,
            x.narrow(1, 3, 9)?.exp()?,
            x.sum_keepdim(1)?,
            x.max(2)?,
            x.broadcast_sub(&x.mean_keepdim(2)?)?.sqr()?.sum(2)?,
            x.index_select(&ids, 1)?,
            Tensor::cat(&[x, &x.silu()?], 1)?,
            product.gelu_erf()?,
            x.to_dtype(DType::F16)?.matmul(&w.to_dtype(DType::F16)?.t()?.broadcast_left(2)?.contiguous()?)?,
            x.gt(&x.zeros_like()?)?.where_cond(x, &x.zeros_like()?)?,
        ])
    };
    // a sum of 15 or 7 numbers up to 2; the f16 product has 11 bits of numbers up to 8
    for (a, b) in program(&on_gpu, &weight.to_device(&device)?)?.iter().zip(program(&on_cpu, &weight)?) {
        close(a, &b, if b.dtype() == DType::F16 { 8.0 / 1024.0 } else { 1e-5 })?;
    }
    Ok(())
}
