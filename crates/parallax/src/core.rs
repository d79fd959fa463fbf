//! The pool in memory: its locks, its log, and the checkpoint that makes a state of everything durable.
//!
//! Locks are taken in this order: `commit`, `gate`, `catalog`, a disk's place, a leaf, the rest. Who changes
//! a map holds `gate` for reading while it does, never while it waits for data; a checkpoint
//! holds it for writing while it decides what to store, never while it stores it.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kiln_block::{BlockDevice, ByteOffset};

use crate::PoolError;
use crate::cache::{Clock, Leaf, LeafKey, NodeKey};
use crate::catalog::Catalog;
use crate::format::{BLOCK_LEN, Layout, Sums, Superblock, encode_map_page};
use crate::head::{Head, Place};
use crate::leaf::LeafMap;
use crate::node::{Entry, Node, ROOT_LEVEL};
use crate::space::{Run, Space};
use crate::tree::{Fresh, nodes_for};
use crate::wal::{BatchId, Gathering, batch_len, encode_batch};

#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) generation: u64,
    pub(crate) opening: u64,
    pub(crate) next_batch: u64,
    pub(crate) durable_batch: u64,
    /// Bytes of the log in use.
    pub(crate) wal_at: u64,
    pub(crate) map_used: u64,
}

pub(crate) struct Core {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) layout: Layout,
    pub(crate) uuid: [u8; 16],
    pub(crate) sums: Sums,
    pub(crate) space: Space,
    pub(crate) nodes: Clock<NodeKey, Arc<Node>>,
    pub(crate) leaves: Clock<LeafKey, Arc<Leaf>>,
    pub(crate) gathering: Gathering,
    pub(crate) epoch: AtomicU64,
    pub(crate) commit: Mutex<Commit>,
    pub(crate) gate: RwLock<()>,
    pub(crate) catalog: Mutex<Catalog>,
    /// Nodes that no checkpoint wrote yet, by block.
    pub(crate) unwritten: RwLock<HashMap<u64, Arc<Node>>>,
    pub(crate) metadata_lease: Mutex<Run>,
    /// Records known to be durable.
    pub(crate) durable: AtomicU64,
    /// Records known to be in the log or behind a checkpoint; they outlive the process.
    pub(crate) logged: AtomicU64,
    pub(crate) wal_used: AtomicU64,
    pub(crate) dirty_leaves: AtomicUsize,
    pub(crate) dirty_limit: usize,
    pub(crate) poisoned: AtomicBool,
    pub(crate) syncs: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

/// What a checkpoint stores besides nodes.
#[derive(Default)]
struct Pages(Vec<(u64, Vec<u8>)>);

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

    fn commit(&self) -> MutexGuard<'_, Commit> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by whoever changes a map.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refuse_if_poisoned(&self) -> Result<(), PoolError> {
        if self.poisoned.load(Ordering::Acquire) { Err(PoolError::Poisoned) } else { Ok(()) }
    }

    fn poison(&self, act: &'static str) -> impl FnOnce(kiln_block::DeviceError) -> PoolError {
        self.poisoned.store(true, Ordering::Release);
        PoolError::device(act)
    }

    pub(crate) fn metadata_block(&self) -> Result<u64, PoolError> {
        let mut lease = self.metadata_lease.lock().unwrap_or_else(PoisonError::into_inner);
        if lease.len == 0 {
            *lease = self.space.take_reserved(64).ok_or(PoolError::NoSpace)?;
        }
        lease.start += 1;
        lease.len -= 1;
        Ok(lease.start - 1)
    }

    /// Data and log are durable for everything that was written before the call.
    ///
    /// Whoever gets the lock first writes and syncs for all who wait behind it.
    pub(crate) fn flush(&self) -> Result<(), PoolError> {
        self.log(true)
    }

    /// What was written before the call outlives this process, though not a power cut: it is in the log, which the
    /// next flush of any disk syncs.
    pub(crate) fn settle(&self) -> Result<(), PoolError> {
        self.log(false)
    }

    fn log(&self, sync: bool) -> Result<(), PoolError> {
        self.refuse_if_poisoned()?;
        let target = self.gathering.count();
        let reached = if sync { &self.durable } else { &self.logged };
        if reached.load(Ordering::Acquire) >= target {
            return Ok(());
        }
        let mut commit = self.commit();
        self.refuse_if_poisoned()?;
        if reached.load(Ordering::Acquire) >= target {
            return Ok(());
        }
        let capacity = self.layout.wal_blocks * BLOCK_LEN;
        // More may be gathered until it is taken, so the decision leaves room.
        if commit.wal_at + batch_len(self.gathering.waiting()) > capacity * 7 / 8 {
            return self.checkpoint_locked(&mut commit, |_, _| Ok(()));
        }
        let (records, upto) = self.gathering.take();
        let id = BatchId {
            opening: commit.opening,
            number: commit.next_batch,
            durable: commit.durable_batch,
        };
        let batch = encode_batch(self.sums, id, &records);
        let at = self.layout.wal_start * BLOCK_LEN + commit.wal_at;
        if commit.wal_at + batch.len() as u64 > capacity {
            // The records are gone from memory; only a checkpoint can still make them durable.
            let stored = self.checkpoint_locked(&mut commit, |_, _| Ok(()));
            self.poisoned.fetch_or(stored.is_err(), Ordering::AcqRel);
            return stored;
        }
        // None when all that waits for this sync was logged without one.
        if !records.is_empty() {
            self.device
                .write_at(ByteOffset::new(at), &batch)
                .map_err(|e| self.poison("write")(e))?;
            commit.wal_at += batch.len() as u64;
            self.wal_used.store(commit.wal_at, Ordering::Relaxed);
            commit.next_batch += 1;
        }
        self.logged.store(upto, Ordering::Release);
        if sync {
            self.device.flush().map_err(|e| self.poison("sync")(e))?;
            self.syncs.fetch_add(1, Ordering::Relaxed);
            commit.durable_batch = commit.next_batch;
            self.durable.store(upto, Ordering::Release);
        }
        Ok(())
    }

    /// Whether memory, log or waiting space ask for a checkpoint.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let log = self.wal_used.load(Ordering::Relaxed) + self.gathering.waiting();
        log > self.layout.wal_blocks * BLOCK_LEN * 3 / 4
            || self.dirty_leaves.load(Ordering::Relaxed) >= self.dirty_limit
            || self.unwritten().len() >= self.dirty_limit / 2
            || self.space.wants_checkpoint()
    }

    /// Called before a change, with no lock held.
    pub(crate) fn make_room(&self) -> Result<(), PoolError> {
        if self.wants_checkpoint() {
            let mut commit = self.commit();
            self.refuse_if_poisoned()?;
            if self.wants_checkpoint() {
                self.checkpoint_locked(&mut commit, |_, _| Ok(()))?;
            }
        }
        Ok(())
    }

    /// Makes the present state of everything durable, and with it a change of the catalog, which is made while no
    /// disk changes and after every disk's root is up to date. A change that fails changes nothing.
    pub(crate) fn checkpoint<T>(
        &self,
        change: impl FnOnce(&Core, &mut Catalog) -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        let mut commit = self.commit();
        self.refuse_if_poisoned()?;
        self.checkpoint_locked(&mut commit, change)
    }

    fn checkpoint_locked<T>(
        &self,
        commit: &mut Commit,
        change: impl FnOnce(&Core, &mut Catalog) -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut catalog = self.catalog();
        if self.space.available_reserved() + self.lease_left() < self.nodes_needed(&catalog) {
            return Err(PoolError::NoSpace);
        }
        let heads: Vec<Arc<Head>> = catalog.heads.values().cloned().collect();
        for head in &heads {
            self.store_head(head)?;
        }
        catalog.note_heads();
        let outcome = change(self, &mut catalog);
        self.reclaim_some(&mut catalog);
        catalog.note_heads();
        drop(heads);
        catalog.forget_closed(|lease| self.space.give_back(lease));
        let mut pages = Pages::default();
        if let Err(error) = self.store_catalog(&mut catalog, &mut pages) {
            self.poisoned.store(true, Ordering::Release);
            return Err(error);
        }
        let next = commit.generation + 1;
        let slot = next & 1;
        let map_from = self.layout.map_start + slot * self.layout.map_pages;
        for (page, words) in self.space.pages_for(u8::from(slot == 1)) {
            if page >= commit.map_used && words.iter().all(|word| *word == 0) {
                continue;
            }
            commit.map_used = commit.map_used.max(page + 1);
            pages.0.push((map_from + page, encode_map_page(self.sums, page, next, &words)));
        }
        let freed = self.space.take_freed();
        let (_, upto) = self.gathering.take();
        // More may be made while these are written.
        let nodes = self.unwritten().clone();
        let superblock = Superblock {
            uuid: self.uuid,
            generation: next,
            opening: commit.opening,
            layout: self.layout,
            map_used: commit.map_used,
            epoch: self.epoch.load(Ordering::Acquire),
            next_id: catalog.next_id,
            wal_batch: commit.next_batch,
            catalog: catalog.root.0,
            catalog_pages: catalog.pages,
        };
        drop(catalog);
        drop(gate);
        if let Err(error) = self.write_out(&nodes, &pages, &superblock) {
            self.poisoned.store(true, Ordering::Release);
            self.space.all_stale();
            return Err(error);
        }
        commit.generation = next;
        commit.wal_at = 0;
        commit.durable_batch = commit.next_batch;
        self.wal_used.store(0, Ordering::Relaxed);
        self.logged.store(upto, Ordering::Release);
        self.durable.store(upto, Ordering::Release);
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.unwritten_mut().retain(|block, _| !nodes.contains_key(block));
        self.space.settle(&freed);
        outcome
    }

    pub(crate) fn lease_left(&self) -> u64 {
        self.metadata_lease.lock().unwrap_or_else(PoisonError::into_inner).len
    }

    /// The most metadata blocks a checkpoint can need; found before anything is changed.
    fn nodes_needed(&self, catalog: &Catalog) -> u64 {
        let nodes: u64 = catalog.heads.values().map(|head| nodes_for(&head.dirty())).sum();
        let dirty = catalog.heads.values().filter(|head| !head.dirty().is_empty()).count() as u64;
        nodes + 2 * dirty + self.catalog_needs(catalog)
    }

    /// The most blocks it takes to store the catalog.
    pub(crate) fn catalog_needs(&self, catalog: &Catalog) -> u64 {
        2 * (catalog.dirty.len() as u64 + 6) + 8
    }

    /// Stores a disk's changed leaves.
    pub(crate) fn store_head(&self, head: &Head) -> Result<(), PoolError> {
        let mut dirty = head.dirty();
        if dirty.is_empty() {
            return Ok(());
        }
        let mut held = Vec::with_capacity(dirty.len());
        for number in dirty.iter() {
            held.push(self.leaf(head, *number)?);
        }
        let maps: Vec<_> = held.iter().map(|leaf| leaf.read()).collect();
        let leaves: Vec<(u64, &LeafMap)> =
            dirty.iter().copied().zip(maps.iter().map(|map| &**map)).collect();
        let place = head.place();
        let mut fresh = Fresh::default();
        let made = self.update(&mut fresh, &place, (ROOT_LEVEL, 0), place.root, &leaves);
        if made.is_err() {
            // The map stays what it was, and what was made of a new one is nobody's.
            let mut unwritten = self.unwritten_mut();
            fresh.placed.iter().for_each(|block| drop(unwritten.remove(block)));
            self.space.unmap(&fresh.placed);
        }
        let root = made?;
        self.space.unmap(&fresh.replaced);
        head.move_to(|place| place.root = root);
        drop(leaves);
        drop(maps);
        for leaf in held {
            leaf.dirty.store(false, Ordering::Release);
        }
        self.dirty_leaves.fetch_sub(dirty.len(), Ordering::Relaxed);
        dirty.clear();
        Ok(())
    }

    fn store_catalog(&self, catalog: &mut Catalog, pages: &mut Pages) -> Result<(), PoolError> {
        let dirty = std::mem::take(&mut catalog.dirty);
        let place = Place { root: catalog.root.0, floor: 0, merged: None };
        let mut changed: Vec<u64> = Vec::new();
        let mut fresh = Fresh::default();
        for page in &dirty {
            let bytes = catalog.page(*page);
            let block = self.metadata_block()?;
            self.space.set_used(block);
            let number = page / 256;
            let leaf = catalog.leaves.entry(number).or_default();
            let entry_at = usize::try_from(page % 256).unwrap_or(0);
            let old = leaf.get(entry_at);
            if !old.is_hole() {
                fresh.replaced.push(old.block);
            }
            let birth = self.epoch.load(Ordering::Acquire);
            leaf.set(entry_at, Entry::data(block, birth, self.sums.data(*page, &bytes)));
            pages.0.push((block, bytes));
            if changed.last() != Some(&number) {
                changed.push(number);
            }
        }
        let leaves: Vec<(u64, &LeafMap)> =
            changed.iter().filter_map(|n| Some((*n, catalog.leaves.get(n)?))).collect();
        if !leaves.is_empty() {
            let root = self.update(&mut fresh, &place, (ROOT_LEVEL, 0), place.root, &leaves)?;
            catalog.root.0 = root;
        }
        self.space.unmap(&fresh.replaced);
        Ok(())
    }

    /// Nodes, catalog and free map; sync; superblock; sync.
    fn write_out(
        &self,
        nodes: &HashMap<u64, Arc<Node>>,
        pages: &Pages,
        superblock: &Superblock,
    ) -> Result<(), PoolError> {
        let mut blocks: Vec<(u64, &[u8])> =
            nodes.iter().map(|(block, node)| (*block, &node.bytes()[..])).collect();
        blocks.extend(pages.0.iter().map(|(block, bytes)| (*block, &bytes[..])));
        blocks.sort_unstable_by_key(|(block, _)| *block);
        for run in blocks.chunk_by(|(a, _), (b, _)| a + 1 == *b).flat_map(|run| run.chunks(512)) {
            let slices: Vec<IoSlice<'_>> = run.iter().map(|(_, b)| IoSlice::new(b)).collect();
            let at = ByteOffset::new(run[0].0 * BLOCK_LEN);
            self.device.write_vectored_at(at, &slices).map_err(PoolError::device("write"))?;
        }
        self.device.flush().map_err(PoolError::device("sync"))?;
        let slot = ByteOffset::new((superblock.generation & 1) * 2 * BLOCK_LEN);
        let bytes = superblock.encode();
        let copies = [IoSlice::new(&bytes[..]), IoSlice::new(&bytes[..])];
        self.device.write_vectored_at(slot, &copies).map_err(PoolError::device("write"))?;
        self.device.flush().map_err(PoolError::device("sync"))?;
        self.syncs.fetch_add(2, Ordering::Relaxed);
        Ok(())
    }
}
