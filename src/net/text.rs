//! CLIP's text encoder (arXiv 2103.00020; transformers `CLIPTextModel`), with the style vectors in place of words.

use super::layers::{Attention, LayerNorm, Linear};
use crate::bundle::Bundle;
use crate::bundle::config::TextConfig;
use crate::bundle::manifest::hexadecimal;
use crate::bundle::weights::Names;
use crate::prompt::{Conditioning, Tokens};
use crate::{Error, Result, Target};
use candle_core::{Device, Tensor};
use pleinair_cpu::Weight;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Turns tokens into text states.
#[derive(Debug)]
pub struct TextEncoder {
    /// `[words, D]`, looked up row by row where it lies.
    token_embedding: Arc<Weight>,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    target: Target,
}

impl TextEncoder {
    /// Loads the bundle's text encoder, its weights as they are stored. Names may carry the prefix `text_model.` (older
    /// checkpoints) or not.
    ///
    /// # Errors
    /// Every tensor that is missing or misshapen, by name.
    pub fn load(bundle: &Bundle) -> Result<Self> {
        let weights = bundle.weights("text_encoder")?;
        let config = &bundle.text;
        let prefixed = weights.contains("text_model.final_layer_norm.weight");
        let names = if prefixed { weights.root().pp("text_model") } else { weights.root() };
        let (width, embeddings) = (config.hidden_size, names.pp("embeddings"));
        let encoder = TextEncoder {
            token_embedding: embeddings.pp("token_embedding").table(config.vocab_size, width)?,
            // added to words where those are, in main memory
            position_embedding: embeddings
                .get("position_embedding.weight", (config.max_position_embeddings, width))?
                .to_device(&Device::Cpu)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&names.pp("encoder.layers").pp(i), config))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(&names.pp("final_layer_norm"), width, config.layer_norm_eps)?,
            target: names.target(),
        };
        weights.finish()?;
        Ok(encoder)
    }

    /// Channels of a word's (and so of a style's) vector.
    pub fn width(&self) -> usize {
        self.token_embedding.inputs()
    }

    /// The vector of one word of the table, `[D]`.
    ///
    /// # Errors
    /// If the table has no such row.
    pub fn word_vector(&self, id: u32) -> Result<Tensor> {
        let rows = self.token_embedding.outputs();
        if id as usize >= rows {
            return Err(Error::Usage(format!("token {id} is outside the text encoder's table of {rows} words")));
        }
        Ok(Tensor::from_vec(self.token_embedding.row(id as usize), self.width(), &Device::Cpu)?)
    }

    /// Names the text encoder that a style was learned for: sha256 of the word table as little-endian f16, which f32 and
    /// f16 copies of a model share, in hexadecimal.
    ///
    /// # Errors
    /// If the table cannot be read back.
    pub fn base(&self) -> Result<String> {
        let mut sha = Sha256::new();
        for word in 0..self.token_embedding.outputs() {
            let row = self.token_embedding.row(word).into_iter();
            sha.update(row.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect::<Vec<_>>());
        }
        Ok(hexadecimal(sha))
    }

    /// Word and position vectors of one prompt, `[1, 77, D]`; `styles[i]`, `[D]` or `[n, D]`, stands wherever the prompt has style `i`,
    /// row by row.
    ///
    /// # Errors
    /// If the prompt names a style that is not given or has not as many rows, or a word outside the table.
    pub fn embed(&self, tokens: &Tokens, styles: &[Tensor]) -> Result<Tensor> {
        let words: Vec<_> = tokens.ids.iter().map(|&id| self.word_vector(id)).collect::<Result<_>>()?;
        let words = Tensor::stack(&words, 0)?;
        let mut pieces = vec![];
        let (mut next, mut seen) = (0, vec![0; styles.len()]);
        for &(position, style) in &tokens.styles {
            let vectors = styles.get(style).ok_or_else(|| {
                Error::Usage(format!("the prompt has {} styles, only {} are given", style + 1, styles.len()))
            })?;
            let vectors = vectors.reshape(((), self.width()))?;
            pieces.push(words.narrow(0, next, position - next)?);
            pieces.push(vectors.narrow(0, seen[style] % vectors.dims()[0], 1)?);
            seen[style] += 1;
            next = position + 1;
        }
        let parted = |(&seen, style): (&usize, &Tensor)| seen % (style.elem_count() / self.width()).max(1) != 0;
        if seen.iter().zip(styles).any(parted) {
            return Err(Error::Usage("a prompt has not as many places for a style as the style has vectors".into()));
        }
        pieces.push(words.narrow(0, next, tokens.ids.len() - next)?);
        let pieces: Vec<_> = pieces.into_iter().filter(|p| p.dims()[0] > 0).collect();
        let positions = self.position_embedding.narrow(0, 0, tokens.ids.len())?;
        Ok((Tensor::cat(&pieces, 0)? + positions)?.unsqueeze(0)?)
    }

    /// States `[B, 77, D]` on the target of embedded prompts `[B, 77, D]`.
    ///
    /// # Errors
    /// If the width differs.
    pub fn forward(&self, embedded: &Tensor) -> Result<Conditioning> {
        let mut x = self.target.take_in(&embedded.contiguous()?)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        Ok(Conditioning(self.final_layer_norm.forward(&x)?))
    }
}

/// `x sigmoid(1.702 x)` by way of SiLU, whose slope stays finite where exp(-x) does not.
fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    Ok(((x * 1.702)?.silu()? / 1.702)?)
}

#[derive(Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    qkv_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    attention: Attention,
    quick: bool,
}

impl Layer {
    fn load(names: &Names, config: &TextConfig) -> Result<Self> {
        let width = config.hidden_size;
        let norm = |name| LayerNorm::load(&names.pp(name), width, config.layer_norm_eps);
        let names_of_three = ["q_proj", "k_proj", "v_proj"];
        let qkv_proj = Linear::load_joined(&names.pp("self_attn"), "qkv_proj", &names_of_three, width, width)?;
        Ok(Layer {
            layer_norm1: norm("layer_norm1")?,
            attention: Attention::new(names, config.num_attention_heads, true, &qkv_proj),
            qkv_proj,
            out_proj: Linear::load(&names.pp("self_attn.out_proj"), width, width)?,
            layer_norm2: norm("layer_norm2")?,
            fc1: Linear::load(&names.pp("mlp.fc1"), width, config.intermediate_size)?,
            fc2: Linear::load(&names.pp("mlp.fc2"), config.intermediate_size, width)?,
            quick: config.hidden_act == "quick_gelu",
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let c = x.dim(2)?;
        let qkv = self.qkv_proj.forward(&self.layer_norm1.forward(x)?)?;
        let seen = self.attention.forward(&qkv.narrow(2, 0, c)?, &qkv.narrow(2, c, 2 * c)?)?;
        let x = (x + self.out_proj.forward(&seen)?)?;
        let h = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        let h = if self.quick { quick_gelu(&h)? } else { h.gelu_erf()? };
        Ok((&x + self.fc2.forward(&h)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn quick_gelu_and_its_slope_are_finite_everywhere() {
        let points = [-1000f32, -60.0, -52.2, -20.0, -1.0, 0.0, 0.3, 5.0, 80.0];
        let x = Var::new(&points, &Device::Cpu).unwrap();
        let y = quick_gelu(&x).unwrap();
        let slopes = y.backward().unwrap().remove(&x).unwrap().to_vec1::<f32>().unwrap();
        for ((x, y), slope) in points.iter().zip(y.to_vec1::<f32>().unwrap()).zip(slopes) {
            let x = *x as f64;
            let sigmoid = 1.0 / (1.0 + (-1.702 * x).exp());
            let want = sigmoid * (1.0 + 1.702 * x * (1.0 - sigmoid));
            // a handful of roundings, those of the exponential's argument included
            let tolerance = 8.0 * f32::EPSILON as f64;
            assert!((y as f64 - x * sigmoid).abs() <= tolerance * x.abs().max(1.0), "{x}: {y}");
            assert!((slope as f64 - want).abs() <= tolerance * 4.0, "{x}: slope {slope}, not {want}");
        }
    }
}
