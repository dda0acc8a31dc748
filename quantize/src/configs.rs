//! The configuration files of Stable Diffusion 1.5 as its authors published them, and of a tiny model of the same
//! structure: four levels, 8 heads, and the same quirks (`attention_head_dim` is the number of heads, the VAE has no
//! `scaling_factor`, the text encoder's `eos_token_id` is not the tokenizer's).

use crate::onnx::KlConfig;
use pleinair::bundle::config::{ControlNetConfig, TextConfig, UnetConfig};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A model that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Model {
    /// Stable Diffusion 1.5 with its soft-edge ControlNet, at full size
    Sd15,
    /// The same structure, only narrow; a fraction of a second to make and run
    Tiny,
    /// As tiny, with Stable Diffusion 1.5's 768 numbers a word: for trying embeddings of others
    Wide,
}

/// What differs between them.
struct Widths {
    channels: [usize; 4],
    groups: usize,
    /// Side of the latents.
    sample_size: usize,
    hint: [usize; 4],
    text: usize,
    text_layers: usize,
    text_heads: usize,
    words: usize,
    vae_channels: [usize; 4],
    vae_groups: usize,
    /// Side of the pictures.
    picture: usize,
}

impl Model {
    fn widths(self) -> Widths {
        match self {
            Model::Sd15 => Widths {
                channels: [320, 640, 1280, 1280],
                groups: 32,
                sample_size: 64,
                hint: [16, 32, 96, 256],
                text: 768,
                text_layers: 12,
                text_heads: 12,
                words: 49408,
                vae_channels: [128, 256, 512, 512],
                vae_groups: 32,
                picture: 512,
            },
            Model::Tiny => Widths {
                channels: [16, 24, 32, 32],
                groups: 8,
                sample_size: 8,
                hint: [8, 8, 16, 16],
                text: 32,
                text_layers: 2,
                text_heads: 4,
                words: 1024,
                vae_channels: [8, 16, 16, 16],
                vae_groups: 4,
                picture: 64,
            },
            Model::Wide => Widths { text: 768, text_layers: 1, text_heads: 12, ..Model::Tiny.widths() },
        }
    }

    /// Words in the tokenizer's vocabulary and the text encoder's table.
    pub fn words(self) -> usize {
        self.widths().words
    }

    /// The UNet's configuration.
    pub fn unet(self) -> UnetConfig {
        parsed(self.unet_json())
    }

    /// The ControlNet's configuration.
    pub fn controlnet(self) -> ControlNetConfig {
        parsed(self.controlnet_json())
    }

    /// The text encoder's configuration.
    pub fn text_encoder(self) -> TextConfig {
        parsed(self.text_encoder_json())
    }

    /// The VAE's configuration.
    pub fn vae(self) -> KlConfig {
        parsed(self.vae_json())
    }

    /// Every configuration file of the model: path in its folder, contents.
    pub fn files(self) -> Vec<(&'static str, Value)> {
        vec![
            ("model_index.json", model_index_json()),
            ("unet/config.json", self.unet_json()),
            ("controlnet/config.json", self.controlnet_json()),
            ("text_encoder/config.json", self.text_encoder_json()),
            ("vae/config.json", self.vae_json()),
            ("scheduler/scheduler_config.json", scheduler_json()),
            ("tokenizer/tokenizer_config.json", tokenizer_json()),
            ("tokenizer/special_tokens_map.json", special_tokens_json()),
        ]
    }

    fn unet_json(self) -> Value {
        let w = self.widths();
        json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.6.0",
            "act_fn": "silu",
            "attention_head_dim": 8,
            "block_out_channels": w.channels,
            "center_input_sample": false,
            "cross_attention_dim": w.text,
            "down_block_types": DOWN_BLOCKS,
            "downsample_padding": 1,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": w.groups,
            "out_channels": 4,
            "sample_size": w.sample_size,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        })
    }

    fn controlnet_json(self) -> Value {
        let w = self.widths();
        json!({
            "_class_name": "ControlNetModel",
            "_diffusers_version": "0.14.0.dev0",
            "act_fn": "silu",
            "attention_head_dim": 8,
            "block_out_channels": w.channels,
            "class_embed_type": null,
            "conditioning_embedding_out_channels": w.hint,
            "controlnet_conditioning_channel_order": "rgb",
            "cross_attention_dim": w.text,
            "down_block_types": DOWN_BLOCKS,
            "downsample_padding": 1,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": w.groups,
            "num_class_embeds": null,
            "only_cross_attention": false,
            "projection_class_embeddings_input_dim": null,
            "resnet_time_scale_shift": "default",
            "upcast_attention": false,
            "use_linear_projection": false,
        })
    }

    fn text_encoder_json(self) -> Value {
        let w = self.widths();
        json!({
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "dropout": 0.0,
            "eos_token_id": 2,
            "hidden_act": "quick_gelu",
            "hidden_size": w.text,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 4 * w.text,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": w.text_heads,
            "num_hidden_layers": w.text_layers,
            "pad_token_id": 1,
            "projection_dim": w.text,
            "torch_dtype": "float32",
            "transformers_version": "4.22.0.dev0",
            "vocab_size": w.words,
        })
    }

    fn vae_json(self) -> Value {
        let w = self.widths();
        json!({
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.6.0",
            "act_fn": "silu",
            "block_out_channels": w.vae_channels,
            "down_block_types": (["DownEncoderBlock2D"; 4]),
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": w.vae_groups,
            "out_channels": 3,
            "sample_size": w.picture,
            "up_block_types": (["UpDecoderBlock2D"; 4]),
        })
    }
}

const DOWN_BLOCKS: [&str; 4] = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];

/// One of the configurations in this file as the library reads it.
fn parsed<T: DeserializeOwned>(config: Value) -> T {
    serde_json::from_value(config).expect("the configurations in this file have the keys the library asks for")
}

/// SD 1.5's, less the feature extractor and the safety checker, which are not made.
fn model_index_json() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": [null, null],
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn scheduler_json() -> Value {
    json!({
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    })
}

fn special_token(content: &str) -> Value {
    json!({"content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false})
}

fn special_tokens_json() -> Value {
    json!({
        "bos_token": special_token("<|startoftext|>"),
        "eos_token": special_token("<|endoftext|>"),
        "pad_token": "<|endoftext|>",
        "unk_token": special_token("<|endoftext|>"),
    })
}

fn tokenizer_json() -> Value {
    let token = |content| {
        let mut token = special_token(content);
        token["__type"] = "AddedToken".into();
        token
    };
    json!({
        "add_prefix_space": false,
        "bos_token": token("<|startoftext|>"),
        "do_lower_case": true,
        "eos_token": token("<|endoftext|>"),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": token("<|endoftext|>"),
    })
}
