//! Writes a run's recording while it happens.
//!
//! Every event is one line, written at once and never changed. A stage's ending is on the disk before
//! [`Recorder::record`] returns, so what finished is kept whatever happens next.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use kiln_model::event::{Event, Happening, NoteLevel, OutputSource};
use kiln_model::{RunId, StageName};
use rustix::fs::{FallocateFlags, FlockOperation};

use crate::HistoryError;
use crate::append::AppendFile;
use crate::cast::{STAGE_TERMINAL, header_line, output_line};
use crate::folder::RunFolder;
use crate::lines::LONGEST_LINE;

/// Space held back for the ending of a run on a full disk.
const RESERVE_BYTES: u64 = 1 << 20;

/// The most one stage's terminal recording may take.
pub const LARGEST_CAST: u64 = 8 << 20;

/// Writes one run's folder. Dropping it gives up the lock: without a `run-ended` the run then counts as interrupted.
#[derive(Debug)]
pub struct Recorder {
    folder: RunFolder,
    events: AppendFile,
    terminals: HashMap<StageName, Terminal>,
    /// The disk was full once; from then on only what decides a run is written.
    full: bool,
    lock: File,
    #[cfg(test)]
    space: Option<crate::append::Space>,
}

/// A stage's terminal recording.
#[derive(Debug)]
struct Terminal {
    began: u64,
    last: u64,
    ended_in_return: bool,
    /// None before the first output, and after the bound was reached.
    cast: Option<AppendFile>,
    closed: bool,
}

impl Recorder {
    /// Makes the folder `runs/RUN` (and `runs` itself), locks it and reserves space for the ending. A failure leaves
    /// no folder behind.
    pub fn create(runs: &Path, run: &RunId) -> Result<Recorder, HistoryError> {
        fs::create_dir_all(runs).map_err(HistoryError::io("create", runs))?;
        let folder = RunFolder::of(runs, run);
        fs::create_dir(folder.path()).map_err(|source| {
            if source.kind() == std::io::ErrorKind::AlreadyExists {
                HistoryError::Exists { path: folder.path().to_owned() }
            } else {
                crate::append::failure("create", folder.path(), source)
            }
        })?;
        match Recorder::begin(folder.clone()) {
            Ok(recorder) => Ok(recorder),
            Err(error) => {
                // Nothing was recorded, so nothing is left that would count as a damaged run.
                let _ = fs::remove_dir_all(folder.path());
                Err(error)
            }
        }
    }

    fn begin(folder: RunFolder) -> Result<Recorder, HistoryError> {
        let lock = lock(&folder)?;
        reserve(&folder)?;
        let events = AppendFile::create(folder.events())?;
        Ok(Recorder {
            folder,
            events,
            terminals: HashMap::new(),
            full: false,
            lock,
            #[cfg(test)]
            space: None,
        })
    }

    /// The run's folder.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Records one event. Terminal output goes to the stage's cast; console output is the job's to keep.
    ///
    /// [`HistoryError::Full`] is returned once, when the disk fills up: the event itself, and every event after it that
    /// is not output, is still written, from the reserved space. It comes again only if even that is used up.
    pub fn record(&mut self, event: &Event) -> Result<(), HistoryError> {
        if let Happening::Output { stage, source, text } = &event.event {
            return match (stage, source) {
                (Some(stage), OutputSource::Terminal) if !self.full => {
                    self.terminal(event.at, stage, text)
                }
                _ => Ok(()),
            };
        }
        let reported = match self.append(event) {
            Err(error @ HistoryError::Full { .. }) if !self.full => {
                self.release_the_reserve();
                self.append(event)?;
                Err(error)
            }
            other => other,
        };
        match &event.event {
            Happening::StageStarted { stage, .. } => {
                self.terminals.insert(stage.clone(), Terminal::new(event.at));
            }
            Happening::StageEnded { stage, .. } => {
                self.terminals.remove(stage);
                self.events.sync()?;
            }
            Happening::RunEnded { .. } => {
                self.events.sync()?;
                let _ = fs::remove_file(self.folder.reserve()); // not there after a full disk
            }
            _ => {}
        }
        reported
    }

    fn append(&mut self, event: &Event) -> Result<(), HistoryError> {
        let path = self.folder.events();
        let json = |event: &Event| {
            serde_json::to_string(event).map_err(|error| HistoryError::Io {
                act: "write",
                path,
                source: error.into(),
            })
        };
        let mut line = json(event)?;
        if line.len() >= LONGEST_LINE {
            // Readers skip such a line, so it would be lost without a word.
            let note = Happening::Note {
                level: NoteLevel::Warning,
                text: format!("an event of {} bytes was too long to be recorded", line.len()),
            };
            line = serde_json::to_string(&Event { at: event.at, event: note }).unwrap_or_default();
        }
        line.push('\n');
        self.events.append(line.as_bytes())
    }

    fn terminal(&mut self, at: u64, stage: &StageName, text: &str) -> Result<(), HistoryError> {
        let terminal = self.terminals.entry(stage.clone()).or_insert_with(|| Terminal::new(at));
        if terminal.closed || text.is_empty() {
            return Ok(());
        }
        let text = terminal.with_returns(text);
        terminal.last = at.saturating_sub(terminal.began).max(terminal.last);
        if terminal.cast.is_none() {
            let folder = self.folder.stage(stage);
            fs::create_dir_all(&folder)
                .map_err(|source| crate::append::failure("create", &folder, source))
                .or_else(|error| self.give_up_terminals(error))?;
            if self.full {
                return Ok(());
            }
        }
        let result = self.append_to_cast(stage, &text);
        match result {
            Err(error @ HistoryError::Full { .. }) => self.give_up_terminals(error),
            other => other,
        }
    }

    fn append_to_cast(&mut self, stage: &StageName, text: &str) -> Result<(), HistoryError> {
        let Some(terminal) = self.terminals.get_mut(stage) else { return Ok(()) };
        let cast = match &mut terminal.cast {
            Some(cast) => cast,
            none => {
                let created = AppendFile::create(self.folder.cast(stage))?;
                #[cfg(test)]
                let created = {
                    let mut created = created;
                    if let Some(space) = &self.space {
                        created.limit(space.clone());
                    }
                    created
                };
                let cast = none.insert(created);
                let header = header_line(STAGE_TERMINAL, terminal.began, stage.as_str());
                cast.append(header.as_bytes())?;
                cast
            }
        };
        let line = output_line(terminal.last, text);
        let len = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if line.len() >= LONGEST_LINE || cast.len().saturating_add(len) > LARGEST_CAST {
            let end = format!(
                "\r\n\u{1b}[0m[kiln: this recording ends here, at its limit of {} MiB]\r\n",
                LARGEST_CAST >> 20
            );
            terminal.closed = true;
            let last = output_line(terminal.last, &end);
            let result = cast.append(last.as_bytes());
            terminal.cast = None;
            return result;
        }
        cast.append(line.as_bytes())
    }

    fn give_up_terminals(&mut self, error: HistoryError) -> Result<(), HistoryError> {
        if matches!(error, HistoryError::Full { .. }) {
            self.release_the_reserve();
        }
        Err(error)
    }

    fn release_the_reserve(&mut self) {
        self.full = true;
        let _ = fs::remove_file(self.folder.reserve());
        #[cfg(test)]
        if let Some(space) = &self.space {
            space.set(space.get() + usize::try_from(RESERVE_BYTES).unwrap());
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Closing alone is not enough: a process being started by another thread holds a copy of the descriptor
        // until it executes its program.
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl Terminal {
    fn new(began: u64) -> Terminal {
        Terminal { began, last: 0, ended_in_return: false, cast: None, closed: false }
    }

    /// A terminal needs `\r\n`, a pipe gives `\n`.
    fn with_returns(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + text.len() / 16);
        for c in text.chars() {
            if c == '\n' && !self.ended_in_return {
                out.push('\r');
            }
            out.push(c);
            self.ended_in_return = c == '\r';
        }
        out
    }
}

fn lock(folder: &RunFolder) -> Result<File, HistoryError> {
    let path = folder.lock();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|source| crate::append::failure("create", &path, source))?;
    // Waits for a reader that happens to probe just now, never for another writer: the folder is ours.
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| HistoryError::Io {
        act: "lock",
        path: path.clone(),
        source: error.into(),
    })?;
    writeln!(file, "{}", std::process::id())
        .map_err(|source| crate::append::failure("write", &path, source))?;
    Ok(file)
}

fn reserve(folder: &RunFolder) -> Result<(), HistoryError> {
    let path = folder.reserve();
    let file = File::create_new(&path)
        .map_err(|source| crate::append::failure("create", &path, source))?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
        Ok(()) => Ok(()),
        // Some file systems cannot allocate ahead; zeros take the same space there.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeros = vec![0; usize::try_from(RESERVE_BYTES).unwrap_or(0)];
            (&file)
                .write_all(&zeros)
                .map_err(|source| crate::append::failure("reserve space in", &path, source))
        }
        Err(error) => Err(crate::append::failure("reserve space in", &path, error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use kiln_model::outcome::Outcome;

    use super::*;
    use crate::sample;
    use crate::summary::{RunState, RunSummary};

    #[test]
    fn a_disk_that_fills_up_at_any_byte_keeps_every_finished_stage_and_the_ending() {
        let events = sample::events("20260101-000000-0001", &[Outcome::Passed, Outcome::Passed]);
        for space in (0..6000).step_by(97) {
            let dir = tempfile::tempdir().unwrap();
            let run: RunId = "20260101-000000-0001".parse().unwrap();
            let mut recorder = Recorder::create(dir.path(), &run).unwrap();
            let left = Rc::new(Cell::new(space));
            recorder.events.limit(left.clone());
            recorder.space = Some(left);
            let mut complaints = 0;
            for event in &events {
                match recorder.record(event) {
                    Ok(()) => {}
                    Err(HistoryError::Full { .. }) => complaints += 1,
                    Err(other) => panic!("space {space}: {other}"),
                }
            }
            let folder = recorder.folder().clone();
            drop(recorder);
            assert!(complaints <= 1, "space {space}: told {complaints} times");
            let summary = RunSummary::read(&folder).unwrap();
            assert_eq!(summary.state, RunState::Ended, "space {space}");
            assert!(
                summary.stages.iter().all(|stage| stage.outcome == Some(Outcome::Passed)),
                "space {space}"
            );
            assert_eq!(summary.damage, Default::default(), "space {space}");
        }
    }

    #[test]
    fn a_flood_on_a_terminal_is_recorded_up_to_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let run: RunId = "20260101-000000-0001".parse().unwrap();
        let mut recorder = Recorder::create(dir.path(), &run).unwrap();
        let stage: StageName = "flood".parse().unwrap();
        let text = "x\n".repeat(32 << 10);
        for at in 0..200 {
            let event = Happening::Output {
                stage: Some(stage.clone()),
                source: OutputSource::Terminal,
                text: text.clone(),
            };
            recorder.record(&Event { at, event }).unwrap();
        }
        let cast = fs::read_to_string(recorder.folder().cast(&stage)).unwrap();
        assert!(u64::try_from(cast.len()).unwrap() <= LARGEST_CAST + 200);
        assert!(cast.lines().last().unwrap().contains("this recording ends here"));
        assert!(cast.contains("x\\r\\nx\\r\\n"));
    }
}
