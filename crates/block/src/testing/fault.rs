//! [`FaultDisk`]: a disk whose calls fail when a test says so.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent};

/// What a call does to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Reads.
    Read,
    /// Writes, discards and writes of zeros.
    Write,
    /// Growing.
    Grow,
    /// Flushes.
    Flush,
    /// What makes writes outlive the process.
    Settle,
}

/// The fault that waits: which call, counted per act from 0, and with which error.
#[derive(Debug, Clone, Copy)]
struct Fault {
    act: Act,
    call: u64,
    errno: i32,
    /// Every later call of that act fails too.
    lasting: bool,
}

/// Passes calls on to the disk inside, and fails the ones it was told to. A write that fails has
/// first written the front half of its bytes, as a real disk may have.
#[derive(Debug)]
pub struct FaultDisk<D> {
    inner: D,
    reads: AtomicU64,
    writes: AtomicU64,
    growths: AtomicU64,
    flushes: AtomicU64,
    settles: AtomicU64,
    fault: Mutex<Option<Fault>>,
}

impl<D: BlockDevice> FaultDisk<D> {
    /// A disk without any fault yet.
    pub fn new(inner: D) -> FaultDisk<D> {
        FaultDisk {
            inner,
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            growths: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            settles: AtomicU64::new(0),
            fault: Mutex::new(None),
        }
    }

    /// Lets the `call`-th call of that kind from now on (0 is the next) fail with a system error
    /// number; with `lasting`, all later ones too.
    pub fn fail(&self, act: Act, call: u64, errno: i32, lasting: bool) {
        let call = self.calls(act) + call;
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Fault { act, call, errno, lasting });
    }

    /// Takes the fault away.
    pub fn heal(&self) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How many calls of that kind there were.
    pub fn calls(&self, act: Act) -> u64 {
        self.counter(act).load(Ordering::SeqCst)
    }

    /// The disk inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn counter(&self, act: Act) -> &AtomicU64 {
        match act {
            Act::Read => &self.reads,
            Act::Write => &self.writes,
            Act::Grow => &self.growths,
            Act::Flush => &self.flushes,
            Act::Settle => &self.settles,
        }
    }

    fn strike(&self, act: Act, at: ByteOffset) -> Result<(), DeviceError> {
        let call = self.counter(act).fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Some(fault)
                if fault.act == act
                    && (call == fault.call || (fault.lasting && call > fault.call)) =>
            {
                let source = io::Error::from_raw_os_error(fault.errno);
                if source.kind() == io::ErrorKind::StorageFull {
                    return Err(DeviceError::NoSpace { at });
                }
                let act = match act {
                    Act::Read => "read",
                    Act::Write => "write",
                    Act::Grow => "grow",
                    Act::Flush => "flush",
                    Act::Settle => "settle",
                };
                Err(DeviceError::Io { act, at, source })
            }
            _ => Ok(()),
        }
    }
}

impl<D: BlockDevice> BlockDevice for FaultDisk<D> {
    fn size(&self) -> ByteLen {
        self.inner.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        self.strike(Act::Read, at)?;
        self.inner.read_vectored_at(at, buffers)
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        if let Err(error) = self.strike(Act::Write, at) {
            let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
            self.inner.write_at(at, &bytes[..bytes.len() / 2 / 512 * 512])?;
            return Err(error);
        }
        self.inner.write_vectored_at(at, buffers)
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.strike(Act::Write, at)?;
        self.inner.discard(at, len)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        self.strike(Act::Write, at)?;
        self.inner.write_zeroes(at, len, keep_allocated)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.strike(Act::Flush, ByteOffset::ZERO)?;
        self.inner.flush()
    }

    fn grow(&self, size: ByteLen) -> Result<(), DeviceError> {
        self.strike(Act::Grow, ByteOffset::new(self.size().get()))?;
        self.inner.grow(size)
    }

    fn settle(&self) -> Result<(), DeviceError> {
        self.strike(Act::Settle, ByteOffset::ZERO)?;
        self.inner.settle()
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        self.inner.extents(at, len)
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }
}
