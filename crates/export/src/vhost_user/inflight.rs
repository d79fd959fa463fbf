//! Requests in flight, noted in memory that outlives this process: the front-end keeps it, and gives it
//! to whoever serves the disk next.
//!
//! The layout is the vhost-user specification's for split rings, version 1: for each queue a header and one
//! entry for each descriptor. A queue's part begins at a multiple of 64 bytes.
//!
//! | offset | size | field           | meaning                                             |
//! |-------:|-----:|-----------------|-----------------------------------------------------|
//! |      0 |    8 | features        | 0                                                   |
//! |      8 |    2 | version         | 1; 0 says that nobody has used the memory yet       |
//! |     10 |    2 | desc_num        | entries                                             |
//! |     12 |    2 | last_batch_head | the request that was given back last                |
//! |     14 |    2 | used_idx        | the used ring's index when the notes were last true |
//! |     16 | 16 n | entries         | 1 byte in flight, 5 unused, 2 next, 8 counter       |
//!
//! Behind the queues is a part of our own, which other back-ends neither write nor expect: `4b 57 43 45`
//! and one byte, whether the guest wants a volatile cache. QEMU tells that to a back-end once; the next one
//! would believe in a volatile cache, and the guest would not.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{AtomicInteger, FileOffset, MmapRegion, VolatileMemory};

const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 16;
const ALIGNMENT: usize = 64;
const VERSION: u16 = 1;
/// `KWCE` as bytes.
const CACHE_MARK: u32 = u32::from_le_bytes(*b"KWCE");
const CACHE_LEN: usize = 64;

/// The memory for all queues.
#[derive(Clone, Debug)]
pub(crate) struct Inflight {
    region: Arc<MmapRegion>,
    queues: u16,
    queue_size: u16,
}

/// One queue's part of it.
#[derive(Debug)]
pub(crate) struct Notes {
    region: Arc<MmapRegion>,
    start: usize,
    size: u16,
    counter: u64,
}

fn queue_len(queue_size: u16) -> usize {
    (HEADER_LEN + ENTRY_LEN * usize::from(queue_size)).next_multiple_of(ALIGNMENT)
}

/// How much memory the notes of so many queues take.
pub(crate) fn len_for(queues: u16, queue_size: u16) -> usize {
    usize::from(queues) * queue_len(queue_size) + CACHE_LEN
}

/// Fresh memory, for the front-end to keep. It cannot shrink under whoever has mapped it.
pub(crate) fn create(queues: u16, queue_size: u16) -> io::Result<File> {
    let fd: OwnedFd =
        memfd_create("vhost-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len_for(queues, queue_size) as u64)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(File::from(fd))
}

impl Inflight {
    /// Maps what the front-end kept; `None` where it is not what these numbers say.
    pub(crate) fn map(
        file: File,
        at: u64,
        len: u64,
        queues: u16,
        queue_size: u16,
    ) -> Option<Inflight> {
        let len = usize::try_from(len).ok()?;
        if queues == 0 || queue_size == 0 || len < len_for(queues, queue_size) - CACHE_LEN {
            return None;
        }
        let region = MmapRegion::from_file(FileOffset::new(file, at), len).ok()?;
        Some(Inflight { region: Arc::new(region), queues, queue_size })
    }

    /// The notes of a queue, unless there are none for it or it is another size.
    pub(crate) fn queue(&self, index: u16, size: u16) -> Option<Notes> {
        if index >= self.queues || size > self.queue_size {
            return None;
        }
        let start = usize::from(index) * queue_len(self.queue_size);
        Some(Notes { region: Arc::clone(&self.region), start, size, counter: 0 })
    }

    /// What the guest said about the cache, if a back-end like this one has noted it.
    pub(crate) fn cache_is_volatile(&self) -> Option<bool> {
        let at = self.cache_at()?;
        let mark = load::<AtomicU32>(&self.region, at)?;
        (mark == CACHE_MARK).then(|| load::<AtomicU8>(&self.region, at + 4) != Some(0))
    }

    /// Notes it for the next back-end.
    pub(crate) fn note_cache(&self, is_volatile: bool) {
        let Some(at) = self.cache_at() else { return };
        store::<AtomicU8>(&self.region, at + 4, is_volatile.into());
        store::<AtomicU32>(&self.region, at, CACHE_MARK);
    }

    fn cache_at(&self) -> Option<usize> {
        let end = len_for(self.queues, self.queue_size);
        (self.region.size() >= end).then(|| end - CACHE_LEN)
    }
}

impl Notes {
    /// Makes the notes true after a back-end died, and says which requests it did not finish, oldest first.
    ///
    /// `used` is the used ring's index. Where it differs from the noted one, the request given back last was
    /// given back, and only its note was not taken away.
    pub(crate) fn recover(&mut self, used: u16) -> Vec<u16> {
        let version = self.load::<AtomicU16>(8);
        if version != Some(VERSION) || self.load::<AtomicU16>(10) != Some(self.size) {
            for head in 0..self.size {
                self.store::<AtomicU8>(self.entry(head), 0);
            }
            self.store::<AtomicU64>(0, 0);
            self.store::<AtomicU16>(10, self.size);
            self.store::<AtomicU16>(12, 0);
            self.store::<AtomicU16>(14, used);
            self.store::<AtomicU16>(8, VERSION);
            return Vec::new();
        }
        if self.load::<AtomicU16>(14) != Some(used) {
            let last = self.load::<AtomicU16>(12).unwrap_or(0);
            if last < self.size {
                self.store::<AtomicU8>(self.entry(last), 0);
            }
            fence(Ordering::SeqCst);
            self.store::<AtomicU16>(14, used);
        }
        let mut found: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.load::<AtomicU8>(self.entry(*head)) == Some(1))
            .map(|head| (self.load::<AtomicU64>(self.entry(head) + 8).unwrap_or(0), head))
            .collect();
        found.sort_unstable();
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        found.into_iter().map(|(_, head)| head).collect()
    }

    /// A request was taken from the available ring.
    pub(crate) fn begin(&mut self, head: u16) {
        if head < self.size {
            self.store::<AtomicU64>(self.entry(head) + 8, self.counter);
            self.counter = self.counter.wrapping_add(1);
            self.store::<AtomicU8>(self.entry(head), 1);
        }
    }

    /// A request is about to be put into the used ring.
    pub(crate) fn ending(&self, head: u16) {
        if head < self.size {
            self.store::<AtomicU16>(12, head);
        }
    }

    /// It is in the used ring, whose index is now `used`.
    pub(crate) fn ended(&self, head: u16, used: u16) {
        if head < self.size {
            self.store::<AtomicU8>(self.entry(head), 0);
            self.store::<AtomicU16>(14, used);
        }
    }

    fn entry(&self, head: u16) -> usize {
        HEADER_LEN + usize::from(head) * ENTRY_LEN
    }

    fn load<T: AtomicInteger>(&self, at: usize) -> Option<T::V> {
        load::<T>(&self.region, self.start + at)
    }

    fn store<T: AtomicInteger>(&self, at: usize, value: T::V) {
        store::<T>(&self.region, self.start + at, value);
    }
}

// Offsets were checked against the mapping when it was made, so neither of these misses its mark.

fn load<T: AtomicInteger>(region: &MmapRegion, at: usize) -> Option<T::V> {
    region.get_atomic_ref::<T>(at).ok().map(|value| value.load(Ordering::Acquire))
}

/// Stores become visible in the order they are made, so notes are true wherever the process dies.
fn store<T: AtomicInteger>(region: &MmapRegion, at: usize, value: T::V) {
    if let Ok(target) = region.get_atomic_ref::<T>(at) {
        target.store(value, Ordering::Release);
    }
}
