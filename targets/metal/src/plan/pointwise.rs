//! What is computed number by number.

use super::Bench;
use crate::machine::{Machine, Place, parameters};
use candle_core::Result;

parameters! {
    /// Numbers of the result.
    Count { count: usize }
}

parameters! {
    /// Numbers of the result, in rows.
    Columns { count: usize, columns: usize }
}

/// `y = a + b`; `y` may be one of them.
///
/// # Errors
/// What the device says.
pub fn add<D: Machine>(
    bench: Bench<'_, D>,
    count: usize,
    a: Place<'_, D::Memory>,
    b: Place<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    bench.run("add", &[a, b], &[y], &Count { count }.words()?, count)
}

/// `y[row, column] += bias[column]`.
pub(crate) fn add_bias<D: Machine>(
    bench: Bench<'_, D>,
    bias: Place<'_, D::Memory>,
    columns: usize,
    rows: usize,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    let count = rows * columns;
    bench.run("add_bias", &[bias], &[y], &Columns { count, columns }.words()?, count)
}

/// f32 to the activations' type.
pub(crate) fn narrow<D: Machine>(
    bench: Bench<'_, D>,
    count: usize,
    x: Place<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    bench.run("narrow", &[x], &[y], &Count { count }.words()?, count)
}

/// `x: [rows, 2 columns]`, `y: [rows, columns]`.
///
/// # Errors
/// What the device says.
pub fn geglu<D: Machine>(
    bench: Bench<'_, D>,
    (rows, columns): (usize, usize),
    x: Place<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    let count = rows * columns;
    bench.run("geglu", &[x], &[y], &Columns { count, columns }.words()?, count)
}

/// `x`, `dx: [rows, 2 columns]`, `dy: [rows, columns]`.
///
/// # Errors
/// What the device says.
pub fn geglu_backward<D: Machine>(
    bench: Bench<'_, D>,
    (rows, columns): (usize, usize),
    x: Place<'_, D::Memory>,
    dy: Place<'_, D::Memory>,
    dx: Place<'_, D::Memory>,
) -> Result<()> {
    let count = rows * columns;
    bench.run("geglu_backward", &[x, dy], &[dx], &Columns { count, columns }.words()?, count)
}
