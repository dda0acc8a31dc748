//! Every op against its definition in float64, loops and all, forward and backward, at sizes around every tile edge.

use candle_core::{CustomOp1, Device, Tensor, Var};
use pleinair_cpu::int8::pack;
use pleinair_cpu::isa::{self, Isa};
use pleinair_cpu::{Add, Attention, Conv3x3, Geglu, GroupNorm, LayerNorm, Linear, Precision};
use pleinair_cpu::{Int8, Packing, Values, Weight, channels_last};
use std::sync::Arc;

mod isas;

/// Unit roundoff of f32: one rounding changes a number by at most this share of it.
const U: f64 = 1.0 / (1 << 24) as f64;

/// A result, and how far from it an f32 evaluation may end up: a sum of n products in any order is off by at most
/// (n + 1) roundings of the sum of their magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
#[derive(Clone, Copy)]
struct Exact {
    value: f64,
    bound: f64,
}

impl Exact {
    /// `start + sum of the products`.
    fn sum(start: f64, products: impl Iterator<Item = (f64, f64)>) -> Self {
        let (mut value, mut size, mut terms) = (start, start.abs(), 2.0);
        for (a, b) in products {
            value += a * b;
            size += (a * b).abs();
            terms += 1.0;
        }
        Exact { value, bound: terms * U * size }
    }
}

/// The definitions.
mod definition {
    use super::{Exact, U};

    pub fn linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<Exact> {
        let outputs = weight.len() / inputs;
        let row = |x: &[f64]| -> Vec<_> {
            (0..outputs)
                .map(|o| {
                    let weight = &weight[o * inputs..][..inputs];
                    Exact::sum(bias.map_or(0.0, |b| b[o]), x.iter().copied().zip(weight.iter().copied()))
                })
                .collect()
        };
        x.chunks(inputs).flat_map(row).collect()
    }

    #[derive(Clone, Copy)]
    pub struct Picture {
        pub batch: usize,
        pub height: usize,
        pub width: usize,
        pub cin: usize,
        pub cout: usize,
        pub stride: usize,
        pub repeat: usize,
    }

    /// `weight: [out, in, 3, 3]` as in a checkpoint.
    pub fn conv(x: &[f64], p: Picture, weight: &[f64], bias: &[f64]) -> Vec<Exact> {
        let pixel = |b: usize, row: usize, col: usize, c: usize| match row >= 1 && col >= 1 {
            true if row <= p.height * p.repeat && col <= p.width * p.repeat => {
                let (row, col) = ((row - 1) / p.repeat, (col - 1) / p.repeat);
                x[((b * p.height + row) * p.width + col) * p.cin + c]
            }
            _ => 0.0,
        };
        let mut y = vec![];
        for b in 0..p.batch {
            for top in (0..p.height * p.repeat).step_by(p.stride) {
                for left in (0..p.width * p.repeat).step_by(p.stride) {
                    for o in 0..p.cout {
                        let products = (0..9 * p.cin).map(|i| {
                            let (c, ky, kx) = (i / 9, i / 3 % 3, i % 3);
                            (pixel(b, top + ky, left + kx, c), weight[o * 9 * p.cin + i])
                        });
                        y.push(Exact::sum(bias[o], products));
                    }
                }
            }
        }
        y
    }

    fn moments(x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64)
    }

    pub struct Norm<'a> {
        pub weight: &'a [f64],
        pub bias: &'a [f64],
        pub eps: f64,
    }

    impl Norm<'_> {
        /// Off by a few roundings of each of its three parts; moments are computed in f64 or rounded once.
        fn value(&self, x: f64, (mean, variance): (f64, f64), c: usize) -> Exact {
            let scale = self.weight[c] / (variance + self.eps).sqrt();
            let value = (x - mean) * scale + self.bias[c];
            let size = (x * scale).abs() + (mean * scale).abs() + self.bias[c].abs();
            Exact { value, bound: 6.0 * U * size }
        }

        pub fn group(&self, x: &[f64], pixels: usize, groups: usize, silu: bool) -> Vec<Exact> {
            let channels = self.weight.len();
            let size = channels / groups;
            let mut y = vec![];
            for x in x.chunks(pixels * channels) {
                let moments: Vec<_> = (0..groups)
                    .map(|g| {
                        let members = (0..pixels * size).map(|i| x[i / size * channels + g * size + i % size]);
                        moments(&members.collect::<Vec<_>>())
                    })
                    .collect();
                for (i, &x) in x.iter().enumerate() {
                    let z = self.value(x, moments[i % channels / size], i % channels);
                    y.push(if silu { self::silu(z) } else { z });
                }
            }
            y
        }

        pub fn layer(&self, x: &[f64]) -> Vec<Exact> {
            let row = |x: &[f64]| {
                let moments = moments(x);
                x.iter().enumerate().map(|(c, &x)| self.value(x, moments, c)).collect::<Vec<_>>()
            };
            x.chunks(self.weight.len()).flat_map(row).collect()
        }
    }

    /// SiLU is at most 1.1 steep; the exponential, the sum, the quotient and the product round.
    fn silu(z: Exact) -> Exact {
        let value = z.value / (1.0 + (-z.value).exp());
        Exact { value, bound: 1.1 * z.bound + 6.0 * U * value.abs() }
    }

    #[derive(Clone, Copy)]
    pub struct Heads {
        pub batch: usize,
        pub queries: usize,
        pub keys: usize,
        pub channels: usize,
        pub heads: usize,
        pub causal: bool,
    }

    pub fn attention(q: &[f64], kv: &[f64], a: Heads) -> Vec<Exact> {
        let d = a.channels / a.heads;
        let scale = 1.0 / (d as f64).sqrt();
        let mut y = vec![];
        for b in 0..a.batch {
            for i in 0..a.queries {
                for head in 0..a.heads {
                    let q = &q[(b * a.queries + i) * a.channels + head * d..][..d];
                    let row = |j: usize| &kv[(b * a.keys + j) * 2 * a.channels + head * d..];
                    let seen = if a.causal { i + 1 } else { a.keys };
                    let products = |j: usize| q.iter().map(move |q| q * scale).zip(row(j).iter().copied());
                    let scores: Vec<_> = (0..seen).map(|j| Exact::sum(0.0, products(j))).collect();
                    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(s.value));
                    let min = scores.iter().fold(max, |m, s| m.min(s.value));
                    // a score's error is the exponential's relative error; both it and the sum of all carry it
                    let score = scores.iter().fold(0.0f64, |e, s| e.max(s.bound)) * 2.0;
                    let relative = 2.0 * (2.0 * score + (max - min + 3.0) * U) + (a.keys + 2) as f64 * U;
                    let exps: Vec<_> = scores.iter().map(|s| (s.value - max).exp()).collect();
                    let sum: f64 = exps.iter().sum();
                    for c in 0..d {
                        let values = (0..seen).map(|j| row(j)[a.channels + c]);
                        let value = Exact::sum(0.0, exps.iter().map(|e| e / sum).zip(values.clone()));
                        let size: f64 = exps.iter().zip(values).map(|(e, v)| (e / sum * v).abs()).sum();
                        y.push(Exact { bound: value.bound + relative * size, ..value });
                    }
                }
            }
        }
        y
    }

    /// The distribution function is off by up to two roundings of 1 however small it is; two products follow.
    pub fn geglu(x: &[f64], channels: usize) -> Vec<Exact> {
        let row = |x: &[f64]| {
            let (value, gate) = x.split_at(channels);
            let gated = value.iter().zip(gate).map(|(v, g)| {
                let cdf = 0.5 * libm::erfc(-g / 2f64.sqrt());
                Exact { value: v * g * cdf, bound: (v * g).abs() * (2.0 * U + 2.0 * U * cdf) }
            });
            gated.collect::<Vec<_>>()
        };
        x.chunks(2 * channels).flat_map(row).collect()
    }
}
use definition::{Heads, Norm, Picture};

/// `count` numbers in [-1, 1), the same for the same seed.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    for _ in 0..8 {
        next();
    }
    (0..count).map(|_| next()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// A contiguous tensor that begins in the middle of its storage, which holds other numbers on both sides.
fn view(values: &[f32], shape: &[usize]) -> Tensor {
    let around = vec![f32::NAN; values.len()];
    let mut three = vec![3];
    three.extend(shape);
    tensor(&[&around, values, &around].concat(), &three).get(1).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_near(what: &str, got: &Tensor, want: &[Exact]) {
    let got = flat(got);
    assert_eq!(got.len(), want.len(), "{what}");
    let (mut worst, mut share) = (0.0f64, 0.0f64);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let diff = (*got as f64 - want.value).abs();
        assert!(diff <= want.bound, "{what}: value {i} is {got}, not {} within {:e}", want.value, want.bound);
        worst = worst.max(diff);
        share = share.max(if want.bound > 0.0 { diff / want.bound } else { 0.0 });
    }
    println!("{what}: off by {worst:.1e}, {share:.2} of the bound");
}

/// Step of the central differences: in f64 their own error, h^2 and 1e-16 / h, is far below one f32 rounding.
const STEP: f64 = 1e-5;

/// Single inputs that are moved, spread over all; besides, all are moved at once in a random direction, thrice. Fewer where
/// the tests usually run emulated, at a fraction of the speed.
const PROBES: usize = if cfg!(target_arch = "x86_64") { 48 } else { 8 };

/// The gradients of `sum(r * op(inputs))` against central differences of the definition. An entry of a gradient is a
/// sum over paths; `roundings` bounds how many roundings of the largest entry it has seen.
fn assert_gradients(
    what: &str,
    inputs: &[(Vec<f32>, &[usize])],
    op: impl Fn(&[Tensor]) -> Tensor,
    definition: impl Fn(&[Vec<f64>]) -> Vec<Exact>,
    roundings: usize,
    frozen: &[&Var],
) {
    let leaves: Vec<_> = inputs.iter().map(|(x, shape)| Var::from_tensor(&tensor(x, shape)).unwrap()).collect();
    let y = op(&leaves.iter().map(|leaf| leaf.as_tensor().clone()).collect::<Vec<_>>());
    let r = tensor(&numbers(99, y.elem_count()), y.dims());
    // transposed, so that the gradient arrives with strides
    let last = y.rank() - 1;
    let loss = (y.transpose(0, last).unwrap() * r.transpose(0, last).unwrap()).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    for weight in frozen {
        assert!(grads.get(weight).is_none(), "{what}: a frozen weight has a gradient");
    }
    let r = wide(&flat(&r));
    let exact: Vec<_> = inputs.iter().map(|(x, _)| wide(x)).collect();
    let loss = |x: &[Vec<f64>]| definition(x).iter().zip(&r).map(|(y, r)| y.value * r).sum::<f64>();
    for (which, leaf) in leaves.iter().enumerate() {
        let gradient = wide(&flat(grads.get(leaf).expect("every input has a gradient")));
        let count = gradient.len();
        let largest = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        let one = |i: usize| (0..count).map(|j| (i == j) as u8 as f64).collect::<Vec<_>>();
        let probes = PROBES.min(count);
        let directions = (0..probes)
            .map(|i| one(i * (count - 1) / (probes - 1).max(1)))
            .chain((0..3).map(|seed| wide(&numbers(7 + seed, count))));
        let mut share = 0.0f64;
        for (i, direction) in directions.enumerate() {
            let moved = |step: f64| {
                let mut x = exact.clone();
                x[which].iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                loss(&x)
            };
            let want = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let size: f64 = direction.iter().map(|d| d.abs()).sum::<f64>() * largest;
            let bound = roundings as f64 * U * size + 1e-9;
            let diff = (got - want).abs();
            assert!(diff <= bound, "{what}, input {which}, direction {i}: slope {got}, not {want} within {bound:e}");
            share = share.max(diff / bound);
        }
        println!("{what}, gradient of input {which}: at most {share:.2} of the bound");
    }
}

fn frozen(seed: u64, shape: &[usize]) -> Var {
    Var::from_tensor(&tensor(&numbers(seed, shape.iter().product()), shape)).unwrap()
}

/// Every instruction set of this machine; prints once for each test which run and which cannot.
fn isas() -> Vec<Isa> {
    isas::isas(std::thread::current().name().expect("tests run in threads named after them"))
}

fn apply(x: &Tensor, op: &(impl CustomOp1 + Clone + Send + Sync + 'static)) -> Tensor {
    x.apply_op1(op.clone()).unwrap()
}

/// `[out, (ky, kx, in)]` as a checkpoint has it, `[out, in, 3, 3]`.
fn channels_first(rows: &[f32], cin: usize) -> Vec<f32> {
    let value = |i: usize| rows[i / (9 * cin) * 9 * cin + i % 9 * cin + i % (9 * cin) / 9];
    (0..rows.len()).map(value).collect()
}

/// A weight kept as f32.
fn stored(rows: Vec<f32>, outputs: usize) -> Arc<Weight> {
    let inputs = rows.len() / outputs;
    Arc::new(Weight::new(outputs, inputs, Values::F32(rows.into())).unwrap())
}

/// The same weight in every other way of storing it; `channels` inputs share their smoothing with others of the same
/// remainder.
fn stored_smaller(rows: &[f32], outputs: usize, channels: usize) -> Vec<(&'static str, Arc<Weight>)> {
    let inputs = rows.len() / outputs;
    let halves: Vec<_> = rows.iter().map(|&w| half::f16::from_f32(w)).collect();
    let values: Vec<i8> = rows.iter().map(|w| (w * 127.0).round() as i8).collect();
    let scales: Vec<f32> = (0..outputs).map(|o| (o + 1) as f32 / 127.0).collect();
    let smooth: Vec<f32> = (0..channels).map(|i| 0.5 + i as f32).collect();
    let int8 = |packing, smooth: Option<Vec<f32>>| {
        let values = match packing {
            Packing::Rows => values.clone(),
            Packing::Panels => pack::pack(&values, outputs, inputs),
        };
        let smooth = smooth.map(Into::into);
        Values::Int8(Int8 { values: values.into(), packing, scales: scales.clone().into(), smooth })
    };
    let values = [
        ("f16", Values::F16(halves.into())),
        ("int8 in rows", int8(Packing::Rows, None)),
        ("int8 in panels", int8(Packing::Panels, None)),
        ("smoothed int8 in panels", int8(Packing::Panels, Some(smooth))),
    ];
    values.into_iter().map(|(name, v)| (name, Arc::new(Weight::new(outputs, inputs, v).unwrap()))).collect()
}

#[test]
fn stored_weights_mean_what_their_parts_say() {
    for (outputs, inputs, channels) in [(1, 1, 1), (3, 5, 5), (17, 66, 66), (4, 18, 2)] {
        let rows: Vec<f32> = numbers(1, outputs * inputs);
        for (name, weight) in stored_smaller(&rows, outputs, channels) {
            let (all, what) = (weight.to_f32(), format!("{outputs} x {inputs} as {name}"));
            for (i, (&w, &row)) in all.iter().zip(&rows).enumerate() {
                let (o, q) = (i / inputs, (row as f64 * 127.0).round());
                let scale = (o + 1) as f32 as f64 / 127.0;
                let wanted = match name {
                    "f16" => half::f16::from_f32(row).to_f64(),
                    "smoothed int8 in panels" => q * scale / (0.5 + (i % inputs % channels) as f64),
                    _ => q * scale,
                };
                // the scale's rounding, the product's, the quotient's
                assert!((w as f64 - wanted).abs() <= 3.0 * U * wanted.abs(), "{what}: value {i} is {w}, not {wanted}");
            }
            for o in 0..outputs {
                assert_eq!(weight.row(o), all[o * inputs..][..inputs], "{what}, row {o}");
            }
        }
    }
}

/// With the kernels of every instruction set of this machine, inputs are int8 as well: each is off by at most half a step,
/// times its weight. A step is 1/127 of the largest input of its row or, for a convolution, of its picture.
#[test]
fn int8_inputs_cost_half_a_step_each() {
    let isas = isas();
    // (rows or pixels of a row, inputs, outputs)
    for (n, cin, cout) in [(1, 1, 1), (5, 40, 17), (4, 64, 33)] {
        let (x, bias) = (numbers(3, n * n * cin), numbers(2, cout));
        let layers = [("linear", cin, 0), ("conv", 9 * cin, 1), ("upsampling conv", 9 * cin, 2)];
        for (name, columns, repeat) in layers {
            let conv = repeat > 0;
            let rows = numbers(1, cout * columns);
            for (stored_as, weight) in stored_smaller(&rows, cout, cin) {
                let (all, Values::Int8(int8)) = (weight.to_f32(), weight.values()) else { continue };
                let smooth = |c: usize| int8.smooth.as_ref().map_or(1.0, |s| s[c] as f64);
                let smoothed: Vec<f64> = x.iter().enumerate().map(|(i, &x)| x as f64 / smooth(i % cin)).collect();
                let largest = |x: &[f64]| x.iter().fold(0f64, |m, x| m.max(x.abs()));
                let (x, w, b) = (wide(&x), wide(&all), wide(&bias));
                let exact = match conv {
                    true => {
                        let p = Picture { batch: 1, height: n, width: n, cin, cout, stride: 1, repeat };
                        definition::conv(&x, p, &wide(&channels_first(&all, cin)), &b)
                    }
                    false => definition::linear(&x, &w, Some(&b), cin),
                };
                for &isa in &isas {
                    let weight = Arc::new((*weight).clone().with_kernels(isa));
                    let bias = tensor(&bias, &[cout]);
                    let input = view(&numbers(3, n * n * cin), &[1, n * n, cin]);
                    let y = match conv {
                        true => apply(&input, &Conv3x3 { weight, bias, height: n, width: n, repeat, stride: 1 }),
                        false => apply(&input, &Linear { weight, bias: Some(bias) }),
                    };
                    for (i, (y, exact)) in flat(&y).iter().zip(&exact).enumerate() {
                        let (row, o) = (i / cout, i % cout);
                        let of_step = if conv { &smoothed[..] } else { &smoothed[row * cin..][..cin] };
                        let weights = w[o * columns..][..columns].iter().enumerate();
                        let magnitude: f64 = weights.map(|(k, w)| w.abs() * smooth(k % cin)).sum();
                        // the roundings of the scales and of the smoothed input besides
                        let bound = magnitude * largest(of_step) / 127.0 * 0.5 * 1.001 + 4.0 * exact.bound;
                        let diff = (*y as f64 - exact.value).abs();
                        assert!(
                            diff <= bound,
                            "{name} {n} {cin} {cout} {stored_as} {isa}: value {i} off by {diff}, bound {bound}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn weights_of_another_size_are_refused() {
    let int8 = |values: usize, packing, scales: usize, smooth: Option<usize>| {
        let ones = |n: usize| vec![1f32; n].into();
        Values::Int8(Int8 { values: vec![0i8; values].into(), packing, scales: ones(scales), smooth: smooth.map(ones) })
    };
    let fits = |values| Weight::new(2, 9, values).is_ok();
    assert!(fits(Values::F32(vec![0.0; 18].into())) && !fits(Values::F32(vec![0.0; 17].into())));
    assert!(!fits(Values::F16(vec![half::f16::ZERO; 19].into())));
    assert!(fits(int8(18, Packing::Rows, 2, None)) && fits(int8(16 * 64, Packing::Panels, 2, Some(9))));
    assert!(fits(int8(18, Packing::Rows, 2, Some(1))), "one channel of a 3x3 convolution");
    assert!(!fits(int8(18, Packing::Panels, 2, None)) && !fits(int8(18, Packing::Rows, 3, None)));
    assert!(!fits(int8(18, Packing::Rows, 2, Some(2))));
    assert!(Weight::new(0, 9, Values::F32(vec![].into())).is_err());
}

#[test]
fn linear() {
    let shapes: [&[usize]; 6] = [&[1, 1], &[3, 8], &[2, 3, 40], &[1, 64, 65], &[3, 65, 3], &[2, 2, 2, 8]];
    for (shape, outputs, biased) in
        shapes.into_iter().zip([1, 65, 3, 40, 8, 1]).flat_map(|(s, o)| [(s, o, false), (s, o, true)])
    {
        let what = format!("linear {shape:?} -> {outputs}, bias {biased}");
        let inputs = *shape.last().unwrap();
        let (weight, bias) = (frozen(1, &[outputs, inputs]), frozen(2, &[outputs]));
        let bias_tensor = biased.then(|| bias.as_tensor().clone());
        let op = Linear { weight: stored(flat(&weight), outputs), bias: bias_tensor.clone() };
        let (w, b) = (wide(&flat(&weight)), wide(&flat(&bias)));
        let definition = |x: &[f64]| definition::linear(x, &w, biased.then_some(&b), inputs);
        let x = numbers(3, shape.iter().product());
        let y = apply(&view(&x, shape), &op);
        assert_eq!(y.dims(), [&shape[..shape.len() - 1], &[outputs]].concat());
        assert_near(&what, &y, &definition(&wide(&x)));
        // one product of `outputs` terms, the loss's included
        let run = |x: &[Tensor]| apply(&x[0], &op);
        assert_gradients(&what, &[(x.clone(), shape)], run, |x| definition(&x[0]), outputs + 4, &[&weight, &bias]);

        for (name, weight) in stored_smaller(&flat(&weight), outputs, inputs) {
            let (what, w) = (format!("{what} as {name}"), wide(&weight.to_f32()));
            let op = Linear { weight, bias: bias_tensor.clone() };
            let definition = |x: &[f64]| definition::linear(x, &w, biased.then_some(&b), inputs);
            assert_near(&what, &apply(&view(&x, shape), &op), &definition(&wide(&x)));
            let run = |x: &[Tensor]| apply(&x[0], &op);
            assert_gradients(&what, &[(x.clone(), shape)], run, |x| definition(&x[0]), outputs + 4, &[&bias]);
        }
    }
}

#[test]
fn conv3x3() {
    // (batch, height, width, in, out): one pixel, one row, tiles of 256 that end one short, exactly and one over, tiles
    // that hold the end of one picture and the beginning of the next, and the narrowest tiles of 16
    let sizes = [
        (1, 1, 1, 1, 1),
        (1, 2, 2, 3, 8),
        (2, 1, 7, 3, 3),
        (3, 5, 4, 8, 3),
        (1, 3, 85, 3, 1),
        (1, 16, 16, 1, 8),
        (1, 257, 1, 3, 1),
        (2, 13, 11, 40, 3),
        (3, 10, 13, 3, 40),
        (1, 6, 5, 65, 65),
        (1, 15, 15, 130, 1),
        (1, 5, 3, 1900, 2),
        (1, 4, 4, 1900, 1),
        (1, 17, 1, 1900, 1),
    ];
    let cases = sizes.into_iter().flat_map(|s| [(s, 1, 1), (s, 2, 1), (s, 1, 2)]);
    for ((batch, height, width, cin, cout), stride, repeat) in cases {
        if repeat == 2 && cin > 1000 {
            continue;
        }
        let p = Picture { batch, height, width, cin, cout, stride, repeat };
        let what = format!("conv {batch} x {height}x{width} {cin} -> {cout}, stride {stride}, repeat {repeat}");
        let (weight, bias) = (frozen(1, &[cout, cin, 3, 3]), frozen(2, &[cout]));
        let (rows, bias_tensor) = (channels_last(&flat(&weight), cin), bias.as_tensor().clone());
        let op =
            Conv3x3 { weight: stored(rows.clone(), cout), bias: bias_tensor.clone(), height, width, repeat, stride };
        let (w, b) = (wide(&flat(&weight)), wide(&flat(&bias)));
        let shape = [batch, height * width, cin];
        let x = numbers(3, shape.iter().product());
        let y = apply(&view(&x, &shape), &op);
        assert_eq!(y.dims(), [batch, (height * repeat).div_ceil(stride) * (width * repeat).div_ceil(stride), cout]);
        assert_near(&what, &y, &definition::conv(&wide(&x), p, &w, &b));
        if batch * height * width * repeat * repeat * cin * cout > 60_000 {
            continue;
        }
        let run = |x: &[Tensor]| apply(&x[0], &op);
        // nine taps of `cout` terms, the loss's product included, for each repetition
        let definition = |x: &[Vec<f64>]| definition::conv(&x[0], p, &w, &b);
        assert_gradients(
            &what,
            &[(x.clone(), &shape)],
            run,
            definition,
            repeat * repeat * (9 * cout + 4),
            &[&weight, &bias],
        );

        for (name, weight) in stored_smaller(&rows, cout, cin) {
            let (what, w) = (format!("{what} as {name}"), wide(&channels_first(&weight.to_f32(), cin)));
            let op = Conv3x3 { weight, bias: bias_tensor.clone(), height, width, repeat, stride };
            let definition = |x: &[Vec<f64>]| definition::conv(&x[0], p, &w, &b);
            assert_near(&what, &apply(&view(&x, &shape), &op), &definition(&[wide(&x)]));
            let run = |x: &[Tensor]| apply(&x[0], &op);
            assert_gradients(
                &what,
                &[(x.clone(), &shape)],
                run,
                definition,
                repeat * repeat * (9 * cout + 4),
                &[&bias],
            );
        }
    }
}

#[test]
fn group_norm() {
    // (batch, pixels, channels, groups): one value a group, chunks of 256 pixels that end one short, exactly and one
    // over, and chunks that hold the end of one picture and the beginning of the next
    let sizes =
        [(1, 1, 3, 3), (2, 7, 8, 2), (1, 255, 3, 1), (1, 256, 8, 8), (2, 257, 1, 1), (3, 100, 40, 8), (2, 9, 65, 5)];
    for ((batch, pixels, channels, groups), silu) in sizes.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let what = format!("group norm {batch} x {pixels} x {channels} in {groups}, SiLU {silu}");
        let (weight, bias) = (frozen(1, &[channels]), frozen(2, &[channels]));
        let op = GroupNorm {
            weight: weight.as_tensor().clone(),
            bias: bias.as_tensor().clone(),
            groups,
            eps: 1e-5,
            silu,
            isa: isa::best(),
        };
        let norm = Norm { weight: &wide(&flat(&weight)), bias: &wide(&flat(&bias)), eps: 1e-5 };
        let shape = [batch, pixels, channels];
        // groups whose mean is not zero, as a network's are
        let x: Vec<_> = numbers(3, shape.iter().product()).iter().map(|x| 2.0 * x + 0.5).collect();
        let far: Vec<_> = x.iter().map(|x| x + 1000.0).collect();
        for isa in isas() {
            let op = GroupNorm { isa, ..op.clone() };
            let what = format!("{what}, {isa}");
            assert_near(&what, &apply(&view(&x, &shape), &op), &norm.group(&wide(&x), pixels, groups, silu));
            let what = format!("{what}, far from zero");
            assert_near(&what, &apply(&view(&far, &shape), &op), &norm.group(&wide(&far), pixels, groups, silu));
            // sums are in f64; the SiLU's argument is off by 6 roundings of values up to about 4, its slope half as much
            let run = |x: &[Tensor]| apply(&x[0], &op);
            let definition = |x: &[Vec<f64>]| norm.group(&x[0], pixels, groups, silu);
            assert_gradients(&what, &[(x.clone(), &shape)], run, definition, 24, &[&weight, &bias]);
        }
    }
}

/// Results and gradients of the norms and of GEGLU to the last bit, on maps of several tasks each.
#[test]
fn the_number_of_threads_changes_nothing() {
    let (shape, channels) = ([2, 701, 95], 95);
    let (weight, bias) = (tensor(&numbers(1, channels), &[channels]), tensor(&numbers(2, channels), &[channels]));
    let x = tensor(&numbers(3, 2 * 701 * 95), &shape);
    let wide = Tensor::cat(&[&x, &(&x * 2.0).unwrap()], 2).unwrap();
    let dy = tensor(&numbers(4, 2 * 701 * 95), &shape);
    for isa in isas() {
        let group = GroupNorm { weight: weight.clone(), bias: bias.clone(), groups: 5, eps: 1e-5, silu: true, isa };
        let layer = LayerNorm { weight: weight.clone(), bias: bias.clone(), eps: 1e-5, isa };
        let both = |x: &Tensor, op: &dyn CustomOp1, y: Tensor| {
            [flat(&y), flat(&op.bwd(x, &y, &dy).unwrap().expect("a gradient"))]
        };
        let all = || {
            [
                both(&x, &group, apply(&x, &group)),
                both(&x, &layer, apply(&x, &layer)),
                both(&wide, &Geglu { isa }, apply(&wide, &Geglu { isa })),
            ]
        };
        let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(all);
        let alone = on(1);
        assert!(alone.iter().flatten().flatten().all(|v| v.is_finite()));
        for threads in [2, 5] {
            assert!(on(threads) == alone, "{isa}: {threads} threads");
        }
    }
}

/// Where exp(-x) overflows, SiLU and its slope are plain zero, not NaN.
#[test]
fn group_norm_far_below_zero() {
    let ones = tensor(&[1.0; 4], &[4]);
    let op = GroupNorm {
        weight: ones.clone(),
        bias: (&ones * -200.0).unwrap(),
        groups: 1,
        eps: 1e-5,
        silu: true,
        isa: isa::best(),
    };
    let x = Var::from_tensor(&tensor(&numbers(3, 8), &[1, 2, 4])).unwrap();
    let y = apply(&x, &op);
    assert!(flat(&y).iter().all(|&y| y == 0.0), "{y}");
    let gradient = y.backward().unwrap().remove(&x).unwrap();
    assert!(flat(&gradient).iter().all(|&g| g == 0.0), "{gradient}");
}

#[test]
fn layer_norm() {
    let shapes: [&[usize]; 6] = [&[1, 1, 3], &[1, 8], &[2, 5, 40], &[3, 65, 65], &[2, 3, 2, 8], &[1, 1, 1]];
    for shape in shapes {
        let what = format!("layer norm {shape:?}");
        let channels = *shape.last().unwrap();
        let (weight, bias) = (frozen(1, &[channels]), frozen(2, &[channels]));
        let op = LayerNorm {
            weight: weight.as_tensor().clone(),
            bias: bias.as_tensor().clone(),
            eps: 1e-5,
            isa: isa::best(),
        };
        let norm = Norm { weight: &wide(&flat(&weight)), bias: &wide(&flat(&bias)), eps: 1e-5 };
        let x: Vec<_> = numbers(3, shape.iter().product()).iter().map(|x| 2.0 * x + 0.5).collect();
        let far: Vec<_> = x.iter().map(|x| x + 1000.0).collect();
        for isa in isas() {
            let op = LayerNorm { isa, ..op.clone() };
            let what = format!("{what}, {isa}");
            assert_near(&what, &apply(&view(&x, shape), &op), &norm.layer(&wide(&x)));
            let what = format!("{what}, far from zero");
            assert_near(&what, &apply(&view(&far, shape), &op), &norm.layer(&wide(&far)));
            // sums are in f64 and rounded once each; then three differences, each followed by a product or two
            let run = |x: &[Tensor]| apply(&x[0], &op);
            let definition = |x: &[Vec<f64>]| norm.layer(&x[0]);
            assert_gradients(&what, &[(x.clone(), shape)], run, definition, 16, &[&weight, &bias]);
        }
    }
}

/// Sizes around the backward's block of 64 queries, the forward's of 48, 16, 12 and 8, its blocks of about 128 keys and its tiles
/// of 8, 6 and 4 keys and channels: (batch, queries, keys, channels, heads).
const ATTENTIONS: [(usize, usize, usize, usize, usize); 20] = [
    (1, 1, 1, 1, 1),
    (2, 1, 77, 8, 2),
    (3, 63, 63, 3, 3),
    (1, 64, 64, 40, 5),
    (2, 64, 77, 8, 1),
    (1, 65, 65, 65, 5),
    (3, 65, 7, 8, 4),
    (1, 130, 130, 8, 2),
    (2, 130, 77, 40, 4),
    (1, 130, 1, 3, 1),
    (1, 8, 9, 16, 1),
    (1, 9, 3, 24, 1),
    (2, 12, 8, 9, 1),
    (1, 13, 127, 14, 2),
    (1, 15, 128, 40, 1),
    (1, 17, 129, 48, 2),
    (1, 47, 136, 160, 1),
    (1, 49, 257, 80, 1),
    (1, 96, 96, 64, 2),
    (1, 193, 193, 40, 1),
];

/// A score's sum, the softmax's two sums and those of three products, each of them with the factors around it.
fn attention_roundings(a: Heads) -> usize {
    let d = a.channels / a.heads;
    2 * (d + 4) + 3 * a.keys + a.queries + d + 16
}

#[test]
fn attention_to_a_text() {
    for (batch, queries, keys, channels, heads) in ATTENTIONS {
        for causal in if queries == keys { vec![false, true] } else { vec![false] } {
            let a = Heads { batch, queries, keys, channels, heads, causal };
            let what = format!("attention {batch} x {queries} to {keys}, {channels} in {heads} heads, causal {causal}");
            let op = Attention { heads, causal, precision: Precision::F32, isa: isa::best() };
            let (shape, kv_shape) = ([batch, queries, channels], [batch, keys, 2 * channels]);
            // wide enough apart that some probabilities are near 1 and others near 0
            let q: Vec<_> = numbers(3, shape.iter().product()).iter().map(|x| 3.0 * x).collect();
            let kv = numbers(4, kv_shape.iter().product());
            let exact = definition::attention(&wide(&q), &wide(&kv), a);
            for isa in isas() {
                let y = view(&q, &shape).apply_op2(&view(&kv, &kv_shape), Attention { isa, ..op }).unwrap();
                assert_eq!(y.dims(), shape);
                assert_near(&format!("{what}, {isa}"), &y, &exact);
            }
            let run = |x: &[Tensor]| x[0].apply_op2(&x[1], op).unwrap();
            let definition = |x: &[Vec<f64>]| definition::attention(&x[0], &x[1], a);
            let inputs: [(_, &[usize]); 2] = [(q, &shape), (kv, &kv_shape)];
            if batch * queries * keys * channels > 600_000 {
                continue;
            }
            assert_gradients(&what, &inputs, run, definition, attention_roundings(a), &[]);
        }
    }
}

/// Queries and keys are narrowed views of one projection, and so is the gradient's way back.
#[test]
fn attention_to_itself() {
    for (batch, n, channels, heads) in [(2, 1, 8, 2), (1, 63, 3, 1), (3, 65, 8, 4), (1, 130, 8, 1)] {
        for causal in [false, true] {
            let a = Heads { batch, queries: n, keys: n, channels, heads, causal };
            let what = format!("self-attention {batch} x {n}, {channels} in {heads} heads, causal {causal}");
            let op = Attention { heads, causal, precision: Precision::F32, isa: isa::best() };
            let run = |qkv: &Tensor, op: Attention| {
                let q = qkv.narrow(2, 0, channels).unwrap();
                q.apply_op2(&qkv.narrow(2, channels, 2 * channels).unwrap(), op).unwrap()
            };
            let definition = |qkv: &[f64]| {
                let part = |from: usize, to: usize| -> Vec<f64> {
                    qkv.chunks(3 * channels).flat_map(|row| row[from..to].to_vec()).collect()
                };
                definition::attention(&part(0, channels), &part(channels, 3 * channels), a)
            };
            let shape = [batch, n, 3 * channels];
            let qkv: Vec<_> = numbers(3, shape.iter().product()).iter().map(|x| 2.0 * x).collect();
            let exact = definition(&wide(&qkv));
            for isa in isas() {
                let y = run(&view(&qkv, &shape), Attention { isa, ..op });
                assert_near(&format!("{what}, {isa}"), &y, &exact);
            }
            let inputs: [(_, &[usize]); 1] = [(qkv, &shape)];
            assert_gradients(&what, &inputs, |x| run(&x[0], op), |x| definition(&x[0]), attention_roundings(a), &[]);
        }
    }
}

/// Scores far beyond the range of exp() leave neither infinities nor NaN.
#[test]
fn attention_with_huge_scores() {
    let (q, kv) = (numbers(3, 5 * 8), numbers(4, 5 * 16));
    let huge = |x: &[f32]| x.iter().map(|x| 100.0 * x).collect::<Vec<_>>();
    let a = Heads { batch: 1, queries: 5, keys: 5, channels: 8, heads: 1, causal: false };
    let (q, kv) = (huge(&q), huge(&kv));
    for isa in isas() {
        let op = Attention { heads: 1, causal: false, precision: Precision::F32, isa };
        let y = tensor(&q, &[1, 5, 8]).apply_op2(&tensor(&kv, &[1, 5, 16]), op).unwrap();
        let what = format!("attention with huge scores, {isa}");
        assert_near(&what, &y, &definition::attention(&wide(&q), &wide(&kv), a));
    }
}

/// To the last bit what one addition gives, and a gradient to each side; sizes around a task's.
#[test]
fn sums_of_maps() {
    for len in [1, 31, 32767, 32768, 32769, 70001] {
        let (a, b) = (numbers(1, len), numbers(2, len));
        let [x, z] = [&a, &b].map(|values| Var::from_tensor(&view(values, &[1, len])).unwrap());
        let y = x.apply_op2(&z, Add).unwrap();
        assert_eq!(flat(&y), a.iter().zip(&b).map(|(a, b)| a + b).collect::<Vec<_>>());
        let r = tensor(&numbers(3, len), &[1, len]);
        let grads = (y * &r).unwrap().sum_all().unwrap().backward().unwrap();
        for leaf in [&x, &z] {
            assert_eq!(flat(grads.get(leaf).unwrap()), flat(&r));
        }
    }
    let ones = |len: usize| tensor(&vec![1.0; len], &[len]);
    assert!(ones(3).apply_op2(&ones(4), Add).is_err());
}

#[test]
fn geglu() {
    let shapes: [&[usize]; 5] = [&[1, 1, 2], &[1, 80], &[2, 5, 6], &[3, 65, 130], &[2, 3, 2, 16]];
    for shape in shapes {
        let what = format!("GEGLU {shape:?}");
        let c = shape.last().unwrap() / 2;
        // out to where the gate is shut or wide open
        let x: Vec<_> = numbers(3, shape.iter().product()).iter().map(|x| 8.0 * x).collect();
        for isa in isas() {
            let (what, op) = (format!("{what}, {isa}"), Geglu { isa });
            let y = apply(&view(&x, shape), &op);
            assert_eq!(y.dims(), [&shape[..shape.len() - 1], &[c]].concat());
            assert_near(&what, &y, &definition::geglu(&wide(&x), c));
            let run = |x: &[Tensor]| apply(&x[0], &op);
            assert_gradients(&what, &[(x.clone(), shape)], run, |x| definition::geglu(&x[0], c), 16, &[]);
        }
    }
}

#[test]
fn bad_input_is_an_error() {
    let zeros = |shape: &[usize]| tensor(&vec![0.0; shape.iter().product()], shape);
    let linear = Linear { weight: stored(vec![0.0; 12], 4), bias: None };
    let conv =
        Conv3x3 { weight: stored(vec![0.0; 4 * 27], 4), bias: zeros(&[4]), height: 2, width: 3, repeat: 1, stride: 1 };
    let group =
        |groups| GroupNorm { weight: zeros(&[4]), bias: zeros(&[4]), groups, eps: 1e-5, silu: false, isa: isa::best() };
    let layer = LayerNorm { weight: zeros(&[4]), bias: zeros(&[4]), eps: 1e-5, isa: isa::best() };

    let x = zeros(&[1, 6, 3]);
    assert!(x.apply_op1(linear.clone()).is_ok() && x.apply_op1(conv.clone()).is_ok());
    assert!(zeros(&[1, 6, 4]).apply_op1(linear.clone()).is_err(), "4 features for 3");
    assert!(x.to_dtype(candle_core::DType::F64).unwrap().apply_op1(linear.clone()).is_err(), "f64");
    assert!(zeros(&[1, 3, 6]).transpose(1, 2).unwrap().apply_op1(linear).is_err(), "strided");
    assert!(zeros(&[1, 5, 3]).apply_op1(conv.clone()).is_err(), "5 pixels for 6");
    assert!(zeros(&[1, 6, 4]).apply_op1(conv.clone()).is_err(), "4 channels for 3");
    assert!(x.apply_op1(Conv3x3 { repeat: 0, ..conv.clone() }).is_err(), "no picture");
    assert!(x.apply_op1(Conv3x3 { stride: 0, ..conv.clone() }).is_err(), "no stride");
    assert!(zeros(&[6, 3]).apply_op1(conv.clone()).is_err(), "no batch");
    assert!(x.apply_op1(Conv3x3 { bias: zeros(&[3]), ..conv.clone() }).is_err(), "3 biases for 4 channels");
    assert!(zeros(&[1, 6, 3]).apply_op1(group(2)).is_err(), "3 channels for 4");
    assert!(zeros(&[1, 6, 4]).apply_op1(group(3)).is_err(), "4 channels in 3 groups");
    assert!(zeros(&[1, 6, 4]).apply_op1(group(0)).is_err(), "no groups");
    assert!(zeros(&[1, 6, 3]).apply_op1(layer).is_err(), "3 channels for 4");
    assert!(zeros(&[1, 6, 3]).apply_op1(Geglu { isa: isa::best() }).is_err(), "odd");

    let attend = |q: &[usize], kv: &[usize], heads, causal| {
        zeros(q).apply_op2(&zeros(kv), Attention { heads, causal, precision: Precision::F32, isa: isa::best() })
    };
    assert!(attend(&[1, 6, 4], &[1, 6, 8], 2, true).is_ok());
    assert!(attend(&[1, 6, 4], &[1, 6, 8], 3, false).is_err(), "4 channels in 3 heads");
    assert!(attend(&[1, 6, 4], &[1, 6, 8], 0, false).is_err(), "no heads");
    assert!(attend(&[1, 6, 4], &[1, 6, 4], 2, false).is_err(), "no values");
    assert!(attend(&[1, 6, 4], &[2, 6, 8], 2, false).is_err(), "two texts for one picture");
    assert!(attend(&[1, 6, 4], &[1, 7, 8], 2, true).is_err(), "causal, 6 to 7");
    assert!(attend(&[1, 6, 4], &[1, 0, 8], 2, false).is_err(), "nothing to attend to");
    let strided = zeros(&[1, 4, 6]).transpose(1, 2).unwrap();
    assert!(
        strided
            .apply_op2(
                &zeros(&[1, 6, 8]),
                Attention { heads: 2, causal: false, precision: Precision::F32, isa: isa::best() }
            )
            .is_err(),
        "strided rows"
    );
}

#[test]
#[should_panic(expected = "value 0 is NaN")]
fn the_comparison_catches_nan() {
    assert_near("NaN", &tensor(&[f32::NAN], &[1]), &[Exact { value: 0.0, bound: 1.0 }]);
}

#[test]
#[should_panic(expected = "direction 0: slope")]
fn the_comparison_catches_a_wrong_slope() {
    let twice = |x: &[Vec<f64>]| definition::linear(&x[0], &[2.0001], None, 1);
    let op = Linear { weight: stored(vec![2.0], 1), bias: None };
    assert_gradients("wrong", &[(vec![0.5, 1.0], &[2, 1])], |x| apply(&x[0], &op), twice, 8, &[]);
}
