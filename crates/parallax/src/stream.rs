//! A disk's snapshot, or what changed from one to another, as a stream of bytes (`docs/formats/disk-stream.md`).
//!
//! [`Pool::send`] writes one, [`Pool::receive`] makes the same disk and snapshot of it in another pool. Each record has a
//! checksum that goes on from the one before, the whole has another. What arrives is kept under a name of its own
//! until it is complete; a receiver that was cut off says with a [`Token`] how far it got, and the sender goes on from
//! there.

mod adopt;
mod error;
mod identity;
mod receive;
mod record;
mod send;

use std::ops::ControlFlow;

use kiln_block::ByteLen;

pub use error::StreamError;
pub use receive::{Partial, ReceiveOptions, Received};
pub use record::Token;
pub use send::{SendOptions, Sent};

#[cfg(doc)]
use crate::Pool;

/// How far a stream has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the disk that are behind.
    pub at: ByteLen,
    /// Bytes of the disk.
    pub size: ByteLen,
    /// Bytes of the stream so far.
    pub bytes: u64,
}

/// Told how far a stream has got; it may end it.
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// What a fuzzer needs of the format.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Bytes of the header.
    pub const HEADER_LEN: usize = super::record::HEADER_LEN;

    /// Gives the first bytes of a stream the checksum and the id that they must have.
    pub fn make_right(header: &mut [u8; HEADER_LEN]) {
        super::record::make_right(header);
    }
}
