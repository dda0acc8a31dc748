//! A learned style: one vector for each stage of the denoising, in the text encoder's word space.

mod file;
mod mix;

pub use file::FORMAT;
pub use mix::{Recipe, initial_word};

use crate::error::{Error, Result};

/// Timesteps of the diffusion the networks were trained with.
const TRAIN_TIMESTEPS: f64 = 1000.0;

/// A style as learned: T vectors and where they come from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Style {
    /// The style's name; stage t is the token `<token>-T<t>`.
    pub token: String,
    /// `[T][D]`: stage 0 is next to the clean image, T - 1 next to pure noise; D is the text encoder's width. One vector
    /// alone serves all stages.
    pub vectors: Vec<Vec<f32>>,
    /// SHA-256 (hexadecimal) of the word table of the text encoder it was learned for.
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

impl Style {
    /// Number of stages T.
    pub fn stages(&self) -> usize {
        self.vectors.len()
    }

    /// Width D of the vectors; 0 while there are none.
    pub fn width(&self) -> usize {
        self.vectors.first().map_or(0, Vec::len)
    }

    /// Length of each stage's vector.
    pub fn norms(&self) -> Vec<f64> {
        self.vectors.iter().map(|vector| dot(vector, vector).sqrt()).collect()
    }

    /// Cosine of the angle between each stage's vector and `word: [D]`, such as the one all stages started from; 0 where
    /// one of the two is zero.
    pub fn cosines(&self, word: &[f32]) -> Vec<f64> {
        let cosine = |vector: &Vec<f32>| {
            let lengths = (dot(vector, vector) * dot(word, word)).sqrt();
            if lengths > 0.0 { dot(vector, word) / lengths } else { 0.0 }
        };
        self.vectors.iter().map(cosine).collect()
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
        if !self.base.eq_ignore_ascii_case(base) {
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
        if let Some(stage) = self.vectors.iter().position(|vector| vector.len() != self.width()) {
            let (own, first) = (self.vectors[stage].len(), self.width());
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
        for (base, width) in [("ab".repeat(32), 5), ("cd".repeat(32), 4), (String::new(), 4)] {
            let text = style.check_fits(&base, width).unwrap_err().to_string();
            assert!(text.contains("\"gogh\" was learned for another text encoder"), "{text}");
        }
    }
}
