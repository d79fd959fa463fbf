//! Blocks that were decompressed and may be wanted again.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_block::ByteLen;

/// What one set may hold: 32 blocks of 4 KiB, or two of 64 KiB. Small, so that a search is short.
const SET_BYTES: usize = 128 << 10;

/// Which block of which file.
type Key = (u64, u64);

/// A cache of a fixed size, shared by the layers of a stack. The block least recently used in its
/// set makes room.
pub struct BlockCache {
    sets: Box<[Mutex<Set>]>,
    owners: AtomicU64,
}

#[derive(Default)]
struct Set {
    keys: Vec<Key>,
    slots: Vec<(u64, Box<[u8]>)>,
    bytes: usize,
    clock: u64,
}

impl BlockCache {
    /// A cache of at most that many bytes, at least 128 KiB.
    pub fn new(size: ByteLen) -> BlockCache {
        let sets = size.to_usize().map_or(1, |size| size / SET_BYTES).max(1);
        BlockCache {
            sets: (0..sets).map(|_| Mutex::default()).collect(),
            owners: AtomicU64::new(0),
        }
    }

    /// A number that no other file in this cache has.
    pub(crate) fn new_owner(&self) -> u64 {
        self.owners.fetch_add(1, Ordering::Relaxed)
    }

    fn set(&self, (owner, block): Key) -> &Mutex<Set> {
        // Neighbours go to neighbouring sets, so a sequential read uses all of them.
        let spread = block.wrapping_add(owner.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let index = spread % self.sets.len() as u64;
        &self.sets[usize::try_from(index).unwrap_or(0)]
    }

    /// Copies a part of a block out, if it is here.
    pub(crate) fn copy(&self, key: Key, from: usize, out: &mut [u8]) -> bool {
        let mut set = self.set(key).lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = set.keys.iter().position(|found| *found == key) else { return false };
        set.clock += 1;
        let clock = set.clock;
        let (used, bytes) = &mut set.slots[index];
        *used = clock;
        let Some(part) = bytes.get(from..from + out.len()) else { return false };
        out.copy_from_slice(part);
        true
    }

    /// Keeps a block.
    pub(crate) fn keep(&self, key: Key, bytes: &[u8]) {
        if bytes.len() > SET_BYTES {
            return;
        }
        let mut set = self.set(key).lock().unwrap_or_else(PoisonError::into_inner);
        if set.keys.contains(&key) {
            return;
        }
        let mut room: Option<Box<[u8]>> = None;
        while set.bytes + bytes.len() > SET_BYTES {
            let oldest = (0..set.slots.len()).min_by_key(|index| set.slots[*index].0);
            let Some(oldest) = oldest else { break };
            set.keys.swap_remove(oldest);
            let (_, freed) = set.slots.swap_remove(oldest);
            set.bytes -= freed.len();
            room = Some(freed);
        }
        let kept = match room {
            Some(mut room) if room.len() == bytes.len() => {
                room.copy_from_slice(bytes);
                room
            }
            _ => bytes.into(),
        };
        set.clock += 1;
        let clock = set.clock;
        set.bytes += bytes.len();
        set.keys.push(key);
        set.slots.push((clock, kept));
    }
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockCache({} sets)", self.sets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_never_holds_more_than_its_size() {
        let cache = BlockCache::new(ByteLen::kib(256));
        for block in 0..1000 {
            cache.keep((1, block), &[7; 4096]);
        }
        let held: usize = cache.sets.iter().map(|set| set.lock().unwrap().bytes).sum();
        assert_eq!(held, 256 << 10);
        assert!(cache.copy((1, 999), 4000, &mut [0; 96]), "the newest block stays");
        assert!(!cache.copy((1, 0), 0, &mut [0; 1]), "the oldest made room");
        assert!(!cache.copy((2, 999), 0, &mut [0; 1]), "files do not mix");
    }
}
