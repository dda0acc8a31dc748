//! `--calibrate`: what goes into each layer, how its weights are best scaled for int8, and what it costs the painting when
//! it alone is int8.

use crate::distortion::Distortion;
use crate::int8::quantise;
use crate::layers::Piece;
use crate::network::{Network, rows};
use crate::trial;
use candle_core::Tensor;
use pleinair::Result;
use pleinair::bundle::Bundle;
use pleinair::bundle::weights::{Int8, Packing, Probe, Values, Weight, Weights, isa, pack};
use pleinair::painter::{Order, Painter};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

/// A layer that alone, as int8, brings the denoised latents below this many dB stays f16. A hundred layers at the limit
/// add up to 40 dB, and hardly any layer is at the limit.
pub const LAYER_BUDGET: f64 = 60.0;
/// Steps of a sampling that is only watched.
const WATCHED_STEPS: usize = 8;
/// Steps of a sampling that is compared: one estimate from much noise and one from little.
const COMPARED_STEPS: usize = 2;
/// How much of the inputs' range the weights take over (SmoothQuant's alpha); 0 leaves everything where it is.
const ALPHAS: [f32; 4] = [0.0, 0.25, 0.5, 0.75];

/// How much to measure and what to allow.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Samplings to watch, at least one; as many are compared for each layer, but no more than two.
    pub samplings: usize,
    /// PSNR in dB that a layer must leave.
    pub layer: f64,
}

/// What went into a layer.
#[derive(Debug, Clone, Default)]
struct Inputs {
    /// Largest magnitude of each channel.
    largest: Vec<f32>,
    /// Sum of squares of each channel.
    squares: Vec<f64>,
    /// Number of rows.
    rows: f64,
}

/// Watches the layers, and can put another weight in the place of one layer's.
#[derive(Debug, Default)]
struct Watch {
    inputs: Mutex<HashMap<String, Inputs>>,
    instead: Mutex<Option<(String, Arc<Weight>)>>,
    watching: Mutex<bool>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Probe for Watch {
    fn product(&self, layer: &str, x: &Tensor) -> Result<Option<Arc<Weight>>> {
        if *locked(&self.watching) {
            locked(&self.inputs).entry(layer.to_owned()).or_default().see(x)?;
        }
        let instead = locked(&self.instead);
        Ok(instead.as_ref().filter(|(name, _)| name == layer).map(|(_, weight)| weight.clone()))
    }
}

impl Inputs {
    fn see(&mut self, x: &Tensor) -> Result<()> {
        let channels = x.dim(candle_core::D::Minus1)?;
        self.largest.resize(channels, 0.0);
        self.squares.resize(channels, 0.0);
        let values = x.detach().flatten_all()?.to_vec1::<f32>()?;
        for row in values.chunks_exact(channels) {
            self.rows += 1.0;
            for ((largest, square), v) in self.largest.iter_mut().zip(&mut self.squares).zip(row) {
                *largest = largest.max(v.abs());
                *square += (v * v) as f64;
            }
        }
        Ok(())
    }
}

/// Chooses smoothing scales and finds the layers that must stay f16, for every layer of `networks` on which nothing else
/// has spoken. `full` is the model as a bundle of f32.
///
/// # Errors
/// Whatever the painter reports, or [`pleinair::Error::Interrupted`].
pub fn calibrate(
    full: &Path,
    budget: Budget,
    networks: &mut [&mut Network],
    interrupted: &AtomicBool,
    tell: &mut dyn FnMut(&str),
) -> Result<()> {
    let watch = Arc::new(Watch::default());
    let painter = Painter::new(Bundle::open(full)?.probed(watch.clone()))?;
    *locked(&watch.watching) = true;
    for seed in 0..budget.samplings {
        tell(&format!("watching sampling {} of {}", seed + 1, budget.samplings));
        trial::estimates(&painter, &trial::order(painter.bundle(), seed, WATCHED_STEPS, 1.0)?, interrupted)?;
    }
    *locked(&watch.watching) = false;

    let orders: Vec<Order> = (0..budget.samplings.clamp(1, 2))
        .map(|seed| trial::order(painter.bundle(), seed, COMPARED_STEPS, 1.0))
        .collect::<Result<_>>()?;
    let plain = all_estimates(&painter, &orders, interrupted)?;
    for network in networks.iter_mut() {
        let weights = Weights::map(full, network.part)?;
        let pieces: Vec<Piece> = network.open_pieces().cloned().collect();
        for (i, piece) in pieces.iter().enumerate() {
            tell(&format!("{}: measuring layer {} of {}", network.part, i + 1, pieces.len()));
            let layer = format!("{}.{}", network.part, piece.layer);
            let rows = mapped_rows(&weights, piece)?;
            let smooth = match network.packing() {
                Packing::Panels => locked(&watch.inputs).get(&layer).and_then(|inputs| smoothing(&rows, piece, inputs)),
                // these inputs stay as they are, and smoothing would only make the weights coarser
                Packing::Rows => None,
            };
            *locked(&watch.instead) =
                Some((layer, Arc::new(as_int8(&rows, piece, smooth.as_deref(), network.packing())?)));
            let psnr = all_estimates(&painter, &orders, interrupted)?.compared_with(&plain).psnr();
            if let Some(smooth) = smooth {
                network.smooth(&piece.layer, smooth);
            }
            let kept = !(psnr >= budget.layer);
            network.measured(&piece.layer, psnr, kept.then(|| format!("{psnr:.1} dB as int8")));
        }
    }
    Ok(())
}

/// The clean estimates of several samplings.
struct Estimates(Vec<f32>);

fn all_estimates(painter: &Painter, orders: &[Order], interrupted: &AtomicBool) -> Result<Estimates> {
    let mut all = vec![];
    for order in orders {
        all.extend(trial::estimates(painter, order, interrupted)?.concat());
    }
    Ok(Estimates(all))
}

impl Estimates {
    fn compared_with(&self, plain: &Estimates) -> Distortion {
        Distortion::of(&plain.0, &self.0)
    }
}

/// The matrix of a piece in the bundle of f32.
fn mapped_rows(weights: &Weights, piece: &Piece) -> Result<Vec<f32>> {
    let stored = Piece { sources: vec![piece.name()], shape: vec![piece.outputs(), piece.inputs()], ..piece.clone() };
    rows(&stored, &|name| weights.read_f32(name))
}

/// The layer as it will run from the bundle: packed for the CPU, its input is int8 as well.
fn as_int8(rows: &[f32], piece: &Piece, smooth: Option<&[f32]>, packing: Packing) -> Result<Weight> {
    let (outputs, inputs) = (piece.outputs(), piece.inputs());
    let (values, scales) = quantise(rows, inputs, smooth);
    let values = match packing {
        Packing::Rows => values,
        Packing::Panels => pack::pack(&values, outputs, inputs),
    };
    let smooth = smooth.map(|smooth| smooth.to_vec().into());
    let int8 = Int8 { values: values.into(), packing, scales: scales.into(), smooth };
    Ok(Weight::new(outputs, inputs, Values::Int8(int8))?.with_kernels(isa::best()))
}

/// The scales that make the predicted error smallest, channel by channel; none where that is no scaling at all.
///
/// SmoothQuant (arXiv 2211.10438), eq. 4: `s_c = max|x_c|^alpha / max|w_c|^(1 - alpha)`, here with its geometric mean at 1
/// and with the alpha of [`ALPHAS`] that [`predicted_error`] likes best.
fn smoothing(rows: &[f32], piece: &Piece, inputs: &Inputs) -> Option<Vec<f32>> {
    let channels = inputs.largest.len();
    let mut largest_weight = vec![0f32; channels];
    for taps in rows.chunks_exact(channels) {
        largest_weight.iter_mut().zip(taps).for_each(|(m, w)| *m = m.max(w.abs()));
    }
    let scales = |alpha: f32| -> Vec<f32> {
        if alpha == 0.0 {
            return vec![1.0; channels];
        }
        let pairs = inputs.largest.iter().zip(&largest_weight);
        let raw = pairs.map(|(x, w)| x.max(1e-5).powf(alpha) / w.max(1e-5).powf(1.0 - alpha));
        let raw: Vec<f32> = raw.collect();
        let mean = (raw.iter().map(|s| s.ln()).sum::<f32>() / channels as f32).exp();
        raw.into_iter().map(|s| s / mean).collect()
    };
    let candidates = ALPHAS.into_iter().map(|alpha| {
        let scales = scales(alpha);
        (predicted_error(rows, piece, inputs, &scales), alpha, scales)
    });
    let (_, best, scales) = candidates.min_by(|a, b| a.0.total_cmp(&b.0))?;
    (best != 0.0).then_some(scales)
}

/// The expected square of a layer's error, up to a factor, when its input and its weights are both int8: each is rounded
/// with an error of a twelfth of its step squared, and multiplied with the other.
fn predicted_error(rows: &[f32], piece: &Piece, inputs: &Inputs, scales: &[f32]) -> f64 {
    let (channels, columns) = (scales.len(), piece.inputs());
    let largest = inputs.largest.iter().zip(scales).map(|(x, s)| (x / s) as f64).fold(0.0, f64::max);
    let step = largest / 127.0;
    // mean square of the smoothed input, over all channels
    let power: Vec<f64> =
        inputs.squares.iter().zip(scales).map(|(square, &s)| square / inputs.rows / (s as f64 * s as f64)).collect();
    let power = power.iter().sum::<f64>() * (columns / channels) as f64;
    let mut error = 0.0;
    for row in rows.chunks_exact(columns) {
        let (mut squares, mut largest) = (0.0, 0f64);
        for (i, w) in row.iter().enumerate() {
            let smoothed = (w * scales[i % channels]) as f64;
            squares += smoothed * smoothed;
            largest = largest.max(smoothed.abs());
        }
        error += squares * step * step + power * (largest / 127.0).powi(2);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::Role;

    fn piece(outputs: usize, inputs: usize) -> Piece {
        let (layer, field) = ("l".into(), "weight".into());
        Piece { layer, field, sources: vec!["l.weight".into()], shape: vec![outputs, inputs], role: Role::Weight }
    }

    /// One loud input channel under quiet weights: its range is moved into the weights.
    #[test]
    fn loud_channels_are_smoothed_and_even_ones_left_alone() {
        let rows: Vec<f32> = (0..32).map(|i| ((i * 7 % 13) as f32 - 6.0) / 6.0).collect();
        let seen = |loud: f32| {
            let x: Vec<f32> = (0..64).map(|i| (i as f32 * 0.9).sin() * if i % 8 == 3 { loud } else { 1.0 }).collect();
            let mut inputs = Inputs::default();
            inputs.see(&Tensor::from_vec(x, (1, 8, 8), &candle_core::Device::Cpu).unwrap()).unwrap();
            inputs
        };
        let scales = smoothing(&rows, &piece(4, 8), &seen(50.0)).unwrap();
        assert_eq!(scales.len(), 8);
        assert!((0..8).all(|i| i == 3 || scales[3] > 2.0 * scales[i]), "{scales:?}");
        let mean = scales.iter().map(|s| s.ln()).sum::<f32>();
        assert!(mean.abs() <= 1e-4, "the geometric mean is 1: {mean}");
        let error = |scales: &[f32]| predicted_error(&rows, &piece(4, 8), &seen(50.0), scales);
        assert!(error(&scales) < 0.5 * error(&[1.0; 8]));
    }

    /// The prediction against what really happens, to within a factor of two.
    #[test]
    fn the_predicted_error_is_about_the_real_one() {
        let noise = |i: usize, k: f32| (i as f32 * k).sin() * (i as f32 * 1.7 * k).cos();
        let rows: Vec<f32> = (0..16 * 64).map(|i| noise(i, 0.77)).collect();
        let x: Vec<f32> = (0..256 * 64).map(|i| noise(i, 0.43) * (1.0 + (i % 64) as f32 / 16.0)).collect();
        let mut inputs = Inputs::default();
        inputs.see(&Tensor::from_slice(&x, (1, 256, 64), &candle_core::Device::Cpu).unwrap()).unwrap();
        let predicted = predicted_error(&rows, &piece(16, 64), &inputs, &[1.0; 64]) / 12.0 * 256.0;

        let weight = as_int8(&rows, &piece(16, 64), None, Packing::Rows).unwrap();
        let dequantised = weight.to_f32();
        let step = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        let mut real = 0.0;
        for row in x.chunks(64) {
            for (w, q) in rows.chunks(64).zip(dequantised.chunks(64)) {
                let dot = |w: &[f32], x: &dyn Fn(f32) -> f32| -> f64 {
                    row.iter().zip(w).map(|(&v, &w)| (x(v) * w) as f64).sum()
                };
                real += (dot(w, &|v| v) - dot(q, &|v| (v / step).round_ties_even() * step)).powi(2);
            }
        }
        assert!(real <= 2.0 * predicted && predicted <= 2.0 * real, "{real} {predicted}");
    }
}
