//! [`Disk`]: an open disk or snapshot, as every frontend sees it.
//!
//! Data is never overwritten: a write goes to fresh blocks, and only then the map changes, with the leaf locked
//! for as long as that takes. A read looks at the leaf, reads with no lock held, and believes the
//! bytes only if their checksum is the map's; where it is not, the block may have been replaced while it was
//! read, so the map is looked at once more.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;

use kiln_block::{
    BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind, Extents, buffers_len,
    check_range,
};

use crate::PoolError;
use crate::apply::Apply;
use crate::base::Shown;
use crate::format::{BLOCK, BLOCK_LEN, index};
use crate::head::Head;
use crate::node::{FANOUT, ZEROS};
use crate::opened::Opened;
use crate::space::{ALIGNED, Run};
use crate::sync::PoisonError;
use crate::sync::atomic::Ordering;

/// Blocks a disk takes ahead of its writes: 1 MiB.
const LEASE: u64 = 256;

/// A disk that is flushed more often than this for each [`LEASE`] waits for its flushes.
const OFTEN: u64 = 8;

/// An open disk, or an open snapshot, which can only be read.
#[derive(Debug)]
pub struct Disk {
    pub(crate) core: Arc<Opened>,
    pub(crate) head: Arc<Head>,
    /// One more user of the disk.
    pub(crate) _user: Arc<()>,
}

/// Bytes of a range of a row of buffers.
pub(crate) fn slices_mut<'a>(
    buffers: &'a mut [IoSliceMut<'_>],
    range: Range<usize>,
) -> Vec<IoSliceMut<'a>> {
    let mut start = 0;
    let mut found = Vec::new();
    for buffer in buffers {
        let len = buffer.len();
        let (from, to) = (range.start.max(start), range.end.min(start + len));
        if from < to {
            found.push(IoSliceMut::new(&mut buffer[from - start..to - start]));
        }
        start += len;
    }
    found
}

fn slices<'a>(buffers: &'a [IoSlice<'_>], range: Range<usize>) -> Vec<IoSlice<'a>> {
    let mut start = 0;
    let mut found = Vec::new();
    for buffer in buffers {
        let (from, to) = (range.start.max(start), range.end.min(start + buffer.len()));
        if from < to {
            found.push(IoSlice::new(&buffer[from - start..to - start]));
        }
        start += buffer.len();
    }
    found
}

/// The part of extents that lies in a range of bytes.
fn cut(extents: Vec<Extent>, range: Range<u64>) -> Vec<Extent> {
    let mut found = Extents::default();
    for extent in extents {
        let start = extent.at.get().max(range.start);
        let end = (extent.at.get() + extent.len.get()).min(range.end);
        found.add(start, end.saturating_sub(start), extent.kind);
    }
    found.into_vec()
}

/// A run of a disk that lies in the pool in a row, or nowhere.
struct Stored {
    /// `None`: the map says nothing; [`ZEROS`]: zeros.
    block: Option<u64>,
    count: usize,
}

impl Disk {
    /// What the pool knows about the first blocks of `lba..`, at most as many as `crcs` has room for their checksums.
    fn look_up(&self, lba: u64, crcs: &mut [u32]) -> Result<Stored, PoolError> {
        let leaf = self.core.leaf(&self.head, lba / FANOUT)?;
        let map = leaf.read();
        let first = index(lba % FANOUT);
        let (block, count) = map.stretch(first, crcs.len());
        if block.is_some() {
            crcs[..count].copy_from_slice(&map.crcs()[first..first + count]);
        }
        Ok(Stored { block, count })
    }

    /// Whole blocks; `buffers` are whole blocks each.
    pub(crate) fn read_blocks(
        &self,
        mut lba: u64,
        count: usize,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        // Most requests are short, and room for a whole leaf would have to be cleared first.
        let (mut few, mut many);
        let crcs: &mut [u32] = if count <= 16 {
            few = [0; 16];
            &mut few
        } else {
            many = [0; 256];
            &mut many
        };
        let shown = self.shown();
        let mut done = 0;
        while done < count {
            let at = ByteOffset::new(lba * BLOCK_LEN);
            let most = crcs.len().min(count - done);
            let stored = self.look_up(lba, &mut crcs[..most]).map_err(|e| e.on_disk(at))?;
            let bytes = done * BLOCK..(done + stored.count) * BLOCK;
            // One buffer is what a frontend nearly always has.
            if let [buffer] = &mut *buffers {
                let mut slices = [IoSliceMut::new(&mut buffer[bytes])];
                self.read_run((shown, lba), &stored, crcs, &mut slices)?;
            } else {
                self.read_run((shown, lba), &stored, crcs, &mut slices_mut(buffers, bytes))?;
            }
            done += stored.count;
            lba += stored.count as u64;
        }
        Ok(())
    }

    fn read_run(
        &self,
        (shown, lba): (Shown, u64),
        stored: &Stored,
        crcs: &[u32],
        slices: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let block = match stored.block {
            None if !shown.is_nothing() => return self.read_unmapped(shown, lba, slices),
            None | Some(ZEROS) => {
                slices.iter_mut().for_each(|slice| slice.fill(0));
                return Ok(());
            }
            Some(block) => block,
        };
        let end = block + stored.count as u64 - 1;
        if self.core.space.holds(block) && self.core.space.holds(end) {
            let at = ByteOffset::new(block * BLOCK_LEN);
            self.core.device.read_vectored_at(at, slices)?;
        }
        let chunks = slices.iter_mut().flat_map(|slice| slice.chunks_exact_mut(BLOCK));
        for ((chunk, crc), lba) in chunks.zip(crcs).zip(lba..) {
            if self.core.sums.data(lba, chunk) != *crc {
                self.read_again(lba, chunk)?;
            }
        }
        Ok(())
    }

    /// The bytes were not what the map said. Unless it says something else by now, they are damaged.
    fn read_again(&self, lba: u64, chunk: &mut [u8]) -> Result<(), DeviceError> {
        let place = ByteOffset::new(lba * BLOCK_LEN);
        let mut crcs = [0];
        let mut before = None;
        loop {
            let shown = self.shown();
            let stored = self.look_up(lba, &mut crcs).map_err(|error| error.on_disk(place))?;
            let block = match stored.block {
                None => return self.read_unmapped(shown, lba, &mut [IoSliceMut::new(chunk)]),
                Some(ZEROS) => {
                    chunk.fill(0);
                    return Ok(());
                }
                Some(block) => block,
            };
            if before == Some((block, crcs[0])) {
                let found = format!(
                    "disk {:?}, block {lba} (block {block} of the pool) does not have the checksum {:08x}",
                    self.head.name(),
                    crcs[0]
                );
                return Err(DeviceError::Damaged { at: place, found });
            }
            before = Some((block, crcs[0]));
            if self.core.space.holds(block) {
                self.core.device.read_at(ByteOffset::new(block * BLOCK_LEN), chunk)?;
                if self.core.sums.data(lba, chunk) == crcs[0] {
                    return Ok(());
                }
            }
        }
    }

    fn refuse_writes(&self) -> Result<(), DeviceError> {
        if self.head.read_only {
            return Err(DeviceError::ReadOnly);
        }
        self.core.refuse_if_poisoned().map_err(|error| error.on_disk(ByteOffset::ZERO))
    }

    /// Fresh blocks for a write, at most `want`.
    pub(crate) fn fresh_blocks(&self, want: u64) -> Result<Run, PoolError> {
        loop {
            let mut lease = self.head.lease.lock().unwrap_or_else(PoisonError::into_inner);
            let skipped = (lease.start.next_multiple_of(ALIGNED) - lease.start).min(lease.len);
            // What a short request left would make every long one after it unaligned.
            if want >= ALIGNED && skipped > 0 && self.core.space.available() > 4 * LEASE {
                self.core.space.give_back(Run { start: lease.start, len: skipped });
                lease.start += skipped;
                lease.len -= skipped;
            }
            if lease.len == 0
                && let Some((run, unwritten)) = self.core.space.take(LEASE.max(want))
            {
                let often = self.head.flushes.swap(0, Ordering::Relaxed) >= OFTEN;
                if often && unwritten {
                    self.write_zeros(run).inspect_err(|_| self.core.space.give_back(run))?;
                }
                *lease = run;
            }
            if lease.len > 0 {
                let run = Run { start: lease.start, len: lease.len.min(want) };
                lease.start += run.len;
                lease.len -= run.len;
                return Ok(run);
            }
            drop(lease);
            // What it finds another may take first.
            if !self.core.scrape()? {
                return Err(PoolError::NoSpace);
            }
        }
    }

    /// Writes to blocks that are handed out and not used yet. The filesystem below has to note of a place that it was
    /// written to for the first time, which makes a sync twice as long: better once for many blocks.
    fn write_zeros(&self, run: Run) -> Result<(), PoolError> {
        let zeros = [IoSlice::new(&[0; 16 * BLOCK]); 16];
        let mut done = 0;
        while done < run.len {
            let count = (run.len - done).min(256);
            let at = ByteOffset::new((run.start + done) * BLOCK_LEN);
            self.core
                .device
                .write_vectored_at(at, &slices(&zeros, 0..index(count) * BLOCK))
                .map_err(|source| PoolError::Device { act: "write", source })?;
            done += count;
        }
        self.core.counters.data_written.add(run.len * BLOCK_LEN);
        Ok(())
    }

    /// Whole blocks; `buffers` are whole blocks each.
    fn write_blocks(
        &self,
        mut lba: u64,
        count: usize,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        let mut done = 0;
        while done < count {
            let at = ByteOffset::new(lba * BLOCK_LEN);
            let within = index(FANOUT - lba % FANOUT).min(count - done);
            self.core.make_room().map_err(|error| error.on_disk(at))?;
            let run = self.fresh_blocks(within as u64).map_err(|error| error.on_disk(at))?;
            let bytes = done * BLOCK..(done + index(run.len)) * BLOCK;
            let (mut few, mut many);
            let crcs: &mut [u32] = if run.len <= 16 {
                few = [0; 16];
                &mut few[..index(run.len)]
            } else {
                many = [0; 256];
                &mut many[..index(run.len)]
            };
            let written = if let [buffer] = buffers {
                self.write_run(lba, run, &[IoSlice::new(&buffer[bytes])], crcs)
            } else {
                self.write_run(lba, run, &slices(buffers, bytes), crcs)
            };
            let applied = written.and_then(|()| {
                let change = Apply::Map { block: run.start, crcs };
                self.core.apply(&self.head, lba, change).map_err(|error| error.on_disk(at))
            });
            if applied.is_err() {
                self.core.space.give_back(run);
            }
            applied?;
            done += index(run.len);
            lba += run.len;
        }
        Ok(())
    }

    pub(crate) fn write_run(
        &self,
        lba: u64,
        run: Run,
        slices: &[IoSlice<'_>],
        crcs: &mut [u32],
    ) -> Result<(), DeviceError> {
        let chunks = slices.iter().flat_map(|slice| slice.chunks_exact(BLOCK));
        for ((chunk, crc), lba) in chunks.zip(crcs).zip(lba..) {
            *crc = self.core.sums.data(lba, chunk);
        }
        self.core.counters.data_written.add(run.len * BLOCK_LEN);
        self.core.device.write_vectored_at(ByteOffset::new(run.start * BLOCK_LEN), slices)
    }

    /// Part of a block: the rest keeps what it is, whoever else writes to the block meanwhile.
    fn write_part(&self, at: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let (lba, within) = (at / BLOCK_LEN, index(at % BLOCK_LEN));
        let place = ByteOffset::new(at);
        let fail = |error: PoolError| error.on_disk(place);
        self.core.make_room().map_err(fail)?;
        let run = self.fresh_blocks(1).map_err(fail)?;
        let mut whole = vec![0; BLOCK];
        loop {
            let was = self.core.entry(&self.head, lba).map_err(fail)?;
            let attempt = self.read_blocks(lba, 1, &mut [IoSliceMut::new(&mut whole)]);
            let attempt = attempt.and_then(|()| {
                whole[within..within + bytes.len()].copy_from_slice(bytes);
                let mut crcs = [0];
                self.write_run(lba, run, &[IoSlice::new(&whole)], &mut crcs)?;
                let change = Apply::Replace { block: run.start, crcs: &crcs, was };
                self.core.try_apply(&self.head, lba, change).map_err(fail)
            });
            match attempt {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    self.core.space.give_back(run);
                    return Err(error);
                }
            }
        }
    }

    /// Makes whole blocks read as zeros.
    pub(crate) fn clear_blocks(&self, blocks: Range<u64>) -> Result<(), PoolError> {
        let shown = self.shown();
        let hidden = blocks.start..blocks.end.min(shown.blocks);
        let mut lba = blocks.start.max(hidden.end);
        self.hide_blocks(shown, hidden)?;
        while lba < blocks.end {
            let Some(leaf) = self.core.next_leaf(&self.head, lba / FANOUT)? else { break };
            lba = lba.max(leaf * FANOUT);
            if lba >= blocks.end {
                break;
            }
            let count = (FANOUT - lba % FANOUT).min(blocks.end - lba);
            self.core.make_room()?;
            self.core.apply(&self.head, lba, Apply::Clear { count })?;
            lba += count;
        }
        Ok(())
    }

    fn clear(&self, at: ByteOffset, len: ByteLen, exact: bool) -> Result<(), DeviceError> {
        check_range(self.size(), at, len)?;
        self.refuse_writes()?;
        let (start, end) = (at.get(), at.get() + len.get());
        let (first, last) = (start.div_ceil(BLOCK_LEN), end / BLOCK_LEN);
        if first < last {
            self.clear_blocks(first..last).map_err(|error| error.on_disk(at))?;
        }
        if exact && first * BLOCK_LEN > start {
            let part = index((first * BLOCK_LEN).min(end) - start);
            self.write_part(start, &[0; BLOCK][..part])?;
        }
        if exact && last >= first && last * BLOCK_LEN < end {
            self.write_part(last * BLOCK_LEN, &[0; BLOCK][..index(end - last * BLOCK_LEN)])?;
        }
        Ok(())
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> ByteLen {
        ByteLen::new(self.head.size.load(Ordering::Acquire))
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let len = buffers_len(buffers);
        check_range(self.size(), at, len)?;
        let whole = buffers.iter().all(|buffer| buffer.len().is_multiple_of(BLOCK));
        if whole && at.is_aligned(BLOCK_LEN) {
            return self.read_blocks(at.get() / BLOCK_LEN, index(len.get() / BLOCK_LEN), buffers);
        }
        let (first, end) = (at.get() / BLOCK_LEN, (at.get() + len.get()).div_ceil(BLOCK_LEN));
        let mut bytes = vec![0; index(end - first) * BLOCK];
        self.read_blocks(first, index(end - first), &mut [IoSliceMut::new(&mut bytes)])?;
        let mut from = index(at.get() - first * BLOCK_LEN);
        for buffer in buffers {
            let len = buffer.len();
            buffer.copy_from_slice(&bytes[from..from + len]);
            from += len;
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        let len = buffers_len(buffers);
        check_range(self.size(), at, len)?;
        self.refuse_writes()?;
        let whole = buffers.iter().all(|buffer| buffer.len().is_multiple_of(BLOCK));
        if whole && at.is_aligned(BLOCK_LEN) {
            return self.write_blocks(at.get() / BLOCK_LEN, index(len.get() / BLOCK_LEN), buffers);
        }
        let bytes = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect::<Vec<u8>>();
        let mut from = 0;
        while from < bytes.len() {
            let position = at.get() + from as u64;
            let to_border = index(BLOCK_LEN - position % BLOCK_LEN);
            let left = bytes.len() - from;
            if to_border < BLOCK || left < BLOCK {
                let take = to_border.min(left);
                self.write_part(position, &bytes[from..from + take])?;
                from += take;
            } else {
                let count = left / BLOCK;
                let body = IoSlice::new(&bytes[from..from + count * BLOCK]);
                self.write_blocks(position / BLOCK_LEN, count, &[body])?;
                from += count * BLOCK;
            }
        }
        Ok(())
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.clear(at, len, false)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        _keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        self.clear(at, len, true)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.head.read_only {
            return Ok(());
        }
        if self.head.throw_away {
            return self.core.refuse_if_poisoned().map_err(|e| e.on_disk(ByteOffset::ZERO));
        }
        self.head.flushes.fetch_add(1, Ordering::Relaxed);
        self.core.flush().map_err(|error| error.on_disk(ByteOffset::ZERO))
    }

    fn settle(&self) -> Result<(), DeviceError> {
        if self.head.read_only {
            return Ok(());
        }
        self.core.settle().map_err(|error| error.on_disk(ByteOffset::ZERO))
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        check_range(self.size(), at, len)?;
        let fail = |error: PoolError| error.on_disk(at);
        let end = at.get() + len.get();
        let shown = self.shown();
        let mut found = Extents::default();
        let mut lba = at.get() / BLOCK_LEN;
        let last = end.div_ceil(BLOCK_LEN);
        // Where the run of blocks begins that the map says nothing about.
        let mut silent = lba;
        while lba < last {
            let next = self.core.next_leaf(&self.head, lba / FANOUT).map_err(fail)?;
            lba = next.map_or(last, |leaf| leaf * FANOUT).max(lba);
            let border = (lba / FANOUT + 1) * FANOUT;
            while lba < border.min(last) {
                let entry = self.core.entry(&self.head, lba).map_err(fail)?;
                if !entry.is_hole() {
                    self.unmapped_extents(shown, silent..lba, &mut found);
                    let kind = if entry.is_zeros() { ExtentKind::Hole } else { ExtentKind::Data };
                    found.add(lba * BLOCK_LEN, BLOCK_LEN, kind);
                    silent = lba + 1;
                }
                lba += 1;
            }
        }
        self.unmapped_extents(shown, silent..last, &mut found);
        Ok(cut(found.into_vec(), at.get()..end))
    }

    fn is_read_only(&self) -> bool {
        self.head.read_only
    }
}
