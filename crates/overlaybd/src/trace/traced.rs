//! A disk that notes what is read of it.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, buffers_len};

use super::{Seen, Trace};

/// A disk that notes what is read of it, and does what the disk below does.
pub struct Traced {
    disk: Arc<dyn BlockDevice>,
    seen: Mutex<Seen>,
}

impl Traced {
    /// Notes what is read of that from now on.
    pub fn new(disk: Arc<dyn BlockDevice>) -> Traced {
        Traced { disk, seen: Mutex::default() }
    }

    /// What was read so far.
    pub fn trace(&self) -> Trace {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).trace()
    }
}

impl fmt::Debug for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traced").field("size", &self.disk.size()).finish_non_exhaustive()
    }
}

impl BlockDevice for Traced {
    fn size(&self) -> ByteLen {
        self.disk.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let len = buffers_len(buffers).get();
        self.disk.read_vectored_at(at, buffers)?;
        // What cannot be read is not worth being read ahead.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(at.get(), len);
        Ok(())
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        self.disk.write_vectored_at(at, buffers)
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.disk.discard(at, len)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        self.disk.write_zeroes(at, len, keep_allocated)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.disk.flush()
    }

    fn settle(&self) -> Result<(), DeviceError> {
        self.disk.settle()
    }

    fn begin_writing_out(&self, at: ByteOffset, len: ByteLen) {
        self.disk.begin_writing_out(at, len);
    }

    fn grow(&self, size: ByteLen) -> Result<(), DeviceError> {
        self.disk.grow(size)
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        self.disk.extents(at, len)
    }

    fn distrust(&self, at: ByteOffset, len: ByteLen) -> bool {
        self.disk.distrust(at, len)
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }
}
