//! Writing what `torch.load(weights_only=True)` reads: the zip form, protocol 2, nothing in it but dictionaries, text,
//! whole numbers and contiguous f32 tensors.

use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A value to be saved.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// `None`.
    None,
    /// An integer.
    Int(i64),
    /// Text.
    Str(String),
    /// A dictionary, keys in this order.
    Dict(Vec<(String, Item)>),
    /// A tensor: its shape, and its numbers row by row.
    Tensor(Vec<usize>, Vec<f32>),
}

/// The bytes that `torch.save(item)` could have written; the same item gives the same bytes.
///
/// # Errors
/// If a tensor's shape and numbers do not agree, or anything is too large for the form.
pub fn write(item: &Item) -> std::io::Result<Vec<u8>> {
    let mut pickler = Pickler { pickle: vec![0x80, 2], storages: vec![] };
    pickler.item(item)?;
    pickler.pickle.push(b'.');
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), stored).map_err(std::io::Error::other)?;
        zip.write_all(bytes)
    };
    entry("data.pkl", &pickler.pickle)?;
    for (number, numbers) in pickler.storages.iter().enumerate() {
        let bytes: Vec<u8> = numbers.iter().flat_map(|value| value.to_le_bytes()).collect();
        entry(&format!("data/{number}"), &bytes)?;
    }
    // of the form; 3 is what every torch since 1.6 writes and reads
    entry("version", b"3\n")?;
    Ok(zip.finish().map_err(std::io::Error::other)?.into_inner())
}

/// Puts opcodes together (names as in Python's `pickletools`).
struct Pickler<'a> {
    pickle: Vec<u8>,
    storages: Vec<&'a [f32]>,
}

impl<'a> Pickler<'a> {
    fn item(&mut self, item: &'a Item) -> std::io::Result<()> {
        match item {
            Item::None => self.pickle.push(b'N'),
            Item::Int(number) => self.int(*number)?,
            Item::Str(text) => self.text(text)?,
            Item::Dict(items) => {
                self.pickle.extend(b"}("); // EMPTY_DICT, MARK
                for (key, value) in items {
                    self.text(key)?;
                    self.item(value)?;
                }
                self.pickle.push(b'u'); // SETITEMS
            }
            Item::Tensor(shape, numbers) => self.tensor(shape, numbers)?,
        }
        Ok(())
    }

    /// BININT, or LONG1 for what does not fit.
    fn int(&mut self, number: i64) -> std::io::Result<()> {
        match i32::try_from(number) {
            Ok(number) => {
                self.pickle.push(b'J');
                self.pickle.extend(number.to_le_bytes());
            }
            Err(_) => {
                self.pickle.extend([0x8a, 8]);
                self.pickle.extend(number.to_le_bytes());
            }
        }
        Ok(())
    }

    /// BINUNICODE.
    fn text(&mut self, text: &str) -> std::io::Result<()> {
        let length = u32::try_from(text.len()).map_err(std::io::Error::other)?;
        self.pickle.push(b'X');
        self.pickle.extend(length.to_le_bytes());
        self.pickle.extend(text.as_bytes());
        Ok(())
    }

    /// `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`
    fn tensor(&mut self, shape: &[usize], numbers: &'a [f32]) -> std::io::Result<()> {
        if shape.iter().product::<usize>() != numbers.len() {
            return Err(std::io::Error::other(format!("{} numbers in the shape {shape:?}", numbers.len())));
        }
        self.pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(("); // GLOBAL, two MARKs
        self.text("storage")?;
        self.pickle.extend(b"ctorch\nFloatStorage\n");
        self.text(&self.storages.len().to_string())?;
        self.text("cpu")?;
        self.int(numbers.len() as i64)?;
        self.pickle.extend(b"tQ"); // TUPLE, BINPERSID
        self.int(0)?;
        self.dimensions(shape.iter().copied())?;
        let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
        self.dimensions(strides)?;
        self.pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR"); // NEWFALSE, an empty dictionary of hooks, REDUCE
        self.storages.push(numbers);
        Ok(())
    }

    fn dimensions(&mut self, sizes: impl Iterator<Item = usize>) -> std::io::Result<()> {
        self.pickle.push(b'(');
        for size in sizes {
            self.int(i64::try_from(size).map_err(std::io::Error::other)?)?;
        }
        self.pickle.push(b't');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Checkpoint, Value};
    use super::*;
    use std::path::Path;

    #[test]
    fn what_is_written_is_read_again() {
        let numbers: Vec<f32> = (0..6).map(|i| i as f32 / 3.0).collect();
        let item = Item::Dict(vec![
            ("none".into(), Item::None),
            ("big".into(), Item::Int(-(1 << 40))),
            ("inner".into(), Item::Dict(vec![("*".into(), Item::Tensor(vec![2, 3], numbers.clone()))])),
            ("näme".into(), Item::Str("ä".into())),
            ("empty".into(), Item::Dict(vec![])),
            ("flat".into(), Item::Tensor(vec![1], vec![-0.0])),
        ]);
        let bytes = write(&item).unwrap();
        assert_eq!(bytes, write(&item).unwrap());
        let checkpoint = Checkpoint::from_file(Path::new("memory"), Cursor::new(&bytes)).unwrap();
        let Value::Dict(root) = checkpoint.root() else { panic!() };
        assert!(matches!(root.get("none"), Some(Value::None)));
        assert!(matches!(root.get("big"), Some(Value::Int(n)) if n == -(1 << 40)));
        assert!(matches!(root.get("näme"), Some(Value::Str("ä"))));
        let Some(Value::Dict(inner)) = root.get("inner") else { panic!() };
        let Some(Value::Tensor(place)) = inner.get("*") else { panic!() };
        assert_eq!((place.shape(), place.strides()), (&[2, 3][..], &[3, 1][..]));
        assert_eq!(checkpoint.read_f32_from(Cursor::new(&bytes), place).unwrap(), numbers);
        assert!(write(&Item::Tensor(vec![2], vec![1.0])).is_err());
    }
}
