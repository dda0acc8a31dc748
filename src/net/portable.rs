//! The layers in stock candle ops: for devices without kernels of our own, and the oracle that the kernels are tested
//! against, forward and backward.

use crate::Result;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, D, DType, Layout, MetalStorage, Shape, Tensor};
use pleinair_cpu as cpu;

/// Stock candle computes the gradient of a frozen weight along with the input's. This op stands in the graph for a
/// finished product `y` of `x` and knows only the gradient of `x`.
struct InputGradientOnly<F> {
    backward: F,
}

impl<F: Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync> CustomOp2 for InputGradientOnly<F> {
    fn name(&self) -> &'static str {
        "input-gradient-only"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        y: &CpuStorage,
        l: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((y.try_clone(l)?, l.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        y: &CudaStorage,
        l: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((y.try_clone(l)?, l.shape().clone()))
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        y: &MetalStorage,
        l: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        Ok((y.try_clone(l)?, l.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _y: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some((self.backward)(&grad.contiguous()?)?), None))
    }
}

fn input_gradient_only(
    x: &Tensor,
    y: Tensor,
    backward: impl Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(y);
    }
    Ok(x.apply_op2(&y.contiguous()?, InputGradientOnly { backward })?)
}

/// `x [.., k]` times `w [k, n]`.
fn times(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let k = dims.pop().unwrap_or(1);
    dims.push(w.dim(1)?);
    x.contiguous()?.reshape((x.elem_count() / k, k))?.matmul(w)?.reshape(dims)
}

pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let product = times(&x.detach(), &weight.t()?)?;
    let y = match bias {
        Some(bias) => product.broadcast_add(bias)?,
        None => product,
    };
    let weight = weight.clone();
    input_gradient_only(x, y, move |grad| times(grad, &weight))
}

/// Nine shifted views, each times its slice of the weight. `x: [B, H*W, in]`, `weight: [9 * in, out]`.
fn shifted_products(x: &Tensor, weight: &Tensor, h: usize, w: usize, stride: usize) -> candle_core::Result<Tensor> {
    let (b, _, cin) = x.dims3()?;
    let (out_h, out_w) = (h.div_ceil(stride), w.div_ceil(stride));
    let padded = x.reshape((b, h, w, cin))?.pad_with_zeros(1, 1, stride)?.pad_with_zeros(2, 1, stride)?;
    let mut sum: Option<Tensor> = None;
    for k in 0..9 {
        let view = padded.narrow(1, k / 3, out_h * stride)?.narrow(2, k % 3, out_w * stride)?.contiguous()?;
        let view = view.reshape((b, out_h, stride, out_w, stride, cin))?.narrow(2, 0, 1)?.narrow(4, 0, 1)?;
        let view = view.contiguous()?.reshape((b, out_h * out_w, cin))?;
        let product = times(&view, &weight.narrow(0, k * cin, cin)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + product)?,
            None => product,
        });
    }
    Ok(sum.expect("nine products"))
}

/// Zeros between the pixels, so that `grad: [B, h'*w', C]` of a strided convolution lies on the input's `h x w` grid.
fn spread(grad: &Tensor, h: usize, w: usize, stride: usize) -> candle_core::Result<Tensor> {
    let (b, _, c) = grad.dims3()?;
    let (out_h, out_w) = (h.div_ceil(stride), w.div_ceil(stride));
    let wide = grad.reshape((b, out_h, 1, out_w, 1, c))?.pad_with_zeros(2, 0, stride - 1)?;
    let wide = wide.pad_with_zeros(4, 0, stride - 1)?.reshape((b, out_h * stride, out_w * stride, c))?;
    wide.narrow(1, 0, h)?.narrow(2, 0, w)?.contiguous()?.reshape((b, h * w, c))
}

pub(super) fn conv3x3(
    x: &Tensor,
    kernel: &std::sync::Arc<cpu::Kernel3x3>,
    h: usize,
    w: usize,
    stride: usize,
) -> Result<Tensor> {
    let y = shifted_products(&x.detach(), kernel.weight(), h, w, stride)?.broadcast_add(kernel.bias())?;
    let kernel = kernel.clone();
    input_gradient_only(x, y, move |grad| shifted_products(&spread(grad, h, w, stride)?, &kernel.flipped()?, h, w, 1))
}

fn silu(x: &Tensor) -> candle_core::Result<Tensor> {
    x / (x.neg()?.exp()? + 1.0)?
}

/// `(x - mean) / std` over the last dimension.
fn standardised(x: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}

pub(super) fn group_norm(x: &Tensor, norm: &cpu::GroupNorm) -> Result<Tensor> {
    let (b, n, c) = x.dims3()?;
    let (groups, size) = (norm.groups, c / norm.groups);
    let grouped = x.reshape((b, n, groups, size))?.transpose(1, 2)?.contiguous()?.reshape((b, groups, n * size))?;
    let flat = standardised(&grouped, norm.eps)?.reshape((b, groups, n, size))?.transpose(1, 2)?.contiguous()?;
    let y = flat.reshape((b, n, c))?.broadcast_mul(&norm.weight)?.broadcast_add(&norm.bias)?;
    Ok(if norm.silu { silu(&y)? } else { y })
}

pub(super) fn layer_norm(x: &Tensor, norm: &cpu::LayerNorm) -> Result<Tensor> {
    Ok(standardised(x, norm.eps)?.broadcast_mul(&norm.weight)?.broadcast_add(&norm.bias)?)
}

pub(super) fn attention(q: &Tensor, kv: &Tensor, op: cpu::Attention) -> Result<Tensor> {
    let (b, n, c) = q.dims3()?;
    let (m, d) = (kv.dim(1)?, c / op.heads);
    let heads = |x: Tensor, rows: usize| x.contiguous()?.reshape((b, rows, op.heads, d))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads(q.clone(), n)?, heads(kv.narrow(2, 0, c)?, m)?, heads(kv.narrow(2, c, c)?, m)?);
    let mut scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (d as f64).sqrt())?;
    if op.causal {
        let hidden: Vec<f32> = (0..n * m).map(|i| if i % m > i / m { f32::NEG_INFINITY } else { 0.0 }).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(hidden, (n, m), q.device())?)?;
    }
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    Ok(p.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b, n, c))?)
}

pub(super) fn geglu(x: &Tensor) -> Result<Tensor> {
    let c = x.dim(D::Minus1)? / 2;
    let (value, gate) = (x.narrow(D::Minus1, 0, c)?, x.narrow(D::Minus1, c, c)?);
    debug_assert_eq!(gate.dtype(), DType::F32);
    Ok((value.contiguous()? * gate.contiguous()?.gelu_erf()?)?)
}
