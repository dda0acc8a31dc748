//! The names of the original Stable Diffusion code ("LDM": `input_blocks.1.0.in_layers.0.weight`) for the names that
//! diffusers gives the same tensors. Everything follows from the configuration: the original counts the layers of all
//! levels through, diffusers counts within each level. Reference: `UNetModel`, `ControlNet` (`openaimodel.py`,
//! `cldm.py`) and `Encoder`, `Decoder` (`model.py`) of the original code.

use pleinair::bundle::config::UnetConfig;
use serde_json::Value;

/// Where the parts lie in a checkpoint of a whole pipeline.
pub(super) const UNET: &str = "model.diffusion_model.";
/// The text encoder of SD 1.x.
pub(super) const TEXT: &str = "cond_stage_model.transformer.";
/// The VAE.
pub(super) const VAE: &str = "first_stage_model.";
/// The ControlNet.
pub(super) const CONTROLNET: &str = "control_model.";

/// The original name of a tensor or layer of the UNet, without [`UNET`]; none for names that no such UNet has.
pub(super) fn unet_name(config: &UnetConfig, name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |i: usize| parts.get(i)?.parse::<usize>().ok();
    let rest = |from: usize| parts.get(from..).map(|rest| rest.join(".")).unwrap_or_default();
    // input_blocks.0 is conv_in; a level has its ResNets and, but for the last, a downsampler of its own
    let down = config.layers_per_block + 1;
    let up = config.layers_per_block + 1;
    Some(match parts[..] {
        ["conv_in", ..] => dotted("input_blocks.0.0", &rest(1)),
        ["time_embedding", "linear_1", ..] => dotted("time_embed.0", &rest(2)),
        ["time_embedding", "linear_2", ..] => dotted("time_embed.2", &rest(2)),
        ["conv_norm_out", ..] => dotted("out.0", &rest(1)),
        ["conv_out", ..] => dotted("out.2", &rest(1)),
        ["down_blocks", _, "resnets", ..] => {
            dotted(&format!("input_blocks.{}.0", 1 + number(1)? * down + number(3)?), &unet_resnet(&parts[4..])?)
        }
        ["down_blocks", _, "attentions", ..] => {
            dotted(&format!("input_blocks.{}.1", 1 + number(1)? * down + number(3)?), &rest(4))
        }
        ["down_blocks", _, "downsamplers", "0", "conv", ..] => {
            dotted(&format!("input_blocks.{}.0.op", (number(1)? + 1) * down), &rest(5))
        }
        ["mid_block", "resnets", ..] => dotted(&format!("middle_block.{}", 2 * number(2)?), &unet_resnet(&parts[3..])?),
        ["mid_block", "attentions", "0", ..] => dotted("middle_block.1", &rest(3)),
        ["up_blocks", _, "resnets", ..] => {
            dotted(&format!("output_blocks.{}.0", number(1)? * up + number(3)?), &unet_resnet(&parts[4..])?)
        }
        ["up_blocks", _, "attentions", ..] => {
            dotted(&format!("output_blocks.{}.1", number(1)? * up + number(3)?), &rest(4))
        }
        ["up_blocks", _, "upsamplers", "0", "conv", ..] => {
            // it follows the level's last ResNet, and its transformer where there is one
            let level = number(1)?;
            let place = if config.up_block_types.get(level)? == "CrossAttnUpBlock2D" { 2 } else { 1 };
            dotted(&format!("output_blocks.{}.{place}.conv", (level + 1) * up - 1), &rest(5))
        }
        _ => return None,
    })
}

/// The original name of a tensor or layer of the ControlNet, without [`CONTROLNET`]. `hints` is the number of layers
/// between the first and the last that read the control picture (6 in SD's); a SiLU lies between each two.
pub(super) fn controlnet_name(config: &UnetConfig, hints: usize, name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let rest = |from: usize| parts.get(from..).map(|rest| rest.join(".")).unwrap_or_default();
    let hint = |layer: usize, from| dotted(&format!("input_hint_block.{}", 2 * layer), &rest(from));
    Some(match parts[..] {
        ["controlnet_cond_embedding", "conv_in", ..] => hint(0, 2),
        ["controlnet_cond_embedding", "blocks", i, ..] => hint(i.parse::<usize>().ok()? + 1, 3),
        ["controlnet_cond_embedding", "conv_out", ..] => hint(hints + 1, 2),
        ["controlnet_down_blocks", i, ..] => dotted(&format!("zero_convs.{i}.0"), &rest(2)),
        ["controlnet_mid_block", ..] => dotted("middle_block_out.0", &rest(1)),
        _ => unet_name(config, name)?,
    })
}

fn unet_resnet(parts: &[&str]) -> Option<String> {
    let (layer, rest) = parts.split_first()?;
    let layer = match *layer {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    };
    Some(dotted(layer, &rest.join(".")))
}

fn dotted(at: &str, rest: &str) -> String {
    if rest.is_empty() { at.into() } else { format!("{at}.{rest}") }
}

/// The layers of a KL VAE (`AutoencoderKL`): diffusers' name and the original one, without [`VAE`]. Each has a weight
/// and a bias. The original counts the decoder's levels from the finest, diffusers from the coarsest.
///
/// # Errors
/// The key that the configuration lacks.
pub(super) fn vae_layers(config: &Value) -> Result<Vec<(String, String)>, String> {
    let missing = |key: &str| format!("vae: the configuration has no usable {key}");
    let channels = config["block_out_channels"].as_array().ok_or_else(|| missing("block_out_channels"))?;
    let channels = channels.iter().map(Value::as_u64).collect::<Option<Vec<_>>>();
    let channels = channels.filter(|all| !all.is_empty()).ok_or_else(|| missing("block_out_channels"))?;
    let resnets =
        config["layers_per_block"].as_u64().filter(|&n| n <= 64).ok_or_else(|| missing("layers_per_block"))?;
    let mut layers = Layers::default();
    layers.ends_and_middle("encoder");
    layers.ends_and_middle("decoder");
    layers.encoder_levels(&channels, resnets);
    layers.decoder_levels(&channels, resnets + 1);
    for (key, layer) in [("use_quant_conv", "quant_conv"), ("use_post_quant_conv", "post_quant_conv")] {
        if config.get(key) != Some(&Value::Bool(false)) {
            layers.push(layer.into(), layer.into());
        }
    }
    Ok(layers.0)
}

/// Pairs of layer names under construction.
#[derive(Default)]
struct Layers(Vec<(String, String)>);

impl Layers {
    fn push(&mut self, name: String, original: String) {
        self.0.push((name, original));
    }

    fn ends_and_middle(&mut self, coder: &str) {
        for (name, original) in [("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")] {
            self.push(format!("{coder}.{name}"), format!("{coder}.{original}"));
        }
        for i in 0..2 {
            let (name, original) = (format!("mid_block.resnets.{i}"), format!("mid.block_{}", i + 1));
            self.resnet(&format!("{coder}.{name}"), &format!("{coder}.{original}"), false);
        }
        for (name, original) in
            [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]
        {
            self.push(format!("{coder}.mid_block.attentions.0.{name}"), format!("{coder}.mid.attn_1.{original}"));
        }
    }

    fn encoder_levels(&mut self, channels: &[u64], resnets: u64) {
        for level in 0..channels.len() {
            let name = format!("encoder.down_blocks.{level}");
            let widens = level > 0 && channels[level] != channels[level - 1];
            for j in 0..resnets {
                let original = format!("encoder.down.{level}.block.{j}");
                self.resnet(&format!("{name}.resnets.{j}"), &original, j == 0 && widens);
            }
            if level + 1 < channels.len() {
                self.push(format!("{name}.downsamplers.0.conv"), format!("encoder.down.{level}.downsample.conv"));
            }
        }
    }

    fn decoder_levels(&mut self, channels: &[u64], resnets: u64) {
        let last = channels.len() - 1;
        for level in 0..channels.len() {
            let name = format!("decoder.up_blocks.{}", last - level);
            let narrows = level < last && channels[level] != channels[level + 1];
            for j in 0..resnets {
                let original = format!("decoder.up.{level}.block.{j}");
                self.resnet(&format!("{name}.resnets.{j}"), &original, j == 0 && narrows);
            }
            if level > 0 {
                self.push(format!("{name}.upsamplers.0.conv"), format!("decoder.up.{level}.upsample.conv"));
            }
        }
    }

    fn resnet(&mut self, name: &str, original: &str, shortcut: bool) {
        for layer in ["norm1", "conv1", "norm2", "conv2"] {
            self.push(format!("{name}.{layer}"), format!("{original}.{layer}"));
        }
        if shortcut {
            self.push(format!("{name}.conv_shortcut"), format!("{original}.nin_shortcut"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configs::Model;
    use crate::tensors;
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    /// The pairs of `tests/reference/ldm_names.py`, original name first.
    fn reference(model: &str, part: &str) -> BTreeMap<String, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ldm-names.json");
        let names: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        serde_json::from_value(names[model][part].clone()).unwrap()
    }

    fn layers(names: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        names.into_iter().map(|name| name.rsplit_once('.').unwrap().0.to_string()).collect()
    }

    fn pairs(layers: BTreeSet<String>, name: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
        let count = layers.len();
        let pairs: BTreeMap<_, _> = layers.into_iter().map(|layer| (name(&layer).unwrap(), layer)).collect();
        assert_eq!(pairs.len(), count, "two layers of one name");
        pairs
    }

    #[test]
    fn every_layer_of_sd15_has_its_original_name_and_only_that() {
        for (model, name) in [(Model::Sd15, "sd15"), (Model::Tiny, "tiny-sd15")] {
            let (unet, controlnet) = (model.unet(), model.controlnet());
            let names = |specs: Vec<tensors::TensorSpec>| layers(specs.into_iter().map(|tensor| tensor.name));
            let found = pairs(names(tensors::unet(&unet)), |layer| unet_name(&unet, layer));
            assert_eq!(found, reference(name, "unet"));
            let found = pairs(names(tensors::controlnet(&controlnet, &unet)), |l| controlnet_name(&unet, 6, l));
            assert_eq!(found, reference(name, "controlnet"));
            let (_, vae) = model.files().into_iter().find(|(path, _)| *path == "vae/config.json").unwrap();
            let found: BTreeMap<_, _> = vae_layers(&vae).unwrap().into_iter().map(|(name, ldm)| (ldm, name)).collect();
            assert_eq!(found, reference(name, "vae"));
        }
    }

    #[test]
    fn names_follow_the_configuration() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/atelier");
        let bundle = pleinair::bundle::Bundle::open(&folder).unwrap();
        let found = pairs(layers(tensors::unet(&bundle.unet).into_iter().map(|tensor| tensor.name)), |layer| {
            unet_name(&bundle.unet, layer)
        });
        assert_eq!(found, reference("atelier", "unet"));
        let specs = tensors::controlnet(&bundle.controlnets[0].config, &bundle.unet);
        let found = pairs(layers(specs.into_iter().map(|tensor| tensor.name)), |l| controlnet_name(&bundle.unet, 4, l));
        assert_eq!(found, reference("atelier", "controlnet"));
        let vae: Value = serde_json::from_slice(&std::fs::read(folder.join("vae/config.json")).unwrap()).unwrap();
        let found: BTreeMap<_, _> = vae_layers(&vae).unwrap().into_iter().map(|(name, ldm)| (ldm, name)).collect();
        assert_eq!(found, reference("atelier", "vae"));
    }

    #[test]
    fn what_no_network_has_has_no_name() {
        let unet = Model::Sd15.unet();
        for name in
            ["", "nonsense.weight", "down_blocks.x.resnets.0.conv1", "up_blocks.9.upsamplers.0.conv", "mid_block"]
        {
            assert_eq!(unet_name(&unet, name), None, "{name}");
        }
        assert!(vae_layers(&serde_json::json!({"layers_per_block": 2})).unwrap_err().contains("block_out_channels"));
        assert!(vae_layers(&serde_json::json!({"block_out_channels": [8]})).unwrap_err().contains("layers_per_block"));
    }
}
