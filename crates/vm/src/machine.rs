//! The machine itself.
//!
//! ```text
//!   start ──► running ──► ended: powered off, reset, killed, asked, failed
//!     │                     ▲
//!     └─ QEMU ends first ───┘ (an error of `start`, with what QEMU said)
//! ```
//!
//! Four threads serve it, each ending with its channel: the console's, standard error's, the control channel's, and one
//! that waits for QEMU's end, then for the others, so that the last event is truly the last.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::console::Recorder;
use crate::events::{Ended, How, VmEvent, VmEvents};
use crate::lifeline::{self, Tethered};
use crate::qmp::{Client, QmpError};
use crate::saved::{Migration, Told};
use crate::spec::{Beginning, CONSOLE, Channels, VmSpec};
use crate::{VmError, listener};

/// How long QEMU may take to greet; a loaded host is slow.
const GREETING_DEADLINE: Duration = Duration::from_secs(60);
/// The most kept of what QEMU writes to standard error.
const MAX_STDERR: usize = 16 << 10;
/// How long the channels of a QEMU that is gone may take to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// Room in the console's channel, so that QEMU never drops what a panic prints at once.
const CONSOLE_ROOM: usize = 1 << 20;
/// How long a control command may take.
const CONTROL_PATIENCE: Duration = Duration::from_secs(10);
/// Silence after an answer that means its end, so that the next question can follow.
const QUIET: Duration = Duration::from_millis(150);
/// The same after the last answer, the longest one, behind which the machine is killed.
const QUIET_AT_LAST: Duration = Duration::from_millis(500);

/// One running QEMU. Dropping it kills it and waits for its end.
pub struct Vm {
    tether: Arc<Tethered>,
    control: Client,
    console: Mutex<UnixStream>,
    agent: Mutex<Option<UnixStream>>,
    events: VmEvents,
    activity: Arc<Activity>,
    end: Arc<End>,
    waiter: Option<JoinHandle<()>>,
    started: Instant,
    /// Its memory, if it can be saved.
    pub(crate) memory: Option<File>,
    pub(crate) migration: Arc<Migration>,
}

/// The file QEMU inherits for a machine's memory, and what it does with it.
pub(crate) struct MemoryFile {
    pub(crate) file: OwnedFd,
    pub(crate) beginning: fn(RawFd) -> Beginning,
}

/// Whether a machine still runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmState {
    /// QEMU executes it.
    Running,
    /// It is gone.
    Ended(Ended),
}

/// What a silent machine said when questioned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrogation {
    /// The registers of all processors, as QEMU prints them; the reason in their place when it did not.
    pub registers: String,
    /// Whether the kernel answered to sysrq. What it said (backtraces of running, blocked and all tasks) is in
    /// the console's recording.
    pub kernel_answered: bool,
}

/// How much the console printed, and when last.
#[derive(Debug)]
pub(crate) struct Activity {
    latest: Mutex<(u64, Instant)>,
    more: Condvar,
}

impl Activity {
    fn new() -> Activity {
        Activity { latest: Mutex::new((0, Instant::now())), more: Condvar::new() }
    }

    pub(crate) fn note(&self, bytes: usize) {
        let mut latest = self.lock();
        *latest = (latest.0 + bytes as u64, Instant::now());
        drop(latest);
        self.more.notify_all();
    }

    /// Waits until something new was printed and then nothing for a while; whether anything was.
    fn settle(&self, before: u64, quiet: Duration, deadline: Instant) -> bool {
        let mut latest = self.lock();
        loop {
            let now = Instant::now();
            let until = match latest.0 > before {
                true => deadline.min(latest.1 + quiet),
                false => deadline,
            };
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return latest.0 > before;
            }
            let waited = self.more.wait_timeout(latest, left);
            latest = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Instant)> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why it ends, as far as known, and at last how it ended.
#[derive(Debug, Default)]
struct End {
    killed: AtomicBool,
    reason: Mutex<Option<String>>,
    ended: Mutex<Option<Ended>>,
    told: Condvar,
}

impl End {
    fn how(&self, status: std::process::ExitStatus) -> How {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        match reason.as_deref() {
            Some("guest-shutdown") => How::PoweredOff,
            Some("guest-reset" | "guest-panic" | "subsystem-reset") => How::Reset,
            _ if self.killed.load(Ordering::Acquire) => How::Killed,
            Some(_) if status.success() => How::Asked,
            _ => How::Failed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ended>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vm {
    /// Starts QEMU and returns when it can be controlled; the kernel boots meanwhile.
    ///
    /// # Errors
    /// When the machine makes no sense, the recording cannot be made, or QEMU does not come up; nothing is left behind.
    pub fn start(spec: &VmSpec) -> Result<Vm, VmError> {
        Vm::launch(spec, None)
    }

    /// Starts QEMU with its memory in a file that was inherited, or in memory of its own.
    pub(crate) fn launch(spec: &VmSpec, memory: Option<MemoryFile>) -> Result<Vm, VmError> {
        let failed = |act: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| VmError::Io { act, path, source }
        };
        let qemu = spec.emulator.path();
        let channel = || UnixStream::pair().map_err(failed("open a channel to", qemu));
        let (console, console_theirs) = channel()?;
        let (control, control_theirs) = channel()?;
        let (agent, agent_theirs) = channel()?;
        // Best effort: the default holds a panic's text too, if the reader is not starved.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&console_theirs, CONSOLE_ROOM);
        let channels = Channels {
            console: console_theirs.as_raw_fd(),
            control: control_theirs.as_raw_fd(),
            agent: agent_theirs.as_raw_fd(),
        };
        let mut command = Command::new(qemu);
        let beginning = memory
            .as_ref()
            .map_or(Beginning::Boot, |memory| (memory.beginning)(memory.file.as_raw_fd()));
        command.args(spec.arguments(channels, beginning)?);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let log = &spec.console_log;
        let recorder = Recorder::create(log, spec.console_limit.get())
            .map_err(failed("record the console in", log))?;

        let started = Instant::now();
        let channels = [console_theirs, control_theirs, agent_theirs].map(OwnedFd::from);
        let inherit = channels.into_iter().chain(memory.map(|memory| memory.file)).collect();
        let tether = lifeline::spawn(command, inherit).map_err(failed("start", qemu))?;
        let tether = Arc::new(tether);
        let events = VmEvents::default();
        let activity = Arc::new(Activity::new());
        let end = Arc::new(End::default());

        let thread = failed("start a thread for", qemu);
        let stderr = tether.take_stderr();
        let stderr = in_a_thread("qemu-stderr", move || keep_stderr(stderr));
        let input = console.try_clone();
        let (told, seen) = (events.clone(), Arc::clone(&activity));
        let printed = input.and_then(|input| {
            in_a_thread("console", move || listener::listen(input, recorder, &told, &seen))
        });
        let (stderr, printed) = match (stderr, printed) {
            (Ok(stderr), Ok(printed)) => (stderr, printed),
            (Err(error), _) | (_, Err(error)) => return Err(thread(error)),
        };

        // Dropped with the closure that holds it, when the control channel has ended.
        let (open, control_ended) = mpsc::sync_channel::<()>(0);
        let reason = Arc::clone(&end);
        let migration = Arc::new(Migration::default());
        let moves = Told(Arc::clone(&migration));
        let client = Client::connect(control, started + GREETING_DEADLINE, move |name, data| {
            let _held = &open;
            moves.hear(&name, &data);
            if name == "SHUTDOWN"
                && let Some(Value::String(why)) = data.get("reason")
            {
                let mut known = reason.reason.lock().unwrap_or_else(PoisonError::into_inner);
                known.get_or_insert_with(|| why.chars().take(64).collect());
            }
        });
        let client = match client {
            Ok(client) => client,
            Err(error) => return Err(stillborn(&tether, &stderr, error)),
        };
        let (child, told, ending) = (Arc::clone(&tether), events.clone(), Arc::clone(&end));
        let waiter = thread::Builder::new()
            .name("qemu-end".into())
            .spawn(move || {
                let Ok(Some(status)) = child.wait(None) else {
                    return;
                };
                wait_until_over(&control_ended);
                // Printed before it ended, so told before its end.
                let _ = printed.recv_timeout(DRAIN_DEADLINE);
                let stderr = stderr.recv_timeout(DRAIN_DEADLINE).unwrap_or_default();
                let ended = Ended { how: ending.how(status), status, stderr };
                *ending.lock() = Some(ended.clone());
                ending.told.notify_all();
                told.push(VmEvent::Ended(ended));
            })
            .map_err(failed("start a thread for", qemu))?;
        Ok(Vm {
            tether,
            control: client,
            console: Mutex::new(console),
            agent: Mutex::new(Some(agent)),
            events,
            activity,
            end,
            waiter: Some(waiter),
            started,
            memory: None,
            migration,
        })
    }

    /// What happens, in order; clones share one queue.
    pub fn events(&self) -> VmEvents {
        self.events.clone()
    }

    /// The host's end of the agent's port; once. Bytes written before the guest opened its end wait there.
    pub fn agent_stream(&self) -> Option<UnixStream> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.tether.pid()
    }

    /// When QEMU was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// CPU time QEMU has used, all threads together; none once it is gone.
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace().skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_millis((user + system) * 1000 / per_second))
    }

    /// When the console last printed anything, or the machine was started.
    pub fn last_output(&self) -> Instant {
        self.activity.lock().1
    }

    /// Whether it still runs.
    pub fn state(&self) -> VmState {
        match &*self.end.lock() {
            Some(ended) => VmState::Ended(ended.clone()),
            None => VmState::Running,
        }
    }

    /// QEMU's control channel, for what has no method here.
    pub fn control(&self) -> &Client {
        &self.control
    }

    /// The registers of all processors, as QEMU prints them.
    ///
    /// # Errors
    /// When QEMU is gone or does not answer.
    pub fn registers(&self) -> Result<String, QmpError> {
        self.control.monitor("info registers -a", CONTROL_PATIENCE)
    }

    /// Presses a key of the kernel's magic sysrq on the serial console: a break, then the key.
    ///
    /// # Errors
    /// When QEMU is gone or does not answer. Whether the kernel heard it shows on its console.
    pub fn sysrq(&self, key: u8) -> Result<(), QmpError> {
        self.control.execute("chardev-send-break", json!({ "id": CONSOLE }), CONTROL_PATIENCE)?;
        self.type_on_console(&[key])
    }

    /// Sends bytes to the serial console.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn type_on_console(&self, bytes: &[u8]) -> Result<(), QmpError> {
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.write_all(bytes).map_err(|_| QmpError::Closed)
    }

    /// Questions a machine that is taken to hang, before it is killed: the registers first, for they need no help from
    /// the kernel, then sysrq for the backtraces of the processors (`l`), of blocked tasks (`w`) and of all (`t`). Ends
    /// when the kernel has said it all, at the latest after `patience`.
    pub fn interrogate(&self, patience: Duration) -> Interrogation {
        let deadline = Instant::now() + patience;
        let registers = match self.registers() {
            Ok(text) => text,
            Err(error) => error.to_string(),
        };
        let mut kernel_answered = false;
        // `7` lets the kernel print what it otherwise keeps to its log.
        for key in *b"7lwt" {
            let before = self.activity.lock().0;
            if Instant::now() >= deadline || self.sysrq(key).is_err() {
                break;
            }
            // A kernel deaf to the first key is not asked again at full length.
            let share = if kernel_answered { patience } else { patience / 6 };
            let quiet = if key == b't' { QUIET_AT_LAST } else { QUIET };
            let until = deadline.min(Instant::now() + share);
            let answered = self.activity.settle(before, quiet, until);
            kernel_answered |= answered;
            if !answered && !kernel_answered {
                break;
            }
        }
        Interrogation { registers, kernel_answered }
    }

    /// Kills QEMU at once. The end is told by an event, and by [`wait`](Vm::wait).
    pub fn kill(&self) {
        self.end.killed.store(true, Ordering::Release);
        self.tether.kill();
    }

    /// Waits for the end, at most until `deadline`.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Ended> {
        let mut ended = self.end.lock();
        loop {
            if ended.is_some() {
                return ended.clone();
            }
            ended = match deadline {
                None => self.end.told.wait(ended).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.end.told.wait_timeout(ended, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
        let gone = self.tether.wait(Some(Instant::now() + DRAIN_DEADLINE));
        if let (Ok(Some(_)), Some(waiter)) = (gone, self.waiter.take()) {
            let _ = waiter.join();
        }
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("pid", &self.pid()).field("state", &self.state()).finish()
    }
}

/// Runs `work` in a thread; its result comes through the channel.
fn in_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Receiver<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().name(name.into()).spawn(move || {
        // Nobody waits any more when the machine was dropped.
        let _ = sender.send(work());
    })?;
    Ok(receiver)
}

fn wait_until_over(open: &Receiver<()>) {
    match open.recv_timeout(DRAIN_DEADLINE) {
        Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
    }
}

/// Reads to the end, keeps the beginning.
fn keep_stderr(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count) = stderr.read(&mut buffer) {
        if count == 0 {
            break;
        }
        let room = MAX_STDERR.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
    }
    String::from_utf8_lossy(&kept).trim_end().to_owned()
}

/// QEMU did not come up: it is ended, and what it said becomes the error.
fn stillborn(tether: &Tethered, stderr: &Receiver<String>, error: QmpError) -> VmError {
    if matches!(error, QmpError::Silent { .. }) {
        tether.kill();
        return VmError::Control(error);
    }
    // The channel closed, so it is about to end by itself.
    let status = tether.wait(Some(Instant::now() + DRAIN_DEADLINE));
    tether.kill();
    match status {
        Ok(Some(status)) => {
            let said = stderr.recv_timeout(DRAIN_DEADLINE).unwrap_or_default();
            let said = if said.is_empty() { "nothing".to_owned() } else { said };
            VmError::Stillborn { status, stderr: said }
        }
        _ => VmError::Control(error),
    }
}
