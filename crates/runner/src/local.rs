//! Running on this machine: one process per job, whose events are checked and passed on.
//!
//! The job's process leads a process group of its own and dies with us, and its machine with it, however we end
//! (`kiln_vm::lifeline`). Should the job die first, each stage it still owed is told to be broken, so that a run always
//! has an outcome for every stage and an end.

mod reader;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
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

/// Runs a job to its end and adds it up.
///
/// `opening` is told first: `run-started`, then whatever happened before the job. The spec is written to `job.json` in the
/// run's folder, which must be there. The last event is always `run-ended`.
pub fn run(
    spec: &JobSpec,
    opening: Vec<Happening>,
    program: &JobProgram,
    sink: &mut dyn EventSink,
    stop: &StopToken,
) -> Verdict {
    let began = Instant::now();
    for event in opening {
        tell(sink, event);
    }
    let mut reader = JobReader::new(spec.stages.iter().map(|stage| stage.name.clone()));
    let how = match start(spec, program) {
        Ok(job) => attend(&job, &mut reader, sink, stop),
        Err(reason) => reason,
    };
    for event in reader.finish(&how, stop.urgency() > Urgency::GoOn) {
        tell(sink, event);
    }
    let verdict = Verdict::of(reader.outcomes());
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tell(sink, Happening::RunEnded { verdict, took_ms });
    verdict
}

fn start(spec: &JobSpec, program: &JobProgram) -> Result<Tethered, String> {
    let path = spec.folder.join("job.json");
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

/// Passes events on until the job has ended; says how it ended.
fn attend(
    job: &Tethered,
    reader: &mut JobReader,
    sink: &mut dyn EventSink,
    stop: &StopToken,
) -> String {
    let (send, lines) = mpsc::sync_channel(256);
    let stdout = job.take_stdout();
    // The threads end with the pipes, and those with the job's whole process group.
    let telling = thread::spawn(move || {
        if let Some(stdout) = stdout {
            read_lines(BufReader::new(stdout), |line| send.send(line).is_ok());
        }
        let _ = send.send(FromJob::End);
    });
    let stderr = job.take_stderr();
    let complaining = thread::spawn(move || stderr.map(last_of).unwrap_or_default());

    let mut told = Urgency::GoOn;
    let mut killed_at = None;
    loop {
        match lines.recv_timeout(GLANCE) {
            Ok(FromJob::Line(line)) => reader.line(&line, sink),
            Ok(FromJob::Overlong) => {
                note(sink, NoteLevel::Warning, "the job printed an endless line")
            }
            Ok(FromJob::End) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let urgency = stop.urgency();
        if told < urgency {
            told = urgency;
            // Two interrupts that come together are heard as one, so the second request is another signal.
            ask(job, if told == Urgency::Kill { Signal::TERM } else { Signal::INT });
        }
        if urgency == Urgency::Kill
            && killed_at.get_or_insert_with(Instant::now).elapsed() > LAST_GRACE
        {
            job.kill();
        }
    }
    // Its pipe is closed, so it is gone or about to be; a job that lingers is of no use.
    let status = job.wait(Some(Instant::now() + LAST_GRACE));
    job.kill();
    let _ = telling.join();
    let complaints = complaining.join().unwrap_or_default();
    describe(status.ok().flatten(), &complaints)
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
