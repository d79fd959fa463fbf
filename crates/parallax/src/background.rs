//! A thread per open pool that checkpoints, grows and gives back space, so that who reads and writes need not.
//!
//! It does a little at a time. Between two shares of reclaiming it sleeps as long as the share took, so that a disk's
//! user has at least every other moment for itself.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::PoolError;
use crate::core::Core;
use crate::log::Pace;
use crate::reclaim::Share;
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The longest a share of reclaiming goes on, if nobody wants to change the catalog meanwhile. Each share ends with a
/// checkpoint, and those are what flushes of disks feel, so few long shares are better than many short ones.
const SHARE: Duration = Duration::from_millis(20);
/// What was deleted waits that long for more of it: one checkpoint gives back all of it, and deleting one thing after
/// the other is felt as rarely as deleting one.
const GATHERING: Duration = Duration::from_millis(10);
/// Nodes it visits, about.
const NODES: usize = 16 << 10;

#[derive(Debug, Default)]
struct Wishes {
    work: bool,
    end: bool,
}

/// What wakes the worker.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    wishes: Mutex<Wishes>,
    rung: Condvar,
    /// Rung and not heard yet: most who ring can see that without the lock.
    loud: std::sync::atomic::AtomicBool,
}

impl Bell {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something to do.
    pub(crate) fn ring(&self) {
        use std::sync::atomic::Ordering;
        if self.loud.load(Ordering::Relaxed) || self.loud.swap(true, Ordering::AcqRel) {
            return;
        }
        self.wishes().work = true;
        self.rung.notify_one();
    }

    fn end(&self) {
        self.wishes().end = true;
        self.rung.notify_one();
    }

    /// Waits for the bell; false when it is time to go.
    fn wait(&self) -> bool {
        let mut wishes = self.wishes();
        while !wishes.work && !wishes.end {
            wishes = self.rung.wait(wishes).unwrap_or_else(PoisonError::into_inner);
        }
        wishes.work = false;
        self.loud.store(false, std::sync::atomic::Ordering::Release);
        !wishes.end
    }

    /// Waits that long; false when it is time to go.
    fn rest(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut wishes = self.wishes();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if wishes.end || left.is_zero() {
                return !wishes.end;
            }
            wishes = self.rung.wait_timeout(wishes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The thread. It ends, and has ended, when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Works for a pool that has a bell. Without a thread to spare, who writes does the work.
    pub(crate) fn start(core: &Arc<Core>) -> Option<Worker> {
        let bell = core.bell.clone()?;
        let (pool, ear) = (Arc::downgrade(core), bell.clone());
        let work = move || work(&pool, &ear);
        let thread = std::thread::Builder::new().name("kiln-pool".into()).spawn(work).ok()?;
        // A pool may be opened with work left from last time.
        bell.ring();
        Some(Worker { bell, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.bell.end();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

fn work(pool: &Weak<Core>, bell: &Bell) {
    while bell.wait() {
        let Some(core) = pool.upgrade() else { return };
        let patient = core.may_gather();
        drop(core);
        if patient && !bell.rest(GATHERING) {
            return;
        }
        loop {
            let Some(core) = pool.upgrade() else { return };
            let begun = Instant::now();
            // What fails here fails again for whoever needs it, and is told to them.
            let more = core.work().unwrap_or(false);
            drop(core);
            if !more {
                break;
            }
            if !bell.rest(begun.elapsed().min(Duration::from_millis(50))) {
                return;
            }
        }
    }
}

impl Core {
    /// There may be something to reclaim.
    pub(crate) fn look_for_work(&self) {
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    /// Whether all there is to do is to reclaim, and nobody needs the space.
    fn may_gather(&self) -> bool {
        !self.wants_to_grow() && self.urgency() < 50 && self.catalog().wants_reclaim()
    }

    /// One piece of work; true if there is more.
    fn work(&self) -> Result<bool, PoolError> {
        self.refuse_if_poisoned()?;
        if self.wants_to_grow() {
            self.grow()?;
        }
        let reclaims = self.catalog().wants_reclaim();
        if reclaims || self.urgency() >= 50 {
            let mut commit = self.commit();
            self.refuse_if_poisoned()?;
            let until = Some(Instant::now() + SHARE);
            let pace = Pace::Patient;
            let share = Share { until, pace, nodes: NODES, ..crate::reclaim::SHARE };
            self.store(&mut commit, share)?;
        }
        Ok(self.catalog().wants_reclaim())
    }
}
