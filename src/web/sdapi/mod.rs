//! What AUTOMATIC1111's web UI offers at `/sdapi/v1/`, so that clients made for it paint here. Shapes are those of its
//! `modules/api/models.py`; what it has and this program has not is ignored where it does not change the picture, refused
//! where it would.

mod infotext;
mod paint;
mod prompt;
mod samplers;

use super::Site;
use super::answer::{Fault, Json, Problem, Query};
use crate::daemon::job::{Id, Job, Kind, Origin, State as JobState};
use axum::extract::State;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Site> {
    OpenApiRouter::new()
        .routes(routes!(paint::txt2img))
        .routes(routes!(paint::img2img))
        .routes(routes!(progress))
        .routes(routes!(interrupt))
        .routes(routes!(options, set_options))
        .routes(routes!(models))
        .routes(routes!(list_samplers))
        .routes(routes!(embeddings))
        .routes(routes!(png_info))
}

/// The order that clients of this interface wait for, running or first in the queue.
async fn current(site: &Site) -> Result<Option<Job>, Problem> {
    let jobs = site.ask(|site| Ok(site.daemon().jobs(0)?)).await?;
    let mut own = jobs.into_iter().filter(|job| job.kind == Kind::Painting && job.origin == Origin::Sdapi);
    let first = own.next();
    Ok(own.find(|job| job.state == JobState::Running).or(first))
}

/// How progress is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Look {
    /// Leave the picture out.
    #[serde(default)]
    skip_current_image: Option<String>,
}

/// How far the current painting is.
#[derive(Debug, Serialize, ToSchema)]
struct Progress {
    /// 0 to 1; 0 while nothing is being painted.
    progress: f64,
    /// Seconds it will still take.
    eta_relative: f64,
    #[schema(value_type = Object)]
    state: Value,
    /// The last preview, Base64 of a JPEG.
    current_image: Option<String>,
    textinfo: Option<String>,
}

/// How far the current painting is, with its last preview.
#[utoipa::path(get, path = "/sdapi/v1/progress", tag = "sdapi", params(Look), responses((status = 200, body = Progress)))]
async fn progress(
    axum::extract::State(site): axum::extract::State<Site>,
    Query(look): Query<Look>,
) -> Result<Json<Progress>, Problem> {
    let job = current(&site).await?;
    let skip = look.skip_current_image.is_some_and(|skip| skip.eq_ignore_ascii_case("true") || skip == "1");
    let preview = job.as_ref().filter(|_| !skip).and_then(|job| site.daemon().preview(job.id));
    let (step, steps) = job.as_ref().map_or((0, 0), |job| (job.step, job.steps));
    let state = json!({
        "skipped": false,
        "interrupted": false,
        "stopping_generation": false,
        "job": job.as_ref().map_or(String::new(), |job| job.id.to_string()),
        "job_count": i32::from(job.is_some()),
        "job_timestamp": job.as_ref().map_or(String::new(), |job| job.created.to_string()),
        "job_no": 0,
        "sampling_step": step,
        "sampling_steps": steps,
    });
    Ok(Json(Progress {
        progress: step as f64 / steps.max(1) as f64,
        eta_relative: job.as_ref().and_then(|job| job.seconds_left).unwrap_or(0.0),
        state,
        current_image: preview.map(|preview| BASE64_STANDARD.encode(preview.jpeg.as_ref())),
        textinfo: None,
    }))
}

/// Takes back what clients of this interface wait for.
#[utoipa::path(post, path = "/sdapi/v1/interrupt", tag = "sdapi", responses((status = 200, body = Object)))]
async fn interrupt(State(site): State<Site>) -> Result<Json<Value>, Problem> {
    site.ask(|site| {
        let daemon = site.daemon();
        let own = daemon.jobs(0)?.into_iter().filter(|job| job.origin == Origin::Sdapi).map(|job| job.id);
        own.collect::<Vec<Id>>().into_iter().try_for_each(|id| daemon.cancel(id).map(drop))?;
        Ok(())
    })
    .await?;
    Ok(Json(json!({})))
}

/// The settings there are.
#[utoipa::path(get, path = "/sdapi/v1/options", tag = "sdapi", responses((status = 200, body = Object)))]
async fn options(State(site): State<Site>) -> Json<Value> {
    Json(json!({
        "sd_model_checkpoint": title(&site),
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "enable_pnginfo": true,
        "show_progress_every_n_steps": site.daemon().config().painting.preview_every,
        "live_previews_enable": site.daemon().config().painting.preview_every > 0,
    }))
}

/// Takes settings; the model is the one there is, and the others have no meaning here.
#[utoipa::path(
    post, path = "/sdapi/v1/options", tag = "sdapi", request_body = Object,
    responses((status = 200, description = "null, as the original answers"), (status = 422, body = Fault))
)]
async fn set_options(
    State(site): State<Site>,
    Json(options): Json<Map<String, Value>>,
) -> Result<Json<Value>, Problem> {
    check_model(&site, &options)?;
    Ok(Json(Value::Null))
}

/// Another model than the one there is would be another picture.
fn check_model(site: &Site, options: &Map<String, Value>) -> Result<(), Problem> {
    let own = title(site);
    match options.get("sd_model_checkpoint").and_then(Value::as_str) {
        Some(other) if !other.is_empty() && other != own => {
            Err(Problem::wish(format!("there is no model {other:?} here; the only one is {own:?}")))
        }
        _ => Ok(()),
    }
}

fn title(site: &Site) -> String {
    site.daemon().bundle().name()
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
struct Model {
    title: String,
    model_name: String,
    hash: Option<String>,
    sha256: Option<String>,
    filename: String,
    config: Option<String>,
}

/// The one model there is.
#[utoipa::path(get, path = "/sdapi/v1/sd-models", tag = "sdapi", responses((status = 200, body = Vec<Model>)))]
async fn models(State(site): State<Site>) -> Json<Vec<Model>> {
    let name = title(&site);
    Json(vec![Model {
        title: name.clone(),
        filename: name.clone(),
        model_name: name,
        hash: None,
        sha256: None,
        config: None,
    }])
}

/// A solver.
#[derive(Debug, Serialize, ToSchema)]
struct SamplerItem {
    name: &'static str,
    aliases: Vec<&'static str>,
    options: BTreeMap<String, String>,
}

/// The solvers by the names that clients know.
#[utoipa::path(get, path = "/sdapi/v1/samplers", tag = "sdapi", responses((status = 200, body = Vec<SamplerItem>)))]
async fn list_samplers() -> Json<Vec<SamplerItem>> {
    let item = |(name, sampler): (&'static str, crate::sampler::Sampler)| SamplerItem {
        name,
        aliases: vec![sampler.name()],
        options: BTreeMap::new(),
    };
    Json(samplers::NAMES.into_iter().map(item).collect())
}

/// A style, as an embedding.
#[derive(Debug, Serialize, ToSchema)]
struct Embedding {
    step: Option<u64>,
    sd_checkpoint: Option<String>,
    sd_checkpoint_name: Option<String>,
    /// Width of the text encoder's words.
    shape: usize,
    /// Vectors that a prompt uses at once: one, a different one in each stage.
    vectors: usize,
}

/// Styles, as embeddings.
#[derive(Debug, Serialize, ToSchema)]
struct Embeddings {
    loaded: BTreeMap<String, Embedding>,
    skipped: BTreeMap<String, Embedding>,
}

/// The styles: a style's name in a prompt uses it.
#[utoipa::path(get, path = "/sdapi/v1/embeddings", tag = "sdapi", responses((status = 200, body = Embeddings)))]
async fn embeddings(State(site): State<Site>) -> Result<Json<Embeddings>, Problem> {
    let (shape, styles) =
        (site.daemon().bundle().text.hidden_size, site.ask(|site| Ok(site.daemon().styles()?)).await?);
    let one = || Embedding { step: None, sd_checkpoint: None, sd_checkpoint_name: None, shape, vectors: 1 };
    let loaded = styles.into_iter().filter(|style| style.shown).map(|style| (style.name, one())).collect();
    Ok(Json(Embeddings { loaded, skipped: BTreeMap::new() }))
}

/// A picture whose metadata are asked for.
#[derive(Debug, Deserialize, ToSchema)]
struct PngInfoOrder {
    /// Base64 of a PNG, with or without the start of a data URL.
    image: String,
}

/// A picture's metadata.
#[derive(Debug, Serialize, ToSchema)]
struct PngInfo {
    /// The `parameters` text.
    info: String,
    /// Every text in the file.
    items: BTreeMap<String, String>,
    /// What `info` says, field by field.
    #[schema(value_type = Object)]
    parameters: Map<String, Value>,
}

/// A picture's metadata.
#[utoipa::path(
    post, path = "/sdapi/v1/png-info", tag = "sdapi", request_body = PngInfoOrder,
    responses((status = 200, body = PngInfo), (status = 422, description = "It is no PNG", body = Fault))
)]
async fn png_info(State(site): State<Site>, Json(order): Json<PngInfoOrder>) -> Result<Json<PngInfo>, Problem> {
    let megapixels = site.daemon().config().security.megapixels;
    let items = site.ask(move |_| infotext::texts(&base64_of(&order.image)?, megapixels)).await?;
    let info = items.get("parameters").cloned().unwrap_or_default();
    Ok(Json(PngInfo { parameters: infotext::fields(&info), info, items }))
}

/// The bytes of a picture as clients of this interface write it.
fn base64_of(text: &str) -> Result<Vec<u8>, Problem> {
    let bare = text.strip_prefix("data:").and_then(|url| url.split_once(";base64,")).map_or(text, |(_, bare)| bare);
    BASE64_STANDARD.decode(bare.trim()).map_err(|why| Problem::wish(format!("the picture is no Base64: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_bare_or_as_data_urls() {
        assert_eq!(base64_of("aGk=").unwrap(), b"hi");
        assert_eq!(base64_of("data:image/png;base64,aGk=").unwrap(), b"hi");
        assert!(base64_of("data:image/png,hi").is_err() && base64_of("%").is_err());
    }
}
