//! Attention in both precisions on every instruction set against its definition in float64, forward and backward, with
//! bounds for each value that follow from the roundings.

use candle_core::{CustomOp2, Device, Tensor};
use pleinair_cpu::isa::{self, Isa};
use pleinair_cpu::{Attention, Precision};

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1 << 24) as f64;

/// What one precision may do to numbers.
#[derive(Clone, Copy)]
struct Roundings {
    /// Relative change of what is multiplied.
    factor: f64,
    /// Relative error of an exponential.
    exponential: f64,
}

impl Roundings {
    fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Roundings { factor: U, exponential: 2e-7 },
            Precision::Bf16 => Roundings { factor: 1.0 / 256.0, exponential: 8e-5 },
        }
    }

    /// Relative change of a product of two rounded numbers, and of a sum of `terms` of them in f32.
    fn product(self, terms: usize) -> f64 {
        (2.0 + self.factor) * self.factor + (terms + 4) as f64 * U
    }
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    per_head: usize,
    causal: bool,
}

impl Sizes {
    fn channels(self) -> usize {
        self.heads * self.per_head
    }
}

/// The arguments, as they lie in the tensors.
struct Given {
    q: Vec<f32>,
    kv: Vec<f32>,
    dy: Vec<f32>,
}

/// A number and how far from it a result may be.
#[derive(Clone, Copy, Default)]
struct Near {
    value: f64,
    bound: f64,
}

/// `y: [B, N, C]`, `dq: [B, N, C]`, `dkv: [B, M, 2C]`.
struct Exact {
    y: Vec<Near>,
    dq: Vec<Near>,
    dkv: Vec<Near>,
}

/// One query's probabilities with the relative error that each may have.
fn probabilities(s: Sizes, r: Roundings, q: &[f64], keys: &[&[f64]]) -> (Vec<f64>, f64) {
    let scale = 1.0 / (s.per_head as f64).sqrt();
    let score = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k * scale).sum::<f64>();
    let size = |k: &[f64]| q.iter().zip(k).map(|(q, k)| (q * k * scale).abs()).sum::<f64>();
    let scores: Vec<_> = keys.iter().map(|k| score(k)).collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
    // a score's own error, twice over since the largest is subtracted, and the difference's rounding
    let off = |(k, s): (&&[f64], &f64)| 2.0 * r.product(q.len()) * size(k) + 2.0 * U * (max - s);
    let off = keys.iter().zip(&scores).map(off).fold(0.0f64, f64::max);
    let one = off.exp() * (1.0 + r.factor) * (1.0 + r.exponential) - 1.0;
    let exps: Vec<_> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    // each exponential, and the sum of all
    let relative = if one < 1.0 { 2.0 * one / (1.0 - one) } else { f64::INFINITY };
    (exps.iter().map(|e| e / sum).collect(), relative + (keys.len() + 8) as f64 * U)
}

/// Both ways, by the formulas at the head of the backward's module.
fn exact(s: Sizes, r: Roundings, given: &Given) -> Exact {
    let (c, d) = (s.channels(), s.per_head);
    let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
    let (q, kv, dy) = (wide(&given.q), wide(&given.kv), wide(&given.dy));
    let mut e = Exact {
        y: vec![Near::default(); q.len()],
        dq: vec![Near::default(); q.len()],
        dkv: vec![Near::default(); kv.len()],
    };
    let add = |into: &mut Near, value: f64, bound: f64| {
        into.value += value;
        into.bound += bound;
    };
    let scale = 1.0 / (d as f64).sqrt();
    let factor = r.product(d);
    for row in 0..s.batch * s.queries * s.heads {
        let (b, i, head) = (row / s.heads / s.queries, row / s.heads % s.queries, row % s.heads);
        let at = (b * s.queries + i) * c + head * d;
        let key_at = |j: usize| (b * s.keys + j) * 2 * c + head * d;
        let (q, dy) = (&q[at..at + d], &dy[at..at + d]);
        let seen = if s.causal { i + 1 } else { s.keys };
        let keys: Vec<_> = (0..seen).map(|j| &kv[key_at(j)..][..d]).collect();
        let values: Vec<_> = (0..seen).map(|j| &kv[key_at(j) + c..][..d]).collect();
        let (p, off) = probabilities(s, r, q, &keys);
        for (p, v) in p.iter().zip(&values) {
            for (y, v) in e.y[at..].iter_mut().zip(*v) {
                add(y, p * v, (p * v).abs() * ((1.0 + off) * (1.0 + r.product(seen)) - 1.0));
            }
        }
        let y = &e.y[at..at + d];
        let dot: f64 = dy.iter().zip(y).map(|(dy, y)| dy * y.value).sum();
        let dot_off: f64 =
            dy.iter().zip(y).map(|(dy, y)| dy.abs() * ((y.value.abs() + y.bound) * factor + y.bound)).sum();
        for (j, (p, v)) in p.iter().zip(&values).enumerate() {
            let dp: f64 = dy.iter().zip(*v).map(|(dy, v)| dy * v).sum();
            let dp_off: f64 = dy.iter().zip(*v).map(|(dy, v)| (dy * v).abs()).sum::<f64>() * factor;
            let ds = p * (dp - dot);
            let apart = dp_off + dot_off + U * (dp.abs() + dot.abs());
            let ds_off = p * ((dp - dot).abs() * off + (1.0 + off) * apart);
            let whole = factor + r.product(s.keys + s.queries);
            for x in 0..d {
                let by = |other: f64| {
                    (ds * other * scale, ((ds.abs() * whole + ds_off * (1.0 + whole)) * other * scale).abs())
                };
                let (value, bound) = by(keys[j][x]);
                add(&mut e.dq[at + x], value, bound);
                let (value, bound) = by(q[x]);
                add(&mut e.dkv[key_at(j) + x], value, bound);
                let size = (p * dy[x]).abs();
                add(&mut e.dkv[key_at(j) + c + x], p * dy[x], size * ((1.0 + off) * (1.0 + whole) - 1.0));
            }
        }
    }
    e
}

/// `count` numbers in [-size, size), the same for the same seed.
fn numbers(seed: u64, count: usize, size: f32) -> Vec<f32> {
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
    (0..count).map(|_| size * next()).collect()
}

fn given(s: Sizes) -> Given {
    let (queries, keys) = (s.batch * s.queries * s.channels(), s.batch * s.keys * 2 * s.channels());
    Given { q: numbers(3, queries, 1.5), kv: numbers(4, keys, 1.0), dy: numbers(5, queries, 1.0) }
}

/// `y`, `dq` and `dkv`.
fn computed(s: Sizes, precision: Precision, isa: Isa, given: &Given) -> [Vec<f32>; 3] {
    let tensor = |x: &[f32], shape: (usize, usize, usize)| Tensor::from_slice(x, shape, &Device::Cpu).unwrap();
    let (shape, kv_shape) = ((s.batch, s.queries, s.channels()), (s.batch, s.keys, 2 * s.channels()));
    let op = Attention { heads: s.heads, causal: s.causal, precision, isa };
    let (q, kv, dy) = (tensor(&given.q, shape), tensor(&given.kv, kv_shape), tensor(&given.dy, shape));
    let y = q.apply_op2_no_bwd(&kv, &op).unwrap();
    let (dq, dkv) = op.bwd(&q, &kv, &y, &dy).unwrap();
    assert_eq!((y.dims3().unwrap(), dq.as_ref().unwrap().dims3().unwrap()), (shape, shape));
    assert_eq!(dkv.as_ref().unwrap().dims3().unwrap(), kv_shape);
    [y, dq.unwrap(), dkv.unwrap()].map(|x| x.flatten_all().unwrap().to_vec1().unwrap())
}

/// The largest share of its bound that a value is off by.
fn assert_near(what: &str, got: &[f32], want: &[Near]) -> f64 {
    assert_eq!(got.len(), want.len(), "{what}");
    let mut share = 0.0f64;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        // what is nothing but a difference of equals may leave roundings of numbers around 1
        let (diff, bound) = ((*got as f64 - want.value).abs(), want.bound + U * U);
        assert!(diff <= bound, "{what}: value {i} is {got}, not {} within {bound:e}", want.value);
        share = share.max(diff / bound);
    }
    share
}

fn isas() -> Vec<Isa> {
    isa::found().into_iter().filter_map(|(_, isa)| isa).collect()
}

fn assert_all(s: Sizes) {
    let given = given(s);
    for precision in [Precision::F32, Precision::Bf16] {
        let exact = exact(s, Roundings::of(precision), &given);
        for isa in isas() {
            let what = format!("{s:?}, {precision:?}, {isa}");
            let [y, dq, dkv] = computed(s, precision, isa, &given);
            let shares = [("y", &y, &exact.y), ("dq", &dq, &exact.dq), ("dkv", &dkv, &exact.dkv)]
                .map(|(name, got, want)| assert_near(&format!("{what}: {name}"), got, want));
            println!("{what}: {shares:.3?} of the bounds");
        }
    }
}

/// Around the tiles of 8, 6 and 4 keys and channels, blocks of 48, 16, 12 and 8 queries and of at most 128 and 64 keys, and
/// registers of 16, 8 and 4 channels: (queries, keys, channels of a head).
const SIZES: [(usize, usize, usize); 22] = [
    (1, 1, 1),
    (1, 33, 8),
    (2, 1, 40),
    (3, 2, 3),
    (7, 9, 16),
    (9, 15, 13),
    (12, 3, 5),
    (13, 16, 24),
    (17, 33, 32),
    (47, 63, 40),
    (48, 64, 40),
    (49, 65, 40),
    (48, 77, 48),
    (50, 77, 40),
    (49, 127, 80),
    (95, 128, 8),
    (96, 129, 49),
    (97, 130, 64),
    (51, 77, 160),
    (30, 257, 96),
    (65, 31, 97),
    (20, 19, 161),
];

#[test]
fn attention_to_other_rows() {
    for (queries, keys, per_head) in SIZES {
        assert_all(Sizes { batch: 1, queries, keys, heads: 1, per_head, causal: false });
    }
    assert_all(Sizes { batch: 2, queries: 49, keys: 33, heads: 3, per_head: 8, causal: false });
}

#[test]
fn attention_to_rows_up_to_ones_own() {
    for (n, per_head) in [(1, 8), (2, 40), (33, 8), (48, 64), (49, 3), (77, 64), (129, 40), (193, 8)] {
        assert_all(Sizes { batch: 1, queries: n, keys: n, heads: 1, per_head, causal: true });
    }
    assert_all(Sizes { batch: 3, queries: 50, keys: 50, heads: 2, per_head: 8, causal: true });
}

/// The number of threads decides how the work is cut up, and may decide nothing else.
#[test]
fn threads_change_no_bit() {
    for causal in [false, true] {
        let s = Sizes { batch: 1, queries: 400, keys: 400, heads: 2, per_head: 8, causal };
        let given = given(s);
        for precision in [Precision::F32, Precision::Bf16] {
            for isa in isas() {
                let on = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| computed(s, precision, isa, &given))
                        .map(|x| x.into_iter().map(f32::to_bits).collect())
                };
                let one: [Vec<u32>; 3] = on(1);
                for threads in [2, 3, 16] {
                    assert!(on(threads) == one, "{s:?}, {precision:?}, {isa}: {threads} threads");
                }
            }
        }
    }
}

/// One key far above all others is all that is seen, and takes all of the gradient.
#[test]
fn a_lone_peak() {
    let s = Sizes { batch: 1, queries: 53, keys: 70, heads: 1, per_head: 8, causal: false };
    let peak = |i: usize| i * 7 % s.keys;
    for size in [30.0, 300.0] {
        let mut given = given(s);
        // directions on a sphere, so that a query's score is largest with the key that is its like
        let mut directions = numbers(8, s.keys * 8, 1.0);
        for row in directions.chunks_mut(8) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut().for_each(|x| *x *= size / length);
        }
        for j in 0..s.keys {
            given.kv[j * 16..][..8].copy_from_slice(&directions[j * 8..][..8]);
        }
        for i in 0..s.queries {
            given.q[i * 8..][..8].copy_from_slice(&directions[peak(i) * 8..][..8]);
        }
        let gap = (0..s.queries).map(|i| {
            let score = |j: usize| {
                let (q, k) = (&given.q[i * 8..][..8], &given.kv[j * 16..][..8]);
                q.iter().zip(k).map(|(q, k)| (q * k) as f64).sum::<f64>() / 8f64.sqrt()
            };
            (0..s.keys).filter(|&j| j != peak(i)).map(|j| score(peak(i)) - score(j)).fold(f64::INFINITY, f64::min)
        });
        // a score of bf16 numbers is off by at most 1/128 of the product of lengths
        let off = 2.0 * (size as f64).powi(2) / 8f64.sqrt() / 127.0;
        for (precision, factor) in [(Precision::F32, U), (Precision::Bf16, 1.0 / 256.0)] {
            let others = s.keys as f64 * (-(gap.clone().fold(f64::INFINITY, f64::min) - off)).exp();
            assert!(others < 1e-3, "the peak stands out: {others:e}");
            for isa in isas() {
                let [y, dq, dkv] = computed(s, precision, isa, &given);
                for (i, y) in y.chunks(8).enumerate() {
                    for (y, v) in y.iter().zip(&given.kv[peak(i) * 16 + 8..]) {
                        let bound = factor * v.abs() as f64 + 2.0 * others + 8.0 * U;
                        assert!((y - v).abs() as f64 <= bound, "query {i}, {precision:?}, {isa}: {y}, not {v}");
                    }
                }
                // dS is at most `others` of differences below 2 * 8, but for what roundings leave of the peak's
                let bound = s.queries as f64 * 32.0 * (others + 4.0 * factor) * size as f64;
                assert!(dq.iter().all(|x| (x.abs() as f64) <= bound), "{precision:?}, {isa}");
                let mut dv = vec![0.0f64; s.keys * 8];
                for i in 0..s.queries {
                    (0..8).for_each(|x| dv[peak(i) * 8 + x] += given.dy[i * 8 + x] as f64);
                }
                for (j, row) in dkv.chunks(16).enumerate() {
                    assert!(row[..8].iter().all(|x| (x.abs() as f64) <= bound), "{precision:?}, {isa}");
                    for (got, want) in row[8..].iter().zip(&dv[j * 8..]) {
                        let bound = s.queries as f64 * (2.0 * factor + 2.0 * others + 64.0 * U);
                        assert!(
                            (*got as f64 - want).abs() <= bound,
                            "key {j}, {precision:?}, {isa}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
}

/// Keys that are all alike are all seen alike.
#[test]
fn equal_scores() {
    let s = Sizes { batch: 1, queries: 50, keys: 77, heads: 1, per_head: 40, causal: false };
    let mut given = given(s);
    for key in given.kv.chunks_mut(80) {
        key[..40].fill(0.7);
    }
    for (precision, factor) in [(Precision::F32, U), (Precision::Bf16, 1.0 / 256.0)] {
        for isa in isas() {
            let [y, ..] = computed(s, precision, isa, &given);
            for (x, got) in y.iter().enumerate() {
                let values = given.kv[40 + x % 40..].iter().step_by(80);
                let (mean, size) =
                    values.fold((0.0, 0.0), |(m, s), &v| (m + v as f64 / 77.0, s + v.abs() as f64 / 77.0));
                let bound = (factor + 90.0 * U) * size;
                assert!(
                    (*got as f64 - mean).abs() <= bound,
                    "{precision:?}, {isa}: {got}, not {mean} within {bound:e}"
                );
            }
        }
    }
}

/// Scores of 1e4 and more: results stay between the values, and nothing is NaN.
#[test]
fn huge_scores() {
    for causal in [false, true] {
        let s = Sizes { batch: 1, queries: 100, keys: 100, heads: 2, per_head: 40, causal };
        let mut given = given(s);
        given.q.iter_mut().for_each(|x| *x *= 300.0);
        given.kv.chunks_mut(160).for_each(|row| row[..80].iter_mut().for_each(|x| *x *= 300.0));
        for precision in [Precision::F32, Precision::Bf16] {
            for isa in isas() {
                let [y, dq, dkv] = computed(s, precision, isa, &given);
                let within = 1.0 + 1.0 / 256.0 + 110.0 * U as f32;
                assert!(y.iter().all(|y| y.abs() <= within), "{precision:?}, {isa}");
                assert!(dq.iter().chain(&dkv).all(|x| x.is_finite()), "{precision:?}, {isa}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "value 0 is NaN")]
fn the_comparison_catches_nan() {
    assert_near("NaN", &[f32::NAN], &[Near { value: 0.0, bound: 1.0 }]);
}

#[test]
#[should_panic(expected = "value 1 is 1.5")]
fn the_comparison_catches_a_difference() {
    assert_near("off", &[1.0, 1.5], &[Near { value: 1.0, bound: 0.1 }; 2]);
}
