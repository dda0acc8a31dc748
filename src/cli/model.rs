//! Which model a command uses.

use pleinair::{Error, Result};
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
        if let Some(found) = places.iter().find(|place| place.join("model_index.json").is_file()) {
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

/// The folder's own name, for people and metadata: never the path to it.
pub(super) fn name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
