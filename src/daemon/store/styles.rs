//! Styles: those that ship with the model, and those that came.

use super::{Store, from_json, from_word, json, now, word};
use crate::daemon::job::{Id, State, StyleChange, StyleEntry, StyleSource};
use crate::style::Style;
use crate::{Error, Result};
use rusqlite::{OptionalExtension, Row, Transaction, params};

/// A style whose files are written and whole.
#[derive(Debug)]
pub struct NewStyle<'a> {
    /// Its id.
    pub id: String,
    /// The vectors and what they say of themselves; the token is the wished name.
    pub style: &'a Style,
    /// Where it comes from.
    pub source: StyleSource,
    /// Whether it stays.
    pub kept: bool,
    /// What was proposed as contexts.
    pub proposals: Vec<String>,
    /// Whether there is a picture of it.
    pub has_picture: bool,
    /// Validation losses before and after learning.
    pub losses: Option<(f32, f32)>,
}

impl Store {
    /// A style is there. A name that is taken gets a number.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn add_style(&self, new: &NewStyle<'_>) -> Result<()> {
        self.write(|db| insert(db, new))
    }

    /// In one transaction: the style is there and its lesson finished. False if it was cancelled meanwhile.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn finish_lesson(&self, id: Id, new: &NewStyle<'_>) -> Result<bool> {
        self.write(|db| {
            if !super::jobs::end(db, id, State::Finished, None)? {
                return Ok(false);
            }
            insert(db, new)?;
            Ok(true)
        })
    }

    /// Makes the table know the model's own styles, and no longer those of another model.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn set_shipped(&self, styles: &[(String, Style)]) -> Result<()> {
        let known = self.styles()?;
        let gone =
            |entry: &&StyleEntry| entry.source == StyleSource::Shipped && !styles.iter().any(|(id, _)| *id == entry.id);
        for entry in known.iter().filter(gone) {
            self.delete_style(&entry.id)?;
        }
        for (id, style) in styles.iter().filter(|(id, _)| !known.iter().any(|entry| entry.id == *id)) {
            self.add_style(&NewStyle {
                id: id.clone(),
                style,
                source: StyleSource::Shipped,
                kept: true,
                proposals: vec![],
                has_picture: false,
                losses: None,
            })?;
        }
        Ok(())
    }

    /// All styles, the oldest first.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn styles(&self) -> Result<Vec<StyleEntry>> {
        let all = format!("SELECT {COLUMNS} FROM styles ORDER BY source = 'shipped' DESC, created, name");
        self.read(|db| db.prepare_cached(&all)?.query_map([], style)?.collect())
    }

    /// A style by its id, or else by its name.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn style(&self, id_or_name: &str) -> Result<Option<StyleEntry>> {
        let one = format!("SELECT {COLUMNS} FROM styles WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1");
        self.read(|db| db.query_row(&one, [id_or_name], style).optional())
    }

    /// Changes a style; whether there is one.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is taken or none.
    pub fn change_style(&self, id: &str, change: &StyleChange) -> Result<bool> {
        if let Some(name) = &change.name {
            check_name(name)?;
            if self.style(name)?.is_some_and(|other| other.id != id) {
                return Err(Error::Usage(format!("another style is called {name:?} already; choose another name")));
            }
        }
        let update =
            "UPDATE styles SET name = coalesce(?2, name), kept = coalesce(?3, kept), shown = coalesce(?4, shown),
                      license = coalesce(?5, license) WHERE id = ?1";
        self.write(|db| {
            let name = change.name.as_deref().map(str::trim);
            Ok(db.execute(update, params![id, name, change.kept, change.shown, change.license])? > 0)
        })
    }

    /// There is a picture of the style now.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn style_has_picture(&self, id: &str) -> Result<()> {
        self.write(|db| db.execute("UPDATE styles SET picture = 1 WHERE id = ?1", [id]).map(drop))
    }

    /// Deletes a style, row and files; whether there was one.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn delete_style(&self, id: &str) -> Result<bool> {
        let gone = self.write(|db| db.execute("DELETE FROM styles WHERE id = ?1", [id]))? > 0;
        if gone {
            self.files.forget_style(id);
        }
        Ok(gone)
    }
}

/// A name that prompts and people can use.
///
/// # Errors
/// [`Error::Usage`] for one they cannot.
pub(in super::super) fn check_name(name: &str) -> Result<()> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > 64 || name.contains(['{', '}']) || name.contains(char::is_control) {
        return Err(Error::Usage(format!("{name:?} is no name for a style; give a plain word of up to 64 letters")));
    }
    Ok(())
}

fn insert(db: &Transaction<'_>, new: &NewStyle<'_>) -> rusqlite::Result<()> {
    let taken = |name: &str| {
        db.query_row("SELECT EXISTS (SELECT 1 FROM styles WHERE name = ?1)", [name], |row| row.get::<_, bool>(0))
    };
    let wished = &new.style.token;
    let mut name = wished.clone();
    for number in 2.. {
        if !taken(&name)? {
            break;
        }
        name = format!("{wished} {number}");
    }
    let insert =
        "INSERT INTO styles (id, name, source, created, kept, shown, stages, contexts, proposals, license, mix,
                  picture, loss_before, loss_after) VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
    let (before, after) = new.losses.unzip();
    let (contexts, proposals) = (json(&new.style.context), json(&new.proposals));
    let values = params![
        new.id,
        name,
        word(new.source),
        now(),
        new.kept,
        new.style.stages(),
        contexts,
        proposals,
        new.style.license,
        new.style.mix,
        new.has_picture,
        before,
        after
    ];
    db.execute(insert, values).map(drop)
}

const COLUMNS: &str = "id, name, source, created, kept, shown, stages, contexts, proposals, license, mix, picture,
    loss_before, loss_after";

fn style(row: &Row<'_>) -> rusqlite::Result<StyleEntry> {
    Ok(StyleEntry {
        id: row.get(0)?,
        name: row.get(1)?,
        source: from_word(row.get(2)?)?,
        created: row.get(3)?,
        kept: row.get(4)?,
        shown: row.get(5)?,
        stages: row.get(6)?,
        contexts: from_json(&row.get::<_, String>(7)?)?,
        proposals: from_json(&row.get::<_, String>(8)?)?,
        license: row.get(9)?,
        mix: row.get(10)?,
        has_picture: row.get(11)?,
        loss_before: row.get(12)?,
        loss_after: row.get(13)?,
    })
}
