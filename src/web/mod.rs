//! The daemon's face: pages, API, events and live view over HTTP, as a function that returns a router.

pub mod access;
mod answer;
mod camera;
mod events;
mod files;
mod guard;
pub mod journal;
mod pages;
mod paintings;
mod sdapi;
mod serve;
mod share;
mod status;
mod styles;
pub mod upload;

pub use access::{Access, Role};
pub use answer::Problem;
pub use journal::Journal;
pub use serve::serve;

use crate::daemon::Daemon;
use access::Role::{Admin, Gallery, Kiosk};
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::sync::Arc;
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What all handlers share; cheap to clone.
#[derive(Debug, Clone)]
pub struct Site(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    daemon: Daemon,
    access: Access,
    journal: Journal,
    limiter: guard::Limiter,
    live: camera::LiveView,
    status: status::Kept,
    closing: watch::Sender<bool>,
}

impl Site {
    /// The site of a daemon.
    pub fn new(daemon: Daemon, access: Access, journal: Journal) -> Site {
        Site(Arc::new(Shared {
            limiter: guard::Limiter::new(daemon.config().security.requests_per_minute),
            live: camera::LiveView::new(),
            status: status::Kept::default(),
            closing: watch::Sender::new(false),
            daemon,
            access,
            journal,
        }))
    }

    /// The router that answers requests.
    pub fn router(&self) -> Router {
        let (api, openapi) = api().split_for_parts();
        let openapi = Arc::new(openapi);
        let bytes = usize::try_from(self.daemon().config().security.body_megabytes.saturating_mul(1_000_000));
        api.merge(pages::router())
            .route("/api/openapi.json", get(move || async move { Json((*openapi).clone()) }))
            .fallback(nothing)
            .method_not_allowed_fallback(not_so)
            .layer(DefaultBodyLimit::max(bytes.unwrap_or(usize::MAX)))
            .layer(from_fn_with_state(self.clone(), guard::hurry))
            .layer(from_fn_with_state(self.clone(), guard::admit))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn(guard::harden))
            .with_state(self.clone())
    }

    /// Ends open streams, now and from now on.
    pub fn close(&self) {
        self.0.closing.send_replace(true);
    }

    fn daemon(&self) -> &Daemon {
        &self.0.daemon
    }

    fn access(&self) -> &Access {
        &self.0.access
    }

    fn journal(&self) -> &Journal {
        &self.0.journal
    }

    fn limiter(&self) -> &guard::Limiter {
        &self.0.limiter
    }

    fn live(&self) -> &camera::LiveView {
        &self.0.live
    }

    /// Comes true when open streams are to end.
    fn closing(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closing = self.0.closing.subscribe();
        async move {
            let _ = closing.wait_for(|closing| *closing).await;
        }
    }

    /// Asks the daemon something that may take the disk's time, beside the threads that serve requests.
    async fn ask<T, F>(&self, question: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&Site) -> Result<T, Problem> + Send + 'static,
    {
        let site = self.clone();
        tokio::task::spawn_blocking(move || question(&site)).await?
    }
}

/// The router of a daemon, without a socket.
pub fn router(daemon: Daemon, access: Access) -> Router {
    Site::new(daemon, access, Journal::default()).router()
}

/// The description of the API, as `/api/openapi.json` has it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    api().into_openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(title = "pleinair", description = "Paints what a camera sees, in a style learned from one picture."),
    paths(styles::vectors)
)]
struct Api;

/// Every route is listed once, with the role it takes.
fn api() -> OpenApiRouter<Site> {
    let open = OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(status::alive))
        .routes(routes!(status::ready))
        .routes(routes!(pages::strings))
        .routes(routes!(share::page))
        .routes(routes!(share::picture))
        .routes(routes!(share::pair));
    let gallery = OpenApiRouter::new()
        .routes(routes!(paintings::list))
        .routes(routes!(paintings::one))
        .routes(routes!(files::picture))
        .routes(routes!(files::thumbnail))
        .routes(routes!(files::content))
        .routes(routes!(files::control))
        .routes(routes!(styles::list))
        .routes(routes!(styles::picture))
        .routes(routes!(events::stream))
        .routes(routes!(status::kiosk));
    let kiosk = OpenApiRouter::new()
        .routes(routes!(paintings::order))
        .routes(routes!(files::preview))
        .routes(routes!(paintings::print))
        .routes(routes!(paintings::qr))
        .routes(routes!(paintings::jobs))
        .routes(routes!(paintings::job))
        .routes(routes!(paintings::cancel))
        .routes(routes!(styles::one))
        .routes(routes!(camera::live))
        .routes(routes!(camera::still))
        .routes(routes!(camera::shutter));
    let admin = OpenApiRouter::new()
        .routes(routes!(paintings::delete))
        .routes(routes!(camera::choices))
        .routes(routes!(camera::choose))
        .routes(routes!(styles::learn))
        .routes(routes!(styles::change))
        .routes(routes!(styles::delete))
        .routes(routes!(styles::mix))
        .routes(routes!(styles::mix_with))
        .routes(routes!(styles::losses))
        .routes(routes!(styles::losses_csv))
        .routes(routes!(styles::losses_png))
        .routes(routes!(styles::validation))
        .routes(routes!(styles::caption))
        .routes(routes!(status::status))
        .routes(routes!(status::log))
        .routes(routes!(status::metrics))
        .routes(routes!(status::pairing));
    open.merge(gallery.route_layer(from_fn_with_state(Gallery, guard::require)))
        .merge(kiosk.merge(sdapi::router()).route_layer(from_fn_with_state(Kiosk, guard::require)))
        .merge(admin.route_layer(from_fn_with_state(Admin, guard::require)))
}

async fn nothing(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

async fn not_so(uri: Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take this method", uri.path()))
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the program made a mistake; its log has more").into_response()
}
