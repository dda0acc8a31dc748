//! What a lesson may have besides the paper's recipe.

use crate::stages::{PerStage, Stages};

/// What is wrong with learning rates for these stages of so many, if anything is.
fn fault_of_rates(rates: &PerStage, stages: &[usize], count: usize) -> Option<String> {
    if rates.numbers().any(|rate| !(rate > 0.0 && rate.is_finite())) {
        return Some("the learning rate must be a positive number".to_owned());
    }
    if let Some(named) = rates.highest().filter(|named| *named >= count) {
        return Some(format!("a learning rate is given to stage {named}, of 0 to {}", count - 1));
    }
    let without = stages.iter().find(|stage| rates.of(**stage).is_none())?;
    Some(format!("stage {without} has no learning rate; add a number for the rest, as in 0.002,5..3=0.001"))
}

/// Choices beyond the paper's recipe; the defaults leave it as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Stages that learn; the others stay at the initial word, and no step looks at their timesteps. None: all.
    pub learn_stages: Option<Stages>,
    /// Vectors of each stage, n: the style stands for so many tokens in a row.
    pub vectors_per_stage: usize,
    /// Batches an optimiser step takes the gradient of; as one batch so many times as large, in less memory.
    pub accumulate: usize,
    /// Gamma of min-SNR weighting (arXiv 2303.09556), which holds down the loss of timesteps with little noise; 5 in the
    /// paper.
    pub min_snr: Option<f64>,
    /// Steps between two evaluations of the validation loss; none: not before the end.
    pub validate_every: Option<usize>,
    /// Evaluations of the validation loss without a better one after which the lesson ends. The best vectors are kept.
    pub early_stop: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            learn_stages: None,
            vectors_per_stage: 1,
            accumulate: 1,
            min_snr: None,
            validate_every: None,
            early_stop: None,
        }
    }
}

impl Options {
    /// The stages that learn, of so many.
    pub fn learning(&self, stages: usize) -> Vec<usize> {
        let learns = |stage: &usize| self.learn_stages.as_ref().is_none_or(|learn| learn.contains(*stage));
        (0..stages).filter(learns).collect()
    }

    /// Whether the validation loss is due after `step`.
    pub(super) fn validates(&self, step: usize) -> bool {
        let every = self.validate_every.or(self.early_stop.map(|_| super::CHECKPOINT_EVERY));
        every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// What is wrong with them for so many stages, if anything is.
    pub(super) fn fault(&self, rates: &PerStage, stages: usize) -> Option<String> {
        let highest = self.learn_stages.as_ref().and_then(Stages::highest);
        if highest.is_some_and(|highest| highest >= stages) {
            return Some(format!("stage {} is to learn, of 0 to {}", highest.unwrap_or(0), stages - 1));
        }
        if !(1..=crate::style::MOST_VECTORS).contains(&self.vectors_per_stage) {
            return Some(format!("a stage has 1 to {} vectors", crate::style::MOST_VECTORS));
        }
        if self.accumulate == 0 || self.validate_every == Some(0) || self.early_stop == Some(0) {
            return Some("batches to accumulate, steps between validations and patience must be at least 1".to_owned());
        }
        if self.min_snr.is_some_and(|gamma| !(gamma > 0.0 && gamma.is_finite())) {
            return Some("min-SNR weighting takes a positive number, such as 5".to_owned());
        }
        fault_of_rates(rates, &self.learning(stages), stages)
    }

    /// What of them decides how a lesson goes, as text; empty for the paper's recipe. A lesson may be resumed with other
    /// learning rates and another patience.
    pub(super) fn fingerprint(&self) -> String {
        let Options { learn_stages, vectors_per_stage, accumulate, min_snr, .. } = self;
        let learn = learn_stages.as_ref().map(Stages::to_string);
        match (learn, vectors_per_stage, accumulate, min_snr) {
            (None, 1, 1, None) => String::new(),
            (learn, several, accumulate, gamma) => format!(" {learn:?} {several} {accumulate} {gamma:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_options_do_not_fit_a_lesson() {
        let with = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options
        };
        let fault = |options: &Options, rates: &str| options.fault(&rates.parse().unwrap(), 6);
        assert_eq!(fault(&Options::default(), "0.002"), None);
        let some = with(|options| options.learn_stages = Some("0..2,5".parse().unwrap()));
        assert_eq!((some.learning(6), fault(&some, "5..0=1")), (vec![0, 1, 2, 5], None));
        assert_eq!(fault(&some, "0..2=1,5=2"), None);
        for (options, rates, what) in [
            (some, "0..2=1", "stage 5 has no learning rate"),
            (with(|_| ()), "0", "positive number"),
            (with(|_| ()), "1,6=2", "stage 6, of 0 to 5"),
            (with(|o| o.learn_stages = Some("6".parse().unwrap())), "1", "stage 6 is to learn"),
            (with(|o| o.vectors_per_stage = 0), "1", "1 to 75"),
            (with(|o| o.vectors_per_stage = 76), "1", "1 to 75"),
            (with(|o| o.accumulate = 0), "1", "at least 1"),
            (with(|o| o.early_stop = Some(0)), "1", "at least 1"),
            (with(|o| o.min_snr = Some(f64::NAN)), "1", "such as 5"),
        ] {
            let found = fault(&options, rates).unwrap_or_default();
            assert!(found.contains(what), "{found:?} for {options:?}");
        }
    }
}
