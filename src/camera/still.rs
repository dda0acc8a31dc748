//! Reading a still picture from a file or from memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::Frame;
use crate::error::{Error, Result};

/// The largest picture that is read, in pixels: 100 megapixels, beyond any camera this program meets.
pub const MAX_PIXELS: u64 = 100_000_000;

/// What [`Frame::open`] reads, for messages.
pub const SUPPORTED_FORMATS: &str = "JPEG, PNG, WebP, BMP, GIF or TIFF";

/// A PNG's signature and the part of its header up to the size.
const PNG_HEADER_BYTES: usize = 24;

/// Memory allowed to a decoder: the widest pixels met (16-bit RGBA), and its own tables.
const WIDEST_PIXEL_BYTES: u64 = 8;
const DECODER_TABLE_BYTES: u64 = 64 << 20;

/// What is wrong with a picture, before it is known what to call it.
enum Fault {
    /// It could not be read at all.
    Io(std::io::Error),
    /// What it is not or lacks, as the rest of a sentence that begins with its name.
    Picture(String),
}

impl Frame {
    /// Reads a JPEG, PNG, WebP, BMP, GIF (its first picture) or TIFF file, told apart by contents, not by name.
    ///
    /// The EXIF orientation is applied; transparency is laid over white; 16 bits a channel and greys become 8-bit RGB.
    /// Colour profiles are not applied: the numbers are taken as sRGB.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::File`] when it is empty, cut short, not a picture, or larger
    /// than [`MAX_PIXELS`], which is seen from its header, before memory is taken for the pixels.
    pub fn open(path: impl AsRef<Path>) -> Result<Frame> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path))?;
        let metadata = file.metadata().map_err(Error::io(path))?;
        if metadata.is_dir() {
            return Err(Error::file(path, format!("is a folder; name a {SUPPORTED_FORMATS} file in it")));
        }
        if metadata.is_file() && metadata.len() == 0 {
            return Err(Error::file(path, "is empty; take the picture again or name another"));
        }
        read(BufReader::new(file), MAX_PIXELS).map_err(|fault| match fault {
            Fault::Io(source) => Error::Io { path: path.to_path_buf(), source },
            Fault::Picture(what) => Error::file(path, what),
        })
    }

    /// Reads a picture file that is in memory, an upload for instance, as [`Frame::open`] does; one of more than
    /// `max_pixels` pixels is refused by its header.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is empty, cut short, not a picture, or too large.
    pub fn from_bytes(bytes: &[u8], max_pixels: u64) -> Result<Frame> {
        if bytes.is_empty() {
            return Err(Error::Usage("the picture is empty; take it again or choose another".into()));
        }
        read(Cursor::new(bytes), max_pixels.min(MAX_PIXELS)).map_err(|fault| match fault {
            Fault::Io(source) => Error::Usage(format!("the picture cannot be read: {source}")),
            Fault::Picture(what) => Error::Usage(format!("the picture {what}")),
        })
    }
}

fn read(mut reader: impl BufRead + Seek, max_pixels: u64) -> Result<Frame, Fault> {
    let mut start = Vec::with_capacity(PNG_HEADER_BYTES);
    reader.by_ref().take(PNG_HEADER_BYTES as u64).read_to_end(&mut start).map_err(Fault::Io)?;
    reader.rewind().map_err(Fault::Io)?;
    let Ok(format) = image::guess_format(&start) else {
        return Err(Fault::Picture(format!("is not a picture in a known format; it has to be {SUPPORTED_FORMATS}")));
    };
    if format == ImageFormat::Png
        && let Some((width, height)) = png_size(&start)
    {
        check_size(width, height, max_pixels)?;
    }
    if format == ImageFormat::Jpeg && !jpeg_is_whole(&mut reader).map_err(Fault::Io)? {
        // The decoder would fill the missing part with grey.
        return Err(Fault::Picture("is cut short: the JPEG has no end; copy it again".into()));
    }
    reader.rewind().map_err(Fault::Io)?;
    decode(reader, format, max_pixels)
}

/// Width and height in a PNG's header, which the decoder gives only once it has met the pixels too.
fn png_size(start: &[u8]) -> Option<(u32, u32)> {
    let number = |at: usize| Some(u32::from_be_bytes(start.get(at..at + 4)?.try_into().ok()?));
    (start.get(12..16)? == b"IHDR").then_some((number(16)?, number(20)?))
}

fn check_size(width: u32, height: u32, max_pixels: u64) -> Result<(), Fault> {
    if u64::from(width) * u64::from(height) > max_pixels {
        let limit = megapixels(max_pixels);
        return Err(Fault::Picture(format!(
            "is {width}x{height} pixels, more than the limit of {limit}; make it smaller"
        )));
    }
    Ok(())
}

fn megapixels(pixels: u64) -> String {
    format!("{} megapixels", pixels as f64 / 1e6)
}

fn decode(reader: impl BufRead + Seek, format: ImageFormat, max_pixels: u64) -> Result<Frame, Fault> {
    let fault = |error: ImageError| decoder_fault(error, max_pixels);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_pixels * WIDEST_PIXEL_BYTES + DECODER_TABLE_BYTES);
    let mut reader = ImageReader::with_format(reader, format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(fault)?;

    let (width, height) = decoder.dimensions();
    check_size(width, height, max_pixels)?;
    // Damaged EXIF is no reason to refuse a picture: it then stands as it was stored.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(fault)?;
    picture.apply_orientation(orientation);

    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let rgb = if picture.color().has_alpha() {
        over_white(picture.into_rgba8().into_raw())
    } else {
        picture.into_rgb8().into_raw()
    };
    Frame::new(width, height, rgb).map_err(|error| Fault::Picture(format!("is damaged ({error}); save it anew")))
}

/// Lays `[N, 4]` RGBA over white: `[N, 3]`.
fn over_white(rgba: Vec<u8>) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.chunks_exact(4) {
        let alpha = u32::from(pixel[3]);
        rgb.extend(pixel[..3].iter().map(|&v| ((u32::from(v) * alpha + 255 * (255 - alpha) + 127) / 255) as u8));
    }
    rgb
}

/// The decoder's complaint as one of ours.
fn decoder_fault(error: ImageError, max_pixels: u64) -> Fault {
    Fault::Picture(match error {
        ImageError::IoError(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            "is cut short; copy it again".into()
        }
        ImageError::IoError(source) => return Fault::Io(source),
        ImageError::Limits(_) => {
            let limit = megapixels(max_pixels);
            format!("needs more memory than the limit of {limit} allows; make it smaller")
        }
        ImageError::Unsupported(what) => format!("cannot be read: {what}; save it as PNG or JPEG"),
        other => format!("is damaged or cut short ({other}); copy it again or save it anew"),
    })
}

/// Walks a JPEG's segments (ITU-T T.81, annex B) to its end-of-image marker.
fn jpeg_is_whole(reader: &mut impl BufRead) -> std::io::Result<bool> {
    match walk_jpeg(reader) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn walk_jpeg(reader: &mut impl BufRead) -> std::io::Result<()> {
    const END_OF_IMAGE: u8 = 0xD9;
    let mut byte = [0u8];
    loop {
        // Whatever precedes a marker: entropy-coded data, in which 0xFF is followed by 0, or padding.
        if reader.skip_until(0xFF)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        reader.read_exact(&mut byte)?;
        while byte[0] == 0xFF {
            reader.read_exact(&mut byte)?;
        }
        match byte[0] {
            END_OF_IMAGE => return Ok(()),
            // Stuffing, TEM, restarts and start of image stand alone.
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            _ => {
                let mut length = [0u8; 2];
                reader.read_exact(&mut length)?;
                let rest = u64::from(u16::from_be_bytes(length)).saturating_sub(2);
                if std::io::copy(&mut reader.take(rest), &mut std::io::sink())? < rest {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::gif::GifEncoder;
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba, RgbaImage};
    use std::path::PathBuf;

    const RED: [u8; 3] = [255, 0, 0];
    const GREEN: [u8; 3] = [0, 255, 0];
    const BLUE: [u8; 3] = [0, 0, 255];
    const WHITE: [u8; 3] = [255, 255, 255];

    fn written(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Red, green over blue, white: a quadrant each, 32x16.
    fn quadrants() -> DynamicImage {
        let colour = |x, y| match (x < 16, y < 8) {
            (true, true) => Rgb(RED),
            (false, true) => Rgb(GREEN),
            (true, false) => Rgb(BLUE),
            (false, false) => Rgb(WHITE),
        };
        ImageBuffer::from_fn(32, 16, colour).into()
    }

    fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn corners(frame: &Frame) -> [[u8; 3]; 4] {
        let at = |x: usize, y: usize| {
            let start = (y * frame.width() + x) * 3;
            // JPEG is not exact: to the nearest of 0 and 255.
            [0, 1, 2].map(|c| if frame.rgb()[start + c] > 127 { 255 } else { 0 })
        };
        let (right, bottom) = (frame.width() - 1, frame.height() - 1);
        [at(0, 0), at(right, 0), at(0, bottom), at(right, bottom)]
    }

    fn complaint(path: &Path) -> String {
        let text = Frame::open(path).unwrap_err().to_string();
        assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "does not name the file: {text}");
        text
    }

    #[test]
    fn reads_every_format_whatever_the_name() {
        let folder = tempfile::tempdir().unwrap();
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
        for format in [Jpeg, Png, WebP, Bmp, Gif, Tiff] {
            let picture = if format == Gif { DynamicImage::from(quadrants().to_rgba8()) } else { quadrants() };
            let path = written(&folder, "picture.dat", &encoded(&picture, format));
            let frame = Frame::open(&path).unwrap();
            assert_eq!((frame.width(), frame.height()), (32, 16), "{format:?}");
            assert_eq!(corners(&frame), [RED, GREEN, BLUE, WHITE], "{format:?}");
            if format != Jpeg {
                assert_eq!(frame.rgb(), quadrants().into_rgb8().into_raw(), "{format:?}");
            }
        }
    }

    #[test]
    fn a_picture_in_memory_is_read_as_a_file_is() {
        let bytes = encoded(&quadrants(), ImageFormat::Jpeg);
        let folder = tempfile::tempdir().unwrap();
        let from_file = Frame::open(written(&folder, "a.jpg", &bytes)).unwrap();
        assert_eq!(Frame::from_bytes(&bytes, 32 * 16).unwrap(), from_file);

        let complaint = |bytes: &[u8], max_pixels| match Frame::from_bytes(bytes, max_pixels) {
            Err(Error::Usage(text)) => text,
            other => panic!("{other:?}"),
        };
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp] {
            let text = complaint(&encoded(&quadrants(), format), 32 * 16 - 1);
            assert!(text.contains("32x16") && text.contains("0.000511 megapixels"), "{format:?}: {text}");
        }
        assert!(complaint(&bytes[..bytes.len() / 2], MAX_PIXELS).starts_with("the picture is cut short"));
        assert!(complaint(b"", MAX_PIXELS).contains("empty"));
        assert!(complaint(b"<html>", MAX_PIXELS).contains("not a picture"));
    }

    #[test]
    fn honours_the_orientation_in_exif() {
        let folder = tempfile::tempdir().unwrap();
        let plain = encoded(&quadrants(), ImageFormat::Jpeg);
        // TIFF 6.0, tag Orientation: where the stored first row and column are seen.
        let expected = [
            [RED, GREEN, BLUE, WHITE],
            [GREEN, RED, WHITE, BLUE],
            [WHITE, BLUE, GREEN, RED],
            [BLUE, WHITE, RED, GREEN],
            [RED, BLUE, GREEN, WHITE],
            [BLUE, RED, WHITE, GREEN],
            [WHITE, GREEN, BLUE, RED],
            [GREEN, WHITE, RED, BLUE],
        ];
        for (orientation, expected) in (1u8..).zip(expected) {
            let mut exif =
                b"\xFF\xE1\x00\x22Exif\0\0MM\x00\x2A\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00"
                    .to_vec();
            exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
            assert_eq!(exif.len(), 2 + 0x22);
            let bytes = [&plain[..2], &exif, &plain[2..]].concat();
            let frame = Frame::open(written(&folder, "turned.jpg", &bytes)).unwrap();
            assert_eq!(corners(&frame), expected, "orientation {orientation}");
            assert_eq!(frame.width() < frame.height(), orientation > 4, "orientation {orientation}");
        }
    }

    #[test]
    fn lays_transparency_over_white() {
        let folder = tempfile::tempdir().unwrap();
        let pixels = [[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 128]];
        let picture: DynamicImage = RgbaImage::from_fn(3, 1, |x, _| Rgba(pixels[x as usize])).into();
        let frame = Frame::open(written(&folder, "a.png", &encoded(&picture, ImageFormat::Png))).unwrap();
        // 255 - 128 = 127 of white; 100 * 128 + 255 * 127 = 45185, / 255 = 177.2
        assert_eq!(frame.rgb(), [10, 20, 30, 255, 255, 255, 127, 177, 255]);
    }

    #[test]
    fn greys_and_sixteen_bits_become_rgb8() {
        let folder = tempfile::tempdir().unwrap();
        let cases: [(DynamicImage, [u8; 3]); 4] = [
            (ImageBuffer::from_pixel(1, 1, Luma([100u8])).into(), [100; 3]),
            (ImageBuffer::from_pixel(1, 1, LumaA([0u8, 0])).into(), [255; 3]),
            (ImageBuffer::from_pixel(1, 1, Luma([0x4040u16])).into(), [0x40; 3]),
            (ImageBuffer::from_pixel(1, 1, Rgb([0x1010u16, 0x8080, 0xFFFF])).into(), [0x10, 0x80, 0xFF]),
        ];
        for (picture, expected) in cases {
            let frame = Frame::open(written(&folder, "a.png", &encoded(&picture, ImageFormat::Png))).unwrap();
            assert_eq!(frame.rgb(), expected);
        }
    }

    #[test]
    fn takes_the_first_picture_of_a_gif() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new(&mut bytes);
        for colour in [[255, 0, 0, 255], [0, 0, 255, 255]] {
            encoder.encode_frame(image::Frame::new(RgbaImage::from_pixel(4, 4, Rgba(colour)))).unwrap();
        }
        drop(encoder);
        assert_eq!(corners(&Frame::open(written(&folder, "two.gif", &bytes)).unwrap()), [RED; 4]);
    }

    #[test]
    fn refuses_a_huge_picture_by_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 30_000, 30_000);
        encoder.set_color(png::ColorType::Rgba);
        // Nothing but the header, and then the end: whatever tried to decode it would find no pixels.
        drop(encoder.write_header().unwrap());
        let text = complaint(&written(&folder, "huge.png", &bytes));
        assert!(text.contains("30000x30000") && text.contains("100 megapixels"), "{text}");

        // The same by the decoder's own reading of a header: a BMP of 24 bits a pixel.
        let mut bytes = encoded(&DynamicImage::new_rgb8(1, 1), ImageFormat::Bmp);
        bytes[18..22].copy_from_slice(&30_000u32.to_le_bytes());
        bytes[22..26].copy_from_slice(&30_000u32.to_le_bytes());
        let text = complaint(&written(&folder, "huge.bmp", &bytes));
        assert!(text.contains("30000x30000") && text.contains("100 megapixels"), "{text}");
    }

    #[test]
    fn refuses_whatever_is_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
        for format in [Jpeg, Png, WebP, Bmp, Gif, Tiff] {
            let picture = if format == Gif { DynamicImage::from(quadrants().to_rgba8()) } else { quadrants() };
            let whole = encoded(&picture, format);
            for length in [whole.len() / 4, whole.len() / 2, whole.len() * 3 / 4] {
                let text = complaint(&written(&folder, "cut.dat", &whole[..length]));
                assert!(text.contains("cut short") || text.contains("damaged"), "{format:?} {length}: {text}");
            }
        }
        let jpeg = encoded(&quadrants(), Jpeg);
        complaint(&written(&folder, "cut.jpg", &jpeg[..jpeg.len() - 2]));
        // What cameras append after the end, a film for instance, does not matter.
        let longer = [&jpeg[..], &[0xFF, 0xDA, 1, 2, 3]].concat();
        assert!(Frame::open(written(&folder, "longer.jpg", &longer)).is_ok());
    }

    #[test]
    fn refuses_what_is_no_picture() {
        let folder = tempfile::tempdir().unwrap();
        assert!(complaint(&written(&folder, "empty.png", b"")).contains("empty"));
        assert!(complaint(&written(&folder, "text.jpg", b"not a picture at all")).contains("not a picture"));
        assert!(complaint(&written(&folder, "one.png", b"\x89")).contains("not a picture"));
        assert!(complaint(folder.path()).contains("folder"));
        assert!(matches!(Frame::open(folder.path().join("missing.png")), Err(Error::Io { .. })));
        complaint(&folder.path().join("missing.png"));
    }
}
