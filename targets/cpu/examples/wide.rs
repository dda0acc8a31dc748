//! Times the f32 and bf16 layers at Stable Diffusion 1.5's shapes, forward and backward, for the ways a weight is stored.
//!
//!     cargo run --release -p pleinair-cpu --example wide [WORD]...
//!
//! Billions of operations a second (two for each product), the best of the rounds. With words, only lines that have all of
//! them.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape as Dims, Tensor, Var};
use pleinair_cpu::int8::pack;
use pleinair_cpu::{Conv3x3, Int8, Linear, Packing, Values, Weight, isa};
use std::sync::Arc;
use std::time::Instant;

/// Every variant is timed at least this often, in turn, and for so many seconds.
const ROUNDS: usize = 9;
const SECONDS: f64 = 1.0;

/// A layer: a linear one over `M` rows, or a 3x3 convolution over a picture.
#[derive(Clone, Copy)]
enum Shape {
    Linear { rows: usize, inputs: usize, outputs: usize },
    Conv { side: usize, channels: usize, outputs: usize, stride: usize, repeat: usize },
}

impl Shape {
    /// M, K, N of the product.
    fn sizes(self) -> (usize, usize, usize) {
        match self {
            Shape::Linear { rows, inputs, outputs } => (rows, inputs, outputs),
            Shape::Conv { side, channels, outputs, stride, repeat } => {
                ((side * repeat).div_ceil(stride).pow(2), 9 * channels, outputs)
            }
        }
    }

    fn name(self) -> String {
        match self {
            Shape::Linear { rows, inputs, outputs } => format!("linear {rows} x {inputs} -> {outputs}"),
            Shape::Conv { side, channels, outputs, stride: 1, repeat: 1 } => {
                format!("conv {side}x{side} {channels} -> {outputs}")
            }
            Shape::Conv { side, channels, outputs, stride, repeat } => {
                format!("conv {side}x{side}*{repeat}/{stride} {channels} -> {outputs}")
            }
        }
    }
}

const fn linear(rows: usize, inputs: usize, outputs: usize) -> Shape {
    Shape::Linear { rows, inputs, outputs }
}

const fn conv(side: usize, channels: usize, outputs: usize) -> Shape {
    Shape::Conv { side, channels, outputs, stride: 1, repeat: 1 }
}

/// The shapes of one UNet evaluation at 512x512 that take the most time, and the smallest.
const SHAPES: &[Shape] = &[
    linear(4096, 320, 320),
    linear(4096, 320, 2560),
    linear(4096, 1280, 320),
    linear(1024, 640, 640),
    linear(1024, 640, 5120),
    linear(256, 1280, 1280),
    linear(256, 1280, 10240),
    linear(77, 768, 640),
    linear(64, 1280, 1280),
    linear(1, 1280, 1280),
    conv(64, 320, 320),
    conv(64, 960, 320),
    Shape::Conv { side: 64, channels: 320, outputs: 320, stride: 2, repeat: 1 },
    conv(32, 640, 640),
    Shape::Conv { side: 16, channels: 1280, outputs: 1280, stride: 1, repeat: 2 },
    conv(16, 1280, 1280),
    conv(8, 1280, 1280),
    conv(8, 2560, 1280),
];

const STORED: &[&str] = &["f32", "f16", "bf16", "int8"];

/// Numbers in [-1, 1).
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn weight(rows: &[f32], outputs: usize, stored: &str) -> Result<Arc<Weight>> {
    let inputs = rows.len() / outputs;
    let values = match stored {
        "f32" => Values::F32(rows.to_vec().into()),
        "f16" => Values::F16(rows.iter().map(|&w| half::f16::from_f32(w)).collect::<Vec<_>>().into()),
        "bf16" => Values::Bf16(rows.iter().map(|&w| half::bf16::from_f32(w)).collect::<Vec<_>>().into()),
        _ => {
            let values: Vec<i8> = rows.iter().map(|w| (w * 127.0) as i8).collect();
            let (scales, smooth) = (vec![1.0 / 127.0; outputs].into(), None);
            let values = pack::pack(&values, outputs, inputs).into();
            Values::Int8(Int8 { values, packing: Packing::Panels, scales, smooth })
        }
    };
    Ok(Arc::new(Weight::new(outputs, inputs, values)?.with_kernels(isa::best())))
}

/// A layer as an op, whichever it is.
#[derive(Clone)]
enum Op {
    Linear(Linear),
    Conv(Conv3x3),
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "layer"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Dims)> {
        match self {
            Op::Linear(op) => op.cpu_fwd(storage, layout),
            Op::Conv(op) => op.cpu_fwd(storage, layout),
        }
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Op::Linear(op) => op.bwd(x, y, dy),
            Op::Conv(op) => op.bwd(x, y, dy),
        }
    }
}

/// Seconds: of one thread those that it ran itself, where the system tells, so that other work beside it counts less.
fn seconds(start: Instant, threads: usize) -> f64 {
    #[cfg(target_os = "linux")]
    if threads == 1 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes the time it is given.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        return time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64;
    }
    let _ = threads;
    start.elapsed().as_secs_f64()
}

/// The seconds that `work` takes at best, on so many threads.
struct Best(f64, Instant, usize);

impl Best {
    fn new(threads: usize) -> Self {
        Best(f64::MAX, Instant::now(), threads)
    }

    fn time<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let start = seconds(self.1, self.2);
        let result = work();
        self.0 = self.0.min(seconds(self.1, self.2) - start);
        result
    }
}

fn measure(shape: Shape, stored: &str, threads: usize) -> Result<()> {
    let (m, k, n) = shape.sizes();
    let weight = weight(&numbers(n * k), n, stored)?;
    let (x, op) = match shape {
        Shape::Linear { rows, inputs, .. } => {
            ((1, rows, inputs), Op::Linear(Linear { weight: weight.clone(), bias: None }))
        }
        Shape::Conv { side, channels, stride, repeat, .. } => {
            let bias = Tensor::zeros(n, candle_core::DType::F32, &Device::Cpu)?;
            let weight = weight.clone();
            let conv = Conv3x3 { weight, bias, height: side, width: side, repeat, stride };
            ((1, side * side, channels), Op::Conv(conv))
        }
    };
    let x = Var::rand(-1f32, 1.0, x, &Device::Cpu)?;
    let y = x.apply_op1_no_bwd(&op)?;
    let dy = y.rand_like(-1.0, 1.0)?;
    // the backward's own size: with a stride it is a convolution over the whole picture
    let [mut forward, mut backward] = std::array::from_fn(|_| Best::new(threads));
    let start = Instant::now();
    for _ in (0..).take_while(|&round| round < ROUNDS || start.elapsed().as_secs_f64() < SECONDS) {
        forward.time(|| x.apply_op1_no_bwd(&op))?;
        backward.time(|| op.bwd(&x, &y, &dy))?;
    }
    let billions = |best: Best| 2e-9 * (m * k * n) as f64 / best.0;
    let [forward, backward] = [forward, backward].map(billions);
    println!("| {} | {stored} | {threads} | {forward:.0} | {backward:.0} |", shape.name());
    Ok(())
}

/// Results are as large as whole mappings; the system would clear their pages anew each time.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two numbers of the allocator before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

fn main() -> Result<()> {
    keep_freed_memory();
    let words: Vec<String> = std::env::args().skip(1).collect();
    println!("| layer | stored | threads | forward | backward |\n| --- | --- | --- | --- | --- |");
    for &shape in SHAPES {
        for stored in STORED {
            for threads in [1, 2] {
                let line = format!("{} {stored} {threads}-threads", shape.name());
                if words.iter().all(|word| line.contains(word)) {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.map_err(candle_core::Error::wrap)?.install(|| measure(shape, stored, threads))?;
                }
            }
        }
    }
    Ok(())
}
