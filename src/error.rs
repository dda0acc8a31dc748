//! What can go wrong, as facts. `main` prints one sentence with the remedy and picks the exit code.

use std::path::{Path, PathBuf};

/// Every failure the library reports.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused: missing file, no permission, disk full.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder it was about.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read but is not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        what: String,
    },
    /// A model folder that cannot be used; every problem is listed at once.
    #[error("the model in {} cannot be used:\n  {}", folder.display(), problems.join("\n  "))]
    Model {
        /// The model's folder.
        folder: PathBuf,
        /// One line a problem, each naming the part and the tensor or key.
        problems: Vec<String>,
    },
    /// The caller asked for something that does not exist or does not fit (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// A number that must be finite is not.
    #[error("{what} is not a finite number; {remedy}")]
    NotFinite {
        /// Which quantity.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The person pressed Ctrl-C (exit code 130).
    #[error("interrupted")]
    Interrupted,
    /// A camera gives no pictures, or no more; it may come back.
    #[error("the camera {camera} {what}")]
    Camera {
        /// Where its frames come from, without passwords.
        camera: String,
        /// What happened, as the rest of the sentence.
        what: String,
    },
    /// A tensor operation failed in candle.
    #[error("tensor operation: {0}")]
    Candle(#[from] candle_core::Error),
    /// A side model failed in tract.
    #[error("side model: {0}")]
    Side(String),
}

/// Result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err` on I/O: adds the path.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_path_buf(), source }
    }

    /// A file with wrong contents.
    pub fn file(path: &Path, what: impl Into<String>) -> Error {
        Error::File { path: path.to_path_buf(), what: what.into() }
    }
}
