//! Whether an ONNX file that somebody brings along can serve in a bundle.

use pleinair::{Error, Result};
use std::path::Path;
use tract_onnx::pb::ModelProto;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::DimLike;

/// What a file is to be used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `[B, latent_channels, h, w]` to a picture of 3 channels.
    Decoder {
        /// Channels of a latent.
        latent_channels: usize,
    },
    /// A picture to `[B, 2 c, h, w]`, mean and log-variance.
    Encoder,
    /// A picture to its depth.
    Depth,
    /// A picture to the lines in it.
    LineArt,
}

impl Kind {
    fn input_channels(self) -> usize {
        match self {
            Kind::Decoder { latent_channels } => latent_channels,
            Kind::Encoder | Kind::Depth | Kind::LineArt => 3,
        }
    }

    fn role(self) -> &'static str {
        match self {
            Kind::Decoder { .. } => "a VAE's decoder",
            Kind::Encoder => "a VAE's encoder",
            Kind::Depth => "a depth estimator",
            Kind::LineArt => "a network that draws lines",
        }
    }
}

/// Two sizes that every VAE and every drawer takes; a file made for one size only fails at one of them.
const SIDES: [[usize; 2]; 2] = [[64, 64], [64, 128]];

/// Loads a file in tract and checks that it is one file with one f32 input of rank 4 and one output, and that a VAE's
/// half takes any size and answers with the channels of its kind. Nothing is evaluated.
///
/// # Errors
/// If the file cannot be read, is not ONNX, uses operators that tract does not have, or is something else.
pub fn check(path: &Path, kind: Kind) -> Result<()> {
    std::fs::File::open(path).map_err(Error::io(path))?;
    check_file(path, kind).map_err(|what| Error::file(path, format!("{what}; it cannot be {}", kind.role())))
}

fn check_file(path: &Path, kind: Kind) -> Result<(), String> {
    let onnx = tract_onnx::onnx();
    let proto = onnx.proto_model_for_path(path).map_err(|e| format!("not ONNX: {e:#}"))?;
    if has_external_data(&proto) {
        return Err("its weights are in another file (save it as one file)".into());
    }
    let model = onnx.model_for_proto_model(&proto).map_err(|e| format!("tract cannot load it: {e:#}"))?;
    drop(proto);
    let (inputs, outputs) = (model.inputs.len(), model.outputs.len());
    if (inputs, outputs) != (1, 1) {
        return Err(format!("has {inputs} inputs and {outputs} outputs, wanted one and one"));
    }
    let fact = model.input_fact(0).map_err(|e| format!("{e:#}"))?;
    let dims: Vec<_> = fact.shape.dims().map(|dim| dim.concretize().and_then(|d| d.to_usize().ok())).collect();
    let channels = kind.input_channels();
    let fits = !fact.shape.is_open() && matches!(dims[..], [_, c, _, _] if c.is_none_or(|c| c == channels));
    if !fits || fact.datum_type.concretize().is_some_and(|kind| kind != DatumType::F32) {
        return Err(format!("takes an input {fact:?}, wanted f32 [B, {channels}, H, W]"));
    }
    match kind {
        Kind::Depth => Ok(()), // estimators have sizes of their own
        Kind::LineArt | Kind::Encoder | Kind::Decoder { .. } => {
            SIDES.iter().try_for_each(|&sides| check_size(&model, kind, sides))
        }
    }
}

fn has_external_data(proto: &ModelProto) -> bool {
    let tensors = proto.graph.iter().flat_map(|graph| &graph.initializer);
    tensors.into_iter().any(|tensor| tensor.data_location == Some(DataLocation::External as i32))
}

/// What the file would answer to an input of this size.
fn check_size(model: &InferenceModel, kind: Kind, [height, width]: [usize; 2]) -> Result<(), String> {
    let input = [1, kind.input_channels(), height, width];
    let refuses = |e: TractError| format!("does not run on an input of {input:?}: {e:#}");
    let typed =
        model.clone().with_input_fact(0, f32::fact(input).into()).and_then(|m| m.into_typed()).map_err(refuses)?;
    let fact = typed.output_fact(0).map_err(refuses)?;
    let (channels_fit, wanted): (fn(usize) -> bool, _) = match kind {
        Kind::Decoder { .. } => (|c| c == 3, "[1, 3, H, W]"),
        Kind::LineArt => (|c| c == 1, "[1, 1, H, W]"),
        _ => (|c| c > 0 && c.is_multiple_of(2), "[1, 2 c, h, w]"),
    };
    match fact.shape.as_concrete() {
        Some(&[1, c, h, w]) if channels_fit(c) && h > 0 && h * width == w * height => Ok(()),
        _ => Err(format!("answers {input:?} with {fact:?}, wanted {wanted}")),
    }
}
