//! A server: one disk, one socket, one front-end after another.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Options;
use super::notice::Notices;
use crate::Export;
use crate::nbd::{Address, ListenError, Listener, Reception};

/// Serves a disk until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    reception: Reception,
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
        let listener = Listener::bind(&Address::Unix(path.to_owned()))?;
        let shared = Arc::new(Shared::default());
        let welcomed = Arc::clone(&shared);
        let reception = Reception::open(listener, "vhost", move |fd| {
            attend(UnixStream::from(fd), &welcomed, &export, &options);
        })?;
        Ok(Server { path: path.to_owned(), shared, reception })
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
        self.reception.begin_to_close();
        {
            let mut current = self.shared.current();
            current.stopping = true;
            if let Some(socket) = &current.socket {
                // One that is closed already has been left by its front-end.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        self.reception.close();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
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
