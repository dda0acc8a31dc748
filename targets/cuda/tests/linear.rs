//! Linear layers on the GPU beside the processor's.
#![cfg(feature = "cuda")]

mod frozen;

use candle_core::{CustomOp1, DType, Device, Tensor, Var};
use frozen::{ACTIVATIONS, Bound, Frozen, KINDS, Kind, Layers, device, numbers};
use pleinair_cuda::{Graph, Linear, Values, Weight};
use std::sync::Arc;

fn compare(device: &Device, kind: Kind, dtype: DType, (m, k, n): (usize, usize, usize), with_bias: bool) -> f64 {
    let frozen = Frozen::new(device, kind, (n, k), k);
    let bias = Tensor::from_vec(numbers(6, n), n, &Device::Cpu).unwrap();
    let bias = with_bias.then_some(&bias);
    let layers = Layers {
        frozen: &frozen,
        gpu: Linear { weight: frozen.gpu.clone(), bias: bias.map(|b| b.to_device(device).unwrap()) },
        cpu: pleinair_cpu::Linear { weight: frozen.cpu(), bias: bias.cloned() },
        magnitudes: pleinair_cpu::Linear { weight: frozen.cpu_magnitudes(), bias: bias.map(|b| b.abs().unwrap()) },
        terms: [k, n],
        folded: false,
    };
    layers.compare(device, &format!("{kind:?} {m}x{k}x{n} {dtype:?}"), dtype, &[m, k])
}

/// Around every edge of the tiles, of the steps of k and of the chunks of 8.
#[test]
fn sizes_around_every_edge() {
    let device = device();
    let (ms, ks, ns) = ([1, 63, 65, 128, 130], [8, 32, 40, 96, 136, 264], [8, 64, 72, 128, 136]);
    let mut worst = 0.0f64;
    for (i, kind) in KINDS.into_iter().enumerate() {
        for dtype in ACTIVATIONS {
            for (j, &m) in ms.iter().enumerate() {
                // every m meets every k and every n, not all three
                for (l, &k) in ks.iter().enumerate() {
                    let n = ns[(i + j + l) % ns.len()];
                    worst = worst.max(compare(&device, kind, dtype, (m, k, n), (j + l) % 2 == 0));
                }
            }
        }
    }
    println!("linear: at most {worst:.2} of the bound");
}

/// Nothing a multiple of 8.
#[test]
fn odd_sizes() {
    let device = device();
    for kind in KINDS {
        for dtype in ACTIVATIONS {
            for size in [(1, 1, 1), (3, 5, 7), (65, 33, 4), (5, 100, 66), (70, 36, 65), (2, 16, 9), (4, 9, 24)] {
                compare(&device, kind, dtype, size, true);
            }
        }
    }
}

/// Few rows and much to add up: partial sums, the last of them shorter.
#[test]
fn parts_of_a_long_sum() {
    let device = device();
    for kind in KINDS {
        for size in [(2, 2048, 64), (64, 1160, 72), (3, 40, 2056), (5, 1001, 3)] {
            compare(&device, kind, DType::F16, size, true);
        }
    }
}

#[test]
fn a_result_is_the_same_every_time() {
    let device = device();
    let frozen = Frozen::new(&device, Kind::Int8, (64, 2048), 2048);
    let x = Tensor::from_vec(numbers(1, 3 * 2048), (3, 2048), &device).unwrap().to_dtype(DType::F16).unwrap();
    let layer = Linear { weight: frozen.gpu.clone(), bias: None };
    let y = || x.apply_op1(layer.clone()).unwrap().flatten_all().unwrap().to_vec1::<half::f16>().unwrap();
    assert_eq!(y(), y());
}

/// What a tile holds beyond the end of k and of the rows is zero times zero, not zero times whatever lies there.
#[test]
fn a_row_of_nan_stays_in_its_row() {
    let device = device();
    for dtype in ACTIVATIONS {
        for k in [8, 40, 33] {
            let frozen = Frozen::new(&device, Kind::F16, (16, k), k);
            let mut x = numbers(1, 5 * k);
            x[2 * k..3 * k].fill(f32::NAN);
            let x = Tensor::from_vec(x, (5, k), &device).unwrap().to_dtype(dtype).unwrap();
            let y = x.apply_op1(Linear { weight: frozen.gpu.clone(), bias: None }).unwrap();
            for (row, y) in y.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap().into_iter().enumerate() {
                assert!(y.iter().all(|y| y.is_nan() == (row == 2)), "{dtype:?}, k = {k}, row {row}: {y:?}");
            }
        }
    }
}

/// Partial sums are memory of the graph.
#[test]
fn a_recorded_layer_computes_with_new_inputs() {
    let device = device();
    let frozen = Frozen::new(&device, Kind::Smooth, (64, 2048), 2048);
    let layer = Linear { weight: frozen.gpu.clone(), bias: Some(Tensor::ones(64, DType::F32, &device).unwrap()) };
    let input =
        |seed| Tensor::from_vec(numbers(seed, 3 * 2048), (3, 2048), &device).unwrap().to_dtype(DType::F16).unwrap();
    let x = input(1).copy().unwrap();
    let y = Tensor::zeros((3, 64), DType::F16, &device).unwrap();
    let graph = Graph::capture(&device, || y.slice_set(&x.apply_op1(layer.clone())?, 0, 0)).unwrap();
    for seed in [2, 3] {
        x.slice_set(&input(seed), 0, 0).unwrap();
        graph.launch().unwrap();
        let want = input(seed).apply_op1(layer.clone()).unwrap();
        assert_eq!(y.to_vec2::<half::f16>().unwrap(), want.to_vec2::<half::f16>().unwrap());
    }
}

/// Rows in the middle of their memory, at an address that is no multiple of 16 bytes and at one that is.
#[test]
fn inputs_begin_anywhere() {
    let device = device();
    let frozen = Frozen::new(&device, Kind::F16, (24, 40), 40);
    let layer = Linear { weight: frozen.gpu.clone(), bias: None };
    for first in [1, 2] {
        for dtype in ACTIVATIONS {
            let all = Tensor::from_vec(numbers(1, 400), (100, 4), &device).unwrap().to_dtype(dtype).unwrap();
            let view = all.narrow(0, first, 30).unwrap().reshape((3, 40)).unwrap();
            let copy = (view.copy().unwrap() + 0.0).unwrap();
            let (got, want) = (view.apply_op1(layer.clone()).unwrap(), copy.apply_op1(layer.clone()).unwrap());
            let size = want.abs().unwrap().affine(0.0, 40.0).unwrap();
            Bound { sums: 1e-5, result: 1e-3, tiny: 0.0 }.assert("a view", &got, &want, &size);
        }
    }
}

/// Through candle's own tape, where the gradient arrives transposed and the weight gets none.
#[test]
fn learning_goes_through() {
    let device = device();
    for dtype in ACTIVATIONS {
        let frozen = Frozen::new(&device, Kind::F32, (24, 16), 16);
        let layer = Linear { weight: frozen.gpu.clone(), bias: None };
        let x = Var::from_tensor(&Tensor::from_vec(numbers(1, 160), (2, 5, 16), &device).unwrap()).unwrap();
        let y = x.as_tensor().to_dtype(dtype).unwrap().apply_op1(layer.clone()).unwrap();
        let r = Tensor::from_vec(numbers(2, 240), (2, 24, 5), &device).unwrap().to_dtype(dtype).unwrap();
        let loss = (y.transpose(1, 2).unwrap() * &r).unwrap().sum_all().unwrap();
        let got = loss.backward().unwrap().remove(&x).expect("the input has a gradient");
        let r = r.transpose(1, 2).unwrap();
        let want = layer.bwd(&y, &y, &r).unwrap().unwrap();
        Bound { sums: 0.0, result: 1e-3, tiny: 1e-6 }.assert("through the tape", &got, &want, &want);
    }
}

#[test]
fn bad_input_is_an_error() {
    let device = device();
    let frozen = Frozen::new(&device, Kind::F16, (16, 24), 24);
    let layer = |bias: Option<Tensor>| Linear { weight: frozen.gpu.clone(), bias };
    let rows = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &device).unwrap();
    let error = |x: &Tensor, layer: Linear| x.apply_op1(layer).unwrap_err().to_string();
    assert!(error(&rows(&[2, 16], DType::F32), layer(None)).contains("24 features got [2, 16]"));
    assert!(error(&rows(&[2, 24], DType::F64), layer(None)).contains("takes f16 or f32"));
    assert!(error(&rows(&[24, 2], DType::F32).t().unwrap(), layer(None)).contains("contiguous"));
    assert!(error(&rows(&[2, 24], DType::F32), layer(Some(rows(&[15], DType::F32)))).contains("15 biases"));
    assert!(error(&rows(&[2, 24], DType::F32), layer(Some(rows(&[16], DType::F16)))).contains("dtype"));
    let far = Tensor::zeros(16, DType::F32, &Device::Cpu).unwrap();
    assert!(error(&rows(&[2, 24], DType::F32), layer(Some(far))).contains("bias"));
    let far = Tensor::zeros((2, 24), DType::F32, &Device::Cpu).unwrap();
    assert!(error(&far, layer(None)).contains("move the input there"));
    let other = frozen::device();
    assert!(error(&Tensor::zeros((2, 24), DType::F32, &other).unwrap(), layer(None)).contains("another device"));

    let new = |values: Values<'_>| Weight::new(&device, 2, 18, values).map(drop).unwrap_err().to_string();
    assert!(new(Values::F32(&[0.0; 35])).contains("another number of values"));
    let (rows, scales) = ([0i8; 36], [1.0f32; 2]);
    assert!(new(Values::Int8 { rows: &rows, scales: &[1.0], smooth: None }).contains("another number of values"));
    assert!(new(Values::Int8 { rows: &rows, scales: &scales, smooth: Some(&[1.0; 3]) }).contains("another number"));
    assert!(new(Values::Int8 { rows: &rows, scales: &[1.0, f32::NAN], smooth: None }).contains("not finite"));
    assert!(new(Values::Int8 { rows: &rows, scales: &scales, smooth: Some(&[0.0; 18]) }).contains("not finite"));
    let on_cpu = Weight::new(&Device::Cpu, 2, 18, Values::F32(&[0.0; 36])).map(drop).unwrap_err().to_string();
    assert!(on_cpu.contains("needs a CUDA device"), "{on_cpu}");
    let taps = Arc::new(
        Weight::new(&device, 2, 18, Values::Int8 { rows: &rows, scales: &scales, smooth: Some(&[1.0; 2]) }).unwrap(),
    );
    let x = Tensor::zeros((1, 18), DType::F32, &device).unwrap();
    assert!(error(&x, Linear { weight: taps, bias: None }).contains("smoothed for 2"));
}

#[test]
fn a_weight_tells_its_size() {
    let device = device();
    for (kind, bytes) in [(Kind::F32, 1536), (Kind::F16, 768), (Kind::Int8, 384 + 64), (Kind::Smooth, 384 + 64 + 96)] {
        let weight = Frozen::new(&device, kind, (16, 24), 24).gpu;
        assert_eq!((weight.outputs(), weight.inputs(), weight.bytes()), (16, 24, bytes), "{kind:?}");
    }
}

fn one(x: f32) -> Tensor {
    Tensor::from_slice(&[x], 1, &Device::Cpu).unwrap()
}

#[test]
#[should_panic(expected = "number 0 is NaN")]
fn the_comparison_catches_nan() {
    Bound { sums: 1.0, result: 1.0, tiny: 1.0 }.assert("nan", &one(f32::NAN), &one(1.0), &one(1.0));
}

#[test]
#[should_panic(expected = "number 0 is 1")]
fn the_comparison_catches_a_wrong_number() {
    Bound { sums: 1e-4, result: 1e-4, tiny: 1e-4 }.assert("wrong", &one(1.001), &one(1.0), &one(1.0));
}
