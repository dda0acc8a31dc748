//! Jobs: the queue.

use super::{Store, from_id, from_word, json, now, word};
use crate::Result;
use crate::daemon::job::{Id, Job, Kind, Origin, State, Ticket};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A job that was taken from the queue.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Its id.
    pub id: Id,
    /// Its kind.
    pub kind: Kind,
    /// What is wished, as JSON.
    pub wish: String,
    /// How often it was begun, this time included.
    pub attempts: u32,
}

impl Claim {
    /// What is wished.
    ///
    /// # Errors
    /// If an older version wrote what this one does not understand.
    pub fn wish<T: DeserializeOwned>(&self) -> Result<T> {
        let fault = |fault| crate::Error::Usage(format!("the job was written by another version: {fault}"));
        serde_json::from_str(&self.wish).map_err(fault)
    }
}

impl Store {
    /// Puts a job at the end of the queue, if fewer than `bound` of its kind wait or run; none when it is full.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn enqueue(
        &self,
        id: Id,
        kind: Kind,
        origin: Origin,
        wish: &impl Serialize,
        bound: usize,
    ) -> Result<Option<Ticket>> {
        self.write(|db| {
            let waiting = "SELECT count(*) FROM jobs WHERE kind = ?1 AND state IN ('queued', 'running')";
            let position: usize = db.query_row(waiting, [word(kind)], |row| row.get(0))?;
            if position >= bound {
                return Ok(None);
            }
            let insert =
                "INSERT INTO jobs (id, kind, state, origin, wish, created) VALUES (?1, ?2, 'queued', ?3, ?4, ?5)";
            db.execute(insert, params![id.to_string(), word(kind), word(origin), json(wish), now()])?;
            Ok(Some(Ticket { id, position }))
        })
    }

    /// Takes the first job of a kind from the queue: it runs from now on.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn claim(&self, kind: Kind) -> Result<Option<Claim>> {
        self.write(|db| {
            let first = "UPDATE jobs SET state = 'running', started = ?2, attempts = attempts + 1
                         WHERE id = (SELECT min(id) FROM jobs WHERE kind = ?1 AND state = 'queued')
                         RETURNING id, wish, attempts";
            db.query_row(first, params![word(kind), now()], |row| {
                Ok(Claim { id: from_id(&row.get::<_, String>(0)?)?, kind, wish: row.get(1)?, attempts: row.get(2)? })
            })
            .optional()
        })
    }

    /// Whether a job of a kind waits.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn waits(&self, kind: Kind) -> Result<bool> {
        let some = "SELECT EXISTS (SELECT 1 FROM jobs WHERE kind = ?1 AND state = 'queued')";
        self.read(|db| db.query_row(some, [word(kind)], |row| row.get(0)))
    }

    /// Gives a running job back to the queue, in its old place, as if it had not been begun.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn put_back(&self, id: Id) -> Result<()> {
        let back = "UPDATE jobs SET state = 'queued', attempts = attempts - 1 WHERE id = ?1 AND state = 'running'";
        self.write(|db| db.execute(back, [id.to_string()]).map(drop))
    }

    /// Takes a job back that is not over; its kind and whether it ran, if there was one.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn cancel(&self, id: Id) -> Result<Option<(Kind, bool)>> {
        let now = "SELECT kind, state FROM jobs WHERE id = ?1 AND state IN ('queued', 'running')";
        self.write(|db| {
            let kind_and_state = |row: &Row<'_>| Ok((from_word(row.get(0)?)?, from_word(row.get(1)?)?));
            let found: Option<(Kind, State)> = db.query_row(now, [id.to_string()], kind_and_state).optional()?;
            end(db, id, State::Cancelled, None)?;
            Ok(found.map(|(kind, state)| (kind, state == State::Running)))
        })
    }

    /// After a crash: running jobs wait again; those that were begun `attempts` times have failed.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn recover(&self, attempts: u32) -> Result<()> {
        self.write(|db| {
            let given_up = "UPDATE jobs SET state = 'failed', ended = ?2,
                            error = 'the program ended ' || attempts || ' times while it worked on this'
                            WHERE state = 'running' AND attempts >= ?1";
            db.execute(given_up, params![attempts, now()])?;
            db.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'", []).map(drop)
        })
    }

    /// How far a job is, for the next start and for clients that ask later.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn progress(&self, id: Id, step: usize, steps: usize) -> Result<()> {
        let change = "UPDATE jobs SET step = ?2, steps = ?3 WHERE id = ?1";
        self.write(|db| db.execute(change, params![id.to_string(), step, steps]).map(drop))
    }

    /// Ends a job that is not over; whether there was one.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn end(&self, id: Id, state: State, error: Option<&str>) -> Result<bool> {
        self.write(|db| end(db, id, state, error))
    }

    /// A job.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn job(&self, id: Id) -> Result<Option<Job>> {
        let one = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
        self.read(|db| db.query_row(&one, [id.to_string()], job).optional())
    }

    /// Jobs that wait or run, in order, and the last `over` that are over, the newest first.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn jobs(&self, over: usize) -> Result<Vec<Job>> {
        let waiting = format!("SELECT {COLUMNS} FROM jobs WHERE state IN ('queued', 'running') ORDER BY kind DESC, id");
        let past = format!(
            "SELECT {COLUMNS} FROM jobs WHERE state NOT IN ('queued', 'running') ORDER BY ended DESC, id DESC LIMIT ?1"
        );
        self.read(|db| {
            let mut jobs = db.prepare_cached(&waiting)?.query_map([], job)?.collect::<rusqlite::Result<Vec<_>>>()?;
            jobs.extend(db.prepare_cached(&past)?.query_map([over], job)?.collect::<rusqlite::Result<Vec<_>>>()?);
            Ok(jobs)
        })
    }

    /// Deletes jobs that were over before `before`.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn forget_jobs(&self, before: super::Millis) -> Result<()> {
        self.write(|db| db.execute("DELETE FROM jobs WHERE ended < ?1", [before]).map(drop))
    }
}

pub(super) fn end(db: &Connection, id: Id, state: State, error: Option<&str>) -> rusqlite::Result<bool> {
    let change = "UPDATE jobs SET state = ?2, ended = ?3, error = ?4 WHERE id = ?1 AND state IN ('queued', 'running')";
    Ok(db.execute(change, params![id.to_string(), word(state), now(), error])? > 0)
}

const COLUMNS: &str = "id, kind, state, origin, created, started, ended, attempts, step, steps, error,
    (SELECT count(*) FROM jobs AS before WHERE before.kind = jobs.kind AND before.id < jobs.id
     AND before.state IN ('queued', 'running'))";

fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let state: State = from_word(row.get(2)?)?;
    Ok(Job {
        id: from_id(&row.get::<_, String>(0)?)?,
        kind: from_word(row.get(1)?)?,
        state,
        origin: from_word(row.get(3)?)?,
        created: row.get(4)?,
        started: row.get(5)?,
        ended: row.get(6)?,
        attempts: row.get(7)?,
        step: row.get(8)?,
        steps: row.get(9)?,
        error: row.get(10)?,
        position: if state == State::Queued { row.get(11)? } else { None },
        stage: None,
        loss: None,
        preview: 0,
        seconds_left: None,
    })
}
