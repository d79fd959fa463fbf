//! Growing: a pool in a file takes more of its filesystem when it needs it, up to what its free map has room for.
//!
//! What was added is durable with the next sync, which comes before anything that is said to lie there is. The
//! superblock learns of it with the next checkpoint; a pool that is smaller than its device uses all of the device
//! when it is opened, so that nothing depends on when.

use kiln_block::{ByteLen, DeviceError};

use crate::PoolError;
use crate::core::Core;
use crate::format::BLOCK_LEN;
use crate::pool::Pool;
use crate::sync::PoisonError;

/// The least a pool takes, where there is as much, in blocks: 64 MiB.
pub(crate) const STEP: u64 = 16384;
/// The most it takes ahead of its need: 1 GiB.
const LARGEST_STEP: u64 = 262_144;
/// What it takes when there is hardly any: 1 MiB.
const LAST_STEP: u64 = 256;

impl Core {
    /// The most blocks the pool can have.
    pub(crate) fn limit(&self) -> u64 {
        self.layout.limit()
    }

    /// Up to how many blocks it grows by itself.
    pub(crate) fn most(&self) -> u64 {
        self.most.min(self.limit())
    }

    /// Whether little enough is left that growing should begin.
    pub(crate) fn wants_to_grow(&self) -> bool {
        self.space.available() < STEP / 2 && self.may_grow()
    }

    fn may_grow(&self) -> bool {
        self.space.end() < self.most() && *self.grows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a step; false where the device or its filesystem has no more.
    pub(crate) fn grow(&self) -> Result<bool, PoolError> {
        // One grows, the others find that it has.
        let mut grows = self.grows.lock().unwrap_or_else(PoisonError::into_inner);
        if self.space.available() >= STEP / 2 {
            return Ok(true);
        }
        let end = self.space.end();
        if !*grows || end >= self.most() {
            return Ok(false);
        }
        let mut step = (end / 8).clamp(STEP, LARGEST_STEP);
        loop {
            let to = (end + step).min(self.most());
            match self.device.grow(ByteLen::new(to * BLOCK_LEN)) {
                Ok(()) => {
                    self.space.grow(to);
                    self.counters.growths.add(1);
                    return Ok(true);
                }
                Err(DeviceError::NoSpace { .. }) if step > LAST_STEP => step /= 4,
                Err(DeviceError::NoSpace { .. }) => return Ok(false),
                Err(DeviceError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::Unsupported =>
                {
                    *grows = false;
                    return Ok(false);
                }
                Err(source) => return Err(PoolError::Device { act: "grow", source }),
            }
        }
    }

    fn grow_to(&self, size: ByteLen) -> Result<(), PoolError> {
        let blocks = size.get().div_ceil(BLOCK_LEN);
        if blocks > self.limit() {
            let limit = ByteLen::new(self.limit() * BLOCK_LEN);
            return Err(PoolError::TooLarge { size, limit });
        }
        let _grows = self.grows.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks > self.space.end() {
            self.device.grow(ByteLen::new(blocks * BLOCK_LEN)).map_err(|source| match source {
                DeviceError::NoSpace { .. } => PoolError::NoSpace,
                source => PoolError::Device { act: "grow", source },
            })?;
            self.space.grow(blocks);
            self.counters.growths.add(1);
        }
        Ok(())
    }
}

impl Pool {
    /// Makes the pool at least that large, on a device that can grow, and takes the space for it now. A pool in a file
    /// also grows by itself.
    pub fn grow_to(&self, size: ByteLen) -> Result<(), PoolError> {
        self.core.refuse_if_poisoned()?;
        self.core.grow_to(size)?;
        self.checkpoint()
    }
}
