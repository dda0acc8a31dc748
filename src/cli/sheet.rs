//! `pleinair sheet`: pictures side by side.

use super::progress::{Event, Progress};
use pleinair::bundle::write::check_writable;
use pleinair::camera::Frame;
use pleinair::canvas::{Canvas, Metadata, contact_sheet};
use pleinair::{Error, Result};
use std::path::PathBuf;

/// Beyond this a sheet of camera pictures would be as large as they are together.
const TALLEST: usize = 512;
/// A picture wider than this, in pixels, is no picture; a sheet of some would not fit memory.
const WIDEST: f64 = 16_384.0;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A picture and the label below it; one --cell each
    #[arg(long = "cell", value_name = "LABEL=IMG", required = true, value_parser = cell)]
    cells: Vec<(String, PathBuf)>,
    /// Pictures in a row [default: all, up to 4]
    #[arg(long, value_name = "N")]
    columns: Option<usize>,
    /// Height of every picture in pixels [default: that of the tallest, up to 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192))]
    height: Option<u32>,
    /// The sheet, .png or .jpg
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn cell(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((label, path)) if !path.is_empty() => Ok((label.to_owned(), PathBuf::from(path))),
        _ => Err("write it as LABEL=IMG, as in --cell photograph=sea.jpg".to_owned()),
    }
}

pub(super) fn run(arguments: &Arguments, progress: &Progress) -> Result<()> {
    Canvas::check_name(&arguments.out)?;
    check_writable(&arguments.out)?;
    let frames = arguments.cells.iter().map(|(_, path)| Frame::open(path)).collect::<Result<Vec<_>>>()?;
    let tallest = frames.iter().map(Frame::height).max().unwrap_or(TALLEST).min(TALLEST);
    let height = arguments.height.map_or(tallest, |height| height as usize);
    let scaled = |((label, _), frame): (&(String, PathBuf), &Frame)| {
        let width = (frame.width() as f64 * height as f64 / frame.height() as f64).round().max(1.0);
        if width > WIDEST {
            return Err(Error::Usage(format!("{label}: too wide for a sheet at {height} pixels high; cut a part out")));
        }
        Ok(Canvas::from(frame.resize(width as usize, height)?))
    };
    let pictures = arguments.cells.iter().zip(&frames).map(scaled).collect::<Result<Vec<_>>>()?;
    let labels = arguments.cells.iter().map(|(label, _)| label.as_str());
    let cells: Vec<_> = labels.zip(&pictures).collect();
    let columns = arguments.columns.unwrap_or(cells.len().min(4));
    contact_sheet(&cells, columns)?.save(&arguments.out, &Metadata::default())?;
    progress.tell(&Event::finished(&arguments.out))
}
