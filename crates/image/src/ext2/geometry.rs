//! Where a disk's groups lie and what each begins with, and the blocks that are left for files.
//!
//! Groups are 32768 blocks, as many as one block of bits can describe. A group begins with, in this
//! order: superblock and descriptors (only in some groups), block bitmap, inode bitmap, inode table.
//! All blocks and inodes in use lie before the first free one, so that bitmaps need no memory.

use super::BLOCK;
use super::encode::low32;

/// Blocks in a group, and at most as many inodes: what one block of bits can describe.
pub(super) const GROUP_BLOCKS: u64 = 8 * BLOCK;
/// Inodes in a block of a table.
const INODES_PER_BLOCK: u64 = BLOCK / super::inode::LEN;
/// Descriptors in a block.
const DESCRIPTORS_PER_BLOCK: u64 = BLOCK / super::superblock::DESCRIPTOR_LEN;
/// The last group has at least this much room for files; other makers of ext2 insist on it.
const SMALLEST_LAST_GROUP: u64 = 64;

/// The shape of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) groups: u64,
    pub(super) inodes_per_group: u64,
    pub(super) blocks: u64,
}

/// What a block before a group's files is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Superblock,
    /// Which block of descriptors.
    Descriptors(u64),
    BlockBitmap,
    InodeBitmap,
    /// Which block of the group's table.
    InodeTable(u64),
}

impl Geometry {
    /// The smallest disk with room for this many blocks of files and this many inodes.
    pub(super) fn fitting(data_blocks: u64, inodes: u64) -> Option<Geometry> {
        let mut groups =
            data_blocks.div_ceil(GROUP_BLOCKS).max(inodes.div_ceil(GROUP_BLOCKS)).max(1);
        loop {
            let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            let full = Geometry { groups, inodes_per_group, blocks: groups * GROUP_BLOCKS };
            let last_head = full.head_blocks(groups - 1);
            let heads: u64 = full.heads_before(groups - 1);
            let room_before = ((groups - 1) * GROUP_BLOCKS).checked_sub(heads)?;
            let rest = data_blocks.saturating_sub(room_before).max(SMALLEST_LAST_GROUP);
            if rest + last_head <= GROUP_BLOCKS {
                let blocks = (groups - 1) * GROUP_BLOCKS + last_head + rest;
                let countable = blocks.max(full.inodes()) <= u64::from(u32::MAX);
                return countable.then_some(Geometry { blocks, ..full });
            }
            groups += 1;
            if groups * GROUP_BLOCKS > 1 << 33 {
                return None;
            }
        }
    }

    /// A disk of this many blocks, or a few less where the last group would be too small, if there is room for that
    /// many blocks of files.
    pub(super) fn of_size(blocks: u64, data_blocks: u64, inodes: u64) -> Option<Geometry> {
        let mut blocks = blocks;
        loop {
            let groups = blocks.div_ceil(GROUP_BLOCKS).max(1);
            let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            let geometry = Geometry { groups, inodes_per_group, blocks };
            let countable = blocks.max(geometry.inodes()) <= u64::from(u32::MAX);
            if !countable || inodes_per_group > GROUP_BLOCKS {
                return None;
            }
            let (last, head) = (groups - 1, geometry.head_blocks(groups - 1));
            if geometry.group_blocks(last) < head + SMALLEST_LAST_GROUP {
                blocks = Geometry::start((last > 0).then_some(last)?);
                continue;
            }
            let room = blocks.checked_sub(geometry.heads_before(last) + head)?;
            return (room >= data_blocks).then_some(geometry);
        }
    }

    /// Blocks of descriptors in each group that has them.
    pub(super) fn descriptor_blocks(&self) -> u64 {
        self.groups.div_ceil(DESCRIPTORS_PER_BLOCK)
    }

    /// Blocks of a group's inode table.
    pub(super) fn table_blocks(&self) -> u64 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// How many inodes there are.
    pub(super) fn inodes(&self) -> u64 {
        self.inodes_per_group * self.groups
    }

    /// Whether a group begins with a copy of superblock and descriptors: the first two, and those
    /// whose number is a power of 3, 5 or 7.
    pub(super) fn has_superblock(group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group <= 1 || [3, 5, 7].into_iter().any(is_power)
    }

    fn heads_before(&self, group: u64) -> u64 {
        let mut copies = group.min(2);
        for base in [3_u64, 5, 7] {
            let mut power = base;
            while power < group {
                copies += 1;
                power *= base;
            }
        }
        group * (2 + self.table_blocks()) + copies * (1 + self.descriptor_blocks())
    }

    fn copy_blocks(&self, group: u64) -> u64 {
        if Geometry::has_superblock(group) { 1 + self.descriptor_blocks() } else { 0 }
    }

    /// Blocks of a group that are not for files.
    pub(super) fn head_blocks(&self, group: u64) -> u64 {
        self.copy_blocks(group) + 2 + self.table_blocks()
    }

    /// A group's first block.
    pub(super) fn start(group: u64) -> u64 {
        group * GROUP_BLOCKS
    }

    /// Where a group's block bitmap is; inode bitmap and table follow.
    pub(super) fn bitmap(&self, group: u64) -> u64 {
        Geometry::start(group) + self.copy_blocks(group)
    }

    /// How many blocks a group has.
    pub(super) fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - Geometry::start(group)).min(GROUP_BLOCKS)
    }

    /// What a group's block at this place is, if it is not for files.
    pub(super) fn head(&self, group: u64, at: u64) -> Option<Head> {
        let copy = self.copy_blocks(group);
        if at < copy {
            return Some(if at == 0 { Head::Superblock } else { Head::Descriptors(at - 1) });
        }
        match at - copy {
            0 => Some(Head::BlockBitmap),
            1 => Some(Head::InodeBitmap),
            table if table - 2 < self.table_blocks() => Some(Head::InodeTable(table - 2)),
            _ => None,
        }
    }

    /// How many of a group's blocks are in use when every block for files before `first_free` is.
    pub(super) fn used_blocks(&self, group: u64, first_free: u64) -> u64 {
        first_free
            .saturating_sub(Geometry::start(group))
            .clamp(self.head_blocks(group), self.group_blocks(group))
    }

    /// How many of a group's inodes are in use when those up to `last` are.
    pub(super) fn used_inodes(&self, group: u64, last: u64) -> u64 {
        last.saturating_sub(group * self.inodes_per_group).min(self.inodes_per_group)
    }
}

/// Gives out blocks in ascending order, passing over the heads of groups.
#[derive(Debug)]
pub(super) struct Allocator {
    geometry: Geometry,
    next: u64,
}

impl Allocator {
    pub(super) fn new(geometry: Geometry) -> Allocator {
        Allocator { geometry, next: geometry.head_blocks(0) }
    }

    /// At least one and at most `most` adjacent blocks: the first one, and how many.
    pub(super) fn take(&mut self, most: u64) -> (u32, u32) {
        if self.next.is_multiple_of(GROUP_BLOCKS) {
            self.next += self.geometry.head_blocks(self.next / GROUP_BLOCKS);
        }
        let start = self.next;
        let count = most.min(start.next_multiple_of(GROUP_BLOCKS) - start);
        self.next += count;
        (low32(start), low32(count))
    }

    /// The first block that nobody took; it may be the head of a group.
    pub(super) fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_the_room_that_was_asked_for_and_no_group_too_much() {
        for data in [1, 64, 32_000, 32_768, 65_000, 1 << 20, 3 << 20, 40 << 20] {
            for inodes in [11, 16, 5_500, 40_000, 300_000] {
                let geometry = Geometry::fitting(data, inodes).unwrap();
                assert!(geometry.inodes() >= inodes);
                let room: u64 = (0..geometry.groups)
                    .map(|group| geometry.group_blocks(group) - geometry.head_blocks(group))
                    .sum();
                let heads: u64 = (0..geometry.groups).map(|g| geometry.head_blocks(g)).sum();
                assert_eq!(heads, geometry.heads_before(geometry.groups));
                assert!(room >= data, "{data} {inodes} {geometry:?}");
                let needed = inodes.div_ceil(GROUP_BLOCKS);
                assert!(
                    room - data <= SMALLEST_LAST_GROUP || geometry.groups == needed,
                    "{data} {inodes} {geometry:?}"
                );
            }
        }
    }

    #[test]
    fn what_32_bits_cannot_count_is_refused() {
        for (data, inodes) in [(1 << 32, 11), (u64::MAX >> 12, 11), (11, 1 << 32)] {
            assert_eq!(Geometry::fitting(data, inodes), None, "{data} {inodes}");
        }
        assert!(Geometry::fitting((1 << 32) - (1 << 27), 11).is_some());
    }

    #[test]
    fn copies_of_the_superblock_lie_where_other_tools_look_for_them() {
        let copies: Vec<u64> = (0..130).filter(|&g| Geometry::has_superblock(g)).collect();
        assert_eq!(copies, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }
}
