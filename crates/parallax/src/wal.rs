//! The write-ahead log: which blocks were mapped where since the last checkpoint, and which snapshots and clones were made.
//!
//! A *record* maps or clears a run of blocks within one leaf, or changes the catalog. Records gather in memory; a flush writes
//! them as one *batch* and syncs once, for the data too. A batch starts on a 512-byte boundary:
//!
//! | offset | size | field |
//! |-------:|-----:|-------|
//! | 0 | 4 | magic |
//! | 4 | 4 | crc32c of the batch from byte 8 to its end, seeded with its number |
//! | 8 | 8 | opening: which opening of the pool wrote it |
//! | 16 | 8 | number, one more than the batch before |
//! | 24 | 8 | batches below this number were durable when it was written |
//! | 32 | 8 | bytes of records |
//!
//! The last batches before a power cut, and those that were not synced, may be there while the data they name is not. A replay
//! therefore checks the data of every batch not known to be durable, and leaves out what does not match.

use crate::format::{Sums, get, get_u32, index, put, same};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};

const MAGIC: [u8; 4] = *b"KPXw";
/// Bytes before the records of a batch.
pub(crate) const HEADER: usize = 40;
/// Bytes of a record before its checksums or its name.
const RECORD: usize = 36;
/// Batches start on multiples of this.
pub(crate) const SECTOR: u64 = 512;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// A run within one leaf is now at these blocks in a row, with these checksums.
    Map { disk: u64, lba: u64, birth: u64, block: u64, crcs: Vec<u32> },
    /// A run within one leaf is mapped no more.
    Clear { disk: u64, lba: u64, count: u64 },
    /// A run within one leaf is zeros, whatever a base has there.
    Zero { disk: u64, lba: u64, birth: u64, count: u64 },
    /// Of the catalog.
    Catalog(Change),
}

/// A change of the catalog that takes a record and no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A disk as it is now has a snapshot.
    Snapshot { disk: u64, id: u64, epoch: u64, created: u64, name: String },
    /// There is a disk that starts as a snapshot.
    Clone { of: u64, id: u64, quota: u64, created: u64, throw_away: bool, name: String },
    /// A snapshot was deleted.
    Hide { id: u64 },
}

fn encode(bytes: &mut Vec<u8>, (kind, flags): (u8, u8), count: usize, numbers: [u64; 4]) {
    // A leaf has 256 blocks and a name 128 bytes, so a count always fits.
    let count = u16::try_from(count).unwrap_or(0).to_le_bytes();
    bytes.extend_from_slice(&[kind, flags, count[0], count[1]]);
    for number in numbers {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

/// Records of a batch, up to the first that makes no sense.
pub(crate) fn decode_records(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut at = 0;
    while at + RECORD <= bytes.len() {
        let count = usize::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]));
        let [a, b, c, d] = std::array::from_fn(|n| get(bytes, at + 4 + n * 8));
        let within = count > 0 && b % 256 + count as u64 <= 256;
        let (kind, flags) = (bytes[at], bytes[at + 1]);
        at += RECORD;
        let after = |len: usize| bytes.get(at..at + len);
        let name = || after(count).and_then(|name| std::str::from_utf8(name).ok());
        let (record, len) = match kind {
            1 if within => {
                let Some(crcs) = after(count * 4) else { break };
                let crcs = crcs.chunks_exact(4).map(|crc| get_u32(crc, 0)).collect();
                (Record::Map { disk: a, lba: b, birth: c, block: d, crcs }, count * 4)
            }
            2 if within => (Record::Clear { disk: a, lba: b, count: count as u64 }, 0),
            3 => {
                let Some(name) = name().map(str::to_owned) else { break };
                let change = Change::Snapshot { disk: a, id: b, epoch: c, created: d, name };
                (Record::Catalog(change), count)
            }
            4 => {
                let Some(name) = name().map(str::to_owned) else { break };
                let throw_away = flags & 1 != 0;
                let change = Change::Clone { of: a, id: b, quota: c, created: d, throw_away, name };
                (Record::Catalog(change), count)
            }
            5 => (Record::Catalog(Change::Hide { id: a }), 0),
            6 if within => (Record::Zero { disk: a, lba: b, birth: c, count: count as u64 }, 0),
            _ => break,
        };
        at += len;
        records.push(record);
    }
    records
}

#[derive(Debug, Default)]
struct Gathered {
    /// Starts with room for the header of the batch it will become.
    bytes: Vec<u8>,
    /// How many records were ever gathered.
    records: u64,
}

/// Records that wait to become a batch.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    gathered: Mutex<Gathered>,
    len: AtomicU64,
}

impl Gathering {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gathers a mapping of a run. Called with the leaf locked, so that records of one leaf have
    /// the order of its changes.
    pub(crate) fn map(&self, disk: u64, lba: u64, birth: u64, block: u64, crcs: &[u32]) {
        let mut gathered = self.gathered();
        encode(&mut gathered.bytes, (1, 0), crcs.len(), [disk, lba, birth, block]);
        for crc in crcs {
            gathered.bytes.extend_from_slice(&crc.to_le_bytes());
        }
        self.gathered_one(&mut gathered);
    }

    /// Gathers the clearing of a run.
    pub(crate) fn clear(&self, disk: u64, lba: u64, count: usize) {
        let mut gathered = self.gathered();
        encode(&mut gathered.bytes, (2, 0), count, [disk, lba, 0, 0]);
        self.gathered_one(&mut gathered);
    }

    /// Gathers that a run is zeros, whatever a base has there.
    pub(crate) fn zero(&self, disk: u64, lba: u64, birth: u64, count: usize) {
        let mut gathered = self.gathered();
        encode(&mut gathered.bytes, (6, 0), count, [disk, lba, birth, 0]);
        self.gathered_one(&mut gathered);
    }

    /// Gathers a change of the catalog. Called while no disk changes, so that it comes after all that it is to have.
    pub(crate) fn change(&self, change: &Change) {
        let mut gathered = self.gathered();
        let bytes = &mut gathered.bytes;
        match change {
            Change::Snapshot { disk, id, epoch, created, name } => {
                encode(bytes, (3, 0), name.len(), [*disk, *id, *epoch, *created]);
                bytes.extend_from_slice(name.as_bytes());
            }
            Change::Clone { of, id, quota, created, throw_away, name } => {
                let flags = u8::from(*throw_away);
                encode(bytes, (4, flags), name.len(), [*of, *id, *quota, *created]);
                bytes.extend_from_slice(name.as_bytes());
            }
            Change::Hide { id } => encode(bytes, (5, 0), 0, [*id, 0, 0, 0]),
        }
        self.gathered_one(&mut gathered);
    }

    fn gathered_one(&self, gathered: &mut Gathered) {
        gathered.records += 1;
        self.len.store(gathered.bytes.len() as u64, Ordering::Relaxed);
    }

    /// How many records were gathered since the pool was opened.
    pub(crate) fn count(&self) -> u64 {
        self.gathered().records
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Everything gathered, and how many records there were up to it.
    pub(crate) fn take(&self) -> (Vec<u8>, u64) {
        self.take_if(|_| true).unwrap_or_default()
    }

    /// The same, unless the answer about how many bytes they are is no.
    pub(crate) fn take_if(&self, may: impl FnOnce(u64) -> bool) -> Option<(Vec<u8>, u64)> {
        let mut gathered = self.gathered();
        if !may(gathered.bytes.len() as u64) {
            return None;
        }
        self.len.store(0, Ordering::Relaxed);
        Some((std::mem::take(&mut gathered.bytes), gathered.records))
    }

    /// What was taken last is gathered again. Only called while nothing else takes.
    pub(crate) fn put_back(&self, mut records: Vec<u8>) {
        let mut gathered = self.gathered();
        records.append(&mut gathered.bytes);
        gathered.bytes = records;
        self.len.store(gathered.bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Numbers of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchId {
    pub(crate) opening: u64,
    pub(crate) number: u64,
    pub(crate) durable: u64,
}

/// Bytes a batch with that many bytes of records takes in the log.
pub(crate) fn batch_len(records: u64) -> u64 {
    (HEADER as u64 + records).next_multiple_of(SECTOR)
}

/// A whole batch, padded to sectors.
pub(crate) fn encode_batch(sums: Sums, id: BatchId, records: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; index(batch_len(records.len() as u64))];
    bytes[..4].copy_from_slice(&MAGIC);
    put(&mut bytes, 8, id.opening);
    put(&mut bytes, 16, id.number);
    put(&mut bytes, 24, id.durable);
    put(&mut bytes, 32, records.len() as u64);
    bytes[HEADER..HEADER + records.len()].copy_from_slice(records);
    let crc = sums.batch(id.number, &bytes[8..HEADER + records.len()]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The batch that a log has at its front, if it is that one: its durable number, its records and its length.
pub(crate) fn decode_batch(
    sums: Sums,
    opening: u64,
    number: u64,
    log: &[u8],
) -> Option<(u64, &[u8], usize)> {
    if log.len() < HEADER || log[..4] != MAGIC {
        return None;
    }
    let len = get(log, 32);
    let end = HEADER.checked_add(usize::try_from(len).ok()?).filter(|end| *end <= log.len())?;
    let sound = get(log, 8) == opening
        && get(log, 16) == number
        && same(get_u32(log, 4), sums.batch(number, &log[8..end]));
    sound.then(|| (get(log, 24), &log[HEADER..end], index(batch_len(len)).min(log.len())))
}

/// The number a batch of that opening would have, if there is one here.
pub(crate) fn number_of(opening: u64, log: &[u8]) -> Option<u64> {
    let header = log.len() >= HEADER && log[..4] == MAGIC && get(log, 8) == opening;
    header.then(|| get(log, 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_reads_back_only_as_itself() {
        let gathering = Gathering::default();
        gathering.map(7, 300, 4, 9000, &[1, 2, 3]);
        gathering.clear(7, 512, 256);
        gathering.zero(7, 800, 4, 32);
        let name = "näme".to_owned();
        let changes = [
            Change::Snapshot { disk: 7, id: 8, epoch: 4, created: 99, name: name.clone() },
            Change::Clone { of: 8, id: 9, quota: 10, created: 99, throw_away: true, name },
            Change::Hide { id: 8 },
        ];
        changes.iter().for_each(|change| gathering.change(change));
        let (records, count) = gathering.take();
        assert_eq!(count, 6);
        let sums = Sums::of_pool(&[3; 16]);
        let id = BatchId { opening: 2, number: 40, durable: 39 };
        let bytes = encode_batch(sums, id, &records);
        let (durable, found, len) = decode_batch(sums, 2, 40, &bytes).unwrap();
        assert_eq!((durable, len), (39, 512));
        let map = Record::Map { disk: 7, lba: 300, birth: 4, block: 9000, crcs: vec![1, 2, 3] };
        let zero = Record::Zero { disk: 7, lba: 800, birth: 4, count: 32 };
        let mut expected = vec![map, Record::Clear { disk: 7, lba: 512, count: 256 }, zero];
        expected.extend(changes.map(Record::Catalog));
        assert_eq!(decode_records(found), expected);
        assert!(decode_batch(sums, 1, 40, &bytes).is_none(), "another opening");
        assert!(decode_batch(sums, 2, 41, &bytes).is_none(), "another number");
        assert!(decode_batch(Sums::of_pool(&[4; 16]), 2, 40, &bytes).is_none(), "another pool");
        for bit in 0..(HEADER + records.len()) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_batch(sums, 2, 40, &flipped).is_none(), "bit {bit}");
        }
    }
}
