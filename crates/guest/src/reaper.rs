//! Noticing children that end, orphans included, without a signal handler.
//!
//! A thread watches for a zombie and leaves it where it is; the agent's loop, woken, buries all there
//! are. So nobody but the loop ever waits for a process, and while it starts one (which may itself
//! have to bury a child that could not be executed) nothing is taken away from under it.

use std::io;
use std::sync::Arc;
use std::thread::{self, Thread};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid};

/// Wakes the loop when there is someone to bury.
#[derive(Debug)]
pub(crate) struct Reaper {
    wake: Arc<OwnedFd>,
    watcher: Thread,
}

impl Reaper {
    pub(crate) fn start() -> io::Result<Reaper> {
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let for_watcher = Arc::clone(&wake);
        let watcher = thread::Builder::new().name("reaper".into()).stack_size(64 * 1024).spawn(
            move || {
                loop {
                    let seen = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
                    if seen.is_ok() {
                        let _ = rustix::io::write(&*for_watcher, &1_u64.to_ne_bytes());
                    }
                    // Until the zombie is buried, or, without any child, until one was started.
                    thread::park();
                }
            },
        )?;
        Ok(Reaper { wake, watcher: watcher.thread().clone() })
    }

    /// Readable when there is someone to bury.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Must be called after every start of a process: without children the watcher sleeps.
    pub(crate) fn watch_again(&self) {
        self.watcher.unpark();
    }

    /// Buries everyone who ended.
    pub(crate) fn bury(&self) -> Vec<(Pid, WaitStatus)> {
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
        let mut ended = Vec::new();
        while let Ok(Some(end)) = wait(WaitOptions::NOHANG) {
            ended.push(end);
        }
        self.watcher.unpark();
        ended
    }
}
