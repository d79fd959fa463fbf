//! Children that cannot outlive us, however we end.
//!
//! A child is held twice. The kernel kills it when the thread that forked it ends
//! (`PR_SET_PDEATHSIG`), so every child is forked by one thread that lives as long as the process. That signal does
//! not reach grandchildren (an emulator behind a wrapper script), nor a child that cleared it; so a tiny shell
//! waits beside each child on a pipe that only we hold open, and kills the child's whole process group when the
//! pipe ends, be it by our `SIGKILL`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process_group, pidfd_open,
    set_parent_process_death_signal,
};

/// How long [`Tethered`] waits, when dropped, for a killed child to be gone. Only a child stuck inside the host's
/// kernel takes longer.
const PATIENCE_AT_DROP: Duration = Duration::from_secs(10);

/// Reads the group's number, waits for the pipe to end, kills. Deaf to what a terminal sends to everyone.
const WATCHDOG: &str = "trap '' HUP INT TERM QUIT PIPE; read group || exit 0; read rest; \
                        kill -s KILL -- \"-$group\"";

/// A child process, leader of a process group of its own, that dies with us. Dropping kills the
/// whole group and reaps.
pub struct Tethered {
    pid: Pid,
    pidfd: OwnedFd,
    state: Mutex<State>,
}

struct State {
    child: Child,
    watchdog: Child,
    ended: Option<ExitStatus>,
}

struct Request {
    command: Command,
    inherit: Vec<OwnedFd>,
    reply: Sender<io::Result<(Child, Child)>>,
}

/// Starts `command` in a process group of its own. The descriptors in `inherit` are open in the child under the
/// numbers they have here; our own copies are closed before this returns.
///
/// # Errors
/// What `fork` and `exec` say, for the child or for its watchdog (`/bin/sh`).
pub fn spawn(command: Command, inherit: Vec<OwnedFd>) -> io::Result<Tethered> {
    let (reply, answer) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    spawner()?.send(Request { command, inherit, reply }).map_err(|_| gone())?;
    let (mut child, mut watchdog) = answer.recv().map_err(|_| gone())??;
    let pid = Pid::from_child(&child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => {
            Ok(Tethered { pid, pidfd, state: Mutex::new(State { child, watchdog, ended: None }) })
        }
        Err(error) => {
            end_now(&mut child);
            end_now(&mut watchdog);
            Err(error.into())
        }
    }
}

/// Tells the watchdog the number of the group it watches. Called in the child, before it becomes the program: were
/// it the parent's to tell, a parent killed at that moment would leave a group that nobody watches.
fn name_own_group(watchdog: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut line = [0; 12];
    let mut start = line.len() - 1;
    line[start] = b'\n';
    let mut left = getpid().as_raw_nonzero().get().unsigned_abs();
    while left > 0 {
        start -= 1;
        line[start] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
    }
    // So few bytes go into an empty pipe in one piece.
    rustix::io::write(watchdog, &line[start..]).map(|_| ())
}

fn end_now(child: &mut Child) {
    // Both fail only when the child is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

/// The thread that forks; it never ends before the process does.
fn spawner() -> io::Result<&'static Sender<Request>> {
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    if let Some(sender) = SPAWNER.get() {
        return Ok(sender);
    }
    let (sender, requests) = mpsc::channel::<Request>();
    thread::Builder::new().name("spawner".into()).spawn(move || {
        for Request { command, inherit, reply } in requests {
            // Whoever asked waits for the answer; a child it no longer wants must not stay.
            if let Err(mpsc::SendError(Ok((mut child, mut watchdog)))) =
                reply.send(fork_both(command, inherit))
            {
                end_now(&mut child);
                end_now(&mut watchdog);
            }
        }
    })?;
    // Of two threads that came here at once, the loser's spawner ends with its sender.
    Ok(SPAWNER.get_or_init(|| sender))
}

fn fork_both(mut command: Command, inherit: Vec<OwnedFd>) -> io::Result<(Child, Child)> {
    let mut watchdog = Command::new("/bin/sh")
        .args(["-c", WATCHDOG])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pipe = match &watchdog.stdin {
        Some(pipe) => pipe.as_raw_fd(),
        None => return Err(io::Error::other("the watchdog has no pipe")),
    };
    let us = getpid();
    let numbers: Vec<RawFd> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    command.process_group(0);
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(us) {
            // We died between fork and the line above: no signal will come any more.
            return Err(Errno::SRCH.into());
        }
        // SAFETY: `watchdog` holds the pipe until after the spawn below, so the number is open in the fork too.
        name_own_group(unsafe { BorrowedFd::borrow_raw(pipe) })?;
        for &number in &numbers {
            // SAFETY: the owner, `inherit`, outlives the spawn below, so the number is open in the fork too.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `prepare` only makes system calls and reads memory it owns: it takes no lock
    // and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn();
    drop(inherit);
    match child {
        Ok(child) => Ok((child, watchdog)),
        Err(error) => {
            end_now(&mut watchdog);
            Err(error)
        }
    }
}

impl Tethered {
    /// Its process id, which is also its group's.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Its standard input, if it was piped and nobody took it before.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.lock().child.stdin.take()
    }

    /// Its standard output, if it was piped and nobody took it before.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.lock().child.stdout.take()
    }

    /// Its standard error, if it was piped and nobody took it before.
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.lock().child.stderr.take()
    }

    /// Kills the whole group. Safe to call at any time, from any thread; the number cannot have passed to a
    /// stranger, for it is not given back before [`wait`](Tethered::wait) has seen the end.
    pub fn kill(&self) {
        let state = self.lock();
        if state.ended.is_none() {
            // Fails only when nobody is left.
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// Waits for the child's end, at most until `deadline` (for ever without one). When the child has ended, what is
    /// left of its group is killed, so that nothing survives a return of `Some`.
    ///
    /// # Errors
    /// Only what the kernel says about a child that is ours: none in practice.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.lock().ended {
                return Ok(Some(status));
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(None),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.reap().map(Some),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Called when the child is known to have ended. Until it is reaped its number names its group.
    fn reap(&self) -> io::Result<ExitStatus> {
        let mut state = self.lock();
        if let Some(status) = state.ended {
            return Ok(status);
        }
        let _ = kill_process_group(self.pid, Signal::KILL);
        // The watchdog must be silenced first: it kills by number.
        end_now(&mut state.watchdog);
        let status = state.child.wait()?;
        state.ended = Some(status);
        Ok(status)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tethered {
    fn drop(&mut self) {
        self.kill();
        // A child that does not die of SIGKILL within this time is the host kernel's; the watchdog stays with it.
        let _ = self.wait(Some(Instant::now() + PATIENCE_AT_DROP));
    }
}

impl fmt::Debug for Tethered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tethered").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
