//! One measurement of candle's stable diffusion or of tract, in a process of its own, called like `contestants.py`.
//!
//! Prints one JSON object with the keys of `pleinair bench --json`. The model is the diffusers folder that
//! `pleinair-quantize synth sd15` writes. Each answer must be finite and, for one input, always the same.

mod diffusion;
mod graph;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::time::Instant;

/// Where in the thousand timesteps a single evaluation is made.
const TIMESTEP: i64 = 500;
/// Tokens of a prompt, and numbers of each after the text encoder.
const TEXT: [usize; 2] = [77, 768];

#[derive(Parser)]
#[command(about)]
struct Arguments {
    what: What,
    peer: Peer,
    /// The diffusers folder
    model: PathBuf,
    /// Where `contestants.py prepare tract-f32` put tract's graph
    work: PathBuf,
    /// Pixels a side
    #[arg(long, default_value_t = 512)]
    size: usize,
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// Of a painting
    #[arg(long, default_value_t = 25)]
    steps: usize,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    Unet,
    Paint,
}

#[derive(Clone, Copy, ValueEnum)]
enum Peer {
    #[value(name = "candle-f32")]
    Candle,
    #[value(name = "tract-f32")]
    Tract,
}

impl Arguments {
    /// `[batch, 4, height, width]` of the latents.
    fn latent(&self) -> [usize; 4] {
        [self.batch, 4, self.size / 8, self.size / 8]
    }

    /// `[batch, tokens, width]` of the text.
    fn states(&self) -> [usize; 3] {
        [self.batch, TEXT[0], TEXT[1]]
    }

    fn measured(&self) -> Result<Measured> {
        match (self.what, self.peer) {
            (What::Unet, Peer::Candle) => {
                let unet = diffusion::Unet::open(self)?;
                measure(self.runs, true, || unet.run())
            }
            (What::Unet, Peer::Tract) => {
                let unet = graph::Unet::open(self)?;
                measure(self.runs, true, || unet.run())
            }
            (What::Paint, Peer::Candle) => {
                let painter = diffusion::Painter::open(self)?;
                measure(self.runs, false, || painter.run())
            }
            (What::Paint, Peer::Tract) => anyhow::bail!("tract has no painting of its own"),
        }
    }
}

struct Measured {
    seconds: Vec<f64>,
    /// Root of the answer's mean square: shows that two peers ran the same network.
    answer_rms: f64,
}

/// Times `run`, after a warm-up where that is wanted.
fn measure(runs: usize, warm_up: bool, run: impl Fn() -> Result<Vec<f32>>) -> Result<Measured> {
    let mut first = if warm_up { Some(run()?) } else { None };
    let mut seconds = vec![];
    for _ in 0..runs {
        let began = Instant::now();
        let answer = run()?;
        seconds.push(began.elapsed().as_secs_f64());
        ensure!(answer.iter().all(|number| number.is_finite()), "the answer is not finite");
        let same = answer == *first.get_or_insert_with(|| answer.clone());
        ensure!(same, "two runs with one input gave different answers");
    }
    let answer = first.context("nothing was run")?;
    let squares: f64 = answer.iter().map(|&number| f64::from(number).powi(2)).sum();
    Ok(Measured { seconds, answer_rms: (squares / answer.len() as f64).sqrt() })
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// The most this process ever had resident, mapped files included.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Unit noise, the same for the same seed on every machine (SplitMix64 and Box-Muller).
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let normal = |_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..count).map(normal).collect()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.size % 64 == 0 && arguments.batch > 0 && arguments.runs > 0, "sizes are multiples of 64");
    ensure!(arguments.what == What::Unet || arguments.batch == 1, "a painting is one picture");
    let name = arguments.peer.to_possible_value().context("every peer has a name")?;
    let (peer, dtype) = name.get_name().split_once('-').context("a name is PEER-DTYPE")?;
    let measured = arguments.measured()?;
    let report = serde_json::json!({
        "what": if arguments.what == What::Unet { "unet" } else { "paint" },
        "peer": peer, "dtype": dtype, "size": format!("{0}x{0}", arguments.size), "batch": arguments.batch,
        "runs": arguments.runs, "median_seconds": median(&measured.seconds), "seconds": measured.seconds,
        "peak_rss_bytes": peak_rss_bytes(), "answer_rms": measured.answer_rms,
        "evaluations": if arguments.what == What::Unet { arguments.batch } else { 2 * arguments.steps },
    });
    println!("{report}");
    Ok(())
}
