//! Superblock, group descriptors and bitmaps, made from the geometry when they are asked for.

use super::encode::{index, low16, low32, put16, put32};
use super::geometry::{GROUP_BLOCKS, Geometry};
use super::{BLOCK_LEN, hash, inode};

/// Bytes in a descriptor.
pub(super) const DESCRIPTOR_LEN: u64 = 32;
/// Where the first superblock lies in its block; copies lie at the start of theirs.
pub(super) const FIRST_AT: usize = 1024;
/// The first inode that is not spoken for: `lost+found`.
pub(super) const FIRST_INODE: u32 = 11;

/// What the superblock says beyond the geometry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) uuid: [u8; 16],
    pub(super) label: [u8; 16],
    /// Seconds since 1970.
    pub(super) time: u32,
    /// Whether any directory has an index.
    pub(super) indexed: bool,
    /// Whether files' blocks are found by extents.
    pub(super) extents: bool,
}

/// How much is in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// Every block for files before this one is in use.
    pub(super) first_free_block: u64,
    /// Every inode up to this one is.
    pub(super) last_inode: u64,
}

impl Usage {
    /// How many blocks are free.
    pub(super) fn free_blocks(&self, geometry: &Geometry) -> u64 {
        (0..geometry.groups)
            .map(|group| {
                geometry.group_blocks(group) - geometry.used_blocks(group, self.first_free_block)
            })
            .sum()
    }
}

/// A block with a superblock: the first one, or a group's copy.
pub(super) fn block(geometry: &Geometry, usage: &Usage, about: &Identity, group: u64) -> Vec<u8> {
    const EXT_ATTR: u32 = 0x8;
    const DIR_INDEX: u32 = 0x20;
    const FILETYPE: u32 = 0x2;
    const EXTENTS: u32 = 0x40;
    const SPARSE_SUPER: u32 = 0x1;
    const LARGE_FILE: u32 = 0x2;
    const SIGNED_HASH: u32 = 1;
    let mut block = vec![0; BLOCK_LEN];
    let record = &mut block[if group == 0 { FIRST_AT } else { 0 }..];
    let halves: [(usize, u16); 8] = [
        (54, u16::MAX), // mounts before a check: as many as one likes
        (56, 0xef53),   // magic
        (58, 1),        // cleanly unmounted
        (60, 1),        // on errors: go on
        (88, low16(low32(inode::LEN))),
        (90, low16(low32(group))),
        (0x15c, 32), // extra inode bytes at least
        (0x15e, 32), // extra inode bytes wanted
    ];
    let words: [(usize, u32); 19] = [
        (0, low32(geometry.inodes())),
        (4, low32(geometry.blocks)),
        (12, low32(usage.free_blocks(geometry))),
        (16, low32(geometry.inodes() - usage.last_inode)),
        (24, 2), // blocks of 1024 << 2
        (28, 2),
        (32, low32(GROUP_BLOCKS)),
        (36, low32(GROUP_BLOCKS)),
        (40, low32(geometry.inodes_per_group)),
        (48, about.time), // written
        (64, about.time), // checked
        (76, 1),          // revision with dynamic inode sizes
        (84, FIRST_INODE),
        (92, EXT_ATTR | if about.indexed { DIR_INDEX } else { 0 }),
        (96, FILETYPE | if about.extents { EXTENTS } else { 0 }),
        (100, SPARSE_SUPER | LARGE_FILE),
        (0xfc, u32::from(hash::HALF_MD4)),
        (0x108, about.time), // made
        (0x160, SIGNED_HASH),
    ];
    halves.iter().for_each(|(at, value)| put16(record, *at, *value));
    words.iter().for_each(|(at, value)| put32(record, *at, *value));
    record[104..120].copy_from_slice(&about.uuid);
    record[120..136].copy_from_slice(&about.label);
    for (at, word) in hash::SEED.iter().enumerate() {
        put32(record, 0xec + at * 4, *word);
    }
    block
}

/// All descriptors, in whole blocks. `directories` has, for each group, how many inodes are one.
pub(super) fn descriptors(geometry: &Geometry, usage: &Usage, directories: &[u32]) -> Vec<u8> {
    let blocks = usize::try_from(geometry.descriptor_blocks()).unwrap_or(0);
    let mut bytes = vec![0; blocks * BLOCK_LEN];
    for ((group, record), directories) in (0..).zip(bytes.chunks_exact_mut(32)).zip(directories) {
        let bitmap = geometry.bitmap(group);
        let free =
            geometry.group_blocks(group) - geometry.used_blocks(group, usage.first_free_block);
        let free_inodes = geometry.inodes_per_group - geometry.used_inodes(group, usage.last_inode);
        put32(record, 0, low32(bitmap));
        put32(record, 4, low32(bitmap + 1));
        put32(record, 8, low32(bitmap + 2));
        put16(record, 12, low16(low32(free)));
        put16(record, 14, low16(low32(free_inodes)));
        put16(record, 16, low16(*directories));
    }
    bytes
}

/// A bitmap: the first `used` of `all` are in use, and what lies beyond `all` does not exist.
pub(super) fn bitmap(used: u64, all: u64) -> Vec<u8> {
    let mut bits = vec![0; BLOCK_LEN];
    set(&mut bits, 0, used);
    set(&mut bits, all, GROUP_BLOCKS);
    bits
}

fn set(bits: &mut [u8], from: u64, to: u64) {
    let mut at = from;
    while at < to {
        let byte = index(low32(at / 8));
        if at.is_multiple_of(8) && to - at >= 8 {
            bits[byte] = 0xff;
            at += 8;
        } else {
            bits[byte] |= 1 << (at % 8);
            at += 1;
        }
    }
}
