//! A camera that sends frames whether somebody looks or not: a thread reads all of them and keeps the newest, so that
//! however slow the painter is, it sees what is there now.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::mjpeg::{Splitter, with_huffman_tables};
use super::y4m::{Planes, Reader};
use super::{Camera, Frame, MAX_CAMERA_PIXELS};
use crate::error::{Error, Result};

/// How often the wish to stop is looked at.
pub(super) const GLANCE: Duration = Duration::from_millis(50);

/// A stream without a JPEG in so many bytes is none of JPEGs.
const MAX_WITHOUT_PICTURE: u64 = 4 << 20;

/// A frame as it was sent. It is decoded only if somebody wants it.
pub(super) enum Raw {
    Jpeg(Vec<u8>),
    Planes(Planes),
    #[cfg(target_os = "linux")]
    Yuyv {
        width: usize,
        height: usize,
        stride: usize,
        bytes: Vec<u8>,
    },
    #[cfg(target_os = "macos")]
    Rgb {
        width: usize,
        height: usize,
        bytes: Vec<u8>,
    },
}

impl Raw {
    fn decode(self) -> Result<Frame> {
        match self {
            Raw::Jpeg(jpeg) => Frame::from_bytes(&with_huffman_tables(jpeg), MAX_CAMERA_PIXELS),
            Raw::Planes(planes) => planes.to_frame(),
            #[cfg(target_os = "linux")]
            Raw::Yuyv { width, height, stride, bytes } => super::yuv::yuyv_to_frame(width, height, stride, &bytes),
            #[cfg(target_os = "macos")]
            Raw::Rgb { width, height, bytes } => Frame::new(width, height, bytes),
        }
    }
}

/// Where the reading thread leaves the newest frame.
#[derive(Default)]
pub(super) struct Newest {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    raw: Option<Raw>,
    ended: Option<String>,
    unwanted: bool,
}

/// What was there for who wanted a frame.
enum Taken {
    Raw(Raw),
    /// The stream ended; how, as the rest of a sentence that begins with the camera.
    Ended(String),
    /// Nothing came in time.
    Silence,
    /// The program is to stop.
    Stopped,
}

impl Newest {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the newest frame. `false` when nobody wants frames any more.
    pub(super) fn put(&self, raw: Raw) -> bool {
        let mut state = self.lock();
        state.raw = Some(raw);
        self.changed.notify_all();
        !state.unwanted
    }

    fn end(&self, how: String) {
        self.lock().ended = Some(how);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.lock().unwanted = true;
        self.changed.notify_all();
    }

    /// Whether nobody wants frames any more.
    #[cfg(target_os = "linux")]
    pub(super) fn unwanted(&self) -> bool {
        self.lock().unwanted
    }

    /// Waits for so long, or until nobody wants frames any more: `false` then.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut state = self.lock();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if state.unwanted || left.is_zero() {
                return !state.unwanted;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn take(&self, deadline: Instant, stop: &AtomicBool) -> Taken {
        let mut state = self.lock();
        loop {
            if stop.load(Ordering::Relaxed) {
                return Taken::Stopped;
            }
            if let Some(raw) = state.raw.take() {
                return Taken::Raw(raw);
            }
            if let Some(how) = &state.ended {
                return Taken::Ended(how.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Taken::Silence;
            }
            state = self.changed.wait_timeout(state, left.min(GLANCE)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The camera of a reading thread.
pub(super) struct Stream {
    camera: String,
    newest: Arc<Newest>,
    stop: Arc<AtomicBool>,
    patience: Duration,
    first_patience: Duration,
    reader: Option<JoinHandle<()>>,
    waits_for_reader: bool,
    /// Whatever has to end with the camera.
    _source: Box<dyn Send>,
}

impl Stream {
    /// Starts the thread, which runs `read` until it says how the stream ended.
    ///
    /// # Errors
    /// [`Error::Camera`] when the system gives no thread.
    pub(super) fn start(
        camera: String,
        patience: Duration,
        stop: Arc<AtomicBool>,
        source: impl Send + 'static,
        read: impl FnOnce(&Newest) -> String + Send + 'static,
    ) -> Result<Stream> {
        let newest = Arc::new(Newest::default());
        let place = newest.clone();
        let reader = std::thread::Builder::new()
            .name("camera reader".into())
            .spawn(move || place.end(read(&place)))
            .map_err(|e| Error::Camera { camera: camera.clone(), what: format!("gets no thread: {e}") })?;
        let source = Box::new(source);
        Ok(Stream {
            camera,
            newest,
            stop,
            patience,
            first_patience: patience,
            reader: Some(reader),
            waits_for_reader: false,
            _source: source,
        })
    }

    /// Waits longer for the first frame: programs and devices take their time to start.
    pub(super) fn slow_to_start(mut self) -> Stream {
        self.first_patience = self.patience * 2;
        self
    }

    /// The thread holds what the next one needs, a device, and does not wait for long: it has ended when this is dropped.
    #[cfg(target_os = "linux")]
    pub(super) fn exclusive(mut self) -> Stream {
        self.waits_for_reader = true;
        self
    }

    fn lost(&self, what: String) -> Error {
        Error::Camera { camera: self.camera.clone(), what }
    }
}

impl Camera for Stream {
    fn next_frame(&mut self) -> Result<Frame> {
        let patience = self.first_patience;
        let deadline = Instant::now() + patience;
        let mut complaint = None;
        loop {
            match self.newest.take(deadline, &self.stop) {
                Taken::Raw(raw) => match raw.decode() {
                    Ok(frame) => {
                        self.first_patience = self.patience;
                        return Ok(frame);
                    }
                    // One damaged picture is passed over.
                    Err(error) if Instant::now() < deadline => complaint = Some(error),
                    Err(error) => return Err(self.lost(format!("sends nothing that can be read: {error}"))),
                },
                Taken::Ended(how) => return Err(self.lost(how)),
                Taken::Stopped => return Err(Error::Interrupted),
                Taken::Silence => {
                    let seconds = patience.as_secs_f64();
                    return Err(self.lost(match complaint {
                        Some(error) => format!("has sent nothing that can be read for {seconds} s: {error}"),
                        None => format!("has sent nothing for {seconds} s; is it on and connected?"),
                    }));
                }
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.newest.close();
        if let Some(reader) = self.reader.take().filter(|_| self.waits_for_reader) {
            // it has told how it ended, or panicked and printed why
            let _ = reader.join();
        }
    }
}

/// How a stream of bytes ended.
pub(super) enum End {
    /// As streams end.
    Closed,
    /// With an error.
    Failed(io::Error),
    /// It is none of JPEGs.
    NoPictures,
    /// Nobody wants it any more.
    Unwanted,
}

/// Passes on the JPEGs of a stream until it ends; how many there were.
pub(super) fn pass_jpegs(mut reader: impl Read, newest: &Newest) -> (u64, End) {
    let mut splitter = Splitter::new();
    let mut chunk = vec![0; 64 << 10];
    let (mut frames, mut wanted) = (0, true);
    loop {
        let length = match reader.read(&mut chunk) {
            Ok(0) => return (frames, End::Closed),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return (frames, End::Failed(error)),
        };
        splitter.push(&chunk[..length], |jpeg| {
            frames += 1;
            wanted = newest.put(Raw::Jpeg(jpeg));
        });
        if !wanted {
            return (frames, End::Unwanted);
        }
        if splitter.skipped() > MAX_WITHOUT_PICTURE {
            return (frames, End::NoPictures);
        }
    }
}

/// Passes on the frames of YUV4MPEG2 until it ends.
///
/// # Errors
/// As [`Reader`]'s.
pub(super) fn pass_y4m(reader: impl BufRead, newest: &Newest) -> Result<(), String> {
    let mut reader = Reader::new(reader)?;
    while let Some(planes) = reader.next_planes()? {
        if !newest.put(Raw::Planes(planes)) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn grey(value: u8) -> Raw {
        let planes = Planes {
            width: 1,
            height: 1,
            chroma: crate::camera::y4m::Chroma::Mono,
            range: crate::camera::y4m::Range::Full,
            planes: [vec![value], vec![], vec![]],
        };
        Raw::Planes(planes)
    }

    fn stream(patience: f64, read: impl FnOnce(&Newest) -> String + Send + 'static) -> (Stream, Arc<AtomicBool>) {
        let stop = Arc::new(AtomicBool::new(false));
        let patience = Duration::from_secs_f64(patience);
        (Stream::start("here".into(), patience, stop.clone(), (), read).unwrap(), stop)
    }

    #[test]
    fn only_the_newest_frame_is_seen_and_the_end_after_it() {
        let (go, gone) = mpsc::channel();
        let (mut camera, _) = stream(5.0, move |newest| {
            for value in 0..100 {
                newest.put(grey(value));
            }
            go.send(()).unwrap();
            "is off".into()
        });
        gone.recv().unwrap();
        assert_eq!(camera.next_frame().unwrap().rgb(), [99; 3]);
        for _ in 0..2 {
            assert_eq!(camera.next_frame().unwrap_err().to_string(), "the camera here is off");
        }
    }

    #[test]
    fn silence_is_noticed_and_the_wish_to_stop_too() {
        let (mut camera, stop) = stream(0.2, |newest| {
            newest.put(grey(1));
            while newest.wait(Duration::from_secs(60)) {}
            String::new()
        });
        camera = camera.slow_to_start();
        assert!(camera.next_frame().is_ok());
        let start = Instant::now();
        let text = camera.next_frame().unwrap_err().to_string();
        assert!(text.contains("nothing for 0.2 s"), "{text}");
        assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(camera.next_frame(), Err(Error::Interrupted)));
    }

    #[test]
    fn damaged_frames_are_passed_over_unless_there_are_no_others() {
        let (mut camera, _) = stream(0.3, |newest| {
            newest.put(Raw::Jpeg(b"\xFF\xD8\xFF\xDA\x00\x02\xFF\xD9".to_vec()));
            newest.wait(Duration::from_millis(100));
            newest.put(grey(7));
            while newest.wait(Duration::from_millis(10)) {
                newest.put(Raw::Jpeg(vec![]));
            }
            String::new()
        });
        assert_eq!(camera.next_frame().unwrap().rgb(), [7; 3]);
        let text = camera.next_frame().unwrap_err().to_string();
        assert!(text.contains("nothing that can be read"), "{text}");
    }

    #[test]
    fn the_thread_ends_with_the_camera() {
        let (told, tell) = mpsc::channel();
        let (camera, _) = stream(5.0, move |newest| {
            while newest.put(grey(0)) {
                std::thread::sleep(Duration::from_millis(1));
            }
            told.send(()).unwrap();
            String::new()
        });
        drop(camera);
        tell.recv_timeout(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn a_stream_without_pictures_is_left() {
        let newest = Newest::default();
        let (frames, end) = pass_jpegs(io::repeat(b'x'), &newest);
        assert!(frames == 0 && matches!(end, End::NoPictures));
        assert!(matches!(pass_jpegs(&b"abc"[..], &newest), (0, End::Closed)));
    }
}
