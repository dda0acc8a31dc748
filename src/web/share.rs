//! Links: the one that shows a painting to a visitor's phone, and the one that pairs a browser.

use super::Site;
use super::access::{COOKIE, Role};
use super::answer::{Fault, Keep, Problem, Query, Sent, read};
use super::guard::Caller;
use super::pages;
use super::paintings::id;
use crate::daemon::job::{Id, Painting};
use crate::daemon::store::PaintingFile;
use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use qrcode::render::svg;
use qrcode::{EcLevel, QrCode};
use serde::Deserialize;
use utoipa::IntoParams;

/// A paired browser stays paired so long, in seconds: as long as browsers allow.
const PAIRED_SECONDS: u32 = 400 * 24 * 60 * 60;

/// Media type, name and entity tag of a painting's file.
pub(super) fn called(file: PaintingFile, painting: &Painting) -> (&'static str, String, String) {
    let (id, sha256) = (painting.id, &painting.sha256);
    match file {
        PaintingFile::Picture => ("image/png", format!("pleinair-{id}.png"), sha256.clone()),
        PaintingFile::Thumbnail => ("image/jpeg", format!("pleinair-{id}-small.jpg"), format!("{sha256}-small")),
        PaintingFile::Content => ("image/jpeg", format!("pleinair-{id}-photograph.jpg"), format!("{sha256}-content")),
        PaintingFile::Control(control) => {
            let kind = control.slug();
            ("image/png", format!("pleinair-{id}-{kind}.png"), format!("{sha256}-{kind}"))
        }
    }
}

/// A code as SVG.
pub(super) fn qr_svg(text: &str) -> Result<String, Problem> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M);
    let code = code.map_err(|_| Problem::wish("the address is too long for a code; set a shorter kiosk.public_url"))?;
    Ok(code.render::<svg::Color<'_>>().min_dimensions(240, 240).build())
}

/// The key in a painting's link.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Key {
    /// Shows that the link is one the daemon gave out.
    k: Option<String>,
    /// `1`: to be saved under a name, not shown.
    download: Option<String>,
}

/// Whoever has the link's key may see the painting, and so may the kiosk.
fn admitted(site: &Site, caller: Caller, id: Id, key: &Key) -> bool {
    let has_key = key.k.as_ref().is_some_and(|key| site.access().is_share_key(id, key));
    has_key || caller.0 >= Some(Role::Kiosk)
}

/// A painting for the phone that scanned its code.
#[utoipa::path(
    get, path = "/p/{id}", tag = "links", params(("id" = String, Path), Key),
    responses((status = 200, content_type = "text/html"), (status = 404, content_type = "text/html"))
)]
pub(super) async fn page(
    State(site): State<Site>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    Query(key): Query<Key>,
) -> Result<Response, Problem> {
    let painting = match id(&text, "painting") {
        Ok(id) if admitted(&site, caller, id, &key) => site.ask(move |site| Ok(site.daemon().painting(id)?)).await?,
        _ => None,
    };
    Ok(match painting {
        Some(painting) => pages::shared(&site, &painting, key.k.as_deref().unwrap_or_default()),
        None => pages::gone(&site),
    })
}

/// The painting of such a page, PNG.
#[utoipa::path(
    get, path = "/p/{id}/image.png", tag = "links", params(("id" = String, Path), Key),
    responses((status = 200, content_type = "image/png"), (status = 404, body = Fault))
)]
pub(super) async fn picture(
    State(site): State<Site>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    Query(key): Query<Key>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    let id = id(&text, "painting")?;
    if !admitted(&site, caller, id, &key) {
        return Err(Problem::missing("painting"));
    }
    let attached = key.download.is_some();
    let (sent, bytes) = site
        .ask(move |site| {
            let painting = site.daemon().painting(id)?.ok_or_else(|| Problem::missing("painting"))?;
            let bytes = read(site.daemon().painting_file(id, PaintingFile::Picture)?, "painting")?;
            let (kind, name, tag) = called(PaintingFile::Picture, &painting);
            Ok((Sent { kind, tag, keep: Keep::Day, name: Some(name), attached }, bytes))
        })
        .await?;
    Ok(sent.answer(&asked, bytes))
}

/// A token that is shown once.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Shown {
    /// The token.
    token: Option<String>,
}

/// Pairs a browser: the token moves from the address into a cookie.
#[utoipa::path(
    get, path = "/pair", tag = "links", params(Shown),
    responses(
        (status = 303, description = "Paired; on to the role's page"),
        (status = 401, description = "The token is none", content_type = "text/html"),
    )
)]
pub(super) async fn pair(State(site): State<Site>, Query(shown): Query<Shown>) -> Response {
    let token = shown.token.unwrap_or_default();
    let Some(role) = site.access().role_of(&token) else { return pages::stranger(&site, StatusCode::UNAUTHORIZED) };
    let secure = if site.access().is_secure() { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={PAIRED_SECONDS}{secure}");
    (StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie), (header::LOCATION, role.page().to_owned())]).into_response()
}
