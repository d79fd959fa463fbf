//! Walking and changing maps. A map never changes in place: a checkpoint writes new nodes up to a new root.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use kiln_block::{ByteOffset, Extent, ExtentKind, Extents};

use crate::PoolError;
use crate::base::Shown;
use crate::cache::Leaf;
use crate::core::Core;
use crate::format::{BLOCK, BLOCK_LEN, same};
use crate::head::{Head, Place};
use crate::leaf::{self, GROUP, LeafMap};
use crate::log::Pace;
use crate::node::{Entry, FANOUT, Kind, Node, ROOT_LEVEL, leaves_below, place_of};
use crate::sync::atomic::Ordering;

/// Nodes that wait in memory to be written together: 1 MiB.
const WAITING: usize = 256;

/// A node that a checkpoint is to write: fresh blocks, and what they replace.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    /// Nodes are written as they come, so that few of them are in memory; nothing durable reaches them yet.
    pub(crate) written_early: bool,
    /// What was made so far.
    pub(crate) placed: Vec<u64>,
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
        if let Some(node) = self.nodes.get(key) {
            return Ok(node);
        }
        let node = self.block_of_map(entry)?;
        if !node.belongs(level, first) {
            return Err(misplaced("another node", entry));
        }
        // Leaves are kept by disk and number; here they would only push out what leads to them.
        self.nodes.insert_if(key, node.clone(), || true);
        Ok(node)
    }

    /// A block of a map, checked against the entry's checksum.
    fn block_of_map(&self, entry: Entry) -> Result<Arc<Node>, PoolError> {
        if let Some(node) = self.unwritten().get(&entry.block) {
            return Ok(node.clone());
        }
        if entry.kind != Kind::Node || !self.space.holds(entry.block) {
            return Err(misplaced("no node can be", entry));
        }
        let mut bytes = Box::new([0; BLOCK]);
        self.device
            .read_at(ByteOffset::new(entry.block * BLOCK_LEN), &mut bytes[..])
            .map_err(PoolError::device("read"))?;
        if !same(entry.crc, self.sums.node(entry.block, &bytes[..])) {
            return Err(misplaced("a wrong checksum of a node", entry));
        }
        Ok(Arc::new(Node::raw(bytes)))
    }

    /// The leaf an entry of a node of level 1 points at.
    pub(crate) fn read_leaf(&self, entry: Entry, leaf: u64) -> Result<LeafMap, PoolError> {
        if entry.is_hole() {
            return Ok(LeafMap::default());
        }
        let found = leaf::decode(&*self.block_of_map(entry)?, leaf);
        found.ok_or_else(|| misplaced("another leaf", entry))
    }

    /// The stored leaf of a map, or one of holes.
    pub(crate) fn stored_leaf(&self, root: Entry, leaf: u64) -> Result<LeafMap, PoolError> {
        let mut entry = root;
        let mut level = ROOT_LEVEL;
        while level > 0 && !entry.is_hole() {
            let node = self.node(entry, level, leaf - leaf % leaves_below(level))?;
            entry = node.get(place_of(leaf, level));
            level -= 1;
        }
        self.read_leaf(entry, leaf)
    }

    /// The leaf of an open disk. The caller may look at it and change it under its lock.
    pub(crate) fn leaf(&self, head: &Head, leaf: u64) -> Result<Arc<Leaf>, PoolError> {
        let key = (head.id, leaf);
        if let Some(found) = self.leaves.get(key) {
            return Ok(found);
        }
        loop {
            let root = head.place().root;
            let unmoved = || head.place().root == root;
            match self.stored_leaf(root, leaf) {
                // What is in memory already is newer, and stays there until a checkpoint has moved the map.
                Ok(stored) => {
                    let fresh = Arc::new(Leaf::holding(stored));
                    if let Some(leaf) = self.leaves.insert_if(key, fresh, unmoved) {
                        return Ok(leaf);
                    }
                }
                // A checkpoint may have moved the map while it was walked, and its old nodes be gone.
                Err(_) if !unmoved() => {}
                Err(error) => return Err(error),
            }
        }
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
        // In the order in which a leaf goes from one to the next.
        let dirty = {
            let dirty = head.dirty();
            let first = |leaves: &std::collections::BTreeSet<u64>| {
                leaves.range(leaf..).next().copied().into_iter()
            };
            first(&dirty.leaves).chain(first(&dirty.storing)).min()
        };
        let stored = loop {
            let root = head.place().root;
            match self.next_stored(root, ROOT_LEVEL, 0, leaf) {
                Err(_) if head.place().root != root => {}
                found => break found?,
            }
        };
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
        leaves: &[(u64, &LeafMap)],
    ) -> Result<Entry, PoolError> {
        let (level, first) = at;
        let mut node = match old.kind {
            Kind::Hole => Node::empty(level, first),
            _ => (*self.node(old, level, first)?).clone(),
        };
        if level == 1 {
            let group = |leaf: u64| place_of(leaf, 1) / GROUP;
            for leaves in leaves.chunk_by(|(a, _), (b, _)| group(*a) == group(*b)) {
                self.update_group(fresh, place, &mut node, first, leaves)?;
            }
        } else {
            let step = leaves_below(level - 1);
            for group in leaves.chunk_by(|(a, _), (b, _)| a / step == b / step) {
                let child = place_of(group[0].0, level);
                let below = (level - 1, group[0].0 - group[0].0 % step);
                let entry = self.update(fresh, place, below, node.get(child), group)?;
                node.set(child, entry);
            }
        }
        if !old.is_hole() && place.owns(first..first + leaves_below(level), old.birth) {
            fresh.replaced.push(old.block);
        }
        if node.is_empty() { Ok(Entry::HOLE) } else { self.place_node(fresh, node) }
    }

    /// Stores changed leaves of a group, and those that share a block with one: together if they fit into one block,
    /// else each in its own. So the leaves of a block are always replaced together.
    fn update_group(
        &self,
        fresh: &mut Fresh,
        place: &Place,
        node: &mut Node,
        first: u64,
        changed: &[(u64, &LeafMap)],
    ) -> Result<(), PoolError> {
        let start = place_of(changed[0].0, 1) / GROUP * GROUP;
        let number = |n: usize| first + (start + n) as u64;
        let mut leaves: [Option<Cow<'_, LeafMap>>; GROUP] = Default::default();
        for (leaf, map) in changed {
            leaves[place_of(*leaf, 1) - start] = Some(Cow::Borrowed(map));
        }
        let mut replaced = None;
        for (leaf, _) in changed {
            let old = node.get(place_of(*leaf, 1));
            if old.is_hole() || replaced == Some(old) {
                continue;
            }
            replaced = Some(old);
            for (n, slot) in leaves.iter_mut().enumerate() {
                if slot.is_none() && start + n < 256 && node.get(start + n) == old {
                    *slot = Some(Cow::Owned(self.read_leaf(old, number(n))?));
                }
            }
            if place.owns(*leaf..leaf + 1, old.birth) && !fresh.replaced.contains(&old.block) {
                fresh.replaced.push(old.block);
            }
        }
        let full: [Option<&LeafMap>; GROUP] =
            std::array::from_fn(|n| leaves[n].as_deref().filter(|leaf| !leaf.is_empty()));
        let together = leaf::fit(full.iter().flatten().copied());
        let shared = match together && full.iter().any(Option::is_some) {
            true => self.place_node(fresh, leaf::encode(number(0), full))?,
            false => Entry::HOLE,
        };
        for (n, leaf) in leaves.iter().enumerate() {
            let entry = match (leaf, full[n]) {
                (None, _) => continue,
                (Some(_), None) => Entry::HOLE,
                _ if together => shared,
                (_, Some(leaf)) if leaf::fit([leaf].into_iter()) => {
                    let mut alone = [None; GROUP];
                    alone[n] = Some(leaf);
                    self.place_node(fresh, leaf::encode(number(0), alone))?
                }
                (_, Some(leaf)) => self.place_node(fresh, leaf::encode_table(number(n), leaf))?,
            };
            node.set(start + n, entry);
        }
        Ok(())
    }

    fn place_node(&self, fresh: &mut Fresh, node: Node) -> Result<Entry, PoolError> {
        let block = self.metadata_block()?;
        let crc = self.sums.node(block, node.bytes());
        let waiting = {
            let mut unwritten = self.unwritten_mut();
            unwritten.insert(block, Arc::new(node));
            unwritten.len()
        };
        self.space.set_stored(block);
        fresh.placed.push(block);
        if fresh.written_early && waiting >= WAITING {
            self.write_nodes(Pace::Now)?;
        }
        Ok(Entry::node(block, self.epoch.load(Ordering::Acquire), crc))
    }

    /// Frees what only the `old` map holds: born after `keep`, and not at the same place in `new`. Goes on
    /// from leaf `cursor` and visits at most `budget` nodes; returns where it stopped, if it did: never within a group.
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
            if level == 1 {
                let leaf = first + place as u64;
                if leaf < walk.cursor || entry == other || entry.birth <= walk.keep {
                    continue;
                }
                if walk.budget == 0 && place.is_multiple_of(GROUP) {
                    return Ok(Some(leaf));
                }
                walk.budget = walk.budget.saturating_sub(1);
                self.reclaim_leaf(walk, leaf, entry, other)?;
                let shared = place % GROUP + 1 < GROUP
                    && (place + 1..256)
                        .take(GROUP - 1 - place % GROUP)
                        .any(|n| old_node.get(n) == entry);
                if !shared {
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

    fn reclaim_leaf(
        &self,
        walk: &mut Reclaim,
        leaf: u64,
        old: Entry,
        new: Entry,
    ) -> Result<(), PoolError> {
        let old = self.read_leaf(old, leaf)?;
        let new = self.read_leaf(new, leaf)?;
        for (place, entry) in old.mapped() {
            if entry.birth > walk.keep && self.space.holds(entry.block) && entry != new.get(place) {
                walk.freed.push(entry.block);
            }
        }
        Ok(())
    }

    /// What of a range of leaves is not the same in two maps, and what the second has there.
    pub(crate) fn differences(
        &self,
        (old, new): (Side, Side),
        leaves: &Range<u64>,
    ) -> Result<Vec<Extent>, PoolError> {
        let mut found = Extents::default();
        let at_base = |side: &Side, entry: &Entry, lba| match entry.is_hole() {
            true => side.shown.at(lba),
            false => 0,
        };
        let bounds = Bounds { leaves: leaves.clone(), anyway: old.shown.differs_from(new.shown) };
        self.differing((ROOT_LEVEL, 0), (old.root, new.root), &bounds, &mut |leaf, a, b| {
            for ((a, b), lba) in a.table().into_iter().zip(b.table()).zip(leaf * FANOUT..) {
                let (base, base_now) = (at_base(&old, &a, lba), at_base(&new, &b, lba));
                if a != b || base != base_now {
                    let zeros = b.is_zeros() || b.is_hole() && base_now == 0;
                    let kind = if zeros { ExtentKind::Hole } else { ExtentKind::Data };
                    found.add(lba * BLOCK_LEN, BLOCK_LEN, kind);
                }
            }
        })?;
        Ok(found.into_vec())
    }

    /// Calls back for every leaf of a range at which two maps differ.
    fn differing(
        &self,
        at: (u32, u64),
        (old, new): (Entry, Entry),
        bounds: &Bounds,
        found: &mut Differ<'_>,
    ) -> Result<(), PoolError> {
        let (level, first) = at;
        let within =
            |leaves: &Range<u64>| first < leaves.end && first + leaves_below(level) > leaves.start;
        if !within(&bounds.leaves) || (old == new && !within(&bounds.anyway)) {
            return Ok(());
        }
        if level == 0 {
            found(first, &self.read_leaf(old, first)?, &self.read_leaf(new, first)?);
            return Ok(());
        }
        let load = |entry: Entry| match entry.kind {
            Kind::Hole => Ok(None),
            _ => self.node(entry, level, first).map(Some),
        };
        let (old, new) = (load(old)?, load(new)?);
        let step = leaves_below(level - 1);
        for place in 0..256_usize {
            let entry = |node: &Option<Arc<Node>>| {
                node.as_ref().map_or(Entry::HOLE, |node| node.get(place))
            };
            let child = (level - 1, first + place as u64 * step);
            self.differing(child, (entry(&old), entry(&new)), bounds, found)?;
        }
        Ok(())
    }
}

fn misplaced(what: &str, entry: Entry) -> PoolError {
    PoolError::Damaged { found: format!("{what} in block {}", entry.block) }
}

/// A map that is compared with another, and what shows where it says nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side {
    pub(crate) root: Entry,
    pub(crate) shown: Shown,
}

/// Which leaves are compared.
struct Bounds {
    leaves: Range<u64>,
    /// Even where the maps are the same.
    anyway: Range<u64>,
}

/// What is done with a leaf at which two maps differ: its number, and what each map has.
type Differ<'a> = dyn FnMut(u64, &LeafMap, &LeafMap) + 'a;

/// How far a reclaim goes.
#[derive(Debug)]
pub(crate) struct Reclaim {
    pub(crate) keep: u64,
    pub(crate) cursor: u64,
    pub(crate) budget: usize,
    pub(crate) freed: Vec<u64>,
}

/// The most blocks it takes to store these leaves: each may take those along that shared its block.
pub(crate) fn nodes_for(leaves: &std::collections::BTreeSet<u64>) -> u64 {
    let mut count = 0;
    for level in 0..=ROOT_LEVEL {
        let of = |leaf: &u64| match level {
            0 => leaf / FANOUT * FANOUT + leaf % FANOUT / GROUP as u64,
            _ => leaf / FANOUT.pow(level),
        };
        let mut last = None;
        for group in leaves.iter().map(of) {
            if last != Some(group) {
                last = Some(group);
                count += if level == 0 { GROUP as u64 } else { 1 };
            }
        }
    }
    count
}
