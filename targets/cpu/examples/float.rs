//! Times attention, norms and GEGLU and their gradients at the shapes of Stable Diffusion 1.5's UNet at 512x512.
//!
//!     cargo run --release -p pleinair-cpu --example float [ISA]...
//!
//! Milliseconds, the best of the rounds; results are compared with those of plain Rust first.

use candle_core::{CustomOp1, CustomOp2, Device, Result, Tensor};
use pleinair_cpu::isa::{self, Isa};
use pleinair_cpu::{Attention, Geglu, GroupNorm, LayerNorm, Precision};
use std::sync::Arc;
use std::time::Instant;

/// Every op is timed this often.
const ROUNDS: usize = 9;

/// Runs an op on arguments of its own.
type Run = Box<dyn Fn() -> Result<Tensor> + Send + Sync>;

/// An op at one shape.
#[derive(Clone, Copy)]
enum Shape {
    Attention { queries: usize, keys: usize, channels: usize, precision: Precision },
    GroupNorm { pixels: usize, channels: usize },
    LayerNorm { pixels: usize, channels: usize },
    Geglu { pixels: usize, channels: usize },
}

/// Queries, keys, channels.
const ATTENTIONS: [(usize, usize, usize); 8] = [
    (4096, 4096, 320),
    (1024, 1024, 640),
    (256, 256, 1280),
    (64, 64, 1280),
    (4096, 77, 320),
    (1024, 77, 640),
    (256, 77, 1280),
    (64, 77, 1280),
];

const OTHERS: [Shape; 11] = [
    Shape::GroupNorm { pixels: 4096, channels: 320 },
    Shape::GroupNorm { pixels: 4096, channels: 960 },
    Shape::GroupNorm { pixels: 1024, channels: 640 },
    Shape::GroupNorm { pixels: 256, channels: 1280 },
    Shape::GroupNorm { pixels: 64, channels: 2560 },
    Shape::LayerNorm { pixels: 4096, channels: 320 },
    Shape::LayerNorm { pixels: 1024, channels: 640 },
    Shape::LayerNorm { pixels: 256, channels: 1280 },
    Shape::Geglu { pixels: 4096, channels: 1280 },
    Shape::Geglu { pixels: 1024, channels: 2560 },
    Shape::Geglu { pixels: 256, channels: 5120 },
];

/// Attention in both precisions, then the others.
fn shapes() -> impl Iterator<Item = Shape> {
    let attention = |(queries, keys, channels)| {
        [Precision::F32, Precision::Bf16].map(|precision| Shape::Attention { queries, keys, channels, precision })
    };
    ATTENTIONS.into_iter().flat_map(attention).chain(OTHERS)
}

impl Shape {
    fn name(self) -> String {
        match self {
            Shape::Attention { queries, keys, channels, precision } => {
                format!("attention {queries} to {keys}, 8 x {}, {precision:?}", channels / 8)
            }
            Shape::GroupNorm { pixels, channels } => format!("group norm + SiLU {pixels} x {channels}"),
            Shape::LayerNorm { pixels, channels } => format!("layer norm {pixels} x {channels}"),
            Shape::Geglu { pixels, channels } => format!("GEGLU {pixels} x {channels}"),
        }
    }

    /// The op on one instruction set, ready to be run any number of times; then its gradient.
    fn op(self, isa: Isa) -> Result<Vec<Run>> {
        let numbers = |shape: (usize, usize, usize)| {
            let waves =
                (0..shape.0 * shape.1 * shape.2).map(|i| 2.0 * ((i as f32 * 0.7).sin() + (i % 997) as f32 / 997.0));
            Tensor::from_vec(waves.collect::<Vec<f32>>(), shape, &Device::Cpu)
        };
        fn applied(op: impl CustomOp1 + Send + Sync + 'static, x: Tensor) -> Result<Vec<Run>> {
            let op = Arc::new(op);
            let y = x.apply_op1_no_bwd(&*op)?;
            let dy = y.affine(0.5, 0.25)?;
            let (same_op, same_x) = (op.clone(), x.clone());
            let gradient = move || same_op.bwd(&same_x, &y, &dy)?.ok_or_else(|| candle_core::Error::msg("no gradient"));
            Ok(vec![Box::new(move || x.apply_op1_no_bwd(&*op)), Box::new(gradient)])
        }
        let affine = |channels| {
            Ok::<_, candle_core::Error>((
                numbers((1, 1, channels))?.flatten_all()?,
                numbers((1, 1, channels))?.flatten_all()?,
            ))
        };
        Ok(match self {
            Shape::Attention { queries, keys, channels, precision } => {
                let op = Attention { heads: 8, causal: false, precision, isa };
                // as the layers do: of a joint projection, or of all layers' keys and values side by side
                let joint = numbers((1, queries, 3 * channels))?;
                let kv = if keys == queries {
                    joint.narrow(2, channels, 2 * channels)?
                } else {
                    numbers((1, keys, 2 * channels))?
                };
                let q = if keys == queries { joint.narrow(2, 0, channels)? } else { numbers((1, queries, channels))? };
                let (y, dy) = (q.apply_op2_no_bwd(&kv, &op)?, numbers((1, queries, channels))?);
                let (same_q, same_kv) = (q.clone(), kv.clone());
                let gradient = move || {
                    let (dq, dkv) = op.bwd(&same_q, &same_kv, &y, &dy)?;
                    let of_all = [dq, dkv].map(|x| x.expect("both have gradients").flatten_all());
                    Tensor::cat(&of_all.into_iter().collect::<Result<Vec<_>>>()?, 0)
                };
                vec![Box::new(move || q.apply_op2_no_bwd(&kv, &op)), Box::new(gradient)]
            }
            Shape::GroupNorm { pixels, channels } => {
                let (weight, bias) = affine(channels)?;
                applied(
                    GroupNorm { weight, bias, groups: 32, eps: 1e-5, silu: true, isa },
                    numbers((1, pixels, channels))?,
                )?
            }
            Shape::LayerNorm { pixels, channels } => {
                let (weight, bias) = affine(channels)?;
                applied(LayerNorm { weight, bias, eps: 1e-5, isa }, numbers((1, pixels, channels))?)?
            }
            Shape::Geglu { pixels, channels } => applied(Geglu { isa }, numbers((1, pixels, 2 * channels))?)?,
        })
    }
}

/// The largest difference of two results over the largest value of the second.
fn difference(got: &Tensor, want: &Tensor) -> Result<f32> {
    let largest = |x: Tensor| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    Ok(largest((got - want)?)? / largest(want.clone())?)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let isas = match names.is_empty() {
        true => vec![isa::best()],
        false => names.iter().map(|name| isa::choose(Some(name))).collect::<std::result::Result<_, _>>()?,
    };
    println!("| op | isa | 1 core | 2 cores |\n| --- | --- | --- | --- |");
    for shape in shapes() {
        let plain = shape.op(isa::choose(Some("scalar"))?)?;
        for &isa in &isas {
            for ((op, plain), of) in shape.op(isa)?.iter().zip(&plain).zip(["", ", gradient"]) {
                let name = format!("{}{of}", shape.name());
                let off = difference(&op()?, &plain()?)?;
                // scores of up to 100 of values rounded to 8 bits; the others differ by the order of sums
                let bf16 = matches!(shape, Shape::Attention { precision: Precision::Bf16, .. });
                assert!(off <= if bf16 { 5e-2 } else { 1e-5 }, "{name} on {isa} is off by {off}");
                let [alone, two] = [best_millis(op, 1)?, best_millis(op, 2)?];
                println!("| {name} | {isa} | {alone:.2} | {two:.2} |");
            }
        }
    }
    Ok(())
}

/// The shortest of the rounds on a number of threads.
fn best_millis(op: &Run, threads: usize) -> std::result::Result<f64, Box<dyn std::error::Error + Send + Sync>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        pool.install(&**op)?;
        best = best.min(1e3 * start.elapsed().as_secs_f64());
    }
    Ok(best)
}
