//! What disks hold: copied without holes and zeros, and compared.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::mpsc;

use kiln_block::{
    BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind, Extents, is_zero,
};

use crate::error::{Refusal, StoreError, Why};
use crate::request::Stop;

/// Disks of a pool are made of whole ones.
pub const BLOCK: u64 = 4096;
/// How much is read at once.
const CHUNK: u64 = 2 << 20;
/// How many pieces are read ahead of what is written.
const AHEAD: usize = 2;
/// How much of a device is asked for its extents at once.
const WINDOW: u64 = 1 << 30;

/// Why the contents were not gone through to the end.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// One of the two failed.
    #[error("cannot {act} {name}")]
    Device {
        /// `read`, `write`.
        act: &'static str,
        /// Which.
        name: String,
        /// The cause.
        source: DeviceError,
    },
    /// The file that is written to failed.
    #[error("cannot write {name}")]
    Write {
        /// Which.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// Somebody wants us to end.
    #[error("interrupted")]
    Interrupted,
}

impl From<ContentsError> for StoreError {
    fn from(error: ContentsError) -> StoreError {
        match error {
            ContentsError::Device { act, name, source } => {
                StoreError::Refused(Refusal::device(act, &name, &source))
            }
            ContentsError::Write { .. } => StoreError::Refused(Refusal::of(Why::File, &error)),
            ContentsError::Interrupted => {
                StoreError::Refused(Refusal::new(Why::Stopped, error.to_string()))
            }
        }
    }
}

/// A device and what to call it.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a device has no Debug")]
pub struct Named<'a> {
    /// The device.
    pub device: &'a dyn BlockDevice,
    /// What errors call it.
    pub name: &'a str,
}

impl Named<'_> {
    fn failed(&self, act: &'static str) -> impl FnOnce(DeviceError) -> ContentsError {
        let name = self.name.to_owned();
        move |source| ContentsError::Device { act, name, source }
    }

    fn size(&self) -> u64 {
        self.device.size().get()
    }

    /// Ranges of whole blocks, at most a chunk each, outside of which everything is zero.
    fn data(&self, window: u64, end: u64) -> Result<Vec<(u64, u64)>, ContentsError> {
        let end = end.min(self.size());
        let mut found: Vec<(u64, u64)> = Vec::new();
        if window >= end {
            return Ok(found);
        }
        let len = ByteLen::new(end - window);
        let extents = self.device.extents(ByteOffset::new(window), len);
        let mut done = window;
        for extent in extents.map_err(self.failed("read"))? {
            if extent.kind != ExtentKind::Data {
                continue;
            }
            let mut at = done.max(extent.at.get() / BLOCK * BLOCK);
            let to = (extent.at.get() + extent.len.get()).next_multiple_of(BLOCK);
            while at < to {
                let next = ((at / CHUNK + 1) * CHUNK).min(to);
                found.push((at, next));
                at = next;
            }
            done = done.max(to);
        }
        Ok(found)
    }

    /// Fills the buffer; what lies behind the end is zero.
    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), ContentsError> {
        let there = usize::try_from(self.size().saturating_sub(at)).unwrap_or(usize::MAX);
        let (there, behind) = buffer.split_at_mut(there.min(buffer.len()));
        behind.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        self.device.read_at(ByteOffset::new(at), there).map_err(self.failed("read"))
    }
}

impl Named<'_> {
    fn write_runs(&self, piece: &Piece, written: &mut u64) -> Result<(), ContentsError> {
        for run in &piece.runs {
            let at = piece.at + run.start as u64;
            // A file that is exported to may end within a block.
            let left = usize::try_from(self.size().saturating_sub(at)).unwrap_or(usize::MAX);
            let bytes = &piece.bytes[run.clone()];
            let bytes = &bytes[..bytes.len().min(left)];
            let put = self.device.write_at(ByteOffset::new(at), bytes);
            put.map_err(self.failed("write"))?;
            *written += bytes.len() as u64;
        }
        Ok(())
    }
}

fn buffer(range: (u64, u64)) -> Vec<u8> {
    vec![0; usize::try_from(range.1 - range.0).unwrap_or(0)]
}

/// What was read of a device: bytes, and those runs of whole blocks in them that are not zeros.
#[derive(Default)]
struct Piece {
    at: u64,
    bytes: Vec<u8>,
    runs: Vec<Range<usize>>,
    /// All before this is behind.
    seen: u64,
}

impl Piece {
    fn find_runs(&mut self) {
        let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        self.runs.clear();
        for (start, bytes) in (0..).step_by(block).zip(self.bytes.chunks(block)) {
            if is_zero(bytes) {
                continue;
            }
            let end = start + bytes.len();
            match self.runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => self.runs.push(start..end),
            }
        }
    }
}

/// Reads all that a device holds, piece by piece, until nobody takes them. Buffers that come back are used again.
fn read_pieces(
    from: Named<'_>,
    pieces: &mpsc::SyncSender<Piece>,
    empty: &mpsc::Receiver<Piece>,
) -> Result<(), ContentsError> {
    for window in (0..from.size()).step_by(usize::try_from(WINDOW).unwrap_or(usize::MAX)) {
        let window_end = (window + WINDOW).min(from.size());
        for range in from.data(window, window + WINDOW)? {
            let mut piece = empty.try_recv().unwrap_or_default();
            piece.at = range.0;
            piece.bytes.resize(usize::try_from(range.1 - range.0).unwrap_or(0), 0);
            from.read(range.0, &mut piece.bytes)?;
            piece.find_runs();
            piece.seen = range.1.min(from.size());
            if pieces.send(piece).is_err() {
                return Ok(());
            }
        }
        let done = Piece { seen: window_end, ..Piece::default() };
        if pieces.send(done).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Copies onto a device that reads as zeros, while the next pieces are read; returns how many bytes were written.
/// `seen` hears how far it is.
pub fn copy(
    from: Named<'_>,
    to: Named<'_>,
    stop: &Stop,
    seen: &mut dyn FnMut(u64),
) -> Result<u64, ContentsError> {
    let mut written = 0;
    std::thread::scope(|scope| {
        let (pieces, full) = mpsc::sync_channel::<Piece>(AHEAD);
        let (back, empty) = mpsc::channel();
        let reader = scope.spawn(move || read_pieces(from, &pieces, &empty));
        let mut outcome = Ok(());
        for piece in full {
            if stop.is_stopped() {
                outcome = Err(ContentsError::Interrupted);
                break;
            }
            outcome = to.write_runs(&piece, &mut written);
            if outcome.is_err() {
                break;
            }
            seen(piece.seen);
            // The reader may be done already.
            let _ = back.send(piece);
        }
        // Nobody takes what the reader has left, so it ends.
        match reader.join() {
            Ok(read) => outcome.and(read),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    to.device.flush().map_err(to.failed("write"))?;
    Ok(written)
}

/// Writes all bytes of a device, zeros too, to what can only be written front to back; returns how many.
pub fn pour(
    from: Named<'_>,
    (out, name): (&mut dyn Write, &str),
    stop: &Stop,
    seen: &mut dyn FnMut(u64),
) -> Result<u64, ContentsError> {
    let failed = |source| ContentsError::Write { name: name.to_owned(), source };
    let mut bytes = Vec::new();
    for at in (0..from.size()).step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX)) {
        if stop.is_stopped() {
            return Err(ContentsError::Interrupted);
        }
        let len = CHUNK.min(from.size() - at);
        bytes.resize(usize::try_from(len).unwrap_or(0), 0);
        from.read(at, &mut bytes)?;
        out.write_all(&bytes).map_err(failed)?;
        seen(at + len);
    }
    out.flush().map_err(failed)?;
    Ok(from.size())
}

/// The blocks in which the second differs from the first, and what it has there. Where one is shorter, it counts as
/// zeros.
pub fn differences(
    old: Named<'_>,
    new: Named<'_>,
    stop: &Stop,
) -> Result<Vec<Extent>, ContentsError> {
    let end = old.size().max(new.size());
    let mut found = Extents::default();
    for window in (0..end).step_by(usize::try_from(WINDOW).unwrap_or(usize::MAX)) {
        let mut ranges = old.data(window, window + WINDOW)?;
        ranges.extend(new.data(window, window + WINDOW)?);
        ranges.sort_unstable();
        let mut done = window;
        for (from, to) in ranges {
            if stop.is_stopped() {
                return Err(ContentsError::Interrupted);
            }
            let range = (from.max(done), to.max(done));
            if range.0 == range.1 {
                continue;
            }
            done = range.1;
            let (mut a, mut b) = (buffer(range), buffer(range));
            old.read(range.0, &mut a)?;
            new.read(range.0, &mut b)?;
            let blocks = a.chunks(4096).zip(b.chunks(4096));
            for (at, (a, b)) in (range.0..).step_by(4096).zip(blocks) {
                if a == b {
                    continue;
                }
                let zero = is_zero(b);
                let kind = if zero { ExtentKind::Hole } else { ExtentKind::Data };
                found.add(at, BLOCK, kind);
            }
        }
    }
    Ok(found.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_block::MemoryDevice;

    fn named(device: &MemoryDevice) -> Named<'_> {
        Named { device, name: "memory" }
    }

    #[test]
    fn a_copy_takes_what_is_not_zero_and_differs_in_nothing() {
        let from = MemoryDevice::new(ByteLen::new(5 * CHUNK + 4096));
        let to = MemoryDevice::new(from.size());
        for at in [0, 8192, CHUNK - 4096, CHUNK, 3 * CHUNK + 4096 * 7 + 100, 5 * CHUNK + 4095] {
            from.write_at(ByteOffset::new(at), b"x").unwrap();
        }
        let stop = Stop::new();
        let mut last = 0;
        let written = copy(named(&from), named(&to), &stop, &mut |at| last = at).unwrap();
        assert_eq!((written, last), (6 * BLOCK, from.size().get()));
        assert_eq!(differences(named(&from), named(&to), &stop).unwrap(), []);
    }

    #[test]
    fn differences_are_whole_blocks_and_say_what_the_second_has_there() {
        let old = MemoryDevice::new(ByteLen::new(16 * BLOCK));
        let new = MemoryDevice::new(ByteLen::new(20 * BLOCK));
        old.write_at(ByteOffset::new(BLOCK + 5), b"gone").unwrap();
        new.write_at(ByteOffset::new(4 * BLOCK - 1), b"ab").unwrap();
        new.write_at(ByteOffset::new(18 * BLOCK), b"behind").unwrap();
        let found: Vec<_> = differences(named(&old), named(&new), &Stop::new())
            .unwrap()
            .iter()
            .map(|extent| (extent.at.get() / BLOCK, extent.len.get() / BLOCK, extent.kind))
            .collect();
        let (data, hole) = (ExtentKind::Data, ExtentKind::Hole);
        assert_eq!(found, [(1, 1, hole), (3, 2, data), (18, 1, data)]);
    }

    #[test]
    fn who_wants_to_end_is_heard() {
        let disk = MemoryDevice::new(ByteLen::mib(2));
        disk.write_at(ByteOffset::ZERO, b"x").unwrap();
        let stop = Stop::new();
        stop.stop();
        let copied = copy(named(&disk), named(&disk), &stop, &mut |_| {});
        assert!(matches!(copied, Err(ContentsError::Interrupted)));
    }
}
