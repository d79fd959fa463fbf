//! Making a pool and opening one: superblocks, free map, catalog, and what the log adds to them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kiln_block::{BlockDevice, ByteLen, ByteOffset};

use crate::PoolError;
use crate::cache::Clock;
use crate::catalog::{Catalog, Root};
use crate::core::{Commit, Core};
use crate::format::{
    BLOCK, BLOCK_LEN, Layout, MAP_BITS, SUPERBLOCKS, Sums, Superblock, Unreadable, decode_map_page,
    index, same,
};
use crate::node::{Entry, FANOUT, Kind, ROOT_LEVEL};
use crate::space::{Run, Space};
use crate::wal::{HEADER, Record, decode_batch, decode_records};

/// What can be chosen about a pool.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Memory for maps.
    pub cache: ByteLen,
    /// Size of a new pool's log: how much is written between two checkpoints at most.
    pub log: ByteLen,
    /// How large a new pool may become when its device grows.
    pub limit: ByteLen,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions { cache: ByteLen::mib(32), log: ByteLen::mib(16), limit: ByteLen::ZERO }
    }
}

/// Batches of a log: which were durable before each, and its records.
type Batches = Vec<(u64, Vec<Record>)>;

/// How far behind the end of the log a batch is looked for, in bytes.
const GAP: usize = 1 << 20;

/// Writes an empty pool over whatever the device holds.
pub(crate) fn format(device: &dyn BlockDevice, options: &PoolOptions) -> Result<(), PoolError> {
    let size = device.size();
    let layout = Layout::new(size, options.limit, options.log);
    let needs = ByteLen::new((layout.data_start + 256) * BLOCK_LEN);
    if size < needs {
        return Err(PoolError::TooSmall { needs, has: size });
    }
    let mut uuid = [0; 16];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty()).map_err(|errno| {
        let source = kiln_block::DeviceError::Io {
            act: "draw an id for",
            at: ByteOffset::ZERO,
            source: errno.into(),
        };
        PoolError::Device { act: "make", source }
    })?;
    let superblock = Superblock {
        uuid,
        generation: 1,
        opening: 0,
        layout,
        map_used: 0,
        epoch: 1,
        next_id: 1,
        wal_batch: 1,
        catalog: Entry::HOLE,
        catalog_pages: 0,
    };
    let fail = PoolError::device;
    // The log's space is taken now, so that no flush has to.
    let log = ByteOffset::new(layout.wal_start * BLOCK_LEN);
    let log_len = ByteLen::new(layout.wal_blocks * BLOCK_LEN);
    device.write_zeroes(log, log_len, true).map_err(fail("write"))?;
    device.write_at(ByteOffset::ZERO, &[0; 4 * BLOCK]).map_err(fail("write"))?;
    device.flush().map_err(fail("sync"))?;
    for copy in 2..SUPERBLOCKS {
        let at = ByteOffset::new(copy * BLOCK_LEN);
        device.write_at(at, &superblock.encode()[..]).map_err(fail("write"))?;
    }
    device.flush().map_err(fail("sync"))
}

fn newest_superblock(device: &dyn BlockDevice) -> Result<Superblock, PoolError> {
    let mut newest: Option<Superblock> = None;
    let mut refusal = PoolError::NotAPool;
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
            Err(Unreadable::TooNew(version)) => refusal = PoolError::TooNew { version },
            Err(Unreadable::Features(bits)) => refusal = PoolError::UnknownFeatures { bits },
            Ok(_) | Err(Unreadable::NotOne | Unreadable::Torn) => {}
        }
    }
    newest.ok_or(refusal)
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
    let stored = match rebuild {
        true => Vec::new(),
        false => read_map(&*device, &superblock, sums)?,
    };
    let nodes = index(options.cache.get() / BLOCK_LEN).max(64);
    let space = Space::new(&layout, &stored);
    let dirty_limit = (nodes / 4).min(index(space.reserve() / 8)).max(8);
    let core = Core {
        device,
        layout,
        uuid: superblock.uuid,
        sums,
        space,
        nodes: Clock::new(index(options.cache.get()) / 4),
        leaves: Clock::new(index(options.cache.get()) / 4 * 3),
        gathering: crate::wal::Gathering::default(),
        epoch: AtomicU64::new(superblock.epoch),
        commit: Mutex::new(Commit {
            generation: superblock.generation,
            opening: superblock.opening + 1,
            next_batch: superblock.wal_batch,
            durable_batch: superblock.wal_batch,
            wal_at: 0,
            map_used: superblock.map_used,
        }),
        gate: RwLock::default(),
        catalog: Mutex::default(),
        unwritten: RwLock::new(HashMap::new()),
        metadata_lease: Mutex::default(),
        durable: AtomicU64::new(0),
        logged: AtomicU64::new(0),
        wal_used: AtomicU64::new(0),
        dirty_leaves: AtomicUsize::new(0),
        dirty_limit,
        poisoned: AtomicBool::new(false),
        syncs: AtomicU64::new(0),
        checkpoints: AtomicU64::new(0),
    };
    *core.catalog() = core.read_catalog(&superblock)?;
    if rebuild {
        // Before anything is allocated: so far nothing is known to be taken.
        let reached = core.reached_blocks()?;
        core.space.replace_used(&reached);
    }
    let (batches, named) = core.replay(&superblock, rebuild)?;
    {
        let mut commit = core.commit.lock().unwrap_or_else(PoisonError::into_inner);
        commit.next_batch += batches;
        commit.durable_batch = commit.next_batch;
    }
    core.checkpoint(|_, _| Ok(()))?;
    named.into_iter().for_each(|run| core.space.release_unused(run));
    Ok(core)
}

fn read_map(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    sums: Sums,
) -> Result<Vec<u64>, PoolError> {
    let slot = superblock.generation & 1;
    let from = superblock.layout.map_start + slot * superblock.layout.map_pages;
    let mut words = Vec::new();
    let mut bytes = vec![0; BLOCK];
    for page in 0..superblock.map_used {
        let at = ByteOffset::new((from + page) * BLOCK_LEN);
        device.read_at(at, &mut bytes).map_err(PoolError::device("read"))?;
        let page_words = decode_map_page(sums, page, &bytes);
        words.extend(page_words.ok_or(PoolError::FreeMap { page })?);
    }
    debug_assert!(words.len() as u64 == superblock.map_used * MAP_BITS / 64);
    Ok(words)
}

impl Core {
    fn read_catalog(&self, superblock: &Superblock) -> Result<Catalog, PoolError> {
        let mut catalog = Catalog::default();
        catalog.next_id = superblock.next_id;
        catalog.root = Root(superblock.catalog);
        let mut bytes = vec![0; BLOCK];
        let mut from = 0;
        while let Some(number) = self.next_stored(catalog.root.0, ROOT_LEVEL, 0, from)? {
            let leaf = self.stored_leaf(catalog.root.0, number)?;
            for (place, entry) in leaf.mapped() {
                let page = number * FANOUT + place as u64;
                if entry.kind != Kind::Data || !self.space.holds(entry.block) {
                    return Err(PoolError::Damaged {
                        found: format!("page {page} of the catalog"),
                    });
                }
                let at = ByteOffset::new(entry.block * BLOCK_LEN);
                self.device.read_at(at, &mut bytes).map_err(PoolError::device("read"))?;
                let right = same(entry.crc, self.sums.data(page, &bytes));
                if !right || page >= superblock.catalog_pages {
                    let found = format!("a wrong checksum of page {page} of the catalog");
                    return Err(PoolError::Damaged { found });
                }
                catalog.load_page(page, &bytes)?;
            }
            catalog.leaves.insert(number, leaf);
            from = number + 1;
        }
        catalog.pages = superblock.catalog_pages;
        catalog.check()?;
        Ok(catalog)
    }

    /// Does again what the log says was done since the checkpoint; returns how many batches it had, and the blocks
    /// it names.
    fn replay(&self, superblock: &Superblock, repair: bool) -> Result<(u64, Vec<Run>), PoolError> {
        let (batches, end) = self.read_log(superblock)?;
        if !repair {
            self.refuse_a_gap(superblock, batches.len() as u64, end)?;
        }
        let durable = batches.iter().map(|(durable, _)| *durable).max().unwrap_or(0);
        // No node that is made meanwhile may take the place of data that a later record names.
        let mut named = Vec::new();
        for record in batches.iter().flat_map(|(_, records)| records) {
            if let Record::Map { block, crcs, .. } = record {
                let run = Run { start: *block, len: crcs.len() as u64 };
                named.extend(self.space.hold(run).then_some(run));
            }
        }
        let mut lost = HashSet::new();
        for ((_, records), number) in batches.iter().zip(superblock.wal_batch..) {
            for record in records {
                match record {
                    Record::Catalog(change) => self.replay_change(change, &lost)?,
                    Record::Map { disk, lba, birth, block, crcs } => {
                        let new = Some((*block, *birth, &crcs[..]));
                        let run = (*lba, crcs.len() as u64);
                        if self.replay_run(*disk, run, new, number < durable)? {
                            lost.insert(*disk);
                        }
                    }
                    Record::Clear { disk, lba, count } => {
                        self.replay_run(*disk, (*lba, *count), None, true)?;
                    }
                }
            }
        }
        Ok((batches.len() as u64, named))
    }

    /// If the log goes on behind its end with a batch that says what is between was durable, that is damaged now.
    fn refuse_a_gap(
        &self,
        superblock: &Superblock,
        batches: u64,
        end: usize,
    ) -> Result<(), PoolError> {
        let capacity = index(self.layout.wal_blocks) * BLOCK;
        let mut bytes = vec![0; (capacity - end).min(GAP)];
        let from = ByteOffset::new(self.layout.wal_start * BLOCK_LEN + end as u64);
        self.device.read_at(from, &mut bytes).map_err(PoolError::device("read"))?;
        let missing = superblock.wal_batch + batches;
        for at in (0..bytes.len()).step_by(index(crate::wal::SECTOR)) {
            let number = crate::wal::number_of(superblock.opening, &bytes[at..]);
            let Some(number) = number.filter(|number| *number > missing) else { continue };
            // One that was not synced may be lost while a later one is there; that one does not say it was durable.
            let later = decode_batch(self.sums, superblock.opening, number, &bytes[at..]);
            if later.is_some_and(|(durable, _, _)| durable > missing) {
                let found = format!(
                    "batch {missing} of the log; `repair` opens the pool without what was flushed since"
                );
                return Err(PoolError::Damaged { found });
            }
        }
        Ok(())
    }

    fn read_log(&self, superblock: &Superblock) -> Result<(Batches, usize), PoolError> {
        let capacity = index(self.layout.wal_blocks) * BLOCK;
        let log_at = self.layout.wal_start * BLOCK_LEN;
        let mut batches = Batches::new();
        let mut at = 0;
        for number in superblock.wal_batch.. {
            if at + HEADER > capacity {
                break;
            }
            let read = |len: usize| {
                let mut bytes = vec![0; len.min(capacity - at)];
                let from = ByteOffset::new(log_at + at as u64);
                self.device.read_at(from, &mut bytes).map_err(PoolError::device("read"))?;
                Ok::<_, PoolError>(bytes)
            };
            let header = read(HEADER)?;
            let len = usize::try_from(crate::format::get(&header, 32)).unwrap_or(usize::MAX);
            let bytes = read(HEADER.saturating_add(len).min(capacity))?;
            let Some((durable, records, _)) =
                decode_batch(self.sums, superblock.opening, number, &bytes)
            else {
                break;
            };
            at += index(crate::wal::batch_len(len as u64));
            batches.push((durable, decode_records(records)));
        }
        Ok((batches, at.min(capacity)))
    }

    /// Maps or clears a run of blocks again; true if the data of some was lost.
    fn replay_run(
        &self,
        disk: u64,
        (lba, count): (u64, u64),
        new: Option<(u64, u64, &[u32])>,
        durable: bool,
    ) -> Result<bool, PoolError> {
        let Some(head) = self.catalog().head(disk) else { return Ok(false) };
        let number = lba / FANOUT;
        if lba >= crate::MAX_DISK.get() / BLOCK_LEN {
            return Ok(false);
        }
        let leaf = self.leaf(&head, number)?;
        let mut map = leaf.write();
        let place = head.place();
        let mut bytes = vec![0; BLOCK];
        let mut lost = false;
        for (n, lba) in (0..count).zip(lba..) {
            let entry = match new {
                Some((block, birth, crcs)) => {
                    let (block, crc) = (block.saturating_add(n), crcs[index(n)]);
                    if !self.space.holds(block) {
                        continue;
                    }
                    if !durable {
                        let at = ByteOffset::new(block * BLOCK_LEN);
                        self.device.read_at(at, &mut bytes).map_err(PoolError::device("read"))?;
                        if !same(crc, self.sums.data(lba, &bytes)) {
                            lost = true;
                            continue;
                        }
                    }
                    self.space.claim(block);
                    Entry::data(block, birth, crc)
                }
                None => Entry::HOLE,
            };
            let old = map.get(index(lba % FANOUT));
            if !old.is_hole() {
                head.referenced.fetch_sub(1, Ordering::Relaxed);
                if place.owns(number..number + 1, old.birth) && self.space.holds(old.block) {
                    self.space.unmap(&[old.block]);
                }
            }
            if !entry.is_hole() {
                head.referenced.fetch_add(1, Ordering::Relaxed);
                head.written.fetch_add(1, Ordering::Relaxed);
            }
            map.set(index(lba % FANOUT), entry);
        }
        if !leaf.dirty.swap(true, Ordering::AcqRel) {
            head.dirty().insert(number);
            self.dirty_leaves.fetch_add(1, Ordering::Relaxed);
        }
        Ok(lost)
    }
}
