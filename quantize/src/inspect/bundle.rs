//! A bundle, from its manifest; every file is compared with its checksum and every tensor with its shape.

use super::{Inspection, Part, controlnet_line, file_bytes, scheduler_line, text_line, unet_line, vae_line};
use crate::report;
use pleinair::bundle::Bundle;
use pleinair::bundle::manifest::{Dtype, Layer, Manifest};
use pleinair::bundle::weights::Weights;
use pleinair::prompt::Tokenizer;
use pleinair::sampler::SchedulerConfig;
use pleinair::side::captioner;
use pleinair::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Layers of one kind that the notes name one by one.
const NAMED: usize = 12;

pub(super) fn inspect(folder: &Path) -> Inspection {
    let mut found = Inspection { folder: folder.to_path_buf(), parts: vec![], problems: vec![], notes: vec![] };
    let Some(manifest) = found.problem_of(Manifest::read(folder)) else { return found };
    found.problem_of(manifest.verify(folder));
    if let Some(bundle) = found.problem_of(Bundle::describe(folder, manifest.clone())) {
        found.problem_of(check_tensors(&bundle));
    }
    found.networks(&manifest);
    let vae = Part { configuration: vae_line(manifest.vae.config.clone()), ..found.files(&manifest, "vae_") };
    let parameters = Some(manifest.vae.parameters);
    found.parts.push(Part { name: "vae (onnx)".into(), parameters, ..vae });
    for (name, file) in [("tiny vae", "tiny_vae_decoder.onnx"), ("depth", "depth.onnx"), ("lineart", "lineart.onnx")] {
        if manifest.files.contains_key(file) {
            let part = found.files(&manifest, file);
            found.parts.push(Part { name: name.into(), ..part });
        }
    }
    found.captioner(&manifest);
    found.words_and_schedule(&manifest);
    found.remark(&manifest);
    found
}

/// Whether every tensor is there in its shape.
fn check_tensors(bundle: &Bundle) -> Result<()> {
    let mut problems = vec![];
    for (part, pieces) in report::networks(bundle) {
        let weights = bundle.weights(&part)?;
        for piece in &pieces {
            match piece.shape.len() {
                1 => drop(weights.root().get(&piece.name(), piece.outputs())?),
                _ => drop(report::layer_weight(&weights, piece)?),
            }
        }
        match weights.finish() {
            Err(Error::Model { problems: more, .. }) => problems.extend(more),
            other => other?,
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Model { folder: bundle.folder().to_path_buf(), problems }) }
}

/// Layers of each type.
fn dtypes(layers: &BTreeMap<String, Layer>) -> BTreeMap<String, usize> {
    let mut dtypes = BTreeMap::new();
    layers.values().for_each(|layer| *dtypes.entry(layer.dtype.to_string()).or_default() += 1);
    dtypes
}

impl Inspection {
    /// The files whose names begin so.
    fn files(&self, manifest: &Manifest, prefix: &str) -> Part {
        let files = manifest.files.iter().filter(|(name, _)| name.starts_with(prefix));
        let (count, bytes) =
            files.fold((0, 0u64), |(count, bytes), (_, entry)| (count + 1, bytes.saturating_add(entry.bytes)));
        Part { files: count, bytes, ..super::without_tensors(prefix, String::new()) }
    }

    fn networks(&mut self, manifest: &Manifest) {
        let network = |name: &str, parameters, layers: &BTreeMap<String, Layer>, configuration| Part {
            name: name.into(),
            parameters: Some(parameters),
            tensors: Some(layers.len()),
            dtypes: dtypes(layers),
            configuration,
            ..self.files(manifest, &format!("{name}.safetensors"))
        };
        let (text, unet) = (&manifest.text_encoder, &manifest.unet);
        let mut parts = vec![
            network("text_encoder", text.parameters, &text.layers, text_line(text.config.clone())),
            network("unet", unet.parameters, &unet.layers, unet_line(unet.config.clone())),
        ];
        for (part, _, net) in manifest.all_controlnets() {
            parts.push(network(part, net.parameters, &net.layers, controlnet_line(net.config.clone())));
        }
        self.parts.extend(parts);
    }

    fn captioner(&mut self, manifest: &Manifest) {
        let weights = format!("{}/{}", captioner::FOLDER, captioner::WEIGHTS);
        if manifest.files.contains_key(&weights)
            && let Some(weights) = self.problem_of(Weights::open_file(&self.folder.join(weights)))
        {
            let Part { files, bytes, .. } = self.files(manifest, captioner::FOLDER);
            self.parts.push(Part { files, bytes, ..super::listed("captioner", &weights, "BLIP".into()) });
        }
    }

    fn words_and_schedule(&mut self, manifest: &Manifest) {
        let folder = self.folder.clone();
        if let Some(tokenizer) = self.problem_of(Tokenizer::open(&folder)) {
            let (start, end, pad) = (tokenizer.bos(), tokenizer.eos(), tokenizer.pad());
            let positions = tokenizer.positions();
            let line = format!("{positions} positions, starts with {start}, ends with {end}, pads with {pad}");
            let part = self.files(manifest, "tokenizer.json");
            self.parts.push(Part { name: "tokenizer".into(), configuration: line, ..part });
        }
        let path = folder.join("scheduler.json");
        let read = std::fs::read_to_string(&path).map_err(Error::io(&path));
        let named = |e: Error| Error::file(&path, e.to_string());
        if let Some(config) = self.problem_of(read.and_then(|text| SchedulerConfig::from_json(&text).map_err(named))) {
            let part = super::without_tensors("scheduler", scheduler_line(&config));
            self.parts.push(Part { files: 1, bytes: file_bytes(&path), ..part });
        }
    }

    /// What is said in words.
    fn remark(&mut self, manifest: &Manifest) {
        let (dtype, target) = (manifest.dtype, manifest.target);
        self.notes.push(format!("{dtype}, laid out for {target}; {} layers are listed in bundle.json", {
            manifest.unet.layers.len() + manifest.all_controlnets().map(|(.., net)| net.layers.len()).sum::<usize>()
        }));
        let controlnets = manifest.all_controlnets().map(|(part, _, net)| (part, &net.layers));
        for (part, layers) in [("unet", &manifest.unet.layers)].into_iter().chain(controlnets) {
            let kept: Vec<_> =
                layers.iter().filter(|(_, layer)| layer.kept.is_some() && layer.dtype != Dtype::Int8).collect();
            for (name, layer) in kept.iter().take(NAMED) {
                let reason = layer.kept.as_deref().unwrap_or_default();
                self.notes.push(format!("{part}.{name} is kept as {} ({reason})", layer.dtype));
            }
            if kept.len() > NAMED {
                self.notes.push(format!("{part}: and {} more layers are kept finer", kept.len() - NAMED));
            }
        }
        for (what, text) in [("source", &manifest.source), ("licence", &manifest.license)] {
            self.notes.extend(text.iter().map(|text| format!("{what}: {text}")));
        }
        for (number, (part, control, _)) in manifest.all_controlnets().enumerate() {
            let which = if number == 0 { "the ControlNet" } else { part };
            self.notes.push(format!("{which} reads {control} pictures"));
        }
        if let Some(quality) = &manifest.quality {
            let worst = |key: &str| quality[key].as_f64().map_or("equal".to_owned(), |db| format!("{db:.1} dB"));
            self.notes.push(format!(
                "when it was made, {} paintings agreed with full precision to {} (latents) and {} (pictures) at worst",
                quality["seeds"],
                worst("worst_latents_psnr"),
                worst("worst_picture_psnr")
            ));
        }
    }
}
