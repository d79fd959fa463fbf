//! [`Door`]: who is with an owner, and when it may leave.
//!
//! The one decision that must not go wrong: whoever was let in finds the owner there until they go. So a client
//! counts as inside before it is greeted, and the owner leaves only by closing a door behind which nobody is, under
//! the same lock. Who comes too late is not greeted and looks for the next owner (`tests/handover.rs` tries every
//! order of these steps).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The first client has to start up itself.
const FIRST: Duration = Duration::from_secs(15);
/// Clients at once.
const MOST: usize = 1024;

/// The state behind the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DoorState {
    open: bool,
    inside: usize,
}

impl Default for DoorState {
    fn default() -> DoorState {
        DoorState { open: true, inside: 0 }
    }
}

impl DoorState {
    /// Lets somebody in, unless it is closed or too many are inside.
    pub fn enter(&mut self) -> bool {
        let may = self.open && self.inside < MOST;
        self.inside += usize::from(may);
        may
    }

    /// Somebody who was let in goes.
    pub fn leave(&mut self) {
        self.inside -= 1;
    }

    /// Closes it if at most that many are inside; from then on nobody enters.
    pub fn close_if_at_most(&mut self, inside: usize) -> bool {
        self.open = self.open && self.inside > inside;
        !self.open
    }

    /// Whether nobody enters any more.
    pub fn is_closed(&self) -> bool {
        !self.open
    }

    /// How many are inside.
    pub fn inside(&self) -> usize {
        self.inside
    }
}

/// A door with people waiting on both sides.
#[derive(Debug)]
pub(crate) struct Door {
    state: Mutex<(DoorState, Instant)>,
    changed: Condvar,
}

/// Somebody inside; goes when dropped.
#[derive(Debug)]
pub(crate) struct Inside(Arc<Door>);

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.0.leave();
        state.1 = Instant::now();
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Door {
    pub(crate) fn new() -> Arc<Door> {
        // As if the last one left later than now: the first one is still on the way.
        let state = Mutex::new((DoorState::default(), Instant::now() + FIRST));
        Arc::new(Door { state, changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, (DoorState, Instant)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(self: &Arc<Door>) -> Option<Inside> {
        self.lock().0.enter().then(|| Inside(Arc::clone(self)))
    }

    /// Closes it whoever is inside.
    pub(crate) fn close(&self) {
        self.close_if_at_most(usize::MAX);
    }

    /// Closes it if at most that many are inside.
    fn close_if_at_most(&self, inside: usize) -> bool {
        let closed = self.lock().0.close_if_at_most(inside);
        self.changed.notify_all();
        closed
    }

    /// The same, waiting that long for the others to go.
    pub(crate) fn close_once_at_most(&self, inside: usize, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.0.close_if_at_most(inside) || left.is_zero() {
                self.changed.notify_all();
                return state.0.is_closed();
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether nobody enters any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().0.is_closed()
    }

    /// Waits until it is closed, or that moment has come; true if it is closed.
    pub(crate) fn wait_until(&self, moment: Instant) -> bool {
        let mut state = self.lock();
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            if state.0.is_closed() || left.is_zero() {
                return state.0.is_closed();
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until somebody closes it, or nobody was inside for that long, and closes it then.
    pub(crate) fn close_when_idle(&self, idle: Duration) {
        let mut state = self.lock();
        while !state.0.is_closed() {
            if state.0.inside() > 0 {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let left = (state.1 + idle).saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.0.close_if_at_most(0);
            } else {
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Waits until nobody is inside; false if somebody still is after that long.
    pub(crate) fn wait_until_empty(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.0.inside() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
