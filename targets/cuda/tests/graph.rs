//! Recorded steps.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Result, Tensor, bail};
use pleinair_cuda::Graph;

fn device() -> Device {
    pleinair_cuda::open().expect("an NVIDIA GPU, or the emulated one (targets/cuda.sh test)")
}

/// A network of its own kind: views, broadcasts, reductions and a product of f16 numbers.
fn network(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let h = x.broadcast_mul(&x.mean_keepdim(1)?)?.transpose(0, 1)?.contiguous()?;
    let product = h.t()?.to_dtype(DType::F16)?.contiguous()?.matmul(&weight.to_dtype(DType::F16)?)?;
    product.to_dtype(DType::F32)?.silu()?.affine(0.5, 1.0)
}

#[test]
fn a_recorded_step_computes_with_new_inputs() -> Result<()> {
    let device = device();
    let weight = Tensor::arange(0f32, 24.0, &device)?.reshape((6, 4))?.cos()?;
    let inputs: Vec<Tensor> = (0..4)
        .map(|i| Tensor::arange(i as f32, (18 + i) as f32, &device)?.reshape((3, 6))?.sin())
        .collect::<Result<_>>()?;
    let x = inputs[0].copy()?;
    let y = Tensor::zeros((3, 4), DType::F32, &device)?;
    let graph = Graph::capture(&device, || y.slice_set(&network(&x, &weight)?, 0, 0))?;
    let want = |input: &Tensor| network(input, &weight)?.to_vec2::<f32>();
    assert_eq!(y.to_vec2::<f32>()?, want(&inputs[0])?, "the first run is a real one");
    for input in &inputs[1..] {
        let before = y.to_vec2::<f32>()?;
        x.slice_set(input, 0, 0)?;
        assert_eq!(y.to_vec2::<f32>()?, before, "nothing runs before the launch");
        graph.launch()?;
        assert_eq!(y.to_vec2::<f32>()?, want(input)?);
    }
    // nothing changes between two launches with one input
    graph.launch()?;
    assert_eq!(y.to_vec2::<f32>()?, want(&inputs[3])?);
    Ok(())
}

#[test]
fn what_cannot_be_recorded_is_an_error_and_the_device_lives_on() -> Result<()> {
    let device = device();
    let x = Tensor::arange(0f32, 8.0, &device)?;
    let error = |result: Result<Graph>| result.err().map(|e| e.to_string()).expect("an error");

    let failing = error(Graph::capture(&device, || bail!("no such layer")));
    assert!(failing.contains("no such layer"), "{failing}");
    let mut runs = 0;
    let late = error(Graph::capture(&device, || {
        runs += 1;
        if runs == 2 { bail!("at the second run") } else { x.exp().map(drop) }
    }));
    assert!(late.contains("at the second run"), "{late}");

    let reading = error(Graph::capture(&device, || x.sum_all()?.to_scalar::<f32>().map(drop)));
    assert!(reading.contains("capture"), "{reading}");

    let mut old = vec![x.copy()?, x.copy()?];
    let freeing = error(Graph::capture(&device, || {
        drop(old.pop());
        Ok(())
    }));
    assert!(freeing.contains("freed a tensor from before"), "{freeing}");

    let processor = error(Graph::capture(&Device::Cpu, || Ok(())));
    assert!(processor.contains("CUDA"), "{processor}");

    assert_eq!(x.sqr()?.sum_all()?.to_scalar::<f32>()?, 140.0);
    let y = x.zeros_like()?;
    Graph::capture(&device, || y.slice_set(&x.sqr()?, 0, 0))?.launch()?;
    assert_eq!(y.sum_all()?.to_scalar::<f32>()?, 140.0);
    Ok(())
}

#[test]
fn a_tensor_kept_from_the_recording_is_an_error_at_the_second_launch() -> Result<()> {
    let device = device();
    let x = Tensor::arange(0f32, 8.0, &device)?;
    let mut all = vec![];
    let graph = Graph::capture(&device, || {
        all.push(x.sqr()?);
        Ok(())
    })?;
    graph.launch()?;
    let second = graph.launch().expect_err("the tensor is alive").to_string();
    assert!(second.contains("kept"), "{second}");
    Ok(())
}

#[test]
fn a_panic_ends_the_recording() -> Result<()> {
    let device = device();
    let x = Tensor::arange(0f32, 8.0, &device)?;
    let mut runs = 0;
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Graph::capture(&device, || {
            runs += 1;
            assert!(runs == 1, "a bug");
            Ok(())
        })
    }));
    assert!(caught.is_err());
    assert_eq!(x.sum_all()?.to_scalar::<f32>()?, 28.0);
    Ok(())
}
