//! One lesson: pictures from the queue become a style. Between two of its steps waiting paintings are painted.

use super::job::{Event, Id, Kind, LearningWish, LossPoint, Origin, StyleSource, Ticket};
use super::painting::{jpeg, within};
use super::store::{Claim, NewStyle, StyleFile, write};
use super::{Daemon, Refused, worker};
use crate::camera::Frame;
use crate::canvas::{Canvas, Metadata};
use crate::config::Learning;
use crate::painter::{Order, Request, StyleChoice, VALIDATION_STEPS, Validation};
use crate::prompt::Template;
use crate::style::Style;
use crate::train::{self, CHECKPOINT_EVERY, Files, Learned, Lesson, Options, Study};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The latest sheet of validation pictures, in the job's folder.
const SHEET: &str = "validation.png";
const NAME: &str = "new style";
const CONTEXT: &str = "A painting in the style of {}";

/// The file of a lesson's picture, in the job's folder.
fn picture_name(number: usize) -> String {
    format!("picture-{number}.png")
}

/// The file of a photograph to validate a lesson with, in the job's folder.
fn photograph_name(number: usize) -> String {
    format!("photograph-{number}.png")
}

/// With the configuration's values where the wish is silent; `photographs` says whether there are any to validate with.
fn complete(wish: LearningWish, photographs: bool, config: &Learning) -> LearningWish {
    let has_pictures = photographs || !wish.validate_prompts.is_empty();
    LearningWish {
        name: Some(wish.name.map_or(NAME.into(), |name| name.trim().to_owned())),
        contexts: if wish.contexts.is_empty() { vec![CONTEXT.into()] } else { wish.contexts },
        proposals: wish.proposals,
        stages: wish.stages.or(Some(config.stages)),
        steps: wish.steps.or(Some(config.steps)),
        batch: wish.batch.or(Some(config.batch)),
        lr: wish.lr.or(Some(config.lr)),
        validate_every: wish.validate_every.or(has_pictures.then_some(config.preview_every.max(1))),
        init: wish.init.or(Some(config.init.clone())),
        seed: wish.seed.or(Some(0)),
        license: wish.license.or(Some(String::new())),
        ..wish
    }
}

/// The lesson a complete wish comes to.
///
/// # Errors
/// [`Error::Usage`] for one that cannot be taught.
fn of(daemon: &Daemon, wish: &LearningWish, pictures: Vec<Frame>) -> Result<Lesson> {
    let defaults = &daemon.config().learning;
    let token = wish.name.clone().unwrap_or_else(|| NAME.into());
    super::store::check_name(&token)?;
    let (texts, count) = (wish.contexts.len(), pictures.len());
    if texts != 1 && texts != count {
        let what = format!("{texts} contexts for {count} pictures; give one for all, or one each");
        return Err(Error::Usage(what));
    }
    let study = |(number, frame): (usize, Frame)| {
        let context = Template::parse(&wish.contexts[number % texts])?.with_style_place();
        Ok(Study { frame, context })
    };
    let lesson = Lesson {
        token,
        studies: pictures.into_iter().enumerate().map(study).collect::<Result<_>>()?,
        stages: wish.stages.unwrap_or(defaults.stages),
        steps: wish.steps.unwrap_or(defaults.steps),
        batch: wish.batch.unwrap_or(defaults.batch),
        lr: wish.stage_lr.clone().unwrap_or_else(|| wish.lr.unwrap_or(defaults.lr).into()),
        init: wish.init.clone().unwrap_or_else(|| defaults.init.clone()),
        seed: wish.seed.unwrap_or(0),
        license: wish.license.clone().unwrap_or_default(),
        options: Options {
            learn_stages: wish.learn_stages.clone(),
            vectors_per_stage: wish.vectors_per_stage.unwrap_or(1),
            accumulate: wish.accumulate.unwrap_or(1),
            min_snr: wish.min_snr,
            validate_every: wish.validate_every,
            early_stop: wish.early_stop,
        },
    };
    lesson.check()?;
    if wish.validate_prompts.len() > defaults.most_pictures {
        let most = defaults.most_pictures;
        return Err(Error::Usage(format!("a lesson has at most {most} prompts to validate it with")));
    }
    validation(daemon, wish, vec![]).check(&daemon.0.painter, &lesson.token)?;
    daemon.0.painter.tokenizer().word(&lesson.init)?;
    Ok(lesson)
}

/// The pictures by which people judge the style as it is learned.
fn validation(daemon: &Daemon, wish: &LearningWish, photographs: Vec<Frame>) -> Validation {
    let named = photographs.into_iter().enumerate().map(|(i, frame)| (format!("photograph {}", i + 1), frame));
    Validation {
        prompts: wish.validate_prompts.clone(),
        photographs: named.collect(),
        guidance: daemon.config().painting.wish.guidance,
        habits: daemon.0.habits,
    }
}

/// The pictures of these names in a job's folder, from number 0 on.
fn pictures(folder: &Path, name: fn(usize) -> String) -> Result<Vec<Frame>> {
    (0..).map(|number| folder.join(name(number))).take_while(|picture| picture.is_file()).map(Frame::open).collect()
}

fn files(folder: &Path) -> Files {
    Files { checkpoint: folder.join("checkpoint.safetensors"), log: folder.join("loss.csv") }
}

/// Learns a claimed job's style and keeps it.
///
/// # Errors
/// As [`super::painting::paint`].
pub(super) fn learn(daemon: &Daemon, claim: &Claim) -> Result<()> {
    let wish: LearningWish = claim.wish()?;
    let folder = daemon.store().files().job(claim.id);
    let pictures = self::pictures(&folder, picture_name)?;
    let validation = validation(daemon, &wish, self::pictures(&folder, photograph_name)?);
    let first = pictures.first().cloned();
    let lesson = of(daemon, &wish, pictures)?;
    let files = files(&folder);
    let resume = files.checkpoint.is_file();
    daemon.check(claim.id)?;
    let learned = train::learn(&daemon.0.painter, &lesson, &files, resume, &mut |now| {
        daemon.check(claim.id)?;
        let (id, step, steps, loss, smoothed) = (claim.id, now.step, now.steps, now.loss, now.smoothed);
        daemon.took_step(id, step, steps, None, Some(smoothed));
        daemon.0.metrics.learning_step(smoothed);
        let (stages, validated) = (now.stages.to_vec(), now.validation);
        daemon.events().tell(Event::Learning { id, step, steps, loss, smoothed, stages, validation: validated });
        if step.is_multiple_of(CHECKPOINT_EVERY) {
            daemon.store().progress(id, step, steps)?;
        }
        worker::paint_what_waits(daemon)?;
        daemon.check(claim.id)?;
        if validated.is_some() && !validation.is_empty() {
            let mut check = || daemon.check(claim.id);
            let (sheet, metadata) = validation.sheet(&daemon.0.painter, now.style, &mut check)?;
            sheet.save(folder.join(SHEET), &metadata)?;
            return daemon.show_preview(claim, &sheet);
        }
        preview(daemon, claim, step, now.style, &lesson.studies[0].context)
    })?;
    daemon.check(claim.id)?;
    keep(daemon, claim, &wish, &files, first, &learned)
}

/// What the style is like now; the noise is always the same.
fn preview(daemon: &Daemon, claim: &Claim, step: usize, style: &Style, context: &Template) -> Result<()> {
    let every = daemon.config().learning.preview_every;
    if every == 0 || !step.is_multiple_of(every) {
        return Ok(());
    }
    let request = Request { prompt: Some(context.source()), styles: vec![style.token.clone()], ..Request::default() };
    let order = sample(daemon, request, style)?;
    let canvas = daemon.0.painter.paint(&order, &mut |_| daemon.check(claim.id))?;
    daemon.show_preview(claim, &canvas)
}

/// A small order with a style.
pub(super) fn sample(daemon: &Daemon, request: Request, style: &Style) -> Result<Order> {
    // a small model cannot bear the guidance that a large one needs; whoever configured the one knows
    let guidance = daemon.config().painting.wish.guidance;
    let request = Request { steps: Some(VALIDATION_STEPS), seed: Some(0), guidance, ..request };
    let (order, _) =
        request.order(&daemon.0.painter, vec![StyleChoice::Learned(style.clone())], None, daemon.0.habits)?;
    Ok(order)
}

fn keep(
    daemon: &Daemon,
    claim: &Claim,
    wish: &LearningWish,
    files: &Files,
    picture: Option<Frame>,
    learned: &Learned,
) -> Result<()> {
    let id = claim.id.to_string();
    let store = daemon.store();
    let file = |kind| store.files().style(&id, kind);
    learned.style.save(file(StyleFile::Vectors))?;
    let losses = std::fs::read(&files.log).map_err(Error::io(&files.log))?;
    write(&file(StyleFile::Losses), &losses)?;
    write(&file(StyleFile::Curve), &drawn(&files.log, &files.validation())?)?;
    let sheet = store.files().job(claim.id).join(SHEET);
    if sheet.is_file() {
        let sheet = std::fs::read(&sheet).map_err(Error::io(&sheet))?;
        write(&file(StyleFile::Validation), &sheet)?;
    }
    let has_picture = picture.is_some();
    if let Some(picture) = picture {
        let small = within(&Canvas::from(picture), daemon.config().painting.thumbnail_side)?;
        write(&file(StyleFile::Picture), &jpeg(&small)?)?;
    }
    let new = NewStyle {
        id: id.clone(),
        style: &learned.style,
        source: StyleSource::Learned,
        kept: false,
        proposals: wish.proposals.clone(),
        has_picture,
        losses: Some((learned.loss_before, learned.loss_after)),
    };
    if !store.finish_lesson(claim.id, &new)? {
        store.files().forget_style(&id);
        return Err(Error::Interrupted);
    }
    daemon.0.metrics.finished(Kind::Learning);
    daemon.events().tell(Event::Finished { id: claim.id, kind: Kind::Learning });
    daemon.events().tell(Event::Styles {});
    Ok(())
}

impl Daemon {
    /// Orders a style to be learned from pictures.
    ///
    /// # Errors
    /// As [`Daemon::order_painting`].
    pub fn order_lesson(&self, wish: LearningWish, origin: Origin, pictures: Vec<Frame>) -> Result<Ticket, Refused> {
        self.order_validated_lesson(wish, origin, pictures, vec![])
    }

    /// As [`Daemon::order_lesson`], with photographs that the unfinished style is tried on.
    ///
    /// # Errors
    /// As [`Daemon::order_painting`].
    pub fn order_validated_lesson(
        &self,
        wish: LearningWish,
        origin: Origin,
        pictures: Vec<Frame>,
        photographs: Vec<Frame>,
    ) -> Result<Ticket, Refused> {
        let id = Id::now();
        let config = &self.config().learning;
        let (largest, most) = (pictures.len().max(photographs.len()), config.most_pictures);
        if largest > most {
            let what = format!("{largest} pictures are too many for one lesson; give at most {most}");
            return Err(Error::Usage(what).into());
        }
        let wish = complete(wish, !photographs.is_empty(), config);
        of(self, &wish, pictures.clone())?;
        let folder = self.store().files().job(id);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        for (frames, name) in [(pictures, picture_name as fn(usize) -> String), (photographs, photograph_name)] {
            for (number, frame) in frames.into_iter().enumerate() {
                Canvas::from(frame).save(folder.join(name(number)), &Metadata::default())?;
            }
        }
        self.enqueue(id, Kind::Learning, origin, &wish, self.config().queue.lessons)
    }

    /// The file of the latest pictures that a lesson was validated with, in progress or over, where it was.
    pub fn style_validation(&self, id: Id) -> Option<PathBuf> {
        let files = self.store().files();
        let kept = files.style(&id.to_string(), StyleFile::Validation);
        [files.job(id).join(SHEET), kept].into_iter().find(|sheet| sheet.is_file())
    }

    /// A lesson's losses so far; none for what is no lesson, or one that is long over.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn losses(&self, id: Id) -> Result<Option<Vec<LossPoint>>> {
        let store = self.store().files();
        let places = [files(&store.job(id)).log, store.style(&id.to_string(), StyleFile::Losses)];
        let Some(log) = places.iter().find(|place| place.is_file()) else { return Ok(None) };
        let mut reader = csv::Reader::from_path(log).map_err(|fault| Error::file(log, fault.to_string()))?;
        // the last line may be in the middle of being written
        Ok(Some(reader.deserialize().map_while(|row| row.ok()).collect()))
    }

    /// A lesson's loss curve so far as PNG; none as for [`Daemon::losses`].
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn loss_curve(&self, id: Id) -> Result<Option<Vec<u8>>> {
        let store = self.store().files();
        let running = files(&store.job(id));
        let kept = store.style(&id.to_string(), StyleFile::Curve);
        match () {
            () if running.log.is_file() => drawn(&running.log, &running.validation()).map(Some),
            () if kept.is_file() => std::fs::read(&kept).map(Some).map_err(Error::io(&kept)),
            () => Ok(None),
        }
    }
}

fn drawn(log: &Path, validation: &Path) -> Result<Vec<u8>> {
    let mut png = vec![];
    let canvas = Canvas::from(train::curve(log, validation)?);
    canvas.write_png(&Metadata::default(), &mut png).map_err(Error::io(log))?;
    Ok(png)
}
