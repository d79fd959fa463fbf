//! The SQLite index: questions over all runs, answered without reading every recording again.
//!
//! It is derived. A damaged, locked or too new database costs time, never an answer: [`Index::open_or_in_memory`]
//! then reads the recordings into memory instead.
//!
//! | table    | a row is             | key            |
//! |----------|----------------------|----------------|
//! | `runs`   | one run              | `id`           |
//! | `stages` | one stage of a run   | `run`, `name`  |
//! | `splats` | one kernel report    | –              |
//!
//! `runs.mark` is length and modification time of the run's `events.jsonl`; a run whose mark did not change is not
//! read again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_model::outcome::Outcome;
use kiln_model::{RunId, StageName};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, TransactionBehavior, params};
use serde::Serialize;

use crate::HistoryError;
use crate::folder::{RunFolder, run_ids};
use crate::standing::{Past, Standing, WINDOW};
use crate::summary::{RunState, RunSummary};

/// Each step takes the database from one version (its place in this list) to the next. Steps are only ever
/// added.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE runs (
        id             TEXT PRIMARY KEY,
        mark           TEXT NOT NULL,
        started_ms     INTEGER NOT NULL,
        took_ms        INTEGER NOT NULL,
        scenario       TEXT NOT NULL,
        kernel_release TEXT NOT NULL,
        kernel_digest  TEXT NOT NULL,
        state          TEXT NOT NULL,
        word           TEXT NOT NULL,
        passed         INTEGER NOT NULL,
        failed         INTEGER NOT NULL,
        stages         INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE stages (
        run      TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        name     TEXT NOT NULL,
        outcome  TEXT,
        took_ms  INTEGER NOT NULL,
        PRIMARY KEY (run, name)
    ) WITHOUT ROWID;
    CREATE INDEX stages_by_name ON stages (name, run);
    CREATE TABLE splats (
        run       TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        stage     TEXT,
        kind      TEXT NOT NULL,
        signature TEXT NOT NULL
    );
    CREATE INDEX splats_by_run ON splats (run);
    CREATE INDEX splats_by_signature ON splats (signature);
"];

/// How long to wait for another process that writes the index.
const PATIENCE: Duration = Duration::from_secs(2);

/// An open index over the runs below one folder.
#[derive(Debug)]
pub struct Index {
    db: Connection,
    path: PathBuf,
    runs: PathBuf,
}

/// What a refresh did.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// Runs read, because they are new or changed.
    pub read: usize,
    /// Runs forgotten, because their folder is gone.
    pub forgotten: usize,
    /// Runs that could not be read.
    pub broken: Vec<(RunId, HistoryError)>,
}

/// Which runs to list. The default is all of them.
#[derive(Clone, Debug, Default)]
pub struct RunFilter {
    /// Only of this scenario.
    pub scenario: Option<String>,
    /// Only with this word: a verdict, `running` or `interrupted`.
    pub word: Option<String>,
    /// Only on kernels whose release or digest begins so.
    pub kernel: Option<String>,
    /// Only the newest so many.
    pub limit: Option<u32>,
}

/// A line of the list of runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunRow {
    /// Which.
    pub id: RunId,
    /// When it began, in milliseconds since 1970.
    pub started: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The scenario.
    pub scenario: String,
    /// The kernel's release.
    pub kernel: String,
    /// Verdict, `running` or `interrupted`.
    pub word: String,
    /// Stages that passed.
    pub passed: u32,
    /// Stages that count against the kernel.
    pub failed: u32,
    /// Stages in all.
    pub stages: u32,
}

impl Index {
    /// Opens (or makes) the database at `path` over the runs below `runs`. Call [`refresh`](Index::refresh) before
    /// asking anything.
    pub fn open(path: &Path, runs: &Path) -> Result<Index, HistoryError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(HistoryError::io("create", folder))?;
        }
        let db = Connection::open(path).map_err(failure("open", path))?;
        Index::prepare(db, path, runs)
    }

    /// The same without a file: everything is read from the recordings, and forgotten at the end.
    pub fn in_memory(runs: &Path) -> Result<Index, HistoryError> {
        let path = Path::new(":memory:");
        let db = Connection::open_in_memory().map_err(failure("open", path))?;
        let mut index = Index::prepare(db, path, runs)?;
        index.refresh()?;
        Ok(index)
    }

    /// A refreshed index: from the file if that works. A damaged file is put aside as `….damaged` and made again; if it
    /// cannot be used at all, the index is built in memory. What went wrong is given to `trouble`.
    pub fn open_or_in_memory(
        path: &Path,
        runs: &Path,
        mut trouble: impl FnMut(&HistoryError),
    ) -> Result<Index, HistoryError> {
        let open = || {
            let mut index = Index::open(path, runs)?;
            index.refresh()?;
            Ok(index)
        };
        open()
            .or_else(|error: HistoryError| {
                trouble(&error);
                if !error.is_damaged_index() {
                    return Err(error);
                }
                put_aside(path)?;
                open()
            })
            .or_else(|_| Index::in_memory(runs))
    }

    fn prepare(mut db: Connection, path: &Path, runs: &Path) -> Result<Index, HistoryError> {
        let fail = |act| failure(act, path);
        db.busy_timeout(PATIENCE).map_err(fail("open"))?;
        let version = user_version(&db).map_err(fail("read"))?;
        let knows = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        if version > knows {
            return Err(HistoryError::IndexTooNew { path: path.to_owned(), version, knows });
        }
        if version < knows {
            let step = db.transaction_with_behavior(TransactionBehavior::Immediate);
            let step = step.map_err(fail("migrate"))?;
            // Another process may have migrated it while this one waited.
            let version = user_version(&step).map_err(fail("read"))?;
            let done = usize::try_from(version).unwrap_or(0);
            for migration in MIGRATIONS.iter().skip(done) {
                step.execute_batch(migration).map_err(fail("migrate"))?;
            }
            step.pragma_update(None, "user_version", knows).map_err(fail("migrate"))?;
            step.commit().map_err(fail("migrate"))?;
        }
        db.pragma_update(None, "foreign_keys", true).map_err(fail("open"))?;
        Ok(Index { db, path: path.to_owned(), runs: runs.to_owned() })
    }

    /// Brings the index up to the recordings: reads what is new or changed, forgets what is gone.
    pub fn refresh(&mut self) -> Result<Refreshed, HistoryError> {
        self.bring_up_to_date(false)
    }

    /// Forgets everything and reads every recording again.
    pub fn rebuild(&mut self) -> Result<Refreshed, HistoryError> {
        self.bring_up_to_date(true)
    }

    fn bring_up_to_date(&mut self, from_nothing: bool) -> Result<Refreshed, HistoryError> {
        let path = self.path.clone();
        let fail = |act| failure(act, &path);
        let on_disk = run_ids(&self.runs)?;
        let mut done = Refreshed::default();
        let step = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fail("refresh"))?;
        if from_nothing {
            step.execute("DELETE FROM runs", []).map_err(fail("empty"))?;
        }
        let known: std::collections::HashMap<String, (String, String)> = {
            let mut query =
                step.prepare("SELECT id, mark, state FROM runs").map_err(fail("read"))?;
            let rows = query
                .query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))
                .map_err(fail("read"))?;
            rows.collect::<Result<_, _>>().map_err(fail("read"))?
        };
        for id in &on_disk {
            let folder = RunFolder::of(&self.runs, id);
            let mark = mark(&folder);
            let unchanged = known
                .get(id.as_str())
                .is_some_and(|(old, state)| *old == mark && state != RunState::Running.word());
            if unchanged {
                continue;
            }
            match RunSummary::read(&folder) {
                Ok(run) => {
                    insert(&step, &run, id, &mark).map_err(fail("write"))?;
                    done.read += 1;
                }
                Err(error) => {
                    step.execute("DELETE FROM runs WHERE id = ?1", [id.as_str()])
                        .map_err(fail("write"))?;
                    done.broken.push((id.clone(), error));
                }
            }
        }
        let there: std::collections::HashSet<&str> = on_disk.iter().map(RunId::as_str).collect();
        for id in known.keys().filter(|id| !there.contains(id.as_str())) {
            step.execute("DELETE FROM runs WHERE id = ?1", [id]).map_err(fail("write"))?;
            done.forgotten += 1;
        }
        step.commit().map_err(fail("refresh"))?;
        Ok(done)
    }

    /// The runs that match, newest first.
    pub fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, HistoryError> {
        let mut query = self
            .db
            .prepare_cached(
                "SELECT id, started_ms, took_ms, scenario, kernel_release, word, passed, failed, stages FROM runs
                 WHERE (?1 IS NULL OR scenario = ?1) AND (?2 IS NULL OR word = ?2)
                   AND (?3 IS NULL OR substr(kernel_release, 1, length(?3)) = ?3
                                   OR substr(kernel_digest, 1, length(?3)) = ?3)
                 ORDER BY id DESC LIMIT ?4",
            )
            .map_err(self.failure("read"))?;
        let limit = filter.limit.map_or(-1, i64::from);
        let rows = query
            .query_map(params![filter.scenario, filter.word, filter.kernel, limit], run_row)
            .map_err(self.failure("read"))?;
        rows.collect::<Result<_, _>>().map_err(self.failure("read"))
    }

    /// The run a person means: an id, any unique beginning of one, `last`, or `last~1` for the one before.
    pub fn resolve(&self, given: &str) -> Result<RunId, HistoryError> {
        let query = |sql: &str, value: &str, limit: u64| -> Result<Vec<String>, HistoryError> {
            let mut query = self.db.prepare_cached(sql).map_err(self.failure("read"))?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = query
                .query_map(params![value, limit], |row| row.get(0))
                .map_err(self.failure("read"))?;
            rows.collect::<Result<_, _>>().map_err(self.failure("read"))
        };
        let found = match steps_back(given) {
            Some(back) => query(
                "SELECT id FROM runs WHERE ?1 IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?2",
                given,
                back,
            )?,
            None => query(
                "SELECT id FROM runs WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id DESC LIMIT ?2",
                given,
                5,
            )?,
        };
        match &found[..] {
            [one] if !given.is_empty() => one.parse().map_err(|_| self.unreadable(one)),
            [] | [_] => Err(HistoryError::NoSuchRun { given: given.into(), known: self.count()? }),
            _ => Err(HistoryError::Ambiguous { given: given.into(), candidates: found }),
        }
    }

    /// The runs of a stage, newest first: up to and with `up_to`, or all.
    pub fn past(
        &self,
        scenario: &str,
        stage: &StageName,
        up_to: Option<&RunId>,
        limit: usize,
    ) -> Result<Vec<Past>, HistoryError> {
        let mut query = self
            .db
            .prepare_cached(
                "SELECT runs.id, kernel_digest, outcome, stages.took_ms
                 FROM stages JOIN runs ON runs.id = stages.run
                 WHERE name = ?1 AND scenario = ?2 AND outcome IS NOT NULL
                   AND (?3 IS NULL OR runs.id <= ?3)
                 ORDER BY runs.id DESC LIMIT ?4",
            )
            .map_err(self.failure("read"))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = query
            .query_map(params![stage.as_str(), scenario, up_to.map(RunId::as_str), limit], |row| {
                past(row, stage)
            })
            .map_err(self.failure("read"))?;
        rows.collect::<Result<_, _>>().map_err(self.failure("read"))
    }

    /// Where a stage stands after a run of its scenario.
    pub fn standing(&self, run: &RunSummary, stage: &StageName) -> Result<Standing, HistoryError> {
        // Outcomes that say nothing are passed over, so more than a window of them is fetched.
        let past = self.past(&run.scenario, stage, Some(&run.id), WINDOW * 4)?;
        Ok(Standing::judge(&past))
    }

    /// How long a stage took when it passed, in runs of the scenario before `before`; newest first.
    pub fn durations(
        &self,
        scenario: &str,
        stage: &StageName,
        before: &RunId,
    ) -> Result<Vec<u64>, HistoryError> {
        let past = self.past(scenario, stage, Some(before), WINDOW)?;
        let passed = past.iter().filter(|p| p.run != *before && p.outcome == Outcome::Passed);
        Ok(passed.map(|past| past.took_ms).collect())
    }

    fn count(&self) -> Result<u64, HistoryError> {
        let count: i64 = self
            .db
            .query_row("SELECT count(*) FROM runs", [], |row| row.get(0))
            .map_err(self.failure("read"))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    fn failure(&self, act: &'static str) -> impl FnOnce(rusqlite::Error) -> HistoryError {
        failure(act, &self.path)
    }

    fn unreadable(&self, id: &str) -> HistoryError {
        self.failure("read")(rusqlite::Error::InvalidColumnName(id.to_owned()))
    }
}

impl HistoryError {
    fn is_damaged_index(&self) -> bool {
        let HistoryError::Index { source, .. } = self else { return false };
        match source {
            rusqlite::Error::SqliteFailure(error, _) => {
                matches!(error.code, ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
                    // "no such table": the file is some other program's database, or half of ours.
                    || error.extended_code == rusqlite::ffi::SQLITE_ERROR
            }
            rusqlite::Error::SqlInputError { .. }
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..) => true,
            _ => false,
        }
    }
}

/// `last` is 0, `last~3` is 3.
fn steps_back(given: &str) -> Option<u64> {
    match given.strip_prefix("last")? {
        "" => Some(0),
        "~" => Some(1),
        rest => rest.strip_prefix('~')?.parse().ok(),
    }
}

fn failure(act: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> HistoryError {
    let path = path.to_owned();
    move |source| HistoryError::Index { act, path, source }
}

fn user_version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn put_aside(path: &Path) -> Result<(), HistoryError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    fs::rename(path, &aside).map_err(HistoryError::io("put aside", path))?;
    for suffix in ["-journal", "-wal", "-shm"] {
        let mut companion = path.as_os_str().to_owned();
        companion.push(suffix);
        let _ = fs::remove_file(companion); // usually not there
    }
    Ok(())
}

fn mark(folder: &RunFolder) -> String {
    match fs::metadata(folder.events()) {
        Ok(meta) => format!("{} {}.{:09}", meta.len(), meta.mtime(), meta.mtime_nsec()),
        Err(_) => String::new(),
    }
}

fn stored(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn counted(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn insert(db: &Connection, run: &RunSummary, id: &RunId, mark: &str) -> rusqlite::Result<()> {
    db.execute("DELETE FROM runs WHERE id = ?1", [id.as_str()])?;
    let failed = run.stages.iter().filter(|stage| stage.failed()).count();
    db.prepare_cached("INSERT INTO runs VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)")?
        .execute(params![
            id.as_str(),
            mark,
            stored(run.started),
            stored(run.took_ms),
            run.scenario,
            run.kernel.release,
            run.kernel.digest,
            run.state.word(),
            run.word(),
            counted(run.passed().0),
            counted(failed),
            counted(run.stages.len()),
        ])?;
    let mut splat_row = db.prepare_cached("INSERT INTO splats VALUES (?1,?2,?3,?4)")?;
    for splat in &run.splats {
        let none: Option<&str> = None;
        splat_row.execute(params![id.as_str(), none, splat.kind.word(), splat.signature])?;
    }
    let mut stage_row = db.prepare_cached("INSERT INTO stages VALUES (?1,?2,?3,?4,?5)")?;
    for (position, stage) in run.stages.iter().enumerate() {
        let outcome = stage.outcome.as_ref().and_then(|o| serde_json::to_string(o).ok());
        stage_row.execute(params![
            id.as_str(),
            counted(position),
            stage.name.as_str(),
            outcome,
            stored(stage.took_ms),
        ])?;
        for splat in &stage.splats {
            splat_row.execute(params![
                id.as_str(),
                stage.name.as_str(),
                splat.kind.word(),
                splat.signature
            ])?;
        }
    }
    Ok(())
}

fn conversion(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn id_of(row: &Row<'_>) -> rusqlite::Result<RunId> {
    row.get::<_, String>(0)?.parse().map_err(|error| conversion(0, error))
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn small(row: &Row<'_>, column: usize) -> rusqlite::Result<u32> {
    Ok(u32::try_from(row.get::<_, i64>(column)?).unwrap_or(u32::MAX))
}

fn run_row(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    Ok(RunRow {
        id: id_of(row)?,
        started: number(row, 1)?,
        took_ms: number(row, 2)?,
        scenario: row.get(3)?,
        kernel: row.get(4)?,
        word: row.get(5)?,
        passed: small(row, 6)?,
        failed: small(row, 7)?,
        stages: small(row, 8)?,
    })
}

fn past(row: &Row<'_>, stage: &StageName) -> rusqlite::Result<Past> {
    let outcome: String = row.get(2)?;
    Ok(Past {
        run: id_of(row)?,
        stage: stage.clone(),
        kernel: row.get(1)?,
        outcome: serde_json::from_str(&outcome).map_err(|error| conversion(2, error))?,
        took_ms: number(row, 3)?,
    })
}

/// How often a signature was seen before, for "is this bug known".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeenSplat {
    /// In so many runs.
    pub runs: u32,
    /// The first of them.
    pub first: RunId,
}

impl Index {
    /// In which runs up to `up_to` a kernel report of this signature was seen.
    pub fn seen_splat(
        &self,
        signature: &str,
        up_to: &RunId,
    ) -> Result<Option<SeenSplat>, HistoryError> {
        self.db
            .query_row(
                "SELECT min(run), count(DISTINCT run) FROM splats
                 WHERE signature = ?1 AND run <= ?2 HAVING count(*) > 0",
                params![signature, up_to.as_str()],
                |row| Ok(SeenSplat { first: id_of(row)?, runs: small(row, 1)? }),
            )
            .optional()
            .map_err(self.failure("read"))
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
