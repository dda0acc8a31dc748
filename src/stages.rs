//! Stages of a style as people write them, and a number for each.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};

/// Stages T of the paper: beyond them the style picture's contents leak.
pub const STAGES: usize = 6;

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
    /// Whether a stage is among them.
    pub fn contains(&self, stage: usize) -> bool {
        self.0.iter().any(|range| range.contains(&stage))
    }

    /// The highest of them.
    pub fn highest(&self) -> Option<usize> {
        self.0.iter().map(|range| *range.end()).max()
    }
}

/// `5..3` is 3, 4 and 5.
pub fn range(text: &str) -> Option<RangeInclusive<usize>> {
    let (from, to): (usize, usize) = ends(text)?;
    Some(from.min(to)..=from.max(to))
}

/// What stands on both sides of `..`; a value alone is both.
fn ends<T: FromStr>(text: &str) -> Option<(T, T)> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
}

/// One number for all stages, or one each. Written as a number or as text; in JSON as either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct PerStage {
    /// Of the stages that are not named.
    rest: Option<f64>,
    named: Vec<Named>,
}

/// Stages with a number, or with numbers on a straight line.
#[derive(Debug, Clone, PartialEq)]
struct Named {
    stages: RangeInclusive<usize>,
    /// At the lowest of the stages.
    low: f64,
    /// At the highest.
    high: f64,
}

impl Named {
    fn at(&self, stage: usize) -> f64 {
        let (start, end) = (*self.stages.start(), *self.stages.end());
        match end - start {
            0 => self.low,
            along => self.low + (self.high - self.low) * (stage - start) as f64 / along as f64,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "write one number, or one for each stage, as in \"5..3=1,2..0=3\"")]
enum Written {
    Number(f64),
    Text(String),
}

impl TryFrom<Written> for PerStage {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Number(number) => Ok(number.into()),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<PerStage> for Written {
    fn from(numbers: PerStage) -> Self {
        match numbers.constant() {
            Some(number) => Written::Number(number),
            None => Written::Text(numbers.to_string()),
        }
    }
}

impl From<f64> for PerStage {
    fn from(number: f64) -> Self {
        PerStage { rest: Some(number), named: vec![] }
    }
}

impl FromStr for PerStage {
    type Err = Error;

    /// `3`, `5..3=1,2..0=3`, `3,5=1` for one stage otherwise than the rest, or `5..0=1..3` for a straight line from 1 at
    /// stage 5 to 3 at stage 0.
    fn from_str(text: &str) -> Result<Self> {
        let fault = |what: &str| {
            Error::Usage(format!("{text:?} {what}; write one number, or one for each stage, as in 5..3=1,2..0=3"))
        };
        let mut all = PerStage { rest: None, named: vec![] };
        for part in text.split(',') {
            let (stages, value) = part.split_once('=').map_or((None, part), |(stages, value)| (Some(stages), value));
            let Some(stages) = stages else {
                let number = value.trim().parse().map_err(|_| fault("has a part that is no number"))?;
                if all.rest.replace(number).is_some() {
                    return Err(fault("has two numbers for all stages"));
                }
                continue;
            };
            let (from, to) = ends::<usize>(stages).ok_or_else(|| fault("names something that is no stage"))?;
            let (first, last): (f64, f64) = ends(value).ok_or_else(|| fault("has a part that is no number"))?;
            if from == to && value.contains("..") {
                return Err(fault("has two numbers for one stage"));
            }
            let (low, high) = if from < to { (first, last) } else { (last, first) };
            let named = Named { stages: from.min(to)..=from.max(to), low, high };
            let meets = |other: &Named| {
                other.stages.start() <= named.stages.end() && named.stages.start() <= other.stages.end()
            };
            if all.named.iter().any(meets) {
                return Err(fault("names a stage twice"));
            }
            all.named.push(named);
        }
        Ok(all)
    }
}

impl fmt::Display for PerStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.named.iter().map(|Named { stages, low, high }| {
            let (start, end) = (stages.start(), stages.end());
            match (start == end, low == high) {
                (true, _) => format!("{start}={low}"),
                (false, true) => format!("{end}..{start}={low}"),
                (false, false) => format!("{end}..{start}={high}..{low}"),
            }
        });
        let parts: Vec<String> = self.rest.iter().map(f64::to_string).chain(named).collect();
        f.write_str(&parts.join(","))
    }
}

impl PerStage {
    /// A stage's number; none where it is not given one.
    pub fn of(&self, stage: usize) -> Option<f64> {
        self.named.iter().find(|named| named.stages.contains(&stage)).map(|named| named.at(stage)).or(self.rest)
    }

    /// The number of all stages, where only one is given.
    pub fn constant(&self) -> Option<f64> {
        self.rest.filter(|_| self.named.is_empty())
    }

    /// All numbers given, those of lines by their ends.
    pub fn numbers(&self) -> impl Iterator<Item = f64> {
        self.rest.into_iter().chain(self.named.iter().flat_map(|named| [named.low, named.high]))
    }

    /// The highest stage named.
    pub fn highest(&self) -> Option<usize> {
        self.named.iter().map(|named| *named.stages.end()).max()
    }
}

impl utoipa::PartialSchema for PerStage {
    fn schema() -> utoipa::openapi::RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).examples(["5..3=1,2..0=3"]);
        let number = ObjectBuilder::new().schema_type(Type::Number);
        let what = "One number for all stages, or text: 5..3=1,2..0=3 for stages, 3,5=1 for one and the rest, \
                    5..0=1..3 for a straight line";
        OneOfBuilder::new().description(Some(what)).item(number).item(text).into()
    }
}

impl utoipa::ToSchema for PerStage {}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, stages: usize) -> Vec<Option<f64>> {
        let numbers: PerStage = text.parse().unwrap();
        (0..stages).map(|stage| numbers.of(stage)).collect()
    }

    #[test]
    fn numbers_for_stages() {
        let (some, other) = (Some(0.004), Some(0.001));
        assert_eq!(all("5..3=0.001, 0..2=0.004", 7), [some, some, some, other, other, other, None]);
        assert_eq!(all("0.002,1=0.5", 3), [Some(0.002), Some(0.5), Some(0.002)]);
        assert_eq!(all("-2", 2), [Some(-2.0); 2]);
        for text in ["0.002", "0.002,1=0.5", "5..3=0.001,2..0=0.004", "5..0=-1..3", "3,1=-2"] {
            let numbers: PerStage = text.parse().unwrap();
            assert_eq!(numbers.to_string(), text);
            let json = serde_json::to_value(&numbers).unwrap();
            assert_eq!(json.is_number(), numbers.constant().is_some(), "{json}");
            assert_eq!(serde_json::from_value::<PerStage>(json).unwrap(), numbers);
            assert_eq!(serde_json::from_value::<PerStage>(text.into()).unwrap(), numbers);
        }
        assert_eq!(serde_json::from_str::<PerStage>("3").unwrap(), 3.0.into());
    }

    #[test]
    fn lines_go_from_end_to_end_either_way_round() {
        let wanted: Vec<_> = (0..6).map(|stage| Some(f64::from(stage) * 0.5)).collect();
        assert_eq!(all("5..0=2.5..0", 6), wanted);
        assert_eq!(all("0..5=0..2.5", 6), wanted);
        // what is on no line is as it was
        assert_eq!(all("4,3..1=1..2", 5), [4.0, 2.0, 1.5, 1.0, 4.0].map(Some));
        // a line between equal ends is flat, to the last bit
        assert!(all("5..0=0.1..0.1", 6).iter().all(|number| *number == Some(0.1)));
    }

    #[test]
    fn what_cannot_be_read_is_said_in_one_sentence() {
        for (text, what) in [
            ("", "no number"),
            ("x", "no number"),
            ("2=", "no number"),
            ("1..2", "no number"),
            ("5..0=1..x", "no number"),
            ("1,2", "two numbers for all"),
            ("3=1..2", "two numbers for one"),
            ("5..3=1,4=2", "twice"),
            ("a=1", "no stage"),
            ("5-3=1", "no stage"),
            ("-1=1", "no stage"),
        ] {
            let error = text.parse::<PerStage>().unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("as in 5..3=1,2..0=3"), "{text}: {error}");
            assert_eq!(error.matches(". ").count(), 0, "{error}");
        }
        let error = serde_json::from_str::<PerStage>("[1]").unwrap_err().to_string();
        assert!(error.contains("one for each stage"), "{error}");
        assert!("5..".parse::<Stages>().is_err() && "".parse::<Stages>().is_err());
    }
}
