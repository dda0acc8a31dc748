//! What a bundle's network consists of: the tensors of a model with those joined that read the same input, as the program
//! loads them (`pleinair::bundle::weights::Names::joined_matrix`).

use crate::tensors::{Role, TensorSpec};
use pleinair::bundle::weights::Packing;

/// Joined layers: where they are, what they are called together, who they are.
const JOINED: [(&str, &str, &[&str]); 3] = [
    ("attn1", "to_qkv", &["to_q", "to_k", "to_v"]),
    ("attn2", "to_kv", &["to_k", "to_v"]),
    ("self_attn", "qkv_proj", &["q_proj", "k_proj", "v_proj"]),
];

/// One tensor of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its layer's name, such as `down_blocks.0.attentions.0.proj_in`.
    pub layer: String,
    /// What it is in its layer: `weight` or `bias`.
    pub field: String,
    /// The model's tensors that it is made of, in this order.
    pub sources: Vec<String>,
    /// The shape of each of them, as the model's configuration has it.
    pub shape: Vec<usize>,
    /// What it does.
    pub role: Role,
}

impl Piece {
    /// Its name in the file.
    pub fn name(&self) -> String {
        format!("{}.{}", self.layer, self.field)
    }

    /// Rows of the matrix, over all sources; values of a vector.
    pub fn outputs(&self) -> usize {
        self.sources.len() * self.shape[0]
    }

    /// Columns of the matrix; 1 for a vector.
    pub fn inputs(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Whether it is the weight of a 3x3 convolution.
    pub fn is_kernel(&self) -> bool {
        self.shape.len() == 4 && self.shape[2..] == [3, 3]
    }

    /// Whether it is multiplied with a layer's input, and may so be int8.
    pub fn is_matrix(&self) -> bool {
        self.role == Role::Weight
    }

    /// The shape in the model's terms, sources joined: `[out, in]` or `[out, in, 3, 3]`.
    pub fn joined_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[0] = self.outputs();
        shape
    }

    /// The shape in the file.
    pub fn stored_shape(&self, packing: Packing) -> Vec<usize> {
        match self.shape.len() {
            1 => vec![self.outputs()],
            _ => packing.shape(self.outputs(), self.inputs()),
        }
    }

    /// Number of values.
    pub fn parameters(&self) -> usize {
        self.outputs() * self.inputs()
    }
}

/// The pieces of a network with these tensors, in their order.
pub fn pieces(tensors: &[TensorSpec]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = vec![];
    for tensor in tensors {
        let (path, field) = tensor.name.rsplit_once('.').unwrap_or(("", &tensor.name));
        let (layer, first) = match joined(path) {
            Some((layer, first)) => (layer, first),
            None => (path.to_owned(), true),
        };
        match pieces.iter_mut().rev().find(|piece| !first && piece.layer == layer && piece.field == field) {
            Some(piece) => piece.sources.push(tensor.name.clone()),
            None => pieces.push(Piece {
                layer,
                field: field.to_owned(),
                sources: vec![tensor.name.clone()],
                shape: tensor.shape.clone(),
                role: tensor.role,
            }),
        }
    }
    pieces
}

/// The joined layer that `path` is a part of, and whether it is the first.
fn joined(path: &str) -> Option<(String, bool)> {
    let (parent, layer) = path.rsplit_once('.')?;
    let (_, together, parts) =
        JOINED.iter().find(|(place, _, parts)| parent.rsplit('.').next() == Some(place) && parts.contains(&layer))?;
    Some((format!("{parent}.{together}"), parts[0] == layer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configs::Model;
    use crate::tensors;

    #[test]
    fn what_reads_the_same_input_is_joined_in_order() {
        let unet = pieces(&tensors::unet(&Model::Tiny.unet()));
        let find = |name: &str| unet.iter().find(|piece| piece.name() == name).unwrap();
        let qkv = find("mid_block.attentions.0.transformer_blocks.0.attn1.to_qkv.weight");
        let at = "mid_block.attentions.0.transformer_blocks.0.attn1";
        assert_eq!(qkv.sources, ["to_q", "to_k", "to_v"].map(|p| format!("{at}.{p}.weight")));
        assert_eq!((qkv.outputs(), qkv.inputs(), qkv.stored_shape(Packing::Panels)), (96, 32, vec![6, 16, 16, 4]));
        let kv = find("mid_block.attentions.0.transformer_blocks.0.attn2.to_kv.weight");
        assert_eq!((kv.sources.len(), kv.outputs()), (2, 64));
        let conv = find("down_blocks.0.resnets.0.conv1.weight");
        assert!(conv.is_kernel() && conv.is_matrix());
        assert_eq!((conv.joined_shape(), conv.stored_shape(Packing::Rows)), (vec![16, 16, 3, 3], vec![16, 144]));
        let bias = find("down_blocks.0.resnets.0.conv1.bias");
        assert_eq!((bias.is_matrix(), bias.stored_shape(Packing::Rows)), (false, vec![16]));

        let text = pieces(&tensors::text_encoder(&Model::Tiny.text_encoder()));
        let layers = text.iter().filter(|p| p.layer.ends_with("qkv_proj")).map(|p| (p.field.as_str(), p.outputs()));
        assert_eq!(layers.collect::<Vec<_>>(), [("weight", 96), ("bias", 96)].repeat(2));
    }

    #[test]
    fn no_value_is_lost_or_doubled() {
        for model in [Model::Tiny, Model::Sd15] {
            let (unet, text) = (model.unet(), model.text_encoder());
            for list in
                [tensors::unet(&unet), tensors::controlnet(&model.controlnet(), &unet), tensors::text_encoder(&text)]
            {
                let pieces = pieces(&list);
                let mut sources: Vec<_> = pieces.iter().flat_map(|piece| &piece.sources).collect();
                let mut names: Vec<_> = list.iter().map(|tensor| &tensor.name).collect();
                sources.sort();
                names.sort();
                assert_eq!(sources, names);
                let values: usize = pieces.iter().map(Piece::parameters).sum();
                assert_eq!(values, list.iter().map(TensorSpec::parameters).sum::<usize>());
            }
        }
    }
}
