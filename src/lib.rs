//! pleinair paints what a camera sees, on the device itself, in a style learned from one picture.
//!
//! ```text
//! camera -> Frame -> Latent -> denoising steps (UNet + ControlNet, told by Conditioning) -> Latent -> Canvas
//! ```
//!
//! Every arrow changes the type, and the type's name says which space a value is in. [`painter`] is that sentence as
//! code; the rooms below follow it in order, and no room uses one to its right.
#![forbid(unsafe_code)]

pub mod painter;
pub mod bundle;
pub mod camera;
pub mod prompt;
pub mod net;
pub mod side;
pub mod sampler;
pub mod style;
pub mod train;
pub mod canvas;
pub mod display;
pub mod daemon;
pub mod web;
pub mod config;
pub mod error;
pub mod stages;
pub mod strings;
pub mod profile;
pub mod target;

pub use error::{Error, Result};
pub use target::Target;
