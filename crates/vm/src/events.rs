//! What happens to a machine, in order, for whoever asks.
//!
//! Lines of the console are bounded: when nobody reads, the newest are counted instead of kept. Everything else is
//! kept, for it is bounded by nature.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kiln_model::splat::Splat;

use crate::console::Line;

/// The most lines waiting.
const MAX_LINES: usize = 4096;

/// One thing that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// The console printed a line.
    Console(Line),
    /// It printed more than anybody read.
    ConsoleSkipped {
        /// How many lines are missing here; the recording has them.
        lines: u64,
    },
    /// The kernel cried out; comes when its report is complete.
    Splat(Splat),
    /// The console can no longer be recorded; the machine goes on.
    ConsoleNotKept {
        /// Why.
        reason: String,
    },
    /// QEMU is gone, and all it printed has been told. The last event.
    Ended(Ended),
}

/// The end of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What ended it.
    pub how: How,
    /// QEMU's own exit.
    pub status: ExitStatus,
    /// What QEMU wrote to standard error, bounded; hostile text.
    pub stderr: String,
}

/// What ended a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The guest switched it off.
    PoweredOff,
    /// The guest restarted it, which ends it: a reboot, a panic, a triple fault.
    Reset,
    /// [`Vm::kill`](crate::Vm::kill), or the machine was dropped.
    Killed,
    /// Somebody else asked QEMU to end, by a signal it could heed.
    Asked,
    /// QEMU itself failed, or somebody killed it.
    Failed,
}

impl How {
    /// For a person: `powered off`, `reset`, `killed`, …
    pub fn word(self) -> &'static str {
        match self {
            How::PoweredOff => "powered off",
            How::Reset => "reset",
            How::Killed => "killed",
            How::Asked => "ended by a signal",
            How::Failed => "QEMU failed",
        }
    }
}

/// The events of one machine; clones take from the same queue.
#[derive(Clone, Debug, Default)]
pub struct VmEvents(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    inner: Mutex<Inner>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<VmEvent>,
    lines: usize,
    skipped: u64,
    over: bool,
}

/// What [`VmEvents::next`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The oldest event.
    Event(VmEvent),
    /// The deadline came first.
    Timeout,
    /// Everything has been told, [`VmEvent::Ended`] included.
    Over,
}

impl VmEvents {
    /// The oldest event not yet taken; waits for one until `deadline`, without one as long as it takes.
    pub fn next(&self, deadline: Option<Instant>) -> Next {
        let mut inner = self.lock();
        loop {
            if let Some(event) = inner.take() {
                return Next::Event(event);
            }
            if inner.over {
                return Next::Over;
            }
            inner = match deadline {
                None => self.0.more.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Next::Timeout;
                    }
                    let waited = self.0.more.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    pub(crate) fn push(&self, event: VmEvent) {
        let mut inner = self.lock();
        if let VmEvent::Console(_) = event {
            if inner.lines >= MAX_LINES || inner.skipped > 0 {
                inner.skipped += 1;
                self.0.more.notify_one();
                return;
            }
            inner.lines += 1;
        } else {
            inner.admit_skipping();
        }
        inner.over |= matches!(event, VmEvent::Ended(_));
        inner.waiting.push_back(event);
        drop(inner);
        self.0.more.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take(&mut self) -> Option<VmEvent> {
        if self.waiting.is_empty() {
            self.admit_skipping();
        }
        let event = self.waiting.pop_front()?;
        if let VmEvent::Console(_) = event {
            self.lines -= 1;
        }
        Some(event)
    }

    /// Says at this place how many lines are missing.
    fn admit_skipping(&mut self) {
        if self.skipped > 0 {
            self.waiting.push_back(VmEvent::ConsoleSkipped { lines: self.skipped });
            self.skipped = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> VmEvent {
        VmEvent::Console(Line::parse(text))
    }

    #[test]
    fn a_flood_nobody_reads_is_counted_not_kept() {
        let events = VmEvents::default();
        for _ in 0..MAX_LINES + 50 {
            events.push(line("x"));
        }
        events.push(VmEvent::ConsoleNotKept { reason: "disk full".into() });
        for _ in 0..MAX_LINES {
            assert_eq!(events.next(None), Next::Event(line("x")));
        }
        assert_eq!(events.next(None), Next::Event(VmEvent::ConsoleSkipped { lines: 50 }));
        assert!(matches!(events.next(None), Next::Event(VmEvent::ConsoleNotKept { .. })));
        assert_eq!(events.next(Some(Instant::now())), Next::Timeout);
        events.push(line("y"));
        assert_eq!(events.next(None), Next::Event(line("y")));
    }
}
