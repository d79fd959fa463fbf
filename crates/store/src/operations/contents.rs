//! What disks hold: copied without holes and zeros, and compared.

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind};

use crate::error::{Refusal, StoreError, Why};
use crate::request::Stop;

/// Disks of a pool are made of whole ones.
pub const BLOCK: u64 = 4096;
/// How much is read at once.
const CHUNK: u64 = 1 << 20;
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

fn buffer(range: (u64, u64)) -> Vec<u8> {
    vec![0; usize::try_from(range.1 - range.0).unwrap_or(0)]
}

/// Copies onto a device that reads as zeros; returns how many bytes were written. `seen` hears how far it is.
pub fn copy(
    from: Named<'_>,
    to: Named<'_>,
    stop: &Stop,
    seen: &mut dyn FnMut(u64),
) -> Result<u64, ContentsError> {
    let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
    let mut written = 0;
    for window in (0..from.size()).step_by(usize::try_from(WINDOW).unwrap_or(usize::MAX)) {
        for range in from.data(window, window + WINDOW)? {
            if stop.is_stopped() {
                return Err(ContentsError::Interrupted);
            }
            let mut bytes = buffer(range);
            from.read(range.0, &mut bytes)?;
            let mut at = range.0;
            let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
            let blocks: Vec<&[u8]> = bytes.chunks(block).collect();
            for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
                let len: usize = run.iter().map(|block| block.len()).sum();
                if !is_zero(run[0]) {
                    let start = usize::try_from(at - range.0).unwrap_or(usize::MAX);
                    // A file that is exported to may end within a block.
                    let left = usize::try_from(to.size().saturating_sub(at)).unwrap_or(usize::MAX);
                    let run = &bytes[start..start + len.min(left)];
                    let put = to.device.write_at(ByteOffset::new(at), run);
                    put.map_err(to.failed("write"))?;
                    written += run.len() as u64;
                }
                at += len as u64;
            }
            seen(range.1.min(from.size()));
        }
        seen((window + WINDOW).min(from.size()));
    }
    to.device.flush().map_err(to.failed("write"))?;
    Ok(written)
}

/// The blocks in which the second differs from the first, and what it has there. Where one is shorter, it counts as
/// zeros.
pub fn differences(
    old: Named<'_>,
    new: Named<'_>,
    stop: &Stop,
) -> Result<Vec<Extent>, ContentsError> {
    let end = old.size().max(new.size());
    let mut found: Vec<Extent> = Vec::new();
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
                let zero = b.iter().all(|byte| *byte == 0);
                let kind = if zero { ExtentKind::Hole } else { ExtentKind::Data };
                let (at, len) = (ByteOffset::new(at), ByteLen::new(BLOCK));
                match found.last_mut() {
                    Some(last)
                        if last.kind == kind && last.at.checked_add(last.len) == Some(at) =>
                    {
                        last.len = ByteLen::new(last.len.get() + BLOCK);
                    }
                    _ => found.push(Extent { at, len, kind }),
                }
            }
        }
    }
    Ok(found)
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
