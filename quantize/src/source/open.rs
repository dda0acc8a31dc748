//! Putting a [`Source`] together.

use super::clip::Vocabulary;
use super::configs::{Configs, Names};
use super::file::TensorFile;
use super::recognise::Kind;
use super::{Options, Part, Place, Source, Tensors, ldm, lora};
use pleinair::bundle::read_json;
use pleinair::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// See [`Source::open`].
pub(super) fn open(options: &Options) -> Result<Source> {
    let mut opening = match options.from.is_dir() {
        true => Opening::folder(options)?,
        false => Opening::single_file(options)?,
    };
    if let Some(path) = options.controlnet {
        opening.add_controlnet(path, options.config)?;
    }
    if let Some(path) = options.vae {
        opening.add_vae(path)?;
    }
    opening.check_complete(options)?;
    let vocabulary = opening.vocabulary(options)?;
    opening.into_source(vocabulary, options.loras)
}

/// A source under construction.
struct Opening {
    configs: Configs,
    files: Vec<TensorFile>,
    places: BTreeMap<Part, BTreeMap<String, Place>>,
    warnings: Vec<String>,
}

impl Opening {
    /// A diffusers folder. The VAE's weights may be missing where it is there as ONNX.
    fn folder(options: &Options) -> Result<Opening> {
        if options.config.is_some() {
            let what = "--config is for single files: a diffusers folder has its own configurations; leave it out";
            return Err(Error::Usage(what.into()));
        }
        let configs = Configs::of_folder(options.from)?;
        let mut opening = Opening { configs, files: vec![], places: BTreeMap::new(), warnings: vec![] };
        let controlnets = opening.configs.controlnets.clone();
        let folder = |part: Part| match (part, controlnets.first()) {
            (Part::ControlNet, Some((_, first, _))) => options.from.join(first),
            _ => options.from.join(part.to_string()),
        };
        for part in Part::ALL {
            let place = folder(part);
            let replaced = match part {
                Part::Vae => options.vae.is_some() || !TensorFile::has_weights(&place),
                Part::ControlNet => options.controlnet.is_some() || opening.configs.controlnet.is_none(),
                _ => false,
            };
            if !replaced {
                let files = opening.add_files(TensorFile::open_part(&place)?);
                opening.take_diffusers(part, files)?;
            }
        }
        for (control, folder, _) in controlnets.iter().skip(1) {
            let files = opening.add_files(TensorFile::open_part(&options.from.join(folder))?);
            opening.take_diffusers(Part::Further(*control), files)?;
        }
        Ok(opening)
    }

    /// One file in the original naming.
    fn single_file(options: &Options) -> Result<Opening> {
        let file = TensorFile::open(options.from)?;
        let kind = Kind::of(&file);
        if kind != Kind::Pipeline {
            return Err(Error::file(options.from, kind.refusal()));
        }
        let configs = options.config.map_or_else(|| Ok(Configs::published()), Configs::of_folder)?;
        let mut opening = Opening { configs, files: vec![], places: BTreeMap::new(), warnings: vec![] };
        let has_controlnet = file.names().any(|name| name.starts_with(ldm::CONTROLNET));
        if has_controlnet && options.controlnet.is_none() {
            let config = opening.configs.controlnet_like(&file, ldm::CONTROLNET);
            opening.configs.set_controlnet(config, options.from)?;
        }
        let files = opening.add_files(vec![file]);
        for (part, prefix) in [
            (Part::Unet, ldm::UNET),
            (Part::TextEncoder, ldm::TEXT),
            (Part::Vae, ldm::VAE),
            (Part::ControlNet, ldm::CONTROLNET),
        ] {
            let replaced = match part {
                Part::Vae => options.vae.is_some(),
                Part::ControlNet => options.controlnet.is_some() || !has_controlnet,
                _ => false,
            };
            if !replaced {
                opening.take_original(part, files.clone(), prefix)?;
            }
        }
        opening.warn_of_strangers(files);
        for part in Part::ALL {
            opening.check_widths(part, options.from)?;
        }
        Ok(opening)
    }

    /// A ControlNet's folder, a pipeline's folder that has one, or a file.
    fn add_controlnet(&mut self, path: &Path, config: Option<&Path>) -> Result<()> {
        if path.is_dir() {
            let place = part_folder(path, Part::ControlNet)?;
            self.configs.set_controlnet(read_json(&place.join("config.json"))?, &place)?;
            let files = self.add_files(TensorFile::open_part(&place)?);
            return self.take_diffusers(Part::ControlNet, files);
        }
        let file = TensorFile::open(path)?;
        let prefix = if file.names().any(|name| name.starts_with(ldm::CONTROLNET)) { ldm::CONTROLNET } else { "" };
        match Kind::of(&file) {
            Kind::ControlNet => {}
            Kind::Pipeline if !prefix.is_empty() => {}
            other => {
                let what = format!(
                    "this is {other}; --controlnet takes a ControlNet of Stable Diffusion 1.x, as a diffusers folder or \
                     as one file"
                );
                return Err(Error::file(path, what));
            }
        }
        let own = config.and_then(|_| self.configs.controlnet.clone());
        let config = own.unwrap_or_else(|| self.configs.controlnet_like(&file, prefix));
        self.configs.set_controlnet(config, path)?;
        let is_original = !prefix.is_empty() || file.shape("input_hint_block.0.weight").is_some();
        let files = self.add_files(vec![file]);
        match is_original {
            true => self.take_original(Part::ControlNet, files, prefix)?,
            false => self.take_diffusers(Part::ControlNet, files)?,
        }
        self.check_widths(Part::ControlNet, path)
    }

    /// A VAE's folder, a pipeline's folder, or a file in either naming.
    fn add_vae(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            let place = part_folder(path, Part::Vae)?;
            self.configs.set_vae(read_json(&place.join("config.json"))?, &place)?;
            let files = self.add_files(TensorFile::open_part(&place)?);
            return self.take_diffusers(Part::Vae, files);
        }
        let file = TensorFile::open(path)?;
        let kind = Kind::of(&file);
        if !matches!(kind, Kind::Vae | Kind::Pipeline) {
            let what = format!("this is {kind}; --vae takes the VAE of a Stable Diffusion 1.x model");
            return Err(Error::file(path, what));
        }
        let prefix = [ldm::VAE, "vae."].into_iter().find(|prefix| file.names().any(|name| name.starts_with(prefix)));
        let is_diffusers = file.names().any(|name| name.starts_with("encoder.down_blocks."));
        let files = self.add_files(vec![file]);
        match is_diffusers {
            true => self.take_diffusers(Part::Vae, files),
            false => self.take_original(Part::Vae, files, prefix.unwrap_or("")),
        }
    }

    fn add_files(&mut self, files: Vec<TensorFile>) -> Range<usize> {
        let first = self.files.len();
        self.files.extend(files);
        first..self.files.len()
    }

    /// Takes the tensors of files that hold one part in diffusers' naming.
    fn take_diffusers(&mut self, part: Part, files: Range<usize>) -> Result<()> {
        match self.configs.diffusers_names(part)? {
            Some(names) => self.take(part, files, "", &names),
            None => {
                let all = self.files[files.clone()].iter().flat_map(TensorFile::names);
                let names = all.map(|name| (name.to_string(), name.to_string())).collect();
                self.take(part, files, "", &names);
            }
        }
        Ok(())
    }

    /// Takes the tensors under `prefix` in the original naming.
    fn take_original(&mut self, part: Part, files: Range<usize>, prefix: &str) -> Result<()> {
        let names = self.configs.original_names(part)?;
        self.take(part, files, prefix, &names);
        Ok(())
    }

    fn take(&mut self, part: Part, files: Range<usize>, prefix: &str, names: &Names) {
        let (mut places, mut unused) = (BTreeMap::new(), vec![]);
        for file in files {
            for key in self.files[file].names() {
                let Some(below) = key.strip_prefix(prefix) else { continue };
                match names.get(below) {
                    Some(name) => {
                        let stored = self.files[file].shape(key).unwrap_or_default();
                        let shape = shape_given_out(part, name, stored);
                        let place = Place { file, key: key.into(), shape, adapters: vec![] };
                        places.insert(name.clone(), place);
                    }
                    None if is_bookkeeping(below) => {}
                    None => unused.push(key),
                }
            }
        }
        if let Some(first) = unused.first() {
            self.warnings.push(format!("{part}: {} tensors are not used, such as {first}", unused.len()));
        }
        self.places.insert(part, places);
    }

    /// Tensors of a whole pipeline's file that belong to none of its parts.
    fn warn_of_strangers(&mut self, files: Range<usize>) {
        let known = [ldm::UNET, ldm::TEXT, ldm::VAE, ldm::CONTROLNET, "model_ema."];
        let names = self.files[files].iter().flat_map(TensorFile::names);
        let strangers: Vec<_> =
            names.filter(|name| !known.iter().any(|start| name.starts_with(start)) && !is_bookkeeping(name)).collect();
        if let Some(first) = strangers.first() {
            self.warnings.push(format!("{} tensors belong to no part, such as {first}", strangers.len()));
        }
    }

    /// That a part in the file is as wide as its configuration says, by the layers that show it.
    fn check_widths(&self, part: Part, path: &Path) -> Result<()> {
        const TELLING: [&str; 4] =
            ["conv_in.weight", "attn2.to_k.weight", "token_embedding.weight", "position_embedding.weight"];
        let Some(places) = self.places.get(&part) else { return Ok(()) };
        for tensor in self.configs.tensors(part).unwrap_or_default() {
            let Some(place) = places.get(&tensor.name) else { continue };
            if TELLING.iter().any(|name| tensor.name.ends_with(name)) && !tensor.accepts(&place.shape) {
                let remedy = match part {
                    Part::ControlNet => "it belongs to another model",
                    _ => "name a folder with the model's own with --config",
                };
                let (key, shape, wanted, origin) = (&place.key, &place.shape, &tensor.shape, &self.configs.origin);
                let what =
                    format!("{part}: {key} has the shape {shape:?}, by {origin} configuration {wanted:?}; {remedy}");
                return Err(Error::file(path, what));
            }
        }
        Ok(())
    }

    /// A file may lack a part, which must then be given.
    fn check_complete(&self, options: &Options) -> Result<()> {
        let has = |part| self.places.get(&part).is_some_and(|places| !places.is_empty());
        if !options.from.is_dir() && !has(Part::TextEncoder) {
            let what = "there is no text encoder in it; name a file or folder of the whole pipeline";
            return Err(Error::file(options.from, what));
        }
        if !options.from.is_dir() && !has(Part::Vae) {
            return Err(Error::file(options.from, "there is no VAE in it; name one with --vae"));
        }
        for (part, path) in [(Part::ControlNet, options.controlnet), (Part::Vae, options.vae)] {
            if let Some(path) = path.filter(|_| !has(part)) {
                return Err(Error::file(path, format!("there is no {part} in it; name another file or folder")));
            }
        }
        Ok(())
    }

    fn vocabulary(&self, options: &Options) -> Result<Vocabulary> {
        let own = match options.from.is_dir() {
            true => Some(options.from),
            false => options.config,
        };
        let folder = match (options.tokenizer, own.map(|folder| folder.join("tokenizer"))) {
            (Some(named), _) => Some(named.to_path_buf()),
            (None, Some(own)) if own.is_dir() || options.from.is_dir() => Some(own),
            _ => None,
        };
        let vocabulary = folder.map_or(Vocabulary::Clip, Vocabulary::Folder);
        vocabulary.check(self.configs.parsed_text.vocab_size)?;
        Ok(vocabulary)
    }

    fn into_source(mut self, vocabulary: Vocabulary, loras: &[(PathBuf, f32)]) -> Result<Source> {
        for (path, weight) in loras {
            let file = TensorFile::open(path)?;
            let layers = lora::Layers::of(&self.configs, &self.places);
            let adapters = layers.adapters(&file, self.files.len(), *weight)?;
            self.files.push(file);
            for (part, name, adapter) in adapters {
                let place = self.places.get_mut(&part).and_then(|places| places.get_mut(&name));
                place.expect("the layers are those of the places").adapters.push(adapter);
            }
        }
        let Opening { configs, files, mut places, warnings } = self;
        let tensors = |part| {
            let config = configs.of(part)?.clone();
            Some((part, Tensors { config, places: places.remove(&part).unwrap_or_default() }))
        };
        let further = configs.controlnets.iter().skip(1).map(|(control, ..)| Part::Further(*control));
        let parts = Part::ALL.into_iter().chain(further).filter_map(tensors).collect();
        let control = configs.controlnets.first().map(|(control, ..)| *control);
        Ok(Source { files, parts, scheduler: configs.scheduler.clone(), vocabulary, warnings, control })
    }
}

/// `path` itself if it is the part's folder, else the part's folder in it.
fn part_folder(path: &Path, part: Part) -> Result<PathBuf> {
    let path = path.canonicalize().map_err(Error::io(path))?;
    let inner = path.join(part.to_string());
    let found = [inner, path.clone()].into_iter().find(|place| place.join("config.json").is_file());
    let found = found.ok_or_else(|| Error::file(&path, format!("no config.json of a {part} here")))?;
    let config: Value = read_json(&found.join("config.json"))?;
    let class = config.get("_class_name").and_then(Value::as_str).unwrap_or("no diffusers model");
    let wanted = if part == Part::Vae { "Autoencoder" } else { "ControlNetModel" };
    match class.starts_with(wanted) {
        true => Ok(found),
        false => Err(Error::file(&found, format!("its config.json is that of a {class}, not of a {part}"))),
    }
}

/// The VAE's attention is stored as 1x1 convolutions in the original naming, as linear layers in diffusers'.
fn shape_given_out(part: Part, name: &str, stored: &[usize]) -> Vec<usize> {
    match stored {
        [output, input, 1, 1] if part == Part::Vae && name.contains(".attentions.") => vec![*output, *input],
        _ => stored.to_vec(),
    }
}

/// Names that are no weights: the buffer of numbers 0 to 76, the schedule, the loss of the VAE's training.
fn is_bookkeeping(name: &str) -> bool {
    name.ends_with("embeddings.position_ids") || !name.contains('.') || name.starts_with("loss.")
}
