//! Style files of other programs: the reference code's and diffusers' `.bin` (pickles of torch), diffusers' `.safetensors`,
//! A1111's `.pt` and PNG cards. None of them says which text encoder it is for; the width is all there is to go by.

use super::{Style, card};
use crate::bundle::pickle::{Checkpoint, Dict, TensorPlace, Value};
use crate::bundle::values;
use crate::error::Error;
use safetensors::SafeTensors;
use std::io::Cursor;
use std::path::Path;

/// How a zip file and a pickle of protocol 2 or later begin.
const ZIP: &[u8] = b"PK";
const PICKLE: u8 = 0x80;
/// The dictionary in A1111's files that holds the vectors, and the one key it has.
const PARAMETERS: &str = "string_to_param";
/// Names that stand for no style's name: A1111's, and the one of files that ComfyUI's users convert.
const NAMELESS: [&str; 2] = ["*", "emb_params"];

/// A tensor of a file.
pub(super) struct Named {
    /// As the file calls it.
    pub name: String,
    /// Of one or two dimensions.
    pub shape: Vec<usize>,
    /// Row by row.
    pub numbers: Vec<f32>,
}

/// What a file says besides the vectors.
#[derive(Default)]
pub(super) struct Facts {
    /// The style's name; where there is none the tensors' or the file's counts.
    pub name: Option<String>,
    /// Steps it was learned for.
    pub steps: Option<u64>,
}

/// Reads a pickle of torch or a PNG card; none for what begins like neither, which may be safetensors.
pub(super) fn read(bytes: &[u8], name: &str) -> Option<Result<Style, String>> {
    if bytes.starts_with(card::PNG) {
        return Some(card::read(bytes, name));
    }
    // the length of a safetensors header begins with a byte of any value, but the sixth is 0 in all that is no pickle
    let old = matches!(bytes, [PICKLE, 2..=5, _, _, _, sixth, ..] if *sixth != 0);
    let pickle = bytes.starts_with(ZIP) || old;
    pickle.then(|| from_pickle(bytes, name))
}

/// From safetensors that this program did not write.
pub(super) fn from_safetensors(tensors: &SafeTensors<'_>, name: &str) -> Result<Style, String> {
    let mut named = vec![];
    for (tensor, view) in tensors.iter() {
        vectors_in(tensor, view.shape())?;
        let numbers = values::from_bytes(view.dtype(), view.data());
        let numbers = numbers.ok_or_else(|| wrong_numbers(tensor, &view.dtype().to_string()))?;
        named.push(Named { name: tensor.to_owned(), shape: view.shape().to_vec(), numbers });
    }
    named.sort_by(|a, b| a.name.cmp(&b.name));
    style(named, Facts::default(), name)
}

fn wrong_numbers(name: &str, dtype: &str) -> String {
    format!("has {name:?} in {dtype}, where a style has {}", values::SUPPORTED)
}

fn from_pickle(bytes: &[u8], name: &str) -> Result<Style, String> {
    let what = |error: Error| match error {
        Error::File { what, .. } => format!("is not a style file: {what}"),
        other => format!("is not a style file: {other}"),
    };
    let checkpoint = Checkpoint::from_file(Path::new(name), Cursor::new(bytes)).map_err(what)?;
    let root = match checkpoint.root() {
        Value::Dict(root) => root,
        Value::Unknown(other) => {
            return Err(format!("is not a style file: it holds {other}, which is no tensor and is not run"));
        }
        _ => return Err("is not a style file: torch saved no dictionary in it".to_owned()),
    };
    let number = |key: &str| match root.get(key) {
        Some(Value::Int(number)) => u64::try_from(number).ok(),
        _ => None,
    };
    let (vectors, facts) = match root.get(PARAMETERS) {
        Some(Value::Dict(parameters)) => {
            let own = match root.get("name") {
                Some(Value::Str(own)) => Some(own.to_owned()),
                _ => None,
            };
            (parameters, Facts { name: own, steps: number("step") })
        }
        Some(_) => return Err(format!("has a {PARAMETERS} that is no dictionary of vectors; export it again")),
        None => (root, Facts::default()),
    };
    let tensors = places(vectors)?;
    let mut named = vec![];
    for (tensor, place) in tensors {
        vectors_in(&tensor, place.shape())?;
        let read = checkpoint.read_f32_from(Cursor::new(bytes), place);
        let numbers = read.map_err(|_| wrong_numbers(&tensor, &place.dtype().to_string()))?;
        named.push(Named { name: tensor, shape: place.shape().to_vec(), numbers });
    }
    style(named, facts, name)
}

/// The tensors of a dictionary; nothing else may be in it.
fn places<'a>(vectors: Dict<'a>) -> Result<Vec<(String, &'a TensorPlace)>, String> {
    let place = |(key, value): (Value<'a>, Value<'a>)| match (key, value) {
        (Value::Str(key), Value::Tensor(place)) => Ok((key.to_owned(), place)),
        (Value::Str(key), Value::Unknown(other)) => {
            Err(format!("has {other} under {key:?}, which is no tensor and is not run; it is not a style file"))
        }
        (Value::Str(key), _) => Err(format!("has something else than a tensor under {key:?}; is it a model?")),
        _ => Err("has a key that is no name; it is not a style file".to_owned()),
    };
    vectors.iter().map(place).collect()
}

/// How many vectors a tensor of this shape is: one for `[D]`, n for `[n, D]`.
///
/// # Errors
/// For other shapes.
pub(super) fn vectors_in(name: &str, shape: &[usize]) -> Result<usize, String> {
    match *shape {
        [_] => Ok(1),
        [several, _] => Ok(several),
        _ => Err(format!("has {name:?} in the shape {shape:?}, a style's vectors have one dimension or two")),
    }
}

/// Puts a style together: stages `<token>-T0` …, or a single tensor, which is a style of one stage.
pub(super) fn style(mut tensors: Vec<Named>, facts: Facts, file: &str) -> Result<Style, String> {
    if tensors.is_empty() {
        return Err("is not a style file: there is no vector in it".to_owned());
    }
    if tensors.iter().any(|tensor| tensor.name == "clip_g") {
        return Err("was learned for SDXL, which has two text encoders; only styles of one can be used".to_owned());
    }
    let token = match staged(&mut tensors)? {
        Some(token) => token,
        None if tensors.len() == 1 => tensors[0].name.clone(),
        None => {
            let names: Vec<_> = tensors.iter().take(3).map(|tensor| format!("{:?}", tensor.name)).collect();
            let names = names.join(", ");
            return Err(format!("has {} tensors that are no stages of one style ({names} …)", tensors.len()));
        }
    };
    let several = vectors_in(&tensors[0].name, &tensors[0].shape)?;
    if let Some(other) = tensors.iter().find(|tensor| vectors_in(&tensor.name, &tensor.shape) != Ok(several)) {
        let shape = &other.shape;
        return Err(format!("has {:?} in the shape {shape:?}, but {several} vectors in the first stage", other.name));
    }
    let usable = |name: &String| !name.trim().is_empty() && !name.contains(['{', '}']) && !NAMELESS.contains(&&**name);
    let name = facts.name.filter(usable).or(Some(token).filter(usable)).unwrap_or_else(|| file.to_owned());
    let style = Style {
        token: name,
        vectors_per_stage: several,
        vectors: tensors.into_iter().map(|tensor| tensor.numbers).collect(),
        steps: facts.steps,
        ..Style::default()
    };
    style.fault().map_or(Ok(style), Err)
}

/// Puts tensors called `<token>-T0` … in order and says the token; none for other names.
fn staged(tensors: &mut [Named]) -> Result<Option<String>, String> {
    let parse = |name: &str| {
        let (token, stage) = name.rsplit_once("-T")?;
        let number: usize = stage.parse().ok()?;
        (stage == number.to_string()).then(|| (token.to_owned(), number))
    };
    let Some(mut stages) = tensors.iter().map(|tensor| parse(&tensor.name)).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let token = stages[0].0.clone();
    if let Some((other, _)) = stages.iter().find(|(other, _)| *other != token) {
        return Err(format!("has stages of two styles, {token:?} and {other:?}; keep each in a file of its own"));
    }
    tensors.sort_by_key(|tensor| parse(&tensor.name).map(|(_, stage)| stage));
    stages.sort();
    if let Some((missing, _)) = stages.iter().enumerate().find(|(wanted, (_, stage))| wanted != stage) {
        let highest = stages[stages.len() - 1].1;
        return Err(format!("lacks the vectors of stage {missing} of 0 to {highest}; export or learn it again"));
    }
    Ok(Some(token))
}
