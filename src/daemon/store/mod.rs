//! What must survive a power cut: jobs, paintings and styles in SQLite (WAL, synced at every commit), their pictures as
//! files beside it.
//!
//! The order of writing makes a half-done thing invisible: files first, whole and synced, then the row in one
//! transaction; on deletion the row first. What has no row is swept away at the next start.

mod files;
mod jobs;
mod paintings;
mod styles;

pub(super) use files::write;
pub use files::{Files, PaintingFile, StyleFile};
pub use jobs::Claim;
pub use paintings::{NewPainting, Page};
pub use styles::NewStyle;
pub(super) use styles::check_name;

use super::job::{Id, Millis};
use crate::{Error, Result};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Each entry brings the database from the version of its index to the next.
const MIGRATIONS: [&str; 3] = [include_str!("schema.sql"), include_str!("settings.sql"), include_str!("controls.sql")];
/// How long one connection waits for the other.
const BUSY: Duration = Duration::from_secs(10);

/// Pages a connection keeps in memory, in KiB by SQLite's minus sign: a few hundred rows are all that is asked for often.
const CACHE: i32 = -512;

/// The database and the files beside it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    writer: Mutex<Connection>,
    /// In WAL mode readers do not wait for the writer.
    reader: Mutex<Connection>,
    files: Files,
    /// Held while the daemon runs: two daemons in one folder would sweep each other's files away.
    _lock: std::fs::File,
}

impl Store {
    /// Opens the store in a folder, which is made if it is missing, and puts it in order: files without a row go.
    ///
    /// # Errors
    /// If another daemon uses the folder, the database is damaged or from a newer version, or the disk refuses.
    pub fn open(folder: &Path) -> Result<Store> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let lock = lock(folder)?;
        let files = Files::new(folder)?;
        let path = folder.join("pleinair.db");
        let fault = |fault: rusqlite::Error| Error::file(&path, format!("the database cannot be used: {fault}"));
        let mut writer = Connection::open(&path).map_err(fault)?;
        writer.busy_timeout(BUSY).map_err(fault)?;
        writer.pragma_update(None, "journal_mode", "wal").map_err(fault)?;
        writer.pragma_update(None, "synchronous", "full").map_err(fault)?;
        writer.pragma_update(None, "foreign_keys", true).map_err(fault)?;
        writer.pragma_update(None, "cache_size", CACHE).map_err(fault)?;
        check_whole(&writer, &path)?;
        migrate(&mut writer, &path)?;
        let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(fault)?;
        reader.busy_timeout(BUSY).map_err(fault)?;
        reader.pragma_update(None, "cache_size", CACHE).map_err(fault)?;
        let store = Store { writer: writer.into(), reader: reader.into(), files, path, _lock: lock };
        store.sweep()?;
        Ok(store)
    }

    /// The files beside the database.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Bytes of all paintings' files.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn painting_bytes(&self) -> Result<u64> {
        self.read(|db| db.query_row("SELECT coalesce(sum(bytes), 0) FROM paintings", [], |row| row.get(0)))
    }

    /// What was kept under a name.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn setting(&self, name: &str) -> Result<Option<String>> {
        let found =
            |db: &Connection| db.query_row("SELECT value FROM settings WHERE name = ?", [name], |row| row.get(0));
        self.read(|db| found(db).optional())
    }

    /// Keeps a value under a name.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn set_setting(&self, name: &str, value: &str) -> Result<()> {
        self.write(|db| {
            db.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", [name, value]).map(drop)
        })
    }

    fn sweep(&self) -> Result<()> {
        let ids = |table: &str| {
            self.read(|db| {
                let mut found = db.prepare(&format!("SELECT id FROM {table}"))?;
                found.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
            })
        };
        let unfinished = self.read(|db| {
            let mut found = db.prepare("SELECT id FROM jobs WHERE state IN ('queued', 'running')")?;
            found.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
        })?;
        self.files.sweep(&ids("paintings")?, &ids("styles")?, &unfinished)
    }

    fn read<T>(&self, ask: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        ask(&guard(&self.reader)).map_err(|fault| self.fault(fault))
    }

    /// All of it or, on an error, nothing.
    fn write<T>(&self, change: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut writer = guard(&self.writer);
        let all = || {
            let transaction = writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let answer = change(&transaction)?;
            transaction.commit()?;
            Ok(answer)
        };
        all().map_err(|fault| self.fault(fault))
    }

    /// As of a file: the disk is full, read-only or broken.
    fn fault(&self, fault: rusqlite::Error) -> Error {
        Error::io(&self.path)(std::io::Error::other(fault))
    }
}

/// A panic of another thread leaves no half-done transaction behind: SQLite rolls it back.
fn guard(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock(folder: &Path) -> Result<std::fs::File> {
    let path = folder.join("lock");
    let file = std::fs::File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::file(folder, "is in use by another pleinair; end it, or give this one another data folder"))
        }
        Err(std::fs::TryLockError::Error(fault)) => Err(Error::io(&path)(fault)),
    }
}

fn check_whole(db: &Connection, path: &Path) -> Result<()> {
    let answer: rusqlite::Result<String> = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    match answer {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(answer) => Err(Error::file(path, format!("the database is damaged ({answer}); restore it from a copy"))),
        Err(fault) => Err(Error::file(path, format!("is no database or is damaged ({fault}); restore it from a copy"))),
    }
}

fn migrate(db: &mut Connection, path: &Path) -> Result<()> {
    let fault =
        |fault: rusqlite::Error| Error::file(path, format!("the database cannot be brought up to date: {fault}"));
    let version: usize = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(fault)?;
    if version > MIGRATIONS.len() {
        return Err(Error::file(path, "was written by a newer pleinair; use that one, or another data folder"));
    }
    for (from, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let step = db.transaction().map_err(fault)?;
        step.execute_batch(migration).map_err(fault)?;
        step.pragma_update(None, "user_version", from + 1).map_err(fault)?;
        step.commit().map_err(fault)?;
    }
    Ok(())
}

/// Now.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// A value of an enum of words, such as `queued`, as it is stored: what serde makes of it, without the quotes.
fn word<T: serde::Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("not stored as a word: {other:?}"),
    }
}

/// The value of a stored word.
fn from_word<T: serde::de::DeserializeOwned>(word: String) -> rusqlite::Result<T> {
    from_json(&serde_json::Value::String(word).to_string())
}

/// The value of stored JSON.
fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    let fault = |fault| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(fault));
    serde_json::from_str(text).map_err(fault)
}

/// A stored id.
fn from_id(text: &str) -> rusqlite::Result<Id> {
    let fault = |fault| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(fault));
    text.parse().map_err(fault)
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("these types have no keys that JSON cannot hold")
}
