//! Luma and chroma to RGB, by ITU-R BT.601, which is what cameras and JPEG use.

use super::Frame;
use crate::error::Result;

/// How the 8 bits are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Luma 16 to 235, chroma 16 to 240: video.
    Limited,
    /// 0 to 255: JPEG.
    Full,
}

/// How many pixels share their chroma.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chroma {
    /// There is none.
    Mono,
    /// Two by two: 4:2:0.
    Half,
    /// Two beside each other: 4:2:2.
    HalfWidth,
    /// None: 4:4:4.
    Full,
}

impl Chroma {
    /// Width and height of each chroma plane of a frame of this size.
    fn plane(self, width: usize, height: usize) -> (usize, usize) {
        match self {
            Chroma::Mono => (0, 0),
            Chroma::Half => (width.div_ceil(2), height.div_ceil(2)),
            Chroma::HalfWidth => (width.div_ceil(2), height),
            Chroma::Full => (width, height),
        }
    }
}

/// A frame as three planes, `[H, W]` u8 luma and then both of chroma.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planes {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The size of the chroma planes.
    pub chroma: Chroma,
    /// How the bits are used.
    pub range: Range,
    /// Luma, Cb and Cr without padding.
    pub planes: [Vec<u8>; 3],
}

impl Planes {
    /// The frame in RGB; pixels that share their chroma get the same, as it is.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] when the planes are not of their size.
    pub fn to_frame(&self) -> Result<Frame> {
        let (width, height) = (self.width, self.height);
        let (chroma_width, chroma_height) = self.chroma.plane(width, height);
        let sizes = [width * height, chroma_width * chroma_height, chroma_width * chroma_height];
        if width == 0 || self.planes.iter().zip(sizes).any(|(plane, size)| plane.len() != size) {
            return Frame::new(width, height, vec![]);
        }
        let matrix = Matrix::of(self.range);
        let [luma, blue, red] = &self.planes;
        let mut rgb = Vec::with_capacity(width * height * 3);
        for (y, row) in luma.chunks_exact(width).enumerate() {
            let shared = if self.chroma == Chroma::Half { y / 2 } else { y };
            for (x, &luma) in row.iter().enumerate() {
                rgb.extend(match self.chroma {
                    Chroma::Mono => matrix.rgb(luma, 128, 128),
                    Chroma::Full => matrix.rgb(luma, blue[y * width + x], red[y * width + x]),
                    Chroma::Half | Chroma::HalfWidth => {
                        let at = shared * chroma_width + x / 2;
                        matrix.rgb(luma, blue[at], red[at])
                    }
                });
            }
        }
        Frame::new(width, height, rgb)
    }
}

/// A frame of `YUYV`: luma, Cb, luma, Cr for every two pixels, video's range, rows `stride` bytes apart.
///
/// # Errors
/// [`crate::Error::Usage`] when there are fewer bytes than pixels need.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "what Linux' cameras give"))]
pub(super) fn yuyv_to_frame(width: usize, height: usize, stride: usize, bytes: &[u8]) -> Result<Frame> {
    let row_bytes = width.div_ceil(2) * 4;
    let stride = stride.max(row_bytes);
    if height == 0 || width == 0 || bytes.len() < stride * (height - 1) + row_bytes {
        return Frame::new(width, height, vec![]);
    }
    let matrix = Matrix::of(Range::Limited);
    let mut rgb = Vec::with_capacity(width * height * 3);
    for row in bytes.chunks(stride).take(height) {
        for x in 0..width {
            let pair = &row[x / 2 * 4..x / 2 * 4 + 4];
            rgb.extend(matrix.rgb(pair[x % 2 * 2], pair[1], pair[3]));
        }
    }
    Frame::new(width, height, rgb)
}

/// BT.601's matrix (section 2.5.1 solved for RGB) in 1/65536.
struct Matrix {
    black: i32,
    luma: i32,
    red_red: i32,
    green_blue: i32,
    green_red: i32,
    blue_blue: i32,
}

impl Matrix {
    fn of(range: Range) -> Matrix {
        // weights of red and blue in luma
        let (red, blue) = (0.299, 0.114);
        let green = 1.0 - red - blue;
        let (black, luma, chroma) = match range {
            Range::Full => (0, 1.0, 1.0),
            Range::Limited => (16, 255.0 / 219.0, 255.0 / 224.0),
        };
        let fixed = |weight: f64| (weight * 65536.0).round() as i32;
        Matrix {
            black,
            luma: fixed(luma),
            red_red: fixed(chroma * 2.0 * (1.0 - red)),
            green_blue: fixed(chroma * 2.0 * (1.0 - blue) * blue / green),
            green_red: fixed(chroma * 2.0 * (1.0 - red) * red / green),
            blue_blue: fixed(chroma * 2.0 * (1.0 - blue)),
        }
    }

    fn rgb(&self, luma: u8, blue: u8, red: u8) -> [u8; 3] {
        let grey = (i32::from(luma) - self.black) * self.luma + (1 << 15);
        let (blue, red) = (i32::from(blue) - 128, i32::from(red) - 128);
        let channel = |sum: i32| (sum >> 16).clamp(0, 255) as u8;
        [
            channel(grey + self.red_red * red),
            channel(grey - self.green_blue * blue - self.green_red * red),
            channel(grey + self.blue_blue * blue),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BT.601 forwards, in floating point.
    fn luma_chroma(rgb: [u8; 3], range: Range) -> [u8; 3] {
        let [r, g, b] = rgb.map(|v| f64::from(v) / 255.0);
        let luma = 0.299 * r + 0.587 * g + 0.114 * b;
        let (blue, red) = ((b - luma) / 1.772, (r - luma) / 1.402);
        let (offset, luma_span, chroma_span) = match range {
            Range::Limited => (16.0, 219.0, 224.0),
            Range::Full => (0.0, 255.0, 255.0),
        };
        [offset + luma * luma_span, 128.0 + blue * chroma_span, 128.0 + red * chroma_span].map(|v| v.round() as u8)
    }

    #[test]
    fn the_matrix_is_the_standards_one() {
        for range in [Range::Limited, Range::Full] {
            let matrix = Matrix::of(range);
            let mut worst = 0;
            for red in (0..=255u8).step_by(15) {
                for green in (0..=255).step_by(15) {
                    for blue in (0..=255).step_by(15) {
                        let [y, cb, cr] = luma_chroma([red, green, blue], range);
                        let back = matrix.rgb(y, cb, cr);
                        for (given, back) in [red, green, blue].into_iter().zip(back) {
                            worst = worst.max(given.abs_diff(back));
                        }
                    }
                }
            }
            // Rounding three numbers by half a step each: blue moves by at most 0.5 * (1.164 + 2.017) + 0.5 = 2.1.
            assert!(worst <= 2, "{range:?}: {worst}");
        }
        // what lies outside of video's range is cut off
        assert_eq!(Matrix::of(Range::Limited).rgb(0, 128, 128), [0; 3]);
        assert_eq!(Matrix::of(Range::Limited).rgb(255, 128, 128), [255; 3]);
        assert_eq!(Matrix::of(Range::Limited).rgb(255, 255, 255), [255, 125, 255]);
    }

    #[test]
    fn pixels_share_their_chroma() {
        let red = luma_chroma([255, 0, 0], Range::Full);
        let blue = luma_chroma([0, 0, 255], Range::Full);
        // 3x3 with odd sides: the left two columns red, the right one blue
        let luma: Vec<u8> = [red[0], red[0], blue[0]].repeat(3);
        let cases = [
            (Chroma::Half, 2, vec![red, blue]),
            (Chroma::HalfWidth, 3, vec![red, blue]),
            (Chroma::Full, 3, vec![red, red, blue]),
        ];
        for (chroma, rows, row) in cases {
            let plane = |c: usize| row.iter().map(|v| v[c]).collect::<Vec<u8>>().repeat(rows);
            let planes =
                Planes { width: 3, height: 3, chroma, range: Range::Full, planes: [luma.clone(), plane(1), plane(2)] };
            let frame = planes.to_frame().unwrap();
            for pixel in frame.rgb().chunks_exact(9) {
                for (given, expected) in pixel.iter().zip([255, 0, 0, 255, 0, 0, 0, 0, 255u8]) {
                    assert!(given.abs_diff(expected) <= 2, "{chroma:?} {pixel:?}");
                }
            }
        }
        let mono = |luma: Vec<u8>| Planes {
            width: 2,
            height: 1,
            chroma: Chroma::Mono,
            range: Range::Limited,
            planes: [luma, vec![], vec![]],
        };
        assert_eq!(mono(vec![16, 235]).to_frame().unwrap().rgb(), [0, 0, 0, 255, 255, 255]);
        assert!(mono(vec![16]).to_frame().is_err());
        assert!(Planes { width: 0, ..mono(vec![]) }.to_frame().is_err());
    }

    #[test]
    fn yuyv_is_unpacked_by_its_stride() {
        let red = luma_chroma([255, 0, 0], Range::Limited);
        let grey = luma_chroma([100, 100, 100], Range::Limited);
        // two rows of three pixels, red and grey, four bytes of padding
        let row = |[y, cb, cr]: [u8; 3]| [y, cb, y, cr, y, cb, 0, cr, 9, 9, 9, 9];
        let bytes = [row(red), row(grey)].concat();
        let frame = yuyv_to_frame(3, 2, 12, &bytes).unwrap();
        for (pixel, expected) in frame.rgb().chunks_exact(3).zip([[255, 0, 0]; 3].into_iter().chain([[100; 3]; 3])) {
            for (given, expected) in pixel.iter().zip(expected) {
                assert!(given.abs_diff(expected) <= 2, "{pixel:?}");
            }
        }
        // the last row needs no padding; a stride of 0 means there is none
        assert_eq!(yuyv_to_frame(3, 2, 12, &bytes[..20]).unwrap(), frame);
        assert_eq!(yuyv_to_frame(3, 1, 0, &bytes[..8]).unwrap().rgb(), &frame.rgb()[..9]);
        assert!(yuyv_to_frame(3, 2, 12, &bytes[..19]).is_err());
        assert!(yuyv_to_frame(0, 2, 12, &bytes).is_err());
        assert!(yuyv_to_frame(3, 0, 12, &bytes).is_err());
    }
}
