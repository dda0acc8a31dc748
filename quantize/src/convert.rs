//! `convert`: a full-precision pipeline in, a bundle out.

mod captioner;
mod side;

use crate::calibrate::{self, Budget};
use crate::folder::{NewFolder, write_json};
use crate::network::Network;
use crate::onnx::VaeKind;
use crate::report::{self, Quality};
use crate::rules::{self, Rule};
use crate::source::{Options, Part, Source};
use crate::tensors::{self, TensorSpec};
use pleinair::bundle::config::{ControlNetConfig, TextConfig, UnetConfig, VaeConfig};
use pleinair::bundle::manifest::{Control, Dtype, FORMAT, Manifest, Network as Entry, Target, further_part};
use pleinair::bundle::weights::Packing;
use pleinair::bundle::{Bundle, manifest};
use pleinair::painter::Painter;
use pleinair::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// What to convert, how, and where to.
#[derive(Debug, Clone, clap::Args)]
pub struct Convert {
    /// A diffusers folder, or a single-file checkpoint (.safetensors, .ckpt, .pth) in Stable Diffusion's first naming
    #[arg(long, value_name = "DIR|FILE")]
    pub from: PathBuf,
    /// How weights are stored: int8 or bf16 for linear layers and convolutions with f16 for the rest, all f16, or all f32
    #[arg(long, value_parser = one_of::<Dtype>)]
    pub dtype: Dtype,
    /// Which machine's kernels the weights are laid out for: cpu, cuda, metal or portable
    #[arg(long, value_parser = one_of::<Target>, default_value = "cpu")]
    pub target: Target,
    /// A ControlNet to go with it, as a diffusers folder or a single file; a folder's own is taken without asking
    #[arg(long, value_name = "DIR|FILE")]
    pub controlnet: Option<PathBuf>,
    /// What the ControlNet looks at: soft-edge, depth, canny or lineart [default: what its folder says, else soft-edge]
    #[arg(long, value_parser = one_of::<Control>)]
    pub control: Option<Control>,
    /// A LoRA to fold in, with its weight (repeatable)
    #[arg(long, value_name = "FILE:WEIGHT", value_parser = lora)]
    pub lora: Vec<(PathBuf, f32)>,
    /// Another VAE: a diffusers folder or a single file
    #[arg(long, value_name = "DIR|FILE")]
    pub vae: Option<PathBuf>,
    /// A small decoder for previews: AutoencoderTiny as a folder or .safetensors, or a decoder as .onnx
    #[arg(long, value_name = "DIR|FILE")]
    pub tiny_vae: Option<PathBuf>,
    /// A depth estimator to include, as .onnx with its preprocessor_config.json beside it; a folder's own in
    /// depth_estimator/ is taken without asking
    #[arg(long, value_name = "FILE")]
    pub depth: Option<PathBuf>,
    /// A network that draws lines to include, as .onnx; a folder's own in lineart/ is taken without asking
    #[arg(long, value_name = "FILE")]
    pub lineart: Option<PathBuf>,
    /// A captioner (BLIP) to include, as transformers' folder; a folder's own in captioner/ is taken without asking
    #[arg(long, value_name = "DIR")]
    pub captioner: Option<PathBuf>,
    /// The folder whose config.json files describe a single-file checkpoint that has not Stable Diffusion 1.5's shape
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// The tokenizer's folder, for a single-file checkpoint with other words than Stable Diffusion's
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Where the weights come from, in words, for bundle.json
    #[arg(long, value_name = "TEXT")]
    pub source: Option<String>,
    /// Under which licence they are, for bundle.json
    #[arg(long, value_name = "TEXT")]
    pub license: Option<String>,
    /// Store layers whose names match otherwise, such as 'up_blocks.3.*=f16' (repeatable; the last that matches wins)
    #[arg(long, value_name = "PATTERN=DTYPE")]
    pub keep: Vec<Rule>,
    /// Run this many short samplings with fixed seeds to choose smoothing scales and find the layers that must stay f16
    #[arg(long, value_name = "N")]
    pub calibrate: Option<usize>,
    /// A layer that as int8 alone brings the denoised latents below this PSNR, in dB, stays f16; needs --calibrate
    #[arg(long, value_name = "DB", default_value_t = calibrate::LAYER_BUDGET, requires = "calibrate")]
    pub layer_budget: f64,
    /// The bundle to make
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace the bundle that is there
    #[arg(long)]
    pub force: bool,
}

/// One of the words that JSON has for a type's values.
fn one_of<T: DeserializeOwned>(word: &str) -> std::result::Result<T, String> {
    serde_json::from_value(Value::from(word)).map_err(|e| e.to_string())
}

fn lora(text: &str) -> std::result::Result<(PathBuf, f32), String> {
    let example = "write it like style.safetensors:0.8";
    let (file, weight) = text.rsplit_once(':').ok_or_else(|| format!("{text:?} has no weight; {example}"))?;
    match f32::from_str(weight) {
        Ok(weight) if weight.is_finite() => Ok((file.into(), weight)),
        _ => Err(format!("{weight:?} is no weight; {example}")),
    }
}

/// What became of a model.
#[derive(Debug)]
pub struct Summary {
    /// The manifest that was written.
    pub manifest: Manifest,
    /// What is worth knowing besides.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// The most memory that the process has had resident so far, where the system tells.
    pub peak_resident_bytes: Option<u64>,
}

/// `VmHWM` of `/proc/self/status`, which only Linux has.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (manifest, dtype) = (&self.manifest, self.manifest.dtype);
        let width = manifest.files.keys().map(String::len).max().unwrap_or(0);
        for (name, entry) in &manifest.files {
            writeln!(f, "{name:<width$} {:>9.1} MB", entry.bytes as f64 / 1e6)?;
        }
        let controlnets = manifest.all_controlnets().map(|(part, _, net)| (part, &net.layers));
        for (name, layers) in [("unet", &manifest.unet.layers)].into_iter().chain(controlnets) {
            let as_asked = layers.values().filter(|layer| layer.dtype == manifest.dtype).count();
            let kept = layers.values().filter(|layer| layer.dtype > manifest.dtype).count();
            writeln!(f, "{name}: {} layers, {as_asked} {dtype}, {kept} kept finer than {dtype}", layers.len())?;
        }
        let bytes = manifest.files.get("unet.safetensors").map_or(0, |entry| entry.bytes);
        let ratio = bytes as f64 / (4 * manifest.unet.parameters) as f64;
        write!(f, "converted in {:.2} s; the UNet takes {ratio:.4} of its size in f32", self.seconds)?;
        match self.peak_resident_bytes {
            Some(bytes) => writeln!(f, "; at most {} MB resident", bytes / 1_000_000)?,
            None => writeln!(f)?,
        }
        if let Some(quality) = &manifest.quality {
            let worst = |key: &str| quality[key].as_f64().map_or("equal".to_owned(), |db| format!("{db:.1} dB"));
            let (latents, pictures) = (worst("worst_latents_psnr"), worst("worst_picture_psnr"));
            writeln!(
                f,
                "worst of {} paintings against full precision: latents {latents}, pictures {pictures}",
                quality["seeds"]
            )?;
        }
        Ok(())
    }
}

/// A model's networks as its configurations describe them.
struct Networks {
    unet: Network,
    controlnet: Option<Network>,
    further: Vec<(Control, Network)>,
    text_encoder: Network,
}

impl Convert {
    /// Makes the bundle; `interrupted` ends the work within a tensor, `tell` hears of every step in words.
    ///
    /// # Errors
    /// [`Error::Usage`] for a place that is taken or a rule that matches nothing, [`Error::Model`] with everything that is
    /// missing or of another architecture, [`Error::Interrupted`], or the disk. No bundle appears then, and an old one is
    /// as it was.
    pub fn run(&self, interrupted: &AtomicBool, tell: &mut dyn FnMut(&str)) -> Result<Summary> {
        let began = Instant::now();
        self.check()?;
        let folder = NewFolder::begin(&self.out, self.force)?;
        let source = self.open()?;
        let mut manifest = self.manifest(&source)?;
        let mut networks = self.networks(&source, &manifest, self.dtype, &self.keep)?;
        let layers: Vec<String> = networks.each().flat_map(|network| network.layers()).collect();
        rules::check(&self.keep, layers.iter().map(String::as_str))?;
        self.side_models(&source, folder.path(), &mut manifest)?;
        self.captioner(folder.path(), &mut manifest, interrupted)?;

        let full = match self.calibrate {
            Some(samplings) => {
                tell("writing the model at full precision, to measure it");
                let full = self.full_precision(&source, &manifest, folder.path(), interrupted)?;
                let budget = Budget { samplings, layer: self.layer_budget };
                calibrate::calibrate(full.path(), budget, &mut networks.quantised(), interrupted, tell)?;
                Some(full)
            }
            None => None,
        };
        tell("writing the bundle");
        networks.write(&source, folder.path(), &mut manifest, interrupted)?;
        write_json(&folder.path().join(manifest::FILE_NAME), &manifest)?;
        if let Some(full) = full {
            tell("comparing the bundle with the model");
            let (model, bundle) = (Painter::open(full.path())?, Painter::open(folder.path())?);
            let quality = Quality::measure(&model, &bundle, report::SEEDS, interrupted)?;
            manifest.quality = Some(serde_json::to_value(quality).expect("numbers can be written as JSON"));
            full.close().map_err(Error::io(folder.path()))?;
            write_json(&folder.path().join(manifest::FILE_NAME), &manifest)?;
        }
        folder.finish()?;
        Ok(Summary {
            manifest,
            warnings: source.warnings().to_vec(),
            seconds: began.elapsed().as_secs_f64(),
            peak_resident_bytes: peak_resident_bytes(),
        })
    }

    /// What cannot be meant, found before any work.
    fn check(&self) -> Result<()> {
        if self.from.join(manifest::FILE_NAME).is_file() {
            let what = "is a bundle, whose numbers are no longer the model's; convert what it was made from";
            return Err(Error::file(&self.from, what));
        }
        match self.calibrate {
            Some(0) => {
                return Err(Error::Usage("--calibrate 0 measures nothing; give at least 1, or leave it out".into()));
            }
            Some(_) if self.dtype != Dtype::Int8 => {
                let dtype = self.dtype;
                return Err(Error::Usage(format!("--calibrate is for --dtype int8; {dtype} has no choice to make")));
            }
            _ => {}
        }
        // --force must not delete what is being read
        let sides = [&self.controlnet, &self.vae, &self.tiny_vae, &self.depth, &self.lineart, &self.captioner];
        let named = sides
            .into_iter()
            .chain([&self.config, &self.tokenizer])
            .flatten()
            .chain(self.lora.iter().map(|(file, _)| file))
            .chain([&self.from]);
        let Ok(out) = self.out.canonicalize() else { return Ok(()) };
        match named.into_iter().find(|path| path.canonicalize().is_ok_and(|path| path.starts_with(&out))) {
            Some(inside) => Err(Error::Usage(format!(
                "--out {} is where {} is read from; name another folder",
                self.out.display(),
                inside.display()
            ))),
            None => Ok(()),
        }
    }

    /// What the first ControlNet looks at. One that is named beside a folder is not the folder's own.
    fn first_control(&self, source: &Source) -> Control {
        let own = source.control().filter(|_| self.controlnet.is_none());
        self.control.or(own).unwrap_or(Control::SoftEdge)
    }

    fn open(&self) -> Result<Source> {
        Source::open(&Options {
            from: &self.from,
            config: self.config.as_deref(),
            tokenizer: self.tokenizer.as_deref(),
            controlnet: self.controlnet.as_deref(),
            vae: self.vae.as_deref(),
            loras: &self.lora,
        })
    }

    /// The manifest without its layers and files, its configurations checked.
    fn manifest(&self, source: &Source) -> Result<Manifest> {
        let vae = self.vae_kind(source)?;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            target: self.target,
            dtype: self.dtype,
            source: self.source.clone(),
            license: self.license.clone(),
            control: source.has(Part::ControlNet).then(|| self.first_control(source)),
            unet: self.entry::<UnetConfig>(source, Part::Unet, "UNet2DConditionModel")?,
            controlnet: match source.has(Part::ControlNet) {
                true => Some(self.entry::<ControlNetConfig>(source, Part::ControlNet, "ControlNetModel")?),
                false => None,
            },
            controlnets: {
                let entry = |control| Ok((control, self.entry(source, Part::Further(control), "ControlNetModel")?));
                source.further().map(entry).collect::<Result<_>>()?
            },
            depth: self.depth_preprocessing()?,
            text_encoder: self.entry::<TextConfig>(source, Part::TextEncoder, "CLIPTextModel")?,
            vae: Entry {
                kind: match vae {
                    VaeKind::Kl(_) => "AutoencoderKL",
                    VaeKind::Tiny(_) => "AutoencoderTiny",
                }
                .to_owned(),
                dtype: self.dtype.max(Dtype::F16),
                config: VaeConfig::new(vae.factor(), vae.latent_channels(), vae.scaling_factor()),
                parameters: 0,
                layers: BTreeMap::new(),
            },
            files: BTreeMap::new(),
            quality: None,
        };
        Bundle::describe(&self.from, manifest.clone())?;
        Ok(manifest)
    }

    fn entry<C: DeserializeOwned>(&self, source: &Source, part: Part, kind: &str) -> Result<Entry<C>> {
        let Some(config) = source.config(part) else {
            return Err(Error::file(&self.from, format!("has no {part}; name a whole pipeline")));
        };
        let config = serde_json::from_value(config.clone()).map_err(|e| {
            Error::file(&self.from, format!("the {part}'s configuration is not the one that belongs there: {e}"))
        })?;
        let dtype = if part == Part::TextEncoder { self.dtype.max(Dtype::F16) } else { self.dtype };
        Ok(Entry { kind: kind.to_owned(), dtype, config, parameters: 0, layers: BTreeMap::new() })
    }

    /// The networks of the model, compared with what the source has.
    fn networks(&self, source: &Source, manifest: &Manifest, dtype: Dtype, rules: &[Rule]) -> Result<Networks> {
        let unet = &manifest.unet.config;
        let text = tensors::text_encoder(&manifest.text_encoder.config);
        let controlnet = manifest.controlnet.as_ref().map(|net| tensors::controlnet(&net.config, unet));
        let further = manifest.controlnets.iter();
        let further: Vec<_> =
            further.map(|(control, net)| (*control, tensors::controlnet(&net.config, unet))).collect();
        let unet = tensors::unet(unet);
        let mut problems = vec![];
        missing(source, Part::Unet, &unet, &mut problems);
        missing(source, Part::TextEncoder, &text, &mut problems);
        if let Some(controlnet) = &controlnet {
            missing(source, Part::ControlNet, controlnet, &mut problems);
        }
        for (control, tensors) in &further {
            missing(source, Part::Further(*control), tensors, &mut problems);
        }
        if !problems.is_empty() {
            return Err(Error::Model { folder: self.from.clone(), problems });
        }
        let packing = if self.target == Target::Cpu { Packing::Panels } else { Packing::Rows };
        let network = |part, tensors: &[TensorSpec]| Network::new(part, tensors, dtype, rules, packing);
        Ok(Networks {
            unet: network("unet", &unet),
            controlnet: controlnet.map(|tensors| network("controlnet", &tensors)),
            further: further
                .into_iter()
                .map(|(control, tensors)| (control, network(further_part(control), &tensors)))
                .collect(),
            text_encoder: network("text_encoder", &text),
        })
    }

    /// The model as a bundle of f32 in a folder of its own inside `folder`, to be measured and deleted.
    fn full_precision(
        &self,
        source: &Source,
        manifest: &Manifest,
        folder: &Path,
        interrupted: &AtomicBool,
    ) -> Result<tempfile::TempDir> {
        let full = tempfile::Builder::new().prefix("full-").tempdir_in(folder).map_err(Error::io(folder))?;
        let mut manifest = Manifest { dtype: Dtype::F32, ..manifest.clone() };
        self.side_models(source, full.path(), &mut manifest)?;
        let networks = self.networks(source, &manifest, Dtype::F32, &[])?;
        networks.write(source, full.path(), &mut manifest, interrupted)?;
        write_json(&full.path().join(manifest::FILE_NAME), &manifest)?;
        Ok(full)
    }
}

/// Names what the source lacks or has in another shape.
fn missing(source: &Source, part: Part, tensors: &[TensorSpec], problems: &mut Vec<String>) {
    for tensor in tensors {
        match source.shape(part, &tensor.name) {
            None => problems.push(format!("{part}: tensor {} {:?} is missing", tensor.name, tensor.shape)),
            Some(shape) if !tensor.accepts(&shape) => {
                problems
                    .push(format!("{part}: tensor {} has the shape {shape:?}, wanted {:?}", tensor.name, tensor.shape));
            }
            Some(_) => {}
        }
    }
}

impl Networks {
    fn each(&self) -> impl Iterator<Item = &Network> {
        let further = self.further.iter().map(|(_, network)| network);
        [&self.unet].into_iter().chain(&self.controlnet).chain(further).chain([&self.text_encoder])
    }

    /// Those that may become int8.
    fn quantised(&mut self) -> Vec<&mut Network> {
        let further = self.further.iter_mut().map(|(_, network)| network);
        [&mut self.unet].into_iter().chain(&mut self.controlnet).chain(further).collect()
    }

    fn write(&self, source: &Source, folder: &Path, manifest: &mut Manifest, interrupted: &AtomicBool) -> Result<()> {
        let further = self.further.iter().map(|(control, network)| (Some(network), Part::Further(*control)));
        for (network, part) in [
            (Some(&self.unet), Part::Unet),
            (self.controlnet.as_ref(), Part::ControlNet),
            (Some(&self.text_encoder), Part::TextEncoder),
        ]
        .into_iter()
        .chain(further)
        {
            let Some(network) = network else { continue };
            let name = format!("{}.safetensors", network.part);
            let read = |tensor: &str| source.read(part, tensor);
            let entry = network.write(&folder.join(&name), &read, interrupted)?;
            manifest.files.insert(name, entry);
        }
        manifest.unet.layers = self.unet.manifest();
        manifest.unet.parameters = self.unet.parameters();
        manifest.text_encoder.layers = self.text_encoder.manifest();
        manifest.text_encoder.parameters = self.text_encoder.parameters();
        if let (Some(entry), Some(network)) = (&mut manifest.controlnet, &self.controlnet) {
            entry.layers = network.manifest();
            entry.parameters = network.parameters();
        }
        for (control, network) in &self.further {
            if let Some(entry) = manifest.controlnets.get_mut(control) {
                entry.layers = network.manifest();
                entry.parameters = network.parameters();
            }
        }
        Ok(())
    }
}
