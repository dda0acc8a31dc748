//! Which tensors a network consists of: names and shapes as diffusers and transformers store them, from the
//! configuration alone. What is written and what is missed elsewhere in this crate comes from these lists.

use crate::onnx::KlConfig;
use pleinair::bundle::config::{ControlNetConfig, TextConfig, UnetConfig};

/// What a tensor does in its layer, which decides how a random one is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Multiplied with the layer's input; the first dimension is the output.
    Weight,
    /// Added to a layer's output.
    Bias,
    /// Scale of a normalisation.
    NormScale,
    /// Rows that are looked up.
    Table,
}

/// One tensor of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape as PyTorch stores it.
    pub shape: Vec<usize>,
    /// What it does.
    pub role: Role,
}

impl TensorSpec {
    /// Number of values.
    pub fn parameters(&self) -> usize {
        self.shape.iter().product()
    }

    /// Inputs that one output sums over (1 for tensors of rank 1).
    pub fn fan_in(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Whether a tensor stored in `shape` can be loaded as this one: 1x1 convolutions and linear layers are the same.
    pub fn accepts(&self, shape: &[usize]) -> bool {
        without_unit_kernel(&self.shape) == without_unit_kernel(shape)
    }
}

fn without_unit_kernel(shape: &[usize]) -> &[usize] {
    match shape {
        [_, _, 1, 1] => &shape[..2],
        _ => shape,
    }
}

/// The tensors of `UNet2DConditionModel`.
pub fn unet(config: &UnetConfig) -> Vec<TensorSpec> {
    let (mut list, finest) = (List::default(), config.block_out_channels[0]);
    list.down_path(config);
    list.up_path(config);
    list.norm("conv_norm_out", finest);
    list.conv("conv_out", finest, config.out_channels, 3);
    list.0
}

/// The tensors of `ControlNetModel`, which shares its levels with the UNet.
pub fn controlnet(config: &ControlNetConfig, unet: &UnetConfig) -> Vec<TensorSpec> {
    let (mut list, levels) = (List::default(), &unet.block_out_channels);
    let hint = &config.conditioning_embedding_out_channels;
    list.conv("controlnet_cond_embedding.conv_in", config.conditioning_channels, hint[0], 3);
    for (i, pair) in hint.windows(2).enumerate() {
        list.conv(&format!("controlnet_cond_embedding.blocks.{}", 2 * i), pair[0], pair[0], 3);
        list.conv(&format!("controlnet_cond_embedding.blocks.{}", 2 * i + 1), pair[0], pair[1], 3);
    }
    list.conv("controlnet_cond_embedding.conv_out", hint[hint.len() - 1], levels[0], 3);
    list.down_path(unet);
    // one 1x1 convolution for conv_in, each ResNet and each downsampler, and one for the middle
    let last = levels.len() - 1;
    let each_level =
        levels.iter().enumerate().flat_map(|(i, &c)| vec![c; unet.layers_per_block + usize::from(i < last)]);
    for (i, channels) in [levels[0]].into_iter().chain(each_level).enumerate() {
        list.conv(&format!("controlnet_down_blocks.{i}"), channels, channels, 1);
    }
    list.conv("controlnet_mid_block", levels[last], levels[last], 1);
    list.0
}

/// The tensors of `CLIPTextModel`, with the prefix `text_model.` that SD 1.5's checkpoint has.
pub fn text_encoder(config: &TextConfig) -> Vec<TensorSpec> {
    let (mut list, width) = (List::default(), config.hidden_size);
    let table = "text_model.embeddings";
    list.push(format!("{table}.token_embedding.weight"), &[config.vocab_size, width], Role::Table);
    list.push(format!("{table}.position_embedding.weight"), &[config.max_position_embeddings, width], Role::Table);
    for i in 0..config.num_hidden_layers {
        let at = format!("text_model.encoder.layers.{i}");
        list.norm(&format!("{at}.layer_norm1"), width);
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            list.linear(&format!("{at}.self_attn.{projection}"), width, width);
        }
        list.norm(&format!("{at}.layer_norm2"), width);
        list.linear(&format!("{at}.mlp.fc1"), width, config.intermediate_size);
        list.linear(&format!("{at}.mlp.fc2"), config.intermediate_size, width);
    }
    list.norm("text_model.final_layer_norm", width);
    list.0
}

/// The tensors of `AutoencoderKL`.
pub fn vae(config: &KlConfig) -> Vec<TensorSpec> {
    let (mut list, channels, latent) = (List::default(), &config.block_out_channels, config.latent_channels);
    let (finest, coarsest, last) = (channels[0], channels[channels.len() - 1], channels.len() - 1);
    list.conv("encoder.conv_in", 3, finest, 3);
    for (i, &output) in channels.iter().enumerate() {
        let at = format!("encoder.down_blocks.{i}");
        list.vae_resnets(&at, channels[i.saturating_sub(1)], output, config.layers_per_block);
        if i < last {
            list.conv(&format!("{at}.downsamplers.0.conv"), output, output, 3);
        }
    }
    list.vae_middle("encoder.mid_block", coarsest, config.mid_block_add_attention);
    list.norm("encoder.conv_norm_out", coarsest);
    list.conv("encoder.conv_out", coarsest, 2 * latent, 3);
    list.conv("decoder.conv_in", latent, coarsest, 3);
    list.vae_middle("decoder.mid_block", coarsest, config.mid_block_add_attention);
    for (i, &output) in channels.iter().rev().enumerate() {
        let at = format!("decoder.up_blocks.{i}");
        list.vae_resnets(&at, channels[(last + 1 - i).min(last)], output, config.layers_per_block + 1);
        if i < last {
            list.conv(&format!("{at}.upsamplers.0.conv"), output, output, 3);
        }
    }
    list.norm("decoder.conv_norm_out", finest);
    list.conv("decoder.conv_out", finest, 3, 3);
    if config.use_quant_conv {
        list.conv("quant_conv", 2 * latent, 2 * latent, 1);
    }
    if config.use_post_quant_conv {
        list.conv("post_quant_conv", latent, latent, 1);
    }
    list.0
}

/// A list under construction, layer by layer.
#[derive(Default)]
struct List(Vec<TensorSpec>);

impl List {
    fn push(&mut self, name: String, shape: &[usize], role: Role) {
        self.0.push(TensorSpec { name, shape: shape.to_vec(), role });
    }

    fn norm(&mut self, at: &str, channels: usize) {
        self.push(format!("{at}.weight"), &[channels], Role::NormScale);
        self.push(format!("{at}.bias"), &[channels], Role::Bias);
    }

    fn linear_without_bias(&mut self, at: &str, input: usize, output: usize) {
        self.push(format!("{at}.weight"), &[output, input], Role::Weight);
    }

    fn linear(&mut self, at: &str, input: usize, output: usize) {
        self.linear_without_bias(at, input, output);
        self.push(format!("{at}.bias"), &[output], Role::Bias);
    }

    fn conv(&mut self, at: &str, input: usize, output: usize, kernel: usize) {
        self.push(format!("{at}.weight"), &[output, input, kernel, kernel], Role::Weight);
        self.push(format!("{at}.bias"), &[output], Role::Bias);
    }

    fn resnet(&mut self, at: &str, config: &UnetConfig, input: usize, output: usize) {
        self.norm(&format!("{at}.norm1"), input);
        self.conv(&format!("{at}.conv1"), input, output, 3);
        self.linear(&format!("{at}.time_emb_proj"), config.time_channels(), output);
        self.norm(&format!("{at}.norm2"), output);
        self.conv(&format!("{at}.conv2"), output, output, 3);
        if input != output {
            self.conv(&format!("{at}.conv_shortcut"), input, output, 1);
        }
    }

    /// A VAE's ResNets, which no timestep reaches.
    fn vae_resnets(&mut self, at: &str, mut input: usize, output: usize, count: usize) {
        for i in 0..count {
            let at = format!("{at}.resnets.{i}");
            self.norm(&format!("{at}.norm1"), input);
            self.conv(&format!("{at}.conv1"), input, output, 3);
            self.norm(&format!("{at}.norm2"), output);
            self.conv(&format!("{at}.conv2"), output, output, 3);
            if input != output {
                self.conv(&format!("{at}.conv_shortcut"), input, output, 1);
            }
            input = output;
        }
    }

    fn vae_middle(&mut self, at: &str, channels: usize, attention: bool) {
        self.vae_resnets(at, channels, channels, 2);
        if attention {
            self.norm(&format!("{at}.attentions.0.group_norm"), channels);
            for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
                self.linear(&format!("{at}.attentions.0.{layer}"), channels, channels);
            }
        }
    }

    fn transformer(&mut self, at: &str, config: &UnetConfig, level: usize) {
        let c = config.block_out_channels[level];
        self.norm(&format!("{at}.norm"), c);
        self.transformer_projection(&format!("{at}.proj_in"), config, c);
        for i in 0..config.transformer_layers_per_block.at(level) {
            let at = format!("{at}.transformer_blocks.{i}");
            for (attention, seen) in [("attn1", c), ("attn2", config.cross_attention_dim)] {
                self.linear_without_bias(&format!("{at}.{attention}.to_q"), c, c);
                self.linear_without_bias(&format!("{at}.{attention}.to_k"), seen, c);
                self.linear_without_bias(&format!("{at}.{attention}.to_v"), seen, c);
                self.linear(&format!("{at}.{attention}.to_out.0"), c, c);
            }
            for norm in ["norm1", "norm2", "norm3"] {
                self.norm(&format!("{at}.{norm}"), c);
            }
            self.linear(&format!("{at}.ff.net.0.proj"), c, 8 * c); // GEGLU: twice the 4c that the next layer sees
            self.linear(&format!("{at}.ff.net.2"), 4 * c, c);
        }
        self.transformer_projection(&format!("{at}.proj_out"), config, c);
    }

    fn transformer_projection(&mut self, at: &str, config: &UnetConfig, channels: usize) {
        match config.use_linear_projection {
            true => self.linear(at, channels, channels),
            false => self.conv(at, channels, channels, 1),
        }
    }

    /// ResNets with the given numbers of input channels, each followed by a transformer where the level has them.
    fn level(&mut self, at: &str, config: &UnetConfig, level: usize, inputs: &[usize], cross_attention: bool) {
        for (i, &input) in inputs.iter().enumerate() {
            self.resnet(&format!("{at}.resnets.{i}"), config, input, config.block_out_channels[level]);
            if cross_attention {
                self.transformer(&format!("{at}.attentions.{i}"), config, level);
            }
        }
    }

    fn down_path(&mut self, config: &UnetConfig) {
        let (channels, last) = (&config.block_out_channels, config.levels() - 1);
        self.conv("conv_in", config.in_channels, channels[0], 3);
        self.linear("time_embedding.linear_1", channels[0], config.time_channels());
        self.linear("time_embedding.linear_2", config.time_channels(), config.time_channels());
        for (i, kind) in config.down_block_types.iter().enumerate() {
            let at = format!("down_blocks.{i}");
            let mut inputs = vec![channels[i]; config.layers_per_block];
            inputs[0] = channels[i.saturating_sub(1)];
            self.level(&at, config, i, &inputs, kind == "CrossAttnDownBlock2D");
            if i < last {
                self.conv(&format!("{at}.downsamplers.0.conv"), channels[i], channels[i], 3);
            }
        }
        self.level("mid_block", config, last, &[channels[last]; 2], false);
        self.transformer("mid_block.attentions.0", config, last);
    }

    fn up_path(&mut self, config: &UnetConfig) {
        let (channels, last) = (&config.block_out_channels, config.levels() - 1);
        for (i, kind) in config.up_block_types.iter().enumerate() {
            let (at, level) = (format!("up_blocks.{i}"), last - i);
            // each ResNet reads the channels so far and those of one skip of the way down
            let mut so_far = vec![channels[level]; config.layers_per_block + 1];
            so_far[0] = channels[(level + 1).min(last)];
            let mut skips = vec![channels[level]; config.layers_per_block + 1];
            skips[config.layers_per_block] = channels[level.saturating_sub(1)];
            let inputs: Vec<usize> = so_far.iter().zip(&skips).map(|(a, b)| a + b).collect();
            self.level(&at, config, level, &inputs, kind == "CrossAttnUpBlock2D");
            if level > 0 {
                self.conv(&format!("{at}.upsamplers.0.conv"), channels[level], channels[level], 3);
            }
        }
    }
}
