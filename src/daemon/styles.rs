//! The styles the daemon paints with: the model's own, learned ones, files that somebody brought, mixes.

use super::job::{Event, Id, PaintingWish, StyleChange, StyleEntry, StyleSource};
use super::store::{self, NewStyle, StyleFile};
use super::{Daemon, MIX};
use crate::painter::StyleChoice;
use crate::style::{Recipe, Style};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

impl Daemon {
    /// All styles, the model's own first.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn styles(&self) -> Result<Vec<StyleEntry>> {
        self.store().styles()
    }

    /// A style by its id or name.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn style(&self, id_or_name: &str) -> Result<Option<StyleEntry>> {
        self.store().style(id_or_name)
    }

    /// A style's vectors, under the name it has now.
    ///
    /// # Errors
    /// If its file is damaged or the disk refuses.
    pub fn style_vectors(&self, entry: &StyleEntry) -> Result<Style> {
        let style = match self.0.shipped.iter().find(|(id, _)| *id == entry.id) {
            Some((_, style)) => style.clone(),
            None => Style::open(self.store().files().style(&entry.id, StyleFile::Vectors))?,
        };
        Ok(Style { token: entry.name.clone(), license: entry.license.clone(), ..style })
    }

    /// The file of a style's picture.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn style_picture(&self, id: &str) -> Result<Option<PathBuf>> {
        let entry = self.store().style(id)?.filter(|entry| entry.has_picture);
        Ok(entry.map(|entry| self.store().files().style(&entry.id, StyleFile::Picture)))
    }

    /// Takes a style in that somebody brought or mixed.
    ///
    /// # Errors
    /// [`Error::Usage`] for one that was learned for another model.
    pub fn add_style(&self, style: &Style, source: StyleSource) -> Result<StyleEntry> {
        store::check_name(&style.token)?;
        let style = &self.fitting(style.clone())?;
        let id = Id::now().to_string();
        style.save(self.store().files().style(&id, StyleFile::Vectors))?;
        let new =
            NewStyle { id: id.clone(), style, source, kept: true, proposals: vec![], has_picture: false, losses: None };
        self.store().add_style(&new)?;
        self.0.events.tell(Event::Styles {});
        self.wake(); // its picture is to be painted
        self.store().style(&id)?.ok_or_else(|| Error::Usage("the style was deleted at once".into()))
    }

    /// Mixes styles stage by stage; rules as [`Recipe`] has them, with ids or names of styles instead of files.
    ///
    /// # Errors
    /// As [`Recipe::parse`] and [`Recipe::mix`], or for a style that is not there.
    pub fn mix(&self, name: &str, rules: &[String]) -> Result<Style> {
        store::check_name(name)?;
        let recipe = Recipe::parse(rules)?;
        let mut styles = vec![];
        for file in recipe.files() {
            let named = file.to_string_lossy();
            let entry = self.store().style(&named)?;
            let entry = entry.ok_or_else(|| Error::Usage(format!("there is no style {named:?} to mix")))?;
            styles.push((file.to_path_buf(), self.style_vectors(&entry)?));
        }
        let initial = match recipe.switches_off() {
            true => {
                let word = crate::style::initial_word(&styles)?;
                let token = self.0.painter.tokenizer().word(word)?;
                Some(self.0.painter.text_encoder().word_vector(token)?.to_vec1::<f32>()?)
            }
            false => None,
        };
        recipe.mix(name, &styles, initial.as_deref())
    }

    /// Changes what is known of a style.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is taken.
    pub fn change_style(&self, id: &str, change: &StyleChange) -> Result<Option<StyleEntry>> {
        if self.store().change_style(id, change)? {
            self.0.events.tell(Event::Styles {});
        }
        self.store().style(id)
    }

    /// Deletes a style; whether there was one. The model's own can only be hidden.
    ///
    /// # Errors
    /// [`Error::Usage`] for one of the model's own.
    pub fn delete_style(&self, id: &str) -> Result<bool> {
        if self.0.shipped.iter().any(|(shipped, _)| shipped == id) {
            return Err(Error::Usage(format!("{id} comes with the model; hide it instead")));
        }
        let gone = self.store().delete_style(id)?;
        if gone {
            self.0.events.tell(Event::Deleted { id: id.to_owned() });
            self.0.events.tell(Event::Styles {});
        }
        Ok(gone)
    }

    /// The choice of each style a wish names: learned ones by id or name, else words.
    pub(super) fn choices(&self, wish: &PaintingWish) -> Result<Vec<StyleChoice>> {
        let mut choices = vec![];
        for given in &wish.request.styles {
            choices.push(match self.store().style(given)? {
                Some(entry) => StyleChoice::Learned(self.fitting(self.style_vectors(&entry)?)?),
                None if given.trim().is_empty() => {
                    return Err(Error::Usage("a style without a name; name one or leave it out".into()));
                }
                None => StyleChoice::Word(given.clone()),
            });
        }
        if !wish.mix.is_empty() {
            choices.push(StyleChoice::Learned(self.fitting(self.mix(MIX, &wish.mix)?)?));
        }
        Ok(choices)
    }

    /// A style that was learned with another model than the one that runs now cannot be painted with.
    pub(super) fn fitting(&self, style: Style) -> Result<Style> {
        let text = self.0.painter.text_encoder();
        style.check_fits(&text.base()?, text.width()).map(|()| style)
    }
}

/// The styles in a model's folder, by the names of their files.
pub(super) fn shipped(model: &Path) -> Result<Vec<(String, Style)>> {
    let folder = model.join("styles");
    let mut styles = vec![];
    if !folder.is_dir() {
        return Ok(styles);
    }
    for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
        let path = entry.map_err(Error::io(&folder))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            let style = Style::open(&path)?;
            styles.push((name.to_owned(), Style { token: name.to_owned(), ..style }));
        }
    }
    styles.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(styles)
}
