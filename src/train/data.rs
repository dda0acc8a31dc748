//! The style pictures as latents. Each has only two variants, plain and flipped, so the VAE sees each once; every step
//! then draws fresh samples from the kept posteriors.

use super::Study;
use crate::Result;
use crate::painter::Painter;
use crate::sampler::TorchRng;
use crate::side::vae::Posterior;
use crate::style::stage_of;
use candle_core::Tensor;

/// Timesteps of the diffusion.
const TIMESTEPS: i64 = 1000;

/// Posteriors of every picture, plain and flipped.
#[derive(Debug)]
pub struct Studies {
    posteriors: Vec<[Posterior; 2]>,
    /// Timesteps that random batches are drawn from.
    timesteps: Vec<f64>,
}

/// Samples to learn from.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Clean latents `[B, 4, h, w]`, scaled.
    pub latents: Tensor,
    /// Unit noise of the same shape.
    pub noise: Tensor,
    /// `[B]`, in `[0, 1000)`.
    pub timesteps: Vec<f64>,
    /// Which picture each latent is of.
    pub pictures: Vec<usize>,
}

impl Batch {
    /// The same samples as so many batches, the last of which may be smaller.
    ///
    /// # Errors
    /// If candle runs out of memory.
    pub fn split(&self, parts: usize) -> Result<Vec<Batch>> {
        let (count, size) = (self.timesteps.len(), self.timesteps.len().div_ceil(parts.max(1)).max(1));
        let part = |first: usize| {
            let length = size.min(count - first);
            Ok(Batch {
                latents: self.latents.narrow(0, first, length)?,
                noise: self.noise.narrow(0, first, length)?,
                timesteps: self.timesteps[first..first + length].to_vec(),
                pictures: self.pictures[first..first + length].to_vec(),
            })
        };
        (0..count).step_by(size).map(part).collect()
    }
}

impl Studies {
    /// Encodes every picture at the model's square training size.
    ///
    /// # Errors
    /// If the VAE fails.
    pub fn encode(painter: &Painter, studies: &[Study]) -> Result<Self> {
        let size = painter.bundle().native_size();
        let both = |study: &Study| {
            let frame = study.frame.resize(size, size)?;
            Ok([painter.vae().encode(&frame)?, painter.vae().encode(&frame.flip_horizontal())?])
        };
        let posteriors = studies.iter().map(both).collect::<Result<_>>()?;
        painter.release_vae();
        Ok(Studies { posteriors, timesteps: (0..TIMESTEPS).map(|t| t as f64).collect() })
    }

    /// Random batches from now on only at timesteps of these stages, of so many.
    pub fn keep_stages(&mut self, stages: &[usize], of: usize) {
        self.timesteps.retain(|&t| stages.contains(&stage_of(t, of)));
    }

    /// A random batch: pictures and timesteps uniform, flipped half of the time.
    ///
    /// # Errors
    /// If candle runs out of memory.
    pub fn draw(&self, count: usize, rng: &mut TorchRng) -> Result<Batch> {
        let pictures = rng.randint(0, self.posteriors.len() as i64, count)?;
        let flipped: Vec<_> = rng.rand(count)?.to_vec1::<f32>()?.iter().map(|&p| (p < 0.5) as usize).collect();
        let drawn = rng.randint(0, self.timesteps.len() as i64, count)?;
        let timesteps = drawn.into_iter().map(|i| self.timesteps[i as usize]).collect();
        self.batch(pictures.into_iter().map(|p| p as usize).collect(), flipped, timesteps, rng)
    }

    /// A batch that is the same whenever it is drawn: timesteps evenly spread over the whole diffusion, pictures and
    /// flips in turn.
    ///
    /// # Errors
    /// If candle runs out of memory.
    pub fn fixed(&self, first: usize, count: usize, of: usize, rng: &mut TorchRng) -> Result<Batch> {
        let numbers = first..first + count;
        let timesteps = numbers.clone().map(|i| ((i as f64 + 0.5) * TIMESTEPS as f64 / of as f64).floor()).collect();
        let pictures = numbers.clone().map(|i| i / 2 % self.posteriors.len()).collect();
        self.batch(pictures, numbers.map(|i| i % 2).collect(), timesteps, rng)
    }

    fn batch(
        &self,
        pictures: Vec<usize>,
        flipped: Vec<usize>,
        timesteps: Vec<f64>,
        rng: &mut TorchRng,
    ) -> Result<Batch> {
        let mut latents = vec![];
        for (&picture, &flipped) in pictures.iter().zip(&flipped) {
            let posterior = &self.posteriors[picture][flipped];
            latents.push(posterior.sample(&rng.randn(posterior.mean.shape())?)?.0);
        }
        let latents = Tensor::cat(&latents, 0)?;
        Ok(Batch { noise: rng.randn(latents.shape())?, latents, timesteps, pictures })
    }
}
