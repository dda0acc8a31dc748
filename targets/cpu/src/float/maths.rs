//! Exponentials and the normal distribution. Coefficients: least largest error over the stated range, by Lawson's
//! iteratively reweighted least squares in f64. Tested over all f32 numbers of the range in question, or a dense part.

use super::Floats;
use std::f32::consts::LOG2_E;

/// `e^f = 1 + f + f^2 (E[0] + E[1] f + ...)` for |f| <= ln(2) / 2, relative error 9.5e-9.
const E: [f64; 5] = [
    0.499_999_995_515_163_1,
    0.166_665_771_411_979_5,
    0.041_666_853_720_678_5,
    0.008_363_170_211_472_3,
    0.001_390_129_713_484_43,
];

/// Below 2^-126 there are no normal numbers; results are zero there.
const LEAST_EXPONENT: f32 = -126.0;

/// The polynomial with `coefficients`, that of the highest power last.
#[inline(always)]
fn polynomial<F: Floats, const N: usize>(f: F, x: F::Vector, coefficients: [f32; N]) -> F::Vector {
    let mut y = f.splat(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        y = f.mul_add(y, x, f.splat(coefficients[i]));
    }
    y
}

/// `2^x` for x <= 0, NaN for NaN; zero below 2^-126. Relative error at most 1.4e-7.
#[inline(always)]
pub(crate) fn exp2_of_nonpositive<F: Floats>(f: F, x: F::Vector) -> F::Vector {
    const LN2: f64 = std::f64::consts::LN_2;
    const P: [f32; 7] = [
        1.0,
        LN2 as f32,
        (E[0] * LN2 * LN2) as f32,
        (E[1] * LN2 * LN2 * LN2) as f32,
        (E[2] * LN2 * LN2 * LN2 * LN2) as f32,
        (E[3] * LN2 * LN2 * LN2 * LN2 * LN2) as f32,
        (E[4] * LN2 * LN2 * LN2 * LN2 * LN2 * LN2) as f32,
    ];
    let whole = f.round(x);
    let power = f.scale(polynomial(f, f.sub(x, whole), P), whole);
    f.if_less(x, f.splat(LEAST_EXPONENT), f.splat(0.0), power)
}

/// `e^x` for x <= 0, NaN for NaN; zero below e^-87.3. Relative error at most 1.4e-7.
#[inline(always)]
fn exp_of_nonpositive<F: Floats>(f: F, x: F::Vector) -> F::Vector {
    /// ln(2) in two parts, the first of so few bits that its products with whole exponents are exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = (std::f64::consts::LN_2 - HIGH as f64) as f32;
    const P: [f32; 7] = [1.0, 1.0, E[0] as f32, E[1] as f32, E[2] as f32, E[3] as f32, E[4] as f32];
    let exponent = f.mul(x, f.splat(LOG2_E));
    let whole = f.round(exponent);
    let rest = f.mul_add(whole, f.splat(-LOW), f.mul_add(whole, f.splat(-HIGH), x));
    let power = f.scale(polynomial(f, rest, P), whole);
    f.if_less(exponent, f.splat(LEAST_EXPONENT), f.splat(0.0), power)
}

/// `1 / (1 + e^-x)`. Relative error at most 3e-7, zero below -87.3.
#[inline(always)]
pub(crate) fn sigmoid<F: Floats>(f: F, x: F::Vector) -> F::Vector {
    let (zero, one) = (f.splat(0.0), f.splat(1.0));
    let e = exp_of_nonpositive(f, f.sub(zero, f.abs(x)));
    f.div(f.if_less(x, zero, e, one), f.add(one, e))
}

/// `e^(-x^2 / 2)`: the density of the normal distribution times the root of two pi.
#[inline(always)]
pub(crate) fn density_shape<F: Floats>(f: F, x: F::Vector) -> F::Vector {
    exp_of_nonpositive(f, f.mul(f.mul(x, x), f.splat(-0.5)))
}

/// The normal distribution function, `(1 + erf(x / sqrt 2)) / 2`; `shape` as [`density_shape`] gives it. Absolute error
/// at most 1e-7.
#[inline(always)]
pub(crate) fn normal_cdf<F: Floats>(f: F, x: F::Vector, shape: F::Vector) -> F::Vector {
    /// `(cdf - 1/2) / x` in powers of `x^2` for |x| <= 1, absolute error of the product 7.4e-9.
    const INNER: [f32; 5] = [0.398_942_2, -0.066_488_73, 0.009_964_167, -0.001_165_350_8, 9.246_838_5e-5];
    /// `cdf(-t) / (u e^(-t^2 / 2))` in powers of `u = 1 / (1 + 0.4 t)` for t in 1..=13.2, relative error 8.2e-8.
    const OUTER: [f32; 7] =
        [0.159_595_79, 0.159_1, 0.139_002_31, 0.055_540_532, 0.105_363_21, -0.186_428_04, 0.068_121_39];
    let (zero, one) = (f.splat(0.0), f.splat(1.0));
    let t = f.abs(x);
    let inner = f.mul_add(x, polynomial(f, f.mul(x, x), INNER), f.splat(0.5));
    let u = f.div(one, f.mul_add(t, f.splat(0.4), one));
    let tail = f.mul(f.mul(u, polynomial(f, u, OUTER)), shape);
    let outer = f.if_less(x, zero, tail, f.sub(one, tail));
    f.if_less(t, one, inner, outer)
}
