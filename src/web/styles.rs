//! Styles: those to choose from, lessons, files, mixes.

use super::Site;
use super::access::Role;
use super::answer::{Fault, Json, Problem, Sent, read};
use super::guard::Caller;
use super::paintings::{id, read_fields};
use super::upload::{Form, picture as decoded};
use crate::daemon::job::{LearningWish, LossPoint, Origin, StyleChange, StyleEntry, StyleSource, Ticket};
use crate::side::content::context;
use crate::stages::range;
use crate::style::Style;
use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::RangeInclusive;
use utoipa::ToSchema;

const VECTORS: &str = ".safetensors";

/// Styles to paint with.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Styles {
    /// The model's own first, then the oldest.
    styles: Vec<StyleEntry>,
}

/// All styles, the model's own first.
#[utoipa::path(get, path = "/api/v1/styles", tag = "styles", responses((status = 200, body = Styles)))]
pub(super) async fn list(State(site): State<Site>) -> Result<Json<Styles>, Problem> {
    Ok(Json(Styles { styles: site.ask(|site| Ok(site.daemon().styles()?)).await? }))
}

fn found(site: &Site, id: &str) -> Result<StyleEntry, Problem> {
    site.daemon().style(id)?.filter(|entry| entry.id == id).ok_or_else(|| Problem::missing("style"))
}

/// A style.
#[utoipa::path(
    get, path = "/api/v1/styles/{id}", tag = "styles", params(("id" = String, Path)),
    responses((status = 200, body = StyleEntry), (status = 404, body = Fault))
)]
pub(super) async fn one(
    State(site): State<Site>,
    Extension(Caller(role)): Extension<Caller>,
    Path(id): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    // the router cannot tell a name from its ending
    if let Some(id) = id.strip_suffix(VECTORS) {
        return vectors(site, role, id.to_owned(), asked).await;
    }
    Ok(Json(site.ask(move |site| found(site, &id)).await?).into_response())
}

/// A style's vectors, safetensors.
#[utoipa::path(
    get, path = "/api/v1/styles/{id}.safetensors", tag = "styles", params(("id" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = Fault))
)]
pub(super) async fn vectors(site: Site, role: Option<Role>, id: String, asked: HeaderMap) -> Result<Response, Problem> {
    if role < Some(Role::Admin) {
        return Err(Problem::forbidden("the token does not allow this"));
    }
    let style = site.ask(move |site| Ok(site.daemon().style_vectors(&found(site, &id)?)?)).await?;
    let bytes = style.to_bytes();
    let sent = Sent::of("application/octet-stream", &bytes).named(format!("{}{VECTORS}", style.token), true);
    Ok(sent.answer(&asked, bytes))
}

/// A picture of a style, JPEG.
#[utoipa::path(
    get, path = "/api/v1/styles/{id}/picture.jpg", tag = "styles", params(("id" = String, Path)),
    responses((status = 200, content_type = "image/jpeg"), (status = 404, body = Fault))
)]
pub(super) async fn picture(
    State(site): State<Site>,
    Path(id): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    let bytes = site
        .ask(move |site| {
            found(site, &id)?;
            read(site.daemon().style_picture(&id)?, "picture")
        })
        .await?;
    Ok(Sent::of("image/jpeg", &bytes).answer(&asked, bytes))
}

/// A style to be learned, or one that is brought.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what `learn` reads")]
pub(super) struct StyleForm {
    /// Pictures to learn from.
    #[schema(value_type = Vec<String>, format = Binary)]
    image: Vec<Vec<u8>>,
    /// What each picture shows besides its style, with `{}` where the style goes; one for all, or one each.
    context: Vec<String>,
    /// A style file, instead of pictures.
    #[schema(value_type = Option<String>, format = Binary)]
    style: Option<Vec<u8>>,
    /// Photographs to paint with the unfinished style.
    #[schema(value_type = Option<Vec<String>>, format = Binary)]
    validate_image: Option<Vec<Vec<u8>>>,
    #[schema(inline)]
    #[serde(flatten)]
    wish: LearningWish,
}

/// Learns a style from pictures, or takes a style file in.
#[utoipa::path(
    post, path = "/api/v1/styles", tag = "styles",
    request_body(content = StyleForm, content_type = "multipart/form-data"),
    responses(
        (status = 201, description = "The style file is taken in", body = StyleEntry),
        (status = 202, description = "The lesson waits for its turn", body = Ticket),
        (status = 400, body = Fault), (status = 413, body = Fault), (status = 415, body = Fault),
        (status = 422, description = "It cannot be learned", body = Fault),
        (status = 503, description = "The queue is full", body = Fault),
    )
)]
pub(super) async fn learn(State(site): State<Site>, request: Request) -> Result<Response, Problem> {
    let form = Form::read(request).await?;
    site.ask(move |site| match (form.files("style").next(), form.files("image").next()) {
        (Some(_), Some(_)) => Err(Problem::bad("give either pictures to learn from or a style file, not both")),
        (None, None) => Err(Problem::bad("there is nothing to learn from: give image or style")),
        (Some(bytes), None) => Ok((StatusCode::CREATED, Json(brought(site, &form, bytes)?)).into_response()),
        (None, Some(_)) => Ok((StatusCode::ACCEPTED, Json(lesson(site, &form)?)).into_response()),
    })
    .await
}

fn brought(site: &Site, form: &Form, bytes: &[u8]) -> Result<StyleEntry, Problem> {
    let mut style = Style::from_bytes(bytes).map_err(|what| Problem::wish(format!("the style file {what}")))?;
    if let Some(name) = form.fields.get("name").and_then(Value::as_str) {
        style.token = name.trim().to_owned();
    }
    Ok(site.daemon().add_style(&style, StyleSource::File)?)
}

fn lesson(site: &Site, form: &Form) -> Result<Ticket, Problem> {
    let config = site.daemon().config();
    let mut fields = form.fields.clone();
    let origin = fields.remove("origin").map(serde_json::from_value::<Origin>).transpose();
    let origin = origin.map_err(|why| Problem::wish(why.to_string()))?.unwrap_or_default();
    let wish: LearningWish = read_fields(fields)?;
    if form.files("image").count() > config.learning.most_pictures {
        let most = config.learning.most_pictures;
        return Err(Problem::wish(format!("a lesson has at most {most} pictures")));
    }
    let frames = |field| form.files(field).map(|bytes| decoded(bytes, config.security.megapixels)).collect();
    let (pictures, photographs): (Result<_, Problem>, Result<_, Problem>) = (frames("image"), frames("validate_image"));
    Ok(site.daemon().order_validated_lesson(wish, origin, pictures?, photographs?)?)
}

/// Changes a style's name, licence, or whether it stays or is shown.
#[utoipa::path(
    patch, path = "/api/v1/styles/{id}", tag = "styles", params(("id" = String, Path)), request_body = StyleChange,
    responses(
        (status = 200, body = StyleEntry), (status = 404, body = Fault),
        (status = 409, description = "Another style has this name", body = Fault),
        (status = 422, body = Fault),
    )
)]
pub(super) async fn change(
    State(site): State<Site>,
    Path(id): Path<String>,
    Json(change): Json<StyleChange>,
) -> Result<Json<StyleEntry>, Problem> {
    let changed = site.ask(move |site| {
        found(site, &id)?;
        if let Some(name) = &change.name
            && let Some(other) = site.daemon().style(name.trim())?
            && other.id != id
        {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                format!("another style is called {:?} already", other.name),
            ));
        }
        site.daemon().change_style(&id, &change)?.ok_or_else(|| Problem::missing("style"))
    });
    Ok(Json(changed.await?))
}

/// Deletes a style. The model's own can only be hidden.
#[utoipa::path(
    delete, path = "/api/v1/styles/{id}", tag = "styles", params(("id" = String, Path)),
    responses(
        (status = 204, description = "It is gone"), (status = 404, body = Fault),
        (status = 409, description = "It comes with the model", body = Fault),
    )
)]
pub(super) async fn delete(State(site): State<Site>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    site.ask(move |site| {
        if found(site, &id)?.source == StyleSource::Shipped {
            return Err(Problem::new(StatusCode::CONFLICT, "this style comes with the model; hide it instead"));
        }
        match site.daemon().delete_style(&id)? {
            true => Ok(StatusCode::NO_CONTENT),
            false => Err(Problem::missing("style")),
        }
    })
    .await
}

/// A style to be put together from stages of others.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Mix {
    /// What it is to be called.
    name: String,
    /// Which stages come from where, such as `5..3=hiroshige` or `2=hiroshige*0.5+gogh*0.5`; styles by id or name.
    rules: Vec<String>,
}

/// Mixes a style from stages of others.
#[utoipa::path(
    post, path = "/api/v1/styles/mix", tag = "styles", request_body = Mix,
    responses((status = 201, body = StyleEntry), (status = 422, description = "It cannot be mixed", body = Fault))
)]
pub(super) async fn mix(State(site): State<Site>, Json(mix): Json<Mix>) -> Result<Response, Problem> {
    let entry = site.ask(move |site| mixed(site, &mix.name, &mix.rules)).await?;
    Ok((StatusCode::CREATED, Json(entry)).into_response())
}

/// Mixes a style from this one and stages of others: what no rule names is this style's.
#[utoipa::path(
    post, path = "/api/v1/styles/{id}/mix", tag = "styles", params(("id" = String, Path)), request_body = Mix,
    responses(
        (status = 201, body = StyleEntry), (status = 404, body = Fault),
        (status = 422, description = "It cannot be mixed", body = Fault),
    )
)]
pub(super) async fn mix_with(
    State(site): State<Site>,
    Path(id): Path<String>,
    Json(mix): Json<Mix>,
) -> Result<Response, Problem> {
    let entry = site.ask(move |site| {
        let own = found(site, &id)?;
        let named: Vec<_> = mix.rules.iter().filter_map(|rule| stages_of(rule)).collect();
        let left = (0..own.stages).filter(|stage| !named.iter().any(|stages| stages.contains(stage)));
        let rules: Vec<String> = left.map(|stage| format!("{stage}=\"{id}\"")).chain(mix.rules.clone()).collect();
        mixed(site, &mix.name, &rules)
    });
    Ok((StatusCode::CREATED, Json(entry.await?)).into_response())
}

/// The stages that a rule names; none for what is no rule, which the recipe will complain about.
fn stages_of(rule: &str) -> Option<RangeInclusive<usize>> {
    range(rule.split_once('=')?.0)
}

fn mixed(site: &Site, name: &str, rules: &[String]) -> Result<StyleEntry, Problem> {
    let style = site.daemon().mix(name, rules)?;
    Ok(site.daemon().add_style(&style, StyleSource::Mix)?)
}

/// The loss curve of a lesson, so far or as it was.
#[utoipa::path(
    get, path = "/api/v1/styles/{id}/losses", tag = "styles", params(("id" = String, Path)),
    responses((status = 200, body = Vec<LossPoint>), (status = 404, body = Fault))
)]
pub(super) async fn losses(
    State(site): State<Site>,
    Path(text): Path<String>,
) -> Result<Json<Vec<LossPoint>>, Problem> {
    points(&site, &text).await.map(Json)
}

/// The same as CSV.
#[utoipa::path(
    get, path = "/api/v1/styles/{id}/losses.csv", tag = "styles", params(("id" = String, Path)),
    responses((status = 200, content_type = "text/csv"), (status = 404, body = Fault))
)]
pub(super) async fn losses_csv(
    State(site): State<Site>,
    Path(text): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    let mut writer = csv::Writer::from_writer(vec![]);
    for point in points(&site, &text).await? {
        writer.serialize(point).map_err(|why| Problem::wish(why.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|why| Problem::wish(why.to_string()))?;
    Ok(Sent::of("text/csv; charset=utf-8", &bytes).named(format!("{text}-losses.csv"), true).answer(&asked, bytes))
}

/// The same as a picture, PNG.
#[utoipa::path(
    get, path = "/api/v1/styles/{id}/losses.png", tag = "styles", params(("id" = String, Path)),
    responses((status = 200, content_type = "image/png"), (status = 404, body = Fault))
)]
pub(super) async fn losses_png(
    State(site): State<Site>,
    Path(text): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    let id = id(&text, "lesson")?;
    let bytes = site.ask(move |site| site.daemon().loss_curve(id)?.ok_or_else(|| Problem::missing("lesson"))).await?;
    Ok(Sent::of("image/png", &bytes).named(format!("{text}-losses.png"), false).answer(&asked, bytes))
}

/// The latest pictures that a lesson was validated with, PNG.
#[utoipa::path(
    get, path = "/api/v1/styles/{id}/validation.png", tag = "styles", params(("id" = String, Path)),
    responses((status = 200, content_type = "image/png"), (status = 404, body = Fault))
)]
pub(super) async fn validation(
    State(site): State<Site>,
    Path(text): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Problem> {
    let id = id(&text, "lesson")?;
    let bytes = site.ask(move |site| read(site.daemon().style_validation(id), "picture")).await?;
    Ok(Sent::of("image/png", &bytes).answer(&asked, bytes))
}

async fn points(site: &Site, text: &str) -> Result<Vec<LossPoint>, Problem> {
    let id = id(text, "lesson")?;
    site.ask(move |site| Ok(site.daemon().losses(id)?)).await?.ok_or_else(|| Problem::missing("lesson"))
}

/// What a picture shows.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Caption {
    /// A context for a lesson, without words for style, with `{}` where the style goes.
    caption: String,
    /// The captioner's own words.
    raw: String,
}

/// Says what a picture shows, one picture after the other; not with a model that has no captioner.
#[utoipa::path(
    post, path = "/api/v1/captions", tag = "styles",
    request_body(content = StyleForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = Caption),
        (status = 400, body = Fault), (status = 413, body = Fault), (status = 415, body = Fault),
        (status = 422, description = "It is no picture", body = Fault),
        (status = 501, description = "The model has no captioner", body = Fault),
        (status = 503, description = "It looks at another picture", body = Fault),
    )
)]
pub(super) async fn caption(State(site): State<Site>, request: Request) -> Result<Json<Caption>, Problem> {
    if !site.daemon().has_captioner() {
        let error = "this model has no captioner; describe the picture yourself, as in \"a painting of a garden\"";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, error));
    }
    let form = Form::read(request).await?;
    site.ask(move |site| {
        let bytes = form.files("image").next().ok_or_else(|| Problem::bad("there is no picture: give image"))?;
        let frame = decoded(bytes, site.daemon().config().security.megapixels)?;
        let busy = || Problem::later(StatusCode::SERVICE_UNAVAILABLE, "the captioner looks at another picture", 2);
        let raw = site.daemon().caption(&frame)?.ok_or_else(busy)?;
        Ok(Json(Caption { caption: context(&raw), raw }))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::stages_of;

    #[test]
    fn rules_name_stages() {
        assert_eq!(stages_of("5..3=a"), Some(3..=5));
        assert_eq!(stages_of("2=a*0.5+b"), Some(2..=2));
        assert_eq!(stages_of("a"), None);
        assert_eq!(stages_of("x=a"), None);
    }
}
