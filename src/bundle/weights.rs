//! Weights of one part, read tensor by tensor from safetensors files (one, or shards with an index).

use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A header larger than this is damage, not a header (the safetensors library's own bound).
const LARGEST_HEADER: u64 = 100_000_000;

/// The tensors of one part by name. Asking for one that is missing or misshapen records the problem and gives zeros, so
/// that a network is built to the end and [`Weights::finish`] names everything that is wrong at once.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    part: String,
    tensors: BTreeMap<String, Place>,
    problems: RefCell<Vec<String>>,
}

/// Where one tensor lies.
#[derive(Debug, Clone)]
struct Place {
    file: PathBuf,
    offset: u64,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// What a file's header says of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorHeader<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape as stored.
    pub shape: &'a [usize],
    /// How its values are stored.
    pub dtype: Dtype,
    /// The file it lies in.
    pub file: &'a Path,
}

/// `*.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Reads the headers of `folder/part/stem[.fp16].safetensors`, or of the shards its index names.
    ///
    /// # Errors
    /// If no such file exists or a header is damaged.
    pub fn open(folder: &Path, part: &str, stem: &str) -> Result<Self> {
        let place = folder.join(part);
        let mut tensors = BTreeMap::new();
        for file in files(&place, stem)? {
            tensors.extend(read_header(&file)?);
        }
        Ok(Weights { folder: folder.to_path_buf(), part: part.into(), tensors, problems: RefCell::default() })
    }

    /// The root of the part's names.
    pub fn root(&self) -> Names<'_> {
        Names { weights: self, path: String::new() }
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// What the headers say of every tensor, by name.
    pub fn headers(&self) -> impl Iterator<Item = TensorHeader<'_>> {
        self.tensors.iter().map(|(name, place)| TensorHeader {
            name,
            shape: &place.shape,
            dtype: place.dtype,
            file: &place.file,
        })
    }

    /// Numbers in all tensors of the part.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|place| place.shape.iter().product::<usize>()).sum()
    }

    /// # Errors
    /// Every tensor that was missing, misshapen, of an unreadable type or not finite.
    pub fn finish(self) -> Result<()> {
        let problems = self.problems.into_inner();
        if problems.is_empty() { Ok(()) } else { Err(Error::Model { folder: self.folder, problems }) }
    }

    fn get(&self, name: &str, shape: &Shape) -> Result<Tensor> {
        match self.read(name, shape) {
            Ok(tensor) => Ok(tensor),
            Err(Error::File { what, .. }) => {
                self.problems.borrow_mut().push(format!("{}: {what}", self.part));
                Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
            }
            Err(other) => Err(other),
        }
    }

    fn read(&self, name: &str, shape: &Shape) -> Result<Tensor> {
        let Some(place) = self.tensors.get(name) else {
            return Err(Error::file(&self.folder, format!("tensor {name} {:?} is missing", shape.dims())));
        };
        // a linear layer may be stored as a 1x1 convolution
        let stored: Vec<_> = place.shape.iter().copied().enumerate().filter(|&(i, d)| i < 2 || d != 1).collect();
        let as_linear =
            shape.rank() == 2 && place.shape.len() == 4 && stored.iter().map(|s| s.1).eq(shape.dims().iter().copied());
        if place.shape != shape.dims() && !as_linear {
            return Err(Error::file(
                &place.file,
                format!("tensor {name} has the shape {:?}, wanted {:?}", place.shape, shape.dims()),
            ));
        }
        let values = place.read(name)?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::file(&place.file, format!("tensor {name} holds values that are not finite")));
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

impl Place {
    /// The values as f32.
    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let width = match self.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => {
                let what = format!("tensor {name} is {other:?}; supported are F32, F16 and BF16");
                return Err(Error::file(&self.file, what));
            }
        };
        let mut bytes = vec![0; self.shape.iter().product::<usize>() * width];
        let mut file = File::open(&self.file).map_err(Error::io(&self.file))?;
        file.seek(SeekFrom::Start(self.offset)).map_err(Error::io(&self.file))?;
        file.read_exact(&mut bytes).map_err(Error::io(&self.file))?;
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        Ok(match self.dtype {
            Dtype::F16 => pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        })
    }
}

/// The weight files of a part.
fn files(place: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    for variant in ["", ".fp16"] {
        let whole = place.join(format!("{stem}{variant}.safetensors"));
        if whole.is_file() {
            return Ok(vec![whole]);
        }
        let index = place.join(format!("{stem}.safetensors.index{variant}.json"));
        if index.is_file() {
            let shards: ShardIndex = super::read_json(&index)?;
            let names: BTreeSet<String> = shards.weight_map.into_values().collect();
            if let Some(outside) = names.iter().find(|n| n.contains(['/', '\\'])) {
                return Err(Error::file(&index, format!("the shard {outside} lies outside this folder")));
            }
            return Ok(names.into_iter().map(|name| place.join(name)).collect());
        }
    }
    let what = format!("no {stem}.safetensors and no {stem}.safetensors.index.json here");
    Err(Error::file(place, what))
}

/// The places of a safetensors file's tensors; reads the header only.
fn read_header(path: &Path) -> Result<BTreeMap<String, Place>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let mut first = [0; 8];
    if length < 8 {
        return Err(Error::file(path, format!("{length} bytes long, too short for safetensors; get the file again")));
    }
    file.read_exact(&mut first).map_err(Error::io(path))?;
    let header = u64::from_le_bytes(first);
    if header > LARGEST_HEADER || header > length - 8 {
        return Err(Error::file(
            path,
            format!("claims a header of {header} bytes in a file of {length}; it is damaged"),
        ));
    }
    let mut json = vec![0; header as usize];
    file.read_exact(&mut json).map_err(Error::io(path))?;
    let damaged = |e: &dyn std::fmt::Display| Error::file(path, format!("its safetensors header is damaged: {e}"));
    let metadata: Metadata = serde_json::from_slice(&json).map_err(|e| damaged(&e))?;
    if 8 + header + metadata.data_len() as u64 != length {
        let wanted = 8 + header + metadata.data_len() as u64;
        return Err(Error::file(path, format!("{length} bytes long, its header wants {wanted}; it was cut off")));
    }
    let place = |info: &safetensors::tensor::TensorInfo| Place {
        file: path.to_path_buf(),
        offset: 8 + header + info.data_offsets.0 as u64,
        dtype: info.dtype,
        shape: info.shape.clone(),
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, place(info))).collect())
}

/// A place in the tree of names, such as `down_blocks.0.resnets.1`.
#[derive(Debug, Clone)]
pub struct Names<'a> {
    weights: &'a Weights,
    path: String,
}

impl Names<'_> {
    /// The place `name` below this one.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Names { weights: self.weights, path }
    }

    /// The tensor `name` here as f32, of exactly this shape (a 1x1 convolution's weight may be asked for as `[out, in]`).
    ///
    /// # Errors
    /// Only if reading the file fails; what is wrong with the tensor itself is reported by [`Weights::finish`].
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        self.weights.get(&self.pp(name).path, &shape.into())
    }
}
