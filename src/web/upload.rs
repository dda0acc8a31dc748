//! Forms with files: `multipart/form-data`, read with limits before anything is decoded.

use super::answer::Problem;
use crate::bundle::control::Control;
use crate::camera::Frame;
use axum::body::Bytes;
use axum::extract::multipart::MultipartError;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

/// The most parts of a form: no lesson has more pictures and contexts, and no wish more fields.
const MOST_PARTS: usize = 64;
/// The longest text of a field, in bytes.
const LONGEST_TEXT: usize = 64 << 10;
/// Fields that are files, whatever they are called on the client's disk.
const FILES: [&str; 5] = ["frame", "image", "style", "control_image", "validate_image"];
/// With what it shows behind it: `control_image_depth`.
const CONTROL: &str = "control_image_";
/// Fields that may be given several times.
const LISTS: [&str; 6] = ["styles", "mix", "contexts", "proposals", "rules", "validate_prompts"];
/// Fields whose text is never read as a number.
const TEXTS: [&str; 13] = [
    "prompt",
    "negative",
    "sampler",
    "invert",
    "guidance_form",
    "size",
    "origin",
    "name",
    "init",
    "license",
    "context",
    "stage_lr",
    "learn_stages",
];

/// A form: files in the order they came, and the other fields as one JSON object.
#[derive(Debug, Default, PartialEq)]
pub struct Form {
    /// Name of the field, and contents.
    pub files: Vec<(String, Bytes)>,
    /// The fields of `wish`, if there is one, and those given one by one.
    pub fields: Map<String, Value>,
}

impl Form {
    /// Reads a request's body.
    ///
    /// # Errors
    /// A [`Problem`] for what is no form or is beyond the limits.
    pub async fn read(request: Request) -> Result<Form, Problem> {
        let multipart = Multipart::from_request(request, &()).await;
        let mut multipart = multipart.map_err(|why| Problem::new(why.status(), why.body_text()))?;
        let mut form = Form::default();
        for _ in 0..MOST_PARTS {
            let Some(field) = multipart.next_field().await.map_err(fault)? else { return Ok(form) };
            let name = field.name().unwrap_or_default().to_owned();
            let bytes = field.bytes().await.map_err(fault)?;
            if FILES.contains(&name.as_str()) || name.starts_with(CONTROL) {
                form.files.push((name, bytes));
            } else {
                form.take(&name, &bytes)?;
            }
        }
        Err(Problem::bad(format!("the form has more than {MOST_PARTS} parts")))
    }

    /// Reads a form that is in memory, without a server around it.
    ///
    /// # Errors
    /// As [`Form::read`].
    pub fn from_bytes(boundary: &str, body: &[u8]) -> Result<Form, Problem> {
        let kind = format!("multipart/form-data; boundary={boundary}");
        let request = Request::builder().header(CONTENT_TYPE, kind).body(Bytes::copy_from_slice(body).into());
        let request = request.map_err(|why| Problem::bad(why.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(crate::Error::io(std::path::Path::new("a runtime")))?;
        runtime.block_on(Form::read(request))
    }

    /// The files of a field.
    pub fn files(&self, name: &str) -> impl Iterator<Item = &Bytes> {
        self.files.iter().filter(move |(field, _)| field == name).map(|(_, bytes)| bytes)
    }

    /// The control pictures, and what each shows where its field says so.
    ///
    /// # Errors
    /// A [`Problem`] for one of a kind that there is not.
    pub fn controls(&self) -> Result<Vec<(Option<Control>, &Bytes)>, Problem> {
        let mut found = vec![];
        for (name, bytes) in &self.files {
            match name.strip_prefix(CONTROL) {
                Some(kind) => found.push((Some(kind.parse().map_err(Problem::wish)?), bytes)),
                None if name == "control_image" => found.push((None, bytes)),
                None => {}
            }
        }
        Ok(found)
    }

    fn take(&mut self, name: &str, bytes: &[u8]) -> Result<(), Problem> {
        if bytes.len() > LONGEST_TEXT {
            return Err(Problem::bad(format!("the field {name:?} is longer than {LONGEST_TEXT} bytes")));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Problem::bad(format!("the field {name:?} is not UTF-8")))?;
        if name == "wish" {
            let wish: Map<String, Value> =
                serde_json::from_str(text).map_err(|why| Problem::bad(format!("the wish is no JSON object: {why}")))?;
            self.fields.extend(wish);
            return Ok(());
        }
        let name = if name == "context" { "contexts" } else { name };
        if LISTS.contains(&name) {
            match self.fields.entry(name).or_insert_with(|| Value::Array(vec![])) {
                Value::Array(list) => list.push(text.into()),
                _ => {
                    return Err(Problem::bad(format!("the field {name:?} is a list in one place and none in another")));
                }
            }
        } else {
            let value = match TEXTS.contains(&name) {
                true => text.into(),
                false => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
            };
            self.fields.insert(name.to_owned(), value);
        }
        Ok(())
    }
}

fn fault(why: MultipartError) -> Problem {
    Problem::new(why.status(), why.body_text())
}

/// Decodes a picture that somebody sent, if it has no more than `megapixels`.
///
/// # Errors
/// A [`Problem`] with status 413 for one that is too large, 422 for what is no picture.
pub fn picture(bytes: &[u8], megapixels: u64) -> Result<Frame, Problem> {
    let most = megapixels.saturating_mul(1_000_000);
    let size = image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().ok();
    if let Some((width, height)) = size.and_then(|reader| reader.into_dimensions().ok())
        && u64::from(width) * u64::from(height) > most
    {
        let error = format!("the picture has {width}x{height} pixels; at most {megapixels} megapixels are taken");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error));
    }
    Ok(Frame::from_bytes(bytes, most)?)
}
