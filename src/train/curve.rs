//! The loss curve as a picture: every step's loss, the smoothed loss of each stage and their mean, and the validation loss
//! where there is one.

use super::log::Row;
use crate::camera::Frame;
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// Pixels, width and height.
const SIZE: (u32, u32) = (1280, 720);
const FONT: &str = "Inter";
/// Colours of stages, the coarse ones warm and the fine ones cold, as far as they go.
const STAGES: [RGBColor; 8] = [
    RGBColor(30, 80, 180),
    RGBColor(20, 140, 190),
    RGBColor(20, 150, 110),
    RGBColor(140, 150, 20),
    RGBColor(220, 140, 10),
    RGBColor(210, 60, 40),
    RGBColor(150, 40, 140),
    RGBColor(110, 110, 110),
];

/// Draws the losses of `log` (and of the validation losses beside it, where there are any), 1280x720.
///
/// # Errors
/// If the log cannot be read or has no row.
pub fn curve(log: &Path, validation: &Path) -> Result<Frame> {
    let rows = super::log::rows(log)?;
    if rows.is_empty() {
        return Err(Error::file(log, "has no losses to draw; learn first"));
    }
    let validation = if validation.is_file() { super::log::validations(validation)? } else { vec![] };
    let mut rgb = vec![255; (SIZE.0 * SIZE.1 * 3) as usize];
    draw(&mut rgb, &rows, &validation)
        .map_err(|fault| Error::file(log, format!("its curve cannot be drawn: {fault}")))?;
    Frame::new(SIZE.0 as usize, SIZE.1 as usize, rgb)
}

/// Points of a line: step and loss.
type Line = Vec<(f64, f64)>;

/// Losses and smoothed losses by stage, and the mean of the stages' smoothed losses.
fn lines(rows: &[Row]) -> (BTreeMap<usize, (Line, Line)>, Line) {
    let mut stages: BTreeMap<usize, (Line, Line)> = BTreeMap::new();
    let (mut latest, mut total): (BTreeMap<usize, f64>, Line) = Default::default();
    for row in rows {
        let step = row.step as f64;
        let (raw, smooth) = stages.entry(row.t_stage).or_default();
        raw.push((step, row.loss.into()));
        smooth.push((step, row.smoothed_loss.into()));
        latest.insert(row.t_stage, row.smoothed_loss.into());
        let mean = latest.values().sum::<f64>() / latest.len() as f64;
        match total.last_mut() {
            Some((last, value)) if *last == step => *value = mean,
            _ => total.push((step, mean)),
        }
    }
    (stages, total)
}

/// What plotters says of a drawing that fails.
type Fault = Box<dyn std::error::Error>;

fn draw(rgb: &mut [u8], rows: &[Row], validation: &[(usize, f32)]) -> std::result::Result<(), Fault> {
    static FONT_LOADED: OnceLock<bool> = OnceLock::new();
    let font = include_bytes!("../display/fonts/Inter-Regular.ttf");
    if !FONT_LOADED.get_or_init(|| register_font(FONT, FontStyle::Normal, font).is_ok()) {
        return Err("the font is damaged".into());
    }
    let (stages, total) = lines(rows);
    let area = BitMapBackend::with_buffer(rgb, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let values = || stages.values().flat_map(|(raw, _)| raw).map(|(_, loss)| *loss);
    let highest = values().fold(0.0, f64::max).max(f64::MIN_POSITIVE) * 1.05;
    let last = rows.iter().map(|row| row.step).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(&area)
        .caption("loss", (FONT, 30))
        .margin(20)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..last.max(1.0), 0.0..highest)?;
    let whole = |step: &f64| format!("{step:.0}");
    chart
        .configure_mesh()
        .x_desc("step")
        .x_label_formatter(&whole)
        .light_line_style(WHITE)
        .label_style((FONT, 18))
        .axis_desc_style((FONT, 18))
        .draw()?;
    for (stage, (raw, smooth)) in &stages {
        let colour = STAGES[stage % STAGES.len()];
        chart.draw_series(raw.iter().map(|point| Circle::new(*point, 1, colour.mix(0.35).filled())))?;
        chart
            .draw_series(LineSeries::new(smooth.iter().copied(), colour.stroke_width(2)))?
            .label(format!("stage {stage}, smoothed"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3)));
    }
    chart
        .draw_series(LineSeries::new(total, BLACK.stroke_width(3)))?
        .label("all stages, smoothed")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 24, y)], BLACK.stroke_width(3)));
    if !validation.is_empty() {
        let points = || validation.iter().map(|&(step, loss)| (step as f64, f64::from(loss)));
        chart.draw_series(LineSeries::new(points(), RED.stroke_width(1)))?;
        chart
            .draw_series(points().map(|point| TriangleMarker::new(point, 6, RED.filled())))?
            .label("validation")
            .legend(|(x, y)| TriangleMarker::new((x + 12, y), 6, RED.filled()));
    }
    let box_style = WHITE.mix(0.85);
    chart
        .configure_series_labels()
        .background_style(box_style)
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 18))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_by_hand() {
        let row = |step, t_stage, loss, smoothed_loss| Row { step, t_stage, loss, smoothed_loss };
        let rows = [row(1, 0, 0.5, 0.5), row(1, 2, 1.0, 1.0), row(2, 2, 0.5, 0.75), row(3, 0, 0.25, 0.25)];
        let (stages, total) = lines(&rows);
        assert_eq!(stages[&0], (vec![(1.0, 0.5), (3.0, 0.25)], vec![(1.0, 0.5), (3.0, 0.25)]));
        assert_eq!(stages[&2], (vec![(1.0, 1.0), (2.0, 0.5)], vec![(1.0, 1.0), (2.0, 0.75)]));
        assert_eq!(total, [(1.0, 0.75), (2.0, 0.625), (3.0, 0.5)]);
    }

    #[test]
    fn a_curve_shows_every_stage_and_the_validation_loss() {
        let folder = tempfile::tempdir().unwrap();
        let (log, validation) = (folder.path().join("a.loss.csv"), folder.path().join("a.validation.csv"));
        let mut text = "step,t_stage,loss,smoothed_loss,seconds\n".to_owned();
        for step in 1..=60 {
            for stage in [0, 4] {
                let loss = 1.0 / (1.0 + step as f64 / 30.0) + stage as f64 / 10.0;
                text += &format!("{step},{stage},{},{loss},1.0\n", loss + (step % 3) as f64 / 50.0);
            }
        }
        std::fs::write(&log, &text).unwrap();
        let count = |frame: &Frame, colour: RGBColor| {
            frame
                .rgb()
                .as_chunks::<3>()
                .0
                .iter()
                .filter(|&&[r, g, b]| (r, g, b) == (colour.0, colour.1, colour.2))
                .count()
        };
        let plain = curve(&log, &validation).unwrap();
        assert_eq!((plain.width(), plain.height()), (1280, 720));
        for colour in [STAGES[0], STAGES[4], BLACK] {
            assert!(count(&plain, colour) > 500, "{colour:?}: {}", count(&plain, colour));
        }
        assert_eq!((count(&plain, STAGES[1]), count(&plain, RED)), (0, 0));
        std::fs::write(&validation, "step,loss,seconds\n20,0.9,1\n40,0.7,2\n60,0.6,3\n").unwrap();
        assert!(count(&curve(&log, &validation).unwrap(), RED) > 100);

        std::fs::write(&log, "step,t_stage,loss,smoothed_loss,seconds\n").unwrap();
        assert!(curve(&log, &validation).unwrap_err().to_string().contains("no losses"));
        assert!(curve(&folder.path().join("none.csv"), &validation).is_err());
    }
}
