//! One network of a bundle: which pieces it has, how each is stored, and the writing of its file, piece by piece.

use crate::int8;
use crate::layers::{Piece, pieces};
use crate::rules::{Choice, Rule, choose};
use crate::tensors::{Role, TensorSpec};
use crate::writer::{self, Entry};
use pleinair::bundle::manifest::{Dtype, FileEntry, Layer};
use pleinair::bundle::weights::{Packing, channels_last, pack};
use pleinair::{Error, Result};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

/// A network that is about to be written.
#[derive(Debug)]
pub struct Network {
    /// Its name: `unet`, `controlnet` or `text_encoder`.
    pub part: &'static str,
    pieces: Vec<Piece>,
    /// By layer, for those that are multiplied with something.
    choices: BTreeMap<String, Choice>,
    /// By layer; see [`pleinair::bundle::weights::Int8::smooth`].
    smooth: HashMap<String, Vec<f32>>,
    /// By layer: what one measured.
    psnr: HashMap<String, f64>,
    asked: Dtype,
    packing: Packing,
}

impl Network {
    /// A network with these tensors, stored as `asked` unless a rule or the defaults say otherwise.
    pub fn new(part: &'static str, tensors: &[TensorSpec], asked: Dtype, rules: &[Rule], packing: Packing) -> Network {
        let pieces = pieces(tensors);
        let matrices = pieces.iter().filter(|piece| piece.is_matrix());
        let choice = |piece: &Piece| (piece.layer.clone(), choose(&format!("{part}.{}", piece.layer), asked, rules));
        let choices = matrices.map(choice).collect();
        let (smooth, psnr) = Default::default();
        Network { part, pieces, choices, smooth, psnr, asked, packing }
    }

    /// How its int8 layers are laid out.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Its layers by full name, such as `unet.conv_in`.
    pub fn layers(&self) -> impl Iterator<Item = String> {
        self.choices.keys().map(|layer| format!("{}.{layer}", self.part))
    }

    /// The pieces that will be int8 and that a measurement may still keep finer.
    pub fn open_pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(|piece| {
            let choice = piece.is_matrix().then(|| self.choices.get(&piece.layer)).flatten();
            choice.is_some_and(|choice| choice.open && choice.dtype == Dtype::Int8)
        })
    }

    /// Divides the layer's input, and multiplies its weight, channel by channel.
    pub fn smooth(&mut self, layer: &str, by: Vec<f32>) {
        self.smooth.insert(layer.to_owned(), by);
    }

    /// Notes what the layer alone costs, and keeps it as f16 for that reason if there is one.
    pub fn measured(&mut self, layer: &str, psnr: f64, kept: Option<String>) {
        if psnr.is_finite() {
            self.psnr.insert(layer.to_owned(), psnr);
        }
        if let (Some(reason), Some(choice)) = (kept, self.choices.get_mut(layer)) {
            *choice = Choice { dtype: Dtype::F16, kept: Some(reason), open: false };
            self.smooth.remove(layer);
        }
    }

    /// What the manifest says of its layers.
    pub fn manifest(&self) -> BTreeMap<String, Layer> {
        let matrices = self.pieces.iter().filter(|piece| piece.is_matrix());
        let layer = |piece: &Piece| {
            let Choice { dtype, kept, .. } = self.choices[&piece.layer].clone();
            let psnr = self.psnr.get(&piece.layer).copied();
            (piece.layer.clone(), Layer { shape: piece.joined_shape(), dtype, kept, psnr })
        };
        matrices.map(layer).collect()
    }

    /// Number of values.
    pub fn parameters(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.parameters() as u64).sum()
    }

    fn dtype(&self, piece: &Piece) -> Dtype {
        match self.choices.get(&piece.layer) {
            Some(choice) if piece.is_matrix() => choice.dtype,
            _ if self.asked == Dtype::F32 => Dtype::F32,
            _ => Dtype::F16,
        }
    }

    /// What the file will hold, and the pieces in the order in which it needs them.
    fn entries(&self) -> (Vec<Entry>, Vec<&Piece>) {
        let mut entries = vec![];
        let mut by_name = HashMap::new();
        for piece in &self.pieces {
            let (name, dtype) = (piece.name(), self.dtype(piece));
            let packing = if dtype == Dtype::Int8 { self.packing } else { Packing::Rows };
            let entry = |name, dtype, shape| Entry { name, dtype, shape };
            if dtype == Dtype::Int8 {
                entries.push(entry(format!("{name}_scale"), safetensors::Dtype::F32, vec![piece.outputs()]));
                if let Some(smooth) = self.smooth.get(&piece.layer) {
                    entries.push(entry(format!("{name}_smooth"), safetensors::Dtype::F32, vec![smooth.len()]));
                }
            }
            by_name.insert(name.clone(), piece);
            entries.push(entry(name, stored_as(dtype), piece.stored_shape(packing)));
        }
        let entries = writer::in_file_order(entries);
        let order = entries.iter().filter_map(|entry| by_name.get(&entry.name).copied()).collect();
        (entries, order)
    }

    /// Writes the file. `read` gives the values of a tensor of the model; it is called from another thread, one piece
    /// ahead of the writing.
    ///
    /// # Errors
    /// Whatever `read` reports, [`Error::Interrupted`], a value that the type cannot hold, or the disk.
    pub fn write(
        &self,
        path: &Path,
        read: &(dyn Fn(&str) -> Result<Vec<f32>> + Sync),
        interrupted: &AtomicBool,
    ) -> Result<FileEntry> {
        let (entries, order) = self.entries();
        std::thread::scope(|scope| {
            let (ahead, pieces) = sync_channel(1);
            scope.spawn(move || {
                for piece in order {
                    if ahead.send((piece, rows(piece, read))).is_err() {
                        break; // the writer has failed and said so
                    }
                }
            });
            // of the int8 pieces already written
            let mut vectors: HashMap<String, Vec<f32>> = HashMap::new();
            writer::write(path, &entries, |entry, sink| {
                if interrupted.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                if let Some(vector) = vectors.remove(&entry.name) {
                    return in_pieces(&vector, f32::to_le_bytes, sink);
                }
                if entry.dtype == safetensors::Dtype::U8 {
                    return sink(&vec![0; entry.bytes()]);
                }
                let (piece, rows) = pieces.recv().expect("a piece for each entry");
                let rows = rows?;
                match self.dtype(piece) {
                    Dtype::F32 => in_pieces(&rows, f32::to_le_bytes, sink),
                    Dtype::F16 => {
                        self.check_f16(&rows, piece)?;
                        in_pieces(&rows, |value| half::f16::from_f32(value).to_le_bytes(), sink)
                    }
                    Dtype::Bf16 => in_pieces(&rows, |value| half::bf16::from_f32(value).to_le_bytes(), sink),
                    Dtype::Int8 => {
                        let smooth = self.smooth.get(&piece.layer);
                        let (values, scales) = int8::quantise(&rows, piece.inputs(), smooth.map(Vec::as_slice));
                        drop(rows);
                        vectors.insert(format!("{}_scale", entry.name), scales);
                        if let Some(smooth) = smooth {
                            vectors.insert(format!("{}_smooth", entry.name), smooth.clone());
                        }
                        let values = match self.packing {
                            Packing::Rows => values,
                            Packing::Panels => pack::pack(&values, piece.outputs(), piece.inputs()),
                        };
                        in_pieces(&values, |q| [q as u8], sink)
                    }
                }
            })
        })
    }
}

impl Network {
    /// Whether f16 can hold the values; beyond half a step above its largest number it has only infinity.
    fn check_f16(&self, values: &[f32], piece: &Piece) -> Result<()> {
        if values.par_iter().all(|v| v.abs() < 65520.0) {
            return Ok(());
        }
        let remedy = match piece.role {
            Role::Weight => format!("keep the layer with --keep '{}.{}=f32'", self.part, piece.layer),
            _ => "convert with --dtype f32".to_owned(),
        };
        Err(Error::Usage(format!("{}.{} has values beyond f16's 65504; {remedy}", self.part, piece.name())))
    }
}

/// The values of a piece, `[outputs, inputs]`; a 3x3 convolution's with the channels last.
///
/// # Errors
/// Whatever `read` reports, or a value that is not finite.
pub fn rows(piece: &Piece, read: &dyn Fn(&str) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    let mut rows = vec![];
    for source in &piece.sources {
        let values = read(source)?;
        if !values.par_iter().all(|v| v.is_finite()) {
            let remedy = "the checkpoint is damaged; get it again".to_owned();
            return Err(Error::NotFinite { what: format!("a value of {source}"), remedy });
        }
        match rows.is_empty() {
            true => rows = values,
            false => rows.extend(values),
        }
    }
    Ok(if piece.is_kernel() { channels_last(&rows, piece.shape[1]) } else { rows })
}

fn stored_as(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::Int8 => safetensors::Dtype::I8,
    }
}

/// Numbers as little-endian bytes, a piece at a time: no second copy of a whole tensor.
pub(crate) fn in_pieces<T: Copy, const N: usize>(
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut piece = Vec::with_capacity(N << 16);
    for values in values.chunks(1 << 16) {
        piece.clear();
        piece.extend(values.iter().flat_map(|&value| bytes(value)));
        sink(&piece)?;
    }
    Ok(())
}
