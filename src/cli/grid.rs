//! `pleinair grid`: the same painting with several strengths of style and content, on one sheet.

use super::interrupt::Interrupt;
use super::paint::{self, Opened, Wish};
use super::place;
use super::progress::{Event, Progress};
use pleinair::bundle::write::check_writable;
use pleinair::canvas::{Canvas, Metadata, contact_sheet};
use pleinair::sampler::{Guidance, StepReport};
use pleinair::stages::PerStage;
use pleinair::{Error, Result};
use std::path::PathBuf;

/// Nobody looks at more, and all are in memory at once.
const MOST: usize = 100;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    wish: Wish,
    /// Guidance towards the style, ls in the paper: a row each; 2..0=3 is one at these stages and 0 at the others
    #[arg(
        long,
        value_name = "X|STAGES=X,...",
        value_delimiter = ',',
        default_value = "0,1,3",
        allow_negative_numbers = true
    )]
    style_strength: Vec<PerStage>,
    /// Guidance towards the content of the prompt, lc in the paper: a column each
    #[arg(
        long,
        value_name = "X|STAGES=X,...",
        value_delimiter = ',',
        default_value = "1,3,5",
        allow_negative_numbers = true
    )]
    content_strength: Vec<PerStage>,
    /// The sheet, .png or .jpg
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(
    arguments: &Arguments,
    place: &place::Choice,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let Arguments { wish, style_strength, content_strength, out } = arguments;
    let scales: Vec<(&PerStage, &PerStage)> =
        style_strength.iter().flat_map(|ls| content_strength.iter().map(move |lc| (ls, lc))).collect();
    if scales.len() > MOST {
        return Err(Error::Usage(format!("{} pictures are too many for one sheet; give at most {MOST}", scales.len())));
    }
    let request = wish.request(&0.0.into(), &0.0.into());
    request.template()?; // before anything is opened
    Canvas::check_name(out)?;
    check_writable(out)?;
    let pictures = wish.pictures()?;
    let Opened { painter, styles, habits } = wish.open(place, progress, interrupt)?;
    let (mut order, notes) = request.order(&painter, styles, pictures, habits)?;
    notes.iter().for_each(|note| progress.note(note));
    let controls = painter.control_pictures(&order)?;
    let (prompt, form) = (order.guidance.prompt, order.guidance.form);
    let guided = |(ls, lc): (&PerStage, &PerStage)| {
        let guidance = Guidance::new(ls.clone(), lc.clone(), prompt, form)?;
        guidance.check_stages(order.stages())?;
        Ok((format!("style {ls}, content {lc}"), guidance))
    };
    let guided = scales.into_iter().map(guided).collect::<Result<Vec<_>>>()?; // all of them before any is painted
    let (seed, mut cells) = (order.seed, vec![]);
    for (label, guidance) in guided {
        order.guidance = guidance;
        let told = &mut |step: StepReport<'_>| paint::tell(&step, seed, progress, interrupt);
        cells.push((label, painter.paint_with(&order, &controls, told)?));
        interrupt.check()?;
    }
    paint::note_unrecorded(&painter, progress);
    let cells: Vec<(&str, &Canvas)> = cells.iter().map(|(label, canvas)| (label.as_str(), canvas)).collect();
    contact_sheet(&cells, content_strength.len())?.save(out, &Metadata::default())?;
    progress.tell(&Event::finished(out))
}
