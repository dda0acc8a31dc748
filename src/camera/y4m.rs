//! YUV4MPEG2, the uncompressed film that ffmpeg and GStreamer write into pipes.

use std::io::{BufRead, Chain, Cursor, Read};

use super::MAX_CAMERA_PIXELS;
pub use super::yuv::{Chroma, Planes, Range};

/// The longest header line, the same as the decoder's.
const MAX_HEADER_BYTES: usize = 1024;

/// Reads frames of 8 bits: `C420`, `C420jpeg`, `C420mpeg2`, `C420paldv`, `C422`, `C444` and `Cmono`.
pub struct Reader<R: BufRead> {
    decoder: y4m::Decoder<Chain<Cursor<Vec<u8>>, R>>,
    chroma: Chroma,
    range: Range,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// Values are taken for video's range unless the header says `XCOLORRANGE=FULL`. `C420jpeg` speaks only of where
    /// chroma is sampled: ffmpeg writes it for any 4:2:0.
    ///
    /// # Errors
    /// What is wrong with the header, as the rest of a sentence that begins with the camera's name.
    pub fn new(mut reader: R) -> Result<Reader<R>, String> {
        let mut header = vec![];
        let limit = MAX_HEADER_BYTES as u64;
        reader.by_ref().take(limit).read_until(b'\n', &mut header).map_err(|e| format!("cannot be read: {e}"))?;
        // the decoder multiplies the sides without looking
        check_size(&header)?;
        let full = header.split(|&b| b == b' ' || b == b'\n').any(|word| word == b"XCOLORRANGE=FULL");
        let limits = y4m::Limits { bytes: 3 * MAX_CAMERA_PIXELS as usize };
        let decoder = y4m::Decoder::new_with_limits(Cursor::new(header).chain(reader), limits).map_err(fault)?;
        let chroma = match decoder.get_colorspace() {
            y4m::Colorspace::Cmono => Chroma::Mono,
            y4m::Colorspace::C422 => Chroma::HalfWidth,
            y4m::Colorspace::C444 => Chroma::Full,
            _ if decoder.get_bit_depth() == 8 => Chroma::Half,
            _ => return Err("sends more than 8 bits a channel; ask it for 8, with ffmpeg -pix_fmt yuv420p".into()),
        };
        Ok(Reader { decoder, chroma, range: if full { Range::Full } else { Range::Limited } })
    }

    /// The next frame; nothing at the end, a frame cut short included.
    ///
    /// # Errors
    /// As [`Reader::new`].
    pub fn next_planes(&mut self) -> Result<Option<Planes>, String> {
        let (width, height) = (self.decoder.get_width(), self.decoder.get_height());
        match self.decoder.read_frame() {
            Ok(frame) => Ok(Some(Planes {
                width,
                height,
                chroma: self.chroma,
                range: self.range,
                planes: [frame.get_y_plane(), frame.get_u_plane(), frame.get_v_plane()].map(<[u8]>::to_vec),
            })),
            Err(y4m::Error::EOF) => Ok(None),
            Err(error) => Err(fault(error)),
        }
    }
}

/// The last of several sides counts, so each is looked at.
fn check_size(header: &[u8]) -> Result<(), String> {
    for (side, other) in [(b'W', b'H'), (b'H', b'W')] {
        let largest =
            |name: u8| header.split(|&b| b == b' ' || b == b'\n').filter(move |word| word.first() == Some(&name));
        let value = |word: &[u8]| std::str::from_utf8(&word[1..]).ok().and_then(|text| text.parse::<u64>().ok());
        // what is no number is the decoder's to refuse
        for width in largest(side).filter_map(value) {
            for height in largest(other).filter_map(value) {
                if width.checked_mul(height).is_none_or(|pixels| pixels > MAX_CAMERA_PIXELS) {
                    let limit = MAX_CAMERA_PIXELS / 1_000_000;
                    return Err(format!("sends frames of more than {limit} megapixels; ask it for smaller ones"));
                }
            }
        }
    }
    Ok(())
}

fn fault(error: y4m::Error) -> String {
    match error {
        y4m::Error::EOF => "ended within the header of its YUV4MPEG2".into(),
        y4m::Error::UnknownColorspace => {
            "sends YUV4MPEG2 in a colour space that is not read; ask it for 4:2:0, with ffmpeg -pix_fmt yuv420p".into()
        }
        error => format!("sends damaged YUV4MPEG2 ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Vec<Planes>, String> {
        let mut reader = Reader::new(bytes)?;
        let mut all = vec![];
        while let Some(planes) = reader.next_planes()? {
            all.push(planes);
        }
        Ok(all)
    }

    #[test]
    fn every_colour_space_is_unpacked() {
        let cases = [
            ("", Chroma::Half, 2),
            (" C420", Chroma::Half, 2),
            (" C420jpeg", Chroma::Half, 2),
            (" C420mpeg2", Chroma::Half, 2),
            (" C420paldv", Chroma::Half, 2),
            (" C422", Chroma::HalfWidth, 2),
            (" C444", Chroma::Full, 3),
            (" Cmono", Chroma::Mono, 0),
        ];
        for (name, chroma, side) in cases {
            // 3x1
            let frame = [&b"FRAME Ip\n"[..], &[100; 3], &vec![110; side], &vec![140; side]].concat();
            let stream = [format!("YUV4MPEG2 W3 H1 F25:1{name} XYSCSS=x\n").as_bytes(), &frame, &frame].concat();
            let planes = read(&stream).unwrap();
            assert_eq!(planes.len(), 2, "{name}");
            assert_eq!((planes[0].chroma, planes[0].range), (chroma, Range::Limited), "{name}");
            assert_eq!(planes[0].planes, [vec![100; 3], vec![110; side], vec![140; side]], "{name}");
            assert_eq!(planes[0].to_frame().unwrap().rgb().len(), 9);
        }
    }

    #[test]
    fn the_range_is_what_the_header_says() {
        let stream = |range: &str| [format!("YUV4MPEG2 W1 H1 Cmono{range}\nFRAME\n").as_bytes(), &[235]].concat();
        let grey = |range: &str| read(&stream(range)).unwrap()[0].to_frame().unwrap().rgb()[0];
        assert_eq!(grey(""), 255);
        assert_eq!(grey(" XCOLORRANGE=LIMITED"), 255);
        assert_eq!(grey(" XCOLORRANGE=FULL"), 235);
        assert_eq!(grey(" XCOLORRANGE=FULL XA"), 235);
    }

    #[test]
    fn bad_headers_are_refused() {
        let cases = [
            ("", "ended"),
            ("YUV4MPEG2 W1 H1", "ended"),
            ("MPEG4YUV2 W1 H1\n", "damaged"),
            ("YUV4MPEG2 W1\n", "damaged"),
            ("YUV4MPEG2 W0 H1\n", "damaged"),
            ("YUV4MPEG2 W-1 H1\n", "damaged"),
            ("YUV4MPEG2 W1 H1 C411\n", "colour space"),
            ("YUV4MPEG2 W1 H1 C420p10\n", "8 bits"),
            ("YUV4MPEG2 W1 H1 Cmono12\n", "8 bits"),
            ("YUV4MPEG2 W100000 H100000\n", "megapixels"),
            ("YUV4MPEG2 W4294967296 H4294967296\n", "megapixels"),
            ("YUV4MPEG2 W1 H1 W18446744073709551615 H2\n", "megapixels"),
        ];
        for (header, about) in cases {
            let text = read(header.as_bytes()).unwrap_err();
            assert!(text.contains(about), "{header:?}: {text}");
        }
        assert!(read(&[b' '; 5000]).unwrap_err().contains("damaged"));
        let stream = b"YUV4MPEG2 W1 H1 Cmono\nFRAME\n\x10FRANE\n\x10";
        assert!(read(stream).unwrap_err().contains("damaged"), "rubbish between frames");
        assert_eq!(
            read(b"YUV4MPEG2 W2 H1 Cmono\nFRAME\n\x10\x10FRAME\n\x10").unwrap().len(),
            1,
            "the last is cut short"
        );
    }

    proptest! {
        /// What the encoder writes is what was read, whatever the size.
        #[test]
        fn frames_survive(width in 1usize..20, height in 1usize..20, kind in 0usize..4, seed in any::<u8>(), count in 0usize..4) {
            let (space, chroma, side) = [
                (y4m::Colorspace::C420, Chroma::Half, width.div_ceil(2) * height.div_ceil(2)),
                (y4m::Colorspace::C422, Chroma::HalfWidth, width.div_ceil(2) * height),
                (y4m::Colorspace::C444, Chroma::Full, width * height),
                (y4m::Colorspace::Cmono, Chroma::Mono, 0),
            ][kind];
            let plane = |n: usize, from: u8| (0..n).map(|i| (i as u8).wrapping_mul(31).wrapping_add(from)).collect::<Vec<u8>>();
            let mut stream = vec![];
            let mut encoder = y4m::encode(width, height, y4m::Ratio::new(10, 1)).with_colorspace(space).write_header(&mut stream).unwrap();
            let planes = |i: usize| [plane(width * height, seed ^ i as u8), plane(side, seed), plane(side, i as u8)];
            for i in 0..count {
                let [y, u, v] = &planes(i);
                encoder.write_frame(&y4m::Frame::new([y, u, v], None)).unwrap();
            }
            let read = read(&stream).unwrap();
            prop_assert_eq!(read.len(), count);
            for (i, frame) in read.into_iter().enumerate() {
                prop_assert_eq!(frame, Planes { width, height, chroma, range: Range::Limited, planes: planes(i) });
            }
        }

        /// No header, however odd, does more than be refused; what is taken can be converted.
        #[test]
        fn rubbish_is_survived(words in prop::collection::vec("[WHCFAX][0-9a-z:]{0,20}", 0..6), rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let stream = [format!("YUV4MPEG2 {}\n", words.join(" ")).as_bytes(), b"FRAME\n", &rest].concat();
            for planes in read(&stream).unwrap_or_default() {
                prop_assert!(planes.to_frame().is_ok());
            }
        }
    }
}
