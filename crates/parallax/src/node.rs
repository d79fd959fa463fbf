//! A node of a disk's map: 256 entries of 15 bytes behind a header of 256 bytes.
//!
//! A [leaf](crate::leaf) (level 0) maps 256 blocks of the disk, 1 MiB; a node of level *n* points at 256 nodes of
//! the level below. Four levels map 16 TiB. Memory holds a node in the form it has on disk.

use crate::format::{BLOCK, get, put};

/// Entries of a node.
pub(crate) const FANOUT: u64 = 256;
/// The level of a map's root.
pub(crate) const ROOT_LEVEL: u32 = 3;
/// The "block" of what is zeros and hides a base: that of a superblock, which no map reaches.
pub(crate) const ZEROS: u64 = 0;
const HEADER: usize = 256;
const ENTRY: usize = 15;
const MAGIC: [u8; 4] = *b"KPXn";
const _: () = assert!(HEADER + 256 * ENTRY == BLOCK);

/// Where an entry points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing was written here, or it was discarded: the base of a disk that has one, else zeros.
    Hole,
    /// A block of data, or [`ZEROS`].
    Data,
    /// A node of the level below.
    Node,
}

/// A pointer that knows what it points at: checksum and the epoch the target was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) block: u64,
    pub(crate) birth: u64,
    pub(crate) crc: u32,
}

impl Entry {
    pub(crate) const HOLE: Entry = Entry { kind: Kind::Hole, block: 0, birth: 0, crc: 0 };

    pub(crate) fn data(block: u64, birth: u64, crc: u32) -> Entry {
        Entry { kind: Kind::Data, block, birth, crc }
    }

    pub(crate) fn node(block: u64, birth: u64, crc: u32) -> Entry {
        Entry { kind: Kind::Node, block, birth, crc }
    }

    pub(crate) fn is_hole(&self) -> bool {
        self.kind == Kind::Hole
    }

    /// Whether it says that there are zeros, whatever a base has there. They are stored nowhere.
    pub(crate) fn is_zeros(&self) -> bool {
        self.kind == Kind::Data && self.block == ZEROS
    }

    /// | offset | size | field |
    /// |-------:|-----:|-------|
    /// | 0 | 5 | block |
    /// | 5 | 5 | birth |
    /// | 10 | 1 | kind: 0 hole, 1 data, 2 node |
    /// | 11 | 4 | crc32c |
    pub(crate) fn encode(&self, bytes: &mut [u8]) {
        bytes[..5].copy_from_slice(&self.block.to_le_bytes()[..5]);
        bytes[5..10].copy_from_slice(&self.birth.to_le_bytes()[..5]);
        bytes[10] = match self.kind {
            Kind::Hole => 0,
            Kind::Data => 1,
            Kind::Node => 2,
        };
        bytes[11..15].copy_from_slice(&self.crc.to_le_bytes());
    }

    /// Anything that is neither data nor a node is a hole; checksums decide what is damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Entry {
        let mut low = [0; 8];
        low.copy_from_slice(&bytes[..8]);
        let mut high = [0; 8];
        high.copy_from_slice(&bytes[7..15]);
        let (low, high) = (u64::from_le_bytes(low), u64::from_le_bytes(high));
        let kind = match bytes[10] {
            1 => Kind::Data,
            2 => Kind::Node,
            _ => return Entry::HOLE,
        };
        Entry {
            kind,
            block: low & 0xff_ffff_ffff,
            birth: low >> 40 | (high & 0xff_ffff) >> 8 << 24,
            crc: u32::try_from(high >> 32).unwrap_or(0),
        }
    }
}

/// One node.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Node(Box<[u8; BLOCK]>);

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.mapped()).finish()
    }
}

impl Node {
    /// A node of holes. `first` is the first leaf below it (for a leaf, its own number).
    pub(crate) fn empty(level: u32, first: u64) -> Node {
        let mut bytes = Box::new([0; BLOCK]);
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&level.to_le_bytes());
        put(&mut bytes[..], 8, first);
        Node(bytes)
    }

    /// Whatever a block of a map holds.
    pub(crate) fn raw(bytes: Box<[u8; BLOCK]>) -> Node {
        Node(bytes)
    }

    /// Whether it is the node that belongs there.
    pub(crate) fn belongs(&self, level: u32, first: u64) -> bool {
        self.0[..4] == MAGIC && self.0[4..8] == level.to_le_bytes() && get(&self.0[..], 8) == first
    }

    pub(crate) fn bytes(&self) -> &[u8; BLOCK] {
        &self.0
    }

    pub(crate) fn get(&self, place: usize) -> Entry {
        Entry::decode(&self.0[HEADER + place * ENTRY..][..ENTRY])
    }

    pub(crate) fn set(&mut self, place: usize, entry: Entry) {
        entry.encode(&mut self.0[HEADER + place * ENTRY..][..ENTRY]);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0[HEADER..].iter().all(|byte| *byte == 0)
    }

    /// Its entries that are not holes, with their places.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = (usize, Entry)> + '_ {
        (0..256).map(|place| (place, self.get(place))).filter(|(_, entry)| !entry.is_hole())
    }
}

/// How many leaves a node of that level covers.
pub(crate) fn leaves_below(level: u32) -> u64 {
    FANOUT.pow(level)
}

/// Which entry of a node of that level leads to a leaf.
pub(crate) fn place_of(leaf: u64, level: u32) -> usize {
    let step = if level == 0 { 1 } else { leaves_below(level - 1) };
    usize::try_from(leaf / step % FANOUT).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_reads_back(block in 0_u64..1 << 40, birth in 0_u64..1 << 40, crc: u32, node: bool) {
            let entry = Entry { kind: if node { Kind::Node } else { Kind::Data }, block, birth, crc };
            let mut leaf = Node::empty(0, 9);
            for place in [0, 17, 255] {
                leaf.set(place, entry);
            }
            prop_assert_eq!(leaf.get(0), entry);
            prop_assert_eq!(leaf.get(255), entry);
            prop_assert_eq!(leaf.mapped().count(), 3);
        }
    }
}
