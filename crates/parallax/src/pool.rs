//! [`Pool`]: disks, snapshots and clones by name.
//!
//! Each change of the catalog is one record of the log or one checkpoint: when the call returns it is durable, and
//! after a power cut it happened or it did not.

use std::sync::Arc;
use std::time::SystemTime;

use kiln_block::{BlockDevice, ByteLen, Extent};

use crate::PoolError;
use crate::base::Shown;
use crate::catalog::{Catalog, Is, State, check_size};
use crate::core::Core;
use crate::disk::Disk;
use crate::format::BLOCK_LEN;
use crate::head::Head;
use crate::log::Pace;
use crate::node::{Entry, ROOT_LEVEL};
use crate::open::{self, PoolOptions};
use crate::opened::Opened;
use crate::reclaim::{SHARE, Share};
use crate::sync::PoisonError;
use crate::sync::atomic::Ordering;
use crate::tree::Side;
use crate::wal::Change;

/// Many virtual disks on one device. Dropping it without [`checkpoint`](Pool::checkpoint) loses nothing
/// that was flushed; the next opening does what the log says.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(crate) core: Arc<Opened>,
}

/// What a flush of a disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// It syncs.
    #[default]
    Full,
    /// Nothing: for clones that nobody wants to see again after a power cut.
    None,
}

/// What a disk is made with.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskOptions {
    /// What its flushes do.
    pub durability: Durability,
    /// The most it may reference; zero for any.
    pub quota: ByteLen,
}

/// Where a pool's space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpace {
    /// All of it.
    pub total: ByteLen,
    /// What that can become, on a device that can grow.
    pub limit: ByteLen,
    /// What maps reach, and the maps.
    pub used: ByteLen,
    /// What disks can still be given.
    pub available: ByteLen,
    /// Memory that maps take.
    pub cached: ByteLen,
    /// Deleted states whose space is not free yet.
    pub reclaiming: usize,
    /// Syncs of the device since the pool was opened.
    pub syncs: u64,
    /// Checkpoints since then.
    pub checkpoints: u64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Pool {
    /// Makes an empty pool of a device, whatever it holds.
    pub fn create(device: Arc<dyn BlockDevice>, options: &PoolOptions) -> Result<Pool, PoolError> {
        open::format(&*device, options)?;
        Pool::open(device, options)
    }

    /// Opens a pool. Nobody else may have it open.
    pub fn open(device: Arc<dyn BlockDevice>, options: &PoolOptions) -> Result<Pool, PoolError> {
        Ok(Pool { core: Opened::new(open::open(device, options, false)?, None) })
    }

    /// Opens a pool that is damaged with what is left of it, and makes its free map again from the disks' maps.
    /// Nothing is made up: what cannot be read stays unreadable. [`losses`](Pool::losses) says what there is no more.
    pub fn repair(device: Arc<dyn BlockDevice>, options: &PoolOptions) -> Result<Pool, PoolError> {
        Ok(Pool { core: Opened::new(open::open(device, options, true)?, None) })
    }

    /// What [`repair`](Pool::repair) had to leave out, a sentence each.
    pub fn losses(&self) -> &[String] {
        &self.core.losses
    }

    /// Fails where a disk, one of its snapshots, or the snapshot that is named is open: what could not be deleted.
    pub fn refuse_if_open(&self, disk: &str, snapshot: Option<&str>) -> Result<(), PoolError> {
        let mut catalog = self.core.catalog();
        let of = catalog.disk(disk)?.clone();
        let among: Vec<State> = match snapshot {
            Some(name) => vec![catalog.snapshot(disk, name)?.clone()],
            None => {
                idle_head(&mut catalog, &of)?;
                catalog.snapshots(of.id).into_iter().cloned().collect()
            }
        };
        let is_open = |state: &&State| {
            catalog.views.get(&state.id).is_some_and(|view| view.strong_count() > 0)
        };
        match among.iter().find(is_open) {
            Some(open) => Err(PoolError::InUse { name: format!("{disk}@{}", open.name) }),
            None => Ok(()),
        }
    }

    /// Makes an empty disk.
    pub fn create_disk(
        &self,
        name: &str,
        size: ByteLen,
        options: &DiskOptions,
    ) -> Result<(), PoolError> {
        check_size(size)?;
        self.core.catalog().may_take(0, name)?;
        self.core.checkpoint(|_, catalog| {
            catalog.may_take(0, name)?;
            let mut state = new_state(catalog, Is::Disk, name, size.get());
            state.throw_away = options.durability == Durability::None;
            state.quota = options.quota.get() / BLOCK_LEN;
            catalog.add(state);
            Ok(())
        })
    }

    /// Opens a disk. It may be open more than once; all see the same.
    pub fn open_disk(&self, name: &str) -> Result<Disk, PoolError> {
        let mut catalog = self.core.catalog();
        let id = catalog.disk(name)?.id;
        let head = catalog.head(id);
        let head = head.ok_or_else(|| PoolError::NoDisk { name: name.to_owned() })?;
        Ok(self.disk(head))
    }

    fn disk(&self, head: Arc<Head>) -> Disk {
        Disk { core: self.core.clone(), _user: head.users.clone(), head }
    }

    /// Opens a snapshot, which can only be read.
    pub fn open_snapshot(&self, disk: &str, snapshot: &str) -> Result<Disk, PoolError> {
        let mut catalog = self.core.catalog();
        let state = catalog.snapshot(disk, snapshot)?.clone();
        let head = match catalog.views.get(&state.id).and_then(std::sync::Weak::upgrade) {
            Some(head) => head,
            None => Arc::new(Head::new(&state, catalog.floor(&state), true)),
        };
        catalog.views.insert(state.id, Arc::downgrade(&head));
        Ok(self.disk(head))
    }

    /// Takes a snapshot of a disk as it is now; the disk may be written to meanwhile.
    pub fn snapshot(&self, disk: &str, name: &str) -> Result<(), PoolError> {
        self.core.log_change(Pace::Now, |core, catalog| {
            let disk = catalog.disk(disk)?.id;
            catalog.may_take(disk, name)?;
            Ok(Change::Snapshot {
                disk,
                id: catalog.new_id(),
                epoch: core.epoch.load(Ordering::Acquire),
                created: now(),
                name: name.to_owned(),
            })
        })
    }

    /// Makes a disk that starts as a snapshot.
    pub fn clone_disk(
        &self,
        disk: &str,
        snapshot: &str,
        name: &str,
        options: &DiskOptions,
    ) -> Result<(), PoolError> {
        self.core.log_change(Pace::Now, |_, catalog| {
            let of = catalog.snapshot(disk, snapshot)?.id;
            catalog.may_take(0, name)?;
            Ok(Change::Clone {
                of,
                id: catalog.new_id(),
                quota: options.quota.get() / BLOCK_LEN,
                created: now(),
                throw_away: options.durability == Durability::None,
                name: name.to_owned(),
            })
        })
    }

    /// Makes a disk what its snapshot was. Later snapshots stay. The disk must not be open.
    pub fn rollback(&self, disk: &str, snapshot: &str) -> Result<(), PoolError> {
        self.give_up_and(disk, |core, catalog| {
            let to = catalog.snapshot(disk, snapshot)?.clone();
            let of = catalog.disk(disk)?.clone();
            let head = idle_head(catalog, &of)?;
            core.give_up(catalog, of.root, catalog.floor(&of));
            core.leaves.forget(|(owner, _)| *owner == of.id);
            head.size.store(to.size, Ordering::Release);
            head.referenced.store(to.referenced, Ordering::Relaxed);
            head.shown.store(to.shown.pack(), Ordering::Release);
            head.move_to(|place| {
                place.root = to.root;
                place.floor = to.epoch;
                place.merged = None;
            });
            catalog.change(of.id, |disk| {
                disk.parent = to.id;
                disk.root = to.root;
                disk.size = to.size;
                disk.shown = to.shown;
                disk.referenced = to.referenced;
            });
            Ok(())
        })
    }

    /// Deletes a disk without snapshots. It must not be open.
    pub fn delete(&self, disk: &str) -> Result<(), PoolError> {
        self.give_up_and(disk, |core, catalog| {
            let of = catalog.disk(disk)?.clone();
            let snapshots = catalog.snapshots_by_name(of.id).count();
            if snapshots > 0 {
                return Err(PoolError::HasSnapshots { name: disk.to_owned(), snapshots });
            }
            let head = idle_head(catalog, &of)?;
            core.give_up(catalog, of.root, catalog.floor(&of));
            core.leaves.forget(|(owner, _)| *owner == of.id);
            core.space.give_back(head.take_lease());
            catalog.heads.remove(&of.id);
            catalog.remove(of.id);
            Ok(())
        })
    }

    /// A change that gives a disk's map up, which is no longer partly its parent's by then.
    fn give_up_and<T>(
        &self,
        disk: &str,
        change: impl FnOnce(&Core, &mut Catalog) -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        let core = &self.core;
        let mut commit = core.commit();
        core.refuse_if_poisoned()?;
        core.finish_merge(&mut commit, |catalog| Some(catalog.disk(disk).ok()?.parent))?;
        let outcome = core.checkpoint_locked(&mut commit, change);
        core.look_for_work();
        outcome
    }

    /// Deletes a snapshot. Its space is given back in the background, with later checkpoints or by
    /// [`gc`](Pool::gc). It must not be open.
    pub fn delete_snapshot(&self, disk: &str, name: &str) -> Result<(), PoolError> {
        self.core.log_change(Pace::Patient, |_, catalog| {
            let id = catalog.snapshot(disk, name)?.id;
            if catalog.views.get(&id).is_some_and(|view| view.strong_count() > 0) {
                return Err(PoolError::InUse { name: format!("{disk}@{name}") });
            }
            Ok(Change::Hide { id })
        })?;
        self.core.look_for_work();
        Ok(())
    }

    /// Gives a disk another name. It may be open.
    pub fn rename(&self, disk: &str, name: &str) -> Result<(), PoolError> {
        self.core.checkpoint(|_, catalog| {
            let id = catalog.disk(disk)?.id;
            catalog.may_take(0, name)?;
            catalog.change(id, |state| name.clone_into(&mut state.name));
            if let Some(head) = catalog.heads.get(&id) {
                name.clone_into(&mut head.name.lock().unwrap_or_else(PoisonError::into_inner));
            }
            Ok(())
        })
    }

    /// Changes a disk's size; it may be open. What a smaller one loses reads as zeros should it grow again.
    pub fn resize(&self, disk: &str, size: ByteLen) -> Result<(), PoolError> {
        check_size(size)?;
        let handle = self.open_disk(disk)?;
        let was = handle.size();
        if size > was {
            // Writes that a shrinking overtook may have left something here.
            handle.clear_blocks(was.get() / BLOCK_LEN..size.get() / BLOCK_LEN)?;
        }
        self.core.checkpoint(|_, catalog| {
            // What of a base is cut off stays hidden should the disk grow again.
            let shown = handle.shown().cut(size.get() / BLOCK_LEN);
            handle.head.shown.store(shown.pack(), Ordering::Release);
            handle.head.size.store(size.get(), Ordering::Release);
            catalog.change(handle.head.id, |disk| {
                disk.size = size.get();
                disk.shown = shown;
            });
            Ok(())
        })?;
        if size < was {
            handle.clear_blocks(size.get() / BLOCK_LEN..was.get() / BLOCK_LEN)?;
        }
        Ok(())
    }

    /// Limits what a disk may reference; zero for no limit.
    pub fn set_quota(&self, disk: &str, quota: ByteLen) -> Result<(), PoolError> {
        self.core.checkpoint(|_, catalog| {
            let id = catalog.disk(disk)?.id;
            let blocks = quota.get() / BLOCK_LEN;
            catalog.change(id, |state| state.quota = blocks);
            if let Some(head) = catalog.heads.get(&id) {
                head.quota.store(blocks, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    /// What changed from one snapshot of a disk to a later or earlier one, or (`None`) to the disk as it
    /// is: ranges and what the second has there. Exact to the block; costs what changed.
    pub fn diff(&self, disk: &str, from: &str, to: Option<&str>) -> Result<Vec<Extent>, PoolError> {
        let core = &self.core;
        // While it is held nothing becomes free, so the maps stay what they are.
        let mut commit = core.commit();
        if to.is_none() {
            core.refuse_if_poisoned()?;
            core.store(&mut commit, Share::NONE)?;
        }
        let sides = {
            let catalog = core.catalog();
            let side = |state: &State| Side { root: state.root, shown: state.shown };
            let new = match to {
                Some(name) => catalog.snapshot(disk, name)?,
                None => catalog.disk(disk)?,
            };
            (side(catalog.snapshot(disk, from)?), side(new))
        };
        core.differences(sides, &(0..u64::MAX))
    }

    /// How much would become free if a disk were deleted.
    pub fn unique(&self, disk: &str) -> Result<ByteLen, PoolError> {
        let core = &self.core;
        let mut commit = core.commit();
        core.refuse_if_poisoned()?;
        core.finish_merge(&mut commit, |catalog| Some(catalog.disk(disk).ok()?.parent))?;
        core.store(&mut commit, Share::NONE)?;
        let (root, keep) = {
            let catalog = core.catalog();
            let of = catalog.disk(disk)?;
            (of.root, catalog.floor(of))
        };
        let mut walk =
            crate::tree::Reclaim { keep, cursor: 0, budget: usize::MAX, freed: Vec::new() };
        core.reclaim(&mut walk, (ROOT_LEVEL, 0), root, Entry::HOLE)?;
        Ok(ByteLen::new(walk.freed.len() as u64 * BLOCK_LEN))
    }

    /// Where the pool's space is.
    pub fn space(&self) -> PoolSpace {
        let core = &self.core;
        PoolSpace {
            total: ByteLen::new(core.space.end() * BLOCK_LEN),
            limit: ByteLen::new(core.most().max(core.space.end()) * BLOCK_LEN),
            used: ByteLen::new((core.layout.data_start + core.space.used_count()) * BLOCK_LEN),
            available: ByteLen::new(core.space.available() * BLOCK_LEN),
            cached: core.cached(),
            reclaiming: self.reclaiming(),
            syncs: core.counters.syncs.get(),
            checkpoints: core.counters.checkpoints.get(),
        }
    }

    /// How many deleted states there are whose space is not free yet. Costs nothing, so that it can be waited for.
    pub fn reclaiming(&self) -> usize {
        self.core.leaving.load(Ordering::Acquire)
    }

    /// Gives all deleted space back now.
    pub fn gc(&self) -> Result<(), PoolError> {
        loop {
            let mut commit = self.core.commit();
            self.core.refuse_if_poisoned()?;
            self.core.store(&mut commit, SHARE)?;
            drop(commit);
            let mut catalog = self.core.catalog();
            if let Some(error) = catalog.reclaim_stopped.take() {
                return Err(error);
            }
            if catalog.next_reclaim().is_none() {
                return Ok(());
            }
        }
    }

    /// Stores everything in its place and empties the log, so that the next opening is quick. Disks go on meanwhile.
    pub fn checkpoint(&self) -> Result<(), PoolError> {
        let mut commit = self.core.commit();
        self.core.refuse_if_poisoned()?;
        self.core.store(&mut commit, SHARE)
    }

    /// Makes everything durable that was written to any disk.
    pub fn flush(&self) -> Result<(), PoolError> {
        self.core.flush()
    }

    /// Makes everything that was written to any disk outlive this process, though not a power cut.
    pub fn settle(&self) -> Result<(), PoolError> {
        self.core.settle()
    }
}

pub(crate) fn new_state(catalog: &mut Catalog, is: Is, name: &str, size: u64) -> State {
    State {
        is,
        hidden: false,
        throw_away: false,
        name: name.to_owned(),
        root: Entry::HOLE,
        id: catalog.new_id(),
        owner: 0,
        parent: 0,
        epoch: 0,
        size,
        referenced: 0,
        written: 0,
        quota: 0,
        created: now(),
        cursor: 0,
        shown: Shown::NOTHING,
        identity: [0; 16],
    }
}

/// The head of a disk that nobody has open.
pub(crate) fn idle_head(catalog: &mut Catalog, of: &State) -> Result<Arc<Head>, PoolError> {
    let name = || of.name.clone();
    let head = catalog.head(of.id).ok_or_else(|| PoolError::NoDisk { name: name() })?;
    if Arc::strong_count(&head.users) > 1 {
        return Err(PoolError::InUse { name: name() });
    }
    Ok(head)
}
