//! What the camera saw: [`Frame`], and where frames come from.

#[cfg(target_os = "macos")]
mod avfoundation;
mod backoff;
mod command;
mod folder;
mod http;
pub mod mjpeg;
mod resample;
mod setup;
mod source;
mod still;
mod stream;
#[cfg(target_os = "linux")]
mod v4l2;
pub mod y4m;
mod yuv;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

pub use backoff::Backoff;
pub use resample::Filter;
pub use setup::{Crop, Rotation, Setup};
pub use source::{Address, Source};
pub use still::{MAX_PIXELS, SUPPORTED_FORMATS};

/// The largest frame that is taken from a camera's stream, in pixels.
const MAX_CAMERA_PIXELS: u64 = 50_000_000;

/// Gives frames for as long as it is wanted.
pub trait Camera: Send {
    /// Waits for the next frame, the newest there is. What a stream gave once is not given again; a still is.
    ///
    /// # Errors
    /// [`Error::Camera`] when the camera is lost; it is to be dropped and, after a while ([`Backoff`]), opened again.
    /// [`Error::Interrupted`] when the program is to stop.
    fn next_frame(&mut self) -> Result<Frame>;
}

/// Opens a camera. Its frames come turned, cropped and mirrored, and no more often, than `setup` says; `stop` ends every
/// wait. Dropping it ends whatever it runs.
///
/// # Errors
/// [`Error::Usage`] when `setup` is not within its bounds, there is no such kind of camera on this system, or the frames
/// are to come from the page; [`Error::Camera`] when the camera cannot be opened now.
pub fn open(source: &Source, setup: &Setup, stop: Arc<AtomicBool>) -> Result<Box<dyn Camera>> {
    setup.validate()?;
    let camera: Box<dyn Camera> = match source {
        #[cfg(target_os = "linux")]
        Source::V4l2 { device } => Box::new(v4l2::open(source, device, setup, stop.clone())?),
        #[cfg(not(target_os = "linux"))]
        Source::V4l2 { .. } => return Err(Error::Usage("v4l2: cameras are Linux'; use avfoundation:0 here".into())),
        #[cfg(target_os = "macos")]
        Source::AvFoundation(name) => Box::new(avfoundation::open(source, name, setup, stop.clone())?),
        #[cfg(not(target_os = "macos"))]
        Source::AvFoundation(_) => {
            return Err(Error::Usage("avfoundation: cameras are macOS'; use v4l2:/dev/video0 here".into()));
        }
        Source::Command(command) => Box::new(command::open(source, command, setup, stop.clone())?),
        Source::Http(address) => Box::new(http::open(source, address, setup, stop.clone())?),
        Source::Folder(path) => Box::new(folder::Folder::open(path, setup)?),
        Source::Browser => {
            return Err(Error::Usage("the camera is the browser's: frames come from the page, not from here".into()));
        }
    };
    Ok(Box::new(Paced { camera, setup: setup.clone(), last: None, stop }))
}

/// A camera that the system has, plugged in or built in.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugged {
    /// How it is opened.
    pub source: Source,
    /// What it calls itself.
    pub name: String,
}

/// The cameras that the system has now, in the order of their numbers; one that cannot be asked is left out.
pub fn devices() -> Vec<Plugged> {
    #[cfg(target_os = "linux")]
    return v4l2::devices();
    #[cfg(target_os = "macos")]
    return avfoundation::devices();
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    return vec![];
}

/// What all cameras share: the set-up and the pace.
struct Paced {
    camera: Box<dyn Camera>,
    setup: Setup,
    last: Option<Instant>,
    stop: Arc<AtomicBool>,
}

impl Camera for Paced {
    fn next_frame(&mut self) -> Result<Frame> {
        let due = self.last.map(|last| last + self.setup.interval());
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let left = due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(stream::GLANCE));
        }
        let frame = self.camera.next_frame()?;
        self.last = Some(Instant::now());
        self.setup.apply(frame)
    }
}

/// A picture as a camera gives it: `[H, W, 3]` u8, sRGB, rows from the top, no padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Frame {
    /// A frame from its pixels, `[H, W, 3]` u8 sRGB.
    ///
    /// # Errors
    /// [`Error::Usage`] when a side is zero or `rgb` does not hold `width * height * 3` bytes.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Frame> {
        let expected = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(rgb.len()) {
            let given = rgb.len();
            return Err(Error::Usage(format!("a frame of {width}x{height} pixels cannot be made from {given} bytes")));
        }
        Ok(Frame { width, height, rgb })
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[H, W, 3]` u8 sRGB.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The pixels, `[H, W, 3]` u8 sRGB, without copying.
    pub fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// Resized to exactly `width` x `height` with Lanczos (a = 3), the aspect ratio not kept; bit for bit what
    /// Pillow's `Image.resize(size, LANCZOS)` gives.
    ///
    /// # Errors
    /// [`Error::Usage`] when a side is zero.
    pub fn resize(&self, width: usize, height: usize) -> Result<Frame> {
        self.resize_with(Filter::Lanczos, width, height)
    }

    /// As [`Frame::resize`], with another filter.
    ///
    /// # Errors
    /// [`Error::Usage`] when a side is zero.
    pub fn resize_with(&self, filter: Filter, width: usize, height: usize) -> Result<Frame> {
        resample::resample(self, filter, [0.0, 0.0, self.width as f64, self.height as f64], width, height)
    }

    /// Resized with Lanczos (a = 3) to cover `width` x `height`, the overhang cut off evenly on both sides; bit for bit
    /// what Pillow's `ImageOps.fit(image, size, LANCZOS)` gives.
    ///
    /// # Errors
    /// [`Error::Usage`] when a side is zero.
    pub fn resize_to_cover(&self, width: usize, height: usize) -> Result<Frame> {
        let (own_width, own_height) = (self.width as f64, self.height as f64);
        let wanted = width as f64 / height as f64;
        let ratio = own_width / own_height;
        let (crop_width, crop_height) = if ratio == wanted {
            (own_width, own_height)
        } else if ratio > wanted {
            (wanted * own_height, own_height)
        } else {
            (own_width, own_width / wanted)
        };
        let left = (own_width - crop_width) * 0.5;
        let top = (own_height - crop_height) * 0.5;
        resample::resample(self, Filter::Lanczos, [left, top, left + crop_width, top + crop_height], width, height)
    }

    /// Mirrored left to right.
    pub fn flip_horizontal(&self) -> Frame {
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for row in self.rgb.chunks_exact(self.width * 3) {
            rgb.extend(row.chunks_exact(3).rev().flatten());
        }
        Frame { width: self.width, height: self.height, rgb }
    }

    /// `[1, 3, H, W]` f32 in [-1, 1] (`pixel / 127.5 - 1`), what the VAE's encoder takes.
    ///
    /// # Errors
    /// [`Error::Candle`] when `device` refuses the tensor.
    pub fn to_planar(&self, device: &Device) -> Result<Tensor> {
        let plane = self.width * self.height;
        let mut planes = vec![0f32; 3 * plane];
        for (i, pixel) in self.rgb.chunks_exact(3).enumerate() {
            for c in 0..3 {
                planes[c * plane + i] = f32::from(pixel[c]) / 127.5 - 1.0;
            }
        }
        Ok(Tensor::from_vec(planes, (1, 3, self.height, self.width), device)?)
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_as_many_bytes_as_it_says() {
        assert!(Frame::new(2, 3, vec![0; 18]).is_ok());
        for (width, height, bytes) in [(2, 3, 17), (2, 3, 19), (0, 3, 0), (3, 0, 0), (usize::MAX, 2, 6)] {
            assert!(matches!(Frame::new(width, height, vec![0; bytes]), Err(Error::Usage(_))));
        }
    }

    #[test]
    fn flipping_mirrors_pixels_and_keeps_channels() {
        let frame = Frame::new(2, 2, (0..12).collect()).unwrap();
        let flipped = frame.flip_horizontal();
        assert_eq!(flipped.rgb(), [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
        assert_eq!(flipped.flip_horizontal(), frame);
    }

    #[test]
    fn planar_is_channel_first_from_minus_one_to_one() {
        let frame = Frame::new(2, 1, vec![0, 51, 255, 255, 102, 0]).unwrap();
        let planar = frame.to_planar(&Device::Cpu).unwrap();
        assert_eq!(planar.dims(), [1, 3, 1, 2]);
        let values: Vec<f32> = planar.flatten_all().unwrap().to_vec1().unwrap();
        // One division and one subtraction: at most two roundings of numbers up to 2.
        for (value, exact) in values.iter().zip([-1.0, 1.0, -0.6, -0.2, 1.0, -1.0f32]) {
            assert!((value - exact).abs() <= 2.0 * f32::EPSILON, "{values:?}");
        }
        assert_eq!((values[0], values[4]), (-1.0, 1.0));
    }

    /// Both ways of resizing against Pillow's, to the bit (`tests/reference/resize.py`).
    #[test]
    fn resizes_as_pillow_does() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize.safetensors");
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let as_frame = |tensor: &Tensor| {
            let (height, width, _) = tensor.dims3().unwrap();
            Frame::new(width, height, tensor.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
        };
        let picture = as_frame(&tensors.remove("rgb").unwrap());
        let mut compared = 0;
        for (name, tensor) in &tensors {
            let expected = as_frame(tensor);
            let (way, (width, height)) = (name.split('.').next().unwrap(), (expected.width(), expected.height()));
            let found = match way {
                "resize" => picture.resize(width, height).unwrap(),
                _ => picture.resize_to_cover(width, height).unwrap(),
            };
            assert!(found == expected, "{name} differs");
            compared += 1;
        }
        assert_eq!(compared, 14);
    }

    #[test]
    fn no_size_is_no_picture() {
        let frame = Frame::new(2, 2, vec![0; 12]).unwrap();
        for (width, height) in [(0, 4), (4, 0), (0, 0)] {
            assert!(matches!(frame.resize(width, height), Err(Error::Usage(_))));
            assert!(matches!(frame.resize_to_cover(width, height), Err(Error::Usage(_))));
        }
    }

    /// Numbers its frames.
    struct Counter(u8);

    impl Camera for Counter {
        fn next_frame(&mut self) -> Result<Frame> {
            self.0 += 1;
            Frame::new(2, 1, vec![self.0, 0, 0, 0, 0, 0])
        }
    }

    fn paced(setup: Setup) -> Paced {
        Paced { camera: Box::new(Counter(0)), setup, last: None, stop: Arc::default() }
    }

    #[test]
    fn frames_come_as_set_up_and_no_sooner() {
        let mut camera = paced(Setup { mirror: true, frames_per_second: 20.0, ..Setup::default() });
        let start = Instant::now();
        for number in 1..=5 {
            assert_eq!(camera.next_frame().unwrap().rgb(), [0, 0, 0, number, 0, 0]);
        }
        assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    }

    #[test]
    fn the_pace_does_not_outlast_the_wish_to_stop() {
        let mut camera = paced(Setup { frames_per_second: 0.1, ..Setup::default() });
        let stop = camera.stop.clone();
        camera.next_frame().unwrap();
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                stop.store(true, Ordering::Relaxed);
            });
            assert!(matches!(camera.next_frame(), Err(Error::Interrupted)));
        });
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[test]
    fn what_cannot_be_opened_is_said_to_be_so() {
        let complaint = |source: &str, setup: &Setup| match open(&source.parse().unwrap(), setup, Arc::default()) {
            Err(Error::Usage(text)) => text,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{source} was opened"),
        };
        let setup = Setup::default();
        assert!(complaint("browser", &setup).contains("from the page"));
        assert!(complaint("folder:.", &Setup { width: 1, ..setup.clone() }).contains("width"));
        if cfg!(target_os = "macos") {
            assert!(complaint("v4l2:/dev/video0", &setup).contains("avfoundation"));
        } else {
            assert!(complaint("avfoundation:0", &setup).contains("v4l2"));
        }
    }
}
