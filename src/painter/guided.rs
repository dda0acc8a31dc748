//! The networks as one denoiser: guidance branches in one batch, a ControlNet beside the UNet, and text keys and values
//! computed once for each prompt and stage.

use super::control::Hint;
use super::{Order, Painter, StyleChoice};
use crate::Result;
use crate::net::{Residuals, TextKv};
use crate::prompt::{Template, Tokens};
use crate::sampler::{Branch, Denoiser, Guidance};
use crate::style::{Style, stage_of};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::rc::Rc;

/// Prompts' keys and values for the UNet and the ControlNets that speak.
struct Text {
    unet: TextKv,
    controls: Vec<TextKv>,
}

/// A [`Denoiser`] for one painting.
pub(super) struct Guided<'a> {
    painter: &'a Painter,
    guidance: Guidance,
    /// The prompts of the guidance's terms, in its order.
    prompts: Vec<Tokens>,
    /// The learned styles by their number in the prompts; a style that is only a word has no vectors.
    styles: Vec<Option<&'a Style>>,
    controls: Vec<Hint<'a>>,
    /// By prompt and the stage of each style; a prompt without a style has one entry for the whole painting.
    texts: HashMap<(usize, Vec<usize>), Rc<Text>>,
    /// All prompts as one batch, by the stage of each style.
    batches: HashMap<Vec<usize>, Rc<Text>>,
}

impl<'a> Guided<'a> {
    pub(super) fn new(painter: &'a Painter, order: &'a Order, controls: Vec<Hint<'a>>) -> Result<Self> {
        let base = painter.text.base()?;
        let vectors = |choice: &'a StyleChoice| match choice {
            StyleChoice::Learned(style) => style.check_fits(&base, painter.text.width()).map(|()| Some(style)),
            StyleChoice::Word(_) => Ok(None),
        };
        let styles = order.styles.iter().map(vectors).collect::<Result<_>>()?;
        let named = order.prompt_styles();
        let tokens = |template: &Template| template.tokens(&painter.tokenizer, &named);
        let prompt = |(branch, _)| match branch {
            Branch::Negative => tokens(&Template::literal(&order.negative)),
            Branch::Full => tokens(&order.prompt),
            Branch::ContextOnly => tokens(&order.prompt.context_only()),
            Branch::StyleOnly if named.is_empty() => tokens(&Template::literal("A painting")),
            Branch::StyleOnly => tokens(&Template::style_only()),
        };
        let prompts = order.guidance.terms().into_iter().map(prompt).collect::<Result<_>>()?;
        let (texts, batches) = Default::default();
        Ok(Guided { painter, guidance: order.guidance, prompts, styles, controls, texts, batches })
    }

    /// The batch of prompts for timestep `t`.
    fn batch(&mut self, t: f64) -> Result<Rc<Text>> {
        let stages: Vec<_> = self.styles.iter().map(|s| s.map_or(0, |s| stage_of(t, s.stages()))).collect();
        if let Some(batch) = self.batches.get(&stages) {
            return Ok(batch.clone());
        }
        let texts: Vec<_> = (0..self.prompts.len()).map(|i| self.text(i, &stages)).collect::<Result<_>>()?;
        // not needed again before the next stage
        self.painter.bundle.release("text_encoder");
        let unet = TextKv::cat(&texts.iter().map(|t| &t.unet).collect::<Vec<_>>())?;
        let control = |net: usize| TextKv::cat(&texts.iter().map(|t| &t.controls[net]).collect::<Vec<_>>());
        let controls = (0..self.controls.len()).map(control).collect::<Result<_>>()?;
        let batch = Rc::new(Text { unet, controls });
        self.batches.insert(stages, batch.clone());
        Ok(batch)
    }

    /// One prompt with each style at its stage.
    fn text(&mut self, prompt: usize, stages: &[usize]) -> Result<Rc<Text>> {
        let tokens = &self.prompts[prompt];
        let key = (prompt, if tokens.styles.is_empty() { vec![] } else { stages.to_vec() });
        if let Some(text) = self.texts.get(&key) {
            return Ok(text.clone());
        }
        let vector = |(style, &stage): (&Option<&Style>, &usize)| match style {
            Some(style) => {
                let shape = (style.vectors_per_stage, style.width());
                Tensor::from_slice(&style.vectors[stage], shape, &Device::Cpu)
            }
            None => Tensor::zeros(self.painter.text.width(), candle_core::DType::F32, &Device::Cpu),
        };
        let vectors: Vec<_> = self.styles.iter().zip(stages).map(vector).collect::<candle_core::Result<_>>()?;
        let states = self.painter.text.forward(&self.painter.text.embed(tokens, &vectors)?)?;
        let controls =
            self.controls.iter().map(|control| control.net.get()?.text_kv(&states)).collect::<Result<_>>()?;
        let text = Rc::new(Text { unet: self.painter.unet()?.text_kv(&states)?, controls });
        self.texts.insert(key, text.clone());
        Ok(text)
    }
}

impl Denoiser for Guided<'_> {
    fn denoise(&mut self, x: &Tensor, t: f64) -> Result<Tensor> {
        let text = self.batch(t)?;
        let n = self.prompts.len();
        let (stacked, timesteps) = (Tensor::cat(&vec![x; n], 0)?, vec![t; n]);
        let said = self.controls.iter().zip(&text.controls).map(|(control, text)| {
            control.net.get()?.forward(&stacked, &timesteps, text, &control.hint, control.scale)
        });
        let control = Residuals::sum(said.collect::<Result<_>>()?)?;
        let outputs = self.painter.unet()?.forward(&stacked, &timesteps, &text.unet, control.as_ref())?;
        let guided = self.guidance.combine(&outputs)?;
        let schedule = &self.painter.schedule;
        schedule.denoised_from_prediction(schedule.config().prediction_type, x, &guided, t)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::painter::Inversion;
    use crate::sampler::{GuidanceForm, Plan, Sampler, sample};
    use std::path::Path;

    fn order(painter: &Painter, style: f64, content: f64) -> Order {
        let vectors = (0..6).map(|t| vec![0.01 * t as f32; painter.text.width()]).collect();
        let base = painter.text.base().unwrap();
        let learned = Style { token: "mine".into(), vectors, base, ..Style::default() };
        Order {
            prompt: Template::parse("a painting of a boat, in the style of {}").unwrap(),
            negative: String::new(),
            styles: vec![StyleChoice::Learned(learned)],
            content: None,
            size: (64, 64),
            steps: 12,
            strength: 1.0,
            sampler: Sampler::Ddim,
            guidance: Guidance::new(style, content, 5.0, GuidanceForm::Paper).unwrap(),
            controls: vec![],
            inversion: Inversion::Noise,
            seed: 3,
        }
    }

    #[test]
    fn each_branch_of_the_guidance_gets_its_prompt() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15");
        let painter = Painter::open(&folder).unwrap();
        let order = Order { negative: "blurry".into(), ..order(&painter, 1.0, 3.0) };
        let guided = Guided::new(&painter, &order, vec![]).unwrap();
        let style = order.prompt_styles();
        let tokens = |text: &str| Template::parse(text).unwrap().tokens(&painter.tokenizer, &style).unwrap();
        let branches: Vec<_> = order.guidance.terms().into_iter().map(|(branch, _)| branch).collect();
        assert_eq!(branches, [Branch::Negative, Branch::Full, Branch::ContextOnly, Branch::StyleOnly]);
        let wanted = [
            tokens("blurry"),
            tokens("a painting of a boat, in the style of {}"),
            tokens("a painting of a boat"),
            tokens("A painting in the style of {}"),
        ];
        assert_eq!(guided.prompts, wanted);
    }

    #[test]
    fn a_step_of_four_branches_is_equation_11() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15");
        let painter = Painter::open(&folder).unwrap();
        let (ls, lc, ln, t) = (1.0, 3.0, 5.0, 481.0);
        let whole = order(&painter, ls, lc);
        let x = crate::sampler::TorchRng::new(5).randn((1, 4, 8, 8)).unwrap();
        // one evaluation for each prompt alone: scales 0, 0 and 1 leave the full prompt by itself
        let alone = |prompt: &str| {
            let guidance = Guidance { style: 0.0, content: 0.0, prompt: 1.0, ..whole.guidance };
            let order = Order { prompt: Template::parse(prompt).unwrap(), guidance, ..whole.clone() };
            Guided::new(&painter, &order, vec![]).unwrap().denoise(&x, t).unwrap()
        };
        let (e0, ev) = (alone(""), alone("a painting of a boat, in the style of {}"));
        let (ec, es) = (alone("a painting of a boat"), alone("A painting in the style of {}"));
        let scaled = |a: &Tensor, b: &Tensor, scale: f64| ((a - b).unwrap() * scale).unwrap();
        let mut wanted = e0.clone();
        for term in [
            scaled(&ev, &ec, ls),
            scaled(&ec, &e0, lc),
            scaled(&es, &e0, ls),
            scaled(&ev, &es, lc),
            scaled(&ev, &e0, ln),
        ] {
            wanted = (wanted + term).unwrap();
        }
        let got = Guided::new(&painter, &whole, vec![]).unwrap().denoise(&x, t).unwrap();
        let off = (got - &wanted).unwrap().abs().unwrap().max_all().unwrap().to_vec0::<f32>().unwrap();
        let size = wanted.abs().unwrap().max_all().unwrap().to_vec0::<f32>().unwrap();
        let moved = (wanted - ev).unwrap().abs().unwrap().max_all().unwrap().to_vec0::<f32>().unwrap();
        // five differences of rounded predictions, scales summing to 17
        assert!(off <= 17.0 * 8.0 * f32::EPSILON * size, "{off:.2e} of {size:.2e}");
        assert!(moved > 0.05 * size, "the guidance must show");
    }

    /// Branches evaluated in a step, and passes of the text encoder in a whole painting.
    fn work(style: f64, content: f64) -> (usize, usize) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15");
        let painter = Painter::open(&folder).unwrap();
        let order = order(&painter, style, content);
        let mut guided = Guided::new(&painter, &order, vec![]).unwrap();
        let plan = Plan::new(&painter.schedule, order.sampler, order.steps, 1.0).unwrap();
        let x = Tensor::ones((1, 4, 8, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        sample(&mut guided, &plan, x, &mut |_| unreachable!("DDIM draws no noise"), &mut |_| Ok(())).unwrap();
        (guided.prompts.len(), guided.texts.len())
    }

    #[test]
    fn equal_scales_take_two_evaluations_and_each_text_is_encoded_once() {
        // two branches: the negative once, the full prompt once for each of the six stages
        assert_eq!(work(0.0, 0.0), (2, 1 + 6));
        assert_eq!(work(3.0, 3.0), (2, 1 + 6));
        // four branches: negative and context once, full and style-only once for each stage
        assert_eq!(work(1.0, 3.0), (4, 2 + 12));
    }
}
