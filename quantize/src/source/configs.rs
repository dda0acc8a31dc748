//! The configurations of a pipeline's parts: a folder's own, or those that SD 1.5's authors published.

use super::Part;
use super::file::TensorFile;
use super::ldm;
use crate::configs::Model;
use crate::tensors::{self, TensorSpec};
use pleinair::bundle::config::{ControlNetConfig, TextConfig, UnetConfig, VaeConfig};
use pleinair::bundle::manifest::Control;
use pleinair::bundle::{Bundle, read_json};
use pleinair::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Keys that a ControlNet shares with its UNet.
const SHARED: [&str; 17] = [
    "act_fn",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "down_block_types",
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "transformer_layers_per_block",
    "upcast_attention",
    "use_linear_projection",
];

/// Every configuration file, as it is and as the library reads it.
#[derive(Debug)]
pub(super) struct Configs {
    /// Whose they are, for messages.
    pub origin: String,
    pub unet: Value,
    pub text_encoder: Value,
    pub vae: Value,
    pub controlnet: Option<Value>,
    /// The folder's ControlNets: what each looks at, the name of its folder, and its configuration. The first is
    /// `controlnet` unless another was named.
    pub controlnets: Vec<(Control, String, Value)>,
    pub scheduler: Value,
    /// `unet` as the library reads it.
    pub parsed_unet: UnetConfig,
    /// `text_encoder` as the library reads it.
    pub parsed_text: TextConfig,
}

impl Configs {
    /// SD 1.5's.
    pub(super) fn published() -> Configs {
        let mut files: HashMap<_, _> = Model::Sd15.files().into_iter().collect();
        let mut file = |path: &str| files.remove(path).expect("a configuration that every model has");
        Configs {
            origin: "Stable Diffusion 1.5's".into(),
            unet: file("unet/config.json"),
            text_encoder: file("text_encoder/config.json"),
            vae: file("vae/config.json"),
            controlnets: vec![],
            controlnet: None, // each ControlNet's own: see `controlnet_like`
            scheduler: file("scheduler/scheduler_config.json"),
            parsed_unet: Model::Sd15.unet(),
            parsed_text: Model::Sd15.text_encoder(),
        }
    }

    /// A diffusers folder's.
    ///
    /// # Errors
    /// If the program could not run a model with these configurations; every such key is named.
    pub(super) fn of_folder(folder: &Path) -> Result<Configs> {
        let bundle = Bundle::open(folder)?;
        let read = |part: &str| read_json::<Value>(&folder.join(part).join("config.json"));
        Ok(Configs {
            origin: format!("{}'s", folder.display()),
            unet: read("unet")?,
            text_encoder: read("text_encoder")?,
            vae: read("vae")?,
            controlnet: bundle.controlnets.first().map(|net| read(&net.part)).transpose()?,
            controlnets: {
                let nets = bundle.controlnets.iter();
                nets.map(|net| Ok((net.control, net.part.clone(), read(&net.part)?))).collect::<Result<_>>()?
            },
            scheduler: read_json(&bundle.scheduler())?,
            parsed_unet: bundle.unet,
            parsed_text: bundle.text,
        })
    }

    /// The configuration of a part; none for a ControlNet that is not there.
    pub(super) fn of(&self, part: Part) -> Option<&Value> {
        match part {
            Part::Unet => Some(&self.unet),
            Part::ControlNet => self.controlnet.as_ref(),
            Part::Further(control) => self.further(control),
            Part::TextEncoder => Some(&self.text_encoder),
            Part::Vae => Some(&self.vae),
        }
    }

    /// Gives the pipeline a ControlNet.
    ///
    /// # Errors
    /// If it does not go with the UNet.
    pub(super) fn set_controlnet(&mut self, config: Value, path: &Path) -> Result<()> {
        let vae: VaeConfig = parsed(&self.vae, path)?;
        let controlnet: ControlNetConfig = parsed(&config, path)?;
        let problems = controlnet.problems(&self.parsed_unet, 1 << (vae.block_out_channels.len().clamp(1, 32) - 1));
        if !problems.is_empty() {
            return Err(Error::Model { folder: path.to_path_buf(), problems });
        }
        self.controlnet = Some(config);
        Ok(())
    }

    /// Gives the pipeline another VAE.
    ///
    /// # Errors
    /// If its latents are not the UNet's.
    pub(super) fn set_vae(&mut self, config: Value, path: &Path) -> Result<()> {
        let (own, new): (VaeConfig, VaeConfig) = (parsed(&self.vae, path)?, parsed(&config, path)?);
        let latents = |vae: &VaeConfig| (vae.latent_channels, vae.block_out_channels.len());
        if latents(&own) != latents(&new) {
            let what = format!(
                "its latents have {} channels at 1/{} of the picture, the model's {} at 1/{}; name a VAE of its family",
                new.latent_channels,
                1u64 << new.block_out_channels.len().saturating_sub(1).min(32),
                own.latent_channels,
                1u64 << own.block_out_channels.len().saturating_sub(1).min(32),
            );
            return Err(Error::file(path, what));
        }
        self.vae = config;
        Ok(())
    }

    /// The configuration of a ControlNet of which only the tensors are known: the UNet's, and its hint layers' widths.
    pub(super) fn controlnet_like(&self, file: &TensorFile, prefix: &str) -> Value {
        let files = Model::Sd15.files();
        let published = files.into_iter().find(|(path, _)| *path == "controlnet/config.json");
        let (_, mut config) = published.expect("SD 1.5 has a ControlNet");
        for key in SHARED {
            match self.unet.get(key) {
                Some(value) => config[key] = value.clone(),
                None => drop(config.as_object_mut().expect("an object").remove(key)),
            }
        }
        let width = |layer: String| file.shape(&format!("{prefix}{layer}.weight"))?.first().copied();
        let hint = |i: usize| {
            // the original counts the SiLUs between the layers too
            let (diffusers, original) = match i {
                0 => ("conv_in".into(), 0),
                _ => (format!("blocks.{}", 2 * i - 1), 4 * i),
            };
            width(format!("controlnet_cond_embedding.{diffusers}"))
                .or_else(|| width(format!("input_hint_block.{original}")))
        };
        let widths: Vec<_> = (0..16).map_while(hint).collect();
        config["conditioning_embedding_out_channels"] = widths.into();
        config
    }

    /// The tensors that a part must have; none for the VAE, whose names alone are known, and a ControlNet not there.
    pub(super) fn tensors(&self, part: Part) -> Option<Vec<TensorSpec>> {
        match part {
            Part::Unet => Some(tensors::unet(&self.parsed_unet)),
            Part::ControlNet | Part::Further(_) => {
                Some(tensors::controlnet(&self.parsed_controlnet(part)?, &self.parsed_unet))
            }
            Part::TextEncoder => Some(tensors::text_encoder(&self.parsed_text)),
            Part::Vae => None,
        }
    }

    /// Name in a file for every name given out, as diffusers and transformers write them; none for a VAE that is not
    /// `AutoencoderKL`, whose names are taken as they are.
    ///
    /// # Errors
    /// If the VAE's configuration lacks a key.
    pub(super) fn diffusers_names(&self, part: Part) -> Result<Option<Names>> {
        let mut names = Names::new();
        for tensor in self.tensors(part).unwrap_or_default() {
            // transformers 5 leaves the prefix out
            if let Some(bare) = tensor.name.strip_prefix("text_model.") {
                names.insert(bare.into(), tensor.name.clone());
            }
            names.insert(tensor.name.clone(), tensor.name);
        }
        if part == Part::Vae {
            let class = self.vae.get("_class_name").and_then(Value::as_str);
            if class.is_some_and(|class| class != "AutoencoderKL") {
                return Ok(None);
            }
            for (layer, _) in self.vae_layers()? {
                for kind in ["weight", "bias"] {
                    let name = format!("{layer}.{kind}");
                    names.insert(old_attention(&name), name.clone());
                    names.insert(name.clone(), name);
                }
            }
        }
        Ok(Some(names))
    }

    /// Name in a file of the original code, without the part's prefix, for every name given out.
    ///
    /// # Errors
    /// If the VAE's configuration lacks a key.
    pub(super) fn original_names(&self, part: Part) -> Result<Names> {
        let tensors = self.tensors(part).unwrap_or_default().into_iter().map(|tensor| tensor.name);
        Ok(match part {
            Part::Unet => tensors.filter_map(|n| Some((ldm::unet_name(&self.parsed_unet, &n)?, n))).collect(),
            Part::ControlNet | Part::Further(_) => {
                let hints = self.parsed_controlnet(part).map_or(0, |c| c.conditioning_embedding_out_channels.len());
                let hints = 2 * hints.saturating_sub(1);
                tensors.filter_map(|n| Some((ldm::controlnet_name(&self.parsed_unet, hints, &n)?, n))).collect()
            }
            Part::TextEncoder => {
                let bare = |n: &String| n.trim_start_matches("text_model.").to_string();
                tensors.flat_map(|n| [(bare(&n), n.clone()), (n.clone(), n)]).collect()
            }
            Part::Vae => {
                let layers = self.vae_layers()?.into_iter();
                let both = |(name, original)| {
                    ["weight", "bias"].map(|kind| (format!("{original}.{kind}"), format!("{name}.{kind}")))
                };
                layers.flat_map(both).collect()
            }
        })
    }

    fn parsed_controlnet(&self, part: Part) -> Option<ControlNetConfig> {
        serde_json::from_value(self.of(part)?.clone()).ok()
    }

    /// The configuration of a ControlNet that is not the first.
    fn further(&self, control: Control) -> Option<&Value> {
        self.controlnets.iter().skip(1).find(|(own, ..)| *own == control).map(|(.., config)| config)
    }

    fn vae_layers(&self) -> Result<Vec<(String, String)>> {
        ldm::vae_layers(&self.vae).map_err(Error::Usage)
    }
}

/// Name in a file to name given out.
pub(super) type Names = HashMap<String, String>;

/// What diffusers before 0.13 called the layers of the VAE's attention, as in SD 1.5's own folder.
fn old_attention(name: &str) -> String {
    let pairs = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
    pairs.iter().fold(name.to_string(), |name, (new, old)| name.replace(new, old))
}

fn parsed<T: DeserializeOwned>(config: &Value, path: &Path) -> Result<T> {
    let fault = |e| Error::file(path, format!("its configuration is not the one that belongs here: {e}"));
    serde_json::from_value(config.clone()).map_err(fault)
}
