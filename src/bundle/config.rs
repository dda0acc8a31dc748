//! `config.json` of each part, as diffusers and transformers write them. Keys that would change the network in a way
//! this program does not implement are refused by name; keys that cannot change it are ignored.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Resolution levels of a network; Stable Diffusion has four. A configuration is data from outside: bounds far above
/// every known model keep what is computed from it within a number, and what is built from it within memory.
const MOST_LEVELS: usize = 16;
/// Layers in a row.
const MOST_LAYERS: usize = 256;
/// Channels of anything.
const WIDEST: usize = 1 << 16;
/// Words of a text encoder, and positions in its text.
const MOST_WORDS: usize = 1 << 22;
/// Side of the square latents a network was trained with.
const LARGEST_LATENT: usize = 1 << 14;

/// Names each `(key, number, most)` whose number is not from 1 to `most`.
fn out_of_bounds(part: &str, numbers: &[(&str, usize, usize)]) -> Vec<String> {
    let wrong = numbers.iter().filter(|(_, number, most)| !(1..=*most).contains(number));
    wrong.map(|(key, number, most)| format!("{part}: {key} is {number}, must be 1 to {most}")).collect()
}

/// Names an addend of a variance that would make its root nothing to divide by.
fn bad_epsilon(key: &str, epsilon: f64) -> Option<String> {
    (!(0.0..=1.0).contains(&epsilon)).then(|| format!("{key} is {epsilon}, must be 0 to 1"))
}

/// `model_index.json`.
#[derive(Debug, Deserialize)]
pub struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: String,
}

impl ModelIndex {
    /// Refuses pipelines of another family by name.
    pub(super) fn check(&self, folder: &Path) -> Result<()> {
        let known = [
            "StableDiffusionPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
        ];
        if known.contains(&self.class_name.as_str()) {
            return Ok(());
        }
        let problem = format!(
            "model_index.json: this is a {}; supported are Stable Diffusion 1.x and 2.x pipelines ({})",
            self.class_name, known[0]
        );
        Err(Error::Model { folder: folder.to_path_buf(), problems: vec![problem] })
    }
}

/// A number for all levels, or one for each.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same everywhere.
    All(usize),
    /// From the finest level to the coarsest.
    Each(Vec<usize>),
}

impl PerLevel {
    /// The number of level `i`.
    pub fn at(&self, i: usize) -> usize {
        match self {
            PerLevel::All(n) => *n,
            PerLevel::Each(ns) => ns.get(i).copied().unwrap_or(0),
        }
    }
}

/// `unet/config.json`.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct UnetConfig {
    /// Latent channels in.
    pub in_channels: usize,
    /// Latent channels out; a ControlNet's configuration has none.
    #[serde(default)]
    pub out_channels: usize,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// Classes of the levels on the way down.
    pub down_block_types: Vec<String>,
    /// Classes of the levels on the way up, coarsest first; a ControlNet's configuration has none.
    #[serde(default)]
    pub up_block_types: Vec<String>,
    /// ResNet blocks a level.
    pub layers_per_block: usize,
    /// Channels of the text states.
    pub cross_attention_dim: usize,
    /// diffusers' misnomer: in SD 1.x configurations this is the NUMBER of heads, unless `num_attention_heads` is given.
    #[serde(default = "eight_heads")]
    pub attention_head_dim: PerLevel,
    /// The number of heads, where a configuration has the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_attention_heads: Option<PerLevel>,
    /// Groups of each GroupNorm.
    #[serde(default = "groups")]
    pub norm_num_groups: usize,
    /// Added to the variance in each GroupNorm.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Whether cosine comes before sine in the timestep embedding.
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    /// Shift of the timestep embedding's frequencies.
    #[serde(default)]
    pub freq_shift: f64,
    /// Side of the square latents the network was trained with.
    #[serde(default = "sample_size")]
    pub sample_size: usize,
    /// Whether the projections around a transformer are linear layers (SD 2) or 1x1 convolutions (SD 1).
    #[serde(default)]
    pub use_linear_projection: bool,
    /// Transformer layers a block.
    #[serde(default = "one")]
    pub transformer_layers_per_block: PerLevel,
    /// Everything else, for [`UnetConfig::problems`]; not written, since nothing else is implemented.
    #[serde(flatten, skip_serializing)]
    rest: HashMap<String, Value>,
}

fn eight_heads() -> PerLevel {
    PerLevel::All(8)
}
fn groups() -> usize {
    32
}
fn norm_eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}
fn sample_size() -> usize {
    64
}
fn one() -> PerLevel {
    PerLevel::All(1)
}

/// Keys that change the network, with the only value this program implements (null and absence are fine as well).
const UNET_ONLY: &[(&str, &str)] = &[
    ("act_fn", "\"silu\""),
    ("addition_embed_type", "null"),
    ("attention_type", "\"default\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("downsample_padding", "1"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("mid_block_only_cross_attention", "null"),
    ("mid_block_scale_factor", "1"),
    ("mid_block_type", "\"UNetMidBlock2DCrossAttn\""),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("projection_class_embeddings_input_dim", "null"),
    ("resnet_out_scale_factor", "1.0"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("reverse_transformer_layers_per_block", "null"),
    ("time_cond_proj_dim", "null"),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_dim", "null"),
    ("time_embedding_type", "\"positional\""),
    ("timestep_post_act", "null"),
];

/// Keys that cannot change what an evaluation computes, whatever their value.
const INERT: &[&str] = &["addition_embed_type_num_heads", "addition_time_embed_dim", "dropout", "upcast_attention"];

/// Lists the keys of `rest` that nobody knows, and those whose value is not the one implemented. Keys that begin with an
/// underscore are notes of the library that wrote them.
pub fn unsupported(part: &str, rest: &HashMap<String, Value>, only: &[(&str, &str)]) -> Vec<String> {
    let same = |value: &Value, wanted: &str| {
        let wanted: Value = serde_json::from_str(wanted).expect("the table above holds JSON");
        value.is_null() || *value == wanted || (value.is_number() && value.as_f64() == wanted.as_f64())
    };
    let mut problems: Vec<_> = rest
        .iter()
        .filter(|(key, _)| !key.starts_with('_') && !INERT.contains(&key.as_str()))
        .filter_map(|(key, value)| match only.iter().find(|(known, _)| known == key) {
            Some((_, wanted)) if same(value, wanted) => None,
            Some((_, wanted)) => Some(format!("{part}: {key} = {value} is not supported, only {wanted}")),
            None => Some(format!("{part}: the key {key} = {value} is unknown; it may be misspelt")),
        })
        .collect();
    problems.sort();
    problems
}

impl UnetConfig {
    /// Heads of level `i`, with diffusers' quirk resolved.
    pub fn heads(&self, level: usize) -> usize {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(level)
    }

    /// Channels of the timestep embedding.
    pub fn time_channels(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    /// Number of resolution levels.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// What decides the way down, which a UNet and its ControlNet share, by key.
    fn down_path(&self) -> Vec<(&'static str, String)> {
        let levels = 0..self.levels();
        let heads: Vec<_> = levels.clone().map(|i| self.heads(i)).collect();
        let transformers: Vec<_> = levels.map(|i| self.transformer_layers_per_block.at(i)).collect();
        vec![
            ("block_out_channels", format!("{:?}", self.block_out_channels)),
            ("down_block_types", format!("{:?}", self.down_block_types)),
            ("layers_per_block", self.layers_per_block.to_string()),
            ("cross_attention_dim", self.cross_attention_dim.to_string()),
            ("in_channels", self.in_channels.to_string()),
            ("attention_head_dim", format!("{heads:?}")),
            ("transformer_layers_per_block", format!("{transformers:?}")),
            ("norm_num_groups", self.norm_num_groups.to_string()),
            ("norm_eps", self.norm_eps.to_string()),
            ("flip_sin_to_cos", self.flip_sin_to_cos.to_string()),
            ("freq_shift", self.freq_shift.to_string()),
            ("use_linear_projection", self.use_linear_projection.to_string()),
        ]
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = unsupported("unet", &self.rest, UNET_ONLY);
        if self.out_channels != self.in_channels {
            let (given, taken) = (self.out_channels, self.in_channels);
            problems.push(format!("unet: out_channels is {given}, must be in_channels, {taken}"));
        }
        problems.extend(out_of_bounds(
            "unet",
            &[
                ("the number of block_out_channels", self.levels(), MOST_LEVELS),
                ("in_channels", self.in_channels, WIDEST),
                ("layers_per_block", self.layers_per_block, MOST_LAYERS),
                ("cross_attention_dim", self.cross_attention_dim, WIDEST),
                ("norm_num_groups", self.norm_num_groups, WIDEST),
                ("sample_size", self.sample_size, LARGEST_LATENT),
            ],
        ));
        problems.extend(bad_epsilon("unet: norm_eps", self.norm_eps));
        if self.levels() <= MOST_LEVELS {
            self.check_types(&["DownBlock2D", "CrossAttnDownBlock2D"], &self.down_block_types, &mut problems);
            self.check_types(&["UpBlock2D", "CrossAttnUpBlock2D"], &self.up_block_types, &mut problems);
            self.check_channels(&mut problems);
        }
        problems
    }

    fn check_types(&self, known: &[&str], types: &[String], problems: &mut Vec<String>) {
        if types.len() != self.levels() {
            problems.push(format!("unet: {} levels of channels but {} block types", self.levels(), types.len()));
            return;
        }
        for unknown in types.iter().filter(|t| !known.contains(&t.as_str())) {
            problems.push(format!("unet: block type {unknown} is not supported, only {}", known.join(" and ")));
        }
    }

    fn check_channels(&self, problems: &mut Vec<String>) {
        for (i, &channels) in self.block_out_channels.iter().enumerate() {
            let heads = self.heads(i);
            if channels == 0 || heads == 0 || channels % heads != 0 || channels % self.norm_num_groups.max(1) != 0 {
                problems.push(format!(
                    "unet: level {i} has {channels} channels, not divisible by its {heads} heads and {} groups",
                    self.norm_num_groups
                ));
            }
            let layers = self.transformer_layers_per_block.at(i);
            if channels > WIDEST || layers > MOST_LAYERS {
                problems.push(format!(
                    "unet: level {i} has {channels} channels and {layers} transformer layers; at most {WIDEST} and \
                     {MOST_LAYERS} are supported"
                ));
            }
        }
        // the timestep's frequencies are divided by the difference
        let waves = self.block_out_channels.first().map_or(0, |channels| channels / 2);
        if !(self.freq_shift < waves as f64) {
            problems.push(format!("unet: freq_shift is {}, must be less than {waves}", self.freq_shift));
        }
    }
}

/// `controlnet/config.json`: the UNet's keys for the way down, and the conditioning embedding.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct ControlNetConfig {
    /// Channels in the layers that read the control picture; each after the first halves it.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// Channels of the control picture.
    #[serde(default = "three")]
    pub conditioning_channels: usize,
    /// The copy of the UNet's way down.
    #[serde(flatten)]
    pub down: UnetConfig,
}

fn three() -> usize {
    3
}

impl ControlNetConfig {
    /// Everything that keeps it from working with a UNet whose VAE has this factor, by key.
    pub fn problems(&self, unet: &UnetConfig, vae_factor: usize) -> Vec<String> {
        let mut only = UNET_ONLY.to_vec();
        only.push(("controlnet_conditioning_channel_order", "\"rgb\""));
        only.push(("global_pool_conditions", "false"));
        let mut problems = unsupported("controlnet", &self.down.rest, &only);
        for (key, own, wanted) in self.down.down_path().into_iter().zip(unet.down_path()).map(|(a, b)| (a.0, a.1, b.1))
        {
            if own != wanted {
                problems.push(format!("controlnet: {key} is {own}, the UNet's {wanted}; it belongs to another model"));
            }
        }
        let layers = self.conditioning_embedding_out_channels.len();
        let factor = layers.checked_sub(1).and_then(|halvings| 1usize.checked_shl(halvings.try_into().ok()?));
        if factor != Some(vae_factor) || self.conditioning_channels != 3 {
            problems.push(format!(
                "controlnet: a control picture of {} channels in {layers} sizes does not come down to the latent's, \
                 1/{vae_factor} of 3 channels",
                self.conditioning_channels
            ));
        } else {
            let channels = self.conditioning_embedding_out_channels.iter();
            let numbers: Vec<_> = channels.map(|&n| ("conditioning_embedding_out_channels", n, WIDEST)).collect();
            problems.extend(out_of_bounds("controlnet", &numbers));
        }
        problems
    }
}

/// `text_encoder/config.json` (CLIP).
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct TextConfig {
    /// Words in the table.
    pub vocab_size: usize,
    /// Channels, the width of a style vector.
    pub hidden_size: usize,
    /// Channels inside each feed-forward layer.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Positions, 77 in CLIP.
    pub max_position_embeddings: usize,
    /// `quick_gelu` (SD 1.x) or `gelu` (SD 2.x).
    #[serde(default = "quick_gelu")]
    pub hidden_act: String,
    /// Added to the variance in each LayerNorm.
    #[serde(default = "norm_eps")]
    pub layer_norm_eps: f64,
}

fn quick_gelu() -> String {
    "quick_gelu".into()
}

impl TextConfig {
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        if !["quick_gelu", "gelu"].contains(&self.hidden_act.as_str()) {
            problems.push(format!(
                "text_encoder: hidden_act {} is not supported, only quick_gelu and gelu",
                self.hidden_act
            ));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            problems.push(format!(
                "text_encoder: hidden_size {} does not divide into {} heads",
                self.hidden_size, self.num_attention_heads
            ));
        }
        problems.extend(out_of_bounds(
            "text_encoder",
            &[
                ("vocab_size", self.vocab_size, MOST_WORDS),
                ("hidden_size", self.hidden_size, WIDEST),
                ("intermediate_size", self.intermediate_size, WIDEST),
                ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
                ("max_position_embeddings", self.max_position_embeddings, MOST_WORDS),
            ],
        ));
        problems.extend(bad_epsilon("text_encoder: layer_norm_eps", self.layer_norm_eps));
        problems
    }
}

/// `vae/config.json`.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct VaeConfig {
    /// Channels of each level; the picture is halved between two levels.
    pub block_out_channels: Vec<usize>,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// What a sample of the posterior is multiplied with to become a latent.
    #[serde(default = "sd_scaling")]
    pub scaling_factor: f64,
    /// Subtracted before scaling in other model families; null here.
    #[serde(default, skip_serializing)]
    shift_factor: Option<f64>,
    /// Groups of each GroupNorm, where this is a diffusers folder's: a bundle's ONNX files say it themselves.
    #[serde(default = "groups", skip_serializing)]
    pub norm_num_groups: usize,
    /// The class, in a diffusers folder.
    #[serde(rename = "_class_name", default, skip_serializing)]
    class_name: String,
    /// Everything else, for [`VaeConfig::kl_problems`].
    #[serde(flatten, skip_serializing)]
    rest: HashMap<String, Value>,
}

/// Keys that change an `AutoencoderKL`, with the only value this program implements in its own layers. The tensors tell
/// about those that are not here: `layers_per_block`, `use_quant_conv`, `mid_block_add_attention`.
const KL_ONLY: &[(&str, &str)] = &[
    ("act_fn", "\"silu\""),
    ("in_channels", "3"),
    ("latents_mean", "null"),
    ("latents_std", "null"),
    ("out_channels", "3"),
];

/// Keys of an `AutoencoderKL` that the tensors tell as well, or that change nothing in one evaluation.
const KL_INERT: &[&str] = &[
    "down_block_types",
    "force_upcast",
    "latent_magnitude",
    "latent_shift",
    "layers_per_block",
    "mid_block_add_attention",
    "sample_size",
    "up_block_types",
    "use_post_quant_conv",
    "use_quant_conv",
];

/// The value of SD 1.x, whose oldest configurations lack the key.
fn sd_scaling() -> f64 {
    0.18215
}

impl VaeConfig {
    /// What the program needs to know of a VAE that has become ONNX: pixels a side of a latent cell (a power of two),
    /// channels of a latent, and the factor that latents are scaled by.
    pub fn new(factor: usize, latent_channels: usize, scaling_factor: f64) -> Self {
        let block_out_channels = vec![latent_channels; factor.ilog2() as usize + 1];
        VaeConfig {
            block_out_channels,
            latent_channels,
            scaling_factor,
            shift_factor: None,
            norm_num_groups: groups(),
            class_name: String::new(),
            rest: HashMap::new(),
        }
    }

    /// Whether a diffusers folder calls it an `AutoencoderKL`.
    pub(super) fn is_kl(&self) -> bool {
        self.class_name == "AutoencoderKL"
    }

    /// What keeps an `AutoencoderKL` from running in this program's own layers.
    pub(super) fn kl_problems(&self) -> Vec<String> {
        let mut rest = self.rest.clone();
        rest.retain(|key, _| !KL_INERT.contains(&key.as_str()));
        let mut problems = unsupported("vae", &rest, KL_ONLY);
        for (key, known) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let types = self.rest.get(key).and_then(Value::as_array);
            for other in types.into_iter().flatten().filter(|class| *class != known) {
                problems.push(format!("vae: {key} {other} is not supported, only {known}"));
            }
        }
        problems
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        if self.shift_factor.is_some_and(|s| s != 0.0) {
            problems.push("vae: shift_factor is not supported, only null".into());
        }
        let levels = ("the number of block_out_channels", self.block_out_channels.len(), MOST_LEVELS);
        problems.extend(out_of_bounds("vae", &[levels]));
        if !(1e-6..=1e6).contains(&self.scaling_factor) {
            problems.push(format!("vae: scaling_factor is {}, must be 0.000001 to 1000000", self.scaling_factor));
        }
        problems
    }
}
