//! Finished paintings.

use super::{Store, from_id, from_json, from_word, json, now, word};
use crate::Result;
use crate::bundle::control::Control;
use crate::daemon::job::{Id, Millis, Origin, Painting, State};
use rusqlite::{OptionalExtension, Row, params};
use serde_json::Value;

/// A painting whose files are written and whole.
#[derive(Debug)]
pub struct NewPainting {
    /// Of its job.
    pub id: Id,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Of all its files.
    pub bytes: u64,
    /// Of the PNG.
    pub sha256: String,
    /// The prompt, styles by name.
    pub prompt: String,
    /// The styles' names.
    pub styles: Vec<String>,
    /// Who asked.
    pub origin: Origin,
    /// Whether it is in the gallery.
    pub kept: bool,
    /// Whether there is a photograph to compare it with.
    pub has_content: bool,
    /// What its control pictures show.
    pub controls: Vec<Control>,
    /// How it was painted.
    pub recipe: Value,
}

/// Which paintings.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Only those before this one.
    pub before: Option<Id>,
    /// At most so many.
    pub limit: usize,
    /// Only those with a style of this name.
    pub style: Option<String>,
    /// Only those whose prompt holds this.
    pub text: Option<String>,
}

impl Store {
    /// In one transaction: the painting is there and its job finished. False if the job was cancelled meanwhile; nothing is
    /// changed then.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn finish_painting(&self, new: &NewPainting) -> Result<bool> {
        self.write(|db| {
            if !super::jobs::end(db, new.id, State::Finished, None)? {
                return Ok(false);
            }
            let insert =
                "INSERT INTO paintings (id, created, width, height, bytes, sha256, prompt, styles, origin, kept,
                          content, recipe, controls) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
            let (styles, recipe) = (json(&new.styles), new.recipe.to_string());
            let values = params![
                new.id.to_string(),
                now(),
                new.width,
                new.height,
                new.bytes,
                new.sha256,
                new.prompt,
                styles,
                word(new.origin),
                new.kept,
                new.has_content,
                recipe,
                json(&new.controls)
            ];
            db.execute(insert, values)?;
            Ok(true)
        })
    }

    /// A painting.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn painting(&self, id: Id) -> Result<Option<Painting>> {
        let one = format!("SELECT {COLUMNS} FROM paintings WHERE id = ?1");
        self.read(|db| db.query_row(&one, [id.to_string()], painting).optional())
    }

    /// Paintings of the gallery, the newest first.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn paintings(&self, page: &Page) -> Result<Vec<Painting>> {
        let some = format!(
            "SELECT {COLUMNS} FROM paintings WHERE kept AND (?1 IS NULL OR id < ?1)
             AND (?3 IS NULL OR EXISTS (SELECT 1 FROM json_each(styles) WHERE value = ?3))
             AND (?4 IS NULL OR instr(lower(prompt), lower(?4))) ORDER BY id DESC LIMIT ?2"
        );
        self.read(|db| {
            let before = page.before.map(|id| id.to_string());
            let values = params![before, page.limit, page.style, page.text];
            db.prepare_cached(&some)?.query_map(values, painting)?.collect()
        })
    }

    /// How many paintings there are in the gallery.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn painting_count(&self) -> Result<u64> {
        self.read(|db| db.query_row("SELECT count(*) FROM paintings WHERE kept", [], |row| row.get(0)))
    }

    /// Counts a print, unless there were `most` already; whether it was counted.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn count_print(&self, id: Id, most: u32) -> Result<bool> {
        let change = "UPDATE paintings SET prints = prints + 1 WHERE id = ?1 AND prints < ?2";
        self.write(|db| Ok(db.execute(change, params![id.to_string(), most])? > 0))
    }

    /// Deletes a painting, row and files; whether there was one.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn delete_painting(&self, id: Id) -> Result<bool> {
        let gone = self.write(|db| db.execute("DELETE FROM paintings WHERE id = ?1", [id.to_string()]))? > 0;
        if gone {
            self.files.forget_painting(id);
        }
        Ok(gone)
    }

    /// The paintings that are to go: those not kept and older than `passing`, those older than `oldest`, and the oldest of
    /// those that are too many or too large together.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn superfluous(
        &self,
        passing: Millis,
        oldest: Option<Millis>,
        count: Option<u64>,
        bytes: Option<u64>,
    ) -> Result<Vec<Id>> {
        let some = "SELECT id FROM (SELECT id, created, kept,
                        row_number() OVER newest AS place, sum(bytes) OVER newest AS together
                        FROM paintings WINDOW newest AS (ORDER BY id DESC))
                    WHERE (NOT kept AND created < ?1) OR created < ?2 OR place > ?3 OR (together > ?4 AND place > 1)";
        self.read(|db| {
            let mut found = db.prepare_cached(some)?;
            let ids = found.query_map(params![passing, oldest, count, bytes], |row| row.get::<_, String>(0))?;
            ids.map(|id| from_id(&id?)).collect()
        })
    }
}

const COLUMNS: &str =
    "id, created, width, height, bytes, sha256, prompt, styles, origin, kept, content, prints, recipe, controls";

fn painting(row: &Row<'_>) -> rusqlite::Result<Painting> {
    Ok(Painting {
        id: from_id(&row.get::<_, String>(0)?)?,
        created: row.get(1)?,
        width: row.get(2)?,
        height: row.get(3)?,
        bytes: row.get(4)?,
        sha256: row.get(5)?,
        prompt: row.get(6)?,
        styles: from_json(&row.get::<_, String>(7)?)?,
        origin: from_word(row.get(8)?)?,
        kept: row.get(9)?,
        has_content: row.get(10)?,
        prints: row.get(11)?,
        recipe: from_json(&row.get::<_, String>(12)?)?,
        controls: from_json(&row.get::<_, String>(13)?)?,
    })
}
