//! Soft edges: the conditioning image of the default model's ControlNet, by formula, no network
//! (`models/atelier/README.md`, "The conditioning image of the ControlNet").

use candle_core::{Device, Tensor};

use crate::camera::Frame;
use crate::error::Result;

/// Luma weights of R, G and B (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];
/// Binomial smoothing, 5 taps.
const BLUR: [f32; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];
/// Sobel: the difference along the gradient and the smoothing across it.
const DIFFERENCE: [f32; 3] = [-1.0, 0.0, 1.0];
const SMOOTH: [f32; 3] = [0.25, 0.5, 0.25];
/// Contrast of the lines before they are cut off at white.
const GAIN: f32 = 4.0;

/// White lines on black: `[1, 3, H, W]` f32 in [0, 1] on the CPU, the same plane in all three channels.
///
/// # Errors
/// [`crate::Error::Candle`] when the tensor cannot be made.
pub fn soft_edges(frame: &Frame) -> Result<Tensor> {
    let (width, height) = (frame.width(), frame.height());
    let luma: Vec<f32> =
        frame.rgb().chunks_exact(3).map(|rgb| (0..3).map(|c| LUMA[c] * (f32::from(rgb[c]) / 255.0)).sum()).collect();
    let blurred = filter_columns(&filter_rows(&luma, width, &BLUR), width, &BLUR);
    let gx = filter_columns(&filter_rows(&blurred, width, &DIFFERENCE), width, &SMOOTH);
    let gy = filter_columns(&filter_rows(&blurred, width, &SMOOTH), width, &DIFFERENCE);
    let edges: Vec<f32> = gx.iter().zip(&gy).map(|(x, y)| (GAIN * (x * x + y * y).sqrt()).min(1.0)).collect();
    Ok(Tensor::from_vec(edges, (1, 1, height, width), &Device::Cpu)?.repeat((1, 3, 1, 1))?)
}

/// Correlates every row of a plane with `taps` (an odd number), the edge pixel repeated beyond the border.
fn filter_rows(plane: &[f32], width: usize, taps: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(plane.len());
    for row in plane.chunks_exact(width) {
        for x in 0..width {
            out.push(taps.iter().enumerate().map(|(k, tap)| tap * row[clamped(x + k, taps.len(), width)]).sum());
        }
    }
    out
}

/// [`filter_rows`] down the columns.
fn filter_columns(plane: &[f32], width: usize, taps: &[f32]) -> Vec<f32> {
    let height = plane.len() / width;
    let mut out = vec![0f32; plane.len()];
    for (y, row) in out.chunks_exact_mut(width).enumerate() {
        for (k, tap) in taps.iter().enumerate() {
            let from = clamped(y + k, taps.len(), height) * width;
            for (sum, value) in row.iter_mut().zip(&plane[from..from + width]) {
                *sum += tap * value;
            }
        }
    }
    out
}

/// Position `shifted - taps / 2`, held inside `0..size`.
fn clamped(shifted: usize, taps: usize, size: usize) -> usize {
    shifted.saturating_sub(taps / 2).min(size - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Largest difference from the reference that f32 rounding explains, in units of 2^-24 for values up to 1.
    ///
    /// Luma: 3 products and 3 sums, on each side; blur: 25 products and sums there, 2 x 5 here; Sobel: 9 there, 2 x 3
    /// here. An earlier error passes the blur with gain 1 and Sobel with gain 2 (the sums of their |weights|). The norm of
    /// (gx, gy) errs at most sqrt(2) times as much as either, and the gain multiplies by 4.
    const TOLERANCE: f32 = {
        let (luma, blur, sobel) = (2.0 * 6.0, 2.0 * 25.0 + 2.0 * 10.0, 2.0 * (9.0 + 6.0));
        let unit = 1.0 / 16_777_216.0;
        4.0 * 1.4143 * (2.0 * (luma + blur) + sobel) * unit
    };

    fn differs(found: &[f32], expected: &[f32]) -> Option<f32> {
        let largest = found
            .iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, |a: f32, b| if b.is_nan() { f32::INFINITY } else { a.max(b) });
        let within = found.len() == expected.len() && largest <= TOLERANCE;
        (!within).then_some(largest)
    }

    #[test]
    fn equals_the_training_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/soft_edges.safetensors");
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        for name in ["noise", "photograph"] {
            let rgb = &tensors[&format!("{name}.rgb")];
            let (height, width, _) = rgb.dims3().unwrap();
            let frame = Frame::new(width, height, rgb.flatten_all().unwrap().to_vec1().unwrap()).unwrap();
            let found = soft_edges(&frame).unwrap();
            assert_eq!(found.dims(), [1, 3, height, width]);
            let expected: Vec<f32> = tensors[&format!("{name}.edges")].flatten_all().unwrap().to_vec1().unwrap();
            for c in 0..3 {
                let plane = found.get(0).unwrap().get(c).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(differs(&plane, &expected), None, "{name}, channel {c}");
            }
        }
    }

    #[test]
    fn the_comparison_can_fail() {
        assert!(differs(&[0.0], &[1e-3]).is_some());
        assert!(differs(&[f32::NAN], &[0.0]).is_some());
        assert!(differs(&[0.0], &[0.0, 0.0]).is_some());
        assert!(differs(&[0.0], &[0.0]).is_none());
    }

    #[test]
    fn a_flat_picture_has_no_edges_and_a_step_has_one() {
        let flat = Frame::new(3, 1, vec![77; 9]).unwrap();
        let edges: Vec<f32> = soft_edges(&flat).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(edges.iter().all(|e| *e <= TOLERANCE), "{edges:?}");

        let rgb = (0..16 * 4).flat_map(|i| [if i % 16 < 8 { 0 } else { 255 }; 3]).collect();
        let step = Frame::new(16, 4, rgb).unwrap();
        let edges: Vec<f32> = soft_edges(&step).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!((edges[0], edges[7], edges[8], edges[15]), (0.0, 1.0, 1.0, 0.0));
    }

    #[test]
    fn one_pixel_is_enough() {
        let frame = Frame::new(1, 1, vec![255, 0, 0]).unwrap();
        assert_eq!(soft_edges(&frame).unwrap().dims(), [1, 3, 1, 1]);
    }
}
