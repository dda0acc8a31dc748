//! A folder that appears whole or not at all: made beside its place, synced, renamed.

use pleinair::bundle::Bundle;
use pleinair::{Error, Result};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A folder under construction; dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct NewFolder {
    place: PathBuf,
    force: bool,
    neighbour: tempfile::TempDir,
}

impl NewFolder {
    /// Begins the folder that [`NewFolder::finish`] will put at `place`. Refuses what must not be replaced, before minutes
    /// of work.
    ///
    /// # Errors
    /// [`Error::Usage`] if the place exists (with `force`: if it is not a model folder), [`Error::Io`] if it cannot be
    /// written to.
    pub fn begin(place: &Path, force: bool) -> Result<Self> {
        let out = place.display();
        if place.file_name().is_none() {
            return Err(Error::Usage(format!("--out {out} is not the name of a new folder; give one")));
        }
        match place.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(place)(error)),
            Ok(_) if !force => {
                return Err(Error::Usage(format!("{out} exists; name another folder or replace it with --force")));
            }
            Ok(found) if found.is_dir() && replaceable(place)? => {}
            Ok(_) => {
                return Err(Error::Usage(format!(
                    "{out} is not a model folder (a folder with a model_index.json or a bundle.json) and will not be replaced; \
                     name another"
                )));
            }
        }
        Ok(NewFolder { place: place.to_path_buf(), force, neighbour: neighbour(parent(place))? })
    }

    /// Where to write the files.
    pub fn path(&self) -> &Path {
        self.neighbour.path()
    }

    /// Renames the finished folder; an old one is kept until the new one has its name.
    ///
    /// # Errors
    /// [`Error::Io`]; the old folder is then as it was.
    pub fn finish(self) -> Result<()> {
        let (new, parent) = (self.neighbour, parent(&self.place));
        sync_tree(new.path())?;
        let old = match self.force && self.place.symlink_metadata().is_ok() {
            true => Some(neighbour(parent)?),
            false => None,
        };
        if let Some(old) = &old {
            std::fs::rename(&self.place, old.path().join("old")).map_err(Error::io(&self.place))?;
        }
        if let Err(error) = std::fs::rename(new.path(), &self.place) {
            return Err(match old.map(|old| restore(old, &self.place)) {
                Some(Err(worse)) => worse,
                _ => Error::io(&self.place)(error),
            });
        }
        let _ = new.keep(); // it has another name now: nothing to delete
        sync_folder(parent)?;
        match old {
            Some(old) => old.close().map_err(Error::io(parent)),
            None => Ok(()),
        }
    }
}

/// Gives the folder that was set aside its name again. Where that fails it is kept, and the error says where.
fn restore(old: tempfile::TempDir, place: &Path) -> Result<()> {
    match std::fs::rename(old.path().join("old"), place) {
        Ok(()) => Ok(()),
        Err(error) => {
            let kept = old.keep().join("old");
            let what = format!("cannot be given back its name ({error}); it is at {} now", kept.display());
            Err(Error::file(place, what))
        }
    }
}

/// The folder that `path` lies in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether a folder is a model or empty.
fn replaceable(folder: &Path) -> Result<bool> {
    let empty = folder.read_dir().map_err(Error::io(folder))?.next().is_none();
    Ok(empty || Bundle::is_at(folder))
}

/// A new folder in `parent` that is deleted unless kept.
fn neighbour(parent: &Path) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".pleinair-").suffix(".partial");
    // It gets the rights any new folder would get, less the umask, not 0700.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent).map_err(Error::io(parent))
}

/// A folder inside, if it is not there yet.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io(path))
}

/// Writes a file and waits until it is on the disk.
pub(crate) fn write_synced(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> Result<()> {
    make_folder(parent(path))?;
    let file = File::create(path).map_err(Error::io(path))?;
    let mut writer = BufWriter::new(&file);
    contents(&mut writer).and_then(|()| writer.flush()).and_then(|()| file.sync_all()).map_err(Error::io(path))
}

/// Writes a value as indented JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_synced(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        file.write_all(b"\n")
    })
}

/// Other systems than Unix cannot open folders.
fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io(path))?;
    let _ = path;
    Ok(())
}

/// The new names in a folder and its subfolders.
fn sync_tree(folder: &Path) -> Result<()> {
    for entry in folder.read_dir().map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            sync_folder(&path)?;
        }
    }
    sync_folder(folder)
}
