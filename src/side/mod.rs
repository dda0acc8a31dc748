//! The frozen helpers beside the networks: the VAE, and control pictures.

pub mod canny;
pub mod captioner;
pub mod content;
pub mod control;
pub mod depth;
pub mod line_art;
mod expand;
mod onnx;
pub mod soft_edges;
pub mod vae;
