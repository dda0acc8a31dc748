//! UniPC-2, arXiv 2302.04867: predictor UniP-2 and corrector UniC-2, B(h) = e^h - 1 ("bh2"), on data predictions.

use super::{Level, NoiseSource, Solver, Step, weighted_sum};
use crate::Result;
use candle_core::Tensor;

/// The symbols are the paper's; for data prediction its h enters with a minus sign, so `b_h` is `B(-h) = e^-h - 1`.
#[derive(Default)]
pub(super) struct UniPc {
    /// Level and data prediction m of the last two steps, newest first.
    history: Vec<(Level, Tensor)>,
    /// The corrected latent the last step set out from, and the order of that step.
    last: Option<(Tensor, usize)>,
}

impl Solver for UniPc {
    fn step(&mut self, step: &Step, x: &Tensor, m: &Tensor, _: &mut NoiseSource<'_>) -> Result<Tensor> {
        let x = match &self.last {
            Some((last_x, order)) => self.correct(step.from, last_x, m, *order)?,
            None => x.clone(),
        };
        self.history.insert(0, (step.from, m.clone()));
        self.history.truncate(2);
        // Order 1 until there is a history, and for the last step, to lambda = infinity.
        let order = if step.to.sigma > 0.0 { self.history.len() } else { 1 };
        let predicted = self.predict(step.to, &x, order)?;
        self.last = Some((x, order));
        Ok(predicted)
    }
}

impl UniPc {
    /// UniP: x at level s0, newest in the history, to level t.
    fn predict(&self, t: Level, x: &Tensor, order: usize) -> Result<Tensor> {
        let (s0, m0) = &self.history[0];
        let h = t.lambda() - s0.lambda();
        let b_h = (-h).exp_m1();
        let mut terms = vec![(t.sigma / s0.sigma, x), (-t.alpha * b_h, m0)];
        let d1;
        if order == 2 {
            d1 = self.d1(h)?;
            terms.push((-t.alpha * b_h * 0.5, &d1)); // rho_1 of UniP-2 is 1/2, whatever the steps
        }
        weighted_sum(&terms)
    }

    /// UniC: redoes the last step, from `x` at level s0 to level t, knowing m at t.
    fn correct(&self, t: Level, x: &Tensor, m: &Tensor, order: usize) -> Result<Tensor> {
        let (s0, m0) = &self.history[0];
        let h = t.lambda() - s0.lambda();
        let b_h = (-h).exp_m1();
        let d1_t = (m - m0)?;
        let step = [(t.sigma / s0.sigma, x), (-t.alpha * b_h, m0)];
        if order == 1 {
            return weighted_sum(&[step[0], step[1], (-t.alpha * b_h * 0.5, &d1_t)]);
        }
        // rho solves [[1, 1], [r_1, 1]] rho = b, b_k = k! h phi_{k+1}(-h) / B(-h).
        let phi_2 = b_h / -h - 1.0;
        let phi_3 = phi_2 / -h - 0.5;
        let (b_1, b_2) = (phi_2 / b_h, 2.0 * phi_3 / b_h);
        let rho_1 = (b_1 - b_2) / (1.0 - self.r1(h));
        let rho_2 = b_1 - rho_1;
        let d1 = self.d1(h)?;
        weighted_sum(&[step[0], step[1], (-t.alpha * b_h * rho_1, &d1), (-t.alpha * b_h * rho_2, &d1_t)])
    }

    /// `r_1 = (lambda_{s1} - lambda_{s0}) / h`, negative: s1 lies before s0.
    fn r1(&self, h: f64) -> f64 {
        (self.history[1].0.lambda() - self.history[0].0.lambda()) / h
    }

    /// `D_1 = (m_1 - m_0) / r_1`.
    fn d1(&self, h: f64) -> Result<Tensor> {
        let r_1 = self.r1(h);
        weighted_sum(&[(1.0 / r_1, &self.history[1].1), (-1.0 / r_1, &self.history[0].1)])
    }
}
