//! A Linux framebuffer, `/dev/fb0`, written like any file: no mapping, no ioctl, so an ordinary file of the same
//! geometry serves in its place.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::raster::Raster;
use super::setup::{Order, Setup};
use crate::error::{Error, Result};

/// Everything is written anew this often, in case the console or another program wrote over it.
const REFRESH: Duration = Duration::from_secs(10);

/// Threshold of each pixel of an 8x8 tile, 0 to 63 (Bayer 1973), for ordered dithering.
const BAYER: [[u32; 8]; 8] = [
    [0, 32, 8, 40, 2, 34, 10, 42],
    [48, 16, 56, 24, 50, 18, 58, 26],
    [12, 44, 4, 36, 14, 46, 6, 38],
    [60, 28, 52, 20, 62, 30, 54, 22],
    [3, 35, 11, 43, 1, 33, 9, 41],
    [51, 19, 59, 27, 49, 17, 57, 25],
    [15, 47, 7, 39, 13, 45, 5, 37],
    [63, 31, 55, 23, 61, 29, 53, 21],
];

/// How the bytes of a framebuffer lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    width: usize,
    height: usize,
    bits: usize,
    /// Bytes from a row to the next.
    stride: usize,
    /// Byte of the first pixel that is shown.
    start: usize,
}

/// A number from `setup`, or what the kernel says in its place.
fn known(said: Option<usize>, kernel: Option<usize>, what: &str, path: &Path) -> Result<usize> {
    said.or(kernel).ok_or_else(|| {
        Error::Usage(format!("{} does not tell its {what}; set display.{what} in the configuration", path.display()))
    })
}

impl Geometry {
    /// What `setup` says, and for the rest what the files of the framebuffer at `path` in `about` say
    /// (`/sys/class/graphics/fb0`, kernel source `drivers/video/fbdev/core/fbsysfs.c`).
    fn of(path: &Path, about: Option<&Path>, setup: &Setup) -> Result<Geometry> {
        let read = |name: &str| fs::read_to_string(about?.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
        let pair = |name: &str| numbers(&read(name)?, ',');
        // `U:1024x768p-60`: what is shown; the virtual size may hold it twice
        let shown = ["mode", "modes"].iter().find_map(|name| {
            let line = read(name)?.lines().next()?.to_owned();
            numbers(line.split_once(':')?.1, 'x')
        });
        let size = shown.or_else(|| pair("virtual_size"));
        let width = known(setup.width, size.map(|size| size.0), "width", path)?;
        let height = known(setup.height, size.map(|size| size.1), "height", path)?;
        let bits = known(setup.bits, number("bits_per_pixel"), "bits", path)?;
        if ![16, 24, 32].contains(&bits) {
            return Err(Error::Usage(format!(
                "{} has {bits} bits a pixel; 16, 24 and 32 can be drawn on (kernel option `video=` or `fbset -depth`)",
                path.display()
            )));
        }
        let stride = setup.stride.or_else(|| number("stride")).unwrap_or(width * bits / 8);
        if stride < width * bits / 8 {
            let row = width * bits / 8;
            return Err(Error::Usage(format!(
                "{}: a row of {width} pixels takes {row} bytes, more than the stride of {stride}",
                path.display()
            )));
        }
        let (left, top) = pair("pan").unwrap_or((0, 0));
        Ok(Geometry { width, height, bits, stride, start: top * stride + left * bits / 8 })
    }
}

/// The two numbers around `between` at the start of `text`, such as `800,480` or `1024x768p-60`.
fn numbers(text: &str, between: char) -> Option<(usize, usize)> {
    let (first, rest) = text.trim().split_once(between)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((first.parse().ok()?, rest[..digits].parse().ok()?))
}

/// Where the pixel of the framebuffer at (fx, fy) is in the raster: `origin + fx * across + fy * down`.
#[derive(Debug, Clone, Copy)]
struct Turn {
    origin: isize,
    across: isize,
    down: isize,
}

impl Turn {
    /// For a picture turned `degrees` clockwise on a framebuffer of `width` x `height`.
    fn of(degrees: u32, width: usize, height: usize) -> Option<Turn> {
        let (w, h) = (width as isize, height as isize);
        let (origin, across, down) = match degrees {
            0 => (0, 1, w),
            90 => ((w - 1) * h, -h, 1),
            180 => (w * h - 1, -1, -w),
            270 => (h - 1, h, -1),
            _ => return None,
        };
        Some(Turn { origin, across, down })
    }
}

/// An open framebuffer.
pub(super) struct Framebuffer {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    order: Order,
    turn: Turn,
    size: (usize, usize),
    /// The rows as they were written last, without the bytes between them.
    written: Vec<u8>,
    refreshed: Option<Instant>,
    console: Option<PathBuf>,
}

impl Framebuffer {
    /// The framebuffer at `path`, which must exist.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened for writing, [`Error::Usage`] for a geometry that is unknown or none.
    pub(super) fn open(path: &Path, setup: &Setup) -> Result<Framebuffer> {
        let about = path.file_name().map(|name| Path::new("/sys/class/graphics").join(name));
        let about = about.filter(|about| about.is_dir() && path.starts_with("/dev"));
        let geometry = Geometry::of(path, about.as_deref(), setup)?;
        let Geometry { width, height, .. } = geometry;
        let Some(turn) = Turn::of(setup.rotation, width, height) else {
            let degrees = setup.rotation;
            return Err(Error::Usage(format!("display.rotation is {degrees}; write 0, 90, 180 or 270")));
        };
        let file = OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
        let console = about.as_ref().map(|_| setup.console.clone()).filter(|path| !path.as_os_str().is_empty());
        if let Some(about) = &about {
            attempt(&about.join("blank"), "0\n", "unblank the screen");
        }
        if let Some(console) = &console {
            // cursor off, no screen saver, no powering down (console_codes(4))
            attempt(console, "\x1b[?25l\x1b[9;0]\x1b[14;0]", "hide the console's cursor");
        }
        let size = if setup.rotation.is_multiple_of(180) { (width, height) } else { (height, width) };
        let (path, order) = (path.to_path_buf(), setup.order);
        Ok(Framebuffer { file, path, geometry, order, turn, size, written: Vec::new(), refreshed: None, console })
    }

    /// Width and height as a visitor sees them.
    pub(super) fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Writes the rows of `raster` that changed; now and then all.
    pub(super) fn show(&mut self, raster: &Raster) -> Result<()> {
        let Geometry { width, height, bits, stride, start } = self.geometry;
        let row_bytes = width * bits / 8;
        let all = self.refreshed.is_none_or(|when| when.elapsed() >= REFRESH);
        if all {
            self.written = vec![0; row_bytes * height];
            self.refreshed = Some(Instant::now());
        }
        let mut rows = vec![0; row_bytes];
        let mut changed = Vec::new();
        for y in 0..height {
            self.convert(raster, y, &mut rows);
            let before = &mut self.written[y * row_bytes..][..row_bytes];
            if all || before != rows {
                before.copy_from_slice(&rows);
                changed.push(y);
            }
        }
        // rows that lie one after the other in the file are one write
        for run in changed.chunk_by(|a, b| b - a == 1 && stride == row_bytes) {
            let bytes = &self.written[run[0] * row_bytes..][..run.len() * row_bytes];
            self.file.write_all_at(bytes, (start + run[0] * stride) as u64).map_err(Error::io(&self.path))?;
        }
        Ok(())
    }

    /// Row `y` of the framebuffer as bytes.
    fn convert(&self, raster: &Raster, y: usize, row: &mut [u8]) {
        let Turn { origin, across, down } = self.turn;
        let mut at = (origin + y as isize * down) * 3;
        let bytes = self.geometry.bits / 8;
        let rgb = raster.rgb();
        for (x, out) in row.chunks_exact_mut(bytes).enumerate() {
            let [mut high, green, mut low] = [0, 1, 2].map(|c| rgb[at as usize + c]);
            if self.order == Order::Bgr {
                std::mem::swap(&mut high, &mut low);
            }
            if bytes == 2 {
                out.copy_from_slice(&rgb565([high, green, low], BAYER[y % 8][x % 8]).to_le_bytes());
            } else {
                out[..3].copy_from_slice(&[low, green, high]);
            }
            at += across * 3;
        }
    }
}

/// 5, 6 and 5 bits of the three colours; which of the two nearest levels is chosen follows the pixel's `threshold`.
fn rgb565([high, green, low]: [u8; 3], threshold: u32) -> u16 {
    let level = |value: u8, most: u32| ((u32::from(value) * most + threshold * 4 + 2) / 255) as u16;
    level(high, 31) << 11 | level(green, 63) << 5 | level(low, 31)
}

impl Drop for Framebuffer {
    fn drop(&mut self) {
        if let Some(console) = &self.console {
            attempt(console, "\x1b[?25h", "show the console's cursor again");
        }
    }
}

/// Writes `text` to the file at `path`; what fails is noted and stops nothing, for the picture is drawn all the same.
fn attempt(path: &Path, text: &str, purpose: &str) {
    let done = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    if let Err(error) = done {
        tracing::info!(path = %path.display(), %error, "could not {purpose}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
    use embedded_graphics::prelude::Point;

    /// What the visitor sees: width 3, height 2, every pixel another colour of full and no levels, which no dithering
    /// changes.
    const SEEN: [[u8; 3]; 6] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 255, 255]];

    fn raster(width: usize, height: usize, pixels: &[[u8; 3]]) -> Raster {
        let mut raster = Raster::new(width, height);
        for (i, [r, g, b]) in pixels.iter().enumerate() {
            raster.blend(Point::new((i % width) as i32, (i / width) as i32), Rgb888::new(*r, *g, *b), 255);
        }
        raster
    }

    /// A file of `size` bytes of 0xAA and a framebuffer on it.
    fn on_file(size: usize, setup: &Setup) -> (tempfile::NamedTempFile, Framebuffer) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![0xAA; size]).unwrap();
        let framebuffer = Framebuffer::open(file.path(), setup).unwrap();
        (file, framebuffer)
    }

    fn setup(width: usize, height: usize, bits: usize, stride: usize) -> Setup {
        let (width, height, bits, stride) = (Some(width), Some(height), Some(bits), Some(stride));
        Setup { width, height, bits, stride, ..Setup::default() }
    }

    fn bytes_of(pixel: [u8; 3], bits: usize, order: Order) -> Vec<u8> {
        let [r, g, b] = if order == Order::Rgb { pixel } else { [pixel[2], pixel[1], pixel[0]] };
        match bits {
            16 => {
                let packed = (u16::from(r) >> 3) << 11 | (u16::from(g) >> 2) << 5 | u16::from(b) >> 3;
                packed.to_le_bytes().to_vec()
            }
            24 => vec![b, g, r],
            _ => vec![b, g, r, 0],
        }
    }

    /// Which pixel of [`SEEN`] each pixel of the framebuffer shows, written down by turning a sheet of paper.
    #[test]
    fn every_rotation_and_depth_puts_each_pixel_in_its_place() {
        let turned: [(u32, (usize, usize), [usize; 6]); 4] = [
            (0, (3, 2), [0, 1, 2, 3, 4, 5]),
            (90, (2, 3), [3, 0, 4, 1, 5, 2]),
            (180, (3, 2), [5, 4, 3, 2, 1, 0]),
            (270, (2, 3), [2, 5, 1, 4, 0, 3]),
        ];
        for (rotation, (width, height), places) in turned {
            for (bits, order) in [16, 24, 32].into_iter().flat_map(|bits| [(bits, Order::Rgb), (bits, Order::Bgr)]) {
                let (row, what) = (width * bits / 8, format!("{rotation} degrees, {bits} bits, {order:?}"));
                for stride in [row, row + 5] {
                    let setup = Setup { rotation, order, ..setup(width, height, bits, stride) };
                    let (file, mut framebuffer) = on_file(stride * height, &setup);
                    assert_eq!(framebuffer.size(), (3, 2), "{what}");
                    framebuffer.show(&raster(3, 2, &SEEN)).unwrap();
                    let bytes = fs::read(file.path()).unwrap();
                    assert_eq!(bytes.len(), stride * height, "{what}");
                    for y in 0..height {
                        let expected: Vec<u8> =
                            (0..width).flat_map(|x| bytes_of(SEEN[places[y * width + x]], bits, order)).collect();
                        assert_eq!(bytes[y * stride..][..row], expected, "{what}, row {y}, stride {stride}");
                        assert!(bytes[y * stride + row..(y + 1) * stride].iter().all(|byte| *byte == 0xAA), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_rows_that_changed_are_written_until_all_are_refreshed() {
        let (file, mut framebuffer) = on_file(4 * 4 * 3, &setup(4, 3, 32, 16));
        let mut raster = Raster::new(4, 3);
        framebuffer.show(&raster).unwrap();
        fs::write(file.path(), vec![0xAA; 48]).unwrap();
        raster.blend(Point::new(2, 1), Rgb888::WHITE, 255);
        framebuffer.show(&raster).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert!(bytes[..16].iter().chain(&bytes[32..]).all(|byte| *byte == 0xAA), "{bytes:?}");
        assert_eq!(bytes[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 0, 0, 0, 0, 0]);
        framebuffer.refreshed = Instant::now().checked_sub(REFRESH);
        framebuffer.show(&raster).unwrap();
        assert!(fs::read(file.path()).unwrap().iter().all(|byte| *byte != 0xAA));
    }

    /// The mean of a dithered 8x8 tile is the colour, to one of the 64 steps between two levels.
    #[test]
    fn dithering_keeps_the_mean_of_every_grey() {
        for grey in 0..=255u8 {
            let packed: Vec<u16> = BAYER.iter().flatten().map(|t| rgb565([grey; 3], *t)).collect();
            for (shift, most) in [(11, 31u16), (5, 63), (0, 31)] {
                let sum: f64 = packed.iter().map(|p| f64::from((p >> shift) & most)).sum();
                let mean = sum / 64.0 * 255.0 / f64::from(most);
                let step = 255.0 / f64::from(most) / 64.0;
                assert!((mean - f64::from(grey)).abs() <= step, "{grey}: {mean}");
            }
        }
        assert!(BAYER.iter().flatten().all(|t| rgb565([255; 3], *t) == 0xFFFF && rgb565([0; 3], *t) == 0));
    }

    #[test]
    fn the_kernel_tells_the_geometry_and_the_configuration_overrides_it() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("modes", "U:1024x600p-60\n"),
            ("virtual_size", "1024,1200\n"),
            ("bits_per_pixel", "16\n"),
            ("stride", "2176\n"),
            ("pan", "0,600\n"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let of = |setup: &Setup| Geometry::of(Path::new("/dev/fb7"), Some(folder.path()), setup);
        let told = Geometry { width: 1024, height: 600, bits: 16, stride: 2176, start: 600 * 2176 };
        assert_eq!(of(&Setup::default()).unwrap(), told);
        let own = Setup { width: Some(800), bits: Some(24), stride: Some(2400), ..Setup::default() };
        let overridden = Geometry { width: 800, height: 600, bits: 24, stride: 2400, start: 600 * 2400 };
        assert_eq!(of(&own).unwrap(), overridden);
        fs::remove_file(folder.path().join("modes")).unwrap();
        assert_eq!(of(&Setup::default()).unwrap().height, 1200);
    }

    #[test]
    fn a_geometry_that_is_unknown_or_none_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refusal = |setup: &Setup| Framebuffer::open(file.path(), setup).map(drop).unwrap_err().to_string();
        assert!(refusal(&Setup::default()).contains("display.width"));
        assert!(refusal(&Setup { bits: None, ..setup(4, 3, 16, 8) }).contains("display.bits"));
        assert!(refusal(&setup(4, 3, 8, 8)).contains("8 bits"));
        assert!(refusal(&setup(4, 3, 32, 15)).contains("stride of 15"));
        assert!(refusal(&Setup { rotation: 45, ..setup(4, 3, 16, 8) }).contains("45"));
        let missing = Framebuffer::open(Path::new("/nowhere/fb0"), &setup(4, 3, 16, 8)).map(drop);
        assert!(matches!(missing, Err(Error::Io { .. })));
    }
}
