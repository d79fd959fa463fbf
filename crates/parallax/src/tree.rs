//! Walking and changing maps. A map never changes in place: a checkpoint writes new nodes up to a new root.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_block::ByteOffset;

use crate::PoolError;
use crate::cache::Leaf;
use crate::core::Core;
use crate::format::{BLOCK, BLOCK_LEN, same};
use crate::head::{Head, Place};
use crate::node::{Entry, FANOUT, Kind, Node, ROOT_LEVEL, leaves_below, place_of};

/// A node that a checkpoint is to write: fresh blocks, and what they replace.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    /// Blocks that nothing reaches any more.
    pub(crate) replaced: Vec<u64>,
}

impl Core {
    /// The node an entry points at; checked against the entry's checksum.
    pub(crate) fn node(
        &self,
        entry: Entry,
        level: u32,
        first: u64,
    ) -> Result<Arc<Node>, PoolError> {
        let key = (entry.block, entry.crc);
        if let Some(node) = self.unwritten().get(&entry.block) {
            return Ok(node.clone());
        }
        if let Some(node) = self.nodes.get(key) {
            return Ok(node);
        }
        let node = Arc::new(self.read_node(entry, level, first)?);
        // Leaves are kept by disk and number; here they would only push out what leads to them.
        if level > 0 {
            self.nodes.get_or(key, || node.clone());
        }
        Ok(node)
    }

    fn read_node(&self, entry: Entry, level: u32, first: u64) -> Result<Node, PoolError> {
        let damaged = |what: &str| PoolError::Damaged {
            found: format!("{what} in block {} (level {level}, leaf {first})", entry.block),
        };
        if entry.kind != Kind::Node || !self.space.holds(entry.block) {
            return Err(damaged("no node can be"));
        }
        let mut bytes = Box::new([0; BLOCK]);
        self.device
            .read_at(ByteOffset::new(entry.block * BLOCK_LEN), &mut bytes[..])
            .map_err(PoolError::device("read"))?;
        if !same(entry.crc, self.sums.node(entry.block, &bytes[..])) {
            return Err(damaged("a wrong checksum of a node"));
        }
        Node::from_bytes(bytes, level, first).ok_or_else(|| damaged("another node"))
    }

    /// The stored leaf of a map, or one of holes.
    pub(crate) fn stored_leaf(&self, root: Entry, leaf: u64) -> Result<Node, PoolError> {
        let mut entry = root;
        let mut level = ROOT_LEVEL;
        while !entry.is_hole() {
            let node = self.node(entry, level, leaf - leaf % leaves_below(level))?;
            if level == 0 {
                return Ok((*node).clone());
            }
            entry = node.get(place_of(leaf, level));
            level -= 1;
        }
        Ok(Node::empty(0, leaf))
    }

    /// The leaf of an open disk. The caller may look at it and change it under its lock.
    pub(crate) fn leaf(&self, head: &Head, leaf: u64) -> Result<Arc<Leaf>, PoolError> {
        let found = self.leaves.get_or((head.id, leaf), Arc::default);
        if found.node.read().unwrap_or_else(std::sync::PoisonError::into_inner).is_some() {
            return Ok(found);
        }
        let mut node = found.node.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        while node.is_none() {
            let root = head.place().root;
            match self.stored_leaf(root, leaf) {
                Ok(stored) => *node = Some(stored),
                // A checkpoint may have moved the map while it was walked, and its old nodes be gone.
                Err(_) if head.place().root != root => {}
                Err(error) => return Err(error),
            }
        }
        drop(node);
        Ok(found)
    }

    /// The first leaf from `leaf` on that is stored, in a map.
    pub(crate) fn next_stored(
        &self,
        entry: Entry,
        level: u32,
        first: u64,
        leaf: u64,
    ) -> Result<Option<u64>, PoolError> {
        if entry.is_hole() || first + leaves_below(level) <= leaf {
            return Ok(None);
        }
        if level == 0 {
            return Ok(Some(first));
        }
        let node = self.node(entry, level, first)?;
        let step = leaves_below(level - 1);
        for (place, child) in node.mapped() {
            let start = first + place as u64 * step;
            if let Some(found) = self.next_stored(child, level - 1, start, leaf)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The first leaf from `leaf` on where an open disk may have anything.
    pub(crate) fn next_leaf(&self, head: &Head, leaf: u64) -> Result<Option<u64>, PoolError> {
        let stored = loop {
            let root = head.place().root;
            match self.next_stored(root, ROOT_LEVEL, 0, leaf) {
                Err(_) if head.place().root != root => {}
                found => break found?,
            }
        };
        let dirty = head.dirty().range(leaf..).next().copied();
        Ok(match (stored, dirty) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        })
    }

    /// Makes the nodes that store these leaves (sorted, changed), and returns the map's new root.
    pub(crate) fn update(
        &self,
        fresh: &mut Fresh,
        place: &Place,
        at: (u32, u64),
        old: Entry,
        leaves: &[(u64, Node)],
    ) -> Result<Entry, PoolError> {
        let (level, first) = at;
        let node = if let (0, [(_, leaf)]) = (level, leaves) {
            leaf.clone()
        } else {
            let mut node = match old.kind {
                Kind::Hole => Node::empty(level, first),
                _ => (*self.node(old, level, first)?).clone(),
            };
            let step = leaves_below(level - 1);
            for group in leaves.chunk_by(|(a, _), (b, _)| a / step == b / step) {
                let child = place_of(group[0].0, level);
                let below = (level - 1, group[0].0 - group[0].0 % step);
                let entry = self.update(fresh, place, below, node.get(child), group)?;
                node.set(child, entry);
            }
            node
        };
        if !old.is_hole() && place.owns(first..first + leaves_below(level), old.birth) {
            fresh.replaced.push(old.block);
        }
        if node.is_empty() { Ok(Entry::HOLE) } else { self.place_node(node) }
    }

    fn place_node(&self, node: Node) -> Result<Entry, PoolError> {
        let block = self.metadata_block()?;
        let crc = self.sums.node(block, node.bytes());
        self.unwritten_mut().insert(block, Arc::new(node));
        self.space.set_used(block);
        Ok(Entry::node(block, self.epoch.load(Ordering::Acquire), crc))
    }

    /// Frees what only the `old` map holds: born after `keep`, and not at the same place in `new`. Goes on
    /// from leaf `cursor` and visits at most `budget` nodes; returns where it stopped, if it did.
    pub(crate) fn reclaim(
        &self,
        walk: &mut Reclaim,
        at: (u32, u64),
        old: Entry,
        new: Entry,
    ) -> Result<Option<u64>, PoolError> {
        let (level, first) = at;
        let end = first + leaves_below(level);
        if end <= walk.cursor || old.is_hole() || old == new || old.birth <= walk.keep {
            return Ok(None);
        }
        if walk.budget == 0 {
            return Ok(Some(first));
        }
        walk.budget -= 1;
        let old_node = self.node(old, level, first)?;
        let new_node = match new.kind {
            Kind::Node => Some(self.node(new, level, first)?),
            _ => None,
        };
        for (place, entry) in old_node.mapped() {
            let other = new_node.as_ref().map_or(Entry::HOLE, |node| node.get(place));
            if level == 0 {
                if entry.birth > walk.keep && entry != other && self.space.holds(entry.block) {
                    walk.freed.push(entry.block);
                }
                continue;
            }
            let child = first + place as u64 * leaves_below(level - 1);
            if let Some(stopped) = self.reclaim(walk, (level - 1, child), entry, other)? {
                return Ok(Some(stopped));
            }
        }
        walk.freed.push(old.block);
        Ok(None)
    }

    /// Calls back for every leaf at which two maps differ.
    pub(crate) fn differing(
        &self,
        at: (u32, u64),
        (old, new): (Entry, Entry),
        found: &mut Differ<'_>,
    ) -> Result<(), PoolError> {
        let (level, first) = at;
        if old == new {
            return Ok(());
        }
        let load = |entry: Entry| match entry.kind {
            Kind::Hole => Ok(None),
            _ => self.node(entry, level, first).map(Some),
        };
        let (old, new) = (load(old)?, load(new)?);
        if level == 0 {
            found(first, old.as_deref(), new.as_deref());
            return Ok(());
        }
        let step = leaves_below(level - 1);
        for place in 0..256_usize {
            let entry = |node: &Option<Arc<Node>>| {
                node.as_ref().map_or(Entry::HOLE, |node| node.get(place))
            };
            let child = (level - 1, first + place as u64 * step);
            self.differing(child, (entry(&old), entry(&new)), found)?;
        }
        Ok(())
    }
}

/// What is done with a leaf at which two maps differ: its number, and what each map has.
pub(crate) type Differ<'a> = dyn FnMut(u64, Option<&Node>, Option<&Node>) + 'a;

/// How far a reclaim goes.
#[derive(Debug)]
pub(crate) struct Reclaim {
    pub(crate) keep: u64,
    pub(crate) cursor: u64,
    pub(crate) budget: usize,
    pub(crate) freed: Vec<u64>,
}

/// How many nodes it takes to store these leaves.
pub(crate) fn nodes_for(leaves: &std::collections::BTreeSet<u64>) -> u64 {
    let mut count = 0;
    for level in 0..=ROOT_LEVEL {
        let step = FANOUT.pow(level);
        let mut last = None;
        for leaf in leaves {
            if last != Some(leaf / step) {
                last = Some(leaf / step);
                count += 1;
            }
        }
    }
    count
}
