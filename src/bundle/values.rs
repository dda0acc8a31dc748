//! Numbers in a file, as f32, a piece at a time: no more memory than the numbers themselves.

use crate::{Error, Result};
use safetensors::Dtype;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Numbers decoded at once.
const CHUNK: usize = 1 << 16;
/// The types of [`width`], for messages.
pub(crate) const SUPPORTED: &str = "F32, F16, BF16 and F64";

/// Bytes of one number of a type that is read as f32; none for the types that are not.
pub(super) fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::F32 => Some(4),
        Dtype::F64 => Some(8),
        _ => None,
    }
}

/// `count` little-endian numbers from byte `offset` on. The type must be one that [`width`] knows, and the caller has
/// checked that the file is that long.
///
/// # Errors
/// If the file cannot be opened or ends early.
pub(super) fn read_f32(path: &Path, offset: u64, dtype: Dtype, count: usize) -> Result<Vec<f32>> {
    read_f32_from(path, File::open(path).map_err(Error::io(path))?, offset, dtype, count)
}

/// As [`read_f32`], from anything that holds a file's bytes; `path` is what messages call it.
///
/// # Errors
/// As [`read_f32`].
pub(super) fn read_f32_from(
    path: &Path,
    mut file: impl Read + Seek,
    offset: u64,
    dtype: Dtype,
    count: usize,
) -> Result<Vec<f32>> {
    let width = width(dtype).expect("the caller asks for types with a width");
    file.seek(SeekFrom::Start(offset)).map_err(Error::io(path))?;
    let mut values = Vec::with_capacity(count);
    let mut bytes = vec![0; count.min(CHUNK) * width];
    while values.len() < count {
        let piece = &mut bytes[..(count - values.len()).min(CHUNK) * width];
        file.read_exact(piece).map_err(Error::io(path))?;
        decode(dtype, piece, &mut values);
    }
    Ok(values)
}

/// Little-endian numbers in memory; none of a type that [`width`] does not know.
pub(crate) fn from_bytes(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let mut values = Vec::with_capacity(bytes.len() / width(dtype)?);
    decode(dtype, bytes, &mut values);
    Some(values)
}

fn decode(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    match dtype {
        Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => values.extend(bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => values.extend(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
        _ => values.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_from_its_place_over_the_edges_of_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers");
        let count = CHUNK + 3;
        // 1/4 steps below 64 are exact in every type, bfloat16's 8 bits of fraction included
        let number = |i: usize| (i % 256) as f32 / 4.0 - 32.0;
        for (dtype, encode) in [
            (Dtype::F32, (|v| v.to_le_bytes().to_vec()) as fn(f32) -> Vec<u8>),
            (Dtype::F64, |v| f64::from(v).to_le_bytes().to_vec()),
            (Dtype::F16, |v| half::f16::from_f32(v).to_le_bytes().to_vec()),
            (Dtype::BF16, |v| half::bf16::from_f32(v).to_le_bytes().to_vec()),
        ] {
            let mut bytes = vec![7; 5];
            bytes.extend((0..count).flat_map(|i| encode(number(i))));
            std::fs::write(&path, bytes).unwrap();
            let values = read_f32(&path, 5, dtype, count).unwrap();
            assert!(values.iter().enumerate().all(|(i, &v)| v == number(i)) && values.len() == count, "{dtype:?}");
            assert!(matches!(read_f32(&path, 6, dtype, count), Err(Error::Io { .. })), "{dtype:?} past the end");
        }
    }
}
