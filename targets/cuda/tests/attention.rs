//! Attention and its gradients against the CPU's in f32 on the same numbers, with a bound for each value that follows from
//! the roundings on the device.
#![cfg(feature = "cuda")]

mod numbers;

use candle_core::{CustomOp2, DType, Device, Result, Tensor, Var};
use numbers::*;
use pleinair_cuda::{Attention, Graph};

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    per_head: usize,
    causal: bool,
}

impl Sizes {
    fn of([batch, queries, keys, heads, per_head]: [usize; 5]) -> Self {
        Sizes { batch, queries, keys, heads, per_head, causal: false }
    }

    fn causal([batch, queries, heads, per_head]: [usize; 4]) -> Self {
        Sizes { batch, queries, keys: queries, heads, per_head, causal: true }
    }

    fn channels(self) -> usize {
        self.heads * self.per_head
    }
}

/// What is rounded on the way, besides the result: probabilities and the gradients of scores, of f16 where they do not lie in
/// memory. The second is half of the least number above zero.
#[derive(Clone, Copy)]
struct Roundings {
    relative: f64,
    tiny: f64,
    result: DType,
}

impl Roundings {
    fn of_forward(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Roundings { relative: U16, tiny: TINY16, result: dtype },
            _ => Roundings { relative: 0.0, tiny: 0.0, result: dtype },
        }
    }

    fn of_backward(dtype: DType, s: Sizes) -> Self {
        match s.per_head {
            ..=160 => Self::of_forward(dtype),
            _ => Roundings { relative: 0.0, tiny: 0.0, result: dtype },
        }
    }
}

/// Of a sum of so many terms in f32, also by tensor cores, which cut off instead of rounding; of both sides.
fn sum(terms: usize) -> f64 {
    4.0 * (terms + 16) as f64 * U32
}

/// How far each value may be off.
struct Bounds {
    y: Vec<f64>,
    dq: Vec<f64>,
    dkv: Vec<f64>,
}

/// One head's rows in f64.
fn head(values: &[f32], width: usize, row: usize, column: usize, per_head: usize) -> Vec<f64> {
    values[row * width + column..][..per_head].iter().map(|&x| x as f64).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn absolute(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

/// `y = sum p v`, `ds = p (dp - dy y)`, `dq = sum ds k / sqrt(d)`, `dk = sum ds q / sqrt(d)`, `dv = sum p dy`: the relative
/// and absolute errors of `p` and of `ds`, times what they weigh.
fn bounds(s: Sizes, r: Roundings, [q, kv, dy]: [&[f32]; 3]) -> Bounds {
    let (c, d) = (s.channels(), s.per_head);
    let scale = 1.0 / (d as f64).sqrt();
    let mut of = Bounds { y: vec![0.0; q.len()], dq: vec![0.0; q.len()], dkv: vec![0.0; kv.len()] };
    // the gradients' sizes, of which the result's rounding is a share
    let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
    for index in 0..s.batch * s.queries * s.heads {
        let (picture, query, column) = (index / s.heads / s.queries, index / s.heads % s.queries, index % s.heads * d);
        let row = picture * s.queries + query;
        let (q, dy) = (head(q, c, row, column, d), head(dy, c, row, column, d));
        let seen = if s.causal { query + 1 } else { s.keys };
        let key_row = |key: usize| picture * s.keys + key;
        let keys: Vec<_> = (0..seen).map(|key| head(kv, 2 * c, key_row(key), column, d)).collect();
        let values: Vec<_> = (0..seen).map(|key| head(kv, 2 * c, key_row(key), c + column, d)).collect();
        let scores: Vec<_> = keys.iter().map(|k| dot(&q, k) * scale).collect();
        let most = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        let p: Vec<_> = scores.iter().map(|s| (s - most).exp() / total).collect();
        // a score's own error, the arithmetic of its exponent and of the logarithm of the sum, the exponential
        let size = keys.iter().map(|k| absolute(&q, k) * scale).fold(0.0, f64::max);
        let off = 2.0 * sum(d) * size + 16.0 * U32 * (size + total.ln()) + 16.0 * U32 + sum(seen);
        let p_off: Vec<_> = p.iter().map(|p| p * (r.relative + off) + r.tiny).collect();
        let y: Vec<_> = (0..d).map(|i| (0..seen).map(|j| p[j] * values[j][i]).sum::<f64>()).collect();
        let y_off: Vec<_> = (0..d)
            .map(|i| {
                let weighed = (0..seen).map(|j| (p_off[j] + sum(seen) * p[j]) * values[j][i].abs());
                weighed.sum::<f64>() * (1.0 + U16) + rounding(r.result, y[i])
            })
            .collect();
        let at = row * c + column;
        of.y[at..at + d].copy_from_slice(&y_off);
        let share = dot(&dy, &y);
        let share_off = absolute(&dy, &y_off) + sum(d) * absolute(&dy, &y);
        for j in 0..seen {
            let dp = dot(&dy, &values[j]);
            let ds = p[j] * (dp - share);
            let ds_off =
                p[j] * (sum(d) * absolute(&dy, &values[j]) + share_off) + (r.relative + 2.0 * off) * ds.abs() + r.tiny;
            let key_at = key_row(j) * 2 * c + column;
            for i in 0..d {
                dq[at + i] += scale * ds * keys[j][i];
                dkv[key_at + i] += scale * ds * q[i];
                dkv[key_at + c + i] += p[j] * dy[i];
                of.dq[at + i] += scale * (ds_off + sum(seen) * ds.abs()) * keys[j][i].abs();
                of.dkv[key_at + i] += scale * (ds_off + sum(s.queries) * ds.abs()) * q[i].abs();
                of.dkv[key_at + c + i] += (p_off[j] + off * p[j] + sum(s.queries) * p[j]) * dy[i].abs();
            }
        }
    }
    for (off, value) in of.dq.iter_mut().zip(&dq).chain(of.dkv.iter_mut().zip(&dkv)) {
        *off = *off * (1.0 + U16) + rounding(r.result, *value);
    }
    of
}

/// Arguments by themselves, or as parts of one joint projection.
fn arguments(s: Sizes, joint: bool, dtype: DType, device: &Device) -> Result<[(Var, Tensor, Tensor); 2]> {
    let (b, n, m, c) = (s.batch, s.queries, s.keys, s.channels());
    // scores of some size
    let q: Vec<f32> = numbers(b * n * c, 1).iter().map(|x| 4.0 * x).collect();
    let q = Tensor::from_vec(q, (b, n, c), &Device::Cpu)?;
    let kv = Tensor::from_vec(numbers(b * m * 2 * c, 2), (b, m, 2 * c), &Device::Cpu)?;
    let on = |dtype: DType, device: &Device| -> Result<(Var, Tensor, Tensor)> {
        if !joint {
            // one after the other, so that kv begins wherever q ends
            let wide = Tensor::cat(&[&q.flatten_all()?, &kv.flatten_all()?], 0)?;
            let all = Var::from_tensor(&wide.to_dtype(dtype)?.to_device(device)?)?;
            let q = all.narrow(0, 0, b * n * c)?.reshape((b, n, c))?;
            let kv = all.narrow(0, b * n * c, b * m * 2 * c)?.reshape((b, m, 2 * c))?;
            return Ok((all, q, kv));
        }
        let all = Var::from_tensor(&Tensor::cat(&[&q, &kv], 2)?.to_dtype(dtype)?.to_device(device)?)?;
        let (q, kv) = (all.narrow(2, 0, c)?, all.narrow(2, c, 2 * c)?);
        Ok((all, q, kv))
    };
    Ok([on(DType::F32, &Device::Cpu)?, on(dtype, device)?])
}

/// The gradients of `q` and `kv` in that of what they are parts of.
fn parts(gradient: &Tensor, s: Sizes) -> Result<[Tensor; 2]> {
    let c = s.channels();
    match gradient.rank() {
        1 => {
            let q = s.batch * s.queries * c;
            Ok([gradient.narrow(0, 0, q)?, gradient.narrow(0, q, gradient.elem_count() - q)?])
        }
        _ => Ok([gradient.narrow(2, 0, c)?, gradient.narrow(2, c, 2 * c)?]),
    }
}

fn check(s: Sizes, joint: bool, dtype: DType, device: &Device) -> Result<()> {
    let what = format!("{dtype:?} {s:?}, joint {joint}");
    let [(all, q, kv), (all_there, q_there, kv_there)] = arguments(s, joint, dtype, device)?;
    let dy = numbers(s.batch * s.queries * s.channels(), 3);
    let (dy, dy_there) = both(dy, (s.batch, s.queries, s.channels()), device, dtype)?;
    let precision = pleinair_cpu::Precision::F32;
    let Sizes { heads, causal, .. } = s;
    let y = q.apply_op2(&kv, pleinair_cpu::Attention { heads, causal, precision, isa: isa() })?;
    let y_there = q_there.apply_op2(&kv_there, Attention { heads, causal })?;
    assert_eq!((y_there.dims(), y_there.dtype()), (y.dims(), dtype));
    let given = [&*read(&q), &*read(&kv), &*read(&dy)];
    let off = bounds(s, Roundings::of_forward(dtype), given);
    assert_near(&what, &y_there, &read(&y), |i, _| off.y[i]);

    let off = bounds(s, Roundings::of_backward(dtype, s), given);
    let want = (&y * &dy)?.sum_all()?.backward()?;
    let there = (&y_there * &dy_there)?.sum_all()?.backward()?;
    let [dq, dkv] = parts(want.get(&all).expect("a gradient"), s)?;
    let [dq_there, dkv_there] = parts(there.get(&all_there).expect("a gradient"), s)?;
    assert_near(&format!("{what}, dq"), &dq_there, &read(&dq), |i, _| off.dq[i]);
    assert_near(&format!("{what}, dkv"), &dkv_there, &read(&dkv), |i, _| off.dkv[i]);
    Ok(())
}

#[test]
fn every_tiled_kernel_at_its_edges() -> Result<()> {
    let device = device();
    for sizes in [
        // head sizes of each kernel, and rows one less and one more than its tiles take
        [2, 1, 1, 1, 8],
        [1, 127, 63, 2, 16],
        [1, 129, 65, 1, 24],
        [1, 128, 64, 1, 32],
        [1, 130, 77, 2, 40],
        [1, 65, 129, 1, 48],
        [1, 64, 191, 1, 64],
        [1, 63, 65, 1, 72],
        [2, 65, 63, 2, 80],
        [1, 33, 33, 1, 120],
        [1, 66, 31, 1, 160],
    ] {
        check(Sizes::of(sizes), false, DType::F16, &device)?;
    }
    Ok(())
}

#[test]
fn parts_of_a_joint_projection() -> Result<()> {
    let device = device();
    for sizes in [[1, 70, 70, 2, 40], [2, 33, 33, 2, 80], [1, 40, 40, 3, 8]] {
        check(Sizes::of(sizes), true, DType::F16, &device)?;
    }
    check(Sizes::of([2, 20, 20, 2, 12]), true, DType::F32, &device)
}

#[test]
fn queries_see_no_later_keys() -> Result<()> {
    let device = device();
    for sizes in [[1, 77, 2, 64], [2, 150, 1, 16], [1, 129, 1, 40], [1, 70, 1, 160], [1, 1, 1, 8]] {
        check(Sizes::causal(sizes), true, DType::F16, &device)?;
    }
    check(Sizes::causal([2, 37, 2, 8]), true, DType::F32, &device)
}

#[test]
fn rows_out_of_line_and_odd_heads() -> Result<()> {
    let device = device();
    for sizes in [[1, 40, 35, 3, 12], [1, 33, 70, 2, 5], [2, 17, 18, 1, 1], [1, 20, 20, 2, 81]] {
        check(Sizes::of(sizes), false, DType::F16, &device)?;
    }
    // kv begins 7 numbers into rows of 3 * 7: at no multiple of 16 bytes
    check(Sizes::of([1, 20, 20, 1, 7]), true, DType::F16, &device)
}

#[test]
fn scores_in_memory() -> Result<()> {
    let device = device();
    for sizes in [[1, 33, 20, 2, 40], [2, 17, 77, 3, 5], [1, 65, 64, 1, 16]] {
        check(Sizes::of(sizes), false, DType::F32, &device)?;
    }
    Ok(())
}

#[test]
fn wide_heads() -> Result<()> {
    let device = device();
    for sizes in [[1, 65, 37, 1, 176], [2, 9, 70, 1, 512], [1, 63, 32, 2, 264], [1, 20, 33, 2, 165]] {
        check(Sizes::of(sizes), false, DType::F16, &device)?;
    }
    check(Sizes::causal([1, 90, 1, 200]), true, DType::F16, &device)
}

/// The first tile's largest score is far below the last one's, and the other way round.
#[test]
fn the_largest_score_may_come_first_or_last() -> Result<()> {
    let device = device();
    let (n, m, d) = (16, 200, 16);
    for rising in [true, false] {
        let q = Tensor::ones((1, n, d), DType::F16, &device)?;
        let mut kv = vec![0.0f32; m * 2 * d];
        for (j, row) in kv.chunks_exact_mut(2 * d).enumerate() {
            let place = if rising { j } else { m - 1 - j };
            row[..d].fill(place as f32 / 2.0);
            row[d..].fill(j as f32);
        }
        let kv = Tensor::from_vec(kv, (1, m, 2 * d), &device)?.to_dtype(DType::F16)?;
        let y = q.apply_op2_no_bwd(&kv, &Attention { heads: 1, causal: false })?;
        // scores two apart: sum of j * exp(-2 * (last - j)) over sum of exp(-2 * (last - j)) is last - 1 / (e^2 - 1)
        let below = 1.0 / (2.0f64.exp() - 1.0);
        let want = if rising { (m - 1) as f64 - below } else { below };
        assert_near(&format!("rising {rising}"), &y, &vec![want as f32; n * d], |_, y| 2.0 * U16 * y + 1e-4);
    }
    Ok(())
}

/// Where there is no key its zeros have a score far above all others, and an exponential beyond every number.
#[test]
fn all_scores_far_below_zero() -> Result<()> {
    let device = device();
    let (n, m, d) = (20, 70, 16);
    let of = |values: Vec<f32>, rows: usize| both(values, (1, rows, d), &device, DType::F16);
    let (_, q) = of(vec![-8.0; n * d], n)?;
    let (_, k) = of(vec![8.0; m * d], m)?;
    let (v, v_there) = of(numbers(m * d, 1), m)?;
    let (q, kv) = (Var::from_tensor(&q)?, Var::from_tensor(&Tensor::cat(&[&k, &v_there], 2)?)?);
    let y = q.apply_op2(&kv, Attention { heads: 1, causal: false })?;
    let mean = v.mean_keepdim(1)?.broadcast_as((1, n, d))?;
    assert_near("y", &y, &read(&mean), |_, y| rounding(DType::F16, y) + 2.0 * U16);
    let gradients = y.sum_all()?.backward()?;
    // equal probabilities: nothing depends on the queries but by the rounding of `rowsum(dy y)`, and each value has its share
    let dy_y = d as f64 * U16;
    let dq = gradients.get(&q).expect("a gradient");
    let mean_slope = 8.0 / (d as f64).sqrt();
    assert_near("dq", dq, &vec![0.0; n * d], |_, _| mean_slope * (dy_y + d as f64 * U16) + TINY16);
    let dv = gradients.get(&kv).expect("a gradient").narrow(2, d, d)?;
    assert_near("dv", &dv, &vec![n as f32 / m as f32; m * d], |_, dv| 3.0 * U16 * dv);
    Ok(())
}

#[test]
fn nan_stays_in_its_head_and_its_query() -> Result<()> {
    let device = device();
    for dtype in TYPES {
        let mut q = numbers(20 * 32, 1);
        q[7 * 32 + 20] = f32::NAN;
        let q = Tensor::from_vec(q, (1, 20, 32), &device)?.to_dtype(dtype)?;
        let kv = Tensor::from_vec(numbers(70 * 64, 2), (1, 70, 64), &device)?.to_dtype(dtype)?;
        let y = q.apply_op2_no_bwd(&kv, &Attention { heads: 2, causal: false })?;
        for (i, y) in read(&y).iter().enumerate() {
            assert_eq!(y.is_nan(), i / 32 == 7 && i % 32 >= 16, "{dtype:?} {i}");
        }
    }
    Ok(())
}

#[test]
fn forward_and_backward_are_recorded() -> Result<()> {
    let device = device();
    for (dtype, per_head) in [(DType::F16, 40), (DType::F16, 168), (DType::F32, 8)] {
        let attention = Attention { heads: 2, causal: false };
        let (n, m, c) = (10, 12, 2 * per_head);
        let given = |seed: u64| -> Result<[Tensor; 3]> {
            let of = |count: usize, seed: u64, shape: (usize, usize, usize)| -> Result<Tensor> {
                Ok(both(numbers(count, seed), shape, &device, dtype)?.1)
            };
            Ok([of(n * c, seed, (1, n, c))?, of(2 * m * c, seed + 1, (1, m, 2 * c))?, of(n * c, seed + 2, (1, n, c))?])
        };
        let step = |[q, kv, dy]: &[Tensor; 3]| -> Result<[Tensor; 3]> {
            let y = q.apply_op2_no_bwd(kv, &attention)?;
            let (dq, dkv) = attention.bwd(q, kv, &y, dy)?;
            Ok([y, dq.expect("a gradient").copy()?, dkv.expect("a gradient").copy()?])
        };
        let inputs = given(1)?;
        let results = step(&inputs)?;
        let graph = Graph::capture(&device, || {
            results.iter().zip(&step(&inputs)?).try_for_each(|(result, new)| result.slice_set(new, 0, 0))
        })?;
        let others = given(4)?;
        inputs.iter().zip(&others).try_for_each(|(input, other)| input.slice_set(other, 0, 0))?;
        graph.launch()?;
        for (result, want) in results.iter().zip(&step(&others)?) {
            assert_near(&format!("{dtype:?} {per_head}"), result, &read(want), |_, _| 0.0);
        }
    }
    Ok(())
}

#[test]
fn bad_arguments_are_errors() -> Result<()> {
    let device = device();
    let attention = Attention { heads: 2, causal: false };
    let q = Tensor::zeros((1, 4, 16), DType::F16, &device)?;
    let kv = Tensor::zeros((1, 5, 32), DType::F16, &device)?;
    assert!(q.apply_op2_no_bwd(&kv, &attention).is_ok());
    let mixed = q.apply_op2_no_bwd(&kv.to_dtype(DType::F32)?, &attention).expect_err("one type").to_string();
    assert!(mixed.contains("alike"), "{mixed}");
    for heads in [0, 3] {
        assert!(q.apply_op2_no_bwd(&kv, &Attention { heads, causal: false }).is_err(), "{heads} heads");
    }
    assert!(q.apply_op2_no_bwd(&kv, &Attention { heads: 2, causal: true }).is_err());
    for kv in [
        Tensor::zeros((1, 5, 16), DType::F16, &device)?,
        Tensor::zeros((2, 5, 32), DType::F16, &device)?,
        Tensor::zeros((1, 32, 5), DType::F16, &device)?.transpose(1, 2)?,
    ] {
        assert!(q.apply_op2_no_bwd(&kv, &attention).is_err(), "{kv:?}");
    }
    let whole = Tensor::zeros((1, 5, 32), DType::U32, &device)?;
    assert!(whole.narrow(2, 0, 16)?.apply_op2_no_bwd(&whole, &attention).is_err());
    let (q, kv) = (q.to_device(&Device::Cpu)?, kv.to_device(&Device::Cpu)?);
    assert!(q.apply_op2_no_bwd(&kv, &attention).is_err());
    Ok(())
}
