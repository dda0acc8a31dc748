//! What a product of `kernels/gemm.cu` needs to be launched: its sizes, which kernel runs it and in how many blocks.

use crate::kernels::{self, Module};
use crate::plan::{Plan, SMALL, Sizes, TILES, Tile};
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, Result, bail};
use half::f16;

/// Numbers that the vector kernels move together.
const CHUNK: usize = 8;
/// Most blocks in y and in z.
const GRID_LIMIT: usize = 65535;

/// Distances in numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Strides {
    pub(crate) row: i64,
    pub(crate) head: i64,
    pub(crate) batch: i64,
}

/// Which row of a channels-last map a tap of an output pixel reads; see `gemm_product.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gather {
    pub(crate) channels: i32,
    pub(crate) taps_across: i32,
    pub(crate) out_height: i32,
    pub(crate) out_width: i32,
    pub(crate) height: i32,
    pub(crate) width: i32,
    pub(crate) source_height: i32,
    pub(crate) source_width: i32,
    pub(crate) stride: i32,
    pub(crate) pad: i32,
    pub(crate) shift: i32,
    pub(crate) parity: i32,
}

impl Gather {
    /// `m` plain rows of `k`.
    pub(crate) fn rows(m: usize, k: usize) -> Result<Self> {
        let m = size(m)?;
        Ok(Gather {
            channels: size(k)?,
            taps_across: 1,
            out_height: m,
            out_width: 1,
            height: m,
            width: 1,
            source_height: m,
            source_width: 1,
            stride: 1,
            pad: 0,
            shift: 0,
            parity: 0,
        })
    }
}

/// `C[m, n] = alpha * sum over k of A[m, k] B[k, n]`, with the layout of the kernels' `Product`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) a: Strides,
    pub(crate) b: Strides,
    pub(crate) c: Strides,
    pub(crate) gather: Gather,
    pub(crate) m: i32,
    pub(crate) n: i32,
    pub(crate) k: i32,
    /// Of `DEPTH` of k, in each part.
    pub(crate) steps: i32,
    pub(crate) heads: i32,
    pub(crate) a_transposed: i32,
    pub(crate) b_transposed: i32,
    pub(crate) alpha: f32,
}

// SAFETY: plain numbers in the order and sizes of the kernels' struct, without padding.
unsafe impl DeviceRepr for Product {}

/// A size as the kernels count.
pub(crate) fn size(size: usize) -> Result<i32> {
    match i32::try_from(size) {
        Ok(size) => Ok(size),
        Err(_) => bail!("a matrix of {size} rows or columns is more than the GPU's kernels count"),
    }
}

/// B as it is stored.
pub(crate) enum Stored<'a> {
    F32(CudaView<'a, f32>),
    F16(CudaView<'a, f16>),
    Int8(CudaView<'a, i8>),
}

impl Stored<'_> {
    fn name(&self) -> &'static str {
        match self {
            Stored::F32(_) => "f32",
            Stored::F16(_) => "f16",
            Stored::Int8(_) => "int8",
        }
    }
}

/// An activation's type: f32 is multiplied in f32, f16 on tensor cores.
pub(crate) trait Activation: CudaDType + DeviceRepr {
    /// Whether its products run on tensor cores.
    const TENSOR_CORES: bool;
    /// One operand that is an activation, too.
    fn stored(view: CudaView<'_, Self>) -> Stored<'_>;
}

impl Activation for f32 {
    const TENSOR_CORES: bool = false;

    fn stored(view: CudaView<'_, f32>) -> Stored<'_> {
        Stored::F32(view)
    }
}

impl Activation for f16 {
    const TENSOR_CORES: bool = true;

    fn stored(view: CudaView<'_, f16>) -> Stored<'_> {
        Stored::F16(view)
    }
}

/// The arguments of one launch.
pub(crate) struct Gemm<'a, T> {
    pub(crate) product: Product,
    /// Batches times heads.
    pub(crate) matrices: usize,
    pub(crate) a: CudaView<'a, T>,
    pub(crate) b: Stored<'a>,
    /// One for each channel of k: what B is multiplied with as it is read.
    pub(crate) factors: Option<&'a CudaSlice<f32>>,
    /// One for each column of C.
    pub(crate) scales: Option<&'a CudaSlice<f32>>,
    /// One for each column of C.
    pub(crate) bias: Option<CudaView<'a, f32>>,
    /// Whether all matrices of A and B and their rows start at multiples of 8 numbers.
    pub(crate) aligned: bool,
}

/// Pushes an argument that may be missing: a null pointer then.
macro_rules! optional {
    ($launch:ident, $argument:expr) => {
        match $argument {
            Some(argument) => $launch.arg(argument),
            None => $launch.arg(&0u64),
        }
    };
}

impl<T: Activation> Gemm<'_, T> {
    /// Writes C. Where it is one matrix without gaps, that may go by way of partial sums.
    pub(crate) fn run(self, device: &CudaDevice, c: &mut CudaViewMut<'_, T>) -> Result<()> {
        if self.product.m as usize * self.product.n as usize * self.matrices == 0 {
            return Ok(());
        }
        self.check()?;
        let (kernel, plan) = self.choose(device)?;
        self.run_as(&kernel, plan, device, c)
    }

    /// The same with a kernel of this T, B and order, and a plan with its tile.
    pub(crate) fn run_as(
        mut self,
        kernel: &str,
        plan: Plan,
        device: &CudaDevice,
        c: &mut CudaViewMut<'_, T>,
    ) -> Result<()> {
        let (m, n) = (self.product.m as usize, self.product.n as usize);
        self.product.steps = size(plan.steps)?;
        let grid = (n.div_ceil(plan.tile.n), m.div_ceil(plan.tile.m), self.matrices.max(plan.parts));
        if grid.1 > GRID_LIMIT || grid.2 > GRID_LIMIT {
            bail!("a product of {} matrices of {m} rows is more than one launch can do", self.matrices)
        }
        let grid = (size(grid.0)? as u32, grid.1 as u32, grid.2 as u32);
        match plan.parts {
            1 => self.launch(device, kernel, grid, Some(c), None),
            parts => {
                // SAFETY: every number is written by the launch before the reduction reads it.
                let mut partial = unsafe { device.alloc::<f32>(parts * m * n)? };
                self.launch(device, kernel, grid, None, Some(&mut partial))?;
                self.reduce(device, &partial, parts, c)
            }
        }
    }

    /// Within a matrix the kernels count in 31 bits, and rows and columns of a map in 15.
    fn check(&self) -> Result<()> {
        let Product { a, b, gather, m, k, n, a_transposed, b_transposed, .. } = self.product;
        let [pixels, source] = [[gather.out_height, gather.out_width], [gather.source_height, gather.source_width]]
            .map(|[height, width]| i64::from(height) * i64::from(width));
        let a_rows = if a_transposed == 0 { (i64::from(m) + pixels - 1) / pixels * source } else { k.into() };
        let b_rows = i64::from(if b_transposed == 0 { gather.channels } else { n });
        let most = i64::from(i32::MAX) - 128 * a.row.max(b.row);
        let sides = [gather.height, gather.width, gather.out_height, gather.out_width];
        if a_rows * a.row > most || b_rows * b.row > most {
            bail!("a matrix of 2^31 numbers is more than the GPU's kernels count: take a smaller batch")
        }
        if gather.taps_across > 1 && sides.iter().any(|&side| side >= 1 << 14) {
            bail!("a map of 16384 pixels across or more is more than the GPU's kernels count")
        }
        Ok(())
    }

    /// The kernel and what each of its blocks does.
    fn choose(&self, device: &CudaDevice) -> Result<(String, Plan)> {
        let p = &self.product;
        let sizes = Sizes { m: p.m as usize, n: p.n as usize, k: p.k as usize, matrices: self.matrices };
        let b = self.b.name();
        if !T::TENSOR_CORES {
            return Ok((format!("gemm_{b}_plain"), Plan::whole(SMALL, sizes)));
        }
        let may_split = self.matrices == 1 && p.c.row == i64::from(p.n);
        let processors = processors(device)?;
        let fastest = |tiles: &[Tile]| Plan::fastest(sizes, tiles, processors, may_split);
        let chunks = |numbers: i32| (numbers as usize).is_multiple_of(CHUNK);
        let a_in_chunks = chunks(if p.a_transposed == 0 { p.gather.channels } else { p.m });
        let b_in_chunks = chunks(if p.b_transposed == 0 { p.n } else { p.k });
        if !(self.aligned && a_in_chunks && b_in_chunks) {
            return Ok((format!("gemm_{b}_any"), fastest(&[SMALL])));
        }
        // nobody keeps f32 weights for f16 activations for speed: they have the kernel with registers to spare
        let plan = fastest(if let Stored::F32(_) = self.b { &TILES[2..] } else { &TILES });
        let order = match (p.a_transposed, p.b_transposed) {
            (0, 0) => "nn",
            (0, _) => "nt",
            _ => "tn",
        };
        Ok((format!("gemm_{b}_{order}_{}x{}", plan.tile.m, plan.tile.n), plan))
    }

    fn launch(
        &self,
        device: &CudaDevice,
        kernel: &str,
        grid_dim: (u32, u32, u32),
        c: Option<&mut CudaViewMut<'_, T>>,
        partial: Option<&mut CudaSlice<f32>>,
    ) -> Result<()> {
        let function = kernels::function(device, Module::Gemm, kernel)?;
        let mut launch = function.builder();
        launch.arg(&self.a);
        match &self.b {
            Stored::F32(b) => launch.arg(b),
            Stored::F16(b) => launch.arg(b),
            Stored::Int8(b) => launch.arg(b),
        };
        optional!(launch, self.factors);
        optional!(launch, self.scales);
        optional!(launch, self.bias.as_ref());
        optional!(launch, c);
        if T::TENSOR_CORES {
            optional!(launch, partial);
        }
        launch.arg(&self.product);
        let block_dim = (if T::TENSOR_CORES { 128 } else { 256 }, 1, 1);
        // SAFETY: the arguments are those of the kernel of this name; it reads within A and B and writes within C or the
        // partial sums, whose sizes are the product's.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) }.w()?;
        Ok(())
    }

    fn reduce(
        &self,
        device: &CudaDevice,
        partial: &CudaSlice<f32>,
        parts: usize,
        c: &mut CudaViewMut<'_, T>,
    ) -> Result<()> {
        let function = kernels::function(device, Module::Gemm, "gemm_reduce")?;
        let (mut launch, parts) = (function.builder(), size(parts)?);
        launch.arg(partial);
        optional!(launch, self.scales);
        optional!(launch, self.bias.as_ref());
        launch.arg(c).arg(&parts).arg(&self.product);
        // SAFETY: partial has `parts` times as many numbers as C, which has m * n.
        unsafe { launch.launch(a_thread_each(self.product.m as usize * self.product.n as usize)?) }.w()?;
        Ok(())
    }
}

/// A launch of one thread for each of `count`.
pub(crate) fn a_thread_each(count: usize) -> Result<LaunchConfig> {
    let blocks = size(count.div_ceil(256))? as u32;
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 })
}

/// Multiprocessors of the GPU.
fn processors(device: &CudaDevice) -> Result<usize> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    Ok(device.cuda_stream().context().attribute(attribute).w()?.max(1) as usize)
}
