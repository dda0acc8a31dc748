//! What `pleinair-quantize` does, without its command line: turning models into bundles, measuring
//! what that costs, looking into both, and making random models.
#![forbid(unsafe_code)]

pub mod calibrate;
pub mod configs;
pub mod convert;
pub mod distortion;
pub mod folder;
pub mod inspect;
pub mod int8;
pub mod layers;
pub mod network;
pub mod onnx;
pub mod report;
pub mod rules;
pub mod source;
pub mod synth;
pub mod tensors;
pub mod trial;
pub mod writer;
