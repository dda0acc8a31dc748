//! Every int8 kernel that this CPU has against the definition, to the last bit, at sizes around every tile edge.

use pleinair_cpu::int8::{PackedWeight, Picture, Rows, conv3x3, matmul, pack, quantize_pictures, quantize_rows};
use pleinair_cpu::isa::Isa;

mod isas;
use isas::isas;

/// The definitions, loops and all.
mod definition {
    use super::Picture;

    /// `a: [M, K]`, `w: [N, K]`.
    pub fn matmul(a: &[i8], a_scales: &[f32], w: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![];
        for (row, &a_scale) in a_scales.iter().enumerate() {
            for (output, &w_scale) in w.scales.iter().enumerate() {
                let a = &a[row * w.inputs..][..w.inputs];
                let w = &w.rows[output * w.inputs..][..w.inputs];
                let sum: i32 = a.iter().zip(w).map(|(&a, &w)| a as i32 * w as i32).sum();
                let scaled = sum as f32 * a_scale * w_scale;
                y.push(match bias {
                    Some(bias) => scaled + bias[output],
                    None => scaled,
                });
            }
        }
        y
    }

    /// The neighbourhoods of all output pixels, `[B * H' * W', 9 * C]`, in the order (ky, kx, channel).
    pub fn im2col(x: &[i8], batch: usize, p: Picture) -> Vec<i8> {
        let (height, width) = p.output_size();
        let mut columns = vec![];
        for b in 0..batch {
            for pixel in 0..height * width {
                for tap in 0..9 {
                    let y = (pixel / width * p.stride + tap / 3) as isize - 1;
                    let x0 = (pixel % width * p.stride + tap % 3) as isize - 1;
                    for c in 0..p.channels {
                        let inside = |v: isize, size: usize| v >= 0 && v < (size * p.repeat) as isize;
                        columns.push(match inside(y, p.height) && inside(x0, p.width) {
                            false => 0,
                            true => {
                                let (y, x0) = (y as usize / p.repeat, x0 as usize / p.repeat);
                                x[((b * p.height + y) * p.width + x0) * p.channels + c]
                            }
                        });
                    }
                }
            }
        }
        columns
    }

    /// The values and the scale of numbers that share one; `x` is already multiplied by the reciprocals.
    pub fn quantize(x: &[f32]) -> (Vec<i8>, f32) {
        if x.iter().any(|x| !x.is_finite()) {
            return (vec![0; x.len()], f32::NAN);
        }
        let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        if largest < 1e-36 {
            return (vec![0; x.len()], 0.0);
        }
        let factor = 127.0 / largest;
        (x.iter().map(|x| (x * factor).round_ties_even() as i8).collect(), largest / 127.0)
    }

    pub struct Weight {
        pub rows: Vec<i8>,
        pub scales: Vec<f32>,
        pub inputs: usize,
    }
}
use definition::Weight;

/// Numbers without a pattern that a kernel could mistake (Numerical Recipes' linear congruence, its high bits).
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    /// In [-127, 127].
    fn bytes(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| (self.next() % 255) as i8).map(|b| if b == -128 { 127 } else { b }).collect()
    }

    /// In [-1, 1).
    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next() as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn scales(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| 0.001 + self.next() as f32 / (1 << 29) as f32).collect()
    }

    fn weight(&mut self, outputs: usize, inputs: usize) -> Weight {
        Weight { rows: self.bytes(outputs * inputs), scales: self.scales(outputs), inputs }
    }
}

/// The first place where two results differ in any bit.
fn difference(got: &[f32], want: &[f32]) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} values instead of {}", got.len(), want.len()));
    }
    let i = got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits())?;
    Some(format!("value {i} is {} instead of {}", got[i], want[i]))
}

/// Runs `check` with every instruction set that this CPU has and says which ones it lacks.
fn on_every_isa(what: &str, check: impl Fn(Isa)) {
    isas(what).into_iter().for_each(check);
}

fn product(isa: Isa, (values, stride, scales): (&[i8], usize, &[f32]), w: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let outputs = w.scales.len();
    let packed = pack::pack(&w.rows, outputs, w.inputs);
    let sums = pack::sums(&packed, outputs, w.inputs);
    let weight = PackedWeight::new(&packed, &w.scales, &sums, w.inputs).unwrap();
    let mut y = vec![f32::NAN; scales.len() * outputs];
    matmul(isa, Rows { values, stride, scales }, weight, bias, &mut y);
    y
}

#[test]
fn products_at_every_tile_edge() {
    on_every_isa("int8 matmul", |isa| {
        let mut numbers = Numbers(1);
        for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 28, 29, 31, 32, 33, 63, 64, 65] {
            for n in [1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65] {
                for k in [1, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 192] {
                    let (a, scales, w) = (numbers.bytes(m * k), numbers.scales(m), numbers.weight(n, k));
                    let bias = numbers.floats(n);
                    let bias = (numbers.next() > 1 << 23).then_some(&bias[..]);
                    let got = product(isa, (&a, k, &scales), &w, bias);
                    if let Some(difference) = difference(&got, &definition::matmul(&a, &scales, &w, bias)) {
                        panic!("{isa} m{m} n{n} k{k}: {difference}");
                    }
                }
            }
        }
    });
}

#[test]
fn products_of_several_blocks() {
    on_every_isa("int8 matmul in blocks", |isa| {
        let mut numbers = Numbers(2);
        // (64 | 128 | many) rows, panels to be shared out, an odd panel at the end
        for (m, n, k) in [(64, 1280, 320), (1024, 80, 33), (1500, 176, 65), (300, 336, 1280), (77, 640, 768)] {
            let (a, scales, w) = (numbers.bytes(m * k), numbers.scales(m), numbers.weight(n, k));
            let bias = numbers.floats(n);
            let got = product(isa, (&a, k, &scales), &w, Some(&bias));
            if let Some(difference) = difference(&got, &definition::matmul(&a, &scales, &w, Some(&bias))) {
                panic!("{isa} m{m} n{n} k{k}: {difference}");
            }
        }
    });
}

/// The checksum of rows quantised and multiplied, the same for every instruction set of every architecture: an x86-64 and
/// an Arm processor paint the same picture from an int8 bundle, as far as its int8 layers go.
#[test]
fn results_are_the_same_on_every_architecture() {
    on_every_isa("int8 checksum", |isa| {
        let mut numbers = Numbers(20);
        let (m, n, k) = (67, 131, 357);
        let (x, w, bias) = (numbers.floats(m * k), numbers.weight(n, k), numbers.floats(n));
        let (mut values, mut scales) = (vec![0; m * k], vec![0.0; m]);
        quantize_rows(isa, &x, None, &mut values, &mut scales);
        let y = product(isa, (&values, k, &scales), &w, Some(&bias));
        // FNV-1a
        let bytes = y.iter().flat_map(|y| y.to_bits().to_le_bytes());
        let checksum = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(format!("{checksum:016x}"), "b311c7fb62d5af74", "{isa}");
    });
}

#[test]
fn rows_that_lie_apart() {
    on_every_isa("int8 matmul with a stride", |isa| {
        let mut numbers = Numbers(3);
        let (m, n, k, stride) = (19, 35, 100, 128);
        let (rows, scales, w) = (numbers.bytes(m * k), numbers.scales(m), numbers.weight(n, k));
        let mut apart = vec![99; (m - 1) * stride + k];
        for (i, row) in rows.chunks(k).enumerate() {
            apart[i * stride..][..k].copy_from_slice(row);
        }
        let got = product(isa, (&apart, stride, &scales), &w, None);
        assert_eq!(difference(&got, &definition::matmul(&rows, &scales, &w, None)), None, "{isa}");
    });
}

#[test]
fn the_longest_sums_of_the_largest_values() {
    on_every_isa("int8 extremes", |isa| {
        for (a, w) in [(127i8, 127i8), (127, -127), (-127, 127), (-127, -127), (0, -127), (-128, -128), (-128, 127)] {
            let (m, n, k) = (15, 33, 11520);
            let weight = Weight { rows: vec![w; n * k], scales: vec![0.5; n], inputs: k };
            let got = product(isa, (&vec![a; m * k], k, &[2.0; 15]), &weight, None);
            let want = (k as i32 * a as i32 * w as i32) as f32;
            assert_eq!(difference(&got, &vec![want; m * n]), None, "{isa} {a} times {w}");
        }
        // one pair of equal signs beside one of unequal: what saturating instructions get wrong
        let (a, w): (Vec<i8>, Vec<i8>) =
            ((0..11520).map(|i| if i % 3 == 0 { -127 } else { 127 }).collect(), vec![127; 11520]);
        let weight = Weight { rows: w, scales: vec![1.0], inputs: 11520 };
        let got = product(isa, (&a, 11520, &[1.0]), &weight, None);
        assert_eq!(difference(&got, &definition::matmul(&a, &[1.0], &weight, None)), None, "{isa}");
    });
}

#[test]
fn convolutions_of_every_geometry() {
    on_every_isa("int8 3x3 convolution", |isa| {
        let mut numbers = Numbers(4);
        for (height, width) in [(1, 1), (1, 5), (2, 2), (3, 4), (7, 5), (8, 8), (16, 13)] {
            for (channels, outputs) in [(1, 1), (4, 17), (7, 16), (32, 33), (64, 48)] {
                for (stride, repeat, batch) in [(1, 1, 1), (1, 1, 2), (2, 1, 2), (1, 2, 2)] {
                    let picture = Picture { height, width, channels, stride, repeat };
                    let x = numbers.bytes(batch * height * width * channels);
                    let (scales, bias) = (numbers.scales(batch), numbers.floats(outputs));
                    let w = numbers.weight(outputs, 9 * channels);
                    let packed = pack::pack(&w.rows, outputs, w.inputs);
                    let sums = pack::sums(&packed, outputs, w.inputs);
                    let weight = PackedWeight::new(&packed, &w.scales, &sums, w.inputs).unwrap();
                    let (out_height, out_width) = picture.output_size();
                    let mut got = vec![f32::NAN; batch * out_height * out_width * outputs];
                    conv3x3(isa, (&x, &scales), picture, weight, Some(&bias), &mut got);
                    let row_scales: Vec<f32> = scales.iter().flat_map(|&s| vec![s; out_height * out_width]).collect();
                    let want =
                        definition::matmul(&definition::im2col(&x, batch, picture), &row_scales, &w, Some(&bias));
                    if let Some(difference) = difference(&got, &want) {
                        panic!("{isa} {picture:?} to {outputs}, batch {batch}: {difference}");
                    }
                }
            }
        }
    });
}

/// Smoothing as the kernels do it: one multiplication.
fn smoothed(x: &[f32], reciprocals: Option<&[f32]>) -> Vec<f32> {
    let Some(r) = reciprocals else { return x.to_vec() };
    x.iter().zip(r.iter().cycle()).map(|(x, r)| x * r).collect()
}

#[test]
fn rows_are_quantised_as_defined() {
    on_every_isa("quantised rows", |isa| {
        let mut numbers = Numbers(5);
        for (m, k) in
            [(1, 1), (3, 15), (2, 16), (5, 17), (4, 31), (3, 33), (2, 63), (2, 64), (7, 65), (200, 320), (1, 40_000)]
        {
            for smooth in [false, true] {
                let mut x = numbers.floats(m * k);
                // halves are ties once a row's largest is 127
                x[0] = 127.0;
                for (i, x) in x.iter_mut().take(k).enumerate().skip(1) {
                    *x = i as f32 % 250.0 - 125.0 + 0.5;
                }
                let reciprocals = smooth.then(|| numbers.scales(k));
                let (mut values, mut scales) = (vec![99; m * k], vec![f32::INFINITY; m]);
                quantize_rows(isa, &x, reciprocals.as_deref(), &mut values, &mut scales);
                let x = smoothed(&x, reciprocals.as_deref());
                for (row, x) in x.chunks(k).enumerate() {
                    let want = definition::quantize(x);
                    assert_eq!(
                        (&values[row * k..][..k], scales[row]),
                        (&want.0[..], want.1),
                        "{isa} row {row} of {m}x{k}"
                    );
                }
            }
        }
    });
}

#[test]
fn pictures_are_quantised_as_defined_and_one_by_one() {
    on_every_isa("quantised pictures", |isa| {
        let mut numbers = Numbers(6);
        for (batch, pixels, channels) in [(1, 1, 1), (2, 9, 5), (2, 64, 33), (3, 1000, 64)] {
            for smooth in [false, true] {
                let mut x = numbers.floats(batch * pixels * channels);
                x[pixels * channels / 2] = 3.0;
                let reciprocals = smooth.then(|| numbers.scales(channels));
                let (mut values, mut scales) = (vec![99; x.len()], vec![f32::INFINITY; batch]);
                quantize_pictures(isa, &x, channels, reciprocals.as_deref(), &mut values, &mut scales);
                let x = smoothed(&x, reciprocals.as_deref());
                for (b, x) in x.chunks(pixels * channels).enumerate() {
                    let want = definition::quantize(x);
                    assert_eq!(
                        (&values[b * x.len()..][..x.len()], scales[b]),
                        (&want.0[..], want.1),
                        "{isa} picture {b}"
                    );
                }
            }
        }
    });
}

#[test]
fn what_cannot_be_quantised_shows() {
    on_every_isa("unquantisable rows", |isa| {
        for (bad, want) in
            [(f32::NAN, f32::NAN), (f32::INFINITY, f32::NAN), (f32::NEG_INFINITY, f32::NAN), (1e-40, 0.0)]
        {
            for place in [0, 7, 40] {
                let mut x = vec![0.0; 41];
                x[place] = bad;
                let (mut values, mut scales) = (vec![99; 41], vec![1.0]);
                quantize_rows(isa, &x, None, &mut values, &mut scales);
                assert_eq!((scales[0].is_nan(), values), (want.is_nan(), vec![0; 41]), "{isa} {bad} at {place}");
                let (mut values, mut scales) = (vec![99; 41], vec![1.0]);
                quantize_pictures(isa, &x, 41, None, &mut values, &mut scales);
                assert_eq!((scales[0].is_nan(), values), (want.is_nan(), vec![0; 41]), "{isa} {bad} at {place}");
            }
        }
    });
}

#[test]
fn one_thread_and_many_give_the_same() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    on_every_isa("int8 threads", |isa| {
        let mut numbers = Numbers(7);
        let (m, n, k) = (517, 336, 77);
        let (a, scales, w) = (numbers.bytes(m * k), numbers.scales(m), numbers.weight(n, k));
        let alone = pool(1).install(|| product(isa, (&a, k, &scales), &w, None));
        let many = pool(5).install(|| product(isa, (&a, k, &scales), &w, None));
        assert_eq!(difference(&many, &alone), None, "{isa}");
        assert_eq!(difference(&alone, &definition::matmul(&a, &scales, &w, None)), None, "{isa}");
    });
}

#[test]
fn the_comparison_can_fail() {
    assert!(difference(&[1.0, 2.0], &[1.0, 2.0]).is_none());
    assert!(difference(&[1.0], &[1.0, 2.0]).is_some());
    assert!(difference(&[0.0], &[-0.0]).is_some());
    assert!(difference(&[f32::NAN], &[1.0]).is_some());
    assert!(difference(&[1.0], &[1.000_000_1]).is_some());
}

#[test]
fn a_weight_whose_lengths_disagree_is_refused() {
    let packed = vec![0; pack::packed_len(17, 65)];
    let error = |packed: &[i8], scales: &[f32], sums: &[i32], inputs| {
        PackedWeight::new(packed, scales, sums, inputs).unwrap_err().to_string()
    };
    assert!(PackedWeight::new(&packed, &[1.0; 17], &[0; 17], 65).is_ok());
    assert!(error(&packed[1..], &[1.0; 17], &[0; 17], 65).contains("17 outputs and 65 inputs"));
    assert!(error(&packed, &[1.0; 17], &[0; 16], 65).contains("16 sums"));
    assert!(error(&packed, &[1.0; 17], &[0; 17], 129).contains("129 inputs"));
    assert!(error(&vec![0; pack::packed_len(1, 70_000)], &[1.0], &[0], 70_000).contains("at most"));
}

#[test]
#[should_panic(expected = "a result of 2 rows of 3")]
fn a_result_of_another_size_is_refused() {
    let (packed, rows) = (vec![0; pack::packed_len(3, 4)], Rows { values: &[0; 8], stride: 4, scales: &[1.0; 2] });
    let weight = PackedWeight::new(&packed, &[1.0; 3], &[0; 3], 4).unwrap();
    matmul(pleinair_cpu::isa::best(), rows, weight, None, &mut [0.0; 5]);
}
