//! Convolutions on the GPU beside the processor's.
#![cfg(feature = "cuda")]

mod frozen;

use candle_core::{CustomOp1, DType, Device, Tensor};
use frozen::{ACTIVATIONS, Frozen, KINDS, Kind, Layers, device, numbers};
use pleinair_cuda::Conv3x3;

#[derive(Debug, Clone, Copy)]
struct Map {
    batch: usize,
    height: usize,
    width: usize,
    channels: (usize, usize),
    repeat: usize,
    stride: usize,
}

fn compare(device: &Device, kind: Kind, dtype: DType, map: Map) -> f64 {
    let Map { batch, height, width, channels: (cin, cout), repeat, stride } = map;
    let frozen = Frozen::new(device, kind, (cout, 9 * cin), cin);
    let bias = Tensor::from_vec(numbers(6, cout), cout, &Device::Cpu).unwrap();
    let cpu = |weight, bias| pleinair_cpu::Conv3x3 { weight, bias, height, width, repeat, stride };
    let layers = Layers {
        frozen: &frozen,
        gpu: Conv3x3 {
            weight: frozen.gpu.clone(),
            bias: bias.to_device(device).unwrap(),
            height,
            width,
            repeat,
            stride,
        },
        magnitudes: cpu(frozen.cpu_magnitudes(), bias.abs().unwrap()),
        cpu: cpu(frozen.cpu(), bias),
        // a repeated pixel adds up four times nine taps
        terms: [9 * cin, 9 * cout * repeat * repeat],
        folded: repeat == 2,
    };
    layers.compare(device, &format!("{kind:?} {map:?} {dtype:?}"), dtype, &[batch, height * width, cin])
}

const WAYS: [(usize, usize); 4] = [(1, 1), (1, 2), (2, 1), (2, 2)];

/// Every way to walk over a map, maps of odd and of even sizes, of one pixel and of one line.
#[test]
fn every_geometry() {
    let device = device();
    let mut worst = 0.0f64;
    for kind in KINDS {
        for dtype in ACTIVATIONS {
            for (repeat, stride) in WAYS {
                for (batch, height, width) in [(1, 1, 1), (2, 1, 6), (1, 5, 2), (2, 4, 4), (2, 5, 7)] {
                    let map = Map { batch, height, width, channels: (16, 24), repeat, stride };
                    worst = worst.max(compare(&device, kind, dtype, map));
                }
            }
        }
    }
    println!("3x3 convolutions: at most {worst:.2} of the bound");
}

/// The first and the last layers' channels, and those at the edges of tiles and of the steps of k.
#[test]
fn every_number_of_channels() {
    let device = device();
    let channels =
        [(3, 8), (4, 64), (64, 4), (128, 3), (5, 7), (40, 72), (8, 136), (72, 8), (1, 1), (12, 20), (24, 32), (8, 96)];
    for (i, kind) in KINDS.into_iter().enumerate() {
        for dtype in ACTIVATIONS {
            for (j, channels) in channels.into_iter().enumerate() {
                let (repeat, stride) = WAYS[(i + j) % 4];
                compare(&device, kind, dtype, Map { batch: 2, height: 5, width: 6, channels, repeat, stride });
            }
        }
    }
}

/// More pixels than a tile, and few pixels of many channels, where the sum is cut into parts.
#[test]
fn large_and_deep() {
    let device = device();
    for kind in KINDS {
        for (repeat, stride) in WAYS {
            let large = Map { batch: 3, height: 9, width: 11, channels: (16, 8), repeat, stride };
            let deep = Map { batch: 1, height: 3, width: 3, channels: (128, 72), repeat, stride };
            for map in [large, deep] {
                compare(&device, kind, DType::F16, map);
            }
        }
    }
}

/// What is gathered beyond the end of k or of a picture is zero, not whatever lies there.
#[test]
fn a_picture_of_nan_stays_by_itself() {
    let device = device();
    for dtype in ACTIVATIONS {
        for (repeat, stride) in WAYS {
            for channels in [8, 5] {
                let layer = Conv3x3 {
                    weight: Frozen::new(&device, Kind::F16, (channels, 9 * channels), channels).gpu,
                    bias: Tensor::zeros(channels, DType::F32, &device).unwrap(),
                    height: 3,
                    width: 4,
                    repeat,
                    stride,
                };
                let nan_in_the_middle = |map: &[usize]| {
                    let mut x = numbers(1, 3 * map[1] * map[2]);
                    x[map[1] * map[2]..2 * map[1] * map[2]].fill(f32::NAN);
                    Tensor::from_vec(x, (3, map[1], map[2]), &device).unwrap().to_dtype(dtype).unwrap()
                };
                let x = nan_in_the_middle(&[3, 12, channels]);
                let y = x.apply_op1(layer.clone()).unwrap();
                let dx = layer.bwd(&x, &y, &nan_in_the_middle(y.dims())).unwrap().unwrap();
                for map in [y, dx] {
                    for (i, picture) in map.to_dtype(DType::F32).unwrap().to_vec3::<f32>().unwrap().iter().enumerate() {
                        let nan = picture.iter().flatten().filter(|x| x.is_nan()).count();
                        let all = if i == 1 { picture.len() * channels } else { 0 };
                        assert_eq!(nan, all, "{dtype:?}, {channels} channels, {repeat}/{stride}, picture {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn bad_input_is_an_error() {
    let device = device();
    let layer = |shape, repeat, stride| Conv3x3 {
        weight: Frozen::new(&device, Kind::F16, shape, 4).gpu,
        bias: Tensor::zeros(shape.0, DType::F32, &device).unwrap(),
        height: 3,
        width: 5,
        repeat,
        stride,
    };
    let map = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &device).unwrap();
    let error = |x: Tensor, layer: Conv3x3| x.apply_op1(layer).unwrap_err().to_string();
    assert!(error(map(&[1, 16, 4]), layer((8, 36), 1, 1)).contains("takes [B, 15, 4]"));
    assert!(error(map(&[1, 15, 5]), layer((8, 36), 1, 1)).contains("takes [B, 15, 4]"));
    assert!(error(map(&[15, 4]), layer((8, 36), 1, 1)).contains("rank"));
    assert!(error(map(&[1, 15, 4]), layer((8, 35), 1, 1)).contains("nine taps"));
    for (repeat, stride) in [(3, 1), (1, 3), (0, 1), (1, 0)] {
        assert!(error(map(&[1, 15, 4]), layer((8, 36), repeat, stride)).contains("of 1 or 2"));
    }
    let far = Tensor::zeros((1, 15, 4), DType::F16, &Device::Cpu).unwrap();
    assert!(error(far, layer((8, 36), 1, 1)).contains("move the input there"));
    let bias = Tensor::zeros(7, DType::F32, &device).unwrap();
    assert!(error(map(&[1, 15, 4]), Conv3x3 { bias, ..layer((8, 36), 1, 1) }).contains("7 biases"));
}
