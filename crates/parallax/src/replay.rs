//! Doing again what the log says was done since the last checkpoint.

use kiln_block::ByteOffset;

use crate::PoolError;
use crate::core::Core;
use crate::format::{BLOCK, BLOCK_LEN, Superblock, index, same};
use crate::node::{Entry, FANOUT, ZEROS};
use crate::space::Run;
use crate::sync::atomic::Ordering;
use crate::wal::{HEADER, Record, SECTOR, batch_len, decode_batch, decode_records, number_of};

/// Batches of a log: which were durable before each, and its records.
type Batches = Vec<(u64, Vec<Record>)>;

/// How far behind the end of the log a batch is looked for, in bytes.
const GAP: usize = 1 << 20;

/// What a run of blocks became.
#[derive(Clone, Copy)]
enum New<'a> {
    /// First block, birth, checksums.
    Data(u64, u64, &'a [u32]),
    /// Birth.
    Zeros(u64),
    Hole,
}

/// What was done again.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    pub(crate) batches: u64,
    /// Blocks that the log names.
    pub(crate) named: Vec<Run>,
    /// What could not be done.
    pub(crate) losses: Vec<String>,
}

impl Core {
    /// Does again what the log says was done since the checkpoint. To repair, what cannot be done again is left out.
    pub(crate) fn replay(
        &self,
        superblock: &Superblock,
        older: Option<&Superblock>,
        repair: bool,
    ) -> Result<Replayed, PoolError> {
        let (mut batches, end) = self.read_log(superblock)?;
        let mut done = Replayed { batches: batches.len() as u64, ..Replayed::default() };
        match self.refuse_a_gap(superblock, done.batches, end) {
            Err(PoolError::Damaged { found }) if repair => done.losses.push(found),
            sound => sound?,
        }
        let mut durable = batches.iter().map(|(durable, _)| *durable).max().unwrap_or(0);
        let mut first = superblock.wal_batch;
        if let Some(older) = older {
            // What was logged before the newer checkpoint was durable when that was.
            durable = durable.max(superblock.wal_batch);
            let (mut before, _) = self.read_log(older)?;
            let wanted = superblock.wal_batch - older.wal_batch;
            before.truncate(index(wanted));
            if (before.len() as u64) < wanted {
                let what =
                    "the log from one checkpoint to the next, and with it what was written then";
                done.losses.push(what.to_owned());
            } else {
                first = older.wal_batch;
                batches.splice(0..0, before);
            }
        }
        // No node that is made meanwhile may take the place of data that a later record names.
        for record in batches.iter().flat_map(|(_, records)| records) {
            if let Record::Map { block, crcs, .. } = record {
                let run = Run { start: *block, len: crcs.len() as u64 };
                done.named.extend(self.space.hold(run).then_some(run));
            }
        }
        let mut lost = false;
        for ((_, records), number) in batches.iter().zip(first..) {
            for record in records {
                match self.replay_record(record, number < durable, lost) {
                    Ok(more) => lost |= more,
                    Err(PoolError::Damaged { found }) if repair => {
                        lost = true;
                        done.losses
                            .push(format!("a change that was flushed cannot be made: {found}"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(done)
    }

    /// True if something of it was lost.
    fn replay_record(&self, record: &Record, durable: bool, lost: bool) -> Result<bool, PoolError> {
        match record {
            Record::Catalog(change) => self.replay_change(change, lost).map(|()| false),
            Record::Map { disk, lba, birth, block, crcs } => {
                let new = New::Data(*block, *birth, crcs);
                self.replay_run(*disk, (*lba, crcs.len() as u64), new, durable)
            }
            Record::Clear { disk, lba, count } => {
                self.replay_run(*disk, (*lba, *count), New::Hole, true)
            }
            Record::Zero { disk, lba, birth, count } => {
                self.replay_run(*disk, (*lba, *count), New::Zeros(*birth), true)
            }
        }
    }

    /// If the log goes on behind its end with a batch that says what is between was durable, that is damaged now.
    fn refuse_a_gap(
        &self,
        superblock: &Superblock,
        batches: u64,
        end: usize,
    ) -> Result<(), PoolError> {
        let capacity = index(self.layout.wal_blocks) * BLOCK;
        let missing = superblock.wal_batch + batches;
        // The one that is missing may have been the first that stood at the start of the log again.
        for start in [end, 0] {
            let mut bytes = vec![0; (capacity - start).min(GAP)];
            self.read_of_log(start, &mut bytes)?;
            for at in (0..bytes.len()).step_by(index(SECTOR)) {
                let number = number_of(superblock.opening, &bytes[at..]);
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
        }
        Ok(())
    }

    fn read_of_log(&self, at: usize, bytes: &mut [u8]) -> Result<(), PoolError> {
        let from = ByteOffset::new(self.layout.wal_start * BLOCK_LEN + at as u64);
        self.device.read_at(from, bytes).map_err(PoolError::device("read"))
    }

    /// All batches from the superblock's on, and where the next would be.
    fn read_log(&self, superblock: &Superblock) -> Result<(Batches, usize), PoolError> {
        let capacity = index(self.layout.wal_blocks) * BLOCK;
        let mut batches = Batches::new();
        let mut at = index(superblock.log_at);
        for number in superblock.wal_batch.. {
            let mut found = self.read_batch(superblock, number, at)?.map(|batch| (at, batch));
            if found.is_none() && at != 0 {
                // It had no room before the end.
                found = self.read_batch(superblock, number, 0)?.map(|batch| (0, batch));
            }
            let Some((start, (durable, records, len))) = found else { break };
            at = (start + len).min(capacity);
            batches.push((durable, records));
        }
        Ok((batches, at))
    }

    fn read_batch(
        &self,
        superblock: &Superblock,
        number: u64,
        at: usize,
    ) -> Result<Option<(u64, Vec<Record>, usize)>, PoolError> {
        let left = index(self.layout.wal_blocks) * BLOCK - at;
        if left < HEADER {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.read_of_log(at, &mut header)?;
        if number_of(superblock.opening, &header) != Some(number) {
            return Ok(None);
        }
        let len = usize::try_from(crate::format::get(&header, 32)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; HEADER.saturating_add(len).min(left)];
        self.read_of_log(at, &mut bytes)?;
        let batch = decode_batch(self.sums, superblock.opening, number, &bytes);
        Ok(batch.map(|(durable, records, _)| {
            (durable, decode_records(records), index(batch_len(len as u64)))
        }))
    }

    /// Maps or clears a run of blocks again, within one leaf; true if the data of some was lost.
    fn replay_run(
        &self,
        disk: u64,
        (lba, count): (u64, u64),
        new: New<'_>,
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
                New::Data(block, birth, crcs) => {
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
                New::Zeros(birth) => Entry::data(ZEROS, birth, 0),
                New::Hole => Entry::HOLE,
            };
            let old = map.get(index(lba % FANOUT));
            if !old.is_hole() && !old.is_zeros() {
                head.referenced.fetch_sub(1, Ordering::Relaxed);
                // Of a pool that is mended, what was let go of may be another's already.
                let owned = place.owns(number..number + 1, old.birth)
                    && !self.mending.load(Ordering::Acquire);
                if owned && self.space.holds(old.block) {
                    self.space.unmap(&[old.block]);
                }
            }
            if !entry.is_hole() && !entry.is_zeros() {
                head.referenced.fetch_add(1, Ordering::Relaxed);
                head.written.fetch_add(1, Ordering::Relaxed);
            }
            map.set(index(lba % FANOUT), entry);
        }
        self.make_dirty(&head, number, &leaf);
        Ok(lost)
    }
}
