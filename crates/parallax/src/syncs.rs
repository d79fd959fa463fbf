//! Syncs of the device, so that who is in no hurry can have one that somebody else needs.
//!
//! A device does one sync at a time: a checkpoint's own would make the flush behind it wait twice as long. While disks are
//! flushed anyway, what works in the background therefore writes, and lets the next flush make it durable with its own.

use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The longest that is waited for the sync of somebody else.
pub(crate) const PATIENCE: Duration = Duration::from_millis(4);

/// What a device is given to carry out a few hundred kilobytes before somebody waits for them.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Counts {
    begun: u64,
    /// All up to this one are done.
    done: u64,
    /// When a disk's flush last had one.
    last: Option<Instant>,
    /// Who waits for a lock that a patient one may hold.
    hurried: usize,
    waiting: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Syncs {
    counts: Mutex<Counts>,
    changed: Condvar,
}

impl Syncs {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A flush is about to sync. Flushes do so one after the other.
    pub(crate) fn begin(&self) {
        self.counts().begun += 1;
    }

    /// The sync that began last is done; was it a disk's?
    pub(crate) fn end(&self, of_disk: bool) {
        let mut counts = self.counts();
        counts.done = counts.begun;
        if of_disk {
            counts.last = Some(Instant::now());
        }
        if counts.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Somebody waits for what a patient one may hold, until the same number of calls of [`calm`](Syncs::calm).
    pub(crate) fn hurry(&self) {
        let mut counts = self.counts();
        counts.hurried += 1;
        if counts.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Whether anybody waits so.
    pub(crate) fn is_hurried(&self) -> bool {
        self.counts().hurried > 0
    }

    pub(crate) fn calm(&self) {
        self.counts().hurried -= 1;
    }

    /// Gives the device a moment, unless somebody is in a hurry.
    pub(crate) fn pause(&self) {
        let until = Instant::now() + PAUSE;
        let mut counts = self.counts();
        counts.waiting += 1;
        while counts.hurried == 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(counts, left);
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        counts.waiting -= 1;
    }

    /// Waits for a sync that begins after this call; false where none came soon, or where nobody should wait. Then
    /// the caller needs one of its own.
    pub(crate) fn next(&self) -> bool {
        let now = Instant::now();
        let mut counts = self.counts();
        let wanted = counts.begun + 1;
        if counts.last.is_none_or(|last| now.saturating_duration_since(last) > PATIENCE) {
            return false;
        }
        counts.waiting += 1;
        while counts.done < wanted && counts.hurried == 0 {
            let left = (now + PATIENCE).saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(counts, left);
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        counts.waiting -= 1;
        counts.done >= wanted
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn nobody_waits_for_a_flush_where_there_are_none() {
        assert!(!Syncs::default().next());
    }

    #[test]
    fn only_a_sync_that_began_later_will_do() {
        let syncs = Syncs::default();
        syncs.begin();
        syncs.end(true);
        // Under way when it is asked for.
        syncs.begin();
        let asked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let counts = syncs.counts();
                asked.store(true, Ordering::Release);
                drop(counts);
                syncs.next()
            });
            while !asked.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            drop(syncs.counts());
            syncs.end(true);
            // Whoever hurries ends the waiting; what was under way did not count.
            syncs.hurry();
            assert!(!waiter.join().unwrap());
        });
        syncs.calm();
    }
}
