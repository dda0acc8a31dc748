//! `pleinair learn`: a style from one picture or a few.

use super::interrupt::Interrupt;
use super::paint::{beside, plain_order};
use super::progress::{Event, Progress};
use super::{model, place, style};
use pleinair::bundle::write::check_writable;
use pleinair::camera::Frame;
use pleinair::canvas::{Canvas, Metadata, contact_sheet};
use pleinair::painter::{Order, Painter, StyleChoice, VALIDATION_STEPS, Validation};
use pleinair::prompt::{PromptStyle, Template};
use pleinair::stages::{PerStage, STAGES, Stages};
use pleinair::style::Style;
use pleinair::train::{self, Files, Lesson, Options, Study};
use pleinair::{Error, Result};
use std::path::PathBuf;
use std::time::Instant;

/// Steps between two validations with pictures, where nobody says it.
const VALIDATE_EVERY: usize = 50;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: model::Choice,
    /// Pictures in the style
    #[arg(long = "image", value_name = "IMG", required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// What the pictures show besides their style, with {} where the style goes; one for all or one each
    #[arg(long = "context", value_name = "TEXT", num_args = 1.., default_value = "A painting in the style of {}")]
    contexts: Vec<String>,
    /// Stages T, a learned vector each
    #[arg(long, value_name = "N", default_value_t = STAGES)]
    stages: usize,
    /// Learning steps
    #[arg(long, value_name = "N", default_value_t = 500)]
    steps: usize,
    /// Noised pictures a step
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Learning rate, or one for each stage, as in 5..3=0.001,2..0=0.004
    #[arg(long, value_name = "X|STAGES=X", default_value = "0.002")]
    lr: PerStage,
    /// Stages that learn, as in 0..3; the others stay at the initial word [default: all]
    #[arg(long, value_name = "STAGES")]
    learn_stages: Option<Stages>,
    /// Vectors of each stage: the style then stands for so many words of a prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    vectors_per_stage: usize,
    /// Batches a step takes together, as one so many times as large but in the memory of one
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Weigh timesteps by min-SNR with this gamma, such as 5
    #[arg(long, value_name = "GAMMA")]
    min_snr: Option<f64>,
    /// End the lesson after so many evaluations of the validation loss without a better one; the best vectors are kept
    #[arg(long, value_name = "PATIENCE")]
    early_stop: Option<usize>,
    /// The word every stage starts from
    #[arg(long, value_name = "WORD", default_value = "painting")]
    init: String,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Go on from the checkpoint of an interrupted run
    #[arg(long)]
    resume: bool,
    /// Paint with the unfinished style every N steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    preview_every: Option<u32>,
    /// Evaluate the validation loss, and paint the validation pictures, every N steps [default with pictures: 50; with
    /// --early-stop: 25]
    #[arg(long, value_name = "N")]
    validate_every: Option<usize>,
    /// A prompt to paint as the lesson goes, with {} where the style goes; may be given several times
    #[arg(long = "validate-prompt", value_name = "TEXT")]
    validate_prompts: Vec<String>,
    /// A photograph to paint as the lesson goes; may be given several times
    #[arg(long = "validate-image", value_name = "IMG")]
    validate_images: Vec<PathBuf>,
    /// The style's name in prompts [default: the name of the file]
    #[arg(long, value_name = "TOKEN")]
    name: Option<String>,
    /// Licence of the style, kept in its file
    #[arg(long, value_name = "TEXT", default_value = "")]
    license: String,
    /// The style file
    #[arg(long, value_name = "STYLE.safetensors")]
    out: PathBuf,
}

pub(super) fn run(
    arguments: &Arguments,
    place: &place::Choice,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let out = &arguments.out;
    let lesson = arguments.lesson()?;
    let files = Files { checkpoint: beside(out, ".checkpoint.safetensors"), log: beside(out, ".loss.csv") };
    check_writable(&files.checkpoint)?;
    check_writable(&files.log)?;
    let folder = arguments.model.folder()?;
    let painter = model::open(&folder, &place.announce(progress)?.target)?;
    interrupt.check()?;

    let style = [PromptStyle::learned(&lesson.token, lesson.options.vectors_per_stage)];
    for study in &lesson.studies {
        let dropped = study.context.tokens(painter.tokenizer(), &style)?.dropped;
        if dropped > 0 {
            progress.note(&format!("a context is {dropped} tokens longer than there is room for; it is cut"));
        }
    }
    let mut unfinished = (!arguments.resume && files.checkpoint.is_file()).then(|| files.checkpoint.display());
    let validation = arguments.validation()?;
    validation.check(&painter, &lesson.token)?;
    let preview = Preview { arguments, painter: &painter, validation, interrupt, progress };
    let began = Instant::now();
    let learned = train::learn(&painter, &lesson, &files, arguments.resume, &mut |now| {
        if let Some(checkpoint) = unfinished.take() {
            progress.note(&format!(
                "starting afresh; the unfinished run that --resume would have gone on with is kept as {checkpoint}.old"
            ));
        }
        let (step, steps, loss, smoothed) = (now.step, now.steps, now.loss, now.smoothed);
        let (stages, seconds) = (now.stages.to_vec(), began.elapsed().as_secs_f64());
        let validated = now.validation;
        progress.tell(&Event::Learning { step, steps, loss, smoothed, stages, validation: validated, seconds })?;
        interrupt.check()?;
        if validated.is_some() {
            preview.validate(step, now.style)?;
        }
        match arguments.preview_every {
            Some(every) if step % every as usize == 0 => preview.paint(step, now.style, &lesson.studies[0].context),
            _ => Ok(()),
        }
    });
    let saved = learned.and_then(|learned| learned.style.save(out).map(|()| learned));
    if matches!(saved, Err(Error::Interrupted | Error::Io { .. })) && files.checkpoint.is_file() {
        let checkpoint = files.checkpoint.display();
        progress.note(&format!("what was learned is in {checkpoint}; the same command with --resume goes on from it"));
    }
    let learned = saved?;
    let curve = out.with_extension("loss.png");
    Canvas::from(train::curve(&files.log, &files.validation())?).save(&curve, &Metadata::default())?;
    if let Some(step) = learned.stopped {
        progress.tell(&Event::Stopped { step, kept: learned.style.steps.unwrap_or(0) })?;
    }
    std::fs::remove_file(&files.checkpoint).map_err(Error::io(&files.checkpoint))?;
    progress.tell(&Event::Validation { before: learned.loss_before, after: learned.loss_after })?;
    progress.tell(&Event::finished(out))
}

impl Arguments {
    fn lesson(&self) -> Result<Lesson> {
        let token = style::name_for(&self.out, self.name.as_deref())?;
        let (pictures, texts) = (self.images.len(), self.contexts.len());
        if texts != 1 && texts != pictures {
            let what = format!("{texts} contexts for {pictures} pictures; give one --context for all, or one each");
            return Err(Error::Usage(what));
        }
        let study = |(i, image): (usize, &PathBuf)| {
            let context = Template::parse(&self.contexts[i % texts])?.with_style_place();
            Ok(Study { frame: Frame::open(image)?, context })
        };
        Ok(Lesson {
            token,
            studies: self.images.iter().enumerate().map(study).collect::<Result<_>>()?,
            stages: self.stages,
            steps: self.steps,
            batch: self.batch,
            lr: self.lr.clone(),
            init: self.init.clone(),
            seed: self.seed,
            license: self.license.clone(),
            options: self.options(),
        })
    }

    fn options(&self) -> Options {
        let has_pictures = !self.validate_prompts.is_empty() || !self.validate_images.is_empty();
        Options {
            learn_stages: self.learn_stages.clone(),
            vectors_per_stage: self.vectors_per_stage,
            accumulate: self.accumulate,
            min_snr: self.min_snr,
            validate_every: self.validate_every.or(has_pictures.then_some(VALIDATE_EVERY)),
            early_stop: self.early_stop,
        }
    }

    fn validation(&self) -> Result<Validation> {
        let photograph = |image: &PathBuf| {
            let name = image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            Ok((name, Frame::open(image)?))
        };
        Ok(Validation {
            prompts: self.validate_prompts.clone(),
            photographs: self.validate_images.iter().map(photograph).collect::<Result<_>>()?,
            ..Validation::default()
        })
    }
}

/// Paints with the style as it is.
struct Preview<'a> {
    arguments: &'a Arguments,
    painter: &'a Painter,
    validation: Validation,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
}

impl Preview<'_> {
    /// The style alone and in the lesson's first context, side by side; the noise is always the same.
    fn paint(&self, step: usize, style: &Style, context: &Template) -> Result<()> {
        let mut prompts = vec![Template::style_only()];
        if *context != prompts[0] {
            prompts.push(context.clone());
        }
        let orders = prompts.into_iter().map(|prompt| self.order(prompt, style)).collect::<Result<Vec<_>>>()?;
        let paint = |order: &Order| self.painter.paint(order, &mut |_| self.interrupt.check());
        let pictures = orders.iter().map(paint).collect::<Result<Vec<_>>>()?;
        let labels = orders.iter().map(Order::prompt_text).collect::<Result<Vec<_>>>()?;
        let cells: Vec<(&str, &Canvas)> = labels.iter().map(String::as_str).zip(&pictures).collect();
        let file = beside(&self.arguments.out, &format!("-step{step:04}.png"));
        contact_sheet(&cells, cells.len())?.save(&file, &self.painter.metadata(&orders[0])?)?;
        self.progress.tell(&Event::preview(&file))
    }

    /// The validation pictures on one labelled sheet, in a folder beside the style.
    fn validate(&self, step: usize, style: &Style) -> Result<()> {
        if self.validation.is_empty() {
            return Ok(());
        }
        let folder = beside(&self.arguments.out, ".validation");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let (sheet, metadata) = self.validation.sheet(self.painter, style, &mut || self.interrupt.check())?;
        let file = folder.join(format!("step{step:04}.png"));
        sheet.save(&file, &metadata)?;
        self.progress.tell(&Event::preview(&file))
    }

    fn order(&self, prompt: Template, style: &Style) -> Result<Order> {
        let size = self.painter.bundle().native_size_like(1, 1);
        Ok(Order { styles: vec![StyleChoice::Learned(style.clone())], ..plain_order(prompt, size, VALIDATION_STEPS)? })
    }
}
