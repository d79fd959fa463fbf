//! Writing the log: flushes that share one sync, and where in the ring the next batch goes.

use kiln_block::ByteOffset;

use crate::PoolError;
use crate::core::Core;
use crate::format::BLOCK_LEN;
use crate::sync::atomic::Ordering;
use crate::sync::{MutexGuard, PoisonError};
use crate::wal::{BatchId, batch_len, encode_batch};

/// The log as a ring of bytes. A batch that does not fit before its end stands at its start.
#[derive(Debug)]
pub(crate) struct Log {
    /// Number of the next batch.
    pub(crate) next: u64,
    /// Batches with a smaller number are durable.
    pub(crate) durable: u64,
    /// Where the next batch goes.
    pub(crate) at: u64,
    /// Bytes before it that the checkpoint on the device still needs.
    pub(crate) needed: u64,
}

impl Log {
    /// Where a batch of that length goes, and how much of the ring that takes; `None` where there is no room.
    fn place(&self, len: u64, capacity: u64) -> Option<(u64, u64)> {
        let (at, takes) = match self.at + len <= capacity {
            true => (self.at, len),
            false => (0, capacity - self.at + len),
        };
        (self.needed + takes <= capacity && len <= capacity).then_some((at, takes))
    }
}

/// Whether everything gathered found room in the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    Lacking,
}

/// Whether somebody waits for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Now,
    /// Nobody does: disks come first.
    Patient,
}

impl Core {
    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Data and log are durable for everything that was written before the call.
    ///
    /// Whoever gets the lock first writes and syncs for all who wait behind it.
    pub(crate) fn flush(&self) -> Result<(), PoolError> {
        self.flush_for(true)
    }

    /// The same, for a disk or for a change of the catalog.
    pub(crate) fn flush_for(&self, disk: bool) -> Result<(), PoolError> {
        self.counters.flushes.add(1);
        self.refuse_if_poisoned()?;
        let target = self.gathering.count();
        while self.durable.load(Ordering::Acquire) < target {
            let sync = self.sync.lock().unwrap_or_else(PoisonError::into_inner);
            self.refuse_if_poisoned()?;
            if self.durable.load(Ordering::Acquire) >= target {
                break;
            }
            let mut log = self.log();
            self.check_fence()?;
            if self.append(&mut log)? == Room::Lacking {
                drop(log);
                drop(sync);
                self.empty_log(target)?;
                continue;
            }
            let (batch, upto) = (log.next, self.logged.load(Ordering::Acquire));
            drop(log);
            self.syncs.begin();
            self.device.flush().map_err(self.poison("sync"))?;
            self.counters.syncs.add(1);
            let mut log = self.log();
            log.durable = log.durable.max(batch);
            drop(log);
            self.durable.fetch_max(upto, Ordering::AcqRel);
            self.syncs.end(disk);
        }
        Ok(())
    }

    /// The same, but if disks are being flushed, one of those flushes does it.
    pub(crate) fn flush_with_others(&self) -> Result<(), PoolError> {
        let target = self.gathering.count();
        // The next sync may be of a batch that was written before; the one behind it is not.
        for _ in 0..2 {
            if self.bell.is_none() || self.durable.load(Ordering::Acquire) >= target {
                break;
            }
            if !self.syncs.next() {
                break;
            }
        }
        self.flush_for(false)
    }

    /// The device has everything that was written before the call. In the background, one of the flushes of disks
    /// does it, if there are any.
    pub(crate) fn sync(&self, pace: Pace) -> Result<(), PoolError> {
        if pace == Pace::Patient && self.syncs.next() {
            return self.refuse_if_poisoned();
        }
        self.counters.syncs.add(1);
        self.device.flush().map_err(PoolError::device("sync"))?;
        // Of what is lost, a device tells only one of those who sync.
        self.refuse_if_poisoned()
    }

    /// What was written before the call outlives this process, though not a power cut: it is in the log, which the
    /// next flush of any disk syncs.
    pub(crate) fn settle(&self) -> Result<(), PoolError> {
        self.refuse_if_poisoned()?;
        let target = self.gathering.count();
        while self.logged.load(Ordering::Acquire) < target {
            let mut log = self.log();
            self.refuse_if_poisoned()?;
            if self.logged.load(Ordering::Acquire) >= target {
                break;
            }
            if self.append(&mut log)? == Room::Lacking {
                drop(log);
                self.empty_log(target)?;
            }
        }
        Ok(())
    }

    /// A checkpoint instead of a batch that has no room.
    fn empty_log(&self, target: u64) -> Result<(), PoolError> {
        let mut commit = self.commit();
        self.refuse_if_poisoned()?;
        let capacity = self.layout.wal_blocks * BLOCK_LEN;
        let lacking = self.log().place(batch_len(self.gathering.waiting()), capacity).is_none();
        if lacking && self.durable.load(Ordering::Acquire) < target {
            self.counters.foreground_checkpoints.add(1);
            self.store(&mut commit, crate::reclaim::SHARE)?;
        }
        Ok(())
    }

    /// Writes what was gathered as one batch, if the log has room for it.
    pub(crate) fn append(&self, log: &mut Log) -> Result<Room, PoolError> {
        let capacity = self.layout.wal_blocks * BLOCK_LEN;
        let fits = |bytes| log.place(batch_len(bytes), capacity).is_some();
        match self.gathering.take_if(fits) {
            Some((records, upto)) => self.write_batch(log, &records, upto),
            None => Ok(Room::Lacking),
        }
    }

    /// Writes records as one batch; those that find no room are still the caller's.
    pub(crate) fn write_batch(
        &self,
        log: &mut Log,
        records: &[u8],
        upto: u64,
    ) -> Result<Room, PoolError> {
        let capacity = self.layout.wal_blocks * BLOCK_LEN;
        // None when all that waits for this sync was logged without one.
        if !records.is_empty() {
            let len = batch_len(records.len() as u64);
            let Some((at, takes)) = log.place(len, capacity) else { return Ok(Room::Lacking) };
            let id = BatchId { opening: self.opening, number: log.next, durable: log.durable };
            let batch = encode_batch(self.sums, id, records);
            let place = ByteOffset::new(self.layout.wal_start * BLOCK_LEN + at);
            self.device.write_at(place, &batch).map_err(self.poison("write"))?;
            log.at = at + len;
            log.needed += takes;
            log.next += 1;
            self.log_used.store(log.needed, Ordering::Relaxed);
            self.counters.batches.add(1);
            self.counters.log_written.add(len);
            let before = self.logged.load(Ordering::Relaxed);
            self.counters.batched_records.add(upto.saturating_sub(before));
        }
        self.logged.fetch_max(upto, Ordering::AcqRel);
        Ok(Room::Enough)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_never_stands_on_what_is_still_needed() {
        let mut log = Log { next: 1, durable: 1, at: 0, needed: 0 };
        let mut live = std::collections::VecDeque::new();
        let capacity = 100;
        for round in 0_u64..500 {
            let len = 1 + round * 7 % 40;
            while log.place(len, capacity).is_none() {
                let (_, _, takes) = live.pop_front().unwrap();
                log.needed -= takes;
            }
            let (at, takes) = log.place(len, capacity).unwrap();
            assert!(at + len <= capacity);
            for (start, end, _) in &live {
                assert!(at + len <= *start || at >= *end, "round {round}");
            }
            live.push_back((at, at + len, takes));
            log.at = at + len;
            log.needed += takes;
        }
    }
}
