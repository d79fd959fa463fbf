//! Making a pool and opening one: superblocks, free map, catalog, and what the log adds to them.

use std::collections::HashMap;
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset};

use crate::PoolError;
use crate::base::{Bases, OpenBase};
use crate::cache::Clock;
use crate::catalog::{Catalog, Root};
use crate::core::{Commit, Core};
use crate::format::{
    BLOCK, BLOCK_LEN, Layout, MAP_BITS, SUPERBLOCKS, Sums, Superblock, Unreadable, decode_map_page,
    index, same,
};
use crate::log::Log;
use crate::node::{Entry, FANOUT, Kind};
use crate::space::Space;
use crate::stats::Counters;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};

/// What can be chosen about a pool.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Memory for maps.
    pub cache: ByteLen,
    /// Size of a new pool's log: how much is written between two checkpoints at most.
    pub log: ByteLen,
    /// How large a new pool may become, on a device that can grow.
    pub limit: ByteLen,
    /// Whether a thread of its own checkpoints, grows and gives back space. Without one, who writes does it, when
    /// there is no other way; then everything that happens to the device happens in a call.
    pub background: bool,
    /// What opens the bases of disks that have one. Without it such disks read only what was written to them.
    pub bases: Option<Arc<dyn OpenBase>>,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions {
            cache: ByteLen::mib(32),
            log: ByteLen::mib(16),
            limit: ByteLen::ZERO,
            background: true,
            bases: None,
        }
    }
}

/// Bytes drawn at random.
fn drawn<const N: usize>(act: &'static str) -> Result<[u8; N], PoolError> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(
        |errno| {
            let source = kiln_block::DeviceError::Io {
                act: "draw an id for",
                at: ByteOffset::ZERO,
                source: errno.into(),
            };
            PoolError::Device { act, source }
        },
    )?;
    Ok(bytes)
}

/// Writes an empty pool over whatever the device holds.
pub(crate) fn format(device: &dyn BlockDevice, options: &PoolOptions) -> Result<(), PoolError> {
    let size = device.size();
    let layout = Layout::new(size, options.limit, options.log);
    let needs = ByteLen::new((layout.data_start + 256) * BLOCK_LEN);
    if size < needs {
        return Err(PoolError::TooSmall { needs, has: size });
    }
    let superblock = Superblock {
        features: 0,
        uuid: drawn("make")?,
        generation: 1,
        opening: 0,
        layout,
        map_used: 0,
        epoch: 1,
        next_id: 1,
        wal_batch: 1,
        log_at: 0,
        catalog: Entry::HOLE,
        catalog_pages: 0,
        most: layout.blocks.max(options.limit.get() / BLOCK_LEN),
        nonce: 0,
    };
    let fail = PoolError::device;
    // The log is written, not only reserved: a filesystem has nothing to note down then when a flush syncs it.
    let zeros = vec![0; index(layout.wal_blocks.min(256)) * BLOCK];
    let log_end = layout.wal_start + layout.wal_blocks;
    for block in (layout.wal_start..log_end).step_by(256) {
        let bytes = &zeros[..index((log_end - block).min(256)) * BLOCK];
        device.write_at(ByteOffset::new(block * BLOCK_LEN), bytes).map_err(fail("write"))?;
    }
    device.write_at(ByteOffset::ZERO, &[0; 4 * BLOCK]).map_err(fail("write"))?;
    device.flush().map_err(fail("sync"))?;
    for copy in 2..SUPERBLOCKS {
        let at = ByteOffset::new(copy * BLOCK_LEN);
        device.write_at(at, &superblock.encode()[..]).map_err(fail("write"))?;
    }
    device.flush().map_err(fail("sync"))
}

pub(crate) fn newest_superblock(device: &dyn BlockDevice) -> Result<Superblock, PoolError> {
    let mut newest: Option<Superblock> = None;
    let mut refusal = None;
    for copy in 0..SUPERBLOCKS {
        let mut bytes = [0; BLOCK];
        if device.size().get() < SUPERBLOCKS * BLOCK_LEN {
            break;
        }
        let at = ByteOffset::new(copy * BLOCK_LEN);
        device.read_at(at, &mut bytes).map_err(PoolError::device("read"))?;
        match Superblock::decode(&bytes) {
            Ok(found) if found.generation & 1 == copy / 2 => {
                if newest.as_ref().is_none_or(|newest| newest.generation < found.generation) {
                    newest = Some(found);
                }
            }
            Err(Unreadable::TooNew(version)) => refusal = Some(PoolError::TooNew { version }),
            Err(Unreadable::Features(bits)) => {
                refusal = Some(PoolError::UnknownFeatures { bits });
            }
            Ok(_) | Err(Unreadable::NotOne | Unreadable::Torn) => {}
        }
    }
    // The other slot may be readable, but is what the pool was before.
    refusal.map_or_else(|| newest.ok_or(PoolError::NotAPool), Err)
}

/// Opens a pool; with `rebuild`, the free map is not read but made from the maps.
pub(crate) fn open(
    device: Arc<dyn BlockDevice>,
    options: &PoolOptions,
    rebuild: bool,
) -> Result<Core, PoolError> {
    let superblock = newest_superblock(&*device)?;
    let mut layout = superblock.layout;
    let has = device.size();
    if has.get() / BLOCK_LEN < layout.blocks {
        return Err(PoolError::TooSmall { needs: ByteLen::new(layout.blocks * BLOCK_LEN), has });
    }
    layout.blocks = (has.get() / BLOCK_LEN).min(layout.limit());
    let sums = Sums::of_pool(&superblock.uuid);
    let (stored, damaged) = read_map(&*device, &superblock, sums)?;
    if let (Some(page), false) = (damaged.first(), rebuild) {
        return Err(PoolError::FreeMap { page: *page });
    }
    let space = Space::new(&layout, if rebuild { &[] } else { &stored });
    let cache = index(options.cache.get()).max(64 * BLOCK);
    let bell = options.background.then(Arc::default);
    let mut core = Core {
        device,
        layout,
        most: if superblock.most == 0 { layout.limit() } else { superblock.most },
        uuid: superblock.uuid,
        opening: superblock.opening + 1,
        nonce: u64::from_le_bytes(drawn("open")?),
        sums,
        features: AtomicU64::new(superblock.features),
        bases: Bases::new(options.bases.clone()),
        space,
        nodes: Clock::new(cache / 4),
        leaves: Clock::new(cache / 4 * 3),
        gathering: crate::wal::Gathering::default(),
        epoch: AtomicU64::new(superblock.epoch),
        generation: AtomicU64::new(superblock.generation),
        commit: Mutex::new(Commit { map_used: superblock.map_used, kept: Vec::new() }),
        sync: Mutex::default(),
        syncs: crate::syncs::Syncs::default(),
        log: Mutex::new(Log {
            next: superblock.wal_batch,
            durable: superblock.wal_batch,
            at: 0,
            needed: 0,
        }),
        gate: RwLock::default(),
        catalog: Mutex::default(),
        changed: Mutex::default(),
        unwritten: RwLock::new(HashMap::new()),
        aside: Mutex::default(),
        durable: AtomicU64::new(0),
        logged: AtomicU64::new(0),
        log_used: AtomicU64::new(0),
        dirty_leaves: AtomicUsize::new(0),
        made_nodes: AtomicUsize::new(0),
        dirty_most: cache / BLOCK / 4,
        reclaiming: AtomicBool::new(false),
        leaving: AtomicUsize::new(0),
        mending: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
        fenced: AtomicBool::new(false),
        grows: Mutex::new(true),
        counters: Counters::default(),
        bell,
        losses: Vec::new(),
    };
    let mut older = None;
    let mut catalog = match core.read_catalog(&superblock, None) {
        Err(error @ PoolError::Damaged { .. }) if rebuild => {
            let salvaged = core.salvage(&superblock, error)?;
            core.losses = salvaged.losses;
            older = salvaged.older;
            core.mending.store(true, Ordering::Release);
            if older.is_some() {
                // The superblock that is still good is the last to be written over.
                core.generation.fetch_add(1, Ordering::AcqRel);
            }
            salvaged.catalog
        }
        read => read?,
    };
    catalog.forget_stand_ins();
    *core.catalog() = catalog;
    let mending = core.mending.load(Ordering::Acquire);
    if rebuild {
        // Before anything is allocated: so far nothing is known to be taken.
        let problems = core.rebuild_map(stored, mending);
        core.losses.extend(problems);
    }
    let replayed = core.replay(&superblock, older.as_ref(), rebuild)?;
    core.losses.extend(replayed.losses);
    {
        let mut log = core.log();
        log.next += replayed.batches;
        log.durable = log.next;
    }
    core.checkpoint(|_, _| Ok(()))?;
    replayed.named.into_iter().for_each(|run| core.space.release_unused(run));
    if mending {
        // Now that all of it is stored, what nothing reaches is free.
        core.mending.store(false, Ordering::Release);
        let taken = core.space.bits();
        core.rebuild_map(taken, false);
        core.checkpoint(|_, _| Ok(()))?;
    }
    Ok(core)
}

/// The words of the stored free map, and the pages of it that are damaged, of which everything counts as taken.
fn read_map(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    sums: Sums,
) -> Result<(Vec<u64>, Vec<u64>), PoolError> {
    let slot = superblock.generation & 1;
    let from = superblock.layout.map_start + slot * superblock.layout.map_pages;
    let (mut words, mut damaged) = (Vec::new(), Vec::new());
    let mut bytes = vec![0; BLOCK];
    for page in 0..superblock.map_used {
        let at = ByteOffset::new((from + page) * BLOCK_LEN);
        device.read_at(at, &mut bytes).map_err(PoolError::device("read"))?;
        match decode_map_page(sums, page, &bytes) {
            Some(page_words) => words.extend(page_words),
            None => {
                words.resize(words.len() + index(MAP_BITS / 64), !0);
                damaged.push(page);
            }
        }
    }
    Ok((words, damaged))
}

impl Core {
    /// Makes the free map from what the disks' maps reach. Where a map cannot be read, what the stored one says stays
    /// taken, so that nothing is given away that may be reached; `all` of that stays taken where maps are known to be
    /// missing. Says what cannot be read.
    fn rebuild_map(&self, stored: Vec<u64>, all: bool) -> Vec<String> {
        let (mut used, problems) = self.reached_blocks();
        if all || !problems.is_empty() {
            let first = index(self.layout.data_start);
            let end = index(self.space.end());
            for (place, (used, stored)) in used.iter_mut().zip(stored).enumerate() {
                let within = |bit: usize| (first..end).contains(&(place * 64 + bit));
                let mask = (0..64).filter(|bit| within(*bit)).fold(0, |mask, bit| mask | 1 << bit);
                *used |= stored & mask;
            }
        }
        self.space.replace_used(&used);
        problems
            .into_iter()
            .map(|problem| format!("{problem}; what it leads to cannot be read"))
            .collect()
    }

    /// Reads the catalog of a checkpoint. With `losses`, what cannot be read is named there and left out.
    pub(crate) fn read_catalog(
        &self,
        superblock: &Superblock,
        mut losses: Option<&mut Vec<String>>,
    ) -> Result<Catalog, PoolError> {
        let mut catalog = Catalog::default();
        catalog.next_id = superblock.next_id;
        catalog.root = Root(superblock.catalog);
        let root = catalog.root.0;
        // Each is a block of the pool.
        if superblock.catalog_pages > self.space.end() {
            let found = format!("{} pages of a catalog", superblock.catalog_pages);
            return Err(PoolError::Damaged { found });
        }
        // Pages lie in a row; of what no node leads to any more, all that is known is that it is gone.
        for number in 0..superblock.catalog_pages.div_ceil(FANOUT) {
            let leaf = match self.stored_leaf(root, number) {
                Ok(leaf) => leaf,
                Err(PoolError::Damaged { found }) if losses.is_some() => {
                    let first = number * FANOUT;
                    let what = format!("{found}; pages {first} and on of the catalog");
                    losses.as_deref_mut().into_iter().for_each(|losses| losses.push(what.clone()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (place, entry) in leaf.mapped() {
                let page = number * FANOUT + place as u64;
                match (self.read_catalog_page(superblock, page, entry), &mut losses) {
                    (Ok(bytes), losses) => {
                        catalog.load_page(page, &bytes, losses.as_deref_mut())?;
                    }
                    (Err(PoolError::Damaged { found }), Some(losses)) => {
                        losses.push(format!("{found}, with up to 16 disks and snapshots"));
                    }
                    (Err(error), _) => return Err(error),
                }
            }
            catalog.leaves.insert(number, leaf);
        }
        catalog.pages = superblock.catalog_pages;
        catalog.load_bases(losses.as_deref_mut())?;
        if losses.is_none() {
            catalog.check()?;
        }
        Ok(catalog)
    }

    fn read_catalog_page(
        &self,
        superblock: &Superblock,
        page: u64,
        entry: Entry,
    ) -> Result<Vec<u8>, PoolError> {
        let damaged = |found: String| PoolError::Damaged { found };
        if entry.kind != Kind::Data || !self.space.holds(entry.block) {
            return Err(damaged(format!("page {page} of the catalog")));
        }
        let mut bytes = vec![0; BLOCK];
        let at = ByteOffset::new(entry.block * BLOCK_LEN);
        self.device.read_at(at, &mut bytes).map_err(PoolError::device("read"))?;
        let right = same(entry.crc, self.sums.data(page, &bytes));
        if !right || page >= superblock.catalog_pages {
            return Err(damaged(format!("a wrong checksum of page {page} of the catalog")));
        }
        Ok(bytes)
    }
}
