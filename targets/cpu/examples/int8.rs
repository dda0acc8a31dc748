//! Times the int8 products and convolutions at Stable Diffusion 1.5's shapes beside the f32 layers, in one run.
//!
//!     cargo run --release -p pleinair-cpu --example int8 [ISA]...
//!
//! Billions of operations a second (two for each product of an activation and a weight), the best of the rounds; `with
//! quantising` begins with f32 activations as the f32 layer does, and `ratio` is f32's time over its.

use candle_core::{Device, Tensor};
use pleinair_cpu::int8::{PackedWeight, Picture, Rows, conv3x3, matmul, pack, quantize_pictures, quantize_rows};
use pleinair_cpu::isa::{self, Isa};
use pleinair_cpu::{Conv3x3, Int8, Linear, Packing, Values, Weight};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// Every variant is timed this often, in turn.
const ROUNDS: usize = 9;

/// A layer: a linear one over `M` rows, or a 3x3 convolution over a picture.
#[derive(Clone, Copy)]
enum Shape {
    Linear { rows: usize, inputs: usize, outputs: usize },
    Conv { side: usize, channels: usize, outputs: usize, stride: usize },
}

impl Shape {
    /// M, K, N of the product.
    fn sizes(self) -> (usize, usize, usize) {
        match self {
            Shape::Linear { rows, inputs, outputs } => (rows, inputs, outputs),
            Shape::Conv { side, channels, outputs, stride } => (side.div_ceil(stride).pow(2), 9 * channels, outputs),
        }
    }

    fn name(self) -> String {
        match self {
            Shape::Linear { rows, inputs, outputs } => format!("linear {rows} x {inputs} -> {outputs}"),
            Shape::Conv { side, channels, outputs, stride } => {
                format!("conv {side}x{side}/{stride} {channels} -> {outputs}")
            }
        }
    }
}

/// The shapes of one UNet evaluation at 512x512 that take the most time.
const SHAPES: &[Shape] = &[
    Shape::Linear { rows: 4096, inputs: 320, outputs: 320 },
    Shape::Linear { rows: 4096, inputs: 320, outputs: 960 },
    Shape::Linear { rows: 4096, inputs: 320, outputs: 2560 },
    Shape::Linear { rows: 4096, inputs: 1280, outputs: 320 },
    Shape::Linear { rows: 1024, inputs: 640, outputs: 640 },
    Shape::Linear { rows: 1024, inputs: 640, outputs: 5120 },
    Shape::Linear { rows: 256, inputs: 1280, outputs: 1280 },
    Shape::Linear { rows: 256, inputs: 1280, outputs: 10240 },
    Shape::Linear { rows: 64, inputs: 1280, outputs: 1280 },
    Shape::Conv { side: 64, channels: 320, outputs: 320, stride: 1 },
    Shape::Conv { side: 64, channels: 960, outputs: 320, stride: 1 },
    Shape::Conv { side: 64, channels: 320, outputs: 320, stride: 2 },
    Shape::Conv { side: 32, channels: 640, outputs: 640, stride: 1 },
    Shape::Conv { side: 16, channels: 1280, outputs: 1280, stride: 1 },
    Shape::Conv { side: 8, channels: 1280, outputs: 1280, stride: 1 },
];

/// A layer's numbers, quantised and not.
struct Layer {
    shape: Shape,
    /// `[M, inputs]` or `[1, H*W, C]`.
    x: Tensor,
    activations: Vec<f32>,
    packed: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    bias: Vec<f32>,
    op: Op,
}

/// The layer in f32.
enum Op {
    Linear(Linear),
    Conv(Conv3x3),
}

impl Layer {
    fn new(shape: Shape) -> candle_core::Result<Self> {
        let (rows, inputs, outputs) = shape.sizes();
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as i32 % 255 - 127
        };
        let weight: Vec<i8> = (0..outputs * inputs).map(|_| next() as i8).collect();
        let scales: Vec<f32> = (0..outputs).map(|o| 0.001 + 1e-6 * o as f32).collect();
        let bias: Vec<f32> = (0..outputs).map(|_| next() as f32 / 100.0).collect();
        let packed = pack::pack(&weight, outputs, inputs);
        let sums = pack::sums(&packed, outputs, inputs);
        let scale_of_each = (0..outputs).flat_map(|o| std::iter::repeat_n(scales[o], inputs));
        let weight: Vec<f32> = weight.iter().zip(scale_of_each).map(|(&w, s)| w as f32 * s).collect();
        let weight = Arc::new(Weight::new(outputs, inputs, Values::F32(weight.into()))?);
        let bias_tensor = Tensor::new(&bias[..], &Device::Cpu)?;
        let (x, op) = match shape {
            Shape::Linear { .. } => {
                let x = Tensor::rand(-1f32, 1.0, (rows, inputs), &Device::Cpu)?;
                (x, Op::Linear(Linear { weight, bias: Some(bias_tensor) }))
            }
            Shape::Conv { side, channels, stride, .. } => {
                let x = Tensor::rand(-1f32, 1.0, (1, side * side, channels), &Device::Cpu)?;
                (x, Op::Conv(Conv3x3 { weight, bias: bias_tensor, height: side, width: side, stride, repeat: 1 }))
            }
        };
        let activations = x.flatten_all()?.to_vec1()?;
        Ok(Layer { shape, x, activations, packed, scales, sums, bias, op })
    }

    fn in_f32(&self) -> candle_core::Result<Tensor> {
        match &self.op {
            Op::Linear(op) => self.x.apply_op1_no_bwd(op),
            Op::Conv(op) => self.x.apply_op1_no_bwd(op),
        }
    }

    fn quantize(&self, isa: Isa, values: &mut [i8], scales: &mut [f32]) {
        match self.shape {
            Shape::Linear { .. } => quantize_rows(isa, &self.activations, None, values, scales),
            Shape::Conv { channels, .. } => {
                quantize_pictures(isa, &self.activations, channels, None, values, scales);
            }
        }
    }

    fn in_int8(&self, isa: Isa, values: &[i8], scales: &[f32], y: &mut [f32]) -> candle_core::Result<()> {
        let (_, inputs, _) = self.shape.sizes();
        let weight = PackedWeight::new(&self.packed, &self.scales, &self.sums, inputs)?;
        match self.shape {
            Shape::Linear { .. } => {
                matmul(isa, Rows { values, stride: inputs, scales }, weight, Some(&self.bias), y);
            }
            Shape::Conv { side, channels, stride, .. } => {
                let picture = Picture { height: side, width: side, channels, stride, repeat: 1 };
                conv3x3(isa, (values, scales), picture, weight, Some(&self.bias), y);
            }
        }
        Ok(())
    }
}

/// The difference of two results over the size of the second, root mean square.
fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let error: f64 = got.iter().zip(want).map(|(&g, &w)| square(g as f64 - w as f64)).sum();
    (error / want.iter().map(|&w| square(w as f64)).sum::<f64>()).sqrt()
}

/// Makes `best` the seconds that `work` takes, if they are fewer.
fn time<R>(best: &mut f64, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    *best = best.min(start.elapsed().as_secs_f64());
    result
}

type Failure = Box<dyn Error + Send + Sync>;

fn measure(layer: &Layer, isas: &[Isa], threads: usize) -> Result<(), Failure> {
    let (rows, inputs, outputs) = layer.shape.sizes();
    let scales = if let Shape::Conv { .. } = layer.shape { 1 } else { rows };
    let (mut values, mut scales) = (vec![0; layer.activations.len()], vec![0.0; scales]);
    let mut y = vec![0.0; rows * outputs];
    let want: Vec<f32> = layer.in_f32()?.flatten_all()?.to_vec1()?;
    for &isa in isas {
        layer.quantize(isa, &mut values, &mut scales);
        layer.in_int8(isa, &values, &scales, &mut y)?;
        // uniform numbers in +-1 rounded to steps of 1/127 are off by 0.4 %
        let error = relative_error(&y, &want);
        assert!(error <= 0.006, "{isa}: {} is off by {error}", layer.shape.name());
    }
    let (mut f32_best, mut int8, mut whole) = (f64::MAX, vec![f64::MAX; isas.len()], vec![f64::MAX; isas.len()]);
    for _ in 0..ROUNDS {
        time(&mut f32_best, || layer.in_f32())?;
        for (i, &isa) in isas.iter().enumerate() {
            time(&mut int8[i], || layer.in_int8(isa, &values, &scales, &mut y))?;
            time(&mut whole[i], || {
                layer.quantize(isa, &mut values, &mut scales);
                layer.in_int8(isa, &values, &scales, &mut y)
            })?;
        }
    }
    let billions = |seconds: f64| 2e-9 * (rows * inputs * outputs) as f64 / seconds;
    for (i, isa) in isas.iter().enumerate() {
        println!(
            "| {} | {threads} | {isa} | {:.0} | {:.0} | {:.0} | {:.1} |",
            layer.shape.name(),
            billions(f32_best),
            billions(int8[i]),
            billions(whole[i]),
            f32_best / whole[i]
        );
    }
    Ok(())
}

/// Milliseconds of a map's nearest upsampling as an op of its own before the convolution, and as a part of it.
fn measure_upsampling(side: usize, channels: usize, isa: Isa) -> Result<(), Failure> {
    let weight: Vec<i8> =
        (0..9 * channels * channels).map(|i| (i * 7919 % 255) as u8 as i8).map(|w| w.max(-127)).collect();
    let values = Values::Int8(Int8 {
        values: pack::pack(&weight, channels, 9 * channels).into(),
        packing: Packing::Panels,
        scales: vec![0.001; channels].into(),
        smooth: None,
    });
    let weight = Arc::new(Weight::new(channels, 9 * channels, values)?.with_kernels(isa));
    let bias = Tensor::zeros(channels, candle_core::DType::F32, &Device::Cpu)?;
    let conv = |repeat: usize| Conv3x3 {
        weight: weight.clone(),
        bias: bias.clone(),
        height: side * 2 / repeat,
        width: side * 2 / repeat,
        repeat,
        stride: 1,
    };
    let x = Tensor::rand(-1f32, 1.0, (1, side * side, channels), &Device::Cpu)?;
    let apart = || {
        let x = x.reshape((1, side, 1, side, 1, channels))?.broadcast_as((1, side, 2, side, 2, channels))?;
        x.contiguous()?.reshape((1, 4 * side * side, channels))?.apply_op1_no_bwd(&conv(1))
    };
    let together = || x.apply_op1_no_bwd(&conv(2));
    assert_eq!(apart()?.flatten_all()?.to_vec1::<f32>()?, together()?.flatten_all()?.to_vec1::<f32>()?);
    let (mut first, mut second) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        time(&mut first, apart)?;
        time(&mut second, together)?;
    }
    println!("| {side}x{side} {channels} | {isa} | {:.2} | {:.2} |", 1e3 * first, 1e3 * second);
    Ok(())
}

fn main() -> Result<(), Failure> {
    let isas = isas()?;
    println!("| layer | threads | isa | f32 | int8 | int8 with quantising | ratio |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for &shape in SHAPES {
        let layer = Layer::new(shape)?;
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            pool.install(|| measure(&layer, &isas, threads))?;
        }
    }
    println!("\n| upsampling, ms | isa | then convolution | within convolution |\n| --- | --- | --- | --- |");
    for (side, channels) in [(32, 640), (16, 1280), (8, 1280)] {
        isas.iter().try_for_each(|&isa| measure_upsampling(side, channels, isa))?;
    }
    Ok(())
}

/// Those that are named, else the fastest.
fn isas() -> Result<Vec<Isa>, Failure> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    Ok(match names.is_empty() {
        true => vec![isa::best()],
        false => names.iter().map(|name| isa::choose(Some(name))).collect::<Result<_, _>>()?,
    })
}
