//! What each request does to the disk, and the bytes the guest gets back.
//!
//! Data passes through a buffer of our own, both ways. The guest can rewrite its memory at any time:
//! what a device computes a checksum of must be what it writes, and what it verified must be what
//! it hands out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, check_range};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::chain::{Chain, Piece, length};
use super::config::{MOST_CLEARED, MOST_RANGES, SECTOR};
use super::dirty::DirtyLog;
use crate::Export;
use crate::pace::{BRIEF_READ, BRIEF_WRITE, Pace};

/// Bytes of a request that are in a buffer of ours at once.
const BUFFER_LEN: usize = 1 << 20;
const HEADER_LEN: u64 = 16;
/// A range of a discard or write-zeroes.
const RANGE_LEN: usize = 16;
/// The only flag of a range: its space may be given back.
const UNMAP: u32 = 1;
/// Bytes of a serial number.
pub(crate) const SERIAL_LEN: usize = 20;

/// A disk, as all queues of a front-end see it.
#[derive(Debug)]
pub(crate) struct Disk {
    export: Export,
    serial: [u8; SERIAL_LEN],
    /// Whether a write may be told to be done before it is durable.
    cache_is_volatile: AtomicBool,
    reads: Pace,
    writes: Pace,
    pub(crate) flushes: Pace,
    pub(crate) settles: Pace,
}

/// Guest memory, and where to note what is written to it.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) guest: Arc<GuestMemoryMmap>,
    pub(crate) dirty: Option<Arc<DirtyLog>>,
}

/// A request that was carried out; by default one whose chain cannot be understood, which gets nothing but its
/// way back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Where the status goes; `None` where the guest left no room for one.
    status_at: Option<Piece>,
    status: u8,
    /// Bytes written into the guest's memory besides.
    pub(crate) written: u32,
    /// It is done once the disk was flushed.
    pub(crate) needs_flush: bool,
    /// It changed the disk, which a kill of this process could still undo.
    pub(crate) unsettled: bool,
}

impl Memory {
    /// Bytes of pieces from `skip` on, into `target`.
    fn gather(&self, pieces: &[Piece], skip: u64, target: &mut [u8]) -> Option<()> {
        let mut done = 0;
        for (piece, take) in stretch(pieces, skip, target.len()) {
            self.guest.read_slice(&mut target[done..done + take], piece.at).ok()?;
            done += take;
        }
        (done == target.len()).then_some(())
    }

    /// `source` into pieces, from `skip` on.
    fn scatter(&self, pieces: &[Piece], skip: u64, source: &[u8]) -> Option<()> {
        let mut done = 0;
        for (piece, take) in stretch(pieces, skip, source.len()) {
            self.guest.write_slice(&source[done..done + take], piece.at).ok()?;
            self.mark(piece.at.0, take as u64);
            done += take;
        }
        (done == source.len()).then_some(())
    }

    pub(crate) fn mark(&self, at: u64, len: u64) {
        if let Some(dirty) = &self.dirty {
            dirty.mark(at, len);
        }
    }
}

/// The parts of pieces that hold `len` bytes after the first `skip`, each with its length.
fn stretch(
    pieces: &[Piece],
    mut skip: u64,
    mut len: usize,
) -> impl Iterator<Item = (Piece, usize)> {
    pieces.iter().filter_map(move |piece| {
        let within = u64::from(piece.len);
        if skip >= within {
            skip -= within;
            return None;
        }
        let take = usize::try_from(within - skip).unwrap_or(usize::MAX).min(len);
        let at = vm_memory::GuestAddress(piece.at.0 + skip);
        (skip, len) = (0, len - take);
        (take > 0).then_some((Piece { at, len: piece.len }, take))
    })
}

/// What a request's first sixteen bytes say.
struct Header {
    kind: u32,
    sector: u64,
}

/// Why a request was not carried out.
enum Refused {
    Error,
    Unsupported,
}

impl<E: std::error::Error> From<E> for Refused {
    fn from(_: E) -> Refused {
        Refused::Error
    }
}

impl Disk {
    pub(crate) fn new(export: Export, serial: &str) -> Disk {
        let mut id = [0; SERIAL_LEN];
        for (target, byte) in id.iter_mut().zip(serial.bytes()) {
            *target = byte;
        }
        Disk {
            export,
            serial: id,
            cache_is_volatile: AtomicBool::new(true),
            reads: Pace::of(BRIEF_READ),
            writes: Pace::of(BRIEF_WRITE),
            flushes: Pace::of(BRIEF_READ),
            settles: Pace::of(BRIEF_WRITE),
        }
    }

    pub(crate) fn export(&self) -> &Export {
        &self.export
    }

    pub(crate) fn cache_is_volatile(&self) -> bool {
        self.cache_is_volatile.load(Ordering::SeqCst)
    }

    pub(crate) fn set_cache_is_volatile(&self, is_volatile: bool) {
        self.cache_is_volatile.store(is_volatile, Ordering::SeqCst);
    }

    /// Carries out everything but a flush. `durable`: the guest counts on writes being durable.
    pub(crate) fn carry_out(
        &self,
        chain: &Chain,
        memory: &Memory,
        buffer: &mut Vec<u8>,
        durable: bool,
    ) -> Done {
        let Some((status_at, room)) = split_status(chain.writable()) else {
            return Done::default();
        };
        let mut done = Done { status_at: Some(status_at), ..Done::default() };
        let mut request = Request { chain, memory, buffer, room, done: &mut done };
        let result = self.request(&mut request, durable);
        done.status = status(match result {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Refused::Error) => VIRTIO_BLK_S_IOERR,
            Err(Refused::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        });
        done.needs_flush &= result.is_ok();
        done
    }

    /// Makes what was written durable, for any number of requests; they fail together.
    pub(crate) fn flush(&self) -> bool {
        let started = Instant::now();
        let result = self.export.device().flush();
        self.flushes.note(started.elapsed());
        result.is_ok()
    }

    /// Makes what was written outlive this process: the guest does, and connects to the next one. Writes that were
    /// not settled fail together.
    pub(crate) fn settle(&self) -> bool {
        let started = Instant::now();
        let result = self.export.device().settle();
        self.settles.note(started.elapsed());
        result.is_ok()
    }

    /// Whether whoever carries out the next request can be expected to be back soon.
    pub(crate) fn is_brisk(&self) -> bool {
        self.reads.is_brisk() && self.writes.is_brisk()
    }

    fn request(&self, request: &mut Request<'_>, durable: bool) -> Result<(), Refused> {
        let header = request.header().ok_or(Refused::Error)?;
        match header.kind {
            VIRTIO_BLK_T_IN => {
                let started = Instant::now();
                let result = self.read(request, header.sector);
                self.reads.note(started.elapsed());
                self.writes.fade();
                result
            }
            VIRTIO_BLK_T_OUT => {
                let started = Instant::now();
                let result = self.write(request, header.sector);
                self.writes.note(started.elapsed());
                self.reads.fade();
                request.done.needs_flush = durable;
                request.done.unsettled = true;
                result
            }
            VIRTIO_BLK_T_FLUSH => {
                request.done.needs_flush = true;
                Ok(())
            }
            VIRTIO_BLK_T_GET_ID => {
                let len = request.portion(request.room.min(SERIAL_LEN as u64));
                request.buffer[..len].copy_from_slice(&self.serial[..len]);
                request.give(0, len)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.refuse_when_read_only()?;
                request.done.unsettled = true;
                self.clear(request, header.kind == VIRTIO_BLK_T_DISCARD)?;
                request.done.needs_flush = durable;
                Ok(())
            }
            _ => Err(Refused::Unsupported),
        }
    }

    fn device(&self) -> &dyn BlockDevice {
        self.export.device().as_ref()
    }

    fn refuse_when_read_only(&self) -> Result<(), Refused> {
        if self.export.is_read_only() { Err(Refused::Error) } else { Ok(()) }
    }

    /// Where a range of whole sectors begins, if all of it is on the disk.
    fn locate(&self, sector: u64, len: u64) -> Result<u64, Refused> {
        let at = sector.checked_mul(SECTOR).ok_or(Refused::Error)?;
        if !len.is_multiple_of(SECTOR) {
            return Err(Refused::Error);
        }
        check_range(self.device().size(), ByteOffset::new(at), ByteLen::new(len))?;
        Ok(at)
    }

    fn read(&self, request: &mut Request<'_>, sector: u64) -> Result<(), Refused> {
        let len = request.room;
        let at = self.locate(sector, len)?;
        let mut done = 0;
        while done < len {
            let take = request.portion(len - done);
            self.device().read_at(ByteOffset::new(at + done), &mut request.buffer[..take])?;
            request.give(done, take)?;
            done += take as u64;
        }
        Ok(())
    }

    fn write(&self, request: &mut Request<'_>, sector: u64) -> Result<(), Refused> {
        self.refuse_when_read_only()?;
        let len = length(request.chain.readable()) - HEADER_LEN;
        let at = self.locate(sector, len)?;
        let mut done = 0;
        while done < len {
            let take = request.portion(len - done);
            request.take(HEADER_LEN + done, take)?;
            self.device().write_at(ByteOffset::new(at + done), &request.buffer[..take])?;
            done += take as u64;
        }
        Ok(())
    }

    /// A discard or write-zeroes: ranges of sectors, all of which are looked at before any is cleared.
    fn clear(&self, request: &mut Request<'_>, discard: bool) -> Result<(), Refused> {
        let len = length(request.chain.readable()) - HEADER_LEN;
        let most = u64::from(MOST_RANGES) * RANGE_LEN as u64;
        if len == 0 || len > most || !len.is_multiple_of(RANGE_LEN as u64) {
            return Err(Refused::Error);
        }
        let take = request.portion(len);
        request.take(HEADER_LEN, take)?;
        let mut ranges = Vec::with_capacity(take / RANGE_LEN);
        for range in request.buffer[..take].chunks_exact(RANGE_LEN) {
            let (sector, sectors, flags) = (word(&range[..8]), word(&range[8..12]), &range[12..16]);
            let flags = u32::from_le_bytes([flags[0], flags[1], flags[2], flags[3]]);
            if flags & !UNMAP != 0 || (discard && flags != 0) {
                return Err(Refused::Unsupported);
            }
            if sectors > u64::from(MOST_CLEARED) {
                return Err(Refused::Error);
            }
            let len = sectors * SECTOR;
            ranges.push((self.locate(sector, len)?, len, flags & UNMAP == 0));
        }
        for (at, len, keep_allocated) in ranges {
            let (at, len) = (ByteOffset::new(at), ByteLen::new(len));
            if discard {
                self.device().discard(at, len)?;
            } else {
                self.device().write_zeroes(at, len, keep_allocated)?;
            }
        }
        Ok(())
    }
}

impl Done {
    /// What was written has been settled, or never will be.
    pub(crate) fn settle(&mut self, settled: bool) {
        if std::mem::take(&mut self.unsettled) && !settled {
            self.status = status(VIRTIO_BLK_S_IOERR);
            self.needs_flush = false;
        }
    }

    /// Tells the guest how it went, and returns how much was written for the used ring.
    pub(crate) fn tell(&self, memory: &Memory, flushed: bool) -> u32 {
        let Some(status_at) = self.status_at else { return 0 };
        let failed = self.needs_flush && !flushed;
        let status = if failed { status(VIRTIO_BLK_S_IOERR) } else { self.status };
        // The address was looked at when the chain was read, and the mapping is the same.
        let _ = memory.scatter(&[status_at], 0, &[status]);
        self.written.saturating_add(1)
    }
}

/// A request while it is carried out.
struct Request<'a> {
    chain: &'a Chain,
    memory: &'a Memory,
    buffer: &'a mut Vec<u8>,
    /// Bytes the device may write before the status.
    room: u64,
    done: &'a mut Done,
}

impl Request<'_> {
    fn header(&self) -> Option<Header> {
        let mut bytes = [0; 16];
        self.memory.gather(self.chain.readable(), 0, &mut bytes)?;
        let kind = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Some(Header { kind, sector: word(&bytes[8..]) })
    }

    /// How much of what is left is done at once; the buffer is as large then.
    fn portion(&mut self, left: u64) -> usize {
        let take = usize::try_from(left).unwrap_or(BUFFER_LEN).min(BUFFER_LEN);
        if self.buffer.len() < take {
            self.buffer.resize(take.next_power_of_two(), 0);
        }
        take
    }

    fn give(&mut self, skip: u64, len: usize) -> Result<(), Refused> {
        let given = self.memory.scatter(self.chain.writable(), skip, &self.buffer[..len]);
        given.ok_or(Refused::Error)?;
        // A request has 256 MiB at most.
        self.done.written += u32::try_from(len).unwrap_or(0);
        Ok(())
    }

    fn take(&mut self, skip: u64, len: usize) -> Result<(), Refused> {
        self.memory
            .gather(self.chain.readable(), skip, &mut self.buffer[..len])
            .ok_or(Refused::Error)
    }
}

/// A status as the guest reads it; all of them are below 256.
fn status(status: u32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

/// The last writable byte, where the status goes, and how many come before it.
fn split_status(writable: &[Piece]) -> Option<(Piece, u64)> {
    let last = writable.last()?;
    let at = vm_memory::GuestAddress(last.at.0 + u64::from(last.len) - 1);
    Some((Piece { at, len: 1 }, length(writable) - 1))
}

/// Up to eight bytes, the lowest first.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
