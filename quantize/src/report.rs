//! `report`: what a bundle lost against the model it was made from, layer by layer and in paintings.

use crate::distortion::{Distortion, json_decibels, told};
use crate::layers::{Piece, pieces};
use crate::tensors;
use crate::trial;
use pleinair::bundle::Bundle;
use pleinair::bundle::manifest::Dtype;
use pleinair::bundle::weights::{LayerWeight, Values, Weights};
use pleinair::canvas::psnr;
use pleinair::painter::Painter;
use pleinair::{Error, Result};
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Paintings by which a bundle is judged.
pub const SEEDS: usize = 8;
/// Steps of each.
const STEPS: usize = 20;
/// Prompt guidance of each; a gentle one, as the default model is used with.
const GUIDANCE: f64 = 2.0;

/// What to compare and what to allow.
#[derive(Debug, Clone, clap::Args)]
pub struct Report {
    /// The bundle to judge
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// What it was made from: a diffusers folder with ONNX files of its VAE, or a bundle of f32
    #[arg(long, value_name = "DIR|BUNDLE")]
    pub against: PathBuf,
    /// Paintings to compare
    #[arg(long, value_name = "N", default_value_t = SEEDS)]
    pub seeds: usize,
    /// Fail when the bundle repaints a picture by more than this many dB less faithfully than its source
    #[arg(long, value_name = "DB")]
    pub max_psnr_loss: Option<f64>,
    /// Fail when the denoised latents of any painting agree to less than this PSNR in dB
    #[arg(long, value_name = "DB")]
    pub min_psnr: Option<f64>,
    /// Fail when the weights of any layer have a signal-to-noise ratio below this many dB
    #[arg(long, value_name = "DB")]
    pub min_layer_snr: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What a bundle lost.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// The bundle.
    pub bundle: PathBuf,
    /// Its source.
    pub against: PathBuf,
    /// Layer by layer.
    pub layers: Vec<LayerFinding>,
    /// In paintings.
    pub quality: Quality,
    /// Bytes of the networks' weights in the source.
    pub bytes_before: u64,
    /// Bytes of the networks' weights in the bundle.
    pub bytes_after: u64,
    /// What is over a budget, in words.
    pub over_budget: Vec<String>,
}

/// What a layer's weights lost.
#[derive(Debug, Serialize)]
pub struct LayerFinding {
    /// Its name, such as `unet.conv_in`.
    pub layer: String,
    /// How it is stored.
    pub dtype: Dtype,
    /// Signal-to-noise ratio in dB; `null` where nothing changed.
    #[serde(serialize_with = "json_decibels")]
    pub snr: f64,
    /// Weights that changed their sign.
    pub sign_flips: u64,
    /// Weights that became zero and were not.
    pub zeroed: u64,
    /// Weights in all.
    pub weights: u64,
}

/// How well the paintings of two models agree, in dB; `null` in JSON where they agree to the last bit.
#[derive(Debug, Clone, Serialize)]
pub struct Quality {
    /// Paintings compared.
    pub seeds: usize,
    /// Steps of each.
    pub steps: usize,
    /// Width and height of each in pixels.
    pub size: (usize, usize),
    /// PSNR of the denoised latents of each painting; the peak is the range of the source's latents.
    pub latents_psnr: Vec<Option<f64>>,
    /// The smallest of them.
    #[serde(serialize_with = "json_decibels")]
    pub worst_latents_psnr: f64,
    /// PSNR of each picture, peak 255.
    pub pictures_psnr: Vec<Option<f64>>,
    /// The smallest of them.
    #[serde(serialize_with = "json_decibels")]
    pub worst_picture_psnr: f64,
    /// How many dB less faithfully the bundle repaints the source's pictures than the source itself does, on average.
    pub psnr_loss: f64,
}

impl Quality {
    /// Paints the same with both.
    ///
    /// # Errors
    /// Whatever the painters report, or [`Error::Interrupted`].
    pub fn measure(source: &Painter, bundle: &Painter, seeds: usize, interrupted: &AtomicBool) -> Result<Quality> {
        if seeds == 0 {
            return Err(Error::Usage("--seeds 0 compares nothing; give at least 1".into()));
        }
        let (mut latents, mut pictures, mut losses, mut size) = (vec![], vec![], vec![], (0, 0));
        for seed in 0..seeds {
            let order = trial::order(source.bundle(), seed, STEPS, GUIDANCE)?;
            size = order.size;
            let (a, b) = (trial::latent(source, &order, interrupted)?, trial::latent(bundle, &order, interrupted)?);
            let values = |latent: &pleinair::net::Latent| latent.0.flatten_all()?.to_vec1::<f32>();
            latents.push(Distortion::of(&values(&a)?, &values(&b)?).psnr());
            let (a, b) = (source.decode(&a)?, bundle.decode(&b)?);
            pictures.push(psnr(&a, &b)?);
            losses.push(repainting_loss(source, bundle, &order, &a, interrupted)?);
        }
        let worst = |all: &[f64]| all.iter().copied().fold(f64::INFINITY, f64::min);
        let figures = |all: &[f64]| all.iter().map(|&db| told(db)).collect();
        Ok(Quality {
            seeds,
            steps: STEPS,
            size,
            latents_psnr: figures(&latents),
            worst_latents_psnr: worst(&latents),
            pictures_psnr: figures(&pictures),
            worst_picture_psnr: worst(&pictures),
            psnr_loss: losses.iter().sum::<f64>() / losses.len() as f64,
        })
    }
}

/// Both repaint `picture` gently; how much further from it the bundle ends than the source.
fn repainting_loss(
    source: &Painter,
    bundle: &Painter,
    order: &pleinair::painter::Order,
    picture: &pleinair::canvas::Canvas,
    interrupted: &AtomicBool,
) -> Result<f64> {
    let frame = pleinair::camera::Frame::new(picture.width(), picture.height(), picture.rgb().to_vec())?;
    let controls = trial::controls(source.bundle());
    let order = pleinair::painter::Order { content: Some(frame), controls, strength: 0.3, ..order.clone() };
    let distance = |painter: &Painter| psnr(&painter.decode(&trial::latent(painter, &order, interrupted)?)?, picture);
    Ok(distance(source)? - distance(bundle)?)
}

impl Report {
    /// Compares.
    ///
    /// # Errors
    /// If either cannot be opened or they are not the same model, or [`Error::Interrupted`].
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Findings> {
        let bundle = Bundle::open(&self.bundle)?;
        if bundle.manifest.is_none() {
            return Err(Error::file(&self.bundle, "is not a bundle; make one with pleinair-quantize convert"));
        }
        let (source, bundle) = (Painter::open(&self.against)?, Painter::new(bundle)?);
        let (mut layers, mut bytes_before, mut bytes_after) = (vec![], 0, 0);
        for (part, pieces) in networks(bundle.bundle()) {
            let (before, after) =
                (source.bundle().weights(&part_of(&source, &bundle, &part))?, bundle.bundle().weights(&part)?);
            bytes_before += before.bytes();
            bytes_after += after.bytes();
            for piece in pieces.iter().filter(|piece| piece.is_matrix()) {
                layers.push(LayerFinding::compare(&part, piece, &before, &after)?);
            }
            before.finish()?;
            after.finish()?;
        }
        let quality = Quality::measure(&source, &bundle, self.seeds, interrupted)?;
        let over_budget = self.over_budget(&layers, &quality);
        let (bundle, against) = (self.bundle.clone(), self.against.clone());
        Ok(Findings { bundle, against, layers, quality, bytes_before, bytes_after, over_budget })
    }

    fn over_budget(&self, layers: &[LayerFinding], quality: &Quality) -> Vec<String> {
        let mut over = vec![];
        if let Some(limit) = self.max_psnr_loss.filter(|limit| !(quality.psnr_loss <= *limit)) {
            over.push(format!("repaintings lose {:.2} dB, more than the {limit} dB allowed", quality.psnr_loss));
        }
        if let Some(limit) = self.min_psnr.filter(|limit| !(quality.worst_latents_psnr >= *limit)) {
            let worst = quality.worst_latents_psnr;
            over.push(format!("denoised latents agree to {worst:.1} dB only, less than the {limit} dB wanted"));
        }
        if let Some(limit) = self.min_layer_snr {
            for layer in layers.iter().filter(|layer| !(layer.snr >= limit)) {
                over.push(format!("{}: {:.1} dB, less than the {limit} dB wanted", layer.layer, layer.snr));
            }
        }
        over
    }
}

/// The networks of a bundle and what they consist of.
pub(crate) fn networks(bundle: &Bundle) -> Vec<(String, Vec<Piece>)> {
    let mut all = vec![("unet".to_owned(), pieces(&tensors::unet(&bundle.unet)))];
    for net in &bundle.controlnets {
        all.push((net.part.clone(), pieces(&tensors::controlnet(&net.config, &bundle.unet))));
    }
    all.push(("text_encoder".to_owned(), pieces(&tensors::text_encoder(&bundle.text))));
    all
}

/// What a part of the bundle is called in the model: its ControlNets may have other names.
fn part_of(source: &Painter, bundle: &Painter, part: &str) -> String {
    let own = bundle.bundle().controlnets.iter().find(|net| net.part == part);
    let first = source.bundle().controlnets.first();
    let found = own.and_then(|own| source.bundle().controlnet(own.control).or(first));
    found.map_or(part.to_owned(), |net| net.part.clone())
}

impl LayerFinding {
    fn compare(part: &str, piece: &Piece, before: &Weights, after: &Weights) -> Result<Self> {
        let (before, after) = (layer_weight(before, piece)?, layer_weight(after, piece)?);
        let distortion = Distortion::of(&before.weight().to_f32(), &after.weight().to_f32());
        Ok(LayerFinding {
            layer: format!("{part}.{}", piece.layer),
            dtype: match after.weight().values() {
                Values::F32(_) => Dtype::F32,
                Values::F16(_) => Dtype::F16,
                Values::Bf16(_) => Dtype::Bf16,
                Values::Int8(_) => Dtype::Int8,
            },
            snr: distortion.snr(),
            sign_flips: distortion.sign_flips,
            zeroed: distortion.zeroed,
            weights: distortion.count,
        })
    }
}

/// A layer's weight as the program itself loads it, from a model or from a bundle.
pub(crate) fn layer_weight(weights: &Weights, piece: &Piece) -> Result<LayerWeight> {
    let prefix = "text_model.";
    let bare = !weights.contains(&piece.sources[0]) && !weights.contains(&piece.name());
    let path = if bare { piece.layer.strip_prefix(prefix).unwrap_or(&piece.layer) } else { &piece.layer };
    let (outputs, inputs) = (piece.shape[0], piece.shape[1]);
    if piece.is_kernel() {
        return weights.root().pp(path).kernel3x3(outputs, inputs);
    }
    if piece.sources.len() == 1 {
        return weights.root().pp(path).matrix(outputs, inputs);
    }
    let (parent, joined) = path.rsplit_once('.').unwrap_or(("", path));
    let own = |source: &String| source.rsplit('.').nth(1).unwrap_or_default().to_owned();
    let parts: Vec<String> = piece.sources.iter().map(own).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    weights.root().pp(parent).joined_matrix(joined, &parts, outputs, inputs)
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.layers.iter().map(|layer| layer.layer.len()).max().unwrap_or(5);
        writeln!(f, "{:width$}  stored  SNR dB  sign flips     zeroed    weights", "layer")?;
        for layer in &self.layers {
            let (name, dtype) = (&layer.layer, layer.dtype.to_string());
            let (snr, flips, zeroed, weights) = (decibels(layer.snr), layer.sign_flips, layer.zeroed, layer.weights);
            writeln!(f, "{name:width$}  {dtype:<6} {snr:>7} {flips:>11} {zeroed:>10} {weights:>10}")?;
        }
        let quality = &self.quality;
        let (w, h) = quality.size;
        writeln!(f, "\n{} paintings of {w}x{h} in {} steps", quality.seeds, quality.steps)?;
        let list = |all: &[Option<f64>]| {
            let mut text = String::new();
            for db in all {
                let _ = write!(text, " {}", decibels(db.unwrap_or(f64::INFINITY)));
            }
            text
        };
        writeln!(f, "denoised latents, PSNR dB{}", list(&quality.latents_psnr))?;
        writeln!(f, "pictures, PSNR dB        {}", list(&quality.pictures_psnr))?;
        writeln!(f, "repainting, dB lost       {:.3}", quality.psnr_loss)?;
        let (before, after) = (self.bytes_before as f64 / 1e6, self.bytes_after as f64 / 1e6);
        writeln!(f, "weights                   {before:.1} MB before, {after:.1} MB after ({:.3})", after / before)
    }
}

fn decibels(db: f64) -> String {
    if db.is_infinite() && db > 0.0 { "equal".into() } else { format!("{db:.1}") }
}
