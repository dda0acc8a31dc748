//! Made models open, load and run; the full-size lists add up to the published models' figures.

use pleinair::Error;
use pleinair::bundle::Bundle;
use pleinair::net::{ControlNet, TextEncoder, Unet};
use pleinair::prompt::{Template, Tokenizer};
use pleinair::sampler::TorchRng;
use pleinair_quantize::configs::Model;
use pleinair_quantize::synth::{Dtype, Synth};
use pleinair_quantize::tensors::{self, TensorSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

fn tiny(seed: u32, out: &Path) -> Synth {
    Synth { model: Model::Tiny, seed, dtype: Dtype::F16, out: out.to_path_buf(), force: false }
}

fn make(synth: &Synth) -> pleinair::Result<usize> {
    let written = synth.run(&AtomicBool::new(false))?;
    Ok(written.iter().map(|part| part.parameters).sum())
}

/// Every file of a folder by its path in it.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for part in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        let inside =
            if part.is_dir() { part.read_dir().unwrap().map(|e| e.unwrap().path()).collect() } else { vec![part] };
        for path in inside {
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files
}

fn names_in(folder: &Path) -> Vec<String> {
    folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn parameters(tensors: &[TensorSpec]) -> usize {
    tensors.iter().map(TensorSpec::parameters).sum()
}

#[test]
fn full_size_lists_add_up_to_the_published_models() {
    let (unet, controlnet) = (Model::Sd15.unet(), Model::Sd15.controlnet());
    let lists = [
        (tensors::unet(&unet), 686, 859_520_964),
        (tensors::controlnet(&controlnet, &unet), 340, 361_279_120),
        (tensors::text_encoder(&Model::Sd15.text_encoder()), 196, 123_060_480),
    ];
    for (list, count, sum) in lists {
        assert_eq!((list.len(), parameters(&list)), (count, sum));
        let names: BTreeSet<&str> = list.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names.len(), count, "a name occurs twice");
    }
}

#[test]
fn a_tiny_model_loads_and_its_networks_give_sane_numbers() {
    for dtype in [Dtype::F32, Dtype::F16] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("tiny");
        make(&Synth { dtype, ..tiny(7, &out) }).unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let (encoder, unet) = (TextEncoder::load(&bundle).unwrap(), Unet::load(&bundle).unwrap());
        let controlnet = ControlNet::load(&bundle, pleinair::bundle::control::Control::SoftEdge).unwrap();
        let tokenizer = Tokenizer::open(bundle.tokenizer()).unwrap();

        let tokens = Template::parse("A photo of the sea").unwrap().tokens(&tokenizer, &[]).unwrap();
        let states = encoder.forward(&encoder.embed(&tokens, &[]).unwrap()).unwrap();
        let mut rng = TorchRng::new(1);
        let latent = rng.randn((1, 4, 8, 16)).unwrap();
        let hint = controlnet.hint(&rng.rand((1, 3, 64, 128)).unwrap()).unwrap();
        let text = controlnet.text_kv(&states).unwrap();
        let control = controlnet.forward(&latent, &[500.0], &text, &hint, 1.0).unwrap();
        let text = unet.text_kv(&states).unwrap();
        let plain = unet.forward(&latent, &[500.0], &text, None).unwrap();
        let controlled = unet.forward(&latent, &[500.0], &text, Some(&control)).unwrap();
        for output in [&plain, &controlled] {
            assert_eq!(output.dims(), [1, 4, 8, 16]);
            let values = output.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            // conv_out keeps the spread of SiLU of a unit normal, which is 0.6 about zero
            assert!((0.2..2.0).contains(&deviation), "{dtype:?}: {deviation}");
        }
        let change = (plain - controlled).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(change > 1e-2, "the ControlNet says nothing: {change}");
    }
}

#[test]
fn the_tokenizer_spells_every_byte_within_the_word_table() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tiny");
    make(&tiny(7, &out)).unwrap();
    let tokenizer = Tokenizer::open(out.join("tokenizer")).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (1022, 1023, 1023));
    assert_eq!(tokenizer.encode("Ab c").unwrap(), [64, 256 + 65, 256 + 66]);
    assert_eq!(tokenizer.word("z").unwrap(), 256 + 89);
    let ids = tokenizer.encode("déjà vu, 絵 <|unused 700|>").unwrap();
    assert!(ids.iter().all(|&id| id < 512), "{ids:?}");
}

#[test]
fn a_seed_decides_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
    make(&tiny(7, &a)).unwrap();
    make(&tiny(7, &b)).unwrap();
    make(&tiny(8, &c)).unwrap();
    let [a, b, c] = [a, b, c].map(|path| contents(&path));
    assert_eq!(a.len(), 16, "{:?}", a.keys());
    assert_eq!(a, b);
    let differing: Vec<&str> = a.keys().filter(|name| a[*name] != c[*name]).map(String::as_str).collect();
    let weights = ["controlnet", "unet"].map(|part| format!("{part}/diffusion_pytorch_model.safetensors"));
    let vae = ["decoder.onnx", "diffusion_pytorch_model.safetensors", "encoder.onnx"].map(|file| format!("vae/{file}"));
    let differ = [&weights[0], "text_encoder/model.safetensors", &weights[1], &vae[0], &vae[1], &vae[2]];
    assert_eq!(differing, differ);
}

#[test]
fn what_exists_is_kept_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    make(&tiny(7, &out)).unwrap();
    let before = contents(&out);
    assert!(matches!(make(&tiny(8, &out)), Err(Error::Usage(text)) if text.contains("--force")));
    assert_eq!(contents(&out), before);
    make(&Synth { force: true, ..tiny(8, &out) }).unwrap();
    assert_ne!(contents(&out), before);
    assert_eq!(names_in(folder.path()), ["model"]);
}

#[test]
fn force_replaces_models_and_empty_folders_only() {
    let folder = tempfile::tempdir().unwrap();
    let [file, photographs, empty] = ["file", "photographs", "empty"].map(|name| folder.path().join(name));
    std::fs::write(&file, b"x").unwrap();
    std::fs::create_dir(&photographs).unwrap();
    std::fs::write(photographs.join("me.jpg"), b"x").unwrap();
    std::fs::create_dir(&empty).unwrap();
    for out in [&file, &photographs] {
        let refused = make(&Synth { force: true, ..tiny(7, out) });
        assert!(matches!(refused, Err(Error::Usage(text)) if text.contains("model_index.json")));
    }
    assert!(photographs.join("me.jpg").is_file() && file.is_file());
    assert!(matches!(make(&tiny(7, &empty)), Err(Error::Usage(_))));
    make(&Synth { force: true, ..tiny(7, &empty) }).unwrap();
    assert!(empty.join("model_index.json").is_file());
}

#[test]
fn an_interruption_and_a_bad_place_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    assert!(matches!(tiny(7, &out).run(&AtomicBool::new(true)), Err(Error::Interrupted)));
    let missing = folder.path().join("missing").join("model");
    assert!(matches!(make(&tiny(7, &missing)), Err(Error::Io { path, .. }) if path.ends_with("missing")));
    for nameless in ["", "/", ".", ".."] {
        assert!(matches!(make(&Synth { force: true, ..tiny(7, Path::new(nameless)) }), Err(Error::Usage(_))));
    }
    assert!(names_in(folder.path()).is_empty());

    // an interrupted replacement keeps the old model
    make(&tiny(7, &out)).unwrap();
    let before = contents(&out);
    let again = Synth { force: true, ..tiny(8, &out) };
    assert!(matches!(again.run(&AtomicBool::new(true)), Err(Error::Interrupted)));
    assert_eq!((contents(&out), names_in(folder.path())), (before, vec!["model".to_owned()]));
}

fn command(folder: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_pleinair-quantize");
    Command::new(program).args(arguments).current_dir(folder).output().unwrap()
}

#[test]
fn the_command_line_keeps_its_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = command(folder.path(), arguments);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = run(&["synth", "tiny", "--seed", "7", "--out", "model"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("686 tensors") && out.contains("is ready"), "{out}");
    let (code, _, err) = run(&["synth", "tiny", "--seed", "7", "--out", "model"]);
    assert!(code == Some(2) && err.contains("--force"), "{code:?} {err}");
    let (code, _, err) = run(&["synth", "tiny", "--out", "other"]);
    assert!(code == Some(2) && err.contains("--seed"), "{code:?} {err}");
    let (code, _, _) = run(&["synth", "sdxl", "--seed", "7", "--out", "other"]);
    assert_eq!(code, Some(2));
    let (code, _, err) = run(&["synth", "tiny", "--seed", "7", "--out", "missing/model"]);
    assert!(code == Some(1) && err.contains("missing"), "{code:?} {err}");
    let (code, out, _) = run(&["--help"]);
    assert!(code == Some(0) && ["convert", "report", "inspect", "synth"].iter().all(|c| out.contains(c)), "{out}");
    assert_eq!(names_in(folder.path()), ["model"]);
}
