//! The screen as numbered PNG files in a folder: `display-000123.png`, and the last of them also as `latest.png`.

use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::raster::Raster;
use crate::bundle::write::write_atomically;
use crate::error::{Error, Result};

/// A folder that what is shown is written into.
pub(super) struct Folder {
    path: PathBuf,
    pause: Duration,
    kept: usize,
    /// Numbers of the pictures that are there, ascending.
    numbers: Vec<u64>,
    /// What was written last, and when.
    last: Option<(Vec<u8>, Instant)>,
}

impl Folder {
    /// The folder at `path`, made if it is missing; pictures of an earlier run are counted on from.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made or read, [`Error::Usage`] for a rate that is none or nothing to keep.
    pub(super) fn open(path: &Path, per_second: f64, kept: usize) -> Result<Folder> {
        if !(per_second > 0.0 && per_second <= 100.0) || kept == 0 {
            return Err(Error::Usage(format!(
                "display.pictures_per_second is {per_second} and pictures_kept {kept}; write more than 0 and at most \
                 100, and at least 1"
            )));
        }
        fs::create_dir_all(path).map_err(Error::io(path))?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(path).map_err(Error::io(path))? {
            numbers.extend(number(&entry.map_err(Error::io(path))?.file_name().to_string_lossy()));
        }
        numbers.sort_unstable();
        let pause = Duration::from_secs_f64(1.0 / per_second);
        Ok(Folder { path: path.to_path_buf(), pause, kept, numbers, last: None })
    }

    /// Writes `raster` when it differs from what was written last and that is long enough ago.
    pub(super) fn show(&mut self, raster: &Raster) -> Result<()> {
        if let Some((shown, when)) = &self.last
            && (when.elapsed() < self.pause || shown == raster.rgb())
        {
            return Ok(());
        }
        let next = self.numbers.last().map_or(1, |last| last + 1);
        let numbered = self.file(next);
        write(&numbered, raster)?;
        let png = fs::read(&numbered).map_err(Error::io(&numbered))?;
        write_atomically(&self.path.join("latest.png"), |file| std::io::Write::write_all(file, &png))?;
        self.numbers.push(next);
        while self.numbers.len() > self.kept {
            let oldest = self.numbers.remove(0);
            let oldest = self.file(oldest);
            match fs::remove_file(&oldest) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&oldest)(e)),
                _ => {}
            }
        }
        self.last = Some((raster.rgb().to_vec(), Instant::now()));
        Ok(())
    }

    fn file(&self, number: u64) -> PathBuf {
        self.path.join(format!("display-{number:06}.png"))
    }
}

/// The number in a picture's name.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix("display-")?.strip_suffix(".png")?.parse().ok()
}

/// `raster` as a PNG that is there whole or not at all.
fn write(path: &Path, raster: &Raster) -> Result<()> {
    write_atomically(path, |file| {
        let mut png = png::Encoder::new(BufWriter::new(file), raster.width() as u32, raster.height() as u32);
        png.set_color(png::ColorType::Rgb);
        png.set_compression(png::Compression::Fast);
        let mut writer = png.write_header()?;
        writer.write_image_data(raster.rgb())?;
        writer.finish()?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
    use embedded_graphics::prelude::Point;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    #[test]
    fn changes_are_numbered_the_last_kept_and_the_latest_whole() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("display-000041.png"), "of an earlier run").unwrap();
        let mut pictures = Folder::open(folder.path(), 100.0, 2).unwrap();
        let mut raster = Raster::new(4, 3);
        for at in 0..3 {
            raster.blend(Point::new(at, 0), Rgb888::WHITE, 255);
            std::thread::sleep(pictures.pause);
            pictures.show(&raster).unwrap();
            pictures.show(&raster).unwrap();
        }
        assert_eq!(names(folder.path()), ["display-000043.png", "display-000044.png", "latest.png"]);
        let latest = image::open(folder.path().join("latest.png")).unwrap().to_rgb8();
        assert_eq!((latest.dimensions(), latest.as_raw().as_slice()), ((4, 3), raster.rgb()));
    }

    #[test]
    fn what_comes_too_soon_waits_for_the_next_call() {
        let folder = tempfile::tempdir().unwrap();
        let mut pictures = Folder::open(folder.path(), 100.0, 9).unwrap();
        pictures.pause = Duration::from_secs(3600);
        let mut raster = Raster::new(2, 2);
        pictures.show(&raster).unwrap();
        raster.blend(Point::zero(), Rgb888::WHITE, 255);
        pictures.show(&raster).unwrap();
        assert_eq!(names(folder.path()), ["display-000001.png", "latest.png"]);
        pictures.pause = Duration::ZERO;
        pictures.show(&raster).unwrap();
        assert_eq!(names(folder.path()), ["display-000001.png", "display-000002.png", "latest.png"]);
    }

    #[test]
    fn a_rate_or_a_number_of_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (rate, kept) in [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (1.0, 0), (1e9, 1)] {
            assert!(matches!(Folder::open(folder.path(), rate, kept), Err(Error::Usage(_))), "{rate} {kept}");
        }
    }
}
