//! Why a stream was not sent or received.

use std::io;

use kiln_block::DeviceError;

use crate::PoolError;
use crate::stream::Token;

/// Why a stream was not sent or received. No disk that was there before has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The pool says no.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A disk could not be read or written.
    #[error("cannot {act} {name:?}")]
    Disk {
        /// `read` or `write`.
        act: &'static str,
        /// Which.
        name: String,
        /// The cause.
        source: DeviceError,
    },
    /// What the stream is written to failed.
    #[error("cannot write the stream")]
    Write(#[source] io::Error),
    /// What the stream is read from failed.
    #[error("cannot read the stream")]
    Read(#[source] io::Error),
    /// These are other bytes.
    #[error("this is not a stream of a disk")]
    NotAStream,
    /// A newer version made it.
    #[error("the stream has version {version}, this build reads up to {reads}; use a newer Kiln", reads = crate::stream::record::VERSION)]
    TooNew {
        /// Its version.
        version: u32,
    },
    /// It uses features this version does not know.
    #[error("the stream uses features ({flags:#x}) this build does not know; use a newer Kiln")]
    UnknownFeatures {
        /// Their bits.
        flags: u32,
    },
    /// It ended early.
    #[error("the stream ends at byte {at}, before its end")]
    Ended {
        /// How many bytes there were.
        at: u64,
    },
    /// What arrived is not what was sent.
    #[error("the stream is damaged at byte {at}: {found}")]
    Damaged {
        /// Where in it.
        at: u64,
        /// What was found.
        found: String,
    },
    /// The parts are as they were sent, the whole is not.
    #[error("the stream as a whole has a wrong checksum")]
    WrongSum,
    /// Reading or receiving ended early; what arrived is kept.
    #[error("{disk:?} was received up to byte {position}; go on with the token {token}", position = token.position())]
    Cut {
        /// The disk that is being received.
        disk: String,
        /// What the sender goes on from.
        token: Token,
        /// What happened.
        source: Box<StreamError>,
    },
    /// An incremental stream needs the snapshot it starts from.
    #[error(
        "the stream holds what changed since {base:?} of disk {from:?}, and disk {disk:?} has no snapshot that is the same"
    )]
    WrongBase {
        /// The disk here.
        disk: String,
        /// What it is called where the stream was made.
        from: String,
        /// The snapshot the stream starts from.
        base: String,
    },
    /// The disk is no longer what its snapshot was.
    #[error("disk {disk:?} was changed since its snapshot {base:?}; roll it back first")]
    Changed {
        /// The disk.
        disk: String,
        /// The snapshot the stream starts from.
        base: String,
    },
    /// A token of something else.
    #[error("the token {token} is of another stream than that of {disk}@{snapshot}")]
    OtherToken {
        /// The token.
        token: Token,
        /// The disk.
        disk: String,
        /// Its snapshot.
        snapshot: String,
    },
    /// The stream goes on from further than what is here.
    #[error("the stream goes on from byte {starts}, and here is {here}")]
    Gap {
        /// Where it goes on.
        starts: u64,
        /// What is here, in words.
        here: String,
    },
    /// The caller wanted no more.
    #[error("stopped")]
    Stopped,
}

impl StreamError {
    /// For a person who has to look into it.
    pub(crate) fn damaged(at: u64, found: impl Into<String>) -> StreamError {
        StreamError::Damaged { at, found: found.into() }
    }
}
