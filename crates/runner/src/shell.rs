//! A machine for a person: the same appliance and disks a run would get, and a program on a terminal.
//!
//! Whoever owns the terminal (raw mode, window size, signals) drives this: [`Shell::open`], then [`Shell::start`], then
//! [`ShellSession::next`] in one thread and [`ShellInput`] in another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_model::event::Happening;
use kiln_model::hostile;
use kiln_model::job::JobSpec;
use kiln_model::protocol::{Exec, Pty};
use kiln_store::StoreError;
use kiln_vm::agent::{AgentError, ExitStatus, Session, SessionEvent, SessionHandle, SignalTarget};

use crate::job::PoolAccess;
use crate::job::machine::{Machine as _, News};
use crate::job::qemu::QemuMachines;
use crate::job::running::QemuMachine;
use crate::sink::{EventSink, note, tell};
use crate::stop::{StopToken, Urgency};
use crate::watch::{Gone, Sign};

/// How long small requests may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The machine could not be started.
    #[error("cannot start the machine: {0}")]
    Start(String),
    /// It started and did not come up.
    #[error("the machine did not come up: {0}")]
    Boot(String),
    /// A person lost patience.
    #[error("interrupted")]
    Interrupted,
    /// The guest refused or was lost.
    #[error("cannot {act} in the guest")]
    Agent {
        /// What.
        act: &'static str,
        /// Why not.
        source: AgentError,
    },
}

/// A booted machine. Dropping it ends the machine at once.
pub struct Shell {
    machine: Box<QemuMachine>,
}

/// Something the program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellEvent {
    /// It wrote; hostile bytes for the terminal.
    Output(Vec<u8>),
    /// It exited with this status.
    Exited(i32),
    /// It was killed by this signal.
    Killed(i32),
}

/// The program that runs.
#[derive(Debug)]
pub struct ShellSession {
    session: Session,
}

/// What goes to the program; as many copies as are wanted, on any thread.
#[derive(Clone, Debug)]
pub struct ShellInput {
    handle: SessionHandle,
}

impl Shell {
    /// Boots a machine as the spec says and waits until its agent answers. The spec's stages are ignored; its folder
    /// must exist and receives `machines/1`. What happens on the way, console included, is told.
    ///
    /// # Errors
    /// When it does not come up; nothing is left running.
    pub fn open(
        spec: &JobSpec,
        access: &PoolAccess,
        sink: &mut dyn EventSink,
        stop: &StopToken,
    ) -> Result<Shell, ShellError> {
        let mut machine = QemuMachines::new(spec, access).boot(1).map_err(ShellError::Start)?;
        let (acceleration, pid) = machine.identity();
        tell(sink, Happening::VmStarted { vm: 1, acceleration, pid });
        let deadline = Instant::now() + Duration::from_millis(spec.machine.boot_timeout_ms);
        let mut crash: Option<String> = None;
        let mut last = String::new();
        // Whatever the guest says of it, the host's own fault explains it better.
        let fails = |machine: &mut QemuMachine, why: String| {
            ShellError::Boot(machine.host_trouble().unwrap_or(why))
        };
        loop {
            if stop.urgency() > Urgency::GoOn {
                return Err(ShellError::Interrupted);
            }
            match machine.next(Duration::from_millis(100)) {
                Some(News::Ready { boot_ms, boot_cpu_ms, restored, .. }) => {
                    tell(sink, Happening::VmReady { vm: 1, boot_ms, boot_cpu_ms, restored });
                    return Ok(Shell { machine: Box::new(machine) });
                }
                Some(News::Failed(reason)) => return Err(fails(&mut machine, reason)),
                Some(News::Told(level, text)) => note(sink, level, text),
                Some(News::Sign(Sign::Splat(splat))) => {
                    crash.get_or_insert_with(|| splat.signature.clone());
                    tell(sink, Happening::SplatSeen { vm: 1, stage: None, splat });
                }
                Some(News::Sign(Sign::Console(bytes))) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    if !text.trim().is_empty() {
                        last = hostile::one_line(hostile::without_sequences(&text).trim(), 200);
                    }
                    let source = kiln_model::event::OutputSource::Console;
                    tell(sink, Happening::Output { stage: None, source, text });
                }
                Some(News::Sign(Sign::Gone(Gone::ByGuest(how) | Gone::ByHost(how)))) => {
                    let why = crash.unwrap_or(if last.is_empty() {
                        how
                    } else {
                        format!("{how}: {last}")
                    });
                    return Err(fails(&mut machine, why));
                }
                _ => {}
            }
            if Instant::now() >= deadline {
                let waited = spec.machine.boot_timeout_ms / 1000;
                let said = if last.is_empty() { "it printed nothing" } else { last.as_str() };
                return Err(fails(&mut machine, format!("no answer within {waited} s; {said}")));
            }
        }
    }

    /// Starts a program: on a terminal of this size (rows, columns), or with pipes. No command means a login shell:
    /// `bash` where the guest has it, else `sh`.
    ///
    /// # Errors
    /// [`ShellError::Agent`] when it cannot be started.
    pub fn start(
        &self,
        command: &[String],
        environment: &[(String, String)],
        terminal: Option<(u16, u16)>,
    ) -> Result<ShellSession, ShellError> {
        let agent = Arc::clone(self.machine.agent().map_err(ShellError::Start)?);
        let login: &[&str] =
            &["/bin/sh", "-c", "command -v bash >/dev/null && exec bash -l; exec sh -l"];
        let argv = if command.is_empty() {
            login.iter().map(|word| word.as_bytes().to_vec()).collect()
        } else {
            command.iter().map(|word| word.as_bytes().to_vec()).collect()
        };
        let env = environment
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect();
        let pty = terminal.map(|(rows, cols)| Pty { rows, cols });
        let exec = Exec { argv, env, cwd: Vec::new(), pty, kill_leftovers: true };
        let session = agent
            .exec(exec, Instant::now() + PATIENCE)
            .map_err(|source| ShellError::Agent { act: "start the program", source })?;
        Ok(ShellSession { session })
    }

    /// Keeps the disks in the pool as they are now, the guest's own writes done: each under the name and with the snapshot
    /// that is given for its serial.
    ///
    /// # Errors
    /// When the pool refuses; those before are kept.
    pub fn keep_disks(&self, name: impl Fn(&str) -> (String, String)) -> Result<(), StoreError> {
        self.machine.keep_as(&name).map(|_| ())
    }

    /// Switches the machine off, politely first; says how that went.
    pub fn close(self) -> String {
        self.machine.end(true)
    }
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").field("identity", &self.machine.identity()).finish_non_exhaustive()
    }
}

impl ShellSession {
    /// Where input goes.
    pub fn input(&self) -> ShellInput {
        ShellInput { handle: self.session.handle() }
    }

    /// What the program does next, waiting at most this long; `None` when it did nothing.
    ///
    /// # Errors
    /// [`ShellError::Agent`] when the guest is lost: the machine crashed or was switched off.
    pub fn next(&mut self, patience: Duration) -> Result<Option<ShellEvent>, ShellError> {
        match self.session.next(Instant::now() + patience) {
            Ok(Some(SessionEvent::Output { bytes, .. })) => Ok(Some(ShellEvent::Output(bytes))),
            Ok(Some(SessionEvent::Exited(ExitStatus::Code(code)))) => {
                Ok(Some(ShellEvent::Exited(code)))
            }
            Ok(Some(SessionEvent::Exited(ExitStatus::Signal(signal)))) => {
                Ok(Some(ShellEvent::Killed(signal)))
            }
            Ok(None) => Ok(None),
            Err(error) if error.is_timeout() => Ok(None),
            Err(source) => Err(ShellError::Agent { act: "listen to the program", source }),
        }
    }
}

impl ShellInput {
    /// Sends bytes to its terminal or standard input.
    ///
    /// # Errors
    /// When the guest does not take them.
    pub fn write(&self, bytes: &[u8]) -> Result<(), ShellError> {
        let sent = self.handle.write(bytes, Instant::now() + PATIENCE);
        sent.map_err(|source| ShellError::Agent { act: "type", source })
    }

    /// Ends its input.
    ///
    /// # Errors
    /// When the guest is lost.
    pub fn close(&self) -> Result<(), ShellError> {
        let closed = self.handle.close_stdin(Instant::now() + PATIENCE);
        closed.map_err(|source| ShellError::Agent { act: "end the input", source })
    }

    /// Tells its terminal a new size.
    ///
    /// # Errors
    /// When the guest is lost.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), ShellError> {
        let told = self.handle.resize(rows, columns, Instant::now() + PATIENCE);
        told.map_err(|source| ShellError::Agent { act: "resize the terminal", source })
    }

    /// Sends a signal to what runs in the foreground.
    ///
    /// # Errors
    /// When the guest is lost.
    pub fn signal(&self, number: u8) -> Result<(), ShellError> {
        let sent = self.handle.signal(number, SignalTarget::Foreground, Instant::now() + PATIENCE);
        sent.map_err(|source| ShellError::Agent { act: "send a signal", source })
    }
}
