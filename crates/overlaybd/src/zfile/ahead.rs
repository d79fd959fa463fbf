//! Readers that go through a file block by block: who they are, and the compressed blocks they will ask for.
//!
//! What is read ahead stays compressed, and each block is unpacked where its reader wants it. So a reader in sequence
//! pays for decompression and little else, and takes nobody's place in the cache.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// Readers in sequence that are known at the same time.
const STREAMS: usize = 4;
/// Readers that may turn out to be such, if they do not meet in one of these places.
const CANDIDATES: usize = 16;
/// No block.
const NONE: u64 = u64::MAX;

/// The readers of one file.
#[derive(Debug)]
pub(super) struct Streams {
    /// Blocks behind those that were read, each at the place that [`candidate`] says.
    candidates: [AtomicU64; CANDIDATES],
    streams: [Stream; STREAMS],
    /// Which stream makes room for the next one.
    oldest: AtomicUsize,
}

#[derive(Debug)]
struct Stream {
    /// The same as `ahead.next`, to be looked at by those who do not have the lock.
    next: AtomicU64,
    ahead: Mutex<Ahead>,
}

/// Compressed blocks that lie behind each other.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The block that is asked for next.
    next: u64,
    /// Behind the last block that is here.
    end: u64,
    /// Where the next block starts in `bytes`, and where in the file.
    within: usize,
    at: u64,
    /// As large as it ever had to be.
    bytes: Vec<u8>,
    /// How many blocks were read last.
    count: u64,
}

/// A stream whose reader is here. Dropping it tells where the reader is now.
pub(super) struct Reading<'s> {
    next: &'s AtomicU64,
    ahead: MutexGuard<'s, Ahead>,
}

fn candidate(block: u64) -> usize {
    // Readers at the same pace stay apart.
    usize::try_from(block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60).unwrap_or(0) % CANDIDATES
}

impl Streams {
    pub(super) fn new() -> Streams {
        Streams {
            candidates: std::array::from_fn(|_| AtomicU64::new(NONE)),
            streams: std::array::from_fn(|_| Stream {
                next: AtomicU64::new(NONE),
                ahead: Mutex::default(),
            }),
            oldest: AtomicUsize::new(0),
        }
    }

    /// Notes what has been read; whoever reads on from there reads in sequence.
    pub(super) fn note(&self, next: u64) {
        self.candidates[candidate(next)].store(next, Ordering::Relaxed);
    }

    /// The stream of whoever reads that block, if the one before it was the last one that was read. Several threads that
    /// read one stream get it in turn; those who would have to wait do without.
    #[inline]
    pub(super) fn of(&self, block: u64) -> Option<Reading<'_>> {
        match self.streams.iter().find(|stream| stream.next.load(Ordering::Relaxed) == block) {
            Some(stream) => stream.lock().filter(|reading| reading.ahead.next == block),
            None => self.begin(block),
        }
    }

    fn begin(&self, block: u64) -> Option<Reading<'_>> {
        let found = &self.candidates[candidate(block)];
        if found.load(Ordering::Relaxed) != block {
            return None;
        }
        found.store(NONE, Ordering::Relaxed);
        let oldest = self.oldest.fetch_add(1, Ordering::Relaxed) % STREAMS;
        let mut reading = self.streams[oldest].lock()?;
        let bytes = std::mem::take(&mut reading.ahead.bytes);
        *reading.ahead = Ahead { next: block, end: block, bytes, ..Ahead::default() };
        Some(reading)
    }
}

impl Stream {
    fn lock(&self) -> Option<Reading<'_>> {
        let ahead = match self.ahead.try_lock() {
            Ok(ahead) => ahead,
            // What is left behind by a panic is consistent: it changes in steps that cannot fail.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Reading { next: &self.next, ahead })
    }
}

impl Reading<'_> {
    /// How many blocks to read now, of at most so many, if none is here.
    pub(super) fn wanted(&self, first: u64, most: u64) -> Option<u64> {
        let Ahead { next, end, count, .. } = *self.ahead;
        (next == end).then(|| (2 * count).max(first).min(most))
    }

    /// Takes compressed blocks, so many of them, from `at` on in the file; `read` fills the buffer.
    pub(super) fn fill<E>(
        &mut self,
        (count, at, len): (u64, u64, usize),
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let ahead = &mut *self.ahead;
        if ahead.bytes.len() < len {
            ahead.bytes.resize(len, 0);
        }
        read(&mut ahead.bytes[..len])?;
        (ahead.within, ahead.at, ahead.count) = (0, at, count);
        ahead.end = ahead.next + count;
        Ok(())
    }

    /// The next block, which has that many compressed bytes, and where they are in the file.
    #[inline]
    pub(super) fn take(&mut self, len: usize) -> (u64, &[u8]) {
        let ahead = &mut *self.ahead;
        let (at, start) = (ahead.at, ahead.within);
        ahead.at += len as u64;
        ahead.within += len;
        ahead.next += 1;
        (at, &ahead.bytes[start..start + len])
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.next.store(self.ahead.next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_reads_two_blocks_in_a_row_reads_in_sequence() {
        let streams = Streams::new();
        assert!(streams.of(0).is_none());
        streams.note(1);
        assert!(streams.of(7).is_none(), "that is another place");
        let mut reading = streams.of(1).expect("block 1 follows block 0");
        assert_eq!(reading.wanted(2, 3), Some(2));
        let read = |bytes: &mut [u8]| {
            bytes.fill(7);
            Ok::<(), ()>(())
        };
        reading.fill((2, 500, 30), read).unwrap();
        assert_eq!(reading.wanted(2, 3), None);
        assert_eq!(reading.take(10), (500, &[7; 10][..]));
        assert!(streams.of(1).is_none(), "it is in use");
        drop(reading);
        assert!(streams.of(1).is_none(), "it went on");
        let mut reading = streams.of(2).expect("block 2 follows block 1");
        assert_eq!(reading.take(20), (510, &[7; 20][..]));
        assert_eq!(reading.wanted(2, 3), Some(3), "more each time");
    }
}
