//! torch's checkpoints are read as PyTorch reads them, and whatever the bytes, nothing but `Ok` or an error comes back.

use pleinair::Error;
use pleinair::bundle::pickle::{Checkpoint, Value};
use pleinair::bundle::weights::Weights;
use rand_mt::Mt;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)
}

fn fault(path: &Path) -> String {
    match Checkpoint::open(path) {
        Err(error) => error.to_string(),
        Ok(opened) => opened.tensors().err().map_or_else(|| panic!("{} opens", path.display()), |e| e.to_string()),
    }
}

#[test]
fn every_view_of_every_type_is_what_torch_has_there() {
    let expected = Weights::open_file(&fixture("expected.safetensors")).unwrap();
    for protocol in [2, 3, 4] {
        let checkpoint = Checkpoint::open(&fixture(&format!("awkward-{protocol}.ckpt"))).unwrap();
        let tensors = checkpoint.tensors().unwrap();
        // the two of integers and truth values are listed as well
        assert_eq!(tensors.len(), expected.headers().count() + 2);
        for header in expected.headers() {
            let place = &tensors[header.name];
            assert_eq!(place.shape(), header.shape, "{}", header.name);
            // nothing is computed: widening is exact, and f64 rounds to the nearest f32 here as there
            let (got, want) = (checkpoint.read_f32(place).unwrap(), expected.read_f32(header.name).unwrap());
            assert_eq!(got, want, "{}", header.name);
        }
        for name in ["position_ids", "mask"] {
            let error = checkpoint.read_f32(&tensors[name]).unwrap_err().to_string();
            assert!(error.contains("supported are F32, F16, BF16 and F64"), "{error}");
        }
    }
}

#[test]
fn values_beside_the_tensors_are_there_and_unknown_objects_are_inert() {
    for protocol in [2, 3, 4] {
        let checkpoint = Checkpoint::open(&fixture(&format!("awkward-{protocol}.ckpt"))).unwrap();
        let Value::Dict(root) = checkpoint.root() else { panic!("{:?}", checkpoint.root()) };
        assert!(matches!(root.get("epoch"), Some(Value::Int(3))));
        assert!(matches!(root.get("global_step"), Some(Value::Int(n)) if n == 1 << 33));
        assert!(matches!(root.get("huge"), Some(Value::Unknown(_))));
        assert!(matches!(root.get("lr"), Some(Value::Float(lr)) if lr == 1.5e-4));
        for unknown in ["np", "array", "set", "device", "size", "dtype", "partial"] {
            assert!(matches!(root.get(unknown), Some(Value::Unknown(_))), "{unknown}: {:?}", root.get(unknown));
        }
        let Some(Value::List(tuple)) = root.get("tuple") else { panic!() };
        let tuple: Vec<_> = tuple.iter().collect();
        assert!(matches!(tuple[..], [Value::Int(1), Value::Str("zwei"), Value::List(_), Value::Unknown(_)]));
        let Some(Value::Dict(callbacks)) = root.get("callbacks") else { panic!() };
        assert!(callbacks.iter().all(|(_, value)| matches!(value, Value::Unknown("__main__.Callback"))));
        assert!(matches!(root.get("itself"), Some(Value::Dict(same)) if same.get("epoch").is_some()));
        assert!(root.get("nothing").is_none());
    }
}

#[test]
fn an_embedding_of_another_program_can_be_read() {
    let checkpoint = Checkpoint::open(&fixture("embedding.pt")).unwrap();
    let Value::Dict(root) = checkpoint.root() else { panic!() };
    let Some(Value::Dict(parameters)) = root.get("string_to_param") else { panic!() };
    let Some(Value::Tensor(vectors)) = parameters.get("*") else { panic!() };
    assert_eq!(vectors.shape(), [2, 32]);
    assert_eq!(checkpoint.read_f32(vectors).unwrap(), (0..64).map(|i| i as f32 / 64.0).collect::<Vec<_>>());
    assert_eq!(checkpoint.tensors().unwrap().keys().collect::<Vec<_>>(), ["string_to_param.*"]);
}

#[test]
fn the_form_before_torch_1_6_is_read() {
    let checkpoint = Checkpoint::open(&fixture("old-form.pt")).unwrap();
    let tensors = checkpoint.tensors().unwrap();
    let place = &tensors["vectors"];
    assert_eq!(place.shape(), [2, 32]);
    assert_eq!(checkpoint.read_f32(place).unwrap(), (0..64).map(|i| i as f32 / 64.0).collect::<Vec<_>>());

    let (folder, bytes) = (tempfile::tempdir().unwrap(), std::fs::read(fixture("old-form.pt")).unwrap());
    let path = folder.path().join("cut.pt");
    for length in [bytes.len() - 1, bytes.len() - 260, 40, 20] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(fault(&path).contains("a damaged checkpoint"), "{}", fault(&path));
    }
}

#[test]
fn other_forms_are_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.ckpt");
    std::fs::write(&text, "version https://").unwrap();
    let cut = folder.path().join("cut.ckpt");
    let bytes = std::fs::read(fixture("awkward-2.ckpt")).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    for (path, what) in [
        (fixture("deflated.pt"), "is compressed or encrypted; load it with a current torch"),
        (fixture("big-endian.pt"), "big-endian"),
        (fixture("expanded.pt"), "expanded view"),
        (fixture("not-torch.zip"), "no data.pkl"),
        (fixture("expected.safetensors"), "no checkpoint of torch"),
        (text, "no checkpoint of torch"),
        (cut, "a damaged zip file"),
    ] {
        let fault = fault(&path);
        assert!(fault.contains(what) && fault.contains(&*path.to_string_lossy()), "{fault}");
    }
    assert!(matches!(Checkpoint::open(&fixture("missing.pt")), Err(Error::Io { .. })));
}

/// Walks everything that can be reached, as far as a reader would.
fn read_all(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open(path) else { return false };
    let mut left = vec![checkpoint.root()];
    for _ in 0..1000 {
        match left.pop() {
            Some(Value::Dict(dict)) => left.extend(dict.iter().flat_map(|(key, value)| [key, value])),
            Some(Value::List(list)) => left.extend(list.iter()),
            Some(Value::Tensor(place)) => drop(checkpoint.read_f32(place)),
            _ => {}
        }
    }
    let Ok(tensors) = checkpoint.tensors() else { return false };
    tensors
        .values()
        .all(|place| checkpoint.read_f32(place).is_ok_and(|v| v.len() == place.shape().iter().product::<usize>()))
}

#[test]
fn damaged_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mutant.ckpt");
    let mut rng = Mt::new(20231);
    let (mut good, mut bad) = (0, 0);
    for name in ["awkward-2.ckpt", "awkward-4.ckpt", "embedding.pt", "old-form.pt"] {
        let original = std::fs::read(fixture(name)).unwrap();
        let pickle_starts = 64.min(original.len()); // after the first entry's local header
        for round in 0..1000 {
            let mut bytes = original.clone();
            for _ in 0..1 + rng.next_u32() % 4 {
                let reach = if round % 2 == 0 { 3000.min(bytes.len()) } else { bytes.len() };
                let at = pickle_starts * usize::from(round % 2 == 0) + rng.next_u32() as usize % reach;
                let at = at.min(bytes.len() - 1);
                match rng.next_u32() % 4 {
                    0 => bytes[at] = rng.next_u32() as u8,
                    1 => bytes[at] ^= 1 << (rng.next_u32() % 8),
                    2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.next_u32() as usize % 5],
                    // a piece of the file over another one
                    _ => {
                        let from = rng.next_u32() as usize % (bytes.len() - 16);
                        let to = at.min(bytes.len() - 16);
                        bytes.copy_within(from..from + 16, to);
                    }
                }
            }
            if round % 50 == 49 {
                bytes.truncate(rng.next_u32() as usize % bytes.len());
            }
            std::fs::write(&path, &bytes).unwrap();
            if read_all(&path) { good += 1 } else { bad += 1 }
        }
    }
    // both must have happened, or the mutations test nothing
    assert!(good > 100 && bad > 500, "{good} read, {bad} refused");
}

/// A checkpoint in memory: this pickle, and one storage of 16 bytes.
fn archive(pickle: &[u8]) -> Cursor<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[0; 16])] {
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap()
}

/// Memo 0: a reference to the storage; memo 1: a tensor of two numbers in it.
const TENSOR: &[u8] = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tq\x00\
    0ctorch._utils\n_rebuild_tensor_v2\n(h\x00QK\x00K\x02\x85K\x01\x85tRq\x010";

#[test]
fn shared_containers_cost_no_more_than_they_may() {
    let text = |key: &str| [b"X", &(key.len() as u32).to_le_bytes()[..], key.as_bytes()].concat();
    // memo 2 is `items` over and over; each further memo is a list of 300 times the one before
    let nested = |items: &[u8], times: usize, levels: u8| {
        let mut pickle = [TENSOR, b"}(", &items.repeat(times), b"uq\x020"].concat();
        for level in 3..3 + levels {
            pickle.extend(b"](");
            pickle.extend([b'h', level - 1].repeat(300));
            pickle.extend([b'e', b'q', level, b'0']);
        }
        pickle.extend([b'h', 2 + levels, b'.']);
        Checkpoint::from_file(Path::new("memory"), archive(&pickle)).unwrap().tensors()
    };
    let start = Instant::now();
    let named = [text("x"), b"h\x01".to_vec()].concat();
    assert_eq!(nested(&named, 1, 2).unwrap().len(), 300 * 300);
    let long = [text(&"x".repeat(250)), b"h\x01".to_vec()].concat();
    for (what, pickle) in [
        ("tensors", nested(&named, 1, 3)),
        ("items without a name", nested(b"NN", 10_000, 2)),
        ("names", nested(&long, 1, 2)),
        ("levels", nested(&named, 1, 20)),
    ] {
        let error = pickle.unwrap_err().to_string();
        assert!(error.contains("containers without end"), "{what}: {error}");
    }
    // all that is far below a second, or the limits limit nothing
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn a_reference_to_a_storage_costs_the_same_however_long_it_is() {
    // 100,000 further items in the reference, and a storage made of it 100,000 times
    let mut pickle = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000".to_vec();
    pickle.extend(b"N".repeat(100_000));
    pickle.extend(b"tq\x000");
    pickle.extend(b"h\x00Q0".repeat(100_000));
    pickle.extend(b"N.");
    let start = Instant::now();
    Checkpoint::from_file(Path::new("memory"), archive(&pickle)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
