//! GroupNorm with SiLU, and LayerNorm. Statistics are f32; of a group, part by part, then over the parts.

use super::Bench;
use crate::machine::{Machine, Place, SIMD, parameters};
use candle_core::{Result, bail};
use std::sync::Arc;

/// Pixels that one SIMD group sums up.
const PART_PIXELS: usize = 64;

/// A frozen norm's numbers, f32, `[channels]` each.
#[derive(Debug)]
pub struct Affine<'a, M> {
    /// What normalised numbers are multiplied with.
    pub weight: Place<'a, M>,
    /// What is added then.
    pub bias: Place<'a, M>,
    /// Added to the variance.
    pub eps: f32,
}

/// `[batch, pixels, channels]`, of which `groups` are normalised together, with SiLU behind it or not.
#[derive(Debug, Clone, Copy)]
pub struct GroupShape {
    /// Pictures.
    pub batch: usize,
    /// Of a picture.
    pub pixels: usize,
    /// Of a pixel.
    pub channels: usize,
    /// Divides `channels`.
    pub groups: usize,
    /// Whether SiLU follows.
    pub silu: bool,
}

parameters! {
    /// See [`GroupShape`].
    Groups {
        count: usize,
        pixels: usize,
        channels: usize,
        groups: usize,
        parts: usize,
        part_pixels: usize,
        silu: bool,
        eps: f32,
    }
}

parameters! {
    /// Of LayerNorm.
    Rows { count: usize, columns: usize, eps: f32 }
}

impl GroupShape {
    fn groups(&self, eps: f32) -> Result<Groups> {
        let &GroupShape { pixels, channels, groups, silu, .. } = self;
        if groups == 0 || !channels.is_multiple_of(groups) || self.numbers() == 0 {
            bail!("GroupNorm of {groups} groups got {channels} channels of {pixels} pixels")
        }
        let parts = pixels.div_ceil(PART_PIXELS);
        Ok(Groups { count: 0, pixels, channels, groups, parts, part_pixels: PART_PIXELS, silu, eps })
    }

    fn numbers(&self) -> usize {
        self.batch * self.pixels * self.channels
    }
}

/// Two f32 numbers of each group, by two kernels: one for the parts, one for all parts of a group.
fn statistics<D: Machine>(
    bench: Bench<'_, D>,
    shape: GroupShape,
    g: Groups,
    kernels: [&'static str; 2],
    reads: &[Place<'_, D::Memory>],
) -> Result<Arc<D::Memory>> {
    let groups = shape.batch * shape.groups;
    let pairs = |count: usize| bench.machine.temporary(count * 2 * size_of::<f32>());
    let (parts, all) = (pairs(groups * g.parts)?, pairs(groups)?);
    let of_parts = Groups { count: groups * g.parts, ..g };
    bench.run(kernels[0], reads, &[Place::start(&*parts)], &of_parts.words()?, of_parts.count * SIMD)?;
    let of_groups = Groups { count: groups, ..g };
    bench.run(kernels[1], &[Place::start(&*parts)], &[Place::start(&*all)], &of_groups.words()?, groups * SIMD)?;
    Ok(all)
}

/// `x` and `y` dense.
///
/// # Errors
/// If the groups do not divide the channels; what the device says.
pub fn group_norm<D: Machine>(
    bench: Bench<'_, D>,
    shape: GroupShape,
    affine: &Affine<'_, D::Memory>,
    x: Place<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    let g = shape.groups(affine.eps)?;
    let moments = statistics(bench, shape, g, ["group_parts", "group_moments"], &[x])?;
    let all = Groups { count: shape.numbers(), ..g };
    let reads = [x, Place::start(&*moments), affine.weight, affine.bias];
    bench.run("group_norm", &reads, &[y], &all.words()?, all.count)
}

/// `x`, `dy` and `dx` dense.
///
/// # Errors
/// As above.
pub fn group_norm_backward<D: Machine>(
    bench: Bench<'_, D>,
    shape: GroupShape,
    affine: &Affine<'_, D::Memory>,
    x: Place<'_, D::Memory>,
    dy: Place<'_, D::Memory>,
    dx: Place<'_, D::Memory>,
) -> Result<()> {
    let g = shape.groups(affine.eps)?;
    let moments = statistics(bench, shape, g, ["group_parts", "group_moments"], &[x])?;
    let moments = Place::start(&*moments);
    let reads = [x, dy, moments, affine.weight, affine.bias];
    let means = statistics(bench, shape, g, ["slope_parts", "slope_means"], &reads)?;
    let all = Groups { count: shape.numbers(), ..g };
    let reads = [x, dy, moments, Place::start(&*means), affine.weight, affine.bias];
    bench.run("group_norm_backward", &reads, &[dx], &all.words()?, all.count)
}

/// `x` and `y: [rows, columns]`, dense.
///
/// # Errors
/// What the device says.
pub fn layer_norm<D: Machine>(
    bench: Bench<'_, D>,
    (rows, columns): (usize, usize),
    affine: &Affine<'_, D::Memory>,
    x: Place<'_, D::Memory>,
    y: Place<'_, D::Memory>,
) -> Result<()> {
    let p = Rows { count: rows, columns, eps: affine.eps }.words()?;
    bench.run("layer_norm", &[x, affine.weight, affine.bias], &[y], &p, rows * SIMD)
}

/// `x`, `dy` and `dx: [rows, columns]`, dense.
///
/// # Errors
/// What the device says.
pub fn layer_norm_backward<D: Machine>(
    bench: Bench<'_, D>,
    (rows, columns): (usize, usize),
    affine: &Affine<'_, D::Memory>,
    x: Place<'_, D::Memory>,
    dy: Place<'_, D::Memory>,
    dx: Place<'_, D::Memory>,
) -> Result<()> {
    let p = Rows { count: rows, columns, eps: affine.eps }.words()?;
    bench.run("layer_norm_backward", &[x, dy, affine.weight], &[dx], &p, rows * SIMD)
}
