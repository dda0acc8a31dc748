//! Random numbers as torch's CPU generator draws them, so that a seed means the same picture here and there.
//!
//! Follows ATen: `CPUGeneratorImpl.cpp`, `core/DistributionsHelper.h`, `native/cpu/DistributionTemplates.h`.

use crate::{Error, Result};
use candle_core::{Device, Shape, Tensor};
use rand_mt::Mt;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Words in one turn of the Mersenne Twister.
const BLOCK: usize = 624;

/// `torch.Generator("cpu").manual_seed(seed)`.
#[derive(Clone, Debug)]
pub struct TorchRng {
    twister: Mt,
    /// The words of the current turn of the twister, and how many of them are used up.
    block: [u32; BLOCK],
    used: usize,
    /// The second half of a pair of normals drawn one by one. As in torch it waits in the generator, also across
    /// calls, for the next draw of fewer than 16.
    normal: Option<f64>,
}

/// A [`TorchRng`] put aside; restoring it continues the stream bit for bit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// The 624 words of the current turn, then how many of them are used up.
    pub words: Vec<u32>,
    /// Bits of the normal drawn in advance, if there is one.
    pub normal: Option<u64>,
}

impl TorchRng {
    /// The generator for a seed. torch seeds its twister with the lower 32 bits and drops the rest.
    pub fn new(seed: u64) -> Self {
        let mut rng = Self { twister: Mt::new(seed as u32), block: [0; BLOCK], used: BLOCK, normal: None };
        rng.refill();
        rng
    }

    /// The state, to be kept in a checkpoint.
    pub fn state(&self) -> RngState {
        let mut words = self.block.to_vec();
        words.push(self.used as u32);
        RngState { words, normal: self.normal.map(f64::to_bits) }
    }

    /// The generator that [`TorchRng::state`] was taken of.
    ///
    /// # Errors
    /// [`Error::Usage`] when the state is not 625 words of which the last is at most 624.
    pub fn from_state(state: &RngState) -> Result<Self> {
        let damaged = || Error::Usage("the saved state of the random numbers is damaged; start afresh".into());
        let (used, words) = state.words.split_last().ok_or_else(damaged)?;
        let block: [u32; BLOCK] = words.try_into().map_err(|_| damaged())?;
        let used = usize::try_from(*used).ok().filter(|used| *used <= BLOCK).ok_or_else(damaged)?;
        // A turn's words determine the twister's state after that turn.
        Ok(Self { twister: Mt::from(block), block, used, normal: state.normal.map(f64::from_bits) })
    }

    fn refill(&mut self) {
        self.block = std::array::from_fn(|_| self.twister.next_u32());
        self.used = 0;
    }

    fn random(&mut self) -> u32 {
        if self.used == BLOCK {
            self.refill();
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    fn random64(&mut self) -> u64 {
        let high = u64::from(self.random());
        high << 32 | u64::from(self.random())
    }

    /// Uniform on [0, 1) from 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        (self.random() & 0xff_ffff) as f32 / (1 << 24) as f32
    }

    /// Uniform on [0, 1) from 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        (self.random64() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// `torch.rand(shape)`: f32, uniform on [0, 1), bit for bit.
    ///
    /// # Errors
    /// What candle reports.
    pub fn rand(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count()).map(|_| self.uniform_f32()).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// `torch.randint(low, high, (count,))`: whole numbers from `low` up to but not including `high`. Spans of 2^28
    /// and more take two words, as in torch 2.15; older versions took one up to 2^32.
    ///
    /// # Errors
    /// [`Error::Usage`] when the range is empty.
    pub fn randint(&mut self, low: i64, high: i64, count: usize) -> Result<Vec<i64>> {
        if low >= high {
            return Err(Error::Usage(format!("no whole number from {low} up to {high}; give a larger upper end")));
        }
        let span = high.wrapping_sub(low) as u64;
        let draw = |_| {
            let word = if span >= 1 << 28 { self.random64() } else { u64::from(self.random()) };
            low.wrapping_add((word % span) as i64)
        };
        Ok((0..count).map(draw).collect())
    }

    /// `torch.randn(shape)`: f32 unit normals, equal to about 1e-6 (torch's vectorised logarithm and sine round
    /// differently).
    ///
    /// # Errors
    /// What candle reports.
    pub fn randn(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let size = shape.elem_count();
        let values = if size < 16 { (0..size).map(|_| self.normal() as f32).collect() } else { self.normals(size) };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// `normal_distribution<double>`: Box and Muller's pair, its second half kept for the next call.
    fn normal(&mut self) -> f64 {
        if let Some(normal) = self.normal.take() {
            return normal;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let (radius, theta) = ((-2.0 * (-u2).ln_1p()).sqrt(), 2.0 * PI * u1);
        self.normal = Some(radius * theta.sin());
        radius * theta.cos()
    }

    /// `normal_fill`: uniforms first, then turned into normals in chunks of 16; a remainder is dealt with by drawing
    /// the last 16 anew.
    fn normals(&mut self, size: usize) -> Vec<f32> {
        let mut data: Vec<f32> = (0..size).map(|_| self.uniform_f32()).collect();
        data.chunks_exact_mut(16).for_each(box_muller_16);
        if !size.is_multiple_of(16) {
            let last = &mut data[size - 16..];
            last.fill_with(|| self.uniform_f32());
            box_muller_16(last);
        }
        data
    }
}

/// Values j and j + 8 of 16 uniforms become a pair of normals.
fn box_muller_16(data: &mut [f32]) {
    for j in 0..8 {
        let (u1, u2) = (1.0 - data[j], data[j + 8]);
        let radius = (-2.0 * f64::from(u1).ln()).sqrt();
        let theta = f64::from((2.0 * PI) as f32 * u2); // torch rounds the angle to f32
        data[j] = (radius * theta.cos()) as f32;
        data[j + 8] = (radius * theta.sin()) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws of every kind, some leaving half a pair behind.
    fn draws(rng: &mut TorchRng) -> Vec<u32> {
        let mut bits = Vec::new();
        for size in [3, 400, 16, 17, 1, 350] {
            for tensor in [rng.randn(size).unwrap(), rng.rand(size).unwrap()] {
                bits.extend(tensor.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits));
            }
            bits.extend(rng.randint(-5, 1000, size).unwrap().into_iter().map(|value| value as u32));
        }
        bits
    }

    #[test]
    fn a_restored_state_continues_bit_for_bit() {
        // 0 and 624 words used, the ends of a turn, and half a normal pair.
        for (words, normals) in [(0, 0), (1, 1), (624, 0), (625, 3), (1000, 20)] {
            let mut rng = TorchRng::new(7);
            rng.rand(words).unwrap();
            rng.randn(normals).unwrap();
            let text = serde_json::to_string(&rng.state()).unwrap();
            let mut restored = TorchRng::from_state(&serde_json::from_str(&text).unwrap()).unwrap();
            assert_eq!(restored.state(), rng.state());
            assert_eq!(draws(&mut restored), draws(&mut rng), "after {words} words and {normals} normals");
        }
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let good = TorchRng::new(1).state();
        for words in [vec![], good.words[1..].to_vec(), [good.words[..BLOCK].to_vec(), vec![625]].concat()] {
            assert!(TorchRng::from_state(&RngState { words, normal: None }).is_err());
        }
        assert!(TorchRng::from_state(&good).is_ok());
    }

    #[test]
    fn seeds_keep_their_lower_32_bits() {
        assert_eq!(TorchRng::new(42).state(), TorchRng::new((9 << 32) + 42).state());
        assert_ne!(TorchRng::new(42).state(), TorchRng::new(43).state());
    }

    #[test]
    fn empty_ranges_are_refused_and_empty_shapes_are_not() {
        let mut rng = TorchRng::new(1);
        assert!(rng.randint(3, 3, 1).is_err());
        assert!(rng.randint(3, 2, 1).is_err());
        assert_eq!(rng.randn((0, 4)).unwrap().dims(), [0, 4]);
        assert!(rng.randint(i64::MIN, i64::MAX, 4).is_ok());
    }
}
