//! What the camera sees, live and still. Each frame is encoded once, however many watch, and none while nobody does.

use super::Site;
use super::answer::{Fault, Json, Problem};
use crate::camera::Frame;
use crate::daemon::CameraChoice;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

/// At most fifteen frames a second.
const INTERVAL: Duration = Duration::from_millis(66);
/// A live view need not be larger, in pixels.
const SIDE: u32 = 960;
/// Quality of the live view's JPEGs.
const QUALITY: u8 = 80;
/// The encoder looks so often whether anybody watches.
const PATIENCE: Duration = Duration::from_secs(1);
const BOUNDARY: &str = "pleinair-frame";

/// The newest frame as JPEG, for all who watch.
#[derive(Debug)]
pub(super) struct LiveView {
    newest: watch::Sender<Bytes>,
    encoding: Mutex<bool>,
}

impl LiveView {
    pub(super) fn new() -> LiveView {
        LiveView { newest: watch::Sender::new(Bytes::new()), encoding: Mutex::new(false) }
    }

    /// Watches; the first to do so has the frames encoded from now on.
    fn watch(site: &Site) -> Result<watch::Receiver<Bytes>, Problem> {
        let live = site.live();
        let watching = live.newest.subscribe();
        let mut encoding = live.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        if !*encoding {
            let thread = std::thread::Builder::new().name("live view".into());
            let site = site.clone();
            thread.spawn(move || encode(&site)).map_err(crate::Error::io(std::path::Path::new("the live view")))?;
            *encoding = true;
        }
        Ok(watching)
    }

    /// Whether to go on; if nobody watches, whoever comes next starts anew, and does not see the last visitor's face.
    fn goes_on(&self, stopping: bool) -> bool {
        let mut encoding = self.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        *encoding = self.newest.receiver_count() > 0 && !stopping;
        if !*encoding {
            self.newest.send_replace(Bytes::new());
        }
        *encoding
    }
}

fn encode(site: &Site) {
    let (live, daemon) = (site.live(), site.daemon());
    let mut number = 0;
    while live.goes_on(daemon.stopping()) {
        let Some(shot) = daemon.viewfinder().next(number, PATIENCE) else { continue };
        let began = Instant::now();
        number = shot.number;
        match jpeg(&shot.frame) {
            Ok(bytes) => drop(live.newest.send_replace(bytes.into())),
            Err(fault) => tracing::warn!(%fault, "a frame cannot be shown"),
        }
        std::thread::sleep(INTERVAL.saturating_sub(began.elapsed()));
    }
}

fn jpeg(frame: &Frame) -> image::ImageResult<Vec<u8>> {
    let (width, height) = (frame.width() as u32, frame.height() as u32);
    let pixels =
        image::ImageBuffer::<image::Rgb<u8>, _>::from_raw(width, height, frame.rgb()).expect("a frame is whole");
    let mut bytes = vec![];
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, QUALITY);
    let longer = width.max(height);
    if longer > SIDE {
        let within = |side: u32| (u64::from(side) * u64::from(SIDE) / u64::from(longer)).max(1) as u32;
        encoder.encode_image(&image::imageops::thumbnail(&pixels, within(width), within(height)))?;
    } else {
        encoder.encode(frame.rgb(), width, height, image::ExtendedColorType::Rgb8)?;
    }
    Ok(bytes)
}

/// Without a camera there is nothing here; with one that is away there will be.
fn check(site: &Site) -> Result<(), Problem> {
    if !site.daemon().has_camera() {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "the daemon has no camera of its own; pages use the browser's",
        ));
    }
    let why = |why| Problem::later(StatusCode::SERVICE_UNAVAILABLE, format!("the camera gives no picture: {why}"), 2);
    site.daemon().viewfinder().state().map_err(why)
}

/// The live view, a stream of JPEGs.
#[utoipa::path(
    get, path = "/api/v1/camera.mjpeg", tag = "camera",
    responses(
        (status = 200, content_type = "multipart/x-mixed-replace"),
        (status = 404, description = "There is no camera", body = Fault),
        (status = 503, description = "The camera is away", body = Fault),
    )
)]
pub(super) async fn live(State(site): State<Site>) -> Result<Response, Problem> {
    check(&site)?;
    let mut watching = LiveView::watch(&site)?;
    let closing = site.closing();
    let (parts, body) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    tokio::spawn(async move {
        tokio::pin!(closing);
        loop {
            let part = part(&watching.borrow_and_update().clone());
            // a client that does not read skips frames instead of piling them up
            let sent = async { part.is_empty() || parts.send(Ok(part)).await.is_ok() };
            tokio::select! {
                going = sent => if !going { break },
                () = &mut closing => break,
            }
            tokio::select! {
                news = watching.changed() => if news.is_err() { break },
                () = parts.closed() => break,
                () = &mut closing => break,
            }
        }
    });
    let kind = format!("multipart/x-mixed-replace; boundary={BOUNDARY}");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(ReceiverStream::new(body))).into_response())
}

fn part(jpeg: &Bytes) -> Bytes {
    if jpeg.is_empty() {
        return Bytes::new();
    }
    let length = jpeg.len();
    let head = format!("--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), jpeg, b"\r\n"].concat().into()
}

/// The camera's newest picture, JPEG.
#[utoipa::path(
    get, path = "/api/v1/frame.jpg", tag = "camera",
    responses(
        (status = 200, content_type = "image/jpeg"),
        (status = 404, description = "There is no camera", body = Fault),
        (status = 503, description = "The camera is away", body = Fault),
    )
)]
pub(super) async fn still(State(site): State<Site>) -> Result<Response, Problem> {
    check(&site)?;
    let bytes = site.ask(|site| {
        let frame = site.daemon().take()?;
        jpeg(&frame).map_err(|why| Problem::wish(why.to_string()))
    });
    Ok(([(header::CONTENT_TYPE, "image/jpeg")], bytes.await?).into_response())
}

/// Presses the shutter: pages that listen begin their countdown.
#[utoipa::path(
    post, path = "/api/v1/shutter", tag = "camera",
    responses((status = 202, description = "Whoever listens to the events is told"))
)]
pub(super) async fn shutter(State(site): State<Site>) -> StatusCode {
    site.daemon().press_shutter();
    StatusCode::ACCEPTED
}

/// The cameras that may be chosen.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Cameras {
    cameras: Vec<CameraChoice>,
}

/// A choice among them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Choice {
    /// The id of a camera that is offered.
    id: String,
}

/// The cameras that may be chosen: those of the configuration, those plugged in, and the pages' own.
#[utoipa::path(get, path = "/api/v1/cameras", tag = "camera", responses((status = 200, body = Cameras)))]
pub(super) async fn choices(State(site): State<Site>) -> Result<Json<Cameras>, Problem> {
    site.ask(|site| Ok(Json(Cameras { cameras: site.daemon().cameras() }))).await
}

/// Looks through another camera from now on.
#[utoipa::path(
    put, path = "/api/v1/camera", tag = "camera", request_body = Choice,
    responses(
        (status = 204, description = "It is chosen"),
        (status = 404, description = "It is not offered", body = Fault),
    )
)]
pub(super) async fn choose(State(site): State<Site>, Json(choice): Json<Choice>) -> Result<StatusCode, Problem> {
    site.ask(move |site| Ok(site.daemon().choose_camera(&choice.id)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_frames_are_shown_smaller() {
        for (size, shown) in [((1920, 1080), (960, 540)), ((320, 240), (320, 240)), ((4000, 1), (960, 1))] {
            let frame = Frame::new(size.0, size.1, vec![90; size.0 * size.1 * 3]).unwrap();
            let picture = image::load_from_memory(&jpeg(&frame).unwrap()).unwrap();
            assert_eq!((picture.width(), picture.height()), shown);
        }
    }

    #[test]
    fn the_last_frame_is_forgotten_when_nobody_watches() {
        let live = LiveView::new();
        let watching = live.newest.subscribe();
        live.newest.send_replace(Bytes::from_static(b"a face"));
        assert!(live.goes_on(false));
        assert_eq!(*live.newest.subscribe().borrow(), "a face");
        drop(watching);
        assert!(!live.goes_on(false));
        assert!(live.newest.subscribe().borrow().is_empty());
    }

    #[test]
    fn a_part_says_how_long_it_is() {
        let part = part(&Bytes::from_static(b"abc"));
        assert!(part.ends_with(b"Content-Length: 3\r\n\r\nabc\r\n") && part.starts_with(b"--pleinair-frame\r\n"));
    }
}
