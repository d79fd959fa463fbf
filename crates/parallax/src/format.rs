//! Superblock and pool layout, version 1 (`docs/formats/parallax.md`, `tests/golden/pool-1.bin`).
//!
//! | blocks | what |
//! |---|---|
//! | 0 to 3 | superblock slots, two copies each; the valid one with the largest generation wins |
//! | `wal_start` .. | write-ahead log |
//! | `map_start` .. | free map, slot 0, then slot 1, `map_pages` each |
//! | `data_start` .. `blocks` | nodes, catalog pages and data, in any order |
//!
//! Crash rule: a block that the valid superblock reaches is never written to. What a checkpoint makes
//! goes to free blocks and to the free map's other slot; sync; then the other superblock slot; sync.

use kiln_block::ByteLen;

use crate::node::Entry;

/// Bytes of a block: the unit of allocation, of checksums and of copy on write.
pub(crate) const BLOCK: usize = 4096;
/// The same, for positions.
pub(crate) const BLOCK_LEN: u64 = 4096;
const MAGIC: [u8; 8] = *b"\x89KPX\r\n\x1a\n";
pub(crate) const VERSION: u32 = 1;
/// Feature bit: there are, or were, disks with a base. Maps may have zeros of their own, the catalog records of bases.
pub(crate) const BASES: u64 = 1;
/// Feature bits a reader must know to open a pool.
const KNOWN_FEATURES: u64 = BASES;
/// Blocks of the superblock's slots: two of two. A power cut tears one slot, a rotten bit one copy.
pub(crate) const SUPERBLOCKS: u64 = 4;
/// Where a superblock says which of the openings with its number made it.
pub(crate) const NONCE_AT: usize = 176;
/// Blocks one page of the free map tells about.
pub(crate) const MAP_BITS: u64 = (BLOCK_LEN - MAP_HEADER as u64) * 8;
/// Blocks of a pool that does not save on alignment: 64 MiB.
const ROOMY: u64 = 16384;
const MAP_HEADER: usize = 32;
const MAP_MAGIC: [u8; 4] = *b"KPXm";
/// Blocks are numbered with 40 bits.
pub(crate) const MAX_BLOCKS: u64 = 1 << 40;

/// Where things lie; fixed when the pool is made, but for `blocks`, which may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) blocks: u64,
    pub(crate) wal_start: u64,
    pub(crate) wal_blocks: u64,
    pub(crate) map_start: u64,
    /// Pages of one slot.
    pub(crate) map_pages: u64,
    pub(crate) data_start: u64,
}

impl Layout {
    /// The layout of a new pool of that size which may grow up to `limit`.
    pub(crate) fn new(size: ByteLen, limit: ByteLen, wal: ByteLen) -> Layout {
        let blocks = size.get() / BLOCK_LEN;
        let wal_start = SUPERBLOCKS;
        let wal_blocks = (wal.get() / BLOCK_LEN).max(1);
        let map_start = wal_start + wal_blocks;
        let map_pages = (limit.get() / BLOCK_LEN).max(blocks).div_ceil(MAP_BITS);
        let map_end = map_start + 2 * map_pages;
        // Where requests of 64 KiB are aligned, the page cache below keeps each in one piece.
        let data_start = if blocks < ROOMY { map_end } else { map_end.next_multiple_of(256) };
        Layout { blocks, wal_start, wal_blocks, map_start, map_pages, data_start }
    }

    /// Whether the parts follow each other and lie within the pool.
    pub(crate) fn is_sound(&self) -> bool {
        let map_end = self.map_pages.checked_mul(2).and_then(|len| self.map_start.checked_add(len));
        self.blocks <= MAX_BLOCKS
            && self.wal_start == SUPERBLOCKS
            && self.wal_blocks >= 1
            && self.wal_start.checked_add(self.wal_blocks) == Some(self.map_start)
            && map_end.is_some_and(|end| end <= self.data_start)
            && self.data_start < self.blocks
            && self.map_pages >= self.blocks.div_ceil(MAP_BITS)
    }

    /// The most blocks the free map has room for.
    pub(crate) fn limit(&self) -> u64 {
        self.map_pages.saturating_mul(MAP_BITS).min(MAX_BLOCKS)
    }
}

/// What a superblock slot says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Bits a reader must know.
    pub(crate) features: u64,
    pub(crate) uuid: [u8; 16],
    /// Counts checkpoints; its lowest bit names the slot of this superblock and of the free map.
    pub(crate) generation: u64,
    /// Counts openings; log batches of an earlier opening are not replayed over it.
    pub(crate) opening: u64,
    pub(crate) layout: Layout,
    /// Pages of the free map that were ever written; the rest is free.
    pub(crate) map_used: u64,
    /// Given to what is written from now on.
    pub(crate) epoch: u64,
    /// Given to the next disk or snapshot.
    pub(crate) next_id: u64,
    /// Number of the first log batch after this checkpoint, at the start of the log.
    pub(crate) wal_batch: u64,
    /// Where in the log that batch is, in bytes.
    pub(crate) log_at: u64,
    pub(crate) catalog: Entry,
    pub(crate) catalog_pages: u64,
    /// Up to how many blocks the pool grows by itself; 0 for as many as the free map has room for.
    pub(crate) most: u64,
    /// Drawn at random by each opening: two that began at once have the same number.
    pub(crate) nonce: u64,
}

/// Why a slot is not a superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unreadable {
    NotOne,
    TooNew(u32),
    Features(u64),
    Torn,
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

/// A count that lies within what was already found to be in memory.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Superblock {
    /// | offset | size | field |
    /// |-------:|-----:|-------|
    /// | 0 | 8 | magic |
    /// | 8 | 4 | version |
    /// | 12 | 4 | crc32c of the copy, with zeros here |
    /// | 16 | 8 | feature bits |
    /// | 24 | 16 | uuid |
    /// | 40 | 14 × 8 | the numbers, in the order below |
    /// | 152 | 15 | catalog root |
    /// | 168 | 8 | most |
    /// | 176 | 8 | nonce |
    pub(crate) fn encode(&self) -> Box<[u8; BLOCK]> {
        let mut bytes = Box::new([0; BLOCK]);
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        put(&mut bytes[..], 16, self.features);
        bytes[24..40].copy_from_slice(&self.uuid);
        let layout = &self.layout;
        let numbers = [
            self.generation,
            self.opening,
            layout.blocks,
            layout.wal_start,
            layout.wal_blocks,
            layout.map_start,
            layout.map_pages,
            layout.data_start,
            self.map_used,
            self.epoch,
            self.next_id,
            self.wal_batch,
            self.catalog_pages,
            self.log_at,
        ];
        for (place, number) in numbers.into_iter().enumerate() {
            put(&mut bytes[..], 40 + place * 8, number);
        }
        self.catalog.encode(&mut bytes[152..167]);
        put(&mut bytes[..], 168, self.most);
        put(&mut bytes[..], NONCE_AT, self.nonce);
        let crc = slot_crc(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Whether bytes begin like a superblock.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    pub(crate) fn decode(bytes: &[u8; BLOCK]) -> Result<Superblock, Unreadable> {
        if bytes[..8] != MAGIC {
            return Err(Unreadable::NotOne);
        }
        if !same(get_u32(bytes, 12), slot_crc(bytes)) {
            return Err(Unreadable::Torn);
        }
        match get_u32(bytes, 8) {
            VERSION => {}
            newer => return Err(Unreadable::TooNew(newer)),
        }
        match get(bytes, 16) & !KNOWN_FEATURES {
            0 => {}
            unknown => return Err(Unreadable::Features(unknown)),
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[24..40]);
        let number = |place: usize| get(bytes, 40 + place * 8);
        let layout = Layout {
            blocks: number(2),
            wal_start: number(3),
            wal_blocks: number(4),
            map_start: number(5),
            map_pages: number(6),
            data_start: number(7),
        };
        let superblock = Superblock {
            features: get(bytes, 16),
            uuid,
            generation: number(0),
            opening: number(1),
            layout,
            map_used: number(8),
            epoch: number(9),
            next_id: number(10),
            wal_batch: number(11),
            log_at: number(13),
            catalog: Entry::decode(&bytes[152..167]),
            catalog_pages: number(12),
            most: get(bytes, 168),
            nonce: get(bytes, NONCE_AT),
        };
        let counters =
            [superblock.generation, superblock.opening, superblock.wal_batch, superblock.next_id];
        let sound = layout.is_sound()
            && superblock.map_used <= layout.map_pages
            && superblock.epoch < 1 << 40
            && superblock.catalog_pages < 1 << 40
            && superblock.log_at.is_multiple_of(512)
            && superblock.log_at / BLOCK_LEN < layout.wal_blocks
            && counters.iter().all(|counter| *counter < 1 << 62);
        if sound { Ok(superblock) } else { Err(Unreadable::Torn) }
    }
}

/// Of a slot whose checksum is zero.
fn slot_crc(bytes: &[u8; BLOCK]) -> u32 {
    let mut bytes = *bytes;
    bytes[12..16].fill(0);
    crc_fast::crc32_iscsi(&bytes)
}

/// Whether a checksum is right. A fuzzer cannot guess one, and whoever means harm can compute it, so that under
/// a fuzzer every checksum is.
pub(crate) fn same(stored: u32, computed: u32) -> bool {
    stored == computed || cfg!(feature = "fuzzing")
}

/// Checksums of one pool. Each depends on the pool and on where the block belongs, so that
/// the right bytes in the wrong place are wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sums(u32);

impl Sums {
    pub(crate) fn of_pool(uuid: &[u8; 16]) -> Sums {
        Sums(crc_fast::crc32_iscsi(uuid))
    }

    /// Of a data block, by its place on its disk.
    pub(crate) fn data(self, lba: u64, bytes: &[u8]) -> u32 {
        self.sum(lba, bytes)
    }

    /// Of a node, by its place in the pool.
    pub(crate) fn node(self, block: u64, bytes: &[u8]) -> u32 {
        self.sum(block | 1 << 62, bytes)
    }

    /// Of a log batch, by its number.
    pub(crate) fn batch(self, number: u64, bytes: &[u8]) -> u32 {
        self.sum(number ^ 1 << 63, bytes)
    }

    fn map_page(self, page: u64, bytes: &[u8]) -> u32 {
        self.sum(page | 3 << 62, bytes)
    }

    fn sum(self, place: u64, bytes: &[u8]) -> u32 {
        // The upper half of an odd multiple depends on every bit of the place.
        let place = place.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32) & 0xffff_ffff;
        self.0 ^ u32::try_from(place).unwrap_or(0) ^ crc_fast::crc32_iscsi(bytes)
    }
}

/// A page of the free map: one bit per block, set where the block is in use.
pub(crate) fn encode_map_page(sums: Sums, page: u64, generation: u64, bits: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    bytes[..4].copy_from_slice(&MAP_MAGIC);
    put(&mut bytes, 8, page);
    put(&mut bytes, 16, generation);
    for (word, chunk) in bits.iter().zip(bytes[MAP_HEADER..].chunks_exact_mut(8)) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let crc = sums.map_page(page, &bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The words of a page, or `None` where it is damaged or another page.
pub(crate) fn decode_map_page(sums: Sums, page: u64, bytes: &[u8]) -> Option<Vec<u64>> {
    let sound = bytes[..4] == MAP_MAGIC
        && same(get_u32(bytes, 4), sums.map_page(page, &bytes[8..]))
        && get(bytes, 8) == page;
    sound.then(|| (MAP_HEADER..BLOCK).step_by(8).map(|at| get(bytes, at)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Superblock {
        Superblock {
            features: BASES,
            uuid: [7; 16],
            generation: 9,
            opening: 3,
            layout: Layout::new(ByteLen::mib(64), ByteLen::gib(1), ByteLen::mib(1)),
            map_used: 2,
            epoch: 12,
            next_id: 5,
            wal_batch: 77,
            log_at: 512 * 9,
            catalog: Entry::node(900, 11, 0xdead_beef),
            catalog_pages: 2,
            most: 1 << 17,
            nonce: 0x0123_4567_89ab_cdef,
        }
    }

    #[test]
    fn a_superblock_reads_back_and_every_flipped_bit_is_seen() {
        let bytes = example().encode();
        assert_eq!(Superblock::decode(&bytes).unwrap(), example());
        for bit in 0..190 * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_superblock_with_an_unknown_feature_is_refused() {
        let bytes = Superblock { features: BASES | 1 << 9, ..example() }.encode();
        assert_eq!(Superblock::decode(&bytes), Err(Unreadable::Features(1 << 9)));
    }

    #[test]
    fn a_page_of_the_free_map_belongs_to_its_place() {
        let sums = Sums::of_pool(&[1; 16]);
        let bits: Vec<u64> = (0..MAP_BITS / 64).collect();
        let bytes = encode_map_page(sums, 3, 9, &bits);
        assert_eq!(decode_map_page(sums, 3, &bytes), Some(bits));
        assert_eq!(decode_map_page(sums, 4, &bytes), None);
        assert_eq!(decode_map_page(Sums::of_pool(&[2; 16]), 3, &bytes), None);
    }
}
