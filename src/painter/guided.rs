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
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Prompts' keys and values for the UNet and the ControlNets that speak.
struct Text {
    unet: TextKv,
    controls: Vec<TextKv>,
}

/// A [`Denoiser`] for one painting.
pub(super) struct Guided<'a> {
    painter: &'a Painter,
    guidance: &'a Guidance,
    /// Stages T of the guidance.
    stages: usize,
    /// The prompts of the guidance's terms at all stages.
    prompts: HashMap<Branch, Tokens>,
    /// The learned styles by their number in the prompts; a style that is only a word has no vectors.
    styles: Vec<Option<&'a Style>>,
    controls: Vec<Hint<'a>>,
    /// By prompt and the stage of each style; a prompt without a style has one entry for the whole painting.
    texts: HashMap<(Branch, Vec<usize>), Rc<Text>>,
    /// The prompts that count, as one batch, by the stage of each style.
    batches: HashMap<(Vec<Branch>, Vec<usize>), Rc<Text>>,
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
        let prompt = |branch| match branch {
            Branch::Negative => tokens(&Template::literal(&order.negative)),
            Branch::Full => tokens(&order.prompt),
            Branch::ContextOnly => tokens(&order.prompt.context_only()),
            Branch::StyleOnly if named.is_empty() => tokens(&Template::literal("A painting")),
            Branch::StyleOnly => tokens(&Template::style_only()),
        };
        let (guidance, stages) = (&order.guidance, order.stages());
        let terms = (0..stages).flat_map(|stage| guidance.terms(stage));
        let branches: HashSet<Branch> = terms.map(|(branch, _)| branch).collect();
        let prompts = branches.into_iter().map(|branch| Ok((branch, prompt(branch)?))).collect::<Result<_>>()?;
        let (texts, batches) = Default::default();
        Ok(Guided { painter, guidance, stages, prompts, styles, controls, texts, batches })
    }

    /// The batch of these prompts for timestep `t`.
    fn batch(&mut self, branches: Vec<Branch>, t: f64) -> Result<Rc<Text>> {
        let stages: Vec<_> = self.styles.iter().map(|s| s.map_or(0, |s| stage_of(t, s.stages()))).collect();
        let key = (branches, stages);
        if let Some(batch) = self.batches.get(&key) {
            return Ok(batch.clone());
        }
        let (branches, stages) = &key;
        let texts: Vec<_> = branches.iter().map(|branch| self.text(*branch, stages)).collect::<Result<_>>()?;
        // not needed again before the next stage
        self.painter.bundle.release("text_encoder");
        let unet = TextKv::cat(&texts.iter().map(|t| &t.unet).collect::<Vec<_>>())?;
        let control = |net: usize| TextKv::cat(&texts.iter().map(|t| &t.controls[net]).collect::<Vec<_>>());
        let controls = (0..self.controls.len()).map(control).collect::<Result<_>>()?;
        let batch = Rc::new(Text { unet, controls });
        self.batches.insert(key, batch.clone());
        Ok(batch)
    }

    /// One prompt with each style at its stage.
    fn text(&mut self, branch: Branch, stages: &[usize]) -> Result<Rc<Text>> {
        let tokens = &self.prompts[&branch];
        let key = (branch, if tokens.styles.is_empty() { vec![] } else { stages.to_vec() });
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
        let stage = stage_of(t, self.stages);
        let branches: Vec<_> = self.guidance.terms(stage).into_iter().map(|(branch, _)| branch).collect();
        let n = branches.len();
        let text = self.batch(branches, t)?;
        let (stacked, timesteps) = (Tensor::cat(&vec![x; n], 0)?, vec![t; n]);
        let said = self.controls.iter().zip(&text.controls).map(|(control, text)| {
            control.net.get()?.forward(&stacked, &timesteps, text, &control.hint, control.scale)
        });
        let control = Residuals::sum(said.collect::<Result<_>>()?)?;
        let outputs = self.painter.unet()?.forward(&stacked, &timesteps, &text.unet, control.as_ref())?;
        let guided = self.guidance.combine(&outputs, stage)?;
        let schedule = &self.painter.schedule;
        schedule.denoised_from_prediction(schedule.config().prediction_type, x, &guided, t)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::painter::Inversion;
    use crate::sampler::{GuidanceForm, Plan, Sampler, sample};
    use crate::stages::PerStage;
    use std::path::Path;

    fn curve(text: &str) -> PerStage {
        text.parse().unwrap()
    }

    fn order(painter: &Painter, style: impl Into<PerStage>, content: impl Into<PerStage>) -> Order {
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
        let wanted = [
            (Branch::Negative, tokens("blurry")),
            (Branch::Full, tokens("a painting of a boat, in the style of {}")),
            (Branch::ContextOnly, tokens("a painting of a boat")),
            (Branch::StyleOnly, tokens("A painting in the style of {}")),
        ];
        assert_eq!(guided.prompts, HashMap::from(wanted));
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
            let guidance = Guidance { style: 0.0.into(), content: 0.0.into(), prompt: 1.0, ..whole.guidance };
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

    #[test]
    fn a_step_has_the_strengths_of_its_stage() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15");
        let painter = Painter::open(&folder).unwrap();
        let x = crate::sampler::TorchRng::new(5).randn((1, 4, 8, 8)).unwrap();
        let step = |order: &Order, t: f64| {
            let clean = Guided::new(&painter, order, vec![]).unwrap().denoise(&x, t).unwrap();
            let bits = |value: f32| value.to_bits();
            clean.flatten_all().unwrap().to_vec1().unwrap().into_iter().map(bits).collect::<Vec<_>>()
        };
        let some = order(&painter, curve("5..3=1.5"), curve("4=1,3..0=1"));
        let (both, one, none) = (order(&painter, 1.5, 1.0), order(&painter, 1.5, 0.0), order(&painter, 0.0, 1.0));
        for (t, alike, other) in
            [(999.0, &one, &both), (834.0, &one, &none), (700.0, &both, &none), (500.0, &both, &one)]
        {
            assert!(step(&some, t) == step(alike, t) && step(&some, t) != step(other, t), "{t}");
        }
        for t in [499.0, 167.0, 0.0] {
            assert!(step(&some, t) == step(&none, t) && step(&some, t) != step(&both, t), "{t}");
        }
        // the same number at each stage is the number
        let flat = order(&painter, curve("5..3=1.5,2..0=1.5"), curve("5..0=1..1"));
        assert_eq!(step(&flat, 700.0), step(&both, 700.0));
        // of a style of three stages 2 is the highest, of words 5
        let mut short = order(&painter, curve("2=1.5"), 0.0);
        let StyleChoice::Learned(style) = &mut short.styles[0] else { unreachable!() };
        style.vectors.truncate(3);
        let whole = Order { guidance: one.guidance.clone(), ..short.clone() };
        assert_eq!(step(&short, 700.0), step(&whole, 700.0));
        let words = |guidance: &Guidance| {
            let styles = vec![StyleChoice::Word("oil".into())];
            Order { styles, guidance: guidance.clone(), ..whole.clone() }
        };
        assert_eq!(step(&words(&some.guidance), 900.0), step(&words(&one.guidance), 900.0));
    }

    /// Evaluations and passes of the text encoder in a whole painting of 12 steps.
    fn work(style: impl Into<PerStage>, content: impl Into<PerStage>) -> (usize, usize) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15");
        let painter = Painter::open(&folder).unwrap();
        let order = order(&painter, style, content);
        let mut guided = Guided::new(&painter, &order, vec![]).unwrap();
        let plan = Plan::new(&painter.schedule, order.sampler, order.steps, 1.0).unwrap();
        let x = Tensor::ones((1, 4, 8, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        let count = |step: &crate::sampler::Step| order.guidance.terms(stage_of(step.timestep, 6)).len();
        let evaluations = plan.steps().iter().map(count).sum();
        sample(&mut guided, &plan, x, &mut |_| unreachable!("DDIM draws no noise"), &mut |_| Ok(())).unwrap();
        (evaluations, guided.texts.len())
    }

    #[test]
    fn equal_scales_take_two_evaluations_and_each_text_is_encoded_once() {
        // two branches: the negative once, the full prompt once for each of the six stages
        assert_eq!(work(0.0, 0.0), (24, 1 + 6));
        assert_eq!(work(3.0, 3.0), (24, 1 + 6));
        // four branches: negative and context once, full and style-only once for each stage
        assert_eq!(work(1.0, 3.0), (48, 2 + 12));
        // four only at the five steps of the last two stages, and style-only is encoded for no other
        assert_eq!(work(curve("1..0=2"), 0.0), (5 * 4 + 7 * 2, 2 + 6 + 2));
    }
}
