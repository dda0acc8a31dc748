//! The ONNX files of both kinds of VAE, evaluated in tract as the program does, against diffusers and against the files
//! PyTorch exported from the same weights.

use candle_core::{DType, Device, Tensor};
use pleinair::bundle::Bundle;
use pleinair::net::Latent;
use pleinair::side::vae::Vae;
use pleinair_quantize::onnx::{Kind, Storage, Tensors, VaeKind, check};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tract_onnx::prelude::*;

/// Two correct f32 evaluations differ by their rounding. The fixtures carry diffusers' own distance from a float64
/// evaluation; ours may be a few times that, since its sums run in another order.
const ROUNDING: f32 = 8.0;

const MODELS: [&str; 2] = ["models/atelier", "tests/fixtures/tiny-sd15"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A checkpoint in memory, which a test may change.
struct Checkpoint(HashMap<String, Tensor>);

impl Checkpoint {
    fn open(folder: &str) -> Self {
        let path = repository().join(folder).join("diffusion_pytorch_model.safetensors");
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        Checkpoint(tensors.into_iter().map(|(name, t)| (name, t.to_dtype(DType::F32).unwrap())).collect())
    }

    fn set(&mut self, name: &str, change: impl FnOnce(Vec<f32>) -> Vec<f32>) {
        let tensor = &self.0[name];
        let values = change(tensor.flatten_all().unwrap().to_vec1().unwrap());
        let changed = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
        self.0.insert(name.into(), changed).unwrap();
    }
}

impl Tensors for Checkpoint {
    fn read(&mut self, name: &str, shape: &[usize]) -> pleinair::Result<Vec<f32>> {
        assert_eq!(self.0[name].dims(), shape);
        Ok(self.0[name].flatten_all()?.to_vec1()?)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|tensor| tensor.dims().to_vec())
    }
}

fn config(folder: &str) -> Value {
    serde_json::from_slice(&std::fs::read(repository().join(folder).join("config.json")).unwrap()).unwrap()
}

fn kind(folder: &str) -> VaeKind {
    VaeKind::from_json(&config(folder)).unwrap()
}

/// A model folder with the configurations of `model` and our two files.
fn bundle_of(model: &str, storage: Storage) -> (tempfile::TempDir, Arc<Bundle>) {
    let (folder, source) = (tempfile::tempdir().unwrap(), repository().join(model));
    let vae = format!("{model}/vae");
    for file in ["model_index.json", "unet/config.json", "text_encoder/config.json", "vae/config.json"] {
        let copy = folder.path().join(file);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(source.join(file), copy).unwrap();
    }
    let (kind, mut tensors) = (kind(&vae), Checkpoint::open(&vae));
    std::fs::write(folder.path().join("vae/encoder.onnx"), kind.encoder(&mut tensors, storage).unwrap()).unwrap();
    std::fs::write(folder.path().join("vae/decoder.onnx"), kind.decoder(&mut tensors, storage).unwrap()).unwrap();
    let bundle = Bundle::open(folder.path()).unwrap();
    (folder, Arc::new(bundle))
}

/// The program's own way through tract, for a file that is not in a bundle.
fn evaluate(onnx: &[u8], input: &Tensor) -> Tensor {
    let plan = tract_onnx::onnx()
        .model_for_read(&mut &*onnx)
        .and_then(|model| model.with_input_fact(0, f32::fact(input.dims()).into()))
        .and_then(|model| model.into_optimized())
        .and_then(|model| model.into_runnable())
        .unwrap();
    let values = input.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let input = tract_onnx::prelude::Tensor::from_shape(input.dims(), &values).unwrap();
    let outputs = plan.run(tvec!(input.into_tvalue())).unwrap();
    let values = outputs[0].to_plain_array_view::<f32>().unwrap().iter().copied().collect::<Vec<_>>();
    Tensor::from_vec(values, outputs[0].shape(), &Device::Cpu).unwrap()
}

/// Tensors that diffusers computed, and how far they are from float64.
struct Reference(HashMap<String, Tensor>, Value);

impl Reference {
    fn open(name: &str) -> Self {
        let bytes = std::fs::read(repository().join(format!("tests/fixtures/{name}.safetensors"))).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let recipe: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["recipe"]).unwrap();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        Reference(tensors, recipe["rounding"].clone())
    }

    fn rounding(&self, name: &str) -> f32 {
        self.1[name].as_f64().unwrap_or_else(|| panic!("no rounding of {name}")) as f32
    }

    fn assert_close(&self, got: &Tensor, name: &str) {
        assert_within(got, &self.0[name], ROUNDING * self.rounding(name), name);
    }
}

fn assert_within(got: &Tensor, want: &Tensor, tolerance: f32, name: &str) {
    assert_eq!(got.dims(), want.dims(), "{name}");
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (i, (got, want)) in flat(got).into_iter().zip(flat(want)).enumerate() {
        let difference = (got - want).abs();
        assert!(difference <= tolerance, "{name}: value {i} is {got}, not {want}; {tolerance:.1e} is allowed");
    }
}

#[test]
#[should_panic(expected = "is NaN")]
fn the_comparator_fails_on_nan() {
    let reference = Reference::open("tiny-vae");
    reference.assert_close(&(&reference.0["decoded.0"] + f64::NAN).unwrap(), "decoded.0");
}

#[test]
#[should_panic(expected = "is allowed")]
fn the_comparator_fails_on_a_small_error() {
    let reference = Reference::open("tiny-vae");
    reference.assert_close(&(&reference.0["decoded.0"] + 1e-3).unwrap(), "decoded.0");
}

#[test]
fn kl_equals_diffusers() {
    for model in MODELS {
        let (_folder, bundle) = bundle_of(model, Storage::F32);
        let vae = Vae::open(&bundle).unwrap();
        let name = Path::new(model).file_name().unwrap().to_str().unwrap();
        let reference = Reference::open(&format!("{name}-networks"));
        let posterior = vae.encode_planar(&reference.0["vae.image"]).unwrap();
        let moments = Tensor::cat(&[&posterior.mean, &posterior.logvar], 1).unwrap();
        reference.assert_close(&moments, "vae.moments");
        // `vae.latent` is what the decoder itself takes; the program's latents are scaled
        let latent = (&reference.0["vae.latent"] * bundle.vae.scaling_factor).unwrap();
        reference.assert_close(&vae.decode(&Latent(latent)).unwrap(), "vae.decoded");
    }
}

/// Our files in tract against the program's own layers, which run where the weights are known, and where PyTorch has
/// exported the same weights against that.
#[test]
fn kl_equals_the_own_layers_and_what_pytorch_exported_at_other_sizes() {
    for model in MODELS {
        let (_folder, bundle) = bundle_of(model, Storage::F32);
        let (ours, whole) = (Vae::open(&bundle).unwrap(), Arc::new(Bundle::open(&repository().join(model)).unwrap()));
        let theirs = Vae::open(&whole).unwrap();
        assert!(format!("{ours:?}").contains("decoder.onnx") && format!("{theirs:?}").contains("own layers"));
        let name = Path::new(model).file_name().unwrap().to_str().unwrap();
        let reference = Reference::open(&format!("{name}-networks"));
        // upright instead of lying, and a batch of two of which one is upside down
        let image = &reference.0["vae.image"];
        let pair = Tensor::cat(&[image, &image.flip(&[2]).unwrap()], 0).unwrap();
        for image in [image.transpose(2, 3).unwrap().contiguous().unwrap(), pair] {
            let [got, want] = [&ours, &theirs].map(|vae| vae.encode_planar(&image).unwrap());
            // either may be a rounding away from the truth
            let tolerance = 2.0 * ROUNDING * reference.rounding("vae.moments");
            assert_within(&got.mean, &want.mean, tolerance, "mean");
            assert_within(&got.logvar, &want.logvar, tolerance, "logvar");
            let latent = Latent((&want.mean * bundle.vae.scaling_factor).unwrap());
            let [got, want] = [&ours, &theirs].map(|vae| vae.decode(&latent).unwrap());
            assert_eq!(got.dims(), image.dims());
            assert_within(&got, &want, 2.0 * ROUNDING * reference.rounding("vae.decoded"), "decoded");
            if let Ok(exported) = std::fs::read(repository().join(model).join("vae/decoder.onnx")) {
                let want = evaluate(&exported, &(&latent.0 / bundle.vae.scaling_factor).unwrap());
                assert_within(&got, &want, 2.0 * ROUNDING * reference.rounding("vae.decoded"), "exported");
            }
        }
        // flat and long, and a single cell
        let latent = &reference.0["vae.latent"];
        let row = latent.narrow(2, 0, 1).unwrap();
        let wide = Tensor::cat(&[&row, &row, &row], 3).unwrap();
        for latent in [wide, latent.narrow(2, 1, 1).unwrap().narrow(3, 1, 1).unwrap()] {
            let latent = Latent((latent.contiguous().unwrap() * bundle.vae.scaling_factor).unwrap());
            let [got, want] = [&ours, &theirs].map(|vae| vae.decode(&latent).unwrap());
            assert_within(&got, &want, 2.0 * ROUNDING * reference.rounding("vae.decoded"), "other sizes");
        }
    }
}

#[test]
fn f16_storage_halves_the_file_and_only_rounds_the_weights() {
    let vae = "models/atelier/vae"; // its weights are f16 already: storing them as f16 changes nothing
    let (kind, mut tensors) = (kind(vae), Checkpoint::open(vae));
    let latent = Reference::open("atelier-networks").0["vae.latent"].clone();
    let [f32, f16] = [Storage::F32, Storage::F16].map(|storage| kind.decoder(&mut tensors, storage).unwrap());
    assert!(f16.len() as f64 <= 0.52 * f32.len() as f64, "{} of {} bytes", f16.len(), f32.len());
    assert_within(&evaluate(&f16, &latent), &evaluate(&f32, &latent), 0.0, "f16");
}

#[test]
fn tiny_equals_diffusers_at_two_sizes() {
    let (kind, mut tensors) = (kind("tests/fixtures/tiny-vae"), Checkpoint::open("tests/fixtures/tiny-vae"));
    assert_eq!((kind.factor(), kind.latent_channels(), kind.scaling_factor()), (8, 4, 1.0));
    let encoder = kind.encoder(&mut tensors, Storage::F32).unwrap();
    let decoder = kind.decoder(&mut tensors, Storage::F32).unwrap();
    let reference = Reference::open("tiny-vae");
    for i in 0..2 {
        let moments = evaluate(&encoder, &reference.0[&format!("image.{i}")]);
        reference.assert_close(&moments.narrow(1, 0, 4).unwrap(), &format!("encoded.{i}"));
        let logvar = moments.narrow(1, 4, 4).unwrap();
        assert_within(&logvar, &(logvar.zeros_like().unwrap() - 30.0).unwrap(), 0.0, "logvar");
        let image = evaluate(&decoder, &reference.0[&format!("latent.{i}")]);
        reference.assert_close(&image, &format!("decoded.{i}"));
    }
}

/// As diffusers named the attention's layers before 0.17, with the kernels that the original checkpoints have.
fn with_old_names(tensors: Checkpoint) -> Checkpoint {
    let names = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
    let renamed = tensors.0.into_iter().map(|(name, tensor)| {
        let old = names.iter().fold(name.clone(), |name, (new, old)| name.replace(new, old));
        match tensor.dims() {
            &[output, input] if old != name => (old, tensor.reshape((output, input, 1, 1)).unwrap()),
            _ => (old, tensor),
        }
    });
    Checkpoint(renamed.collect())
}

#[test]
fn the_attentions_old_names_give_the_same_file() {
    let vae = "tests/fixtures/tiny-sd15/vae";
    let (kind, mut new, mut old) = (kind(vae), Checkpoint::open(vae), with_old_names(Checkpoint::open(vae)));
    assert!(old.0.contains_key("decoder.mid_block.attentions.0.proj_attn.weight"));
    let [new, old] = [&mut new, &mut old].map(|tensors| kind.decoder(tensors, Storage::F32).unwrap());
    assert!(new == old, "the same weights must give the same bytes");
}

#[test]
fn without_quantisation_convolutions_they_are_left_out() {
    let vae = "tests/fixtures/tiny-sd15/vae";
    let (mut tensors, mut without) = (Checkpoint::open(vae), config(vae));
    for (layer, channels) in [("quant_conv", 8), ("post_quant_conv", 4)] {
        let unit = |_| (0..channels * channels).map(|i| if i % (channels + 1) == 0 { 1.0 } else { 0.0 }).collect();
        tensors.set(&format!("{layer}.weight"), unit);
        tensors.set(&format!("{layer}.bias"), |bias| vec![0.0; bias.len()]);
        without[format!("use_{layer}")] = json!(false);
    }
    let reference = Reference::open("tiny-sd15-networks");
    let with = kind(vae);
    let encoder = with.encoder(&mut tensors, Storage::F32).unwrap();
    let decoder = with.decoder(&mut tensors, Storage::F32).unwrap();
    tensors.0.retain(|name, _| !name.contains("quant_conv"));
    let without = VaeKind::from_json(&without).unwrap();
    for (with, without, input) in [
        (encoder, without.encoder(&mut tensors, Storage::F32).unwrap(), "vae.image"),
        (decoder, without.decoder(&mut tensors, Storage::F32).unwrap(), "vae.latent"),
    ] {
        let input = &reference.0[input];
        assert_within(&evaluate(&without, input), &evaluate(&with, input), 0.0, "without quant_conv");
    }
}

#[test]
fn every_tensor_that_cannot_be_used_is_named() {
    let vae = "tests/fixtures/tiny-sd15/vae";
    let (kind, mut tensors) = (kind(vae), Checkpoint::open(vae));
    let missing = ["decoder.conv_in.weight", "decoder.mid_block.resnets.1.norm2.bias", "post_quant_conv.bias"];
    for name in missing {
        tensors.0.remove(name).unwrap();
    }
    let wide = Tensor::zeros((9, 8), DType::F32, &Device::Cpu).unwrap();
    tensors.0.insert("decoder.mid_block.attentions.0.to_q.weight".into(), wide);
    tensors.set("decoder.conv_out.bias", |mut bias| {
        bias[1] = f32::NAN;
        bias
    });
    let pleinair::Error::Model { problems, .. } = kind.decoder(&mut tensors, Storage::F32).unwrap_err() else {
        panic!("another error")
    };
    assert_eq!(problems.len(), 5, "{problems:#?}");
    for name in missing {
        assert!(problems.contains(&format!("vae: the tensor {name} is missing")), "{name}: {problems:#?}");
    }
    assert!(problems.iter().any(|p| p.contains("to_q.weight is [9, 8], wanted [16, 16")), "{problems:#?}");
    assert!(problems.iter().any(|p| p.contains("conv_out.bias contains NaN")), "{problems:#?}");
    assert!(kind.encoder(&mut tensors, Storage::F32).is_ok(), "the encoder needs none of them");
    assert!(problem_count(&kind, &mut Checkpoint(HashMap::new())) > 100);
}

fn problem_count(kind: &VaeKind, tensors: &mut Checkpoint) -> usize {
    match kind.encoder(tensors, Storage::F32).unwrap_err() {
        pleinair::Error::Model { problems, .. } => problems.len(),
        other => panic!("{other}"),
    }
}

#[test]
fn weights_too_large_for_f16_are_refused() {
    let vae = "models/atelier/vae";
    let (kind, mut tensors) = (kind(vae), Checkpoint::open(vae));
    let large = |mut weight: Vec<f32>| {
        weight[7] = 65520.0; // halfway past the largest f16, 65504
        weight
    };
    tensors.set("encoder.down_blocks.0.resnets.0.conv1.weight", large);
    assert!(kind.encoder(&mut tensors, Storage::F32).is_ok());
    let error = kind.encoder(&mut tensors, Storage::F16).unwrap_err().to_string();
    assert!(error.contains("resnets.0.conv1.weight contains 65520, too large for f16"), "{error}");
}

struct Failing;

impl Tensors for Failing {
    fn read(&mut self, name: &str, _: &[usize]) -> pleinair::Result<Vec<f32>> {
        Err(pleinair::Error::io(Path::new(name))(std::io::Error::other("the disk is gone")))
    }
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Checkpoint::open("tests/fixtures/tiny-vae").shape(name)
    }
}

#[test]
fn a_failure_to_read_is_reported_as_such() {
    let error = kind("tests/fixtures/tiny-vae").decoder(&mut Failing, Storage::F32).unwrap_err();
    assert!(
        matches!(&error, pleinair::Error::Io { path, .. } if path == Path::new("decoder.layers.0.weight")),
        "{error}"
    );
}

#[test]
fn other_configurations_are_refused_by_name() {
    let refusal = |config: &Value| VaeKind::from_json(config).unwrap_err().to_string();
    let with = |folder: &str, key: &str, value: Value| {
        let mut config = config(folder);
        config[key] = value;
        refusal(&config)
    };
    let (kl, tiny) = ("models/atelier/vae", "tests/fixtures/tiny-vae");
    for (folder, key, value, wanted) in [
        (kl, "_class_name", json!("AsymmetricAutoencoderKL"), "the class \"AsymmetricAutoencoderKL\""),
        (kl, "_class_name", Value::Null, "no _class_name"),
        (kl, "act_fn", json!("gelu"), "act_fn = \"gelu\""),
        (kl, "shift_factor", json!(0.1159), "shift_factor = 0.1159"),
        (kl, "latents_mean", json!([0.0]), "latents_mean"),
        (kl, "scale_factor", json!(1.0), "the key scale_factor"),
        (kl, "scaling_factor", json!(0.0), "scaling_factor is 0"),
        (kl, "norm_num_groups", json!(5), "do not divide into 5 groups"),
        (kl, "layers_per_block", json!(4_000_000_000u64), "layers_per_block 4000000000"),
        (kl, "latent_channels", json!("4"), "expected usize"),
        (kl, "block_out_channels", json!([32, 64]), "2 levels of channels but 3 down_block_types"),
        (kl, "up_block_types", json!(["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "x"]), "AttnUpDecoderBlock2D"),
        (tiny, "act_fn", json!("silu"), "act_fn = \"silu\""),
        (tiny, "upsampling_scaling_factor", json!(4), "upsampling_scaling_factor = 4"),
        (tiny, "decoder_block_out_channels", json!([64, 64, 64, 32]), "must all be the same"),
        (tiny, "num_decoder_blocks", json!([1, 1]), "have 4 and 2 levels, must have 4"),
    ] {
        let error = with(folder, key, value);
        assert!(error.contains(wanted), "{key}: {error}");
    }
    let both = refusal(&json!({"_class_name": "AutoencoderTiny", "act_fn": "gelu", "latent_channels": 0}));
    assert!(both.contains("act_fn") && both.contains("latent_channels"), "{both}");
}

#[test]
fn files_that_somebody_brings_are_checked() {
    let (folder, decoder) = (tempfile::tempdir().unwrap(), Kind::Decoder { latent_channels: 4 });
    let written = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for vae in ["models/atelier/vae", "tests/fixtures/tiny-vae"] {
        let (kind, mut tensors) = (kind(vae), Checkpoint::open(vae));
        let ours = written("decoder.onnx", &kind.decoder(&mut tensors, Storage::F16).unwrap());
        check(&ours, decoder).unwrap();
        let ours = written("encoder.onnx", &kind.encoder(&mut tensors, Storage::F16).unwrap());
        check(&ours, Kind::Encoder).unwrap();
        check(&ours, Kind::Depth).unwrap(); // a picture in, something out
    }
    let exported = repository().join("tests/fixtures/tiny-sd15/vae");
    check(&exported.join("encoder.onnx"), Kind::Encoder).unwrap();
    let ours = folder.path().join("decoder.onnx");
    for (path, kind, wanted) in [
        (folder.path().join("nowhere.onnx"), Kind::Depth, "nowhere.onnx"),
        (written("noise.onnx", b"this is a text"), Kind::Depth, "not ONNX"),
        (written("empty.onnx", b""), Kind::Depth, "cannot load"),
        (ours.clone(), Kind::Encoder, "wanted f32 [B, 3, H, W]; it cannot be a VAE's encoder"),
        (ours.clone(), Kind::Depth, "wanted f32 [B, 3, H, W]; it cannot be a depth estimator"),
        (ours, Kind::Decoder { latent_channels: 16 }, "wanted f32 [B, 16, H, W]; it cannot be a VAE's decoder"),
        (exported.join("encoder.onnx"), Kind::Decoder { latent_channels: 3 }, "wanted [1, 3, H, W]"),
    ] {
        let error = check(&path, kind).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn files_of_another_form_are_refused() {
    use prost::Message;
    use tract_onnx::pb::{ModelProto, tensor_proto::DataLocation, tensor_shape_proto::dimension, type_proto};
    let folder = tempfile::tempdir().unwrap();
    let (kind, mut tensors) = (kind("tests/fixtures/tiny-vae"), Checkpoint::open("tests/fixtures/tiny-vae"));
    let bytes = kind.decoder(&mut tensors, Storage::F32).unwrap();
    let refusal = |change: &dyn Fn(&mut ModelProto)| {
        let mut proto = ModelProto::decode(&*bytes).unwrap();
        change(&mut proto);
        let path = folder.path().join("changed.onnx");
        std::fs::write(&path, proto.encode_to_vec()).unwrap();
        check(&path, Kind::Decoder { latent_channels: 4 }).unwrap_err().to_string()
    };
    let external = refusal(&|proto| {
        let weights = &mut proto.graph.as_mut().unwrap().initializer[0];
        weights.data_location = Some(DataLocation::External as i32);
    });
    assert!(external.contains("in another file"), "{external}");
    let twice = refusal(&|proto| {
        let graph = proto.graph.as_mut().unwrap();
        let mut second = graph.input[0].clone();
        second.name = "second".into();
        graph.input.push(second);
    });
    assert!(twice.contains("2 inputs and 1 outputs"), "{twice}");
    let fixed = refusal(&|proto| {
        let input = &mut proto.graph.as_mut().unwrap().input[0];
        let Some(type_proto::Value::TensorType(tensor)) = &mut input.r#type.as_mut().unwrap().value else { panic!() };
        for (dim, size) in tensor.shape.as_mut().unwrap().dim.iter_mut().zip([1, 4, 64, 64]) {
            dim.value = Some(dimension::Value::DimValue(size));
        }
        // as exporters bake it in: a shape that fits one size only
        let graph = proto.graph.as_mut().unwrap();
        let last = graph.node.last_mut().unwrap();
        last.op_type = "Reshape".into();
        last.input.push("baked".into());
        graph.initializer.push(tract_onnx::pb::TensorProto {
            name: "baked".into(),
            dims: vec![4],
            data_type: 7, // int64
            int64_data: vec![1, 3, 512, 512],
            ..Default::default()
        });
    });
    assert!(fixed.contains("does not run on an input of [1, 4, 64, 128]"), "{fixed}");
}
