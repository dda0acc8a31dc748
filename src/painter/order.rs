//! What a painting should be.

use super::control::ControlChoice;
use super::request::check_scale;
use crate::bundle::Bundle;
use crate::bundle::manifest::hexadecimal;
use crate::camera::Frame;
use crate::prompt::{PromptStyle, Template, Tokenizer};
use crate::sampler::{Guidance, Sampler};
use crate::stages::STAGES;
use crate::style::Style;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

/// In hexadecimal.
fn sha256(bytes: impl Iterator<Item = u8>) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes.collect::<Vec<_>>()))
}

/// How a content picture becomes the latent that painting starts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Inversion {
    #[default]
    /// Noise is added (SDEdit, arXiv 2108.01073): what the paper does.
    Noise,
    /// The denoiser runs backwards (DDIM, arXiv 2010.02502): keeps more of the picture.
    Ddim,
}

/// A style the prompt can name.
#[derive(Debug, Clone)]
pub enum StyleChoice {
    /// Learned vectors.
    Learned(Style),
    /// A word or phrase that the model already knows.
    Word(String),
}

impl StyleChoice {
    /// The name a prompt calls it by.
    pub fn name(&self) -> &str {
        match self {
            StyleChoice::Learned(style) => &style.token,
            StyleChoice::Word(word) => word,
        }
    }

    fn in_prompt(&self) -> PromptStyle {
        match self {
            StyleChoice::Learned(style) => PromptStyle::learned(&style.token, style.vectors_per_stage),
            StyleChoice::Word(word) => PromptStyle::Word(word.clone()),
        }
    }
}

/// One painting: text to image without `content`, style transfer with it.
#[derive(Debug, Clone)]
pub struct Order {
    /// What to paint, with `{}` where the style goes.
    pub prompt: Template,
    /// What to keep away from.
    pub negative: String,
    /// The styles the prompt names.
    pub styles: Vec<StyleChoice>,
    /// The photograph to paint.
    pub content: Option<Frame>,
    /// Pixels, width and height; multiples of [`Bundle::size_step`].
    pub size: (usize, usize),
    /// Steps of the whole schedule; a transfer takes `strength` of them.
    pub steps: usize,
    /// In (0, 1]: how far a content picture is carried towards noise.
    pub strength: f64,
    /// The solver.
    pub sampler: Sampler,
    /// Scales of style, content and prompt.
    pub guidance: Guidance,
    /// The ControlNets that speak, and what they look at.
    pub controls: Vec<ControlChoice>,
    /// How the content picture is inverted.
    pub inversion: Inversion,
    /// Of the noise.
    pub seed: u64,
}

impl Order {
    /// The size in pixels.
    ///
    /// # Errors
    /// If it does not divide by what the model needs.
    pub(super) fn size(&self, bundle: &Bundle) -> Result<(usize, usize)> {
        let ((width, height), step) = (self.size, bundle.size_step());
        if width == 0 || height == 0 || width % step != 0 || height % step != 0 {
            return Err(Error::Usage(format!(
                "{width}x{height} pixels: both must be multiples of {step} for this model"
            )));
        }
        Ok((width, height))
    }

    /// Text to image always starts from nothing but noise.
    pub(crate) fn strength(&self) -> Result<f64> {
        for choice in &self.controls {
            check_scale(choice.scale)?;
        }
        Ok(if self.content.is_some() { self.strength } else { 1.0 })
    }

    /// The styles as the prompt sees them.
    pub(super) fn prompt_styles(&self) -> Vec<PromptStyle> {
        self.styles.iter().map(StyleChoice::in_prompt).collect()
    }

    /// Stages T that strengths are given for: those of the styles, the most of several; the paper's number where no style
    /// has any.
    pub fn stages(&self) -> usize {
        self.style_stages().unwrap_or(STAGES)
    }

    /// Stages of the styles, the most of several; none where no style changes from one to the next.
    pub fn style_stages(&self) -> Option<usize> {
        let of = |style: &StyleChoice| match style {
            StyleChoice::Learned(style) => Some(style.stages()),
            StyleChoice::Word(_) => None,
        };
        self.styles.iter().filter_map(of).max().filter(|&stages| stages > 1)
    }

    /// The same order for the way up: the prompt without its style, and no guidance.
    pub(super) fn context_alone(&self) -> Order {
        let guidance = Guidance { style: 0.0.into(), content: 0.0.into(), prompt: 1.0, ..self.guidance };
        Order { prompt: self.prompt.context_only(), styles: vec![], guidance, ..self.clone() }
    }

    /// The prompt as people read it, styles by name.
    ///
    /// # Errors
    /// If the prompt names a style that is not given.
    pub fn prompt_text(&self) -> Result<String> {
        self.prompt.text(&self.prompt_styles())
    }

    /// What the person should hear about: prompts that are longer than the text encoder reads, and styles lost with
    /// their ends.
    ///
    /// # Errors
    /// As [`Order::prompt_text`].
    pub fn notes(&self, tokenizer: &Tokenizer) -> Result<Vec<String>> {
        let styles = self.prompt_styles();
        let mut notes = vec![];
        for (name, template) in [("prompt", &self.prompt), ("negative prompt", &Template::literal(&self.negative))] {
            let tokens = template.tokens(tokenizer, &styles)?;
            if tokens.dropped > 0 {
                let (room, dropped) = (tokenizer.positions() - 2, tokens.dropped);
                notes.push(format!(
                    "the {name} is {dropped} tokens longer than the {room} there is room for; it is cut"
                ));
            }
            let lost: Vec<_> = tokens.dropped_styles.iter().map(|&style| styles[style].name()).collect();
            if !lost.is_empty() {
                notes.push(format!("the {name} is cut before {}, which has no effect; shorten it", lost.join(" and ")));
            }
        }
        Ok(notes)
    }

    /// How it is painted, for the picture's metadata; the content and the styles' vectors by their checksums.
    ///
    /// # Errors
    /// As [`Order::prompt_text`].
    pub fn recipe(&self) -> Result<Value> {
        let styles: Vec<_> = self
            .styles
            .iter()
            .map(|style| match style {
                StyleChoice::Learned(s) => json!({
                    "token": s.token, "stages": s.stages(), "base": s.base, "mix": s.mix, "steps": s.steps,
                    "sha256": sha256(s.vectors.iter().flatten().flat_map(|v| v.to_le_bytes())),
                }),
                StyleChoice::Word(word) => json!({ "word": word }),
            })
            .collect();
        let picture = |frame: &Frame| json!({"width": frame.width(), "height": frame.height(), "sha256": sha256(frame.rgb().iter().copied())});
        let control = |choice: &ControlChoice| json!({"control": choice.control, "scale": choice.scale, "image": choice.image.as_ref().map(picture)});
        let scales: Map<_, _> = self.controls.iter().map(|c| (c.control.name().to_owned(), c.scale.into())).collect();
        Ok(json!({
            "prompt": self.prompt_text()?,
            "negative": self.negative,
            "styles": styles,
            "content": self.content.as_ref().map(picture),
            "size": [self.size.0, self.size.1],
            "steps": self.steps,
            "strength": self.strength()?,
            "sampler": self.sampler.name(),
            "guidance": {
                "style": self.guidance.style,
                "content": self.guidance.content,
                "prompt": self.guidance.prompt,
                "form": format!("{:?}", self.guidance.form).to_lowercase(),
            },
            "control_scale": if scales.is_empty() { json!(0.0) } else { scales.into() },
            "controls": self.controls.iter().map(control).collect::<Vec<_>>(),
            "inversion": match self.inversion { Inversion::Noise => "noise", Inversion::Ddim => "ddim" },
            "seed": self.seed,
        }))
    }
}
