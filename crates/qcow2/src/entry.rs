//! Entries of L1 and L2 tables, and what a stretch of the disk is according to them.

use crate::header::Header;

/// Bits of an entry that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// What a stretch of the disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// What the backing file holds there.
    Below,
    /// Zeros; they may have space reserved.
    Zeros { reserved: bool },
    /// The bytes from this one of the file on.
    Stored(u64),
    /// A whole cluster, compressed, in `len` bytes of the file or a few less.
    Compressed { at: u64, len: u64 },
}

/// An entry that cannot be.
pub(crate) type Wrong = &'static str;

/// Where an L1 entry's table is; 0 for nowhere.
pub(crate) fn l2_offset(entry: u64) -> u64 {
    entry & OFFSET
}

impl Header {
    /// What unit `unit` of a cluster is: with sub-clusters the entry has a `bitmap` and there are 32 units, without
    /// there is one.
    pub(crate) fn content(&self, entry: u64, bitmap: u64, unit: u32) -> Result<Content, Wrong> {
        if entry & COMPRESSED != 0 {
            if bitmap != 0 {
                return Err("a compressed cluster with sub-clusters");
            }
            let split = 62 - (self.cluster_bits - 8);
            let at = entry & ((1 << split) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> split;
            return Ok(Content::Compressed { at, len: (sectors + 1) * 512 - at % 512 });
        }
        let host = entry & OFFSET;
        if !host.is_multiple_of(self.cluster()) {
            return Err("a cluster that is not where a cluster can be");
        }
        if !self.extended_l2() {
            return match (entry & ZERO != 0, host) {
                (true, _) if self.version < 3 => Err("a cluster of zeros in version 2"),
                (true, host) => Ok(Content::Zeros { reserved: host != 0 }),
                (false, 0) => Ok(Content::Below),
                (false, host) => Ok(Content::Stored(host)),
            };
        }
        let allocated = bitmap >> unit & 1 != 0;
        let zero = bitmap >> (32 + unit) & 1 != 0;
        let sub = self.unit_len() * u64::from(unit);
        match (allocated, zero) {
            (true, true) => Err("a sub-cluster that is both stored and zeros"),
            (true, false) if host == 0 => Err("a stored sub-cluster of a cluster that is nowhere"),
            (true, false) => Ok(Content::Stored(host + sub)),
            (false, true) => Ok(Content::Zeros { reserved: host != 0 }),
            (false, false) => Ok(Content::Below),
        }
    }

    /// Bytes of the smallest piece of the disk that an entry tells about.
    pub(crate) fn unit_len(&self) -> u64 {
        if self.extended_l2() { self.cluster() / 32 } else { self.cluster() }
    }
}

/// Entry of a cluster that is stored at `host` and used once.
pub(crate) fn stored_entry(host: u64) -> u64 {
    host | 1 << 63
}

/// Entry of a cluster whose `len` compressed bytes are at `at`.
pub(crate) fn compressed_entry(cluster_bits: u32, at: u64, len: u64) -> u64 {
    let split = 62 - (cluster_bits - 8);
    let sectors = (at + len - 1) / 512 - at / 512;
    COMPRESSED | sectors << split | at
}
