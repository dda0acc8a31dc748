//! The control picture of a photograph, whatever a ControlNet looks at.

use super::depth::Depth;
use super::line_art::LineArt;
use super::{canny::canny, soft_edges::soft_edges};
use crate::bundle::Bundle;
use crate::bundle::control::Control;
use crate::bundle::part::Part;
use crate::camera::Frame;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::path::PathBuf;
use std::sync::Arc;

/// Draws control pictures; the networks for it are loaded when they are first used.
#[derive(Debug)]
pub struct Drawer {
    depth: Option<Part<Depth>>,
    line_art: Option<Part<LineArt>>,
    folder: PathBuf,
}

impl Drawer {
    /// With the networks that come with a model.
    ///
    /// # Errors
    /// If the depth estimator's preprocessing is not one that this program does.
    pub fn open(bundle: &Arc<Bundle>) -> Result<Drawer> {
        let depth = match bundle.depth_estimator() {
            Some(path) => {
                let preprocessing = bundle.depth_preprocessing()?;
                Some(Part::later(move || Depth::open(&path, preprocessing.clone())))
            }
            None => None,
        };
        let line_art = bundle.line_drawer().map(|path| Part::later(move || LineArt::open(&path)));
        Ok(Drawer { depth, line_art, folder: bundle.folder().to_path_buf() })
    }

    /// The control picture of a photograph, of its size: `[1, 3, H, W]` f32 in [0, 1] on the CPU.
    ///
    /// # Errors
    /// If the model has no network for it, or that does not run.
    pub fn draw(&self, control: Control, frame: &Frame) -> Result<Tensor> {
        let missing = || Error::file(&self.folder, format!("this model has no network that makes {control} pictures"));
        match control {
            Control::SoftEdge => soft_edges(frame),
            Control::Canny => to_unit(&canny(frame)?),
            Control::Depth => to_unit(&self.depth.as_ref().ok_or_else(missing)?.get()?.map(frame)?),
            Control::LineArt => to_unit(&self.line_art.as_ref().ok_or_else(missing)?.get()?.draw(frame)?),
        }
    }

    /// Gives the memory of the networks back until they are used again.
    pub fn release(&self) {
        self.depth.iter().for_each(Part::release);
        self.line_art.iter().for_each(Part::release);
    }
}

/// A picture as ControlNets take it: `[1, 3, H, W]` f32 in [0, 1], `pixel / 255`.
///
/// # Errors
/// [`crate::Error::Candle`] when the tensor cannot be made.
pub fn to_unit(frame: &Frame) -> Result<Tensor> {
    let pixels = Tensor::from_slice(frame.rgb(), (1, frame.height(), frame.width(), 3), &Device::Cpu)?;
    Ok((pixels.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(candle_core::DType::F32)? / 255.0)?)
}
