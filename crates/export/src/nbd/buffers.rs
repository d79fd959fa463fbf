//! Memory for requests in flight, reused and bounded for each connection.

use std::sync::{Condvar, Mutex, PoisonError};

/// What a connection may hold at once; a single request may be larger when it is alone.
const MOST_BYTES: usize = 64 << 20;
/// What it keeps when its requests are done.
const KEPT_BYTES: usize = 4 << 20;
const SMALLEST: usize = 8 << 10;

/// A connection's buffers.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Vec<u8>>,
    kept: usize,
    lent: usize,
}

/// A buffer that goes back where it came from. It holds whatever its last user left.
#[derive(Debug)]
pub(crate) struct Buffer<'a> {
    bytes: Vec<u8>,
    home: &'a Buffers,
}

impl Buffers {
    /// A buffer of at least `len` bytes; waits for others to be returned when too much is lent.
    pub(crate) fn take(&self, len: usize) -> Buffer<'_> {
        // Powers of two are found again by requests of other sizes; the largest would waste half.
        let len = if len <= 1 << 20 {
            len.next_power_of_two().max(SMALLEST)
        } else {
            len.next_multiple_of(4096)
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.lent > 0 && state.lent + len > MOST_BYTES {
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let found = state.free.iter().rposition(|free| free.len() >= len && free.len() <= len * 4);
        let bytes = found.map(|index| state.free.swap_remove(index));
        if let Some(bytes) = &bytes {
            state.kept -= bytes.len();
        }
        state.lent += bytes.as_ref().map_or(len, Vec::len);
        drop(state);
        Buffer { bytes: bytes.unwrap_or_else(|| vec![0; len]), home: self }
    }
}

impl std::ops::Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut state = self.home.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lent -= bytes.len();
        if state.kept + bytes.len() <= KEPT_BYTES {
            state.kept += bytes.len();
            state.free.push(bytes);
        }
        drop(state);
        self.home.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_lent_again() {
        let buffers = Buffers::default();
        let first = buffers.take(10_000).as_ptr();
        assert_eq!(buffers.take(9_000).as_ptr(), first);
    }

    #[test]
    fn large_buffers_are_not_kept() {
        let buffers = Buffers::default();
        drop(buffers.take(32 << 20));
        assert_eq!(buffers.state.lock().unwrap().kept, 0);
        assert_eq!(buffers.state.lock().unwrap().lent, 0);
    }

    #[test]
    fn a_buffer_that_is_too_much_waits_for_another_to_return() {
        let buffers = Buffers::default();
        let (first, second) = (buffers.take(32 << 20), buffers.take(32 << 20));
        std::thread::scope(|scope| {
            let third = scope.spawn(|| buffers.take(1).len());
            drop(first);
            assert_eq!(third.join().unwrap(), SMALLEST);
        });
        drop(second);
    }
}
