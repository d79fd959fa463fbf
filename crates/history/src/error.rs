//! Everything that can go wrong with what happened.

use std::io;
use std::path::PathBuf;

/// Why a recording, the index, a page or a publication could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file system said no.
    #[error("cannot {act} {path}")]
    Io {
        /// What was tried: `read`, `create`.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The disk filled up under a recording. What was recorded before is safe; the reserved space
    /// lets the run's ending be written.
    #[error(
        "no space left to record into {path}: the run's finished stages are kept, its terminals are not recorded any more (free some space, or move KILN_HOME to a larger disk)"
    )]
    Full {
        /// The file that could not grow.
        path: PathBuf,
        /// `ENOSPC` or its kin.
        source: io::Error,
    },
    /// A folder of this name is there already.
    #[error("{path} exists already: a recording is never continued")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds no `run-started`.
    #[error("{path} holds no run: its events do not begin with run-started")]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// A later Kiln wrote it.
    #[error(
        "{path} was written with schema {schema}, this build reads up to {reads_up_to}: use a newer kiln"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        schema: u32,
        /// Ours.
        reads_up_to: u32,
    },
    /// Nothing of that name.
    #[error("no run {given:?} among {known} recorded runs (see `kiln runs`)")]
    NoSuchRun {
        /// What was asked for.
        given: String,
        /// How many runs there are.
        known: u64,
    },
    /// More than one of that name.
    #[error("{given:?} names more than one run: {}", .candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        given: String,
        /// Up to five that match.
        candidates: Vec<String>,
    },
    /// The stage left no terminal behind.
    #[error("{stage} of run {run} has no recording: it printed nothing, or never started")]
    NoRecording {
        /// The run.
        run: String,
        /// The stage.
        stage: String,
    },
    /// Not an asciicast.
    #[error("{path} is no asciicast this build can play: line {line}: {found}")]
    Cast {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong there.
        found: String,
    },
    /// SQLite said no. The index is derived: `kiln history rebuild` makes it again.
    #[error("cannot {act} the index {path} (`kiln history rebuild` makes it again)")]
    Index {
        /// What was tried.
        act: &'static str,
        /// The database.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
    /// A later Kiln wrote the index.
    #[error(
        "the index {path} has version {version}, this build knows {knows}: use a newer kiln, or delete it"
    )]
    IndexTooNew {
        /// The database.
        path: PathBuf,
        /// Its version.
        version: i64,
        /// Ours.
        knows: i64,
    },
    /// JUnit could not be written.
    #[error("cannot write run {run} as JUnit")]
    Junit {
        /// The run.
        run: String,
        /// What it said.
        source: quick_junit::SerializeError,
    },
    /// There is no git.
    #[error("cannot run git, which publishing needs (on Debian: apt install git)")]
    NoGit {
        /// What the system said.
        source: io::Error,
    },
    /// Git said no.
    #[error("cannot {act}: git said: {said}")]
    Git {
        /// What was tried: `push to …`.
        act: String,
        /// The end of its standard error.
        said: String,
    },
    /// Somebody else pushed, again and again.
    #[error(
        "cannot push to branch {branch}: others pushed first, {tries} times in a row; try again"
    )]
    Outrun {
        /// The branch.
        branch: String,
        /// How often it was tried.
        tries: u32,
    },
    /// A branch name git would not take.
    #[error("{given:?} cannot name a branch")]
    Branch {
        /// The name.
        given: String,
    },
    /// There is no site to publish.
    #[error("{path} holds no report: run `kiln report` first")]
    NoSite {
        /// The folder.
        path: PathBuf,
    },
}

impl HistoryError {
    /// Puts act and path around an error of the file system: `.map_err(HistoryError::io("read", path))`.
    pub(crate) fn io(
        act: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> HistoryError {
        let path = path.into();
        move |source| HistoryError::Io { act, path, source }
    }
}
