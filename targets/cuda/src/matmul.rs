//! Products of two activations, batch by batch and head by head.

use crate::gemm::{Activation, Gather, Gemm, Product, Strides, size};
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result, bail};

/// `C = alpha * A B` for every head of every batch; `A: [m, k]`, `B: [k, n]`, `C: [m, n]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matmul {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    /// May be transposed if `b` is not.
    pub(crate) a: Matrix,
    /// May be transposed if `a` is not.
    pub(crate) b: Matrix,
    /// Not transposed.
    pub(crate) c: Matrix,
    pub(crate) alpha: f32,
}

/// Where the matrices of an operand lie, in numbers; the numbers of a row have no gaps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    /// Of the first.
    pub(crate) offset: usize,
    /// From one row in memory to the next.
    pub(crate) row_stride: usize,
    pub(crate) head_stride: usize,
    pub(crate) batch_stride: usize,
    /// Whether memory holds the transpose: `[k, m]` for A, `[n, k]` for B.
    pub(crate) transposed: bool,
}

impl Matrix {
    fn strides(&self) -> Strides {
        let Matrix { row_stride, head_stride, batch_stride, .. } = *self;
        Strides { row: row_stride as i64, head: head_stride as i64, batch: batch_stride as i64 }
    }

    /// Whether chunks of 8 numbers of every row are chunks of 16 bytes of f16.
    fn aligned(&self) -> bool {
        [self.offset, self.row_stride, self.head_stride, self.batch_stride].iter().all(|n| n.is_multiple_of(8))
    }

    /// The numbers from `offset` on that `rows` of `width` of so many matrices reach to.
    fn reach(&self, rows: usize, width: usize, heads: usize, batch: usize) -> usize {
        (rows - 1) * self.row_stride + (heads - 1) * self.head_stride + (batch - 1) * self.batch_stride + width
    }
}

/// Writes `c`: in f16 on tensor cores with sums in f32, or all in f32. What lies between its rows stays.
///
/// # Errors
/// If both operands or the result are transposed, or if a matrix reaches beyond its slice.
pub(crate) fn matmul<T: Activation>(
    device: &CudaDevice,
    a: &CudaSlice<T>,
    b: &CudaSlice<T>,
    c: &mut CudaSlice<T>,
    product: &Matmul,
) -> Result<()> {
    let &Matmul { m, n, k, batch, heads, alpha, .. } = product;
    if product.c.transposed || (product.a.transposed && product.b.transposed) {
        bail!("a product of matrices takes one transposed operand at most, and its result is not transposed")
    }
    if m * n * k * batch * heads == 0 {
        bail!("a product of {batch} x {heads} matrices {m} x {k} and {k} x {n} has nothing to add up")
    }
    let within = |matrix: &Matrix, (rows, width): (usize, usize), len: usize| {
        let (rows, width) = if matrix.transposed { (width, rows) } else { (rows, width) };
        matrix.offset + matrix.reach(rows, width, heads, batch) <= len
    };
    if !(within(&product.a, (m, k), a.len())
        && within(&product.b, (k, n), b.len())
        && within(&product.c, (m, n), c.len()))
    {
        bail!("a product of {batch} x {heads} matrices {m} x {k} and {k} x {n} reaches beyond its operands")
    }
    let gemm = Gemm {
        product: Product {
            a: product.a.strides(),
            b: product.b.strides(),
            c: product.c.strides(),
            gather: Gather::rows(m, k)?,
            m: size(m)?,
            n: size(n)?,
            k: size(k)?,
            steps: 0,
            heads: size(heads)?,
            a_transposed: product.a.transposed.into(),
            b_transposed: product.b.transposed.into(),
            alpha,
        },
        matrices: batch * heads,
        a: a.slice(product.a.offset..),
        b: T::stored(b.slice(product.b.offset..)),
        factors: None,
        scales: None,
        bias: None,
        aligned: product.a.aligned() && product.b.aligned(),
    };
    gemm.run(device, &mut c.slice_mut(product.c.offset..))
}
