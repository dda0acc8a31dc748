//! A safetensors file written tensor by tensor, so that a model larger than memory can be written, with its checksum.

use crate::folder::write_synced;
use pleinair::bundle::manifest::{FileEntry, hexadecimal};
use pleinair::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// Where tensors begin: a cache line, which is the widest register as well.
const ALIGNMENT: usize = 64;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// The tensors in the order in which they lie in the file: int8, whose scales are known once it is written, then f32,
/// then f16. So each begins at a multiple of its numbers' width: int8 panels are multiples of 64 bytes, and what is missing
/// behind other int8 is filled up with a tensor named `padding`.
pub fn in_file_order(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| match entry.dtype {
        Dtype::I8 => 0,
        Dtype::F32 => 1,
        _ => 2,
    });
    let int8 = entries.iter().take_while(|entry| entry.dtype == Dtype::I8).count();
    let bytes: usize = entries[..int8].iter().map(Entry::bytes).sum();
    let missing = bytes.next_multiple_of(ALIGNMENT) - bytes;
    if missing > 0 {
        entries.insert(int8, Entry { name: "padding".into(), dtype: Dtype::U8, shape: vec![missing] });
    }
    entries
}

/// Writes `path`; `bytes(entry, sink)` gives each entry's numbers in little-endian, in one piece or several.
///
/// # Errors
/// Whatever `bytes` reports, or the disk.
pub fn write(
    path: &Path,
    entries: &[Entry],
    mut bytes: impl FnMut(&Entry, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<FileEntry> {
    let mut failure = None;
    let (mut sha, mut length) = (Sha256::new(), 0u64);
    let written = write_synced(path, |file| {
        let mut sink = |bytes: &[u8]| {
            sha.update(bytes);
            length += bytes.len() as u64;
            file.write_all(bytes)
        };
        let header = header(entries);
        sink(&(header.len() as u64).to_le_bytes())?;
        sink(&header)?;
        for entry in entries {
            let mut left = entry.bytes();
            let given = bytes(entry, &mut |bytes| {
                left = left.checked_sub(bytes.len()).expect("no more bytes than the entry has");
                sink(bytes).map_err(Error::io(path))
            });
            if let Err(error) = given {
                failure = Some(error);
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            assert_eq!(left, 0, "all bytes of {}", entry.name);
        }
        Ok(())
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    written?;
    Ok(FileEntry { bytes: length, sha256: hexadecimal(sha) })
}

/// The header in JSON, filled up so that the numbers begin at a multiple of 64 bytes.
fn header(entries: &[Entry]) -> Vec<u8> {
    let mut end = 0;
    let infos = entries.iter().map(|entry| {
        let start = end;
        end += entry.bytes();
        let info = TensorInfo { dtype: entry.dtype, shape: entry.shape.clone(), data_offsets: (start, end) };
        (entry.name.clone(), info)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]); // diffusers asks for it
    let metadata = Metadata::new(Some(format), infos.collect()).expect("tensors lie one behind the other");
    let mut json = serde_json::to_vec(&metadata).expect("names and numbers can be written as JSON");
    json.resize((8 + json.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, dtype: Dtype, shape: &[usize]) -> Entry {
        Entry { name: name.into(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn every_tensor_lies_where_a_map_can_use_it() {
        let entries = in_file_order(vec![
            entry("a", Dtype::F16, &[3]),
            entry("b", Dtype::I8, &[1, 16, 16, 4]),
            entry("c", Dtype::F32, &[5]),
            entry("d", Dtype::I8, &[1, 16, 16, 4]),
            entry("e", Dtype::I8, &[3, 3]),
        ]);
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["b", "d", "e", "padding", "c", "a"]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let filled = |entry: &Entry, sink: &mut dyn FnMut(&[u8]) -> Result<()>| {
            sink(&[1])?;
            sink(&vec![1; entry.bytes() - 1])
        };
        let written = write(&path, &entries, filled).unwrap();
        let file = std::fs::read(&path).unwrap();
        assert_eq!(written, FileEntry::of(&path).unwrap());
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        for (name, alignment) in [("c", 64), ("a", 2), ("b", 64), ("d", 64)] {
            let offset = tensors.tensor(name).unwrap().data().as_ptr() as usize - file.as_ptr() as usize;
            assert!(offset.is_multiple_of(alignment), "{name} at {offset}");
        }
    }

    #[test]
    fn a_failure_on_the_way_is_reported_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let failing = |_: &Entry, _: &mut dyn FnMut(&[u8]) -> Result<()>| Err(Error::Interrupted);
        let error = write(&folder.path().join("x"), &[entry("a", Dtype::F32, &[1])], failing).unwrap_err();
        assert!(matches!(error, Error::Interrupted));
    }
}
