//! Blocks compressed by several threads, given back in the order they came.
//!
//! Whoever has nothing else to do takes the share that came first; so does the thread that hands shares over, when enough of
//! them wait or the next result is not there yet. So nobody waits while there is something to compress, and nobody spins. How
//! much is on its way is bounded, and buffers come back with the results.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::codec::Codec;
use super::header::{BLOCK_CRC_SEED, crc};

/// Content that one thread compresses at a time.
pub(super) const SHARE: usize = 128 << 10;
/// Shares on their way, for each thread.
const DEPTH: usize = 3;
/// Other readers take no compressed block that is larger.
const READABLE: usize = 65536;

/// How each block is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    pub(super) codec: Codec,
    pub(super) size: usize,
    pub(super) checksums: bool,
}

/// Whole blocks, of which only the last of a file may be short; and what became of them.
#[derive(Debug, Default)]
pub(super) struct Share {
    pub(super) content: Vec<u8>,
    pub(super) packed: Packed,
}

/// Compressed blocks.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// As large as it ever had to be, so that it is filled with zeros once and not for each block.
    room: Vec<u8>,
    used: usize,
    /// Bytes of each block, its CRC included.
    pub(super) lens: Vec<u32>,
}

impl Packed {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[..self.used]
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.lens.clear();
    }

    /// Compresses content block by block, behind what is here.
    pub(super) fn add(&mut self, blocks: Blocks, content: &[u8]) -> io::Result<()> {
        let most = blocks.codec.bound(blocks.size) + 4;
        for block in content.chunks(blocks.size) {
            if self.room.len() < self.used + most {
                self.room.resize((self.used + most).max(2 * self.room.len()), 0);
            }
            let len = blocks.codec.compress(block, &mut self.room[self.used..])?;
            if len > READABLE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, TooLarge));
            }
            let end = self.used + len;
            let stored = if blocks.checksums {
                let sum = crc(BLOCK_CRC_SEED, &self.room[self.used..end]);
                self.room[end..end + 4].copy_from_slice(&sum.to_le_bytes());
                len + 4
            } else {
                len
            };
            self.used += stored;
            self.lens.push(u32::try_from(stored).unwrap_or(u32::MAX));
        }
        Ok(())
    }
}

/// A block that no other reader could read back.
#[derive(Debug, thiserror::Error)]
#[error(
    "a 64 KiB block does not compress, and other readers fail on it; use blocks of 32 KiB or less"
)]
struct TooLarge;

/// Threads that compress; they end with this.
#[derive(Debug)]
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    /// All but the one that hands over.
    threads: Vec<JoinHandle<()>>,
    waiting: usize,
    spare: Vec<Share>,
}

#[derive(Debug)]
struct Shared {
    blocks: Blocks,
    state: Mutex<State>,
    /// There is a share to compress, or there will be no more.
    more: Condvar,
    /// A share is compressed.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Shares that nobody has begun with, and their numbers.
    todo: VecDeque<(u64, Share)>,
    /// What became of the shares from `taken` on.
    results: VecDeque<Option<io::Result<Share>>>,
    taken: u64,
    /// Threads that wait for `more`, and whether `done` is waited for.
    idle: usize,
    wanted: bool,
    closed: bool,
}

impl Pipeline {
    pub(super) fn start(threads: usize, blocks: Blocks) -> io::Result<Pipeline> {
        let (state, more, done) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { blocks, state, more, done });
        let mut pipeline = Pipeline { shared, threads: Vec::new(), waiting: 0, spare: Vec::new() };
        for _ in 1..threads {
            let shared = Arc::clone(&pipeline.shared);
            let thread = Builder::new().name("pack".to_owned()).spawn(move || {
                while let Some((number, share)) = shared.next() {
                    shared.pack(number, share);
                }
            });
            pipeline.threads.push(thread?);
        }
        Ok(pipeline)
    }

    /// Whether a share must be taken before another one is put.
    pub(super) fn is_full(&self) -> bool {
        self.waiting >= (self.threads.len() + 1) * DEPTH
    }

    /// Hands content over and leaves an empty buffer in its place.
    pub(super) fn put(&mut self, content: &mut Vec<u8>) {
        let mut share = self.spare.pop().unwrap_or_default();
        std::mem::swap(&mut share.content, content);
        content.clear();
        share.packed.clear();
        self.waiting += 1;
        let mut state = self.shared.state();
        let number = state.taken + state.results.len() as u64;
        state.results.push_back(None);
        state.todo.push_back((number, share));
        let is_awaited = state.idle > 0;
        drop(state);
        if is_awaited {
            self.shared.more.notify_one();
        }
    }

    /// The share put first of those that were not taken; `None` if all were. Compresses until it is there.
    pub(super) fn take(&mut self) -> Option<io::Result<Share>> {
        self.waiting = self.waiting.checked_sub(1)?;
        let mut state = self.shared.state();
        loop {
            if let Some(result) = state.results.front_mut().and_then(Option::take) {
                state.results.pop_front();
                state.taken += 1;
                return Some(result);
            }
            if let Some((number, share)) = state.todo.pop_front() {
                drop(state);
                self.shared.pack(number, share);
                state = self.shared.state();
                continue;
            }
            state.wanted = true;
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.wanted = false;
        }
    }

    /// Gives the buffers of a share back.
    pub(super) fn reuse(&mut self, share: Share) {
        self.spare.push(share);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next share to compress, which is waited for; `None` if there will be no more.
    fn next(&self) -> Option<(u64, Share)> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if let Some(next) = state.todo.pop_front() {
                return Some(next);
            }
            state.idle += 1;
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn pack(&self, number: u64, mut share: Share) {
        let mut report = Report { shared: self, number, result: None };
        let Share { content, packed } = &mut share;
        report.result = Some(packed.add(self.blocks, content).map(|()| share));
    }
}

/// Tells what became of a share, whatever happens.
struct Report<'s> {
    shared: &'s Shared,
    number: u64,
    result: Option<io::Result<Share>>,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        let result = self.result.take();
        let result =
            result.unwrap_or_else(|| Err(io::Error::other("a thread that compresses died")));
        let mut state = self.shared.state();
        let place = usize::try_from(self.number - state.taken).unwrap_or(usize::MAX);
        if let Some(slot) = state.results.get_mut(place) {
            *slot = Some(result);
        }
        let is_wanted = state.wanted;
        drop(state);
        if is_wanted {
            self.shared.done.notify_one();
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.todo.clear();
        drop(state);
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // It has nothing more to say; one that panicked has told so as its result.
            let _ = thread.join();
        }
    }
}
