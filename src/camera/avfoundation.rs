//! `avfoundation:`: the cameras of macOS.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nokhwa::pixel_format::RgbFormat;
use nokhwa::utils::{CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType, Resolution};
use nokhwa::{Buffer, NokhwaError};

use super::stream::{Newest, Raw, Stream};
use super::{Setup, Source};
use crate::error::Result;

/// # Errors
/// [`crate::Error::Camera`] when the system gives no thread; whether there is such a camera shows with the first frame.
pub(super) fn open(source: &Source, name: &str, setup: &Setup, stop: Arc<AtomicBool>) -> Result<Stream> {
    let index = name.parse().map_or_else(|_| CameraIndex::String(name.to_string()), CameraIndex::Index);
    let wanted = CameraFormat::new(
        Resolution::new(setup.width, setup.height),
        FrameFormat::YUYV,
        setup.frames_per_second.ceil() as u32,
    );
    let read =
        move |newest: &Newest| read(index, wanted, newest).err().map_or_else(String::new, |e| format!("failed: {e}"));
    Ok(Stream::start(source.to_string(), setup.patience(), stop, (), read)?.slow_to_start())
}

/// Nothing where the person has not allowed the program to use cameras.
pub(super) fn devices() -> Vec<super::Plugged> {
    let found = nokhwa::query(nokhwa::utils::ApiBackend::AVFoundation).unwrap_or_default();
    let described = |info: nokhwa::utils::CameraInfo| super::Plugged {
        source: Source::AvFoundation(info.index().as_string()),
        name: info.human_name(),
    };
    found.into_iter().map(described).collect()
}

fn read(index: CameraIndex, wanted: CameraFormat, newest: &Newest) -> Result<(), NokhwaError> {
    // asks the person once whether the program may use cameras
    nokhwa::nokhwa_initialize(|_| {});
    let requested = RequestedFormat::new::<RgbFormat>(RequestedFormatType::Closest(wanted));
    let mut camera = nokhwa::Camera::new(index, requested)?;
    camera.open_stream()?;
    while newest.put(raw(&camera.frame()?)?) {}
    camera.stop_stream()
}

fn raw(buffer: &Buffer) -> Result<Raw, NokhwaError> {
    if buffer.source_frame_format() == FrameFormat::MJPEG {
        return Ok(Raw::Jpeg(buffer.buffer().to_vec()));
    }
    let Resolution { width_x, height_y } = buffer.resolution();
    let bytes = buffer.decode_image::<RgbFormat>()?.into_raw();
    Ok(Raw::Rgb { width: width_x as usize, height: height_y as usize, bytes })
}
