//! pleinair's kernels for CPUs: the frozen layers of the networks as candle custom ops.
//!
//! Feature maps are channels last, `[B, H*W, C]` f32, so that a 1x1 convolution and a linear layer are the same matrix
//! product and a 3x3 convolution is an implicit one. Weights are frozen: the backward of every op gives the gradient of
//! its input and of nothing else, which is all that learning a style needs.

mod add;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod conv;
mod float;
mod geglu;
pub mod int8;
pub mod isa;
mod linear;
mod mapped;
mod memory;
mod norm;
mod weight;
mod wide;

// the tests in here and those in tests/ share it
#[cfg(test)]
extern crate self as pleinair_cpu;
#[cfg(test)]
#[path = "../tests/isas/mod.rs"]
mod isas;

pub use add::Add;
pub use attention::{Attention, Precision};
pub use conv::Conv3x3;
pub use geglu::Geglu;
pub use isa::Isa;
pub use linear::Linear;
pub use mapped::{MappedFile, Numbers, Plain};
pub use memory::{keep_freed_memory, keep_freed_memory_for_a_while, return_freed_memory};
pub use norm::{GroupNorm, LayerNorm};
pub use weight::{Int8, Packing, Values, Weight, channels_last};

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};

/// The elements of an op's argument; it must be f32 and contiguous.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("this op takes contiguous tensors, got strides {:?}", layout.stride())
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Runs `read` on the elements of a frozen weight.
fn with_weight<R>(weight: &Tensor, read: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = weight.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => read(floats(cpu, layout)?),
        _ => bail!("the weight of a CPU op must be in main memory"),
    }
}

fn output(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// `(B, N, C)` of a feature map.
fn feature_map(layout: &Layout) -> Result<(usize, usize, usize)> {
    layout.shape().dims3()
}

/// Has the kernels run in so many threads, or in one a core where there are fewer cores.
///
/// # Errors
/// A sentence, if kernels ran already or a thread cannot be started.
pub fn use_threads(threads: usize) -> std::result::Result<(), String> {
    let threads = std::thread::available_parallelism().map_or(threads, |cores| threads.min(cores.get()));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().map_err(|error| format!("{threads} threads cannot be started: {error}"))
}

/// Keeps candle's own thread pool from starting. Its workers wait for each other by spinning, which on a machine with
/// other work burns a third of the processor; our kernels share rayon's pool, which sleeps. A value that the user set
/// stays.
///
/// Call it first thing in `main`: it does nothing once a second thread runs, nor where the system does not tell (it is
/// only faster, never different).
pub fn leave_candles_pool_asleep() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone && std::env::var_os(THREADS).is_none() {
        // SAFETY: this is the only thread, so nobody reads the environment at the same time.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}
