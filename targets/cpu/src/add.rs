//! The sum of two maps, as a block adds its result to its input.

use crate::memory::unwritten;
use crate::{floats, output};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `a + b`, both of one shape. The same values as candle's, which adds on a pool of its own (here a single thread, see
/// [`crate::leave_candles_pool_asleep`]).
#[derive(Debug, Clone, Copy)]
pub struct Add;

/// Values a thread takes at a time.
const TASK: usize = 1 << 15;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        if al.shape() != bl.shape() {
            bail!("a sum of {:?} and {:?}", al.shape(), bl.shape())
        }
        let (a, b) = (floats(a, al)?, floats(b, bl)?);
        // SAFETY: both arguments are as long, so that every number is written.
        let mut y: Vec<f32> = unsafe { unwritten(a.len()) };
        y.par_chunks_mut(TASK).zip(a.par_chunks(TASK)).zip(b.par_chunks(TASK)).for_each(|((y, a), b)| {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = a + b;
            }
        });
        Ok(output(y, al.shape().clone()))
    }

    fn bwd(&self, _a: &Tensor, _b: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}
