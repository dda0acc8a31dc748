//! One painting: from the queue to the gallery.

use super::job::{Event, Kind, PaintingWish};
use super::store::{Claim, NewPainting, PaintingFile, write};
use super::{Daemon, Preview};
use crate::bundle::control::Control;
use crate::bundle::manifest::hexadecimal;
use crate::camera::Frame;
use crate::canvas::{Canvas, Metadata};
use crate::painter::{ControlPicture, GivenControl, Order, Pictures, Request};
use crate::sampler::StepReport;
use crate::style::stage_of;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Instant;

/// The photograph, in the job's folder.
pub(super) const CONTENT: &str = "content.png";

/// A control picture that was given, in the job's folder.
pub(super) fn control_name(control: Control) -> String {
    format!("control-{}.png", control.slug())
}

/// The pictures in the job's folder.
fn pictures(daemon: &Daemon, claim: &Claim) -> Result<Pictures> {
    let folder = daemon.store().files().job(claim.id);
    let open = |name: &str| Some(folder.join(name)).filter(|path| path.is_file()).map(Frame::open).transpose();
    let mut pictures = Pictures { content: open(CONTENT)?, controls: vec![] };
    for control in Control::ALL {
        if let Some(image) = open(&control_name(control))? {
            pictures.controls.push(GivenControl { control: Some(control), image });
        }
    }
    Ok(pictures)
}

/// Where the person has no wish, the configuration's holds.
pub(super) fn fill_in(request: &mut Request, defaults: &Request) {
    let own = std::mem::take(request);
    let defaults = defaults.clone();
    *request = Request {
        styles: if own.styles.is_empty() { defaults.styles } else { own.styles },
        prompt: own.prompt.or(defaults.prompt),
        negative: own.negative.or(defaults.negative),
        strength: own.strength.or(defaults.strength),
        steps: own.steps.or(defaults.steps),
        sampler: own.sampler.or(defaults.sampler),
        invert: own.invert.or(defaults.invert),
        style_strength: own.style_strength.or(defaults.style_strength),
        content_strength: own.content_strength.or(defaults.content_strength),
        guidance: own.guidance.or(defaults.guidance),
        guidance_form: own.guidance_form.or(defaults.guidance_form),
        control_scale: own.control_scale.or(defaults.control_scale),
        size: own.size.or(defaults.size),
        seed: own.seed.or(defaults.seed),
    };
}

/// Paints a claimed job and keeps the painting.
///
/// # Errors
/// [`Error::Interrupted`] when the daemon ends or the job was cancelled, else why it cannot be painted.
pub(super) fn paint(daemon: &Daemon, claim: &Claim) -> Result<()> {
    let id = claim.id;
    let wish: PaintingWish = claim.wish()?;
    let (order, notes) = daemon.order_of(&wish, pictures(daemon, claim)?)?;
    notes.iter().for_each(|note| tracing::info!(%id, "{note}"));
    let stages = order.style_stages();
    let began = Instant::now();
    let mut last = began;
    let painter = &daemon.0.painter;
    let controls = painter.control_pictures(&order)?;
    let canvas = painter.paint_with(&order, &controls, &mut |step| {
        daemon.check(id)?;
        let (i, n) = (step.index + 1, step.count);
        let stage = stages.map(|stages| stage_of(step.timestep, stages));
        daemon.took_step(id, i, n, stage, None);
        daemon.0.metrics.painting_step(last.elapsed().as_secs_f64());
        last = Instant::now();
        daemon.events().tell(Event::Step { id, i, n, stage });
        preview(daemon, claim, &step)
    })?;
    daemon.check(id)?;
    let kept = if wish.save_control { &controls[..] } else { &[] };
    keep(daemon, claim, &wish, &order, kept, &canvas)?;
    daemon.took(began.elapsed());
    Ok(())
}

fn preview(daemon: &Daemon, claim: &Claim, step: &StepReport<'_>) -> Result<()> {
    let every = daemon.config().painting.preview_every;
    let (painter, taken) = (&daemon.0.painter, step.index + 1);
    if every == 0 || !taken.is_multiple_of(every) || taken == step.count || !painter.previews_are_cheap() {
        return Ok(());
    }
    daemon.show_preview(claim, &painter.preview(step.denoised)?)
}

impl Daemon {
    /// Keeps a look at an unfinished painting or style, and tells that it is there.
    pub(super) fn show_preview(&self, claim: &Claim, canvas: &Canvas) -> Result<()> {
        let jpeg = Arc::new(jpeg(canvas)?);
        let version = {
            let mut desk = self.desk();
            let version = desk.previews.get(&claim.id).map_or(0, |preview| preview.version) + 1;
            desk.previews.insert(claim.id, Preview { version, jpeg });
            version
        };
        self.events().tell(Event::Preview { id: claim.id, kind: claim.kind, version });
        Ok(())
    }
}

/// Files first, whole and on the disk; then the row; then the news.
fn keep(
    daemon: &Daemon,
    claim: &Claim,
    wish: &PaintingWish,
    order: &Order,
    controls: &[ControlPicture],
    canvas: &Canvas,
) -> Result<()> {
    let id = claim.id;
    let metadata = daemon.0.painter.metadata(order)?;
    let files = daemon.store().files();
    let mut png = vec![];
    canvas.write_png(&metadata, &mut png).map_err(Error::io(&files.painting(id, PaintingFile::Picture)))?;
    let thumbnail = jpeg(&within(canvas, daemon.config().painting.thumbnail_side)?)?;
    let fitted = order.content.as_ref().map(|frame| frame.resize_to_cover(canvas.width(), canvas.height()));
    let content = fitted.transpose()?.map(|frame| jpeg(&frame.into())).transpose()?;
    let mut bytes = png.len() + thumbnail.len() + content.as_ref().map_or(0, Vec::len);
    write(&files.painting(id, PaintingFile::Picture), &png)?;
    write(&files.painting(id, PaintingFile::Thumbnail), &thumbnail)?;
    if let Some(content) = &content {
        write(&files.painting(id, PaintingFile::Content), content)?;
    }
    for picture in controls {
        let (file, mut png) = (files.painting(id, PaintingFile::Control(picture.control)), vec![]);
        picture.canvas()?.write_png(&Metadata::default(), &mut png).map_err(Error::io(&file))?;
        write(&file, &png)?;
        bytes += png.len();
    }
    let new = NewPainting {
        id,
        width: canvas.width(),
        height: canvas.height(),
        bytes: bytes as u64,
        sha256: hexadecimal(Sha256::new_with_prefix(&png)),
        prompt: metadata.prompt,
        styles: order.styles.iter().map(|style| style.name().to_owned()).collect(),
        origin: wish.origin,
        kept: wish.kept,
        has_content: content.is_some(),
        controls: controls.iter().map(|picture| picture.control).collect(),
        recipe: metadata.recipe,
    };
    if !daemon.store().finish_painting(&new)? {
        files.forget_painting(id);
        return Err(Error::Interrupted);
    }
    daemon.0.metrics.finished(Kind::Painting);
    daemon.events().tell(Event::Finished { id, kind: Kind::Painting });
    Ok(())
}

/// No larger than `side`, in the same shape.
pub(super) fn within(canvas: &Canvas, side: usize) -> Result<Canvas> {
    let (width, height) = (canvas.width(), canvas.height());
    let longer = width.max(height);
    if longer <= side {
        return Ok(canvas.clone());
    }
    let scaled = |length: usize| (length * side / longer).max(1);
    let frame = Frame::new(width, height, canvas.rgb().to_vec())?;
    Ok(frame.resize(scaled(width), scaled(height))?.into())
}

pub(super) fn jpeg(canvas: &Canvas) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    canvas.write_jpeg(&mut bytes).map_err(Error::io(std::path::Path::new("a JPEG in memory")))?;
    Ok(bytes)
}
