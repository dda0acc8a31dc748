//! A frozen 3x3 convolution with padding 1, channels last, as an implicit matrix product: each block gathers the
//! neighbourhoods of its pixels as it reads them.

use crate::gemm::{Activation, Gather, a_thread_each, size};
use crate::kernels::{self, Module};
use crate::layer::{Layer, contiguous};
use crate::weight::{Direction, Weight};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::f16;
use std::sync::Arc;

/// `y[b, p, :] = bias + sum over the 3x3 neighbourhood of p`, `x: [B, H*W, in]`, `y: [B, H'*W', out]`.
#[derive(Debug, Clone)]
pub struct Conv3x3 {
    /// `[out, (ky, kx, in)]`.
    pub weight: Arc<Weight>,
    /// `[out]`, f32.
    pub bias: Tensor,
    /// Height of the input in pixels.
    pub height: usize,
    /// Width of the input in pixels.
    pub width: usize,
    /// How often each pixel of the input is repeated both ways before the convolution: 2 is the UNet's upsampling, else 1.
    pub repeat: usize,
    /// 1 or 2; the output has `ceil(repeat H / stride)` rows.
    pub stride: usize,
}

impl CustomOp1 for Conv3x3 {
    fn name(&self) -> &'static str {
        "frozen-conv3x3"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("this convolution's weight is on a GPU and its input is not: move the input there")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.pass(Direction::Forward, storage, layout)
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&Conv3x3Backward(self))?))
    }
}

/// The gradient of the input: each of its pixels gathers the gradients of the output's pixels that have read it.
struct Conv3x3Backward<'a>(&'a Conv3x3);

impl CustomOp1 for Conv3x3Backward<'_> {
    fn name(&self) -> &'static str {
        "frozen-conv3x3-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("this convolution's weight is on a GPU and the gradient is not: move the gradient there")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.pass(Direction::Backward, storage, layout)
    }
}

impl Conv3x3 {
    fn pass(&self, direction: Direction, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let &Conv3x3 { height, width, repeat, stride, .. } = self;
        if !(1..=2).contains(&repeat) || !(1..=2).contains(&stride) {
            bail!("a 3x3 convolution has a stride and a repeat of 1 or 2, not {stride} and {repeat}")
        }
        if !self.weight.inputs().is_multiple_of(9) {
            bail!("a 3x3 convolution has a weight for {} inputs, which are not nine taps", self.weight.inputs())
        }
        let (inputs, outputs) = (self.weight.inputs() / 9, self.weight.outputs());
        self.weight.check(&storage.device, inputs)?;
        let (before, after) = ((height * width, inputs), (self.out_height() * self.out_width(), outputs));
        let (from, to) = match direction {
            Direction::Forward => (before, after),
            Direction::Backward => (after, before),
        };
        let (batch, pixels, channels) = layout.shape().dims3()?;
        if (pixels, channels) != from {
            bail!(
                "a 3x3 convolution {inputs} -> {outputs} of {height}x{width} pixels takes [B, {}, {}], got {:?}",
                from.0,
                from.1,
                layout.shape()
            )
        }
        let y = match storage.dtype() {
            DType::F16 => self.maps::<f16>(direction, storage, layout, batch)?,
            DType::F32 => self.maps::<f32>(direction, storage, layout, batch)?,
            other => bail!("a 3x3 convolution takes f16 or f32 numbers, got {other:?}"),
        };
        Ok((y, (batch, to.0, to.1).into()))
    }

    fn maps<T: Activation>(
        &self,
        direction: Direction,
        storage: &CudaStorage,
        layout: &Layout,
        batch: usize,
    ) -> Result<CudaStorage> {
        let (x, start) = contiguous::<T>(storage, layout)?;
        let device = &storage.device;
        let y = match direction {
            Direction::Forward => {
                let (m, n) = (batch * self.out_height() * self.out_width(), self.weight.outputs());
                let (gather, bias) = (self.gather()?, Some(&self.bias));
                Layer { weight: &self.weight, direction, bias, gather, m, n }.pass(device, x, start)?
            }
            Direction::Backward => {
                let (m, n) = (batch * self.height * self.width, self.weight.inputs() / 9);
                let layer =
                    Layer { weight: &self.weight, direction, bias: None, gather: self.gather_gradients()?, m, n };
                match self.repeat {
                    1 => layer.pass(device, x, start)?,
                    _ => layer.pass(device, self.fold(device, &x, batch)?.as_view(), 0)?,
                }
            }
        };
        Ok(T::wrap_cuda_slice(y, device.clone()))
    }

    fn out_height(&self) -> usize {
        (self.height * self.repeat).div_ceil(self.stride)
    }

    fn out_width(&self) -> usize {
        (self.width * self.repeat).div_ceil(self.stride)
    }

    /// From an output pixel to those of the input: pixel `y` reads repeated rows `stride y - 1` to `stride y + 1`.
    fn gather(&self) -> Result<Gather> {
        Ok(Gather {
            channels: size(self.weight.inputs() / 9)?,
            taps_across: 3,
            out_height: size(self.out_height())?,
            out_width: size(self.out_width())?,
            height: size(self.height * self.repeat)?,
            width: size(self.width * self.repeat)?,
            source_height: size(self.height)?,
            source_width: size(self.width)?,
            stride: size(self.stride)?,
            pad: 1,
            shift: size(self.repeat - 1)?,
            parity: 0,
        })
    }

    /// From an input pixel to the gradients of the output pixels that read it. Without repetition pixel `y` was read, with
    /// tap `t`, from row `y + 1 - t` of the output spread over every `stride`-th row; counting the taps from the last,
    /// that is `y + t' - 1`. With repetition the same rows of pixels `2 y` and `2 y + 1` have been added up by `fold`,
    /// which makes them row `2 y + t'`.
    fn gather_gradients(&self) -> Result<Gather> {
        let (height, width) = (size(self.height)?, size(self.width)?);
        let own = Gather {
            channels: size(self.weight.outputs())?,
            taps_across: 3,
            out_height: height,
            out_width: width,
            height,
            width,
            source_height: size(self.out_height())?,
            source_width: size(self.out_width())?,
            stride: 1,
            pad: 1,
            shift: size(self.stride - 1)?,
            parity: size(self.stride - 1)?,
        };
        let (folded_height, folded_width) = (2 * height + 1, 2 * width + 1);
        Ok(match self.repeat {
            1 => own,
            _ => Gather {
                height: folded_height,
                width: folded_width,
                source_height: folded_height,
                source_width: folded_width,
                stride: 2,
                pad: 0,
                shift: 0,
                parity: 0,
                ..own
            },
        })
    }

    /// `[B, (2H + 1) * (2W + 1), out]`: each number the sum of the gradients of 2x2 neighbours. What goes to four places
    /// gathers the gradients of all, and to add these first costs a quarter of the products.
    fn fold<T: Activation>(&self, device: &CudaDevice, dy: &CudaView<'_, T>, batch: usize) -> Result<CudaSlice<T>> {
        let (height, width, channels) = (2 * self.height, 2 * self.width, self.weight.outputs());
        let count = batch * (height + 1) * (width + 1) * channels;
        // SAFETY: the kernel writes all of it.
        let mut sums = unsafe { device.alloc::<T>(count)? };
        let name = if T::TENSOR_CORES { "gemm_fold_f16" } else { "gemm_fold_f32" };
        let function = kernels::function(device, Module::Gemm, name)?;
        let sizes = [size(height)?, size(width)?, size(self.stride)?, size(channels)?];
        let numbers = count as i64;
        let mut launch = function.builder();
        launch.arg(dy).arg(&mut sums);
        sizes.iter().for_each(|size| {
            launch.arg(size);
        });
        launch.arg(&numbers);
        if count > 0 {
            // SAFETY: the arguments are the kernel's; it reads within the gradient, whose shape has been checked, and
            // writes `count` numbers.
            unsafe { launch.launch(a_thread_each(count)?) }.w()?;
        }
        Ok(sums)
    }
}
