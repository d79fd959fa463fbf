//! A disk whose calls wait at a gate that the test opens.

use std::io::{IoSlice, IoSliceMut};
use std::sync::{Condvar, Mutex};

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, MemoryDevice};

/// Memory behind a gate. Flushes wait while it is shut; so do reads at `SLOW` and beyond.
pub(crate) struct Gate {
    pub(crate) inner: MemoryDevice,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    shut: bool,
    waiting: usize,
}

/// Where reads start to wait.
pub(crate) const SLOW: u64 = 512 << 10;

impl Gate {
    pub(crate) fn shut(size: ByteLen) -> Gate {
        let state = Mutex::new(State { shut: true, waiting: 0 });
        Gate { inner: MemoryDevice::new(size), state, changed: Condvar::new() }
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().shut = false;
        self.changed.notify_all();
    }

    /// Returns when so many calls wait.
    pub(crate) fn until_waiting(&self, count: usize) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.waiting < count).unwrap());
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.shut).unwrap();
        state.waiting -= 1;
    }
}

impl BlockDevice for Gate {
    fn size(&self) -> ByteLen {
        self.inner.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        if at.get() >= SLOW {
            self.pass();
        }
        self.inner.read_vectored_at(at, buffers)
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        self.inner.write_vectored_at(at, buffers)
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.inner.discard(at, len)
    }

    fn write_zeroes(&self, at: ByteOffset, len: ByteLen, keep: bool) -> Result<(), DeviceError> {
        self.inner.write_zeroes(at, len, keep)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.pass();
        self.inner.flush()
    }
}
