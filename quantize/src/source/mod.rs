//! A pipeline in full precision, whatever it comes as: a diffusers folder or one file in the original (LDM) naming, in
//! safetensors or as torch saves it, with a ControlNet, another VAE and LoRAs on top. Gives every tensor by diffusers'
//! name, in PyTorch's layout, as f32; reads one tensor at a time.

mod clip;
mod configs;
mod file;
mod ldm;
mod lora;
mod open;
mod recognise;

pub use clip::Vocabulary;

pub(crate) use file::TensorFile;
use lora::Adapter;
use pleinair::bundle::manifest::{Control, further_part};
use pleinair::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A part of a pipeline that has weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The network that denoises.
    Unet,
    /// The network that reads the control picture.
    ControlNet,
    /// CLIP's text encoder.
    TextEncoder,
    /// Pictures to latents and back.
    Vae,
    /// A further ControlNet, which looks at something else than the first.
    Further(Control),
}

impl Part {
    /// All that there is one of.
    pub const ALL: [Part; 4] = [Part::Unet, Part::ControlNet, Part::TextEncoder, Part::Vae];
}

impl fmt::Display for Part {
    /// The name of its folder in a diffusers pipeline, or of its file in a bundle.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Unet => "unet",
            Part::ControlNet => "controlnet",
            Part::TextEncoder => "text_encoder",
            Part::Vae => "vae",
            Part::Further(control) => further_part(*control),
        })
    }
}

/// Where the pieces of a pipeline are.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// A diffusers folder, or a file with a whole pipeline in the original naming.
    pub from: &'a Path,
    /// For a file: a diffusers folder whose configurations are the file's; without it, SD 1.5's are.
    pub config: Option<&'a Path>,
    /// A tokenizer folder, in place of the pipeline's own or, for a file, of CLIP's.
    pub tokenizer: Option<&'a Path>,
    /// A ControlNet's folder or file, in place of the pipeline's own.
    pub controlnet: Option<&'a Path>,
    /// A VAE's folder or file, in place of the pipeline's own.
    pub vae: Option<&'a Path>,
    /// LoRA files, each with the weight it is folded in with.
    pub loras: &'a [(PathBuf, f32)],
}

/// An opened pipeline: everything is known of its tensors but their values. Several threads may read at once.
#[derive(Debug)]
pub struct Source {
    files: Vec<TensorFile>,
    parts: BTreeMap<Part, Tensors>,
    scheduler: Value,
    vocabulary: Vocabulary,
    warnings: Vec<String>,
    control: Option<Control>,
}

/// One part.
#[derive(Debug)]
struct Tensors {
    config: Value,
    places: BTreeMap<String, Place>,
}

/// Where one tensor comes from.
#[derive(Debug)]
struct Place {
    /// Into [`Source::files`].
    file: usize,
    /// Its name in the file.
    key: String,
    /// As given out.
    shape: Vec<usize>,
    /// What is added to it.
    adapters: Vec<Adapter>,
}

impl Source {
    /// Opens a pipeline and everything that goes with it; no tensor is read yet.
    ///
    /// # Errors
    /// If something is not there, damaged, or of a kind that is not supported (which is named); if a LoRA fits no layer.
    /// A tensor that is missing is no error here.
    pub fn open(options: &Options) -> Result<Source> {
        open::open(options)
    }

    /// Whether the pipeline has weights of a part.
    pub fn has(&self, part: Part) -> bool {
        self.parts.get(&part).is_some_and(|tensors| !tensors.places.is_empty())
    }

    /// What the first ControlNet looks at, where its folder says so.
    pub fn control(&self) -> Option<Control> {
        self.control
    }

    /// What the further ControlNets look at.
    pub fn further(&self) -> impl Iterator<Item = Control> {
        self.parts.keys().filter_map(|part| match part {
            Part::Further(control) => Some(*control),
            _ => None,
        })
    }

    /// The `config.json` of a part. A VAE may have one without having weights: when the folder has only ONNX files.
    pub fn config(&self, part: Part) -> Option<&Value> {
        self.parts.get(&part).map(|tensors| &tensors.config)
    }

    /// `scheduler_config.json`; SD 1.5's where a file has none.
    pub fn scheduler(&self) -> &Value {
        &self.scheduler
    }

    /// The words of the text encoder.
    pub fn tokenizer(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The shape of a tensor as [`Source::read`] gives it; none where there is no such tensor.
    pub fn shape(&self, part: Part, name: &str) -> Option<Vec<usize>> {
        Some(self.parts.get(&part)?.places.get(name)?.shape.clone())
    }

    /// Names of a part's tensors as diffusers writes them, sorted; the text encoder's begin with `text_model.`.
    pub fn names(&self, part: Part) -> Vec<String> {
        self.parts.get(&part).map(|tensors| tensors.places.keys().cloned().collect()).unwrap_or_default()
    }

    /// A tensor's values row by row, with the LoRAs folded in.
    ///
    /// # Errors
    /// If there is no such tensor, it holds no floating-point numbers or one that is not finite, or its file cannot be
    /// read.
    pub fn read(&self, part: Part, name: &str) -> Result<Vec<f32>> {
        let place = self.parts.get(&part).and_then(|tensors| tensors.places.get(name));
        let place = place.ok_or_else(|| Error::Usage(format!("{part}: tensor {name} is missing")))?;
        let file = &self.files[place.file];
        let mut values = file.read(&place.key)?;
        for adapter in &place.adapters {
            adapter.add_to(&mut values, &self.files)?;
        }
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(Error::file(file.path(), format!("{part}: tensor {name} holds values that are not finite"))),
        }
    }

    /// What is worth knowing: tensors that are not used.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
