//! AdamW (arXiv 1711.05101), step for step as `torch.optim.AdamW`; ours because a checkpoint must hold its moments.

/// The moments of T vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Steps taken.
    pub steps: usize,
    /// Mean of the gradients, `[T][D]`.
    pub first: Vec<Vec<f32>>,
    /// Mean of their squares, `[T][D]`.
    pub second: Vec<Vec<f32>>,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const WEIGHT_DECAY: f64 = 0.01;
const EPS: f64 = 1e-8;

impl AdamW {
    /// For `stages` vectors of `width` numbers.
    pub fn new(stages: usize, width: usize) -> Self {
        AdamW { steps: 0, first: vec![vec![0.0; width]; stages], second: vec![vec![0.0; width]; stages] }
    }

    /// Moves `vectors` against `gradient`, both `[T][D]`. A vector whose gradient is zero still feels its momentum and
    /// the weight decay, as every row of a PyTorch parameter does.
    pub fn step(&mut self, vectors: &mut [Vec<f32>], gradient: &[Vec<f32>], lr: f64) {
        let rates = vec![Some(lr); vectors.len()];
        self.step_each(vectors, gradient, &rates);
    }

    /// As [`AdamW::step`] with a learning rate for each vector, as PyTorch's parameter groups have one; a vector without
    /// one stays as it is, bit for bit.
    pub fn step_each(&mut self, vectors: &mut [Vec<f32>], gradient: &[Vec<f32>], rates: &[Option<f64>]) {
        self.steps += 1;
        let correction = (1.0 - BETA2.powi(self.steps as i32)).sqrt() as f32;
        for (t, vector) in vectors.iter_mut().enumerate() {
            let Some(lr) = rates[t] else { continue };
            let step_size = (lr / (1.0 - BETA1.powi(self.steps as i32))) as f32;
            let decay = (1.0 - lr * WEIGHT_DECAY) as f32;
            for (d, x) in vector.iter_mut().enumerate() {
                let g = gradient[t][d];
                let (m, v) = (&mut self.first[t][d], &mut self.second[t][d]);
                *m += (g - *m) * (1.0 - BETA1) as f32;
                *v = *v * BETA2 as f32 + g * g * (1.0 - BETA2) as f32;
                *x = *x * decay - step_size * *m / (v.sqrt() / correction + EPS as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.optim.AdamW` 2.15 on the same gradients: sizes from 1 down to 1e-4, varying by five, rows left out in
    /// two of three steps. A second beta of 0.998 instead of 0.999 would be 6e-6 off, one of 0.99 6e-5.
    #[test]
    fn forty_steps_on_varying_gradients_equal_pytorch() {
        let mut vectors = vec![vec![0.5, -0.25, 0.01], vec![1.0, 0.0, -2.0]];
        let mut adamw = AdamW::new(2, 3);
        for k in 0..40 {
            let g = |t: usize, d: usize| match t == 0 || k % 3 == 0 {
                true => (0.7 * k as f64 + d as f64).sin() * 10f64.powi(-2 * d as i32) * (1 + k % 5) as f64,
                false => 0.0,
            };
            let gradient: Vec<Vec<f32>> = (0..2).map(|t| (0..3).map(|d| g(t, d) as f32).collect()).collect();
            adamw.step(&mut vectors, &gradient, 0.002);
        }
        let torch: [[f32; 3]; 2] =
            [[0.488_737_58, -0.257_998_65, 0.010_361_095], [0.995_410_4, -0.011_287_752, -2.004_326_6]];
        for (ours, torch) in vectors.iter().flatten().zip(torch.iter().flatten()) {
            // forty updates, each rounded at the size of the value or of the step
            let tolerance = 40.0 * f32::EPSILON * torch.abs().max(0.01);
            assert!((ours - torch).abs() <= tolerance, "{ours} against {torch}");
        }
    }
}
