//! What lies in a bundle's files: the numbers of the model, in whatever order a target wants them, used where they lie.

use super::*;
use candle_core::{DType, Device, Tensor};
use pleinair::bundle::Bundle;
use pleinair::bundle::manifest;
use pleinair::bundle::weights::{LayerWeight, Values, Weights, isa};
use pleinair::net::Unet;
use pleinair_quantize::distortion::Distortion;
use pleinair_quantize::trial;
use std::collections::HashMap;

const TARGETS: [&str; 4] = ["cpu", "cuda", "metal", "portable"];

/// A part's tensors in a diffusers folder, as f32.
fn source(model: &Path, part: &str) -> HashMap<String, Tensor> {
    let files = names(&model.join(part)).into_iter().filter(|name| name.ends_with(".safetensors"));
    let load = |name: String| candle_core::safetensors::load(model.join(part).join(name), &Device::Cpu).unwrap();
    let floats = files.flat_map(load).filter(|(_, tensor)| tensor.dtype().is_float());
    floats.map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap())).collect()
}

/// The rows that a layer of a bundle should have, by the names and the layout that diffusers gives them.
fn rows(source: &HashMap<String, Tensor>, layer: &str) -> Vec<Vec<f32>> {
    let (parent, own) = layer.rsplit_once('.').unwrap_or(("", layer));
    let parts: &[&str] = match own {
        "to_qkv" => &["to_q", "to_k", "to_v"],
        "to_kv" => &["to_k", "to_v"],
        "qkv_proj" => &["q_proj", "k_proj", "v_proj"],
        _ => return matrix(&source[&format!("{layer}.weight")]),
    };
    parts.iter().flat_map(|part| matrix(&source[&format!("{parent}.{part}.weight")])).collect()
}

/// `[out, in]`, `[out, in, 1, 1]` or `[out, in, 3, 3]` as rows, the channels last.
fn matrix(tensor: &Tensor) -> Vec<Vec<f32>> {
    let tensor = if tensor.rank() == 4 { tensor.permute((0, 2, 3, 1)).unwrap() } else { tensor.clone() };
    tensor.contiguous().unwrap().flatten_from(1).unwrap().to_vec2().unwrap()
}

/// A layer as the program loads it.
fn load(weights: &Weights, name: &str, layer: &manifest::Layer) -> LayerWeight {
    let names = weights.root().pp(name);
    match layer.shape[..] {
        [outputs, inputs, 3, 3] => names.kernel3x3(outputs, inputs).unwrap(),
        _ => names.matrix(layer.shape[0], layer.shape[1..].iter().product()).unwrap(),
    }
}

/// Every layer of every network of a bundle: `unet.conv_in`, how it is stored, its weight.
fn layers(bundle: &Path) -> Vec<(String, manifest::Dtype, LayerWeight)> {
    let manifest = manifest(bundle);
    let controlnet = manifest.controlnet.unwrap();
    let networks = [
        ("unet", manifest.unet.layers),
        ("controlnet", controlnet.layers),
        ("text_encoder", manifest.text_encoder.layers),
    ];
    let mut all = vec![];
    for (part, layers) in networks {
        let weights = Weights::map(bundle, part).unwrap();
        let loaded =
            layers.iter().map(|(name, layer)| (format!("{part}.{name}"), layer.dtype, load(&weights, name, layer)));
        all.extend(loaded);
        weights.finish().unwrap();
    }
    all
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What a row must be once it is stored: the definition, in a line.
fn stored(row: &[f32], dtype: manifest::Dtype) -> Vec<f32> {
    match dtype {
        manifest::Dtype::F32 => row.to_vec(),
        manifest::Dtype::Bf16 => row.iter().map(|&w| half::bf16::from_f32(w).to_f32()).collect(),
        manifest::Dtype::F16 => row.iter().map(|&w| half::f16::from_f32(w).to_f32()).collect(),
        manifest::Dtype::Int8 => {
            let scale = row.iter().fold(0f32, |m, w| m.max(w.abs())) / 127.0;
            row.iter().map(|w| (w / scale).round_ties_even() as i32 as f32 * scale).collect()
        }
    }
}

#[test]
fn every_layer_holds_the_models_numbers_rounded_by_the_definition() {
    let studio = Studio::new();
    let mut rules = vec![];
    for rule in ["unet.down_blocks.1.*=f32", "unet.up_blocks.2.*=bf16", "text_encoder.*.mlp.*=int8"] {
        rules.extend(["--keep", rule]);
    }
    let bundle = studio.convert(&tiny(), "int8", &rules, "bundle");
    let sources: HashMap<_, _> =
        ["unet", "controlnet", "text_encoder"].into_iter().map(|part| (part, source(&tiny(), part))).collect();
    let mut counts = BTreeMap::new();
    for (name, dtype, layer) in layers(&bundle) {
        let (part, layer_name) = name.split_once('.').unwrap();
        let want: Vec<f32> = rows(&sources[part], layer_name).iter().flat_map(|row| stored(row, dtype)).collect();
        assert!(bits(&layer.weight().to_f32()) == bits(&want), "{name} as {dtype}");
        let stored = match layer.weight().values() {
            Values::F32(_) => manifest::Dtype::F32,
            Values::F16(_) => manifest::Dtype::F16,
            Values::Bf16(_) => manifest::Dtype::Bf16,
            Values::Int8(_) => manifest::Dtype::Int8,
        };
        assert_eq!(stored, dtype, "{name}");
        *counts.entry(dtype).or_insert(0) += 1;
    }
    println!("layers by type: {counts:?}");
    assert!(counts.values().all(|&count| count >= 19) && counts.len() == 4, "{counts:?}");
    // what is no matrix is f16, joined where the layers are
    let weights = Weights::map(&bundle, "text_encoder").unwrap();
    let at = "text_model.encoder.layers.1.self_attn";
    let bias = weights.root().pp(at).pp("qkv_proj").get("bias", 96).unwrap().to_vec1::<f32>().unwrap();
    let parts =
        ["q_proj", "k_proj", "v_proj"].map(|part| sources["text_encoder"][&format!("{at}.{part}.bias")].clone());
    let want = Tensor::cat(&parts, 0).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(bias, stored(&want, manifest::Dtype::F16));
}

#[test]
fn every_target_has_the_same_numbers_and_paints_the_same() {
    let studio = Studio::new();
    let bundles = TARGETS.map(|target| studio.convert(&tiny(), "int8", &["--target", target], target));
    let of =
        |bundle: &PathBuf| layers(bundle).into_iter().map(|(name, _, layer)| (name, bits(&layer.weight().to_f32())));
    let want: Vec<_> = of(&bundles[0]).collect();
    for (target, bundle) in TARGETS.iter().zip(&bundles).skip(1) {
        assert!(of(bundle).eq(want.iter().cloned()), "{target}");
        assert_eq!(serde_json::to_value(manifest(bundle).target).unwrap(), **target);
    }
    // the packings differ, so that the comparison is not one of files with themselves
    let files: Vec<_> = bundles.iter().map(|bundle| contents(bundle)).collect();
    let differing =
        |a: usize, b: usize| FILES.into_iter().filter(|name| files[a][*name] != files[b][*name]).collect::<Vec<_>>();
    assert_eq!(differing(0, 3), ["bundle.json", "controlnet.safetensors", "unet.safetensors"]);
    assert_eq!(differing(1, 2), ["bundle.json"]);
    assert_eq!(differing(2, 3), ["bundle.json"]);

    // rows are multiplied as f32, whatever the target; panels by the CPU's kernels
    let painted = |painter: &Painter| {
        let order = trial::order(painter.bundle(), 0, 3, 2.0).unwrap();
        trial::estimates(painter, &order, &AtomicBool::new(false)).unwrap().concat()
    };
    let rows: Vec<_> = bundles[1..].iter().map(|bundle| painted(&open(bundle))).collect();
    assert!(rows[0] == rows[1] && rows[1] == rows[2]);
    let kernels = isa::found().into_iter().filter_map(|(name, isa)| Some((name, isa?)));
    let panels: Vec<_> = kernels
        .map(|(name, isa)| {
            (name, painted(&Painter::new(Bundle::open(&bundles[0]).unwrap().on(pleinair::Target::cpu(isa))).unwrap()))
        })
        .collect();
    // norms are f32 and attention is f32 or bf16, and they round otherwise on every instruction set; an int8 activation that
    // was on the edge may then be the next one
    let plain = &panels.last().expect("plain Rust is always there").1;
    for (name, painting) in &panels {
        let (apart, from_plain) =
            (Distortion::of(&panels[0].1, painting).psnr(), Distortion::of(plain, painting).psnr());
        println!("{name}: {apart:.1} dB from {}, {from_plain:.1} dB from plain Rust", panels[0].0);
        let least = if WITH_BF16.contains(name) { 40.0 } else { 45.0 };
        assert!(from_plain >= least, "{name} paints otherwise than plain Rust: {from_plain:.1} dB");
        assert!(apart >= 40.0, "{name} paints otherwise than {}: {apart:.1} dB", panels[0].0);
    }
    let apart = Distortion::of(&rows[0], &panels[0].1).psnr();
    println!("panels on {:?}: {apart:.1} dB from rows", panels.iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert!(apart >= 40.0 && apart.is_finite(), "{apart}: activations in int8 are no f32, but near");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let studio = Studio::new();
    for dtype in ["int8", "f16", "f32"] {
        let [a, b] = ["a", "b"].map(|name| contents(&studio.convert(&tiny(), dtype, &[], &format!("{dtype}-{name}"))));
        assert_eq!(a.keys().collect::<Vec<_>>(), FILES);
        assert!(a == b, "{dtype}");
    }
}

/// Bytes of `file` that are in memory because somebody mapped and touched it, from `/proc/self/smaps`; none where it is
/// not mapped.
#[cfg(target_os = "linux")]
fn resident(file: &Path) -> Option<u64> {
    let file = file.canonicalize().unwrap();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines().skip_while(|line| !line.ends_with(file.to_str().unwrap()));
    lines.next()?;
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    Some(rss.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10)
}

/// Loading a whole network touches no page of the mapping; a layer's weights come into memory when they are used.
#[cfg(target_os = "linux")]
#[test]
fn opening_maps_and_reads_nothing() {
    let studio = Studio::new();
    let path = studio.convert(&atelier(), "int8", &[], "bundle");
    let file = path.join("unet.safetensors");
    let bundle = Bundle::open(&path).unwrap();
    assert_eq!(resident(&file), None, "verifying does not map");
    let unet = Unet::load(&bundle).unwrap();
    let bytes = file.metadata().unwrap().len();
    let opened = resident(&file).expect("the weights are mapped");
    let painter = open(&path);
    let order = trial::order(painter.bundle(), 1, 1, 2.0).unwrap();
    trial::estimates(&painter, &order, &AtomicBool::new(false)).unwrap();
    let used = resident(&file).unwrap();
    println!("of {bytes} bytes {opened} are resident once the network is loaded, {used} once it has painted");
    assert!(opened == 0, "{opened} of {bytes} bytes were read on opening");
    drop((unet, painter));
    assert_eq!(resident(&file), None, "the map is given back");
}
