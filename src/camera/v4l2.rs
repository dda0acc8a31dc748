//! `v4l2:`: the cameras of Linux.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use linuxvideo::format::{FrameSizes, PixFormat, PixelFormat};
use linuxvideo::stream::ReadStream;
use linuxvideo::{BufType, CapabilityFlags, Device, Fract};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::stream::{Newest, Raw, Stream};
use super::{Setup, Source};
use crate::error::{Error, Result};

/// What is read, best first: of raw frames, USB carries few a second.
const FORMATS: [[u8; 4]; 3] = [*b"MJPG", *b"JPEG", *b"YUYV"];
/// How long one wait for the device is.
const WAIT_MILLIS: u16 = 200;

/// How the device's frames lie in memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    fourcc: [u8; 4],
    width: usize,
    height: usize,
    stride: usize,
}

/// # Errors
/// [`Error::Camera`] when there is no such device, it is no camera, in use, or gives only formats that are not read.
pub(super) fn open(source: &Source, path: &Path, setup: &Setup, stop: Arc<AtomicBool>) -> Result<Stream> {
    let camera = source.to_string();
    let (stream, layout) = start(path, setup).map_err(|what| Error::Camera { camera: camera.clone(), what })?;
    let read = move |newest: &Newest| match read(stream, layout, newest) {
        Ok(()) => String::new(),
        Err(error) => fault(&error),
    };
    Ok(Stream::start(camera, setup.patience(), stop, (), read)?.slow_to_start().exclusive())
}

/// The devices that give pictures; of a camera's several, usually the first.
pub(super) fn devices() -> Vec<super::Plugged> {
    let Ok(list) = linuxvideo::list() else { return vec![] };
    let described = |device: io::Result<Device>| -> io::Result<Option<super::Plugged>> {
        let device = device?;
        let capabilities = device.capabilities()?;
        let gives =
            capabilities.device_capabilities().contains(CapabilityFlags::VIDEO_CAPTURE | CapabilityFlags::STREAMING);
        let source = Source::V4l2 { device: device.path()? };
        Ok(gives.then(|| super::Plugged { source, name: capabilities.card().to_owned() }))
    };
    let mut found: Vec<_> = list.filter_map(|device| described(device).ok().flatten()).collect();
    // video10 comes after video9
    found.sort_by_key(|device| (device.source.to_string().len(), device.source.to_string()));
    found
}

fn start(path: &Path, setup: &Setup) -> Result<(ReadStream, Layout), String> {
    let fault = |error: io::Error| fault(&error);
    let device = Device::open(path).map_err(fault)?;
    let capabilities = device.capabilities().map_err(fault)?.device_capabilities();
    if !capabilities.contains(CapabilityFlags::VIDEO_CAPTURE | CapabilityFlags::STREAMING) {
        return Err("gives no pictures; one camera has several devices, try the next /dev/video".into());
    }
    let offered = device.formats(BufType::VIDEO_CAPTURE).map(|format| Ok(format?.pixel_format().as_fourcc()));
    let offered: Vec<[u8; 4]> = offered.collect::<io::Result<_>>().map_err(fault)?;
    let fourcc = FORMATS.into_iter().find(|fourcc| offered.contains(fourcc)).ok_or_else(|| unread(&offered))?;
    let format = PixelFormat::from_fourcc(fourcc);
    let (width, height) = match device.frame_sizes(format) {
        Ok(FrameSizes::Discrete(sizes)) => {
            nearest(sizes.iter().map(|size| (size.width(), size.height())), (setup.width, setup.height))
        }
        // The driver takes the nearest it has.
        Ok(_) | Err(_) => (setup.width, setup.height),
    };
    let capture = device.video_capture(PixFormat::new(width, height, format)).map_err(fault)?;
    let chosen = capture.format();
    let layout = Layout {
        fourcc: chosen.pixel_format().as_fourcc(),
        width: chosen.width() as usize,
        height: chosen.height() as usize,
        stride: chosen.bytes_per_line() as usize,
    };
    if !FORMATS.contains(&layout.fourcc) {
        return Err(unread(&[layout.fourcc]));
    }
    // Slower than asked is no fault; that a camera has no choice is none either.
    let _ = capture.set_frame_interval(Fract::new(1, setup.frames_per_second.ceil() as u32));
    Ok((capture.into_stream().map_err(fault)?, layout))
}

/// The size offered whose sides are nearest to those wanted, the larger one of two.
fn nearest(offered: impl Iterator<Item = (u32, u32)>, wanted: (u32, u32)) -> (u32, u32) {
    let distance =
        |(width, height): (u32, u32)| u64::from(width.abs_diff(wanted.0)) + u64::from(height.abs_diff(wanted.1));
    offered
        .min_by_key(|&size| (distance(size), std::cmp::Reverse(u64::from(size.0) * u64::from(size.1))))
        .unwrap_or(wanted)
}

fn unread(offered: &[[u8; 4]]) -> String {
    let names: Vec<_> = offered.iter().map(|fourcc| String::from_utf8_lossy(fourcc).trim_end().to_string()).collect();
    let names = if names.is_empty() { "nothing".into() } else { names.join(", ") };
    format!("offers {names}, of which nothing is read; use command:ffmpeg -f v4l2 -i DEVICE -f mjpeg -q:v 3 -")
}

fn read(mut stream: ReadStream, layout: Layout, newest: &Newest) -> io::Result<()> {
    while !newest.unwanted() {
        // The wait is bounded, that of `dequeue` is not.
        let mut device = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut device, PollTimeout::from(WAIT_MILLIS)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let raw = stream.dequeue(|view| {
            // half a frame, as after the bus had been busy
            let whole = !view.is_error() && !view.is_empty();
            Ok(whole.then(|| layout.frame(&view)))
        })?;
        if let Some(raw) = raw {
            newest.put(raw);
        }
    }
    Ok(())
}

impl Layout {
    fn frame(self, bytes: &[u8]) -> Raw {
        let Layout { fourcc, width, height, stride } = self;
        let bytes = bytes.to_vec();
        if &fourcc == b"YUYV" { Raw::Yuyv { width, height, stride, bytes } } else { Raw::Jpeg(bytes) }
    }
}

/// What the system said, as the rest of a sentence.
fn fault(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => "is not there; is it connected?".into(),
        Some(Errno::ENODEV | Errno::ENXIO | Errno::EIO) => "was unplugged or has failed".into(),
        Some(Errno::EACCES | Errno::EPERM) => "may not be used; add the user to the group video".into(),
        Some(Errno::EBUSY) => "is in use by another program".into(),
        Some(Errno::ENOTTY | Errno::EINVAL | Errno::EISDIR) => format!("is no camera ({error})"),
        _ => format!("failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(device: &str) -> String {
        let source: Source = format!("v4l2:{device}").parse().unwrap();
        let text = open(&source, Path::new(device), &Setup::default(), Arc::default()).err().unwrap().to_string();
        assert!(text.contains(device), "{text}");
        text
    }

    #[test]
    fn what_is_no_camera_is_said_to_be_none() {
        assert!(complaint("/dev/no-such-video").contains("not there"));
        assert!(complaint("/dev/null").contains("no camera"));
        assert!(complaint("/dev").contains("no camera"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("video0");
        std::fs::write(&file, "x").unwrap();
        assert!(complaint(file.to_str().unwrap()).contains("no camera"));
    }

    #[test]
    fn faults_have_remedies() {
        let told = |errno: Errno| fault(&errno.into());
        assert!(told(Errno::ENODEV).contains("unplugged"));
        assert!(told(Errno::EACCES).contains("group video"));
        assert!(told(Errno::EBUSY).contains("another program"));
        assert!(told(Errno::ENOMEM).contains("failed"));
        assert!(unread(&[*b"NV12", *b"Y16 "]).contains("offers NV12, Y16, of which"));
        assert!(unread(&[]).contains("nothing"));
    }

    #[test]
    fn the_nearest_size_is_taken() {
        let sizes = [(640, 480), (1280, 960), (1280, 720), (1920, 1080)];
        let chosen = |width, height| nearest(sizes.into_iter(), (width, height));
        assert_eq!(chosen(1280, 720), (1280, 720));
        assert_eq!(chosen(100, 100), (640, 480));
        assert_eq!(chosen(8000, 8000), (1920, 1080));
        assert_eq!(chosen(1280, 840), (1280, 960), "the larger one of two as near");
        assert_eq!(nearest(std::iter::empty(), (5, 6)), (5, 6));
    }

    #[test]
    fn frames_are_taken_for_what_they_are() {
        let layout = |fourcc| Layout { fourcc, width: 2, height: 1, stride: 4 };
        assert!(matches!(layout(*b"YUYV").frame(&[1; 4]), Raw::Yuyv { width: 2, height: 1, stride: 4, .. }));
        assert!(matches!(layout(*b"MJPG").frame(&[1; 4]), Raw::Jpeg(_)));
    }
}
