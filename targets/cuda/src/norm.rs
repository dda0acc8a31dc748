//! GroupNorm (with SiLU folded in) and LayerNorm, frozen; see `kernels/norm.cu`.

use crate::kernels::{self, Module};
use crate::values::{Value, contiguous, kernel, not_on_the_cpu, size, unwritten, width, with_floats, with_type};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// Threads side by side and one below the other, as in `kernels/norm.cu`.
const COLUMNS: u32 = 8;
const ROWS: u32 = 32;
/// Threads that merge a group's statistics.
const MERGERS: u32 = 128;
/// Pixels of a part: each thread takes a few, and a large map has no more than so many parts.
const PART: u32 = 4 * ROWS;
const MOST_PARTS: u32 = 256;
/// Rows of a LayerNorm that a block takes, a warp each.
const ROWS_OF_BLOCK: u32 = 4;
/// Blocks in y and z.
const MOST_BLOCKS: usize = 65535;

/// GroupNorm over `[B, H*W, C]` (f32 or f16, contiguous), arXiv 1803.08494, optionally followed by SiLU. Statistics are f32.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// `[C]`, f32.
    pub weight: Tensor,
    /// `[C]`, f32.
    pub bias: Tensor,
    /// Number of groups; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// The sizes of a map, and how it is cut into parts.
#[derive(Clone, Copy)]
struct Dims {
    batch: u32,
    pixels: u32,
    channels: u32,
    groups: u32,
    part_pixels: u32,
}

impl Dims {
    fn parts(self) -> u32 {
        self.pixels.div_ceil(self.part_pixels)
    }

    /// A block for each part of some channels.
    fn parts_of_channels(self, width: usize) -> LaunchConfig {
        let columns = self.channels.div_ceil(COLUMNS * width as u32);
        let grid_dim = (columns, self.parts(), self.batch);
        LaunchConfig { grid_dim, block_dim: (COLUMNS, ROWS, 1), shared_mem_bytes: 0 }
    }

    /// A block for each group of each picture.
    fn each_group(self) -> LaunchConfig {
        LaunchConfig { grid_dim: (self.groups, self.batch, 1), block_dim: (MERGERS, 1, 1), shared_mem_bytes: 0 }
    }

    /// Two statistics for each channel of each part.
    fn of_parts(self, device: &CudaDevice) -> Result<CudaSlice<f32>> {
        unwritten(device, 2 * self.batch as usize * self.parts() as usize * self.channels as usize)
    }

    /// Two statistics for each group of each picture.
    fn of_groups(self, device: &CudaDevice) -> Result<CudaSlice<f32>> {
        unwritten(device, 2 * self.batch as usize * self.groups as usize)
    }
}

/// What the kernels take besides maps: the frozen weights.
struct Affine<'a> {
    weight: &'a CudaView<'a, f32>,
    bias: &'a CudaView<'a, f32>,
    in_line: bool,
}

/// Runs `read` on `channels` weights and biases.
fn with_affine<R>(
    weight: &Tensor,
    bias: &Tensor,
    channels: usize,
    read: impl FnOnce(Affine<'_>) -> Result<R>,
) -> Result<R> {
    if weight.dims() != [channels] || bias.dims() != [channels] {
        bail!("a norm of {channels} channels has weights {:?} and biases {:?}", weight.shape(), bias.shape())
    }
    with_floats(weight, |weight, weight_in_line| {
        with_floats(bias, |bias, bias_in_line| read(Affine { weight, bias, in_line: weight_in_line && bias_in_line }))
    })
}

impl Affine<'_> {
    /// How many channels a thread takes at a time.
    fn width<T: Value>(&self, channels: usize, starts: &[usize]) -> usize {
        if self.in_line { width::<T>(channels, starts) } else { 1 }
    }
}

impl GroupNorm {
    fn dims(&self, layout: &Layout) -> Result<Dims> {
        let (batch, pixels, channels) = layout.shape().dims3()?;
        if self.groups == 0 || channels % self.groups != 0 || self.weight.dims1()? != channels || batch > MOST_BLOCKS {
            bail!("a GroupNorm of {} channels in {} groups got {:?}", self.weight.dims1()?, self.groups, layout.shape())
        }
        let pixels = size(pixels)?;
        Ok(Dims {
            batch: size(batch)?,
            pixels,
            channels: size(channels)?,
            groups: size(self.groups)?,
            part_pixels: pixels.div_ceil(MOST_PARTS).next_multiple_of(PART),
        })
    }

    /// Mean and reciprocal standard deviation of every group.
    fn moments<T: Value>(
        &self,
        device: &CudaDevice,
        x: &CudaView<'_, T>,
        dims: Dims,
        width: usize,
    ) -> Result<CudaSlice<f32>> {
        let Dims { pixels, channels, groups, part_pixels, .. } = dims;
        let (mut of_parts, mut of_groups) = (dims.of_parts(device)?, dims.of_groups(device)?);
        let moments = kernel::<T>(device, Module::Norm, "group_norm_moments", width)?;
        let mut launch = moments.builder();
        launch.arg(x).arg(&mut of_parts).arg(&pixels).arg(&channels).arg(&part_pixels);
        // SAFETY: the kernel's arguments; `x` is a map of these sizes, in line for this width.
        unsafe { launch.launch(dims.parts_of_channels(width)) }.w()?;
        let eps = self.eps as f32;
        let merge = kernels::function(device, Module::Norm, "group_norm_merge")?;
        let mut launch = merge.builder();
        launch.arg(&of_parts).arg(&mut of_groups);
        launch.arg(&pixels).arg(&channels).arg(&groups).arg(&part_pixels).arg(&eps);
        // SAFETY: the kernel's arguments; the statistics are of these sizes.
        unsafe { launch.launch(dims.each_group()) }.w()?;
        Ok(of_groups)
    }

    fn forward<T: Value>(&self, storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        let (device, dims) = (storage.device(), self.dims(layout)?);
        let Dims { pixels, channels, groups, part_pixels, .. } = dims;
        let x = contiguous::<T>(storage, layout)?;
        let mut y = unwritten::<T>(device, x.len())?;
        with_affine(&self.weight, &self.bias, channels as usize, |affine| {
            let width = affine.width::<T>(channels as usize, &[layout.start_offset()]);
            let of_groups = self.moments(device, &x, dims, width)?;
            let silu = u32::from(self.silu);
            let norm = kernel::<T>(device, Module::Norm, "group_norm", width)?;
            let mut launch = norm.builder();
            launch.arg(&x).arg(&of_groups).arg(affine.weight).arg(affine.bias).arg(&mut y);
            launch.arg(&pixels).arg(&channels).arg(&groups).arg(&part_pixels).arg(&silu);
            // SAFETY: the kernel's arguments; the maps, statistics and weights are of these sizes, in line for this width.
            unsafe { launch.launch(dims.parts_of_channels(width)) }.w()
        })?;
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    }

    fn gradient<T: Value>(&self, xs: &CudaStorage, xl: &Layout, gs: &CudaStorage, gl: &Layout) -> Result<CudaStorage> {
        let (device, dims) = (xs.device(), self.dims(xl)?);
        let Dims { pixels, channels, groups, part_pixels, .. } = dims;
        let (x, dy) = (contiguous::<T>(xs, xl)?, contiguous::<T>(gs, gl)?);
        if dy.len() != x.len() {
            bail!("a gradient of {:?} for a map of {:?}", gl.shape(), xl.shape())
        }
        let mut dx = unwritten::<T>(device, x.len())?;
        let (mut of_parts, mut means) = (dims.of_parts(device)?, dims.of_groups(device)?);
        with_affine(&self.weight, &self.bias, channels as usize, |affine| {
            let width = affine.width::<T>(channels as usize, &[xl.start_offset(), gl.start_offset()]);
            let moments = self.moments(device, &x, dims, width)?;
            let silu = u32::from(self.silu);
            let sums = kernel::<T>(device, Module::Norm, "group_norm_sums", width)?;
            let mut launch = sums.builder();
            launch.arg(&x).arg(&dy).arg(&moments).arg(affine.weight).arg(affine.bias).arg(&mut of_parts);
            launch.arg(&pixels).arg(&channels).arg(&groups).arg(&part_pixels).arg(&silu);
            // SAFETY: the kernel's arguments; the maps, statistics and weights are of these sizes, in line for this width.
            unsafe { launch.launch(dims.parts_of_channels(width)) }.w()?;
            let merge = kernels::function(device, Module::Norm, "group_norm_merge_sums")?;
            let mut launch = merge.builder();
            launch.arg(&of_parts).arg(&mut means);
            launch.arg(&pixels).arg(&channels).arg(&groups).arg(&part_pixels);
            // SAFETY: the kernel's arguments; the statistics are of these sizes.
            unsafe { launch.launch(dims.each_group()) }.w()?;
            let backward = kernel::<T>(device, Module::Norm, "group_norm_backward", width)?;
            let mut launch = backward.builder();
            launch.arg(&x).arg(&dy).arg(&moments).arg(&means).arg(affine.weight).arg(affine.bias).arg(&mut dx);
            launch.arg(&pixels).arg(&channels).arg(&groups).arg(&part_pixels).arg(&silu);
            // SAFETY: as before the last but one.
            unsafe { launch.launch(dims.parts_of_channels(width)) }.w()
        })?;
        Ok(CudaStorage::wrap_cuda_slice(dx, device.clone()))
    }
}

impl CustomOp1 for GroupNorm {
    fn name(&self) -> &'static str {
        "frozen-group-norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = with_type!(storage, "GroupNorm", T => self.forward::<T>(storage, layout))?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GroupNormBackward(self))?))
    }
}

/// The gradient of the norm's input, from the input and the gradient of the result.
struct GroupNormBackward<'a>(&'a GroupNorm);

impl CustomOp2 for GroupNormBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-group-norm-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, xs: &CudaStorage, xl: &Layout, gs: &CudaStorage, gl: &Layout) -> Result<(CudaStorage, Shape)> {
        let dx = with_type!(xs, "GroupNorm", T => self.0.gradient::<T>(xs, xl, gs, gl))?;
        Ok((dx, xl.shape().clone()))
    }
}

/// LayerNorm over the last dimension (f32 or f16, contiguous), arXiv 1607.06450. Statistics are f32.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[C]`, f32.
    pub weight: Tensor,
    /// `[C]`, f32.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    fn channels(&self, layout: &Layout) -> Result<usize> {
        let channels = self.weight.dims1()?;
        if layout.dims().last() != Some(&channels) {
            bail!("a LayerNorm of {channels} channels got {:?}", layout.shape())
        }
        Ok(channels)
    }

    /// A warp for each row.
    fn each_row(rows: usize) -> Result<LaunchConfig> {
        let grid_dim = (size(rows)?.div_ceil(ROWS_OF_BLOCK), 1, 1);
        Ok(LaunchConfig { grid_dim, block_dim: (ROWS_OF_BLOCK * 32, 1, 1), shared_mem_bytes: 0 })
    }

    fn forward<T: Value>(&self, storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        let (device, c) = (storage.device(), self.channels(layout)?);
        let x = contiguous::<T>(storage, layout)?;
        let mut y = unwritten::<T>(device, x.len())?;
        let (rows, channels, eps) = (x.len() / c, size(c)?, self.eps as f32);
        with_affine(&self.weight, &self.bias, c, |affine| {
            let width = affine.width::<T>(c, &[layout.start_offset()]);
            let norm = kernel::<T>(device, Module::Norm, "layer_norm", width)?;
            let mut launch = norm.builder();
            launch.arg(&x).arg(affine.weight).arg(affine.bias).arg(&mut y).arg(&rows).arg(&channels).arg(&eps);
            // SAFETY: the kernel's arguments; so many whole rows, in line for this width, and as many weights as channels.
            unsafe { launch.launch(Self::each_row(rows)?) }.w()
        })?;
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    }

    fn gradient<T: Value>(&self, xs: &CudaStorage, xl: &Layout, gs: &CudaStorage, gl: &Layout) -> Result<CudaStorage> {
        let (device, c) = (xs.device(), self.channels(xl)?);
        let (x, dy) = (contiguous::<T>(xs, xl)?, contiguous::<T>(gs, gl)?);
        if dy.len() != x.len() {
            bail!("a gradient of {:?} for {:?}", gl.shape(), xl.shape())
        }
        let mut dx = unwritten::<T>(device, x.len())?;
        let (rows, channels, eps) = (x.len() / c, size(c)?, self.eps as f32);
        with_affine(&self.weight, &self.bias, c, |affine| {
            let width = affine.width::<T>(c, &[xl.start_offset(), gl.start_offset()]);
            let backward = kernel::<T>(device, Module::Norm, "layer_norm_backward", width)?;
            let mut launch = backward.builder();
            launch.arg(&x).arg(&dy).arg(affine.weight).arg(&mut dx).arg(&rows).arg(&channels).arg(&eps);
            // SAFETY: the kernel's arguments; so many whole rows, in line for this width, and as many weights as channels.
            unsafe { launch.launch(Self::each_row(rows)?) }.w()
        })?;
        Ok(CudaStorage::wrap_cuda_slice(dx, device.clone()))
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "frozen-layer-norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = with_type!(storage, "LayerNorm", T => self.forward::<T>(storage, layout))?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &LayerNormBackward(self))?))
    }
}

/// The gradient of the norm's input, from the input and the gradient of the result.
struct LayerNormBackward<'a>(&'a LayerNorm);

impl CustomOp2 for LayerNormBackward<'_> {
    fn name(&self) -> &'static str {
        "frozen-layer-norm-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, xs: &CudaStorage, xl: &Layout, gs: &CudaStorage, gl: &Layout) -> Result<(CudaStorage, Shape)> {
        let dx = with_type!(xs, "LayerNorm", T => self.0.gradient::<T>(xs, xl, gs, gl))?;
        Ok((dx, xl.shape().clone()))
    }
}
