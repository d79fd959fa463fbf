//! Two openings of one pool: the older must not write any more.
//!
//! A lock keeps a second process out, until it is on another machine or somebody removed the lock's file. Each opening
//! takes the next number (`opening`) and stores it with its first checkpoint, so an older one can see that it was taken
//! over: before each checkpoint, and before each batch of the log that a flush waits for.

use kiln_block::ByteOffset;

use crate::PoolError;
use crate::core::Core;
use crate::format::{BLOCK_LEN, Superblock, get};
use crate::open::newest_superblock;
use crate::sync::atomic::Ordering;

/// Bytes of a superblock that hold what is looked at first.
const FRONT: usize = 56;

impl Core {
    /// Fails, for good, if the pool was opened again since.
    pub(crate) fn check_fence(&self) -> Result<(), PoolError> {
        // A later opening has stored its superblock behind this one's newest, or this one's newest is no more.
        let generation = self.generation.load(Ordering::Acquire);
        let mut front = [0; FRONT];
        let other = ((generation + 1) & 1) * 2 * BLOCK_LEN;
        let read = self.device.read_at(ByteOffset::new(other), &mut front);
        read.map_err(PoolError::device("read"))?;
        let older = Superblock::is_one(&front)
            && front[24..40] == self.uuid
            && get(&front, 40) < generation
            && get(&front, 48) <= self.opening;
        if older {
            return Ok(());
        }
        let newest = newest_superblock(&*self.device)?;
        if newest.uuid == self.uuid && newest.opening <= self.opening {
            return Ok(());
        }
        self.fenced.store(true, Ordering::Release);
        self.poisoned.store(true, Ordering::Release);
        Err(PoolError::Fenced { opening: self.opening })
    }
}
