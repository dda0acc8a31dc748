//! pleinair's kernels for NVIDIA GPUs: the frozen layers of the networks as candle custom ops on CUDA tensors.
#![cfg(feature = "cuda")]
