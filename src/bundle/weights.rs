//! Weights of one part, read tensor by tensor from safetensors files (one, or shards with an index).

use super::values;
use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A header larger than this is damage, not a header (the safetensors library's own bound).
const LARGEST_HEADER: u64 = 100_000_000;

/// The tensors of one part by name. Asking for one that is missing or misshapen records the problem and gives zeros, so
/// that a network is built to the end and [`Weights::finish`] names everything that is wrong at once.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    part: String,
    tensors: BTreeMap<String, Place>,
    metadata: HashMap<String, String>,
    problems: Mutex<Vec<String>>,
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
        Self::open_files(folder, part, &files(&folder.join(part), stem)?)
    }

    /// Reads the header of one safetensors file, wherever it lies.
    ///
    /// # Errors
    /// If it does not exist or its header is damaged.
    pub fn open_file(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::open_files(path.parent().unwrap_or(path), &name, &[path.to_path_buf()])
    }

    fn open_files(folder: &Path, part: &str, files: &[PathBuf]) -> Result<Self> {
        let (mut tensors, mut metadata) = (BTreeMap::new(), HashMap::new());
        for file in files {
            let header = read_header(file)?;
            tensors.extend(header.0);
            metadata.extend(header.1);
        }
        let problems = Mutex::default();
        Ok(Weights { folder: folder.to_path_buf(), part: part.into(), tensors, metadata, problems })
    }

    /// The root of the part's names.
    pub fn root(&self) -> Names<'_> {
        Names { weights: self, path: String::new() }
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor as stored.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|place| place.shape.as_slice())
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

    /// What the files say of themselves: the `__metadata__` of their headers.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The values of a tensor as f32, in the order and shape they are stored in. Several threads may read at once.
    ///
    /// # Errors
    /// If there is no such tensor, it is of an unreadable type, or reading the file fails.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self.tensors.get(name) {
            Some(place) => place.read(name),
            None => Err(Error::file(&self.folder.join(&self.part), format!("tensor {name} is missing"))),
        }
    }

    /// Numbers in all tensors of the part.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|place| place.shape.iter().product::<usize>()).sum()
    }

    /// # Errors
    /// Every tensor that was missing, misshapen, of an unreadable type or not finite.
    pub fn finish(self) -> Result<()> {
        let problems = self.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
        if problems.is_empty() { Ok(()) } else { Err(Error::Model { folder: self.folder, problems }) }
    }

    fn get(&self, name: &str, shape: &Shape) -> Result<Tensor> {
        match self.read(name, shape) {
            Ok(tensor) => Ok(tensor),
            Err(Error::File { what, .. }) => {
                let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
                problems.push(format!("{}: {what}", self.part));
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
        if values::width(self.dtype).is_none() {
            let what = format!("tensor {name} is {:?}; supported are {}", self.dtype, values::SUPPORTED);
            return Err(Error::file(&self.file, what));
        }
        values::read_f32(&self.file, self.offset, self.dtype, self.shape.iter().product())
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

/// The places of a safetensors file's tensors, and its metadata; reads the header only.
fn read_header(path: &Path) -> Result<(BTreeMap<String, Place>, HashMap<String, String>)> {
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
    let places = metadata.tensors().into_iter().map(|(name, info)| (name, place(info))).collect();
    Ok((places, metadata.metadata().clone().unwrap_or_default()))
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
