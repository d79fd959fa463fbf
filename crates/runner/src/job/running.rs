//! One machine that runs: QEMU, the guest in it, and all that it has of the host.

use std::collections::VecDeque;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use kiln_model::StageName;
use kiln_model::event::Acceleration;
use kiln_model::job::{self, JobSpec, Stage, Suite};
use kiln_model::protocol::{Exec, Pty};
use kiln_store::StoreError;
use kiln_vm::Vm;
use kiln_vm::agent::{Agent, PullLimits, SessionHandle, SignalTarget};

use super::disks::{Disks, Kept, explained};
use super::greeting::save;
use super::listening::{Report, read_terminal};
use super::machine::{ARTIFACT_BYTES, ARTIFACT_ENTRIES, Machine, News, Pulled, Saved};
use super::root::ServedRoot;
use crate::chain::chain;
use crate::warm::{About, Saving};
use crate::watch::Sign;

/// How long a small request may take on a slow machine: pushing a script, looking at a file.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long artifacts may take.
const PULL_PATIENCE: Duration = Duration::from_secs(300);
/// How long a guest may take to switch itself off.
const FAREWELL: Duration = Duration::from_secs(30);
/// How long a guest may take to write everything to its disks.
const SYNCING: Duration = Duration::from_secs(10);
/// How long a hanging guest is questioned.
const QUESTIONING: Duration = Duration::from_secs(8);
/// The terminal of every stage; recordings are made for this size.
pub(super) const TERMINAL: Pty = Pty { rows: 24, cols: 80 };

/// The snapshot of disks that were kept with a saved machine.
pub(super) const KEPT_WARM: &str = "saved";

/// One QEMU and its guest.
pub(crate) struct QemuMachine {
    // The agent goes first, so that its threads see their stream end before the machine's end is awaited.
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) stage: Option<SessionHandle>,
    pub(super) vm: Arc<Vm>,
    pub(super) acceleration: Acceleration,
    pub(super) folder: PathBuf,
    /// Behind the machine, so that they are there for as long as it is.
    pub(super) disks: Option<Disks>,
    pub(super) root: Option<ServedRoot>,
    pub(super) job: JobSpec,
    pub(super) reports: SyncSender<Report>,
    pub(super) inbox: Receiver<Report>,
    /// The right to save it once it is prepared.
    pub(super) preparing: Option<Saving>,
    /// What is heard before anything else.
    pub(super) early: VecDeque<Report>,
    pub(super) last_beat: Instant,
    pub(super) agent_lost: bool,
}

impl QemuMachine {
    /// The agent, once the machine said it is ready.
    pub(crate) fn agent(&self) -> Result<&Arc<Agent>, String> {
        self.agent.as_ref().ok_or_else(|| "the agent is not there yet".to_owned())
    }

    fn beat(&mut self) -> Option<News> {
        let agent = self.agent.as_ref()?;
        let beat = Instant::now().checked_sub(agent.heartbeat_age())?;
        // Ages are taken at different instants, so the same beat wobbles a little.
        if beat > self.last_beat + Duration::from_millis(20) {
            self.last_beat = beat;
            return Some(News::Sign(Sign::Heartbeat));
        }
        if !agent.is_connected() && !self.agent_lost {
            self.agent_lost = true;
            return Some(News::Sign(Sign::AgentLost("its channel closed".to_owned())));
        }
        None
    }
}

impl Machine for QemuMachine {
    fn identity(&self) -> (Acceleration, u32) {
        (self.acceleration, self.vm.pid())
    }

    fn next(&mut self, patience: Duration) -> Option<News> {
        if let Some(news) = self.beat() {
            return Some(news);
        }
        let report = match self.early.pop_front() {
            Some(report) => Ok(report),
            None => self.inbox.recv_timeout(patience),
        };
        match report {
            Ok(Report::News(news)) => Some(news),
            Ok(Report::Ready { agent, boot_ms, boot_cpu_ms, restored, prepared }) => {
                self.agent = Some(Arc::new(agent));
                self.last_beat = Instant::now();
                Some(News::Ready { boot_ms, boot_cpu_ms, restored, prepared })
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    fn launch(&mut self, stage: &Stage, environment: &[(String, String)]) -> Result<(), String> {
        let agent = Arc::clone(self.agent()?);
        let Suite::Script { text, arguments, .. } = &stage.suite;
        let script = format!("/run/kiln/{}", stage.name);
        agent
            .push(
                Path::new(&script),
                0o755,
                &mut Cursor::new(text.as_bytes()),
                Instant::now() + PATIENCE,
            )
            .map_err(|error| format!("cannot send the script: {}", chain(&error)))?;
        let interpreter = if text.starts_with("#!") { None } else { Some("/bin/sh".to_owned()) };
        let words = interpreter.into_iter().chain([script]).chain(arguments.iter().cloned());
        let name = ("KILN_STAGE".to_owned(), stage.name.to_string());
        let variables = std::iter::once(name).chain(environment.iter().cloned());
        let exec = Exec {
            argv: words.map(String::into_bytes).collect(),
            env: variables.map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect(),
            cwd: Vec::new(),
            pty: Some(TERMINAL),
            kill_leftovers: true,
        };
        let session = match agent.exec(exec, Instant::now() + PATIENCE) {
            Ok(session) => session,
            Err(error) => return Err(self.why_not_started(text, &chain(&error))),
        };
        self.stage = Some(session.handle());
        let reports = self.reports.clone();
        thread::spawn(move || read_terminal(session, &reports));
        Ok(())
    }

    fn cancel(&mut self) {
        if let Some(stage) = self.stage.take() {
            let soon = Instant::now() + Duration::from_secs(2);
            // A guest that does not hear it is killed with all that is in it a moment later.
            let _ = stage.signal(9, SignalTarget::Everything, soon);
        }
    }

    fn exists(&mut self, path: &str) -> Result<bool, String> {
        let found = self.agent()?.stat(Path::new(path), Instant::now() + PATIENCE);
        found.map(|stat| stat.is_some()).map_err(|error| chain(&error))
    }

    fn pull(&mut self, patterns: &[String], into: &Path) -> Result<Pulled, String> {
        fs::create_dir_all(into)
            .map_err(|error| format!("cannot make {}: {error}", into.display()))?;
        let limits = PullLimits { entries: ARTIFACT_ENTRIES, bytes: ARTIFACT_BYTES };
        let report = self.agent()?.pull(patterns, into, limits, Instant::now() + PULL_PATIENCE);
        // Only an empty folder can be removed this way.
        let _ = fs::remove_dir(into);
        let report = report.map_err(|error| chain(&error))?;
        let saved = report
            .files
            .into_iter()
            .map(|file| Saved { path: into.join(file.path), bytes: file.bytes });
        Ok(Pulled {
            saved: saved.collect(),
            truncated: report.truncated,
            troubles: report.troubles,
        })
    }

    fn diagnose(&mut self) -> Option<String> {
        // The console is read meanwhile, and the channel holds what this thread cannot take now.
        Some(self.vm.interrogate(QUESTIONING).registers)
    }

    fn host_trouble(&mut self) -> Option<String> {
        self.misread().or_else(|| self.disks.as_ref()?.trouble())
    }

    fn misread(&mut self) -> Option<String> {
        self.root.as_ref().and_then(ServedRoot::trouble)
    }

    fn own_bytes(&mut self) -> Option<(u64, u64)> {
        let based = self.job.disks.iter().any(|disk| disk.base.is_some());
        self.disks.as_ref().filter(|_| based)?.own_bytes()
    }

    fn keep_disks(&mut self, stage: &StageName) -> Result<Vec<Kept>, String> {
        let name = |serial: &str| {
            let name = job::kept_disk(&self.job.run, stage, serial);
            (name, job::KEPT_SNAPSHOT.to_owned())
        };
        self.keep_as(&name).map_err(|error| explained(&error))
    }

    fn save_prepared(&mut self) -> Result<(), String> {
        let Some(saving) = self.preparing.take() else { return Ok(()) };
        let name = self.job.warm.as_ref().and_then(|warm| warm.prepare.as_ref());
        let name = name.map(|stage| stage.name.to_string());
        // Nobody else speaks with the guest between two stages.
        let agent = self.agent.as_mut().and_then(Arc::get_mut);
        let agent = agent.ok_or("somebody speaks with its guest")?;
        let about = About { after: name, ..About::of(&self.job) };
        let disks = self.disks.as_ref();
        let deadline = Instant::now() + PATIENCE;
        let saved =
            save(&self.vm, agent, saving, about, &mut |prefix| keep_warm(disks, prefix), deadline);
        self.last_beat = Instant::now();
        match saved {
            Ok(Ok(gone)) => {
                if let Some(disks) = disks {
                    gone.iter().filter_map(|about| about.disks.as_ref()).for_each(
                        |(pool, prefix)| {
                            disks.remove(pool, prefix);
                        },
                    );
                }
                Ok(())
            }
            Ok(Err(why)) => Err(why),
            Err(error) => Err(chain(&error)),
        }
    }

    fn end(self: Box<Self>, politely: bool) -> String {
        if politely && let Some(agent) = &self.agent {
            let off = agent.power_off(Instant::now() + FAREWELL);
            // The answer may be lost with the machine that gives it.
            let is_off = off.is_ok() || !agent.is_connected();
            if is_off && self.drain_until_gone(Instant::now() + FAREWELL) {
                return self.last_words();
            }
        }
        self.vm.kill();
        self.drain_until_gone(Instant::now() + FAREWELL);
        self.last_words()
    }
}

impl QemuMachine {
    /// Keeps the disks as they are, under names made of their serials. The machine goes on.
    pub(crate) fn keep_as(
        &self,
        name: &dyn Fn(&str) -> (String, String),
    ) -> Result<Vec<Kept>, StoreError> {
        let Some(disks) = &self.disks else { return Ok(Vec::new()) };
        if let Some(agent) = self.agent.as_ref().filter(|_| !self.agent_lost) {
            // What it has not written yet is a part of what it left; a guest that hangs cannot, and loses it.
            let _ = agent.sync(Instant::now() + SYNCING);
        }
        // Between two of its writes, so that the disks agree with each other. One that is gone writes nothing.
        let control = self.vm.control();
        let stopped = control.execute("stop", serde_json::Value::Null, QUESTIONING).is_ok();
        let kept = disks.keep(name);
        if stopped {
            // One that does not go on is found silent by the next stage.
            let _ = control.execute("cont", serde_json::Value::Null, QUESTIONING);
        }
        kept
    }

    /// A script whose interpreter is missing is, to the kernel, itself not found: say which program it is.
    fn why_not_started(&mut self, text: &str, error: &str) -> String {
        let interpreter = interpreter_of(text).unwrap_or("/bin/sh");
        match self.exists(interpreter) {
            Ok(false) => format!(
                "its interpreter {interpreter} is not in the guest; add it to `binaries` in [guest]"
            ),
            _ => error.to_owned(),
        }
    }

    /// Nobody asks for news any more, and a full inbox must not keep the machine from ending.
    fn drain_until_gone(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left.min(Duration::from_millis(50))) {
                Ok(Report::News(News::Sign(Sign::Gone(_)))) => return true,
                Ok(_) => {}
                Err(_) if self.vm.wait(Some(Instant::now())).is_some() => return true,
                Err(_) if left.is_zero() => return false,
                Err(_) => {}
            }
        }
    }

    /// How it ended; what QEMU complained about is kept.
    fn last_words(&self) -> String {
        let Some(ended) = self.vm.wait(Some(Instant::now() + Duration::from_secs(5))) else {
            return "still ending".to_owned();
        };
        if !ended.stderr.trim().is_empty() {
            // Without the file the run is no worse than without a complaint.
            let _ = fs::write(self.folder.join("qemu.log"), &ended.stderr);
        }
        ended.how.word().to_owned()
    }
}

/// The program that a script's first line names.
fn interpreter_of(text: &str) -> Option<&str> {
    text.strip_prefix("#!")?.lines().next()?.split_whitespace().next()
}

/// Keeps the disks of a machine that stands still, in the place of others that were kept under these names.
fn keep_warm(disks: Option<&Disks>, prefix: &str) -> Result<Option<PathBuf>, String> {
    let Some(disks) = disks else { return Ok(None) };
    disks.remove(disks.pool(), prefix);
    let name = |serial: &str| (format!("{prefix}{serial}"), KEPT_WARM.to_owned());
    disks.keep(&name).map_err(|error| explained(&error))?;
    Ok(Some(disks.pool().to_owned()))
}
