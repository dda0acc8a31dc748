//! pleinair's kernels for NVIDIA GPUs: the frozen layers of the networks as candle custom ops on CUDA tensors.
#![cfg(feature = "cuda")]

mod device;
mod kernels;
#[cfg(test)]
mod ptx_test;

pub use device::open;
