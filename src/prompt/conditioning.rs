//! What tells the networks what to paint.

use candle_core::Tensor;

/// The text encoder's last hidden state for B prompts, after its final layer norm: `[B, 77, D]` f32.
///
/// D is the text encoder's width (768 for SD 1.5); the networks' cross-attention reads it.
#[derive(Debug, Clone)]
pub struct Conditioning(pub Tensor);
