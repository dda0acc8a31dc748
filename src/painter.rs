//! camera -> Frame -> Latent -> denoising steps -> Latent -> Canvas.

mod control;
mod guided;
mod memory;
mod order;
mod request;
mod validation;

pub use control::{ControlChoice, ControlPicture};
pub use order::{Inversion, Order, StyleChoice};
pub use request::{
    CONTROL_SCALE, ControlScale, GUIDANCE, GivenControl, Habits, NEGATIVE, Pictures, Request, STRENGTH, Size,
};
pub use validation::{STEPS as VALIDATION_STEPS, Validation};

use crate::bundle::Bundle;
use crate::bundle::control::Control;
use crate::bundle::part::Part;
use crate::camera::Frame;
use crate::canvas::{Canvas, Metadata};
use crate::net::{ControlNet, Latent, TextEncoder, Unet};
use crate::prompt::Tokenizer;
use crate::sampler::{OnStep, Plan, Schedule, SchedulerConfig, TorchRng, ddim, sample};
use crate::side::{control::Drawer, vae::Vae};
use crate::{Error, Result};
use control::Hint;
use guided::Guided;
use memory::Residency;
use std::path::Path;
use std::sync::Arc;

/// An opened model, ready to paint.
#[derive(Debug)]
pub struct Painter {
    bundle: Arc<Bundle>,
    schedule: Schedule,
    tokenizer: Tokenizer,
    text: TextEncoder,
    unet: Part<Unet>,
    /// By what they look at; all but the first are loaded when they are first used.
    controlnets: Vec<(Control, Part<ControlNet>)>,
    drawer: Drawer,
    vae: Vae,
    residency: Residency,
}

impl Painter {
    /// Paints an order. The same order on the same device gives the same picture, byte for byte.
    ///
    /// # Errors
    /// Whatever an arrow of the sentence reports, and any error `on_step` returns.
    pub fn paint(&self, order: &Order, on_step: &mut OnStep<'_>) -> Result<Canvas> {
        self.paint_with(order, &self.control_pictures(order)?, on_step)
    }

    /// As [`Painter::paint`], with the control pictures that [`Painter::control_pictures`] gave for this order or for the
    /// same with another seed.
    ///
    /// # Errors
    /// As [`Painter::paint`].
    pub fn paint_with(&self, order: &Order, controls: &[ControlPicture], on_step: &mut OnStep<'_>) -> Result<Canvas> {
        self.decode(&self.paint_latent_with(order, controls, on_step)?)
    }

    /// The picture of a latent.
    ///
    /// # Errors
    /// If the latent is not `[1, 4, h, w]`.
    pub fn decode(&self, latent: &Latent) -> Result<Canvas> {
        self.release_denoiser();
        Canvas::from_planar(&self.vae.decode(latent)?)
    }

    /// A painting that is not decoded yet.
    ///
    /// # Errors
    /// As [`Painter::paint`].
    pub fn paint_latent(&self, order: &Order, on_step: &mut OnStep<'_>) -> Result<Latent> {
        self.paint_latent_with(order, &self.control_pictures(order)?, on_step)
    }

    fn paint_latent_with(
        &self,
        order: &Order,
        controls: &[ControlPicture],
        on_step: &mut OnStep<'_>,
    ) -> Result<Latent> {
        let (width, height) = order.size(&self.bundle)?;
        let plan = Plan::new(&self.schedule, order.sampler, order.steps, order.strength()?)?;
        let mut rng = TorchRng::new(order.seed);

        let content = order.content.as_ref().map(|frame| frame.resize_to_cover(width, height)).transpose()?;
        self.release_unused(controls);
        let hints = self.hints(controls)?;
        let start = match &content {
            Some(frame) => self.invert(order, &plan, frame, &hints, &mut rng, on_step)?,
            None => plan.start(&rng.randn(&self.latent_shape(width, height))?)?,
        };
        self.release_vae();
        let mut denoiser = Guided::new(self, order, hints)?;
        Ok(Latent(sample(&mut denoiser, &plan, start, &mut |shape| rng.randn(shape), on_step)?))
    }

    /// A picture's latent, carried up to the plan's first timestep: by noise (SDEdit, as in the paper) or by running the
    /// denoiser backwards (DDIM inversion).
    fn invert(
        &self,
        order: &Order,
        plan: &Plan,
        frame: &Frame,
        hints: &[Hint<'_>],
        rng: &mut TorchRng,
        on_step: &mut OnStep<'_>,
    ) -> Result<candle_core::Tensor> {
        self.release_denoiser();
        let posterior = self.vae.encode(frame)?;
        match order.inversion {
            Inversion::Noise => {
                let shape = self.latent_shape(frame.width(), frame.height());
                let latent = posterior.sample(&rng.randn(&shape)?)?;
                plan.add_noise(&latent.0, &rng.randn(&shape)?)
            }
            Inversion::Ddim => {
                let order = order.context_alone();
                let mut denoiser = Guided::new(self, &order, hints.to_vec())?;
                ddim::invert(&mut denoiser, plan, &posterior.mode()?.0, on_step)
            }
        }
    }

    /// Opens a model folder and loads every network.
    ///
    /// # Errors
    /// If a part is missing, damaged or of a kind that is not supported; everything wrong with it is named.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::new(Bundle::open(folder)?)
    }

    /// Loads every network of an opened model.
    ///
    /// # Errors
    /// As [`Painter::open`].
    pub fn new(bundle: Bundle) -> Result<Self> {
        let path = bundle.scheduler();
        let config = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let schedule = SchedulerConfig::from_json(&config).and_then(Schedule::new);
        let tokenizer = Tokenizer::open(bundle.tokenizer())?;
        check_tokenizer(&tokenizer, &bundle)?;
        let bundle = Arc::new(bundle);
        let for_unet = bundle.clone();
        let (residency, vae) = (Residency::of(&bundle)?, Vae::open(&bundle)?);
        if residency == Residency::InTurn {
            vae.release(); // before the denoiser takes its place
        }
        Ok(Painter {
            schedule: schedule.map_err(|e| Error::file(&path, e.to_string()))?,
            tokenizer,
            text: TextEncoder::load(&bundle)?,
            unet: Part::open(move || Unet::load(&for_unet))?,
            controlnets: controlnets(&bundle)?,
            drawer: Drawer::open(&bundle)?,
            vae,
            residency,
            bundle,
        })
    }

    /// The model's folder and configuration.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The text encoder.
    pub fn text_encoder(&self) -> &TextEncoder {
        &self.text
    }

    /// The UNet, loaded again if it made room for the VAE.
    ///
    /// # Errors
    /// If the model was changed since it was opened.
    pub fn unet(&self) -> Result<Arc<Unet>> {
        self.unet.get()
    }

    /// Why the UNet's evaluations are not recorded and played back, where the device could do so and refused.
    pub fn not_recorded(&self) -> Option<String> {
        self.unet.loaded()?.not_recorded()
    }

    /// The VAE.
    pub fn vae(&self) -> &Vae {
        &self.vae
    }

    /// The noise schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// A quick look at an unfinished painting: the denoised estimate of a step, decoded by the bundle's tiny decoder where
    /// it has one.
    ///
    /// # Errors
    /// If the latent is not `[1, 4, h, w]`.
    pub fn preview(&self, denoised: &candle_core::Tensor) -> Result<Canvas> {
        Canvas::from_planar(&self.vae.preview(&Latent(denoised.clone()))?)
    }

    /// Whether a preview costs no more than a few steps: the VAE need not be loaded from disk for it.
    pub fn previews_are_cheap(&self) -> bool {
        self.residency != Residency::InTurn || self.bundle.tiny_decoder().is_some()
    }

    /// How a picture was painted, for its file.
    ///
    /// # Errors
    /// If the prompt names a style that is not given.
    pub fn metadata(&self, order: &Order) -> Result<Metadata> {
        let mut recipe = order.recipe()?;
        recipe["program"] = concat!("pleinair ", env!("CARGO_PKG_VERSION")).into();
        recipe["bundle"] = self.bundle.name().into();
        // a number alone is about the model's first ControlNet
        if let [only] = &order.controls[..]
            && self.bundle.controlnets.first().is_some_and(|first| first.control == only.control)
        {
            recipe["control_scale"] = only.scale.into();
        }
        Ok(Metadata {
            prompt: order.prompt_text()?,
            negative: order.negative.clone(),
            steps: order.steps,
            sampler: order.sampler.name().to_owned(),
            cfg_scale: order.guidance.prompt,
            seed: order.seed,
            model_hash: self.text.base()?.chars().take(10).collect(),
            strength: order.content.is_some().then_some(order.strength),
            recipe,
        })
    }

    /// Before the VAE works, whose maps of a large picture take as much memory as the denoiser's weights.
    fn release_denoiser(&self) {
        match self.residency {
            Residency::Mapped => {
                let controlnets = self.bundle.controlnets.iter().map(|net| net.part.as_str());
                ["unet"].into_iter().chain(controlnets).for_each(|part| self.bundle.release(part));
            }
            Residency::Together => {}
            Residency::InTurn => {
                self.unet.release();
                self.controlnets.iter().for_each(|(_, net)| net.release());
            }
        }
    }

    /// Where there are several ControlNets, only those that speak are in memory.
    fn release_unused(&self, controls: &[ControlPicture]) {
        if self.controlnets.len() > 1 && self.residency != Residency::Together {
            let unused = |control: &Control| controls.iter().all(|used| used.control != *control);
            self.controlnets.iter().filter(|(control, _)| unused(control)).for_each(|(_, net)| net.release());
        }
    }

    /// Before anything else works.
    fn release_drawer(&self) {
        if self.residency != Residency::Together {
            self.drawer.release();
        }
    }

    /// Before the denoiser works.
    pub fn release_vae(&self) {
        if self.residency != Residency::Together {
            self.vae.release();
        }
    }

    fn latent_shape(&self, width: usize, height: usize) -> [usize; 4] {
        [1, self.bundle.unet.in_channels, height / self.vae.factor(), width / self.vae.factor()]
    }
}

/// The ControlNets of a model. The first, which every photograph is painted with unless somebody says otherwise, is loaded.
fn controlnets(bundle: &Arc<Bundle>) -> Result<Vec<(Control, Part<ControlNet>)>> {
    let part = |(number, control): (usize, Control)| {
        let bundle = bundle.clone();
        let load = move || ControlNet::load(&bundle, control);
        Ok((control, if number == 0 { Part::open(load)? } else { Part::later(load) }))
    };
    bundle.controlnets.iter().map(|net| net.control).enumerate().map(part).collect()
}

/// The tokenizer must not speak of words or places that the text encoder does not have.
fn check_tokenizer(tokenizer: &Tokenizer, bundle: &Bundle) -> Result<()> {
    let largest = [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()].into_iter().max().unwrap_or(0) as usize;
    let (words, places) = (bundle.text.vocab_size, bundle.text.max_position_embeddings);
    if largest < words && tokenizer.positions() <= places {
        return Ok(());
    }
    let problem = format!(
        "tokenizer: token {largest} and {} places do not fit the text encoder's {words} words and {places} places",
        tokenizer.positions()
    );
    Err(Error::Model { folder: bundle.folder().to_path_buf(), problems: vec![problem] })
}
