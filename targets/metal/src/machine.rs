//! What an op asks of a GPU. The ops are planned against this trait, so that the same plans run on Metal and, in tests, on
//! an emulation of it.

use candle_core::{Result, bail};
use std::sync::Arc;

/// Threads in a threadgroup, of every kernel.
pub const THREADGROUP: usize = 256;

/// Threads that share the work of a row where one is summed up; a SIMD group of every Apple GPU.
pub const SIMD: usize = 32;

/// The type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
}

impl Kind {
    /// In a number.
    pub fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::F16 => 2,
        }
    }

    /// What the kernels call `Number`.
    pub fn metal_name(self) -> &'static str {
        match self {
            Kind::F32 => "float",
            Kind::F16 => "half",
        }
    }
}

/// Numbers in the device's memory.
#[derive(Debug)]
pub struct Place<'a, M> {
    /// Where they lie.
    pub memory: &'a M,
    /// Bytes before the first.
    pub offset: usize,
}

impl<M> Clone for Place<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Place<'_, M> {}

impl<'a, M> Place<'a, M> {
    /// From the start of `memory` on.
    pub fn start(memory: &'a M) -> Self {
        Place { memory, offset: 0 }
    }

    /// So many numbers further on.
    pub fn after(self, numbers: usize, kind: Kind) -> Self {
        Place { offset: self.offset + numbers * kind.bytes(), ..self }
    }
}

/// One of our own kernels, and what it works on: first what it reads, then what it writes, then its parameters.
#[derive(Debug)]
pub struct Call<'a, M> {
    /// Its name in `kernels/`.
    pub kernel: &'static str,
    /// What `Number` is.
    pub kind: Kind,
    /// The first buffers.
    pub reads: &'a [Place<'a, M>],
    /// The next buffers. What is changed in place stands here alone.
    pub writes: &'a [Place<'a, M>],
    /// The constant structure behind the buffers.
    pub parameters: &'a [u32],
    /// How many threads it needs; there are more, to the next whole threadgroup.
    pub threads: usize,
}

/// A matrix, or several at equal distances.
#[derive(Debug)]
pub struct Matrix<'a, M> {
    /// The first number.
    pub place: Place<'a, M>,
    /// Numbers from one row, as it lies in memory, to the next.
    pub stride: usize,
    /// Numbers from one matrix to the next.
    pub batch_stride: usize,
    /// Whether the matrix meant is the transposed one.
    pub transposed: bool,
}

impl<'a, M> Matrix<'a, M> {
    /// One matrix as it lies there.
    pub fn new(place: Place<'a, M>, stride: usize) -> Self {
        Matrix { place, stride, batch_stride: 0, transposed: false }
    }

    /// One of which the transposed is meant.
    pub fn transposed(place: Place<'a, M>, stride: usize) -> Self {
        Matrix { transposed: true, ..Matrix::new(place, stride) }
    }

    /// The first of several.
    pub fn every(self, batch_stride: usize) -> Self {
        Matrix { batch_stride, ..self }
    }
}

/// `d = a b`, all numbers of one type, sums in f32.
#[derive(Debug)]
pub struct Product<'a, M> {
    /// The type.
    pub kind: Kind,
    /// How many products.
    pub batch: usize,
    /// Rows of `a` and `d`, columns of `b` and `d`, columns of `a` and rows of `b`.
    pub size: (usize, usize, usize),
    /// `[m, k]`.
    pub a: Matrix<'a, M>,
    /// `[k, n]`.
    pub b: Matrix<'a, M>,
    /// `[m, n]`, not transposed.
    pub d: Matrix<'a, M>,
}

/// `[pictures, rows, heads, channels]`, channels contiguous.
#[derive(Debug)]
pub struct Strided<'a, M> {
    /// The first number.
    pub place: Place<'a, M>,
    /// Numbers from one picture, head and row to the next.
    pub strides: [usize; 3],
}

/// `softmax(q k^T scale) v` of f16 numbers for all heads in one kernel, the device maker's.
#[derive(Debug)]
pub struct FusedAttention<'a, M> {
    /// Of each.
    pub batch: usize,
    /// Of each.
    pub heads: usize,
    /// Rows of `q` and `y`.
    pub queries: usize,
    /// Rows of `k` and `v`.
    pub keys: usize,
    /// Channels of a head, one of [`FUSED_HEADS`].
    pub per_head: usize,
    /// Of the scores.
    pub scale: f32,
    /// Queries.
    pub q: Strided<'a, M>,
    /// Keys.
    pub k: Strided<'a, M>,
    /// Values.
    pub v: Strided<'a, M>,
    /// Result.
    pub y: Strided<'a, M>,
}

/// Head sizes that the fused kernel has; larger ones (256, in f16) are rare and slow.
pub const FUSED_HEADS: [usize; 6] = [32, 64, 72, 80, 96, 128];

/// A GPU. What is asked of it happens in the order in which it is asked, later.
pub trait Machine {
    /// A piece of its memory.
    type Memory;

    /// Memory of unknown contents, free for others when dropped.
    ///
    /// # Errors
    /// If there is none left.
    fn temporary(&self, bytes: usize) -> Result<Arc<Self::Memory>>;

    /// Runs a kernel of ours.
    ///
    /// # Errors
    /// If the device refuses.
    fn run(&self, call: Call<'_, Self::Memory>) -> Result<()>;

    /// Multiplies matrices.
    ///
    /// # Errors
    /// If the device refuses.
    fn multiply(&self, product: Product<'_, Self::Memory>) -> Result<()>;

    /// Attention in one kernel.
    ///
    /// # Errors
    /// If the device refuses.
    fn attend(&self, attention: FusedAttention<'_, Self::Memory>) -> Result<()>;
}

/// A field of a parameter structure as a 32-bit word.
pub(crate) trait Word {
    fn word(&self) -> Result<u32>;
}

impl Word for usize {
    fn word(&self) -> Result<u32> {
        match u32::try_from(*self) {
            Ok(word) => Ok(word),
            Err(_) => bail!("{self} numbers at once are too many for a Metal kernel; paint a smaller picture"),
        }
    }
}

impl Word for bool {
    fn word(&self) -> Result<u32> {
        Ok(u32::from(*self))
    }
}

impl Word for f32 {
    fn word(&self) -> Result<u32> {
        Ok(self.to_bits())
    }
}

/// A structure of parameters as a kernel gets it, by the name it has in `kernels/`.
macro_rules! parameters {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $t:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name { $(pub(crate) $field: $t),* }

        impl $name {
            pub(crate) fn words(&self) -> candle_core::Result<Vec<u32>> {
                Ok(vec![$($crate::machine::Word::word(&self.$field)?),*])
            }
        }
    };
}
pub(crate) use parameters;
