//! `pleinair doctor`: what this machine is, and whether a model on it works.

use super::paint::plain_order;
use super::{model, place, print, print_json};
use pleinair::bundle::control::Control;
use pleinair::bundle::manifest::{self, Dtype, FileEntry, Manifest};
use pleinair::bundle::weights::Weights;
use pleinair::bundle::{Bundle, folder_name};
use pleinair::net::{ControlNet, TextEncoder, Unet};
use pleinair::painter::Painter;
use pleinair::profile::Profile;
use pleinair::prompt::{Template, Tokenizer};
use pleinair::side::captioner::{self, Captioner};
use pleinair::side::vae::Vae;
use pleinair::{Error, Result, Target};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: model::Choice,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    /// Where the networks run.
    device: Option<&'static str>,
    /// The numbers of their feature maps.
    numbers: Option<&'static str>,
    /// Why they do not run on a GPU, where this build could use one.
    no_gpu: Option<String>,
    profile: Option<Profile>,
    /// What the machine calls itself.
    machine: String,
    architecture: &'static str,
    instruction_sets: Vec<&'static str>,
    /// What int8 layers run on.
    isa: Option<&'static str>,
    cores: usize,
    memory_bytes: Option<u64>,
    available_memory_bytes: Option<u64>,
    model: Option<Model>,
    /// What is wrong; nothing when all works.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Model {
    name: String,
    folder: String,
    packing: Option<Packing>,
    native_size: usize,
    size_step: usize,
    parts: Vec<Part>,
    controls: Vec<ControlEntry>,
    /// What says what a picture shows, where the model has it.
    captioner: Option<CaptionerEntry>,
    files: Vec<File>,
    self_test: Option<SelfTest>,
}

#[derive(Debug, Serialize)]
struct CaptionerEntry {
    parameters: u64,
    /// Width and height of what it is shown, in pixels.
    side: usize,
}

/// What a ControlNet of the model looks at; the first is used where nobody says otherwise.
#[derive(Debug, Serialize)]
struct ControlEntry {
    control: Control,
    /// Whether the program makes such pictures of photographs; else they have to be given.
    from_photographs: bool,
}

#[derive(Debug, Serialize)]
struct Part {
    name: String,
    parameters: u64,
}

#[derive(Debug, Serialize)]
struct File {
    /// In the model's folder.
    path: String,
    bytes: u64,
    sha256: String,
}

/// How a bundle is stored; its checksums were compared when it was opened.
#[derive(Debug, Serialize)]
struct Packing {
    dtype: Dtype,
    target: manifest::Target,
    /// Layers that are stored more finely than `dtype`.
    finer_layers: usize,
    source: Option<String>,
    license: Option<String>,
}

impl Packing {
    fn of(manifest: &Manifest) -> Self {
        let networks =
            [&manifest.unet.layers].into_iter().chain(manifest.all_controlnets().map(|(.., net)| &net.layers));
        let layers = networks.flat_map(|layers| layers.values());
        Packing {
            dtype: manifest.dtype,
            target: manifest.target,
            finer_layers: layers.filter(|layer| layer.dtype > manifest.dtype).count(),
            source: manifest.source.clone(),
            license: manifest.license.clone(),
        }
    }
}

/// A painting of two steps, whose every pixel was finite.
#[derive(Debug, Serialize)]
struct SelfTest {
    width: usize,
    height: usize,
    seconds: f64,
}

pub(super) fn run(arguments: &Arguments, place: &place::Choice) -> Result<()> {
    let memory = |key| std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| proc_bytes(&text, key));
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        device: None,
        numbers: None,
        no_gpu: None,
        profile: None,
        machine: String::new(),
        architecture: std::env::consts::ARCH,
        instruction_sets: instruction_sets(),
        isa: None,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory("MemTotal"),
        available_memory_bytes: memory("MemAvailable"),
        model: None,
        problems: vec![],
    };
    let place = note(place.open(), &mut report.problems);
    if let Some(place) = &place {
        report.isa = Some(place.target.isa().name());
        report.device = Some(place.target.name());
        report.numbers = Some(place.target.numbers().as_str());
        (report.no_gpu, report.machine) = (place.note.clone(), place.machine.says.clone());
        report.profile = place.profile.clone();
    }
    let target = place.map(|place| place.target).unwrap_or_default();
    let folder = arguments.model.folder();
    match &folder {
        Ok(folder) => examine(folder, &target, &mut report),
        Err(none) => report.problems.push(none.to_string()),
    }
    if arguments.json { print_json(&report) } else { print(&report.text()) }?;
    match (folder, report.problems) {
        (Err(none), _) => Err(none),
        (Ok(_), problems) if problems.is_empty() => Ok(()),
        (Ok(folder), problems) => Err(Error::Model { folder, problems }),
    }
}

/// Opens and tries everything; what fails is noted and the rest still tried.
fn examine(folder: &Path, target: &Target, report: &mut Report) {
    let problems = &mut report.problems;
    let Some(bundle) = note(Bundle::open(folder), problems).map(|bundle| Arc::new(bundle.on(target.clone()))) else {
        return;
    };
    let mut parts = vec![];
    let controlnets = bundle.controlnets.iter().map(|net| net.part.as_str());
    for name in ["text_encoder", "unet"].into_iter().chain(controlnets) {
        let weights = note(bundle.weights(name), problems);
        let stored = |weights: Weights| bundle.parameters(name).unwrap_or(weights.parameters() as u64);
        parts.extend(weights.map(|weights| Part { name: name.to_owned(), parameters: stored(weights) }));
    }
    let captioner = captioner::is_in(folder).then(|| Captioner::open(&folder.join(captioner::FOLDER)));
    // only its numbers are kept: the self-test wants the memory
    let numbers = |it: Captioner| CaptionerEntry { parameters: it.parameters(), side: it.side() };
    let captioner = captioner.and_then(|opened| note(opened, problems)).map(numbers);
    let files = note(checksums(folder), problems).unwrap_or_default();
    let self_test = if problems.is_empty() {
        match model::open(folder, target) {
            Ok(painter) => note(self_test(&painter), problems),
            Err(first) => {
                open_each(&bundle, problems);
                let first = lines(first).into_iter().filter(|line| !problems.contains(line)).collect::<Vec<_>>();
                problems.splice(..0, first);
                None
            }
        }
    } else {
        None
    };
    report.model = Some(Model {
        name: folder_name(folder),
        folder: folder.display().to_string(),
        packing: bundle.manifest.as_ref().map(Packing::of),
        native_size: bundle.native_size(),
        size_step: bundle.size_step(),
        parts,
        controls: bundle
            .controlnets
            .iter()
            .map(|net| ControlEntry { control: net.control, from_photographs: bundle.can_draw(net.control) })
            .collect(),
        captioner,
        files,
        self_test,
    });
}

/// The value, or what is wrong as problems.
fn note<T>(result: Result<T>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.extend(lines(error))).ok()
}

fn lines(error: Error) -> Vec<String> {
    match error {
        Error::Model { problems, .. } => problems,
        other => vec![other.to_string()],
    }
}

/// Opens every part by itself, so that the second fault is found with the first.
fn open_each(bundle: &Arc<Bundle>, problems: &mut Vec<String>) {
    note(Tokenizer::open(bundle.tokenizer()), problems);
    note(TextEncoder::load(bundle), problems);
    note(Unet::load(bundle), problems);
    for net in &bundle.controlnets {
        note(ControlNet::load(bundle, net.control), problems);
    }
    note(Vae::open(bundle), problems);
}

/// Two steps of text to image at the smallest size, and a control picture of each kind.
fn self_test(painter: &Painter) -> Result<SelfTest> {
    painter.check_controls()?;
    let side = painter.bundle().size_step();
    let order = plain_order(Template::literal("a painting"), (side, side), 2)?;
    let began = Instant::now();
    let canvas = painter.paint(&order, &mut |_| Ok(()))?;
    Ok(SelfTest { width: canvas.width(), height: canvas.height(), seconds: began.elapsed().as_secs_f64() })
}

/// Every file of the folder with its checksum, by name.
fn checksums(folder: &Path) -> Result<Vec<File>> {
    let mut paths = vec![];
    walk(folder, &mut paths)?;
    paths.sort();
    let checked = |path: &PathBuf| {
        let FileEntry { bytes, sha256 } = FileEntry::of(path).map_err(Error::io(path))?;
        let path = path.strip_prefix(folder).unwrap_or(path).display().to_string();
        Ok(File { path, bytes, sha256 })
    };
    paths.iter().map(checked).collect()
}

/// Links to files are followed, links to folders are not: they might lead in circles.
fn walk(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(Error::io(&path))?.is_dir() {
            walk(&path, paths)?;
        } else if path.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

/// A line of `/proc/meminfo` and its like, such as `MemTotal:  16384 kB`, in bytes.
pub(super) fn proc_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The instruction sets that matter to matrix products, as the processor has them.
fn instruction_sets() -> Vec<&'static str> {
    let mut found = vec![];
    macro_rules! detect {
        ($detected:ident, $($name:tt)*) => {
            $(if std::arch::$detected!($name) { found.push($name); })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    detect!(is_x86_feature_detected, "sse4.2" "avx" "f16c" "fma" "avx2" "avxvnni" "avx512f" "avx512bw" "avx512vnni" "avx512bf16" "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    detect!(is_aarch64_feature_detected, "neon" "fp16" "dotprod" "bf16" "i8mm" "sve");
    found
}

impl Report {
    /// Without the problems, which end up on stderr.
    fn text(&self) -> String {
        let mut text = format!("pleinair      {}\n", self.version);
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:13} {value}");
        };
        if let (Some(device), Some(numbers)) = (self.device, self.numbers) {
            line("device", format!("{device}, feature maps in {numbers}"));
        }
        if let Some(why) = &self.no_gpu {
            line("no GPU", why.clone());
        }
        if !self.machine.is_empty() {
            line("machine", self.machine.clone());
        }
        match (&self.profile, self.device) {
            (Some(profile), _) => line("profile", format!("{}: {}", profile.name, profile.about)),
            (None, Some(_)) => line("profile", "none for this machine; --profile names one".to_owned()),
            (None, None) => {} // a problem says why
        }
        line("processor", format!("{} with {}", self.architecture, self.instruction_sets.join(", ")));
        if let Some(isa) = self.isa {
            line("kernels", format!("{isa} (PLEINAIR_ISA chooses another)"));
        }
        line("cores", self.cores.to_string());
        if let Some(memory) = self.memory_bytes {
            let available = self.available_memory_bytes.map_or(String::new(), |a| format!(", {} available", binary(a)));
            line("memory", format!("{}{available}", binary(memory)));
        }
        if let Some(model) = &self.model {
            line("model", format!("{} in {}", model.name, model.folder));
            if let Some(Packing { dtype, target, finer_layers, source, license }) = &model.packing {
                line("bundle", format!("{dtype} for {target}, {finer_layers} layers finer, every checksum right"));
                source.iter().for_each(|source| line("source", source.clone()));
                license.iter().for_each(|license| line("licence", license.clone()));
            }
            let side = model.native_size;
            line("pictures", format!("{side}x{side} by default, sides in steps of {}", model.size_step));
            for Part { name, parameters } in &model.parts {
                line(name, format!("{:.1} million parameters", *parameters as f64 / 1e6));
            }
            for ControlEntry { control, from_photographs } in &model.controls {
                line(
                    "control",
                    match from_photographs {
                        true => format!("{control} pictures, made of photographs"),
                        false => {
                            format!("{control} pictures, which have to be given: the model has no network for them")
                        }
                    },
                );
            }
            line(
                "captioner",
                model.captioner.as_ref().map_or(
                    "none: contexts of lessons are written by hand".to_owned(),
                    |CaptionerEntry { parameters, side }| {
                        format!("BLIP, {:.1} million parameters, sees {side}x{side}", *parameters as f64 / 1e6)
                    },
                ),
            );
            for File { path, bytes, sha256 } in &model.files {
                line("file", format!("{sha256} {:>10}  {path}", binary(*bytes)));
            }
            if let Some(SelfTest { width, height, seconds }) = model.self_test {
                line("self-test", format!("2 steps at {width}x{height} in {seconds:.2} s, every pixel finite"));
            }
        }
        if self.problems.is_empty() {
            line("verdict", "everything works".to_owned());
        }
        text
    }
}

pub(super) fn binary(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    1 kB\nHugePages_Total:   0\n";
        assert_eq!(proc_bytes(text, "MemTotal"), Some(16 << 20));
        assert_eq!(proc_bytes(text, "MemAvailable"), Some(1024));
        assert_eq!(
            (proc_bytes(text, "Mem"), proc_bytes(text, "HugePages_Total"), proc_bytes("", "MemTotal")),
            (None, None, None)
        );
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let texts = [0, 1023, 1024, 3 << 19, 5 << 30].map(binary);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 GiB"]);
    }
}
