//! A machine for the ops' plans without a GPU: our kernels compiled as C++ and run on the CPU, products and the fused
//! attention by their definitions. Memory that nobody wrote is NaN, and what lies behind it may not change.
#![allow(dead_code, reason = "each test uses what it needs")]

use candle_core::{Result, bail};
use half::f16;
use libloading::Library;
use pleinair_metal::kernels;
use pleinair_metal::machine::{
    Call, FUSED_HEADS, FusedAttention, Kind, Machine, Matrix, Place, Product, Strided, THREADGROUP,
};
use std::cell::{RefCell, UnsafeCell};
use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// Bytes behind every piece of memory that no kernel may write.
const GUARD: usize = 4096;

/// Memory of the emulated device.
pub struct Bytes {
    words: UnsafeCell<Vec<u64>>,
    len: usize,
}

impl Bytes {
    pub fn new(len: usize) -> Self {
        Bytes { words: UnsafeCell::new(vec![u64::MAX; (len + GUARD).div_ceil(8)]), len }
    }

    pub fn with<T: Copy>(values: &[T]) -> Self {
        let bytes = Bytes::new(size_of_val(values));
        // SAFETY: it is as long, and nobody else has it yet.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), bytes.at(0).cast::<T>(), values.len()) };
        bytes
    }

    /// Numbers of a kind.
    pub fn numbers(values: &[f32], kind: Kind) -> Self {
        match kind {
            Kind::F32 => Bytes::with(values),
            Kind::F16 => Bytes::with(&values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()),
        }
    }

    pub fn place(&self) -> Place<'_, Bytes> {
        Place::start(self)
    }

    pub fn read(&self, kind: Kind, count: usize) -> Vec<f32> {
        (0..count).map(|i| number(self.place(), i, kind)).collect()
    }

    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len, "a place {offset} bytes into {}", self.len);
        // SAFETY: the words are more.
        unsafe { (*self.words.get()).as_mut_ptr().cast::<u8>().add(offset) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: no kernel runs now.
        let guard = unsafe { std::slice::from_raw_parts(self.at(self.len), GUARD) };
        if !std::thread::panicking() {
            assert!(guard.iter().all(|&byte| byte == 0xff), "something was written behind {} bytes", self.len);
        }
    }
}

fn number(place: Place<'_, Bytes>, index: usize, kind: Kind) -> f32 {
    let offset = place.offset + index * kind.bytes();
    assert!(offset + kind.bytes() <= place.memory.len, "number {index} lies behind the end");
    let at = place.memory.at(offset);
    // SAFETY: it lies inside; kernels run in this thread.
    unsafe {
        match kind {
            Kind::F32 => at.cast::<f32>().read(),
            Kind::F16 => at.cast::<f16>().read().to_f32(),
        }
    }
}

fn put(place: Place<'_, Bytes>, index: usize, kind: Kind, value: f32) {
    let offset = place.offset + index * kind.bytes();
    assert!(offset + kind.bytes() <= place.memory.len, "number {index} lies behind the end");
    let at = place.memory.at(offset);
    // SAFETY: as above.
    unsafe {
        match kind {
            Kind::F32 => at.cast::<f32>().write(value),
            Kind::F16 => at.cast::<f16>().write(f16::from_f32(value)),
        }
    }
}

type Run = unsafe extern "C" fn(*const c_char, *const *mut c_void, usize, *const c_void, u32, u32) -> c_int;

/// Our kernels for one type of activations, as a shared library.
fn library(kind: Kind) -> &'static Library {
    static LIBRARIES: [OnceLock<Library>; 2] = [OnceLock::new(), OnceLock::new()];
    LIBRARIES[kind as usize].get_or_init(|| {
        let table: String = kernels::names().iter().map(|name| format!("shim::entry(\"{name}\", {name}),\n")).collect();
        let text = format!(
            "#include <metal_stdlib>\n{}\n#include \"run.hpp\"\nconst shim::Entry shim::entries[] = {{\n{table}}};\n\
             const size_t shim::entry_count = sizeof entries / sizeof *entries;\n",
            kernels::source(kind)
        );
        shared_library(
            &format!("kernels-{}", kind.metal_name()),
            &text,
            &["-Wall", "-Wextra", "-Werror", "-Wno-attributes"],
        )
    })
}

/// C++ that includes what is in `shim/`, compiled and loaded.
pub fn shared_library(name: &str, text: &str, warnings: &[&str]) -> Library {
    let source = tempfolder().join(name).with_extension("cpp");
    std::fs::write(&source, text).unwrap();
    let library = source.with_extension("so");
    compile(&source, &library, warnings);
    // SAFETY: it was just made from sources of ours and of dependencies, and has no initialisers to speak of.
    unsafe { Library::new(&library) }.unwrap()
}

/// A folder of this process's own.
fn tempfolder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("metal-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn compile(source: &Path, library: &Path, warnings: &[&str]) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim");
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"])
        .args(warnings)
        .args([Path::new("-I"), &shim, Path::new("-o"), library, source])
        .output()
        .unwrap_or_else(|error| panic!("{compiler} could not be started ({error}): install g++"));
    assert!(output.status.success(), "{compiler}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// See the file's head.
#[derive(Default)]
pub struct Emulated {
    /// Kernels that ran.
    pub ran: RefCell<BTreeSet<&'static str>>,
    /// Products that ran, and fused attentions.
    pub products: RefCell<[usize; 2]>,
}

impl Machine for Emulated {
    type Memory = Bytes;

    #[expect(clippy::arc_with_non_send_sync, reason = "as the trait has it; this one stays in its thread")]
    fn temporary(&self, bytes: usize) -> Result<Arc<Bytes>> {
        Ok(Arc::new(Bytes::new(bytes)))
    }

    fn run(&self, call: Call<'_, Bytes>) -> Result<()> {
        let name = CString::new(call.kernel).unwrap();
        let buffers: Vec<*mut c_void> =
            call.reads.iter().chain(call.writes).map(|place| place.memory.at(place.offset).cast()).collect();
        // SAFETY: the shim says what it takes; the kernels' own accesses are what is tested, with guards behind buffers.
        let done = unsafe {
            let run = library(call.kind).get::<Run>(b"shim_run").unwrap();
            let groups = call.threads.div_ceil(THREADGROUP) as u32;
            let parameters = call.parameters.as_ptr().cast();
            run(name.as_ptr(), buffers.as_ptr(), buffers.len(), parameters, THREADGROUP as u32, groups)
        };
        match done {
            0 => drop(self.ran.borrow_mut().insert(call.kernel)),
            1 => bail!("there is no kernel {}", call.kernel),
            _ => bail!("{} takes another number of buffers than {}", call.kernel, buffers.len()),
        }
        Ok(())
    }

    fn multiply(&self, product: Product<'_, Bytes>) -> Result<()> {
        let Product { kind, batch, size: (m, n, k), a, b, d } = product;
        self.products.borrow_mut()[0] += 1;
        assert!(!d.transposed);
        let at = |matrix: &Matrix<'_, Bytes>, one: usize, row: usize, column: usize| {
            let (row, column) = if matrix.transposed { (column, row) } else { (row, column) };
            assert!(column < matrix.stride, "a row is longer than the way to the next");
            one * matrix.batch_stride + row * matrix.stride + column
        };
        for one in 0..batch {
            for row in 0..m {
                for column in 0..n {
                    let term = |i| {
                        let (a_at, b_at) = (at(&a, one, row, i), at(&b, one, i, column));
                        number(a.place, a_at, kind) * number(b.place, b_at, kind)
                    };
                    put(d.place, at(&d, one, row, column), kind, (0..k).map(term).sum());
                }
            }
        }
        Ok(())
    }

    fn attend(&self, f: FusedAttention<'_, Bytes>) -> Result<()> {
        self.products.borrow_mut()[1] += 1;
        assert!(FUSED_HEADS.contains(&f.per_head));
        for (picture, head) in (0..f.batch).flat_map(|picture| (0..f.heads).map(move |head| (picture, head))) {
            let at = |x: &Strided<'_, Bytes>, row: usize, channel: usize| {
                picture * x.strides[0] + head * x.strides[1] + row * x.strides[2] + channel
            };
            let row = |x: &Strided<'_, Bytes>, row: usize| -> Vec<f32> {
                (0..f.per_head).map(|channel| number(x.place, at(x, row, channel), Kind::F16)).collect()
            };
            for query in 0..f.queries {
                let q = row(&f.q, query);
                let score = |key| q.iter().zip(row(&f.k, key)).map(|(q, k)| q * k).sum::<f32>() * f.scale;
                let scores: Vec<f32> = (0..f.keys).map(score).collect();
                let largest = scores.iter().copied().fold(f32::MIN, f32::max);
                let powers: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f32 = powers.iter().sum();
                for channel in 0..f.per_head {
                    let value = |key| number(f.v.place, at(&f.v, key, channel), Kind::F16);
                    let y: f32 = powers.iter().enumerate().map(|(key, p)| p / sum * value(key)).sum();
                    put(f.y.place, at(&f.y, query, channel), Kind::F16, y);
                }
            }
        }
        Ok(())
    }
}
