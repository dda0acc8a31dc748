//! Plain Rust: slow, and what the other kernels are held to.

use super::kernel::{Kernel, Sums, Tile};
use super::pack::{GROUP, PANEL};
use crate::isa::Scalar;

impl Kernel for Scalar {
    const ROWS: usize = 4;
    const PANELS: usize = 1;

    fn sums(self, tile: &Tile<'_>, sums: &mut Sums) {
        for row in 0..tile.rows() {
            let mut sum = [0i32; PANEL];
            for (i, weights) in tile.panel(0).chunks_exact(PANEL * GROUP).enumerate() {
                let activations = &tile.row(row)[i * GROUP..][..GROUP];
                for (sum, weights) in sum.iter_mut().zip(weights.chunks_exact(GROUP)) {
                    *sum += weights.iter().zip(activations).map(|(&w, &a)| w as i32 * (a as i8) as i32).sum::<i32>();
                }
            }
            sums.0[row][..PANEL].copy_from_slice(&sum);
        }
    }
}
