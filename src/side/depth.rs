//! How far away everything is: a depth estimator (MiDaS and DPT, arXiv 1907.01341 and 2103.13413; Depth Anything, arXiv
//! 2401.10891) as ONNX, in tract. Shown and read as transformers' pipeline `depth-estimation` does it.

use super::onnx::OnnxModel;
use crate::bundle::control::{Preprocessing, Sides};
use crate::camera::{Filter, Frame};
use crate::{Error, Result};
use candle_core::Tensor;
use std::path::Path;

/// An estimator and what it wants to be shown.
#[derive(Debug)]
pub struct Depth {
    model: OnnxModel,
    preprocessing: Preprocessing,
}

impl Depth {
    /// Reads the network.
    ///
    /// # Errors
    /// If it is not ONNX.
    pub fn open(path: &Path, preprocessing: Preprocessing) -> Result<Depth> {
        Ok(Depth { model: OnnxModel::open(path)?, preprocessing })
    }

    /// The depth map as a ControlNet reads it: what is nearest white, what is farthest black, of the picture's size and
    /// in 8 bits, cut off as the pipeline does.
    ///
    /// # Errors
    /// If the network does not run on such a picture, does not answer with a depth map, or with numbers that are not finite.
    /// A flat map is black.
    pub fn map(&self, frame: &Frame) -> Result<Frame> {
        let unit = self.unit(frame)?;
        let pixels = unit.iter().flat_map(|near| [(near * 255.0) as u8; 3]).collect();
        Frame::new(frame.width(), frame.height(), pixels)
    }

    /// The map before it is cut to 8 bits: a number from 0 to 1 for every pixel, row by row.
    ///
    /// # Errors
    /// As [`Depth::map`].
    pub fn unit(&self, frame: &Frame) -> Result<Vec<f32>> {
        let answer = self.answer(&self.pixels(frame)?)?;
        let (rows, columns) = answer.dims2()?;
        let answer = answer.flatten_all()?.to_vec1::<f32>()?;
        let grown = bicubic(&answer, columns, rows, frame.width(), frame.height());
        let (least, most) = grown.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, m), &v| (l.min(v), m.max(v)));
        if !grown.iter().all(|value| value.is_finite()) {
            let remedy =
                "the network is damaged, or its preprocessing is not its own; convert the model again".to_owned();
            return Err(Error::NotFinite { what: "a depth".into(), remedy });
        }
        if !(most > least) {
            return Ok(vec![0.0; grown.len()]); // a wall
        }
        let unit = |value: f32| (value - least) / (most - least);
        let near = self.preprocessing.near_is_large;
        Ok(grown.into_iter().map(|value| if near { unit(value) } else { 1.0 - unit(value) }).collect())
    }

    /// What the network is shown: `[1, 3, h, w]`, resized and normalised.
    ///
    /// # Errors
    /// None that a frame could cause.
    pub fn pixels(&self, frame: &Frame) -> Result<Tensor> {
        let own = &self.preprocessing;
        let Sides { height, width } = own.sides(frame.width(), frame.height());
        let filter = match own.resample {
            1 => Filter::Lanczos,
            2 => Filter::Bilinear,
            _ => Filter::Bicubic,
        };
        super::normalised(&frame.resize_with(filter, width, height)?, own.image_mean, own.image_std)
    }

    /// The network's answer `[h, w]` to `pixels: [1, 3, h, w]`.
    ///
    /// # Errors
    /// If the network does not run on them, or does not answer with one map.
    pub fn answer(&self, pixels: &Tensor) -> Result<Tensor> {
        let answer = self.model.run(pixels)?;
        match answer.dims() {
            [1, h, w] | [1, 1, h, w] | [h, w] if h * w > 0 => Ok(answer.reshape((*h, *w))?),
            other => Err(self.model.fault(format!("answers with {other:?}, wanted a depth map [1, height, width]"))),
        }
    }
}

/// PyTorch's `interpolate(mode="bicubic", align_corners=False)` of a plane: Keys' cubic with a = -0.75, the edge pixel
/// repeated beyond the border, nothing blurred when it shrinks.
fn bicubic(plane: &[f32], width: usize, height: usize, to_width: usize, to_height: usize) -> Vec<f32> {
    let (across, down) = (taps(width, to_width), taps(height, to_height));
    let mut grown = Vec::with_capacity(to_width * to_height);
    for (rows, by_row) in &down {
        for (columns, by_column) in &across {
            let row = |y: usize| (0..4).map(|k| plane[y * width + columns[k]] * by_column[k]).sum::<f32>();
            grown.push((0..4).map(|k| row(rows[k]) * by_row[k]).sum());
        }
    }
    grown
}

/// The four pixels that each new one is made of, and their weights.
fn taps(size: usize, to_size: usize) -> Vec<([usize; 4], [f32; 4])> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = size as f32 / to_size as f32;
    let tap = |i: usize| {
        let place = scale * (i as f32 + 0.5) - 0.5;
        let t = place - place.floor();
        let pixel = |k: isize| (place.floor() as isize + k).clamp(0, size as isize - 1) as usize;
        ([pixel(-1), pixel(0), pixel(1), pixel(2)], [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)])
    };
    (0..to_size).map(tap).collect()
}
