//! The command line of `pleinair-quantize`.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use pleinair::{Error, Result};
use pleinair_quantize::convert::Convert;
use pleinair_quantize::inspect::inspect;
use pleinair_quantize::report::Report;
use pleinair_quantize::synth::Synth;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Turns Stable Diffusion models into bundles, measures what that costs, and looks into both.
#[derive(Parser)]
#[command(name = "pleinair-quantize", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Command {
    /// Turn a full-precision pipeline into a bundle that the program maps into memory and runs
    ///
    /// Reads a diffusers folder or a single-file checkpoint, tensor by tensor; the bundle appears only when it is complete.
    Convert(Convert),
    /// Compare a bundle with the model it was made from: each layer's weights, and paintings with fixed seeds
    Report(Report),
    /// Make a model folder with random weights, for measuring speed and memory
    ///
    /// Every network has the real model's tensors. The tokenizer has the right number of words, but knows single letters
    /// only.
    Synth(Synth),
    /// List what is in a bundle or a model folder: parameters, bytes, types and configuration of each part, every problem
    Inspect {
        /// A bundle or a diffusers folder
        #[arg(value_name = "BUNDLE")]
        bundle: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pleinair-quantize: {error}");
            match error {
                Error::Usage(_) => ExitCode::from(2),
                Error::Interrupted => ExitCode::from(130),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Convert(convert) => run_convert(&convert),
        Command::Report(report) => run_report(&report),
        Command::Synth(synth) => run_synth(&synth),
        Command::Inspect { bundle, json } => run_inspect(&bundle, json),
    }
}

/// Set when the person presses Ctrl-C.
fn interruption() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .map_err(|e| Error::io(Path::new("Ctrl-C"))(std::io::Error::other(e)))?;
    Ok(interrupted)
}

fn run_convert(convert: &Convert) -> Result<()> {
    let summary = convert.run(&*interruption()?, &mut |step| eprintln!("{step}"))?;
    for warning in &summary.warnings {
        eprintln!("note: {warning}");
    }
    print(&summary.to_string())
}

fn run_report(report: &Report) -> Result<()> {
    let findings = report.run(&*interruption()?)?;
    match report.json {
        true => print(&(serde_json::to_string_pretty(&findings).expect("numbers can be written as JSON") + "\n"))?,
        false => print(&findings.to_string())?,
    }
    match findings.over_budget.is_empty() {
        true => Ok(()),
        false => Err(Error::file(&report.bundle, format!("over budget:\n  {}", findings.over_budget.join("\n  ")))),
    }
}

fn run_synth(synth: &Synth) -> Result<()> {
    let interrupted = interruption()?;
    let mut text = String::new();
    for part in synth.run(&interrupted)? {
        let (millions, megabytes) = (part.parameters as f64 / 1e6, part.bytes as f64 / 1e6);
        let (name, tensors) = (part.part, part.tensors);
        text += &format!("{name:<13} {tensors:>4} tensors {millions:>9.2} M parameters {megabytes:>9.1} MB\n");
    }
    text += &format!("{} is ready; it paints noise, at the speed of the real model\n", synth.out.display());
    print(&text)
}

fn run_inspect(folder: &Path, json: bool) -> Result<()> {
    let inspection = inspect(folder)?;
    if json {
        let json = serde_json::to_string_pretty(&inspection).expect("names and numbers can be written as JSON");
        print(&(json + "\n"))?;
    } else {
        print(&inspection.to_string())?;
    }
    match inspection.problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Model { folder: folder.to_path_buf(), problems: inspection.problems }),
    }
}

/// To standard output; whoever stops reading it early has seen enough.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io(Path::new("standard output"))(error))
        }
        _ => Ok(()),
    }
}
