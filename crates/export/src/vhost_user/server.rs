//! A server: one disk, one socket, one front-end after another.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::Options;
use super::notice::Notices;
use crate::Export;
use crate::nbd::Address;
use crate::nbd::{ListenError, Listener};

/// Serves a disk until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    /// Written to when no more front-ends are wanted.
    enough: Arc<OwnedFd>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    current: Mutex<Current>,
    notices: Notices,
}

/// Who is connected.
#[derive(Debug, Default)]
struct Current {
    socket: Option<UnixStream>,
    stopping: bool,
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Listens at `path`, and serves from then on, in threads of its own.
    ///
    /// The socket can be reached by its user alone. What a dead server left at its path is replaced; a server
    /// that lives, or a file of another kind, is left alone. The path goes with the server. A second
    /// front-end waits until the first has left.
    pub fn start(path: &Path, export: Export, options: Options) -> Result<Server, ListenError> {
        let address = Address::Unix(path.to_owned());
        let listener = Listener::bind(&address)?;
        let failed = |act| {
            let address = address.to_string();
            move |source| ListenError::Io { act, address, source }
        };
        let enough =
            eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed("listen on")(errno.into()))?;
        let enough = Arc::new(enough);
        let shared = Arc::new(Shared::default());
        let accepting = {
            let (shared, enough) = (Arc::clone(&shared), Arc::clone(&enough));
            thread::Builder::new()
                .name("vhost".to_owned())
                .spawn(move || accept(&listener, &enough, &shared, &export, &options))
                .map_err(failed("start a thread for"))?
        };
        Ok(Server { path: path.to_owned(), shared, enough, accepting: Some(accepting) })
    }

    /// Where front-ends connect.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a front-end is connected.
    pub fn is_connected(&self) -> bool {
        self.shared.current().socket.is_some()
    }

    /// Tells the guest that the disk's size has changed; `false` where no front-end listens, and none
    /// needs to: whoever connects asks for the size.
    pub fn notify_resize(&self) -> bool {
        self.shared.notices.configuration_changed()
    }

    /// Stops: takes no more requests, finishes those that were taken, and hangs up. Whatever else the
    /// guest has asked for waits in its memory for the next server at this path.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        // The counter cannot overflow: it is written once.
        let _ = rustix::io::write(&self.enough, &1_u64.to_ne_bytes());
        {
            let mut current = self.shared.current();
            current.stopping = true;
            if let Some(socket) = &current.socket {
                // One that is closed already has been left by its front-end.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        // A panic there has been told on stderr.
        let _ = accepting.join();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept(
    listener: &Listener,
    enough: &OwnedFd,
    shared: &Shared,
    export: &Export,
    options: &Options,
) {
    loop {
        let mut waiting =
            [PollFd::new(listener, PollFlags::IN), PollFd::new(enough, PollFlags::IN)];
        if poll(&mut waiting, None).is_err() {
            continue;
        }
        if !waiting[1].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok(Some(fd)) => attend(UnixStream::from(fd), shared, export, options),
            Ok(None) => {}
            // Out of descriptors or memory: a pause that ends early when the server stops.
            Err(_) => {
                let pause = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                let _ = poll(&mut [PollFd::new(enough, PollFlags::IN)], Some(&pause));
            }
        }
    }
}

fn attend(socket: UnixStream, shared: &Shared, export: &Export, options: &Options) {
    {
        let mut current = shared.current();
        let Ok(copy) = socket.try_clone() else { return };
        if current.stopping {
            return;
        }
        current.socket = Some(copy);
    }
    // A front-end that breaks the protocol is hung up on; it alone would want to know.
    let _ = super::converse(socket, export.clone(), options, &shared.notices);
    shared.current().socket = None;
}
