//! The frozen helpers beside the networks: the VAE, and control pictures.

mod onnx;
pub mod soft_edges;
pub mod vae;
