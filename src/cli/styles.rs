//! `pleinair styles`: what is in style files, and other programs' forms of them.

use super::progress::{Event, Progress};
use super::{model, print, print_json, style};
use pleinair::camera::Frame;
use pleinair::style::{FileFormat, Style};
use pleinair::{Error, Result};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The styles that ship with a model
    List {
        #[command(flatten)]
        model: model::Choice,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Writes a style as another program reads it
    Convert {
        #[command(flatten)]
        model: model::Choice,
        /// Style file of any of the forms, or a style of the model
        #[arg(value_name = "FILE")]
        style: String,
        /// safetensors (this program's), dreamstyler-bin, diffusers, diffusers-bin, a1111-pt or png-card
        #[arg(long, value_name = "FORM")]
        to: FileFormat,
        /// This stage alone; all forms but the first two hold one
        #[arg(long, value_name = "N")]
        stage: Option<usize>,
        /// The style's name in prompts [default: as it is]
        #[arg(long, value_name = "TOKEN")]
        name: Option<String>,
        /// The picture of a PNG card [default: the vectors themselves]
        #[arg(long, value_name = "IMG")]
        image: Option<PathBuf>,
        /// The file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// One style: where it comes from, and how far each stage has moved from the initial word
    Show {
        #[command(flatten)]
        model: model::Choice,
        /// Style file, or a style of the model
        #[arg(value_name = "FILE")]
        style: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(arguments: &Arguments, progress: &Progress) -> Result<()> {
    match &arguments.command {
        Command::Convert { model, style, to, stage, name, image, out } => {
            let learned = opened(model, style)?.1;
            let learned = stage.map_or(Ok(learned.clone()), |stage| learned.stage(stage))?;
            let name = style::checked_name(name.as_deref().unwrap_or(&learned.token))?;
            if image.is_some() && *to != FileFormat::PngCard {
                return Err(Error::Usage(format!(
                    "--image is the picture of a PNG card; a file of the form {to} has none"
                )));
            }
            let named = out.extension().is_some_and(|extension| extension == to.extension());
            if !named {
                let (out, extension) = (out.display(), to.extension());
                return Err(Error::Usage(format!("{out}: a file of the form {to} is called .{extension}; name it so")));
            }
            let picture = image.as_deref().map(Frame::open).transpose()?;
            Style { token: name, ..learned }.export(out, *to, picture.as_ref())?;
            progress.tell(&Event::finished(out))
        }
        Command::List { model, json } => list(&model.folder()?, *json),
        Command::Show { model, style, json } => show(model, style, *json),
    }
}

/// A style as it is listed.
#[derive(Debug, Serialize)]
struct Listed {
    /// What `--style` calls it.
    name: String,
    file: String,
    stages: usize,
    context: Vec<String>,
    license: String,
}

/// Lists every style that can be read, and then fails if one could not.
fn list(bundle: &Path, json: bool) -> Result<()> {
    let mut listed = vec![];
    let mut damaged = vec![];
    for file in style_files(&style::shipped(bundle))? {
        match Style::open(&file) {
            Ok(style) => listed.push(Listed {
                name: file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                file: file.display().to_string(),
                stages: style.stages(),
                context: style.context,
                license: style.license,
            }),
            Err(error) => damaged.push(error.to_string()),
        }
    }
    if json {
        print_json(&listed)?;
    } else if listed.is_empty() {
        print(&format!("no styles in {}; learn one with `pleinair learn`", style::shipped(bundle).display()))?;
    } else {
        print(&table(&listed))?;
    }
    if damaged.is_empty() { Ok(()) } else { Err(Error::Model { folder: bundle.to_path_buf(), problems: damaged }) }
}

fn table(listed: &[Listed]) -> String {
    let wide = |of: fn(&Listed) -> &str, title: &str| {
        listed.iter().map(|style| of(style).chars().count()).max().unwrap_or(0).max(title.len())
    };
    let (names, licences) = (wide(|s| &s.name, "name"), wide(|s| &s.license, "licence"));
    let mut text = format!("{:names$}  stages  {:licences$}  context\n", "name", "licence");
    for Listed { name, stages, license, context, .. } in listed {
        let _ = writeln!(text, "{name:names$}  {stages:>6}  {license:licences$}  {}", context.join("; "));
    }
    text
}

/// The style files of a folder by name; none where there is no folder.
fn style_files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(vec![]);
    }
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>();
    let mut files = paths.map_err(Error::io(folder))?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    Ok(files)
}

/// A style in full.
#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    token: String,
    stages: usize,
    width: usize,
    vectors_per_stage: usize,
    base: String,
    context: Vec<String>,
    steps: Option<u64>,
    seed: Option<u64>,
    license: String,
    init: String,
    mix: Option<String>,
    /// Length of each stage's vector, stage 0 first.
    norms: Vec<f64>,
    /// Cosine of each stage's vector to the initial word's, where a model that fits is at hand.
    cosines: Option<Vec<f64>>,
    /// Why there are no cosines.
    note: Option<String>,
}

fn show(model: &model::Choice, given: &str, json: bool) -> Result<()> {
    let (file, style) = opened(model, given)?;
    let (cosines, note) = match model.folder() {
        Ok(folder) => cosines(&folder, &style)?,
        Err(none) => (None, Some(none.to_string())),
    };
    let shown = Shown {
        file: file.display().to_string(),
        stages: style.stages(),
        width: style.width(),
        vectors_per_stage: style.vectors_per_stage,
        norms: style.norms(),
        token: style.token,
        base: style.base,
        context: style.context,
        steps: style.steps,
        seed: style.seed,
        license: style.license,
        init: style.init,
        mix: style.mix,
        cosines,
        note,
    };
    if json { print_json(&shown) } else { print(&shown.text()) }
}

/// A style file, or a style of the model: where it is and what is in it.
fn opened(model: &model::Choice, given: &str) -> Result<(PathBuf, Style)> {
    let file = style::file(given, model.folder().as_deref().ok())?;
    let file =
        file.ok_or_else(|| Error::file(Path::new(given), "there is no such style file, nor a style of the model"))?;
    let style = Style::open(&file)?;
    Ok((file, style))
}

/// Cosines to the initial word, or why there are none.
fn cosines(folder: &Path, style: &Style) -> Result<(Option<Vec<f64>>, Option<String>)> {
    let words = model::Words::open(folder)?;
    match words.check_fits(style) {
        Err(Error::Usage(why)) => return Ok((None, Some(why))),
        other => other?,
    }
    if style.init.is_empty() {
        return Ok((None, Some("the style does not say which word it started from".to_owned())));
    }
    Ok((Some(style.cosines(&words.vector(&style.init)?)), None))
}

impl Shown {
    fn text(&self) -> String {
        let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        let fields = [
            ("file", self.file.clone()),
            ("name", self.token.clone()),
            (
                "stages",
                match self.vectors_per_stage {
                    1 => format!("{} of {} numbers", self.stages, self.width),
                    several => format!("{} of {several} vectors of {} numbers", self.stages, self.width),
                },
            ),
            ("model", self.base.clone()),
            ("context", self.context.join("\n         ")),
            ("steps", number(self.steps)),
            ("seed", number(self.seed)),
            ("licence", self.license.clone()),
            ("from", self.init.clone()),
            ("mix", self.mix.clone().unwrap_or_default()),
        ];
        let mut text = String::new();
        for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
            let _ = writeln!(text, "{name:8} {value}");
        }
        let cosine = if self.cosines.is_some() { format!("  cosine to {:?}", self.init) } else { String::new() };
        let _ = writeln!(text, "\nstage     norm{cosine}");
        for (stage, norm) in self.norms.iter().enumerate().rev() {
            let cosine = self.cosines.as_ref().map(|cosines| format!("  {:.4}", cosines[stage])).unwrap_or_default();
            let _ = writeln!(text, "{stage:5} {norm:8.4}{cosine}");
        }
        if let Some(note) = &self.note {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }
}
