//! pleinair's kernels for NVIDIA GPUs: the frozen layers of the networks as candle custom ops on CUDA tensors.
#![cfg(feature = "cuda")]

mod conv;
mod device;
mod graph;
mod gemm;
#[cfg(test)]
mod gemm_test;
mod kernels;
mod layer;
mod linear;
#[allow(dead_code)] // until attention uses it
mod matmul;
mod plan;
#[cfg(test)]
mod ptx_test;
mod weight;

pub use conv::Conv3x3;
pub use device::open;
pub use graph::Graph;
pub use linear::Linear;
pub use weight::{Values, Weight};
