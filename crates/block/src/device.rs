//! [`BlockDevice`]: a disk as every frontend sees it.

use std::io::{IoSlice, IoSliceMut};

use crate::{ByteLen, ByteOffset};

/// A disk, shared between queues and threads, hence `&self`.
///
/// The contract, which the conformance suite (`testing`) holds every implementation to:
///
/// - Bytes never written read as zeros.
/// - Overlapping calls may land in any order; calls that do not overlap do not disturb each other.
/// - The write cache is volatile: a write, discard or write-zeroes that returned before a
///   [`flush`](BlockDevice::flush) began is durable once that flush has returned. Nothing else is promised.
/// - After a power cut every sector holds a value written since the last flush, or the flushed one;
///   never another disk's data.
/// - A flush that failed poisons the device: every later write and flush fails with
///   [`DeviceError::Poisoned`].
/// - A call that reaches past [`size`](BlockDevice::size) fails and changes nothing.
/// - A call over nothing (length zero) within the device succeeds and does nothing.
pub trait BlockDevice: Send + Sync {
    /// How large the disk is now. It may grow or shrink while it is served.
    fn size(&self) -> ByteLen;

    /// Fills the buffers, in order, from consecutive bytes starting at `at`.
    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError>;

    /// Writes the buffers, in order, to consecutive bytes starting at `at`.
    fn write_vectored_at(&self, at: ByteOffset, buffers: &[IoSlice<'_>])
    -> Result<(), DeviceError>;

    /// Says that the content of a range is no longer needed. It reads as zeros, or as what it was.
    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError>;

    /// Makes a range read as zeros. With `keep_allocated` its space stays reserved where the
    /// implementation has such a notion.
    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError>;

    /// Makes everything that was written before this call durable.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Makes everything that was written before this call outlive this process, though not a power cut. A frontend
    /// whose clients survive it (a guest that connects again) calls this before it acknowledges a write: to such a
    /// client the loss of an acknowledged write is damage, for it saw no power cut. Files need nothing for that.
    fn settle(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Begins to carry out what was written to a range, where the implementation gathers writes, so that the next flush has
    /// less to wait for. Promises nothing, and does not wait.
    fn begin_writing_out(&self, _at: ByteOffset, _len: ByteLen) {}

    /// Makes the device that large, if it is smaller; what is new reads as zeros, and its space is taken now, so that
    /// writing there later does not fail for want of it. Durable with the next flush. One that fails changes nothing
    /// but perhaps the size. Devices that cannot grow refuse.
    fn grow(&self, size: ByteLen) -> Result<(), DeviceError> {
        let at = ByteOffset::new(size.get());
        if size <= self.size() {
            return Ok(());
        }
        Err(DeviceError::Io { act: "grow", at, source: std::io::ErrorKind::Unsupported.into() })
    }

    /// What the range holds, as consecutive extents that cover it exactly. An implementation that
    /// does not know answers `Data`; an answer is a hint for copies and never wrong about zeros.
    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        check_range(self.size(), at, len)?;
        Ok(if len.is_zero() {
            Vec::new()
        } else {
            vec![Extent { at, len, kind: ExtentKind::Data }]
        })
    }

    /// Says that what was read of a range is wrong, as a checksum above this device found. Whoever has another copy
    /// takes that from now on, and answers `true`: reading again may help.
    fn distrust(&self, _at: ByteOffset, _len: ByteLen) -> bool {
        false
    }

    /// Whether writes are refused for as long as the device lives.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Fills one buffer; see [`read_vectored_at`](BlockDevice::read_vectored_at).
    fn read_at(&self, at: ByteOffset, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.read_vectored_at(at, &mut [IoSliceMut::new(buffer)])
    }

    /// Writes one buffer; see [`write_vectored_at`](BlockDevice::write_vectored_at).
    fn write_at(&self, at: ByteOffset, buffer: &[u8]) -> Result<(), DeviceError> {
        self.write_vectored_at(at, &[IoSlice::new(buffer)])
    }
}

/// A stretch of a device and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub at: ByteOffset,
    /// How long it is; never zero.
    pub len: ByteLen,
    /// What it holds.
    pub kind: ExtentKind,
}

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Bytes somebody wrote, or nobody knows.
    Data,
    /// Reads as zeros and takes space.
    Zero,
    /// Reads as zeros and takes no space.
    Hole,
}

/// Why a call on a device failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The range reaches past the end.
    #[error("{len} bytes at byte {at} reach past the end of a disk of {size} bytes")]
    OutOfRange {
        /// Where the range starts.
        at: ByteOffset,
        /// How long it is.
        len: u64,
        /// How large the disk is.
        size: u64,
    },
    /// The device may only be read.
    #[error("the disk is read-only")]
    ReadOnly,
    /// There is no space for what should be written.
    #[error("no space left for the write at byte {at}")]
    NoSpace {
        /// Where the write began.
        at: ByteOffset,
    },
    /// What is stored is damaged; the bytes are not given out.
    #[error("damaged at byte {at}: {found}")]
    Damaged {
        /// Where on this device.
        at: ByteOffset,
        /// What was found there, and in which disk and block, for a person.
        found: String,
    },
    /// An earlier flush failed, so the device refuses writes for good.
    #[error("an earlier flush failed, the disk refuses writes until it is opened again")]
    Poisoned,
    /// Whatever lies below failed.
    #[error("cannot {act} at byte {at}")]
    Io {
        /// `read`, `write`, `flush`, `discard`.
        act: &'static str,
        /// Where.
        at: ByteOffset,
        /// The cause.
        source: std::io::Error,
    },
}

/// Refuses a range that does not lie within `size`; every device starts a call with it.
pub fn check_range(size: ByteLen, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
    match at.checked_add(len) {
        Some(end) if end.get() <= size.get() => Ok(()),
        _ => Err(DeviceError::OutOfRange { at, len: len.get(), size: size.get() }),
    }
}

/// How many bytes a row of buffers holds together.
pub fn buffers_len<B: std::ops::Deref<Target = [u8]>>(buffers: &[B]) -> ByteLen {
    ByteLen::new(buffers.iter().map(|buffer| buffer.len() as u64).sum())
}
