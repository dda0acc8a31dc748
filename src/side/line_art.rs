//! Line drawings: the generator of Informative Drawings (arXiv 2203.12691) or its like as ONNX, in tract, used as
//! controlnet_aux's `LineartDetector` uses it.

use super::onnx::OnnxModel;
use crate::camera::Frame;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::path::Path;

/// The network halves the picture twice and must get whole pixels each time.
const STEP: usize = 4;

/// A network that draws.
#[derive(Debug)]
pub struct LineArt {
    model: OnnxModel,
}

impl LineArt {
    /// Reads the network.
    ///
    /// # Errors
    /// If it is not ONNX.
    pub fn open(path: &Path) -> Result<LineArt> {
        Ok(LineArt { model: OnnxModel::open(path)? })
    }

    /// The drawing as a ControlNet reads it: white lines on black, of the picture's size, in 8 bits. The picture is drawn
    /// at the size it has, to the next multiple of four pixels.
    ///
    /// # Errors
    /// If the network does not run on such a picture, or does not answer with one.
    pub fn draw(&self, frame: &Frame) -> Result<Frame> {
        let (width, height) = (frame.width(), frame.height());
        let fits = (width.next_multiple_of(STEP), height.next_multiple_of(STEP));
        if fits != (width, height) {
            return self.draw(&frame.resize(fits.0, fits.1)?)?.resize(width, height);
        }
        let paper = self.paper(frame)?;
        // cut off, not rounded, and turned round after that
        let lines = paper.iter().flat_map(|white| [255 - (white * 255.0).clamp(0.0, 255.0) as u8; 3]).collect();
        Frame::new(width, height, lines)
    }

    /// How white the paper stays at every pixel, row by row, 0 to 1.
    ///
    /// # Errors
    /// As [`LineArt::draw`], and for a picture whose sides are not multiples of four.
    pub fn paper(&self, frame: &Frame) -> Result<Vec<f32>> {
        let (width, height) = (frame.width(), frame.height());
        let (plane, mut planes) = (width * height, vec![0f32; 3 * width * height]);
        for (i, pixel) in frame.rgb().chunks_exact(3).enumerate() {
            (0..3).for_each(|c| planes[c * plane + i] = f32::from(pixel[c]) / 255.0);
        }
        let answer = self.model.run(&Tensor::from_vec(planes, (1, 3, height, width), &Device::Cpu)?)?;
        if answer.dims() != [1, 1, height, width] {
            let found = answer.dims();
            let what =
                format!("answers with {found:?} to a picture of {width}x{height}, wanted [1, 1, {height}, {width}]");
            return Err(self.model.fault(what));
        }
        let paper = answer.flatten_all()?.to_vec1::<f32>()?;
        match paper.iter().all(|white| white.is_finite()) {
            true => Ok(paper),
            false => {
                let remedy = "the network that draws lines is damaged; convert the model again".to_owned();
                Err(Error::NotFinite { what: "a pixel of the line drawing".into(), remedy })
            }
        }
    }
}
