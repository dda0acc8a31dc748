//! Style and content guidance: DreamStyler, arXiv 2309.06933, eq. 11, collected by prediction.

use super::weighted_sum;
use crate::stages::PerStage;
use crate::{Error, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A prediction of the network, by the prompt it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Branch {
    /// `e_0`: the negative or the empty prompt.
    Negative,
    /// `e_v`: the whole prompt, with the style token.
    Full,
    /// `e_c`: the prompt without the style token.
    ContextOnly,
    /// `e_s`: "A painting in the style of" the token, and nothing else.
    StyleOnly,
}

/// Which reading of the equation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GuidanceForm {
    /// As printed.
    #[default]
    Paper,
    /// As in the reference code, which halves the style and content scales.
    Half,
}

/// The scales of eq. 11:
///
/// ```text
/// e = e_0 + ls (e_v - e_c) + lc (e_c - e_0)
///         + ls (e_s - e_0) + lc (e_v - e_s)
///         + ln (e_v - e_0)
/// ```
///
/// `ls` and `lc` may differ from stage to stage; they are 0 where a stage is given none.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// `ls`, style.
    pub style: PerStage,
    /// `lc`, content.
    pub content: PerStage,
    /// `ln`, the prompt as a whole: classifier-free guidance when the others are 0.
    pub prompt: f64,
    /// Paper or reference code.
    pub form: GuidanceForm,
}

impl Guidance {
    /// Checks the scales.
    ///
    /// # Errors
    /// [`Error::Usage`] for a scale that is not a finite number.
    pub fn new(
        style: impl Into<PerStage>,
        content: impl Into<PerStage>,
        prompt: f64,
        form: GuidanceForm,
    ) -> Result<Self> {
        let (style, content) = (style.into(), content.into());
        let named = |name, scales: &PerStage| scales.numbers().map(|scale| (name, scale)).collect::<Vec<_>>();
        for (name, scale) in [named("style", &style), named("content", &content), vec![("prompt", prompt)]].concat() {
            if !scale.is_finite() {
                return Err(Error::Usage(format!("the {name} guidance is {scale}; give a finite number")));
            }
        }
        Ok(Self { style, content, prompt, form })
    }

    /// Whether there are the stages that it names, of so many.
    ///
    /// # Errors
    /// [`Error::Usage`] for one that there is not.
    pub fn check_stages(&self, stages: usize) -> Result<()> {
        for (name, scales) in [("style", &self.style), ("content", &self.content)] {
            if let Some(stage) = scales.highest().filter(|stage| *stage >= stages) {
                return Err(Error::Usage(format!(
                    "the {name} strength of stage {stage} is given, but there are only the stages 0 to {}",
                    stages.saturating_sub(1)
                )));
            }
        }
        Ok(())
    }

    /// The equation at a stage with like terms collected: each prediction that counts, with its coefficient, in the order
    /// of [`Branch`]. The coefficients sum to 1. A prediction whose coefficient is zero is left out, so that equal style
    /// and content scales leave exactly two: plain classifier-free guidance of scale `ln + ls + lc`.
    pub fn terms(&self, stage: usize) -> Vec<(Branch, f64)> {
        let half = if self.form == GuidanceForm::Half { 0.5 } else { 1.0 };
        let scale = |scales: &PerStage| half * scales.of(stage).unwrap_or(0.0);
        let (ls, lc, ln) = (scale(&self.style), scale(&self.content), self.prompt);
        let mut terms = vec![
            (Branch::Negative, 1.0 - (ls + lc + ln)),
            (Branch::Full, ls + lc + ln),
            // The difference of two f64 is zero only when they are equal.
            (Branch::ContextOnly, lc - ls),
            (Branch::StyleOnly, ls - lc),
        ];
        terms.retain(|(_, coefficient)| *coefficient != 0.0);
        terms
    }

    /// The guided prediction `[B, ...]` from the predictions `[n * B, ...]`, stacked along the batch in the order of
    /// the n [`Guidance::terms`] of the stage.
    ///
    /// # Errors
    /// [`Error::Usage`] when the batch is not a multiple of n.
    pub fn combine(&self, predictions: &Tensor, stage: usize) -> Result<Tensor> {
        let terms = self.terms(stage);
        let stacked = predictions.dims().first().copied().unwrap_or(0);
        if stacked == 0 || !stacked.is_multiple_of(terms.len()) {
            return Err(Error::Usage(format!(
                "predictions of shape {:?} cannot be shared among {} branches; stack one batch for each",
                predictions.dims(),
                terms.len()
            )));
        }
        let branches = predictions.chunk(terms.len(), 0)?;
        let weighted: Vec<_> = terms.iter().zip(&branches).map(|((_, weight), branch)| (*weight, branch)).collect();
        weighted_sum(&weighted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::TorchRng;
    use candle_core::Device;

    fn guidance(style: f64, content: f64, prompt: f64) -> Guidance {
        Guidance::new(style, content, prompt, GuidanceForm::Paper).unwrap()
    }

    fn branches(guidance: &Guidance) -> Vec<Branch> {
        guidance.terms(0).into_iter().map(|(branch, _)| branch).collect()
    }

    /// Eq. 11 as printed, over the predictions (e_0, e_v, e_c, e_s).
    fn literal(ls: f64, lc: f64, ln: f64, [e0, ev, ec, es]: [f64; 4]) -> f64 {
        e0 + ls * (ev - ec) + lc * (ec - e0) + ls * (es - e0) + lc * (ev - es) + ln * (ev - e0)
    }

    #[test]
    fn collected_terms_are_the_literal_equation() {
        let mut rng = TorchRng::new(3);
        for round in 0..500 {
            let draw = rng.rand(7).unwrap().to_vec1::<f32>().unwrap();
            let scale = |i: usize| f64::from(draw[i]) * 10.0 - 2.0;
            let (ls, lc, ln) = (scale(0), if round % 5 == 0 { scale(0) } else { scale(1) }, scale(2));
            let e = [scale(3), scale(4), scale(5), scale(6)];
            for (form, half) in [(GuidanceForm::Paper, 1.0), (GuidanceForm::Half, 0.5)] {
                let guidance = Guidance::new(ls, lc, ln, form).unwrap();
                let collected: f64 =
                    guidance.terms(0).iter().map(|(branch, weight)| weight * e[*branch as usize]).sum();
                let expected = literal(half * ls, half * lc, ln, e);
                // About twenty roundings of terms of at most 8 * 8 * 6.
                let tolerance = 20.0 * 400.0 * f64::EPSILON;
                assert!((collected - expected).abs() <= tolerance, "{guidance:?}: {collected} and {expected}");
                let sum: f64 = guidance.terms(0).iter().map(|(_, weight)| weight).sum();
                assert!((sum - 1.0).abs() <= 100.0 * f64::EPSILON, "{sum}");
            }
        }
    }

    #[test]
    fn only_branches_that_count_are_evaluated() {
        use Branch::*;
        assert_eq!(branches(&guidance(2.0, 3.0, 5.0)), [Negative, Full, ContextOnly, StyleOnly]);
        assert_eq!(guidance(3.0, 3.0, 5.0).terms(0), [(Negative, -10.0), (Full, 11.0)]);
        assert_eq!(branches(&guidance(0.1, 0.1, 7.5)), [Negative, Full]);
        assert_eq!(guidance(0.0, 0.0, 7.5).terms(0), [(Negative, -6.5), (Full, 7.5)]);
        assert_eq!(guidance(0.0, 0.0, 1.0).terms(0), [(Full, 1.0)]);
        assert_eq!(guidance(0.0, 0.0, 0.0).terms(0), [(Negative, 1.0)]);
        assert_eq!(guidance(1.0, 0.0, 0.0).terms(0), [(Full, 1.0), (ContextOnly, -1.0), (StyleOnly, 1.0)]);
        // The next number is not the same number.
        let next = f64::from_bits(3.0f64.to_bits() + 1);
        assert_eq!(branches(&guidance(3.0, next, 5.0)).len(), 4);
        let half = Guidance::new(3.0, 3.0, 5.0, GuidanceForm::Half).unwrap();
        assert_eq!(half.terms(0), [(Negative, -7.0), (Full, 8.0)]);
    }

    #[test]
    fn combine_weights_the_stacked_batches() {
        let guidance = guidance(2.0, 3.0, 5.0);
        let e = [[1.0f32, 2.0], [3.0, 5.0], [7.0, 11.0], [13.0, 17.0]];
        let stacked = Tensor::from_vec(e.concat(), (8, 1), &Device::Cpu).unwrap();
        let combined = guidance.combine(&stacked, 0).unwrap();
        assert_eq!(combined.dims(), [2, 1]);
        let expected = [0, 1].map(|b| literal(2.0, 3.0, 5.0, e.map(|branch| f64::from(branch[b]))) as f32);
        // Small whole numbers: exact.
        assert_eq!(combined.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
        assert!(guidance.combine(&stacked.narrow(0, 0, 7).unwrap(), 0).is_err());
    }

    #[test]
    fn a_stage_has_its_own_equation() {
        let curve = |text: &str| text.parse::<PerStage>().unwrap();
        let guidance =
            |style: &str, content: &str| Guidance::new(curve(style), curve(content), 5.0, GuidanceForm::Paper).unwrap();
        let plain =
            |style: f64, content: f64| Guidance::new(style, content, 5.0, GuidanceForm::Paper).unwrap().terms(0);
        let some = guidance("5..3=2,0=4", "1,4=2,0=0");
        let wanted = [(4.0, 0.0), (0.0, 1.0), (0.0, 1.0), (2.0, 1.0), (2.0, 2.0), (2.0, 1.0)];
        for (stage, (style, content)) in wanted.into_iter().enumerate() {
            assert_eq!(some.terms(stage), plain(style, content), "stage {stage}");
        }
        assert_eq!((some.terms(3).len(), some.terms(4).len()), (4, 2));
        some.check_stages(6).unwrap();
        let error = some.check_stages(5).unwrap_err().to_string();
        assert!(error.contains("style strength of stage 5") && error.contains("0 to 4"), "{error}");
        let error = guidance("1", "7=1").check_stages(6).unwrap_err().to_string();
        assert!(error.contains("content strength of stage 7"), "{error}");
    }

    #[test]
    fn scales_must_be_finite() {
        let curve = "5..0=1..inf".parse::<PerStage>().unwrap();
        assert!(Guidance::new(1.0, curve, 1.0, GuidanceForm::Paper).is_err());
        assert!(Guidance::new(f64::NAN, 0.0, 1.0, GuidanceForm::Paper).is_err());
        assert!(Guidance::new(0.0, f64::INFINITY, 1.0, GuidanceForm::Paper).is_err());
    }
}
