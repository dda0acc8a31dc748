//! What a single file holds, from its names and shapes: the right kind, or the name of the wrong one and the remedy.

use super::file::TensorFile;
use super::ldm;
use std::fmt;

/// Names of the first layer of a UNet: original in a pipeline and alone, diffusers'.
const FIRST_LAYER: [&str; 3] =
    ["model.diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight"];

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole SD 1.x pipeline in the original naming.
    Pipeline,
    /// SDXL, its refiner included.
    Sdxl,
    /// SD 2.x.
    Sd2,
    /// Transformer models: SD 3, Flux and what came after.
    Transformer(&'static str),
    /// A UNet that reads more than a latent, such as 9 channels for inpainting.
    Channels(usize),
    /// A LoRA alone.
    Lora,
    /// A textual-inversion embedding alone.
    Embedding,
    /// A ControlNet alone.
    ControlNet,
    /// A ControlNet in a form that is not supported, by the name of the form.
    OtherControl(&'static str),
    /// A VAE alone.
    Vae,
    /// A UNet alone.
    Unet,
    /// A text encoder alone.
    TextEncoder,
    /// None of these.
    Unknown,
}

impl Kind {
    /// Looks at the names of a file's tensors, and at a few shapes.
    pub(super) fn of(file: &TensorFile) -> Kind {
        let any = |test: &dyn Fn(&str) -> bool| file.names().any(test);
        let pipeline = any(&|name| name.starts_with(ldm::UNET));
        if any(&|name| name.contains("double_blocks.")) {
            return Kind::Transformer("Flux");
        }
        if any(&|name| name.contains("joint_blocks.")) {
            return Kind::Transformer("Stable Diffusion 3");
        }
        if any(&|name| name == "lora_controlnet") {
            return Kind::OtherControl("Control-LoRA");
        }
        if any(&|name| {
            ["lora_", ".lora.", "_lora.", "hada_", "lokr_"].iter().any(|piece| name.contains(piece)) && !pipeline
        }) {
            return Kind::Lora;
        }
        if let Some(kind) = wrong_unet(file) {
            return kind;
        }
        if pipeline {
            return Kind::Pipeline;
        }
        part_alone(file)
    }
}

/// UNets of other families.
fn wrong_unet(file: &TensorFile) -> Option<Kind> {
    let has = |piece: &str| file.names().any(|name| name.contains(piece));
    // what the text gives to the UNet's second attention
    let attention = file.names().find(|name| name.ends_with("attn2.to_k.weight") && !name.starts_with("model_ema"));
    let seen = attention.and_then(|name| file.shape(name)?.get(1).copied());
    if ["conditioner.embedders.", "add_embedding.", "label_emb."].into_iter().any(has) || seen == Some(2048) {
        return Some(Kind::Sdxl);
    }
    if has("cond_stage_model.model.") || seen == Some(1024) {
        return Some(Kind::Sd2);
    }
    let first = FIRST_LAYER.iter().find_map(|name| file.shape(name)).filter(|_| attention.is_some());
    match first.and_then(|shape| shape.get(1).copied()) {
        Some(channels) if channels != 4 => Some(Kind::Channels(channels)),
        _ => None,
    }
}

/// A part of a pipeline, or something small that goes with one.
fn part_alone(file: &TensorFile) -> Kind {
    let starts = |start: &str| file.names().any(|name| name.starts_with(start));
    if starts(ldm::CONTROLNET) || starts("input_hint_block.") || starts("controlnet_cond_embedding.") {
        return match starts("difference") {
            true => Kind::OtherControl("ControlNet stored as a difference from the UNet"),
            false => Kind::ControlNet,
        };
    }
    if starts("adapter.body.") || starts("body.0.") {
        return Kind::OtherControl("T2I-Adapter");
    }
    if starts("input_blocks.") || starts("down_blocks.") {
        return Kind::Unet;
    }
    if [ldm::VAE, "vae.", "encoder.conv_in.", "decoder.conv_in."].into_iter().any(starts) {
        return Kind::Vae;
    }
    if starts("text_model.") || starts("cond_stage_model.") || starts("encoder.layers.0.self_attn.") {
        return Kind::TextEncoder;
    }
    let small = |name: &str| file.shape(name).is_some_and(|shape| (1..=2).contains(&shape.len()));
    let count = file.names().count();
    if starts("string_to_param") || starts("emb_params") || ((1..=16).contains(&count) && file.names().all(small)) {
        return Kind::Embedding;
    }
    Kind::Unknown
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Pipeline => write!(f, "a whole Stable Diffusion 1.x pipeline"),
            Kind::Sdxl => write!(f, "a Stable Diffusion XL model"),
            Kind::Sd2 => write!(f, "a Stable Diffusion 2.x model (OpenCLIP text encoder, 1024 wide)"),
            Kind::Transformer(family) => write!(f, "a transformer model ({family})"),
            Kind::Channels(9) => write!(f, "an inpainting model (its UNet reads 9 channels)"),
            Kind::Channels(n) => write!(f, "a model whose UNet reads {n} channels, not a latent's 4"),
            Kind::Lora => write!(f, "a LoRA alone"),
            Kind::Embedding => write!(f, "a textual-inversion embedding alone"),
            Kind::ControlNet => write!(f, "a ControlNet alone"),
            Kind::OtherControl(form) => write!(f, "a {form}"),
            Kind::Vae => write!(f, "a VAE alone"),
            Kind::Unet => write!(f, "a UNet alone"),
            Kind::TextEncoder => write!(f, "a text encoder alone"),
            Kind::Unknown => write!(f, "no Stable Diffusion model"),
        }
    }
}

impl Kind {
    /// Why it cannot be what is converted.
    pub(super) fn refusal(self) -> String {
        let supported = "supported are Stable Diffusion 1.x text-to-image models, as a diffusers folder or as one file in \
                         the original naming";
        let remedy = match self {
            Kind::Sd2 => "; a Stable Diffusion 2 diffusers folder can be read as well",
            Kind::Lora => "; name the model with --from and this file with --lora",
            Kind::Vae => "; name the model with --from and this file with --vae",
            Kind::ControlNet => "; name the model with --from and this file with --controlnet",
            Kind::Embedding => "; name the model with --from, this file is a style for painting",
            Kind::Unet | Kind::TextEncoder => "; name the folder or file of the whole pipeline",
            _ => "",
        };
        format!("this is {self}; {supported}{remedy}")
    }
}
