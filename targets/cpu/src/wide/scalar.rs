//! Plain Rust.

use super::kernel::Turn;
use crate::isa::Scalar;

impl Turn for Scalar {}
