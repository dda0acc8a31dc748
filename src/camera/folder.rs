//! `folder:`: stills one after another, and the camera of demonstrations and tests.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Camera, Frame, Setup};
use crate::error::{Error, Result};

/// The stills of a folder in the order of their names, from the start again after the last.
pub(super) struct Folder {
    path: PathBuf,
    each: Duration,
    cover: (usize, usize),
    shown: Option<Shown>,
}

struct Shown {
    name: OsString,
    frame: Frame,
    since: Instant,
}

impl Folder {
    /// # Errors
    /// [`Error::Camera`] when there is no such folder.
    pub(super) fn open(path: &Path, setup: &Setup) -> Result<Folder> {
        let folder = Folder {
            path: path.to_path_buf(),
            each: Duration::from_secs_f64(setup.folder_seconds),
            cover: (setup.width as usize, setup.height as usize),
            shown: None,
        };
        folder.names()?;
        Ok(folder)
    }

    fn lost(&self, what: String) -> Error {
        Error::Camera { camera: format!("folder:{}", self.path.display()), what }
    }

    /// Its files in order, hidden ones left out.
    fn names(&self) -> Result<Vec<OsString>> {
        let entries = std::fs::read_dir(&self.path).map_err(|e| self.lost(format!("cannot be read: {e}")))?;
        let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        names.retain(|name| !name.as_encoded_bytes().starts_with(b".") && self.path.join(name).is_file());
        names.sort();
        Ok(names)
    }

    /// The first readable still after the one shown.
    fn next_still(&self) -> Result<(OsString, Frame)> {
        let mut names = self.names()?;
        if let Some(shown) = &self.shown {
            let passed = names.partition_point(|name| *name <= shown.name);
            names.rotate_left(passed);
        }
        let mut complaint = None;
        for name in names {
            match Frame::open(self.path.join(&name)).and_then(|frame| self.shrunk(frame)) {
                Ok(frame) => return Ok((name, frame)),
                Err(error) => complaint = Some(error),
            }
        }
        Err(self.lost(match complaint {
            Some(error) => format!("has no picture that can be read: {error}"),
            None => "is empty; put pictures into it".into(),
        }))
    }

    /// A photograph much larger than a camera's frames, made no larger than it takes to cover one: it is copied with
    /// every frame.
    fn shrunk(&self, frame: Frame) -> Result<Frame> {
        let (width, height) = (frame.width() as f64, frame.height() as f64);
        let scale = (self.cover.0 as f64 / width).max(self.cover.1 as f64 / height);
        if scale >= 1.0 {
            return Ok(frame);
        }
        let side = |side: f64| ((side * scale).round() as usize).max(1);
        frame.resize(side(width), side(height))
    }
}

impl Camera for Folder {
    fn next_frame(&mut self) -> Result<Frame> {
        if let Some(shown) = &self.shown
            && shown.since.elapsed() < self.each
        {
            return Ok(shown.frame.clone());
        }
        let (name, frame) = self.next_still()?;
        self.shown = Some(Shown { name, frame: frame.clone(), since: Instant::now() });
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn still(folder: &Path, name: &str, grey: u8) {
        image::GrayImage::from_pixel(4, 2, image::Luma([grey]))
            .save_with_format(folder.join(name), image::ImageFormat::Png)
            .unwrap();
    }

    /// The stills as they come, each shown for no time.
    fn camera(folder: &Path) -> Folder {
        let mut camera = Folder::open(folder, &Setup::default()).unwrap();
        camera.each = Duration::ZERO;
        camera
    }

    fn greys(camera: &mut Folder, count: usize) -> Vec<u8> {
        (0..count).map(|_| camera.next_frame().unwrap().rgb()[0]).collect()
    }

    #[test]
    fn stills_come_in_order_for_ever_and_new_ones_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        still(path, "b.png", 2);
        still(path, "d", 4);
        still(path, ".hidden.png", 9);
        std::fs::write(path.join("a.txt"), "no picture").unwrap();
        std::fs::write(path.join("c.png"), b"\x89PNG\r\n\x1a\n").unwrap();
        std::fs::create_dir(path.join("bb.png")).unwrap();
        let mut camera = camera(path);
        assert_eq!(greys(&mut camera, 3), [2, 4, 2]);
        still(path, "c.png", 3);
        assert_eq!(greys(&mut camera, 3), [3, 4, 2]);
        std::fs::remove_file(path.join("c.png")).unwrap();
        still(path, "a.txt", 1);
        assert_eq!(greys(&mut camera, 3), [4, 1, 2]);
    }

    #[test]
    fn a_still_stays_for_its_time() {
        let folder = tempfile::tempdir().unwrap();
        still(folder.path(), "a.png", 1);
        still(folder.path(), "b.png", 2);
        let mut camera = camera(folder.path());
        camera.each = Duration::from_secs(3600);
        assert_eq!(greys(&mut camera, 3), [1, 1, 1]);
        camera.each = Duration::ZERO;
        assert_eq!(greys(&mut camera, 1), [2]);
    }

    #[test]
    fn nothing_readable_is_an_error_that_passes() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let text = Folder::open(&missing, &Setup::default()).err().unwrap().to_string();
        assert!(text.contains("missing") && text.contains("cannot be read"), "{text}");

        let mut camera = camera(folder.path());
        assert!(camera.next_frame().unwrap_err().to_string().contains("empty"));
        std::fs::write(folder.path().join("a.png"), "x").unwrap();
        let text = camera.next_frame().unwrap_err().to_string();
        assert!(text.contains("no picture that can be read") && text.contains("a.png"), "{text}");
        still(folder.path(), "a.png", 1);
        assert_eq!(greys(&mut camera, 1), [1]);
    }

    #[test]
    fn large_stills_are_made_smaller() {
        let folder = tempfile::tempdir().unwrap();
        image::GrayImage::new(4000, 1000)
            .save_with_format(folder.path().join("a.png"), image::ImageFormat::Png)
            .unwrap();
        let frame = camera(folder.path()).next_frame().unwrap();
        assert_eq!((frame.width(), frame.height()), (2880, 720));
    }
}
