//! [`CrashDisk`]: a disk that remembers every write, so that a test can cut the power after any of them.
//!
//! After a cut a real disk holds everything flushed, and of what was written since then any subset
//! of sectors, in any order: a write of many sectors may be torn anywhere between them. A cut's
//! images are enumerated while they are few, and drawn at random, repeatably, when they are not.

use std::io::{IoSlice, IoSliceMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Dice;
use crate::device::{buffers_len, check_range};
use crate::{BlockDevice, ByteLen, ByteOffset, DeviceError};

/// What a disk writes in one piece or not at all, in bytes.
pub const SECTOR: usize = 512;

/// Subsets of up to this many sectors are all tried; of more, a sample.
const EXHAUSTIVE: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: usize,
        bytes: Vec<u8>,
    },
    /// To that many bytes.
    Grow(usize),
    Flush,
}

#[derive(Debug)]
struct Log {
    /// What the disk held at the start.
    start: Vec<u8>,
    now: Vec<u8>,
    steps: Vec<Step>,
}

/// A small disk in memory that keeps the history of its writes and flushes.
#[derive(Debug)]
pub struct CrashDisk {
    log: Mutex<Log>,
}

impl CrashDisk {
    /// A disk of zeros.
    pub fn new(size: ByteLen) -> CrashDisk {
        CrashDisk::holding(vec![0; size.to_usize().unwrap_or(0)])
    }

    /// A disk that durably holds these bytes, and has no history.
    pub fn holding(bytes: Vec<u8>) -> CrashDisk {
        let log = Log { start: bytes.clone(), now: bytes, steps: Vec::new() };
        CrashDisk { log: Mutex::new(log) }
    }

    /// How many writes, growths and flushes there were; a power cut may come after any of them.
    pub fn steps(&self) -> usize {
        self.log().steps.len()
    }

    /// What the disk holds while the power is on.
    pub fn now(&self) -> Vec<u8> {
        self.log().now.clone()
    }

    /// What it may hold when the power went after `cut` steps: nothing of what was not flushed, all
    /// of it, every subset of a few unflushed sectors, and `samples` random subsets of many. The
    /// seed makes the sample repeatable.
    pub fn images_a_power_cut_may_leave(
        &self,
        cut: usize,
        samples: usize,
        seed: u64,
    ) -> Vec<Vec<u8>> {
        let log = self.log();
        let steps = &log.steps[..cut.min(log.steps.len())];
        let flushed =
            steps.iter().rposition(|step| matches!(step, Step::Flush)).map_or(0, |i| i + 1);
        let mut durable = log.start.clone();
        for step in &steps[..flushed] {
            match step {
                Step::Write { at, bytes } => durable[*at..*at + bytes.len()].copy_from_slice(bytes),
                Step::Grow(size) => durable.resize(*size, 0),
                Step::Flush => {}
            }
        }
        // One piece is what one write put into one sector; a later piece for the same sector wins.
        let mut pieces: Vec<(usize, &[u8])> = Vec::new();
        for step in &steps[flushed..] {
            if let Step::Grow(size) = step {
                // A piece without bytes, at the new end.
                pieces.push((*size, &[]));
            } else if let Step::Write { at, bytes } = step {
                let mut from = 0;
                while from < bytes.len() {
                    let to = (SECTOR - (at + from) % SECTOR + from).min(bytes.len());
                    pieces.push((at + from, &bytes[from..to]));
                    from = to;
                }
            }
        }
        let image = |keep: &dyn Fn(usize) -> bool| {
            let mut image = durable.clone();
            for (index, (at, bytes)) in pieces.iter().enumerate() {
                if keep(index) {
                    // A larger size may be lost, though not while something beyond the old one is kept.
                    image.resize(image.len().max(*at + bytes.len()), 0);
                    image[*at..*at + bytes.len()].copy_from_slice(bytes);
                }
            }
            image
        };
        if pieces.len() <= EXHAUSTIVE {
            return (0..1_usize << pieces.len()).map(|set| image(&|i| set >> i & 1 == 1)).collect();
        }
        let mut images = vec![image(&|_| false), image(&|_| true)];
        let mut dice = Dice::seeded(seed ^ cut as u64);
        for sample in 0..samples {
            // Few lost, few kept, and halves: the interesting cuts lose or keep a single sector.
            let odds = [2, 16, pieces.len() as u64][sample % 3];
            let invert = sample % 2 == 0;
            let set: Vec<bool> = pieces.iter().map(|_| (dice.below(odds) == 0) != invert).collect();
            images.push(image(&|i| set[i]));
        }
        images
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span(&self, at: ByteOffset, len: ByteLen) -> Result<std::ops::Range<usize>, DeviceError> {
        check_range(self.size(), at, len)?;
        // Within the size of a vector, hence within usize.
        let from = ByteLen::new(at.get()).to_usize().unwrap_or(0);
        Ok(from..from + len.to_usize().unwrap_or(0))
    }
}

impl BlockDevice for CrashDisk {
    fn size(&self) -> ByteLen {
        ByteLen::of(&self.log().now)
    }

    fn grow(&self, size: ByteLen) -> Result<(), DeviceError> {
        let size = size.to_usize().unwrap_or(0);
        let mut log = self.log();
        if size > log.now.len() {
            log.now.resize(size, 0);
            log.steps.push(Step::Grow(size));
        }
        Ok(())
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let mut from = self.span(at, buffers_len(buffers))?.start;
        let log = self.log();
        for buffer in buffers {
            let len = buffer.len();
            buffer.copy_from_slice(&log.now[from..from + len]);
            from += len;
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        let span = self.span(at, buffers_len(buffers))?;
        let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
        let mut log = self.log();
        log.now[span.clone()].copy_from_slice(&bytes);
        log.steps.push(Step::Write { at: span.start, bytes });
        Ok(())
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.write_zeroes(at, len, false)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        _keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        let span = self.span(at, len)?;
        self.write_at(at, &vec![0; span.len()])
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.log().steps.push(Step::Flush);
        Ok(())
    }
}
