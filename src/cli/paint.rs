//! `pleinair paint`: a photograph or a prompt becomes a picture.

use super::interrupt::Interrupt;
use super::place::{self, Place};
use super::progress::{Event, Progress};
use super::{model, style};
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pleinair::bundle::Bundle;
use pleinair::bundle::write::check_writable;
use pleinair::camera::Frame;
use pleinair::canvas::{Canvas, Metadata};
use pleinair::painter::{Inversion, Order, Painter};
use pleinair::prompt::Template;
use pleinair::sampler::{Guidance, GuidanceForm, Sampler};
use pleinair::{Error, Result};
use std::path::{Path, PathBuf};

/// What the reference code keeps away from.
pub(super) const NEGATIVE: &str =
    "low resolution, poorly drawn, worst quality, low quality, normal quality, blurry image, artifact";
/// Guidance scale of the prompt as a whole, ln in the paper.
pub(super) const GUIDANCE: f64 = 5.0;

/// Text to image without a style, with every setting as it is by default but size and steps.
pub(super) fn plain_order(prompt: Template, size: (usize, usize), steps: usize) -> Result<Order> {
    Ok(Order {
        prompt,
        negative: NEGATIVE.to_owned(),
        styles: vec![],
        content: None,
        size,
        steps,
        strength: 1.0,
        sampler: Sampler::DpmSolverPp2M,
        guidance: Guidance::new(0.0, 0.0, GUIDANCE, GuidanceForm::Paper)?,
        control_scale: 0.0,
        inversion: Inversion::Noise,
        seed: 0,
    })
}

/// No picture is larger than this, in pixels.
const LARGEST: usize = 1 << 24;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: model::Choice,
    /// Photograph to paint; without it the picture comes from the prompt alone
    #[arg(long, value_name = "IMG")]
    content: Option<PathBuf>,
    /// Style file, style of the model, or words the model knows; may be given several times
    #[arg(long = "style", value_name = "FILE|WORD")]
    styles: Vec<String>,
    /// What to paint, with {} where the style goes [default with a style: A painting in the style of {}]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What to keep away from; "" for nothing
    #[arg(long, value_name = "TEXT", default_value = NEGATIVE)]
    negative: String,
    /// How far the photograph is carried towards noise, above 0 and up to 1
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    strength: f64,
    /// Steps of the whole schedule [default: the profile's, else 25, with --content 30]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Solver [default: dpm++2m, with --content unipc]
    #[arg(long, value_name = "NAME", value_parser = sampler())]
    sampler: Option<Sampler>,
    /// How the photograph becomes a latent: noise added, or the denoiser run backwards
    #[arg(long, value_enum, default_value_t)]
    invert: Invert,
    /// Guidance towards the style, ls in the paper
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    style_strength: f64,
    /// Guidance towards the content of the prompt, lc in the paper
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    content_strength: f64,
    /// Guidance towards the prompt as a whole, ln in the paper
    #[arg(long, value_name = "X", default_value_t = GUIDANCE, allow_negative_numbers = true)]
    guidance: f64,
    /// ls and lc as the paper has them, or halved as in its code
    #[arg(long, value_enum, default_value_t)]
    guidance_form: Form,
    /// How much the photograph's edges count; 0 leaves the ControlNet out
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true)]
    control_scale: f64,
    /// Width and height in pixels, such as 256x192, or the longer side alone [default: the model's own area]; what is not
    /// given follows the photograph's shape
    #[arg(long, value_name = "WxH", value_parser = size)]
    size: Option<Size>,
    /// Seed of the noise: the same inputs and seed give the same picture
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Pictures to paint, with the seeds from --seed on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    count: u64,
    /// Write the unfinished picture every N steps, beside the finished one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    preview_every: Option<u32>,
    /// Picture file, .png or .jpg, or a folder, where pictures are numbered
    #[arg(long, value_name = "FILE|DIR")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Invert {
    #[default]
    Noise,
    Ddim,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Form {
    #[default]
    Paper,
    Half,
}

fn sampler() -> impl TypedValueParser<Value = Sampler> {
    PossibleValuesParser::new(Sampler::ALL.map(Sampler::name)).try_map(|name| name.parse::<Sampler>())
}

/// The size of a picture in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Size {
    /// Width and height.
    Sides(usize, usize),
    /// The longer side.
    Longer(usize),
}

pub(super) fn size(text: &str) -> Result<Size, String> {
    let number = |side: &str| side.parse::<usize>().ok();
    let size = match text.split_once(['x', 'X']) {
        Some((width, height)) => number(width).zip(number(height)).map(|(w, h)| Size::Sides(w, h)),
        None => number(text).map(Size::Longer),
    };
    let size = size.ok_or("write it as WIDTHxHEIGHT, such as 256x192, or as the longer side, such as 256")?;
    let (width, height) = match size {
        Size::Sides(width, height) => (width, height),
        Size::Longer(side) => (side, side),
    };
    if width == 0 || height == 0 || width.checked_mul(height).is_none_or(|area| area > LARGEST) {
        return Err(format!("both sides must be above 0 and their product at most {LARGEST} pixels"));
    }
    Ok(size)
}

pub(super) fn run(
    arguments: &Arguments,
    place: &place::Choice,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let prompt = arguments.prompt_template()?;
    let last_seed = arguments.seed.checked_add(arguments.count - 1);
    let last_seed = last_seed.ok_or_else(|| Error::Usage("there are no seeds that high; lower --seed".into()))?;
    let out = Out::prepare(&arguments.out, arguments.count)?;
    let content = arguments.content.as_ref().map(Frame::open).transpose()?;
    let folder = arguments.model.folder()?;
    let place = place.announce(progress)?;
    let painter = model::open(&folder, &place.target)?;
    interrupt.check()?;

    let mut order = arguments.order(prompt, content, &painter, &place, progress)?;
    if order.content.is_some() && order.control_scale != 0.0 {
        let bundle = painter.bundle();
        if let Some(control) = bundle.foreign_control() {
            let cannot = "this program cannot make of photographs yet; it is left out";
            progress.note(&format!("this model's ControlNet reads {control} pictures, which {cannot}"));
            order.control_scale = 0.0;
        } else if bundle.controlnet.is_none() {
            progress.note("this model has no ControlNet; the photograph's edges do not count");
            order.control_scale = 0.0;
        }
    }
    order.notes(painter.tokenizer())?.iter().for_each(|note| progress.note(note));
    let base = painter.text_encoder().base()?;
    for (number, seed) in (arguments.seed..=last_seed).enumerate() {
        order.seed = seed;
        let file = out.file(number, seed);
        let canvas = painter.paint(&order, &mut |step| {
            interrupt.check()?;
            let (index, count, timestep) = (step.index, step.count, step.timestep);
            if step.inverting {
                return progress.tell(&Event::Inverting { index, count, timestep, seed });
            }
            progress.tell(&Event::Step { index, count, timestep, seed })?;
            match arguments.preview_every {
                Some(every) if (index + 1) % every as usize == 0 && index + 1 < count => {
                    let preview = beside(&file, &format!("-step{:02}.png", index + 1));
                    let metadata = metadata(&order, &base, &folder)?;
                    painter.preview(step.denoised)?.save(&preview, &metadata)?;
                    progress.tell(&Event::preview(&preview))
                }
                _ => Ok(()),
            }
        })?;
        interrupt.check()?;
        canvas.save(&file, &metadata(&order, &base, &folder)?)?;
        progress.tell(&Event::finished(&file))?;
    }
    if let Some(why) = painter.not_recorded() {
        progress
            .note(&format!("every kernel was launched by itself, more slowly, since the GPU did not record: {why}"));
    }
    Ok(())
}

impl Arguments {
    fn prompt_template(&self) -> Result<Template> {
        match &self.prompt {
            Some(prompt) if self.styles.is_empty() => Template::parse(prompt),
            Some(prompt) => Ok(Template::parse(prompt)?.with_style_place()),
            None if self.styles.is_empty() => {
                Err(Error::Usage("there is nothing to paint: give --style, --prompt or both".into()))
            }
            None => Ok(Template::style_only()),
        }
    }

    fn order(
        &self,
        prompt: Template,
        content: Option<Frame>,
        painter: &Painter,
        place: &Place,
        progress: &Progress,
    ) -> Result<Order> {
        let mut styles = vec![];
        for given in &self.styles {
            let (choice, told) = style::choose(given, painter.bundle().folder(), painter.tokenizer())?;
            progress.note(&told);
            styles.push(choice);
        }
        let form = match self.guidance_form {
            Form::Paper => GuidanceForm::Paper,
            Form::Half => GuidanceForm::Half,
        };
        let transfer = content.is_some();
        Ok(Order {
            prompt,
            negative: self.negative.clone(),
            styles,
            size: self.pixels(painter.bundle(), content.as_ref(), place.largest_side(), progress),
            content,
            steps: self.steps.or(place.steps()).unwrap_or(if transfer { 30 } else { 25 }),
            strength: self.strength,
            sampler: self.sampler.unwrap_or(if transfer { Sampler::UniPc } else { Sampler::DpmSolverPp2M }),
            guidance: Guidance::new(self.style_strength, self.content_strength, self.guidance, form)?,
            control_scale: self.control_scale,
            inversion: match self.invert {
                Invert::Noise => Inversion::Noise,
                Invert::Ddim => Inversion::Ddim,
            },
            seed: self.seed,
        })
    }

    fn pixels(
        &self,
        bundle: &Bundle,
        content: Option<&Frame>,
        largest: Option<usize>,
        progress: &Progress,
    ) -> (usize, usize) {
        let (w, h) = content.map_or((1, 1), |frame| (frame.width(), frame.height()));
        let (width, height) = match self.size {
            None => match (bundle.native_size_like(w, h), largest) {
                ((width, height), Some(largest)) if width.max(height) > largest => return bundle.within(w, h, largest),
                (own, _) => return own,
            },
            Some(Size::Longer(side)) => return bundle.within(w, h, side),
            Some(Size::Sides(width, height)) => (width, height),
        };
        let nearest = bundle.nearest_size(width as f64, height as f64);
        if nearest != (width, height) {
            let step = bundle.size_step();
            progress.note(&format!(
                "{width}x{height} does not divide by {step}, which this model needs; painting {}x{}",
                nearest.0, nearest.1
            ));
        }
        nearest
    }
}

/// Where pictures go.
enum Out {
    File(PathBuf),
    /// `<number>-seed<seed>.png`, numbers from this one on.
    Folder(PathBuf, usize),
}

impl Out {
    /// Finds out before painting whether pictures can be written.
    fn prepare(out: &Path, count: u64) -> Result<Out> {
        let text = out.as_os_str().to_string_lossy();
        let is_folder = out.is_dir() || text.ends_with(std::path::is_separator);
        if !is_folder && (count == 1 || Canvas::check_name(out).is_ok()) {
            Canvas::check_name(out)?;
            check_writable(out)?;
            if count > 1 {
                let what = format!("{count} pictures do not go into the one file {}; name a folder", out.display());
                return Err(Error::Usage(what));
            }
            return Ok(Out::File(out.to_path_buf()));
        }
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
        let mut first = 1;
        for entry in std::fs::read_dir(out).map_err(Error::io(out))? {
            let name = entry.map_err(Error::io(out))?.file_name();
            let number = name.to_str().and_then(|name| name.split_once("-seed")?.0.parse::<usize>().ok());
            first = first.max(number.map_or(1, |number| number.saturating_add(1)));
        }
        let folder = Out::Folder(out.to_path_buf(), first);
        check_writable(&folder.file(0, 0))?;
        Ok(folder)
    }

    fn file(&self, number: usize, seed: u64) -> PathBuf {
        match self {
            Out::File(file) => file.clone(),
            Out::Folder(folder, first) => folder.join(format!("{}-seed{seed}.png", first + number)),
        }
    }
}

/// The file of the same name with another ending.
pub(super) fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.file_stem().unwrap_or_default().to_owned();
    name.push(ending);
    file.with_file_name(name)
}

/// How the picture was painted; `base` is the checksum of the text encoder's word table.
pub(super) fn metadata(order: &Order, base: &str, folder: &Path) -> Result<Metadata> {
    let mut recipe = order.recipe()?;
    recipe["program"] = concat!("pleinair ", env!("CARGO_PKG_VERSION")).into();
    recipe["bundle"] = model::name(folder).into();
    Ok(Metadata {
        prompt: order.prompt_text()?,
        negative: order.negative.clone(),
        steps: order.steps,
        sampler: order.sampler.name().to_owned(),
        cfg_scale: order.guidance.prompt,
        seed: order.seed,
        model_hash: base.chars().take(10).collect(),
        strength: order.content.is_some().then_some(order.strength),
        recipe,
    })
}
