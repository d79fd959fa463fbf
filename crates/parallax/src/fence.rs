//! Two openings of one pool: the older must not write any more.
//!
//! A lock keeps a second process out, until it is on another machine or somebody removed the lock's file. Each opening
//! takes the next number (`opening`) and stores it with its first checkpoint, with a number drawn at random beside it, so
//! an older one, or one that began at the same instant, can see that it was taken over: before each checkpoint, and before
//! each batch of the log that a flush waits for.

use kiln_block::ByteOffset;

use crate::PoolError;
use crate::core::Core;
use crate::format::{BLOCK_LEN, NONCE_AT, Superblock, get};
use crate::open::newest_superblock;
use crate::sync::atomic::Ordering;

/// Bytes of a superblock that hold what is looked at first.
const FRONT: usize = NONCE_AT + 8;

impl Core {
    /// Fails, for good, if the pool was opened again since.
    pub(crate) fn check_fence(&self) -> Result<(), PoolError> {
        // A later opening has stored its superblock behind this one's newest, or in its place, or that is no more.
        let generation = self.generation.load(Ordering::Acquire);
        let front = |slot: u64| {
            let mut front = [0; FRONT];
            let at = ByteOffset::new((slot & 1) * 2 * BLOCK_LEN);
            self.device.read_at(at, &mut front).map_err(PoolError::device("read"))?;
            Ok::<_, PoolError>(front)
        };
        let (other, own) = (front(generation + 1)?, front(generation)?);
        let numbers = |front: &[u8]| (get(front, 48), get(front, NONCE_AT));
        let is_one = |front: &[u8]| Superblock::is_one(front) && front[24..40] == self.uuid;
        let older =
            is_one(&other) && get(&other, 40) < generation && self.may_follow(numbers(&other));
        let newest = is_one(&own)
            && get(&own, 40) == generation
            && numbers(&own) == (self.opening, self.nonce);
        if older && newest {
            return Ok(());
        }
        let newest = newest_superblock(&*self.device)?;
        if newest.uuid == self.uuid && self.may_follow((newest.opening, newest.nonce)) {
            return Ok(());
        }
        self.fenced.store(true, Ordering::Release);
        self.poisoned.store(true, Ordering::Release);
        Err(PoolError::Fenced { opening: self.opening })
    }

    /// Whether what that opening stored may come before what this one stores.
    fn may_follow(&self, (opening, nonce): (u64, u64)) -> bool {
        opening < self.opening || (opening, nonce) == (self.opening, self.nonce)
    }
}
