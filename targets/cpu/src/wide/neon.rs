//! 64-bit Arm.

use super::kernel::Turn;
use crate::isa::{Neon, NeonDotprod, NeonI8mm};

impl Turn for NeonI8mm {}
impl Turn for NeonDotprod {}
impl Turn for Neon {}
