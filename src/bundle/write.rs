//! Writing a file whole or not at all: beside its place, synced, renamed. A power cut or a full disk leaves the old file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes the file `path` so that a reader sees either the old contents or all of the new ones.
///
/// `contents` writes into a nameless neighbour in the same folder; only after it succeeded and the bytes are on the
/// disk does the neighbour take the name. A symbolic link is followed, the file it points at is replaced.
///
/// # Errors
/// [`Error::Io`] with `path` when the folder is missing, cannot be written or is full, or when `contents` fails; nothing
/// is left behind then and the old file is as it was. [`Error::File`] when `path` is a folder or a device.
pub fn write_atomically(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> Result<()> {
    let (target, folder) = target_and_folder(path)?;
    replace(&target, &folder, contents).map_err(Error::io(path))
}

/// Whether [`write_atomically`] would find its folder and be let in, to be asked before hours of work. Nothing is
/// written; a disk may still be full when the time has come.
///
/// # Errors
/// As [`write_atomically`].
pub fn check_writable(path: &Path) -> Result<()> {
    let (_, folder) = target_and_folder(path)?;
    neighbour_in(&folder).map(drop).map_err(Error::io(path))
}

/// Where the bytes go in the end, and the folder it is in.
fn target_and_folder(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let target = replaceable(path)?;
    let folder = match target.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_path_buf(),
        None => return Err(Error::file(path, "is not the name of a file; give one")),
    };
    Ok((target, folder))
}

/// Where the bytes go in the end: `path`, or what it links to.
fn replaceable(path: &Path) -> Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(Error::file(path, "is not the name of a file; give one"));
    }
    match path.metadata() {
        Ok(found) if found.is_file() => path.canonicalize().map_err(Error::io(path)),
        Ok(found) if found.is_dir() => Err(Error::file(path, "is a folder; name a file in it")),
        // Renaming over a device or a pipe would replace it.
        Ok(_) => Err(Error::file(path, "is not an ordinary file and will not be replaced; name another")),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(path.to_path_buf()),
        Err(source) => Err(Error::Io { path: path.to_path_buf(), source }),
    }
}

fn neighbour_in(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".pleinair-").suffix(".partial");
    // The neighbour becomes the file: it gets the rights any new file would get, less the umask, not 0600.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

fn replace(
    target: &Path,
    folder: &Path,
    contents: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let neighbour = neighbour_in(folder)?;
    let mut writer = BufWriter::new(neighbour.as_file());
    contents(&mut writer)?;
    writer.flush()?;
    drop(writer);
    neighbour.as_file().sync_all()?;
    neighbour.persist(target).map_err(|refused| refused.error)?;
    // The new name is in the folder, which is a file of its own to sync. Other systems cannot open folders.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_and_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomically(&path, |file| file.write_all(b"one")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write_atomically(&path, |file| file.write_all(b"two")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(names_in(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let failing = |file: &mut BufWriter<&File>| {
            file.write_all(&[7; 100_000])?;
            Err(io::Error::new(io::ErrorKind::StorageFull, "no space left"))
        };
        let error = write_atomically(&path, failing).unwrap_err();
        assert!(error.to_string().contains("a.txt"), "{error}");
        assert!(error.to_string().contains("no space left"), "{error}");
        assert!(names_in(folder.path()).is_empty());

        std::fs::write(&path, b"old").unwrap();
        write_atomically(&path, failing).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names_in(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("a.txt");
        let error = write_atomically(&path, |_| Ok(())).unwrap_err();
        assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error}");
        assert!(names_in(folder.path()).is_empty());
    }

    #[test]
    fn a_folder_in_place_of_the_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(write_atomically(folder.path(), |_| Ok(())), Err(Error::File { .. })));
        assert!(matches!(write_atomically(Path::new(""), |_| Ok(())), Err(Error::File { .. })));
        assert!(matches!(write_atomically(Path::new("/"), |_| Ok(())), Err(Error::File { .. })));
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), b"").unwrap();
        assert!(matches!(write_atomically(&folder.path().join("a/b.txt"), |_| Ok(())), Err(Error::Io { .. })));
    }

    #[test]
    fn whether_a_file_can_be_written_is_told_without_writing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        check_writable(&path).unwrap();
        assert!(names_in(folder.path()).is_empty());
        std::fs::write(&path, b"old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert!(matches!(check_writable(&path.join("b")), Err(Error::Io { .. })));
        assert!(matches!(check_writable(&folder.path().join("missing/b")), Err(Error::Io { .. })));
        assert!(matches!(check_writable(folder.path()), Err(Error::File { .. })));
    }

    // Nobody may create files in /proc, not even root.
    #[cfg(target_os = "linux")]
    #[test]
    fn an_unwritable_folder_and_a_device_are_refused() {
        let in_proc = Path::new("/proc/a.txt");
        assert!(matches!(write_atomically(in_proc, |_| Ok(())), Err(Error::Io { .. })));
        assert!(matches!(write_atomically(Path::new("/dev/null"), |_| Ok(())), Err(Error::File { .. })));
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_rights_are_those_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let usual = file.metadata().unwrap().permissions().mode();
        write_atomically(&link, |out| out.write_all(b"new")).unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(file.metadata().unwrap().permissions().mode(), usual);
    }
}
