//! JPEGs out of a stream of bytes in which they follow each other, whatever stands between them.

/// The largest JPEG that is waited for; longer ones are dropped.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

// Markers of ITU-T T.81, table B.1.
const START_OF_IMAGE: u8 = 0xD8;
const END_OF_IMAGE: u8 = 0xD9;
const START_OF_SCAN: u8 = 0xDA;

/// What comes with a JPEG that was not made for a film, to be put after its first two bytes: it tells the decoder to use
/// the usual Huffman tables where there are none, which cameras leave out of MJPEG.
const AVI1: [u8; 18] = *b"\xFF\xE0\x00\x10AVI1\0\0\0\0\0\0\0\0\0\0";

/// Finds the JPEGs in a stream that comes in chunks of any size.
///
/// A JPEG says itself where it ends (ITU-T T.81, annex B), so neither the boundaries of a multipart stream nor their
/// lengths, which cameras often get wrong, are looked at. Segments are stepped over by their lengths: thumbnails within
/// them end nothing. After anything unexpected the next start of an image is looked for.
#[derive(Debug)]
pub struct Splitter {
    frame: Vec<u8>,
    place: Place,
    scanned: bool,
    max_bytes: usize,
    skipped: u64,
}

/// Where in a JPEG the last byte left us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Between JPEGs.
    Outside,
    /// Between JPEGs, after 0xFF.
    OutsideMarker,
    /// Where a marker should begin, or in entropy-coded data.
    Inside,
    /// After 0xFF.
    Marker,
    /// Before the first byte of the length of a segment.
    Length { scan: bool },
    /// Before the second byte of the length.
    LengthEnd { scan: bool, high: u8 },
    /// So many bytes before the end of a segment.
    Segment { left: usize, scan: bool },
}

impl Splitter {
    /// At the start of a stream.
    pub fn new() -> Splitter {
        Splitter::with_limit(MAX_FRAME_BYTES)
    }

    /// As [`Splitter::new`], with another limit than [`MAX_FRAME_BYTES`].
    pub fn with_limit(max_bytes: usize) -> Splitter {
        Splitter { frame: vec![], place: Place::Outside, scanned: false, max_bytes, skipped: 0 }
    }

    /// Takes the next bytes of the stream and gives `each` whole JPEG in them, from its first byte to its last.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Vec<u8>)) {
        while let Some(&byte) = bytes.first() {
            let taken = match self.place {
                Place::Outside => self.skip(bytes),
                Place::Inside => self.take(bytes, bytes.iter().position(|&b| b == 0xFF).unwrap_or(bytes.len())),
                Place::Segment { left, scan } => {
                    let taken = self.take(bytes, left.min(bytes.len()));
                    self.place = self.segment(left - taken, scan);
                    taken
                }
                _ => 0,
            };
            if taken > 0 {
                bytes = &bytes[taken..];
            } else {
                self.step(byte, &mut each);
                bytes = &bytes[1..];
            }
            if self.frame.len() > self.max_bytes {
                self.leave();
            }
        }
    }

    /// Bytes since the start or the last whole JPEG that belong to none.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Steps over what precedes a possible start of an image.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.iter().position(|&b| b == 0xFF).unwrap_or(bytes.len());
        self.skipped += count as u64;
        count
    }

    /// Takes up to `count` bytes, and no more than it takes to be too long: however the stream is cut, the same is dropped.
    fn take(&mut self, bytes: &[u8], count: usize) -> usize {
        let count = count.min(self.max_bytes + 1 - self.frame.len());
        self.frame.extend_from_slice(&bytes[..count]);
        count
    }

    fn segment(&self, left: usize, scan: bool) -> Place {
        if left == 0 { Place::Inside } else { Place::Segment { left, scan } }
    }

    /// One byte that may change the place.
    fn step(&mut self, byte: u8, each: &mut impl FnMut(Vec<u8>)) {
        match self.place {
            Place::Outside => {
                self.skipped += 1;
                self.place = Place::OutsideMarker;
            }
            Place::OutsideMarker if byte == START_OF_IMAGE => self.start(),
            Place::OutsideMarker => {
                self.skipped += 1;
                if byte != 0xFF {
                    self.place = Place::Outside;
                }
            }
            Place::Inside | Place::Segment { .. } => {
                self.frame.push(byte);
                self.place = Place::Marker;
            }
            Place::Marker => self.marker(byte, each),
            Place::Length { scan } => {
                self.frame.push(byte);
                self.place = Place::LengthEnd { scan, high: byte };
            }
            Place::LengthEnd { scan, high } => {
                self.frame.push(byte);
                self.scanned |= scan;
                let length = usize::from(u16::from_be_bytes([high, byte]));
                self.place = self.segment(length.saturating_sub(2), scan);
            }
        }
    }

    /// The byte after 0xFF within a JPEG.
    fn marker(&mut self, byte: u8, each: &mut impl FnMut(Vec<u8>)) {
        self.frame.push(byte);
        self.place = match byte {
            // the last one was cut short
            START_OF_IMAGE => {
                self.skipped += self.frame.len() as u64 - 1;
                return self.start();
            }
            END_OF_IMAGE if self.scanned && self.frame.len() <= self.max_bytes => {
                each(std::mem::take(&mut self.frame));
                self.skipped = 0;
                Place::Outside
            }
            END_OF_IMAGE => return self.leave(),
            // any number of them may precede a marker
            0xFF => Place::Marker,
            // stuffing, TEM, reserved and restarts stand alone
            0x00..=0xBF | 0xD0..=0xD7 => Place::Inside,
            START_OF_SCAN => Place::Length { scan: true },
            // in the data only these are markers, the others damage
            _ if self.scanned && !matches!(byte, 0xC4 | 0xDB..=0xDD | 0xE0..=0xEF | 0xFE) => Place::Inside,
            _ => Place::Length { scan: false },
        };
    }

    /// A JPEG begins; both bytes of its marker were read.
    fn start(&mut self) {
        self.skipped = self.skipped.saturating_sub(1);
        self.frame.clear();
        self.frame.extend([0xFF, START_OF_IMAGE]);
        self.scanned = false;
        self.place = Place::Inside;
    }

    /// This is no JPEG, or too long a one.
    fn leave(&mut self) {
        self.skipped += self.frame.len() as u64;
        self.frame = vec![];
        self.place = Place::Outside;
    }
}

impl Default for Splitter {
    fn default() -> Self {
        Splitter::new()
    }
}

/// The JPEG as decoders take it: many cameras leave out the Huffman tables, which are then the usual ones (ITU-T T.81,
/// section K.3).
pub(super) fn with_huffman_tables(mut jpeg: Vec<u8>) -> Vec<u8> {
    if jpeg.len() >= 2 && !has_huffman_tables(&jpeg) {
        jpeg.splice(2..2, AVI1);
    }
    jpeg
}

/// Whether there is a DHT segment before the first scan.
fn has_huffman_tables(jpeg: &[u8]) -> bool {
    let mut rest = &jpeg[2..];
    while let [0xFF, marker, after @ ..] = rest {
        match (marker, after) {
            (0xC4, _) => return true,
            (0xFF, _) => rest = &rest[1..],
            (&START_OF_SCAN, _) => return false,
            (_, [high, low, ..]) => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                rest = after.get(length..).unwrap_or_default();
            }
            _ => break,
        }
    }
    // damaged: the decoder is to say so
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::Frame;
    use image::codecs::jpeg::JpegEncoder;
    use proptest::prelude::*;

    fn picture(width: u32, height: u32, seed: u8) -> Vec<u8> {
        let pixel = |x: u32, y: u32| image::Rgb([(x * 7) as u8 ^ seed, (y * 5) as u8, seed.wrapping_mul(x as u8)]);
        let mut bytes = vec![];
        JpegEncoder::new_with_quality(&mut bytes, 60 + seed % 40)
            .encode_image(&image::RgbImage::from_fn(width, height, pixel))
            .unwrap();
        bytes
    }

    /// The JPEG with a segment after its start that holds a whole JPEG, as EXIF holds a thumbnail.
    fn with_thumbnail(jpeg: &[u8], thumbnail: &[u8]) -> Vec<u8> {
        let length = (thumbnail.len() + 2 + 6) as u16;
        [&jpeg[..2], &[0xFF, 0xE1], &length.to_be_bytes(), b"Exif\0\0", thumbnail, &jpeg[2..]].concat()
    }

    fn without_huffman_tables(jpeg: &[u8]) -> Vec<u8> {
        let mut out = jpeg[..2].to_vec();
        let mut at = 2;
        while jpeg[at + 1] != START_OF_SCAN {
            let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
            if jpeg[at + 1] != 0xC4 {
                out.extend(&jpeg[at..end]);
            }
            at = end;
        }
        out.extend(&jpeg[at..]);
        out
    }

    fn split<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
        let (mut splitter, mut frames) = (Splitter::new(), vec![]);
        for chunk in chunks {
            splitter.push(chunk, |frame| frames.push(frame));
        }
        frames
    }

    #[test]
    fn a_thumbnail_ends_nothing() {
        let picture = with_thumbnail(&picture(40, 30, 3), &picture(8, 8, 9));
        assert_eq!(split([&[&picture[..], &picture].concat()[..]]), [picture.clone(), picture]);
    }

    #[test]
    fn markers_within_the_data_end_nothing() {
        // SOI, SOS of length 3, data with stuffing, restart, fill, damage (0xFF 0x05, a stray frame header), EOI
        let odd =
            b"\xFF\xD8\xFF\xDA\x00\x03\x01ab\xFF\x00c\xFF\xD3d\xFF\xFF\xFF\x00e\xFF\x05f\xFF\xC0\xFF\xD9".to_vec();
        // progressive: tables between two scans, one of them with what looks like an end
        let two = b"\xFF\xD8\xFF\xDA\x00\x03\x01ab\xFF\xC4\x00\x06\xFF\xD9\xFF\xD8\xFF\xDA\x00\x02c\xFF\xD9".to_vec();
        assert_eq!(split([&[&odd[..], &two].concat()[..]]), [odd, two]);
    }

    #[test]
    fn whatever_is_damaged_costs_no_more_than_itself() {
        let (a, b) = (picture(40, 30, 1), picture(24, 16, 2));
        for length in 2..a.len() - 1 {
            // twenty pictures: a length cut short may swallow the next ones
            let stream = [&a[..length], b"\r\n--b\r\n\r\n", &b.repeat(20)].concat();
            let frames = split([&stream[..]]);
            assert!(frames.last() == Some(&b), "cut at {length}: {}", frames.len());
        }
        // an end without data is none
        assert_eq!(split([&[b"\xFF\xD8\xFF\xD9", &b[..]].concat()[..]]).last(), Some(&b));
        assert_eq!(split([&[b"\xFF\xFF\xFF", &b[..]].concat()[..]]), [b]);
    }

    #[test]
    fn frames_beyond_the_limit_are_dropped() {
        let (large, small) = (picture(200, 200, 5), picture(8, 8, 6));
        assert!(small.len() < 1000 && large.len() > 1000, "{} {}", small.len(), large.len());
        let mut splitter = Splitter::with_limit(1000);
        let mut frames = vec![];
        for _ in 0..2 {
            splitter.push(&[&large[..], &small].concat(), |frame| frames.push(frame));
        }
        assert_eq!(frames, [small.clone(), small]);
        let endless = [b"\xFF\xD8\xFF\xDA\x00\x02".to_vec(), vec![7; 1 << 20]].concat();
        splitter.push(&endless, |_| panic!("no end"));
        assert!(splitter.frame.capacity() < 4096, "the memory is given back");
        assert_eq!(splitter.skipped(), endless.len() as u64);
    }

    #[test]
    fn missing_huffman_tables_are_the_usual_ones() {
        let whole = picture(40, 30, 4);
        let bare = without_huffman_tables(&whole);
        assert!(bare.len() + 300 < whole.len());
        assert!(Frame::from_bytes(&bare, 1 << 20).is_err());
        let frame = Frame::from_bytes(&with_huffman_tables(bare), 1 << 20).unwrap();
        assert_eq!(frame, Frame::from_bytes(&whole, 1 << 20).unwrap());
        assert_eq!(with_huffman_tables(whole.clone()), whole);
        for odd in [&b"\xFF\xD8"[..], b"", b"\xFF\xD8\xFF\xE0\xFF\xFF", b"\xFF\xD8\xFF\xFF\xFF\xC4"] {
            assert_eq!(with_huffman_tables(odd.to_vec()), odd);
        }
    }

    proptest! {
        /// Whatever the network makes of it, the frames are the same.
        #[test]
        fn chunks_do_not_matter(
            pictures in prop::collection::vec((1u32..40, 1u32..40, any::<u8>(), any::<bool>()), 1..6),
            between in prop::collection::vec("[ -~\r\n]{0,40}", 6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let thumbnail = picture(8, 8, 1);
            let pictures: Vec<_> = pictures.into_iter().map(|(width, height, seed, exif)| {
                let jpeg = picture(width, height, seed);
                if exif { with_thumbnail(&jpeg, &thumbnail) } else { jpeg }
            }).collect();
            let mut stream = vec![];
            for (picture, rubbish) in pictures.iter().zip(&between) {
                stream.extend(rubbish.as_bytes());
                stream.extend(picture);
            }
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            prop_assert_eq!(&split(cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]])), &pictures);
            prop_assert_eq!(&split(stream.chunks(1)), &pictures);
        }

        /// Of rubbish the same is made however it comes, and every frame is in it as it is.
        #[test]
        fn rubbish_is_survived(pieces in prop::collection::vec(prop_oneof![
            Just(b"\xFF\xD8".to_vec()), Just(b"\xFF\xD9".to_vec()), Just(b"\xFF\xDA\x00\x03".to_vec()),
            Just(b"\xFF".to_vec()), Just(b"\xFF\xE1\x00\x05".to_vec()), prop::collection::vec(any::<u8>(), 0..9),
        ], 0..40)) {
            let stream = pieces.concat();
            let frames = split([&stream[..]]);
            prop_assert_eq!(&split(stream.chunks(1)), &frames);
            let mut rest = &stream[..];
            for frame in frames {
                let at = rest.windows(frame.len()).position(|window| window == frame);
                prop_assert!(at.is_some());
                rest = &rest[at.unwrap() + frame.len()..];
            }
        }
    }
}
