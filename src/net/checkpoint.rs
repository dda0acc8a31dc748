//! Block checkpointing: a block's inside is not kept for the backward but computed again from its inputs, so that
//! learning holds one block's activations at a time (arXiv 1604.06174).

use crate::Result;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Error, Layout, MetalStorage, Shape, Storage, Tensor, Var,
};
use std::sync::Mutex;

/// The block as a function of its input and, where it has one, the text's keys and values.
type Block = dyn Fn(&Tensor, Option<&Tensor>) -> Result<Tensor> + Send + Sync;

/// `block(x, kv)`. If a gradient can flow through neither argument (all of painting, and of learning everything before
/// the first cross-attention), this is a plain call.
pub(super) fn checkpointed(
    x: &Tensor,
    kv: Option<&Tensor>,
    block: impl Fn(&Tensor, Option<&Tensor>) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() && !kv.is_some_and(Tensor::track_op) {
        return block(x, kv);
    }
    let mut y = block(&x.detach(), kv.map(Tensor::detach).as_ref())?;
    if !y.is_contiguous() || y.layout().start_offset() != 0 {
        y = y.force_contiguous()?;
    }
    let op = Recompute { y: Mutex::new(Some(y)), block: Box::new(block) };
    Ok(match kv {
        Some(kv) => x.apply_op2(kv, op)?,
        None => x.apply_op1(op)?,
    })
}

struct Recompute {
    /// The finished result, until the graph has its own copy.
    y: Mutex<Option<Tensor>>,
    block: Box<Block>,
}

/// Hands the finished result out; `$variant` is the device's storage, of which `try_clone` copies all, from its start.
macro_rules! finished {
    ($self:ident, $variant:ident) => {{
        let y = $self.y.lock().ok().and_then(|mut y| y.take());
        let y = y.ok_or_else(|| Error::msg("a block's result was handed out already"))?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::$variant(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
            _ => Err(Error::msg("a block's result lies on another device than its input")),
        }
    }};
}

impl Recompute {
    /// Gradients of the arguments that a gradient can flow to, cut off from the block's inside.
    fn gradients(
        &self,
        x: &Tensor,
        kv: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let leaf = |t: &Tensor| if t.track_op() { Var::from_tensor(&t.detach()).map(Some) } else { Ok(None) };
        let (x_leaf, kv_leaf) = (leaf(x)?, kv.map(leaf).transpose()?.flatten());
        let x_in = x_leaf.as_ref().map_or(x.detach(), |v| v.as_tensor().clone());
        let kv_in = kv.map(|kv| kv_leaf.as_ref().map_or(kv.detach(), |v| v.as_tensor().clone()));
        let y = (self.block)(&x_in, kv_in.as_ref()).map_err(Error::wrap)?;
        let grads = (y * grad)?.sum_all()?.backward()?;
        // candle expects a gradient for every tracked argument, even where the block does not use it
        let of = |leaf: Var| grads.get(&leaf).map_or_else(|| leaf.zeros_like(), |g| Ok(g.detach()));
        Ok((x_leaf.map(of).transpose()?, kv_leaf.map(of).transpose()?))
    }
}

impl CustomOp1 for Recompute {
    fn name(&self) -> &'static str {
        "checkpointed-block"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        finished!(self, Cpu)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        finished!(self, Cuda)
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> candle_core::Result<(MetalStorage, Shape)> {
        finished!(self, Metal)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(self.gradients(x, None, grad)?.0)
    }
}

impl CustomOp2 for Recompute {
    fn name(&self) -> &'static str {
        "checkpointed-block"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        finished!(self, Cpu)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        finished!(self, Cuda)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        finished!(self, Metal)
    }

    fn bwd(
        &self,
        x: &Tensor,
        kv: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, Some(kv), grad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use pleinair_cpu::{self as cpu, isa};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    fn numbers(seed: f32, shape: (usize, usize, usize)) -> Tensor {
        let count = shape.0 * shape.1 * shape.2;
        let waves: Vec<_> = (0..count).map(|i| (i as f32 * 0.7 + seed + (i as f32 * 0.13).cos()).sin()).collect();
        Tensor::from_vec(waves, shape, &Device::Cpu).unwrap()
    }

    fn var(seed: f32, shape: (usize, usize, usize)) -> Var {
        Var::from_tensor(&numbers(seed, shape)).unwrap()
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// A residual block that attends to `kv`, or to itself.
    fn block(x: &Tensor, kv: Option<&Tensor>) -> Result<Tensor> {
        let doubled = Tensor::cat(&[x, x], 2)?;
        let isa = isa::best();
        let attention = cpu::Attention { heads: 2, causal: false, precision: cpu::Precision::F32, isa };
        let seen = x.apply_op2(kv.unwrap_or(&doubled), attention)?;
        let gated = Tensor::cat(&[&seen, x], 2)?.apply_op1(cpu::Geglu { isa })?;
        Ok(((gated * x)? + x)?)
    }

    /// The gradient of `sum(r * y)`.
    fn backward(y: &Tensor) -> candle_core::backprop::GradStore {
        (y * numbers(9.0, y.dims3().unwrap())).unwrap().sum_all().unwrap().backward().unwrap()
    }

    #[test]
    fn gradients_equal_those_of_the_plain_block() {
        let (x, kv) = (var(1.0, (2, 5, 4)), var(2.0, (2, 7, 8)));
        let (fixed_x, fixed_kv) = (x.detach(), kv.detach());
        let cases = [
            ("x", x.as_tensor(), None),
            ("x, fixed kv", x.as_tensor(), Some(&fixed_kv)),
            ("x and kv", x.as_tensor(), Some(kv.as_tensor())),
            ("kv, fixed x", &fixed_x, Some(kv.as_tensor())),
        ];
        for (what, x, kv) in cases {
            // also after, and besides, other ops on the same input
            let run = |call: &dyn Fn(&Tensor, Option<&Tensor>) -> Tensor| {
                let inner = (x * 0.5).unwrap();
                let y = (call(&inner, kv) + &inner).unwrap();
                (flat(&y), backward(&y))
            };
            let (plain_y, plain) = run(&|x, kv| block(x, kv).unwrap());
            let (y, grads) = run(&|x, kv| checkpointed(x, kv, block).unwrap());
            assert_eq!(plain_y, y, "{what}");
            for (name, leaf) in [("x", Some(x)), ("kv", kv)] {
                let Some(leaf) = leaf else { continue };
                if !leaf.is_variable() {
                    assert!(grads.get(leaf).is_none(), "{what}: {name} is not learned and has a gradient");
                    continue;
                }
                let (want, got) = (flat(plain.get(leaf).unwrap()), flat(grads.get(leaf).unwrap()));
                let largest = want.iter().fold(0.0f32, |m, g| m.max(g.abs()));
                for (want, got) in want.iter().zip(&got) {
                    // the same ops in the same order, but the sum over the two uses of the input may associate otherwise
                    let diff = (want - got).abs();
                    assert!(diff <= 4.0 * largest / (1 << 24) as f32, "{what}: {name}'s gradient is {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn without_anything_to_learn_it_is_a_plain_call() {
        let (x, kv) = (numbers(1.0, (1, 3, 4)), numbers(2.0, (1, 2, 8)));
        for kv in [None, Some(&kv)] {
            assert!(!checkpointed(&x, kv, block).unwrap().track_op());
            // the block's own result, not a copy
            let result = numbers(3.0, (1, 3, 4));
            let id = result.id();
            assert_eq!(checkpointed(&x, kv, move |_, _| Ok(result.clone())).unwrap().id(), id);
        }
        let (x, kv) = (var(1.0, (1, 3, 4)), var(2.0, (1, 2, 8)));
        assert!(checkpointed(&x, None, block).unwrap().track_op());
        assert!(checkpointed(&x.detach(), Some(&kv), block).unwrap().track_op());
    }

    /// x, and a token that lives as long as the graph remembers this op.
    struct Remembered(#[expect(dead_code, reason = "its count of owners is what is asked for")] Arc<()>);

    impl CustomOp1 for Remembered {
        fn name(&self) -> &'static str {
            "remembered"
        }

        fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
            Ok((x.try_clone(l)?, l.shape().clone()))
        }

        fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
            Ok(Some(grad.clone()))
        }
    }

    #[test]
    fn the_inside_is_computed_twice_and_never_kept() {
        let (calls, recorded, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let counted = {
            let (calls, recorded, alive) = (calls.clone(), recorded.clone(), alive.clone());
            move |x: &Tensor, _: Option<&Tensor>| {
                let first = calls.fetch_add(1, SeqCst) == 0;
                recorded.fetch_add((first && x.track_op()) as usize, SeqCst);
                // the square's own backward is a tracked product, which must not leave the block either
                Ok(x.sqr()?.apply_op1(Remembered(alive.clone()))?.sqr()?)
            }
        };
        let owners = || Arc::strong_count(&alive);
        let x = var(1.0, (1, 3, 4));
        let plain = counted(&x, None).unwrap();
        assert_eq!((calls.swap(0, SeqCst), owners()), (1, 3), "a plain block is kept: the count can tell");
        assert_eq!(recorded.swap(0, SeqCst), 1);
        drop(plain);

        let y = checkpointed(&x, None, counted).unwrap();
        assert_eq!((calls.load(SeqCst), owners()), (1, 2), "after the forward");
        assert_eq!(recorded.load(SeqCst), 0, "the forward records nothing even while it runs");
        let grads = backward(&y);
        assert_eq!((calls.load(SeqCst), owners()), (2, 2), "after the backward");
        assert!(!grads.get(&x).unwrap().track_op());
        backward(&y);
        assert_eq!((calls.load(SeqCst), owners()), (3, 2), "after a second backward");
    }

    #[test]
    fn a_block_may_return_part_of_a_tensor() {
        let x = var(1.0, (3, 2, 4));
        let part = |x: &Tensor, _: Option<&Tensor>| Ok(x.narrow(0, 1, 2)?);
        let transposed = |x: &Tensor, _: Option<&Tensor>| Ok(x.transpose(0, 1)?);
        assert_eq!(flat(&checkpointed(&x, None, part).unwrap()), flat(&part(&x, None).unwrap()));
        assert_eq!(flat(&checkpointed(&x, None, transposed).unwrap()), flat(&transposed(&x, None).unwrap()));
    }

    #[test]
    fn a_block_need_not_use_the_text() {
        let (x, kv) = (var(1.0, (1, 3, 4)), var(2.0, (1, 2, 8)));
        let y = checkpointed(&x, Some(&(kv.as_tensor() * 2.0).unwrap()), |x, _| block(x, None)).unwrap();
        let grads = backward(&y);
        assert!(flat(grads.get(&kv).unwrap()).iter().all(|&g| g == 0.0));
        assert!(flat(grads.get(&x).unwrap()).iter().any(|&g| g != 0.0));
    }

    #[test]
    fn a_block_that_fails_in_the_backward_is_an_error() {
        let x = var(1.0, (1, 3, 4));
        let calls = AtomicUsize::new(0);
        let once = move |x: &Tensor, _: Option<&Tensor>| match calls.fetch_add(1, SeqCst) {
            0 => Ok(x.sqr()?),
            _ => Err(crate::Error::Usage("out of paint".into())),
        };
        let y = checkpointed(&x, None, once).unwrap();
        let error = y.sum_all().unwrap().backward().unwrap_err();
        assert!(error.to_string().contains("out of paint"), "{error}");
    }
}
