//! `y = x W^T + b` and `dx = dy W`.

use super::{Bench, Weight, pointwise, steps};
use crate::machine::{Machine, Matrix, Place, Product};
use candle_core::Result;

/// `x: [rows, inputs]`, `y: [rows, outputs]`, dense; `bias`: f32.
///
/// # Errors
/// What the device says.
pub fn forward<D: Machine>(
    bench: Bench<'_, D>,
    weight: &Weight<'_, D::Memory>,
    bias: Option<Place<'_, D::Memory>>,
    rows: usize,
    x: Place<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    weight.check_smoothing(weight.inputs)?;
    product(bench, weight, rows, x, y)?;
    match bias {
        Some(bias) => pointwise::add_bias(bench, bias, weight.outputs, rows, y),
        None => Ok(()),
    }
}

/// `y = x W^T`, some outputs at a time.
pub(crate) fn product<D: Machine>(
    bench: Bench<'_, D>,
    weight: &Weight<'_, D::Memory>,
    rows: usize,
    x: Place<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    for outputs in steps(weight.outputs, weight.rows_at_once(bench)) {
        let part = weight.part(bench, outputs.clone(), 0..weight.inputs)?;
        bench.machine.multiply(Product {
            kind: bench.kind,
            batch: 1,
            size: (rows, outputs.len(), weight.inputs),
            a: Matrix::new(x, weight.inputs),
            b: Matrix { transposed: true, ..part.matrix() },
            d: Matrix::new(y.after(outputs.start, bench.kind), weight.outputs),
        })?;
    }
    Ok(())
}

/// `dy: [rows, outputs]`, `dx: [rows, inputs]`, dense.
///
/// # Errors
/// What the device says.
pub fn backward<D: Machine>(
    bench: Bench<'_, D>,
    weight: &Weight<'_, D::Memory>,
    rows: usize,
    dy: Place<'_, D::Memory>,
    dx: Place<'_, D::Memory>,
) -> Result<()> {
    weight.check_smoothing(weight.inputs)?;
    // a part has all outputs, over which the product sums, and some inputs
    for inputs in steps(weight.inputs, weight.columns_at_once(bench)) {
        let part = weight.part(bench, 0..weight.outputs, inputs.clone())?;
        bench.machine.multiply(Product {
            kind: bench.kind,
            batch: 1,
            size: (rows, inputs.len(), weight.outputs),
            a: Matrix::new(dy, weight.outputs),
            b: part.matrix(),
            d: Matrix::new(dx.after(inputs.start, bench.kind), weight.inputs),
        })?;
    }
    Ok(())
}
