//! Strided matrix views, and the one place where the `gemm` crate is called.

use gemm::Parallelism;

/// A read-only `rows x cols` matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major with `row_stride` elements from one row to the next.
    pub(crate) fn rows(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(holds(data.len(), rows, cols, row_stride, 1), "matrix view outside its slice");
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

fn holds(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> bool {
    rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < len
}

/// What a product does with the values already in its destination.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Into {
    Overwrite,
    Add,
}

/// `dst (=|+=) scale * a b`; `dst` is row-major with `row_stride`.
pub(crate) fn matmul(
    dst: &mut [f32],
    row_stride: usize,
    into: Into,
    scale: f32,
    a: Mat<'_>,
    b: Mat<'_>,
    threads: Parallelism,
) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "inner dimensions");
    assert!(row_stride >= n && holds(dst.len(), m, n, row_stride, 1), "destination too small");
    if m == 0 || n == 0 {
        return;
    }
    let one_if_adding = if into == Into::Add { 1.0 } else { 0.0 };
    // SAFETY: the three views lie inside their slices (asserted here and in `Mat::rows`), `dst` is borrowed mutably and
    // so aliases neither operand, and its rows do not overlap because `row_stride >= n`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            row_stride as isize,
            into == Into::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            one_if_adding,
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}

/// The calling thread only, for products inside a parallel loop.
pub(crate) const ONE_CORE: Parallelism = Parallelism::None;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_and_transposed_products_match_the_definition() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 16, 33), (64, 65, 63)] {
            let a: Vec<f32> = (0..m * (k + 3)).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n * (k + 1)).map(|i| (i as f32 * 0.11).cos()).collect();
            let mut dst = vec![1.0; m * (n + 2)];
            let (va, vb) = (Mat::rows(&a, m, k, k + 3), Mat::rows(&b, n, k, k + 1).t());
            matmul(&mut dst, n + 2, Into::Add, 0.5, va, vb, ONE_CORE);
            for i in 0..m {
                for j in 0..n {
                    let exact: f64 = (0..k).map(|l| a[i * (k + 3) + l] as f64 * b[j * (k + 1) + l] as f64).sum();
                    let want = 1.0 + 0.5 * exact;
                    let got = dst[i * (n + 2) + j] as f64;
                    // k rounded products of size at most 1
                    assert!((got - want).abs() <= 1e-7 * (k + 2) as f64, "{got} {want}");
                }
                if i + 1 < m {
                    assert_eq!(&dst[i * (n + 2) + n..(i + 1) * (n + 2)], &[1.0, 1.0], "wrote between the rows");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside its slice")]
    fn a_view_outside_its_slice_is_refused() {
        Mat::rows(&[0.0; 5], 2, 3, 3);
    }
}
