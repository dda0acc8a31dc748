//! The command line: arguments to calls, one file a subcommand.

mod bench;
mod caption;
mod doctor;
mod grid;
mod interrupt;
mod learn;
mod mix;
mod model;
mod paint;
mod place;
mod progress;
mod serve;
mod sheet;
mod style;
mod styles;

use clap::{Parser, Subcommand};
use interrupt::Interrupt;
use pleinair::{Error, Result};
use progress::{Mode, Progress};
use std::io::Write;
use std::path::Path;

/// Paints photographs and prompts in a style learned from one picture, on this machine.
#[derive(Debug, Parser)]
#[command(name = "pleinair", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How progress is told
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Options of every command")]
    progress: Mode,
    #[command(flatten)]
    place: place::Choice,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Paint a photograph or a prompt
    Paint(Box<paint::Arguments>),
    /// Paint the same with several strengths of style and content, on one labelled sheet
    Grid(Box<grid::Arguments>),
    /// Learn a style from one picture or a few
    Learn(Box<learn::Arguments>),
    /// Propose the context of a lesson: what a picture shows besides its style
    Caption(caption::Arguments),
    /// Put a style together from stages of others
    Mix(mix::Arguments),
    /// Show learned styles, and write them as other programs read them
    Styles(styles::Arguments),
    /// Run the daemon: kiosk, studio and gallery for browsers, and the API
    Serve(serve::Arguments),
    /// Say what this machine and a model can do, and test the model
    Doctor(doctor::Arguments),
    /// Measure how long the networks take, and how much memory
    Bench(bench::Arguments),
    /// Lay pictures side by side, with labels
    Sheet(sheet::Arguments),
}

/// Does what the command line says.
pub(super) fn run() -> Result<()> {
    let Arguments { command, progress, place } = Arguments::parse();
    let progress = Progress::new(progress);
    match command {
        Command::Paint(arguments) => paint::run(&arguments, &place, &progress, &Interrupt::listen()?),
        Command::Grid(arguments) => grid::run(&arguments, &place, &progress, &Interrupt::listen()?),
        Command::Learn(arguments) => learn::run(&arguments, &place, &progress, &Interrupt::listen()?),
        Command::Caption(arguments) => caption::run(&arguments),
        Command::Mix(arguments) => mix::run(&arguments, &progress),
        Command::Styles(arguments) => styles::run(&arguments, &progress),
        Command::Serve(arguments) => serve::run(&arguments, &place),
        Command::Doctor(arguments) => doctor::run(&arguments, &place),
        Command::Bench(arguments) => bench::run(&arguments, &place),
        Command::Sheet(arguments) => sheet::run(&arguments, &progress),
    }
}

/// What was asked for, to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io(Path::new("standard output"))(error))
        }
        _ => Ok(()),
    }
}

/// The same as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let fault = |error: serde_json::Error| Error::io(Path::new("standard output"))(error.into());
    print(&serde_json::to_string_pretty(value).map_err(fault)?)
}
