//! pleinair's kernels for Apple's GPUs: the frozen layers of the networks as candle custom ops on Metal tensors.
//!
//! The products are candle's (MLX's kernels); what they need around them is our own, in `kernels/*.metal`, compiled when
//! the first op of a type runs. The plans of the ops, which kernels run on how many threads and on which parts of which
//! buffers, know nothing of Metal ([`plan`], [`machine`]): tests run them, and the kernels compiled as C++, on any machine.

pub mod gemm;
pub mod kernels;
pub mod machine;
pub mod plan;

#[cfg(feature = "metal")]
mod metal;
#[cfg(feature = "metal")]
pub use metal::*;
