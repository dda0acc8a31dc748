//! How candle's matrix product, MLX's `steel_gemm_fused`, is launched. candle's own call takes matrices without gaps and
//! writes to the start of a buffer; its kernel can do more.

use crate::machine::{Kind, Product};
use candle_core::{Error, Result};

/// What MLX's product is told, with the names and the layout it has there.
#[repr(C)]
#[allow(missing_docs, reason = "MLX has none for them")]
#[derive(Debug, Clone, Copy)]
pub struct GemmParams {
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub lda: i32,
    pub ldb: i32,
    pub ldd: i32,
    pub tiles_n: i32,
    pub tiles_m: i32,
    pub batch_stride_a: usize,
    pub batch_stride_b: usize,
    pub batch_stride_d: usize,
    pub swizzle_log: i32,
    pub gemm_k_iterations_aligned: i32,
    pub batch_ndim: i32,
}

/// Of MLX's product: rows, columns and depth of a threadgroup's tile, and SIMD groups along rows and columns.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "said above")]
pub struct TileConfig {
    pub bm: usize,
    pub bn: usize,
    pub bk: usize,
    pub wm: usize,
    pub wn: usize,
}

/// The kernel's function constants.
pub type Constants = [(usize, bool); 7];

/// One launch.
#[derive(Debug)]
pub struct Gemm {
    /// Of the kernel.
    pub name: String,
    /// What it is specialised for.
    pub constants: Constants,
    /// Its buffer 4; 0 and 1 are `a` and `b`, 3 is `d`.
    pub params: GemmParams,
    /// Across and down; a layer for each product.
    pub threadgroups: [usize; 2],
    /// A SIMD group's, SIMD groups across and down.
    pub threads: [usize; 3],
}

/// For products with a weight, whose rows are columns of the product.
pub const LINEAR: TileConfig = tile(64, 32, 32, 2, 2);

const fn tile(bm: usize, bn: usize, bk: usize, wm: usize, wn: usize) -> TileConfig {
    TileConfig { bm, bn, bk, wm, wn }
}

impl TileConfig {
    /// MLX's choice as candle makes it, for small devices and for all others, without the exceptions.
    fn of<M>(product: &Product<'_, M>, small: bool) -> Self {
        let (m, n, _) = product.size;
        let large_product = product.batch * m * n >= 1 << 20;
        match product.kind {
            _ if m < 16 => tile(32, 32, 16, 2, 2),
            _ if product.b.transposed && !product.a.transposed && (small || !large_product) => LINEAR,
            Kind::F16 => tile(64, 64, 16, 1, 2),
            Kind::F32 => tile(64, 64, 16, 2, 2),
        }
    }
}

/// The name of a kernel for a tile, `a` and `b` transposed or not, and its constants for matrices of a size.
pub fn pipeline(
    kind: Kind,
    tile: TileConfig,
    (a_transposed, b_transposed): (bool, bool),
    (m, n, k): (usize, usize, usize),
) -> (String, Constants) {
    let TileConfig { bm, bn, bk, wm, wn } = tile;
    let turned = |transposed| if transposed { "t" } else { "n" };
    let numbers = match kind {
        Kind::F32 => "f32",
        Kind::F16 => "f16",
    };
    let (a, b) = (turned(a_transposed), turned(b_transposed));
    let constants = [
        (10, false),  // has_batch: false, one stride for each matrix says where the next lies
        (100, false), // use_out_source
        (110, false), // do_axpby
        (200, m.is_multiple_of(bm)),
        (201, n.is_multiple_of(bn)),
        (202, k.is_multiple_of(bk)),
        (300, false), // do_gather
    ];
    (format!("gemm_{a}{b}_{numbers}_{numbers}_{bm}_{bn}_{bk}_{wm}_{wn}"), constants)
}

fn int(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| Error::msg(format!("a matrix of {number} rows or columns is too large")))
}

impl Gemm {
    /// `small`: a phone's GPU or that of a chip that is no Pro, Max or Ultra.
    ///
    /// # Errors
    /// If a matrix is larger than 32 bits can tell.
    pub fn new<M>(product: &Product<'_, M>, small: bool) -> Result<Self> {
        let Product { kind, size: (m, n, k), a, b, d, .. } = product;
        let (m, n, k) = (*m, *n, *k);
        let tile = TileConfig::of(product, small);
        let (name, constants) = pipeline(*kind, tile, (a.transposed, b.transposed), (m, n, k));
        let (tiles_m, tiles_n) = (m.div_ceil(tile.bm), n.div_ceil(tile.bn));
        let params = GemmParams {
            m: int(m)?,
            n: int(n)?,
            k: int(k)?,
            lda: int(a.stride)?,
            ldb: int(b.stride)?,
            ldd: int(d.stride)?,
            tiles_n: int(tiles_n)?,
            tiles_m: int(tiles_m)?,
            batch_stride_a: a.batch_stride,
            batch_stride_b: b.batch_stride,
            batch_stride_d: d.batch_stride,
            swizzle_log: 0,
            gemm_k_iterations_aligned: int(k / tile.bk)?,
            batch_ndim: 1,
        };
        Ok(Gemm { name, constants, params, threadgroups: [tiles_n, tiles_m], threads: [32, tile.wn, tile.wm] })
    }
}
