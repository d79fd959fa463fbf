//! Little-endian numbers at fixed places.

/// Puts a number at a place of a record.
pub(super) fn put16(record: &mut [u8], at: usize, value: u16) {
    record[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Puts a number at a place of a record.
pub(super) fn put32(record: &mut [u8], at: usize, value: u32) {
    record[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The low half of a number that is stored in two parts.
pub(super) fn low16(value: u32) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(u16::MAX)
}

/// The high half.
pub(super) fn high16(value: u32) -> u16 {
    u16::try_from(value >> 16).unwrap_or(u16::MAX)
}

/// The low half.
pub(super) fn low32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX)
}

/// The high half.
pub(super) fn high32(value: u64) -> u32 {
    u32::try_from(value >> 32).unwrap_or(u32::MAX)
}

/// A count of things in memory as a file system counts them. What passes the limit is refused before
/// it is stored, so that the largest number is never taken for a real one.
pub(super) fn count32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A 32-bit number as an index; never lossy where Kiln runs.
pub(super) fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
