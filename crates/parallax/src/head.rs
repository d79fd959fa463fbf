//! A disk or snapshot that is in memory: its place among the states, and what changed since the last checkpoint.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::catalog::State;
use crate::node::Entry;
use crate::space::Run;
use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// Where its map is, and which blocks are its own. Changes only while no write is under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) root: Entry,
    /// Epoch of the snapshot it evolved from: what was born later is its own.
    pub(crate) floor: u64,
    /// Its parent is being merged into it: below this leaf, what was born after the other floor is its own.
    pub(crate) merged: Option<(u64, u64)>,
}

impl Place {
    /// Whether what was born then, at these leaves, is nobody else's.
    pub(crate) fn owns(&self, leaves: std::ops::Range<u64>, birth: u64) -> bool {
        let floor = match self.merged {
            Some((cursor, floor)) if leaves.end <= cursor => floor,
            _ => self.floor,
        };
        birth > floor
    }
}

/// What changed and is not stored yet.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Leaves that no checkpoint has begun to store.
    pub(crate) leaves: BTreeSet<u64>,
    /// Leaves that the checkpoint under way stores.
    pub(crate) storing: BTreeSet<u64>,
    /// Leaf, blocks and birth of what was let go of and not owned, while a share of reclaiming is under way.
    pub(crate) let_go: Vec<(u64, Run, u64)>,
}

impl Dirty {
    pub(crate) fn is_dirty(&self) -> bool {
        !self.leaves.is_empty() || !self.storing.is_empty()
    }
}

#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) id: u64,
    pub(crate) name: Mutex<String>,
    pub(crate) read_only: bool,
    pub(crate) throw_away: bool,
    pub(crate) size: AtomicU64,
    pub(crate) quota: AtomicU64,
    pub(crate) referenced: AtomicU64,
    pub(crate) written: AtomicU64,
    /// What shows where its map says nothing, [packed](crate::base::Shown::pack).
    pub(crate) shown: AtomicU64,
    place: RwLock<Place>,
    dirty: Mutex<Dirty>,
    /// Blocks taken ahead, so that what is written one after the other lies together.
    pub(crate) lease: Mutex<Run>,
    /// Flushes since blocks were taken ahead.
    pub(crate) flushes: AtomicU64,
    /// Shared with everybody who has it open.
    pub(crate) users: Arc<()>,
}

impl Head {
    pub(crate) fn new(state: &State, floor: u64, read_only: bool) -> Head {
        Head {
            id: state.id,
            name: Mutex::new(state.name.clone()),
            read_only,
            throw_away: state.throw_away,
            size: AtomicU64::new(state.size),
            quota: AtomicU64::new(state.quota),
            referenced: AtomicU64::new(state.referenced),
            written: AtomicU64::new(state.written),
            shown: AtomicU64::new(state.shown.pack()),
            place: RwLock::new(Place { root: state.root, floor, merged: None }),
            dirty: Mutex::default(),
            lease: Mutex::default(),
            flushes: AtomicU64::new(0),
            users: Arc::default(),
        }
    }

    pub(crate) fn place(&self) -> Place {
        *self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn move_to(&self, change: impl FnOnce(&mut Place)) {
        change(&mut self.place.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_lease(&self) -> Run {
        std::mem::take(&mut *self.lease.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
