//! Every function on every instruction set against f64, over a dense part of all f32 numbers.

use super::*;
use crate::isa::{Isa, Work, with_token};
use crate::isas::isas;

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1 << 24) as f64;

/// A function under test.
#[derive(Clone, Copy)]
enum Function {
    Exp2,
    Sigmoid,
    DensityShape,
    NormalCdf,
}

impl Lanewise<1, 1> for Function {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [x]: [F::Vector; 1]) -> [F::Vector; 1] {
        [match self {
            Function::Exp2 => exp2_of_nonpositive(f, x),
            Function::Sigmoid => sigmoid(f, x),
            Function::DensityShape => density_shape(f, x),
            Function::NormalCdf => normal_cdf(f, x, density_shape(f, x)),
        }]
    }
}

struct OverAll<'a, F>(F, Function, &'a [f32], &'a mut [f32]);

impl<F: Floats> Work for OverAll<'_, F> {
    #[inline(always)]
    fn run(self) {
        lanewise(self.0, &self.1, [self.2], [self.3]);
    }
}

fn values(isa: Isa, function: Function, x: &[f32]) -> Vec<f32> {
    let mut y = vec![-1.0; x.len()];
    with_token!(isa, token => token.vectorize(OverAll(token, function, x, &mut y)));
    y
}

/// Numbers of every magnitude up to `largest`, of one sign, one in 797 of all there are.
fn dense(largest: f32) -> Vec<f32> {
    (0..=largest.abs().to_bits()).step_by(797).map(|bits| f32::from_bits(bits).copysign(largest)).collect()
}

/// The largest relative and absolute error, the one where the exact value is a normal number.
fn errors(x: &[f32], y: &[f32], exact: impl Fn(f64) -> f64) -> (f64, f64) {
    let mut worst = (0.0f64, 0.0f64);
    for (x, y) in x.iter().zip(y) {
        let (want, got) = (exact(*x as f64), *y as f64);
        assert!(got.is_finite(), "{x:e}: {got}");
        if want >= f32::MIN_POSITIVE as f64 * 2.0 {
            worst.0 = worst.0.max((got - want).abs() / want);
        }
        worst.1 = worst.1.max((got - want).abs());
    }
    worst
}

#[test]
fn errors_stay_below_what_is_stated() {
    let erf = |x: f64| 0.5 * libm::erfc(-x / 2f64.sqrt());
    for isa in isas("exponentials") {
        let of = |function, largest: f32, exact: &dyn Fn(f64) -> f64| {
            let x = dense(largest);
            errors(&x, &values(isa, function, &x), exact)
        };
        let exp2 = of(Function::Exp2, -1000.0, &f64::exp2).0;
        let sigmoid = |largest| of(Function::Sigmoid, largest, &|x| 1.0 / (1.0 + (-x).exp())).0;
        let sigmoid = sigmoid(-1000.0).max(sigmoid(1000.0));
        // the square's rounding is an error of the exponential, up to 87 roundings
        let shape = of(Function::DensityShape, 20.0, &|x| (-0.5 * x * x).exp()).1;
        let cdf = of(Function::NormalCdf, -50.0, &erf).1.max(of(Function::NormalCdf, 50.0, &erf).1);
        println!("{isa}: exp2 {exp2:.1e}, sigmoid {sigmoid:.1e}, density {shape:.1e}, cdf {cdf:.1e}");
        assert!(exp2 <= 1.4e-7 && sigmoid <= 3e-7 && shape <= 2e-7 && cdf <= 1e-7);
        assert!(cdf > U / 4.0, "an error too small to have been measured");
    }
}

#[test]
fn the_ends_are_exact_and_nan_stays() {
    for isa in isas("exponentials at their ends") {
        let ends = [0.0, -0.0, -127.0, -1e30, f32::NEG_INFINITY, f32::NAN];
        let exp2 = values(isa, Function::Exp2, &ends);
        assert!(exp2[..5] == [1.0, 1.0, 0.0, 0.0, 0.0] && exp2[5].is_nan(), "{isa}: {exp2:?}");
        let ends = [-200.0, f32::NEG_INFINITY, 0.0, 200.0, f32::INFINITY, f32::NAN];
        let sigmoid = values(isa, Function::Sigmoid, &ends);
        assert!(sigmoid[..5] == [0.0, 0.0, 0.5, 1.0, 1.0] && sigmoid[5].is_nan(), "{isa}: {sigmoid:?}");
        let cdf = values(isa, Function::NormalCdf, &ends);
        assert!(cdf[..5] == [0.0, 0.0, 0.5, 1.0, 1.0] && cdf[5].is_nan(), "{isa}: {cdf:?}");
    }
}

struct Sum;

impl Lanewise<2, 1> for Sum {
    #[inline(always)]
    fn of<F: Floats>(&self, f: F, [a, b]: [F::Vector; 2]) -> [F::Vector; 1] {
        [f.add(a, b)]
    }
}

struct Add<'a, F>(F, &'a [f32], &'a [f32], &'a mut [f32]);

impl<F: Floats> Work for Add<'_, F> {
    #[inline(always)]
    fn run(self) {
        lanewise(self.0, &Sum, [self.1, self.2], [self.3]);
    }
}

#[test]
fn no_number_is_left_out_at_any_length() {
    for isa in isas("exponentials at their ends") {
        for len in 0..=50 {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let b: Vec<f32> = a.iter().map(|a| a * 100.0).collect();
            let mut y = vec![f32::NAN; len];
            with_token!(isa, token => token.vectorize(Add(token, &a, &b, &mut y)));
            assert!(y.iter().enumerate().all(|(i, &y)| y == i as f32 * 101.0), "{isa}, {len}: {y:?}");
        }
    }
}
