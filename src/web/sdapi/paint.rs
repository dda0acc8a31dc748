//! `txt2img` and `img2img`: paintings whose client waits for them.

use super::super::Site;
use super::super::answer::{Fault, Json, Problem, read};
use super::super::upload::picture as decoded;
use super::{base64_of, check_model, prompt, samplers, title};
use crate::bundle::Bundle;
use crate::bundle::control::Control;
use crate::daemon::job::{Event, Id, Origin, Painting, PaintingWish, State as JobState};
use crate::daemon::random_seed;
use crate::daemon::store::PaintingFile;
use crate::painter::{ControlScale, GivenControl, Pictures, Request as Wish, Size};
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::error::RecvError;
use utoipa::ToSchema;

/// The most pictures of one request.
const MOST: usize = 16;
/// The interface's own preset, where a client says nothing.
const IMG2IMG_STRENGTH: f64 = 0.75;

/// What is understood of the interface's many fields; the others do not change a picture here.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
struct Order {
    prompt: Option<String>,
    negative_prompt: Option<String>,
    /// -1 for a random one.
    seed: Option<i64>,
    sampler_name: Option<String>,
    /// The older name of `sampler_name`.
    sampler_index: Option<Value>,
    steps: Option<usize>,
    cfg_scale: Option<f64>,
    width: Option<usize>,
    height: Option<usize>,
    batch_size: Option<usize>,
    n_iter: Option<usize>,
    /// Names of styles to use besides those in the prompt.
    styles: Option<Vec<String>>,
    denoising_strength: Option<f64>,
    /// Base64 of one picture.
    init_images: Option<Vec<String>>,
    mask: Option<String>,
    enable_hr: Option<bool>,
    send_images: Option<bool>,
    /// Whether the paintings go into the gallery.
    save_images: Option<bool>,
    /// Of which `controlnet` with `args` is understood, several units of it: `weight`, what `model` or `module` says that
    /// the unit looks at, and `image`, which with the module `none` is the control picture itself.
    #[schema(value_type = Object)]
    alwayson_scripts: Option<Map<String, Value>>,
    /// Of which `sd_model_checkpoint` is looked at.
    #[schema(value_type = Object)]
    override_settings: Option<Map<String, Value>>,
}

/// Paintings.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Painted {
    /// Base64 of PNGs.
    images: Vec<String>,
    /// What was asked for.
    #[schema(value_type = Object)]
    parameters: Value,
    /// What was done, as JSON in a text.
    info: String,
}

/// Paints a prompt, and answers with the paintings.
#[utoipa::path(
    post, path = "/sdapi/v1/txt2img", tag = "sdapi", request_body = Order,
    responses(
        (status = 200, body = Painted),
        (status = 404, description = "There is no such sampler", body = Fault),
        (status = 422, body = Fault), (status = 503, description = "The queue is full", body = Fault),
    )
)]
pub(super) async fn txt2img(State(site): State<Site>, request: Request) -> Result<Json<Painted>, Problem> {
    paint(site, request, false).await
}

/// Paints a photograph, and answers with the paintings.
#[utoipa::path(
    post, path = "/sdapi/v1/img2img", tag = "sdapi", request_body = Order,
    responses(
        (status = 200, body = Painted),
        (status = 404, description = "There is no such sampler, or no picture", body = Fault),
        (status = 422, body = Fault), (status = 503, description = "The queue is full", body = Fault),
    )
)]
pub(super) async fn img2img(State(site): State<Site>, request: Request) -> Result<Json<Painted>, Problem> {
    paint(site, request, true).await
}

async fn paint(site: Site, request: Request, from_image: bool) -> Result<Json<Painted>, Problem> {
    let body = Json::<Value>::from_request(request, &());
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time");
    let Json(mut asked) = tokio::time::timeout(site.daemon().config().request_time(), body).await.map_err(late)??;
    let order: Order = serde_json::from_value(asked.clone()).map_err(|why| Problem::wish(why.to_string()))?;
    let count = order.batch_size.unwrap_or(1).max(1).saturating_mul(order.n_iter.unwrap_or(1).max(1));
    if count > MOST {
        return Err(Problem::wish(format!("{count} pictures are too many for one request; ask for at most {MOST}")));
    }
    let send = order.send_images.unwrap_or(true);
    let (wish, pictures, notes) = site.ask(move |site| wish_of(site, &order, from_image)).await?;
    let first = wish.request.seed.unwrap_or_else(random_seed);
    let mut done = vec![];
    for number in 0..count {
        let seed = first.wrapping_add(number as u64);
        let wish = PaintingWish { request: Wish { seed: Some(seed), ..wish.request.clone() }, ..wish.clone() };
        match painted(&site, wish, pictures.clone()).await? {
            Some(painting) => done.push(painting),
            None => break, // interrupted
        }
    }
    if let Some(asked) = asked.as_object_mut() {
        asked.remove("init_images"); // as the original does: nobody needs them back
        asked.remove("alwayson_scripts");
    }
    let images = if send { done.iter().map(|(_, png)| BASE64_STANDARD.encode(png)).collect() } else { vec![] };
    Ok(Json(Painted { images, parameters: asked, info: info(&site, &wish, &done, &notes).to_string() }))
}

fn wish_of(site: &Site, order: &Order, from_image: bool) -> Result<(PaintingWish, Pictures, Vec<String>), Problem> {
    check_model(site, order.override_settings.as_ref().unwrap_or(&Map::new()))?;
    if order.mask.as_ref().is_some_and(|mask| !mask.is_empty()) {
        return Err(Problem::wish("masks are not supported; paint the whole picture"));
    }
    if order.enable_hr == Some(true) {
        return Err(Problem::wish("enable_hr is not supported; ask for a larger width and height"));
    }
    let names: Vec<String> = site.daemon().styles()?.into_iter().map(|style| style.name).collect();
    let mut text = prompt::read(order.prompt.as_deref().unwrap_or_default(), &names);
    for style in order.styles.iter().flatten().filter(|style| !style.is_empty()) {
        if text.styles.contains(style) {
            continue;
        }
        if !names.contains(style) {
            return Err(Problem::wish(format!("there is no style {style:?}; /sdapi/v1/embeddings lists them")));
        }
        text.styles.push(style.clone());
        text.prompt += &format!(", {{{style}}}");
    }
    let mut notes = text.notes;
    let megapixels = site.daemon().config().security.megapixels;
    let units = Unit::of(order);
    let scales = scales(site.daemon().bundle(), &units)?;
    let mut controls = vec![];
    for unit in units.iter().filter(|unit| unit.is_control_picture()) {
        let image = decoded(&base64_of(unit.image.as_deref().unwrap_or_default())?, megapixels)?;
        controls.push(GivenControl { control: unit.control, image });
    }
    let photograph = units.iter().find_map(|unit| unit.image.as_ref().filter(|_| !unit.is_control_picture()));
    let image = order.init_images.iter().flatten().next().filter(|_| from_image);
    if from_image && image.is_none() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "init_images holds no picture"));
    }
    // without a picture to start from, one whose edges count is painted over completely
    let (image, strength) = match (image, photograph) {
        (Some(own), other) => {
            if other.is_some_and(|other| other != own) {
                notes.push("control pictures are made of init_images".into());
            }
            (Some(own), Some(order.denoising_strength.unwrap_or(IMG2IMG_STRENGTH)))
        }
        (None, Some(hint)) => (Some(hint), Some(1.0)),
        (None, None) => (None, None),
    };
    let content = image.map(|image| decoded(&base64_of(image)?, megapixels)).transpose()?;
    let size = order.width.zip(order.height).map(|(width, height)| format!("{width}x{height}").parse::<Size>());
    let request = Wish {
        styles: text.styles,
        prompt: Some(text.prompt),
        negative: Some(order.negative_prompt.clone().unwrap_or_default()),
        strength,
        steps: order.steps,
        sampler: sampler(order, &mut notes)?,
        guidance: order.cfg_scale,
        control_scale: Some(scales),
        size: size.transpose().map_err(Problem::wish)?,
        seed: order.seed.and_then(|seed| u64::try_from(seed).ok()),
        ..Wish::default()
    };
    let kept = order.save_images.unwrap_or(false);
    let pictures = Pictures { content, controls };
    Ok((PaintingWish { request, mix: vec![], origin: Origin::Sdapi, kept, save_control: false }, pictures, notes))
}

fn sampler(order: &Order, notes: &mut Vec<String>) -> Result<Option<crate::sampler::Sampler>, Problem> {
    let older = || order.sampler_index.as_ref().and_then(Value::as_str).map(str::to_owned);
    let Some(name) = order.sampler_name.clone().or_else(older).filter(|name| !name.is_empty()) else { return Ok(None) };
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no sampler {name:?}"));
    let (sampler, exact) = samplers::named(&name).ok_or_else(missing)?;
    if !exact {
        notes.push(format!("{name} is not here; {} is the nearest", samplers::name(sampler)));
    }
    Ok(Some(sampler))
}

/// A unit of the ControlNet extension that is on.
#[derive(Debug)]
struct Unit {
    /// What it looks at, where its model or its preprocessor says so.
    control: Option<Control>,
    weight: f64,
    /// The preprocessor.
    module: Option<String>,
    /// Base64, where the unit has a picture of its own.
    image: Option<String>,
}

impl Unit {
    fn of(order: &Order) -> Vec<Unit> {
        let scripts = order.alwayson_scripts.iter().flatten();
        let units = scripts.filter(|(name, _)| name.eq_ignore_ascii_case("controlnet"));
        let units = units.flat_map(|(_, script)| script["args"].as_array().into_iter().flatten());
        let on = units.filter(|unit| unit.is_object() && unit["enabled"].as_bool().unwrap_or(true));
        let picture = |value: &Value| value.as_str().or(value["image"].as_str()).map(str::to_owned);
        let unit = |unit: &Value| {
            let text = |key: &str| unit[key].as_str().map(str::to_owned);
            let says = |key: &str| text(key).as_deref().and_then(Control::spoken_of);
            let image = picture(&unit["input_image"]).or_else(|| picture(&unit["image"]));
            Unit {
                control: says("model").or_else(|| says("module")),
                weight: unit["weight"].as_f64().unwrap_or(1.0),
                module: text("module"),
                image: image.filter(|image| !image.is_empty()),
            }
        };
        on.map(unit).collect()
    }

    /// Whether its picture is what the ControlNet looks at; else that is made of it. The extension's own preset is no
    /// preprocessor.
    fn is_control_picture(&self) -> bool {
        self.image.is_some() && self.module.as_deref().is_none_or(|module| module.eq_ignore_ascii_case("none"))
    }
}

/// How loud each unit's ControlNet speaks; a unit that does not say what it looks at is the model's first one.
fn scales(bundle: &Bundle, units: &[Unit]) -> Result<ControlScale, Problem> {
    let mut scales = std::collections::BTreeMap::new();
    for unit in units {
        let first = bundle.controlnets.first().map(|net| net.control);
        let Some(control) = unit.control.or(first) else {
            return Err(Problem::wish("this model has no ControlNet; switch its units off"));
        };
        if scales.insert(control, unit.weight).is_some() {
            return Err(Problem::wish(format!("two units look at {control} pictures; switch one of them off")));
        }
    }
    Ok(if scales.is_empty() { ControlScale::Alone(0.0) } else { ControlScale::Each(scales) })
}

/// Takes an order back if nobody waits for it any more.
struct Waiting(Option<(Site, Id)>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((site, id)) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || site.daemon().cancel(id));
        }
    }
}

/// Waits for a painting; none if it was taken back.
async fn painted(site: &Site, wish: PaintingWish, pictures: Pictures) -> Result<Option<(Painting, Vec<u8>)>, Problem> {
    let mut events = site.daemon().events().listen(); // before the order: nothing is missed
    let id = site.ask(move |site| Ok(site.daemon().order_painting(wish, pictures)?.id)).await?;
    let mut waiting = Waiting(Some((site.clone(), id)));
    let closing = site.closing();
    tokio::pin!(closing);
    let state = loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = &mut closing => return Err(Problem::later(StatusCode::SERVICE_UNAVAILABLE, "the daemon ends", 10)),
        };
        match event {
            Ok(news) => match news.event {
                Event::Finished { id: other, .. } if other == id => break JobState::Finished,
                Event::Cancelled { id: other, .. } if other == id => break JobState::Cancelled,
                Event::Failed { id: other, error, .. } if other == id => return Err(Problem::wish(error)),
                _ => {}
            },
            Err(RecvError::Lagged(_)) => {
                let job = site.ask(move |site| Ok(site.daemon().job(id)?)).await?;
                match job.map(|job| job.state).filter(|state| state.is_over()) {
                    Some(state) => break state,
                    None => continue,
                }
            }
            Err(RecvError::Closed) => return Err(Problem::wish("the daemon has ended")),
        }
    };
    waiting.0 = None;
    if state != JobState::Finished {
        return Ok(None);
    }
    let done = site.ask(move |site| {
        let painting = site.daemon().painting(id)?.ok_or_else(|| Problem::missing("painting"))?;
        Ok((painting, read(site.daemon().painting_file(id, PaintingFile::Picture)?, "painting")?))
    });
    done.await.map(Some)
}

/// What was done, as the interface tells it.
fn info(site: &Site, wish: &PaintingWish, done: &[(Painting, Vec<u8>)], notes: &[String]) -> Value {
    let prompts: Vec<_> = done.iter().map(|(painting, _)| painting.prompt.clone()).collect();
    let seeds: Vec<_> = done.iter().map(|(painting, _)| painting.recipe["seed"].clone()).collect();
    let negative = wish.request.negative.clone().unwrap_or_default();
    let text = |png: &Vec<u8>| super::infotext::texts(png, u64::MAX).ok()?.remove("parameters");
    let texts: Vec<_> = done.iter().map(|(_, png)| text(png).unwrap_or_default()).collect();
    let recipe = done.first().map(|(painting, _)| painting.recipe.clone()).unwrap_or_default();
    json!({
        "prompt": prompts.first(),
        "all_prompts": prompts,
        "negative_prompt": negative,
        "all_negative_prompts": vec![&negative; done.len()],
        "seed": seeds.first(),
        "all_seeds": seeds,
        "subseed": seeds.first(),
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": done.first().map(|(painting, _)| painting.width),
        "height": done.first().map(|(painting, _)| painting.height),
        "sampler_name": recipe["sampler"].as_str().and_then(samplers::named).map(|(sampler, _)| samplers::name(sampler)),
        "cfg_scale": wish.request.guidance.unwrap_or(crate::painter::GUIDANCE),
        "steps": recipe["steps"],
        "batch_size": done.len(),
        "restore_faces": false,
        "sd_model_name": title(site),
        "sd_model_hash": "",
        "denoising_strength": wish.request.strength,
        "extra_generation_params": match notes.is_empty() {
            true => json!({}),
            false => json!({"Notes": notes.join("; ")}),
        },
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": done.first().map(|(painting, _)| painting.created.to_string()),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": false,
    })
}
