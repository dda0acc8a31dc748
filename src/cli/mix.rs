//! `pleinair mix`: stages of several styles as one.

use super::progress::{Event, Progress};
use super::{model, style};
use pleinair::Result;
use pleinair::style::{Recipe, Style, initial_word};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: model::Choice,
    /// Where stages come from: 5..3=a.safetensors, 4=a.safetensors*0.7+b.safetensors*0.3, or 1=off; a source is a
    /// style file or a style of the model
    #[arg(long = "stage", value_name = "STAGES=SOURCE", required = true)]
    rules: Vec<String>,
    /// The style's name in prompts [default: the name of the file]
    #[arg(long, value_name = "TOKEN")]
    name: Option<String>,
    /// The style file
    #[arg(long, value_name = "STYLE.safetensors")]
    out: PathBuf,
}

pub(super) fn run(arguments: &Arguments, progress: &Progress) -> Result<()> {
    let token = style::name_for(&arguments.out, arguments.name.as_deref())?;
    let recipe = Recipe::parse(&arguments.rules)?;
    let model = arguments.model.folder();
    let open = |named: &Path| -> Result<(PathBuf, Style)> {
        let file = style::file(&named.to_string_lossy(), model.as_deref().ok())?;
        Ok((named.to_path_buf(), Style::open(file.as_deref().unwrap_or(named))?))
    };
    let styles = recipe.files().into_iter().map(open).collect::<Result<Vec<_>>>()?;
    let initial = match recipe.switches_off() {
        true => Some(initial_vector(&model?, &styles)?),
        false => None,
    };
    recipe.notes().iter().for_each(|note| progress.note(note));
    recipe.mix(&token, &styles, initial.as_deref())?.save(&arguments.out)?;
    progress.tell(&Event::finished(&arguments.out))
}

/// The vector that stages which are switched off get.
fn initial_vector(folder: &Path, styles: &[(PathBuf, Style)]) -> Result<Vec<f32>> {
    let words = model::Words::open(folder)?;
    for (_, style) in styles {
        words.check_fits(style)?;
    }
    words.vector(initial_word(styles)?)
}
