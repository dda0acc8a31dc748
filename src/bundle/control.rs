//! What ControlNets look at, and the networks that draw it: kinds of control pictures, and what a depth estimator wants to
//! be shown.

use super::config::ControlNetConfig;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// What a ControlNet looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Control {
    /// Soft edges (HED and its like), white on black.
    SoftEdge,
    /// Depth maps, what is near being white.
    Depth,
    /// Canny edges, white on black.
    Canny,
    /// Line drawings, white on black.
    LineArt,
}

impl Control {
    /// All of them.
    pub const ALL: [Control; 4] = [Control::SoftEdge, Control::Depth, Control::Canny, Control::LineArt];

    /// As it is written in manifests and requests.
    pub fn name(self) -> &'static str {
        match self {
            Control::SoftEdge => "soft-edge",
            Control::Depth => "depth",
            Control::Canny => "canny",
            Control::LineArt => "lineart",
        }
    }

    /// As it is part of a file's name: `controlnet_softedge`.
    pub fn slug(self) -> &'static str {
        match self {
            Control::SoftEdge => "softedge",
            other => other.name(),
        }
    }

    /// The kind that a name speaks of, as ControlNets and their annotators are called in the world:
    /// `control_v11f1p_sd15_depth`, `softedge_hed`, `sd-controlnet-canny`, `lineart_coarse`.
    pub fn spoken_of(name: &str) -> Option<Control> {
        let name: String = name.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
        let words: [(&str, Control); 7] = [
            ("softedge", Control::SoftEdge),
            ("pidinet", Control::SoftEdge),
            ("controlhed", Control::SoftEdge),
            ("controlnethed", Control::SoftEdge),
            ("depth", Control::Depth),
            ("canny", Control::Canny),
            ("lineart", Control::LineArt),
        ];
        words.into_iter().find(|(word, _)| name.contains(word)).map(|(_, control)| control)
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Control {
    type Err = String;

    fn from_str(text: &str) -> Result<Control, String> {
        let found = Control::ALL.into_iter().find(|control| text == control.name() || text == control.slug());
        found.ok_or_else(|| {
            format!("there are no control pictures called {text:?}; choose soft-edge, depth, canny or lineart")
        })
    }
}

impl TryFrom<String> for Control {
    type Error = String;

    fn try_from(text: String) -> Result<Control, String> {
        text.parse()
    }
}

impl From<Control> for String {
    fn from(control: Control) -> String {
        control.name().to_owned()
    }
}

/// A ControlNet of a model.
#[derive(Debug, Clone)]
pub struct ControlNetPart {
    /// What it looks at.
    pub control: Control,
    /// Its folder, or its file in a bundle without the ending: `controlnet`, `controlnet_depth`.
    pub part: String,
    /// Its shape.
    pub config: ControlNetConfig,
}

/// The ControlNets of a diffusers folder: `controlnet`, the further ones of diffusers' `MultiControlNetModel`
/// (`controlnet_1` …) and those named for what they look at (`controlnet_depth`).
///
/// What one looks at is said by its folder's name, or else by where its configuration says that it comes from. The first
/// one is taken for one of soft edges where neither does.
///
/// # Errors
/// [`Error::Model`] for one that does not say what it looks at, and for two that look at the same.
pub(super) fn controlnets_of_folder(folder: &Path) -> Result<Vec<ControlNetPart>> {
    let named = Control::ALL.map(|control| format!("controlnet_{}", control.slug()));
    let numbered = (1..Control::ALL.len()).map(|number| format!("controlnet_{number}"));
    let (mut found, mut problems): (Vec<ControlNetPart>, _) = (vec![], vec![]);
    for part in ["controlnet".to_owned()].into_iter().chain(numbered).chain(named) {
        let path = folder.join(&part).join("config.json");
        if !path.is_file() {
            continue;
        }
        let json: Value = super::read_json(&path)?;
        let origin = json["_name_or_path"].as_str().and_then(Control::spoken_of);
        let own = part.strip_prefix("controlnet_").and_then(|suffix| suffix.parse().ok());
        let first = (part == "controlnet").then_some(Control::SoftEdge);
        let Some(control) = own.or(origin).or(first) else {
            problems
                .push(format!("{part}: does not say what it looks at; rename the folder, such as controlnet_depth"));
            continue;
        };
        if let Some(other) = found.iter().find(|other| other.control == control) {
            problems.push(format!("{part}: looks at {control} pictures as {} does; take one away", other.part));
            continue;
        }
        let config = super::read_json(&path)?;
        found.push(ControlNetPart { control, part, config });
    }
    if problems.is_empty() { Ok(found) } else { Err(Error::Model { folder: folder.to_path_buf(), problems }) }
}

/// What a depth estimator wants to be shown, and what its answer means. The keys of `preprocessor_config.json` as
/// transformers' `DPTImageProcessor` has them, with the same presets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preprocessing {
    /// What the picture is resized to.
    pub size: Sides,
    /// Whether the picture's shape is kept: then the side whose change is the smaller one decides.
    pub keep_aspect_ratio: bool,
    /// Both sides are multiples of this.
    pub ensure_multiple_of: usize,
    /// Taken from each channel in [0, 1].
    pub image_mean: [f32; 3],
    /// What it is divided by then.
    pub image_std: [f32; 3],
    /// How it is resized, by Pillow's number: 1 Lanczos, 2 bilinear, 3 bicubic.
    pub resample: u8,
    /// Whether what is near has the larger numbers, as in inverse depth; estimators of metres have the smaller ones.
    pub near_is_large: bool,
    /// Whether it is resized at all, and numbers are divided by 255 and shifted.
    #[serde(skip_serializing)]
    do_resize: bool,
    #[serde(skip_serializing)]
    do_rescale: bool,
    #[serde(skip_serializing)]
    do_normalize: bool,
    #[serde(skip_serializing)]
    do_pad: Option<bool>,
    #[serde(skip_serializing)]
    rescale_factor: f64,
}

/// Height and width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// Of a column.
    pub height: usize,
    /// Of a row.
    pub width: usize,
}

impl Default for Preprocessing {
    fn default() -> Self {
        Preprocessing {
            size: Sides { height: 384, width: 384 },
            keep_aspect_ratio: false,
            ensure_multiple_of: 1,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            resample: 3,
            near_is_large: true,
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            do_pad: None,
            rescale_factor: 1.0 / 255.0,
        }
    }
}

/// Estimators are shown no larger pictures, in pixels a side.
const LARGEST: usize = 1 << 12;

impl Preprocessing {
    /// What a folder says of the estimator in it: `preprocessor_config.json`, and in `config.json` whether depth is
    /// metric. The presets where it says nothing.
    ///
    /// # Errors
    /// If a file is damaged or asks for what this program does not do; every such key is named.
    pub fn of_folder(folder: &Path) -> Result<Preprocessing> {
        let [own, network] = ["preprocessor_config.json", "config.json"].map(|name| folder.join(name));
        let mut found = if own.is_file() { super::read_json(&own)? } else { Preprocessing::default() };
        let problems = found.problems();
        if !problems.is_empty() {
            return Err(Error::file(&own, problems.join("; ")));
        }
        if network.is_file() {
            let config: Value = super::read_json(&network)?;
            found.near_is_large &= config["depth_estimation_type"] != "metric";
        }
        Ok(found)
    }

    /// Everything that this program does not do, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        for (key, wrong) in [
            ("do_resize", !self.do_resize),
            ("do_rescale", !self.do_rescale),
            ("do_normalize", !self.do_normalize),
            ("do_pad", self.do_pad == Some(true)),
            ("rescale_factor", !((self.rescale_factor * 255.0 - 1.0).abs() < 1e-6)),
        ] {
            if wrong {
                problems.push(format!("{key} is not as this program has it; pictures of the estimator would be wrong"));
            }
        }
        if ![1, 2, 3].contains(&self.resample) {
            problems.push(format!("resample is {}, must be 1 (Lanczos), 2 (bilinear) or 3 (bicubic)", self.resample));
        }
        let Sides { height, width } = self.size;
        for (key, number) in [("height", height), ("width", width), ("ensure_multiple_of", self.ensure_multiple_of)] {
            if !(1..=LARGEST).contains(&number) {
                problems.push(format!("{key} is {number}, must be 1 to {LARGEST}"));
            }
        }
        let finite = |values: &[f32; 3]| values.iter().all(|value| value.is_finite());
        if !finite(&self.image_mean) || !finite(&self.image_std) || self.image_std.iter().any(|std| !(*std > 0.0)) {
            problems.push("image_mean and image_std must be three finite numbers each, the latter above 0".into());
        }
        problems
    }

    /// The sides of what the network is shown of a picture, as `get_resize_output_image_size` in
    /// transformers' `image_processing_dpt.py` has it.
    pub fn sides(&self, width: usize, height: usize) -> Sides {
        let (mut down, mut across) = (self.size.height as f64 / height as f64, self.size.width as f64 / width as f64);
        if self.keep_aspect_ratio {
            if (1.0 - across).abs() < (1.0 - down).abs() {
                down = across; // as little as possible
            } else {
                across = down;
            }
        }
        let step = self.ensure_multiple_of;
        let multiple = |side: f64| match (side / step as f64).round_ties_even() as usize * step {
            0 => step, // where transformers has nothing left
            side => side.min(LARGEST.next_multiple_of(step)),
        };
        Sides { height: multiple(down * height as f64), width: multiple(across * width as f64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_in_both_spellings_and_no_other() {
        for control in Control::ALL {
            assert_eq!(control.name().parse(), Ok(control));
            assert_eq!(control.slug().parse(), Ok(control));
            assert_eq!(serde_json::from_value::<Control>(serde_json::to_value(control).unwrap()).unwrap(), control);
        }
        let error = "pose".parse::<Control>().unwrap_err();
        assert!(error.contains("\"pose\"") && error.contains("lineart"), "{error}");
    }

    #[test]
    fn names_of_the_world_speak_of_kinds() {
        for (name, control) in [
            ("lllyasviel/control_v11f1p_sd15_depth", Some(Control::Depth)),
            ("control_v11p_sd15_softedge [a8575a2a]", Some(Control::SoftEdge)),
            ("softedge_hed", Some(Control::SoftEdge)),
            ("lllyasviel/sd-controlnet-hed", Some(Control::SoftEdge)),
            ("lllyasviel/sd-controlnet-canny", Some(Control::Canny)),
            ("lineart_coarse", Some(Control::LineArt)),
            ("openpose_full", None),
            ("", None),
        ] {
            assert_eq!(Control::spoken_of(name), control, "{name}");
        }
    }

    #[test]
    fn what_estimators_are_shown_has_the_sides_that_transformers_gives() {
        let sides = |keep: bool, step: usize, side: usize, width: usize, height: usize| {
            let size = Sides { height: side, width: side };
            let own = Preprocessing { keep_aspect_ratio: keep, ensure_multiple_of: step, size, ..Default::default() };
            let Sides { height, width } = own.sides(width, height);
            (height, width)
        };
        assert_eq!(sides(false, 1, 384, 640, 480), (384, 384));
        // Depth-Anything of 640x480: the shorter side becomes 518, the other 690.67, to multiples of 14
        assert_eq!(sides(true, 14, 518, 640, 480), (518, 686));
        assert_eq!(sides(true, 32, 384, 256, 192), (288, 384));
        // the width changes less, and what becomes of the height is less than a step
        assert_eq!(sides(true, 32, 32, 1000, 1), (32, 32));
        assert_eq!(sides(true, 14, 14, 3000, 14), (14, 3000 / 14 * 14));
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("preprocessor_config.json");
        for (text, words) in [
            (r#"{"do_pad": true}"#, "do_pad"),
            (r#"{"rescale_factor": 1.0}"#, "rescale_factor"),
            (r#"{"image_std": [0.5, 0.0, 0.5]}"#, "image_std"),
            (r#"{"size": {"height": 0, "width": 5}}"#, "height is 0"),
            (r#"{"resample": 0}"#, "resample is 0"),
            (r#"{"size": "#, "JSON"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Preprocessing::of_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("preprocessor_config.json"), "{text}: {error}");
        }
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(Preprocessing::of_folder(folder.path()).unwrap(), Preprocessing::default());
        std::fs::write(folder.path().join("config.json"), r#"{"depth_estimation_type": "metric"}"#).unwrap();
        assert!(!Preprocessing::of_folder(folder.path()).unwrap().near_is_large);
    }
}
