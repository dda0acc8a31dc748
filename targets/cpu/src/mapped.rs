//! Files mapped into memory, and runs of numbers that lie in one.

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

#[cfg(target_endian = "big")]
compile_error!("bundles are little-endian and are used as they lie on the disk");

/// A whole file, mapped read-only. Pages are read when first touched and can be dropped by the system at any time.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = File::open(path)?;
        // SAFETY: the map is only ever read as plain numbers, every bit pattern of which is a value. Should another program
        // cut the file off meanwhile, the system ends this one (SIGBUS); bundles are replaced by renaming, never in place.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Arc::new(MappedFile(map)))
    }

    /// Gives the memory of its pages back until they are read again, from the system's cache if they are still there.
    ///
    /// # Errors
    /// What the system says.
    pub fn release(&self) -> io::Result<()> {
        #[cfg(unix)]
        // SAFETY: the map is read-only and never written, so its pages hold what the file does; they come back unchanged.
        unsafe {
            self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed)?;
        }
        Ok(())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// Number types whose every bit pattern is a value.
pub trait Plain: Copy + Send + Sync + sealed::Sealed + 'static {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($t:ty)*) => { $(impl sealed::Sealed for $t {} impl Plain for $t {})* };
}
plain!(f32 half::f16 half::bf16 i8);

/// A run of numbers, owned or in a mapped file.
#[derive(Debug, Clone)]
pub struct Numbers<T: Plain>(Place<T>);

#[derive(Debug, Clone)]
enum Place<T> {
    Owned(Arc<Vec<T>>),
    Mapped { file: Arc<MappedFile>, offset: usize, len: usize },
}

impl<T: Plain> Numbers<T> {
    /// `len` numbers that begin `offset` bytes into the file; `None` if they do not lie inside it or not at a multiple of
    /// their own size.
    pub fn mapped(file: &Arc<MappedFile>, offset: usize, len: usize) -> Option<Self> {
        let end = len.checked_mul(size_of::<T>())?.checked_add(offset)?;
        let address = file.bytes().as_ptr() as usize + offset;
        (end <= file.bytes().len() && address.is_multiple_of(align_of::<T>()))
            .then(|| Numbers(Place::Mapped { file: file.clone(), offset, len }))
    }

    /// The file that they lie in, if they lie in one.
    pub fn file(&self) -> Option<&Arc<MappedFile>> {
        match &self.0 {
            Place::Owned(_) => None,
            Place::Mapped { file, .. } => Some(file),
        }
    }
}

impl<T: Plain> From<Vec<T>> for Numbers<T> {
    fn from(values: Vec<T>) -> Self {
        Numbers(Place::Owned(Arc::new(values)))
    }
}

impl<T: Plain> Deref for Numbers<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Place::Owned(values) => values,
            Place::Mapped { file, offset, len } => {
                // SAFETY: `mapped` checked that the run lies inside the file and is aligned; the map lives as long as `self`,
                // and every bit pattern is a value of a `Plain` type.
                unsafe { std::slice::from_raw_parts(file.bytes().as_ptr().add(*offset).cast::<T>(), *len) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[cfg(target_os = "linux")]
    #[test]
    fn released_pages_leave_memory_and_come_back() {
        let path = std::env::temp_dir().join(format!("pleinair-released-{}", std::process::id()));
        let bytes: Vec<u8> = (0..4 << 20).map(|i: u32| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = MappedFile::open(&path).unwrap();
        let place = format!("{:x}-", map.bytes().as_ptr() as usize);
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let entry = smaps.split_once(&place).expect("the map is listed").1;
            let rss = entry.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        assert!(map.bytes() == bytes);
        assert_eq!(resident(), 4096);
        map.release().unwrap();
        assert_eq!(resident(), 0);
        assert!(map.bytes() == bytes);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn numbers_lie_where_the_file_has_them() {
        let path = std::env::temp_dir().join(format!("pleinair-mapped-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        for value in [1.5f32, -2.0, 3.25] {
            file.write_all(&value.to_le_bytes()).unwrap();
        }
        drop(file);
        let map = MappedFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(*Numbers::<f32>::mapped(&map, 0, 3).unwrap(), [1.5, -2.0, 3.25]);
        assert_eq!(*Numbers::<f32>::mapped(&map, 8, 1).unwrap(), [3.25]);
        assert!(Arc::ptr_eq(Numbers::<f32>::mapped(&map, 8, 1).unwrap().file().unwrap(), &map));
        assert!(Numbers::from(vec![1.0f32]).file().is_none());
        assert_eq!(Numbers::<i8>::mapped(&map, 3, 9).unwrap().len(), 9);
        assert!(Numbers::<f32>::mapped(&map, 12, 0).unwrap().is_empty());
        // beyond the end, by overflow, askew
        assert!(Numbers::<f32>::mapped(&map, 4, 3).is_none());
        assert!(Numbers::<f32>::mapped(&map, 4, usize::MAX / 4 + 1).is_none());
        assert!(Numbers::<f32>::mapped(&map, usize::MAX, 1).is_none());
        assert!(Numbers::<f32>::mapped(&map, 2, 1).is_none());
    }
}
