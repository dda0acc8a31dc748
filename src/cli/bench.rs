//! `pleinair bench`: how long this machine takes, and how much memory, with the answer checked before a time is told.

use super::doctor::binary;
use super::paint::plain_order;
use super::{model, place, print, print_json};
use candle_core::Tensor;
use clap::ValueEnum;
use pleinair::bundle::manifest::Dtype;
use pleinair::bundle::{Bundle, folder_name};
use pleinair::camera::Frame;
use pleinair::net::{TextKv, Unet};
use pleinair::painter::{Order, Painter, Size};
use pleinair::prompt::{Conditioning, Template};
use pleinair::sampler::TorchRng;
use pleinair::train::{self, Batch, Lesson, Options, Prompts, Study};
use pleinair::{Error, Result};
use pleinair_cpu::isa::Isa;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Tokens of a prompt.
const TOKENS: usize = 77;
/// Where in the thousand timesteps a single evaluation is made.
const TIMESTEP: f64 = 500.0;
/// Stages of the style whose vectors a learning step moves.
const STAGES: usize = 6;
/// Standard deviation of their numbers, about that of CLIP's word vectors.
const WORD_DEVIATION: f64 = 0.013;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What to measure
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    model: model::Choice,
    /// Width and height in pixels, or both as one number [default: the model's own]
    #[arg(long, value_name = "WxH")]
    size: Option<Size>,
    /// Latents that the UNet sees at once; a painting is always one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    batch: u16,
    /// How often to measure [default: unet 5, paint 1, learn 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    runs: Option<u16>,
    /// Steps of a painting, with two evaluations each
    #[arg(long, value_name = "N", default_value_t = 25)]
    steps: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    /// One evaluation of the UNet, the text's keys and values computed before
    Unet,
    /// A whole painting from a prompt, with guidance
    Paint,
    /// One learning step: forward, and backward to the style's vectors
    Learn,
}

/// What was measured; the names are a contract.
#[derive(Debug, Serialize)]
struct Report {
    what: What,
    bundle: String,
    device: &'static str,
    isa: &'static str,
    /// Of feature maps.
    numbers: &'static str,
    /// Why evaluations were not recorded and played back, where the device could do so.
    not_recorded: Option<String>,
    dtype: Dtype,
    size: String,
    batch: u16,
    runs: usize,
    seconds: Vec<f64>,
    median_seconds: f64,
    /// Of the whole process, opening included; where the system does not tell, nothing.
    peak_rss_bytes: Option<u64>,
    /// Of the UNet in one run, a batch of N counting as N.
    evaluations: usize,
    /// Of everything a run computed, the root of the mean square: another program's answer to the same is as large.
    answer_rms: f64,
    /// Until the networks are ready; in no run's time.
    open_seconds: f64,
}

pub(super) fn run(arguments: &Arguments, place: &place::Choice) -> Result<()> {
    let folder = arguments.model.folder()?;
    let target = place.open()?.target;
    let began = Instant::now();
    let bundle = Bundle::open(&folder)?.on(target.clone());
    let dtype = bundle.manifest.as_ref().map_or(Dtype::F32, |manifest| manifest.dtype);
    let (width, height) = arguments.pixels(&bundle)?;
    let runs = usize::from(arguments.runs.unwrap_or(arguments.what.usual_runs()));
    let subject = Subject::open(arguments, bundle, (width, height))?;
    let open_seconds = began.elapsed().as_secs_f64();
    // The first evaluation reads the weights from disk and grows the heap; a painting on the processor is
    // long enough not to care, on a GPU it also loads every kernel and records a step.
    let warm_up = (arguments.what != What::Paint || !target.is_cpu()).then(|| subject.run()).transpose()?;
    let measured = measure(runs, warm_up, &mut || subject.run(), &|problem| unusable(&folder, target.isa(), problem))?;
    let report = Report {
        what: arguments.what,
        bundle: folder_name(&folder),
        device: target.name(),
        isa: target.isa().name(),
        numbers: target.numbers().as_str(),
        not_recorded: subject.not_recorded(),
        dtype,
        size: format!("{width}x{height}"),
        batch: arguments.batch,
        runs,
        median_seconds: median(&measured.seconds),
        seconds: measured.seconds,
        peak_rss_bytes: peak_rss_bytes(),
        evaluations: measured.evaluations,
        answer_rms: measured.answer_rms,
        open_seconds,
    };
    if arguments.json { print_json(&report) } else { print(&report.text()) }
}

impl What {
    fn usual_runs(self) -> u16 {
        match self {
            What::Unet => 5,
            What::Paint => 1,
            What::Learn => 3,
        }
    }
}

impl Arguments {
    /// # Errors
    /// [`Error::Usage`] for what cannot be measured exactly as asked.
    fn pixels(&self, bundle: &Bundle) -> Result<(usize, usize)> {
        let (width, height) = match self.size {
            None => bundle.native_size_like(1, 1),
            Some(Size::Longer(side)) => (side, side),
            Some(Size::Sides(width, height)) => (width, height),
        };
        let step = bundle.size_step();
        if width % step != 0 || height % step != 0 {
            let what = format!("{width}x{height} pixels: both must be multiples of {step} for this model");
            return Err(Error::Usage(what));
        }
        if self.what == What::Paint && self.batch != 1 {
            let what = format!("a painting is one picture, not {}; leave --batch out", self.batch);
            return Err(Error::Usage(what));
        }
        Ok((width, height))
    }
}

/// What a run computed.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    /// Everything that can be compared.
    numbers: Vec<f32>,
    evaluations: usize,
}

/// Opened networks and a fixed input.
enum Subject {
    Unet { unet: Box<Unet>, latent: Tensor, text: TextKv },
    Paint { painter: Box<Painter>, order: Box<Order> },
    Learn { painter: Box<Painter>, prompts: Prompts, batch: Batch, vectors: Vec<Vec<f32>> },
}

impl Subject {
    /// Opens no more than what runs, so that the peak of memory is its own.
    fn open(arguments: &Arguments, bundle: Bundle, (width, height): (usize, usize)) -> Result<Self> {
        let count = usize::from(arguments.batch);
        let shape = (count, bundle.unet.in_channels, height / bundle.factor(), width / bundle.factor());
        let mut rng = TorchRng::new(0);
        Ok(match arguments.what {
            What::Unet => {
                let unet = Box::new(Unet::load(&bundle)?);
                let states = rng.randn((count, TOKENS, bundle.unet.cross_attention_dim))?;
                let text = unet.text_kv(&Conditioning(states))?;
                Subject::Unet { unet, latent: rng.randn(shape)?, text }
            }
            What::Paint => {
                let painter = Box::new(Painter::new(bundle)?);
                let prompt = Template::literal("a painting of a boat on a lake");
                Subject::Paint { painter, order: Box::new(plain_order(prompt, (width, height), arguments.steps)?) }
            }
            What::Learn => {
                let painter = Box::new(Painter::new(bundle)?);
                painter.release_vae(); // as after a lesson's pictures are encoded
                let prompts = Prompts::new(&painter, &lesson()?)?;
                let batch = Batch {
                    latents: rng.randn(shape)?,
                    noise: rng.randn(shape)?,
                    timesteps: (0..count).map(|i| ((i as f64 + 0.5) * 1000.0 / count as f64).floor()).collect(),
                    pictures: vec![0; count],
                };
                let vectors = (rng.randn((STAGES, painter.text_encoder().width()))? * WORD_DEVIATION)?;
                Subject::Learn { painter, prompts, batch, vectors: vectors.to_vec2()? }
            }
        })
    }

    fn not_recorded(&self) -> Option<String> {
        match self {
            Subject::Unet { unet, .. } => unet.not_recorded(),
            Subject::Paint { painter, .. } | Subject::Learn { painter, .. } => painter.not_recorded(),
        }
    }

    fn run(&self) -> Result<Answer> {
        match self {
            Subject::Unet { unet, latent, text } => {
                let count = latent.dim(0)?;
                let output = unet.forward(latent, &vec![TIMESTEP; count], text, None)?;
                Ok(Answer { numbers: output.flatten_all()?.to_vec1()?, evaluations: count })
            }
            Subject::Paint { painter, order } => {
                let mut steps = 0;
                let latent = painter.paint_latent(order, &mut |_| {
                    steps += 1;
                    Ok(())
                })?;
                let mut numbers: Vec<f32> = latent.0.flatten_all()?.to_vec1()?;
                let canvas = painter.decode(&latent)?;
                numbers.extend(canvas.rgb().iter().map(|&value| f32::from(value)));
                Ok(Answer { numbers, evaluations: steps * order.guidance.terms(0).len() })
            }
            Subject::Learn { painter, prompts, batch, vectors } => {
                let (mut numbers, gradient) = train::gradient(painter, prompts, batch, vectors)?;
                numbers.extend(gradient.into_iter().flatten());
                Ok(Answer { numbers, evaluations: batch.timesteps.len() })
            }
        }
    }
}

/// A lesson for its prompt; the latents are drawn, so its picture is never looked at.
fn lesson() -> Result<Lesson> {
    let frame = Frame::new(1, 1, vec![0; 3])?;
    Ok(Lesson {
        token: "style".into(),
        studies: vec![Study { frame, context: Template::style_only() }],
        stages: STAGES,
        steps: 1,
        batch: 1,
        lr: 0.002.into(),
        init: "painting".into(),
        seed: 0,
        license: String::new(),
        options: Options::default(),
    })
}

#[derive(Debug)]
struct Measured {
    seconds: Vec<f64>,
    evaluations: usize,
    answer_rms: f64,
}

/// Times `run`. Every answer must be finite and the same, bit for bit, the one before the clock started included;
/// `unusable` makes an error of what is wrong.
fn measure(
    runs: usize,
    warm_up: Option<Answer>,
    run: &mut dyn FnMut() -> Result<Answer>,
    unusable: &dyn Fn(String) -> Error,
) -> Result<Measured> {
    let (mut first, mut seconds, mut evaluations) = (warm_up, vec![], 0);
    for number in 1..=runs {
        let began = Instant::now();
        let answer = run()?;
        seconds.push(began.elapsed().as_secs_f64());
        evaluations = answer.evaluations;
        let first = first.get_or_insert_with(|| answer.clone());
        if !answer.numbers.iter().all(|number| number.is_finite()) {
            return Err(unusable(format!("bench: the answer of run {number} is not finite")));
        }
        let bits = |answer: &Answer| answer.numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        if bits(&answer) != bits(first) || answer.evaluations != first.evaluations {
            return Err(unusable(format!(
                "bench: run {number} gave another answer than the first, from the same input"
            )));
        }
    }
    Ok(Measured { seconds, evaluations, answer_rms: root_mean_square(&first.map_or(vec![], |answer| answer.numbers)) })
}

/// Of no numbers, NaN.
fn root_mean_square(numbers: &[f32]) -> f64 {
    let squares: f64 = numbers.iter().map(|&number| f64::from(number).powi(2)).sum();
    (squares / numbers.len() as f64).sqrt()
}

fn unusable(folder: &Path, isa: Isa, problem: String) -> Error {
    let problem = format!("{problem}; pleinair doctor tests the model, PLEINAIR_ISA=scalar runs it without {isa}");
    Error::Model { folder: folder.to_path_buf(), problems: vec![problem] }
}

/// The mean of the middle two where there is no middle one.
fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// The most memory this process ever had resident, mapped files included.
fn peak_rss_bytes() -> Option<u64> {
    super::doctor::proc_bytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

impl Report {
    fn text(&self) -> String {
        let Report {
            bundle,
            device,
            isa,
            numbers,
            dtype,
            size,
            batch,
            runs,
            median_seconds,
            open_seconds,
            evaluations,
            ..
        } = self;
        let what = match self.what {
            What::Unet => "UNet",
            What::Paint => "painting",
            What::Learn => "learning step",
        };
        let peak = self.peak_rss_bytes.map_or("not known here".to_owned(), binary);
        let (low, high) = self.seconds.iter().fold((f64::MAX, 0.0f64), |(low, high), &s| (low.min(s), high.max(s)));
        let place = if *device == "cpu" { (*isa).to_owned() } else { format!("{device} in {numbers}") };
        format!(
            "{what} {size} batch {batch}, {bundle} {dtype} on {place}: {median_seconds:.3} s \
             (median of {runs}, {low:.3} to {high:.3}), evaluations {evaluations}, opened in {open_seconds:.2} s, peak {peak}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs whose answers are these, after a warm-up with the first of them.
    fn measured(answers: &[f32]) -> Result<Measured> {
        let answer = |&number: &f32| Answer { numbers: vec![1.0, number], evaluations: 2 };
        let mut answers = answers.iter().map(answer);
        let warm_up = answers.next();
        measure(answers.len(), warm_up, &mut || Ok(answers.next().unwrap()), &Error::Usage)
    }

    #[test]
    fn answers_that_are_not_finite_or_not_the_same_have_no_time() {
        let good = measured(&[0.5, 0.5, 0.5]).unwrap();
        assert_eq!((good.seconds.len(), good.evaluations), (2, 2));
        assert_eq!(good.answer_rms, 0.625f64.sqrt(), "of 1 and 0.5");
        for (answers, fault) in [
            (&[0.5, 0.5, 0.25][..], "run 2 gave another answer"),
            (&[0.5, 0.25, 0.25], "run 1 gave another answer"),
            (&[0.0, -0.0], "run 1 gave another answer"),
            (&[f32::NAN, f32::NAN], "run 1 is not finite"),
            (&[0.5, f32::INFINITY], "run 1 is not finite"),
        ] {
            let said = measured(answers).unwrap_err().to_string();
            assert!(said.contains(fault), "{answers:?}: {said}");
        }
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        assert_eq!([median(&[3.0]), median(&[3.0, 1.0, 9.0]), median(&[4.0, 1.0, 2.0, 9.0])], [3.0, 3.0, 3.0]);
    }
}
