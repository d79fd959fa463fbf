//! Disks that are only read: what they share, and the simplest of them.

use std::io::{IoSlice, IoSliceMut};

use crate::device::{buffers_len, check_range};
use crate::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind};

/// Something that can be read like a disk and never changes: a sealed layer, an image's plan.
/// [`ReadOnly`] makes a [`BlockDevice`] of it.
pub trait BlockSource: Send + Sync {
    /// How large it is, for good.
    fn size(&self) -> ByteLen;

    /// Fills a buffer; the range has been checked against the size.
    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError>;

    /// See [`BlockDevice::distrust`].
    fn distrust(&self, _at: ByteOffset, _len: ByteLen) -> bool {
        false
    }

    /// What a range that is not empty and lies within the size holds.
    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { at, len, kind: ExtentKind::Data }])
    }
}

/// A [`BlockSource`] as a disk: every change is refused with [`DeviceError::ReadOnly`], and a flush
/// has nothing to do.
#[derive(Debug)]
pub struct ReadOnly<S>(pub S);

impl<S: BlockSource> BlockDevice for ReadOnly<S> {
    fn size(&self) -> ByteLen {
        self.0.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        check_range(self.size(), at, buffers_len(buffers))?;
        let mut at = at.get();
        for buffer in buffers {
            self.0.read(at, buffer)?;
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        _at: ByteOffset,
        _buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn discard(&self, _at: ByteOffset, _len: ByteLen) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn write_zeroes(
        &self,
        _at: ByteOffset,
        _len: ByteLen,
        _keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        check_range(self.size(), at, len)?;
        if len.is_zero() { Ok(Vec::new()) } else { self.0.extents(at, len) }
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn distrust(&self, at: ByteOffset, len: ByteLen) -> bool {
        self.0.distrust(at, len)
    }
}

/// Zeros of a given size, one hole from end to end; the base of an empty disk.
#[derive(Debug, Clone, Copy)]
pub struct ZeroDevice(ByteLen);

/// A disk of zeros.
pub fn zeros(size: ByteLen) -> ReadOnly<ZeroDevice> {
    ReadOnly(ZeroDevice(size))
}

impl BlockSource for ZeroDevice {
    fn size(&self) -> ByteLen {
        self.0
    }

    fn read(&self, _at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        buffer.fill(0);
        Ok(())
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { at, len, kind: ExtentKind::Hole }])
    }
}
