//! A frozen layer on the GPU beside the same layer of the processor's kernels in f32, forward and backward.

use candle_core::{CustomOp1, DType, Device, Tensor};
use half::f16;
use std::sync::Arc;

/// Largest share of a number that rounding changes it by.
const U_F32: f64 = 1.0 / (1 << 24) as f64;
const U_F16: f64 = 1.0 / (1 << 11) as f64;
/// Half of f16's smallest number.
const TINY_F16: f64 = 1.0 / (1 << 25) as f64;

/// The GPU.
pub fn device() -> Device {
    pleinair_cuda::open().expect("these tests need a CUDA device, real or emulated")
}

/// `count` numbers in [-1, 1), the same for the same seed.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
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

/// The same numbers as an activation of that type has them.
pub fn rounded(numbers: Vec<f32>, dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F16 => numbers.into_iter().map(|x| f16::from_f32(x).to_f32()).collect(),
        _ => numbers,
    }
}

pub const ACTIVATIONS: [DType; 2] = [DType::F32, DType::F16];

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    F32,
    F16,
    Int8,
    /// With smoothing.
    Smooth,
}

pub const KINDS: [Kind; 4] = [Kind::F32, Kind::F16, Kind::Int8, Kind::Smooth];

/// A weight of random numbers, on the GPU and as what it means, in f32.
pub struct Frozen {
    pub kind: Kind,
    pub outputs: usize,
    pub inputs: usize,
    pub gpu: Arc<pleinair_cuda::Weight>,
    meaning: Vec<f32>,
}

impl Frozen {
    /// `channels` of the input: as many as `inputs`, or a ninth.
    pub fn new(device: &Device, kind: Kind, (outputs, inputs): (usize, usize), channels: usize) -> Self {
        use pleinair_cuda::{Values, Weight};
        let dense = numbers(3, outputs * inputs);
        let weight = |values: Values<'_>| Arc::new(Weight::new(device, outputs, inputs, values).unwrap());
        let rows: Vec<i8> = dense.iter().map(|w| (w * 127.0).round() as i8).collect();
        // far apart, as trained ones are
        let scales: Vec<f32> = numbers(4, outputs).iter().map(|s| (s * 4.0).exp2() / 127.0).collect();
        let smooth: Vec<f32> = numbers(5, channels).iter().map(|s| (s * 4.0).exp2()).collect();
        let (gpu, meaning) = match kind {
            Kind::F32 => (weight(Values::F32(&dense)), dense),
            Kind::F16 => {
                let values: Vec<f16> = dense.iter().map(|&w| f16::from_f32(w)).collect();
                (weight(Values::F16(&values)), values.iter().map(|w| w.to_f32()).collect())
            }
            Kind::Int8 | Kind::Smooth => {
                let smooth = (kind == Kind::Smooth).then_some(&smooth[..]);
                let divisor = |i: usize| smooth.map_or(1.0, |s| s[i % channels]);
                let value = |i: usize| rows[i] as f32 * scales[i / inputs] / divisor(i % inputs);
                let meaning = (0..rows.len()).map(value).collect();
                (weight(Values::Int8 { rows: &rows, scales: &scales, smooth }), meaning)
            }
        };
        Frozen { kind, outputs, inputs, gpu, meaning }
    }

    /// What it means, for the processor's kernels.
    pub fn cpu(&self) -> Arc<pleinair_cpu::Weight> {
        self.of(self.meaning.clone())
    }

    /// The magnitudes of that.
    pub fn cpu_magnitudes(&self) -> Arc<pleinair_cpu::Weight> {
        self.of(self.meaning.iter().map(|w| w.abs()).collect())
    }

    fn of(&self, values: Vec<f32>) -> Arc<pleinair_cpu::Weight> {
        let values = pleinair_cpu::Values::F32(values.into());
        Arc::new(pleinair_cpu::Weight::new(self.outputs, self.inputs, values).unwrap())
    }

    /// How many roundings to f16 the weight of a product has seen: none where the kernels multiply what is stored, else the
    /// number's own, or those of its factor and of it times that.
    fn roundings(&self, pass: Pass) -> f64 {
        match (self.kind, pass) {
            (Kind::F16, _) | (Kind::Int8, Pass::Forward) => 0.0,
            (Kind::F32, _) => 1.0,
            (Kind::Smooth, _) | (Kind::Int8, Pass::Backward) => 2.0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pass {
    Forward,
    Backward,
}

/// The same layer thrice: on the GPU, on the processor, and on the processor with magnitudes for weights and bias.
pub struct Layers<'a, G, C> {
    pub frozen: &'a Frozen,
    pub gpu: G,
    pub cpu: C,
    pub magnitudes: C,
    /// Most products that one result of each pass adds up.
    pub terms: [usize; 2],
    /// Whether gradients are added up, and rounded, before they are multiplied.
    pub folded: bool,
}

impl<G, C> Layers<'_, G, C>
where
    G: CustomOp1 + Clone + Send + Sync + 'static,
    C: CustomOp1 + Clone + Send + Sync + 'static,
{
    /// Compares both passes, for activations of a type and a shape; returns the worst shares of the bounds.
    pub fn compare(&self, device: &Device, what: &str, dtype: DType, shape: &[usize]) -> f64 {
        let values = rounded(numbers(1, shape.iter().product()), dtype);
        let on_cpu = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        let on_gpu = |values: &[f32], shape: &[usize]| on_cpu(values, shape).to_device(device).unwrap().to_dtype(dtype);
        let (x, x_gpu) = (on_cpu(&values, shape), on_gpu(&values, shape).unwrap());
        let want = x.apply_op1(self.cpu.clone()).unwrap();
        let size = x.abs().unwrap().apply_op1(self.magnitudes.clone()).unwrap();
        let got = x_gpu.apply_op1(self.gpu.clone()).unwrap();
        assert_eq!((got.dtype(), got.dims()), (dtype, want.dims()), "{what}");
        let forward = self.bound(dtype, Pass::Forward).assert(&format!("{what}, forward"), &got, &want, &size);

        let values = rounded(numbers(2, want.elem_count()), dtype);
        let (dy, dy_gpu) = (on_cpu(&values, want.dims()), on_gpu(&values, want.dims()).unwrap());
        let gradient = |op: &dyn CustomOp1, x: &Tensor, y: &Tensor, dy: &Tensor| op.bwd(x, y, dy).unwrap().unwrap();
        let want = gradient(&self.cpu, &x, &want, &dy);
        let size = gradient(&self.magnitudes, &x, &size, &dy.abs().unwrap());
        let got = gradient(&self.gpu, &x_gpu, &got, &dy_gpu);
        assert_eq!((got.dtype(), got.dims()), (dtype, want.dims()), "{what}");
        forward.max(self.bound(dtype, Pass::Backward).assert(&format!("{what}, backward"), &got, &want, &size))
    }

    fn bound(&self, dtype: DType, pass: Pass) -> Bound {
        let terms = self.terms[(pass == Pass::Backward) as usize] as f64;
        // every number that was dequantised on the way has been rounded thrice, on either side
        let (sums, f16) = (2.0 * (terms + 8.0) * U_F32, dtype == DType::F16);
        let narrow = self.frozen.roundings(pass) + (self.folded && pass == Pass::Backward) as u8 as f64;
        match f16 {
            // tensor cores cut off where others round: twice the error of a sum
            true => Bound { sums: 2.0 * sums + narrow * U_F16, result: U_F16, tiny: (terms + 1.0) * TINY_F16 },
            false => Bound { sums, result: 0.0, tiny: 0.0 },
        }
    }
}

/// How far a result may be off.
#[derive(Clone, Copy)]
pub struct Bound {
    /// Share of the sum of the products' magnitudes: a sum of n products in any order is off by at most n + 1 roundings
    /// of it (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), and so is the other side's.
    pub sums: f64,
    /// Share of the result.
    pub result: f64,
    /// Whatever the size.
    pub tiny: f64,
}

impl Bound {
    /// The worst share of the bound.
    pub fn assert(self, what: &str, got: &Tensor, want: &Tensor, size: &Tensor) -> f64 {
        let flat = |tensor: &Tensor| -> Vec<f32> {
            let tensor = tensor.to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap();
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        let mut worst = 0.0f64;
        for (i, ((got, want), size)) in flat(got).into_iter().zip(flat(want)).zip(flat(size)).enumerate() {
            let (got, want) = (got as f64, want as f64);
            let bound = self.sums * size as f64 + self.result * want.abs().max(got.abs()) + self.tiny;
            let diff = (got - want).abs();
            assert!(diff <= bound, "{what}: number {i} is {got}, not {want} within {bound:e}");
            worst = worst.max(if bound > 0.0 { diff / bound } else { 0.0 });
        }
        worst
    }
}
