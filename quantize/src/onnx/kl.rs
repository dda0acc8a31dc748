//! `AutoencoderKL` (arXiv 2112.10752): the layers and names of diffusers' `Encoder` and `Decoder`.

use super::config::KlConfig;
use super::graph::{Conv, Graph, Value};

/// Added to the variance in each GroupNorm of a VAE (the UNet's is another).
const EPS: f32 = 1e-6;

/// Names of the attention's four layers: now, and before diffusers 0.17.
const ATTENTION: [[&str; 4]; 2] = [["to_q", "to_k", "to_v", "to_out.0"], ["query", "key", "value", "proj_attn"]];

/// The graph under construction and the configuration that all layers ask.
struct Layers<'g, 't> {
    graph: &'g mut Graph<'t>,
    config: &'g KlConfig,
}

/// `image` to `moments`.
pub(super) fn encoder(graph: &mut Graph, config: &KlConfig, image: Value) -> Value {
    let mut layers = Layers { graph, config };
    // 1. way down: every level but the last halves the picture
    let mut channels = config.block_out_channels[0];
    let mut x = layers.graph.conv("encoder.conv_in", &image, Conv::same(3, channels));
    for (level, &output) in config.block_out_channels.iter().enumerate() {
        let at = format!("encoder.down_blocks.{level}");
        x = layers.resnets(&at, x, channels, output, config.layers_per_block);
        channels = output;
        if level + 1 < config.block_out_channels.len() {
            // one row of zeros below and one column to the right
            let halve = Conv { stride: 2, pads: [0, 0, 1, 1], ..Conv::same(channels, channels) };
            x = layers.graph.conv(&format!("{at}.downsamplers.0.conv"), &x, halve);
        }
    }
    // 2. middle
    x = layers.middle("encoder.mid_block", x);
    // 3. moments
    let moments = 2 * config.latent_channels;
    x = layers.norm_silu("encoder.conv_norm_out", &x, channels);
    x = layers.graph.conv("encoder.conv_out", &x, Conv::same(channels, moments));
    match config.use_quant_conv {
        true => layers.graph.conv("quant_conv", &x, Conv::pointwise(moments, moments)),
        false => x,
    }
}

/// `latent` to `image`.
pub(super) fn decoder(graph: &mut Graph, config: &KlConfig, latent: Value) -> Value {
    let mut layers = Layers { graph, config };
    // 1. middle
    let (mut x, mut channels) = (latent, config.coarsest());
    if config.use_post_quant_conv {
        let pointwise = Conv::pointwise(config.latent_channels, config.latent_channels);
        x = layers.graph.conv("post_quant_conv", &x, pointwise);
    }
    x = layers.graph.conv("decoder.conv_in", &x, Conv::same(config.latent_channels, channels));
    x = layers.middle("decoder.mid_block", x);
    // 2. way up: every level but the last doubles the picture
    for (level, &output) in config.block_out_channels.iter().rev().enumerate() {
        let at = format!("decoder.up_blocks.{level}");
        x = layers.resnets(&at, x, channels, output, config.layers_per_block + 1);
        channels = output;
        if level + 1 < config.block_out_channels.len() {
            let at = format!("{at}.upsamplers.0");
            x = layers.graph.double_size(&at, &x);
            x = layers.graph.conv(&format!("{at}.conv"), &x, Conv::same(channels, channels));
        }
    }
    // 3. picture
    x = layers.norm_silu("decoder.conv_norm_out", &x, channels);
    layers.graph.conv("decoder.conv_out", &x, Conv::same(channels, 3))
}

impl Layers<'_, '_> {
    fn norm_silu(&mut self, at: &str, x: &Value, channels: usize) -> Value {
        let norm = self.graph.group_norm(at, x, channels, self.config.norm_num_groups, EPS);
        self.graph.silu(&norm)
    }

    fn resnets(&mut self, at: &str, mut x: Value, input: usize, output: usize, count: usize) -> Value {
        for i in 0..count {
            let input = if i == 0 { input } else { output };
            x = self.resnet(&format!("{at}.resnets.{i}"), x, input, output);
        }
        x
    }

    fn resnet(&mut self, at: &str, x: Value, input: usize, output: usize) -> Value {
        let mut y = self.norm_silu(&format!("{at}.norm1"), &x, input);
        y = self.graph.conv(&format!("{at}.conv1"), &y, Conv::same(input, output));
        y = self.norm_silu(&format!("{at}.norm2"), &y, output);
        y = self.graph.conv(&format!("{at}.conv2"), &y, Conv::same(output, output));
        let skip = match input == output {
            true => x,
            false => self.graph.conv(&format!("{at}.conv_shortcut"), &x, Conv::pointwise(input, output)),
        };
        self.graph.add(at, &skip, &y)
    }

    fn middle(&mut self, at: &str, x: Value) -> Value {
        let channels = self.config.coarsest();
        let mut x = self.resnet(&format!("{at}.resnets.0"), x, channels, channels);
        if self.config.mid_block_add_attention {
            x = self.attention(&format!("{at}.attentions.0"), x, channels);
        }
        self.resnet(&format!("{at}.resnets.1"), x, channels, channels)
    }

    /// One head over all places. Its linear layers are 1x1 convolutions, as the original checkpoints store them.
    fn attention(&mut self, at: &str, x: Value, channels: usize) -> Value {
        let old = self.graph.has(&format!("{at}.{}.weight", ATTENTION[1][0]));
        let stored = ATTENTION[usize::from(old)];
        let norm = self.graph.group_norm(&format!("{at}.group_norm"), &x, channels, self.config.norm_num_groups, EPS);
        let g = &mut *self.graph;
        let linear = |g: &mut Graph, i: usize, x: &Value| {
            let [name, stored] = [ATTENTION[0][i], stored[i]].map(|layer| format!("{at}.{layer}"));
            g.conv_stored_as(&name, &stored, x, Conv::pointwise(channels, channels))
        };
        let [q, k, v] = [0, 1, 2].map(|i| {
            let map = linear(g, i, &norm);
            g.reshape(&format!("{at}.{}.places", ATTENTION[0][i]), &map, &[0, 0, -1]) // [B, C, HW]
        });
        let q = g.with_number(&format!("{at}.q"), "Mul", &q, 1.0 / (channels as f32).sqrt());
        let q = g.transpose(&format!("{at}.q.transposed"), &q);
        let scores = g.matmul(&format!("{at}.scores"), &q, &k); // [B, HW, HW]
        let weights = g.softmax(&format!("{at}.weights"), &scores);
        let v = g.transpose(&format!("{at}.v"), &v);
        let mixed = g.matmul(&format!("{at}.mixed"), &weights, &v); // [B, HW, C]
        let mixed = g.transpose(&format!("{at}.mixed.transposed"), &mixed);
        let mixed = g.reshape_like(&format!("{at}.map"), &mixed, &x);
        let y = linear(g, 3, &mixed);
        g.add(at, &x, &y)
    }
}
