//! What the ControlNets of a painting look at: pictures made of its photograph, or given.

use super::{Order, Painter};
use crate::bundle::control::Control;
use crate::bundle::part::Part;
use crate::camera::Frame;
use crate::canvas::Canvas;
use crate::net::ControlNet;
use crate::net::controlnet::ControlHint;
use crate::side::control::to_unit;
use crate::{Error, Result};
use candle_core::Tensor;

/// A ControlNet that is to speak.
#[derive(Debug, Clone)]
pub struct ControlChoice {
    /// What it looks at.
    pub control: Control,
    /// How loud it speaks.
    pub scale: f64,
    /// The picture it looks at, where that is not made of the photograph. Resized to the painting's size, its shape not
    /// kept, as diffusers does.
    pub image: Option<Frame>,
}

impl ControlChoice {
    /// Of a picture that is made of the photograph.
    pub fn of_content(control: Control, scale: f64) -> Self {
        ControlChoice { control, scale, image: None }
    }
}

/// A picture that a ControlNet looks at.
#[derive(Debug, Clone)]
pub struct ControlPicture {
    /// What it shows.
    pub control: Control,
    /// How loud the ControlNet speaks.
    pub scale: f64,
    /// `[1, 3, H, W]` in [0, 1], of the painting's size.
    pub picture: Tensor,
}

impl ControlPicture {
    /// To look at, and to be given to another painting. Pictures of 8 bits, which are all but soft edges, come back from
    /// a PNG as they were.
    ///
    /// # Errors
    /// [`Error::Candle`] if there is no memory.
    pub fn canvas(&self) -> Result<Canvas> {
        Canvas::from_planar(&((&self.picture * 2.0)? - 1.0)?)
    }
}

/// A ControlNet with what it has read.
#[derive(Debug, Clone)]
pub(super) struct Hint<'a> {
    pub(super) net: &'a Part<ControlNet>,
    pub(super) hint: ControlHint,
    pub(super) scale: f64,
}

impl Painter {
    /// The pictures that an order's ControlNets look at; those with a scale of 0 do not look.
    ///
    /// # Errors
    /// [`Error::Usage`] for a ControlNet that the model does not have, or that has nothing to look at; whatever the
    /// network that makes the picture reports.
    pub fn control_pictures(&self, order: &Order) -> Result<Vec<ControlPicture>> {
        let (width, height) = order.size(&self.bundle)?;
        let content = order.content.as_ref().map(|frame| frame.resize_to_cover(width, height)).transpose()?;
        let mut pictures = vec![];
        for ControlChoice { control, scale, image } in order.controls.iter().filter(|choice| choice.scale != 0.0) {
            let picture = match (image, &content) {
                (Some(image), _) => to_unit(&image.resize(width, height)?)?,
                (None, Some(content)) => self.drawer.draw(*control, content)?,
                (None, None) => {
                    let what = format!("there is neither a photograph nor a {control} picture; give one of them");
                    return Err(Error::Usage(what));
                }
            };
            pictures.push(ControlPicture { control: *control, scale: *scale, picture });
        }
        self.release_drawer();
        Ok(pictures)
    }

    /// What the ControlNets read in these pictures.
    pub(super) fn hints(&self, pictures: &[ControlPicture]) -> Result<Vec<Hint<'_>>> {
        let hint = |ControlPicture { control, scale, picture }: &ControlPicture| {
            let net = self.controlnets.iter().find(|(own, _)| own == control).map(|(_, net)| net);
            let net = net.ok_or_else(|| no_controlnet(&self.bundle, *control))?;
            Ok(Hint { net, hint: net.get()?.hint(picture)?, scale: *scale })
        };
        pictures.iter().map(hint).collect()
    }

    /// Loads every ControlNet and every network that makes control pictures, and has these make one.
    ///
    /// # Errors
    /// Whatever is wrong with the first that does not work.
    pub fn check_controls(&self) -> Result<()> {
        let side = self.bundle.size_step();
        let slope = (0..side * side).flat_map(|i| [i % side, i / side, 128].map(|level| level as u8));
        let frame = Frame::new(side, side, slope.collect())?;
        for control in Control::ALL.into_iter().filter(|control| self.bundle.can_draw(*control)) {
            self.drawer.draw(control, &frame)?;
        }
        self.release_drawer();
        self.controlnets.iter().try_for_each(|(_, net)| net.get().map(drop))
    }
}

/// The error for a ControlNet that is wanted and not there.
pub(super) fn no_controlnet(bundle: &crate::bundle::Bundle, control: Control) -> Error {
    let there: Vec<_> = bundle.controlnets.iter().map(|net| net.control.name()).collect();
    Error::Usage(match there.is_empty() {
        true => "this model has no ControlNet; paint without control pictures".into(),
        false => format!("this model has no ControlNet for {control} pictures, only for {}", there.join(" and ")),
    })
}
