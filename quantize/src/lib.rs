//! What `pleinair-quantize` does, without its command line: looking into model folders and making random ones.
#![forbid(unsafe_code)]

pub mod calibrate;
pub mod configs;
pub mod distortion;
pub mod folder;
pub mod inspect;
pub mod int8;
pub mod layers;
pub mod network;
pub mod report;
pub mod rules;
pub mod synth;
pub mod tensors;
pub mod trial;
pub mod writer;
