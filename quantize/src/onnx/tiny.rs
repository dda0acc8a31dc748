//! `AutoencoderTiny` (TAESD, github.com/madebyollin/taesd): the layers and names of diffusers' `EncoderTiny` and
//! `DecoderTiny`. Layers are numbered through; activations and upsamplings count, though they have no weights.

use super::config::TinyConfig;
use super::graph::{Conv, Graph, Value};

/// The log-variance of a latent that is certain: the least that diffusers' posteriors allow.
const CERTAIN: f32 = -30.0;

/// The decoder's soft clamp: latents stay within three deviations.
const CLAMP: f32 = 3.0;

/// `image` to `moments`: the latent, and [`CERTAIN`].
pub(super) fn encoder(graph: &mut Graph, config: &TinyConfig, image: Value) -> Value {
    let channels = config.encoder_block_out_channels[0];
    let mut layers = Layers { graph, side: "encoder", next: 0 };
    // 1. from -1..1 to 0..1
    let mut x = layers.graph.with_number("image.shifted", "Add", &image, 1.0);
    x = layers.graph.with_number("image.unit", "Div", &x, 2.0);
    // 2. levels, each after the first at half the size
    for (level, &blocks) in config.num_encoder_blocks.iter().enumerate() {
        let at = layers.at();
        x = match level {
            0 => layers.graph.conv(&at, &x, Conv::same(3, channels)),
            _ => layers.graph.conv_without_bias(&at, &x, Conv { stride: 2, ..Conv::same(channels, channels) }),
        };
        x = layers.blocks(x, channels, blocks);
    }
    // 3. moments
    let at = layers.at();
    layers.graph.conv_and_constant(&at, &x, Conv::same(channels, config.latent_channels), CERTAIN)
}

/// `latent` to `image`.
pub(super) fn decoder(graph: &mut Graph, config: &TinyConfig, latent: Value) -> Value {
    let channels = config.decoder_block_out_channels[0];
    let mut layers = Layers { graph, side: "decoder", next: 0 };
    // 1. soft clamp
    let mut x = layers.graph.with_number("latent.divided", "Div", &latent, CLAMP);
    x = layers.graph.tanh(&x);
    x = layers.graph.with_number("latent.clamped", "Mul", &x, CLAMP);
    // 2. levels, each after the first at twice the size
    let at = layers.at();
    x = layers.graph.conv(&at, &x, Conv::same(config.latent_channels, channels));
    x = layers.graph.relu(&x);
    layers.at(); // the ReLU
    let last = config.num_decoder_blocks.len() - 1;
    for (level, &blocks) in config.num_decoder_blocks.iter().enumerate() {
        x = layers.blocks(x, channels, blocks);
        if level < last {
            let upsampling = layers.at();
            x = layers.graph.double_size(&upsampling, &x);
            let at = layers.at();
            x = layers.graph.conv_without_bias(&at, &x, Conv::same(channels, channels));
        }
    }
    let at = layers.at();
    x = layers.graph.conv(&at, &x, Conv::same(channels, 3));
    // 3. from 0..1 to -1..1
    x = layers.graph.with_number("image.doubled", "Mul", &x, 2.0);
    layers.graph.with_number("image.shifted", "Add", &x, -1.0)
}

struct Layers<'g, 't> {
    graph: &'g mut Graph<'t>,
    side: &'static str,
    next: usize,
}

impl Layers<'_, '_> {
    /// The next layer's name.
    fn at(&mut self) -> String {
        let at = format!("{}.layers.{}", self.side, self.next);
        self.next += 1;
        at
    }

    fn blocks(&mut self, mut x: Value, channels: usize, count: usize) -> Value {
        for _ in 0..count {
            let at = self.at();
            let mut y = x.clone();
            for layer in [0, 2, 4] {
                y = self.graph.conv(&format!("{at}.conv.{layer}"), &y, Conv::same(channels, channels));
                if layer < 4 {
                    y = self.graph.relu(&y);
                }
            }
            let sum = self.graph.add(&at, &y, &x);
            x = self.graph.relu(&sum);
        }
        x
    }
}
