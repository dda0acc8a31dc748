//! `inspect`: what is in a model folder, from its configurations and the headers of its weights; no weight is read.

mod bundle;

use crate::tensors::{self, TensorSpec};
use pleinair::bundle::config::{ControlNetConfig, TextConfig, UnetConfig, VaeConfig};
use pleinair::bundle::weights::Weights;
use pleinair::bundle::{Bundle, VaeFiles, VaeHalf, manifest, read_json};
use pleinair::prompt::Tokenizer;
use pleinair::sampler::{BetaSchedule, PredictionType, Schedule, SchedulerConfig};
use pleinair::{Error, Result};
use safetensors::Dtype;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// Everything found in a model folder.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The folder.
    pub folder: PathBuf,
    /// Its parts.
    pub parts: Vec<Part>,
    /// What keeps the model from being used, each by part and name.
    pub problems: Vec<String>,
    /// What is worth knowing besides.
    pub notes: Vec<String>,
}

/// One part of a model.
#[derive(Debug, Serialize)]
pub struct Part {
    /// Its folder's name, or its files' names.
    pub name: String,
    /// Number of values in its tensors of floating-point numbers; none where no tensors are listed.
    pub parameters: Option<u64>,
    /// Number of tensors, whatever they hold.
    pub tensors: Option<usize>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Number of tensors of each type.
    pub dtypes: BTreeMap<String, usize>,
    /// Number of its files.
    pub files: usize,
    /// Its configuration in one line; empty where it cannot be read.
    pub configuration: String,
}

/// Looks into a bundle or a diffusers folder.
///
/// # Errors
/// Only if there is no such folder; what is wrong inside is listed in [`Inspection::problems`].
pub fn inspect(folder: &Path) -> Result<Inspection> {
    if !folder.is_dir() {
        return Err(Error::file(folder, "there is no such model folder; name a bundle or a diffusers folder"));
    }
    if folder.join(manifest::FILE_NAME).is_file() {
        return Ok(bundle::inspect(folder));
    }
    let mut found = Inspection { folder: folder.to_path_buf(), parts: vec![], problems: vec![], notes: vec![] };
    let unet: Option<UnetConfig> = found.config("unet");
    let text: Option<TextConfig> = found.config("text_encoder");
    let vae: Option<VaeConfig> = found.config("vae");
    let bundle = found.problem_of(Bundle::open(folder));
    let controlnets: Vec<String> = match &bundle {
        Some(bundle) => bundle.controlnets.iter().map(|net| net.part.clone()).collect(),
        None => ["controlnet".to_owned()].into_iter().filter(|part| folder.join(part).is_dir()).collect(),
    };

    let expected = |list: &dyn Fn(&Bundle) -> Vec<TensorSpec>| bundle.as_ref().map(list);
    found.weights("text_encoder", expected(&|b| tensors::text_encoder(&b.text)), text.map(text_line));
    found.weights("unet", expected(&|b| tensors::unet(&b.unet)), unet.map(unet_line));
    for part in &controlnets {
        let config: Option<ControlNetConfig> = found.config(part);
        let net =
            bundle.as_ref().and_then(|bundle| Some((bundle, bundle.controlnets.iter().find(|n| n.part == *part)?)));
        let expected = net.map(|(bundle, net)| tensors::controlnet(&net.config, &bundle.unet));
        found.weights(part, expected, config.map(controlnet_line));
    }
    if controlnets.is_empty() {
        found.notes.push("controlnet: none; photographs are painted without soft edges".into());
    }
    if bundle.is_none() {
        found.notes.push("tensors were not compared with the configuration, which must be put right first".into());
    }
    found.vae(vae, bundle.as_ref());
    found.tokenizer(bundle.as_ref());
    found.scheduler();
    Ok(found)
}

fn unet_line(config: UnetConfig) -> String {
    let heads: Vec<usize> = (0..config.levels()).map(|level| config.heads(level)).collect();
    let heads = match heads.iter().all(|h| h == &heads[0]) {
        true => heads.first().map_or("no".into(), usize::to_string),
        false => dashed(&heads),
    };
    format!(
        "levels {}, ResNets per level {}, {heads} heads, text {} wide, latents {}x{side}x{side}",
        dashed(&config.block_out_channels),
        config.layers_per_block,
        config.cross_attention_dim,
        config.in_channels,
        side = config.sample_size,
    )
}

fn controlnet_line(config: ControlNetConfig) -> String {
    format!("the UNet's way down, control picture read through {}", dashed(&config.conditioning_embedding_out_channels))
}

fn text_line(config: TextConfig) -> String {
    format!(
        "{} words, {} wide, {} layers, {} heads, {} positions, {}",
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.max_position_embeddings,
        config.hidden_act,
    )
}

fn vae_line(config: VaeConfig) -> String {
    let factor = 1u64.checked_shl(config.block_out_channels.len().saturating_sub(1) as u32).unwrap_or(0);
    format!(
        "levels {}, factor {factor}, {} latent channels, scaling {}",
        dashed(&config.block_out_channels),
        config.latent_channels,
        config.scaling_factor,
    )
}

fn scheduler_line(config: &SchedulerConfig) -> String {
    let predicts = match config.prediction_type {
        PredictionType::Epsilon => "epsilon",
        PredictionType::VPrediction => "v_prediction",
        PredictionType::Sample => "sample",
    };
    let steps = config.num_train_timesteps;
    let curve = match config.beta_schedule {
        BetaSchedule::Linear => "linear",
        BetaSchedule::ScaledLinear => "scaled_linear",
        BetaSchedule::SquaredcosCapV2 => "squaredcos_cap_v2",
    };
    format!("predicts {predicts}, {steps} timesteps, {curve} betas {} to {}", config.beta_start, config.beta_end)
}

fn dashed(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join("-")
}

impl Inspection {
    /// Lists what is wrong, once.
    fn problem_of<T>(&mut self, result: Result<T>) -> Option<T> {
        let problems = match result {
            Ok(value) => return Some(value),
            Err(Error::Model { problems, .. }) => problems,
            Err(other) => vec![other.to_string()],
        };
        for problem in problems {
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
        None
    }

    fn config<T: DeserializeOwned>(&mut self, part: &str) -> Option<T> {
        self.problem_of(read_json(&self.folder.join(part).join("config.json")))
    }

    /// A part with safetensors files; `expected` are the tensors that its configuration asks for.
    fn weights(&mut self, part: &str, expected: Option<Vec<TensorSpec>>, configuration: Option<String>) {
        let stem = if part == "text_encoder" { "model" } else { "diffusion_pytorch_model" };
        let opened = Weights::open(&self.folder, part, stem);
        let Some(weights) = self.problem_of(opened) else { return };
        if let Some(expected) = expected {
            self.compare(part, &expected, &weights);
        }
        self.parts.push(listed(part, &weights, configuration.unwrap_or_default()));
    }

    /// Names every tensor that is missing, misshapen or of a type that cannot be read.
    fn compare(&mut self, part: &str, expected: &[TensorSpec], weights: &Weights) {
        let mut stored: BTreeMap<&str, _> = weights.headers().map(|header| (header.name, header)).collect();
        // older text encoders have the prefix of these lists, newer ones have none
        let prefixed = weights.contains("text_model.final_layer_norm.weight");
        for tensor in expected {
            let name = match tensor.name.strip_prefix("text_model.") {
                Some(bare) if !prefixed => bare,
                _ => &tensor.name,
            };
            let problem = match stored.remove(name) {
                None => format!("tensor {name} {:?} is missing", tensor.shape),
                Some(header) if !tensor.accepts(header.shape) => {
                    format!("tensor {name} has the shape {:?}, wanted {:?}", header.shape, tensor.shape)
                }
                Some(header) if !floating(header.dtype) => {
                    format!("tensor {name} is {:?}; supported are F32, F16 and BF16", header.dtype)
                }
                Some(_) => continue,
            };
            self.problems.push(format!("{part}: {problem}"));
        }
        // a buffer of numbers 0 to 76 that transformers used to store
        stored.retain(|name, _| !name.ends_with("embeddings.position_ids"));
        if let Some(first) = stored.keys().next() {
            self.notes.push(format!("{part}: {} tensors are not used, such as {first}", stored.len()));
        }
    }

    /// The weights and the ONNX files, where they are there; one of them must be.
    fn vae(&mut self, config: Option<VaeConfig>, bundle: Option<&Bundle>) {
        let line = config.map(vae_line).unwrap_or_default();
        let stem = "diffusion_pytorch_model";
        let has_weights = self.folder.join("vae").read_dir().is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with(stem)))
        });
        if has_weights {
            self.weights("vae", None, Some(line.clone()));
        }
        let runs = |bundle: &Bundle| matches!(bundle.vae_weights(VaeHalf::Decoder), Ok(Some(_)));
        match bundle.map(Bundle::vae_files) {
            Some(Ok(VaeFiles { encoder, decoder })) => {
                let bytes = file_bytes(&encoder) + file_bytes(&decoder);
                self.parts.push(Part { files: 2, bytes, ..without_tensors("vae (onnx)", line) });
            }
            Some(Err(missing)) if !bundle.is_some_and(runs) => {
                self.notes.push(format!("painting and learning need the VAE: {missing}"));
            }
            _ => {}
        }
    }

    fn tokenizer(&mut self, bundle: Option<&Bundle>) {
        let folder = self.folder.join("tokenizer");
        let Some(tokenizer) = self.problem_of(Tokenizer::open(&folder)) else { return };
        let files: Vec<u64> = ["tokenizer.json", "vocab.json", "merges.txt"]
            .into_iter()
            .map(|name| folder.join(name))
            .filter(|path| path.is_file())
            .map(|path| file_bytes(&path))
            .collect();
        let (start, end, pad) = (tokenizer.bos(), tokenizer.eos(), tokenizer.pad());
        let line =
            format!("{} positions, starts with {start}, ends with {end}, pads with {pad}", tokenizer.positions());
        let part = without_tensors("tokenizer", line);
        self.parts.push(Part { files: files.len(), bytes: files.iter().sum(), ..part });
        if let Some(words) = bundle.map(|b| b.text.vocab_size)
            && let Some(id) = [start, end, pad].into_iter().find(|&id| id as usize >= words)
        {
            self.problems.push(format!("tokenizer: it gives token {id}, but the text encoder has {words} words"));
        }
    }

    fn scheduler(&mut self) {
        let path = self.folder.join("scheduler/scheduler_config.json");
        let named = |e: Error| Error::file(&path, e.to_string());
        let read = std::fs::read_to_string(&path).map_err(Error::io(&path));
        let config = read.and_then(|text| SchedulerConfig::from_json(&text).map_err(named));
        let Some(config) = self.problem_of(config) else { return };
        let line = scheduler_line(&config);
        self.problem_of(Schedule::new(config).map_err(named));
        self.parts.push(Part { files: 1, bytes: file_bytes(&path), ..without_tensors("scheduler", line) });
    }
}

/// What the headers of a part's weights say.
fn listed(part: &str, weights: &Weights, configuration: String) -> Part {
    let mut files = BTreeSet::new();
    let mut dtypes = BTreeMap::new();
    let mut parameters = 0;
    for header in weights.headers() {
        files.insert(header.file);
        *dtypes.entry(format!("{:?}", header.dtype)).or_default() += 1;
        if !matches!(header.dtype, Dtype::I64 | Dtype::I32) {
            parameters += header.shape.iter().map(|&d| d as u64).product::<u64>();
        }
    }
    Part {
        name: part.into(),
        parameters: Some(parameters),
        tensors: Some(weights.headers().count()),
        bytes: files.iter().map(|file| file_bytes(file)).sum(),
        dtypes,
        files: files.len(),
        configuration,
    }
}

fn without_tensors(name: &str, configuration: String) -> Part {
    let (parameters, tensors, dtypes) = (None, None, BTreeMap::new());
    Part { name: name.into(), parameters, tensors, bytes: 0, dtypes, files: 0, configuration }
}

/// The types that networks are loaded from.
fn floating(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Length of a file that was just read; one that has gone since counts nothing.
fn file_bytes(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

impl fmt::Display for Inspection {
    /// The table and the notes; problems are an error of their own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<13}{:>14}{:>9}{:>15}{:>7}  {:<10} configuration",
            "part", "parameters", "tensors", "bytes", "files", "types"
        )?;
        for part in &self.parts {
            let parameters = part.parameters.map_or("-".into(), |n| n.to_string());
            let tensors = part.tensors.map_or("-".into(), |n| n.to_string());
            let dtypes: Vec<&str> = part.dtypes.keys().map(String::as_str).collect();
            writeln!(
                f,
                "{:<13}{parameters:>14}{tensors:>9}{:>15}{:>7}  {:<10} {}",
                part.name,
                part.bytes,
                part.files,
                dtypes.join(" "),
                part.configuration
            )?;
        }
        // a manifest may claim any number
        let parameters = self.parts.iter().filter_map(|part| part.parameters).fold(0, u64::saturating_add);
        let bytes = self.parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add);
        let tensors: usize = self.parts.iter().filter_map(|part| part.tensors).sum();
        let files: usize = self.parts.iter().map(|part| part.files).sum();
        writeln!(f, "{:<13}{parameters:>14}{tensors:>9}{bytes:>15}{files:>7}", "all")?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}
