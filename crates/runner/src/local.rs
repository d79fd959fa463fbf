//! Running on this machine: one process per job, whose events are checked and passed on.
//!
//! The job's process leads a process group of its own and dies with us, and its machine with it, however we end
//! (`kiln_vm::lifeline`). Should the job die first, each stage it still owed is told to be broken, so that a run always
//! has an outcome for every stage and an end.

mod reader;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kiln_model::event::{Happening, NoteLevel};
use kiln_model::hostile::one_line;
use kiln_model::job::JobSpec;
use kiln_model::outcome::Verdict;
use kiln_vm::lifeline::{self, Tethered};
use rustix::process::{Pid, Signal, kill_process};

use crate::sink::{EventSink, note, tell};
use crate::stop::{StopToken, Urgency};
use reader::JobReader;

/// Longest line a job may print, in bytes; a longer one is not an event.
const MAX_LINE: usize = 8 << 20;
/// How often the stop token is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// How long a job that was told to end at once may take for it.
const LAST_GRACE: Duration = Duration::from_secs(10);
/// How much of what a job says on its standard error is kept to explain its end.
const KEPT_COMPLAINTS: usize = 4 << 10;

/// How to start a job: `kiln job exec`, as the program that runs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; the spec's path is appended.
    pub arguments: Vec<OsString>,
}

impl JobProgram {
    /// This very program, as `job exec SPEC`.
    ///
    /// # Errors
    /// When the system cannot say which program this is.
    pub fn this() -> std::io::Result<JobProgram> {
        let arguments = vec!["job".into(), "exec".into()];
        Ok(JobProgram { program: std::env::current_exe()?, arguments })
    }
}

/// Runs jobs to their ends, all at the same time, and adds them up.
///
/// `opening` is told first: `run-started`, then whatever happened before the jobs. Their specs are written to the run's folder,
/// which must be there ([`spec_path`]). The last event is always `run-ended`.
pub fn run(
    specs: &[JobSpec],
    opening: Vec<Happening>,
    program: &JobProgram,
    sink: &mut dyn EventSink,
    stop: &StopToken,
) -> Verdict {
    let began = Instant::now();
    for event in opening {
        tell(sink, event);
    }
    let (send, said) = mpsc::sync_channel(256);
    let mut jobs = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        let reader = JobReader::new(spec.stages.iter().map(|stage| stage.name.clone()));
        let how = start(spec, program).map(|job| Attended::new(job, number, send.clone()));
        jobs.push((reader, how));
    }
    drop(send);
    attend(&mut jobs, &said, sink, stop);
    let mut readers = Vec::new();
    for (mut reader, how) in jobs {
        let how = how.map_or_else(|reason| reason, Attended::end);
        for event in reader.finish(&how, stop.urgency() > Urgency::GoOn) {
            tell(sink, event);
        }
        readers.push(reader);
    }
    let verdict = Verdict::of(readers.iter().flat_map(JobReader::outcomes));
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tell(sink, Happening::RunEnded { verdict, took_ms });
    verdict
}

/// Where the spec of a job is kept: `job.json` for the first or only one, `job-2.json` and so on for those beside it.
pub fn spec_path(folder: &Path, number: u32) -> PathBuf {
    match number {
        0 | 1 => folder.join("job.json"),
        number => folder.join(format!("job-{number}.json")),
    }
}

fn start(spec: &JobSpec, program: &JobProgram) -> Result<Tethered, String> {
    let path = spec_path(&spec.folder, spec.first_machine);
    std::fs::write(&path, spec.to_json())
        .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    let mut command = Command::new(&program.program);
    command.args(&program.arguments).arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    lifeline::spawn(command, Vec::new())
        .map_err(|error| format!("cannot start {}: {error}", program.program.display()))
}

enum FromJob {
    Line(Vec<u8>),
    Overlong,
    End,
}

/// A job's process and the threads that read what it says; they end with its pipes, and those with its whole
/// process group.
struct Attended {
    job: Tethered,
    telling: JoinHandle<()>,
    complaining: JoinHandle<Vec<u8>>,
    /// It has said all it will.
    silent: bool,
}

impl Attended {
    fn new(job: Tethered, number: usize, send: SyncSender<(usize, FromJob)>) -> Attended {
        let stdout = job.take_stdout();
        let telling = thread::spawn(move || {
            if let Some(stdout) = stdout {
                read_lines(BufReader::new(stdout), |line| send.send((number, line)).is_ok());
            }
            let _ = send.send((number, FromJob::End));
        });
        let stderr = job.take_stderr();
        let complaining = thread::spawn(move || stderr.map(last_of).unwrap_or_default());
        Attended { job, telling, complaining, silent: false }
    }

    /// How it ended.
    fn end(self) -> String {
        // Its pipe is closed, so it is gone or about to be; a job that lingers is of no use.
        let status = self.job.wait(Some(Instant::now() + LAST_GRACE));
        self.job.kill();
        let _ = self.telling.join();
        let complaints = self.complaining.join().unwrap_or_default();
        describe(status.ok().flatten(), &complaints)
    }
}

/// Passes events on until every job has said all.
fn attend(
    jobs: &mut [(JobReader, Result<Attended, String>)],
    said: &Receiver<(usize, FromJob)>,
    sink: &mut dyn EventSink,
    stop: &StopToken,
) {
    let mut told = Urgency::GoOn;
    let mut killed_at = None;
    let speaks = |job: &Result<Attended, String>| job.as_ref().is_ok_and(|job| !job.silent);
    while jobs.iter().any(|(_, job)| speaks(job)) {
        match said.recv_timeout(GLANCE) {
            Ok((number, FromJob::Line(line))) => jobs[number].0.line(&line, sink),
            Ok((_, FromJob::Overlong)) => {
                note(sink, NoteLevel::Warning, "the job printed an endless line")
            }
            Ok((number, FromJob::End)) => {
                if let (_, Ok(job)) = &mut jobs[number] {
                    job.silent = true;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let urgency = stop.urgency();
        let raised = told < urgency;
        told = told.max(urgency);
        let overdue = urgency == Urgency::Kill
            && killed_at.get_or_insert_with(Instant::now).elapsed() > LAST_GRACE;
        for job in jobs.iter().filter_map(|(_, job)| job.as_ref().ok()).filter(|job| !job.silent) {
            if raised {
                // Two interrupts that come together are heard as one, so the second request is another signal.
                ask(&job.job, if told == Urgency::Kill { Signal::TERM } else { Signal::INT });
            }
            if overdue {
                job.job.kill();
            }
        }
    }
}

/// Asks the job to stop; what it does then is its own business.
fn ask(job: &Tethered, signal: Signal) {
    if let Some(pid) = i32::try_from(job.pid()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn describe(status: Option<ExitStatus>, complaints: &[u8]) -> String {
    let how = match status {
        Some(status) => format!("the job ended with {status}"),
        None => "the job closed its output and lingered".to_owned(),
    };
    let text = String::from_utf8_lossy(complaints);
    match text.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("{how}: {}", one_line(line.trim_end(), 300)),
        None => how,
    }
}

fn read_lines(mut from: impl BufRead, mut each: impl FnMut(FromJob) -> bool) {
    loop {
        let mut line = Vec::new();
        match Read::by_ref(&mut from).take(MAX_LINE as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.last() == Some(&b'\n') || line.len() < MAX_LINE;
        let item = if whole { FromJob::Line(line) } else { FromJob::Overlong };
        if !each(item) || (!whole && skip_line(&mut from).is_err()) {
            return;
        }
    }
}

fn skip_line(from: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let newline = buffer.iter().position(|&byte| byte == b'\n');
        let used = newline.map_or(buffer.len(), |at| at + 1);
        from.consume(used);
        if newline.is_some() {
            return Ok(());
        }
    }
}

/// Reads to the end and keeps the last of it.
fn last_of(mut from: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return kept,
            Ok(count) => {
                kept.extend_from_slice(&buffer[..count]);
                let surplus = kept.len().saturating_sub(KEPT_COMPLAINTS);
                kept.drain(..surplus);
            }
        }
    }
}

#[cfg(test)]
mod tests;
