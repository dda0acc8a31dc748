//! The pages, embedded in the program.

use super::access::Role::{Admin, Gallery, Kiosk};
use super::answer::{Problem, Sent};
use super::{Site, guard};
use crate::daemon::job::Painting;
use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";

const KIOSK: &str = include_str!("pages/index.html");
const STUDIO: &str = include_str!("pages/studio.html");
const GALLERY: &str = include_str!("pages/gallery.html");
const ADMIN: &str = include_str!("pages/admin.html");

/// What pages are made of, below `/assets/`: name, media type, contents.
const ASSETS: &[(&str, &str, &[u8])] = &[];

/// The pages, each for the role that it is made for, and their parts, which are no secret.
pub(super) fn router() -> Router<Site> {
    let page = |html: &'static str| {
        get(move |asked: HeaderMap| async move { Sent::of(HTML, html.as_bytes()).answer(&asked, html) })
    };
    Router::new()
        .route("/", page(KIOSK).route_layer(from_fn_with_state(Kiosk, guard::require)))
        .route("/gallery", page(GALLERY).route_layer(from_fn_with_state(Gallery, guard::require)))
        .route("/studio", page(STUDIO).route_layer(from_fn_with_state(Admin, guard::require)))
        .route("/admin", page(ADMIN).route_layer(from_fn_with_state(Admin, guard::require)))
        .route("/assets/{name}", get(asset))
}

async fn asset(Path(name): Path<String>, asked: HeaderMap) -> Result<Response, Problem> {
    let found = ASSETS.iter().find(|(own, ..)| *own == name);
    let (_, kind, bytes) = found.ok_or_else(|| Problem::missing("file"))?;
    Ok(Sent::of(kind, bytes).answer(&asked, *bytes))
}

fn html(status: StatusCode, title: &str, body: &str) -> Response {
    let text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><body><main>{body}</main></body></html>"
    );
    (status, [(header::CONTENT_TYPE, HTML)], text).into_response()
}

/// For a browser that is not paired, or not for this page.
pub(super) fn stranger(status: StatusCode) -> Response {
    let body = match status {
        StatusCode::FORBIDDEN => "<h1>This device is paired for something else</h1><p>Ask for another code.</p>",
        _ => {
            "<h1>This device is not paired yet</h1><p>Scan the code that the admin page shows, or that the daemon printed \
             when it started.</p>"
        }
    };
    html(status, "pleinair", body)
}

/// For a link that shows nothing, or nothing any more.
pub(super) fn gone() -> Response {
    html(StatusCode::NOT_FOUND, "pleinair", "<h1>There is no such painting</h1><p>It may have been deleted.</p>")
}

/// A painting for a visitor's phone; `key` is that of its link.
pub(super) fn shared(site: &Site, painting: &Painting, key: &str) -> Response {
    // keys are of letters, digits, - and _; what else came was not admitted by it
    let key: String = key.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    let (id, width, height) = (painting.id, painting.width, painting.height);
    let title = escaped(&site.daemon().config().kiosk.title);
    let picture = format!("/p/{id}/image.png?k={key}");
    let body = format!(
        "<h1>{title}</h1><p><img src=\"{picture}\" width=\"{width}\" height=\"{height}\" alt=\"{}\"></p>\
         <p><a href=\"{picture}&amp;download=1\" download=\"pleinair-{id}.png\">Save</a></p>",
        escaped(&painting.prompt)
    );
    html(StatusCode::OK, &title, &body)
}

/// Text within HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
