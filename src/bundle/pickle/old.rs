//! What torch before 1.6 wrote, and later ones on request: pickles of a magic number, a protocol version, the machine,
//! what was saved and the list of its storages, and then each storage as its length and its numbers.

use super::machine::{self, Node, Program};
use super::{LARGEST_PICKLE, SAVE_AGAIN, Storages};
use crate::{Error, Result};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Pickles before the one with what was saved.
const BEFORE: usize = 3;

/// What was saved, and where its storages lie.
///
/// # Errors
/// If the file is damaged or of a machine that is not little-endian.
pub(super) fn read(path: &Path, file: &mut (impl Read + Seek)) -> Result<(Program, Storages)> {
    let fault = |what: String| Error::file(path, what);
    let damaged = |what: String| Error::file(path, format!("a damaged checkpoint: {what}"));
    let length = file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
    file.rewind().map_err(Error::io(path))?;
    let mut bytes = vec![];
    file.by_ref().take(LARGEST_PICKLE).read_to_end(&mut bytes).map_err(Error::io(path))?;

    let mut at = 0;
    let mut next = || {
        let (program, taken) = machine::run_first(&bytes[at..]).map_err(damaged)?;
        at += taken;
        Ok::<_, Error>(program)
    };
    let before = (0..BEFORE).map(|_| next()).collect::<Result<Vec<_>>>()?;
    if !is_little_endian(&before[2]) {
        return Err(fault(format!("its numbers are big-endian; {SAVE_AGAIN}")));
    }
    let (program, keys) = (next()?, next()?);
    let mut start = at as u64;
    let mut storages = HashMap::new();
    let Node::List(listed) = &keys.nodes[keys.root as usize] else {
        return Err(damaged("no list of its storages".into()));
    };
    let widths = widths(&program);
    for &key in listed {
        let Node::Str(key) = &keys.nodes[key as usize] else {
            return Err(damaged("a storage without a name".into()));
        };
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(start)).map_err(Error::io(path))?;
        file.read_exact(&mut count).map_err(|_| damaged(format!("no data/{key} in it; it was cut off")))?;
        let width = widths.get(&**key).copied().unwrap_or(1);
        let size = u64::from_le_bytes(count).checked_mul(width);
        let end = size.and_then(|size| (start + 8).checked_add(size)).filter(|end| *end <= length);
        let end = end.ok_or_else(|| damaged(format!("its storage {key} ends after the file; it was cut off")))?;
        storages.insert(key.to_string(), (start + 8, end - start - 8));
        start = end;
    }
    Ok((program, storages))
}

/// Bytes of a number in each storage that a tensor is in.
fn widths(program: &Program) -> HashMap<&str, u64> {
    program
        .nodes
        .iter()
        .filter_map(|node| match node {
            Node::Storage(storage) => {
                Some((&*storage.key, storage.dtype.map_or(1, |dtype| dtype.bitsize() as u64 / 8)))
            }
            _ => None,
        })
        .collect()
}

fn is_little_endian(machine: &Program) -> bool {
    let Node::Dict(items) = &machine.nodes[machine.root as usize] else { return true };
    let says = |&(key, value): &(u32, u32)| {
        let is_key = matches!(&machine.nodes[key as usize], Node::Str(key) if &**key == "little_endian");
        is_key.then(|| machine.nodes[value as usize].clone())
    };
    !matches!(items.iter().find_map(says), Some(Node::Bool(false)))
}
