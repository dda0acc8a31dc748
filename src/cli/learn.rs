//! `pleinair learn`: a style from one picture or a few.

use super::interrupt::Interrupt;
use super::paint::{beside, plain_order};
use super::progress::{Event, Progress};
use super::{model, place, style};
use pleinair::bundle::write::check_writable;
use pleinair::camera::Frame;
use pleinair::canvas::{Canvas, contact_sheet};
use pleinair::painter::{Order, Painter, StyleChoice};
use pleinair::prompt::{PromptStyle, Template};
use pleinair::style::Style;
use pleinair::train::{self, Files, Lesson, Study};
use pleinair::{Error, Result};
use std::path::PathBuf;
use std::time::Instant;

/// Steps of a preview: enough to see where the style goes.
const PREVIEW_STEPS: usize = 12;

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
    #[arg(long, value_name = "N", default_value_t = 6)]
    stages: usize,
    /// Learning steps
    #[arg(long, value_name = "N", default_value_t = 500)]
    steps: usize,
    /// Noised pictures a step
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Learning rate
    #[arg(long, value_name = "X", default_value_t = 0.002)]
    lr: f64,
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

    let style = [PromptStyle::Learned(lesson.token.clone())];
    for study in &lesson.studies {
        let dropped = study.context.tokens(painter.tokenizer(), &style)?.dropped;
        if dropped > 0 {
            progress.note(&format!("a context is {dropped} tokens longer than there is room for; it is cut"));
        }
    }
    let mut unfinished = (!arguments.resume && files.checkpoint.is_file()).then(|| files.checkpoint.display());
    let preview = Preview { arguments, painter: &painter, interrupt, progress };
    let began = Instant::now();
    let learned = train::learn(&painter, &lesson, &files, arguments.resume, &mut |now| {
        if let Some(checkpoint) = unfinished.take() {
            progress.note(&format!(
                "starting afresh; the unfinished run that --resume would have gone on with is kept as {checkpoint}.old"
            ));
        }
        let (step, steps, loss, smoothed) = (now.step, now.steps, now.loss, now.smoothed);
        progress.tell(&Event::Learning { step, steps, loss, smoothed, seconds: began.elapsed().as_secs_f64() })?;
        interrupt.check()?;
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
            lr: self.lr,
            init: self.init.clone(),
            seed: self.seed,
            license: self.license.clone(),
        })
    }
}

/// Paints with the style as it is.
struct Preview<'a> {
    arguments: &'a Arguments,
    painter: &'a Painter,
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

    fn order(&self, prompt: Template, style: &Style) -> Result<Order> {
        let size = self.painter.bundle().native_size_like(1, 1);
        Ok(Order { styles: vec![StyleChoice::Learned(style.clone())], ..plain_order(prompt, size, PREVIEW_STEPS)? })
    }
}
