//! `vae/config.json` of the two kinds of VAE, as diffusers writes it. What would change the network in a way this
//! module does not write is refused by name.

use super::refused;
use pleinair::Result;
use pleinair::bundle::config::unsupported;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

/// Keys that change nothing in one evaluation: training, tiling, precision, and what only a saved latent needs.
const INERT: &[&str] = &["sample_size", "force_upcast", "latent_magnitude", "latent_shift"];
/// More levels, or blocks in one, than any VAE has: a damaged file, not a network.
const MOST_LEVELS: usize = 8;
const MOST_BLOCKS: usize = 64;

/// `vae/config.json` of an `AutoencoderKL` (arXiv 2112.10752).
#[derive(Debug, Clone, Deserialize)]
pub struct KlConfig {
    /// Channels of each level, finest first; the picture is halved between two levels.
    pub block_out_channels: Vec<usize>,
    /// Classes of the encoder's levels.
    pub down_block_types: Vec<String>,
    /// Classes of the decoder's levels, coarsest first.
    pub up_block_types: Vec<String>,
    /// ResNet blocks of a level in the encoder; the decoder has one more.
    #[serde(default = "one")]
    pub layers_per_block: usize,
    /// Channels of a latent.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// Groups of each GroupNorm.
    #[serde(default = "groups")]
    pub norm_num_groups: usize,
    /// What a sample of the posterior is multiplied with to become a latent.
    #[serde(default = "sd_scaling")]
    pub scaling_factor: f64,
    /// Whether a 1x1 convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the middle attends from every place to every other.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    #[serde(flatten)]
    rest: HashMap<String, Value>,
}

/// `vae/config.json` of an `AutoencoderTiny` (TAESD, github.com/madebyollin/taesd).
#[derive(Debug, Clone, Deserialize)]
pub struct TinyConfig {
    /// Channels of each level of the encoder, finest first.
    #[serde(default = "tiny_channels")]
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels of each level of the decoder, coarsest first.
    #[serde(default = "tiny_channels")]
    pub decoder_block_out_channels: Vec<usize>,
    /// Blocks of each level of the encoder.
    #[serde(default = "tiny_encoder_blocks")]
    pub num_encoder_blocks: Vec<usize>,
    /// Blocks of each level of the decoder.
    #[serde(default = "tiny_decoder_blocks")]
    pub num_decoder_blocks: Vec<usize>,
    /// Channels of a latent.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// What the encoder's answer is multiplied with to become a latent.
    #[serde(default = "unit")]
    pub scaling_factor: f64,
    #[serde(flatten)]
    rest: HashMap<String, Value>,
}

fn one() -> usize {
    1
}
fn four() -> usize {
    4
}
fn groups() -> usize {
    32
}
fn sd_scaling() -> f64 {
    0.18215
}
fn unit() -> f64 {
    1.0
}
fn yes() -> bool {
    true
}
fn tiny_channels() -> Vec<usize> {
    vec![64; 4]
}
fn tiny_encoder_blocks() -> Vec<usize> {
    vec![1, 3, 3, 3]
}
fn tiny_decoder_blocks() -> Vec<usize> {
    vec![3, 3, 3, 1]
}

const KL_ONLY: &[(&str, &str)] = &[
    ("act_fn", "\"silu\""),
    ("in_channels", "3"),
    ("out_channels", "3"),
    ("latents_mean", "null"),
    ("latents_std", "null"),
    ("shift_factor", "0.0"),
];

const TINY_ONLY: &[(&str, &str)] = &[
    ("act_fn", "\"relu\""),
    ("in_channels", "3"),
    ("out_channels", "3"),
    ("shift_factor", "0.0"),
    ("upsample_fn", "\"nearest\""),
    ("upsampling_scaling_factor", "2"),
];

/// The problems of keys this module has no field for; `more` are inert as well.
fn unknown_keys(rest: &mut HashMap<String, Value>, more: &[&str], only: &[(&str, &str)]) -> Vec<String> {
    rest.retain(|key, _| !INERT.contains(&key.as_str()) && !more.contains(&key.as_str()));
    unsupported("vae", rest, only)
}

fn check_numbers(levels: usize, latent_channels: usize, scaling_factor: f64, problems: &mut Vec<String>) {
    if !(1..=MOST_LEVELS).contains(&levels) {
        problems.push(format!("vae: {levels} levels of channels are not supported, only 1 to {MOST_LEVELS}"));
    }
    if latent_channels == 0 {
        problems.push("vae: latent_channels must not be 0".into());
    }
    if !(scaling_factor > 0.0 && scaling_factor.is_finite()) {
        problems.push(format!("vae: scaling_factor is {scaling_factor}, must be positive"));
    }
}

fn check_types(key: &str, types: &[String], known: &str, levels: usize, problems: &mut Vec<String>) {
    if types.len() != levels {
        problems.push(format!("vae: {levels} levels of channels but {} {key}", types.len()));
    }
    for unknown in types.iter().filter(|class| *class != known) {
        problems.push(format!("vae: {key} {unknown} is not supported, only {known}"));
    }
}

impl KlConfig {
    /// Reads and checks it; every problem is named.
    pub(super) fn from_json(json: &Value) -> Result<Self> {
        let mut config: KlConfig = serde_json::from_value(json.clone()).map_err(|e| refused([format!("vae: {e}")]))?;
        let mut problems = unknown_keys(&mut config.rest, &[], KL_ONLY);
        let levels = config.block_out_channels.len();
        check_numbers(levels, config.latent_channels, config.scaling_factor, &mut problems);
        check_types("down_block_types", &config.down_block_types, "DownEncoderBlock2D", levels, &mut problems);
        check_types("up_block_types", &config.up_block_types, "UpDecoderBlock2D", levels, &mut problems);
        if !(1..=MOST_BLOCKS).contains(&config.layers_per_block) {
            let given = config.layers_per_block;
            problems.push(format!("vae: layers_per_block {given} is not supported, only 1 to {MOST_BLOCKS}"));
        }
        let groups = config.norm_num_groups;
        if groups == 0 || config.block_out_channels.iter().any(|&c| c == 0 || !c.is_multiple_of(groups)) {
            let channels = &config.block_out_channels;
            problems.push(format!("vae: block_out_channels {channels:?} do not divide into {groups} groups"));
        }
        if problems.is_empty() { Ok(config) } else { Err(refused(problems)) }
    }

    /// Channels of the coarsest level.
    pub(super) fn coarsest(&self) -> usize {
        *self.block_out_channels.last().expect("checked when read")
    }
}

impl TinyConfig {
    /// Reads and checks it; every problem is named.
    pub(super) fn from_json(json: &Value) -> Result<Self> {
        let mut config: TinyConfig =
            serde_json::from_value(json.clone()).map_err(|e| refused([format!("vae: {e}")]))?;
        // `block_out_channels` repeats the decoder's
        let mut problems = unknown_keys(&mut config.rest, &["block_out_channels"], TINY_ONLY);
        let levels = config.encoder_block_out_channels.len();
        check_numbers(levels, config.latent_channels, config.scaling_factor, &mut problems);
        for (side, channels, blocks) in [
            ("encoder", &config.encoder_block_out_channels, &config.num_encoder_blocks),
            ("decoder", &config.decoder_block_out_channels, &config.num_decoder_blocks),
        ] {
            if channels.len() != levels || blocks.len() != levels {
                problems.push(format!(
                    "vae: {side}_block_out_channels and num_{side}_blocks have {} and {} levels, must have {levels}",
                    channels.len(),
                    blocks.len()
                ));
            }
            // diffusers builds other networks too, but they cannot run: a level hands its channels on unchanged
            if channels.contains(&0) || channels.windows(2).any(|pair| pair[0] != pair[1]) {
                problems.push(format!("vae: {side}_block_out_channels {channels:?} must all be the same"));
            }
            if let Some(many) = blocks.iter().find(|&&n| n > MOST_BLOCKS) {
                problems.push(format!("vae: num_{side}_blocks {many} is not supported, at most {MOST_BLOCKS}"));
            }
        }
        if problems.is_empty() { Ok(config) } else { Err(refused(problems)) }
    }
}
