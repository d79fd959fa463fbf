//! The thread at a listening socket, until no more clients are wanted.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::Timespec;

use super::address::Address;
use super::listener::{ListenError, Listener};

/// Receives clients until it is closed or dropped; the socket's path goes then.
#[derive(Debug)]
pub struct Reception {
    address: Address,
    /// Written to when no more clients are wanted.
    enough: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Reception {
    /// Receives clients from now on, in a thread of that name, which hands them to `welcome` one after the other.
    pub fn open(
        listener: Listener,
        name: &str,
        welcome: impl FnMut(OwnedFd) + Send + 'static,
    ) -> Result<Reception, ListenError> {
        let address = listener.address().clone();
        let failed = |act| {
            let address = address.to_string();
            move |source| ListenError::Io { act, address, source }
        };
        let enough =
            eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed("listen on")(errno.into()))?;
        let enough = Arc::new(enough);
        let thread = {
            let enough = Arc::clone(&enough);
            Builder::new()
                .name(name.to_owned())
                .spawn(move || receive(&listener, &enough, welcome))
                .map_err(failed("start a thread for"))?
        };
        Ok(Reception { address, enough, thread: Some(thread) })
    }

    /// Where clients connect, with the port that was found free.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Receives nobody any more; whoever is being welcomed still is.
    pub fn begin_to_close(&self) {
        // The counter cannot overflow: it is written a few times.
        let _ = rustix::io::write(&self.enough, &1_u64.to_ne_bytes());
    }

    /// Returns when the last client was welcomed and the path is gone; `false` where that was long ago.
    pub fn close(&mut self) -> bool {
        let Some(thread) = self.thread.take() else { return false };
        self.begin_to_close();
        // A panic there has been told on stderr.
        let _ = thread.join();
        true
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.close();
    }
}

fn receive(listener: &Listener, enough: &OwnedFd, mut welcome: impl FnMut(OwnedFd)) {
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
            Ok(Some(client)) => welcome(client),
            Ok(None) => {}
            // Out of descriptors or memory: others have to leave before anybody can come. A pause that ends early when
            // nobody is to come.
            Err(_) => {
                let pause = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                let _ = poll(&mut [PollFd::new(enough, PollFlags::IN)], Some(&pause));
            }
        }
    }
}
