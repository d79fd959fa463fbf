//! From a file's blocks to the disk's: twelve direct pointers, then tables of 1024, up to three deep.
//!
//! A table lies right before the first block it leads to, so that reading a file is one sweep.

use super::BLOCK_LEN;
use super::encode::{count32, index, put32};
use super::geometry::Allocator;

/// Pointers in the inode itself.
const DIRECT: u64 = 12;
/// Pointers in a table.
const PER_TABLE: u64 = 1024;
/// The first block of a file that no table can lead to.
pub(super) const BLOCK_LIMIT: u64 =
    DIRECT + PER_TABLE + PER_TABLE * PER_TABLE + PER_TABLE * PER_TABLE * PER_TABLE;

/// How many tables the longest file has.
pub(super) const ALL_TABLES: u64 = 1 + (1 + PER_TABLE) + (1 + PER_TABLE + PER_TABLE * PER_TABLE);

/// Adjacent blocks of a file that are not a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u32,
    pub(super) blocks: u32,
}

/// Where a stretch of the disk has its bytes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The plan's own blocks, from this one on.
    Metadata { block: u32 },
    /// Bytes that came with the tree, from this block on.
    Bytes { content: u32, block: u32 },
    /// A file of the host, from this block on.
    Host { file: u32, block: u32 },
    /// A member of an archive, from this block on.
    Member { member: u32, block: u32 },
}

impl Origin {
    /// The same, further on.
    pub(super) fn skip(self, blocks: u32) -> Origin {
        match self {
            Origin::Metadata { block } => Origin::Metadata { block: block + blocks },
            Origin::Bytes { content, block } => Origin::Bytes { content, block: block + blocks },
            Origin::Host { file, block } => Origin::Host { file, block: block + blocks },
            Origin::Member { member, block } => Origin::Member { member, block: block + blocks },
        }
    }
}

/// Adjacent blocks of the disk with adjacent bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) start: u32,
    pub(super) blocks: u32,
    pub(super) origin: Origin,
}

/// What was given blocks so far, ascending, and the blocks that are made rather than copied.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) allocator: Allocator,
    pub(super) segments: Vec<Segment>,
    pub(super) metadata: Vec<u8>,
}

/// Where a file's blocks are, as its inode says it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    /// What stands in the inode.
    pub(super) block: [u8; 60],
    /// With its tables.
    pub(super) blocks: u64,
}

/// How many tables a file needs.
pub(super) fn table_count(runs: &[Run]) -> u64 {
    let (mut tables, mut last_table, mut last_node) = (0, None, None);
    let mut third_level = false;
    for run in runs {
        let (start, end) = (u64::from(run.start), u64::from(run.start) + u64::from(run.blocks));
        if end <= DIRECT {
            continue;
        }
        let first = start.saturating_sub(DIRECT) / PER_TABLE;
        let last = (end - 1 - DIRECT) / PER_TABLE;
        tables += last - first + u64::from(last_table != Some(first));
        last_table = Some(last);
        if last > 0 {
            let first = first.saturating_sub(1) / PER_TABLE;
            let last = (last - 1) / PER_TABLE;
            tables += last - first + u64::from(last_node != Some(first));
            last_node = Some(last);
            third_level |= last > 0;
        }
    }
    tables + u64::from(third_level)
}

impl Mapped {
    fn point(&mut self, slot: usize, block: u32) {
        put32(&mut self.block, slot * 4, block);
    }
}

impl Placement {
    /// Gives one block of metadata its place.
    pub(super) fn place(&mut self, block: u32) -> u32 {
        let (at, _) = self.allocator.take(1);
        self.push(at, 1, Origin::Metadata { block });
        at
    }

    /// Gives a file's blocks their places. The runs ascend and do not touch.
    pub(super) fn map(&mut self, runs: &[Run], origin: Origin) -> Mapped {
        let mut mapped = Mapped { block: [0; 60], blocks: 0 };
        let mut path = Path::default();
        for run in runs {
            let (mut at, end) =
                (u64::from(run.start), u64::from(run.start) + u64::from(run.blocks));
            while at < end {
                let table = at.checked_sub(DIRECT).map(|beyond| beyond / PER_TABLE);
                let here = match table {
                    None => DIRECT - at,
                    Some(table) => {
                        self.walk_to(table, &mut path, &mut mapped);
                        PER_TABLE - (at - DIRECT) % PER_TABLE
                    }
                };
                let (start, count) = self.allocator.take(here.min(end - at));
                self.push(start, count, origin.skip(super::encode::low32(at)));
                for (block, pointer) in (at..).zip(start..start + count) {
                    match &path.table {
                        Some((_, bytes)) if table.is_some() => {
                            self.point(*bytes, (block - DIRECT) % PER_TABLE, pointer);
                        }
                        _ => mapped.point(index(super::encode::low32(block)), pointer),
                    }
                }
                mapped.blocks += u64::from(count);
                at += u64::from(count);
            }
        }
        mapped
    }

    /// Makes sure that the tables on the way to the given last one are there.
    fn walk_to(&mut self, table: u64, path: &mut Path, mapped: &mut Mapped) {
        if path.table.is_some_and(|(current, _)| current == table) {
            return;
        }
        let Some(beyond) = table.checked_sub(1) else {
            let (block, bytes) = self.new_table(mapped);
            mapped.point(12, block);
            path.table = Some((table, bytes));
            return;
        };
        let node = beyond / PER_TABLE;
        let node_bytes = match path.node {
            Some((current, bytes)) if current == node => bytes,
            _ => {
                let bytes = match node.checked_sub(1) {
                    None => {
                        let (block, bytes) = self.new_table(mapped);
                        mapped.point(13, block);
                        bytes
                    }
                    Some(place) => {
                        let root = match path.root {
                            Some(root) => root,
                            None => {
                                let (block, bytes) = self.new_table(mapped);
                                mapped.point(14, block);
                                path.root = Some(bytes);
                                bytes
                            }
                        };
                        let (block, bytes) = self.new_table(mapped);
                        self.point(root, place, block);
                        bytes
                    }
                };
                path.node = Some((node, bytes));
                bytes
            }
        };
        let (block, bytes) = self.new_table(mapped);
        self.point(node_bytes, beyond % PER_TABLE, block);
        path.table = Some((table, bytes));
    }

    /// A block of metadata that is empty yet: its block, and where its bytes are in `metadata`.
    pub(super) fn new_table(&mut self, mapped: &mut Mapped) -> (u32, usize) {
        let bytes = self.metadata.len();
        super::bodies::make_room(&mut self.metadata, BLOCK_LEN);
        self.metadata.resize(bytes + BLOCK_LEN, 0);
        mapped.blocks += 1;
        (self.place(count32(bytes / BLOCK_LEN)), bytes)
    }

    fn point(&mut self, table: usize, place: u64, block: u32) {
        let slot = usize::try_from(place % PER_TABLE).unwrap_or(0) * 4;
        put32(&mut self.metadata, table + slot, block);
    }

    pub(super) fn push(&mut self, start: u32, blocks: u32, origin: Origin) {
        if let Some(last) = self.segments.last_mut()
            && last.start + last.blocks == start
            && last.origin.skip(last.blocks) == origin
        {
            last.blocks += blocks;
            return;
        }
        self.segments.push(Segment { start, blocks, origin });
    }
}

/// The tables between an inode and the block mapped last: which each is, and where its bytes are.
#[derive(Debug, Default)]
struct Path {
    root: Option<usize>,
    node: Option<(u64, usize)>,
    table: Option<(u64, usize)>,
}

/// The runs of a file without holes.
pub(super) fn dense(blocks: u64) -> Vec<Run> {
    if blocks == 0 {
        return Vec::new();
    }
    vec![Run { start: 0, blocks: super::encode::low32(blocks) }]
}

/// How many blocks runs have.
pub(super) fn block_count(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.blocks)).sum()
}

/// A block of `metadata`, to its end.
pub(super) fn metadata_from(metadata: &[u8], block: u32) -> &[u8] {
    metadata.get(index(block) * BLOCK_LEN..).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod testing {
    use proptest::prelude::*;

    use super::Run;

    /// Up to so many runs, each of up to 3000 blocks and behind a hole of less than so many.
    pub(in super::super) fn runs(hole: u32, most: usize) -> impl Strategy<Value = Vec<Run>> {
        prop::collection::vec((1..hole, 1_u32..3000), 0..most).prop_map(|steps| {
            let mut at = 0;
            let run = |(hole, blocks)| {
                let start = at + hole;
                at = start + blocks;
                Run { start, blocks }
            };
            steps.into_iter().map(run).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::geometry::Geometry;
    use super::*;

    fn check(runs: &[Run]) {
        let geometry = Geometry::fitting(block_count(runs) + table_count(runs), 11).unwrap();
        let mut placement = Placement {
            allocator: Allocator::new(geometry),
            segments: Vec::new(),
            metadata: Vec::new(),
        };
        let mapped = placement.map(runs, Origin::Host { file: 0, block: 0 });
        assert_eq!(mapped.blocks, block_count(runs) + table_count(runs), "{runs:?}");
        let ends = |s: &Segment| s.start + s.blocks;
        assert!(placement.segments.windows(2).all(|w| ends(&w[0]) <= w[1].start));
    }

    #[test]
    fn tables_are_counted_as_they_are_made() {
        for blocks in [0, 1, 12, 13, 1036, 1037, 1036 + 1024, 1_049_612, 1_049_613, 1_500_000] {
            check(&dense(blocks));
        }
        check(&[Run { start: 1 << 30, blocks: 1 }]);
    }

    proptest! {
        #[test]
        fn tables_of_files_with_holes_are_counted_as_they_are_made(
            runs in testing::runs(2_000_000, 40)
        ) {
            check(&runs);
        }
    }
}
