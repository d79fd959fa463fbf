//! [`GateDisk`]: a disk whose calls wait until a test lets them go.

use std::io::{IoSlice, IoSliceMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use super::Act;
use crate::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent};

/// Passes calls on to the disk inside, and knows who made them. While its gate is shut, those that it was told to hold
/// up wait before they do anything.
#[derive(Debug)]
pub struct GateDisk<D> {
    inner: D,
    holds_up: fn(Act, ByteOffset) -> bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    shut: bool,
    waiting: usize,
    calls: Vec<(Act, ThreadId)>,
}

impl<D: BlockDevice> GateDisk<D> {
    /// A disk whose gate is open, and which calls it is to hold up. Those of the whole disk are at byte 0.
    pub fn new(inner: D, holds_up: fn(Act, ByteOffset) -> bool) -> GateDisk<D> {
        GateDisk { inner, holds_up, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Holds up calls from now on.
    pub fn shut(&self) {
        self.state().shut = true;
    }

    /// Lets go those that wait, and all that come.
    pub fn open(&self) {
        self.state().shut = false;
        self.changed.notify_all();
    }

    /// Returns when so many calls wait.
    pub fn until_waiting(&self, count: usize) {
        let waited = self.changed.wait_while(self.state(), |state| state.waiting < count);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The threads that made calls of that kind, in order.
    pub fn callers(&self, act: Act) -> Vec<ThreadId> {
        let state = self.state();
        state.calls.iter().filter(|call| call.0 == act).map(|call| call.1).collect()
    }

    /// The disk inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, act: Act, at: ByteOffset) {
        let mut state = self.state();
        state.calls.push((act, std::thread::current().id()));
        if !state.shut || !(self.holds_up)(act, at) {
            return;
        }
        state.waiting += 1;
        self.changed.notify_all();
        let waited = self.changed.wait_while(state, |state| state.shut);
        waited.unwrap_or_else(PoisonError::into_inner).waiting -= 1;
    }
}

impl<D: BlockDevice> BlockDevice for GateDisk<D> {
    fn size(&self) -> ByteLen {
        self.inner.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        self.pass(Act::Read, at);
        self.inner.read_vectored_at(at, buffers)
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        self.pass(Act::Write, at);
        self.inner.write_vectored_at(at, buffers)
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.pass(Act::Write, at);
        self.inner.discard(at, len)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        self.pass(Act::Write, at);
        self.inner.write_zeroes(at, len, keep_allocated)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.pass(Act::Flush, ByteOffset::ZERO);
        self.inner.flush()
    }

    fn settle(&self) -> Result<(), DeviceError> {
        self.pass(Act::Settle, ByteOffset::ZERO);
        self.inner.settle()
    }

    fn grow(&self, size: ByteLen) -> Result<(), DeviceError> {
        self.pass(Act::Grow, ByteOffset::ZERO);
        self.inner.grow(size)
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        self.inner.extents(at, len)
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }
}
