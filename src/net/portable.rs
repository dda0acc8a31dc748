//! The layers in stock candle ops: the oracle that the processor's kernels are tested against, forward and backward.

use crate::Result;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, D, DType, Device, Layout, MetalStorage, Shape, Tensor};
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
    let y = y.detach();
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

/// The weight in f32 where `x` is, for as long as one product needs it.
fn in_f32(weight: &cpu::Weight, device: &Device) -> candle_core::Result<Tensor> {
    Tensor::from_slice(&weight.to_f32(), (weight.outputs(), weight.inputs()), device)
}

pub(super) fn linear(x: &Tensor, layer: cpu::Linear) -> Result<Tensor> {
    let product = times(&x.detach(), &in_f32(&layer.weight, x.device())?.t()?)?;
    let y = match &layer.bias {
        Some(bias) => product.broadcast_add(bias)?,
        None => product,
    };
    input_gradient_only(x, y, move |grad| times(grad, &in_f32(&layer.weight, grad.device())?))
}

/// Nine shifted views, each times its `[in, out]` of the kernel, given by `tap`. `x: [B, H*W, in]`.
fn shifted_products(
    x: &Tensor,
    tap: impl Fn(usize) -> candle_core::Result<Tensor>,
    h: usize,
    w: usize,
    stride: usize,
) -> candle_core::Result<Tensor> {
    let (b, _, cin) = x.dims3()?;
    let (out_h, out_w) = (h.div_ceil(stride), w.div_ceil(stride));
    let padded = x.reshape((b, h, w, cin))?.pad_with_zeros(1, 1, stride)?.pad_with_zeros(2, 1, stride)?;
    let mut sum: Option<Tensor> = None;
    for k in 0..9 {
        let view = padded.narrow(1, k / 3, out_h * stride)?.narrow(2, k % 3, out_w * stride)?.contiguous()?;
        let view = view.reshape((b, out_h, stride, out_w, stride, cin))?.narrow(2, 0, 1)?.narrow(4, 0, 1)?;
        let view = view.contiguous()?.reshape((b, out_h * out_w, cin))?;
        let product = times(&view, &tap(k)?)?;
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

/// Every pixel of `x: [B, h*w, C]` `repeat` times in both directions.
fn repeated(x: &Tensor, h: usize, w: usize, repeat: usize) -> candle_core::Result<Tensor> {
    let (b, _, c) = x.dims3()?;
    let x = x.reshape((b, h, 1, w, 1, c))?.broadcast_as((b, h, repeat, w, repeat, c))?;
    x.contiguous()?.reshape((b, h * repeat * w * repeat, c))
}

pub(super) fn conv3x3(x: &Tensor, layer: cpu::Conv3x3) -> Result<Tensor> {
    let (stride, repeat, cin) = (layer.stride, layer.repeat, layer.weight.inputs() / 9);
    let x = &if repeat == 1 { x.clone() } else { repeated(x, layer.height, layer.width, repeat)? };
    let (h, w) = (layer.height * repeat, layer.width * repeat);
    let weight = in_f32(&layer.weight, x.device())?;
    let tap = |k: usize| weight.narrow(1, k * cin, cin)?.t()?.contiguous();
    let y = shifted_products(&x.detach(), tap, h, w, stride)?.broadcast_add(&layer.bias)?;
    input_gradient_only(x, y, move |grad| {
        // the kernel turned by half a circle and transposed
        let weight = in_f32(&layer.weight, grad.device())?;
        let tap = |k: usize| weight.narrow(1, (8 - k) * cin, cin)?.contiguous();
        shifted_products(&spread(grad, h, w, stride)?, tap, h, w, 1)
    })
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
    let y = flat.reshape((b, n, c))?.broadcast_mul(&norm.weight.detach())?.broadcast_add(&norm.bias.detach())?;
    Ok(if norm.silu { y.silu()? } else { y })
}

pub(super) fn layer_norm(x: &Tensor, norm: &cpu::LayerNorm) -> Result<Tensor> {
    Ok(standardised(x, norm.eps)?.broadcast_mul(&norm.weight.detach())?.broadcast_add(&norm.bias.detach())?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use std::sync::Arc;

    /// Unit roundoff of f32.
    const U: f32 = 1.0 / (1 << 24) as f32;

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Numbers in [-size, size].
    fn numbers(seed: f32, size: f32, shape: &[usize]) -> Var {
        let waves = (0..shape.iter().product()).map(|i| size * (i as f32 * 0.7 + seed + (i as f32 * 0.13).cos()).sin());
        Var::from_tensor(&Tensor::from_vec(waves.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn stored(rows: Vec<f32>, outputs: usize) -> Arc<cpu::Weight> {
        let inputs = rows.len() / outputs;
        Arc::new(cpu::Weight::new(outputs, inputs, cpu::Values::F32(rows.into())).unwrap())
    }

    /// Two f32 evaluations, each off by at most so many roundings of the largest value.
    fn assert_close(what: &str, a: &Tensor, b: &Tensor, roundings: usize) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let (a, b) = (flat(a), flat(b));
        let largest = b.iter().fold(0.0f32, |m, b| m.max(b.abs()));
        let bound = 2.0 * roundings as f32 * U * largest;
        let mut worst = 0.0f32;
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            let diff = (a - b).abs();
            assert!(diff <= bound, "{what}: value {i} is {a} and {b}, more than {bound:e} apart");
            worst = worst.max(diff);
        }
        println!("{what}: {worst:.1e} apart, bound {bound:.1e}");
    }

    type Layer<'a> = dyn Fn(&[Tensor]) -> Tensor + 'a;

    /// Values and gradients of `sum(r * layer(inputs))` from both; no frozen weight receives a gradient.
    fn compare(
        what: &str,
        inputs: &[&Var],
        frozen: &[&Var],
        portable: &Layer<'_>,
        kernel: &Layer<'_>,
        roundings: usize,
    ) {
        let run = |layer: &Layer<'_>| {
            let y = layer(&inputs.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>());
            let r = numbers(0.5, 1.0, y.dims());
            // transposed, so that the gradient arrives with strides
            let last = y.rank() - 1;
            let loss = y.transpose(0, last).unwrap() * r.detach().transpose(0, last).unwrap();
            (y, loss.unwrap().sum_all().unwrap().backward().unwrap())
        };
        let ((a, a_grads), (b, b_grads)) = (run(portable), run(kernel));
        assert_close(what, &a, &b, roundings);
        for (i, input) in inputs.iter().enumerate() {
            let gradient = |grads: &candle_core::backprop::GradStore| grads.get(input).expect("reached").clone();
            let what = format!("{what}, gradient of input {i}");
            assert_close(&what, &gradient(&a_grads), &gradient(&b_grads), roundings);
        }
        for weight in frozen {
            assert!(a_grads.get(weight).is_none() && b_grads.get(weight).is_none(), "{what}: a weight has a gradient");
        }
        // nothing is recorded where nothing is learned
        let plain = portable(&inputs.iter().map(|v| v.detach()).collect::<Vec<_>>());
        assert!(!plain.track_op(), "{what}: recorded for no one");
    }

    #[test]
    fn linear_layers_agree() {
        for (shape, outputs) in [(&[1, 1, 1][..], 1), (&[2, 5, 8], 3), (&[3, 65], 40)] {
            let inputs = *shape.last().unwrap();
            let (weight, bias) = (numbers(1.0, 1.0, &[outputs, inputs]), numbers(2.0, 1.0, &[outputs]));
            for bias in [None, Some(&bias)] {
                let bias_tensor = bias.map(|b| b.as_tensor().clone());
                let op = cpu::Linear { weight: stored(flat(&weight), outputs), bias: bias_tensor };
                compare(
                    &format!("linear {shape:?} -> {outputs}, bias {}", bias.is_some()),
                    &[&numbers(3.0, 1.0, shape)],
                    &[&[&weight], bias.as_slice()].concat(),
                    &|x| linear(&x[0], op.clone()).unwrap(),
                    &|x| x[0].apply_op1(op.clone()).unwrap(),
                    inputs.max(outputs) + 4,
                );
            }
        }
    }

    #[test]
    fn convolutions_agree() {
        let sizes =
            [(1, 1, 1, 1, 1), (2, 2, 3, 3, 8), (1, 5, 4, 8, 3), (3, 4, 6, 3, 1), (1, 17, 16, 3, 4), (1, 3, 3, 65, 8)];
        let cases = sizes.into_iter().flat_map(|s| [(s, 1, 1), (s, 1, 2), (s, 2, 1)]);
        for ((b, h, w, cin, cout), repeat, stride) in cases {
            let (weight, bias) = (numbers(1.0, 1.0, &[cout, cin, 3, 3]), numbers(2.0, 1.0, &[cout]));
            let rows = cpu::channels_last(&flat(&weight), cin);
            let bias_tensor = bias.as_tensor().clone();
            let weight_rows = stored(rows, cout);
            let op = cpu::Conv3x3 { weight: weight_rows, bias: bias_tensor, height: h, width: w, repeat, stride };
            compare(
                &format!("conv {b} x {h}x{w} {cin} -> {cout}, repeat {repeat}, stride {stride}"),
                &[&numbers(3.0, 1.0, &[b, h * w, cin])],
                &[&weight, &bias],
                &|x| conv3x3(&x[0], op.clone()).unwrap(),
                &|x| x[0].apply_op1(op.clone()).unwrap(),
                repeat * repeat * (9 * cin.max(cout) + 4),
            );
        }
    }

    #[test]
    fn norms_agree() {
        for (b, n, c, groups) in [(1, 4, 3, 1), (2, 257, 8, 2), (3, 9, 40, 8), (1, 16, 65, 5)] {
            let (weight, bias) = (numbers(1.0, 1.0, &[c]), numbers(2.0, 1.0, &[c]));
            let (w, bt) = (weight.as_tensor().clone(), bias.as_tensor().clone());
            let x = numbers(3.0, 2.0, &[b, n, c]);
            for silu in [false, true] {
                let op = cpu::GroupNorm {
                    weight: w.clone(),
                    bias: bt.clone(),
                    groups,
                    eps: 1e-5,
                    silu,
                    isa: cpu::isa::best(),
                };
                compare(
                    &format!("group norm {b} x {n} x {c} in {groups}, SiLU {silu}"),
                    &[&x],
                    &[&weight, &bias],
                    &|x| group_norm(&x[0], &op).unwrap(),
                    &|x| x[0].apply_op1(op.clone()).unwrap(),
                    // stock sums over a group are in f32
                    2 * n * c / groups + 24,
                );
            }
            let op = cpu::LayerNorm { weight: w, bias: bt, eps: 1e-5, isa: cpu::isa::best() };
            compare(
                &format!("layer norm {b} x {n} x {c}"),
                &[&x],
                &[&weight, &bias],
                &|x| layer_norm(&x[0], &op).unwrap(),
                &|x| x[0].apply_op1(op.clone()).unwrap(),
                4 * c + 24,
            );
        }
    }

    /// Where exp(-x) overflows, SiLU and its slope are plain zero, not NaN.
    #[test]
    fn group_norm_far_below_zero() {
        let (ones, low) =
            (Tensor::ones(4, DType::F32, &Device::Cpu).unwrap(), Tensor::new(&[-200f32; 4], &Device::Cpu));
        let op = cpu::GroupNorm {
            weight: ones,
            bias: low.unwrap(),
            groups: 1,
            eps: 1e-5,
            silu: true,
            isa: cpu::isa::best(),
        };
        let x = numbers(3.0, 1.0, &[1, 2, 4]);
        let y = group_norm(&x, &op).unwrap();
        let gradient = y.backward().unwrap().remove(&x).unwrap();
        assert!(flat(&y).iter().chain(&flat(&gradient)).all(|&v| v == 0.0), "{y} {gradient}");
    }

    #[test]
    fn attentions_agree() {
        for (b, n, m, c, heads) in
            [(1, 1, 1, 1, 1), (2, 1, 7, 8, 2), (3, 63, 63, 3, 3), (1, 65, 65, 40, 5), (2, 65, 7, 8, 1)]
        {
            for causal in if n == m { vec![false, true] } else { vec![false] } {
                let op = cpu::Attention { heads, causal, precision: cpu::Precision::F32, isa: cpu::isa::best() };
                let what = format!("attention {b} x {n} to {m}, {c} in {heads} heads, causal {causal}");
                let roundings = 3 * m + n + 4 * c / heads + 24;
                compare(
                    &what,
                    &[&numbers(3.0, 3.0, &[b, n, c]), &numbers(4.0, 1.0, &[b, m, 2 * c])],
                    &[],
                    &|x| attention(&x[0], &x[1], op).unwrap(),
                    &|x| x[0].apply_op2(&x[1], op).unwrap(),
                    roundings,
                );
                if n == m {
                    let parts = |x: &Tensor| (x.narrow(2, 0, c).unwrap(), x.narrow(2, c, 2 * c).unwrap());
                    compare(
                        &format!("{what}, of one projection"),
                        &[&numbers(3.0, 2.0, &[b, n, 3 * c])],
                        &[],
                        &|x| attention(&parts(&x[0]).0, &parts(&x[0]).1, op).unwrap(),
                        &|x| parts(&x[0]).0.apply_op2(&parts(&x[0]).1, op).unwrap(),
                        roundings,
                    );
                }
            }
        }
    }

    #[test]
    fn geglus_agree() {
        // a single value with an open gate: where the gate is shut, nothing but rounding is left
        for (shape, size) in [(&[1, 1, 2][..], 0.5), (&[2, 5, 6], 6.0), (&[3, 130], 6.0)] {
            compare(
                &format!("GEGLU {shape:?}"),
                &[&numbers(3.0, size, shape)],
                &[],
                &|x| geglu(&x[0]).unwrap(),
                &|x| x[0].apply_op1(cpu::Geglu { isa: cpu::isa::best() }).unwrap(),
                // stock candle's slope has the factor 0.398942, short of 1 / sqrt(2 pi) by 7e-7 of it
                24,
            );
        }
    }

    #[test]
    #[should_panic(expected = "value 0 is NaN")]
    fn the_comparison_catches_nan() {
        let one = |x: f32| Tensor::new(&[x], &Device::Cpu).unwrap();
        assert_close("NaN", &one(f32::NAN), &one(1.0), 8);
    }
}
