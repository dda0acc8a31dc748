//! What `pleinair-quantize` does, without its command line: looking into model folders and making random ones.
#![forbid(unsafe_code)]

pub mod configs;
pub mod inspect;
pub mod source;
pub mod synth;
pub mod tensors;
