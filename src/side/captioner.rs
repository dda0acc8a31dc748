//! What a picture shows, in a few words: BLIP (arXiv 2201.12086) through `candle-transformers`, from a folder as
//! transformers saves it.
//!
//! Greedy, as transformers' `BlipForConditionalGeneration.generate` does by default; `tests/reference/blip.py` made what the
//! tests compare with.

use crate::bundle::pickle::Checkpoint;
use crate::camera::{Filter, Frame};
use crate::{Error, Result};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::blip::{BlipForConditionalGeneration, Config};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;
use tokenizers::decoders::wordpiece::WordPiece as Joined;
use tokenizers::models::wordpiece::WordPiece;

/// The folder in a model's.
pub const FOLDER: &str = "captioner";
/// Its weights as they are written today.
pub const WEIGHTS: &str = "model.safetensors";
/// As transformers' generation has it where nothing is said.
const MOST_TOKENS: usize = 20;
/// No captioner is larger in any direction; a damaged configuration may say anything.
const LARGEST: usize = 1 << 18;
/// Nor has one more layers.
const DEEPEST: usize = 1000;
/// Special tokens of BERT's vocabularies; BLIP's first token follows them.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// CLIP's statistics of the world's pictures, which BLIP took over.
const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

/// A BLIP, in memory until it is dropped.
pub struct Captioner {
    folder: PathBuf,
    blip: BlipForConditionalGeneration,
    tokenizer: Tokenizer,
    /// Of the file, what is tied counted once.
    parameters: u64,
    side: usize,
    mean: [f32; 3],
    std: [f32; 3],
    first: u32,
    last: u32,
    longest: usize,
}

impl fmt::Debug for Captioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Captioner({})", self.folder.display())
    }
}

/// Whether a model's folder has a captioner.
pub fn is_in(model: &Path) -> bool {
    model.join(FOLDER).join("config.json").is_file()
}

/// The file of the weights in a captioner's folder: `model.safetensors`, or else torch's `pytorch_model.bin` where there is
/// one.
pub fn weights_file(folder: &Path) -> PathBuf {
    let (modern, old) = (folder.join(WEIGHTS), folder.join("pytorch_model.bin"));
    if modern.is_file() || !old.is_file() { modern } else { old }
}

impl Captioner {
    /// Loads one from `config.json`, `preprocessor_config.json`, `model.safetensors` or `pytorch_model.bin`, and
    /// `tokenizer.json` or `vocab.txt`. Numbers that the configuration leaves out are those of transformers.
    ///
    /// # Errors
    /// [`Error::File`] when a file is missing, damaged or of another network; [`Error::NotFinite`] for weights that are not
    /// finite.
    pub fn open(folder: &Path) -> Result<Captioner> {
        let settings = read(&folder.join("config.json"))?;
        let network =
            |fault: &dyn fmt::Display| Error::file(&folder.join("config.json"), format!("is no BLIP's: {fault}"));
        if settings["model_type"] != "blip" {
            return Err(network(&format!("its model_type is {}, must be \"blip\"", settings["model_type"])));
        }
        let config = config(&settings).map_err(|fault| network(&fault))?;
        let (text, vision) = (&config.text_config, &config.vision_config);
        let sizes = [
            text.vocab_size,
            text.hidden_size,
            text.intermediate_size,
            text.num_hidden_layers,
            text.max_position_embeddings,
            vision.hidden_size,
            vision.intermediate_size,
            vision.num_hidden_layers,
            vision.image_size,
        ];
        if sizes.iter().any(|size| !(1..=LARGEST).contains(size))
            || text.num_hidden_layers.max(vision.num_hidden_layers) > DEEPEST
        {
            return Err(network(&"its sizes are those of no network"));
        }
        let heads = [(text.hidden_size, text.num_attention_heads), (vision.hidden_size, vision.num_attention_heads)];
        if heads.iter().any(|(size, heads)| *heads == 0 || size % heads != 0) || vision.patch_size == 0 {
            return Err(network(&"its heads do not share the width evenly"));
        }
        let weights = weights(folder)?;
        let mut seen = HashSet::new();
        let parameters = weights.values().filter(|tensor| seen.insert(tensor.id())).map(Tensor::elem_count);
        let parameters = parameters.sum::<usize>() as u64;
        let blip =
            BlipForConditionalGeneration::new(&config, VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu));
        let blip = blip.map_err(|fault| Error::file(folder, format!("the captioner's weights do not fit: {fault}")))?;
        let (mean, std) = statistics(folder, vision.image_size)?;
        let tokenizer = tokenizer(folder)?;
        let token = |name: &str, usual: u32, word: &str| {
            let given = settings["text_config"].get(name).cloned().unwrap_or_else(|| usual.into());
            let id = given.as_u64().and_then(|id| u32::try_from(id).ok());
            let outside = || network(&format!("{name} is {given}, outside a vocabulary of {}", text.vocab_size));
            let id = id.filter(|id| (*id as usize) < text.vocab_size).ok_or_else(outside)?;
            match tokenizer.token_to_id(word) {
                Some(own) if own != id => Err(network(&format!("{name} is {id}, the tokenizer's {word} {own}"))),
                _ => Ok(id),
            }
        };
        Ok(Captioner {
            parameters,
            side: vision.image_size,
            mean,
            std,
            first: token("bos_token_id", 30522, "[DEC]")?,
            last: token("sep_token_id", 102, "[SEP]")?,
            longest: MOST_TOKENS.min(text.max_position_embeddings.saturating_sub(1)),
            folder: folder.to_path_buf(),
            tokenizer,
            blip,
        })
    }

    /// Number of values in its weights.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Width and height S of what the network is shown, in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// What the picture shows, in the network's own words.
    ///
    /// # Errors
    /// If the network does not run, or answers with what is no number.
    pub fn caption(&mut self, frame: &Frame) -> Result<String> {
        let tokens = self.tokens(&self.pixels(frame)?)?;
        self.text(&tokens)
    }

    /// What the network is shown: `[1, 3, S, S]`, resized with a cubic, whatever the picture's shape.
    ///
    /// # Errors
    /// None that a frame could cause.
    pub fn pixels(&self, frame: &Frame) -> Result<Tensor> {
        super::normalised(&frame.resize_with(Filter::Bicubic, self.side, self.side)?, self.mean, self.std)
    }

    /// The vision side's answer `[1, N, D]` to `pixels: [1, 3, S, S]`.
    ///
    /// # Errors
    /// If the network does not run.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.blip.vision_model().forward(pixels)?)
    }

    /// The text side's answers `[L, V]` to `tokens`, each with those before it in sight.
    ///
    /// # Errors
    /// If the network does not run.
    pub fn logits(&mut self, features: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        self.blip.reset_kv_cache();
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        Ok(self.blip.text_decoder().forward(&tokens, features)?.squeeze(0)?)
    }

    /// The likeliest token after those before, from the first to the last, or to the twentieth.
    ///
    /// # Errors
    /// If the network does not run, or answers with what is no number.
    pub fn tokens(&mut self, pixels: &Tensor) -> Result<Vec<u32>> {
        let features = self.features(pixels)?;
        self.blip.reset_kv_cache();
        let mut tokens = vec![self.first];
        while tokens.len() <= self.longest && tokens.last() != Some(&self.last) {
            let newest = Tensor::new(&tokens[tokens.len() - 1..], &Device::Cpu)?.unsqueeze(0)?;
            let answer = self.blip.text_decoder().forward(&newest, &features)?;
            let logits = answer.squeeze(0)?.get(0)?;
            if !logits.sum_all()?.to_scalar::<f32>()?.is_finite() {
                let remedy = "the captioner is damaged; bring it in again".to_owned();
                return Err(Error::NotFinite { what: "a word's likelihood".into(), remedy });
            }
            tokens.push(logits.argmax(D::Minus1)?.to_scalar()?);
        }
        Ok(tokens)
    }

    /// The words of `tokens`, without special ones.
    ///
    /// # Errors
    /// None for tokens of the vocabulary.
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        let words: Vec<u32> = tokens.iter().copied().filter(|token| *token != self.first).collect();
        let fault = |fault| Error::file(&self.folder, format!("the tokenizer does not know its words: {fault}"));
        self.tokenizer.decode(&words, true).map_err(fault)
    }
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|fault| Error::file(path, fault.to_string()))
}

/// What the pictures' preprocessor is said to do: in a file of its own, or since transformers 5 among the processor's; nothing
/// where neither is there.
fn preprocessor(folder: &Path) -> Result<Option<(PathBuf, Value)>> {
    let [own, all] = ["preprocessor_config.json", "processor_config.json"].map(|name| folder.join(name));
    if own.is_file() {
        let said = read(&own)?;
        return Ok(Some((own, said)));
    }
    let said = if all.is_file() { read(&all)?.get("image_processor").cloned() } else { None };
    Ok(said.map(|said| (all, said)))
}

/// Mean and deviation by the preprocessor's file, those of BLIP where it or a key is missing.
///
/// # Errors
/// For a file that is damaged or asks for what this program does not do, by key.
fn statistics(folder: &Path, side: usize) -> Result<([f32; 3], [f32; 3])> {
    let Some((path, shown)) = preprocessor(folder)? else { return Ok((MEAN, STD)) };
    let fault = |key: &str, wanted: &str| Error::file(&path, format!("{key} is {}, must be {wanted}", shown[key]));
    if !shown.is_object() {
        return Err(Error::file(&path, "is no preprocessor's configuration"));
    }
    for (key, wanted) in [("do_resize", true), ("do_rescale", true), ("do_normalize", true), ("do_center_crop", false)]
    {
        if !shown[key].is_null() && shown[key] != wanted {
            return Err(fault(key, &wanted.to_string()));
        }
    }
    if !shown["resample"].is_null() && shown["resample"] != 3 {
        return Err(fault("resample", "3 (bicubic)"));
    }
    let near = |factor: f64| (factor * 255.0 - 1.0).abs() < 1e-6;
    if !shown["rescale_factor"].is_null() && !shown["rescale_factor"].as_f64().is_some_and(near) {
        return Err(fault("rescale_factor", "1/255"));
    }
    // one number in older files; an edge alone would keep the picture's shape
    let size = &shown["size"];
    let fits = |given: &Value| given.as_u64() == Some(side as u64);
    if !(size.is_null() || fits(size) || fits(&size["height"]) && fits(&size["width"])) {
        return Err(fault("size", &format!("{side}x{side}, as the network's")));
    }
    let three = |key: &str, usual: [f32; 3]| match &shown[key] {
        Value::Null => Ok(usual),
        list => serde_json::from_value(list.clone()).map_err(|_| fault(key, "three numbers")),
    };
    let (mean, std) = (three("image_mean", MEAN)?, three("image_std", STD)?);
    if std.iter().any(|std| !(*std > 0.0)) {
        return Err(fault("image_std", "three numbers above 0"));
    }
    Ok((mean, std))
}

/// candle's configuration, which has no defaults, from one that may lean on transformers'.
fn config(settings: &Value) -> serde_json::Result<Config> {
    let with = |usual: Value, name: &str| {
        let mut all: Map<String, Value> = usual.as_object().cloned().unwrap_or_default();
        let given = settings.get(name).and_then(Value::as_object).into_iter().flatten();
        all.extend(given.map(|(key, value)| (key.clone(), value.clone())));
        all
    };
    let usual = json!({
        "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 512, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 384, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    });
    let vision = with(usual, "vision_config");
    let usual = json!({
        "vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
        "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 512, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    });
    let mut text = with(usual, "text_config");
    text.insert("encoder_hidden_size".into(), vision["hidden_size"].clone());
    text.insert("is_decoder".into(), true.into());
    serde_json::from_value(json!({
        "text_config": text, "vision_config": vision, "projection_dim": 512, "image_text_hidden_size": 256,
    }))
}

/// Every tensor by its name; what the files leave out since it is tied, is tied here.
fn weights(folder: &Path) -> Result<HashMap<String, Tensor>> {
    let file = weights_file(folder);
    // buffers that count positions are no weights
    let is_weight = |name: &str| !name.ends_with("position_ids");
    let mut tensors = HashMap::new();
    if file.ends_with(WEIGHTS) {
        let bytes = std::fs::read(&file).map_err(Error::io(&file))?;
        let read = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu);
        tensors = read.map_err(|fault| Error::file(&file, format!("is no safetensors file: {fault}")))?;
        tensors.retain(|name, _| is_weight(name));
    } else {
        let checkpoint = Checkpoint::open(&file)?;
        for (name, place) in checkpoint.tensors()?.into_iter().filter(|(name, _)| is_weight(name)) {
            let values = checkpoint.read_f32(&place)?;
            tensors.insert(name, Tensor::from_vec(values, place.shape(), &Device::Cpu)?);
        }
    }
    for (name, tensor) in &tensors {
        let sum = tensor.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
        if !sum.is_finite() {
            let remedy = "the captioner is damaged; bring it in again".to_owned();
            return Err(Error::NotFinite { what: format!("a weight of {name}"), remedy });
        }
    }
    const HEAD: &str = "text_decoder.cls.predictions";
    let tied = [
        (format!("{HEAD}.decoder.weight"), "text_decoder.bert.embeddings.word_embeddings.weight".to_owned()),
        (format!("{HEAD}.bias"), format!("{HEAD}.decoder.bias")),
    ];
    for (name, to) in tied {
        if let (false, Some(tensor)) = (tensors.contains_key(&name), tensors.get(&to).cloned()) {
            tensors.insert(name, tensor);
        }
    }
    Ok(tensors)
}

fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    let (modern, old) = (folder.join("tokenizer.json"), folder.join("vocab.txt"));
    if modern.is_file() || !old.is_file() {
        return Tokenizer::from_file(&modern).map_err(|fault| Error::file(&modern, fault.to_string()));
    }
    let place = old.to_string_lossy();
    let words = WordPiece::from_file(&place).unk_token("[UNK]".into()).build();
    let mut tokenizer = Tokenizer::new(words.map_err(|fault| Error::file(&old, fault.to_string()))?);
    tokenizer.with_decoder(Some(Joined::new("##".into(), true)));
    let special = SPECIAL.map(|word| tokenizers::AddedToken::from(word, true));
    tokenizer.add_special_tokens(special).map_err(|fault| Error::file(&old, fault.to_string()))?;
    Ok(tokenizer)
}
