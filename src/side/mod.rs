//! The frozen helpers beside the networks: the VAE in tract, and control pictures.

pub mod soft_edges;
pub mod vae;
