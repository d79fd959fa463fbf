//! A disk or snapshot that is in memory: its place among the states, and what changed since the last checkpoint.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use crate::catalog::State;
use crate::node::Entry;
use crate::space::Run;

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
    place: RwLock<Place>,
    /// Leaves that no checkpoint stored yet.
    dirty: Mutex<BTreeSet<u64>>,
    /// Blocks taken ahead, so that what is written one after the other lies together.
    pub(crate) lease: Mutex<Run>,
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
            place: RwLock::new(Place { root: state.root, floor, merged: None }),
            dirty: Mutex::default(),
            lease: Mutex::default(),
        }
    }

    pub(crate) fn place(&self) -> Place {
        *self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn move_to(&self, change: impl FnOnce(&mut Place)) {
        change(&mut self.place.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn dirty(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_lease(&self) -> Run {
        std::mem::take(&mut *self.lease.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
