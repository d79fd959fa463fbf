//! One run's folder: where everything lies in it, and whether somebody still writes to it
//! (`docs/formats/recording.md`).
//!
//! A run is `running` while its writer holds an exclusive `flock` on `lock`; the kernel drops that lock however
//! the writer dies, so a run without lock and without `run-ended` was interrupted.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use kiln_model::{RunId, StageName};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::HistoryError;

/// The folder of one run. Holding one proves nothing about the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder of a run below the folder of all runs.
    pub fn of(runs: &Path, run: &RunId) -> RunFolder {
        RunFolder { path: runs.join(run.as_str()) }
    }

    /// The folder at this path.
    pub fn at(path: impl Into<PathBuf>) -> RunFolder {
        RunFolder { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All events but output, one JSON object per line.
    pub fn events(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// Locked by the writer for as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Space held back so that the ending of a run can be written to a full disk.
    pub fn reserve(&self) -> PathBuf {
        self.path.join("reserve")
    }

    /// What belongs to one stage.
    pub fn stage(&self, stage: &StageName) -> PathBuf {
        self.path.join("stages").join(stage.as_str())
    }

    /// The stage's terminal, as asciicast version 2.
    pub fn cast(&self, stage: &StageName) -> PathBuf {
        self.stage(stage).join("terminal.cast")
    }

    /// What the kernel logged during the stage; written by the job.
    pub fn dmesg(&self, stage: &StageName) -> PathBuf {
        self.stage(stage).join("dmesg.txt")
    }

    /// The console of one machine, whole; written by the job.
    pub fn console(&self, vm: u32) -> PathBuf {
        self.path.join("machines").join(vm.to_string()).join("console.log")
    }

    /// A file an event names, if the name stays inside the folder and leads to a regular file without
    /// passing a symbolic link. A guest chooses these names, so none of them is trusted.
    pub fn inside(&self, relative: &str) -> Option<PathBuf> {
        let mut path = self.path.clone();
        let mut kind = None;
        for part in Path::new(relative).components() {
            match part {
                Component::Normal(name) => path.push(name),
                Component::CurDir => continue,
                _ => return None,
            }
            let found = fs::symlink_metadata(&path).ok()?.file_type();
            if found.is_symlink() {
                return None;
            }
            kind = Some(found);
        }
        kind.is_some_and(|kind| kind.is_file()).then_some(path)
    }

    /// Whether a live process writes to it. A folder without a lock file has no writer.
    pub fn has_writer(&self) -> Result<bool, HistoryError> {
        let path = self.lock();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(HistoryError::Io { act: "open", path, source }),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(HistoryError::Io { act: "probe", path, source: error.into() }),
        }
    }
}

/// The runs below a folder, oldest first. Names that are no run ids are somebody else's; a folder that is
/// not there holds no runs.
pub fn run_ids(runs: &Path) -> Result<Vec<RunId>, HistoryError> {
    let entries = match fs::read_dir(runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(HistoryError::Io { act: "list", path: runs.into(), source }),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(HistoryError::io("list", runs))?;
        if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            ids.push(id);
        }
    }
    ids.sort();
    // A name tells the second. Of runs that began in one, the filesystem knows which came first.
    let second = |id: &RunId| id.to_string().get(..15).map(str::to_owned);
    for together in ids.chunk_by_mut(|a, b| second(a) == second(b)).filter(|some| some.len() > 1) {
        together.sort_by_cached_key(|id| {
            let found = fs::metadata(runs.join(id.to_string()));
            found.and_then(|found| found.created().or_else(|_| found.modified())).ok()
        });
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_runs_that_began_in_one_second_the_one_that_came_first_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["20261121-142530-ffff", "20261121-142530-0000", "20261121-142529-8000"];
        let made_at = |name: &str| {
            let found = fs::metadata(folder.path().join(name)).unwrap();
            found.created().or_else(|_| found.modified()).unwrap()
        };
        for name in names {
            fs::create_dir(folder.path().join(name)).unwrap();
            // Filesystems tell times as a coarse clock ticks: until what is made now is later.
            let mut is_over = false;
            while !is_over {
                fs::create_dir(folder.path().join("now")).unwrap();
                is_over = made_at("now") > made_at(name);
                fs::remove_dir(folder.path().join("now")).unwrap();
            }
        }
        let ids = run_ids(folder.path()).unwrap();
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        assert_eq!(ids, [names[2], names[0], names[1]]);
    }

    #[test]
    fn a_name_from_a_guest_never_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::at(dir.path().join("run"));
        fs::create_dir_all(folder.path().join("stages/a")).unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        fs::write(folder.path().join("stages/a/ok"), "x").unwrap();
        std::os::unix::fs::symlink("../..", folder.path().join("stages/up")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("stages/a/link")).unwrap();
        assert!(folder.inside("stages/a/ok").is_some());
        assert!(folder.inside("./stages/a/ok").is_some());
        let bad =
            ["../secret", "/etc/passwd", "stages/up/secret", "stages/a/link", "stages/a", "", "."];
        for name in bad {
            assert_eq!(folder.inside(name), None, "{name:?}");
        }
    }

    #[test]
    fn only_run_ids_are_runs() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["20260102-000000-0000", "20260101-000000-ffff", "lost+found", "index.db"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let ids: Vec<String> =
            run_ids(dir.path()).unwrap().iter().map(|id| id.to_string()).collect();
        assert_eq!(ids, ["20260101-000000-ffff", "20260102-000000-0000"]);
        assert!(run_ids(&dir.path().join("nowhere")).unwrap().is_empty());
    }
}
