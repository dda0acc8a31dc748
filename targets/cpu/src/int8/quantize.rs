//! Activations to int8, symmetric, at run time: `q = round(x * r * (127 / a))` with `a` the largest magnitude of `x * r`
//! and ties to even; `scale = a / 127`. Written once and compiled for every instruction set, so all agree to the last bit.

use crate::isa::{Isa, Token, Work, with_token};
use rayon::prelude::*;

/// Values a parallel task has at least.
const TASK: usize = 1 << 15;
/// Below this a largest magnitude counts as zero: 127 divided by it would overflow.
const TINY: f32 = 1e-36;

/// The bits of the largest magnitude, which order as the magnitudes do, NaN above all: no order of evaluation can lose one.
#[inline(always)]
fn largest(x: &[f32], reciprocals: Option<&[f32]>) -> u32 {
    let magnitude = |v: f32| v.to_bits() & 0x7fff_ffff;
    match reciprocals {
        None => x.iter().fold(0, |most, &x| most.max(magnitude(x))),
        Some(r) => x.iter().zip(r).fold(0, |most, (&x, &r)| most.max(magnitude(x * r))),
    }
}

/// What values are multiplied by, and the scale that undoes it.
///
/// A row that holds NaN or infinity gets the scale NaN, so that its results are NaN and not merely wrong.
#[inline(always)]
fn factor_and_scale(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    match largest {
        _ if !largest.is_finite() => (0.0, f32::NAN),
        _ if largest < TINY => (0.0, 0.0),
        _ => (127.0 / largest, largest / 127.0),
    }
}

/// Adding it leaves a number of magnitude below 2^22 rounded, ties to even, in the low bits.
const ROUND: f32 = (3 << 22) as f32;

#[inline(always)]
fn round(x: f32) -> i8 {
    (x + ROUND).to_bits() as i8
}

#[inline(always)]
fn quantize(x: &[f32], reciprocals: Option<&[f32]>, factor: f32, into: &mut [i8]) {
    // nothing to round, and infinity times zero would be NaN
    if factor == 0.0 {
        return into.fill(0);
    }
    match reciprocals {
        None => into.iter_mut().zip(x).for_each(|(q, &x)| *q = round(x * factor)),
        Some(r) => into.iter_mut().zip(x.iter().zip(r)).for_each(|(q, (&x, &r))| *q = round(x * r * factor)),
    }
}

/// Activations of which some share a scale: values in runs of `width`, as many as there are reciprocals.
#[derive(Clone, Copy)]
struct Runs<'a> {
    x: &'a [f32],
    width: usize,
    reciprocals: Option<&'a [f32]>,
}

/// Each run by itself.
struct Each<'a>(Runs<'a>, &'a mut [i8], &'a mut [f32]);

impl Work for Each<'_> {
    #[inline(always)]
    fn run(self) {
        let Each(Runs { x, width, reciprocals }, values, scales) = self;
        for ((x, values), scale) in x.chunks_exact(width).zip(values.chunks_exact_mut(width)).zip(scales) {
            let (factor, of_run) = factor_and_scale(largest(x, reciprocals));
            quantize(x, reciprocals, factor, values);
            *scale = of_run;
        }
    }
}

/// The largest of all runs.
struct LargestOfAll<'a>(Runs<'a>, &'a mut u32);

impl Work for LargestOfAll<'_> {
    #[inline(always)]
    fn run(self) {
        let LargestOfAll(Runs { x, width, reciprocals }, most) = self;
        match reciprocals {
            None => *most = largest(x, None),
            r => x.chunks_exact(width).for_each(|x| *most = largest(x, r).max(*most)),
        }
    }
}

/// All runs with one factor.
struct All<'a>(Runs<'a>, f32, &'a mut [i8]);

impl Work for All<'_> {
    #[inline(always)]
    fn run(self) {
        let All(Runs { x, width, reciprocals }, factor, values) = self;
        match reciprocals {
            None => quantize(x, None, factor, values),
            r => x.chunks_exact(width).zip(values.chunks_exact_mut(width)).for_each(|(x, q)| quantize(x, r, factor, q)),
        }
    }
}

/// Quantises `x: [M, K]` row by row into `values: [M, K]` and `scales: [M]`, after multiplying input k by
/// `reciprocals[k]`, one over its smoothing factor, on rayon's pool.
///
/// # Panics
/// If the slices' lengths do not belong together.
pub fn quantize_rows(isa: Isa, x: &[f32], reciprocals: Option<&[f32]>, values: &mut [i8], scales: &mut [f32]) {
    assert_eq!(x.len(), values.len(), "as many values as activations");
    if x.is_empty() {
        return scales.fill(0.0);
    }
    assert!(
        !scales.is_empty() && x.len().is_multiple_of(scales.len()),
        "{} values are not {} rows",
        x.len(),
        scales.len()
    );
    let inputs = x.len() / scales.len();
    assert!(reciprocals.is_none_or(|r| r.len() == inputs), "a reciprocal for each of {inputs} inputs");
    let rows = (TASK / inputs).max(1);
    let tasks = x.par_chunks(rows * inputs).zip(values.par_chunks_mut(rows * inputs)).zip(scales.par_chunks_mut(rows));
    let runs = |x| Runs { x, width: inputs, reciprocals };
    with_token!(isa, token => tasks.for_each(|((x, values), scales)| {
        token.vectorize(Each(runs(x), values, scales));
    }));
}

/// Quantises pictures `x: [B, H*W, C]` into `values`, each with one scale, `scales: [B]`, after multiplying channel c by
/// `reciprocals[c]`, one over its smoothing factor, on rayon's pool. A picture does not depend on those beside it.
///
/// # Panics
/// If the slices' lengths do not belong together.
pub fn quantize_pictures(
    isa: Isa,
    x: &[f32],
    channels: usize,
    reciprocals: Option<&[f32]>,
    values: &mut [i8],
    scales: &mut [f32],
) {
    assert_eq!(x.len(), values.len(), "as many values as activations");
    if x.is_empty() {
        return scales.fill(0.0);
    }
    assert!(
        !scales.is_empty() && x.len().is_multiple_of(scales.len() * channels),
        "{} values, {channels} channels",
        x.len()
    );
    assert!(reciprocals.is_none_or(|r| r.len() == channels), "a reciprocal for each of {channels} channels");
    let picture = x.len() / scales.len();
    let task = (TASK / channels).max(1) * channels;
    let runs = |x| Runs { x, width: channels, reciprocals };
    with_token!(isa, token => {
        for ((x, values), scale) in x.chunks_exact(picture).zip(values.chunks_exact_mut(picture)).zip(scales) {
            let largest_of = |x| {
                let mut most = 0;
                token.vectorize(LargestOfAll(runs(x), &mut most));
                most
            };
            let (factor, of_picture) = factor_and_scale(x.par_chunks(task).map(largest_of).max().unwrap_or(0));
            x.par_chunks(task).zip(values.par_chunks_mut(task)).for_each(|(x, values)| {
                token.vectorize(All(runs(x), factor, values));
            });
            *scale = of_picture;
        }
    });
}
