//! Paintings and the jobs they come from.

use super::Site;
use super::access::Role;
use super::answer::{Fault, Json, Problem, Query, Sent};
use super::guard::Caller;
use super::share;
use super::upload::{Form, picture as decoded};
use crate::daemon::job::{Id, Job, Kind, Origin, Painting, PaintingWish, State as JobState, Ticket};
use crate::daemon::store::Page;
use crate::painter::{GivenControl, Pictures, Request as Wish};
use axum::Extension;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

/// Paintings on a page of the gallery, unless the client says how many.
const PAGE: usize = 24;
/// The most on a page.
const LARGEST_PAGE: usize = 100;
/// Jobs that are over in the list of jobs.
const OVER: usize = 50;

/// An id as clients write it; nothing else names a painting or a job.
pub(super) fn id(text: &str, what: &str) -> Result<Id, Problem> {
    text.parse().map_err(|_| Problem::missing(what))
}

/// A painting to be ordered; what is left out is as the configuration has it.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what `wish_of` reads")]
pub(super) struct PaintingOrder {
    /// Paint what the machine's own camera sees now.
    #[schema(default = false)]
    camera: bool,
    /// Rules of a mix made for this painting alone, such as `5..3=hiroshige`.
    mix: Vec<String>,
    /// Who asks.
    origin: Origin,
    /// Whether it goes into the gallery.
    #[schema(default = true)]
    kept: bool,
    /// Whether what the ControlNets look at is kept, for `control.png`.
    #[schema(default = false)]
    save_control: bool,
    #[schema(inline)]
    #[serde(flatten)]
    request: Wish,
}

/// A painting to be ordered, as a form.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what `wish_of` reads")]
pub(super) struct PaintingForm {
    /// The photograph; without one the prompt alone is painted.
    #[schema(value_type = Option<String>, format = Binary)]
    frame: Option<Vec<u8>>,
    /// A control picture instead of the one made of the photograph, for the model's first ControlNet; for another one the
    /// field is called `control_image_depth`, `control_image_canny` and so on.
    #[schema(value_type = Option<String>, format = Binary)]
    control_image: Option<Vec<u8>>,
    /// The fields of a painting's order as JSON; they may also be fields of the form.
    #[schema(value_type = Option<String>)]
    wish: Option<String>,
}

/// Whether the machine's camera is meant, and the wish.
fn wish_of(mut fields: Map<String, Value>, role: Option<Role>) -> Result<(bool, PaintingWish), Problem> {
    fn take<T: serde::de::DeserializeOwned>(fields: &mut Map<String, Value>, key: &str) -> Result<Option<T>, Problem> {
        let value = fields.remove(key).filter(|value| !value.is_null());
        value.map(serde_json::from_value).transpose().map_err(|why| Problem::wish(format!("{key}: {why}")))
    }
    let camera = take(&mut fields, "camera")?.unwrap_or(false);
    let mix = take(&mut fields, "mix")?.unwrap_or_default();
    let kept = take(&mut fields, "kept")?.unwrap_or(true);
    let save_control = take(&mut fields, "save_control")?.unwrap_or(false);
    let origin = take(&mut fields, "origin")?.unwrap_or_default();
    let origin = if role == Some(Role::Kiosk) { Origin::Kiosk } else { origin };
    let request = read_fields(fields)?;
    Ok((camera, PaintingWish { request, mix, origin, kept, save_control }))
}

/// What the fields of an object come to; a fault names its field.
pub(super) fn read_fields<T: serde::de::DeserializeOwned>(fields: Map<String, Value>) -> Result<T, Problem> {
    serde_json::from_value(Value::Object(fields.clone())).map_err(|why| {
        let alone =
            |(key, value): (String, Value)| Some((serde_json::from_value::<T>(json!({ &*key: value })).err()?, key));
        match fields.into_iter().find_map(alone) {
            Some((why, key)) => Problem::wish(format!("{key}: {why}")),
            None => Problem::wish(why.to_string()),
        }
    })
}

/// Orders a painting of a photograph that is sent, of what the camera sees, or of the prompt alone.
#[utoipa::path(
    post, path = "/api/v1/paintings", tag = "paintings",
    request_body(content(
        (PaintingOrder = "application/json"),
        (PaintingForm = "multipart/form-data")
    )),
    responses(
        (status = 202, description = "It waits for its turn", body = Ticket),
        (status = 400, description = "The body cannot be read", body = Fault),
        (status = 413, description = "The picture is too large", body = Fault),
        (status = 422, description = "The wish cannot be fulfilled", body = Fault),
        (status = 503, description = "The queue is full, or the camera gives no picture", body = Fault),
    )
)]
pub(super) async fn order(
    State(site): State<Site>,
    Extension(Caller(role)): Extension<Caller>,
    request: Request,
) -> Result<(StatusCode, Json<Ticket>), Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let form = if kind.starts_with("multipart/form-data") {
        Form::read(request).await?
    } else {
        let Json(fields) = Json::from_request(request, &()).await?;
        Form { fields, files: vec![] }
    };
    let ticket = site.ask(move |site| {
        let (camera, wish) = wish_of(form.fields.clone(), role)?;
        let mut frames = form.files("frame");
        let content = match (frames.next(), camera) {
            (Some(_), true) => return Err(Problem::bad("give either a frame or \"camera\": true, not both")),
            (Some(bytes), false) => Some(decoded(bytes, site.daemon().config().security.megapixels)?),
            (None, true) => Some(site.daemon().take()?),
            (None, false) => None,
        };
        if frames.next().is_some() {
            return Err(Problem::bad("one painting is of one frame; order another for each"));
        }
        let mut controls = vec![];
        for (control, bytes) in form.controls()? {
            let image = decoded(bytes, site.daemon().config().security.megapixels)?;
            controls.push(GivenControl { control, image });
        }
        Ok(site.daemon().order_painting(wish, Pictures { content, controls })?)
    });
    Ok((StatusCode::ACCEPTED, Json(ticket.await?)))
}

/// Which paintings.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// What the page before gave as `next`.
    cursor: Option<String>,
    /// At most so many, 1 to 100.
    limit: Option<usize>,
    /// Only those with the style of this name.
    style: Option<String>,
    /// Only those whose prompt holds this.
    text: Option<String>,
}

/// A page of the gallery.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Paintings {
    /// The newest first.
    paintings: Vec<Painting>,
    /// The cursor of the next page, if there is one.
    next: Option<Id>,
}

/// The gallery, the newest first.
#[utoipa::path(
    get, path = "/api/v1/paintings", tag = "paintings", params(Filter),
    responses((status = 200, body = Paintings), (status = 400, body = Fault))
)]
pub(super) async fn list(State(site): State<Site>, Query(filter): Query<Filter>) -> Result<Json<Paintings>, Problem> {
    let limit = filter.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let cursor = |text: &String| text.parse().map_err(|_| Problem::bad("the cursor is none that a page gave"));
    let before = filter.cursor.as_ref().map(cursor).transpose()?;
    let page = Page { before, limit: limit + 1, style: filter.style, text: filter.text };
    let mut paintings = site.ask(move |site| Ok(site.daemon().paintings(&page)?)).await?;
    let more = paintings.len() > limit;
    paintings.truncate(limit);
    let next = if more { paintings.last().map(|painting| painting.id) } else { None };
    Ok(Json(Paintings { paintings, next }))
}

/// A painting as it stands: the job that makes or made it, and what came of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PaintingState {
    #[schema(inline)]
    #[serde(flatten)]
    job: Job,
    /// The painting, once it is finished.
    painting: Option<Painting>,
    /// The link that shows it to a phone, where other devices reach the daemon.
    share_url: Option<String>,
}

/// A painting, or how far it is.
#[utoipa::path(
    get, path = "/api/v1/paintings/{id}", tag = "paintings", params(("id" = String, Path)),
    responses((status = 200, body = PaintingState), (status = 404, body = Fault))
)]
pub(super) async fn one(
    State(site): State<Site>,
    Extension(Caller(role)): Extension<Caller>,
    Path(text): Path<String>,
) -> Result<Json<PaintingState>, Problem> {
    let id = id(&text, "painting")?;
    let of_kiosk = role >= Some(Role::Kiosk);
    let state = site.ask(move |site| {
        // the gallery shows paintings, not what visitors are at; asked for before the painting, for a job that ends just
        // now has one, and whoever reads that it is finished relies on it
        let job = if of_kiosk { site.daemon().job(id)? } else { None };
        let painting = visible(site, id, role)?;
        let job = job.filter(|job| job.kind == Kind::Painting && painting.is_none());
        let job = job.or_else(|| painting.as_ref().map(job_of)).ok_or_else(|| Problem::missing("painting"))?;
        let share_url = site.access().share_url(id).filter(|_| of_kiosk && painting.is_some());
        Ok(PaintingState { job, painting, share_url })
    });
    Ok(Json(state.await?))
}

/// The job that a painting came of, which may be forgotten.
fn job_of(painting: &Painting) -> Job {
    Job {
        id: painting.id,
        kind: Kind::Painting,
        state: JobState::Finished,
        origin: painting.origin,
        position: None,
        created: painting.created,
        started: None,
        ended: Some(painting.created),
        attempts: 1,
        step: 0,
        steps: 0,
        stage: None,
        loss: None,
        preview: 0,
        seconds_left: None,
        error: None,
    }
}

/// A painting, if this role may see it.
pub(super) fn visible(site: &Site, id: Id, role: Option<Role>) -> Result<Option<Painting>, Problem> {
    let painting = site.daemon().painting(id)?;
    Ok(painting.filter(|painting| painting.kept || role >= Some(Role::Kiosk)))
}

/// Sends a painting to the printer.
#[utoipa::path(
    post, path = "/api/v1/paintings/{id}/print", tag = "paintings", params(("id" = String, Path)),
    responses(
        (status = 202, description = "It is being printed"),
        (status = 404, description = "There is no such painting, or no printer", body = Fault),
        (status = 409, description = "It was printed often enough", body = Fault),
    )
)]
pub(super) async fn print(State(site): State<Site>, Path(text): Path<String>) -> Result<StatusCode, Problem> {
    let id = id(&text, "painting")?;
    site.ask(move |site| {
        site.daemon().print(id).map_err(|why| match Problem::from(why) {
            enough if enough.status == StatusCode::UNPROCESSABLE_ENTITY => {
                Problem::new(StatusCode::CONFLICT, enough.error)
            }
            other => other,
        })
    })
    .await?;
    Ok(StatusCode::ACCEPTED)
}

/// The code that opens a painting on a phone, SVG.
#[utoipa::path(
    get, path = "/api/v1/paintings/{id}/qr.svg", tag = "paintings", params(("id" = String, Path)),
    responses(
        (status = 200, content_type = "image/svg+xml"),
        (status = 404, description = "There is no such painting, or no other device reaches the daemon", body = Fault),
    )
)]
pub(super) async fn qr(
    State(site): State<Site>,
    Path(text): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    let id = id(&text, "painting")?;
    let there = site.ask(move |site| Ok(site.daemon().painting(id)?.is_some())).await?;
    let url = site.access().share_url(id).filter(|_| there);
    let url = url.ok_or_else(|| Problem::missing("picture that other devices reach; set kiosk.public_url"))?;
    let svg = share::qr_svg(&url)?;
    Ok(Sent::of("image/svg+xml", svg.as_bytes()).answer(&asked, svg))
}

/// Deletes a painting.
#[utoipa::path(
    delete, path = "/api/v1/paintings/{id}", tag = "paintings", params(("id" = String, Path)),
    responses((status = 204, description = "It is gone"), (status = 404, body = Fault))
)]
pub(super) async fn delete(State(site): State<Site>, Path(text): Path<String>) -> Result<StatusCode, Problem> {
    let id = id(&text, "painting")?;
    let gone = site.ask(move |site| Ok(site.daemon().delete_painting(id)?)).await?;
    if gone { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::missing("painting")) }
}

/// The queue, and the jobs that were over last.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Jobs {
    /// Those that wait or run, in order, then those that are over, the newest first.
    jobs: Vec<Job>,
}

/// The queue, and the jobs that were over last.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", responses((status = 200, body = Jobs)))]
pub(super) async fn jobs(State(site): State<Site>) -> Result<Json<Jobs>, Problem> {
    Ok(Json(Jobs { jobs: site.ask(|site| Ok(site.daemon().jobs(OVER)?)).await? }))
}

/// A job.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Job), (status = 404, body = Fault))
)]
pub(super) async fn job(State(site): State<Site>, Path(text): Path<String>) -> Result<Json<Job>, Problem> {
    let id = id(&text, "job")?;
    site.ask(move |site| Ok(site.daemon().job(id)?)).await?.map(Json).ok_or_else(|| Problem::missing("job"))
}

/// Takes a job back, whether it waits or runs.
#[utoipa::path(
    delete, path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path)),
    responses(
        (status = 204, description = "It is cancelled"),
        (status = 403, description = "It is not the kiosk's", body = Fault),
        (status = 404, body = Fault),
        (status = 409, description = "It is over already", body = Fault),
    )
)]
pub(super) async fn cancel(
    State(site): State<Site>,
    Extension(Caller(role)): Extension<Caller>,
    Path(text): Path<String>,
) -> Result<Response, Problem> {
    let id = id(&text, "job")?;
    site.ask(move |site| {
        let job = site.daemon().job(id)?.ok_or_else(|| Problem::missing("job"))?;
        let own = matches!(job.origin, Origin::Kiosk | Origin::Sdapi | Origin::Display);
        if role < Some(Role::Admin) && !own {
            return Err(Problem::forbidden("only jobs of the kiosk can be taken back with this token"));
        }
        match site.daemon().cancel(id)? {
            true => Ok(StatusCode::NO_CONTENT.into_response()),
            false => Err(Problem::new(StatusCode::CONFLICT, "the job is over already")),
        }
    })
    .await
}
