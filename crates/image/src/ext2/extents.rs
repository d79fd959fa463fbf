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
