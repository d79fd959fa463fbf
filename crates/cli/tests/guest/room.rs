//! A place of its own for one test, with a kernel and a guest, and a bound on how many machines run at once.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_history::{RunFolder, RunSummary, run_ids};
use kiln_model::event::{Event, Happening};
use kiln_model::testing;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longer than anything here takes on a machine with other work to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// The least a script needs, on a machine that boots quickly and is given time.
pub(crate) const GUEST: &str = r#"
[guest]
binaries = ["sh", "cat", "chrt", "dd", "echo", "head", "setsid", "sleep", "stty", "true", "uname"]
[vm]
memory = "256M"
boot_timeout = "4m"
"#;

/// Folder, kernel and guest; gone with this.
pub(crate) struct Room {
    folder: TempDir,
    kernel: PathBuf,
    guest: PathBuf,
    _slot: Slot,
}

/// The owner of the pool would leave by itself, a little later.
impl Drop for Room {
    fn drop(&mut self) {
        let _ = kiln_store::Store::retire(&self.path().join("data/kiln/disks.pool"));
    }
}

/// How an invocation ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Room {
    pub(crate) fn new() -> Room {
        let slot = Slot::take();
        let folder = tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp").expect("a folder");
        Room { folder, kernel: testing::kernel(), guest: testing::guest_executable(), _slot: slot }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where recordings are.
    pub(crate) fn runs(&self) -> PathBuf {
        self.path().join("data/kiln/runs")
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// `kiln` with a clean environment; images are shared between tests, recordings are not.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-cache"))
            .env("XDG_DATA_HOME", self.path().join("data"))
            .env("XDG_CONFIG_HOME", self.path().join("config"))
            .env("KILN_KERNEL", &self.kernel)
            .env("KILN_GUEST", &self.guest)
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().expect("kiln starts");
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts `kiln run` of a scenario, to be followed event by event.
    pub(crate) fn start(&self, scenario: &str) -> Running {
        self.write("scenario.toml", scenario);
        let mut child = self
            .command(&["run", "scenario.toml", "--format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kiln starts");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let complaints = BufReader::new(child.stderr.take().expect("stderr is piped"));
        Running { child: Some(child), lines, complaints, seen: Vec::new() }
    }

    /// The newest run as it was recorded.
    pub(crate) fn recorded(&self) -> (RunSummary, RunFolder) {
        let ids = run_ids(&self.runs()).expect("runs can be listed");
        let folder = RunFolder::of(&self.runs(), ids.last().expect("a run was recorded"));
        (RunSummary::read(&folder).expect("the run can be read"), folder)
    }

    /// `stage: outcome` of the newest run, in order.
    pub(crate) fn outcomes(&self) -> Vec<String> {
        let (run, _) = self.recorded();
        let told = run.stages.iter().map(|stage| match &stage.outcome {
            Some(outcome) => format!("{}: {outcome}", stage.name),
            None => format!("{}: {}", stage.name, stage.word()),
        });
        told.collect()
    }

    /// Asserts that every emulator and job the newest run told of is gone, or is about to be.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self) {
        let (_, folder) = self.recorded();
        let mut pids = Vec::new();
        kiln_history::for_each_event(&folder, |event| match event.event {
            Happening::VmStarted { pid, .. } | Happening::JobStarted { pid, .. } => pids.push(pid),
            _ => {}
        })
        .expect("the events can be read");
        assert!(!pids.is_empty(), "no process was told of");
        for pid in pids {
            gone(pid);
        }
    }
}

/// Waits until a process is gone; what the kernel has not reaped yet does nothing any more.
#[track_caller]
pub(crate) fn gone(pid: u32) {
    let deadline = Instant::now() + PATIENCE;
    while alive(pid) {
        assert!(Instant::now() < deadline, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which may hold anything but ends with the last bracket.
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.trim().starts_with(['Z', 'X']))
}

/// A `kiln run` that goes on.
pub(crate) struct Running {
    child: Option<Child>,
    lines: BufReader<ChildStdout>,
    complaints: BufReader<ChildStderr>,
    seen: Vec<Happening>,
}

impl Running {
    /// Reads events until one is what is waited for. The run ends by itself if it never comes.
    #[track_caller]
    pub(crate) fn until<T>(&mut self, mut wanted: impl FnMut(&Happening) -> Option<T>) -> T {
        loop {
            let mut line = String::new();
            let count = self.lines.read_line(&mut line).expect("events can be read");
            if count == 0 {
                let complaints = self.complaints();
                panic!("it ended before that: {:?}\n{complaints}", self.seen);
            }
            let event: Event = serde_json::from_str(&line).expect("each line is an event");
            let found = wanted(&event.event);
            self.seen.push(event.event);
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// Waits until a stage has begun.
    #[track_caller]
    pub(crate) fn until_started(&mut self, name: &str) {
        self.until(|event| match event {
            Happening::StageStarted { stage, .. } if stage.as_str() == name => Some(()),
            _ => None,
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("it can be signalled");
    }

    /// The ids of the processes it told of: jobs and emulators.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let pids = self.seen.iter().filter_map(|event| match event {
            Happening::VmStarted { pid, .. } | Happening::JobStarted { pid, .. } => Some(*pid),
            _ => None,
        });
        pids.collect()
    }

    /// Reads the rest and waits for the end.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<Happening>) {
        let mut line = String::new();
        while self.lines.read_line(&mut line).is_ok_and(|count| count > 0) {
            if let Ok(event) = serde_json::from_str::<Event>(&line) {
                self.seen.push(event.event);
            }
            line.clear();
        }
        let mut child = self.child.take().expect("it runs");
        (child.wait().expect("it ends"), std::mem::take(&mut self.seen))
    }

    /// Waits until it has said something on stderr.
    #[track_caller]
    pub(crate) fn until_said(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            let count = self.complaints.read_line(&mut line).expect("stderr can be read");
            assert!(count > 0, "it ended without saying {wanted:?}");
        }
    }

    fn complaints(&mut self) -> String {
        let mut text = String::new();
        let _ = self.complaints.read_to_string(&mut text);
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Its job and machine go with it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Ended {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn complains(self, words: &[&str]) -> Ended {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in:\n{}", self.stderr);
        }
        self
    }
}

/// One of the few machines that may run at once: more would only make each other slow.
struct Slot;

static FREE: Mutex<usize> = Mutex::new(2);
static FREED: Condvar = Condvar::new();

impl Slot {
    fn take() -> Slot {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = FREED.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Slot
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREED.notify_one();
    }
}
