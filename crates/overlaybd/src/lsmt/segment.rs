//! One entry of an index: a run of sectors, and where they are stored.
//!
//! | bits             | field   | meaning                                                        |
//! |------------------|---------|----------------------------------------------------------------|
//! | word 0,  0..=49  | offset  | the first sector of the disk; all ones: the entry is padding   |
//! | word 0, 50..=63  | length  | how many sectors                                               |
//! | word 1,  0..=54  | moffset | the first sector in the layer's file, which counts its header  |
//! | word 1, 55       | zeroed  | the run reads as zeros, and nothing is stored                  |
//! | word 1, 56..=63  | tag     | which layer it came from; written by merges, ignored on reading |

use crate::input::u64_at;

/// Bytes in a sector, the unit of every number in an index.
pub(crate) const SECTOR: u64 = 512;
/// Bytes of an entry.
pub(crate) const ENTRY_SIZE: u64 = 16;
/// The longest run an entry can describe.
pub(crate) const LONGEST: u32 = (1 << 14) - 1;
/// Sources from here on are the foreign file of a layer, not the layer itself.
pub(crate) const REMOTE: u16 = 256;

const OFFSET_BITS: u64 = (1 << 50) - 1;
const MOFFSET_BITS: u64 = (1 << 55) - 1;

/// Padding.
pub(crate) const INVALID_ENTRY: [u8; 16] =
    [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A run of sectors of a disk. All numbers count sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts on the disk.
    pub start: u64,
    /// Where it is stored.
    pub stored_at: u64,
    /// How long it is.
    pub len: u32,
    /// Which of a stack's sources holds it: the number of the layer, 0 on top.
    pub source: u16,
    /// Whether it reads as zeros whatever lies below.
    pub zeroed: bool,
}

impl Segment {
    /// Behind its last sector on the disk.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }

    /// Behind its last sector in the file. Zeros take no space there.
    pub fn stored_end(&self) -> u64 {
        if self.zeroed { self.stored_at } else { self.stored_at + u64::from(self.len) }
    }

    /// The part of it from `start` to `end`, which lie within it.
    pub(crate) fn clip(&self, start: u64, end: u64) -> Segment {
        let skipped = start - self.start;
        Segment {
            start,
            stored_at: if self.zeroed { self.stored_at } else { self.stored_at + skipped },
            len: u32::try_from(end - start).unwrap_or(u32::MAX),
            ..*self
        }
    }

    /// Reads an entry; its tag becomes the source. `None` is padding.
    pub(crate) fn decode(entry: &[u8]) -> Option<Segment> {
        let (place, storage) = (u64_at(entry, 0), u64_at(entry, 8));
        let start = place & OFFSET_BITS;
        (start != OFFSET_BITS).then(|| Segment {
            start,
            stored_at: storage & MOFFSET_BITS,
            len: u32::try_from(place >> 50).unwrap_or(0),
            source: u16::from(storage.to_le_bytes()[7]),
            zeroed: storage >> 55 & 1 == 1,
        })
    }

    pub(crate) fn encode(&self) -> [u8; 16] {
        let place = self.start & OFFSET_BITS | u64::from(self.len) << 50;
        let storage = self.stored_at & MOFFSET_BITS
            | u64::from(self.zeroed) << 55
            | u64::from(self.source & 0xff) << 56;
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&place.to_le_bytes());
        entry[8..].copy_from_slice(&storage.to_le_bytes());
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        let segment = Segment {
            start: OFFSET_BITS - 1,
            stored_at: 1 << 54,
            len: LONGEST,
            source: 254,
            zeroed: true,
        };
        assert_eq!(Segment::decode(&segment.encode()), Some(segment));
        assert_eq!(Segment::decode(&INVALID_ENTRY), None);
    }
}
