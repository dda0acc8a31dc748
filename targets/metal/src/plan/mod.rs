//! Every op as a series of kernels and matrix products, for any [`Machine`].

pub mod attention;
pub mod conv;
pub mod linear;
pub mod norm;
pub mod pointwise;
mod weight;

pub use weight::{Stored, Weight};

use crate::machine::{Call, Kind, Machine, Place, Word};
use candle_core::Result;

/// Bytes that a temporary matrix may have: the neighbourhoods of a convolution, the scores of attention.
pub(crate) const TEMPORARY: usize = 64 << 20;

/// The bounds of the temporaries, smaller in tests.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a matrix made of activations.
    pub temporary: usize,
    /// Bytes of a part of a weight that is not stored as it is multiplied.
    pub tile: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { temporary: TEMPORARY, tile: 32 << 20 }
    }
}

/// A device, the type of the activations on it, and how much of its memory may be used in passing.
#[derive(Debug)]
pub struct Bench<'a, D: Machine> {
    /// The device.
    pub machine: &'a D,
    /// Of activations and their gradients.
    pub kind: Kind,
    /// Of temporaries.
    pub limits: Limits,
}

impl<D: Machine> Clone for Bench<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Machine> Copy for Bench<'_, D> {}

impl<'a, D: Machine> Bench<'a, D> {
    /// With the usual limits.
    pub fn new(machine: &'a D, kind: Kind) -> Self {
        Bench { machine, kind, limits: Limits::default() }
    }

    /// The same with another type of activations.
    pub(crate) fn with(self, kind: Kind) -> Self {
        Bench { kind, ..self }
    }

    /// Memory for so many activations.
    pub(crate) fn numbers(&self, count: usize) -> Result<std::sync::Arc<D::Memory>> {
        self.machine.temporary(count * self.kind.bytes())
    }

    pub(crate) fn run(
        &self,
        kernel: &'static str,
        reads: &[Place<'_, D::Memory>],
        writes: &[Place<'_, D::Memory>],
        parameters: &[u32],
        threads: usize,
    ) -> Result<()> {
        // a thread's place in the grid has 32 bits, too
        threads.word()?;
        self.machine.run(Call { kernel, kind: self.kind, reads, writes, parameters, threads })
    }
}

/// `0..all` in steps.
pub(crate) fn steps(all: usize, step: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..all).step_by(step).map(move |first| first..(first + step).min(all))
}
