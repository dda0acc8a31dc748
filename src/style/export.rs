//! Styles for other programs.

use super::{Style, card};
use crate::bundle::pickle::{self, Item};
use crate::bundle::write::write_atomically;
use crate::camera::Frame;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

/// The kinds of file a style is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileFormat {
    /// This program's own: every stage, and where it comes from.
    Safetensors,
    /// The reference code's `.bin`: a dictionary `<token>-T0` … saved by torch.
    DreamstylerBin,
    /// diffusers' `learned_embeds.safetensors`; one stage, `[n, D]`.
    Diffusers,
    /// diffusers' `learned_embeds.bin`; one stage, `[n, D]`.
    DiffusersBin,
    /// An embedding for A1111's web UI and what reads its files; one stage.
    A1111Pt,
    /// The same inside a picture; one stage.
    PngCard,
}

impl FileFormat {
    /// All of them.
    pub const ALL: [FileFormat; 6] = [
        FileFormat::Safetensors,
        FileFormat::DreamstylerBin,
        FileFormat::Diffusers,
        FileFormat::DiffusersBin,
        FileFormat::A1111Pt,
        FileFormat::PngCard,
    ];

    /// As the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            FileFormat::Safetensors => "safetensors",
            FileFormat::DreamstylerBin => "dreamstyler-bin",
            FileFormat::Diffusers => "diffusers",
            FileFormat::DiffusersBin => "diffusers-bin",
            FileFormat::A1111Pt => "a1111-pt",
            FileFormat::PngCard => "png-card",
        }
    }

    /// How its files' names end.
    pub fn extension(self) -> &'static str {
        match self {
            FileFormat::Safetensors | FileFormat::Diffusers => "safetensors",
            FileFormat::DreamstylerBin | FileFormat::DiffusersBin => "bin",
            FileFormat::A1111Pt => "pt",
            FileFormat::PngCard => "png",
        }
    }

    /// Whether a file of this kind holds all stages of a style.
    fn is_staged(self) -> bool {
        matches!(self, FileFormat::Safetensors | FileFormat::DreamstylerBin)
    }
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FileFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        FileFormat::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names = FileFormat::ALL.map(FileFormat::name).join(", ");
            Error::Usage(format!("there is no style format {text:?}; choose one of {names}"))
        })
    }
}

impl Style {
    /// Writes the style as another program reads it, whole or not at all. `picture` is what a PNG card shows; without one,
    /// the vectors themselves.
    ///
    /// # Errors
    /// As [`Style::to_format`]; otherwise as [`write_atomically`].
    pub fn export(&self, path: &Path, format: FileFormat, picture: Option<&Frame>) -> Result<()> {
        let bytes = self.to_format(format, picture)?;
        write_atomically(path, |file| file.write_all(&bytes))
    }

    /// The bytes that [`Style::export`] writes.
    ///
    /// # Errors
    /// [`Error::Usage`] for several stages in a form that has one, and for a style with faults.
    pub fn to_format(&self, format: FileFormat, picture: Option<&Frame>) -> Result<Vec<u8>> {
        if let Some(fault) = self.fault() {
            return Err(Error::Usage(fault));
        }
        let (token, stages) = (&self.token, self.stages());
        if !format.is_staged() && stages > 1 {
            return Err(Error::Usage(format!(
                "the style {token:?} has {stages} stages and a file of the form {format} has one; choose it with --stage"
            )));
        }
        let several = |shape: usize| vec![self.vectors_per_stage, shape];
        let one = || Item::Tensor(several(self.width()), self.vectors[0].clone());
        let failed = |fault: std::io::Error| Error::Usage(format!("the style {token:?} cannot be written: {fault}"));
        match format {
            FileFormat::Safetensors => Ok(self.to_bytes()),
            FileFormat::DreamstylerBin => {
                let shape = if self.vectors_per_stage == 1 { vec![self.width()] } else { several(self.width()) };
                let stage = |(stage, vector): (usize, &Vec<f32>)| {
                    (format!("{token}-T{stage}"), Item::Tensor(shape.clone(), vector.clone()))
                };
                pickle::write(&Item::Dict(self.vectors.iter().enumerate().map(stage).collect())).map_err(failed)
            }
            FileFormat::Diffusers => Ok(self.to_diffusers()),
            FileFormat::DiffusersBin => pickle::write(&Item::Dict(vec![(token.clone(), one())])).map_err(failed),
            FileFormat::A1111Pt => pickle::write(&self.to_a1111(one())).map_err(failed),
            FileFormat::PngCard => {
                let drawn;
                let picture = match picture {
                    Some(picture) => picture,
                    None => {
                        drawn = self.bands()?;
                        &drawn
                    }
                };
                let size = (picture.width() as u32, picture.height() as u32);
                card::write(self, size, picture.rgb()).map_err(|fault| failed(std::io::Error::other(fault)))
            }
        }
    }

    /// What A1111's loader demands: one vector or several under `*`; the token's number is that of `*` in CLIP's
    /// vocabulary. Names of checkpoints are for information there.
    fn to_a1111(&self, vectors: Item) -> Item {
        let steps = self.steps.and_then(|steps| i64::try_from(steps).ok());
        let items = [
            ("string_to_token", Item::Dict(vec![("*".to_owned(), Item::Int(265))])),
            ("string_to_param", Item::Dict(vec![("*".to_owned(), vectors)])),
            ("name", Item::Str(self.token.clone())),
            ("step", steps.map_or(Item::None, Item::Int)),
            ("sd_checkpoint", Item::None),
            ("sd_checkpoint_name", Item::None),
        ];
        Item::Dict(items.map(|(key, value)| (key.to_owned(), value)).to_vec())
    }

    /// The vectors as pictures: a band each, a column a number, from blue (low) over white to red (high).
    fn bands(&self) -> Result<Frame> {
        const SIDE: usize = 512;
        let numbers = &self.vectors[0];
        let (width, bands) = (self.width(), self.vectors_per_stage);
        let rms = (numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32).sqrt().max(f32::MIN_POSITIVE);
        let colour = |x: f32| {
            let level = (x / (2.0 * rms)).clamp(-1.0, 1.0);
            let pale = (255.0 * (1.0 - level.abs())) as u8;
            if level > 0.0 { [255, pale, pale] } else { [pale, pale, 255] }
        };
        let pixel = |i: usize| {
            let (x, y) = (i % SIDE, i / SIDE);
            colour(numbers[y * bands / SIDE * width + x * width / SIDE])
        };
        Frame::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(pixel).collect())
    }
}
