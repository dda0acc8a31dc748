//! Canny's edges (Canny 1986), pixel for pixel as OpenCV's `Canny` finds them (`modules/imgproc/src/canny.cpp`): Sobel
//! differences of 3x3 pixels, the larger of the colours' gradients in the L1 norm, thinning across the gradient, and
//! hysteresis. As there, nothing is blurred.

use crate::camera::Frame;
use crate::error::Result;

/// Edges weaker than this are none: the ControlNet authors' threshold.
pub const LOW: i32 = 100;
/// Edges stronger than this begin one: the ControlNet authors' threshold.
pub const HIGH: i32 = 200;
/// tan(22.5 degrees) in fixed point of 15 bits.
const TAN_22: i32 = 13573;

/// Gradients of a picture, a border of zeros around their size.
struct Gradients {
    width: usize,
    dx: Vec<i32>,
    dy: Vec<i32>,
    /// |dx| + |dy|, rows of `width + 2`.
    size: Vec<i32>,
}

/// White lines on black, all channels alike, with the thresholds of [`LOW`] and [`HIGH`].
///
/// # Errors
/// None: a frame is never empty.
pub fn canny(frame: &Frame) -> Result<Frame> {
    edges(frame, LOW, HIGH)
}

/// As [`canny`] with other thresholds, low before high.
///
/// # Errors
/// None: a frame is never empty.
pub fn edges(frame: &Frame, low: i32, high: i32) -> Result<Frame> {
    let (width, height) = (frame.width(), frame.height());
    let gradients = Gradients::of(frame);
    let row = width + 2;
    // 1. what is strongest across its direction may be an edge, and is one where it is strong enough
    let (mut maybe, mut edge) = (vec![false; row * (height + 2)], vec![false; row * (height + 2)]);
    let mut open = vec![];
    for y in 0..height {
        for x in 0..width {
            let at = (y + 1) * row + x + 1;
            if gradients.size[at] > low && gradients.is_ridge(x, y) {
                maybe[at] = true;
                if gradients.size[at] > high {
                    edge[at] = true;
                    open.push(at);
                }
            }
        }
    }
    // 2. and so is what may be one beside one
    while let Some(at) = open.pop() {
        for beside in [at - row - 1, at - row, at - row + 1, at - 1, at + 1, at + row - 1, at + row, at + row + 1] {
            if maybe[beside] && !edge[beside] {
                edge[beside] = true;
                open.push(beside);
            }
        }
    }
    let level = |i: usize| if edge[(i / width + 1) * row + i % width + 1] { 255u8 } else { 0 };
    Frame::new(width, height, (0..width * height).flat_map(|i| [level(i); 3]).collect())
}

impl Gradients {
    fn of(frame: &Frame) -> Gradients {
        let (width, height, rgb) = (frame.width(), frame.height(), frame.rgb());
        let (mut dx, mut dy) = (vec![0; width * height], vec![0; width * height]);
        let mut size = vec![0; (width + 2) * (height + 2)];
        for y in 0..height {
            // the edge pixel is repeated beyond the border
            let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)];
            for x in 0..width {
                let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
                let strongest = &mut size[(y + 1) * (width + 2) + x + 1];
                *strongest = -1;
                for c in 0..3 {
                    let p = |r: usize, k: usize| i32::from(rgb[(rows[r] * width + columns[k]) * 3 + c]);
                    let gx = p(0, 2) + 2 * p(1, 2) + p(2, 2) - p(0, 0) - 2 * p(1, 0) - p(2, 0);
                    let gy = p(2, 0) + 2 * p(2, 1) + p(2, 2) - p(0, 0) - 2 * p(0, 1) - p(0, 2);
                    if gx.abs() + gy.abs() > *strongest {
                        *strongest = gx.abs() + gy.abs();
                        (dx[y * width + x], dy[y * width + x]) = (gx, gy);
                    }
                }
            }
        }
        Gradients { width, dx, dy, size }
    }

    /// Whether a pixel's gradient is larger than those on both sides in its direction, to 45 degrees; of equal ones the
    /// later counts.
    fn is_ridge(&self, x: usize, y: usize) -> bool {
        let row = self.width + 2;
        let at = (y + 1) * row + x + 1;
        let (gx, gy, m) = (self.dx[y * self.width + x], self.dy[y * self.width + x], &self.size);
        let (across, down) = (gx.abs(), gy.abs() << 15);
        let flat = across * TAN_22;
        if down < flat {
            return m[at] > m[at - 1] && m[at] >= m[at + 1];
        }
        if down > flat + (across << 16) {
            return m[at] > m[at - row] && m[at] >= m[at + row];
        }
        match (gx ^ gy) < 0 {
            true => m[at] > m[at - row + 1] && m[at] > m[at + row - 1],
            false => m[at] > m[at - row - 1] && m[at] > m[at + row + 1],
        }
    }
}
