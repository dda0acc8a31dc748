//! What a lesson may have besides the paper's recipe.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Learning rates, constant over the steps: one for all stages, or one each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rates {
    /// Of the stages that are not named.
    rest: Option<f64>,
    named: Vec<(RangeInclusive<usize>, f64)>,
}

impl From<f64> for Rates {
    fn from(rate: f64) -> Self {
        Rates { rest: Some(rate), named: vec![] }
    }
}

impl FromStr for Rates {
    type Err = Error;

    /// `0.002`, `5..3=0.001,2..0=0.004`, or `0.002,5=0.001` for one stage otherwise than the rest.
    fn from_str(text: &str) -> Result<Self> {
        let fault = |what: &str| {
            Error::Usage(format!("the learning rate {text:?} {what}; write it like 0.002 or 5..3=0.001,2..0=0.004"))
        };
        let mut rates = Rates { rest: None, named: vec![] };
        for part in text.split(',') {
            let (stages, rate) = part.split_once('=').map_or((None, part), |(stages, rate)| (Some(stages), rate));
            let rate: f64 = rate.trim().parse().map_err(|_| fault("has a part that is no number"))?;
            let Some(stages) = stages else {
                if rates.rest.replace(rate).is_some() {
                    return Err(fault("has two numbers for all stages"));
                }
                continue;
            };
            let stages = range(stages).ok_or_else(|| fault("names something that is no stage"))?;
            if rates.named.iter().any(|(other, _)| other.start() <= stages.end() && stages.start() <= other.end()) {
                return Err(fault("names a stage twice"));
            }
            rates.named.push((stages, rate));
        }
        Ok(rates)
    }
}

impl TryFrom<String> for Rates {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Rates> for String {
    fn from(rates: Rates) -> Self {
        rates.to_string()
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.named.iter().map(|(stages, rate)| format!("{}..{}={rate}", stages.end(), stages.start()));
        let parts: Vec<String> = self.rest.iter().map(f64::to_string).chain(named).collect();
        f.write_str(&parts.join(","))
    }
}

impl Rates {
    /// A stage's rate; none where it is not given one.
    pub fn of(&self, stage: usize) -> Option<f64> {
        self.named.iter().find(|(stages, _)| stages.contains(&stage)).map(|(_, rate)| *rate).or(self.rest)
    }

    fn fault(&self, stages: &[usize], count: usize) -> Option<String> {
        let all = self.rest.iter().chain(self.named.iter().map(|(_, rate)| rate));
        if all.clone().any(|rate| !(*rate > 0.0 && rate.is_finite())) {
            return Some("the learning rate must be a positive number".to_owned());
        }
        if let Some((named, _)) = self.named.iter().find(|(named, _)| *named.end() >= count) {
            return Some(format!("a learning rate is given to stage {}, of 0 to {}", named.end(), count - 1));
        }
        let without = stages.iter().find(|stage| self.of(**stage).is_none())?;
        Some(format!("stage {without} has no learning rate; add a number for the rest, as in 0.002,5..3=0.001"))
    }
}

/// Stages of a style.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stages(Vec<RangeInclusive<usize>>);

impl FromStr for Stages {
    type Err = Error;

    /// `0..3`, `5`, `5..3,0`; a range is written either way round and holds both its ends.
    fn from_str(text: &str) -> Result<Self> {
        let stages: Option<Vec<_>> = text.split(',').map(range).collect();
        let what = || Error::Usage(format!("{text:?} names no stages; write them like 0..3 or 5,2..0"));
        stages.map(Stages).ok_or_else(what)
    }
}

impl TryFrom<String> for Stages {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Stages> for String {
    fn from(stages: Stages) -> Self {
        stages.to_string()
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(|range| format!("{}..{}", range.start(), range.end())).collect();
        f.write_str(&ranges.join(","))
    }
}

impl Stages {
    fn contains(&self, stage: usize) -> bool {
        self.0.iter().any(|range| range.contains(&stage))
    }
}

/// `5..3` is 3, 4 and 5.
fn range(text: &str) -> Option<RangeInclusive<usize>> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
    Some(from.min(to)..=from.max(to))
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
    pub(super) fn fault(&self, rates: &Rates, stages: usize) -> Option<String> {
        let highest = self.learn_stages.iter().flat_map(|stages| &stages.0).map(|range| *range.end()).max();
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
        rates.fault(&self.learning(stages), stages)
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
    fn rates_for_stages() {
        let rates: Rates = "5..3=0.001, 0..2=0.004".parse().unwrap();
        assert_eq!(
            (0..7).map(|stage| rates.of(stage)).collect::<Vec<_>>()[2..],
            [Some(0.004), Some(0.001), Some(0.001), Some(0.001), None]
        );
        let rates: Rates = "0.002,1=0.5".parse().unwrap();
        assert_eq!((rates.of(0), rates.of(1), rates.of(900)), (Some(0.002), Some(0.5), Some(0.002)));
        for text in ["0.002", "0.002,1..1=0.5", "5..3=0.001,2..0=0.004"] {
            let rates: Rates = text.parse().unwrap();
            assert_eq!(rates.to_string(), text);
            assert_eq!(serde_json::from_value::<Rates>(serde_json::to_value(&rates).unwrap()).unwrap(), rates);
        }
        for (text, what) in [
            ("", "no number"),
            ("x", "no number"),
            ("1,2", "two numbers"),
            ("5..3=1,4=2", "twice"),
            ("a=1", "no stage"),
            ("5-3=1", "no stage"),
        ] {
            let error = text.parse::<Rates>().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

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
        assert!("5..".parse::<Stages>().is_err() && "".parse::<Stages>().is_err());
    }
}
