//! The pictures of a painting, as files: itself, small, its photograph, what its ControlNets saw, and the last look at it.

use super::Site;
use super::access::Role;
use super::answer::{Fault, Keep, Problem, Query, Sent, read};
use super::guard::Caller;
use super::paintings::{id, visible};
use super::share;
use crate::bundle::control::Control;
use crate::daemon::store::PaintingFile;
use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

/// How a file is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// `1`: to be saved under a name, not shown.
    download: Option<String>,
}

async fn file(
    site: Site,
    role: Option<Role>,
    text: String,
    file: PaintingFile,
    asked: HeaderMap,
    wanted: Wanted,
) -> Result<Response, Problem> {
    let id = id(&text, "painting")?;
    let attached = wanted.download.is_some();
    let (sent, bytes) = site
        .ask(move |site| {
            let painting = visible(site, id, role)?.ok_or_else(|| Problem::missing("painting"))?;
            let bytes = read(site.daemon().painting_file(id, file)?, "picture")?;
            let (kind, name, tag) = share::called(file, &painting);
            Ok((Sent { kind, tag, keep: Keep::Day, name: None, attached }.named(name, attached), bytes))
        })
        .await?;
    Ok(sent.answer(&asked, bytes))
}

/// A painting with its metadata, PNG.
#[utoipa::path(
    get, path = "/api/v1/paintings/{id}/image.png", tag = "paintings", params(("id" = String, Path), Wanted),
    responses((status = 200, content_type = "image/png"), (status = 404, body = Fault))
)]
pub(super) async fn picture(
    State(site): State<Site>,
    Extension(Caller(role)): Extension<Caller>,
    Path(id): Path<String>,
    Query(wanted): Query<Wanted>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    file(site, role, id, PaintingFile::Picture, asked, wanted).await
}

/// A painting, small, JPEG.
#[utoipa::path(
    get, path = "/api/v1/paintings/{id}/thumbnail.jpg", tag = "paintings", params(("id" = String, Path), Wanted),
    responses((status = 200, content_type = "image/jpeg"), (status = 404, body = Fault))
)]
pub(super) async fn thumbnail(
    State(site): State<Site>,
    Extension(Caller(role)): Extension<Caller>,
    Path(id): Path<String>,
    Query(wanted): Query<Wanted>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    file(site, role, id, PaintingFile::Thumbnail, asked, wanted).await
}

/// The photograph a painting was made from, cut to its shape, JPEG.
#[utoipa::path(
    get, path = "/api/v1/paintings/{id}/content.jpg", tag = "paintings", params(("id" = String, Path), Wanted),
    responses((status = 200, content_type = "image/jpeg"), (status = 404, body = Fault))
)]
pub(super) async fn content(
    State(site): State<Site>,
    Extension(Caller(role)): Extension<Caller>,
    Path(id): Path<String>,
    Query(wanted): Query<Wanted>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    file(site, role, id, PaintingFile::Content, asked, wanted).await
}

/// Which control picture, and how.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WantedControl {
    /// Of several: `soft-edge`, `depth`, `canny` or `lineart`; without it the first.
    kind: Option<String>,
    /// `1`: to be saved under a name, not shown.
    download: Option<String>,
}

/// What a ControlNet looked at, where the painting was ordered with `save_control`, PNG.
#[utoipa::path(
    get, path = "/api/v1/paintings/{id}/control.png", tag = "paintings", params(("id" = String, Path), WantedControl),
    responses(
        (status = 200, content_type = "image/png"),
        (status = 404, description = "There is no such painting, or it keeps no such picture", body = Fault),
        (status = 422, description = "There are no such control pictures", body = Fault),
    )
)]
pub(super) async fn control(
    State(site): State<Site>,
    Extension(Caller(role)): Extension<Caller>,
    Path(text): Path<String>,
    Query(wanted): Query<WantedControl>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    let number = id(&text, "painting")?;
    let kind: Option<Control> = wanted.kind.map(|kind| kind.parse().map_err(Problem::wish)).transpose()?;
    let kept =
        site.ask(move |site| Ok(visible(site, number, role)?.ok_or_else(|| Problem::missing("painting"))?.controls));
    let kept = kept.await?;
    let control = kept.iter().find(|control| kind.is_none_or(|kind| kind == **control));
    let control = *control.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, not_kept(kind, &kept)))?;
    let wanted = Wanted { download: wanted.download };
    file(site, role, text, PaintingFile::Control(control), asked, wanted).await
}

fn not_kept(kind: Option<Control>, kept: &[Control]) -> String {
    match (kind, kept) {
        (Some(kind), [_, ..]) => {
            let there: Vec<_> = kept.iter().map(|control| control.name()).collect();
            format!("this painting keeps no {kind} picture, only {}", there.join(" and "))
        }
        _ => "this painting keeps no control picture; one that is ordered with \"save_control\": true does".into(),
    }
}

/// The last look at an unfinished painting, or at a style being learned, JPEG.
#[utoipa::path(
    get, path = "/api/v1/paintings/{id}/preview.jpg", tag = "paintings", params(("id" = String, Path)),
    responses(
        (status = 200, content_type = "image/jpeg"),
        (status = 204, description = "Not yet, or no more: the painting is over."),
        (status = 404, body = Fault)
    )
)]
pub(super) async fn preview(
    State(site): State<Site>,
    Path(text): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    let id = id(&text, "painting")?;
    let Some(preview) = site.daemon().preview(id) else {
        // no fault: a painting may end while a page asks for the look at it that it was told of
        let job = site.ask(move |site| Ok(site.daemon().job(id)?)).await?;
        return job.map(|_| StatusCode::NO_CONTENT.into_response()).ok_or_else(|| Problem::missing("painting"));
    };
    let sent = Sent {
        kind: "image/jpeg",
        tag: format!("{text}-{}", preview.version),
        keep: Keep::Ask,
        name: None,
        attached: false,
    };
    Ok(sent.answer(&asked, preview.jpeg.as_ref().clone()))
}
