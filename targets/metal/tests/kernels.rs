//! Every op's plan and every kernel of ours, run on the CPU, against the CPU's ops: forward and backward, with activations
//! of both types, at sizes around the edges of SIMD groups, threadgroups and parts, with temporaries of many sizes.

mod beside;
mod emulated;

use beside::{flat, near, norm_terms, numbers, oracle, tensor, unit};
use candle_core::Var;
use emulated::{Bytes, Emulated};
use half::f16;
use pleinair_metal::kernels;
use pleinair_metal::machine::{Kind, Machine, Place};
use pleinair_metal::plan::attention::{self, Rows, Shape};
use pleinair_metal::plan::conv::{self, Geometry};
use pleinair_metal::plan::norm::{self, Affine, GroupShape};
use pleinair_metal::plan::{Bench, Limits, Stored, Weight, linear, pointwise};
use std::collections::BTreeSet;
use std::sync::Arc;

const KINDS: [Kind; 2] = [Kind::F32, Kind::F16];

/// Which test runs which kernels with both types; a kernel that is missing here fails `every_kernel_has_a_test`.
const COVERED: &[(&str, &[&str])] = &[
    ("linear", &["add_bias", "float_tile", "half_tile", "int8_tile"]),
    ("conv", &["pack_taps", "gather_taps"]),
    (
        "group_norm",
        &["group_parts", "group_moments", "group_norm", "slope_parts", "slope_means", "group_norm_backward"],
    ),
    ("layer_norm", &["layer_norm", "layer_norm_backward"]),
    ("geglu", &["geglu", "geglu_backward"]),
    ("attention", &["softmax_rows", "head_dots", "score_slopes", "add"]),
    ("attention in f16", &["pad_heads", "unpad_heads", "widen_rows", "narrow"]),
    ("add", &["add"]),
];

fn assert_ran(test: &str, machine: &Emulated) {
    let (_, kernels) = COVERED.iter().find(|(name, _)| *name == test).expect("the test stands in the list");
    for kernel in *kernels {
        assert!(machine.ran.borrow().contains(kernel), "{test} never ran {kernel}");
    }
}

#[test]
fn every_kernel_has_a_test() {
    let names: BTreeSet<_> = kernels::names().into_iter().collect();
    let covered: BTreeSet<_> = COVERED.iter().flat_map(|(_, kernels)| kernels.iter().copied()).collect();
    assert_eq!(names, covered);
    // however it is written
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let sources = std::fs::read_dir(folder).unwrap().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let code: String = sources
        .flat_map(|s| s.lines().map(|l| l.split("//").next().unwrap().to_owned() + "\n").collect::<Vec<_>>())
        .collect();
    let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| *word == "kernel").count();
    assert_eq!(words, names.len());
}

/// What C++ ignores: each argument of a kernel has its number or is the place in the grid.
#[test]
fn arguments_are_numbered_in_their_order() {
    let source = kernels::source(Kind::F32);
    for kernel in source.split("kernel void ").skip(1) {
        let (head, _) = kernel.split_once(") {").unwrap();
        let (name, arguments) = head.split_once('(').unwrap();
        let arguments: Vec<_> = arguments.split(',').map(str::trim).collect();
        let (place, buffers) = arguments.split_last().unwrap();
        assert_eq!(*place, "uint i [[thread_position_in_grid]]", "{name}");
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.ends_with(&format!("[[buffer({i})]]")), "{name}: {buffer}");
            assert_eq!(buffer.starts_with("constant "), i + 1 == buffers.len(), "{name}: {buffer}");
            assert!(buffer.starts_with("device ") || i + 1 == buffers.len(), "{name}: {buffer}");
        }
    }
}

#[test]
#[should_panic(expected = "number 1 is NaN")]
fn the_comparison_catches_nan() {
    near("", Kind::F16, 1e9, 0.0, &[1.0, f32::NAN], &[1.0, 1.0]);
}

#[test]
#[should_panic(expected = "number 0 is 1.002")]
fn the_comparison_catches_a_difference() {
    near("", Kind::F16, 2.0, 0.0, &[1.002], &[1.0]);
}

fn bench(machine: &Emulated, kind: Kind, limits: Limits) -> Bench<'_, Emulated> {
    Bench { limits, ..Bench::new(machine, kind) }
}

fn limits() -> [Limits; 3] {
    [Limits::default(), Limits { temporary: 3000, tile: 700 }, Limits { temporary: 1, tile: 1 }]
}

/// A result from a device.
fn result(kind: Kind, count: usize, compute: impl FnOnce(Place<'_, Bytes>) -> candle_core::Result<()>) -> Vec<f32> {
    let y = Bytes::new(count * kind.bytes());
    compute(y.place()).unwrap();
    y.read(kind, count)
}

/// One weight, stored in every way, for both.
struct Layer {
    name: &'static str,
    cpu: Arc<pleinair_cpu::Weight>,
    memory: [Bytes; 3],
    smooth: usize,
    outputs: usize,
    inputs: usize,
}

impl Layer {
    fn all(outputs: usize, inputs: usize, channels: usize) -> Vec<Layer> {
        let values = numbers(7, outputs * inputs);
        let int8: Vec<i8> = values.iter().map(|w| (w * 127.0).round() as i8).collect();
        let scales: Vec<f32> = (0..outputs).map(|o| (o % 7 + 1) as f32 / 256.0).collect();
        let smooth: Vec<f32> = (0..channels).map(|i| 0.6 + (i % 5) as f32 / 3.0).collect();
        let halves: Vec<f16> = values.iter().map(|&w| f16::from_f32(w)).collect();
        let none = || Bytes::new(0);
        let layer = |name, stored, memory, smooth| {
            let cpu = Arc::new(pleinair_cpu::Weight::new(outputs, inputs, stored).unwrap());
            Layer { name, cpu, memory, smooth, outputs, inputs }
        };
        let rows = |smooth: Option<Vec<f32>>| {
            pleinair_cpu::Values::Int8(pleinair_cpu::Int8 {
                values: int8.clone().into(),
                packing: pleinair_cpu::Packing::Rows,
                scales: scales.clone().into(),
                smooth: smooth.map(Into::into),
            })
        };
        let on_device = |smooth: &[f32]| [Bytes::with(&int8), Bytes::with(&scales), Bytes::with(smooth)];
        vec![
            layer("f32", pleinair_cpu::Values::F32(values.clone().into()), [Bytes::with(&values), none(), none()], 0),
            layer("f16", pleinair_cpu::Values::F16(halves.clone().into()), [Bytes::with(&halves), none(), none()], 0),
            layer("int8", rows(None), on_device(&[]), 0),
            layer("smoothed int8", rows(Some(smooth.clone())), on_device(&smooth), channels),
        ]
    }

    fn weight(&self) -> Weight<'_, Bytes> {
        let [values, scales, smooth] = &self.memory;
        let stored = match self.name {
            "f32" => Stored::F32(values.place()),
            "f16" => Stored::F16(values.place()),
            _ => Stored::Int8 {
                rows: values.place(),
                scales: scales.place(),
                smooth: (self.smooth > 0).then(|| (smooth.place(), self.smooth)),
            },
        };
        Weight { outputs: self.outputs, inputs: self.inputs, stored }
    }
}

#[test]
fn linear_layers() {
    for kind in KINDS {
        let machine = Emulated::default();
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 33, 7), (17, 40, 31), (5, 64, 65)] {
            let (x, dy, bias) = (numbers(1, rows * inputs), numbers(2, rows * outputs), numbers(3, outputs));
            for layer in Layer::all(outputs, inputs, inputs) {
                let op = pleinair_cpu::Linear { weight: layer.cpu.clone(), bias: Some(tensor(&bias, &[outputs])) };
                let (y, dx) = oracle(op, &tensor(&x, &[rows, inputs]), &dy);
                for limits in limits() {
                    let (bench, weight) = (bench(&machine, kind, limits), layer.weight());
                    let (x, dy, bias) = (Bytes::numbers(&x, kind), Bytes::numbers(&dy, kind), Bytes::with(&bias));
                    let got = result(kind, rows * outputs, |y| {
                        linear::forward(bench, &weight, Some(bias.place()), rows, x.place(), y)
                    });
                    // the weight's rounding, the sum's, its result's, the bias's
                    near(layer.name, kind, 4.0 + (inputs as f32).sqrt(), unit(kind), &got, &y);
                    let got = result(kind, rows * inputs, |dx| linear::backward(bench, &weight, rows, dy.place(), dx));
                    near(layer.name, kind, 4.0 + (outputs as f32).sqrt(), unit(kind), &got, &dx);
                }
            }
        }
        let products = machine.products.borrow()[0];
        assert!(products > 300, "{products} products");
        if kind == Kind::F16 {
            // f32 values are stored as they are multiplied in f32, so that each type converts what the other has
            assert!(machine.ran.borrow().contains("float_tile"));
        } else {
            assert!(machine.ran.borrow().contains("half_tile"));
        }
        // both conversions exist for both types all the same
        for (kernel, from) in [("float_tile", Kind::F32), ("half_tile", Kind::F16)] {
            let values = numbers(5, 12 * 9);
            let (stored, part) = (Bytes::numbers(&values, from), Bytes::new(6 * kind.bytes()));
            let parameters = [6, 3, 9, 4, 5, 0];
            let call = pleinair_metal::machine::Call {
                kernel,
                kind,
                reads: &[stored.place()],
                writes: &[part.place()],
                parameters: &parameters,
                threads: 6,
            };
            machine.run(call).unwrap();
            let want: Vec<f32> = (0..6).map(|i| values[(4 + i / 3) * 9 + 5 + i % 3]).collect();
            assert_eq!(part.read(kind, 6), want);
        }
        assert_ran("linear", &machine);
    }
}

#[test]
fn convolutions() {
    let sizes = [(1, 1, 1, 1, 1), (1, 3, 5, 2, 3), (2, 4, 3, 5, 4), (2, 5, 6, 33, 8), (3, 8, 8, 4, 9)];
    for kind in KINDS {
        let machine = Emulated::default();
        for (batch, height, width, inputs, outputs) in sizes {
            for (repeat, stride) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)] {
                let g = Geometry { batch, height, width, repeat, stride };
                let pixels = g.output().0 * g.output().1;
                let (x, bias) = (numbers(1, batch * height * width * inputs), numbers(3, outputs));
                let dy = numbers(2, batch * pixels * outputs);
                for layer in Layer::all(outputs, 9 * inputs, inputs) {
                    let (weight, bias) = (layer.cpu.clone(), tensor(&bias, &[outputs]));
                    let op = pleinair_cpu::Conv3x3 { weight, bias, height, width, repeat, stride };
                    let (y, dx) = oracle(op, &tensor(&x, &[batch, height * width, inputs]), &dy);
                    for limits in limits() {
                        conv_agrees(bench(&machine, kind, limits), &layer, g, (&x, &dy), (&y, &dx));
                    }
                }
            }
        }
        assert_ran("conv", &machine);
    }
}

fn conv_agrees(
    bench: Bench<'_, Emulated>,
    layer: &Layer,
    g: Geometry,
    (x, dy): (&[f32], &[f32]),
    (y, dx): (&[f32], &[f32]),
) {
    let (kind, weight) = (bench.kind, layer.weight());
    let (x, dy, bias) = (Bytes::numbers(x, kind), Bytes::numbers(dy, kind), Bytes::with(&numbers(3, layer.outputs)));
    let what = format!("{} {g:?}", layer.name);
    let got = result(kind, y.len(), |y| conv::forward(bench, &weight, bias.place(), g, x.place(), y));
    near(&what, kind, 4.0 + (layer.inputs as f32).sqrt(), unit(kind), &got, y);
    let got = result(kind, dx.len(), |dx| conv::backward(bench, &weight, g, dy.place(), dx));
    // each of the taps rounds, too
    let taps = (9 * g.repeat * g.repeat) as f32;
    near(&what, kind, 4.0 + taps + (layer.outputs as f32).sqrt(), unit(kind), &got, dx);
}

#[test]
fn group_norms() {
    let sizes = [(1, 1, 4, 2), (2, 63, 6, 3), (1, 64, 32, 32), (3, 65, 40, 4), (2, 200, 20, 2), (1, 2200, 6, 1)];
    for kind in KINDS {
        let machine = Emulated::default();
        for (batch, pixels, channels, groups) in sizes {
            for silu in [false, true] {
                let count = batch * pixels * channels;
                // far from zero, so that a variance from plain squares would be wrong
                let x: Vec<f32> = numbers(1, count).iter().map(|x| f16::from_f32(x + 3.0).to_f32()).collect();
                let size = channels / groups;
                let group = |i: usize| i / (pixels * channels) * groups + i % channels / size;
                let mut members = vec![vec![]; batch * groups];
                x.iter().enumerate().for_each(|(i, &x)| members[group(i)].push(x));
                let (dy, w, b) = (numbers(2, count), numbers(3, channels), numbers(4, channels));
                let (weight, bias) = (tensor(&w, &[channels]), tensor(&b, &[channels]));
                let isa = pleinair_cpu::isa::best();
                let op = pleinair_cpu::GroupNorm { weight, bias, groups, eps: 1e-5, silu, isa };
                let (y, dx) = oracle(op, &tensor(&x, &[batch, pixels, channels]), &dy);
                let bench = bench(&machine, kind, Limits::default());
                let (x, dy) = (Bytes::numbers(&x, kind), Bytes::numbers(&dy, kind));
                let (w, b) = (Bytes::with(&w), Bytes::with(&b));
                let affine = Affine { weight: w.place(), bias: b.place(), eps: 1e-5 };
                let shape = GroupShape { batch, pixels, channels, groups, silu };
                let what = format!("{shape:?}");
                let terms = norm_terms(&members);
                let got = result(kind, count, |y| norm::group_norm(bench, shape, &affine, x.place(), y));
                near(&what, kind, 4.0, terms.0, &got, &y);
                let got = result(kind, count, |dx| {
                    norm::group_norm_backward(bench, shape, &affine, x.place(), dy.place(), dx)
                });
                near(&what, kind, 4.0, terms.1, &got, &dx);
            }
        }
        assert_ran("group_norm", &machine);
    }
}

#[test]
fn layer_norms() {
    for kind in KINDS {
        let machine = Emulated::default();
        for (rows, columns) in [(1, 2), (7, 31), (8, 32), (9, 33), (70, 100)] {
            let count = rows * columns;
            let x: Vec<f32> = numbers(1, count).iter().map(|x| f16::from_f32(x - 2.0).to_f32()).collect();
            let terms = norm_terms(&x.chunks(columns).map(<[f32]>::to_vec).collect::<Vec<_>>());
            let (dy, w, b) = (numbers(2, count), numbers(3, columns), numbers(4, columns));
            let (weight, bias, isa) = (tensor(&w, &[columns]), tensor(&b, &[columns]), pleinair_cpu::isa::best());
            let op = pleinair_cpu::LayerNorm { weight, bias, eps: 1e-5, isa };
            let (y, dx) = oracle(op, &tensor(&x, &[rows, columns]), &dy);
            let bench = bench(&machine, kind, Limits::default());
            let (x, dy, w, b) = (Bytes::numbers(&x, kind), Bytes::numbers(&dy, kind), Bytes::with(&w), Bytes::with(&b));
            let affine = Affine { weight: w.place(), bias: b.place(), eps: 1e-5 };
            let size = (rows, columns);
            let got = result(kind, count, |y| norm::layer_norm(bench, size, &affine, x.place(), y));
            near(&format!("{size:?}"), kind, 4.0, terms.0, &got, &y);
            let got =
                result(kind, count, |dx| norm::layer_norm_backward(bench, size, &affine, x.place(), dy.place(), dx));
            near(&format!("{size:?}"), kind, 4.0, terms.1, &got, &dx);
        }
        assert_ran("layer_norm", &machine);
    }
}

#[test]
fn gated_units() {
    for kind in KINDS {
        let machine = Emulated::default();
        for (rows, columns) in [(1, 1), (5, 51), (4, 64), (3, 300)] {
            let count = rows * columns;
            let x: Vec<f32> = numbers(1, 2 * count).iter().map(|x| x * 8.0).collect();
            let dy = numbers(2, count);
            let op = pleinair_cpu::Geglu { isa: pleinair_cpu::isa::best() };
            let (y, dx) = oracle(op, &tensor(&x, &[rows, 2 * columns]), &dy);
            let bench = bench(&machine, kind, Limits::default());
            let (x, dy) = (Bytes::numbers(&x, kind), Bytes::numbers(&dy, kind));
            // both normal distributions are off by up to 1e-7, which is two roundings of a number near one, times eight
            let got = result(kind, count, |y| pointwise::geglu(bench, (rows, columns), x.place(), y));
            near("geglu", kind, 24.0, 0.0, &got, &y);
            let got = result(kind, 2 * count, |dx| {
                pointwise::geglu_backward(bench, (rows, columns), x.place(), dy.place(), dx)
            });
            near("geglu backward", kind, 24.0, 0.0, &got, &dx);
        }
        assert_ran("geglu", &machine);
    }
}

#[test]
fn sums() {
    for kind in KINDS {
        let machine = Emulated::default();
        for count in [1, 255, 256, 257, 1000] {
            let (a, b) = (numbers(1, count), numbers(2, count));
            let want = pleinair_cpu::Add;
            let want = tensor(&a, &[count]).apply_op2_no_bwd(&tensor(&b, &[count]), &want).unwrap();
            let (a, b) = (Bytes::numbers(&a, kind), Bytes::numbers(&b, kind));
            let got = result(kind, count, |y| {
                pointwise::add(bench(&machine, kind, Limits::default()), count, a.place(), b.place(), y)
            });
            near("add", kind, 1.0, 0.0, &got, &flat(&want));
        }
        assert_ran("add", &machine);
    }
}

/// Rows in a wider tensor, so that they lie apart.
fn apart(values: &[f32], width: usize, gap: usize) -> Vec<f32> {
    values.chunks(width).flat_map(|row| row.iter().copied().chain((0..gap).map(|_| f32::NAN))).collect()
}

fn attention_agrees(bench: Bench<'_, Emulated>, shape: Shape, what: &str) {
    let Shape { batch, queries, keys, channels, heads, causal } = shape;
    let kind = bench.kind;
    let (q, dy) = (numbers(1, batch * queries * channels), numbers(2, batch * queries * channels));
    let kv = numbers(3, batch * keys * 2 * channels);
    let (precision, isa) = (pleinair_cpu::Precision::F32, pleinair_cpu::isa::best());
    let op = pleinair_cpu::Attention { heads, causal, precision, isa };
    let q_cpu = Var::from_tensor(&tensor(&q, &[batch, queries, channels])).unwrap();
    let kv_cpu = Var::from_tensor(&tensor(&kv, &[batch, keys, 2 * channels])).unwrap();
    let y_cpu = q_cpu.apply_op2(&kv_cpu, op).unwrap();
    let loss = (&y_cpu * tensor(&dy, y_cpu.dims())).unwrap().sum_all().unwrap().backward().unwrap();

    let (q_gap, kv_gap) = (3, 8);
    let on_device = |values: &[f32], width, gap| Bytes::numbers(&apart(values, width, gap), kind);
    let (q, kv) = (on_device(&q, channels, q_gap), on_device(&kv, 2 * channels, kv_gap));
    let dy = Bytes::numbers(&dy, kind);
    let q_stride = channels + q_gap;
    let kv_stride = 2 * channels + kv_gap;
    let q_rows = Rows { place: q.place(), picture_stride: queries * q_stride, row_stride: q_stride };
    let kv_rows = Rows { place: kv.place(), picture_stride: keys * kv_stride, row_stride: kv_stride };

    let y = Bytes::new(batch * queries * channels * kind.bytes());
    attention::forward(bench, shape, q_rows, kv_rows, y.place()).unwrap();
    let roundings = if kind == Kind::F32 { 60.0 } else { 4.0 };
    near(what, kind, roundings, unit(kind), &y.read(kind, batch * queries * channels), &flat(&y_cpu));
    let both = batch * (queries + 2 * keys) * channels;
    let got =
        result(kind, both, |both| attention::backward(bench, shape, q_rows, kv_rows, (y.place(), dy.place()), both));
    let (dq, dkv) = got.split_at(batch * queries * channels);
    near(&format!("{what} dq"), kind, roundings, unit(kind), dq, &flat(loss.get(&q_cpu).unwrap()));
    near(&format!("{what} dkv"), kind, roundings, unit(kind), dkv, &flat(loss.get(&kv_cpu).unwrap()));
}

#[test]
fn attentions() {
    // heads of every kind: fused, padded, too large
    let sizes = [(1, 1, 1, 1, 1), (2, 5, 7, 24, 3), (1, 33, 77, 80, 2), (2, 9, 34, 64, 1), (1, 20, 20, 320, 2)];
    for kind in KINDS {
        let machine = Emulated::default();
        for (batch, queries, keys, channels, heads) in sizes {
            let shape = Shape { batch, queries, keys, channels, heads, causal: false };
            for limits in limits() {
                attention_agrees(bench(&machine, kind, limits), shape, &format!("{shape:?}"));
                let shape = Shape { keys: queries, causal: true, ..shape };
                attention_agrees(bench(&machine, kind, limits), shape, &format!("{shape:?}"));
            }
        }
        assert_ran("attention", &machine);
        if kind == Kind::F16 {
            assert_ran("attention in f16", &machine);
            assert!(machine.products.borrow()[1] > 0);
        }
    }
}

/// Kernels that only f16 activations need compute the same for f32.
#[test]
fn rows_and_heads() {
    for kind in KINDS {
        let machine = Emulated::default();
        let (batch, rows, heads, per_head, padded, gap) = (2, 5, 3, 7, 9, 4);
        let width = heads * per_head;
        let values = numbers(1, batch * rows * width);
        let x = Bytes::numbers(&apart(&values, width, gap), kind);
        let stride = width + gap;
        let words = |count: usize| [count, rows, rows * stride, stride, heads, per_head, padded].map(|n| n as u32);
        let run = |kernel, from: &Bytes, into: &Bytes, count: usize, words: &[u32]| {
            let (reads, writes) = ([from.place()], [into.place()]);
            let call = pleinair_metal::machine::Call {
                kernel,
                kind,
                reads: &reads,
                writes: &writes,
                parameters: words,
                threads: count,
            };
            machine.run(call).unwrap();
        };
        let count = batch * rows * heads * padded;
        let wide = Bytes::new(count * kind.bytes());
        run("pad_heads", &x, &wide, count, &words(count));
        let want: Vec<f32> = values.chunks(per_head).flat_map(|head| head.iter().copied().chain([0.0; 2])).collect();
        assert_eq!(wide.read(kind, count), want);
        let dense = Bytes::new(values.len() * kind.bytes());
        run("unpad_heads", &wide, &dense, values.len(), &words(values.len()));
        assert_eq!(dense.read(kind, values.len()), values);
        let floats = Bytes::new(values.len() * 4);
        run("widen_rows", &x, &floats, values.len(), &words(values.len()));
        assert_eq!(floats.read(Kind::F32, values.len()), values);
        run("narrow", &floats, &dense, values.len(), &[values.len() as u32]);
        assert_eq!(dense.read(kind, values.len()), values);
        assert_ran("attention in f16", &machine);
    }
}

#[test]
fn bad_input_is_an_error() {
    let machine = Emulated::default();
    let bench = Bench::new(&machine, Kind::F32);
    let memory = Bytes::with(&numbers(1, 100));
    let at = memory.place();
    let weight = |inputs, smooth| {
        let smooth = Some((memory.place(), smooth));
        Weight { outputs: 2, inputs, stored: Stored::Int8 { rows: memory.place(), scales: memory.place(), smooth } }
    };
    let g = Geometry { batch: 1, height: 1, width: 1, repeat: 1, stride: 1 };
    assert!(linear::forward(bench, &weight(4, 3), None, 1, at, at).is_err());
    assert!(linear::backward(bench, &weight(4, 3), 1, at, at).is_err());
    assert!(conv::forward(bench, &weight(18, 3), at, g, at, at).is_err());
    assert!(conv::forward(bench, &weight(8, 8), at, g, at, at).is_err());
    assert!(conv::backward(bench, &weight(9, 1), Geometry { stride: 0, ..g }, at, at).is_err());
    let affine = Affine { weight: at, bias: at, eps: 0.0 };
    let shape = GroupShape { batch: 1, pixels: 1, channels: 4, groups: 3, silu: false };
    assert!(norm::group_norm(bench, shape, &affine, at, at).is_err());
    let shape = Shape { batch: 1, queries: 2, keys: 3, channels: 4, heads: 2, causal: true };
    let rows = Rows { place: at, picture_stride: 8, row_stride: 4 };
    assert!(attention::forward(bench, shape, rows, rows, at).is_err());
    let uneven = Shape { heads: 3, causal: false, ..shape };
    assert!(attention::forward(bench, uneven, rows, rows, at).is_err());
    // more than 32 bits can count: refused before anything runs
    assert!(pointwise::add(bench, 1 << 32, at, at, at).is_err());
    assert!(machine.ran.borrow().is_empty());
}
