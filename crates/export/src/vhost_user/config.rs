//! What the guest is told of the disk: features, and the configuration space.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::chain::{LARGEST_SEGMENT, SEGMENTS};
use crate::Export;

/// What a sector number counts, whatever the disk's blocks are.
pub(crate) const SECTOR: u64 = 512;
/// Bytes of the configuration space that mean something.
const LEN: usize = 60;
/// Where the field is that says whether the cache is volatile.
pub(crate) const CACHE_AT: u32 = 32;
/// Sectors in one range of a discard or write-zeroes: 1 GiB.
pub(crate) const MOST_CLEARED: u32 = 1 << 21;
/// Ranges in one discard or write-zeroes.
pub(crate) const MOST_RANGES: u32 = 32;
/// The front-end may write down which pages are dirty (vhost's own bit).
pub(crate) const F_LOG_ALL: u64 = 1 << 26;
/// vhost-user's own bit.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// What can be agreed on.
pub(crate) fn features(export: &Export) -> u64 {
    let mut bits = vec![
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
    ];
    if export.is_read_only() {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    }
    bits.iter().fold(F_LOG_ALL | F_PROTOCOL_FEATURES, |all, bit| all | 1 << bit)
}

/// Whether a feature was agreed on.
pub(crate) fn agreed(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// The configuration space (virtio 1.2, 5.2.4), which is as large as anybody asks: zeros follow.
pub(crate) fn space(export: &Export, queues: u16, cache_is_volatile: bool) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let sectors = export.device().size().get() / SECTOR;
    put(0, &sectors.to_le_bytes());
    put(8, &LARGEST_SEGMENT.to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    // Sectors are cheap to address and 4 KiB are cheap to write: eight sectors, from sector 0 on.
    put(24, &[3, 0]);
    put(26, &8_u16.to_le_bytes());
    put(32, &[cache_is_volatile.into()]);
    put(34, &queues.to_le_bytes());
    if !export.is_read_only() {
        put(36, &MOST_CLEARED.to_le_bytes());
        put(40, &MOST_RANGES.to_le_bytes());
        put(44, &8_u32.to_le_bytes());
        put(48, &MOST_CLEARED.to_le_bytes());
        put(52, &MOST_RANGES.to_le_bytes());
        put(56, &[1]);
    }
    bytes
}
