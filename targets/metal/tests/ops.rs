//! Every op on a real GPU beside the CPU's ops, forward and backward, with activations of both types. `tests/kernels.rs`
//! runs the same plans anywhere; what only this tests is Metal itself, candle's products and fused attention, and weights
//! in mapped files.
#![cfg(feature = "metal")]

mod beside;

use beside::{flat, near, norm_terms, numbers, oracle, tensor, unit};
use candle_core::{CustomOp1, DType, Device, Tensor, Var};
use half::f16;
use pleinair_metal::machine::Kind;
use pleinair_metal::{Add, Attention, Conv3x3, Geglu, GroupNorm, LayerNorm, Linear, Values, Weight};
use std::sync::{Arc, OnceLock};

const KINDS: [(Kind, DType); 2] = [(Kind::F32, DType::F32), (Kind::F16, DType::F16)];

fn gpu() -> &'static Device {
    static GPU: OnceLock<Device> = OnceLock::new();
    GPU.get_or_init(|| pleinair_metal::open().unwrap_or_else(|sentence| panic!("{sentence}")))
}

fn on_gpu(values: &[f32], shape: &[usize], dtype: DType) -> Tensor {
    tensor(values, shape).to_dtype(dtype).unwrap().to_device(gpu()).unwrap()
}

fn back(x: &Tensor) -> Vec<f32> {
    flat(&x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap())
}

/// The GPU's result and gradient.
fn computed(op: impl CustomOp1 + Send + Sync + 'static, x: &Tensor, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let x = Var::from_tensor(x).unwrap();
    let y = x.apply_op1(op).unwrap();
    let dy = on_gpu(dy, y.dims(), y.dtype());
    let gradients = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    (back(&y), back(gradients.get(&x).unwrap()))
}

/// One weight, stored in every way, on both.
fn weights(
    outputs: usize,
    inputs: usize,
    channels: usize,
) -> Vec<(&'static str, Arc<pleinair_cpu::Weight>, Arc<Weight>)> {
    let values = numbers(7, outputs * inputs);
    let halves: Vec<f16> = values.iter().map(|&w| f16::from_f32(w)).collect();
    let int8: Vec<i8> = values.iter().map(|w| (w * 127.0).round() as i8).collect();
    let scales: Vec<f32> = (0..outputs).map(|o| (o % 7 + 1) as f32 / 256.0).collect();
    let smooth: Vec<f32> = (0..channels).map(|i| 0.6 + (i % 5) as f32 / 3.0).collect();
    let cpu = |values| Arc::new(pleinair_cpu::Weight::new(outputs, inputs, values).unwrap());
    let metal = |values: Values<'_>| Arc::new(Weight::new(gpu(), outputs, inputs, values).unwrap());
    let rows = |smooth: Option<Vec<f32>>| {
        pleinair_cpu::Values::Int8(pleinair_cpu::Int8 {
            values: int8.clone().into(),
            packing: pleinair_cpu::Packing::Rows,
            scales: scales.clone().into(),
            smooth: smooth.map(Into::into),
        })
    };
    let on_metal = |smooth| metal(Values::Int8 { rows: &int8, scales: &scales, smooth });
    vec![
        ("f32", cpu(pleinair_cpu::Values::F32(values.clone().into())), metal(Values::F32(&values))),
        ("f16", cpu(pleinair_cpu::Values::F16(halves.clone().into())), metal(Values::F16(&halves))),
        ("int8", cpu(rows(None)), on_metal(None)),
        ("smoothed int8", cpu(rows(Some(smooth.clone()))), on_metal(Some(&smooth))),
    ]
}

/// Both results may be off by the roundings of a sum of so many products of numbers up to one.
fn roundings(terms: usize) -> f32 {
    8.0 + 2.0 * (terms as f32).sqrt()
}

#[test]
fn linear() {
    for (rows, inputs, outputs) in [(1, 33, 7), (2, 320, 1280), (77, 768, 320), (130, 65, 67)] {
        let (x, dy, bias) = (numbers(1, rows * inputs), numbers(2, rows * outputs), numbers(3, outputs));
        for (name, cpu, metal) in weights(outputs, inputs, inputs) {
            let op = pleinair_cpu::Linear { weight: cpu, bias: Some(tensor(&bias, &[outputs])) };
            let (y, dx) = oracle(op, &tensor(&x, &[rows, inputs]), &dy);
            for (kind, dtype) in KINDS {
                let op = Linear { weight: metal.clone(), bias: Some(on_gpu(&bias, &[outputs], DType::F32)) };
                let (got, slope) = computed(op, &on_gpu(&x, &[rows, inputs], dtype), &dy);
                let what = format!("{name} {rows} x {inputs} x {outputs}");
                near(&what, kind, roundings(inputs), unit(kind), &got, &y);
                near(&what, kind, roundings(outputs), unit(kind), &slope, &dx);
            }
        }
    }
}

#[test]
fn conv3x3() {
    let sizes = [(1usize, 3usize, 5usize, 4, 3), (2, 8, 8, 33, 20), (1, 16, 16, 64, 96)];
    for (batch, height, width, inputs, outputs) in sizes {
        for (repeat, stride) in [(1, 1), (1, 2), (2, 1)] {
            let pixels = (height * repeat).div_ceil(stride) * (width * repeat).div_ceil(stride);
            let (x, bias) = (numbers(1, batch * height * width * inputs), numbers(3, outputs));
            let (dy, shape) = (numbers(2, batch * pixels * outputs), [batch, height * width, inputs]);
            for (name, cpu, metal) in weights(outputs, 9 * inputs, inputs) {
                let cpu_bias = tensor(&bias, &[outputs]);
                let op = pleinair_cpu::Conv3x3 { weight: cpu, bias: cpu_bias, height, width, repeat, stride };
                let (y, dx) = oracle(op, &tensor(&x, &shape), &dy);
                for (kind, dtype) in KINDS {
                    let bias = on_gpu(&bias, &[outputs], DType::F32);
                    let op = Conv3x3 { weight: metal.clone(), bias, height, width, repeat, stride };
                    let (got, slope) = computed(op, &on_gpu(&x, &shape, dtype), &dy);
                    let what = format!("{name} {shape:?} -> {outputs}, {repeat}, {stride}");
                    near(&what, kind, roundings(9 * inputs), unit(kind), &got, &y);
                    near(&what, kind, roundings(9 * outputs * repeat * repeat), unit(kind), &slope, &dx);
                }
            }
        }
    }
}

#[test]
fn group_norm() {
    for (batch, pixels, channels, groups) in [(1, 1, 8, 2), (2, 65, 40, 4), (2, 1024, 320, 32)] {
        for silu in [false, true] {
            let (count, shape) = (batch * pixels * channels, [batch, pixels, channels]);
            let x: Vec<f32> = numbers(1, count).iter().map(|x| f16::from_f32(x + 3.0).to_f32()).collect();
            let (dy, w, b) = (numbers(2, count), numbers(3, channels), numbers(4, channels));
            let mut members = vec![vec![]; batch * groups];
            for (i, &x) in x.iter().enumerate() {
                members[i / (pixels * channels) * groups + i % channels / (channels / groups)].push(x);
            }
            let terms = norm_terms(&members);
            let (weight, bias) = (tensor(&w, &[channels]), tensor(&b, &[channels]));
            let isa = pleinair_cpu::isa::best();
            let op = pleinair_cpu::GroupNorm { weight, bias, groups, eps: 1e-5, silu, isa };
            let (y, dx) = oracle(op, &tensor(&x, &shape), &dy);
            for (kind, dtype) in KINDS {
                let [weight, bias] = [&w, &b].map(|values| on_gpu(values, &[channels], DType::F32));
                let op = GroupNorm { weight, bias, groups, eps: 1e-5, silu };
                let (got, slope) = computed(op, &on_gpu(&x, &shape, dtype), &dy);
                near(&format!("{shape:?}"), kind, 8.0, terms.0, &got, &y);
                near(&format!("{shape:?}"), kind, 8.0, terms.1, &slope, &dx);
            }
        }
    }
}

#[test]
fn layer_norm() {
    for (rows, columns) in [(1, 31), (9, 33), (300, 320)] {
        let count = rows * columns;
        let x: Vec<f32> = numbers(1, count).iter().map(|x| f16::from_f32(x - 2.0).to_f32()).collect();
        let terms = norm_terms(&x.chunks(columns).map(<[f32]>::to_vec).collect::<Vec<_>>());
        let (dy, w, b) = (numbers(2, count), numbers(3, columns), numbers(4, columns));
        let (weight, bias, isa) = (tensor(&w, &[columns]), tensor(&b, &[columns]), pleinair_cpu::isa::best());
        let (y, dx) =
            oracle(pleinair_cpu::LayerNorm { weight, bias, eps: 1e-5, isa }, &tensor(&x, &[rows, columns]), &dy);
        for (kind, dtype) in KINDS {
            let [weight, bias] = [&w, &b].map(|values| on_gpu(values, &[columns], DType::F32));
            let op = LayerNorm { weight, bias, eps: 1e-5 };
            let (got, slope) = computed(op, &on_gpu(&x, &[rows, columns], dtype), &dy);
            near("layer norm", kind, 8.0, terms.0, &got, &y);
            near("layer norm backward", kind, 8.0, terms.1, &slope, &dx);
        }
    }
}

#[test]
fn geglu() {
    for (rows, columns) in [(5, 51), (130, 1280)] {
        let x: Vec<f32> = numbers(1, 2 * rows * columns).iter().map(|x| x * 8.0).collect();
        let dy = numbers(2, rows * columns);
        let op = pleinair_cpu::Geglu { isa: pleinair_cpu::isa::best() };
        let (y, dx) = oracle(op, &tensor(&x, &[rows, 2 * columns]), &dy);
        for (kind, dtype) in KINDS {
            let (got, slope) = computed(Geglu, &on_gpu(&x, &[rows, 2 * columns], dtype), &dy);
            near("geglu", kind, 24.0, 0.0, &got, &y);
            near("geglu backward", kind, 24.0, 0.0, &slope, &dx);
        }
    }
}

#[test]
fn add() {
    let (a, b) = (numbers(1, 1000), numbers(2, 1000));
    let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    for (kind, dtype) in KINDS {
        let got = on_gpu(&a, &[10, 100], dtype).apply_op2(&on_gpu(&b, &[10, 100], dtype), Add).unwrap();
        near("add", kind, 1.0, 0.0, &back(&got), &want);
    }
}

/// Fused in each size, padded, too large for it, causal; rows that lie apart.
#[test]
fn attention() {
    let sizes =
        [(2, 64, 77, 40, 2), (1, 300, 300, 80, 8), (2, 65, 33, 320, 2), (1, 77, 77, 64, 12), (1, 40, 40, 512, 1)];
    for (batch, queries, keys, per_head, heads) in sizes {
        for causal in [false, true] {
            let keys = if causal { queries } else { keys };
            let channels = heads * per_head;
            let (q, kv) = (numbers(1, batch * queries * channels), numbers(3, batch * keys * 2 * channels));
            let dy = numbers(2, batch * queries * channels);
            let (q_shape, kv_shape) = ([batch, queries, channels], [batch, keys, 2 * channels]);
            let cpu = {
                let (precision, isa) = (pleinair_cpu::Precision::F32, pleinair_cpu::isa::best());
                let op = pleinair_cpu::Attention { heads, causal, precision, isa };
                let (q, kv) = (tensor(&q, &q_shape), tensor(&kv, &kv_shape));
                let (q, kv) = (Var::from_tensor(&q).unwrap(), Var::from_tensor(&kv).unwrap());
                let y = q.apply_op2(&kv, op).unwrap();
                let loss = (&y * tensor(&dy, &q_shape)).unwrap().sum_all().unwrap().backward().unwrap();
                [flat(&y), flat(loss.get(&q).unwrap()), flat(loss.get(&kv).unwrap())]
            };
            for (kind, dtype) in KINDS {
                // a view of a wider tensor
                let wide = Tensor::cat(&[on_gpu(&q, &q_shape, dtype), on_gpu(&dy, &q_shape, dtype)], 2).unwrap();
                let wide = Var::from_tensor(&wide).unwrap();
                let kv = Var::from_tensor(&on_gpu(&kv, &kv_shape, dtype)).unwrap();
                let y = wide.narrow(2, 0, channels).unwrap().apply_op2(&kv, Attention { heads, causal }).unwrap();
                let loss = (&y * on_gpu(&dy, &q_shape, dtype)).unwrap().sum_all().unwrap().backward().unwrap();
                let dq = loss.get(&wide).unwrap().narrow(2, 0, channels).unwrap();
                let got = [back(&y), back(&dq), back(loss.get(&kv).unwrap())];
                for (part, (got, want)) in ["y", "dq", "dkv"].into_iter().zip(got.iter().zip(&cpu)) {
                    let what = format!("{part} of {heads} heads of {per_head}, {queries} x {keys}, causal {causal}");
                    near(&what, kind, 16.0 + (queries as f32).sqrt(), unit(kind), got, want);
                }
            }
        }
    }
}

/// A weight in a file that begins anywhere in a page is read there, and the file stays as long as the GPU needs it.
#[test]
fn weights_in_mapped_files() {
    struct File(Arc<pleinair_cpu::MappedFile>);
    impl AsRef<[u8]> for File {
        fn as_ref(&self) -> &[u8] {
            self.0.bytes()
        }
    }

    let (rows, inputs, outputs) = (17, 96, 130);
    let values = numbers(7, outputs * inputs);
    let path = std::env::temp_dir().join(format!("pleinair-metal-{}", std::process::id()));
    for before in [0, 6, 16384, 40002] {
        let mut bytes = vec![0xffu8; before];
        values.iter().for_each(|&w| bytes.extend(f16::from_f32(w).to_le_bytes()));
        std::fs::write(&path, &bytes).unwrap();
        let file = Arc::new(File(pleinair_cpu::MappedFile::open(&path).unwrap()));
        std::fs::remove_file(&path).unwrap();
        let stored = pleinair_cpu::Numbers::<f16>::mapped(&file.0, before, values.len()).unwrap();
        let weight = Weight::mapped(gpu(), outputs, inputs, Values::F16(&stored), &file).unwrap();
        assert_eq!(weight.bytes(), 0, "{before}: it was copied");
        drop((stored, file));

        let x = numbers(1, rows * inputs);
        let op = Linear { weight: Arc::new(weight), bias: None };
        let got = on_gpu(&x, &[rows, inputs], DType::F16).apply_op1(op).unwrap();
        let cpu = pleinair_cpu::Weight::new(outputs, inputs, pleinair_cpu::Values::F32(values.clone().into())).unwrap();
        let op = pleinair_cpu::Linear { weight: Arc::new(cpu), bias: None };
        let want = tensor(&x, &[rows, inputs]).apply_op1(op).unwrap();
        near("a mapped weight", Kind::F16, roundings(inputs), unit(Kind::F16), &back(&got), &flat(&want));
    }
    // what lies elsewhere is copied
    let file = Arc::new(vec![0u8; 100]);
    let weight = Weight::mapped(gpu(), outputs, inputs, Values::F32(&values), &file).unwrap();
    assert_eq!(weight.bytes(), 4 * values.len());
}

#[test]
fn bad_input_is_an_error() {
    let x = on_gpu(&numbers(1, 24), &[2, 12], DType::F32);
    let weight = |outputs, inputs| {
        Arc::new(Weight::new(gpu(), outputs, inputs, Values::F32(&numbers(1, outputs * inputs))).unwrap())
    };
    assert!(Weight::new(gpu(), 2, 3, Values::F32(&[0.0; 5])).is_err());
    assert!(x.apply_op1(Linear { weight: weight(3, 11), bias: None }).is_err());
    let short = Some(on_gpu(&[0.0; 2], &[2], DType::F32));
    assert!(x.apply_op1(Linear { weight: weight(3, 12), bias: short }).is_err());
    let turned = x.t().unwrap().apply_op1(Linear { weight: weight(3, 2), bias: None });
    assert!(turned.is_err(), "a transposed argument was taken");
    let cpu = tensor(&[0.0; 12], &[1, 12]).apply_op1(Linear { weight: weight(3, 12), bias: None });
    assert!(cpu.unwrap_err().to_string().contains("main memory"));
    let half = x.to_dtype(DType::F16).unwrap();
    assert!(x.apply_op2(&half, Add).is_err());
}
