//! LoRA files: `weight * alpha / rank * up @ down` is added to the layers they were trained for (Hu et al., 2021). Three
//! namings: diffusers' and peft's (`unet.mid_block.….to_q.lora_A.weight`), kohya's
//! (`lora_unet_mid_block_…_to_q.lora_down.weight`), of which LCM-LoRA is one with convolutions, and kohya's over the
//! original names.

use super::configs::Configs;
use super::file::TensorFile;
use super::recognise::Kind;
use super::{Part, Place, ldm};
use candle_core::{Device, Tensor};
use pleinair::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Names listed in an error.
const LISTED: usize = 10;
/// Values of a layer changed at once.
const CHUNK: usize = 1 << 20;

/// Endings of the two matrices and of the scale.
const ENDINGS: [(&str, Piece); 13] = [
    (".lora_down.weight", Piece::Down),
    (".lora_up.weight", Piece::Up),
    (".alpha", Piece::Alpha),
    (".lora_A.weight", Piece::Down),
    (".lora_B.weight", Piece::Up),
    (".lora_A.default.weight", Piece::Down),
    (".lora_B.default.weight", Piece::Up),
    (".lora.down.weight", Piece::Down),
    (".lora.up.weight", Piece::Up),
    (".lora_linear_layer.down.weight", Piece::Down),
    (".lora_linear_layer.up.weight", Piece::Up),
    ("_lora.down.weight", Piece::Down),
    ("_lora.up.weight", Piece::Up),
];

/// Pieces of names that only other kinds of adapters have; those that begin with a dot are endings.
const OTHER_KINDS: [(&str, &str); 10] = [
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_mid.", "LoCon in Tucker form"),
    ("oft_", "OFT"),
    (".on_input", "IA3"),
    (".diff", "full difference"),
    (".diff_b", "full difference"),
    ("lora_embedding_", "LoRA on an embedding"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Down,
    Up,
    Alpha,
}

/// What is added to one layer.
#[derive(Debug)]
pub(super) struct Adapter {
    /// Into the source's files.
    file: usize,
    /// `[rank, ...]`, the layer's input.
    down: String,
    /// `[output, rank]`.
    up: String,
    rank: usize,
    /// `weight * alpha / rank`
    scale: f32,
}

impl Adapter {
    /// Adds `scale * up @ down` to a layer's weight, row by row.
    pub(super) fn add_to(&self, values: &mut [f32], files: &[TensorFile]) -> Result<()> {
        let file = &files[self.file];
        let (down, up) = (file.read(&self.down)?, file.read(&self.up)?);
        let inputs = down.len() / self.rank; // a convolution's kernel included
        let rows = (CHUNK / inputs).max(1);
        let down = Tensor::from_vec(down, (self.rank, inputs), &Device::Cpu)?;
        for (values, up) in values.chunks_mut(rows * inputs).zip(up.chunks(rows * self.rank)) {
            let up = Tensor::from_slice(up, (up.len() / self.rank, self.rank), &Device::Cpu)?;
            let delta = up.matmul(&down)?.flatten_all()?.to_vec1::<f32>()?;
            for (value, delta) in values.iter_mut().zip(delta) {
                *value += self.scale * delta;
            }
        }
        Ok(())
    }
}

/// The layers that a LoRA may be for, by every name that LoRA files have for them.
pub(super) struct Layers<'a> {
    by_name: HashMap<String, (Part, String)>,
    places: &'a BTreeMap<Part, BTreeMap<String, Place>>,
}

/// One layer's pieces as they are found.
#[derive(Default)]
struct Found<'f> {
    /// The layer's name in the LoRA file.
    base: String,
    keys: BTreeMap<Piece, &'f str>,
}

impl<'a> Layers<'a> {
    /// Of the UNet and the text encoder.
    pub(super) fn of(configs: &Configs, places: &'a BTreeMap<Part, BTreeMap<String, Place>>) -> Layers<'a> {
        let mut by_name = HashMap::new();
        for part in [Part::Unet, Part::TextEncoder] {
            for (name, place) in places.get(&part).into_iter().flatten() {
                let Some(layer) = name.strip_suffix(".weight").filter(|_| place.shape.len() >= 2) else { continue };
                if layer.contains("_embedding") && part == Part::TextEncoder {
                    continue; // tables are no layers
                }
                let names = match part {
                    Part::Unet => unet_names(configs, layer),
                    _ => text_names(layer),
                };
                by_name.extend(names.into_iter().map(|name| (name, (part, layer.to_string()))));
            }
        }
        Layers { by_name, places }
    }

    /// What a LoRA file adds to which tensor, the file being the source's `index`-th.
    ///
    /// # Errors
    /// If it is no LoRA, an adapter of another kind, or does not fit the model in every layer; up to ten are named.
    pub(super) fn adapters(
        &self,
        file: &TensorFile,
        index: usize,
        weight: f32,
    ) -> Result<Vec<(Part, String, Adapter)>> {
        if !weight.is_finite() {
            return Err(Error::Usage(format!("the weight of {} must be a number", file.path().display())));
        }
        refuse_other_kinds(file)?;
        let (mut found, mut strangers) = (BTreeMap::<_, Found>::new(), vec![]);
        for key in file.names() {
            let Some((base, piece)) = split(key) else {
                strangers.push(key.to_string());
                continue;
            };
            match self.by_name.get(&base) {
                Some(layer) => {
                    let entry = found.entry(layer).or_default();
                    if let Some(twice) = entry.keys.insert(piece, key) {
                        return Err(Error::file(file.path(), format!("{key} and {twice} are for the same layer")));
                    }
                    entry.base = base;
                }
                None => strangers.push(key.to_string()),
            }
        }
        if found.is_empty() && strangers.iter().all(|key| split(key).is_none()) {
            let what = format!("this is {}; --lora takes a LoRA file", Kind::of(file));
            return Err(Error::file(file.path(), what));
        }
        let count = strangers.len();
        refuse(file, strangers, |list| {
            format!(
                "{count} of its keys fit no layer of this model ({list}); it may have been trained for another one, such as \
                 SDXL"
            )
        })?;
        let scales = Scales::of(file)?;
        let (mut adapters, mut misfits) = (vec![], vec![]);
        for ((part, layer), pieces) in &found {
            let name = format!("{layer}.weight");
            let alpha = pieces.keys.get(&Piece::Alpha).map(|key| file.read(key)).transpose()?;
            match pieces.matrices(file, &self.places[part][&name].shape) {
                Ok((down, up, rank)) => {
                    let alpha = alpha.and_then(|values| values.first().copied());
                    let scale = weight * scales.of_layer(*part, layer, rank, alpha);
                    let adapter = Adapter { file: index, down: down.into(), up: up.into(), rank, scale };
                    adapters.push((*part, name, adapter));
                }
                Err(misfit) => misfits.push(format!("{} {misfit}", pieces.base)),
            }
        }
        let count = misfits.len();
        refuse(file, misfits, |list| format!("{count} of its layers do not fit this model: {list}"))?;
        Ok(adapters)
    }
}

impl<'f> Found<'f> {
    /// Names of the two matrices, and the rank, for a layer of this shape.
    fn matrices(&self, file: &TensorFile, layer: &[usize]) -> Result<(&'f str, &'f str, usize), String> {
        let (Some(&down), Some(&up)) = (self.keys.get(&Piece::Down), self.keys.get(&Piece::Up)) else {
            return Err("lacks one of its two matrices".into());
        };
        let shape = |key| without_unit_kernel(file.shape(key).unwrap_or_default());
        match (shape(down), shape(up), without_unit_kernel(layer)) {
            ([rank, inputs @ ..], [output, inner], [outputs, wanted @ ..])
                if rank == inner && *rank > 0 && output == outputs && inputs == wanted =>
            {
                Ok((down, up, *rank))
            }
            (down, up, layer) => Err(format!("with {up:?} by {down:?} for a layer of {layer:?}")),
        }
    }
}

/// What the matrices are multiplied with.
struct Scales(Value);

impl Scales {
    /// diffusers stores peft's settings in the header where the file has no `.alpha`.
    fn of(file: &TensorFile) -> Result<Scales> {
        const KEY: &str = "lora_adapter_metadata";
        let fault = |e| Error::file(file.path(), format!("its {KEY} is not JSON: {e}"));
        let settings = file.metadata(KEY).map(serde_json::from_str).transpose().map_err(fault)?;
        Ok(Scales(settings.unwrap_or_default()))
    }

    /// `alpha / rank`, or 1 where nothing says otherwise.
    fn of_layer(&self, part: Part, layer: &str, rank: usize, alpha: Option<f32>) -> f32 {
        let setting = |key: &str| self.0.get(format!("{part}.{key}")).or_else(|| self.0.get(key));
        let pattern = setting("alpha_pattern").and_then(Value::as_object).into_iter().flatten().find(|(name, _)| {
            let before = layer.strip_suffix(name.as_str());
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        });
        let of_peft = pattern.map(|(_, alpha)| alpha).or(setting("lora_alpha")).and_then(Value::as_f64);
        let rank = rank as f32;
        match alpha.or(of_peft.map(|alpha| alpha as f32)) {
            // rank-stabilised LoRA (Kalajdzievski, 2023)
            Some(alpha) if setting("use_rslora") == Some(&Value::Bool(true)) => alpha / rank.sqrt(),
            Some(alpha) => alpha / rank,
            None => 1.0,
        }
    }
}

/// A key's layer, under one of the names of [`Layers`], and which piece of it this is.
fn split(key: &str) -> Option<(String, Piece)> {
    let (ending, base, piece) = ENDINGS.iter().find_map(|(end, piece)| Some((end, key.strip_suffix(end)?, *piece)))?;
    let mut base = base.replace(".processor.", ".");
    if ending.starts_with("_lora") {
        // diffusers before 0.22 named the attention's processor, not its layers
        for (old, new) in [("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")] {
            if let Some(attention) = base.strip_suffix(&format!(".self_attn.to_{old}")) {
                base = format!("{attention}.self_attn.{new}");
            }
        }
        if base.ends_with(".to_out") {
            base += ".0";
        }
    }
    Some((base, piece))
}

fn unet_names(configs: &Configs, layer: &str) -> Vec<String> {
    let original = ldm::unet_name(&configs.parsed_unet, layer);
    let flat = [Some(layer), original.as_deref()].into_iter().flatten();
    let mut names: Vec<_> = flat.map(|name| format!("lora_unet_{}", name.replace('.', "_"))).collect();
    names.extend([format!("unet.{layer}"), layer.into()]);
    names
}

/// Text encoders of transformers 5 have no `text_model.` before their layers.
fn text_names(layer: &str) -> Vec<String> {
    let bare = layer.trim_start_matches("text_model.");
    let mut names = vec![layer.to_string()];
    for name in [layer, bare] {
        let flat = name.replace('.', "_");
        names.extend([format!("lora_te_{flat}"), format!("lora_te1_{flat}"), format!("text_encoder.{name}")]);
    }
    names
}

fn refuse_other_kinds(file: &TensorFile) -> Result<()> {
    let is_in =
        |piece: &str, key: &str| if piece.starts_with('.') { key.ends_with(piece) } else { key.contains(piece) };
    let kind = |key: &str| OTHER_KINDS.iter().find(|(piece, _)| is_in(piece, key)).map(|(_, kind)| *kind);
    match file.names().find_map(|key| Some((key, kind(key)?))) {
        Some((key, kind)) => {
            let what = format!("an adapter of the kind {kind} ({key}), which is not supported; only LoRA is");
            Err(Error::file(file.path(), what))
        }
        None => Ok(()),
    }
}

/// An error that lists the first few of `faults`, if there are any.
fn refuse(file: &TensorFile, faults: Vec<String>, what: impl Fn(String) -> String) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    let mut list = faults[..faults.len().min(LISTED)].join(", ");
    if faults.len() > LISTED {
        list += ", ...";
    }
    Err(Error::file(file.path(), what(list)))
}

/// `[output, input, 1, 1]` is a linear layer too.
fn without_unit_kernel(shape: &[usize]) -> &[usize] {
    match shape {
        [_, _, 1, 1] => &shape[..2],
        _ => shape,
    }
}
