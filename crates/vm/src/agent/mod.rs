//! The host's end of the agent's channel: run programs in the guest, move files, watch its pulse.
//!
//! One thread per connection reads and sorts answers by channel; it never waits for whoever they are
//! for, because what may pile up is bounded by the credit we granted. Every wait has a deadline.
//! What the guest says is hostile: names are checked before they become paths here, text is text.

mod connection;
mod files;
mod session;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kiln_model::hostile;
use kiln_model::protocol::{
    Answer, Done, ErrorKind, Exec, Heartbeat, Renewal, Request, Stat, Welcome,
};

pub use files::{PullReport, Pulled};
pub use kiln_model::protocol::{ExitStatus, PullLimits, SignalTarget, Stream};
pub use session::{Session, SessionEvent, SessionHandle};

use connection::Connection;

/// Why the guest did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no socket, or nobody behind it.
    #[error("cannot connect to the agent's channel {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The channel ended: the machine is gone.
    #[error("the machine is gone")]
    Disconnected,
    /// The deadline passed.
    #[error("the guest did not answer in time ({waiting_for})")]
    Timeout {
        /// What was waited for.
        waiting_for: &'static str,
    },
    /// The guest said no. The text is the guest's, escaped.
    #[error("the guest says: {text}")]
    Guest {
        /// What kind of no.
        kind: ErrorKind,
        /// What, where and why.
        text: String,
    },
    /// The guest broke the rules, or a request does not fit them.
    #[error("the agent's protocol was broken: {found}")]
    Protocol {
        /// What was found.
        found: String,
    },
    /// The guest's executable is of another Kiln.
    #[error("the guest's agent speaks version {guest}, this kiln {host}; rebuild the image")]
    Version {
        /// What the guest speaks.
        guest: u16,
        /// What we speak.
        host: u16,
    },
    /// Something on this side failed.
    #[error("cannot {act} {path}")]
    Io {
        /// What.
        act: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl AgentError {
    /// Whether it only took too long: the operation may still be under way.
    pub fn is_timeout(&self) -> bool {
        matches!(self, AgentError::Timeout { .. })
    }
}

/// A conversation with a guest. Dropping it ends the conversation: programs it runs are killed
/// when the next one begins, or with the machine.
#[derive(Debug)]
pub struct Agent {
    connection: Arc<Connection>,
    welcome: Welcome,
}

impl Agent {
    /// Connects to the unix socket of the machine's serial port, waiting for it to appear, and greets
    /// the agent until it answers.
    ///
    /// # Errors
    /// [`AgentError::Connect`] or [`AgentError::Timeout`] at the deadline; [`AgentError::Version`].
    pub fn connect(socket: &Path, deadline: Instant) -> Result<Agent, AgentError> {
        loop {
            let source = match UnixStream::connect(socket) {
                Ok(stream) => return Agent::greet(stream, deadline),
                Err(error) => error,
            };
            let may_come =
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            if !may_come || Instant::now() >= deadline {
                return Err(AgentError::Connect { path: socket.to_owned(), source });
            }
            // A socket that does not exist yet cannot be waited for.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Greets the agent at the other end of a stream until it answers.
    ///
    /// # Errors
    /// [`AgentError::Timeout`] at the deadline, [`AgentError::Disconnected`], [`AgentError::Version`].
    pub fn greet(stream: UnixStream, deadline: Instant) -> Result<Agent, AgentError> {
        let (connection, welcome) = Connection::greet(stream, deadline)?;
        Ok(Agent { connection, welcome })
    }

    /// How the guest introduced itself. Its kernel's release is hostile text.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Starts a program.
    ///
    /// # Errors
    /// [`AgentError::Guest`] if it cannot be started.
    pub fn exec(&self, exec: Exec, deadline: Instant) -> Result<Session, AgentError> {
        Session::start(&self.connection, exec, deadline)
    }

    /// Writes a file in the guest, making missing folders; it appears whole or not at all.
    ///
    /// # Errors
    /// [`AgentError::Guest`], or [`AgentError::Io`] when `source` cannot be read.
    pub fn push(
        &self,
        path: &Path,
        mode: u32,
        source: &mut dyn io::Read,
        deadline: Instant,
    ) -> Result<u64, AgentError> {
        files::push(&self.connection, path, mode, source, deadline)
    }

    /// Brings files and folders out of the guest, to the same absolute paths below `to`. Patterns may
    /// hold `*` and `?`, which match within one name. What could not be had is told in the report.
    ///
    /// # Errors
    /// [`AgentError::Io`] when `to` cannot be written.
    pub fn pull(
        &self,
        patterns: &[String],
        to: &Path,
        limits: PullLimits,
        deadline: Instant,
    ) -> Result<PullReport, AgentError> {
        files::pull(&self.connection, patterns, to, limits, deadline)
    }

    /// Loads kernel modules by name or alias with all they need; returns how many were not loaded
    /// before.
    ///
    /// # Errors
    /// [`AgentError::Guest`] naming the module.
    pub fn load_modules(&self, names: &[String], deadline: Instant) -> Result<u64, AgentError> {
        let names = names.iter().map(|name| name.clone().into_bytes()).collect();
        Ok(self.done(Request::LoadModules(names), deadline, "loading modules")?.count)
    }

    /// Looks at a path without following a last link; none if there is nothing.
    ///
    /// # Errors
    /// [`AgentError::Guest`] if it cannot look.
    pub fn stat(&self, path: &Path, deadline: Instant) -> Result<Option<Stat>, AgentError> {
        let path = files::bytes_of(path);
        match self.connection.call(&Request::Stat(path), deadline, "looking at a file") {
            Ok(Answer::Stat(stat)) => Ok(Some(stat)),
            Ok(other) => Err(unexpected(&other)),
            Err(AgentError::Guest { kind: ErrorKind::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the guest write all dirty data to its disks.
    ///
    /// # Errors
    /// [`AgentError::Timeout`] when its disks take longer.
    pub fn sync(&self, deadline: Instant) -> Result<(), AgentError> {
        self.done(Request::Sync, deadline, "sync").map(|_| ())
    }

    /// Makes the guest look for disks and link them by serial; returns how many links there are.
    ///
    /// # Errors
    /// [`AgentError::Guest`].
    pub fn rescan_disks(&self, deadline: Instant) -> Result<u64, AgentError> {
        Ok(self.done(Request::RescanDisks, deadline, "looking for disks")?.count)
    }

    /// Sets the guest's wall clock.
    ///
    /// # Errors
    /// [`AgentError::Guest`].
    pub fn set_clock(&self, since_epoch: Duration, deadline: Instant) -> Result<(), AgentError> {
        let nanoseconds = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        self.done(Request::SetClock(nanoseconds), deadline, "setting the clock").map(|_| ())
    }

    /// Stirs bytes into the guest's random pool.
    ///
    /// # Errors
    /// [`AgentError::Guest`].
    pub fn seed_entropy(&self, bytes: &[u8], deadline: Instant) -> Result<(), AgentError> {
        self.done(Request::SeedEntropy(bytes.to_vec()), deadline, "seeding").map(|_| ())
    }

    /// Makes the guest say nothing more. When this returns nothing is under way in the channel, and the machine may be
    /// saved; [`greet_again`](Agent::greet_again) begins anew.
    ///
    /// # Errors
    /// [`AgentError::Timeout`].
    pub fn rest(&self, deadline: Instant) -> Result<(), AgentError> {
        self.done(Request::Rest, deadline, "rest").map(|_| ())
    }

    /// Begins another conversation on the same stream, after a [`rest`](Agent::rest). What ran in the guest for the last
    /// one is killed.
    ///
    /// # Errors
    /// As [`greet`](Agent::greet).
    pub fn greet_again(&mut self, deadline: Instant) -> Result<(), AgentError> {
        self.welcome = self.connection.greet_again(deadline)?;
        Ok(())
    }

    /// Makes the guest a machine of its own: clock, random numbers, host name, and where that is wanted machine id.
    ///
    /// # Errors
    /// [`AgentError::Guest`], or [`AgentError::Protocol`] when this host has no random bytes.
    pub fn renew(
        &self,
        since_epoch: Duration,
        hostname: &str,
        identified: bool,
        deadline: Instant,
    ) -> Result<(), AgentError> {
        let random = connection::random::<80>()?;
        let (machine, entropy) = random.split_at(16);
        let machine = if identified { machine } else { &[] };
        let machine_id: String = machine.iter().map(|byte| format!("{byte:02x}")).collect();
        let renewal = Renewal {
            since_epoch: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
            hostname: hostname.as_bytes().to_vec(),
            machine_id: machine_id.into_bytes(),
            entropy: entropy.to_vec(),
        };
        self.done(Request::Renew(renewal), deadline, "the machine's renewal").map(|_| ())
    }

    /// How long the guest takes to answer.
    ///
    /// # Errors
    /// [`AgentError::Timeout`].
    pub fn ping(&self, deadline: Instant) -> Result<Duration, AgentError> {
        let began = Instant::now();
        match self.connection.call(&Request::Ping(1), deadline, "ping")? {
            Answer::Pong(1) => Ok(began.elapsed()),
            other => Err(unexpected(&other)),
        }
    }

    /// Kills what runs, syncs, unmounts, switches the machine off. Returns when the guest is about to;
    /// the machine's end is for its owner to wait for.
    ///
    /// # Errors
    /// [`AgentError::Timeout`] if the guest does not get that far.
    pub fn power_off(&self, deadline: Instant) -> Result<(), AgentError> {
        match self.done(Request::PowerOff, deadline, "power-off") {
            Ok(_) | Err(AgentError::Disconnected) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The last sign of life, if there was one yet.
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        self.connection.heartbeat().1
    }

    /// How long ago the guest last gave a sign of life; at first, how long ago it welcomed us.
    pub fn heartbeat_age(&self) -> Duration {
        self.connection.heartbeat().0.elapsed()
    }

    /// Whether the channel still stands.
    pub fn is_connected(&self) -> bool {
        self.connection.is_connected()
    }

    fn done(
        &self,
        request: Request,
        deadline: Instant,
        waiting_for: &'static str,
    ) -> Result<Done, AgentError> {
        match self.connection.call(&request, deadline, waiting_for)? {
            Answer::Done(done) => Ok(done),
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.connection.close();
    }
}

/// An answer that makes no sense where it came.
fn unexpected(answer: &Answer) -> AgentError {
    let mut found = format!("unexpected answer {answer:?}");
    found.truncate(200); // debug output is ASCII: bytes are numbers in it
    AgentError::Protocol { found }
}

/// Guest text for a person: one line, printable, bounded.
fn printable(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().take(1000).collect();
    hostile::line(&text).into_owned()
}
