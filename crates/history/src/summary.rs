//! What a run's events add up to: the one form every table, page and query is made from.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use kiln_model::event::{
    Acceleration, Event, Happening, KernelIdentity, NoteLevel, RunStarted, SCHEMA,
};
use kiln_model::outcome::{Outcome, Verdict};
use kiln_model::splat::Splat;
use kiln_model::{RunId, StageName};
use serde::{Deserialize, Serialize};

use crate::HistoryError;
use crate::folder::RunFolder;
use crate::lines::{Line, next_line};

/// A reader keeps at most so many of anything that a guest can cause.
const MOST_STAGES: usize = 10_000;
const MOST_SPLATS: usize = 50;
const MOST_ARTIFACTS: usize = 1_000;
/// Kept disks of one stage.
const MOST_DISKS: usize = 64;
const MOST_MACHINES: usize = 10_000;
const MOST_NOTES: usize = 200;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Which.
    pub id: RunId,
    /// When it began, in milliseconds since 1970.
    pub started: u64,
    /// Version of the Kiln that ran it.
    pub kiln: String,
    /// The scenario.
    pub scenario: String,
    /// Where that was read from.
    pub scenario_source: String,
    /// The kernel.
    pub kernel: KernelIdentity,
    /// The machine's memory in bytes.
    pub memory: u64,
    /// The machine's processors.
    pub cpus: u8,
    /// The command line.
    pub command: Vec<String>,
    /// The stages, in the plan's order.
    pub stages: Vec<StageSummary>,
    /// The machines that were started.
    pub machines: Vec<MachineSummary>,
    /// What a person should know.
    pub notes: Vec<Note>,
    /// Reports of the kernel that came while no stage ran.
    pub splats: Vec<Splat>,
    /// Files that belong to no stage.
    pub artifacts: Vec<Artifact>,
    /// What it adds up to; none until it ended, and for ever if it was interrupted.
    pub verdict: Option<Verdict>,
    /// Wall time in milliseconds: of the whole run, or until its last event.
    pub took_ms: u64,
    /// Whether it is still going on.
    pub state: RunState,
    /// What could not be read.
    pub damage: Damage,
}

/// One stage of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// Which.
    pub name: StageName,
    /// The machine it ran on.
    pub vm: Option<u32>,
    /// When it began, in milliseconds since 1970.
    pub started: Option<u64>,
    /// How it ended; none if it did not.
    pub outcome: Option<Outcome>,
    /// How long it ran, in milliseconds.
    pub took_ms: u64,
    /// Reports of the kernel during it.
    pub splats: Vec<Splat>,
    /// Files saved for it.
    pub artifacts: Vec<Artifact>,
    /// Its disks as it left them, as snapshots `NAME@SNAP` in the pool. Older ones may have been removed there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
}

/// One machine of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineSummary {
    /// Counted from 1.
    pub vm: u32,
    /// What executed the guest's instructions.
    pub acceleration: Acceleration,
    /// From exec to the agent's hello in wall milliseconds, if it said hello.
    pub boot_ms: Option<u64>,
    /// Whether it was restored from a saved moment instead of booted.
    #[serde(default)]
    pub restored: bool,
    /// How it ended, for a person.
    pub ended: Option<String>,
}

/// A file in the run's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Relative to the run's folder. Hostile text: use it through [`RunFolder::inside`].
    pub path: String,
    /// Its size in bytes when it was saved.
    pub bytes: u64,
}

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How loudly.
    pub level: NoteLevel,
    /// One line.
    pub text: String,
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Its writer lives.
    Running,
    /// Its writer is gone and left no ending.
    Interrupted,
    /// It came to its end.
    Ended,
}

/// What of a recording could not be understood. None of it hides the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Lines that are no events.
    pub unreadable_lines: u64,
    /// The last line has no end.
    pub torn: bool,
}

impl RunState {
    /// The one word for tables.
    pub fn word(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Interrupted => "interrupted",
            RunState::Ended => "ended",
        }
    }
}

impl RunSummary {
    /// Reads a run's folder. A run that is still going on, was interrupted or is partly damaged gives what there is.
    pub fn read(folder: &RunFolder) -> Result<RunSummary, HistoryError> {
        // Asked before the events are read: a writer that ends in between has then written everything.
        let writing = folder.has_writer()?;
        let mut builder = SummaryBuilder::default();
        let damage = for_each_event(folder, |event| builder.take(event))?;
        builder.finish(folder, writing, damage)
    }

    /// The word for tables: the verdict of a run that ended, else `running` or `interrupted`.
    pub fn word(&self) -> &'static str {
        match (self.state, self.verdict) {
            (RunState::Ended, Some(verdict)) => verdict.word(),
            (state, _) => state.word(),
        }
    }

    /// How many stages ended well, and how many there are.
    pub fn passed(&self) -> (usize, usize) {
        let passed =
            self.stages.iter().filter(|stage| stage.outcome == Some(Outcome::Passed)).count();
        (passed, self.stages.len())
    }

    /// The stage of this name.
    pub fn stage(&self, name: &StageName) -> Option<&StageSummary> {
        self.stages.iter().find(|stage| stage.name == *name)
    }
}

impl StageSummary {
    /// The word for tables: the outcome's, or `unfinished` and `not-started` for a stage that did not end.
    pub fn word(&self) -> &'static str {
        match (&self.outcome, self.started) {
            (Some(outcome), _) => outcome.word(),
            (None, Some(_)) => "unfinished",
            (None, None) => "not-started",
        }
    }

    /// Whether it counts against the kernel.
    pub fn failed(&self) -> bool {
        self.outcome.as_ref().is_some_and(Outcome::counts_against_the_kernel)
    }
}

/// Reads a run's events in order, giving each to `each`; kinds this build does not know are left out.
pub fn for_each_event(folder: &RunFolder, each: impl FnMut(Event)) -> Result<Damage, HistoryError> {
    let path = folder.events();
    match File::open(&path) {
        Ok(file) => read_events(BufReader::new(file), each).map_err(HistoryError::io("read", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder.path().is_dir() => {
            Err(HistoryError::NoRun { path: folder.path().to_owned() })
        }
        Err(source) => Err(HistoryError::Io { act: "read", path, source }),
    }
}

/// The events of an open recording. Never fails on what the lines hold.
pub fn read_events(mut lines: impl BufRead, mut each: impl FnMut(Event)) -> io::Result<Damage> {
    let mut damage = Damage::default();
    while let Some(line) = next_line(&mut lines)? {
        let (text, torn) = match line {
            Line::Whole(text) if text.is_empty() => continue,
            Line::Whole(text) => (text, false),
            Line::Torn(text) => (text, true),
            Line::TooLong => {
                damage.unreadable_lines += 1;
                continue;
            }
        };
        match serde_json::from_slice::<Event>(&text) {
            Ok(Event { event: Happening::Unknown, .. }) => {}
            Ok(event) => each(event),
            Err(_) if torn => damage.torn = true,
            Err(_) => damage.unreadable_lines += 1,
        }
    }
    Ok(damage)
}

/// Adds events up. Pure, so that a live run can be added up too.
#[derive(Debug, Default)]
pub struct SummaryBuilder {
    run: Option<RunSummary>,
    schema: u32,
    last: u64,
}

impl SummaryBuilder {
    /// Takes the next event.
    pub fn take(&mut self, event: Event) {
        self.last = self.last.max(event.at);
        if let Happening::RunStarted(started) = event.event {
            // A second beginning is not one; the first decides.
            if self.run.is_none() {
                self.schema = started.schema;
                self.run = Some(begin(event.at, started));
            }
            return;
        }
        let Some(run) = &mut self.run else { return };
        match event.event {
            Happening::Note { level, text } => {
                push(&mut run.notes, MOST_NOTES, Note { level, text })
            }
            Happening::VmStarted { vm, acceleration, .. } => {
                let machine = MachineSummary {
                    vm,
                    acceleration,
                    boot_ms: None,
                    restored: false,
                    ended: None,
                };
                push(&mut run.machines, MOST_MACHINES, machine);
            }
            Happening::VmReady { vm, boot_ms, restored, .. } => {
                if let Some(machine) = run.machines.iter_mut().rev().find(|m| m.vm == vm) {
                    machine.boot_ms = Some(boot_ms);
                    machine.restored = restored;
                }
            }
            Happening::VmEnded { vm, how } => {
                if let Some(machine) = run.machines.iter_mut().rev().find(|m| m.vm == vm) {
                    machine.ended = Some(how);
                }
            }
            Happening::StageStarted { stage, vm } => {
                if let Some(stage) = stage_of(run, &stage) {
                    stage.vm = Some(vm);
                    stage.started.get_or_insert(event.at);
                }
            }
            Happening::SplatSeen { stage, splat, .. } => {
                let splats = match stage {
                    Some(stage) => stage_of(run, &stage).map(|stage| &mut stage.splats),
                    None => Some(&mut run.splats),
                };
                if let Some(splats) = splats {
                    push(splats, MOST_SPLATS, splat);
                }
            }
            Happening::ArtifactSaved { stage, path, bytes } => {
                let artifacts = match stage {
                    Some(stage) => stage_of(run, &stage).map(|stage| &mut stage.artifacts),
                    None => Some(&mut run.artifacts),
                };
                if let Some(artifacts) = artifacts {
                    push(artifacts, MOST_ARTIFACTS, Artifact { path, bytes });
                }
            }
            Happening::DiskKept { stage, snapshot, .. } => {
                if let Some(stage) = stage_of(run, &stage) {
                    push(&mut stage.disks, MOST_DISKS, snapshot);
                }
            }
            Happening::StageEnded { stage, outcome, took_ms } => {
                if let Some(stage) = stage_of(run, &stage) {
                    stage.outcome = Some(outcome);
                    stage.took_ms = took_ms;
                }
            }
            Happening::RunEnded { verdict, took_ms } => {
                run.verdict = Some(verdict);
                run.took_ms = took_ms;
            }
            _ => {}
        }
    }

    /// The sum. `folder` is named in errors only; `writing` says whether the writer lives.
    pub fn finish(
        self,
        folder: &RunFolder,
        writing: bool,
        damage: Damage,
    ) -> Result<RunSummary, HistoryError> {
        let Some(mut run) = self.run else {
            return Err(HistoryError::NoRun { path: folder.path().to_owned() });
        };
        if self.schema > SCHEMA {
            return Err(HistoryError::TooNew {
                path: folder.events(),
                schema: self.schema,
                reads_up_to: SCHEMA,
            });
        }
        run.damage = damage;
        run.state = match (run.verdict, writing) {
            (Some(_), _) => RunState::Ended,
            (None, true) => RunState::Running,
            (None, false) => RunState::Interrupted,
        };
        if run.verdict.is_none() {
            run.took_ms = self.last.saturating_sub(run.started);
        }
        Ok(run)
    }
}

fn begin(at: u64, started: RunStarted) -> RunSummary {
    let mut run = RunSummary {
        id: started.run,
        started: at,
        kiln: started.kiln,
        scenario: started.scenario,
        scenario_source: started.scenario_source,
        kernel: started.kernel,
        memory: started.memory,
        cpus: started.cpus,
        command: started.command,
        stages: Vec::new(),
        machines: Vec::new(),
        notes: Vec::new(),
        splats: Vec::new(),
        artifacts: Vec::new(),
        verdict: None,
        took_ms: 0,
        state: RunState::Interrupted,
        damage: Damage::default(),
    };
    for stage in started.stages {
        stage_of(&mut run, &stage);
    }
    run
}

/// The stage of this name, added if the plan did not name it and there is room.
fn stage_of<'a>(run: &'a mut RunSummary, name: &StageName) -> Option<&'a mut StageSummary> {
    let found = run.stages.iter().position(|stage| stage.name == *name);
    let at = match found {
        Some(at) => at,
        None if run.stages.len() >= MOST_STAGES => return None,
        None => {
            run.stages.push(StageSummary {
                name: name.clone(),
                vm: None,
                started: None,
                outcome: None,
                took_ms: 0,
                splats: Vec::new(),
                artifacts: Vec::new(),
                disks: Vec::new(),
            });
            run.stages.len() - 1
        }
    };
    run.stages.get_mut(at)
}

fn push<T>(list: &mut Vec<T>, most: usize, item: T) {
    if list.len() < most {
        list.push(item);
    }
}

/// Reads every run below a folder, oldest first. Runs that cannot be read are given to `broken` and left out.
pub fn read_runs(
    runs: &std::path::Path,
    mut broken: impl FnMut(RunId, HistoryError),
) -> Result<Vec<RunSummary>, HistoryError> {
    let mut all = Vec::new();
    for id in crate::folder::run_ids(runs)? {
        match RunSummary::read(&RunFolder::of(runs, &id)) {
            Ok(run) => all.push(run),
            Err(error) => broken(id, error),
        }
    }
    Ok(all)
}

/// What the events of a sample add up to.
#[cfg(test)]
pub(crate) fn of_events(events: &[Event]) -> RunSummary {
    let mut builder = SummaryBuilder::default();
    for event in events {
        builder.take(event.clone());
    }
    builder.finish(&RunFolder::at("sample"), false, Damage::default()).unwrap()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::sample;

    fn write(text: &[u8]) -> (tempfile::TempDir, RunFolder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::at(dir.path());
        fs::write(folder.events(), text).unwrap();
        (dir, folder)
    }

    #[test]
    fn a_recording_cut_at_any_byte_still_tells_every_stage_that_finished() {
        let events = sample::events(
            "20260101-000000-0001",
            &[Outcome::Passed, Outcome::Failed { reason: "exit status 1".into() }],
        );
        let text = sample::lines(&events);
        let first = text.iter().position(|&b| b == b'\n').unwrap();
        for cut in first..=text.len() {
            let (_dir, folder) = write(&text[..cut]);
            let run = RunSummary::read(&folder).unwrap();
            let whole = text[..cut].split_inclusive(|&b| b == b'\n');
            let ended = whole
                .filter(|line| serde_json::from_slice::<Event>(line).is_ok())
                .filter(|line| line.windows(13).any(|w| w == b"\"stage-ended\""))
                .count();
            let seen = run.stages.iter().filter(|stage| stage.outcome.is_some()).count();
            assert_eq!(seen, ended, "cut at byte {cut}");
            assert_eq!(run.damage.unreadable_lines, 0);
        }
    }

    #[test]
    fn a_run_without_ending_and_without_writer_was_interrupted() {
        let mut events = sample::events("20260101-000000-0001", &[Outcome::Passed]);
        events.pop();
        let (_dir, folder) = write(&sample::lines(&events));
        let run = RunSummary::read(&folder).unwrap();
        assert_eq!((run.state, run.word()), (RunState::Interrupted, "interrupted"));
        assert_eq!(run.stages[0].outcome, Some(Outcome::Passed));
    }

    #[test]
    fn a_run_is_running_for_as_long_as_its_recorder_lives() {
        let dir = tempfile::tempdir().unwrap();
        let events = sample::events("20260101-000000-0001", &[Outcome::Passed]);
        let run: RunId = "20260101-000000-0001".parse().unwrap();
        let mut recorder = crate::Recorder::create(dir.path(), &run).unwrap();
        recorder.record(&events[0]).unwrap();
        let folder = recorder.folder().clone();
        assert_eq!(RunSummary::read(&folder).unwrap().state, RunState::Running);
        drop(recorder);
        assert_eq!(RunSummary::read(&folder).unwrap().state, RunState::Interrupted);
    }

    #[test]
    fn lines_that_are_no_events_and_kinds_nobody_knows_hide_nothing() {
        let events = sample::events("20260101-000000-0001", &[Outcome::Passed]);
        let mut text = sample::lines(&events[..1]);
        text.extend(b"\xff\xfe{{{\n{\"at\":1,\"event\":{\"type\":\"moon-landed\"}}\n\n");
        text.extend(sample::lines(&events[1..]));
        let (_dir, folder) = write(&text);
        let run = RunSummary::read(&folder).unwrap();
        assert_eq!(run.damage, Damage { unreadable_lines: 1, torn: false });
        assert_eq!(run.verdict, Some(Verdict::Passed));
    }

    #[test]
    fn a_folder_of_a_later_kiln_is_refused_by_version_not_misread() {
        let mut events = sample::events("20260101-000000-0001", &[]);
        if let Happening::RunStarted(started) = &mut events[0].event {
            started.schema = SCHEMA + 1;
        }
        let (_dir, folder) = write(&sample::lines(&events));
        let error = RunSummary::read(&folder).unwrap_err();
        assert!(matches!(error, HistoryError::TooNew { .. }), "{error}");
        let (_dir, folder) = write(b"");
        let error = RunSummary::read(&folder).unwrap_err();
        assert!(matches!(error, HistoryError::NoRun { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut text = sample::lines(&sample::events("20260101-000000-0001", &[Outcome::Passed])[..1]);
            text.extend(bytes);
            let (_dir, folder) = write(&text);
            prop_assert!(RunSummary::read(&folder).is_ok());
        }
    }
}
