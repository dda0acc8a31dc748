//! Checkpoints written by `torch.save` (`.ckpt`, `.pth`, `.pt`, `.bin`), read as data: a pickle is a program, and this
//! one is never executed. The zip form of torch 1.6 and later, whose entries are stored, not compressed: `data.pkl` says
//! which tensors there are, `data/0`, `data/1`, ... hold their numbers, which are read one tensor at a time. And the form
//! before that ([`old`]).

mod machine;
mod old;
mod write;

pub use write::{Item, write};

use super::values;
use crate::{Error, Result};
use machine::{Id, Node, Program, View};
use safetensors::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use zip::{CompressionMethod, ZipArchive};

/// A `data.pkl` larger than this is no list of tensors; that of Stable Diffusion 1.5 has about half a megabyte.
const LARGEST_PICKLE: u64 = 64 << 20;
/// Containers within containers that [`Checkpoint::tensors`] looks into.
const DEEPEST: usize = 16;
/// Items of containers that [`Checkpoint::tensors`] looks at; those of a shared container count each time it is met. The
/// training state of Stable Diffusion 1.5 has about 10,000.
const MOST_ITEMS: usize = 1 << 18;
/// Bytes of a tensor's name; a shared container gives its tensors a name each time it is met.
const LONGEST_NAME: usize = 256;
/// How a file begins that torch before 1.6 wrote: a pickle of its magic number.
const OLD_TORCH: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";
/// The remedy for files of another form.
const SAVE_AGAIN: &str = "load it with a current torch and save it again, or save it as safetensors";

/// An opened checkpoint: what its pickle says, and where its tensors lie. No tensor is loaded yet. Several threads may
/// read from it at once.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    program: Program,
    tensors: HashMap<Id, TensorPlace>,
}

/// Where one tensor lies in the file, checked to be within it.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPlace {
    offset: u64,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// A value in a checkpoint.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of up to 64 bits.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// A list or a tuple.
    List(List<'a>),
    /// A dictionary, ordered or not.
    Dict(Dict<'a>),
    /// A tensor.
    Tensor(&'a TensorPlace),
    /// An object that is not interpreted, by the name of its class or of the function that would make it.
    Unknown(&'a str),
}

/// A list or a tuple of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct List<'a> {
    checkpoint: &'a Checkpoint,
    items: &'a [Id],
}

/// A dictionary of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Dict<'a> {
    checkpoint: &'a Checkpoint,
    items: &'a [(Id, Id)],
}

impl Checkpoint {
    /// Reads what the checkpoint holds, and checks that every tensor lies within the file.
    ///
    /// # Errors
    /// If it is not a checkpoint in torch's zip form, compressed, big-endian or damaged.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Self::from_file(path, File::open(path).map_err(Error::io(path))?)
    }

    /// As [`Checkpoint::open`], from anything that holds a file's bytes. `path` is what messages call it, and where
    /// [`Checkpoint::read_f32`] looks for numbers.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_file(path: &Path, mut file: impl Read + Seek) -> Result<Checkpoint> {
        let fault = |what: String| Error::file(path, what);
        let mut start = [0; OLD_TORCH.len()];
        let length = read_start(&mut file, &mut start).map_err(Error::io(path))?;
        if start == OLD_TORCH {
            let (program, storages) = old::read(path, &mut file)?;
            return Checkpoint::of(path, program, &storages);
        }
        if !start[..length].starts_with(b"PK") {
            return Err(fault(format!("no checkpoint of torch; {SAVE_AGAIN}")));
        }
        let mut archive = Archive::open(path, file)?;
        let pickle = archive.bytes(&archive.pickle.clone(), LARGEST_PICKLE)?;
        let program = machine::run(&pickle).map_err(|what| fault(format!("a damaged checkpoint: {what}")))?;
        Checkpoint::of(path, program, &archive.storages())
    }

    /// Checks that every tensor lies within its storage.
    fn of(path: &Path, program: Program, storages: &Storages) -> Result<Checkpoint> {
        let mut tensors = HashMap::new();
        for (id, node) in program.nodes.iter().enumerate() {
            if let Node::Tensor(view) = node
                && let Some(place) = place(&program, view, storages).map_err(|what| Error::file(path, what))?
            {
                tensors.insert(id as Id, place);
            }
        }
        Ok(Checkpoint { path: path.to_path_buf(), program, tensors })
    }

    /// What was saved, mostly a dictionary.
    pub fn root(&self) -> Value<'_> {
        self.value(self.program.root)
    }

    /// The tensors by name: of `state_dict` where there is one, else of the whole file. Names of nested dictionaries
    /// are joined by dots.
    ///
    /// # Errors
    /// If containers are nested or shared to an extent that no checkpoint has.
    pub fn tensors(&self) -> Result<BTreeMap<String, TensorPlace>> {
        let mut found = BTreeMap::new();
        let mut left = MOST_ITEMS;
        let root = match self.root() {
            Value::Dict(dict) => match dict.get("state_dict") {
                Some(inner @ Value::Dict(_)) => inner,
                _ => Value::Dict(dict),
            },
            other => other,
        };
        match flatten(root, "", 0, &mut left, &mut found) {
            true => Ok(found),
            false => Err(Error::file(&self.path, "holds containers without end; it is damaged or malicious")),
        }
    }

    /// A tensor's values as f32, row by row as PyTorch's `contiguous()` has them.
    ///
    /// # Errors
    /// If its type is not a floating-point number of 16, 32 or 64 bits, or the file cannot be read any more.
    pub fn read_f32(&self, tensor: &TensorPlace) -> Result<Vec<f32>> {
        self.read_f32_from(File::open(&self.path).map_err(Error::io(&self.path))?, tensor)
    }

    /// As [`Checkpoint::read_f32`], from the bytes that [`Checkpoint::from_file`] was given.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    pub fn read_f32_from(&self, file: impl Read + Seek, tensor: &TensorPlace) -> Result<Vec<f32>> {
        if values::width(tensor.dtype).is_none() {
            let what = format!("holds {:?} numbers; supported are {}", tensor.dtype, values::SUPPORTED);
            return Err(Error::file(&self.path, what));
        }
        let span = values::read_f32_from(&self.path, file, tensor.offset, tensor.dtype, tensor.span())?;
        Ok(if tensor.is_contiguous() { span } else { tensor.gather(&span) })
    }

    fn value(&self, id: Id) -> Value<'_> {
        match &self.program.nodes[id as usize] {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Float(value) => Value::Float(*value),
            Node::Str(text) => Value::Str(text),
            Node::Tuple(items) | Node::List(items) => Value::List(List { checkpoint: self, items }),
            Node::Dict(items) => Value::Dict(Dict { checkpoint: self, items }),
            Node::Global(name) | Node::Unknown(name) => Value::Unknown(name),
            Node::Storage(storage) => Value::Unknown(&storage.key),
            Node::Tensor(_) => match self.tensors.get(&id) {
                Some(place) => Value::Tensor(place),
                None => Value::Unknown("a tensor of an unknown type"),
            },
        }
    }
}

/// Adds the tensors in `value`; false when a limit is reached.
fn flatten(
    value: Value<'_>,
    name: &str,
    depth: usize,
    left: &mut usize,
    found: &mut BTreeMap<String, TensorPlace>,
) -> bool {
    let items = match value {
        Value::Dict(dict) => dict.items.len(),
        Value::List(list) => list.items.len(),
        _ => 0,
    };
    match left.checked_sub(items) {
        Some(rest) if depth <= DEEPEST => *left = rest,
        _ => return false,
    }
    let mut below = |key: &str, item| match name.len() + key.len() < LONGEST_NAME {
        true if name.is_empty() => flatten(item, key, depth + 1, left, found),
        true => flatten(item, &format!("{name}.{key}"), depth + 1, left, found),
        false => false,
    };
    match value {
        Value::Tensor(place) => {
            found.insert(name.to_string(), place.clone());
            true
        }
        Value::Dict(dict) => dict.iter().all(|(key, item)| match key {
            Value::Str(key) => below(key, item),
            Value::Int(key) => below(&key.to_string(), item),
            _ => true,
        }),
        Value::List(list) => list.iter().enumerate().all(|(i, item)| below(&i.to_string(), item)),
        _ => true,
    }
}

impl<'a> List<'a> {
    /// The items in order.
    pub fn iter(self) -> impl Iterator<Item = Value<'a>> {
        self.items.iter().map(move |&item| self.checkpoint.value(item))
    }
}

impl<'a> Dict<'a> {
    /// Keys and values in the order they were saved.
    pub fn iter(self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> {
        self.items.iter().map(move |&(key, value)| (self.checkpoint.value(key), self.checkpoint.value(value)))
    }

    /// The value of a key that is text.
    pub fn get(self, wanted: &str) -> Option<Value<'a>> {
        let is_wanted = |&&(key, _): &&(Id, Id)| matches!(self.checkpoint.value(key), Value::Str(key) if key == wanted);
        self.items.iter().rfind(is_wanted).map(|&(_, value)| self.checkpoint.value(value))
    }
}

impl TensorPlace {
    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How its values are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Byte of the file at which its first value lies.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Elements from one value to the next along each dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Elements from its first value to its last in the file, both included.
    fn span(&self) -> usize {
        match self.shape.contains(&0) {
            true => 0,
            false => 1 + self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>(),
        }
    }

    fn is_contiguous(&self) -> bool {
        let mut wanted = 1;
        self.shape.contains(&0)
            || self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == wanted;
                wanted *= size;
                fits
            })
    }

    /// The values row by row, out of `span`.
    fn gather(&self, span: &[f32]) -> Vec<f32> {
        let count = self.shape.iter().product();
        let (mut values, mut index, mut at) = (Vec::with_capacity(count), vec![0; self.shape.len()], 0);
        for _ in 0..count {
            values.push(span[at]);
            for axis in (0..index.len()).rev() {
                (index[axis], at) = (index[axis] + 1, at + self.strides[axis]);
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= index[axis] * self.strides[axis];
                index[axis] = 0;
            }
        }
        values
    }
}

/// The entries of a checkpoint's zip file: name, first byte, length.
struct Archive<'a, F> {
    path: &'a Path,
    file: BufReader<F>,
    entries: HashMap<String, (u64, u64)>,
    /// The entry with the pickle.
    pickle: String,
}

impl<'a, F: Read + Seek> Archive<'a, F> {
    fn open(path: &'a Path, mut file: F) -> Result<Self> {
        let fault = |what: String| Error::file(path, what);
        let damaged = |e: &dyn std::fmt::Display| fault(format!("a damaged zip file: {e}; get the file again"));
        let length = file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(&e))?;
        let mut entries = HashMap::new();
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(|e| damaged(&e))?;
            let name = entry.name().map_err(|e| damaged(&e))?.into_owned();
            if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
                return Err(fault(format!("its entry {name} is compressed or encrypted; {SAVE_AGAIN}")));
            }
            let start = entry.data_start().ok_or_else(|| damaged(&"an entry without a place"))?;
            if start.checked_add(entry.size()).is_none_or(|end| end > length) {
                return Err(damaged(&format!("its entry {name} ends after the file; it was cut off")));
            }
            entries.insert(name, (start, entry.size()));
        }
        let pickle = entries.keys().filter(|name| name.ends_with("/data.pkl")).min_by_key(|name| name.len()).cloned();
        let pickle = pickle.ok_or_else(|| fault("a zip file, but no checkpoint of torch: no data.pkl in it".into()))?;
        let mut archive = Archive { path, file: zip.into_inner(), entries, pickle };
        let byteorder = archive.name("byteorder");
        if archive.entries.contains_key(&byteorder) && archive.bytes(&byteorder, 16)? != b"little" {
            return Err(fault(format!("its numbers are big-endian; {SAVE_AGAIN}")));
        }
        Ok(archive)
    }

    /// An entry beside the pickle.
    fn name(&self, entry: &str) -> String {
        format!("{}{entry}", self.pickle.trim_end_matches("data.pkl"))
    }

    fn bytes(&mut self, name: &str, most: u64) -> Result<Vec<u8>> {
        let (start, size) = self.entries[name];
        if size > most {
            return Err(Error::file(self.path, format!("its entry {name} has {size} bytes, too many for its kind")));
        }
        let mut bytes = vec![0; size as usize];
        self.file.seek(SeekFrom::Start(start)).map_err(Error::io(self.path))?;
        self.file.read_exact(&mut bytes).map_err(Error::io(self.path))?;
        Ok(bytes)
    }

    /// Where the numbers lie, by the names that the pickle has for them.
    fn storages(&self) -> Storages {
        let prefix = self.name("data/");
        let storage = |(name, &place): (&String, &(u64, u64))| Some((name.strip_prefix(&prefix)?.to_owned(), place));
        self.entries.iter().filter_map(storage).collect()
    }
}

/// First byte and length of each storage, by its key.
type Storages = HashMap<String, (u64, u64)>;

/// A tensor's place in the file; none for types that no tensor here has.
fn place(program: &Program, view: &View, storages: &Storages) -> Result<Option<TensorPlace>, String> {
    let Node::Storage(storage) = &program.nodes[view.storage as usize] else {
        return Err("a damaged checkpoint: a tensor without a storage".into());
    };
    let Some(dtype) = storage.dtype else { return Ok(None) };
    let entry = format!("data/{}", storage.key);
    let &(start, bytes) =
        storages.get(&*storage.key).ok_or_else(|| format!("a damaged checkpoint: no {entry} in it"))?;
    let width = (dtype.bitsize() / 8) as u64;
    let within = |elements: u64| elements <= bytes / width;
    let outside = || format!("a damaged checkpoint: a tensor {:?} reaches beyond its storage {entry}", view.shape);
    let product = view.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64));
    let count = product.ok_or_else(outside)?;
    let last = view.shape.iter().zip(&view.strides).try_fold(view.offset, |at, (&size, &stride)| {
        at.checked_add((size as u64).saturating_sub(1).checked_mul(stride as u64)?)
    });
    let first = match count {
        0 => 0,
        _ if last.is_some_and(|last| last < u64::MAX && within(last + 1)) => view.offset,
        _ => return Err(outside()),
    };
    if !within(count) {
        let what = "repeats its values (an expanded view); save it again with .contiguous()";
        return Err(format!("a tensor {:?} in {entry} {what}", view.shape));
    }
    let (shape, strides) = (view.shape.clone(), view.strides.clone());
    Ok(Some(TensorPlace { offset: start + first * width, dtype, shape, strides }))
}

/// The first bytes of a file, as many as there are up to the length of `start`.
fn read_start(file: &mut (impl Read + Seek), start: &mut [u8]) -> std::io::Result<usize> {
    file.rewind()?;
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            n => length += n,
        }
    }
    file.rewind()?;
    Ok(length)
}
