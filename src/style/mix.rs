//! Mixing styles stage by stage: layout of one, brush of another.
//!
//! A rule is `STAGES=SOURCE`. STAGES is a number or a range written either way round (`5..3` is 5, 4 and 3). SOURCE is
//! - a style file: `5..3=a.safetensors`
//! - a blend: `4=a.safetensors*0.7+b.safetensors*0.3`; a weight left out is 1, weights need not sum to 1 (and are not
//!   made to: the vector then grows or shrinks, which [`Recipe::notes`] says)
//! - `off`: the word all stages started from, as if the stage had not been learned.
//!
//! A path that contains `+` or `*` has to be quoted inside the rule, with `"` or `'`: `4="a+b.safetensors"*0.5`. A file
//! named off is `./off`.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::Style;
use crate::error::{Error, Result};

/// One more than the largest stage number there can be.
const MAX_STAGES: usize = 1000;
/// Weights further than this from a sum of 1 are worth a note: rounding of decimals is not.
const SUM_TOLERANCE: f32 = 1e-5;

/// What to mix: rules that name every stage once.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    stages: RangeInclusive<usize>,
    source: Source,
    /// As it was written.
    text: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Source {
    Off,
    Blend(Vec<(PathBuf, f32)>),
}

impl Recipe {
    /// Reads the rules, each one `--stage` argument; the module says how they are written.
    ///
    /// # Errors
    /// [`Error::Usage`] for a rule that cannot be read, stages named twice, or rules that name no file.
    pub fn parse(rules: &[impl AsRef<str>]) -> Result<Recipe> {
        let rules = rules.iter().map(|text| Rule::parse(text.as_ref())).collect::<Result<Vec<_>>>()?;
        let recipe = Recipe { rules };
        let doubled: Vec<usize> = (0..MAX_STAGES).filter(|stage| recipe.rules_for(*stage).nth(1).is_some()).collect();
        if !doubled.is_empty() {
            return Err(Error::Usage(format!("each stage is given once, but {} more than once", listed(&doubled))));
        }
        if recipe.files().is_empty() {
            return Err(Error::Usage("a mix needs at least one style file, such as --stage 5..0=a.safetensors".into()));
        }
        Ok(recipe)
    }

    /// The style files named, each once, in the order of the rules.
    pub fn files(&self) -> Vec<&Path> {
        let mut files = Vec::new();
        for (file, _) in self.rules.iter().flat_map(|rule| rule.source.terms()) {
            if !files.contains(&file.as_path()) {
                files.push(file.as_path());
            }
        }
        files
    }

    /// Whether a stage is switched off, so that [`Recipe::mix`] needs the initial word's vector.
    pub fn switches_off(&self) -> bool {
        self.rules.iter().any(|rule| rule.source == Source::Off)
    }

    /// What the person should hear about: weights that do not sum to 1.
    pub fn notes(&self) -> Vec<String> {
        let noted = |rule: &Rule| {
            let sum: f32 = rule.source.terms().iter().map(|(_, weight)| weight).sum();
            let off = rule.source == Source::Off || (sum - 1.0).abs() <= SUM_TOLERANCE;
            (!off).then(|| format!("the weights in {} sum to {sum}, not 1; they are used as they are", rule.text))
        };
        self.rules.iter().filter_map(noted).collect()
    }

    /// Mixes `styles` (each of [`Recipe::files`]) into a new style called `token`.
    ///
    /// `initial` is the vector of the word that the stages started from ([`initial_word`]); only needed when
    /// [`Recipe::switches_off`]. A file with a single vector gives it to whatever stage asks.
    ///
    /// # Errors
    /// [`Error::Usage`] when a stage is missing or does not exist, the styles differ in number of stages, width or text
    /// encoder, or `initial` is missing or of another width; [`Error::NotFinite`] when weights overflow.
    pub fn mix(&self, token: &str, styles: &[(PathBuf, Style)], initial: Option<&[f32]>) -> Result<Style> {
        check_alike(styles)?;
        let stages = self.stages(styles)?;
        let missing: Vec<usize> = (0..stages).filter(|stage| self.rules_for(*stage).next().is_none()).collect();
        if !missing.is_empty() {
            return Err(Error::Usage(format!(
                "each of the {stages} stages is to be given, but {} not; add --stage {}=FILE or =off",
                listed(&missing),
                missing[0]
            )));
        }
        let rules = (0..stages).flat_map(|stage| self.rules_for(stage).map(move |rule| (stage, rule)));
        let vectors =
            rules.map(|(stage, rule)| rule.source.vector(stage, styles, initial)).collect::<Result<Vec<_>>>()?;
        let texts: Vec<&str> = self.rules.iter().map(|rule| rule.text.as_str()).collect();
        let all = || styles.iter().map(|(_, style)| style);
        Ok(Style {
            token: token.to_owned(),
            vectors,
            vectors_per_stage: styles.first().map_or(1, |(_, style)| style.vectors_per_stage),
            base: all().map(|style| style.base.clone()).find(|base| !base.is_empty()).unwrap_or_default(),
            context: distinct(all().flat_map(|style| style.context.iter())),
            steps: shared(all().map(|style| style.steps)).flatten(),
            seed: shared(all().map(|style| style.seed)).flatten(),
            license: joint_license(distinct(all().map(|style| &style.license))),
            init: shared(all().map(|style| style.init.clone())).unwrap_or_default(),
            mix: Some(texts.join(" ")),
        })
    }

    fn rules_for(&self, stage: usize) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.stages.contains(&stage))
    }

    /// How many stages the mix has: as many as the styles, or where all have a single vector, as the rules name.
    fn stages(&self, styles: &[(PathBuf, Style)]) -> Result<usize> {
        let highest = self.rules.iter().map(|rule| *rule.stages.end()).max().unwrap_or(0);
        let mut staged = styles.iter().filter(|(_, style)| style.stages() > 1);
        let Some((file, style)) = staged.next() else { return Ok(highest + 1) };
        let stages = style.stages();
        if let Some((other, style)) = staged.find(|(_, style)| style.stages() != stages) {
            let (file, other, others) = (file.display(), other.display(), style.stages());
            return Err(Error::Usage(format!(
                "{file} has {stages} stages and {other} has {others}; only styles of as many stages mix"
            )));
        }
        if highest >= stages {
            let (file, last) = (file.display(), stages - 1);
            return Err(Error::Usage(format!("there is no stage {highest}: {file} has stages 0 to {last}")));
        }
        Ok(stages)
    }
}

/// The word that all of `styles` started from, whose vector a stage switched off gets.
///
/// # Errors
/// [`Error::Usage`] when a file does not say it or two differ.
pub fn initial_word(styles: &[(PathBuf, Style)]) -> Result<&str> {
    let remedy = "a stage cannot be switched off then; give it a file";
    let mut word: Option<(&Path, &str)> = None;
    for (file, style) in styles {
        match word {
            _ if style.init.is_empty() => {
                let file = file.display();
                return Err(Error::Usage(format!("{file} does not say which word it started from; {remedy}")));
            }
            Some((first, word)) if word != style.init => {
                let (first, file, init) = (first.display(), file.display(), &style.init);
                return Err(Error::Usage(format!("{first} started from {word:?} and {file} from {init:?}; {remedy}")));
            }
            _ => word = Some((file, &style.init)),
        }
    }
    word.map(|(_, word)| word).ok_or_else(|| Error::Usage(format!("no style is given; {remedy}")))
}

impl Rule {
    fn parse(text: &str) -> Result<Rule> {
        let fault = |what: &str| {
            Error::Usage(format!(
                "--stage {text}: {what}; write it like 5..3=a.safetensors or 4=a.safetensors*0.7+b.safetensors*0.3"
            ))
        };
        let (stages, source) = text.split_once('=').ok_or_else(|| fault("there is no ="))?;
        let number = |digits: &str| {
            let stage = digits.trim().parse().map_err(|_| fault(&format!("{digits:?} is not a stage's number")))?;
            if stage < MAX_STAGES { Ok(stage) } else { Err(fault(&format!("there is no stage {stage}"))) }
        };
        let (from, to) = stages.split_once("..").unwrap_or((stages, stages));
        let (from, to): (usize, usize) = (number(from)?, number(to)?);
        let source = if source.trim() == "off" {
            Source::Off
        } else {
            let terms = split_outside_quotes(source, '+').map_err(fault)?;
            Source::Blend(
                terms.into_iter().map(|term| parse_term(term).map_err(|what| fault(&what))).collect::<Result<_>>()?,
            )
        };
        Ok(Rule { stages: from.min(to)..=from.max(to), source, text: text.trim().to_owned() })
    }
}

/// `path`, `path*weight`, the path in quotes or not.
fn parse_term(term: &str) -> Result<(PathBuf, f32), String> {
    let parts = split_outside_quotes(term, '*')?;
    let (path, weight) = match parts[..] {
        [path] => (path, 1.0),
        [path, weight] => {
            let number = weight.trim().parse().ok().filter(|weight: &f32| weight.is_finite() && *weight != 0.0);
            let quote = "(a path that contains * or + is written in quotes)";
            (path, number.ok_or_else(|| format!("{weight:?} is not a weight other than 0 {quote}"))?)
        }
        _ => return Err(format!("{term:?} has more than one * (a path that contains one is written in quotes)")),
    };
    let path: String = match path.trim() {
        quoted if quoted.starts_with(['"', '\'']) && quoted.len() >= 2 => quoted[1..quoted.len() - 1].to_owned(),
        plain => plain.to_owned(),
    };
    if path.is_empty() { Err("a style file is missing".to_owned()) } else { Ok((PathBuf::from(path), weight)) }
}

/// Splits at `separator` wherever it is not inside a path in quotes. Quotes count only at the start of a path, so that
/// an apostrophe within one is an apostrophe.
fn split_outside_quotes(text: &str, separator: char) -> Result<Vec<&str>, &'static str> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    loop {
        let rest = &text[at..];
        let blanks = rest.len() - rest.trim_start().len();
        let opening = rest[blanks..].chars().next().filter(|c| matches!(c, '"' | '\''));
        if let Some(quote) = opening {
            let inside = at + blanks + 1;
            let length = text[inside..].find(quote).ok_or("a quote is not closed")?;
            at = inside + length + 1;
            if !text[at..].trim_start().starts_with(['+', '*']) && !text[at..].trim().is_empty() {
                return Err("after a path in quotes only * and + can follow");
            }
        }
        // Both separators end a path; only the one asked for ends a part.
        let Some(found) = text[at..].find(['+', '*']) else {
            parts.push(&text[start..]);
            return Ok(parts);
        };
        at += found;
        if text[at..].starts_with(separator) {
            parts.push(&text[start..at]);
            start = at + 1;
        }
        at += 1;
    }
}

impl Source {
    fn terms(&self) -> &[(PathBuf, f32)] {
        match self {
            Source::Off => &[],
            Source::Blend(terms) => terms,
        }
    }

    /// The vector `[D]` for a stage.
    fn vector(&self, stage: usize, styles: &[(PathBuf, Style)], initial: Option<&[f32]>) -> Result<Vec<f32>> {
        let (width, several) = styles.first().map_or((0, 1), |(_, style)| (style.width(), style.vectors_per_stage));
        if *self == Source::Off {
            return match initial {
                Some(vector) if vector.len() == width => Ok(vector.repeat(several)),
                Some(vector) => Err(Error::Usage(format!(
                    "the initial word's vector is {} numbers wide and the styles' are {width}; name the model they were \
                     learned with",
                    vector.len()
                ))),
                None => Err(Error::Usage(format!(
                    "stage {stage} is switched off, which takes the initial word from the model; name it with --bundle"
                ))),
            };
        }
        // Minus zero is what leaves every number as it is, minus zero included.
        let mut sum = vec![-0f64; width * several];
        for (file, weight) in self.terms() {
            let found = styles.iter().find(|(path, _)| path == file);
            let (_, style) =
                found.ok_or_else(|| Error::Usage(format!("{} is in the recipe but was not opened", file.display())))?;
            let vector = &style.vectors[if style.stages() == 1 { 0 } else { stage }];
            for (sum, value) in sum.iter_mut().zip(vector) {
                *sum += f64::from(*weight) * f64::from(*value);
            }
        }
        let vector: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
        if vector.iter().all(|value| value.is_finite()) {
            return Ok(vector);
        }
        Err(Error::NotFinite { what: format!("the blend for stage {stage}"), remedy: "give smaller weights".into() })
    }
}

/// All of one width and one text encoder.
fn check_alike(styles: &[(PathBuf, Style)]) -> Result<()> {
    let says = styles.iter().find(|(_, style)| !style.base.is_empty());
    let Some((first, model)) = says.or(styles.first()) else { return Ok(()) };
    for (other, style) in styles {
        let differ = if style.width() != model.width() {
            format!("vectors {} and {} numbers wide", model.width(), style.width())
        } else if style.vectors_per_stage != model.vectors_per_stage {
            return Err(Error::Usage(format!(
                "{} has {} vectors a stage and {} has {}; only styles of as many mix",
                first.display(),
                model.vectors_per_stage,
                other.display(),
                style.vectors_per_stage
            )));
        } else if style.base.is_empty() || model.base.is_empty() {
            // another program's file does not say
            continue;
        } else if !style.base.eq_ignore_ascii_case(&model.base) {
            format!("word tables {} and {}", super::abbreviated(&model.base), super::abbreviated(&style.base))
        } else {
            continue;
        };
        return Err(Error::Usage(format!(
            "{} and {} were learned for different text encoders ({differ}); only styles of one model mix",
            first.display(),
            other.display()
        )));
    }
    Ok(())
}

/// `stage 1 is` or `stages 1, 2 are`.
fn listed(stages: &[usize]) -> String {
    let numbers: Vec<String> = stages.iter().map(usize::to_string).collect();
    let (word, verb) = if stages.len() == 1 { ("stage", "is") } else { ("stages", "are") };
    format!("{word} {} {verb}", numbers.join(", "))
}

fn distinct<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for text in texts {
        if !kept.contains(text) {
            kept.push(text.clone());
        }
    }
    kept
}

/// Licences that all hold, in SPDX's words; one not given does not vanish behind the others.
fn joint_license(mut licenses: Vec<String>) -> String {
    if let [only] = &licenses[..] {
        return only.clone();
    }
    licenses.iter_mut().filter(|license| license.is_empty()).for_each(|license| *license = "NOASSERTION".to_owned());
    licenses.join(" AND ")
}

/// The value all have, if they agree.
fn shared<T: PartialEq>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stage t of the style is `[value + t, 1]`.
    fn style(stages: usize, value: f32) -> Style {
        Style {
            token: "s".into(),
            vectors: (0..stages).map(|t| vec![value + t as f32, 1.0]).collect(),
            vectors_per_stage: 1,
            base: "ab".into(),
            context: vec![format!("context {value}")],
            steps: Some(500),
            seed: Some(value as u64),
            license: "CC0-1.0".into(),
            init: "painting".into(),
            mix: None,
        }
    }

    fn opened(styles: &[(&str, Style)]) -> Vec<(PathBuf, Style)> {
        styles.iter().map(|(name, style)| (PathBuf::from(name), style.clone())).collect()
    }

    fn terms(rule: &str) -> Vec<(String, f32)> {
        let recipe = Recipe::parse(&[rule]).unwrap();
        recipe.rules[0]
            .source
            .terms()
            .iter()
            .map(|(path, weight)| (path.to_str().unwrap().to_owned(), *weight))
            .collect()
    }

    fn complaint<T: std::fmt::Debug>(result: Result<T>) -> String {
        match result.unwrap_err() {
            Error::Usage(text) => text,
            other => panic!("not a usage error: {other}"),
        }
    }

    #[test]
    fn rules_are_read() {
        assert_eq!(Recipe::parse(&["5..3=a"]).unwrap().rules[0].stages, 3..=5);
        assert_eq!(Recipe::parse(&["3..5=a"]).unwrap().rules[0].stages, 3..=5);
        assert_eq!(Recipe::parse(&[" 4 = a "]).unwrap().rules[0].stages, 4..=4);
        assert_eq!(terms("0=a.safetensors"), [("a.safetensors".into(), 1.0)]);
        assert_eq!(terms("0=a*0.7+b*0.3"), [("a".into(), 0.7), ("b".into(), 0.3)]);
        assert_eq!(terms("0= a * -2 + b "), [("a".into(), -2.0), ("b".into(), 1.0)]);
        assert_eq!(terms("0=\"a+b*2\"*0.5+'c\"d'"), [("a+b*2".into(), 0.5), ("c\"d".into(), 1.0)]);
        assert_eq!(terms("0=van's=k.safetensors*2"), [("van's=k.safetensors".into(), 2.0)]);
        assert_eq!(terms("0=./off"), [("./off".into(), 1.0)]);
        let recipe = Recipe::parse(&["0=a+b", "1=off", "2=b"]).unwrap();
        assert_eq!(recipe.files(), [Path::new("a"), Path::new("b")]);
        assert!(recipe.switches_off());
    }

    #[test]
    fn rules_that_cannot_be_read_are_quoted() {
        for rule in [
            "",
            "5",
            "=a",
            "5=",
            "x=a",
            "5..=a",
            "..3=a",
            "-1=a",
            "1.5=a",
            "1000=a",
            "0..18446744073709551615=a",
            "5=a*",
            "5=a*x",
            "5=a*0",
            "5=a*nan",
            "5=a*inf",
            "5=a*2*3",
            "5=+a",
            "5=a+",
            "5=*2",
            "5=\"a",
            "5='a\"",
            "5=\"a\"b",
            "5=''",
            "5=\"\"*2",
        ] {
            let text = complaint(Recipe::parse(&[rule]));
            assert!(text.contains(&format!("--stage {rule}:")), "{rule}: {text}");
        }
    }

    #[test]
    fn stages_are_given_once_each() {
        assert!(complaint(Recipe::parse(&["5..3=a", "4=b", "3..0=c"])).contains("stages 3, 4 are more than once"));
        assert!(complaint(Recipe::parse(&[""; 0])).contains("at least one style file"));
        assert!(complaint(Recipe::parse(&["0=off"])).contains("at least one style file"));
        let styles = opened(&[("a", style(6, 0.0))]);
        let missing = Recipe::parse(&["5..3=a", "1=a"]).unwrap().mix("m", &styles, None);
        assert!(complaint(missing).contains("stages 0, 2 are not"));
        let beyond = Recipe::parse(&["6..0=a"]).unwrap().mix("m", &styles, None);
        assert!(complaint(beyond).contains("no stage 6: a has stages 0 to 5"));
    }

    #[test]
    fn stages_come_from_their_styles() {
        let styles = opened(&[("a", style(6, 10.0)), ("b", style(6, 20.0))]);
        let recipe = Recipe::parse(&["5..3=a", "2=a*0.5+b*0.5", "1=off", "0=b"]).unwrap();
        let mixed = recipe.mix("m", &styles, Some(&[-1.0, -2.0])).unwrap();
        let expected = [[20.0, 1.0], [-1.0, -2.0], [17.0, 1.0], [13.0, 1.0], [14.0, 1.0], [15.0, 1.0]];
        assert_eq!(mixed.vectors, expected);
        assert_eq!((mixed.token.as_str(), mixed.base.as_str(), mixed.init.as_str()), ("m", "ab", "painting"));
        assert_eq!(mixed.mix.as_deref(), Some("5..3=a 2=a*0.5+b*0.5 1=off 0=b"));
        assert_eq!(mixed.context, ["context 10", "context 20"]);
        assert_eq!((mixed.license.as_str(), mixed.steps, mixed.seed), ("CC0-1.0", Some(500), None));
        assert!(recipe.notes().is_empty());
    }

    #[test]
    fn licences_add_up() {
        let joined = |licenses: &[&str]| {
            joint_license(distinct(licenses.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>().iter()))
        };
        assert_eq!(joined(&["CC0-1.0", "CC0-1.0"]), "CC0-1.0");
        assert_eq!(joined(&["CC0-1.0", "MIT"]), "CC0-1.0 AND MIT");
        assert_eq!(joined(&["CC0-1.0", ""]), "CC0-1.0 AND NOASSERTION");
        assert_eq!(joined(&["", ""]), "");
    }

    #[test]
    fn an_untouched_stage_keeps_every_bit() {
        let mut source = style(2, 0.0);
        source.vectors = vec![vec![0.1, f32::MIN_POSITIVE / 8.0], vec![f32::MAX, -0.0]];
        let mixed = Recipe::parse(&["0..1=a"]).unwrap().mix("m", &opened(&[("a", source.clone())]), None).unwrap();
        let bits = |style: &Style| style.vectors.iter().flatten().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&mixed), bits(&source));
    }

    #[test]
    fn a_single_vector_serves_any_stage() {
        let styles = opened(&[("one", style(1, 7.0)), ("six", style(6, 0.0))]);
        let mixed = Recipe::parse(&["5..1=six", "0=one"]).unwrap().mix("m", &styles, None).unwrap();
        assert_eq!((mixed.stages(), mixed.vectors[0][0], mixed.vectors[5][0]), (6, 7.0, 5.0));
        let mixed = Recipe::parse(&["2..0=one"]).unwrap().mix("m", &styles[..1], None).unwrap();
        assert_eq!(mixed.stages(), 3);
    }

    #[test]
    fn weights_need_not_sum_to_one_but_it_is_said() {
        let recipe = Recipe::parse(&["0=a*0.7+b*0.3", "1=a*0.5", "2=a+b", "3=off"]).unwrap();
        let notes = recipe.notes();
        assert_eq!(notes.len(), 2);
        assert!(notes[0].contains("1=a*0.5 sum to 0.5") && notes[1].contains("2=a+b sum to 2"), "{notes:?}");
        let styles = opened(&[("a", style(1, 4.0)), ("b", style(1, 2.0))]);
        let huge = Recipe::parse(&["0=a*3e38"]).unwrap().mix("m", &styles[..1], None);
        assert!(matches!(huge, Err(Error::NotFinite { .. })));
    }

    #[test]
    fn only_like_styles_mix() {
        let mut wide = style(6, 0.0);
        wide.vectors.iter_mut().for_each(|vector| vector.push(0.0));
        let others = [
            (wide, "2 and 3 numbers wide"),
            (Style { base: "cd".into(), ..style(6, 0.0) }, "word tables ab and cd"),
            (style(4, 0.0), "a has 6 stages and b has 4"),
        ];
        let recipe = Recipe::parse(&["5..3=a", "2..0=b"]).unwrap();
        for (other, expected) in others {
            let text = complaint(recipe.mix("m", &opened(&[("a", style(6, 0.0)), ("b", other)]), None));
            assert!(text.contains("a ") && text.contains("b ") && text.contains(expected), "{text}");
        }
        assert!(complaint(recipe.mix("m", &opened(&[("a", style(6, 0.0))]), None)).contains("b is in the recipe"));
    }

    #[test]
    fn switching_off_needs_the_one_initial_word() {
        let recipe = Recipe::parse(&["1=off", "0=a"]).unwrap();
        let styles = opened(&[("a", style(2, 0.0))]);
        assert!(complaint(recipe.mix("m", &styles, None)).contains("--bundle"));
        assert!(complaint(recipe.mix("m", &styles, Some(&[1.0]))).contains("1 numbers wide"));
        assert_eq!(initial_word(&styles).unwrap(), "painting");

        let other = Style { init: "drawing".into(), ..style(2, 0.0) };
        let text = complaint(initial_word(&opened(&[("a", style(2, 0.0)), ("b", other)])).map(str::to_owned));
        assert!(text.contains("a started from \"painting\" and b from \"drawing\""), "{text}");
        let unknown = Style { init: String::new(), ..style(2, 0.0) };
        assert!(complaint(initial_word(&opened(&[("a", unknown)])).map(str::to_owned)).contains("does not say"));
        assert!(initial_word(&[]).is_err());
    }

    #[test]
    fn files_are_opened_by_the_recipe() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a+b.safetensors");
        style(2, 3.0).save(&path).unwrap();
        let recipe = Recipe::parse(&[format!("1..0=\"{}\"", path.display())]).unwrap();
        let styles: Vec<_> = recipe.files().into_iter().map(|f| (f.to_path_buf(), Style::open(f).unwrap())).collect();
        let mixed = recipe.mix("m", &styles, None).unwrap();
        let out = folder.path().join("m.safetensors");
        mixed.save(&out).unwrap();
        assert_eq!(Style::open(&out).unwrap(), mixed);
    }
}
