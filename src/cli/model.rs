//! Which model a command uses.

use pleinair::bundle::Bundle;
use pleinair::net::TextEncoder;
use pleinair::painter::Painter;
use pleinair::prompt::Tokenizer;
use pleinair::style::Style;
use pleinair::{Error, Result, Target};
use pleinair_cpu::isa::{self, Isa};
use std::path::{Path, PathBuf};

/// Where the model that ships with the program lies, in its folder or one above.
const DEFAULT: &str = "models/atelier";
/// Names the model where `--bundle` does not.
const VARIABLE: &str = "PLEINAIR_BUNDLE";

/// The option that names a model.
#[derive(Debug, clap::Args)]
pub(super) struct Choice {
    /// Model folder [default: $PLEINAIR_BUNDLE, or else models/atelier here or beside the program]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

impl Choice {
    /// This choice, or the one of a configuration where none was made.
    pub(super) fn or(&self, configured: &Option<PathBuf>) -> Choice {
        Choice { bundle: self.bundle.clone().or_else(|| configured.clone()) }
    }

    /// The model's folder: as given, else as the environment says, else the one that ships with the program.
    ///
    /// # Errors
    /// [`Error::File`] when none is named and none found; it says where it was looked for.
    pub(super) fn folder(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.bundle {
            return Ok(folder.clone());
        }
        if let Some(folder) = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) {
            return Ok(folder.into());
        }
        let program = std::env::current_exe().and_then(|program| program.canonicalize()).unwrap_or_default();
        let above = program.ancestors().skip(1).map(|folder| folder.join(DEFAULT));
        let places: Vec<PathBuf> = std::iter::once(PathBuf::from(DEFAULT)).chain(above).collect();
        if let Some(found) = places.iter().find(|place| Bundle::is_at(place)) {
            return Ok(found.clone());
        }
        let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        let what = format!(
            "there is no model here; name one with --bundle DIR or {VARIABLE} (looked in {})",
            looked.join(", ")
        );
        Err(Error::file(Path::new(DEFAULT), what))
    }
}

/// Names the instruction set to run on, where the fastest is not wanted.
const ISA: &str = "PLEINAIR_ISA";

/// The instruction set that the environment asks for, else the fastest.
///
/// # Errors
/// [`Error::Usage`] if this machine has no such instruction set.
pub(super) fn isa() -> Result<Isa> {
    let forced = std::env::var_os(ISA).filter(|name| !name.is_empty());
    let forced = forced.as_ref().map(|name| name.to_string_lossy());
    isa::choose(forced.as_deref()).map_err(|error| Error::Usage(error.to_string()))
}

/// Opens a model, to be run on this target.
///
/// # Errors
/// As [`Painter::open`].
pub(super) fn open(folder: &Path, target: &Target) -> Result<Painter> {
    Painter::new(Bundle::open(folder)?.on(target.clone()))
}

/// The words of a model and their vectors, without the networks that paint.
pub(super) struct Words {
    tokenizer: Tokenizer,
    text: TextEncoder,
}

impl Words {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let bundle = Bundle::open(folder)?;
        Ok(Words { tokenizer: Tokenizer::open(bundle.tokenizer())?, text: TextEncoder::load(&bundle)? })
    }

    /// # Errors
    /// [`Error::Usage`] for a style of another text encoder.
    pub(super) fn check_fits(&self, style: &Style) -> Result<()> {
        style.check_fits(&self.text.base()?, self.text.width())
    }

    /// The vector `[D]` of one word.
    ///
    /// # Errors
    /// [`Error::Usage`] for what is no single word of the model.
    pub(super) fn vector(&self, word: &str) -> Result<Vec<f32>> {
        Ok(self.text.word_vector(self.tokenizer.word(word)?)?.to_vec1()?)
    }
}
