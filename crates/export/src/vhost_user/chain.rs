//! A descriptor chain, read with suspicion: the guest wrote it, and may be rewriting it.
//!
//! Every descriptor is read once, and checked as it was read. Whatever is wrong is an error and never a
//! panic; how much one chain may say is bounded, so a loop ends and memory is not filled.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Descriptors in one chain; a driver that keeps to what it was told needs 128.
const MOST_DESCRIPTORS: usize = 1024;
/// Bytes in one request: all segments a driver may use, each as long as it may be.
pub(crate) const LARGEST_REQUEST: u64 = SEGMENTS as u64 * LARGEST_SEGMENT as u64;
/// Data segments in one request: with header and status they fit a queue of 128, QEMU's default.
pub(crate) const SEGMENTS: u32 = 126;
/// Bytes in one segment.
pub(crate) const LARGEST_SEGMENT: u32 = 2 << 20;
/// What an entry of a descriptor table takes.
const DESCRIPTOR_LEN: u32 = 16;

/// A stretch of guest memory, which was there when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its guest-physical address.
    pub at: GuestAddress,
    /// How long it is; never zero.
    pub len: u32,
}

/// A request's memory: what the device may read, then what it may write. Kept and filled again, so that a
/// request costs no allocation.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    readable: Vec<Piece>,
    writable: Vec<Piece>,
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A descriptor lies outside its table.
    #[error("descriptor {index} lies outside a table of {size}")]
    OutsideTable {
        /// Which.
        index: u32,
        /// How many there are.
        size: u32,
    },
    /// More descriptors than there can be: it runs in a circle, or is absurd.
    #[error("the chain does not end")]
    Endless,
    /// A descriptor, or what it speaks of, is not in the guest's memory.
    #[error("{len} bytes at {at:#x} are not in the guest's memory")]
    OutsideMemory {
        /// Where.
        at: u64,
        /// How long.
        len: u32,
    },
    /// An indirect table that is empty, is no whole number of descriptors, lies in another table or
    /// has something after it.
    #[error("an indirect table is not where or what it may be")]
    Indirect,
    /// What the device reads comes after what it writes.
    #[error("memory to read follows memory to write")]
    Order,
    /// More bytes than any request may have.
    #[error("the request speaks of more than {LARGEST_REQUEST} bytes")]
    TooLong,
}

impl Chain {
    /// An empty one, to be filled.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// Reads the chain that begins at `head` of a table of `size` descriptors.
    pub fn fill(
        &mut self,
        memory: &GuestMemoryMmap,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<(), Malformed> {
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut size, mut index) = (table, u32::from(size), u32::from(head));
        let (mut left, mut bytes, mut indirect) = (size, 0_u64, false);
        loop {
            // No chain visits a descriptor twice, so it has no more than the table.
            if left == 0 || self.readable.len() + self.writable.len() >= MOST_DESCRIPTORS {
                return Err(Malformed::Endless);
            }
            left -= 1;
            let descriptor = read(memory, table, size, index)?;
            let flags = u32::from(descriptor.flags());
            let (at, len) = (descriptor.addr().raw_value(), descriptor.len());
            if flags & VRING_DESC_F_INDIRECT != 0 {
                let whole = len != 0 && len.is_multiple_of(DESCRIPTOR_LEN);
                if indirect || !whole || flags & VRING_DESC_F_NEXT != 0 {
                    return Err(Malformed::Indirect);
                }
                (table, size, index) = (GuestAddress(at), len / DESCRIPTOR_LEN, 0);
                (left, indirect) = (size, true);
                continue;
            }
            bytes += u64::from(len);
            if bytes > LARGEST_REQUEST + u64::from(LARGEST_SEGMENT) {
                return Err(Malformed::TooLong);
            }
            self.push(memory, at, len, flags & VRING_DESC_F_WRITE != 0)?;
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = u32::from(descriptor.next());
        }
    }

    fn push(
        &mut self,
        memory: &GuestMemoryMmap,
        at: u64,
        len: u32,
        writable: bool,
    ) -> Result<(), Malformed> {
        let inside = usize::try_from(len)
            .is_ok_and(|len| GuestMemoryBackend::check_range(memory, GuestAddress(at), len));
        if !inside {
            return Err(Malformed::OutsideMemory { at, len });
        }
        if !writable && !self.writable.is_empty() {
            return Err(Malformed::Order);
        }
        if len != 0 {
            let piece = Piece { at: GuestAddress(at), len };
            if writable { self.writable.push(piece) } else { self.readable.push(piece) }
        }
        Ok(())
    }

    /// What the device may read, in order.
    pub fn readable(&self) -> &[Piece] {
        &self.readable
    }

    /// What the device may write, in order.
    pub fn writable(&self) -> &[Piece] {
        &self.writable
    }
}

fn read(
    memory: &GuestMemoryMmap,
    table: GuestAddress,
    size: u32,
    index: u32,
) -> Result<Descriptor, Malformed> {
    if index >= size {
        return Err(Malformed::OutsideTable { index, size });
    }
    let at = u64::from(index) * u64::from(DESCRIPTOR_LEN);
    let outside = Malformed::OutsideMemory { at: table.raw_value(), len: DESCRIPTOR_LEN };
    let at = table.checked_add(at).ok_or(outside)?;
    memory
        .read_obj(at)
        .map_err(|_| Malformed::OutsideMemory { at: at.raw_value(), len: DESCRIPTOR_LEN })
}

/// How many bytes pieces have together; bounded by what a chain may say.
pub(crate) fn length(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}
