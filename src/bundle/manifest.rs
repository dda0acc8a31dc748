//! `bundle.json`: what `pleinair-quantize` wrote about a bundle. The manifest is data from outside: sizes, names and
//! checksums are checked before anything else believes it.

use super::config::{ControlNetConfig, TextConfig, UnetConfig, VaeConfig};
pub use super::control::Control;
use super::control::Preprocessing;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Component, Path};

/// Name of the manifest in a bundle's folder.
pub const FILE_NAME: &str = "bundle.json";
/// The version this program reads and writes.
pub const FORMAT: &str = "pleinair-bundle/1";
/// A manifest larger than this is damage (SD 1.5's is about 100 kB).
const LARGEST: u64 = 16 << 20;

/// The files of a bundle with a ControlNet, the first being the ControlNet's; every other bundle has the rest.
const WITH_CONTROLNET: [&str; 7] = [
    "controlnet.safetensors",
    "unet.safetensors",
    "text_encoder.safetensors",
    "vae_encoder.onnx",
    "vae_decoder.onnx",
    "tokenizer.json",
    "scheduler.json",
];

/// Which kernels the weights are laid out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// int8 in the panels of `pleinair_cpu::pack`.
    Cpu,
    /// Rows.
    Cuda,
    /// Rows.
    Metal,
    /// Rows.
    Portable,
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Symmetric int8, a scale for each output channel.
    Int8,
    /// bfloat16, the upper half of an IEEE single.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Cpu => "cpu",
            Target::Cuda => "cuda",
            Target::Metal => "metal",
            Target::Portable => "portable",
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Int8 => "int8",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
        })
    }
}

/// The manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// What the bundle was packed for.
    pub target: Target,
    /// What was asked for; single layers may be finer.
    pub dtype: Dtype,
    /// Where the weights come from, in words.
    pub source: Option<String>,
    /// Under which licence they are.
    pub license: Option<String>,
    /// What kind of control picture the ControlNet was trained on.
    pub control: Option<Control>,
    /// `unet.safetensors`.
    pub unet: Network<UnetConfig>,
    /// `controlnet.safetensors`.
    pub controlnet: Option<Network<ControlNetConfig>>,
    /// Further ControlNets by what they look at: `controlnet_depth.safetensors` and its like.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub controlnets: BTreeMap<Control, Network<ControlNetConfig>>,
    /// What `depth.onnx` wants to be shown, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<Preprocessing>,
    /// `text_encoder.safetensors`.
    pub text_encoder: Network<TextConfig>,
    /// `vae_encoder.onnx` and `vae_decoder.onnx`.
    pub vae: Network<VaeConfig>,
    /// Every file besides this one, by its path in the folder.
    pub files: BTreeMap<String, FileEntry>,
    /// What the quality report measured when the bundle was made.
    pub quality: Option<serde_json::Value>,
}

/// One network.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network<C> {
    /// Its class, as diffusers and transformers name it.
    pub kind: String,
    /// How most of its numbers are stored.
    pub dtype: Dtype,
    /// Its configuration.
    pub config: C,
    /// Number of values.
    pub parameters: u64,
    /// Its linear layers and convolutions by name; empty for an ONNX file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, Layer>,
}

/// A linear layer or a convolution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// `[out, in]` or `[out, in, 3, 3]`, as the model defines it.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: Dtype,
    /// Why it is stored more finely than the network, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// PSNR in dB of the denoised latents when this layer alone is int8, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// The file of a ControlNet that is not the first.
fn further_file(control: Control) -> String {
    format!("{}.safetensors", further_part(control))
}

/// The name of a ControlNet that is not the first.
pub fn further_part(control: Control) -> &'static str {
    match control {
        Control::SoftEdge => "controlnet_softedge",
        Control::Depth => "controlnet_depth",
        Control::Canny => "controlnet_canny",
        Control::LineArt => "controlnet_lineart",
    }
}

impl Manifest {
    /// The ControlNets by name, the first one first.
    pub fn all_controlnets(&self) -> impl Iterator<Item = (&'static str, Control, &Network<ControlNetConfig>)> {
        let first = self.controlnet.iter().map(|net| ("controlnet", self.control.unwrap_or(Control::SoftEdge), net));
        first.chain(self.controlnets.iter().map(|(control, net)| (further_part(*control), *control, net)))
    }

    /// Reads `folder/bundle.json`. The files are not looked at.
    ///
    /// # Errors
    /// If it is missing, not a manifest, of another version, names files outside the folder, or lacks one.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        let length = path.metadata().map_err(Error::io(&path))?.len();
        if length > LARGEST {
            return Err(Error::file(
                &path,
                format!("{length} bytes long, which no manifest is; convert the model again"),
            ));
        }
        Self::parse(&std::fs::read(&path).map_err(Error::io(&path))?).map_err(|what| Error::file(&path, what))
    }

    /// From the text of a manifest.
    ///
    /// # Errors
    /// What is wrong with it, with the remedy.
    pub fn parse(json: &[u8]) -> std::result::Result<Self, String> {
        /// Asked first, so that another version is named instead of its unknown keys.
        #[derive(Deserialize)]
        struct Version {
            format: String,
        }
        let again = "convert the model again with pleinair-quantize";
        let version: Version =
            serde_json::from_slice(json).map_err(|e| format!("not a bundle's manifest: {e}; {again}"))?;
        if version.format != FORMAT {
            let found = &version.format;
            return Err(format!("the bundle's format is {found:?}, this program reads {FORMAT:?}; {again}"));
        }
        let manifest: Manifest =
            serde_json::from_slice(json).map_err(|e| format!("the manifest is damaged: {e}; {again}"))?;
        if let Some(outside) = manifest.files.keys().find(|name| !is_inside(name)) {
            return Err(format!("names the file {outside:?}, which is not inside the bundle; {again}"));
        }
        let networks = if manifest.controlnet.is_some() { &WITH_CONTROLNET[..] } else { &WITH_CONTROLNET[1..] };
        let further = manifest.controlnets.keys().map(|control| further_file(*control));
        match networks
            .iter()
            .map(|name| (*name).to_owned())
            .chain(further)
            .find(|name| !manifest.files.contains_key(name))
        {
            Some(missing) => Err(format!("has no checksum of {missing}, which every such bundle has; {again}")),
            None => Ok(manifest),
        }
    }

    /// Compares length and checksum of every file, several files at a time.
    ///
    /// # Errors
    /// [`Error::Model`] with each file that is missing or not the one that was written.
    pub fn verify(&self, folder: &Path) -> Result<()> {
        let mut largest_first: Vec<_> = self.files.iter().collect();
        largest_first.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.bytes));
        let queue = std::sync::Mutex::new(largest_first.into_iter());
        let problems = std::sync::Mutex::new(vec![]);
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(self.files.len());
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| {
                    let next = || queue.lock().expect("nobody panics with it").next();
                    while let Some((name, entry)) = next() {
                        if let Some(problem) = entry.problem(&folder.join(name)) {
                            problems.lock().expect("nobody panics with it").push(format!("{name}: {problem}"));
                        }
                    }
                });
            }
        });
        let mut problems = problems.into_inner().expect("nobody panicked with it");
        problems.sort();
        if problems.is_empty() { Ok(()) } else { Err(Error::Model { folder: folder.to_path_buf(), problems }) }
    }
}

impl FileEntry {
    /// Length and checksum of a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        let (mut sha, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => {
                    sha.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
        Ok(FileEntry { bytes, sha256: hexadecimal(sha) })
    }

    fn problem(&self, path: &Path) -> Option<String> {
        let remedy = "copy the bundle again or convert the model again";
        match path.metadata() {
            Err(error) => return Some(format!("{error}; {remedy}")),
            Ok(found) if found.len() != self.bytes => {
                return Some(format!("{} bytes long where {} were written; {remedy}", found.len(), self.bytes));
            }
            Ok(_) => {}
        }
        match FileEntry::of(path) {
            Err(error) => Some(format!("{error}; {remedy}")),
            Ok(found) if found != *self => {
                Some(format!("was changed after it was written (its SHA-256 differs); {remedy}"))
            }
            Ok(_) => None,
        }
    }
}

/// A finished checksum as text.
pub fn hexadecimal(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_inside(name: &str) -> bool {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
    !name.is_empty() && !name.contains('\\') && Path::new(name).components().all(plain)
}
