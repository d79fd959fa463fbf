//! A program that runs in the guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_model::protocol::{
    Answer, Exec, ExitStatus, MAX_CHUNK, Pty, Request, SignalTarget, Stream,
};

use super::connection::Connection;
use super::{AgentError, unexpected};

/// Something a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// It wrote. Hostile bytes.
    Output {
        /// Where.
        stream: Stream,
        /// What.
        bytes: Vec<u8>,
    },
    /// It ended, and all it wrote was told.
    Exited(ExitStatus),
}

/// A program that runs in the guest, and the only one who hears what it says. Dropped before the
/// program ended, it has the program killed.
#[derive(Debug)]
pub struct Session {
    handle: SessionHandle,
    pid: u32,
    over: bool,
}

/// Talks to a running program; as many copies as are wanted, on any thread.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    connection: Arc<Connection>,
    channel: u32,
}

impl Session {
    pub(super) fn start(
        connection: &Arc<Connection>,
        exec: Exec,
        deadline: Instant,
    ) -> Result<Session, AgentError> {
        let channel = connection.open(&Request::Exec(exec), deadline)?;
        let handle = SessionHandle { connection: Arc::clone(connection), channel };
        // Made first, so that on any failure its end cancels what may have begun.
        let mut session = Session { handle, pid: 0, over: false };
        match connection.next(channel, deadline, "the program to start") {
            Ok(Answer::Started(pid)) => session.pid = pid,
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => {
                session.over = matches!(error, AgentError::Guest { .. });
                return Err(error);
            }
        }
        Ok(session)
    }

    /// Its process id in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A handle for those who talk to it while we listen.
    pub fn handle(&self) -> SessionHandle {
        self.handle.clone()
    }

    /// What happens next; none after its end.
    ///
    /// # Errors
    /// [`AgentError::Timeout`] when nothing happened until the deadline; asking again is fine.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<SessionEvent>, AgentError> {
        if self.over {
            return Ok(None);
        }
        let connection = &self.handle.connection;
        match connection.next(self.handle.channel, deadline, "output or the program's end") {
            Ok(Answer::Output { stream, bytes }) => {
                Ok(Some(SessionEvent::Output { stream, bytes }))
            }
            Ok(Answer::Exited(status)) => {
                self.over = true;
                Ok(Some(SessionEvent::Exited(status)))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => {
                self.over = matches!(error, AgentError::Guest { .. });
                Err(error)
            }
        }
    }

    /// Hands all output to `sink` until the program ends.
    ///
    /// # Errors
    /// [`AgentError::Timeout`] at the deadline; the program still runs then.
    pub fn wait(
        &mut self,
        deadline: Instant,
        mut sink: impl FnMut(Stream, &[u8]),
    ) -> Result<ExitStatus, AgentError> {
        loop {
            match self.next(deadline)? {
                Some(SessionEvent::Output { stream, bytes }) => sink(stream, &bytes),
                Some(SessionEvent::Exited(status)) => return Ok(status),
                None => {
                    let found = "the program had ended already".to_owned();
                    return Err(AgentError::Protocol { found });
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.over {
            let soon = Instant::now() + Duration::from_secs(1);
            let _ = self.handle.connection.send(&Request::Cancel, self.handle.channel, soon);
        }
        self.handle.connection.forget(self.handle.channel);
    }
}

impl SessionHandle {
    /// Sends bytes to its standard input or terminal, as fast as it reads. Bytes for a program that
    /// has ended or closed its input vanish.
    ///
    /// # Errors
    /// [`AgentError::Timeout`] if it does not read; part of the bytes may have been sent.
    pub fn write(&self, bytes: &[u8], deadline: Instant) -> Result<(), AgentError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let wanted = rest.len().min(MAX_CHUNK);
            let take = self.connection.take_credit(self.channel, wanted, deadline)?;
            if take == 0 {
                return Ok(());
            }
            let (now, later) = rest.split_at(take);
            self.connection.send(&Request::Stdin(now.to_vec()), self.channel, deadline)?;
            rest = later;
        }
        Ok(())
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// The channel's.
    pub fn close_stdin(&self, deadline: Instant) -> Result<(), AgentError> {
        self.connection.send(&Request::CloseStdin, self.channel, deadline)
    }

    /// Tells its terminal a new size.
    ///
    /// # Errors
    /// The channel's.
    pub fn resize(&self, rows: u16, cols: u16, deadline: Instant) -> Result<(), AgentError> {
        self.connection.send(&Request::Resize(Pty { rows, cols }), self.channel, deadline)
    }

    /// Sends it a signal, by Linux's number.
    ///
    /// # Errors
    /// The channel's.
    pub fn signal(
        &self,
        signal: u8,
        target: SignalTarget,
        deadline: Instant,
    ) -> Result<(), AgentError> {
        self.connection.send(&Request::Signal { signal, target }, self.channel, deadline)
    }
}
