//! A wish for a painting as a person utters it, on the command line or over HTTP: everything may be left out.

use super::control::{ControlChoice, no_controlnet};
use super::{Inversion, Order, Painter, StyleChoice};
use crate::bundle::Bundle;
use crate::bundle::control::Control;
use crate::camera::Frame;
use crate::prompt::Template;
use crate::sampler::{Guidance, GuidanceForm, Sampler};
use crate::stages::PerStage;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
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
    /// Guidance towards the style, ls in the paper: for all stages or for each; 0 where a stage is not named.
    pub style_strength: Option<PerStage>,
    /// Guidance towards the content of the prompt, lc in the paper, likewise.
    pub content_strength: Option<PerStage>,
    /// Guidance towards the prompt as a whole, ln in the paper.
    pub guidance: Option<f64>,
    /// ls and lc as the paper has them, or halved as in its code.
    pub guidance_form: Option<GuidanceForm>,
    /// How loud the ControlNet speaks, or each of several, such as `soft-edge=0.6,depth=0.4`; 0 leaves it out.
    #[schema(value_type = Option<Value>)]
    pub control_scale: Option<ControlScale>,
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
        pictures: impl Into<Pictures>,
        habits: Habits,
    ) -> Result<(Order, Vec<String>)> {
        let Pictures { content, controls } = pictures.into();
        let mut notes = vec![];
        let transfer = content.is_some();
        let guidance = Guidance::new(
            self.style_strength.clone().unwrap_or(0.0.into()),
            self.content_strength.clone().unwrap_or(0.0.into()),
            self.guidance.unwrap_or(GUIDANCE),
            self.guidance_form.unwrap_or_default(),
        )?;
        let steps = self.steps.or(habits.steps).unwrap_or(if transfer { 30 } else { 25 });
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::Usage(format!("{steps} steps; give 1 to {MOST_STEPS}")));
        }
        let order = Order {
            prompt: self.template()?,
            negative: self.negative.clone().unwrap_or_else(|| NEGATIVE.to_owned()),
            styles,
            size: {
                let shape = content.as_ref().or(controls.first().map(|given| &given.image));
                self.pixels(painter.bundle(), shape, habits.largest_side, &mut notes)
            },
            controls: self.controls(painter.bundle(), transfer, controls, &mut notes)?,
            content,
            steps,
            strength: self.strength.unwrap_or(if transfer { STRENGTH } else { 1.0 }),
            sampler: self.sampler.unwrap_or(if transfer { Sampler::UniPc } else { Sampler::DpmSolverPp2M }),
            guidance,
            inversion: self.invert.unwrap_or_default(),
            seed: self.seed.unwrap_or(0),
        };
        if transfer && !(order.strength > 0.0 && order.strength <= 1.0) {
            return Err(Error::Usage(format!("the strength is {}; give one above 0 and up to 1", order.strength)));
        }
        order.guidance.check_stages(order.stages())?;
        notes.extend(order.notes(painter.tokenizer())?);
        Ok((order, notes))
    }

    /// The ControlNets that are to speak.
    ///
    /// A number alone is the scale of those whose pictures are given, or else of the first that this program can make
    /// pictures for; names are the scales of exactly these, and pictures given besides have the usual one.
    fn controls(
        &self,
        bundle: &Bundle,
        transfer: bool,
        given: Vec<GivenControl>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<ControlChoice>> {
        let mut images = BTreeMap::new();
        for GivenControl { control, image } in given {
            let own = || bundle.controlnets.first().map(|net| net.control);
            let control = control.or_else(own).ok_or_else(|| no_controlnet(bundle, Control::SoftEdge))?;
            if images.insert(control, image).is_some() {
                return Err(Error::Usage(format!("two {control} pictures are given; a ControlNet looks at one")));
            }
        }
        let named = matches!(self.control_scale, Some(ControlScale::Each(_)));
        let mut scales = match &self.control_scale {
            Some(ControlScale::Each(scales)) => scales.clone(),
            _ if !images.is_empty() => BTreeMap::new(),
            alone => {
                let drawn = bundle.controlnets.iter().find(|net| bundle.can_draw(net.control));
                let net = drawn.or(bundle.controlnets.first());
                let scale = alone.as_ref().map_or(CONTROL_SCALE, ControlScale::alone);
                check_scale(scale)?;
                if net.is_none() && transfer && scale != 0.0 {
                    notes.push("this model has no ControlNet; the photograph's edges do not count".into());
                }
                net.map(|net| (net.control, scale)).into_iter().collect()
            }
        };
        let usual = self.control_scale.as_ref().map_or(CONTROL_SCALE, ControlScale::alone);
        for control in images.keys() {
            scales.entry(*control).or_insert(usual);
        }
        for (&control, &scale) in &scales {
            check_scale(scale)?;
            if bundle.controlnet(control).is_none() {
                return Err(no_controlnet(bundle, control));
            }
        }
        let mut choices = vec![];
        for control in bundle.controlnets.iter().map(|net| net.control) {
            let Some(&scale) = scales.get(&control).filter(|scale| **scale != 0.0) else { continue };
            match images.remove(&control) {
                Some(image) => choices.push(ControlChoice { control, scale, image: Some(image) }),
                None if transfer && bundle.can_draw(control) => {
                    choices.push(ControlChoice::of_content(control, scale));
                }
                None if transfer => notes.push(format!(
                    "this model's ControlNet reads {control} pictures, and it has no network that makes them of \
                     photographs; it is left out unless such a picture is given"
                )),
                None if named => notes.push(format!(
                    "there is no photograph to make a {control} picture of, and none is given; the ControlNet is left out"
                )),
                None => {}
            }
        }
        Ok(choices)
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

/// # Errors
/// [`Error::Usage`] for what is no finite number.
pub(super) fn check_scale(scale: f64) -> Result<()> {
    match scale.is_finite() {
        true => Ok(()),
        false => Err(Error::Usage(format!("the control scale is {scale}; give a finite number"))),
    }
}

/// The pictures that a painting is made with.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// The photograph to paint.
    pub content: Option<Frame>,
    /// Control pictures that are not made of it.
    pub controls: Vec<GivenControl>,
}

impl From<Option<Frame>> for Pictures {
    fn from(content: Option<Frame>) -> Self {
        Pictures { content, controls: vec![] }
    }
}

/// A control picture that somebody brings along.
#[derive(Debug, Clone)]
pub struct GivenControl {
    /// What it shows; without a word what the model's first ControlNet looks at.
    pub control: Option<Control>,
    /// The picture, of any size.
    pub image: Frame,
}

/// How loud ControlNets speak. Written as a number, as `soft-edge=0.6,depth=0.4`, or in JSON as an object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "WrittenScale", into = "WrittenScale")]
pub enum ControlScale {
    /// The one that speaks.
    Alone(f64),
    /// Exactly these, by what they look at.
    Each(BTreeMap<Control, f64>),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenScale {
    Number(f64),
    Names(BTreeMap<String, f64>),
    Text(String),
}

impl ControlScale {
    /// Of a ControlNet that is not named.
    fn alone(&self) -> f64 {
        match self {
            ControlScale::Alone(scale) => *scale,
            ControlScale::Each(_) => CONTROL_SCALE,
        }
    }
}

impl TryFrom<WrittenScale> for ControlScale {
    type Error = String;

    fn try_from(written: WrittenScale) -> Result<ControlScale, String> {
        match written {
            WrittenScale::Number(scale) => Ok(ControlScale::Alone(scale)),
            WrittenScale::Names(scales) => {
                let scale = |(name, scale): (String, f64)| Ok((name.parse()?, scale));
                Ok(ControlScale::Each(scales.into_iter().map(scale).collect::<Result<_, String>>()?))
            }
            WrittenScale::Text(text) => text.parse(),
        }
    }
}

impl From<ControlScale> for WrittenScale {
    fn from(scale: ControlScale) -> WrittenScale {
        match scale {
            ControlScale::Alone(scale) => WrittenScale::Number(scale),
            ControlScale::Each(scales) => {
                WrittenScale::Names(scales.into_iter().map(|(control, scale)| (control.into(), scale)).collect())
            }
        }
    }
}

impl FromStr for ControlScale {
    type Err = String;

    fn from_str(text: &str) -> Result<ControlScale, String> {
        let how = "write a number, such as 0.8, or one for each, such as soft-edge=0.6,depth=0.4";
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| format!("{text:?} is no number; {how}"));
        if !text.contains('=') {
            return number(text).map(ControlScale::Alone);
        }
        let mut scales = BTreeMap::new();
        for part in text.split(',') {
            let (name, scale) = part.split_once('=').ok_or_else(|| format!("{part:?} has no scale; {how}"))?;
            let control: Control = name.trim().parse()?;
            if scales.insert(control, number(scale)?).is_some() {
                return Err(format!("{control} has two scales; {how}"));
            }
        }
        Ok(ControlScale::Each(scales))
    }
}

impl fmt::Display for ControlScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlScale::Alone(scale) => scale.fmt(f),
            ControlScale::Each(scales) => {
                let scales: Vec<_> = scales.iter().map(|(control, scale)| format!("{control}={scale}")).collect();
                f.write_str(&scales.join(","))
            }
        }
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
    fn scales_are_numbers_or_names_with_numbers() {
        let both = ControlScale::Each(BTreeMap::from([(Control::SoftEdge, 0.6), (Control::Depth, 0.4)]));
        for (text, wanted) in [
            ("0.8", ControlScale::Alone(0.8)),
            ("softedge=0.6,depth=0.4", both.clone()),
            (" depth = 0.4, soft-edge=0.6", both.clone()),
        ] {
            assert_eq!(text.parse(), Ok(wanted.clone()), "{text}");
            assert_eq!(wanted.to_string().parse(), Ok(wanted.clone()), "{text}");
            let json = serde_json::to_value(&wanted).unwrap();
            assert_eq!(serde_json::from_value::<ControlScale>(json).unwrap(), wanted);
            assert_eq!(serde_json::from_value::<ControlScale>(text.into()).unwrap(), wanted);
        }
        for (text, words) in [
            ("loud", "\"loud\" is no number"),
            ("pose=1", "\"pose\""),
            ("depth=", "\"\" is no number"),
            ("depth=1,canny", "\"canny\" has no scale"),
            ("depth=1,depth=2", "two scales"),
            ("", "is no number"),
        ] {
            let error = text.parse::<ControlScale>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = serde_json::from_str::<Request>(r#"{"control_scale": {"pose": 1}}"#).unwrap_err().to_string();
        assert!(error.contains("\"pose\"") && error.contains("lineart"), "{error}");
    }

    #[test]
    fn unknown_and_impossible_wishes_are_refused() {
        for text in [r#"{"stile": []}"#, r#"{"size": "0x3"}"#, r#"{"sampler": "magic"}"#, r#"{"invert": "up"}"#] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
