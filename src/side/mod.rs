//! The frozen helpers beside the networks: the VAE, control pictures and captions.

pub mod canny;
pub mod captioner;
pub mod content;
pub mod control;
pub mod depth;
mod expand;
pub mod line_art;
mod onnx;
pub mod soft_edges;
pub mod vae;

use crate::Result;
use crate::camera::Frame;
use candle_core::{Device, Tensor};

/// A picture as networks of the transformers library are shown it: `[1, 3, H, W]`, each channel in [0, 1] less `mean`, divided
/// by `std`.
fn normalised(frame: &Frame, mean: [f32; 3], std: [f32; 3]) -> Result<Tensor> {
    let plane = frame.width() * frame.height();
    let mut planes = vec![0f32; 3 * plane];
    for (i, pixel) in frame.rgb().chunks_exact(3).enumerate() {
        for c in 0..3 {
            planes[c * plane + i] = (f32::from(pixel[c]) / 255.0 - mean[c]) / std[c];
        }
    }
    Ok(Tensor::from_vec(planes, (1, 3, frame.height(), frame.width()), &Device::Cpu)?)
}
