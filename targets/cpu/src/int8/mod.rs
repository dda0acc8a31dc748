//! Symmetric int8.

pub mod pack;
