//! What a leaf maps: 256 blocks of a disk, as pieces that lie in the pool in a row, and a checksum for each block.
//!
//! Up to three leaves next to each other are stored in one block, as long as their pieces fit:
//!
//! | offset | size | field |
//! |-------:|-----:|-------|
//! | 0 | 4 | magic |
//! | 4 | 3 × 2 | pieces of each leaf of the group |
//! | 10 | 6 | 0 |
//! | 16 | 8 | first leaf of the group |
//! | 24 | 1024 each | checksums of every leaf that has pieces; 0 where nothing is |
//! | | 12 each | pieces, leaf by leaf, by place |
//!
//! A leaf with more pieces than that takes a block of its own, an entry for each of its blocks, like a node.

use crate::format::{BLOCK, get, get_u32, put};
use crate::node::{Entry, Kind, Node, ZEROS};

/// Leaves that may share a block; the first of a group is a multiple of it within the node above.
pub(crate) const GROUP: usize = 3;
const MAGIC: [u8; 4] = *b"KPXr";
const HEADER: usize = 24;
const CRCS: usize = 1024;
const PIECE: usize = 12;
const _: () = assert!(HEADER + GROUP * (CRCS + PIECE) <= BLOCK);

/// Blocks of a leaf that lie in the pool in a row and were born together; as small as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    block: u32,
    birth: u32,
    block_high: u8,
    birth_high: u8,
    first: u8,
    last: u8,
}
const _: () = assert!(size_of::<Piece>() == PIECE);

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn byte(value: usize) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

impl Piece {
    fn new(first: usize, last: usize, block: u64, birth: u64) -> Piece {
        Piece {
            block: low(block),
            birth: low(birth),
            block_high: u8::try_from(block >> 32 & 0xff).unwrap_or(0),
            birth_high: u8::try_from(birth >> 32 & 0xff).unwrap_or(0),
            first: byte(first),
            last: byte(last),
        }
    }

    /// Its first place within the leaf.
    pub(crate) fn first(&self) -> usize {
        usize::from(self.first)
    }

    fn end(&self) -> usize {
        usize::from(self.last) + 1
    }

    /// How many blocks.
    pub(crate) fn len(&self) -> usize {
        self.end().saturating_sub(self.first())
    }

    /// The first block.
    pub(crate) fn block(&self) -> u64 {
        u64::from(self.block) | u64::from(self.block_high) << 32
    }

    /// When they were written.
    pub(crate) fn birth(&self) -> u64 {
        u64::from(self.birth) | u64::from(self.birth_high) << 32
    }

    /// Whether it is zeros that are stored nowhere.
    pub(crate) fn is_zeros(&self) -> bool {
        self.block() == ZEROS
    }

    fn block_at(&self, place: usize) -> u64 {
        if self.is_zeros() {
            return ZEROS;
        }
        self.block() + place.saturating_sub(self.first()) as u64
    }

    /// The part of it within `from..to`, which it reaches into.
    fn part(&self, from: usize, to: usize) -> Piece {
        let (first, end) = (self.first().max(from), self.end().min(to));
        Piece::new(first, end - 1, self.block_at(first), self.birth())
    }

    /// Whether `next` is what this one would be if it were longer.
    fn leads_to(&self, next: &Piece) -> bool {
        self.end() == next.first()
            && self.birth() == next.birth()
            && self.block_at(self.end()) == next.block()
    }

    /// | offset | size | field |
    /// |-------:|-----:|-------|
    /// | 0 | 5 | block |
    /// | 5 | 5 | birth |
    /// | 10 | 1 | first place |
    /// | 11 | 1 | last place |
    fn encode(&self, bytes: &mut [u8]) {
        bytes[..4].copy_from_slice(&self.block.to_le_bytes());
        bytes[4] = self.block_high;
        bytes[5..9].copy_from_slice(&self.birth.to_le_bytes());
        bytes[9..12].copy_from_slice(&[self.birth_high, self.first, self.last]);
    }

    fn decode(bytes: &[u8]) -> Piece {
        Piece {
            block: get_u32(bytes, 0),
            block_high: bytes[4],
            birth: get_u32(bytes, 5),
            birth_high: bytes[9],
            first: bytes[10],
            last: bytes[11],
        }
    }
}

/// What a leaf maps.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct LeafMap {
    /// By place; none reaches into another, none leads to the next.
    pieces: Vec<Piece>,
    crcs: Box<[u32; 256]>,
}

impl Default for LeafMap {
    fn default() -> LeafMap {
        LeafMap { pieces: Vec::new(), crcs: Box::new([0; 256]) }
    }
}

impl std::fmt::Debug for LeafMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.pieces).finish()
    }
}

impl LeafMap {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of memory it takes.
    pub(crate) fn footprint(&self) -> usize {
        CRCS + self.pieces.capacity() * PIECE
    }

    /// The first piece that does not end before `place`.
    fn at(&self, place: usize) -> usize {
        self.pieces.partition_point(|piece| piece.end() <= place)
    }

    pub(crate) fn get(&self, place: usize) -> Entry {
        match self.pieces.get(self.at(place)) {
            Some(piece) if piece.first() <= place => {
                Entry::data(piece.block_at(place), piece.birth(), self.crcs[place])
            }
            _ => Entry::HOLE,
        }
    }

    /// Whether `place` is mapped, and to which block ([`ZEROS`] for zeros), and for how many places, at most `most`, that goes on in a row.
    pub(crate) fn stretch(&self, place: usize, most: usize) -> (Option<u64>, usize) {
        let limit = (place + most).min(256);
        let mut rest = self.pieces[self.at(place)..].iter();
        let Some(piece) = rest.next() else { return (None, limit - place) };
        if piece.first() > place {
            return (None, piece.first().min(limit) - place);
        }
        let block = piece.block_at(place);
        let mut end = piece.end();
        // Pieces born apart may lie together.
        while end < limit
            && block != ZEROS
            && let Some(next) = rest.next()
            && next.first() == end
            && next.block() == block + (end - place) as u64
        {
            end = next.end();
        }
        (Some(block), end.min(limit) - place)
    }

    pub(crate) fn crcs(&self) -> &[u32; 256] {
        &self.crcs
    }

    /// The pieces of these places.
    fn within(&self, first: usize, count: usize) -> impl Iterator<Item = Piece> + '_ {
        let end = first + count;
        let within = self.pieces[self.at(first)..].iter().take_while(move |p| p.first() < end);
        within.map(move |piece| piece.part(first, end))
    }

    /// How many of these places are mapped to blocks of the pool.
    pub(crate) fn mapped_within(&self, first: usize, count: usize) -> usize {
        self.within(first, count).filter(|piece| !piece.is_zeros()).map(|piece| piece.len()).sum()
    }

    /// Whether all of these places are zeros.
    pub(crate) fn is_zeros(&self, first: usize, count: usize) -> bool {
        self.within(first, count).filter(Piece::is_zeros).map(|piece| piece.len()).sum::<usize>()
            == count
    }

    /// Whether the map says nothing about any of these places.
    pub(crate) fn is_silent(&self, first: usize, count: usize) -> bool {
        self.within(first, count).next().is_none()
    }

    /// Maps `count` places from `first` on, or makes them holes, and calls back for every piece that was there.
    pub(crate) fn replace(
        &mut self,
        first: usize,
        count: usize,
        new: Option<(u64, u64, &[u32])>,
        mut gone: impl FnMut(Piece),
    ) {
        let end = first + count;
        let from = self.at(first);
        let upto = from + self.pieces[from..].iter().take_while(|p| p.first() < end).count();
        for piece in &self.pieces[from..upto] {
            gone(piece.part(first, end));
        }
        let kept = |piece: Option<&Piece>, a: usize, b: usize| {
            piece.filter(|piece| piece.first() < b && piece.end() > a).map(|piece| piece.part(a, b))
        };
        let replaced = &self.pieces[from..upto];
        let (before, after) = (kept(replaced.first(), 0, first), kept(replaced.last(), end, 256));
        let (mut from, mut upto) = (from, upto);
        let (mut before, mut after) = (before, after);
        let middle = match new {
            Some((block, birth, crcs)) => {
                self.crcs[first..end].copy_from_slice(crcs);
                let mut piece = Piece::new(first, end - 1, block, birth);
                let left = before.or_else(|| from.checked_sub(1).map(|n| self.pieces[n]));
                if let Some(left) = left.filter(|left| left.leads_to(&piece)) {
                    piece = Piece::new(left.first(), end - 1, left.block(), birth);
                    from -= usize::from(before.take().is_none());
                }
                let right = after.or_else(|| self.pieces.get(upto).copied());
                if let Some(right) = right.filter(|right| piece.leads_to(right)) {
                    piece = Piece::new(piece.first(), right.end() - 1, piece.block(), birth);
                    upto += usize::from(after.take().is_none());
                }
                Some(piece)
            }
            None => {
                self.crcs[first..end].fill(0);
                None
            }
        };
        let mut come = [Piece::new(0, 0, 0, 0); 3];
        let mut len = 0;
        for piece in [before, middle, after].into_iter().flatten() {
            come[len] = piece;
            len += 1;
        }
        if upto - from == len {
            self.pieces[from..upto].copy_from_slice(&come[..len]);
        } else {
            self.pieces.splice(from..upto, come[..len].iter().copied());
        }
    }

    /// Maps one place.
    pub(crate) fn set(&mut self, place: usize, entry: Entry) {
        match entry.kind {
            Kind::Hole => self.replace(place, 1, None, |_| ()),
            _ => {
                let crc = [entry.crc];
                self.replace(place, 1, Some((entry.block, entry.birth, &crc)), |_| ());
            }
        }
    }

    /// Its places that are mapped.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = (usize, Entry)> + '_ {
        self.pieces.iter().flat_map(|piece| {
            (piece.first()..piece.end()).map(|place| {
                (place, Entry::data(piece.block_at(place), piece.birth(), self.crcs[place]))
            })
        })
    }

    /// All 256 places.
    pub(crate) fn table(&self) -> Vec<Entry> {
        let mut table = vec![Entry::HOLE; 256];
        self.mapped().for_each(|(place, entry)| table[place] = entry);
        table
    }
}

/// Whether leaves fit into one block together.
pub(crate) fn fit<'a>(leaves: impl Iterator<Item = &'a LeafMap>) -> bool {
    let bytes: usize = leaves.map(|leaf| CRCS + leaf.pieces.len() * PIECE).sum();
    HEADER + bytes <= BLOCK
}

/// The block of leaves that fit into one; `first` is the number of the group's first leaf.
pub(crate) fn encode(first: u64, leaves: [Option<&LeafMap>; GROUP]) -> Node {
    let mut bytes = Box::new([0; BLOCK]);
    bytes[..4].copy_from_slice(&MAGIC);
    put(&mut bytes[..], 16, first);
    let mut at = HEADER;
    for (n, leaf) in leaves.iter().enumerate().filter_map(|(n, leaf)| Some((n, (*leaf)?))) {
        let count = u16::try_from(leaf.pieces.len()).unwrap_or(0);
        bytes[4 + 2 * n..6 + 2 * n].copy_from_slice(&count.to_le_bytes());
        for crc in &leaf.crcs[..] {
            bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            at += 4;
        }
    }
    for leaf in leaves.iter().flatten() {
        for piece in &leaf.pieces {
            piece.encode(&mut bytes[at..at + PIECE]);
            at += PIECE;
        }
    }
    Node::raw(bytes)
}

/// The block of a leaf that fits into none: an entry for each place.
pub(crate) fn encode_table(number: u64, leaf: &LeafMap) -> Node {
    let mut node = Node::empty(0, number);
    leaf.mapped().for_each(|(place, entry)| node.set(place, entry));
    node
}

/// A leaf of a block whose checksum was found right; `None` where the block is another or makes no sense.
pub(crate) fn decode(node: &Node, number: u64) -> Option<LeafMap> {
    let bytes = node.bytes();
    let mut leaf = LeafMap::default();
    if bytes[..4] != MAGIC {
        if !node.belongs(0, number) {
            return None;
        }
        for (place, entry) in node.mapped() {
            if entry.kind == Kind::Data {
                leaf.set(place, entry);
            }
        }
        return Some(leaf);
    }
    let wanted = usize::try_from(number.checked_sub(get(bytes, 16))?).ok()?;
    if wanted >= GROUP {
        return None;
    }
    let count = |n: usize| usize::from(u16::from_le_bytes([bytes[4 + 2 * n], bytes[5 + 2 * n]]));
    let present = |n: &usize| count(*n) > 0;
    let crcs_at = HEADER + (0..wanted).filter(present).count() * CRCS;
    let mut at = HEADER + (0..GROUP).filter(present).count() * CRCS;
    at += (0..wanted).map(count).sum::<usize>() * PIECE;
    let stored = bytes.get(at..at + count(wanted) * PIECE)?;
    if stored.is_empty() {
        return None;
    }
    leaf.pieces.reserve_exact(count(wanted));
    let mut end = 0;
    for piece in stored.chunks_exact(PIECE).map(Piece::decode) {
        if piece.first() < end || piece.last < piece.first {
            return None;
        }
        end = piece.end();
        leaf.pieces.push(piece);
    }
    for (crc, stored) in leaf.crcs.iter_mut().zip(bytes[crcs_at..].chunks_exact(4)) {
        *crc = get_u32(stored, 0);
    }
    Some(leaf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A change: first place, how many, and block and birth if they are mapped.
    fn change() -> impl Strategy<Value = (usize, usize, Option<(u64, u64)>)> {
        let block = proptest::prop_oneof![4 => 1_u64 << 38..(1 << 38) + 600, 1 => Just(ZEROS)];
        let new = proptest::option::of((block, 1_u64 << 39..(1 << 39) + 3));
        (0_usize..256, 1_usize..256, new)
            .prop_map(|(first, count, new)| (first, count.min(256 - first), new))
    }

    proptest! {
        #[test]
        fn a_leaf_is_a_table_of_256_entries_whatever_is_done_to_it(
            changes in proptest::collection::vec(change(), 1..40),
            singles in proptest::collection::vec((0_usize..256, 1_u64..1000), 0..400),
        ) {
            let mut leaf = LeafMap::default();
            let mut table = [Entry::HOLE; 256];
            let singles = singles.into_iter().map(|(place, block)| (place, 1, Some((block, 7))));
            for (first, count, new) in changes.into_iter().chain(singles) {
                let crcs: Vec<u32> = (0..count).map(|n| u32::try_from(n * 7 + first).unwrap()).collect();
                let mut gone = Vec::new();
                let change = new.map(|(block, birth)| (block, birth, &crcs[..]));
                leaf.replace(first, count, change, |piece| {
                    gone.extend((0..piece.len()).map(|n| piece.block_at(piece.first() + n)));
                });
                let was: Vec<u64> = table[first..first + count]
                    .iter()
                    .filter(|entry| !entry.is_hole())
                    .map(|entry| entry.block)
                    .collect();
                prop_assert_eq!(gone, was);
                for n in 0..count {
                    table[first + n] = new.map_or(Entry::HOLE, |(block, birth)| {
                        let block = if block == ZEROS { ZEROS } else { block + n as u64 };
                        Entry::data(block, birth, crcs[n])
                    });
                }
            }
            prop_assert_eq!(&leaf.table()[..], &table[..]);
            for (place, entry) in table.iter().enumerate() {
                prop_assert_eq!(leaf.get(place), *entry);
                let (block, count) = leaf.stretch(place, 256);
                prop_assert_eq!(block, (!entry.is_hole()).then_some(entry.block));
                for n in 0..count {
                    let there = table[place + n];
                    let block = block.map(|block| if block == ZEROS { ZEROS } else { block + n as u64 });
                    prop_assert_eq!(block, (!there.is_hole()).then_some(there.block));
                }
                prop_assert_eq!(leaf.is_silent(place, 1), entry.is_hole());
                prop_assert_eq!(leaf.is_zeros(place, 1), entry.is_zeros());
                prop_assert_eq!(leaf.mapped_within(place, 1) == 1, !entry.is_hole() && !entry.is_zeros());
            }
            prop_assert!(leaf.pieces.windows(2).all(|two| !two[0].leads_to(&two[1])));
            let stored = match fit([&leaf].into_iter()) {
                true => encode(6, [None, Some(&leaf), None]),
                false => encode_table(7, &leaf),
            };
            if !leaf.is_empty() {
                prop_assert_eq!(decode(&stored, 7), Some(leaf));
            }
        }

        #[test]
        fn a_block_of_leaves_may_hold_anything_and_is_refused_or_read(
            mut bytes in proptest::collection::vec(any::<u8>(), BLOCK),
            counts in proptest::array::uniform3(0_u16..400),
        ) {
            bytes[..4].copy_from_slice(&MAGIC);
            for (n, count) in counts.iter().enumerate() {
                bytes[4 + 2 * n..6 + 2 * n].copy_from_slice(&count.to_le_bytes());
            }
            put(&mut bytes, 16, 3);
            let node = Node::raw(bytes.try_into().unwrap());
            for number in 0..9 {
                if let Some(leaf) = decode(&node, number) {
                    prop_assert!(leaf.table().len() == 256);
                }
            }
        }
    }

    #[test]
    fn three_leaves_that_lie_in_a_row_take_one_block() {
        let crcs = [9; 256];
        let mut leaves = [LeafMap::default(), LeafMap::default(), LeafMap::default()];
        for (leaf, block) in leaves.iter_mut().zip([1000, 1256, 1512]) {
            leaf.replace(0, 256, Some((block, 4, &crcs)), |_| ());
        }
        assert!(fit(leaves.iter()));
        let [a, b, c] = &leaves;
        let block = encode(9, [Some(a), Some(b), Some(c)]);
        assert_eq!(decode(&block, 10).as_ref(), Some(b));
        assert_eq!(decode(&block, 11).as_ref(), Some(c));
        assert_eq!(decode(&block, 12), None);
        assert_eq!(decode(&block, 8), None);
    }
}
