//! Bounded caches that forget what was not asked for lately.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::node::Node;

const SHARDS: usize = 32;

/// A leaf of an open disk. It is born empty and filled by the first who needs it, so that two
/// threads never hold two copies of one leaf.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    pub(crate) node: RwLock<Option<Node>>,
    /// Differs from what the disk's root reaches; stays in memory until a checkpoint stored it.
    pub(crate) dirty: AtomicBool,
}

/// Whether a cached thing may be forgotten now.
pub(crate) trait Evict {
    fn may_go(&self) -> bool;
}

impl Evict for Arc<Leaf> {
    /// Whoever holds a leaf may be about to change it.
    fn may_go(&self) -> bool {
        Arc::strong_count(self) == 1 && !self.dirty.load(Ordering::Acquire)
    }
}

impl Evict for Arc<Node> {
    fn may_go(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    touched: bool,
}

/// A map from keys to shared values that keeps about `capacity` of them (second chance).
#[derive(Debug)]
pub(crate) struct Clock<K, V> {
    shards: Vec<Mutex<HashMap<K, Slot<V>>>>,
    per_shard: usize,
}

impl<K: Hash + Eq + Copy + Into<Key>, V: Clone + Evict> Clock<K, V> {
    pub(crate) fn new(capacity: usize) -> Clock<K, V> {
        Clock {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            per_shard: (capacity / SHARDS).max(4),
        }
    }

    fn shard(&self, key: K) -> MutexGuard<'_, HashMap<K, Slot<V>>> {
        let Key(number) = key.into();
        let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let place = usize::try_from(place).unwrap_or(0) % SHARDS;
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: K) -> Option<V> {
        let mut shard = self.shard(key);
        shard.get_mut(&key).map(|slot| {
            slot.touched = true;
            slot.value.clone()
        })
    }

    /// The value of a key, made where there is none.
    pub(crate) fn get_or(&self, key: K, make: impl FnOnce() -> V) -> V {
        let mut shard = self.shard(key);
        if let Some(slot) = shard.get_mut(&key) {
            slot.touched = true;
            return slot.value.clone();
        }
        if shard.len() >= self.per_shard {
            shard.retain(|_, slot| std::mem::take(&mut slot.touched) || !slot.value.may_go());
        }
        let value = make();
        shard.insert(key, Slot { value: value.clone(), touched: false });
        value
    }

    /// Forgets every key that the question says yes to.
    pub(crate) fn forget(&self, which: impl Fn(&K) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|key, _| !which(key));
        }
    }

    pub(crate) fn len(&self) -> usize {
        let count = |shard: &Mutex<HashMap<K, Slot<V>>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).len()
        };
        self.shards.iter().map(count).sum()
    }
}

/// A key, as a number that tells shards apart.
#[derive(Debug)]
pub(crate) struct Key(pub(crate) u64);

/// A leaf's key: disk or snapshot, and number of the leaf.
pub(crate) type LeafKey = (u64, u64);
/// A node's key: block and checksum, since a block may become another node.
pub(crate) type NodeKey = (u64, u32);

impl From<LeafKey> for Key {
    fn from((owner, leaf): LeafKey) -> Key {
        Key(leaf ^ owner << 40)
    }
}

impl From<NodeKey> for Key {
    fn from((block, crc): NodeKey) -> Key {
        Key(block ^ u64::from(crc) << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_forgets_what_nobody_holds_and_keeps_what_is_dirty() {
        let cache: Clock<LeafKey, Arc<Leaf>> = Clock::new(256);
        let held = cache.get_or((1, 0), Arc::default);
        cache.get_or((1, 1), Arc::default).dirty.store(true, Ordering::Release);
        for leaf in 2..5000 {
            cache.get_or((1, leaf), Arc::default);
        }
        assert!(cache.len() < 600, "{} leaves", cache.len());
        assert!(Arc::ptr_eq(&held, &cache.get((1, 0)).unwrap()));
        assert!(cache.get((1, 1)).unwrap().dirty.load(Ordering::Acquire));
    }
}
