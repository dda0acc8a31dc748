//! Short paintings with fixed seeds, by which a model and its bundle are measured and compared.

use pleinair::bundle::Bundle;
use pleinair::camera::Frame;
use pleinair::net::Latent;
use pleinair::painter::{ControlChoice, Inversion, Order, Painter};
use pleinair::prompt::Template;
use pleinair::sampler::{Guidance, GuidanceForm, Sampler};
use pleinair::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// What is painted, in turn.
const PROMPTS: [&str; 4] = [
    "a painting of a mountain lake in the evening",
    "a photo of a street with old houses",
    "an oil painting of flowers in a vase",
    "a drawing of a boat on the sea",
];

/// A short painting. Every second one of a model with a ControlNet that reads photographs paints a picture, the first included, so
/// that a single one shows all networks at work; the others begin from noise alone.
///
/// # Errors
/// If the guidance cannot be had, which would be a mistake here.
pub fn order(bundle: &Bundle, seed: usize, steps: usize, guidance: f64) -> Result<Order> {
    let size = trial_size(bundle);
    let controls = controls(bundle);
    let content = match !controls.is_empty() && seed.is_multiple_of(2) {
        true => Some(scene(size.0, size.1, seed)?),
        false => None,
    };
    Ok(Order {
        prompt: Template::parse(PROMPTS[seed % PROMPTS.len()])?,
        negative: String::new(),
        styles: vec![],
        size,
        steps,
        strength: 0.8,
        sampler: Sampler::DpmSolverPp2M,
        guidance: Guidance::new(0.0, 0.0, guidance, GuidanceForm::Paper)?,
        controls: if content.is_some() { controls } else { vec![] },
        content,
        inversion: Inversion::Noise,
        seed: seed as u64,
    })
}

/// Every ControlNet that this program can make pictures for, looking at the photograph.
pub fn controls(bundle: &Bundle) -> Vec<ControlChoice> {
    let kinds = bundle.controlnets.iter().map(|net| net.control).filter(|control| bundle.can_draw(*control));
    kinds.map(|control| ControlChoice::of_content(control, 0.8)).collect()
}

/// The model's own size, but no more than 256 pixels a side: a quantised layer errs alike at every size.
fn trial_size(bundle: &Bundle) -> (usize, usize) {
    let side = bundle.native_size().min(256).next_multiple_of(bundle.size_step());
    (side, side)
}

/// Hills under a sky with a sun, placed by the seed: edges, slopes and flat parts for a ControlNet to read.
fn scene(width: usize, height: usize, seed: usize) -> Result<Frame> {
    let (w, h, s) = (width as f64, height as f64, seed as f64);
    let (sun_x, sun_y, radius) = (w * (0.3 + 0.05 * (s % 9.0)), h * 0.25, h * 0.1);
    let mut rgb = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for x in 0..width {
            let (px, py) = (x as f64, y as f64);
            let hill = |base: f64, wave: f64| h * (base + 0.1 * (px / w * wave + s).sin());
            let colour = match () {
                () if py > hill(0.75, 9.0) => [60.0, 110.0 + 30.0 * (px / 7.0).sin(), 50.0],
                () if py > hill(0.55, 5.0) => [110.0, 120.0, 140.0 - 40.0 * py / h],
                () if (px - sun_x).hypot(py - sun_y) < radius => [250.0, 220.0, 120.0],
                () => [120.0 + 100.0 * py / h, 160.0 + 60.0 * py / h, 230.0],
            };
            rgb.extend(colour.map(|c: f64| c as u8));
        }
    }
    Frame::new(width, height, rgb)
}

/// Paints without decoding; returns the clean estimate after each step, the last of which is the painting.
///
/// # Errors
/// Whatever the painter reports, or [`Error::Interrupted`].
pub fn estimates(painter: &Painter, order: &Order, interrupted: &AtomicBool) -> Result<Vec<Vec<f32>>> {
    let mut estimates = vec![];
    painter.paint_latent(order, &mut |step| {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        estimates.push(step.denoised.flatten_all()?.to_vec1()?);
        Ok(())
    })?;
    Ok(estimates)
}

/// Paints without decoding.
///
/// # Errors
/// As [`estimates`].
pub fn latent(painter: &Painter, order: &Order, interrupted: &AtomicBool) -> Result<Latent> {
    painter.paint_latent(order, &mut |_| match interrupted.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted),
        false => Ok(()),
    })
}
