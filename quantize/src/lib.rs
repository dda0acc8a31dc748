//! What `pleinair-quantize` does, without its command line: looking into model folders and making random ones.
#![forbid(unsafe_code)]

pub mod configs;
pub mod distortion;
pub mod folder;
pub mod inspect;
pub mod int8;
pub mod layers;
pub mod rules;
pub mod synth;
pub mod tensors;
pub mod writer;
