//! Which layers stay finer than the rest.

use globset::{Glob, GlobMatcher};
use pleinair::bundle::manifest::Dtype;
use pleinair::{Error, Result};
use std::str::FromStr;

/// Layers that never become int8 unless a rule says so: the first and the last convolution, the embedding of the
/// timestep and what reads a control picture. They are a thousandth of the weights, and every error they make is in
/// every pixel. The text encoder runs once a prompt.
const FINE: [&str; 5] =
    ["*.conv_in", "*.conv_out", "*.time_embedding.*", "controlnet*.controlnet_cond_embedding.*", "text_encoder.*"];

/// `PATTERN=DTYPE`, from the command line.
#[derive(Debug, Clone)]
pub struct Rule {
    text: String,
    layers: GlobMatcher,
    dtype: Dtype,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let example = "write it like 'up_blocks.3.*=f16'";
        let (pattern, dtype) = text.split_once('=').ok_or_else(|| format!("{text:?} is not a rule; {example}"))?;
        let dtype = match dtype {
            "int8" => Dtype::Int8,
            "bf16" => Dtype::Bf16,
            "f16" => Dtype::F16,
            "f32" => Dtype::F32,
            other => return Err(format!("{other:?} is none of int8, bf16, f16 and f32; {example}")),
        };
        let glob = Glob::new(pattern).map_err(|e| format!("{pattern:?} is not a pattern ({e}); {example}"))?;
        Ok(Rule { text: text.to_owned(), layers: glob.compile_matcher(), dtype })
    }
}

impl Rule {
    /// `layer` is the full name, such as `unet.conv_in`; a pattern may leave the network out.
    fn matches(&self, layer: &str) -> bool {
        let alone = layer.split_once('.').map_or(layer, |(_, name)| name);
        self.layers.is_match(layer) || self.layers.is_match(alone)
    }
}

/// How a layer is stored, and why it is not as asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// How.
    pub dtype: Dtype,
    /// Why, where it differs from the bundle's.
    pub kept: Option<String>,
    /// Whether neither a rule nor the defaults have spoken, so that a measurement may.
    pub open: bool,
}

/// What becomes of `layer` when `asked` is asked for; the last rule that matches wins.
pub fn choose(layer: &str, asked: Dtype, rules: &[Rule]) -> Choice {
    let kept = |dtype: Dtype, why: String| Choice { dtype, kept: (dtype != asked).then_some(why), open: false };
    if let Some(rule) = rules.iter().rev().find(|rule| rule.matches(layer)) {
        return kept(rule.dtype, format!("rule {}", rule.text));
    }
    let fine = |pattern: &str| Glob::new(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(layer));
    match asked < Dtype::F16 && FINE.iter().any(|pattern| fine(pattern)) {
        true => kept(Dtype::F16, "default".to_owned()),
        false => Choice { dtype: asked, kept: None, open: true },
    }
}

/// Rules that match no layer are mistakes.
///
/// # Errors
/// [`Error::Usage`] naming the first such rule.
pub fn check<'a>(rules: &[Rule], layers: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
    let Some(idle) = rules.iter().find(|rule| !layers.clone().any(|layer| rule.matches(layer))) else { return Ok(()) };
    // three of them show how names look, and that layers which read the same input are one
    let count = layers.clone().count();
    let names: Vec<&str> = layers.step_by((count / 3).max(1)).take(3).collect();
    let text = &idle.text;
    Err(Error::Usage(format!(
        "--keep {text} matches none of this model's {count} layers, such as {}",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn rules_speak_last_to_first_then_the_defaults() {
        let rules = rules(&["up_blocks.3.*=f16", "unet.conv_in=int8", "*.to_q=f32", "up_blocks.3.attentions.*=int8"]);
        let chosen = |layer| choose(layer, Dtype::Int8, &rules);
        assert_eq!(chosen("unet.up_blocks.3.resnets.0.conv1").dtype, Dtype::F16);
        assert_eq!(chosen("unet.up_blocks.3.attentions.0.to_q").dtype, Dtype::Int8);
        assert_eq!(chosen("unet.up_blocks.2.attentions.0.to_q").dtype, Dtype::F32);
        assert_eq!(chosen("unet.conv_in"), Choice { dtype: Dtype::Int8, kept: None, open: false });
        assert_eq!(chosen("controlnet.conv_in").kept.as_deref(), Some("default"));
        assert_eq!(chosen("text_encoder.text_model.encoder.layers.0.mlp.fc1").dtype, Dtype::F16);
        assert_eq!(chosen("unet.mid_block.resnets.0.conv1"), Choice { dtype: Dtype::Int8, kept: None, open: true });
        assert_eq!(choose("unet.conv_in", Dtype::Bf16, &[]).dtype, Dtype::F16);
        assert_eq!(choose("unet.conv_in", Dtype::F16, &[]), Choice { dtype: Dtype::F16, kept: None, open: true });
    }

    #[test]
    fn mistakes_are_named() {
        for (rule, fault) in [("up_blocks", "not a rule"), ("*=f64", "f64"), ("[=f16", "not a pattern")] {
            let error = rule.parse::<Rule>().unwrap_err();
            assert!(error.contains(fault) && error.contains("write it like"), "{error}");
        }
        let rules = rules(&["conv_in=f16", "upblocks.*=f16"]);
        let layers = ["unet.conv_in", "unet.up_blocks.0.resnets.0.conv1"];
        let error = check(&rules, layers.into_iter()).unwrap_err().to_string();
        assert!(error.contains("--keep upblocks.*=f16 matches none") && error.contains("unet.conv_in"), "{error}");
        assert!(check(&rules[..1], layers.into_iter()).is_ok());
    }
}
