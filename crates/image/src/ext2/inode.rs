//! An inode's 256 bytes.
//!
//! | offset | size | field       | meaning                                               |
//! |-------:|-----:|-------------|-------------------------------------------------------|
//! |      0 |    2 | mode        | type and permissions                                  |
//! |      2 |    2 | uid         | low half; high half at 120                             |
//! |      4 |    4 | size        | low half; a regular file's high half at 108            |
//! |      8 |   12 | times       | access, change, modification; seconds                 |
//! |     24 |    2 | gid         | low half; high half at 122                             |
//! |     26 |    2 | links       |                                                       |
//! |     28 |    4 | blocks      | of 512 bytes, with tables and attributes               |
//! |     32 |    4 | flags       | 0x1000: a directory with an index; 0x80000: extents   |
//! |     40 |   60 | block       | 12 pointers and 3 tables, or extents; a link, a device |
//! |    104 |    4 | file_acl    | block of attributes                                   |
//! |    128 |    2 | extra_isize | 32                                                    |
//! |    132 |   12 | times       | change, modification, access; nanoseconds and epoch    |
//! |    144 |    8 | crtime      | seconds; nanoseconds and epoch                         |
//! |    160 |   96 | attributes  |                                                       |

use super::encode::{high16, high32, low16, low32, put16, put32};
use super::tree::Time;
use super::xattr::INLINE_LEN;

/// Bytes in an inode: room for nanoseconds, and for a file capability without another block.
pub(super) const LEN: u64 = 256;
/// Bytes in an inode, as a buffer's size.
const RECORD: usize = 256;
/// Where the attributes are.
const ATTRIBUTES: usize = 160;
const _: () = assert!(ATTRIBUTES + INLINE_LEN == RECORD);

/// A directory with an index.
pub(super) const INDEXED: u32 = 0x1000;
/// Its blocks are found by extents.
pub(super) const EXTENTS: u32 = 0x80000;

/// Everything that an inode says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode<'a> {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) time: Time,
    pub(super) links: u16,
    /// Of 512 bytes.
    pub(super) sectors: u32,
    pub(super) flags: u32,
    pub(super) block: [u8; 60],
    pub(super) attribute_block: u32,
    pub(super) attributes: Option<&'a [u8; INLINE_LEN]>,
}

impl Inode<'_> {
    /// Its bytes. All four times are the same: a copy has no history of its own.
    pub(super) fn bytes(&self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        let (seconds, extra) = stored_time(self.time);
        put16(&mut record, 0, self.mode);
        put16(&mut record, 2, low16(self.uid));
        put32(&mut record, 4, low32(self.size));
        for at in [8, 12, 16, 144] {
            put32(&mut record, at, seconds);
        }
        put16(&mut record, 24, low16(self.gid));
        put16(&mut record, 26, self.links);
        put32(&mut record, 28, self.sectors);
        put32(&mut record, 32, self.flags);
        record[40..100].copy_from_slice(&self.block);
        put32(&mut record, 104, self.attribute_block);
        put32(&mut record, 108, high32(self.size));
        put16(&mut record, 120, high16(self.uid));
        put16(&mut record, 122, high16(self.gid));
        put16(&mut record, 128, 32);
        for at in [132, 136, 140, 148] {
            put32(&mut record, at, extra);
        }
        if let Some(attributes) = self.attributes {
            record[ATTRIBUTES..].copy_from_slice(attributes);
        }
        record
    }
}

/// Seconds as a signed 32-bit number, and nanoseconds above two bits that say how often to add 2^32.
/// A time that cannot be said, before 1901 or after 2446, becomes the nearest that can.
fn stored_time(time: Time) -> (u32, u32) {
    const FIRST: i64 = -(1 << 31);
    const LAST: i64 = (1 << 34) - (1 << 31) - 1;
    let seconds = time.seconds.clamp(FIRST, LAST);
    let low = low32(seconds.cast_unsigned());
    let epoch = (seconds - i64::from(low.cast_signed())) >> 32;
    let epoch = u32::try_from(epoch & 3).unwrap_or(0);
    (low, time.nanos.min(999_999_999) << 2 | epoch)
}

/// A device's numbers: the old form where it can say them, else the new one in the second word.
pub(super) fn device(major: u32, minor: u32) -> [u8; 60] {
    let mut block = [0; 60];
    if major < 256 && minor < 256 {
        put32(&mut block, 0, major << 8 | minor);
    } else {
        put32(&mut block, 4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_far_from_now_keep_their_seconds() {
        let stored = |seconds| stored_time(Time { seconds, nanos: 1 });
        assert_eq!(stored(-1), (u32::MAX, 4));
        assert_eq!(stored(1 << 31), (1 << 31, 4 | 1));
        assert_eq!(stored((1 << 33) + 5), (5, 4 | 2));
        assert_eq!(stored(i64::MIN), (1 << 31, 4));
        assert_eq!(stored(i64::MAX), (0x7fff_ffff, 4 | 3));
    }
}
