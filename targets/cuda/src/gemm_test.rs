//! Every kernel of `gemm.cu` by its name, with every tile, whatever a plan would choose, beside sums in f64.

use crate::gemm::{Activation, Gather, Gemm, Product, Stored, Strides};
use crate::matmul::{Matmul, Matrix, matmul};
use crate::plan::{Plan, SMALL, Sizes, TILES, Tile};
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Device, Result};
use half::f16;

fn device() -> CudaDevice {
    match crate::open().expect("an NVIDIA GPU, or the emulated one") {
        Device::Cuda(device) => device,
        _ => unreachable!("open() gives CUDA devices"),
    }
}

/// `count` numbers in [-1, 1) that f16 has, the same for the same seed.
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 54) as f64 / 512.0 - 1.0
    };
    for _ in 0..8 {
        next();
    }
    (0..count).map(|_| next()).collect()
}

fn narrow(numbers: &[f64]) -> Vec<f16> {
    numbers.iter().map(|&x| f16::from_f64(x)).collect()
}

fn single(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|&x| x as f32).collect()
}

/// A result, and how far f32 sums, which tensor cores cut off where others round, may be from it, and its type; `extra`
/// is a share of the sum of the products' magnitudes.
fn assert_near(
    what: &str,
    got: f64,
    products: impl Iterator<Item = f64>,
    after: impl Fn(f64) -> f64,
    extra: f64,
    unit: f64,
) {
    let (mut sum, mut size, mut terms) = (0.0, 0.0f64, 8.0);
    for product in products {
        sum += product;
        size += product.abs();
        terms += 1.0;
    }
    let steep = (after(1.0) - after(0.0)).abs();
    let want = after(sum);
    let rounding = unit * want.abs().max(got.abs()) + 0.5f64.powi(25);
    let bound = (2.0 * terms * 0.5f64.powi(24) + extra) * (size * steep + after(0.0).abs()) + rounding;
    let diff = (got - want).abs();
    assert!(diff <= bound, "{what}: {got}, not {want} within {bound:e}");
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    Nt,
    Nn,
    Tn,
}

/// f16 times a matrix stored as `b` through one kernel, with factors, scales and bias; all of them where B is int8.
fn check(
    device: &CudaDevice,
    b: &str,
    order: Order,
    tile: Option<Tile>,
    (m, n, k): (usize, usize, usize),
    parts: usize,
) {
    let (a_numbers, b_numbers) = (numbers(1, m * k), numbers(2, k * n));
    let b_rows: Vec<i8> = b_numbers.iter().map(|x| (x * 127.0) as i8).collect();
    let (a_gpu, bias) = (device.clone_htod(&narrow(&a_numbers)).unwrap(), numbers(3, n));
    let (factors, scales) = (numbers(4, k), numbers(5, n));
    let on_gpu = |numbers: &[f64]| device.clone_htod(&single(numbers)).unwrap();
    let (factors_gpu, scales_gpu, bias_gpu) = (on_gpu(&factors), on_gpu(&scales), on_gpu(&bias));
    let (b_f16, b_f32) = (device.clone_htod(&narrow(&b_numbers)).unwrap(), on_gpu(&b_numbers));
    let b_int8 = device.clone_htod(&b_rows).unwrap();
    let scaled = b == "int8";
    let (a_row, b_row) = (if order == Order::Tn { m } else { k }, if order == Order::Nt { k } else { n });
    let gemm = Gemm {
        product: Product {
            a: Strides { row: a_row as i64, ..Strides::default() },
            b: Strides { row: b_row as i64, ..Strides::default() },
            c: Strides { row: n as i64, ..Strides::default() },
            gather: Gather::rows(m, k).unwrap(),
            m: m as i32,
            n: n as i32,
            k: k as i32,
            steps: 0,
            heads: 1,
            a_transposed: (order == Order::Tn).into(),
            b_transposed: (order == Order::Nt).into(),
            alpha: 0.5,
        },
        matrices: 1,
        a: a_gpu.as_view(),
        b: match b {
            "f16" => Stored::F16(b_f16.as_view()),
            "f32" => Stored::F32(b_f32.as_view()),
            _ => Stored::Int8(b_int8.as_view()),
        },
        factors: scaled.then_some(&factors_gpu),
        scales: scaled.then_some(&scales_gpu),
        bias: Some(bias_gpu.as_view()),
        aligned: true,
    };
    let steps = k.div_ceil(32).div_ceil(parts);
    let plan = Plan { tile: tile.unwrap_or(SMALL), parts: k.div_ceil(32).div_ceil(steps), steps };
    let kernel = match tile {
        Some(Tile { m, n, .. }) => format!("gemm_{b}_{}_{m}x{n}", format!("{order:?}").to_lowercase()),
        None => format!("gemm_{b}_any"),
    };
    let mut c = device.clone_htod(&vec![f16::NAN; m * n]).unwrap();
    gemm.run_as(&kernel, plan, device, &mut c.as_view_mut()).unwrap();
    let c = device.clone_dtoh(&c).unwrap();
    for (i, got) in c.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let products = (0..k).map(|l| {
            let a = a_numbers[if order == Order::Tn { l * m + row } else { row * k + l }];
            let at = if order == Order::Nt { column * k + l } else { l * n + column };
            a * if scaled { f64::from(b_rows[at]) * factors[l] } else { b_numbers[at] }
        });
        let scale = 0.5 * if scaled { scales[column] } else { 1.0 };
        // the factor of int8 is rounded to f16, and so is their product
        let extra = if scaled { 0.5f64.powi(10) } else { 0.0 };
        let what = format!("{kernel} {m}x{n}x{k} in {parts}, number {i}");
        assert_near(&what, got.to_f64(), products, |sum| sum * scale + bias[column], extra, 0.5f64.powi(11));
    }
}

/// One step of k, fewer and more than the pipeline has stages, and a last one that is not full.
const DEPTHS: [usize; 4] = [8, 40, 96, 232];

#[test]
fn every_kernel_with_every_tile() {
    let device = device();
    let kernels = [
        ("f16", &[Order::Nt, Order::Nn, Order::Tn][..], &TILES[..]),
        ("int8", &[Order::Nt, Order::Nn], &TILES),
        ("f32", &[Order::Nt, Order::Nn], &TILES[2..]),
    ];
    for (b, orders, tiles) in kernels {
        for &order in orders {
            for &tile in tiles {
                for (i, k) in DEPTHS.into_iter().enumerate() {
                    let m = [8, tile.m - 8, tile.m, tile.m + 8][i];
                    let n = [tile.n + 8, 8, tile.n, tile.n - 8][i];
                    check(&device, b, order, Some(tile), (m, n, k), 1);
                    check(&device, b, order, Some(tile), (m, n, k), 3);
                }
            }
        }
    }
}

#[test]
fn numbers_one_by_one() {
    let device = device();
    for b in ["f16", "int8", "f32"] {
        for order in [Order::Nt, Order::Nn, Order::Tn] {
            for size in [(1, 1, 1), (65, 7, 33), (5, 66, 70)] {
                check(&device, b, order, None, size, 1);
                check(&device, b, order, None, size, 2);
            }
        }
    }
}

/// Four operands of a product with gaps, and C's numbers afterwards.
struct Batch<T> {
    a: Vec<T>,
    b: Vec<T>,
    c: Vec<T>,
}

fn run<T: Activation + Clone + 'static>(device: &CudaDevice, batch: &Batch<T>, product: &Matmul) -> Result<Vec<T>> {
    let upload = |numbers: &Vec<T>| -> Result<CudaSlice<T>> { device.clone_htod(numbers) };
    let (a, b, mut c) = (upload(&batch.a)?, upload(&batch.b)?, upload(&batch.c)?);
    matmul(device, &a, &b, &mut c, product)?;
    device.clone_dtoh(&c)
}

/// Two batches of three heads that lie beside each other in the rows, as attention has them.
fn heads(rows: usize, width: usize, offset: usize, transposed: bool) -> Matrix {
    let (rows, width) = if transposed { (width, rows) } else { (rows, width) };
    let row_stride = 3 * width + 8;
    Matrix { offset, row_stride, head_stride: width, batch_stride: rows * row_stride, transposed }
}

fn check_matmul(
    device: &CudaDevice,
    (m, n, k): (usize, usize, usize),
    (ta, tb): (bool, bool),
    offset: usize,
    f16s: bool,
) {
    let product = Matmul {
        m,
        n,
        k,
        batch: 2,
        heads: 3,
        a: heads(m, k, offset, ta),
        b: heads(k, n, offset + 8, tb),
        c: heads(m, n, 2 * offset, false),
        alpha: 0.25,
    };
    let length = |matrix: &Matrix| matrix.offset + 2 * matrix.batch_stride;
    let (a, b) = (numbers(1, length(&product.a)), numbers(2, length(&product.b)));
    let c = vec![f64::NAN; length(&product.c)];
    let got: Vec<f64> = if f16s {
        let batch = Batch { a: narrow(&a), b: narrow(&b), c: narrow(&c) };
        run(device, &batch, &product).unwrap().into_iter().map(f16::to_f64).collect()
    } else {
        let batch = Batch { a: single(&a), b: single(&b), c: single(&c) };
        run(device, &batch, &product).unwrap().into_iter().map(f64::from).collect()
    };
    let at = |matrix: &Matrix, batch: usize, head: usize, row: usize, column: usize| {
        let (row, column) = if matrix.transposed { (column, row) } else { (row, column) };
        matrix.offset + batch * matrix.batch_stride + head * matrix.head_stride + row * matrix.row_stride + column
    };
    let mut written = 0;
    for (i, head) in (0..6).map(|i| (i / 3, i % 3)) {
        for (row, column) in (0..m * n).map(|i| (i / n, i % n)) {
            let products = (0..k).map(|l| a[at(&product.a, i, head, row, l)] * b[at(&product.b, i, head, l, column)]);
            let got = got[at(&product.c, i, head, row, column)];
            let what = format!("{product:?}, batch {i}, head {head}, ({row}, {column})");
            assert_near(
                &what,
                got,
                products,
                |sum| sum / 4.0,
                0.0,
                if f16s { 0.5f64.powi(11) } else { 0.5f64.powi(24) },
            );
            written += 1;
        }
    }
    assert_eq!(got.iter().filter(|x| !x.is_nan()).count(), written, "{product:?} writes elsewhere");
}

#[test]
fn products_of_heads() {
    let device = device();
    for transposed in [(false, false), (false, true), (true, false)] {
        for f16s in [true, false] {
            for size in [(72, 40, 64), (8, 136, 40), (16, 24, 104)] {
                check_matmul(&device, size, transposed, 8, f16s);
            }
            // one that cannot move 8 numbers at a time
            check_matmul(&device, (16, 24, 40), transposed, 4, f16s);
            check_matmul(&device, (5, 7, 11), transposed, 3, f16s);
        }
    }
}

#[test]
fn impossible_products_are_errors() {
    let device = device();
    let batch = Batch { a: vec![0.0f32; 1000], b: vec![0.0; 1000], c: vec![0.0; 1000] };
    let good = Matmul {
        m: 4,
        n: 4,
        k: 4,
        batch: 2,
        heads: 3,
        a: heads(4, 4, 0, false),
        b: heads(4, 4, 0, false),
        c: heads(4, 4, 0, false),
        alpha: 1.0,
    };
    let error = |product: Matmul| run(&device, &batch, &product).unwrap_err().to_string();
    assert!(run(&device, &batch, &good).is_ok());
    let turned = |matrix: Matrix| Matrix { transposed: true, ..matrix };
    assert!(error(Matmul { a: turned(good.a), b: turned(good.b), ..good }).contains("one transposed operand"));
    assert!(error(Matmul { c: turned(good.c), ..good }).contains("one transposed operand"));
    assert!(error(Matmul { k: 0, ..good }).contains("nothing to add up"));
    let far = |matrix: Matrix| Matrix { offset: 1000, ..matrix };
    for beyond in
        [Matmul { a: far(good.a), ..good }, Matmul { b: far(good.b), ..good }, Matmul { c: far(good.c), ..good }]
    {
        assert!(error(beyond).contains("reaches beyond"));
    }
}

#[test]
fn sizes_beyond_the_kernels_are_errors() {
    let device = device();
    let few = device.clone_htod(&[f16::ONE; 64]).unwrap();
    let error = |gather: Gather, a_row: i64, b_row: i64| {
        let strides = |row| Strides { row, ..Strides::default() };
        let (m, n, k) = (gather.out_height * gather.out_width, 8, gather.channels * gather.taps_across.pow(2));
        let (a, b, c) = (strides(a_row), strides(b_row), strides(8));
        let (steps, heads, a_transposed, b_transposed, alpha) = (0, 1, 0, 0, 1.0);
        let product = Product { a, b, c, gather, m, n, k, steps, heads, a_transposed, b_transposed, alpha };
        let (factors, scales, bias, aligned) = (None, None, None, true);
        let (a, b) = (few.as_view(), Stored::F16(few.as_view()));
        let gemm = Gemm { product, matrices: 1, a, b, factors, scales, bias, aligned };
        gemm.run(&device, &mut few.clone().as_view_mut()).unwrap_err().to_string()
    };
    let rows = Gather::rows(1 << 20, 8).unwrap();
    assert!(error(rows, 1 << 11, 8).contains("2^31 numbers"));
    assert!(error(rows, 8, 1 << 28).contains("2^31 numbers"));
    let map = Gather { taps_across: 3, out_height: 1, out_width: 1 << 14, width: 1 << 14, ..rows };
    assert!(error(map, 8, 8).contains("16384 pixels"));
    assert!(Gather::rows(1 << 31, 8).is_err());
}

/// The plan for the sizes of a whole network runs on whatever this GPU is.
#[test]
fn a_plan_of_this_gpu_runs() {
    let device = device();
    let sizes = Sizes { m: 64, n: 64, k: 640, matrices: 1 };
    let plan = Plan::fastest(sizes, &TILES, 8, true);
    check(&device, "f16", Order::Nt, Some(plan.tile), (sizes.m, sizes.n, sizes.k), plan.parts);
}

#[test]
#[should_panic(expected = "NaN, not 1")]
fn the_comparison_catches_nan() {
    assert_near("nan", f64::NAN, [1.0].into_iter(), |sum| sum, 1.0, 1.0);
}

#[test]
#[should_panic(expected = "1.01, not 1")]
fn the_comparison_catches_a_wrong_number() {
    assert_near("wrong", 1.01, [1.0].into_iter(), |sum| sum, 0.0, 0.5f64.powi(11));
}
