//! A client's connection to an owner.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown, sockopt};
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};

use crate::error::{Refusal, StoreError};
use crate::frame::{self, FrameError};
use crate::place::Place;
use crate::reply::Reply;
use crate::request::{Progress, Request, Stop};

/// The version of what is said over the socket.
pub const VERSION: u32 = 1;
/// How long an owner that accepted may take to say hello.
const PATIENCE: Duration = Duration::from_secs(30);

/// The first thing an owner says. A later version may add fields, and keeps these and [`Request::Leave`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// The release of Kiln.
    pub release: String,
    /// The owner's process.
    pub pid: u32,
}

/// Whatever an owner says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// At the start, once the client counts.
    Hello(Hello),
    /// So far has the request got; more follows.
    Progress(Progress),
    /// The request was carried out.
    Done(Reply),
    /// It was not.
    Refused(Refusal),
    /// At the end: the owner was told to leave, and hangs up.
    Leaving,
}

/// A connection that was greeted: the owner stays while it lasts.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    pool: PathBuf,
    pub(crate) hello: Hello,
}

impl Connection {
    /// Connects to the owner of a pool; nothing if there is none, or it is just leaving.
    pub(crate) fn open(pool: &Path) -> Result<Option<Connection>, StoreError> {
        let failed = |source| StoreError::Io {
            act: format!("look for the owner of pool {}", pool.display()),
            source,
        };
        for place in Place::all(pool).map_err(failed)? {
            match place.connect() {
                Ok(socket) => return Connection::greeted(socket, pool),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {}
                    io::ErrorKind::PermissionDenied => {
                        use std::os::unix::fs::MetadataExt as _;
                        let Ok(found) = std::fs::symlink_metadata(place.path()) else { continue };
                        return Err(other_user(pool, found.uid()));
                    }
                    _ => return Err(failed(error)),
                },
            }
        }
        Ok(None)
    }

    fn greeted(socket: OwnedFd, pool: &Path) -> Result<Option<Connection>, StoreError> {
        let failed = |source| StoreError::Gone { path: pool.to_owned(), source };
        let peer = sockopt::socket_peercred(&socket).map_err(|errno| failed(errno.into()))?;
        let (uid, own) = (peer.uid.as_raw(), rustix::process::geteuid().as_raw());
        if uid != own && uid != 0 {
            return Err(other_user(pool, uid));
        }
        let wait = |time| sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, time);
        wait(Some(PATIENCE)).map_err(|errno| failed(errno.into()))?;
        let hello = match frame::receive(&socket, frame::LONGEST_ANSWER) {
            Ok((Answer::Hello(hello), _)) => hello,
            Ok(_) => return Err(failed(io::Error::other("it did not say hello"))),
            // It has just left; whoever wants an owner looks again.
            Err(FrameError::End) => return Ok(None),
            Err(FrameError::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
                ) =>
            {
                return Ok(None);
            }
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                let holder =
                    Some(format!("process {}, which does not answer,", peer.pid.as_raw_nonzero()));
                return Err(StoreError::Busy { path: pool.to_owned(), holder });
            }
            Err(error) => return Err(failed(io::Error::other(error))),
        };
        wait(None).map_err(|errno| failed(errno.into()))?;
        Ok(Some(Connection { socket, pool: pool.to_owned(), hello }))
    }

    /// Refuses an owner that speaks otherwise, unless it can be made to leave: then nothing.
    pub(crate) fn understood(self) -> Result<Option<Connection>, StoreError> {
        if self.hello.version == VERSION {
            return Ok(Some(self));
        }
        match self.ask(&Request::Leave, &[], &mut |_| {}, &Stop::new()) {
            Ok(_) => Ok(None),
            Err(_) => Err(StoreError::OtherVersion {
                path: self.pool,
                pid: self.hello.pid,
                release: self.hello.release,
                version: self.hello.version,
                own: VERSION,
            }),
        }
    }

    /// Asks, and waits for the answer. Told to stop, the connection is of no further use.
    pub(crate) fn ask(
        &self,
        request: &Request,
        files: &[BorrowedFd<'_>],
        on_progress: &mut dyn FnMut(Progress),
        stop: &Stop,
    ) -> Result<Reply, StoreError> {
        let gone = |error: FrameError| StoreError::Gone {
            path: self.pool.clone(),
            source: match error {
                FrameError::Io(source) => source,
                other => io::Error::other(other),
            },
        };
        frame::send(&self.socket, request, files, frame::LONGEST_REQUEST).map_err(gone)?;
        let mut told = false;
        loop {
            if stop.is_stopped() && !told {
                // The owner cleans up and answers before it hangs up too.
                let _ = shutdown(&self.socket, Shutdown::Write);
                told = true;
            }
            let pause = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let mut socket = [PollFd::new(&self.socket, PollFlags::IN)];
            if poll(&mut socket, Some(&pause)) == Ok(0) {
                continue;
            }
            match frame::receive(&self.socket, frame::LONGEST_ANSWER) {
                Ok((Answer::Progress(progress), _)) => on_progress(progress),
                Ok((Answer::Done(reply), _)) => return Ok(reply),
                Ok((Answer::Refused(refusal), _)) => return Err(refusal.into()),
                Ok((Answer::Hello(_) | Answer::Leaving, _)) => {}
                Err(_) if told => return Err(StoreError::Stopped),
                Err(error) => return Err(gone(error)),
            }
        }
    }

    /// Something that waits until the owner is gone.
    pub(crate) fn watch(&self) -> io::Result<Watch> {
        self.socket.try_clone().map(Watch)
    }
}

/// How an owner went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// It was told to leave, and said so.
    Said,
    /// It was killed.
    Silent,
}

/// Waits until an owner is gone; for a thread.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Returns when the owner has hung up, and how. Nothing may be asked on the connection any more.
    pub fn wait(&self) -> Parting {
        let mut watched = [PollFd::new(&self.0, PollFlags::RDHUP)];
        while poll(&mut watched, None) == Err(rustix::io::Errno::INTR) {}
        let mut parting = Parting::Silent;
        while let Ok((answer, _)) = frame::receive::<Answer>(&self.0, frame::LONGEST_ANSWER) {
            if answer == Answer::Leaving {
                parting = Parting::Said;
            }
        }
        parting
    }

    /// The same, unless the other descriptor can be read before: whether the owner has hung up.
    pub fn wait_unless(&self, enough: BorrowedFd<'_>) -> bool {
        let mut watched =
            [PollFd::new(&self.0, PollFlags::RDHUP), PollFd::new(&enough, PollFlags::IN)];
        while poll(&mut watched, None) == Err(rustix::io::Errno::INTR) {}
        watched[1].revents().is_empty()
    }
}

fn other_user(pool: &Path, uid: u32) -> StoreError {
    let own = rustix::process::geteuid().as_raw();
    StoreError::OtherUser { path: pool.to_owned(), uid, own }
}
