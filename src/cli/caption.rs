//! `pleinair caption`: what a picture shows, as the context of a lesson.

use super::{model, print};
use pleinair::camera::Frame;
use pleinair::side::captioner::{self, Captioner};
use pleinair::side::content::context;
use pleinair::{Error, Result};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: model::Choice,
    /// The captioner's own words, with those for style
    #[arg(long)]
    raw: bool,
    /// The picture
    image: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let folder = arguments.model.folder()?;
    if !captioner::is_in(&folder) {
        let what = "the model has no captioner; describe the picture yourself, as in --context \"A painting of a garden, \
                    in the style of {}\"";
        return Err(Error::Usage(what.into()));
    }
    let frame = Frame::open(&arguments.image)?;
    let caption = Captioner::open(&folder.join(captioner::FOLDER))?.caption(&frame)?;
    print(&if arguments.raw { caption } else { context(&caption) })
}
