//! Bounded caches that forget what was not asked for lately.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use crate::format::BLOCK;
use crate::leaf::LeafMap;
use crate::node::Node;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

const SHARDS: usize = 32;

/// A leaf of an open disk.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    pub(crate) map: RwLock<LeafMap>,
    /// Differs from what the disk's root reaches; stays in memory until a checkpoint stored it.
    pub(crate) dirty: AtomicBool,
}

impl Leaf {
    pub(crate) fn holding(map: LeafMap) -> Leaf {
        Leaf { map: RwLock::new(map), dirty: AtomicBool::new(false) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, LeafMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, LeafMap> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a cached thing may be forgotten now, and what that would give.
pub(crate) trait Evict {
    fn may_go(&self) -> bool;
    /// Bytes it takes, with its share of the cache.
    fn bytes(&self) -> usize;
}

/// What a value takes besides its own bytes: counters, locks, headers of the allocator, its place in the table.
const OVERHEAD: usize = 160;

impl Evict for Arc<Leaf> {
    /// Whoever holds a leaf may be about to change it.
    fn may_go(&self) -> bool {
        Arc::strong_count(self) == 1 && !self.dirty.load(Ordering::Acquire)
    }

    fn bytes(&self) -> usize {
        OVERHEAD + self.map.try_read().map_or(BLOCK, |map| map.footprint())
    }
}

impl Evict for Arc<Node> {
    fn may_go(&self) -> bool {
        true
    }

    fn bytes(&self) -> usize {
        OVERHEAD + BLOCK
    }
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    touched: bool,
}

#[derive(Debug)]
struct Shard<K, V> {
    slots: HashMap<K, Slot<V>, Mixing>,
    /// What they took when they came, or when they were last looked through.
    bytes: usize,
    hits: u64,
    misses: u64,
}

/// A map from keys to shared values that keeps about as many bytes of them as it may (second chance).
#[derive(Debug)]
pub(crate) struct Clock<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
    per_shard: usize,
}

impl<K: Hash + Eq + Copy, V: Clone + Evict> Clock<K, V> {
    pub(crate) fn new(bytes: usize) -> Clock<K, V> {
        let shard =
            || Mutex::new(Shard { slots: HashMap::default(), bytes: 0, hits: 0, misses: 0 });
        Clock {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            per_shard: (bytes / SHARDS).max(4 * (BLOCK + OVERHEAD)),
        }
    }

    fn shard(&self, key: K) -> MutexGuard<'_, Shard<K, V>> {
        let place = usize::try_from(Mixing.hash_one(key) >> 20).unwrap_or(0) % SHARDS;
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: K) -> Option<V> {
        let mut shard = self.shard(key);
        let found = shard.slots.get_mut(&key).map(|slot| {
            slot.touched = true;
            slot.value.clone()
        });
        match found {
            Some(_) => shard.hits += 1,
            None => shard.misses += 1,
        }
        found
    }

    /// How often what was asked for was there, and how often not.
    pub(crate) fn asked(&self) -> (u64, u64) {
        self.shards.iter().fold((0, 0), |(hits, misses), shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            (hits + shard.hits, misses + shard.misses)
        })
    }

    /// Keeps a value and returns it, or what there is already; nothing if there is nothing and the value is
    /// no longer right.
    pub(crate) fn insert_if(&self, key: K, value: V, right: impl FnOnce() -> bool) -> Option<V> {
        let mut shard = self.shard(key);
        if let Some(slot) = shard.slots.get_mut(&key) {
            slot.touched = true;
            return Some(slot.value.clone());
        }
        if !right() {
            return None;
        }
        let bytes = value.bytes();
        if shard.bytes + bytes > self.per_shard {
            shard.sweep(self.per_shard.saturating_sub(bytes) / 8 * 7);
        }
        shard.bytes += bytes;
        shard.slots.insert(key, Slot { value: value.clone(), touched: false });
        Some(value)
    }

    /// Forgets every key that the question says yes to.
    pub(crate) fn forget(&self, which: impl Fn(&K) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.slots.retain(|key, _| !which(key));
        }
    }

    /// Bytes of memory all of it takes.
    pub(crate) fn bytes(&self) -> usize {
        let count = |shard: &Mutex<Shard<K, V>>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.slots.values().map(|slot| slot.value.bytes()).sum::<usize>()
        };
        self.shards.iter().map(count).sum()
    }
}

impl<K, V: Evict> Shard<K, V> {
    /// Forgets what was not asked for since the last time, until no more than that is left.
    fn sweep(&mut self, keep: usize) {
        let mut bytes = self.slots.values().map(|slot| slot.value.bytes()).sum::<usize>();
        self.slots.retain(|_, slot| {
            let stays = bytes <= keep || std::mem::take(&mut slot.touched) || !slot.value.may_go();
            if !stays {
                bytes -= slot.value.bytes();
            }
            stays
        });
        self.bytes = bytes;
    }
}

/// A leaf's key: disk or snapshot, and number of the leaf.
pub(crate) type LeafKey = (u64, u64);
/// A node's key: block and checksum, since a block may become another node.
pub(crate) type NodeKey = (u64, u32);

/// Hashes numbers that nobody chooses to collide, quickly.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mixing;

#[derive(Debug)]
pub(crate) struct Mixer(u64);

impl BuildHasher for Mixing {
    type Hasher = Mixer;

    fn build_hasher(&self) -> Mixer {
        Mixer(0)
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_forgets_what_nobody_holds_and_keeps_what_is_dirty() {
        let cache: Clock<LeafKey, Arc<Leaf>> = Clock::new(1 << 20);
        let put = |leaf| cache.insert_if((1, leaf), Arc::default(), || true).unwrap();
        let held = put(0);
        put(1).dirty.store(true, Ordering::Release);
        for leaf in 2..50_000 {
            put(leaf);
        }
        assert!(cache.bytes() <= 1 << 20, "{} bytes", cache.bytes());
        assert!(cache.bytes() > 1 << 19, "{} bytes", cache.bytes());
        assert!(Arc::ptr_eq(&held, &cache.get((1, 0)).unwrap()));
        assert!(cache.get((1, 1)).unwrap().dirty.load(Ordering::Acquire));
    }

    #[test]
    fn what_was_found_before_the_map_moved_is_not_kept() {
        let cache: Clock<LeafKey, Arc<Leaf>> = Clock::new(1 << 20);
        assert!(cache.insert_if((1, 0), Arc::default(), || false).is_none());
        let first = cache.insert_if((1, 0), Arc::default(), || true).unwrap();
        let again = cache.insert_if((1, 0), Arc::default(), || false).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
    }
}
