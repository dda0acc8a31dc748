//! The weights inside the ONNX files of a bundle's VAE, under the names they have in diffusers. A file of another
//! exporter has other names and other forms of the same layers; it can only be run as it is.

use super::values;
use super::weights::{Held, Weights};
use crate::{Error, Result};
use safetensors::Dtype;
use std::path::Path;
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::prelude::Framework;

/// Who writes the files whose names are known.
const PRODUCER: &str = "pleinair-quantize";

/// Reads the initialisers of a file that pleinair-quantize wrote; none of a file from elsewhere.
///
/// # Errors
/// If it is not ONNX, or a tensor has another number of values than its shape.
pub(super) fn read(path: &Path) -> Result<Option<Weights>> {
    let file = tract_onnx::onnx()
        .proto_model_for_path(path)
        .map_err(|e| Error::file(path, format!("not ONNX: {e:#}; copy the bundle again")))?;
    if file.producer_name != PRODUCER {
        return Ok(None);
    }
    let tensors = file.graph.unwrap_or_default().initializer;
    let held = tensors.into_iter().filter_map(|tensor| held(path, tensor).transpose()).collect::<Result<Vec<_>>>()?;
    Ok(Some(Weights::hold(path, held)))
}

/// A tensor of numbers that a network may have; none for the whole numbers that are shapes.
fn held(path: &Path, tensor: TensorProto) -> Result<Option<Held>> {
    let dtype = match DataType::try_from(tensor.data_type) {
        Ok(DataType::Float) => Dtype::F32,
        Ok(DataType::Float16) => Dtype::F16,
        _ => return Ok(None),
    };
    // a weight that is cast before its use keeps the plain name for what comes out
    let name = tensor.name.strip_suffix(".f16").unwrap_or(&tensor.name).to_owned();
    let mut shape: Vec<usize> = tensor.dims.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    if let [channels, 1, 1] = shape[..] {
        shape = vec![channels]; // GroupNorm's, lying along the channels of a map
    }
    let width = values::width(dtype).expect("both types above are numbers");
    let wanted = shape.iter().try_fold(width, |bytes, &d| bytes.checked_mul(d));
    if wanted != Some(tensor.raw_data.len()) {
        let what = format!("tensor {name} {shape:?} has {} bytes; copy the bundle again", tensor.raw_data.len());
        return Err(Error::file(path, what));
    }
    Ok(Some(Held { name, dtype, shape, bytes: tensor.raw_data }))
}
