//! Threads that carry out what takes long, so that a queue's own thread is there for the next request.
//!
//! The kernel takes answers from the queue's thread alone; helpers leave theirs with a signal.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};

use rustix::event::{EventfdFlags, eventfd};

use super::wire::Request;
use super::work::Work;

/// Requests of a queue that can wait for the disk at once.
const MOST: usize = 8;

/// The helpers of one queue; there are none before they are needed.
#[derive(Debug)]
pub(super) struct Helpers {
    state: Mutex<State>,
    more: Condvar,
    /// Readable when there are answers.
    signal: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(u16, Request)>,
    answers: Vec<(u16, i32)>,
    threads: usize,
    idle: usize,
    ended: bool,
}

impl Helpers {
    pub(super) fn new() -> io::Result<Helpers> {
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Helpers { state: Mutex::default(), more: Condvar::new(), signal })
    }

    /// What becomes readable when there are answers.
    pub(super) fn signal(&self) -> RawFd {
        self.signal.as_raw_fd()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request over; `false` where there is no helper and can be none.
    pub(super) fn hand<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        work: &'scope Work<'_>,
        tag: u16,
        request: Request,
    ) -> bool {
        let mut state = self.state();
        if state.idle <= state.waiting.len() && state.threads < MOST {
            let name = "ublk".to_owned();
            let spawned = Builder::new().name(name).spawn_scoped(scope, || self.attend(work));
            if spawned.is_ok() {
                state.threads += 1;
            }
        }
        if state.threads == 0 {
            return false;
        }
        state.waiting.push_back((tag, request));
        self.more.notify_one();
        true
    }

    /// Answers that have come in: tags and results.
    pub(super) fn answers(&self) -> Vec<(u16, i32)> {
        // The signal is taken back first: whatever comes later gives another.
        let _ = rustix::io::read(&self.signal, &mut [0; 8]);
        std::mem::take(&mut self.state().answers)
    }

    /// Lets the threads go when they have done what was handed over.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.more.notify_all();
    }

    fn attend(&self, work: &Work<'_>) {
        let mut memory = work.memory();
        let mut state = self.state();
        loop {
            if let Some((tag, request)) = state.waiting.pop_front() {
                drop(state);
                let result = work.carry_out(tag, request, &mut memory);
                state = self.state();
                state.answers.push((tag, result));
                // The counter cannot overflow: there are fewer requests than it can count.
                let _ = rustix::io::write(&self.signal, &1_u64.to_ne_bytes());
            } else if state.ended {
                return;
            } else {
                state.idle += 1;
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::thread;

    use kiln_block::testing::{Act, GateDisk};
    use kiln_block::{ByteLen, MemoryDevice};
    use rustix::event::{PollFd, PollFlags, poll};

    use super::super::wire::Operation;
    use super::*;

    fn flush() -> Request {
        let operation = Operation::Flush;
        Request { operation, fua: false, keep_allocated: false, sectors: 0, start: 0 }
    }

    /// Waits until so many answers are there.
    fn answers(helpers: &Helpers, count: usize) -> Vec<(u16, i32)> {
        let mut found = Vec::new();
        while found.len() < count {
            // SAFETY: the descriptor is open for as long as `helpers` is borrowed.
            let signal = unsafe { BorrowedFd::borrow_raw(helpers.signal()) };
            poll(&mut [PollFd::new(&signal, PollFlags::IN)], None).unwrap();
            found.extend(helpers.answers());
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn eight_requests_of_a_queue_wait_for_the_disk_at_once_and_all_are_answered() {
        let disk = GateDisk::new(MemoryDevice::new(ByteLen::kib(64)), |act, _| act == Act::Flush);
        disk.shut();
        let file = tempfile::tempfile().unwrap();
        let (work, helpers) = (Work::new(&file, &disk, 0, 4096), Helpers::new().unwrap());
        thread::scope(|scope| {
            for tag in 0..20 {
                assert!(helpers.hand(scope, &work, tag, flush()));
            }
            disk.until_waiting(8);
            assert_eq!(helpers.answers(), []);
            disk.open();
            let expected: Vec<(u16, i32)> = (0..20).map(|tag| (tag, 0)).collect();
            assert_eq!(answers(&helpers, 20), expected);
            helpers.end();
        });
        assert_eq!(disk.callers(Act::Flush).len(), 20);
    }

    #[test]
    fn what_was_handed_over_before_the_end_is_carried_out() {
        let disk = GateDisk::new(MemoryDevice::new(ByteLen::kib(64)), |_, _| false);
        let file = tempfile::tempfile().unwrap();
        let (work, helpers) = (Work::new(&file, &disk, 0, 4096), Helpers::new().unwrap());
        thread::scope(|scope| {
            assert!(helpers.hand(scope, &work, 3, flush()));
            helpers.end();
        });
        assert_eq!(helpers.answers(), [(3, 0)]);
    }
}
