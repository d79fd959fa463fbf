//! Blocks compressed by several threads, given back in the order they came.
//!
//! Each thread has a queue of its own and shares are dealt out in turn, so the next result is always that of the
//! next thread: nothing is sorted and nobody spins. How much waits is bounded, and buffers come back with the results.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use super::codec::Codec;
use super::header::{BLOCK_CRC_SEED, crc};

/// Content that one thread compresses at a time.
pub(super) const SHARE: usize = 128 << 10;
/// Shares that may wait at each thread.
const DEPTH: usize = 4;
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
    lanes: Vec<Lane>,
    /// The lane that gets the next share.
    into: usize,
    /// The lane whose result is the next.
    from: usize,
    waiting: usize,
    spare: Vec<Share>,
}

#[derive(Debug)]
struct Lane {
    shares: Option<Sender<Share>>,
    results: Receiver<io::Result<Share>>,
    thread: Option<JoinHandle<()>>,
}

impl Pipeline {
    pub(super) fn start(threads: usize, blocks: Blocks) -> io::Result<Pipeline> {
        let lanes = (0..threads).map(|_| Lane::start(blocks)).collect::<io::Result<_>>()?;
        Ok(Pipeline { lanes, into: 0, from: 0, waiting: 0, spare: Vec::new() })
    }

    /// Whether a share must be taken before another one is put.
    pub(super) fn is_full(&self) -> bool {
        self.waiting == self.lanes.len() * DEPTH
    }

    /// Hands content over and leaves an empty buffer in its place.
    pub(super) fn put(&mut self, content: &mut Vec<u8>) -> io::Result<()> {
        let mut share = self.spare.pop().unwrap_or_default();
        std::mem::swap(&mut share.content, content);
        content.clear();
        share.packed.clear();
        let lane = &self.lanes[self.into];
        let sent = lane.shares.as_ref().is_some_and(|shares| shares.send(share).is_ok());
        self.into = (self.into + 1) % self.lanes.len();
        self.waiting += 1;
        if sent { Ok(()) } else { Err(ended()) }
    }

    /// The share put first of those that were not taken; `None` if all were.
    pub(super) fn take(&mut self) -> Option<io::Result<Share>> {
        self.waiting = self.waiting.checked_sub(1)?;
        let result = self.lanes[self.from].results.recv();
        self.from = (self.from + 1) % self.lanes.len();
        Some(result.unwrap_or_else(|_| Err(ended())))
    }

    /// Gives the buffers of a share back.
    pub(super) fn reuse(&mut self, share: Share) {
        self.spare.push(share);
    }
}

fn ended() -> io::Error {
    io::Error::other("a thread that compresses has ended")
}

impl Lane {
    fn start(blocks: Blocks) -> io::Result<Lane> {
        let (shares, todo) = channel::<Share>();
        let (done, results) = channel();
        let thread = Builder::new().name("pack".to_owned()).spawn(move || {
            for mut share in todo {
                let Share { content, packed } = &mut share;
                let result = packed.add(blocks, content).map(|()| share);
                if done.send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(Lane { shares: Some(shares), results, thread: Some(thread) })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shares = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing more to say; one that panicked was noticed when its result was missing.
            let _ = thread.join();
        }
    }
}
