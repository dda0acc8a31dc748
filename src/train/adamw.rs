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
        self.steps += 1;
        let step_size = (lr / (1.0 - BETA1.powi(self.steps as i32))) as f32;
        let correction = (1.0 - BETA2.powi(self.steps as i32)).sqrt() as f32;
        let decay = (1.0 - lr * WEIGHT_DECAY) as f32;
        for (t, vector) in vectors.iter_mut().enumerate() {
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
