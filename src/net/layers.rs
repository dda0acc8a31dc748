//! Frozen layers: loaded from a checkpoint, run by the target's kernels.

use super::frozen::Frozen;
use crate::Result;
use crate::bundle::weights::Names;
use candle_core::{D, Device, Tensor};
use pleinair_cpu as cpu;

/// A feature map `[B, H*W, C]` that knows its height and width.
#[derive(Debug, Clone)]
pub(super) struct FeatureMap {
    pub(super) x: Tensor,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl FeatureMap {
    /// From `[B, C, H, W]`.
    pub(super) fn from_planar(planar: &Tensor) -> Result<Self> {
        let (b, c, height, width) = planar.dims4()?;
        let x = planar.permute((0, 2, 3, 1))?.contiguous()?.reshape((b, height * width, c))?;
        Ok(FeatureMap { x, height, width })
    }

    /// To `[B, C, H, W]`.
    pub(super) fn to_planar(&self) -> Result<Tensor> {
        let (b, _, c) = self.x.dims3()?;
        Ok(self.x.reshape((b, self.height, self.width, c))?.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// The same place with other values.
    pub(super) fn with(&self, x: Tensor) -> Self {
        FeatureMap { x, height: self.height, width: self.width }
    }

    pub(super) fn add(&self, other: &Tensor) -> Result<Self> {
        Ok(self.with(add(&self.x, other)?))
    }

    /// The channels of both, this map's first.
    pub(super) fn concat(&self, other: &Self) -> Result<Self> {
        Ok(self.with(Tensor::cat(&[&self.x, &other.x], D::Minus1)?))
    }
}

/// The op for where `$x` lies: `$cpu`, or what `$gpu` says of the crate called `$target`.
macro_rules! on_device {
    ($x:expr, $cpu:expr, |$target:ident| $gpu:expr) => {
        match $x.device() {
            Device::Cpu => $cpu,
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => {
                use pleinair_cuda as $target;
                $gpu
            }
            #[cfg(feature = "metal")]
            Device::Metal(_) => {
                use pleinair_metal as $target;
                $gpu
            }
            #[allow(unreachable_patterns, reason = "a build with both has nothing left")]
            other => Err(candle_core::Error::msg(format!("this build has no kernels for {other:?}"))),
        }
    };
}

/// `a + b`, of one shape.
pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match a.is_contiguous() && b.is_contiguous() {
        true => Ok(on_device!(a, a.apply_op2(b, cpu::Add), |gpu| a.apply_op2(b, gpu::Add))?),
        false => Ok((a + b)?),
    }
}

/// A linear layer or a 1x1 convolution.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    weight: Frozen,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn load(names: &Names, input: usize, output: usize) -> Result<Self> {
        Ok(Linear { bias: Some(names.get("bias", output)?), ..Self::load_without_bias(names, input, output)? })
    }

    pub(super) fn load_without_bias(names: &Names, input: usize, output: usize) -> Result<Self> {
        Ok(Linear { weight: Frozen::place(names, names.matrix(output, input)?)?, bias: None })
    }

    /// `layers` that read the same input, as one called `joined`; their outputs lie side by side.
    pub(super) fn load_joined(
        names: &Names,
        joined: &str,
        layers: &[&str],
        input: usize,
        output: usize,
    ) -> Result<Self> {
        let bias = Some(names.joined_bias(joined, layers, output)?);
        Ok(Linear { bias, ..Self::load_joined_without_bias(names, joined, layers, input, output)? })
    }

    pub(super) fn load_joined_without_bias(
        names: &Names,
        joined: &str,
        layers: &[&str],
        input: usize,
        output: usize,
    ) -> Result<Self> {
        let weight = names.joined_matrix(joined, layers, output, input)?;
        Ok(Linear { weight: Frozen::place(names, weight)?, bias: None })
    }

    /// How the processor multiplies what it gives further: no more precisely than it came about. On a GPU the numbers'
    /// own type says it.
    pub(super) fn precision(&self) -> cpu::Precision {
        match &self.weight {
            Frozen::Cpu(weight) => match weight.weight().values() {
                cpu::Values::F32(_) | cpu::Values::F16(_) => cpu::Precision::F32,
                cpu::Values::Bf16(_) | cpu::Values::Int8(_) => cpu::Precision::Bf16,
            },
            #[cfg(any(feature = "cuda", feature = "metal"))]
            _ => cpu::Precision::F32,
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.clone();
        Ok(match &self.weight {
            Frozen::Cpu(weight) => x.apply_op1(cpu::Linear { weight: weight.for_input(x)?, bias }),
            #[cfg(feature = "cuda")]
            Frozen::Cuda(weight) => x.apply_op1(pleinair_cuda::Linear { weight: weight.clone(), bias }),
            #[cfg(feature = "metal")]
            Frozen::Metal(weight) => x.apply_op1(pleinair_metal::Linear { weight: weight.clone(), bias }),
        }?)
    }
}

/// A 3x3 convolution with padding 1, perhaps of a map with every pixel repeated.
#[derive(Debug, Clone)]
pub(super) struct Conv3x3 {
    weight: Frozen,
    bias: Tensor,
    repeat: usize,
    stride: usize,
}

impl Conv3x3 {
    pub(super) fn load(names: &Names, input: usize, output: usize, stride: usize) -> Result<Self> {
        let weight = Frozen::place(names, names.kernel3x3(output, input)?)?;
        Ok(Conv3x3 { weight, bias: names.get("bias", output)?, repeat: 1, stride })
    }

    /// The convolution of a map with every pixel twice in both directions.
    pub(super) fn load_upsampling(names: &Names, channels: usize) -> Result<Self> {
        Ok(Conv3x3 { repeat: 2, ..Self::load(names, channels, channels, 1)? })
    }

    pub(super) fn forward(&self, map: &FeatureMap) -> Result<FeatureMap> {
        let &FeatureMap { ref x, height, width } = map;
        let &Conv3x3 { repeat, stride, .. } = self;
        let bias = self.bias.clone();
        let y = match &self.weight {
            Frozen::Cpu(weight) => {
                let weight = weight.for_input(x)?;
                x.apply_op1(cpu::Conv3x3 { weight, bias, height, width, repeat, stride })
            }
            #[cfg(feature = "cuda")]
            Frozen::Cuda(weight) => {
                let weight = weight.clone();
                x.apply_op1(pleinair_cuda::Conv3x3 { weight, bias, height, width, repeat, stride })
            }
            #[cfg(feature = "metal")]
            Frozen::Metal(weight) => {
                let weight = weight.clone();
                x.apply_op1(pleinair_metal::Conv3x3 { weight, bias, height, width, repeat, stride })
            }
        }?;
        let after = |length: usize| (length * repeat).div_ceil(stride);
        Ok(FeatureMap { x: y, height: after(height), width: after(width) })
    }
}

/// GroupNorm, optionally with the SiLU that follows it.
#[derive(Debug, Clone)]
pub(super) struct GroupNorm(cpu::GroupNorm);

impl GroupNorm {
    pub(super) fn load(names: &Names, channels: usize, groups: usize, eps: f64, silu: bool) -> Result<Self> {
        let (weight, bias) = (names.get("weight", channels)?, names.get("bias", channels)?);
        Ok(GroupNorm(cpu::GroupNorm { weight, bias, groups, eps, silu, isa: names.target().isa() }))
    }

    pub(super) fn forward(&self, map: &FeatureMap) -> Result<FeatureMap> {
        let x = &map.x;
        let y = on_device!(x, x.apply_op1(self.0.clone()), |gpu| {
            let cpu::GroupNorm { weight, bias, groups, eps, silu, .. } = self.0.clone();
            x.apply_op1(gpu::GroupNorm { weight, bias, groups, eps, silu })
        })?;
        Ok(map.with(y))
    }
}

/// LayerNorm over the channels.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm(cpu::LayerNorm);

impl LayerNorm {
    pub(super) fn load(names: &Names, channels: usize, eps: f64) -> Result<Self> {
        let (weight, bias) = (names.get("weight", channels)?, names.get("bias", channels)?);
        Ok(LayerNorm(cpu::LayerNorm { weight, bias, eps, isa: names.target().isa() }))
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(on_device!(x, x.apply_op1(self.0.clone()), |gpu| {
            let cpu::LayerNorm { weight, bias, eps, .. } = self.0.clone();
            x.apply_op1(gpu::LayerNorm { weight, bias, eps })
        })?)
    }
}

/// Attention of queries `q: [B, N, C]` to keys and values `kv: [B, M, 2C]`, giving `[B, N, C]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention(cpu::Attention);

impl Attention {
    /// As precise as the layer that gives it the queries.
    pub(super) fn new(names: &Names, heads: usize, causal: bool, queries: &Linear) -> Self {
        Attention(cpu::Attention { heads, causal, precision: queries.precision(), isa: names.target().isa() })
    }

    pub(super) fn forward(&self, q: &Tensor, kv: &Tensor) -> Result<Tensor> {
        Ok(on_device!(q, q.apply_op2(kv, self.0), |gpu| {
            let cpu::Attention { heads, causal, .. } = self.0;
            q.apply_op2(kv, gpu::Attention { heads, causal })
        })?)
    }
}

/// `[.., 2C]` to `[.., C]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geglu(cpu::Geglu);

impl Geglu {
    pub(super) fn new(names: &Names) -> Self {
        Geglu(cpu::Geglu { isa: names.target().isa() })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(on_device!(x, x.apply_op1(self.0), |gpu| x.apply_op1(gpu::Geglu))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// `[1, 2 * 3, channels]`: 0, 1, 2, ..., so that sums are exact.
    fn map(channels: usize) -> (Var, FeatureMap) {
        let x = Tensor::arange(0f32, 6.0 * channels as f32, &Device::Cpu).unwrap().reshape((1, 6, channels)).unwrap();
        let x = Var::from_tensor(&x).unwrap();
        (x.clone(), FeatureMap { x: x.as_tensor().clone(), height: 2, width: 3 })
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The sum of `y` with its elements weighted 1, 2, 3, ...
    fn weighted(y: &Tensor) -> Tensor {
        let r = Tensor::arange(1f32, y.elem_count() as f32 + 1.0, &Device::Cpu).unwrap().reshape(y.shape()).unwrap();
        (y * r).unwrap().sum_all().unwrap()
    }

    #[test]
    fn joined_channels_part_again_in_the_backward() {
        let ((a, left), (b, right)) = (map(2), map(1));
        let both = left.concat(&right).unwrap();
        assert_eq!(flat(&both.x)[..6], [0.0, 1.0, 0.0, 2.0, 3.0, 1.0]);
        let grads = weighted(&both.x).backward().unwrap();
        assert_eq!(flat(grads.get(&a).unwrap()), [1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17].map(|g| g as f32));
        assert_eq!(flat(grads.get(&b).unwrap()), [3, 6, 9, 12, 15, 18].map(|g| g as f32));
    }

    /// As a skip is: it goes on to the next layer and is taken in again on the way up.
    #[test]
    fn the_gradients_of_two_uses_add() {
        let (x, once) = map(1);
        let sum = once.add(&once.x).unwrap().concat(&once).unwrap();
        let want = [1, 3, 5, 7, 9, 11].map(|g| (2 * g + g + 1) as f32);
        assert_eq!(flat(weighted(&sum.x).backward().unwrap().get(&x).unwrap()), want);
    }
}
