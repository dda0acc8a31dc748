//! Weights of one part: read tensor by tensor into f32 from a model's safetensors files (one, or shards with an index),
//! or used where they lie in a bundle's mapped file.

use super::values;
use crate::{Error, Result, Target};
use candle_core::{DType, Shape, Tensor};
use half::bf16;
use pleinair_cpu::{MappedFile, Numbers, Plain};
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use pleinair_cpu::int8::pack;
pub use pleinair_cpu::isa;
pub use pleinair_cpu::{Int8, Packing, Values, Weight, channels_last};

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
    /// A bundle's file; a model's files are read, not mapped.
    map: Option<Arc<MappedFile>>,
    /// Whether matrices that are read, not mapped, are kept as bfloat16.
    bf16: bool,
    probe: Option<Arc<dyn Probe>>,
    target: Option<Target>,
}

/// Sees every product of a network while it runs; for calibration.
pub trait Probe: std::fmt::Debug + Send + Sync {
    /// `layer`, such as `unet.down_blocks.0.attentions.0.proj_in`, is about to be multiplied with `x: [B, N, in]`. A
    /// weight in the answer takes the place of the layer's own this time.
    ///
    /// # Errors
    /// Whatever keeps the probe from seeing; it ends the run.
    fn product(&self, layer: &str, x: &Tensor) -> Result<Option<Arc<Weight>>>;
}

/// The weight of one layer, and who watches it.
#[derive(Debug, Clone)]
pub struct LayerWeight {
    layer: String,
    weight: Arc<Weight>,
    probe: Option<Arc<dyn Probe>>,
}

impl LayerWeight {
    /// The weight itself.
    pub fn weight(&self) -> &Arc<Weight> {
        &self.weight
    }

    /// The weight to multiply `x` with.
    ///
    /// # Errors
    /// Whatever a probe reports.
    pub fn for_input(&self, x: &Tensor) -> Result<Arc<Weight>> {
        match &self.probe {
            Some(probe) => Ok(probe.product(&self.layer, x)?.unwrap_or_else(|| self.weight.clone())),
            None => Ok(self.weight.clone()),
        }
    }
}

/// Where one tensor lies.
#[derive(Debug, Clone)]
struct Place {
    file: PathBuf,
    offset: u64,
    dtype: Dtype,
    shape: Vec<usize>,
    /// The bytes themselves, where the file has a form of its own and was read as a whole.
    held: Option<Arc<Vec<u8>>>,
}

/// A tensor in memory.
pub(super) struct Held {
    pub(super) name: String,
    /// One of those with a [`values::width`].
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// As many as type and shape ask for.
    pub(super) bytes: Vec<u8>,
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

    /// Reads the header of a safetensors file of `length` bytes from its `start`. `path` is what messages call it; its
    /// numbers are not looked at.
    ///
    /// # Errors
    /// If the header is damaged or belongs to a file of another length.
    pub fn from_start(path: &Path, start: impl Read, length: u64) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self::from_headers(path.parent().unwrap_or(path), &name, [read_header(path, start, length)?]))
    }

    fn open_files(folder: &Path, part: &str, files: &[PathBuf]) -> Result<Self> {
        let header = |path: &PathBuf| {
            let file = File::open(path).map_err(Error::io(path))?;
            let length = file.metadata().map_err(Error::io(path))?.len();
            read_header(path, file, length)
        };
        let headers = files.iter().map(header).collect::<Result<Vec<_>>>()?;
        Ok(Self::from_headers(folder, part, headers))
    }

    fn from_headers(folder: &Path, part: &str, headers: impl IntoIterator<Item = Header>) -> Self {
        let (mut tensors, mut metadata) = (BTreeMap::new(), HashMap::new());
        for header in headers {
            tensors.extend(header.0);
            metadata.extend(header.1);
        }
        let (folder, part, problems) = (folder.to_path_buf(), part.into(), Mutex::default());
        Weights { folder, part, tensors, metadata, problems, map: None, bf16: false, probe: None, target: None }
    }

    /// The tensors of a file in another form than safetensors.
    pub(super) fn hold(path: &Path, tensors: Vec<Held>) -> Self {
        let place = |held: Held| {
            let Held { name, dtype, shape, bytes } = held;
            (name, Place { file: path.to_path_buf(), offset: 0, dtype, shape, held: Some(Arc::new(bytes)) })
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let header = (tensors.into_iter().map(place).collect(), HashMap::new());
        Self::from_headers(path.parent().unwrap_or(path), &name, [header])
    }

    /// Maps `folder/part.safetensors` of a bundle.
    ///
    /// # Errors
    /// If it cannot be mapped or its header is damaged.
    pub fn map(folder: &Path, part: &str) -> Result<Self> {
        let path = folder.join(format!("{part}.safetensors"));
        let map = MappedFile::open(&path).map_err(Error::io(&path))?;
        Ok(Weights { map: Some(map), ..Self::open_files(folder, part, &[path])? })
    }

    /// The same weights for this target; on the processor multiplied by its kernels where they are packed for them.
    pub(super) fn on(mut self, target: &Target) -> Self {
        self.target = Some(target.clone());
        self
    }

    /// The same weights, their matrices rounded to bfloat16 when they are read: kept so, and multiplied so.
    pub(super) fn in_bf16(mut self, bf16: bool) -> Self {
        self.bf16 = bf16;
        self
    }

    /// The same weights, every product of which `probe` sees, if there is one.
    pub(super) fn probed(mut self, probe: Option<Arc<dyn Probe>>) -> Self {
        self.probe = probe;
        self
    }

    /// The file that the weights are used from where they lie.
    pub(super) fn mapped_file(&self) -> Option<&Arc<MappedFile>> {
        self.map.as_ref()
    }

    /// The root of the part's names.
    pub fn root(&self) -> Names<'_> {
        Names { weights: self, path: String::new() }
    }

    /// The part's folder, or its file where it is one; for messages.
    pub fn place_of_part(&self) -> PathBuf {
        self.folder.join(&self.part)
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
            None => Err(Error::file(&self.place_of_part(), format!("tensor {name} is missing"))),
        }
    }

    /// Numbers in all tensors of the part.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|place| place.shape.iter().product::<usize>()).sum()
    }

    /// Bytes that all tensors of the part take.
    pub fn bytes(&self) -> u64 {
        let bytes = |place: &Place| (place.shape.iter().product::<usize>() * place.dtype.bitsize() / 8) as u64;
        self.tensors.values().map(bytes).sum()
    }

    /// # Errors
    /// Every tensor that was missing, misshapen, of an unreadable type or not finite.
    pub fn finish(self) -> Result<()> {
        let problems = self.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
        if problems.is_empty() { Ok(()) } else { Err(Error::Model { folder: self.folder, problems }) }
    }

    /// Records what is wrong with a tensor; only a failing disk ends the loading.
    fn noted<T>(&self, found: Result<T>, instead: impl FnOnce() -> Result<T>) -> Result<T> {
        match found {
            Err(Error::File { what, .. }) => {
                self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{}: {what}", self.part));
                instead()
            }
            other => other,
        }
    }

    fn get(&self, name: &str, shape: &Shape) -> Result<Tensor> {
        let target = self.target.clone().unwrap_or_default();
        let read = || Ok(Tensor::from_vec(self.read(name, shape.dims())?, shape, target.device())?);
        self.noted(read(), || Ok(Tensor::zeros(shape, DType::F32, target.device())?))
    }

    fn place(&self, name: &str, shape: &[usize]) -> Result<&Place> {
        let Some(place) = self.tensors.get(name) else {
            return Err(Error::file(&self.folder, format!("tensor {name} {shape:?} is missing")));
        };
        // a linear layer may be stored as a 1x1 convolution
        let as_linear =
            shape.len() == 2 && place.shape.len() == 4 && place.shape[..2] == *shape && place.shape[2..] == [1, 1];
        if place.shape != shape && !as_linear {
            let found = &place.shape;
            return Err(Error::file(&place.file, format!("tensor {name} has the shape {found:?}, wanted {shape:?}")));
        }
        Ok(place)
    }

    /// The values of a tensor of this shape, as f32.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let place = self.place(name, shape)?;
        let values = place.read(name)?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::file(&place.file, format!("tensor {name} holds values that are not finite")));
        }
        Ok(values)
    }

    /// The weight of `layer`; `read` makes it from the tensors of a model that is not a bundle.
    fn weight(
        &self,
        layer: String,
        outputs: usize,
        inputs: usize,
        read: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<LayerWeight> {
        let found = match &self.map {
            Some(map) => self.mapped(map, &layer, outputs, inputs),
            None => read().map(|values| match self.bf16 {
                true => Values::Bf16(values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>().into()),
                false => Values::F32(values.into()),
            }),
        };
        let values = self.noted(found, || Ok(Values::F32(vec![0.0; outputs * inputs].into())))?;
        let weight = Weight::new(outputs, inputs, values)?;
        let weight = Arc::new(match &self.target {
            Some(target) => weight.with_kernels(target.isa()),
            None => weight,
        });
        Ok(LayerWeight { layer: format!("{}.{layer}", self.part), weight, probe: self.probe.clone() })
    }

    fn mapped(&self, map: &Arc<MappedFile>, layer: &str, outputs: usize, inputs: usize) -> Result<Values> {
        let name = format!("{layer}.weight");
        let packing = match self.tensors.get(&name) {
            Some(Place { dtype: Dtype::I8, shape, .. }) if shape.len() == 4 => Packing::Panels,
            _ => Packing::Rows,
        };
        let place = self.place(&name, &packing.shape(outputs, inputs))?;
        Ok(match place.dtype {
            Dtype::F32 => Values::F32(place.numbers(map, &name)?),
            Dtype::F16 => Values::F16(place.numbers(map, &name)?),
            Dtype::BF16 => Values::Bf16(place.numbers(map, &name)?),
            Dtype::I8 => {
                let vector = |suffix: &str, length: usize| {
                    let name = format!("{name}_{suffix}");
                    let place = self.place(&name, &[length])?;
                    match place.dtype {
                        Dtype::F32 => place.numbers(map, &name),
                        other => Err(Error::file(&place.file, format!("tensor {name} is {other:?}, must be F32"))),
                    }
                };
                let smooth = self.tensors.get(&format!("{name}_smooth"));
                let channels = smooth.map(|place| if place.shape == [inputs] { inputs } else { inputs / 9 });
                Values::Int8(Int8 {
                    values: place.numbers(map, &name)?,
                    packing,
                    scales: vector("scale", outputs)?,
                    smooth: channels.map(|channels| vector("smooth", channels)).transpose()?,
                })
            }
            other => {
                let what = format!("tensor {name} is {other:?}; supported are F32, F16, BF16 and I8");
                return Err(Error::file(&place.file, what));
            }
        })
    }
}

impl Place {
    /// The values where they lie.
    fn numbers<T: Plain>(&self, map: &Arc<MappedFile>, name: &str) -> Result<Numbers<T>> {
        let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
        Numbers::mapped(map, offset, self.shape.iter().product()).ok_or_else(|| {
            Error::file(&self.file, format!("tensor {name} does not lie at a multiple of its values' size"))
        })
    }

    /// The values as f32.
    fn read(&self, name: &str) -> Result<Vec<f32>> {
        if values::width(self.dtype).is_none() {
            let what = format!("tensor {name} is {:?}; supported are {}", self.dtype, values::SUPPORTED);
            return Err(Error::file(&self.file, what));
        }
        let count = self.shape.iter().product();
        match &self.held {
            Some(bytes) => values::read_f32_from(&self.file, Cursor::new(&bytes[..]), 0, self.dtype, count),
            None => values::read_f32(&self.file, self.offset, self.dtype, count),
        }
    }
}

/// The weight files of a part.
pub(super) fn files(place: &Path, stem: &str) -> Result<Vec<PathBuf>> {
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

/// The places of a safetensors file's tensors, and its metadata.
type Header = (BTreeMap<String, Place>, HashMap<String, String>);

/// Reads the header only, from the start of a file of `length` bytes.
fn read_header(path: &Path, mut file: impl Read, length: u64) -> Result<Header> {
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
    let wanted = (8 + header).saturating_add(metadata.data_len() as u64);
    if wanted != length {
        return Err(Error::file(path, format!("{length} bytes long, its header wants {wanted}; it was cut off")));
    }
    let place = |info: &safetensors::tensor::TensorInfo| Place {
        file: path.to_path_buf(),
        offset: 8 + header + info.data_offsets.0 as u64,
        dtype: info.dtype,
        shape: info.shape.clone(),
        held: None,
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

    /// Where the network is to run: as was asked for, else on the processor.
    pub fn target(&self) -> Target {
        self.weights.target.clone().unwrap_or_default()
    }

    /// The tensor `name` here as f32 on the target, of exactly this shape.
    ///
    /// # Errors
    /// Only if reading the file fails; what is wrong with the tensor itself is reported by [`Weights::finish`].
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        self.weights.get(&self.pp(name).path, &shape.into())
    }

    /// The weight `[outputs, inputs]` of a linear layer, or of a 1x1 convolution.
    ///
    /// # Errors
    /// As [`Names::get`].
    pub fn matrix(&self, outputs: usize, inputs: usize) -> Result<LayerWeight> {
        let name = self.pp("weight").path;
        self.weights.weight(self.path.clone(), outputs, inputs, || self.weights.read(&name, &[outputs, inputs]))
    }

    /// A table `[rows, width]` that is looked up, never multiplied with.
    ///
    /// # Errors
    /// As [`Names::get`].
    pub fn table(&self, rows: usize, width: usize) -> Result<Arc<Weight>> {
        Ok(self.matrix(rows, width)?.weight)
    }

    /// The weight of a 3x3 convolution as `[outputs, (ky, kx, inputs)]`.
    ///
    /// # Errors
    /// As [`Names::get`].
    pub fn kernel3x3(&self, outputs: usize, inputs: usize) -> Result<LayerWeight> {
        let name = self.pp("weight").path;
        self.weights.weight(self.path.clone(), outputs, 9 * inputs, || {
            Ok(channels_last(&self.weights.read(&name, &[outputs, inputs, 3, 3])?, inputs))
        })
    }

    /// The weights of several layers that read the same input, `outputs` each, one below the other. A bundle has them as
    /// one layer under the name `joined`.
    ///
    /// # Errors
    /// As [`Names::get`].
    pub fn joined_matrix(&self, joined: &str, layers: &[&str], outputs: usize, inputs: usize) -> Result<LayerWeight> {
        self.weights.weight(self.pp(joined).path, layers.len() * outputs, inputs, || {
            let mut rows = Vec::with_capacity(layers.len() * outputs * inputs);
            for layer in layers {
                rows.extend(self.weights.read(&self.pp(layer).pp("weight").path, &[outputs, inputs])?);
            }
            Ok(rows)
        })
    }

    /// The biases of those layers, one behind the other.
    ///
    /// # Errors
    /// As [`Names::get`].
    pub fn joined_bias(&self, joined: &str, layers: &[&str], outputs: usize) -> Result<Tensor> {
        if self.weights.map.is_some() {
            return self.pp(joined).get("bias", layers.len() * outputs);
        }
        let biases: Vec<_> = layers.iter().map(|layer| self.pp(layer).get("bias", outputs)).collect::<Result<_>>()?;
        Ok(Tensor::cat(&biases, 0)?)
    }
}
