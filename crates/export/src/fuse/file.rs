//! One open file: what it does to the disk behind it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fuser::{Errno, OpenFlags};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, ExtentKind};

use crate::errno::errno_of;

/// How much of a disk is looked through for data or a hole at a time.
const STRIDE: u64 = 1 << 30;
/// The most a thread keeps of a read's memory.
const KEPT_BYTES: usize = 1 << 20;

const KEEP_SIZE: i32 = 0x01;
const PUNCH_HOLE: i32 = 0x02;
const ZERO_RANGE: i32 = 0x10;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
/// `O_DSYNC`, which is part of `O_SYNC`.
const O_DSYNC: i32 = 0o10000;

thread_local! {
    /// What the last read of this thread left.
    static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A disk that somebody has opened, and keeps although it may no longer be served.
pub(super) struct OpenDisk {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) read_only: bool,
}

/// Bytes that were read, in memory that goes back to the thread.
pub(super) struct Bytes(Vec<u8>, usize);

impl Bytes {
    pub(super) fn give(self, receiver: impl FnOnce(&[u8])) {
        let Bytes(memory, len) = self;
        receiver(&memory[..len]);
        if memory.len() <= KEPT_BYTES {
            MEMORY.set(memory);
        }
    }
}

/// A device that panics takes its request down with it, and no thread that others need.
fn guarded<T>(act: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, Errno> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(outcome) => outcome.map_err(|error| Errno::from_i32(errno_of(&error))),
        Err(_) => Err(Errno::EIO),
    }
}

impl OpenDisk {
    /// How many of `len` bytes from `offset` the disk has.
    fn within(&self, offset: u64, len: u64) -> u64 {
        self.device.size().get().saturating_sub(offset).min(len)
    }

    pub(super) fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let len = usize::try_from(self.within(offset, u64::from(len))).unwrap_or(0);
        let mut memory = MEMORY.take();
        if memory.len() < len {
            memory.resize(len, 0);
        }
        if len > 0 {
            guarded(|| self.device.read_at(ByteOffset::new(offset), &mut memory[..len]))?;
        }
        Ok(Bytes(memory, len))
    }

    /// Writes up to the end of the disk, and says how much that was; there is no space beyond.
    pub(super) fn write(&self, offset: u64, data: &[u8], flags: OpenFlags) -> Result<u32, Errno> {
        let count = self.within(offset, data.len() as u64);
        if count == 0 && !data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        let data = &data[..usize::try_from(count).unwrap_or(0)];
        self.refuse_if_read_only()?;
        guarded(|| {
            self.device.write_at(ByteOffset::new(offset), data)?;
            if flags.0 & O_DSYNC != 0 { self.device.flush() } else { Ok(()) }
        })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    pub(super) fn flush(&self) -> Result<(), Errno> {
        guarded(|| self.device.flush())
    }

    /// Punches holes and makes zeros. To reserve space is nothing a disk can promise.
    pub(super) fn allocate(&self, offset: u64, len: u64, mode: i32) -> Result<(), Errno> {
        self.refuse_if_read_only()?;
        let inside = self.within(offset, len);
        // A hole reads as zeros, which a discard does not promise: hence zeros either way.
        let keep_allocated = match mode {
            mode if mode == PUNCH_HOLE | KEEP_SIZE => false,
            mode if mode & !KEEP_SIZE == ZERO_RANGE => true,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        if mode & KEEP_SIZE == 0 && inside < len {
            return Err(Errno::ENOSPC);
        }
        let (at, inside) = (ByteOffset::new(offset), ByteLen::new(inside));
        guarded(|| match inside.is_zero() {
            true => Ok(()),
            false => self.device.write_zeroes(at, inside, keep_allocated),
        })
    }

    /// Where the next data or the next hole is. The end of the disk is a hole.
    pub(super) fn seek(&self, offset: i64, whence: i32) -> Result<i64, Errno> {
        let wants_data = match whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return Err(Errno::EINVAL),
        };
        let size = self.device.size().get();
        let mut cursor = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        if cursor >= size {
            return Err(Errno::ENXIO);
        }
        while cursor < size {
            let len = STRIDE.min(size - cursor);
            let extents =
                guarded(|| self.device.extents(ByteOffset::new(cursor), ByteLen::new(len)))?;
            let found = extents.iter().find(|e| (e.kind == ExtentKind::Data) == wants_data);
            if let Some(extent) = found {
                return i64::try_from(extent.at.get()).map_err(|_| Errno::EOVERFLOW);
            }
            cursor += len;
        }
        if wants_data {
            return Err(Errno::ENXIO);
        }
        i64::try_from(size).map_err(|_| Errno::EOVERFLOW)
    }

    fn refuse_if_read_only(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }
}
