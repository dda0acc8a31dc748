//! Frozen layers: loaded from a checkpoint, run by the target's kernel where there is one, by stock candle ops elsewhere.

use super::portable;
use crate::Result;
use crate::bundle::weights::{LayerWeight, Names};
use candle_core::{D, Tensor};
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

fn on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu()
}

/// `a + b`, of one shape.
pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match on_cpu(a) && a.is_contiguous() && b.is_contiguous() {
        true => Ok(a.apply_op2(b, cpu::Add)?),
        false => Ok((a + b)?),
    }
}

/// A linear layer or a 1x1 convolution.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    weight: LayerWeight,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn load(names: &Names, input: usize, output: usize) -> Result<Self> {
        Ok(Linear { weight: names.matrix(output, input)?, bias: Some(names.get("bias", output)?) })
    }

    pub(super) fn load_without_bias(names: &Names, input: usize, output: usize) -> Result<Self> {
        Ok(Linear { weight: names.matrix(output, input)?, bias: None })
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
        Ok(Linear { weight: names.joined_matrix(joined, layers, output, input)?, bias: None })
    }

    /// How what it gives is multiplied further: no more precisely than it came about.
    pub(super) fn precision(&self) -> cpu::Precision {
        match self.weight.weight().values() {
            cpu::Values::F32(_) | cpu::Values::F16(_) => cpu::Precision::F32,
            cpu::Values::Bf16(_) | cpu::Values::Int8(_) => cpu::Precision::Bf16,
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let op = cpu::Linear { weight: self.weight.for_input(x)?, bias: self.bias.clone() };
        match on_cpu(x) {
            true => Ok(x.apply_op1(op)?),
            false => portable::linear(x, op),
        }
    }
}

/// A 3x3 convolution with padding 1, perhaps of a map with every pixel repeated.
#[derive(Debug, Clone)]
pub(super) struct Conv3x3 {
    weight: LayerWeight,
    bias: Tensor,
    repeat: usize,
    stride: usize,
}

impl Conv3x3 {
    pub(super) fn load(names: &Names, input: usize, output: usize, stride: usize) -> Result<Self> {
        Ok(Conv3x3 { weight: names.kernel3x3(output, input)?, bias: names.get("bias", output)?, repeat: 1, stride })
    }

    /// The convolution of a map with every pixel twice in both directions.
    pub(super) fn load_upsampling(names: &Names, channels: usize) -> Result<Self> {
        Ok(Conv3x3 { repeat: 2, ..Self::load(names, channels, channels, 1)? })
    }

    pub(super) fn forward(&self, map: &FeatureMap) -> Result<FeatureMap> {
        let FeatureMap { x, height, width } = map;
        let &Conv3x3 { repeat, stride, .. } = self;
        let (weight, bias) = (self.weight.for_input(x)?, self.bias.clone());
        let op = cpu::Conv3x3 { weight, bias, height: *height, width: *width, repeat, stride };
        let y = match on_cpu(x) {
            true => x.apply_op1(op)?,
            false => portable::conv3x3(x, op)?,
        };
        let after = |length: usize| (length * repeat).div_ceil(stride);
        Ok(FeatureMap { x: y, height: after(*height), width: after(*width) })
    }
}

/// GroupNorm, optionally with the SiLU that follows it.
#[derive(Debug, Clone)]
pub(super) struct GroupNorm(cpu::GroupNorm);

impl GroupNorm {
    pub(super) fn load(names: &Names, channels: usize, groups: usize, eps: f64, silu: bool) -> Result<Self> {
        let (weight, bias) = (names.get("weight", channels)?, names.get("bias", channels)?);
        Ok(GroupNorm(cpu::GroupNorm { weight, bias, groups, eps, silu, isa: names.isa() }))
    }

    pub(super) fn forward(&self, map: &FeatureMap) -> Result<FeatureMap> {
        Ok(map.with(match on_cpu(&map.x) {
            true => map.x.apply_op1(self.0.clone())?,
            false => portable::group_norm(&map.x, &self.0)?,
        }))
    }
}

/// LayerNorm over the channels.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm(cpu::LayerNorm);

impl LayerNorm {
    pub(super) fn load(names: &Names, channels: usize, eps: f64) -> Result<Self> {
        let (weight, bias) = (names.get("weight", channels)?, names.get("bias", channels)?);
        Ok(LayerNorm(cpu::LayerNorm { weight, bias, eps, isa: names.isa() }))
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match on_cpu(x) {
            true => Ok(x.apply_op1(self.0.clone())?),
            false => portable::layer_norm(x, &self.0),
        }
    }
}

/// Attention of queries `q: [B, N, C]` to keys and values `kv: [B, M, 2C]`, giving `[B, N, C]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention(cpu::Attention);

impl Attention {
    /// As precise as the layer that gives it the queries.
    pub(super) fn new(names: &Names, heads: usize, causal: bool, queries: &Linear) -> Self {
        Attention(cpu::Attention { heads, causal, precision: queries.precision(), isa: names.isa() })
    }

    pub(super) fn forward(&self, q: &Tensor, kv: &Tensor) -> Result<Tensor> {
        match on_cpu(q) {
            true => Ok(q.apply_op2(kv, self.0)?),
            false => portable::attention(q, kv, self.0),
        }
    }
}

/// `[.., 2C]` to `[.., C]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geglu(cpu::Geglu);

impl Geglu {
    pub(super) fn new(names: &Names) -> Self {
        Geglu(cpu::Geglu { isa: names.isa() })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match on_cpu(x) {
            true => Ok(x.apply_op1(self.0)?),
            false => portable::geglu(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

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
