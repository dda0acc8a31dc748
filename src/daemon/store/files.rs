//! The files beside the database. Their names are made of ids that the daemon gave out itself: nothing a client sends
//! becomes part of a path.

use super::super::job::Id;
use crate::bundle::control::Control;
use crate::bundle::write::write_atomically;
use crate::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Folders of the store.
#[derive(Debug)]
pub struct Files {
    paintings: PathBuf,
    styles: PathBuf,
    jobs: PathBuf,
}

/// A file of a painting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaintingFile {
    /// The painting, PNG with metadata.
    Picture,
    /// The same, small, JPEG.
    Thumbnail,
    /// The photograph it was painted from, JPEG of the painting's size.
    Content,
    /// What a ControlNet looked at, PNG of the painting's size.
    Control(Control),
}

impl PaintingFile {
    fn all() -> impl Iterator<Item = PaintingFile> {
        let controls = Control::ALL.into_iter().map(PaintingFile::Control);
        [PaintingFile::Picture, PaintingFile::Thumbnail, PaintingFile::Content].into_iter().chain(controls)
    }

    fn ending(self) -> String {
        match self {
            PaintingFile::Picture => ".png".into(),
            PaintingFile::Thumbnail => ".jpg".into(),
            PaintingFile::Content => ".content.jpg".into(),
            PaintingFile::Control(control) => format!(".{}.png", control.slug()),
        }
    }
}

/// A file of a style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StyleFile {
    /// Its vectors.
    Vectors,
    /// A picture of it, JPEG.
    Picture,
    /// The losses of the lesson it was learned in, CSV.
    Losses,
    /// The same as a picture, PNG.
    Curve,
    /// The last pictures that the lesson was validated with, PNG.
    Validation,
}

impl StyleFile {
    const ALL: [StyleFile; 5] =
        [StyleFile::Vectors, StyleFile::Picture, StyleFile::Losses, StyleFile::Curve, StyleFile::Validation];

    fn ending(self) -> &'static str {
        match self {
            StyleFile::Vectors => ".safetensors",
            StyleFile::Picture => ".jpg",
            StyleFile::Losses => ".loss.csv",
            StyleFile::Curve => ".loss.png",
            StyleFile::Validation => ".validation.png",
        }
    }
}

impl Files {
    pub(super) fn new(folder: &Path) -> Result<Files> {
        let files =
            Files { paintings: folder.join("paintings"), styles: folder.join("styles"), jobs: folder.join("jobs") };
        for folder in [&files.paintings, &files.styles, &files.jobs] {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        Ok(files)
    }

    /// A painting's file, whether it is there or not.
    pub fn painting(&self, id: Id, file: PaintingFile) -> PathBuf {
        self.paintings.join(format!("{id}{}", file.ending()))
    }

    /// A style's file, whether it is there or not; `id` is one of the table's.
    pub(in super::super) fn style(&self, id: &str, file: StyleFile) -> PathBuf {
        self.styles.join(format!("{}{}", harmless(id), file.ending()))
    }

    /// What a job works on: its pictures, a lesson's checkpoint and losses.
    pub(in super::super) fn job(&self, id: Id) -> PathBuf {
        self.jobs.join(id.to_string())
    }

    pub(in super::super) fn forget_painting(&self, id: Id) {
        PaintingFile::all().for_each(|file| remove(&self.painting(id, file)));
    }

    pub(in super::super) fn forget_style(&self, id: &str) {
        StyleFile::ALL.iter().for_each(|&file| remove(&self.style(id, file)));
    }

    pub(in super::super) fn forget_job(&self, id: Id) {
        let folder = self.job(id);
        if let Err(fault) = std::fs::remove_dir_all(&folder)
            && fault.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %folder.display(), %fault, "cannot be deleted");
        }
    }

    /// Deletes whatever belongs to nothing in these lists.
    pub(super) fn sweep(&self, paintings: &[String], styles: &[String], jobs: &[String]) -> Result<()> {
        let styles: Vec<String> = styles.iter().map(|id| harmless(id)).collect();
        for (folder, known) in [(&self.paintings, paintings), (&self.styles, &styles[..]), (&self.jobs, jobs)] {
            for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
                let entry = entry.map_err(Error::io(folder))?;
                let name = entry.file_name();
                let id = name.to_str().and_then(|name| name.split('.').next()).unwrap_or_default();
                if known.iter().any(|known| known == id) {
                    continue;
                }
                let path = entry.path();
                tracing::info!(path = %path.display(), "left over from an interruption; deleted");
                let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                gone.map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }
}

/// Writes bytes whole or not at all.
pub(in super::super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |file| file.write_all(bytes))
}

/// The id of a shipped style is a file's name from the model's folder; it may hold what would not do in the store's.
fn harmless(id: &str) -> String {
    id.chars().map(|c| if c.is_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

fn remove(path: &Path) {
    if let Err(fault) = std::fs::remove_file(path)
        && fault.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %fault, "cannot be deleted");
    }
}
