//! A wish for a painting as a person utters it, on the command line or over HTTP: everything may be left out.

use super::{Inversion, Order, Painter, StyleChoice};
use crate::bundle::Bundle;
use crate::camera::Frame;
use crate::prompt::Template;
use crate::sampler::{Guidance, GuidanceForm, Sampler};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use utoipa::ToSchema;

/// What the reference code keeps away from.
pub const NEGATIVE: &str =
    "low resolution, poorly drawn, worst quality, low quality, normal quality, blurry image, artifact";
/// Guidance scale of the prompt as a whole, ln in the paper.
pub const GUIDANCE: f64 = 5.0;
/// How far a photograph is carried towards noise.
pub const STRENGTH: f64 = 0.8;
/// How much a photograph's edges count.
pub const CONTROL_SCALE: f64 = 0.8;
/// No picture is larger than this, in pixels.
const LARGEST: usize = 1 << 24;
/// Nobody waits for more steps: the noise schedule has no more timesteps.
const MOST_STEPS: usize = 1000;

/// A wish for a painting. What is left out is as the command line's help says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Styles: ids or names of learned ones, or words the model knows.
    pub styles: Vec<String>,
    /// What to paint, with `{}` where the style goes.
    pub prompt: Option<String>,
    /// What to keep away from; "" for nothing.
    pub negative: Option<String>,
    /// How far the photograph is carried towards noise, above 0 and up to 1.
    pub strength: Option<f64>,
    /// Steps of the whole schedule.
    pub steps: Option<usize>,
    /// Solver: `dpm++2m`, `unipc`, `ddim`, `euler` or `lcm`.
    #[schema(value_type = Option<String>)]
    pub sampler: Option<Sampler>,
    /// How the photograph becomes a latent.
    pub invert: Option<Inversion>,
    /// Guidance towards the style, ls in the paper.
    pub style_strength: Option<f64>,
    /// Guidance towards the content of the prompt, lc in the paper.
    pub content_strength: Option<f64>,
    /// Guidance towards the prompt as a whole, ln in the paper.
    pub guidance: Option<f64>,
    /// ls and lc as the paper has them, or halved as in its code.
    pub guidance_form: Option<GuidanceForm>,
    /// How much the photograph's edges count; 0 leaves the ControlNet out.
    pub control_scale: Option<f64>,
    /// Width and height in pixels, such as `256x192`, or the longer side alone.
    #[schema(value_type = Option<String>)]
    pub size: Option<Size>,
    /// Seed of the noise.
    pub seed: Option<u64>,
}

/// What to do where a wish is silent, besides this program's own defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Habits {
    /// The longest side of a picture whose size nobody gave, in pixels.
    pub largest_side: Option<usize>,
    /// Steps of a painting for which nobody gave them.
    pub steps: Option<usize>,
}

impl Request {
    /// The prompt as it is meant.
    ///
    /// # Errors
    /// [`Error::Usage`] for neither prompt nor style, or a brace without its partner.
    pub fn template(&self) -> Result<Template> {
        match &self.prompt {
            Some(prompt) if self.styles.is_empty() => Template::parse(prompt),
            Some(prompt) => Ok(Template::parse(prompt)?.with_style_place()),
            None if self.styles.is_empty() => {
                Err(Error::Usage("there is nothing to paint: give a style, a prompt or both".into()))
            }
            None => Ok(Template::style_only()),
        }
    }

    /// The order this comes to for a model, and what the person should hear about it; `styles` are the choices that
    /// [`Request::styles`] name.
    ///
    /// # Errors
    /// [`Error::Usage`] for numbers out of range and for prompts that cannot be read.
    pub fn order(
        &self,
        painter: &Painter,
        styles: Vec<StyleChoice>,
        content: Option<Frame>,
        habits: Habits,
    ) -> Result<(Order, Vec<String>)> {
        let mut notes = vec![];
        let transfer = content.is_some();
        let guidance = Guidance::new(
            self.style_strength.unwrap_or(0.0),
            self.content_strength.unwrap_or(0.0),
            self.guidance.unwrap_or(GUIDANCE),
            self.guidance_form.unwrap_or_default(),
        )?;
        let steps = self.steps.or(habits.steps).unwrap_or(if transfer { 30 } else { 25 });
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::Usage(format!("{steps} steps; give 1 to {MOST_STEPS}")));
        }
        let mut order = Order {
            prompt: self.template()?,
            negative: self.negative.clone().unwrap_or_else(|| NEGATIVE.to_owned()),
            styles,
            size: self.pixels(painter.bundle(), content.as_ref(), habits.largest_side, &mut notes),
            content,
            steps,
            strength: self.strength.unwrap_or(if transfer { STRENGTH } else { 1.0 }),
            sampler: self.sampler.unwrap_or(if transfer { Sampler::UniPc } else { Sampler::DpmSolverPp2M }),
            guidance,
            control_scale: self.control_scale.unwrap_or(CONTROL_SCALE),
            inversion: self.invert.unwrap_or_default(),
            seed: self.seed.unwrap_or(0),
        };
        if transfer && !(order.strength > 0.0 && order.strength <= 1.0) {
            return Err(Error::Usage(format!("the strength is {}; give one above 0 and up to 1", order.strength)));
        }
        leave_control_out_where_it_cannot_be(&mut order, painter.bundle(), &mut notes);
        notes.extend(order.notes(painter.tokenizer())?);
        Ok((order, notes))
    }

    fn pixels(
        &self,
        bundle: &Bundle,
        content: Option<&Frame>,
        largest: Option<usize>,
        notes: &mut Vec<String>,
    ) -> (usize, usize) {
        let (w, h) = content.map_or((1, 1), |frame| (frame.width(), frame.height()));
        let (width, height) = match self.size {
            None => match (bundle.native_size_like(w, h), largest) {
                ((width, height), Some(largest)) if width.max(height) > largest => return bundle.within(w, h, largest),
                (own, _) => return own,
            },
            Some(Size::Longer(side)) => return bundle.within(w, h, side),
            Some(Size::Sides(width, height)) => (width, height),
        };
        let nearest = bundle.nearest_size(width as f64, height as f64);
        if nearest != (width, height) {
            let step = bundle.size_step();
            notes.push(format!(
                "{width}x{height} does not divide by {step}, which this model needs; painting {}x{}",
                nearest.0, nearest.1
            ));
        }
        nearest
    }
}

fn leave_control_out_where_it_cannot_be(order: &mut Order, bundle: &Bundle, notes: &mut Vec<String>) {
    if order.content.is_none() || order.control_scale == 0.0 {
        return;
    }
    if let Some(control) = bundle.foreign_control() {
        let cannot = "this program cannot make of photographs yet; it is left out";
        notes.push(format!("this model's ControlNet reads {control} pictures, which {cannot}"));
        order.control_scale = 0.0;
    } else if bundle.controlnet.is_none() {
        notes.push("this model has no ControlNet; the photograph's edges do not count".into());
        order.control_scale = 0.0;
    }
}

/// The size of a picture in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Size {
    /// Width and height.
    Sides(usize, usize),
    /// The longer side.
    Longer(usize),
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let number = |side: &str| side.parse::<usize>().ok();
        let size = match text.split_once(['x', 'X']) {
            Some((width, height)) => number(width).zip(number(height)).map(|(w, h)| Size::Sides(w, h)),
            None => number(text).map(Size::Longer),
        };
        let size = size.ok_or("write it as WIDTHxHEIGHT, such as 256x192, or as the longer side, such as 256")?;
        let (width, height) = match size {
            Size::Sides(width, height) => (width, height),
            Size::Longer(side) => (side, side),
        };
        if width == 0 || height == 0 || width.checked_mul(height).is_none_or(|area| area > LARGEST) {
            return Err(format!("both sides must be above 0 and their product at most {LARGEST} pixels"));
        }
        Ok(size)
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Size, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        match size {
            Size::Sides(width, height) => format!("{width}x{height}"),
            Size::Longer(side) => side.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_survives_being_written_down() {
        let text = r#"{"styles": ["hiroshige"], "size": "256x192", "sampler": "unipc", "invert": "ddim", "seed": 7}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(request.size, Some(Size::Sides(256, 192)));
        assert_eq!(request.sampler, Some(Sampler::UniPc));
        assert_eq!(request.invert, Some(Inversion::Ddim));
        let again: Request = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        assert_eq!(again, request);
    }

    #[test]
    fn unknown_and_impossible_wishes_are_refused() {
        for text in [r#"{"stile": []}"#, r#"{"size": "0x3"}"#, r#"{"sampler": "magic"}"#, r#"{"invert": "up"}"#] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
