//! Where a bundle appears, and that nothing else does: what exists is kept, what fails leaves nothing behind.

use super::*;
use std::sync::atomic::Ordering;

#[test]
fn what_exists_is_kept_unless_forced() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &[], "bundle");
    let before = contents(&bundle);
    let error = studio.try_convert(&tiny(), "f16", &[], "bundle").unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("--force")), "{error}");
    assert_eq!((contents(&bundle) == before, studio.names()), (true, vec!["bundle".to_owned()]));

    studio.convert(&tiny(), "f16", &["--force"], "bundle");
    let fresh = studio.convert(&tiny(), "f16", &[], "fresh");
    assert!(contents(&bundle) == contents(&fresh) && contents(&fresh) != before);
    assert_eq!(studio.names(), ["bundle", "fresh"]);
    // a model folder is replaced as well, other folders and files never
    let model = studio.copy(&tiny(), "model");
    studio.convert(&tiny(), "f16", &["--force"], "model");
    assert!(contents(&model) == contents(&fresh));
    std::fs::create_dir(studio.path("photographs")).unwrap();
    std::fs::write(studio.path("photographs/me.jpg"), "me").unwrap();
    for taken in ["photographs", "photographs/me.jpg"] {
        let error = studio.try_convert(&tiny(), "f16", &["--force"], taken).unwrap_err();
        assert!(matches!(&error, Error::Usage(text) if text.contains("will not be replaced")), "{error}");
    }
    assert_eq!(std::fs::read(studio.path("photographs/me.jpg")).unwrap(), b"me");
}

#[test]
fn a_failed_conversion_keeps_the_old_bundle() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &[], "bundle");
    let before = contents(&bundle);
    let broken = studio.synth(1, "broken");
    edit(&broken.join("text_encoder/model.safetensors"), |tensors| {
        set_first(tensors, "text_model.final_layer_norm.bias", f32::NAN); // the last file that is written
    });
    let names = studio.names();
    let error = studio.try_convert(&broken, "int8", &["--force"], "bundle").unwrap_err();
    assert!(error.to_string().contains("final_layer_norm.bias"), "{error}");
    assert!(contents(&bundle) == before && studio.names() == names);
}

/// What is converted, or goes into the bundle, is not deleted to make room for it.
#[test]
fn a_model_does_not_replace_what_it_is_made_from() {
    let studio = Studio::new();
    let model = studio.copy(&tiny(), "model");
    copy_folder(&repository().join("tests/fixtures/tiny-vae"), &model.join("tiny"));
    let tiny_vae = model.join("tiny");
    for (from, more) in [(&model, &[][..]), (&tiny(), &["--tiny-vae", tiny_vae.to_str().unwrap()])] {
        let error = studio.try_convert(from, "int8", &[more, &["--force"]].concat(), "model").unwrap_err();
        assert!(matches!(&error, Error::Usage(text) if text.contains("model") && text.contains("--out")), "{error}");
        assert!(model.join("model_index.json").is_file() && studio.names() == ["model"]);
    }
    // the same by another way
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&model, studio.path("link")).unwrap();
        let error = studio.try_convert(&studio.path("link"), "int8", &["--force"], "model").unwrap_err();
        assert!(matches!(error, Error::Usage(_)) && model.join("model_index.json").is_file());
    }
}

/// Interrupts at every moment that is told of, from the first to the last.
#[test]
fn an_interruption_leaves_nothing() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "f16", &[], "old");
    let before = contents(&bundle);
    let interrupted = studio.options(&tiny(), "int8", &[], "new").run(&AtomicBool::new(true), &mut |_| ());
    assert!(matches!(interrupted, Err(Error::Interrupted)));
    assert_eq!(studio.names(), ["old"]);

    // nothing is left to be measured but one layer
    let rules =
        ["--keep", "controlnet.*=int8", "--keep", "unet.{[!m],mid_block.[!a]}*=int8", "--keep", "*.{attn?,ff}.*=int8"];
    let more = [&rules[..], &["--keep", "*.proj_in=int8", "--calibrate", "1", "--force"]].concat();
    let options = studio.options(&tiny(), "int8", &more, "old");
    let mut moments: Vec<String> = vec![];
    while moments.last().is_none_or(|last| !last.starts_with("comparing")) {
        let (flag, mut told) = (AtomicBool::new(false), vec![]);
        let result = options.run(&flag, &mut |step| {
            told.push(step.to_owned());
            flag.fetch_or(told.len() == moments.len() + 1, Ordering::Relaxed);
        });
        assert!(matches!(result, Err(Error::Interrupted)), "{told:?}: {result:?}");
        assert!(contents(&bundle) == before && studio.names() == ["old"], "{told:?}");
        assert_eq!(told.len(), moments.len() + 1, "an interruption is heard at once: {told:?}");
        moments = told;
    }
    println!("interrupted at {moments:?}");
    assert!(moments.iter().any(|moment| moment.contains("layer 1 of 1")), "{moments:?}");
}

/// Ctrl-C in the middle of a run ends it with 130.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing() {
    let studio = Studio::new();
    let model = tiny();
    let arguments =
        ["convert", "--from", model.to_str().unwrap(), "--dtype", "int8", "--calibrate", "9", "--out", "new"];
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .current_dir(studio.0.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    lines.find(|line| line.as_ref().unwrap().contains("sampling 2")).unwrap().unwrap();
    assert_eq!(studio.names().len(), 1, "{:?}", studio.names());
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let said: Vec<_> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    assert!(said.last().unwrap().contains("interrupted") && studio.names().is_empty(), "{said:?}");
}

/// Files may not grow beyond so many blocks of 512 bytes (1024 in some shells), as on a disk that fills up: at the VAE,
/// which is written first, at the UNet, and at the ControlNet.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_and_keeps_the_old_bundle() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "f16", &[], "old");
    let before = contents(&bundle);
    let model = tiny();
    for (blocks, file) in [(64, "vae_encoder.onnx"), (2000, "unet.safetensors")] {
        for out in ["new", "old"] {
            let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
            let arguments = ["convert", "--from", model.to_str().unwrap(), "--dtype", "f32", "--force", "--out", out];
            let run =
                Run::of(Command::new("sh").args(["-c", &script, PROGRAM]).args(arguments).current_dir(studio.0.path()));
            run.ended(1, &[file, "too large"]);
            assert!(contents(&bundle) == before && studio.names() == ["old"], "{blocks} {out}");
        }
    }
}

#[test]
fn places_that_cannot_be_written_are_said_at_once() {
    let studio = Studio::new();
    let error = studio.try_convert(&tiny(), "int8", &[], "missing/bundle").unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("missing")), "{error}");
    for nameless in ["/", "..", "."] {
        let out = studio.path("x").join(nameless);
        let mut options = studio.options(&tiny(), "int8", &["--force"], "x");
        options.out = out;
        assert!(options.run(&AtomicBool::new(false), &mut |_| ()).is_err());
    }
    assert!(studio.names().is_empty());
}
