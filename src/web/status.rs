//! How the daemon is, and what pages have to know of it.

use super::Site;
use super::access::Role;
use super::answer::{Json, Problem};
use super::guard::Caller;
use super::share::qr_svg;
use crate::bundle::control::Control;
use crate::camera::SUPPORTED_FORMATS;
use crate::daemon::{Health, Status};
use crate::painter::{CONTROL_SCALE, GUIDANCE, NEGATIVE, Request, STRENGTH};
use crate::sampler::Sampler;
use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use utoipa::ToSchema;

/// Sensors and disks are not asked more often.
const FRESH: Duration = Duration::from_secs(2);

/// The last status, for so long as it is fresh.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Option<(Instant, Status)>>);

/// Whether the program runs.
#[utoipa::path(get, path = "/healthz", tag = "status", responses((status = 200, description = "It runs")))]
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Whether paintings can be ordered.
#[utoipa::path(
    get, path = "/readyz", tag = "status",
    responses((status = 200, description = "They can", body = Health), (status = 503, description = "Not now", body = Health))
)]
pub(super) async fn ready(State(site): State<Site>) -> Result<Response, Problem> {
    let (health, stopping) = site.ask(|site| Ok((site.daemon().health(), site.daemon().stopping()))).await?;
    let fine = health.painter && health.store && !stopping;
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(health)).into_response())
}

/// Everything the admin page shows.
#[utoipa::path(get, path = "/api/v1/status", tag = "status", responses((status = 200, body = Status)))]
pub(super) async fn status(State(site): State<Site>) -> Result<Json<Status>, Problem> {
    let status = site.ask(|site| {
        // held while the system is asked: who comes meanwhile gets the same answer
        let mut kept = site.0.status.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((when, status)) if when.elapsed() < FRESH => Ok(status.clone()),
            _ => Ok(kept.insert((Instant::now(), site.daemon().status()?)).1.clone()),
        }
    });
    Ok(Json(status.await?))
}

/// The last lines of the log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Log {
    /// The oldest first.
    lines: Vec<String>,
}

/// The last lines of the log.
#[utoipa::path(get, path = "/api/v1/log", tag = "status", responses((status = 200, body = Log)))]
pub(super) async fn log(State(site): State<Site>) -> Json<Log> {
    Json(Log { lines: site.journal().lines() })
}

/// Counters in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "status", responses((status = 200, content_type = "text/plain")))]
pub(super) async fn metrics(State(site): State<Site>) -> Result<Response, Problem> {
    let text = site.ask(|site| Ok(site.daemon().metrics()?)).await?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// What pages have to know of the daemon.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Kiosk {
    title: String,
    /// `en` or `de`.
    language: String,
    countdown_seconds: u32,
    timeout_seconds: u32,
    idle_seconds: u32,
    slide_seconds: u32,
    /// Whether the machine has a camera of its own; else pages use the browser's.
    camera: bool,
    /// `browser`, `v4l2`, `avfoundation`, `command`, `http` or `folder`.
    camera_source: String,
    printer: bool,
    captioner: bool,
    /// Where other devices reach the daemon, if they do.
    public_url: Option<String>,
    /// What this client may do.
    role: Role,
    /// Whether clients have to show a token.
    tokens: bool,
    /// The model's name.
    bundle: String,
    /// Side of the square pictures the model was trained with, in pixels.
    native_size: usize,
    /// Sides of pictures are multiples of so many pixels.
    size_step: usize,
    /// Whether a ControlNet of the model reads photographs.
    control: bool,
    /// What its ControlNets look at.
    #[schema(value_type = Vec<String>)]
    controls: Vec<Control>,
    /// Those of them whose pictures are made of photographs.
    #[schema(value_type = Vec<String>)]
    drawn: Vec<Control>,
    samplers: Vec<&'static str>,
    defaults: Defaults,
    /// Formats of pictures that are taken.
    formats: &'static str,
    body_megabytes: u64,
    megapixels: u64,
}

/// What holds where a wish is silent.
#[derive(Debug, Serialize, ToSchema)]
struct Defaults {
    /// The configuration's, for paintings of photographs.
    painting: Request,
    negative: &'static str,
    guidance: f64,
    strength: f64,
    control_scale: f64,
    learning_steps: usize,
    learning_stages: usize,
    learning_batch: usize,
    learning_lr: f64,
    learning_init: String,
    learning_pictures: usize,
}

/// What pages have to know of the daemon.
#[utoipa::path(get, path = "/api/v1/kiosk", tag = "status", responses((status = 200, body = Kiosk)))]
pub(super) async fn kiosk(State(site): State<Site>, Extension(Caller(role)): Extension<Caller>) -> Json<Kiosk> {
    let (config, bundle) = (site.daemon().config(), site.daemon().bundle());
    let (kiosk, learning) = (&config.kiosk, &config.learning);
    let controls: Vec<_> = bundle.controlnets.iter().map(|net| net.control).collect();
    let drawn: Vec<_> = controls.iter().copied().filter(|control| bundle.can_draw(*control)).collect();
    Json(Kiosk {
        title: kiosk.title.clone(),
        language: config.language.clone(),
        countdown_seconds: kiosk.countdown_seconds,
        timeout_seconds: kiosk.timeout_seconds,
        idle_seconds: kiosk.idle_seconds,
        slide_seconds: kiosk.slide_seconds,
        camera: site.daemon().has_camera(),
        camera_source: site.daemon().camera().1,
        printer: !kiosk.print.is_empty(),
        captioner: site.daemon().has_captioner(),
        public_url: site.access().public_url().map(str::to_owned),
        role: role.unwrap_or(Role::Gallery),
        tokens: site.access().required(),
        bundle: bundle.name(),
        native_size: bundle.native_size(),
        size_step: bundle.size_step(),
        control: !drawn.is_empty(),
        controls,
        drawn,
        samplers: Sampler::ALL.map(Sampler::name).to_vec(),
        defaults: Defaults {
            painting: config.painting.wish.clone(),
            negative: NEGATIVE,
            guidance: GUIDANCE,
            strength: STRENGTH,
            control_scale: CONTROL_SCALE,
            learning_steps: learning.steps,
            learning_stages: learning.stages,
            learning_batch: learning.batch,
            learning_lr: learning.lr,
            learning_init: learning.init.clone(),
            learning_pictures: learning.most_pictures,
        },
        formats: SUPPORTED_FORMATS,
        body_megabytes: config.security.body_megabytes,
        megapixels: config.security.megapixels,
    })
}

/// Codes that pair other devices.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pairings {
    /// Whether clients have to show a token; if not there is nothing to pair.
    required: bool,
    pairings: Vec<Pairing>,
}

/// A code that pairs a device with a role.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pairing {
    role: Role,
    /// To be opened on the device.
    url: String,
    /// The same as a code, SVG.
    svg: String,
}

/// Codes that pair other devices.
#[utoipa::path(get, path = "/api/v1/pairing", tag = "status", responses((status = 200, body = Pairings)))]
pub(super) async fn pairing(State(site): State<Site>) -> Result<Json<Pairings>, Problem> {
    let access = site.access();
    let mut pairings = vec![];
    for role in Role::ALL {
        if let Some(url) = access.pairing_url(role) {
            pairings.push(Pairing { role, svg: qr_svg(&url)?, url });
        }
    }
    Ok(Json(Pairings { required: access.required(), pairings }))
}
