//! The finished picture: from the VAE's output to pixels, and to a file that says how it was painted.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle, iso_8859_1};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{DrawTarget, Drawable, OriginDimensions, Pixel, Point, RgbColor, Size};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};
use png::text_metadata::{ITXtChunk, TEXtChunk};

use crate::bundle::write::write_atomically;
use crate::camera::Frame;
use crate::error::{Error, Result};

/// JPEG quality of 100: no visible loss, a fifth of a PNG.
const JPEG_QUALITY: u8 = 95;

/// A picture as it is shown and saved: `[H, W, 3]` u8 sRGB, rows from the top, no padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

/// How a picture was painted, for the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata {
    /// The full prompt, styles by name.
    pub prompt: String,
    /// The negative prompt; empty for none.
    pub negative: String,
    /// Denoising steps.
    pub steps: usize,
    /// The sampler's name.
    pub sampler: String,
    /// Guidance scale.
    pub cfg_scale: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// What identifies the model, such as the start of its checksum; empty for not known.
    pub model_hash: String,
    /// How much of the content picture was painted over, in [0, 1]; none for text to image.
    pub strength: Option<f64>,
    /// Everything it takes to paint the picture again.
    pub recipe: serde_json::Value,
}

impl Metadata {
    /// The `parameters` text as AUTOMATIC1111's web UI writes it (`modules/processing.py`, `create_infotext`).
    pub fn parameters(&self, width: usize, height: usize) -> String {
        let mut fields = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", self.sampler.clone()),
            ("CFG scale", self.cfg_scale.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{width}x{height}")),
        ];
        if !self.model_hash.is_empty() {
            fields.push(("Model hash", self.model_hash.clone()));
        }
        fields.extend(self.strength.map(|strength| ("Denoising strength", strength.to_string())));
        let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
        let negative =
            if self.negative.is_empty() { String::new() } else { format!("\nNegative prompt: {}", self.negative) };
        format!("{}{negative}\n{}", self.prompt, fields.join(", ")).trim().to_owned()
    }
}

/// Values that would upset the list's commas and colons stand as JSON strings.
fn quoted(value: &str) -> String {
    if value.contains([',', '\n', ':']) { serde_json::Value::from(value).to_string() } else { value.to_owned() }
}

/// The kinds of file a picture is saved as.
#[derive(Clone, Copy, PartialEq)]
enum FileKind {
    Png,
    Jpeg,
}

impl FileKind {
    fn of(path: &Path) -> Result<FileKind> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("png") => Ok(FileKind::Png),
            Some("jpg" | "jpeg") => Ok(FileKind::Jpeg),
            _ => {
                Err(Error::Usage(format!("{}: pictures are saved as .png or .jpg; name one of these", path.display())))
            }
        }
    }
}

impl Canvas {
    /// A canvas from its pixels, `[H, W, 3]` u8 sRGB.
    ///
    /// # Errors
    /// [`Error::Usage`] when a side is zero or `rgb` does not hold `width * height * 3` bytes.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Canvas> {
        Frame::new(width, height, rgb).map(Canvas::from)
    }

    /// From the VAE decoder's `image`, `[1, 3, H, W]` in about [-1, 1]: `(x / 2 + 0.5)` clamped to [0, 1], times 255, rounded
    /// half to even (diffusers' `VaeImageProcessor`).
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a pixel is not, [`Error::Candle`] for another shape.
    pub fn from_planar(image: &Tensor) -> Result<Canvas> {
        let (batch, channels, height, width) = image.dims4()?;
        if (batch, channels) != (1, 3) {
            let shape = image.dims();
            return Err(candle_core::Error::Msg(format!("a canvas takes [1, 3, H, W], not {shape:?}")).into());
        }
        let planes: Vec<f32> = image.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if planes.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                what: "a pixel of the picture".to_owned(),
                remedy: "the model or a style is damaged, or the guidance is far too strong; lower it first".to_owned(),
            });
        }
        let plane = width * height;
        let level = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let pixels = (0..plane).flat_map(|i| [0, 1, 2].map(|c| level(planes[c * plane + i])));
        Canvas::new(width, height, pixels.collect())
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[H, W, 3]` u8 sRGB.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Whether a picture can be saved under this name, to be asked before painting it.
    ///
    /// # Errors
    /// [`Error::Usage`] when it ends neither in .png nor in .jpg.
    pub fn check_name(path: impl AsRef<Path>) -> Result<()> {
        FileKind::of(path.as_ref()).map(|_| ())
    }

    /// Saves the picture whole or not at all: .png with `metadata`, or .jpg without. The same picture and metadata give
    /// the same bytes.
    ///
    /// # Errors
    /// [`Error::Usage`] for another ending, otherwise as [`write_atomically`].
    pub fn save(&self, path: impl AsRef<Path>, metadata: &Metadata) -> Result<()> {
        let path = path.as_ref();
        match FileKind::of(path)? {
            FileKind::Png => write_atomically(path, |file| self.write_png(metadata, file)),
            FileKind::Jpeg => write_atomically(path, |file| self.write_jpeg(file)),
        }
    }

    /// Writes a PNG with two text chunks: `parameters` (Latin-1 `tEXt` where that holds it, else `iTXt`, as Pillow
    /// chooses) and `pleinair`, the recipe as JSON (`iTXt`). Default metadata say nothing and are left out.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write_png(&self, metadata: &Metadata, out: impl Write) -> std::io::Result<()> {
        let side = |size: usize| u32::try_from(size).map_err(std::io::Error::other);
        let mut encoder = png::Encoder::new(out, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        if *metadata != Metadata::default() {
            let parameters = metadata.parameters(self.width, self.height);
            if parameters.chars().all(|c| u8::try_from(c).is_ok()) {
                writer.write_text_chunk(&TEXtChunk::new("parameters", parameters))?;
            } else {
                writer.write_text_chunk(&ITXtChunk::new("parameters", parameters))?;
            }
            writer.write_text_chunk(&ITXtChunk::new("pleinair", metadata.recipe.to_string()))?;
        }
        writer.write_image_data(&self.rgb)?;
        Ok(writer.finish()?)
    }

    /// Writes a JPEG without metadata.
    ///
    /// # Errors
    /// What `out` says, or that a side is beyond JPEG's 65,535.
    pub fn write_jpeg(&self, out: impl Write) -> std::io::Result<()> {
        let side = |size: usize| u16::try_from(size).map(u32::from).map_err(std::io::Error::other);
        let (width, height) = (side(self.width)?, side(self.height)?);
        image::codecs::jpeg::JpegEncoder::new_with_quality(out, JPEG_QUALITY)
            .encode(&self.rgb, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|error| match error {
                image::ImageError::IoError(source) => source,
                other => std::io::Error::other(other),
            })
    }

    /// A white canvas.
    fn blank(width: usize, height: usize) -> Canvas {
        Canvas { width, height, rgb: vec![255; width * height * 3] }
    }

    /// Lays `picture` on, its upper left corner at (`left`, `top`); it has to lie inside.
    fn lay(&mut self, picture: &Canvas, left: usize, top: usize) {
        for (y, row) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
            let start = ((top + y) * self.width + left) * 3;
            self.rgb[start..start + row.len()].copy_from_slice(row);
        }
    }
}

impl From<Frame> for Canvas {
    fn from(frame: Frame) -> Canvas {
        Canvas { width: frame.width(), height: frame.height(), rgb: frame.into_rgb() }
    }
}

impl std::fmt::Debug for Canvas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Canvas({}x{})", self.width, self.height)
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        // A side beyond u32 fits no memory.
        Size::new(self.width.try_into().unwrap_or(u32::MAX), self.height.try_into().unwrap_or(u32::MAX))
    }
}

/// Pixels outside are dropped, as the trait asks.
impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Self::Error> {
        for Pixel(Point { x, y }, colour) in pixels {
            let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { continue };
            if x < self.width && y < self.height {
                let start = (y * self.width + x) * 3;
                self.rgb[start..start + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// Pictures side by side on white, `columns` in a row, each centred in its cell with its label below. All cells are as
/// large as the largest picture; labels too long for it end in dots, characters outside Latin-1 show as `?`.
///
/// # Errors
/// [`Error::Usage`] for no cells or no columns.
pub fn contact_sheet(cells: &[(&str, &Canvas)], columns: usize) -> Result<Canvas> {
    if cells.is_empty() || columns == 0 {
        return Err(Error::Usage("a contact sheet needs at least one picture and one column".to_owned()));
    }
    let columns = columns.min(cells.len());
    let rows = cells.len().div_ceil(columns);
    let cell_width = cells.iter().map(|(_, picture)| picture.width).max().unwrap_or(0);
    let cell_height = cells.iter().map(|(_, picture)| picture.height).max().unwrap_or(0);
    let font = label_font(cell_width);
    let (letter_width, line) = (font.character_size.width as usize, font.character_size.height as usize);
    let gap = line;
    let (pitch_x, pitch_y) = (cell_width + gap, cell_height + line + line / 2 + gap);

    let mut sheet = Canvas::blank(gap + columns * pitch_x, gap + rows * pitch_y);
    for (i, (label, picture)) in cells.iter().enumerate() {
        let (left, top) = (gap + i % columns * pitch_x, gap + i / columns * pitch_y);
        sheet.lay(picture, left + (cell_width - picture.width) / 2, top + (cell_height - picture.height) / 2);

        let label = shortened(label, (cell_width + gap) / letter_width);
        let middle = Point::new((left + cell_width / 2) as i32, (top + cell_height + line / 2) as i32);
        let style = TextStyleBuilder::new().alignment(Alignment::Center).baseline(Baseline::Top).build();
        let ink = MonoTextStyle::new(font, Rgb888::BLACK);
        let Ok(_) = Text::with_text_style(&label, middle, ink, style).draw(&mut sheet);
    }
    Ok(sheet)
}

/// A font that a dozen letters or more of fit under a picture.
fn label_font(cell_width: usize) -> &'static MonoFont<'static> {
    match cell_width {
        0..192 => &iso_8859_1::FONT_6X10,
        192..384 => &iso_8859_1::FONT_8X13,
        _ => &iso_8859_1::FONT_10X20,
    }
}

/// One line of at most `room` characters.
fn shortened(label: &str, room: usize) -> String {
    let line: String = label.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= room {
        return line;
    }
    let kept: String = line.chars().take(room.saturating_sub(3)).collect();
    kept.trim_end().to_owned() + &"..."[..room.min(3)]
}

/// Peak signal-to-noise ratio in dB over all pixels and channels (peak 255); infinite for equal pictures.
///
/// # Errors
/// [`Error::Usage`] when the sizes differ.
pub fn psnr(a: &Canvas, b: &Canvas) -> Result<f64> {
    if (a.width, a.height) != (b.width, b.height) {
        return Err(Error::Usage(format!(
            "pictures of {}x{} and {}x{} pixels cannot be compared; resize one",
            a.width, a.height, b.width, b.height
        )));
    }
    // Whole numbers: exact up to 2^64 / 255^2 bytes.
    let squares: u64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum();
    Ok(10.0 * (255.0 * 255.0 * a.rgb.len() as f64 / squares as f64).log10())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn canvas(width: usize, height: usize, colour: [u8; 3]) -> Canvas {
        Canvas::new(width, height, colour.repeat(width * height)).unwrap()
    }

    fn metadata() -> Metadata {
        Metadata {
            prompt: "a house, in the style of gogh".into(),
            negative: "blurry, low quality".into(),
            steps: 20,
            sampler: "DPM++ 2M".into(),
            cfg_scale: 7.5,
            seed: u64::MAX,
            model_hash: "0123abcdef".into(),
            strength: Some(0.8),
            recipe: json!({"prompt": "a house, in the style of {}", "seed": u64::MAX, "style": "żółw 🎨"}),
        }
    }

    fn planar(values: &[f32], width: usize) -> Tensor {
        Tensor::from_slice(values, (1, 3, values.len() / 3 / width, width), &Device::Cpu).unwrap()
    }

    #[test]
    fn pixels_round_half_to_even_and_are_clamped() {
        let image = planar(&[-1.0, 1.0, 0.0, -7.0, 7.0, 0.1], 2);
        assert_eq!(Canvas::from_planar(&image).unwrap().rgb(), [0, 128, 255, 255, 0, 140]);
        let half = image.to_dtype(DType::F16).unwrap();
        assert_eq!(Canvas::from_planar(&half).unwrap().rgb(), [0, 128, 255, 255, 0, 140]);
    }

    #[test]
    fn halves_round_to_even() {
        // Levels for which f32 meets the half exactly; away from zero, the first would be 255.
        for (half, level) in [(254.5f32, 254), (127.5, 128)] {
            let x = half / 255.0 * 2.0 - 1.0;
            assert_eq!((x / 2.0 + 0.5) * 255.0, half);
            assert_eq!(Canvas::from_planar(&planar(&[x; 3], 1)).unwrap().rgb(), [level; 3]);
        }
    }

    /// u8 to [-1, 1] and back is the identity, for every level.
    #[test]
    fn levels_survive_the_round_trip() {
        let frame = Frame::new(16, 16, (0..=255).flat_map(|v| [v, 255 - v, v ^ 0x55]).collect()).unwrap();
        let canvas = Canvas::from_planar(&frame.to_planar(&Device::Cpu).unwrap()).unwrap();
        assert_eq!(canvas, Canvas::from(frame));
    }

    #[test]
    fn numbers_that_are_not_finite_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(matches!(Canvas::from_planar(&planar(&[0.0, bad, 0.0], 1)), Err(Error::NotFinite { .. })));
        }
        for shape in [(2, 3, 1, 1), (1, 4, 1, 1)] {
            let image = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            assert!(matches!(Canvas::from_planar(&image), Err(Error::Candle(_))));
        }
    }

    #[test]
    fn parameters_are_as_the_web_ui_writes_them() {
        let expected = "a house, in the style of gogh\nNegative prompt: blurry, low quality\nSteps: 20, Sampler: DPM++ 2M, \
                        CFG scale: 7.5, Seed: 18446744073709551615, Size: 64x32, Model hash: 0123abcdef, \
                        Denoising strength: 0.8";
        assert_eq!(metadata().parameters(64, 32), expected);
        let plain = Metadata {
            negative: String::new(),
            cfg_scale: 7.0,
            seed: 1,
            model_hash: String::new(),
            strength: None,
            sampler: "a: \"b\", c".into(),
            ..metadata()
        };
        let expected =
            "a house, in the style of gogh\nSteps: 20, Sampler: \"a: \\\"b\\\", c\", CFG scale: 7, Seed: 1, Size: 8x8";
        assert_eq!(plain.parameters(8, 8), expected);
    }

    #[test]
    fn a_png_says_how_it_was_painted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.PNG");
        let picture = canvas(5, 3, [1, 2, 3]);
        for (prompt, latin1) in [("a café", true), ("kaf\u{e9} ÿ", true), ("浮世絵 🎨", false)] {
            let metadata = Metadata { prompt: prompt.into(), ..metadata() };
            picture.save(&path, &metadata).unwrap();
            let first = std::fs::read(&path).unwrap();

            let file = std::io::Cursor::new(&first);
            let mut reader = png::Decoder::new(file).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut pixels).unwrap();
            assert_eq!(pixels, picture.rgb());
            let info = reader.info();
            let (plain, utf8) = (&info.uncompressed_latin1_text, &info.utf8_text);
            assert_eq!((plain.len(), utf8.len()), if latin1 { (1, 1) } else { (0, 2) });
            let text = if latin1 { plain[0].text.clone() } else { utf8[0].get_text().unwrap() };
            assert_eq!(text, metadata.parameters(5, 3));
            let recipe = utf8.last().unwrap();
            assert_eq!(recipe.keyword, "pleinair");
            let recipe: serde_json::Value = serde_json::from_str(&recipe.get_text().unwrap()).unwrap();
            assert_eq!(recipe, metadata.recipe);

            picture.clone().save(&path, &metadata.clone()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), first);
            assert_eq!(Canvas::from(Frame::open(&path).unwrap()), picture);
        }
    }

    #[test]
    fn a_png_that_was_not_painted_says_nothing() {
        let mut file = Vec::new();
        canvas(5, 3, [1, 2, 3]).write_png(&Metadata::default(), &mut file).unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(&file)).read_info().unwrap();
        let info = reader.info();
        assert!(info.uncompressed_latin1_text.is_empty() && info.utf8_text.is_empty());
    }

    #[test]
    fn a_jpeg_is_close_and_other_endings_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        let picture = canvas(16, 8, [200, 100, 50]);
        picture.save(&path, &metadata()).unwrap();
        let back = Canvas::from(Frame::open(&path).unwrap());
        // A flat block has only its mean, kept to the quantisation step of 2 at this quality: within 2 levels, 42 dB.
        assert!(psnr(&back, &picture).unwrap() >= 42.0);
        for name in ["a.gif", "a", "png", ".png", "a.png.txt"] {
            assert!(matches!(picture.save(folder.path().join(name), &metadata()), Err(Error::Usage(_))), "{name}");
            assert!(Canvas::check_name(name).is_err());
        }
        assert!(Canvas::check_name("a.jpeg").is_ok());
        let missing = folder.path().join("missing/a.png");
        assert!(matches!(picture.save(&missing, &metadata()), Err(Error::Io { path, .. }) if path == missing));
    }

    #[test]
    fn a_contact_sheet_shows_every_picture_and_label() {
        let (red, blue) = (canvas(64, 48, [255, 0, 0]), canvas(32, 48, [0, 0, 255]));
        let cells = [("style", &red), ("a photograph of the sea", &blue), ("浮", &red)];
        let sheet = contact_sheet(&cells, 2).unwrap();
        let (gap, pitch_x, pitch_y) = (10, 74, 48 + 25);
        assert_eq!((sheet.width(), sheet.height()), (gap + 2 * pitch_x, gap + 2 * pitch_y));
        let at = |x: usize, y: usize| <[u8; 3]>::try_from(&sheet.rgb()[(y * sheet.width() + x) * 3..][..3]).unwrap();
        assert_eq!((at(9, 10), at(10, 10), at(73, 57), at(74, 57)), ([255; 3], [255, 0, 0], [255, 0, 0], [255; 3]));
        // The narrow one is centred: (64 - 32) / 2 = 16 further in.
        assert_eq!((at(84 + 15, 10), at(84 + 16, 10)), ([255; 3], [0, 0, 255]));
        assert_eq!(at(10, gap + pitch_y), [255, 0, 0]);
        let ink = |left: usize, top: usize| {
            (top..top + 10)
                .flat_map(|y| (left..left + 64).map(move |x| (x, y)))
                .filter(|&(x, y)| at(x, y) == [0; 3])
                .count()
        };
        for (left, top) in [(10, 63), (84, 63), (10, 63 + pitch_y)] {
            assert!(ink(left, top) > 5, "no label at {left}, {top}");
        }
        assert_eq!(ink(84, 63 + pitch_y), 0);
        assert_eq!(contact_sheet(&cells, 2).unwrap(), sheet);
        assert_eq!(contact_sheet(&cells, 9).unwrap().width(), gap + 3 * pitch_x);
        assert!(matches!(contact_sheet(&cells, 0), Err(Error::Usage(_))));
        assert!(matches!(contact_sheet(&[], 2), Err(Error::Usage(_))));
    }

    #[test]
    fn labels_are_shortened_to_fit() {
        assert_eq!(shortened("starry night", 12), "starry night");
        assert_eq!(shortened("starry night", 10), "starry...");
        assert_eq!(shortened("é\nè", 3), "é è");
        assert_eq!((shortened("abc", 2), shortened("abc", 0)), ("..".to_owned(), String::new()));
        let (tiny, label) = (canvas(1, 1, [0; 3]), "a label much wider than the picture");
        assert!(contact_sheet(&[(label, &tiny)], 1).is_ok());
    }

    #[test]
    fn psnr_by_hand_and_of_what_cannot_be_compared() {
        let (a, b) = (canvas(2, 2, [10, 20, 30]), canvas(2, 2, [11, 19, 31]));
        // Mean squared error 1.
        assert!((psnr(&a, &b).unwrap() - 48.130_803_608_679_1).abs() <= 1e-9);
        assert_eq!(psnr(&a, &a).unwrap(), f64::INFINITY);
        assert_eq!(psnr(&canvas(1, 1, [0; 3]), &canvas(1, 1, [255; 3])).unwrap(), 0.0);
        assert!(matches!(psnr(&a, &canvas(4, 1, [0; 3])), Err(Error::Usage(_))));
    }
}
