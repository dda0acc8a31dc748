//! The networks as candle modules; structs follow the checkpoint's names. Feature maps are channels last, `[B, H*W, C]`,
//! from `conv_in` to `conv_out`. Every weight is frozen; gradients flow to the text states only, and every block on
//! their way is computed again in the backward instead of being kept.

mod attention;
mod blocks;
mod checkpoint;
pub mod controlnet;
mod frozen;
mod layers;
#[cfg(test)]
mod portable;
mod recorder;
mod resnet;
pub mod text;
pub mod unet;
pub mod vae;

pub use blocks::TextKv;
pub use controlnet::{ControlNet, Residuals};
pub use text::TextEncoder;
pub use unet::Unet;
pub use vae::{VaeDecoder, VaeEncoder};

use candle_core::Tensor;

/// A picture's latent: `[B, 4, H/f, W/f]` f32, already multiplied with the VAE's scaling factor.
#[derive(Debug, Clone)]
pub struct Latent(pub Tensor);
