//! From a file's blocks to the disk's by extents: up to four in the inode, else a tree of nodes.
//!
//! A node, and what stands in the inode, begins with
//!
//! | offset | size | field   | meaning                                        |
//! |-------:|-----:|---------|------------------------------------------------|
//! |      0 |    2 | magic   | `f30a`                                         |
//! |      2 |    2 | entries | how many follow                                |
//! |      4 |    2 | max     | how many there is room for: 4, or 340 in a node |
//! |      6 |    2 | depth   | how many levels of nodes are below; 0: extents  |
//! |      8 |    4 |         | 0                                              |
//!
//! and goes on with entries of 12 bytes, sorted by their first word, the file's first block they lead to. An extent
//! then has its length (2 bytes, at most 32768), and its start on the disk (high 2 bytes, low 4 bytes); a node's entry
//! the block of the node below (low 4 bytes, high 2 bytes) and two bytes of zeros. High parts are 0 here.
//!
//! A file's nodes follow its last block: how many extents there are is known only then. Nodes are as full as they
//! can be, which is what checkers ask for.

use super::BLOCK_LEN;
use super::encode::{count32, low16, put16, put32};
use super::geometry::Allocator;
use super::mapping::{Mapped, Origin, Placement, Run};

const MAGIC: u16 = 0xf30a;
const ENTRY: usize = 12;
/// Entries in an inode, and in a node.
const IN_INODE: usize = 4;
const IN_NODE: usize = (BLOCK_LEN - ENTRY) / ENTRY;

/// Adjacent blocks of a file that are adjacent on the disk. No group has room for one longer than its length
/// can say.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// The first one in the file.
    block: u32,
    start: u32,
    blocks: u32,
}

/// What an entry says: the first of a file's blocks it leads to, and eight bytes.
type Entry = (u32, [u8; 8]);

/// How many nodes so many extents need.
pub(super) fn node_count(extents: u64) -> u64 {
    let (mut nodes, mut level) = (0, extents);
    while level > IN_INODE as u64 {
        level = level.div_ceil(IN_NODE as u64);
        nodes += level;
    }
    nodes
}

/// Takes blocks as [`Placement::map_by_extents`] does, and says how many of them are nodes.
pub(super) fn allocate(allocator: &mut Allocator, runs: &[Run]) -> u64 {
    let mut extents = 0;
    for_each(allocator, runs, |_| extents += 1);
    let nodes = node_count(extents);
    for _ in 0..nodes {
        allocator.take(1);
    }
    nodes
}

fn for_each(allocator: &mut Allocator, runs: &[Run], mut act: impl FnMut(Extent)) {
    for run in runs {
        let mut done = 0;
        while done < run.blocks {
            let (start, blocks) = allocator.take(u64::from(run.blocks - done));
            act(Extent { block: run.start + done, start, blocks });
            done += blocks;
        }
    }
}

impl Placement {
    /// Gives a file's blocks their places. The runs ascend and do not touch.
    pub(super) fn map_by_extents(&mut self, runs: &[Run], origin: Origin) -> Mapped {
        let mut mapped = Mapped { block: [0; 60], blocks: 0 };
        let mut extents = Vec::with_capacity(runs.len());
        for_each(&mut self.allocator, runs, |extent| extents.push(extent));
        let mut entries: Vec<Entry> = Vec::with_capacity(extents.len());
        for extent in extents {
            self.push(extent.start, extent.blocks, origin.skip(extent.block));
            mapped.blocks += u64::from(extent.blocks);
            let mut place = [0; 8];
            put16(&mut place, 0, low16(extent.blocks));
            put32(&mut place, 4, extent.start);
            entries.push((extent.block, place));
        }
        let mut depth = 0;
        while entries.len() > IN_INODE {
            let mut above: Vec<Entry> = Vec::with_capacity(entries.len() / IN_NODE + 1);
            for chunk in entries.chunks(IN_NODE) {
                let (block, bytes) = self.new_table(&mut mapped);
                put_node(&mut self.metadata[bytes..], IN_NODE, depth, chunk);
                let mut place = [0; 8];
                put32(&mut place, 0, block);
                above.push((chunk.first().map_or(0, |(block, _)| *block), place));
            }
            entries = above;
            depth += 1;
        }
        put_node(&mut mapped.block, IN_INODE, depth, &entries);
        mapped
    }
}

fn put_node(record: &mut [u8], room: usize, depth: u16, entries: &[Entry]) {
    put16(record, 0, MAGIC);
    put16(record, 2, low16(count32(entries.len())));
    put16(record, 4, low16(count32(room)));
    put16(record, 6, depth);
    for (slot, (block, place)) in record[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        put32(slot, 0, *block);
        slot[4..].copy_from_slice(place);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::geometry::Geometry;
    use super::super::mapping::{block_count, testing};
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// All extents below a node, and how many nodes there are; each is as full as it can be.
    fn collect(placement: &Placement, node: &[u8], last: bool, found: &mut Vec<Extent>) -> u64 {
        let half =
            |at: usize| usize::from(u16::from_le_bytes(node[at..at + 2].try_into().unwrap()));
        let (count, room, depth) = (half(2), half(4), half(6));
        assert!(count == room || last, "{count} of {room}");
        let mut nodes = 0;
        for (at, entry) in node[ENTRY..].chunks_exact(ENTRY).take(count).enumerate() {
            if depth == 0 {
                let blocks = u32::from(u16::from_le_bytes([entry[4], entry[5]]));
                found.push(Extent { block: word(entry, 0), start: word(entry, 8), blocks });
                continue;
            }
            let block = word(entry, 4);
            let segment = placement
                .segments
                .iter()
                .find(|segment| (segment.start..segment.start + segment.blocks).contains(&block));
            let Some(Origin::Metadata { block }) =
                segment.map(|segment| segment.origin.skip(block - segment.start))
            else {
                panic!("block {block} is no node");
            };
            let below = super::super::mapping::metadata_from(&placement.metadata, block);
            let first = found.len();
            nodes += 1 + collect(placement, &below[..BLOCK_LEN], last && at + 1 == count, found);
            assert_eq!(found[first].block, word(entry, 0));
        }
        nodes
    }

    proptest! {
        #[test]
        fn extents_cover_the_runs_and_their_nodes_are_counted_beforehand(
            runs in testing::runs(100, 3000)
        ) {
            let geometry = Geometry::fitting(block_count(&runs) + 5000, 11).unwrap();
            let mut placement = Placement {
                allocator: Allocator::new(geometry),
                segments: Vec::new(),
                metadata: Vec::new(),
            };
            let mapped = placement.map_by_extents(&runs, Origin::Host { file: 0, block: 0 });
            let mut found = Vec::new();
            let nodes = collect(&placement, &mapped.block, true, &mut found);
            prop_assert_eq!(mapped.blocks, block_count(&runs) + nodes);
            let mut beforehand = Allocator::new(geometry);
            prop_assert_eq!(allocate(&mut beforehand, &runs), nodes);
            prop_assert_eq!(beforehand.next(), placement.allocator.next());
            // Put together again where a group's head came between, they are the runs.
            let mut joined: Vec<Run> = Vec::new();
            for extent in found {
                match joined.last_mut() {
                    Some(run) if run.start + run.blocks == extent.block => run.blocks += extent.blocks,
                    _ => joined.push(Run { start: extent.block, blocks: extent.blocks }),
                }
            }
            prop_assert_eq!(joined, runs);
        }
    }
}
