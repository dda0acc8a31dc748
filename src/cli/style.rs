//! Styles as the command line names them.

use pleinair::bundle::write::check_writable;
use pleinair::painter::StyleChoice;
use pleinair::prompt::Tokenizer;
use pleinair::style::Style;
use pleinair::{Error, Result};
use std::path::{Path, PathBuf};

/// Where a model keeps the styles that ship with it.
pub(super) fn shipped(bundle: &Path) -> PathBuf {
    bundle.join("styles")
}

/// The file of that name, or else the model's own style of that name; none for what can only be words.
///
/// # Errors
/// [`Error::File`] for what looks like a file but is none, and for a picture.
pub(super) fn file(given: &str, bundle: Option<&Path>) -> Result<Option<PathBuf>> {
    let path = PathBuf::from(given);
    if path.is_file() {
        // a PNG may be a card with a style in it; what is in the file is for the one who opens it
        return if is_picture(&path) { Err(unlearned(&path)) } else { Ok(Some(path)) };
    }
    let in_bundle = bundle.map(|bundle| shipped(bundle).join(format!("{given}.safetensors")));
    if let Some(file) = in_bundle.filter(|file| path.components().count() == 1 && file.is_file()) {
        return Ok(Some(file));
    }
    if given.contains(std::path::MAIN_SEPARATOR)
        || path.extension().is_some_and(|e| ["safetensors", "bin", "pt", "png"].iter().any(|known| e == *known))
    {
        return Err(Error::file(&path, "there is no such style file; `pleinair styles list` shows those of the model"));
    }
    Ok(None)
}

/// By its name alone; what is in the file is for the one who opens it.
fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let known = ["bmp", "gif", "jpeg", "jpg", "tif", "tiff", "webp"];
    extension.is_some_and(|extension| known.contains(&extension.as_str()))
}

fn unlearned(picture: &Path) -> Error {
    let shown = picture.display();
    let what =
        format!("is a picture, not a style; learn it first: pleinair learn --image {shown} --out STYLE.safetensors");
    Error::file(picture, what)
}

/// A style for a prompt, and what to tell about the choice.
///
/// # Errors
/// If a file is missing or damaged, or there is no word.
pub(super) fn choose(given: &str, bundle: &Path, tokenizer: &Tokenizer) -> Result<(StyleChoice, String)> {
    if given.trim().is_empty() {
        return Err(Error::Usage("--style is empty; give a style file, a style of the model, or words".into()));
    }
    if let Some(file) = file(given, Some(bundle))? {
        let style = Style::open(&file)?;
        let told = format!("style {given}: {}, {} stages", file.display(), style.stages());
        return Ok((StyleChoice::Learned(style), told));
    }
    let mut broken = vec![];
    for word in given.split_whitespace() {
        if tokenizer.encode(word)?.len() != 1 {
            broken.push(word);
        }
    }
    let mut told = format!("style {given}: no file and no style of the model is called this; taken as words");
    if !broken.is_empty() {
        told += &format!(", of which the model does not know {}", broken.join(", "));
    }
    Ok((StyleChoice::Word(given.to_owned()), told))
}

/// The name of the style that is to be written to `out`: as given, else as the file.
///
/// # Errors
/// [`Error::Usage`] for a name that no prompt could use, or a file that is not called `.safetensors`; otherwise as
/// [`check_writable`].
pub(super) fn name_for(out: &Path, given: Option<&str>) -> Result<String> {
    if out.extension().is_none_or(|extension| extension != "safetensors") {
        let what = format!("{}: styles are saved as .safetensors; name such a file", out.display());
        return Err(Error::Usage(what));
    }
    check_writable(out)?;
    let stem = out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    checked_name(given.unwrap_or(&stem))
}

/// A name that prompts can use.
///
/// # Errors
/// [`Error::Usage`] for others.
pub(super) fn checked_name(name: &str) -> Result<String> {
    let name = name.trim();
    if name.is_empty() || name.contains(['{', '}']) || name.contains(char::is_control) {
        return Err(Error::Usage(format!("{name:?} is no name for a style; give a plain word with --name")));
    }
    Ok(name.to_owned())
}
