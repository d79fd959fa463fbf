//! One program that runs for the host, with its pipes or its terminal.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use kiln_model::protocol::{Exec, ExitStatus, INITIAL_CREDIT, Pty, SignalTarget, Stream};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};

use crate::cgroup::Cgroup;
use crate::program::{Program, Surroundings};

/// How long output may stay open after the program ended and everything of it was killed: only a
/// process the kernel cannot kill still holds it then.
const DRAIN_KILLED: Duration = Duration::from_secs(2);
/// The same where leftovers may live on. A terminal's last bytes pass through a kernel thread, so that
/// "nothing to read" right after the end proves nothing.
const DRAIN_LIVING: Duration = Duration::from_millis(100);
/// How much output of living leftovers is still sent. More than a pipe and a terminal can hold, so that
/// all the program itself wrote is in it.
const DRAIN_AT_MOST: usize = 2 << 20;

/// What programs find in their environment, unless the host says otherwise.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", "/bin/sh"),
];

/// A program, from its start until the host was told of its end.
#[derive(Debug)]
pub(crate) struct Session {
    leader: Pid,
    cgroup: Option<Cgroup>,
    kill_leftovers: bool,
    /// Where its input goes; none once closed.
    stdin: Option<OwnedFd>,
    queue: VecDeque<u8>,
    close_after_queue: bool,
    /// Bytes taken from the host that it was not yet granted anew.
    owed: u32,
    /// Bytes the host may still send.
    window: u32,
    outputs: Vec<(Stream, OwnedFd)>,
    on_terminal: bool,
    status: Option<ExitStatus>,
    drain_until: Option<Instant>,
    /// Bytes read since the program ended.
    drained: usize,
}

impl Session {
    /// Starts the program.
    pub(crate) fn start(exec: &Exec, cgroup: Option<Cgroup>) -> io::Result<Session> {
        let (leader, ours) = match start(exec, cgroup.as_ref()) {
            Ok(started) => started,
            Err(error) => {
                cgroup.inspect(|cgroup| {
                    cgroup.remove();
                });
                return Err(error);
            }
        };
        Ok(Session {
            leader,
            cgroup,
            kill_leftovers: exec.kill_leftovers,
            stdin: Some(ours.stdin),
            queue: VecDeque::new(),
            close_after_queue: false,
            owed: 0,
            window: INITIAL_CREDIT,
            outputs: ours.outputs,
            on_terminal: exec.pty.is_some(),
            status: None,
            drain_until: None,
            drained: 0,
        })
    }

    pub(crate) fn leader(&self) -> Pid {
        self.leader
    }

    /// The program itself ended.
    pub(crate) fn ended(&mut self, status: ExitStatus) {
        self.status = Some(status);
        self.stdin = None;
        self.queue.clear();
        let patience = if self.kill_leftovers {
            self.signal(Signal::KILL, SignalTarget::Everything);
            DRAIN_KILLED
        } else {
            DRAIN_LIVING
        };
        self.drain_until = Some(Instant::now() + patience);
    }

    /// When to look again although nothing happened.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.drain_until
    }

    /// Whether the program ended and nothing more is expected out of it. What can be read must have
    /// been read before.
    pub(crate) fn is_finished(&self, now: Instant) -> bool {
        let patient = self.drain_until.is_some_and(|until| now < until);
        self.status.is_some() && (self.outputs.is_empty() || !patient)
    }

    /// Whether leftovers, allowed to live, said so much since the program ended that waiting for
    /// their silence makes no sense.
    pub(crate) fn is_overrun(&self) -> bool {
        self.status.is_some() && !self.kill_leftovers && self.drained > DRAIN_AT_MOST
    }

    pub(crate) fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// The control group to remove, once everyone in it is buried.
    pub(crate) fn into_cgroup(self) -> Option<Cgroup> {
        self.cgroup
    }

    pub(crate) fn outputs(&self) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        self.outputs.iter().map(|(stream, fd)| (*stream, fd.as_fd()))
    }

    /// Reads what is there, at most `budget` bytes; `None` when there is nothing now.
    pub(crate) fn read(&mut self, stream: Stream, budget: usize) -> Option<Vec<u8>> {
        let at = self.outputs.iter().position(|(this, _)| *this == stream)?;
        let mut bytes = vec![0; budget];
        loop {
            match rustix::io::read(&self.outputs[at].1, &mut bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                // A terminal whose last user left says EIO instead of end of file.
                Ok(0) | Err(_) => {
                    self.outputs.remove(at);
                    return None;
                }
                Ok(count) => {
                    bytes.truncate(count);
                    if self.status.is_some() {
                        self.drained += count;
                    }
                    return Some(bytes);
                }
            }
        }
    }

    /// Where queued input wants to go.
    pub(crate) fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        let stdin = self.stdin.as_ref()?;
        (!self.queue.is_empty()).then(|| stdin.as_fd())
    }

    /// Takes input. False if the host sent more than it may.
    pub(crate) fn input(&mut self, bytes: &[u8]) -> bool {
        let Ok(length) = u32::try_from(bytes.len()) else { return false };
        let Some(window) = self.window.checked_sub(length) else { return false };
        self.window = window;
        if self.stdin.is_some() && !self.close_after_queue {
            self.queue.extend(bytes);
            self.write_queue();
        } else {
            self.owed += length;
        }
        true
    }

    pub(crate) fn close_input(&mut self) {
        if self.on_terminal {
            const END_OF_FILE: u8 = 4; // ^D
            self.queue.push_back(END_OF_FILE);
        } else {
            self.close_after_queue = true;
        }
        self.write_queue();
    }

    /// Writes as much queued input as the program takes.
    pub(crate) fn write_queue(&mut self) {
        while let Some(stdin) = &self.stdin {
            let (front, _) = self.queue.as_slices();
            if front.is_empty() {
                break;
            }
            match rustix::io::write(stdin, front) {
                Ok(count) => {
                    self.queue.drain(..count);
                    self.owed = self.owed.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // Nobody reads any more; the host need not know, it will see the end.
                    self.owed += u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
                    self.queue.clear();
                    self.stdin = None;
                }
            }
        }
        if self.close_after_queue && self.queue.is_empty() {
            self.stdin = None;
        }
    }

    /// Credit to give back to the host, in portions worth a message.
    pub(crate) fn take_owed(&mut self) -> Option<u32> {
        let worth_it = self.owed >= INITIAL_CREDIT / 4 || (self.owed > 0 && self.queue.is_empty());
        if !worth_it {
            return None;
        }
        self.window = self.window.saturating_add(self.owed).min(INITIAL_CREDIT);
        Some(std::mem::take(&mut self.owed))
    }

    pub(crate) fn resize(&self, size: Pty) {
        if let (true, Some((_, master))) = (self.on_terminal, self.outputs.first()) {
            let _ = tcsetwinsize(master, winsize(size));
        }
    }

    pub(crate) fn signal(&self, signal: Signal, target: SignalTarget) {
        match (target, &self.cgroup) {
            (SignalTarget::Foreground, _) => {
                let foreground = match self.outputs.first() {
                    Some((_, master)) if self.on_terminal => tcgetpgrp(master).ok(),
                    _ => None,
                };
                if let Some(group) = foreground.or(self.status.is_none().then_some(self.leader)) {
                    let _ = kill_process_group(group, signal);
                }
            }
            (SignalTarget::Everything, Some(cgroup)) => cgroup.signal(signal),
            (SignalTarget::Everything, None) => {
                // A process may fork while we look; a dead one cannot.
                let passes = if signal == Signal::KILL { 5 } else { 1 };
                for _ in 0..passes {
                    if !signal_session(self.leader, signal) {
                        break;
                    }
                }
            }
        }
    }
}

/// Without control groups: everyone who is still in the session. The leader's number cannot have been
/// given to another session while anyone is in this one. Returns whether there was anyone.
fn signal_session(leader: Pid, signal: Signal) -> bool {
    let mut found = false;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name, in parentheses, may hold anything; after it come state, parent, group, session.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = fields.split_whitespace();
        let is_dead = fields.next() == Some("Z");
        let session = fields.nth(2).and_then(|field| field.parse().ok());
        if !is_dead
            && session == Some(leader.as_raw_nonzero().get())
            && let Some(pid) = Pid::from_raw(pid)
        {
            found |= kill_process(pid, signal).is_ok();
        }
    }
    found
}

/// Our ends of a program's files.
struct Ends {
    stdin: OwnedFd,
    outputs: Vec<(Stream, OwnedFd)>,
}

fn start(exec: &Exec, cgroup: Option<&Cgroup>) -> io::Result<(Pid, Ends)> {
    let term = exec.pty.map(|_| ("TERM", "xterm-256color"));
    let own = ENVIRONMENT.into_iter().chain(term);
    let own = own.map(|(key, value)| (key.as_bytes(), value.as_bytes()));
    let theirs = exec.env.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
    let folder = if exec.cwd.is_empty() { &b"/"[..] } else { &exec.cwd };
    let program = Program::new(&exec.argv, own.chain(theirs), folder)?;
    let (ours, theirs) = match exec.pty {
        Some(size) => terminal(size)?,
        None => pipes()?,
    };
    for fd in ours.outputs.iter().map(|(_, fd)| fd).chain([&ours.stdin]) {
        // Our ends only: the program has open files of its own.
        fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    }
    let leader = program.start(&Surroundings {
        stdio: [theirs[0].as_fd(), theirs[1].as_fd(), theirs[2].as_fd()],
        on_terminal: exec.pty.is_some(),
        cgroup,
    })?;
    Ok((leader, ours))
}

/// Pipes for a program, and its own ends: standard input, output and error.
fn pipes() -> io::Result<(Ends, [OwnedFd; 3])> {
    let (stdin, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (out_reader, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (error_reader, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let outputs = vec![(Stream::Stdout, out_reader), (Stream::Stderr, error_reader)];
    Ok((Ends { stdin: writer, outputs }, [stdin, stdout, stderr]))
}

/// A terminal for a program, and its own ends.
fn terminal(size: Pty) -> io::Result<(Ends, [OwnedFd; 3])> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    // By descriptor: the slave's path may not exist in this mount namespace.
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    tcsetwinsize(&master, winsize(size))?;
    let ends = [slave.try_clone()?, slave.try_clone()?, slave];
    Ok((Ends { stdin: master.try_clone()?, outputs: vec![(Stream::Terminal, master)] }, ends))
}

fn winsize(size: Pty) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}
