//! A learned style: one vector for each stage of the denoising, in the text encoder's word space.

mod card;
mod export;
mod file;
mod foreign;
mod mix;

pub use export::FileFormat;
pub use file::FORMAT;
pub use mix::{Recipe, initial_word};

use crate::error::{Error, Result};

/// Timesteps of the diffusion the networks were trained with.
const TRAIN_TIMESTEPS: f64 = 1000.0;

/// The most vectors a stage can have: a prompt has 77 tokens, start and end among them.
pub const MOST_VECTORS: usize = 75;

/// A style as learned: T vectors and where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Style {
    /// The style's name; stage t is the token `<token>-T<t>`.
    pub token: String,
    /// `[T][n * D]`, a stage's n vectors one after the other: stage 0 is next to the clean image, T - 1 next to pure noise;
    /// D is the text encoder's width. One stage alone serves the whole denoising.
    pub vectors: Vec<Vec<f32>>,
    /// Vectors of each stage, n: the style stands for so many tokens in a row. Mostly 1.
    pub vectors_per_stage: usize,
    /// SHA-256 (hexadecimal) of the word table of the text encoder it was learned for; empty where the file does not say.
    pub base: String,
    /// What the style pictures show besides their style, one text a picture, with `{}` where the style went.
    pub context: Vec<String>,
    /// Learning steps taken, where known.
    pub steps: Option<u64>,
    /// Seed of the learning, where known.
    pub seed: Option<u64>,
    /// Licence of the vectors (SPDX where possible), as the one who learned the style gave it; empty where not given.
    pub license: String,
    /// The word whose vector all stages started from; empty where not known or not one.
    pub init: String,
    /// The recipe, where the style was mixed from others.
    pub mix: Option<String>,
}

impl Default for Style {
    /// No name and no vectors, one a stage.
    fn default() -> Self {
        Style {
            vectors_per_stage: 1,
            token: String::new(),
            vectors: vec![],
            base: String::new(),
            context: vec![],
            steps: None,
            seed: None,
            license: String::new(),
            init: String::new(),
            mix: None,
        }
    }
}

impl Style {
    /// Number of stages T.
    pub fn stages(&self) -> usize {
        self.vectors.len()
    }

    /// Width D of the vectors; 0 while there are none.
    pub fn width(&self) -> usize {
        self.vectors.first().map_or(0, |stage| stage.len() / self.vectors_per_stage.max(1))
    }

    /// Length of each stage's vector; the mean where it has several.
    pub fn norms(&self) -> Vec<f64> {
        self.means(|vector| dot(vector, vector).sqrt())
    }

    /// Cosine of the angle between each stage's vector and `word: [D]`, such as the one all stages started from; 0 where
    /// one of the two is zero; the mean where a stage has several.
    pub fn cosines(&self, word: &[f32]) -> Vec<f64> {
        self.means(|vector| {
            let lengths = (dot(vector, vector) * dot(word, word)).sqrt();
            if lengths > 0.0 { dot(vector, word) / lengths } else { 0.0 }
        })
    }

    /// What `of` says of each stage's vectors, on average.
    fn means(&self, of: impl Fn(&[f32]) -> f64) -> Vec<f64> {
        let width = self.width().max(1);
        let mean = |stage: &Vec<f32>| stage.chunks(width).map(&of).sum::<f64>() / self.vectors_per_stage.max(1) as f64;
        self.vectors.iter().map(mean).collect()
    }

    /// One stage as a style of its own, which then serves the whole denoising.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no such stage.
    pub fn stage(&self, stage: usize) -> Result<Style> {
        let vector = self.vectors.get(stage).ok_or_else(|| {
            let (token, last) = (&self.token, self.stages().saturating_sub(1));
            Error::Usage(format!("there is no stage {stage}: the style {token:?} has stages 0 to {last}"))
        })?;
        Ok(Style { vectors: vec![vector.clone()], ..self.clone() })
    }

    /// Whether the style can be used with a text encoder whose word table has this SHA-256 and width.
    ///
    /// # Errors
    /// [`Error::Usage`] when it was learned for another.
    pub fn check_fits(&self, base: &str, width: usize) -> Result<()> {
        let token = &self.token;
        if self.width() != width {
            let own = self.width();
            return Err(Error::Usage(format!(
                "the style {token:?} was learned for another text encoder: its vectors are {own} numbers wide, this \
                 model's words are {width}; use the model it was learned with, or learn it again"
            )));
        }
        // files of other programs do not say; their width is all there is to go by
        if !self.base.is_empty() && !self.base.eq_ignore_ascii_case(base) {
            return Err(Error::Usage(format!(
                "the style {token:?} was learned for another text encoder (word table {}, this model's is {}); use the \
                 model it was learned with, or learn it again",
                abbreviated(&self.base),
                abbreviated(base)
            )));
        }
        Ok(())
    }

    /// What is wrong with the contents, if anything is.
    fn fault(&self) -> Option<String> {
        if self.token.is_empty() {
            return Some("the style has no name".to_owned());
        }
        if self.vectors.is_empty() || self.width() == 0 {
            return Some(format!("the style {:?} has no vectors", self.token));
        }
        let several = self.vectors_per_stage;
        if !(1..=MOST_VECTORS).contains(&several) || !self.vectors[0].len().is_multiple_of(several) {
            let what =
                format!("{several} vectors a stage; a prompt has room for 1 to {MOST_VECTORS} tokens of a style");
            return Some(format!("the style {:?} has {what}", self.token));
        }
        if let Some(stage) = self.vectors.iter().position(|vector| vector.len() != self.vectors[0].len()) {
            let (own, first) = (self.vectors[stage].len() / several, self.width());
            return Some(format!("the vector of stage {stage} is {own} numbers wide, that of stage 0 is {first}"));
        }
        let stage = self.vectors.iter().position(|vector| !vector.iter().all(|value| value.is_finite()))?;
        Some(format!("the vector of stage {stage} has numbers that are not finite; learn the style again"))
    }
}

/// The stage of timestep `t` in [0, 1000): floor(t / 1000 * T), held inside `0..stages` (the paper's multi-stage
/// textual inversion).
pub fn stage_of(t: f64, stages: usize) -> usize {
    // A float becomes the nearest usize there is: negative and not-a-number become 0.
    let stage = (t / TRAIN_TIMESTEPS * stages as f64).floor() as usize;
    stage.min(stages.saturating_sub(1))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Enough of a checksum to tell two apart.
fn abbreviated(checksum: &str) -> String {
    checksum.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_split_the_timesteps_evenly() {
        for (t, stages, stage) in [
            (0.0, 6, 0),
            (166.0, 6, 0),
            (167.0, 6, 1),
            (499.0, 6, 2),
            (500.0, 6, 3),
            (833.0, 6, 4),
            (834.0, 6, 5),
            (999.0, 6, 5),
            (999.99, 6, 5),
            (1000.0, 6, 5),
            (5000.0, 6, 5),
            (-1.0, 6, 0),
            (f64::NAN, 6, 0),
            (999.0, 1, 0),
            (999.0, 0, 0),
        ] {
            assert_eq!(stage_of(t, stages), stage, "t {t} of {stages}");
        }
        // In whole numbers the formula is exact for as many stages as anybody learns.
        for stages in 1..=40 {
            for t in 0..1000 {
                assert_eq!(stage_of(t as f64, stages), t * stages / 1000);
            }
        }
    }

    #[test]
    fn lengths_and_angles_by_hand() {
        let style = Style { vectors: vec![vec![3.0, 4.0], vec![0.0, 0.0], vec![-4.0, 3.0]], ..Style::default() };
        assert_eq!(style.norms(), [5.0, 0.0, 5.0]);
        assert_eq!(style.cosines(&[6.0, 8.0]), [1.0, 0.0, 0.0]);
        assert_eq!(style.cosines(&[-3.0, -4.0]), [-1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_style_fits_only_its_text_encoder() {
        let style =
            Style { token: "gogh".into(), vectors: vec![vec![0.0; 4]], base: "ab".repeat(32), ..Style::default() };
        style.check_fits(&"ab".repeat(32), 4).unwrap();
        style.check_fits(&"cd".repeat(32), 4).unwrap_err();
        // another program's file, which does not say
        Style { base: String::new(), ..style.clone() }.check_fits(&"ab".repeat(32), 4).unwrap();
        for (base, width) in [("ab".repeat(32), 5), ("cd".repeat(32), 4), (String::new(), 4)] {
            let text = style.check_fits(&base, width).unwrap_err().to_string();
            assert!(text.contains("\"gogh\" was learned for another text encoder"), "{text}");
        }
    }
}
