//! Matrix products and 3x3 convolutions of int8 weights and int8 activations.

pub mod pack;
