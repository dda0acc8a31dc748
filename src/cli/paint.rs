//! `pleinair paint`: a photograph or a prompt becomes a picture.

use super::interrupt::Interrupt;
use super::place;
use super::progress::{Event, Progress};
use super::{model, style};
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pleinair::bundle::write::check_writable;
use pleinair::camera::Frame;
use pleinair::canvas::Canvas;
use pleinair::painter::{
    CONTROL_SCALE, ControlPicture, ControlScale, GUIDANCE, GivenControl, Habits, Inversion, NEGATIVE, Order, Painter,
    Pictures, Request, STRENGTH, Size, StyleChoice,
};
use pleinair::prompt::Template;
use pleinair::sampler::{Guidance, GuidanceForm, Sampler, StepReport};
use pleinair::stages::PerStage;
use pleinair::{Error, Result};
use std::path::{Path, PathBuf};

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
        controls: vec![],
        inversion: Inversion::Noise,
        seed: 0,
    })
}

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    wish: Wish,
    /// Guidance towards the style, ls in the paper, or one for each stage: 5..3=1,2..0=3, or 5..0=0..3 on a line; 0 where
    /// a stage is not named
    #[arg(long, value_name = "X|STAGES=X,...", default_value = "0", allow_negative_numbers = true)]
    style_strength: PerStage,
    /// Guidance towards the content of the prompt, lc in the paper, likewise
    #[arg(long, value_name = "X|STAGES=X,...", default_value = "0", allow_negative_numbers = true)]
    content_strength: PerStage,
    /// Write the control picture, .png or .jpg; of several, each with its kind in its name
    #[arg(long, value_name = "FILE")]
    save_control: Option<PathBuf>,
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

/// What a painting and a sheet of them are told alike.
#[derive(Debug, clap::Args)]
pub(super) struct Wish {
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
    #[arg(long, value_name = "X", default_value_t = STRENGTH)]
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
    /// Guidance towards the prompt as a whole, ln in the paper
    #[arg(long, value_name = "X", default_value_t = GUIDANCE, allow_negative_numbers = true)]
    guidance: f64,
    /// ls and lc as the paper has them, or halved as in its code
    #[arg(long, value_enum, default_value_t)]
    guidance_form: Form,
    /// How loud the ControlNet speaks, or each of several by what it looks at; 0 leaves it out
    #[arg(long, value_name = "X|KIND=X,...", default_value_t = ControlScale::Alone(CONTROL_SCALE), allow_negative_numbers = true)]
    control_scale: ControlScale,
    /// A control picture instead of the one made of the photograph; KIND is soft-edge, depth, canny or lineart [default:
    /// what the model's first ControlNet looks at]
    #[arg(long, value_name = "FILE[:KIND]")]
    control_image: Vec<String>,
    /// Width and height in pixels, such as 256x192, or the longer side alone [default: the model's own area]; what is not
    /// given follows the photograph's shape
    #[arg(long, value_name = "WxH")]
    size: Option<Size>,
    /// Seed of the noise: the same inputs and seed give the same picture
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
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

pub(super) fn run(
    arguments: &Arguments,
    place: &place::Choice,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let wish = &arguments.wish;
    let request = wish.request(&arguments.style_strength, &arguments.content_strength);
    request.template()?; // before anything is opened
    let last_seed = wish.seed.checked_add(arguments.count - 1);
    let last_seed = last_seed.ok_or_else(|| Error::Usage("there are no seeds that high; lower --seed".into()))?;
    let out = Out::prepare(&arguments.out, arguments.count)?;
    if let Some(file) = &arguments.save_control {
        Canvas::check_name(file)?;
        check_writable(file)?;
    }
    let pictures = wish.pictures()?;
    let Opened { painter, styles, habits } = wish.open(place, progress, interrupt)?;
    let (mut order, notes) = request.order(&painter, styles, pictures, habits)?;
    notes.iter().for_each(|note| progress.note(note));
    let controls = painter.control_pictures(&order)?;
    if let Some(file) = &arguments.save_control {
        save_controls(file, &controls, progress)?;
    }
    for (number, seed) in (wish.seed..=last_seed).enumerate() {
        order.seed = seed;
        let file = out.file(number, seed);
        let canvas = painter.paint_with(&order, &controls, &mut |step| {
            tell(&step, seed, progress, interrupt)?;
            let (index, count) = (step.index, step.count);
            match arguments.preview_every {
                Some(every) if !step.inverting && (index + 1) % every as usize == 0 && index + 1 < count => {
                    let preview = beside(&file, &format!("-step{:02}.png", index + 1));
                    let metadata = painter.metadata(&order)?;
                    painter.preview(step.denoised)?.save(&preview, &metadata)?;
                    progress.tell(&Event::preview(&preview))
                }
                _ => Ok(()),
            }
        })?;
        interrupt.check()?;
        canvas.save(&file, &painter.metadata(&order)?)?;
        progress.tell(&Event::finished(&file))?;
    }
    note_unrecorded(&painter, progress);
    Ok(())
}

/// A step of a painting was taken.
pub(super) fn tell(step: &StepReport<'_>, seed: u64, progress: &Progress, interrupt: &Interrupt) -> Result<()> {
    interrupt.check()?;
    let (index, count, timestep) = (step.index, step.count, step.timestep);
    progress.tell(&match step.inverting {
        true => Event::Inverting { index, count, timestep, seed },
        false => Event::Step { index, count, timestep, seed },
    })
}

pub(super) fn note_unrecorded(painter: &Painter, progress: &Progress) {
    if let Some(why) = painter.not_recorded() {
        progress
            .note(&format!("every kernel was launched by itself, more slowly, since the GPU did not record: {why}"));
    }
}

/// What a wish needs to be painted.
pub(super) struct Opened {
    pub(super) painter: Painter,
    pub(super) styles: Vec<StyleChoice>,
    pub(super) habits: Habits,
}

impl Wish {
    /// The pictures it names.
    pub(super) fn pictures(&self) -> Result<Pictures> {
        let content = self.content.as_ref().map(Frame::open).transpose()?;
        let controls = self.control_image.iter().map(|given| control_image(given)).collect::<Result<_>>()?;
        Ok(Pictures { content, controls })
    }

    /// The model and the styles it names.
    pub(super) fn open(&self, place: &place::Choice, progress: &Progress, interrupt: &Interrupt) -> Result<Opened> {
        let folder = self.model.folder()?;
        let place = place.announce(progress)?;
        let painter = model::open(&folder, &place.target)?;
        interrupt.check()?;
        let mut styles = vec![];
        for given in &self.styles {
            let (choice, told) = style::choose(given, painter.bundle().folder(), painter.tokenizer())?;
            progress.note(&told);
            styles.push(choice);
        }
        Ok(Opened { painter, styles, habits: place.habits() })
    }

    /// The wish with these scales of style and content.
    pub(super) fn request(&self, style_strength: &PerStage, content_strength: &PerStage) -> Request {
        Request {
            styles: self.styles.clone(),
            prompt: self.prompt.clone(),
            negative: Some(self.negative.clone()),
            strength: Some(self.strength),
            steps: self.steps,
            sampler: self.sampler,
            invert: Some(match self.invert {
                Invert::Noise => Inversion::Noise,
                Invert::Ddim => Inversion::Ddim,
            }),
            style_strength: Some(style_strength.clone()),
            content_strength: Some(content_strength.clone()),
            guidance: Some(self.guidance),
            guidance_form: Some(match self.guidance_form {
                Form::Paper => GuidanceForm::Paper,
                Form::Half => GuidanceForm::Half,
            }),
            control_scale: Some(self.control_scale.clone()),
            size: self.size,
            seed: Some(self.seed),
        }
    }
}

/// `FILE` or `FILE:KIND`.
fn control_image(given: &str) -> Result<GivenControl> {
    let (file, control) = match given.rsplit_once(':') {
        Some((file, kind)) if !Path::new(given).exists() => (file, Some(kind.parse().map_err(Error::Usage)?)),
        _ => (given, None),
    };
    Ok(GivenControl { control, image: Frame::open(file)? })
}

fn save_controls(file: &Path, controls: &[ControlPicture], progress: &Progress) -> Result<()> {
    if controls.is_empty() {
        let what = "there is no control picture to save: no ControlNet speaks; give --content or --control-image";
        return Err(Error::Usage(what.into()));
    }
    for picture in controls {
        let own = match controls.len() {
            1 => file.to_path_buf(),
            _ => {
                let ending = file.extension().unwrap_or_default().to_string_lossy();
                beside(file, &format!("-{}.{ending}", picture.control.slug()))
            }
        };
        picture.canvas()?.save(&own, &Default::default())?;
        progress.note(&format!("the {} picture is {}", picture.control, own.display()));
    }
    Ok(())
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
