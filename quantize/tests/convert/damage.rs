//! A bundle is what was written, or it is not opened.

use super::*;
use pleinair::bundle::Bundle;

fn refused(bundle: &Path) -> String {
    Bundle::open(bundle).expect_err("a damaged bundle was opened").to_string()
}

/// What is wrong with the files of a bundle: their names, and all that is said.
fn wrong_files(bundle: &Path) -> (Vec<String>, String) {
    let error = Bundle::open(bundle).expect_err("a damaged bundle was opened");
    let Error::Model { problems, .. } = &error else { panic!("{error}") };
    let name = |problem: &String| problem.split(": ").next().unwrap().to_owned();
    (problems.iter().map(name).collect(), error.to_string())
}

/// With everything a bundle can have.
fn whole(studio: &Studio) -> PathBuf {
    let model = studio.copy(&tiny(), "model");
    copy_folder(&atelier().join("styles"), &model.join("styles"));
    let (tiny_vae, depth) = (repository().join("tests/fixtures/tiny-vae"), model.join("vae/encoder.onnx"));
    let more = ["--tiny-vae", tiny_vae.to_str().unwrap(), "--depth", depth.to_str().unwrap()];
    studio.convert(&model, "int8", &more, "bundle")
}

#[test]
fn a_changed_file_is_named_and_no_other() {
    let studio = Studio::new();
    let bundle = whole(&studio);
    let files = contents(&bundle);
    assert_eq!(files.len(), FILES.len() + 2 + 3);
    Bundle::open(&bundle).unwrap();
    for (name, good) in files.iter().filter(|(name, _)| *name != "bundle.json") {
        let path = bundle.join(name);
        let says = |words: &str| {
            let (named, error) = wrong_files(&bundle);
            assert_eq!(named, [name.as_str()], "{error}");
            assert!(error.contains(words), "no {words:?} in: {error}");
        };
        for place in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[place] ^= 0x10;
            std::fs::write(&path, bad).unwrap();
            says("was changed after it was written");
        }
        for (damage, words) in [
            (good[..good.len() - 1].to_vec(), "bytes long where"),
            (vec![], "0 bytes long"),
            ([&good[..], b"x"].concat(), "bytes long where"),
        ] {
            std::fs::write(&path, damage).unwrap();
            says(words);
        }
        std::fs::remove_file(&path).unwrap();
        says("No such file");
        std::fs::write(&path, good).unwrap();
    }
    Bundle::open(&bundle).unwrap();
}

#[test]
fn all_changed_files_are_named_together() {
    let studio = Studio::new();
    let bundle = whole(&studio);
    let changed = ["depth.onnx", "styles/hiroshige.safetensors", "unet.safetensors"];
    changed.iter().for_each(|name| std::fs::write(bundle.join(name), "gone").unwrap());
    assert_eq!(wrong_files(&bundle).0, changed);
}

/// Every key of the manifest that is missing, misspelt or of another kind is refused; nothing in it is believed that
/// does not fit.
#[test]
fn a_damaged_manifest_is_refused() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &[], "bundle");
    let path = bundle.join("bundle.json");
    let good = std::fs::read(&path).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&good).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = json.clone();
        change(&mut json);
        serde_json::to_vec(&json).unwrap()
    };
    let entry = serde_json::json!({"bytes": 1, "sha256": "00"});
    for (damage, words) in [
        (good[..good.len() / 2].to_vec(), "not a bundle's manifest"),
        (b"".to_vec(), "not a bundle's manifest"),
        (b"[]".to_vec(), "not a bundle's manifest"),
        (with(&|json| json["format"] = "pleinair-bundle/2".into()), "\"pleinair-bundle/2\", this program reads"),
        (with(&|json| json["surprise"] = 1.into()), "surprise"),
        (with(&|json| json["unet"]["surprise"] = 1.into()), "surprise"),
        (with(&|json| json["dtype"] = "int4".into()), "int4"),
        (with(&|json| drop(json.as_object_mut().unwrap().remove("text_encoder"))), "text_encoder"),
        (with(&|json| json["files"]["../secret"] = entry.clone()), "\"../secret\", which is not inside"),
        (with(&|json| json["files"]["/etc/passwd"] = entry.clone()), "not inside"),
        (with(&|json| json["files"]["a/../../b"] = entry.clone()), "not inside"),
        (with(&|json| json["files"]["a\\b"] = entry.clone()), "not inside"),
        (with(&|json| json["files"][""] = entry.clone()), "not inside"),
        (with(&|json| json["files"]["nowhere.onnx"] = entry.clone()), "nowhere.onnx"),
        (with(&|json| drop(json["files"].as_object_mut().unwrap().remove("unet.safetensors"))), "unet.safetensors"),
        (with(&|json| drop(json["files"].as_object_mut().unwrap().remove("scheduler.json"))), "scheduler.json"),
        (with(&|json| drop(json["files"].as_object_mut().unwrap().remove("controlnet.safetensors"))), "controlnet.saf"),
        (with(&|json| json["files"] = serde_json::json!({})), "has no checksum of"),
        (with(&|json| json["unet"]["config"]["cross_attention_dim"] = 48.into()), "cross_attention_dim"),
        (with(&|json| json["unet"]["config"]["in_channels"] = (-4).into()), "damaged"),
        (with(&|json| json["vae"]["config"]["latent_channels"] = 8.into()), "latent_channels"),
    ] {
        std::fs::write(&path, damage).unwrap();
        let error = refused(&bundle);
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
    // checksums do not depend on the case of their letters; anything else is another file's
    let other = with(&|json| json["files"]["unet.safetensors"]["sha256"] = "ab".repeat(32).into());
    std::fs::write(&path, other).unwrap();
    assert!(refused(&bundle).contains("unet.safetensors: was changed"));
    std::fs::write(&path, vec![b' '; (16 << 20) + 1]).unwrap();
    assert!(refused(&bundle).contains("which no manifest is"));
    std::fs::write(&path, good).unwrap();
    Bundle::open(&bundle).unwrap();
}

/// Right checksums of tensors that are not the configuration's: they are named when the network is loaded.
#[test]
fn tensors_that_do_not_fit_the_configuration_are_named_all_at_once() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &["--target", "portable"], "bundle");
    let path = bundle.join("unet.safetensors");
    edit(&path, |tensors| {
        tensors.remove("conv_out.bias").unwrap();
        tensors.remove("mid_block.resnets.0.conv1.weight_scale").unwrap();
        tensors.get_mut("mid_block.resnets.0.conv2.weight").unwrap().1 = vec![32, 32, 3, 3];
        tensors.get_mut("mid_block.resnets.1.conv1.weight_scale").unwrap().0 = Dtype::I32;
        tensors.get_mut("mid_block.resnets.1.conv2.weight").unwrap().0 = Dtype::U8;
        // a smoothing of one channel too few, and one of no dimension at all
        let smooth = |length: usize, shape: Vec<usize>| (Dtype::F32, shape, vec![0; 4 * length]);
        tensors.insert("down_blocks.0.resnets.0.conv1.weight_smooth".into(), smooth(15, vec![15]));
        tensors.insert("down_blocks.0.resnets.0.conv2.weight_smooth".into(), smooth(1, vec![]));
    });
    let mut manifest = manifest(&bundle);
    let entry = pleinair::bundle::manifest::FileEntry::of(&path).unwrap();
    manifest.files.insert("unet.safetensors".into(), entry);
    std::fs::write(bundle.join("bundle.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    let error = pleinair::net::Unet::load(&Bundle::open(&bundle).unwrap()).unwrap_err().to_string();
    for words in [
        "conv_out.bias [4] is missing",
        "mid_block.resnets.0.conv1.weight_scale [32] is missing",
        // int8 of four dimensions is taken for panels
        "mid_block.resnets.0.conv2.weight has the shape [32, 32, 3, 3], wanted [2, 80, 16, 4]",
        "mid_block.resnets.1.conv1.weight_scale is I32, must be F32",
        "mid_block.resnets.1.conv2.weight is U8; supported are F32, F16, BF16 and I8",
        "down_blocks.0.resnets.0.conv1.weight_smooth has the shape [15], wanted [16]",
        "down_blocks.0.resnets.0.conv2.weight_smooth has the shape [], wanted [16]",
    ] {
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
}
