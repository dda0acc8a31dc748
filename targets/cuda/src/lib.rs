//! pleinair's kernels for NVIDIA GPUs: the frozen layers of the networks as candle custom ops on CUDA tensors.
#![cfg(feature = "cuda")]

mod add;
mod attention;
mod conv;
mod device;
mod geglu;
mod gemm;
#[cfg(test)]
mod gemm_test;
mod graph;
mod kernels;
mod layer;
mod linear;
mod matmul;
mod norm;
mod plan;
#[cfg(test)]
mod ptx_test;
mod scores;
mod values;
mod weight;

pub use add::Add;
pub use attention::Attention;
pub use conv::Conv3x3;
pub use device::open;
pub use geglu::Geglu;
pub use graph::Graph;
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
pub use weight::{Values, Weight};
