//! Checkpoints: making the pool as it is at one instant durable in its place, after which its log is empty.
//!
//! All maps stand still for the moment in which the instant is fixed (a [`Cut`]): changed leaves are copied, and what
//! was gathered is put into the log, so that later flushes need not wait. Everything else goes on while disks are read
//! and written. A change of the catalog is a checkpoint too, one for which maps stand still until its superblock is
//! made; there is little to store then, because a larger amount is stored before it.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use kiln_block::{ByteLen, ByteOffset};

use crate::PoolError;
use crate::cache::Leaf;
use crate::catalog::Catalog;
use crate::core::{Commit, Core};
use crate::format::{BLOCK_LEN, Superblock, encode_map_page};
use crate::head::{Head, Place};
use crate::leaf::LeafMap;
use crate::log::{Log, Pace, Room};
use crate::node::{Entry, ROOT_LEVEL};
use crate::reclaim::Share;
use crate::space::Run;
use crate::stats::nanos;
use crate::sync::atomic::Ordering;
use crate::sync::{MutexGuard, RwLockWriteGuard};
use crate::tree::{Fresh, nodes_for};

/// With more dirty leaves than this, a change of the catalog is preceded by a checkpoint during which disks go on.
pub(crate) const FEW_LEAVES: usize = 512;

/// A disk at the instant of a cut.
pub(crate) struct Frozen {
    head: Arc<Head>,
    place: Place,
    leaves: Vec<(u64, LeafMap)>,
    /// Keeps the leaves in memory until the map that is stored has what they hold.
    held: Vec<Arc<Leaf>>,
    size: u64,
    referenced: u64,
    written: u64,
}

impl Frozen {
    /// What it was at that instant is stored, or will be with the next checkpoint, behind this root.
    pub(crate) fn is_stored(&self, catalog: &mut Catalog, root: Entry) {
        self.head.move_to(|place| place.root = root);
        self.head.dirty().storing.clear();
        catalog.change(self.head.id, |state| {
            state.root = root;
            state.size = self.size;
            state.referenced = self.referenced;
            state.written = self.written;
        });
    }
}

/// Blocks that are written in one call: a file takes one at a time, and disks' users wait meanwhile.
const TOGETHER: usize = 64;
/// The same where nobody waits for the checkpoint. The device gets time for them before it gets more, or a flush that
/// comes meanwhile would wait for all of it.
const AT_LEISURE: usize = 16;

/// The most blocks it takes to store that many pages of the catalog, and a few more that a change makes.
pub(crate) fn catalog_needs(pages: u64) -> u64 {
    3 * (pages + 6) + 16
}

/// The pool at one instant, as far as it differs from what is stored.
struct Cut {
    /// Since when maps stand still for it.
    closed: Instant,
    heads: Vec<Frozen>,
    freed: Vec<Run>,
    freed_nodes: Vec<Run>,
    /// Gathered until then and not in the log, which is why nobody else may write to the log.
    records: Option<Vec<u8>>,
    /// How many records were ever gathered.
    upto: u64,
    /// The log from here on is what comes after.
    batch: u64,
    log_at: u64,
    /// Bytes of the log before that.
    log_needed: u64,
    epoch: u64,
    blocks: u64,
}

/// What a checkpoint stores besides nodes.
#[derive(Default)]
struct Pages(Vec<(u64, Vec<u8>)>);

impl Core {
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

    /// The same, for who holds the lock.
    pub(crate) fn checkpoint_locked<T>(
        &self,
        commit: &mut Commit,
        change: impl FnOnce(&Core, &mut Catalog) -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        if self.dirty_leaves.load(Ordering::Relaxed) > FEW_LEAVES {
            self.store(commit, Share::NONE)?;
        }
        let begun = Instant::now();
        let (mut log, gate, cut) = self.cut(Share::NONE)?;
        let outcome = self.conclude(commit, cut, Some(gate), Share::NONE, None, change);
        outcome.map(|(outcome, cut)| {
            self.shorten(&mut log, &cut);
            self.counters.checkpoint_time.add(nanos(begun.elapsed()));
            outcome
        })?
    }

    /// Makes the present state of everything durable while disks go on, and does a share of reclaiming.
    pub(crate) fn store(&self, commit: &mut Commit, share: Share) -> Result<(), PoolError> {
        self.store_and_copy(commit, share, None)
    }

    /// The same; with `bits`, says which blocks are in use in what was stored.
    pub(crate) fn store_and_copy(
        &self,
        commit: &mut Commit,
        share: Share,
        bits: Option<&mut Vec<u64>>,
    ) -> Result<(), PoolError> {
        let begun = Instant::now();
        let (mut log, gate, mut cut) = self.cut(share)?;
        drop(gate);
        self.stood_still(&cut.closed);
        // With these in the log, a flush of what comes later does not depend on this checkpoint.
        let records = cut.records.take().unwrap_or_default();
        match self.write_batch(&mut log, &records, cut.upto) {
            Ok(Room::Enough) => {
                self.end_of_log(&log, &mut cut);
                drop(log);
                let (outcome, cut) =
                    self.conclude(commit, cut, None, share, bits, |_, _| Ok(()))?;
                self.shorten(&mut self.log(), &cut);
                self.counters.checkpoint_time.add(nanos(begun.elapsed()));
                outcome
            }
            Ok(Room::Lacking) => {
                cut.records = Some(records);
                // No flush gets on before this is done.
                let share = Share { pace: Pace::Now, ..share };
                let (outcome, cut) =
                    self.conclude(commit, cut, None, share, bits, |_, _| Ok(()))?;
                self.shorten(&mut log, &cut);
                self.counters.checkpoint_time.add(nanos(begun.elapsed()));
                outcome
            }
            Err(error) => {
                self.undo(cut, &Fresh::default());
                Err(error)
            }
        }
    }

    /// Fixes the instant. Nothing is changed by one that fails.
    fn cut(
        &self,
        share: Share,
    ) -> Result<(MutexGuard<'_, Log>, RwLockWriteGuard<'_, ()>, Cut), PoolError> {
        self.check_fence()?;
        if self.space.available() == 0 {
            self.grow()?;
        }
        let pages = {
            // Whoever lists what is in it may have it for long; nobody else changes it meanwhile.
            let catalog = self.catalog();
            catalog.dirty.len() + 3 * share.merges.min(catalog.reclaimable())
        };
        let log = self.log();
        let closed = Instant::now();
        let gate = self.close();
        let heads = std::mem::take(&mut *self.changed());
        let nodes: u64 = heads.values().map(|head| nodes_for(&head.dirty().leaves)).sum();
        let pages = (pages + heads.len()) as u64;
        if let Err(error) = self.set_aside(nodes + catalog_needs(pages)) {
            *self.changed() = heads;
            return Err(error);
        }
        self.space.stand_still();
        self.made_nodes.store(0, Ordering::Relaxed);
        self.reclaiming.store(share.merges > 0, Ordering::Release);
        let heads = heads.into_values().map(|head| self.freeze(head)).collect();
        let (records, upto) = self.gathering.take();
        let mut cut = Cut {
            closed,
            heads,
            freed: self.space.take_freed(),
            freed_nodes: self.space.take_freed_nodes(),
            records: Some(records),
            upto,
            batch: 0,
            log_at: 0,
            log_needed: 0,
            epoch: self.epoch.load(Ordering::Acquire),
            blocks: self.space.end(),
        };
        self.end_of_log(&log, &mut cut);
        Ok((log, gate, cut))
    }

    fn end_of_log(&self, log: &Log, cut: &mut Cut) {
        cut.batch = log.next;
        cut.log_at = log.at % (self.layout.wal_blocks * BLOCK_LEN);
        cut.log_needed = log.needed;
    }

    pub(crate) fn freeze(&self, head: Arc<Head>) -> Frozen {
        let mut dirty = head.dirty();
        let mut leaves = Vec::with_capacity(dirty.leaves.len());
        let mut held = Vec::with_capacity(dirty.leaves.len());
        for number in &dirty.leaves {
            // What is dirty is in memory.
            if let Some(leaf) = self.leaves.get((head.id, *number)) {
                leaves.push((*number, leaf.read().clone()));
                leaf.dirty.store(false, Ordering::Release);
                held.push(leaf);
            }
        }
        self.dirty_leaves.fetch_sub(dirty.leaves.len(), Ordering::Relaxed);
        dirty.storing = std::mem::take(&mut dirty.leaves);
        dirty.let_go.clear();
        drop(dirty);
        Frozen {
            place: head.place(),
            size: head.size.load(Ordering::Acquire),
            referenced: head.referenced.load(Ordering::Relaxed),
            written: head.written.load(Ordering::Relaxed),
            leaves,
            held,
            head,
        }
    }

    /// Sees to it that there are that many blocks for what is about to be stored.
    pub(crate) fn set_aside(&self, needed: u64) -> Result<(), PoolError> {
        let mut aside = self.aside();
        let mut have: u64 = aside.iter().map(|run| run.len).sum();
        while have < needed {
            let Some(run) = self.space.take_reserved(needed - have) else {
                drop(aside);
                self.release_aside();
                return Err(PoolError::NoSpace);
            };
            have += run.len;
            aside.push(run);
        }
        Ok(())
    }

    /// What was not needed.
    pub(crate) fn release_aside(&self) {
        self.space.give_back_untouched(&std::mem::take(&mut *self.aside()));
    }

    /// A block for a node or a page of the catalog.
    pub(crate) fn metadata_block(&self) -> Result<u64, PoolError> {
        let mut aside = self.aside();
        while let Some(run) = aside.last_mut() {
            if run.len > 0 {
                run.start += 1;
                run.len -= 1;
                return Ok(run.start - 1);
            }
            aside.pop();
        }
        self.space.take_reserved(1).map(|run| run.start).ok_or(PoolError::NoSpace)
    }

    fn stood_still(&self, begun: &Instant) {
        let time = nanos(begun.elapsed());
        self.counters.standstill_time.add(time);
        self.counters.longest_standstill.at_least(time);
    }

    /// Stores a cut. What fails before anything was decided is as if it had not been tried; what fails later
    /// poisons the pool.
    fn conclude<'a, T>(
        &'a self,
        commit: &mut Commit,
        cut: Cut,
        gate: Option<RwLockWriteGuard<'a, ()>>,
        share: Share,
        bits: Option<&mut Vec<u64>>,
        change: impl FnOnce(&Core, &mut Catalog) -> Result<T, PoolError>,
    ) -> Result<(Result<T, PoolError>, Cut), PoolError> {
        let mut fresh = Fresh { written_early: true, ..Fresh::default() };
        let roots: Result<Vec<Entry>, PoolError> =
            cut.heads.iter().map(|frozen| self.build(frozen, &mut fresh)).collect();
        let roots = match roots {
            Ok(roots) => roots,
            Err(error) => {
                self.undo(cut, &fresh);
                return Err(error);
            }
        };
        let mut gone = cut.freed.clone();
        let mut gone_nodes = cut.freed_nodes.clone();
        gone_nodes.extend(self.space.unstore(&fresh.replaced));
        let mut catalog = self.catalog();
        for (frozen, root) in cut.heads.iter().zip(roots) {
            frozen.is_stored(&mut catalog, root);
        }
        let outcome = change(self, &mut catalog);
        let moves = self.reclaim_some(&mut catalog, share, &mut gone);
        catalog.forget_closed(|lease| self.space.give_back(lease));
        self.bases.forget(&catalog.forget_unused_bases());
        let next = self.generation.load(Ordering::Acquire) + 1;
        let stored = self.collect(commit, &mut catalog, next, &mut gone_nodes).map(|pages| {
            let superblock = Superblock {
                features: self.features.load(Ordering::Acquire),
                uuid: self.uuid,
                generation: next,
                opening: self.opening,
                layout: crate::format::Layout { blocks: cut.blocks, ..self.layout },
                map_used: commit.map_used,
                // A snapshot that was just taken has moved it on.
                epoch: cut.epoch.max(self.epoch.load(Ordering::Acquire)),
                next_id: catalog.next_id,
                wal_batch: cut.batch,
                log_at: cut.log_at,
                catalog: catalog.root.0,
                catalog_pages: catalog.pages,
                most: self.most,
                nonce: self.nonce,
            };
            (pages, superblock)
        });
        if let Some(bits) = bits {
            *bits = self.space.bits();
        }
        self.space.go_on();
        let leaving = catalog.reclaimable();
        drop(catalog);
        self.take_over(moves, gate.is_none());
        if let Some(gate) = gate {
            drop(gate);
            self.stood_still(&cut.closed);
        }
        self.release_aside();
        let stored =
            stored.and_then(|(pages, superblock)| self.write_out(pages, &superblock, share.pace));
        if let Err(error) = stored {
            self.poisoned.store(true, Ordering::Release);
            self.space.all_stale();
            return Err(error);
        }
        self.generation.store(next, Ordering::Release);
        self.logged.fetch_max(cut.upto, Ordering::AcqRel);
        self.durable.fetch_max(cut.upto, Ordering::AcqRel);
        self.counters.checkpoints.add(1);
        self.unwritten_mut().clear();
        self.space.settle(&gone);
        // What only the checkpoint before has is kept for as long as that is: should the catalog rot, it leads to everything.
        self.space.settle(&std::mem::replace(&mut commit.kept, gone_nodes));
        self.leaving.store(leaving, Ordering::Release);
        Ok((outcome, cut))
    }

    /// The checkpoint is durable: the log before it is free.
    fn shorten(&self, log: &mut Log, cut: &Cut) {
        log.needed -= cut.log_needed;
        log.durable = log.durable.max(cut.batch);
        self.log_used.store(log.needed, Ordering::Relaxed);
    }

    /// Makes the nodes of a map; returns its root.
    pub(crate) fn build(&self, frozen: &Frozen, fresh: &mut Fresh) -> Result<Entry, PoolError> {
        let leaves: Vec<(u64, &LeafMap)> =
            frozen.leaves.iter().map(|(number, leaf)| (*number, leaf)).collect();
        let place = &frozen.place;
        self.update(fresh, place, (ROOT_LEVEL, 0), place.root, &leaves)
    }

    /// The cut was not stored: all of it is still to be.
    fn undo(&self, cut: Cut, fresh: &Fresh) {
        self.unmake(fresh);
        self.release_aside();
        cut.heads.into_iter().for_each(|frozen| self.thaw(frozen));
        self.space.put_freed_back(cut.freed);
        self.space.put_freed_nodes_back(cut.freed_nodes);
        if let Some(records) = cut.records {
            self.gathering.put_back(records);
        }
        self.reclaiming.store(false, Ordering::Release);
        self.space.go_on();
    }

    /// Nodes that were made are nobody's.
    pub(crate) fn unmake(&self, fresh: &Fresh) {
        let placed = self.space.unstore(&fresh.placed);
        let mut unwritten = self.unwritten_mut();
        fresh.placed.iter().for_each(|block| drop(unwritten.remove(block)));
        drop(unwritten);
        self.space.settle(&placed);
    }

    /// What was frozen is to be stored later.
    pub(crate) fn thaw(&self, frozen: Frozen) {
        let mut dirty = frozen.head.dirty();
        let mut count = 0;
        for ((number, _), leaf) in frozen.leaves.iter().zip(&frozen.held) {
            if !leaf.dirty.swap(true, Ordering::AcqRel) {
                dirty.leaves.insert(*number);
                count += 1;
            }
        }
        dirty.storing.clear();
        self.dirty_leaves.fetch_add(count, Ordering::Relaxed);
        self.changed().insert(frozen.head.id, frozen.head.clone());
    }

    /// The pages of the catalog and of the free map that a checkpoint writes.
    fn collect(
        &self,
        commit: &mut Commit,
        catalog: &mut Catalog,
        generation: u64,
        gone: &mut Vec<Run>,
    ) -> Result<Pages, PoolError> {
        let mut pages = Pages::default();
        // A block that leads to all of the catalog is never the only one that does: what two checkpoints have in common, one
        // rotten bit takes from both.
        if catalog.dirty.is_empty() && catalog.pages > 0 {
            catalog.dirty.insert(generation % catalog.pages);
        }
        self.store_catalog(catalog, &mut pages, gone)?;
        let slot = generation & 1;
        let map_from = self.layout.map_start + slot * self.layout.map_pages;
        let (changed, used) = self.space.pages_for(u8::from(slot == 1), commit.map_used);
        commit.map_used = used;
        for (page, words) in changed {
            pages.0.push((map_from + page, encode_map_page(self.sums, page, generation, &words)));
        }
        Ok(pages)
    }

    fn store_catalog(
        &self,
        catalog: &mut Catalog,
        pages: &mut Pages,
        gone: &mut Vec<Run>,
    ) -> Result<(), PoolError> {
        let dirty = std::mem::take(&mut catalog.dirty);
        let place = Place { root: catalog.root.0, floor: 0, merged: None };
        let mut changed: Vec<u64> = Vec::new();
        let mut fresh = Fresh::default();
        for page in &dirty {
            let bytes = catalog.page(*page);
            let block = self.metadata_block()?;
            self.space.set_stored(block);
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
        gone.extend(self.space.unstore(&fresh.replaced));
        Ok(())
    }

    /// Nodes, catalog and free map; sync; superblock; sync.
    fn write_out(
        &self,
        pages: Pages,
        superblock: &Superblock,
        pace: Pace,
    ) -> Result<(), PoolError> {
        self.write_nodes(pace)?;
        let pages = pages.0.iter().map(|(block, bytes)| (*block, &bytes[..]));
        self.write_blocks(pages.collect(), pace)?;
        if pace == Pace::Patient {
            self.syncs.pause();
        }
        self.sync(pace)?;
        self.check_fence()?;
        let slot = ByteOffset::new((superblock.generation & 1) * 2 * BLOCK_LEN);
        let bytes = superblock.encode();
        if self.mending.load(Ordering::Acquire) {
            // What is there tells the next repair where to look, and goes only once this one is whole.
            self.device.write_at(slot, &bytes[..]).map_err(PoolError::device("write"))?;
            self.sync(Pace::Now)?;
        }
        let copies = [IoSlice::new(&bytes[..]), IoSlice::new(&bytes[..])];
        self.device.write_vectored_at(slot, &copies).map_err(PoolError::device("write"))?;
        self.sync(pace)?;
        self.counters.metadata_written.add(2 * BLOCK_LEN);
        Ok(())
    }

    /// Writes the nodes that wait, and forgets them.
    pub(crate) fn write_nodes(&self, pace: Pace) -> Result<(), PoolError> {
        let nodes = self.unwritten().clone();
        let bytes = nodes.iter().map(|(block, node)| (*block, &node.bytes()[..]));
        self.write_blocks(bytes.collect(), pace)?;
        self.unwritten_mut().retain(|block, _| !nodes.contains_key(block));
        Ok(())
    }

    /// Writes blocks, those in a row together.
    fn write_blocks(&self, mut blocks: Vec<(u64, &[u8])>, pace: Pace) -> Result<(), PoolError> {
        blocks.sort_unstable_by_key(|(block, _)| *block);
        let together = if pace == Pace::Patient { AT_LEISURE } else { TOGETHER };
        for run in
            blocks.chunk_by(|(a, _), (b, _)| a + 1 == *b).flat_map(|run| run.chunks(together))
        {
            let slices: Vec<IoSlice<'_>> = run.iter().map(|(_, b)| IoSlice::new(b)).collect();
            let at = ByteOffset::new(run[0].0 * BLOCK_LEN);
            self.device.write_vectored_at(at, &slices).map_err(PoolError::device("write"))?;
            // A flush of a disk that comes before this checkpoint's syncs would have to wait for all of it.
            self.device.begin_writing_out(at, ByteLen::new(run.len() as u64 * BLOCK_LEN));
            if pace == Pace::Patient && run.len() == together {
                self.syncs.pause();
            }
        }
        self.counters.metadata_written.add(blocks.len() as u64 * BLOCK_LEN);
        Ok(())
    }
}
