//! An upper above a stack, as a disk that can be written.

use std::io::{self, IoSlice, IoSliceMut, Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_block::{
    BlockDevice, BlockSource, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind, buffers_len,
    check_range,
};

use crate::compact::{Sealing, Written};
use crate::lsmt::{SECTOR, Segment};
use crate::stack::{extents, kind, pieces, to_index};
use crate::upper::{SPARSE_BLOCK, Store};
use crate::{LayerError, Stack, Upper};

/// What is gathered before it goes to the upper.
const GATHERED: u64 = 4 << 20;

/// An upper, and the layers it lies on if there are any. Parts of a sector can be written: the rest of
/// it is read first.
#[derive(Debug)]
pub struct Writable {
    upper: Upper,
    lower: Option<Stack>,
    size: ByteLen,
    /// Held while sectors are completed from what was there, so that no write in between is lost.
    writing: Mutex<()>,
    poisoned: AtomicBool,
}

impl Writable {
    /// Puts an upper on a stack. One without a size takes that of the stack.
    pub fn new(mut upper: Upper, lower: Option<Stack>) -> Result<Writable, LayerError> {
        if let (Some(parent), Some(stack)) = (upper.parent(), &lower)
            && let Some(top) = stack.layers().last().and_then(crate::Layer::uuid)
            && top != parent
        {
            return Err(LayerError::Refused(format!(
                "{} belongs on layer {parent} and would lie on {top}",
                upper.name
            )));
        }
        if upper.virtual_size() == 0 {
            let size = lower.as_ref().map_or(0, |lower| kiln_block::BlockSource::size(lower).get());
            if size == 0 {
                let rule =
                    format!("{} has no size and no layer below it to take one from", upper.name);
                return Err(LayerError::Refused(rule));
            }
            upper.inherit_size(size)?;
        }
        let size = ByteLen::new(upper.virtual_size());
        let (writing, poisoned) = (Mutex::new(()), AtomicBool::new(false));
        Ok(Writable { upper, lower, size, writing, poisoned })
    }

    /// The upper.
    pub fn upper(&self) -> &Upper {
        &self.upper
    }

    /// The layers below.
    pub fn lower(&self) -> Option<&Stack> {
        self.lower.as_ref()
    }

    /// The upper and the layers below, apart again; flushed first.
    pub fn into_parts(self) -> Result<(Upper, Option<Stack>), DeviceError> {
        self.flush()?;
        Ok((self.upper, self.lower))
    }

    /// Writes a sealed layer of what the upper holds.
    pub fn commit<W: Write + Seek>(
        &self,
        out: W,
        sealing: &Sealing,
    ) -> Result<Written<W>, LayerError> {
        let _writing = self.writing();
        self.upper.commit(out, sealing)
    }

    fn writing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upper_segments(&self, at: u64, len: u64) -> Vec<Segment> {
        let (start, end) = (at / SECTOR, (at + len).div_ceil(SECTOR));
        match &self.upper.store {
            Store::Log(log) => log.within(start, end),
            Store::Sparse(sparse) => sparse.within(start, end),
        }
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let len = out.len() as u64;
        for piece in pieces(at, len, self.upper_segments(at, len).into_iter()) {
            let range = &mut out[to_index(piece.at - at)..to_index(piece.at - at + piece.len)];
            match piece.segment {
                Some(segment) if segment.zeroed => range.fill(0),
                Some(segment) => self.read_upper(&segment, piece.at, range)?,
                None => self.read_lower(piece.at, range)?,
            }
        }
        Ok(())
    }

    fn read_upper(&self, segment: &Segment, at: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let stored = segment.stored_at * SECTOR + (at - segment.start * SECTOR);
        let data = match &self.upper.store {
            Store::Log(log) => log.data(),
            Store::Sparse(sparse) => sparse.data(),
        };
        let at = ByteOffset::new(at);
        let mut filled = 0;
        while filled < out.len() {
            match data.read_at(&mut out[filled..], stored + filled as u64) {
                // The last sector of a log that others wrote may be cut; they read zeros there.
                Ok(0) => {
                    out[filled..].fill(0);
                    break;
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(DeviceError::Io { act: "read", at, source }),
            }
        }
        Ok(())
    }

    /// Layers below may be smaller; behind them are zeros.
    fn read_lower(&self, at: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        match &self.lower {
            Some(lower) => {
                let end = kiln_block::BlockSource::size(lower).get();
                let there = to_index(end.saturating_sub(at)).min(out.len());
                let (head, tail) = out.split_at_mut(there);
                tail.fill(0);
                lower.read(at, head)
            }
            None => {
                out.fill(0);
                Ok(())
            }
        }
    }

    fn refuse_writes(&self) -> Result<(), DeviceError> {
        if self.poisoned.load(Ordering::Acquire) { Err(DeviceError::Poisoned) } else { Ok(()) }
    }

    /// What is written is completed to whole blocks of this size.
    fn unit(&self) -> u64 {
        match (&self.upper.store, &self.lower) {
            (Store::Sparse(_), Some(_)) => SPARSE_BLOCK,
            _ => SECTOR,
        }
    }

    /// Writes what `fill` puts into the range of a buffer, in blocks that are completed first.
    fn write_with(
        &self,
        at: u64,
        len: u64,
        mut fill: impl FnMut(&mut [u8]),
    ) -> Result<(), DeviceError> {
        let end = at + len;
        let mut from = at;
        while from < end {
            let start = from - from % self.unit();
            let to = end.min(start + GATHERED);
            // The disk's own end may lie within a block; a sector is never cut by it.
            let stop =
                to.next_multiple_of(self.unit()).min(self.size.get().next_multiple_of(SECTOR));
            let mut bytes = vec![0; to_index(stop - start)];
            self.complete(start, from, &mut bytes)?;
            self.complete_end(start, to, stop, &mut bytes)?;
            fill(&mut bytes[to_index(from - start)..to_index(to - start)]);
            let sector = start / SECTOR;
            match &self.upper.store {
                Store::Log(log) => log.write(sector, &bytes),
                Store::Sparse(sparse) => sparse.write(sector, &bytes),
            }
            .map_err(failed("write", from))?;
            from = to;
        }
        Ok(())
    }

    /// Fills what comes before a write in its first block.
    fn complete(&self, start: u64, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.read(start, &mut bytes[..to_index(from - start)])
    }

    /// Fills what comes behind a write in its last block.
    fn complete_end(
        &self,
        start: u64,
        to: u64,
        stop: u64,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        let there = self.size.get().min(stop).max(to);
        self.read(to, &mut bytes[to_index(to - start)..to_index(there - start)])
    }

    /// Makes a range read as zeros; `exactly` includes the parts of blocks at its edges.
    fn zero(&self, at: u64, len: u64, exactly: bool) -> Result<(), DeviceError> {
        let unit = self.unit();
        let end = at + len;
        let reaches_end = end == self.size.get();
        let first = at.next_multiple_of(unit).min(end);
        let last = if reaches_end { end } else { (end - end % unit).max(first) };
        if exactly && first > at {
            self.write_with(at, first - at, |bytes| bytes.fill(0))?;
        }
        if exactly && end > last {
            self.write_with(last, end - last, |bytes| bytes.fill(0))?;
        }
        if first >= last {
            return Ok(());
        }
        let (start, stop) = (first / SECTOR, last.div_ceil(SECTOR));
        match &self.upper.store {
            Store::Log(log) => log.zero(start, stop).map_err(failed("discard", at)),
            Store::Sparse(sparse) => {
                for (from, len, below) in self.lower_kinds(first, last - first)? {
                    if below == ExtentKind::Data {
                        self.write_with(from, len, |bytes| bytes.fill(0))?;
                    } else {
                        // Only whole blocks below show nothing, so a hole does not uncover its neighbours.
                        let stop = (from + len).div_ceil(SECTOR);
                        sparse.punch(from / SECTOR, stop).map_err(failed("discard", at))?;
                    }
                }
                Ok(())
            }
        }
    }

    /// What the layers below hold, in blocks: one with any data is data.
    fn lower_kinds(&self, at: u64, len: u64) -> Result<Vec<(u64, u64, ExtentKind)>, DeviceError> {
        let Some(lower) = &self.lower else { return Ok(vec![(at, len, ExtentKind::Hole)]) };
        let end = at + len;
        let size = kiln_block::BlockSource::size(lower).get().min(end);
        let mut kinds = Vec::new();
        let mut from = at;
        if at < size {
            let (start, len) = (ByteOffset::new(at), ByteLen::new(size - at));
            for extent in BlockSource::extents(lower, start, len)? {
                if extent.kind != ExtentKind::Data {
                    continue;
                }
                let start = extent.at.get();
                let start = (start - start % SPARSE_BLOCK).max(from);
                let stop = extent.at.get() + extent.len.get();
                let stop = stop.next_multiple_of(SPARSE_BLOCK).min(end);
                if start > from {
                    kinds.push((from, start - from, ExtentKind::Hole));
                }
                if stop > start {
                    kinds.push((start, stop - start, ExtentKind::Data));
                }
                from = stop.max(from);
            }
        }
        if from < end {
            kinds.push((from, end - from, ExtentKind::Hole));
        }
        Ok(kinds)
    }
}

fn failed(act: &'static str, at: u64) -> impl Fn(io::Error) -> DeviceError {
    let at = ByteOffset::new(at);
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DeviceError::NoSpace { at },
        _ => DeviceError::Io { act, at, source },
    }
}

impl BlockDevice for Writable {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        check_range(self.size, at, buffers_len(buffers))?;
        let mut at = at.get();
        for buffer in buffers {
            self.read(at, buffer)?;
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        check_range(self.size, at, buffers_len(buffers))?;
        self.refuse_writes()?;
        let _writing = self.writing();
        let mut rest = buffers.iter().flat_map(|buffer| buffer.chunks(65536)).peekable();
        let mut taken = 0;
        self.write_with(at.get(), buffers_len(buffers).get(), |out| {
            let mut filled = 0;
            while let Some(chunk) = rest.peek().filter(|_| filled < out.len()) {
                let take = (chunk.len() - taken).min(out.len() - filled);
                out[filled..filled + take].copy_from_slice(&chunk[taken..taken + take]);
                (filled, taken) = (filled + take, taken + take);
                if taken == chunk.len() {
                    rest.next();
                    taken = 0;
                }
            }
        })
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        check_range(self.size, at, len)?;
        self.refuse_writes()?;
        let _writing = self.writing();
        self.zero(at.get(), len.get(), false)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        _keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        check_range(self.size, at, len)?;
        self.refuse_writes()?;
        let _writing = self.writing();
        self.zero(at.get(), len.get(), true)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.refuse_writes()?;
        self.upper.flush().inspect_err(|_| self.poisoned.store(true, Ordering::Release))
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        check_range(self.size, at, len)?;
        let mut found = Vec::new();
        let upper = self.upper_segments(at.get(), len.get());
        for piece in pieces(at.get(), len.get(), upper.into_iter()) {
            if piece.segment.is_some() {
                found.push((piece.at, piece.len, kind(piece.segment)));
                continue;
            }
            let Some(lower) = &self.lower else {
                found.push((piece.at, piece.len, ExtentKind::Hole));
                continue;
            };
            let segments = lower.segments_from(piece.at / SECTOR).iter().copied();
            let below = pieces(piece.at, piece.len, segments);
            found.extend(below.map(|piece| (piece.at, piece.len, kind(piece.segment))));
        }
        Ok(extents(found.into_iter()))
    }
}
