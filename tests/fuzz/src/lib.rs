//! What the fuzzers run. A [`Target`] gives bytes to one reader of files from outside, and panics if the reader does, or
//! if what it made of them contradicts them. `make fuzz` lets libFuzzer look for such bytes; the tests here replay the
//! inputs kept in `corpus/`.
#![forbid(unsafe_code)]

pub mod mutate;
pub mod seeds;

use pleinair::bundle::Bundle;
use pleinair::bundle::manifest::Manifest;
use pleinair::bundle::pickle::{Checkpoint, Value};
use pleinair::bundle::weights::Weights;
use pleinair::camera::mjpeg::Splitter;
use pleinair::camera::{Frame, y4m};
use pleinair::config::Config;
use pleinair::sampler::{Plan, Sampler, Schedule, SchedulerConfig};
use pleinair::style::Style;
use pleinair::web::upload::Form;
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Storages beside a pickle that is fed alone, as many as a fixture has, and bytes of each.
const STORAGES: usize = 15;
const STORAGE_BYTES: usize = 512;
/// Values and tensors of a checkpoint that are looked at.
const MOST_LOOKED_AT: usize = 1000;

/// The limits on what cameras send, lower than the program's so that they are met.
const MOST_JPEG_BYTES: usize = 4096;
const MOST_PIXELS: u64 = 1 << 16;
const MOST_DECODED: usize = 4;

/// A reader of what comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The header of a safetensors file.
    Safetensors,
    /// A whole checkpoint of torch.
    Checkpoint,
    /// The pickle program of a checkpoint.
    Pickle,
    /// A bundle's manifest, with the configurations in it.
    Manifest,
    /// A scheduler's configuration, with the plans made from it.
    Scheduler,
    /// A style file.
    Style,
    /// A camera's stream of JPEGs.
    Mjpeg,
    /// A camera's stream of YUV4MPEG2.
    Y4m,
    /// A form with files, its boundary in the first line.
    Multipart,
    /// `pleinair.toml`.
    Configuration,
    /// No reader but a fault put here on purpose: a fuzzer that does not find it at once finds nothing elsewhere.
    Planted,
}

impl Target {
    /// All readers.
    pub const READERS: [Target; 10] = [
        Target::Safetensors,
        Target::Checkpoint,
        Target::Pickle,
        Target::Manifest,
        Target::Scheduler,
        Target::Style,
        Target::Mjpeg,
        Target::Y4m,
        Target::Multipart,
        Target::Configuration,
    ];

    /// Its name on the command line and of its folder in `corpus/`.
    pub fn name(self) -> &'static str {
        match self {
            Target::Safetensors => "safetensors",
            Target::Checkpoint => "checkpoint",
            Target::Pickle => "pickle",
            Target::Manifest => "manifest",
            Target::Scheduler => "scheduler",
            Target::Style => "style",
            Target::Mjpeg => "mjpeg",
            Target::Y4m => "y4m",
            Target::Multipart => "multipart",
            Target::Configuration => "configuration",
            Target::Planted => "planted",
        }
    }

    /// The target of this name.
    pub fn named(name: &str) -> Option<Target> {
        Self::READERS.into_iter().chain([Target::Planted]).find(|target| target.name() == name)
    }

    /// Gives the reader these bytes. It may take or refuse them.
    ///
    /// # Panics
    /// If it panics, or its answer contradicts the bytes. That is what a fuzzer looks for.
    pub fn run(self, data: &[u8]) {
        match self {
            Target::Safetensors => safetensors(data),
            Target::Checkpoint => checkpoint(data),
            Target::Pickle => checkpoint(&archive(data).expect("memory takes every byte")),
            Target::Manifest => manifest(data),
            Target::Scheduler => scheduler(data),
            Target::Style => style(data),
            Target::Mjpeg => mjpeg(data),
            Target::Y4m => film(data),
            Target::Multipart => drop(form(data)),
            Target::Configuration => drop(std::str::from_utf8(data).map(Config::parse)),
            Target::Planted => planted(data),
        }
    }
}

/// Read as it is, and as the start of a file that is as long as the header claims.
fn safetensors(data: &[u8]) {
    for length in [Some(data.len() as u64), claimed_length(data)].into_iter().flatten() {
        let Ok(weights) = Weights::from_start(Path::new("fuzz.safetensors"), data, length) else { continue };
        let header = 8 + header_length(data).expect("a header that was read");
        assert_eq!(weights.bytes(), length - header, "the tensors fill the file");
        for tensor in weights.headers() {
            assert_eq!(weights.shape(tensor.name), Some(tensor.shape));
        }
        assert!(weights.parameters() as u64 <= 2 * weights.bytes(), "no type is smaller than half a byte");
    }
}

/// The first eight bytes of a safetensors file.
pub(crate) fn header_length(data: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*data.first_chunk()?))
}

/// The JSON of a safetensors file's header.
pub(crate) fn header_json(data: &[u8]) -> Option<&[u8]> {
    data.get(8..)?.get(..usize::try_from(header_length(data)?).ok()?)
}

/// Where the last tensor ends according to the header, in the 64 bits that a length has.
fn claimed_length(data: &[u8]) -> Option<u64> {
    let header: serde_json::Value = serde_json::from_slice(header_json(data)?).ok()?;
    let ends = header.as_object()?.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    Some(ends.max().unwrap_or(0).wrapping_add(8).wrapping_add(header_length(data)?))
}

fn checkpoint(data: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_file(Path::new("fuzz.ckpt"), Cursor::new(data)) else { return };
    let mut left = vec![checkpoint.root()];
    for _ in 0..MOST_LOOKED_AT {
        match left.pop() {
            Some(Value::Dict(dict)) => {
                left.extend(dict.iter().take(MOST_LOOKED_AT).flat_map(|(key, value)| [key, value]));
            }
            Some(Value::List(list)) => left.extend(list.iter().take(MOST_LOOKED_AT)),
            _ => {}
        }
    }
    let Ok(tensors) = checkpoint.tensors() else { return };
    for place in tensors.values().take(MOST_LOOKED_AT) {
        // types that are not read are refused, all others are checked to be there when the file is opened
        let Ok(values) = checkpoint.read_f32_from(Cursor::new(data), place) else {
            assert!(!format!("{:?}", place.dtype()).contains('F'), "{place:?} is not in the file");
            continue;
        };
        assert_eq!(values.len(), place.shape().iter().product::<usize>());
    }
}

fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data) else { return };
    let again = serde_json::to_vec(&manifest).expect("what was read can be written");
    Manifest::parse(&again).expect("what was written can be read");
    let Ok(bundle) = Bundle::describe(Path::new("fuzz"), manifest) else { return };
    let step = bundle.size_step();
    assert!(bundle.native_size() > 0 && step.is_multiple_of(bundle.factor()));
    let (width, height) = bundle.native_size_like(640, 480);
    assert!(width >= step && height >= step && width.is_multiple_of(step) && height.is_multiple_of(step));
    assert!(bundle.unet.time_channels() > 0);
    for level in 0..bundle.unet.levels() {
        assert_eq!(bundle.unet.block_out_channels[level] % bundle.unet.heads(level), 0);
    }
    for part in ["unet", "controlnet", "text_encoder"] {
        assert!(bundle.parameters(part).is_some() || part == "controlnet");
    }
    bundle.tiny_decoder();
}

fn scheduler(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(schedule) = SchedulerConfig::from_json(text).and_then(Schedule::new) else { return };
    let last = schedule.alphas_cumprod().len() as f64 - 1.0;
    for sampler in Sampler::ALL {
        for (steps, strength) in [(1, 1.0), (4, 1.0), (25, 0.6), (1000, 1.0)] {
            let Ok(plan) = Plan::new(&schedule, sampler, steps, strength) else { continue };
            for step in plan.steps() {
                assert!((0.0..=last).contains(&step.timestep), "{step:?} of {sampler}");
                assert!([step.from.alpha, step.to.alpha, step.from.sigma, step.to.sigma].iter().all(|&w| w >= 0.0));
            }
        }
    }
}

fn style(data: &[u8]) {
    let Ok(style) = Style::from_bytes(data) else { return };
    assert_eq!(style.norms().len(), style.stages());
    assert_eq!(style.cosines(&vec![1.0; style.width()]).len(), style.stages());
    assert_eq!(Style::from_bytes(&style.to_bytes()), Ok(style), "what was read can be written and read again");
}

/// The JPEGs of a stream that comes as a whole, and the same ones when it comes byte by byte. Some are decoded.
fn mjpeg(data: &[u8]) {
    let split = |piece_bytes: usize| {
        let mut splitter = Splitter::with_limit(MOST_JPEG_BYTES);
        let mut frames = vec![];
        data.chunks(piece_bytes).for_each(|piece| splitter.push(piece, |frame| frames.push(frame)));
        (frames, splitter.skipped())
    };
    let (frames, skipped) = split(data.len().max(1));
    assert_eq!(split(1), (frames.clone(), skipped));
    assert!(frames.iter().map(Vec::len).sum::<usize>() as u64 + skipped <= data.len() as u64);
    for frame in &frames {
        assert!(frame.starts_with(b"\xFF\xD8") && frame.ends_with(b"\xFF\xD9") && frame.len() <= MOST_JPEG_BYTES);
    }
    for frame in frames.iter().take(MOST_DECODED) {
        if let Ok(frame) = Frame::from_bytes(frame, MOST_PIXELS) {
            assert!((frame.width() * frame.height()) as u64 <= MOST_PIXELS);
        }
    }
}

fn film(data: &[u8]) {
    let Ok(mut reader) = y4m::Reader::new(data) else { return };
    while let Ok(Some(planes)) = reader.next_planes() {
        let frame = planes.to_frame().expect("the planes are as large as the header says");
        assert_eq!((frame.width(), frame.height()), (planes.width, planes.height));
    }
}

/// What is made of it came from the bytes: nothing is longer than they are together.
fn form(data: &[u8]) -> Option<Form> {
    let (boundary, body) = data.split_at(data.iter().position(|&byte| byte == b'\n')?);
    let form = Form::from_bytes(std::str::from_utf8(boundary).ok()?, &body[1..]).ok()?;
    assert!(form.files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() <= body.len());
    assert!(form.fields.len() <= 64 * body.len());
    Some(form)
}

/// An overflow behind four bytes that nobody guesses: to be found, comparisons, coverage and overflow checks must work.
fn planted(data: &[u8]) {
    if let Some((magic, rest)) = data.split_first_chunk()
        && u32::from_le_bytes(*magic) == 0x9d2c_5680
    {
        let sum = rest.iter().sum::<u8>();
        std::hint::black_box(sum);
    }
}

/// A checkpoint around a pickle.
fn archive(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for storage in 0..STORAGES {
        zip.start_file(format!("archive/data/{storage}"), stored)?;
        zip.write_all(&[storage as u8; STORAGE_BYTES])?;
    }
    zip.start_file("archive/data.pkl", stored)?;
    zip.write_all(pickle)?;
    Ok(zip.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_kept_is_answered() {
        for target in Target::READERS {
            let inputs = [seeds::of(target), seeds::kept(target)].concat();
            assert!(!inputs.is_empty(), "{}", target.name());
            for (name, data) in inputs {
                println!("{} {name}", target.name());
                target.run(&data);
            }
        }
    }

    #[test]
    fn seeds_are_read() {
        let path = Path::new("seed");
        let read = |target: Target, data: &[u8]| match target {
            Target::Safetensors => Weights::from_start(path, data, claimed_length(data).unwrap()).is_ok(),
            Target::Checkpoint => Checkpoint::from_file(path, Cursor::new(data)).is_ok(),
            Target::Pickle => Checkpoint::from_file(path, Cursor::new(archive(data).unwrap())).is_ok(),
            Target::Manifest => Bundle::describe(path, Manifest::parse(data).unwrap()).is_ok(),
            Target::Scheduler => SchedulerConfig::from_json(std::str::from_utf8(data).unwrap()).is_ok(),
            Target::Style => Style::from_bytes(data).is_ok(),
            Target::Mjpeg => {
                let mut good = 0;
                Splitter::new().push(data, |jpeg| good += usize::from(Frame::from_bytes(&jpeg, MOST_PIXELS).is_ok()));
                good >= 2
            }
            Target::Y4m => y4m::Reader::new(data).is_ok_and(|mut reader| matches!(reader.next_planes(), Ok(Some(_)))),
            Target::Multipart => form(data).is_some(),
            Target::Configuration => Config::parse(std::str::from_utf8(data).unwrap()).is_ok(),
            Target::Planted => false,
        };
        for target in Target::READERS {
            let good = seeds::of(target).iter().filter(|(_, data)| read(target, data)).count();
            assert!(good >= 2, "only {good} inputs to start {} from", target.name());
        }
    }

    #[test]
    fn mutants_are_answered_and_differ() {
        for target in Target::READERS {
            let mut mutants = std::collections::BTreeSet::new();
            let inputs = seeds::of(target);
            for seed in 0..300 {
                let (_, data) = &inputs[seed as usize % inputs.len()];
                let mutant = mutate::mutated(target, data, 1 << 14, seed, |bytes, _| bytes.to_vec());
                target.run(&mutant);
                mutants.insert(mutant);
            }
            // a half is left to libFuzzer's own mutations, which are none here
            assert!(mutants.len() > 100 || target == Target::Checkpoint, "{} of {}", mutants.len(), target.name());
        }
    }

    #[test]
    #[should_panic = "overflow"]
    fn the_planted_fault_is_one() {
        Target::Planted.run(&[0x80, 0x56, 0x2c, 0x9d, 200, 200]);
    }

    #[test]
    fn targets_have_names() {
        for target in Target::READERS {
            assert_eq!(Target::named(target.name()), Some(target));
        }
        assert_eq!(Target::named("pickles"), None);
    }
}
