//! Symmetric int8 with one scale for each output channel.

use rayon::prelude::*;

/// Largest magnitude of a quantised weight; -128 is left out so that the range is symmetric.
pub const LARGEST: f32 = 127.0;

/// `rows: [outputs, inputs]` as int8: `rows[o, i] * smooth[i] ~ values[o, i] * scales[o]`.
///
/// The scale maps a row's largest magnitude to 127; values are rounded to the nearest, ties to even. A row so small that
/// its scale would not be a normal number becomes zero. `smooth` has one number for each channel of the input; a 3x3
/// convolution's nine taps share them. Source: SmoothQuant (arXiv 2211.10438), eq. 3.
///
/// # Panics
/// If the sizes do not fit.
pub fn quantise(rows: &[f32], inputs: usize, smooth: Option<&[f32]>) -> (Vec<i8>, Vec<f32>) {
    assert!(inputs > 0 && rows.len().is_multiple_of(inputs), "rows of {inputs} values");
    assert!(smooth.is_none_or(|s| !s.is_empty() && inputs.is_multiple_of(s.len())), "smoothing of another layer");
    let mut values = vec![0; rows.len()];
    let mut scales = vec![0.0; rows.len() / inputs];
    let each = values.par_chunks_mut(inputs).zip(rows.par_chunks(inputs)).zip(&mut scales);
    match smooth {
        None => each.for_each(|((values, row), scale)| *scale = quantise_row(row, values)),
        Some(smooth) => each.for_each_init(
            || vec![0.0; inputs],
            |smoothed, ((values, row), scale)| {
                for (taps, row) in smoothed.chunks_mut(smooth.len()).zip(row.chunks(smooth.len())) {
                    taps.iter_mut().zip(row).zip(smooth).for_each(|((tap, w), s)| *tap = w * s);
                }
                *scale = quantise_row(smoothed, values);
            },
        ),
    }
    (values, scales)
}

/// One row; returns its scale.
fn quantise_row(row: &[f32], values: &mut [i8]) -> f32 {
    // eight running maxima, so that the compiler can keep them in one register
    let mut largest = [0f32; 8];
    let chunks = row.chunks_exact(8);
    for (i, w) in chunks.remainder().iter().enumerate() {
        largest[i] = w.abs();
    }
    for chunk in chunks {
        largest.iter_mut().zip(chunk).for_each(|(m, w)| *m = m.max(w.abs()));
    }
    let scale = largest.iter().fold(0f32, |a, &b| a.max(b)) / LARGEST;
    if !scale.is_normal() {
        values.fill(0);
        return 0.0;
    }
    for (value, w) in values.iter_mut().zip(row) {
        *value = round_ties_even((w / scale).clamp(-LARGEST, LARGEST)) as i8;
    }
    scale
}

/// The nearest whole number, for magnitudes below 2^22: behind the sum's last bit nothing is left. What `f32::round_ties_even`
/// gives, without a call for each number on processors of the oldest x86-64 kind, for which the program is compiled.
fn round_ties_even(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + SHIFT) - SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Half a step of rounding, the scale's own rounding and the quotient's.
        #[test]
        fn values_are_the_nearest(row in prop::collection::vec(-1e3f32..1e3, 1..70)) {
            let (values, scales) = quantise(&row, row.len(), None);
            let scale = scales[0] as f64;
            for (&q, &w) in values.iter().zip(&row) {
                let error = (q as f64 * scale - w as f64).abs();
                prop_assert!(error <= scale * (0.5 + 127.0 * f32::EPSILON as f64), "{w} became {q} x {scale}");
            }
            let largest = row.iter().fold(0f32, |m, w| m.max(w.abs()));
            if largest > 1e-30 {
                prop_assert!(values.iter().any(|q| q.abs() == 127), "the largest value is at the end of the range");
            }
        }

        #[test]
        fn rounding_is_the_standard_one(x in -127f32..=127.0) {
            prop_assert_eq!(round_ties_even(x), x.round_ties_even());
            let half = x.trunc() + 0.5;
            prop_assert_eq!(round_ties_even(half), half.round_ties_even());
        }

        #[test]
        fn rows_are_quantised_alone(rows in prop::collection::vec(-10f32..10.0, 24), smooth in prop::collection::vec(0.1f32..9.0, 4)) {
            let (values, scales) = quantise(&rows, 8, Some(&smooth));
            for (o, row) in rows.chunks(8).enumerate() {
                let smoothed: Vec<_> = row.iter().enumerate().map(|(i, w)| w * smooth[i % 4]).collect();
                let (alone, scale) = quantise(&smoothed, 8, None);
                prop_assert_eq!(&values[o * 8..][..8], &alone[..]);
                prop_assert_eq!(scales[o].to_bits(), scale[0].to_bits());
            }
        }
    }

    #[test]
    fn ties_go_to_the_even_neighbour_and_signs_are_kept() {
        let row = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -127.0, 0.0];
        assert_eq!(quantise(&row, 9, None), (vec![127, 0, 2, 2, 0, -2, -126, -127, 0], vec![1.0]));
    }

    #[test]
    fn rows_of_nothing_become_zero() {
        for tiny in [0.0, -0.0, 1e-45, 1e-38] {
            assert_eq!(quantise(&[tiny, 0.0], 2, None), (vec![0, 0], vec![0.0]));
        }
        let (values, scales) = quantise(&[f32::MAX, -f32::MAX / 4.0], 2, None);
        assert_eq!(values, [127, -32]);
        assert!(scales[0].is_finite());
    }
}
