//! pleinair's kernels for Apple GPUs: the frozen layers of the networks as candle custom ops on Metal tensors.
#![cfg(feature = "metal")]
