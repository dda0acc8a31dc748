//! Linear layers and 3x3 convolutions in f32 and bf16 against their definition in f64, on every instruction set that this
//! CPU has, for every way a weight is stored, at sizes around every tile's, panel's and part's edge.

use candle_core::{CustomOp1, Device, Tensor, Var};
use half::{bf16, f16};
use pleinair_cpu::int8::pack;
use pleinair_cpu::isa::Isa;
use pleinair_cpu::{Conv3x3, Int8, Linear, Packing, Values, Weight};
use std::sync::Arc;

mod isas;

/// Unit roundoff of f32 and of bf16.
const U: f64 = 1.0 / (1 << 24) as f64;
const U_BF16: f64 = 1.0 / (1 << 8) as f64;

/// Pseudorandom numbers in [-1, 1).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// Every instruction set of this machine; prints once for each test which run and which cannot.
fn isas() -> Vec<Isa> {
    isas::isas(std::thread::current().name().expect("tests run in threads named after them"))
}

const STORED: &[&str] =
    &["f32", "f16", "bf16", "int8 in rows", "smoothed int8 in rows", "int8 in panels", "smoothed int8 in panels"];

/// A weight `[outputs, inputs]`; `channels` inputs share their smoothing with others of the same remainder.
fn stored(kind: &str, rows: &[f32], outputs: usize, channels: usize) -> Weight {
    let inputs = rows.len() / outputs;
    let values = match kind {
        "f32" => Values::F32(rows.to_vec().into()),
        "f16" => Values::F16(rows.iter().map(|&w| f16::from_f32(w)).collect::<Vec<_>>().into()),
        "bf16" => Values::Bf16(rows.iter().map(|&w| bf16::from_f32(w)).collect::<Vec<_>>().into()),
        _ => {
            let values: Vec<i8> = rows.iter().map(|w| (w * 127.0).round() as i8).collect();
            let packing = if kind.ends_with("rows") { Packing::Rows } else { Packing::Panels };
            let values = match packing {
                Packing::Rows => values,
                Packing::Panels => pack::pack(&values, outputs, inputs),
            };
            let scales: Vec<f32> = (0..outputs).map(|o| (o % 7 + 1) as f32 / 127.0).collect();
            let smooth: Vec<f32> = (0..channels).map(|i| 0.6 + (i % 5) as f32 / 3.0).collect();
            let smooth = kind.starts_with("smoothed").then(|| smooth.into());
            Values::Int8(Int8 { values: values.into(), packing, scales: scales.into(), smooth })
        }
    };
    Weight::new(outputs, inputs, values).unwrap()
}

/// The weight in f64 from what is stored.
fn exact(weight: &Weight) -> Vec<f64> {
    let (outputs, inputs) = (weight.outputs(), weight.inputs());
    match weight.values() {
        Values::F32(w) => w.iter().map(|&w| w as f64).collect(),
        Values::F16(w) => w.iter().map(|w| w.to_f64()).collect(),
        Values::Bf16(w) => w.iter().map(|w| w.to_f64()).collect(),
        Values::Int8(Int8 { values, packing, scales, smooth }) => {
            let rows = match packing {
                Packing::Rows => values.to_vec(),
                Packing::Panels => pack::unpack(values, outputs, inputs),
            };
            let smooth = |i: usize| smooth.as_ref().map_or(1.0, |s| s[i % s.len()] as f64);
            let value = |i: usize| rows[i] as f64 * scales[i / inputs] as f64 / smooth(i % inputs);
            (0..rows.len()).map(value).collect()
        }
    }
}

/// Roundings besides those of the sum: scale, reciprocal, its product, bias, and the parts' sums.
const OTHERS: f64 = 8.0;

/// Which of the weights are multiplied in bf16, forward and backward.
fn narrow(kind: &str, isa: Isa) -> (bool, bool) {
    let has = matches!(isa.name(), "amx" | "avx512bf16");
    (has && kind == "bf16", has && (kind == "bf16" || kind.ends_with("panels")))
}

/// A layer: from a row of the result to the inputs that it sums, each with its place in the weight's row.
struct Layer<'a> {
    /// `[M]` of `(input, k)`: what is outside is left out.
    rows: Vec<Vec<(usize, usize)>>,
    op: Box<dyn Fn(&Tensor) -> Tensor + Sync + 'a>,
    x: Tensor,
    channels: usize,
}

fn linear<'a>(m: usize, weight: &Arc<Weight>, bias: Option<&Tensor>, x: &[f32]) -> Layer<'a> {
    let k = weight.inputs();
    let op = Linear { weight: weight.clone(), bias: bias.cloned() };
    Layer {
        rows: (0..m).map(|row| (0..k).map(|i| (row, i)).collect()).collect(),
        op: Box::new(move |x| x.apply_op1(op.clone()).unwrap()),
        x: Tensor::from_slice(x, (m, k), &Device::Cpu).unwrap(),
        channels: k,
    }
}

#[derive(Debug, Clone, Copy)]
struct Picture {
    batch: usize,
    height: usize,
    width: usize,
    stride: usize,
    repeat: usize,
}

fn conv<'a>(p: Picture, weight: &Arc<Weight>, bias: &Tensor, x: &[f32]) -> Layer<'a> {
    let Picture { batch, height, width, stride, repeat } = p;
    let channels = weight.inputs() / 9;
    let mut rows = vec![];
    for b in 0..batch {
        for top in (0..height * repeat).step_by(stride) {
            for left in (0..width * repeat).step_by(stride) {
                let mut row = vec![];
                for (tap, (dy, dx)) in (0..9).map(|tap| (tap, (tap / 3, tap % 3))) {
                    let (y, x) = (top + dy, left + dx);
                    if (1..=height * repeat).contains(&y) && (1..=width * repeat).contains(&x) {
                        let pixel = (b * height + (y - 1) / repeat) * width + (x - 1) / repeat;
                        row.extend((0..channels).map(|c| (pixel, tap * channels + c)));
                    }
                }
                rows.push(row);
            }
        }
    }
    let op = Conv3x3 { weight: weight.clone(), bias: bias.clone(), height, width, repeat, stride };
    Layer {
        rows,
        op: Box::new(move |x| x.apply_op1(op.clone()).unwrap()),
        x: Tensor::from_slice(x, (batch, height * width, channels), &Device::Cpu).unwrap(),
        channels,
    }
}

/// A sum, the sum of its terms' magnitudes, and how many they are.
#[derive(Clone, Copy, Default)]
struct Exact {
    value: f64,
    size: f64,
    terms: f64,
}

impl Exact {
    fn add(&mut self, term: f64) {
        self.value += term;
        self.size += term.abs();
        self.terms += 1.0;
    }

    /// A sum of n products in any order is off by at most (n + 1) roundings of the sum of their magnitudes (Higham,
    /// Accuracy and Stability of Numerical Algorithms, 3.1).
    fn check(&self, got: f32, more: f64, what: &str) {
        let bound = (self.terms + OTHERS) * U * self.size + more * self.size + 1e-36;
        let diff = (got as f64 - self.value).abs();
        assert!(diff <= bound, "{what}: {got}, not {} within {bound:e}", self.value);
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn rounded(x: f64) -> f64 {
    bf16::from_f32(x as f32).to_f64()
}

/// Forward of a layer, of its inputs as they are and, where they are rounded to bf16, of the rounded ones.
fn check_forward(layer: &Layer<'_>, weight: &[f64], bias: Option<&[f32]>, narrow: bool, what: &str) {
    let outputs = weight.len() / (layer.rows.iter().flatten().map(|&(_, k)| k).max().unwrap() + 1);
    let (x, y) = (flat(&layer.x), flat(&(layer.op)(&layer.x)));
    let inputs = weight.len() / outputs;
    assert_eq!(y.len(), layer.rows.len() * outputs, "{what}");
    for (row, from) in layer.rows.iter().enumerate() {
        for o in 0..outputs {
            let [mut plain, mut of_rounded] = [Exact::default(); 2];
            if let Some(bias) = bias {
                plain.add(bias[o] as f64);
                of_rounded.add(bias[o] as f64);
            }
            for &(pixel, k) in from {
                let (x, w) = (x[pixel * layer.channels + k % layer.channels] as f64, weight[o * inputs + k]);
                plain.add(x * w);
                of_rounded.add(rounded(x) * w);
            }
            let got = y[row * outputs + o];
            if narrow {
                of_rounded.check(got, 0.0, &format!("{what}, rounded, row {row}, output {o}"));
            }
            plain.check(got, if narrow { U_BF16 } else { 0.0 }, &format!("{what}, row {row}, output {o}"));
        }
    }
}

/// The gradient of `sum(r * y)`. `scales` are multiplied into the gradient before it is rounded.
fn check_backward(layer: &Layer<'_>, weight: &[f64], scales: Option<&[f32]>, narrow: bool, what: &str) {
    let x = Var::from_tensor(&layer.x).unwrap();
    let y = (layer.op)(x.as_tensor());
    let outputs = y.dims()[y.rank() - 1];
    let inputs = weight.len() / outputs;
    let r = Numbers(99).take(y.elem_count());
    let loss = (y * Tensor::from_slice(&r, layer_shape(layer, outputs), &Device::Cpu).unwrap()).unwrap();
    let grads = loss.sum_all().unwrap().backward().unwrap();
    let dx = flat(grads.get(&x).expect("a gradient"));
    let mut plain = vec![Exact::default(); dx.len()];
    let mut of_rounded = plain.clone();
    for (row, from) in layer.rows.iter().enumerate() {
        for o in 0..outputs {
            let r = r[row * outputs + o];
            let scale = scales.map_or(1.0, |s| s[o]);
            let narrowed = rounded((r * scale) as f64) / scale as f64;
            for &(pixel, k) in from {
                let (into, w) = (pixel * layer.channels + k % layer.channels, weight[o * inputs + k]);
                plain[into].add(r as f64 * w);
                of_rounded[into].add(narrowed * w);
            }
        }
    }
    for (i, &got) in dx.iter().enumerate() {
        if narrow {
            of_rounded[i].check(got, 0.0, &format!("{what}, rounded, gradient {i}"));
        }
        plain[i].check(got, if narrow { U_BF16 } else { 0.0 }, &format!("{what}, gradient {i}"));
    }
}

fn layer_shape(layer: &Layer<'_>, outputs: usize) -> Vec<usize> {
    let batch = layer.x.dims()[0];
    match layer.x.rank() {
        2 => vec![batch, outputs],
        _ => vec![batch, layer.rows.len() / batch, outputs],
    }
}

fn scales(weight: &Weight) -> Option<Vec<f32>> {
    match weight.values() {
        Values::Int8(int8) => Some(int8.scales.to_vec()),
        _ => None,
    }
}

/// Forward and backward of one weight on every instruction set. Int8 panels forward are tested with the int8 kernels.
fn check(
    what: &str,
    kind: &str,
    weight: Weight,
    bias: &[f32],
    layer: impl Fn(&Arc<Weight>, &Tensor) -> Layer<'static>,
) {
    let (exact, scales) = (exact(&weight), scales(&weight));
    let bias_tensor = Tensor::from_slice(bias, bias.len(), &Device::Cpu).unwrap();
    for isa in isas() {
        let what = format!("{what} as {kind} on {isa}");
        let (forward, backward) = narrow(kind, isa);
        let with_kernels = Arc::new(weight.clone().with_kernels(isa));
        let layer = layer(&with_kernels, &bias_tensor);
        if !kind.ends_with("panels") {
            check_forward(&layer, &exact, Some(bias), forward, &what);
        }
        check_backward(&layer, &exact, scales.as_deref(), backward, &what);
    }
    // without kernels even int8 and bf16 are multiplied in f32
    let layer = layer(&Arc::new(weight), &bias_tensor);
    check_forward(&layer, &exact, Some(bias), false, what);
    check_backward(&layer, &exact, scales.as_deref(), false, what);
}

#[test]
fn linear_layers() {
    // rows around tiles of 4, 6 and 14, outputs around panels and pairs of them, inputs around groups, words that are turned
    // at once (16 or 32) and parts (384 in f32, 768 in bf16)
    let sizes = [
        (1, 1, 1),
        (2, 3, 5),
        (3, 15, 16),
        (4, 16, 17),
        (5, 17, 15),
        (6, 31, 32),
        (7, 32, 33),
        (13, 33, 31),
        (14, 64, 64),
        (15, 63, 65),
        (27, 65, 47),
        (29, 20, 48),
        (9, 383, 20),
        (9, 384, 20),
        (9, 385, 33),
        (3, 769, 40),
        (3, 40, 769),
        (17, 20, 385),
    ];
    for (m, k, n) in sizes {
        let mut numbers = Numbers((m * 1000 + k) as u64);
        let (x, w, bias) = (numbers.take(m * k), numbers.take(n * k), numbers.take(n));
        for &kind in STORED {
            let what = format!("linear {m} x {k} -> {n}");
            check(&what, kind, stored(kind, &w, n, k), &bias, |weight, bias| linear(m, weight, Some(bias), &x));
        }
    }
}

#[test]
fn convolutions() {
    let picture = |height, width| Picture { batch: 1, height, width, stride: 1, repeat: 1 };
    let sizes = [
        (picture(1, 1), 1, 1),
        (picture(2, 3), 3, 5),
        (picture(4, 4), 4, 17),
        (picture(3, 5), 16, 16),
        (Picture { batch: 2, ..picture(3, 2) }, 20, 33),
        (picture(2, 2), 48, 32),
        (picture(2, 2), 90, 16),
        (Picture { stride: 2, ..picture(5, 4) }, 7, 19),
        (Picture { stride: 2, batch: 2, ..picture(4, 6) }, 16, 32),
        (Picture { repeat: 2, ..picture(3, 2) }, 9, 18),
        (Picture { repeat: 2, batch: 2, ..picture(2, 2) }, 16, 16),
        (Picture { repeat: 3, stride: 2, ..picture(2, 3) }, 5, 6),
    ];
    for (p, cin, cout) in sizes {
        let mut numbers = Numbers((p.height * 1000 + cin) as u64);
        let x = numbers.take(p.batch * p.height * p.width * cin);
        let (w, bias) = (numbers.take(cout * 9 * cin), numbers.take(cout));
        for &kind in STORED {
            let what = format!("{p:?} {cin} -> {cout}");
            check(&what, kind, stored(kind, &w, cout, cin), &bias, |weight, bias| conv(p, weight, bias, &x));
        }
    }
}

/// Blocks of several threads, and more rows than one block has.
#[test]
fn products_of_several_blocks() {
    let mut numbers = Numbers(5);
    for (m, k, n) in [(900, 40, 35), (70, 33, 700), (400, 50, 160)] {
        let (x, w, bias) = (numbers.take(m * k), numbers.take(n * k), numbers.take(n));
        for kind in ["f32", "bf16", "smoothed int8 in panels"] {
            let what = format!("linear {m} x {k} -> {n}");
            check(&what, kind, stored(kind, &w, n, k), &bias, |weight, bias| linear(m, weight, Some(bias), &x));
        }
    }
}

#[test]
fn one_thread_and_many_give_the_same() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut numbers = Numbers(7);
    let (m, k, n) = (517, 801, 336);
    let (x, w) = (numbers.take(m * k), numbers.take(n * k));
    for isa in isas() {
        for &kind in STORED {
            let weight = Arc::new(stored(kind, &w, n, k).with_kernels(isa));
            let run = || {
                let x = Tensor::from_slice(&x, (m, k), &Device::Cpu).unwrap();
                let op = Linear { weight: weight.clone(), bias: None };
                let y = x.apply_op1_no_bwd(&op).unwrap();
                let dx = op.bwd(&x, &y, &y).unwrap().unwrap();
                [flat(&y), flat(&dx)].map(|y| y.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let alone = pool(1).install(run);
            for threads in [2, 5] {
                assert!(pool(threads).install(run) == alone, "{kind} on {isa} with {threads} threads");
            }
        }
    }
}

/// What is not a number stays in its row, forward and backward, also where a tile is padded.
#[test]
fn nan_stays_in_its_row() {
    let mut numbers = Numbers(9);
    let (m, k, n) = (15, 33, 17);
    let (mut x, w) = (numbers.take(m * k), numbers.take(n * k));
    x[k * (m - 1) + 5] = f32::NAN;
    for isa in isas() {
        for kind in ["f32", "f16", "bf16"] {
            let weight = Arc::new(stored(kind, &w, n, k).with_kernels(isa));
            let op = Linear { weight, bias: None };
            let x = Tensor::from_slice(&x, (m, k), &Device::Cpu).unwrap();
            let y = x.apply_op1_no_bwd(&op).unwrap();
            let dx = flat(&op.bwd(&x, &y, &y).unwrap().unwrap());
            for (i, (y, width)) in flat(&y).iter().map(|&y| (y, n)).chain(dx.iter().map(|&x| (x, k))).enumerate() {
                let i = if i < m * n { i } else { i - m * n };
                assert_eq!(y.is_nan(), i / width == m - 1, "{kind} on {isa}: value {i} of rows of {width} is {y}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "not 1 within")]
fn the_comparison_can_fail() {
    Exact { value: 1.0, size: 1.0, terms: 1.0 }.check(1.000_001, 0.0, "one");
}

#[test]
#[should_panic(expected = "not 1 within")]
fn the_comparison_catches_nan() {
    Exact { value: 1.0, size: 1.0, terms: 1.0 }.check(f32::NAN, 1.0, "one");
}

#[test]
fn smoothing_for_other_channels_is_refused() {
    let weight = |channels| Arc::new(stored("smoothed int8 in rows", &[0.5; 2 * 18], 2, channels));
    let x = Tensor::zeros((1, 18), candle_core::DType::F32, &Device::Cpu).unwrap();
    let apply = |channels| x.apply_op1(Linear { weight: weight(channels), bias: None });
    assert!(apply(18).is_ok());
    assert!(apply(2).unwrap_err().to_string().contains("smoothed"));
    let bias = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
    let conv =
        |channels| Conv3x3 { weight: weight(channels), bias: bias.clone(), height: 3, width: 3, repeat: 1, stride: 1 };
    let x = x.reshape((1, 9, 2)).unwrap();
    assert!(x.apply_op1(conv(2)).is_ok());
    assert!(x.apply_op1(conv(18)).unwrap_err().to_string().contains("smoothed"));
}
