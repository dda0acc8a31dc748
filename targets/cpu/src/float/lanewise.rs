//! Functions of single numbers over whole slices.

use super::Floats;

/// Lanes of the widest register.
const WIDEST: usize = 16;

/// A function of one number from each of `IN` slices, with `OUT` results.
pub(crate) trait Lanewise<const IN: usize, const OUT: usize> {
    /// Must be `#[inline(always)]`.
    fn of<F: Floats>(&self, f: F, x: [F::Vector; IN]) -> [F::Vector; OUT];
}

/// `y[..][i] = function(x[..][i])` for every i.
///
/// # Panics
/// If the slices are not all of one length.
#[inline(always)]
pub(crate) fn lanewise<F: Floats, const IN: usize, const OUT: usize>(
    f: F,
    function: &impl Lanewise<IN, OUT>,
    x: [&[f32]; IN],
    y: [&mut [f32]; OUT],
) {
    let len = y[0].len();
    for x in x {
        assert_eq!(x.len(), len, "an argument for each result");
    }
    for y in &y {
        assert_eq!(y.len(), len, "as many of each result");
    }
    let whole = len - len % F::LANES;
    let mut lanes = [f.splat(0.0); IN];
    for at in (0..whole).step_by(F::LANES) {
        for i in 0..IN {
            lanes[i] = f.load(&x[i][at..at + F::LANES]);
        }
        let results = function.of(f, lanes);
        for o in 0..OUT {
            f.store(results[o], &mut y[o][at..at + F::LANES]);
        }
    }
    if whole < len {
        let mut rest = [0.0; WIDEST];
        for i in 0..IN {
            rest[..len - whole].copy_from_slice(&x[i][whole..]);
            lanes[i] = f.load(&rest);
        }
        let results = function.of(f, lanes);
        for o in 0..OUT {
            f.store(results[o], &mut rest);
            y[o][whole..].copy_from_slice(&rest[..len - whole]);
        }
    }
}

/// `y[i] = function(y[i], x[..][i])` for every i.
///
/// # Panics
/// If the slices are not all of one length, or the function takes another number of arguments than are given.
#[inline(always)]
pub(crate) fn lanewise_in_place<F: Floats, const ALL: usize, const MORE: usize>(
    f: F,
    function: &impl Lanewise<ALL, 1>,
    y: &mut [f32],
    x: [&[f32]; MORE],
) {
    const { assert!(ALL == MORE + 1, "the function takes y and all of x") };
    let len = y.len();
    for x in x {
        assert_eq!(x.len(), len, "an argument for each result");
    }
    let whole = len - len % F::LANES;
    let mut lanes = [f.splat(0.0); ALL];
    for at in (0..whole).step_by(F::LANES) {
        let y = &mut y[at..at + F::LANES];
        lanes[0] = f.load(y);
        for i in 0..MORE {
            lanes[i + 1] = f.load(&x[i][at..at + F::LANES]);
        }
        f.store(function.of(f, lanes)[0], y);
    }
    if whole < len {
        let mut rest = [0.0; WIDEST];
        rest[..len - whole].copy_from_slice(&y[whole..]);
        lanes[0] = f.load(&rest);
        for i in 0..MORE {
            rest[..len - whole].copy_from_slice(&x[i][whole..]);
            lanes[i + 1] = f.load(&rest);
        }
        f.store(function.of(f, lanes)[0], &mut rest);
        y[whole..].copy_from_slice(&rest[..len - whole]);
    }
}
