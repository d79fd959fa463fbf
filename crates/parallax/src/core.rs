//! The pool in memory: what is shared, and its locks.
//!
//! Locks are taken in this order: `commit`, `sync`, `log`, `gate`, `catalog`, a disk's place, a leaf, the rest; who has
//! `commit` may take `catalog` before `gate`. Who changes a map holds `gate` for reading while it does, never while it waits
//! for data. Checkpoints and changes of the catalog follow each other under `commit`; a flush needs `sync` and `log` alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen};

use crate::PoolError;
use crate::background::Bell;
use crate::base::Bases;
use crate::cache::{Clock, Leaf, LeafKey, NodeKey};
use crate::catalog::Catalog;
use crate::format::{BLOCK_LEN, Layout, Sums};
use crate::head::Head;
use crate::log::Log;
use crate::node::Node;
use crate::space::{Run, Space};
use crate::stats::Counters;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::syncs::Syncs;
use crate::wal::Gathering;

/// What the next checkpoint counts on from.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) map_used: u64,
    /// Nodes and pages of the catalog that the checkpoint before the last has, and the last has not.
    pub(crate) kept: Vec<Run>,
}

pub(crate) struct Core {
    pub(crate) device: Arc<dyn BlockDevice>,
    /// As the pool was opened; how many blocks there are by now is `space`'s to say.
    pub(crate) layout: Layout,
    /// Up to how many blocks the pool grows by itself.
    pub(crate) most: u64,
    pub(crate) uuid: [u8; 16],
    /// Which opening of the pool this is; a larger one on the device has taken it over.
    pub(crate) opening: u64,
    /// Tells it from one that began at the same instant.
    pub(crate) nonce: u64,
    pub(crate) sums: Sums,
    /// What the next superblock says a reader must know.
    pub(crate) features: AtomicU64,
    pub(crate) bases: Bases,
    pub(crate) space: Space,
    pub(crate) nodes: Clock<NodeKey, Arc<Node>>,
    pub(crate) leaves: Clock<LeafKey, Arc<Leaf>>,
    pub(crate) gathering: Gathering,
    pub(crate) epoch: AtomicU64,
    /// Of the newest superblock; its lowest bit says which slot that is in.
    pub(crate) generation: AtomicU64,
    pub(crate) commit: Mutex<Commit>,
    /// Held while the device is synced for flushes.
    pub(crate) sync: Mutex<()>,
    pub(crate) syncs: Syncs,
    pub(crate) log: Mutex<Log>,
    pub(crate) gate: RwLock<()>,
    pub(crate) catalog: Mutex<Catalog>,
    /// Disks of which a leaf is dirty.
    pub(crate) changed: Mutex<BTreeMap<u64, Arc<Head>>>,
    /// Nodes that no checkpoint wrote yet, by block.
    pub(crate) unwritten: RwLock<HashMap<u64, Arc<Node>>>,
    /// Blocks set aside for the checkpoint under way.
    pub(crate) aside: Mutex<Vec<Run>>,
    /// Records known to be durable.
    pub(crate) durable: AtomicU64,
    /// Records known to be in the log or behind a checkpoint; they outlive the process.
    pub(crate) logged: AtomicU64,
    /// Bytes of the log that an opening would have to read.
    pub(crate) log_used: AtomicU64,
    pub(crate) dirty_leaves: AtomicUsize,
    /// Nodes that snapshots made since the last checkpoint.
    pub(crate) made_nodes: AtomicUsize,
    /// The most leaves that may be dirty, as far as memory goes.
    pub(crate) dirty_most: usize,
    /// A share of reclaiming is under way: what disks let go of may become theirs meanwhile.
    pub(crate) reclaiming: AtomicBool,
    /// Deleted states whose space was not free when the last checkpoint was done, and those deleted since.
    pub(crate) leaving: AtomicUsize,
    /// The catalog was damaged and is not stored again yet.
    pub(crate) mending: AtomicBool,
    pub(crate) poisoned: AtomicBool,
    pub(crate) fenced: AtomicBool,
    /// Whether the device may be asked to grow; false once it refused.
    pub(crate) grows: Mutex<bool>,
    pub(crate) counters: Counters,
    pub(crate) bell: Option<Arc<Bell>>,
    /// What opening the pool had to leave out.
    pub(crate) losses: Vec<String>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn unwritten(&self) -> RwLockReadGuard<'_, HashMap<u64, Arc<Node>>> {
        self.unwritten.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn unwritten_mut(&self) -> RwLockWriteGuard<'_, HashMap<u64, Arc<Node>>> {
        self.unwritten.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn commit(&self) -> MutexGuard<'_, Commit> {
        // Who has it may be waiting for somebody's sync.
        self.syncs.hurry();
        let commit = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        self.syncs.calm();
        commit
    }

    pub(crate) fn aside(&self) -> MutexGuard<'_, Vec<Run>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changed(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Head>>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by whoever changes a map.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While it is held, no map changes.
    pub(crate) fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refuse_if_poisoned(&self) -> Result<(), PoolError> {
        if !self.poisoned.load(Ordering::Acquire) {
            Ok(())
        } else if self.fenced.load(Ordering::Acquire) {
            Err(PoolError::Fenced { opening: self.opening })
        } else {
            Err(PoolError::Poisoned)
        }
    }

    pub(crate) fn poison(
        &self,
        act: &'static str,
    ) -> impl FnOnce(kiln_block::DeviceError) -> PoolError + '_ {
        move |source| {
            self.poisoned.store(true, Ordering::Release);
            PoolError::Device { act, source }
        }
    }

    /// A leaf of a disk differs from what is stored. Called with the gate entered and the leaf locked.
    pub(crate) fn make_dirty(&self, head: &Arc<Head>, number: u64, leaf: &Leaf) {
        if !leaf.dirty.swap(true, Ordering::AcqRel) {
            let mut dirty = head.dirty();
            if dirty.leaves.is_empty() {
                self.changed().insert(head.id, head.clone());
            }
            dirty.leaves.insert(number);
            self.dirty_leaves.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The most leaves that may be dirty: what memory holds, and what the reserve can store.
    fn dirty_limit(&self) -> usize {
        let stored = usize::try_from(self.space.reserve() / 8).unwrap_or(usize::MAX);
        self.dirty_most.min(stored).max(8)
    }

    /// How urgently log, memory and waiting space ask for a checkpoint: the largest of the three, in percent of what
    /// there may be.
    pub(crate) fn urgency(&self) -> u64 {
        let percent = |of: u64, most: u64| of.saturating_mul(100) / most.max(1);
        let log = self.log_used.load(Ordering::Relaxed) + self.gathering.waiting();
        let dirty = self.dirty_leaves.load(Ordering::Relaxed) as u64;
        // 256 MiB of data that waits.
        let waiting = percent(self.space.waiting(), 65536);
        let log = percent(log, self.layout.wal_blocks * BLOCK_LEN * 3 / 4);
        // Nodes that snapshots made.
        let nodes = self.made_nodes.load(Ordering::Relaxed) as u64 * 2;
        let memory = percent(dirty.max(nodes), self.dirty_limit() as u64);
        log.max(memory).max(waiting)
    }

    /// Called before a change, with no lock held.
    pub(crate) fn make_room(&self) -> Result<(), PoolError> {
        let urgency = self.urgency();
        if urgency >= 50
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
        if urgency < 100 {
            return Ok(());
        }
        let mut commit = self.commit();
        self.refuse_if_poisoned()?;
        // It may be that the one just waited for was enough.
        if self.urgency() >= 100 {
            self.counters.foreground_checkpoints.add(1);
            self.store(&mut commit, crate::reclaim::SHARE)?;
        }
        Ok(())
    }

    /// Memory that maps take.
    pub(crate) fn cached(&self) -> ByteLen {
        ByteLen::new((self.leaves.bytes() + self.nodes.bytes()) as u64)
    }
}
