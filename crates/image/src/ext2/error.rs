//! What can go wrong between a tree and its disk.

use std::io;
use std::path::PathBuf;

use kiln_block::ByteLen;

use crate::inventory::GuestPath;

/// Why a disk cannot be planned or written.
#[derive(Debug, thiserror::Error)]
pub enum Ext2Error {
    /// The host could not be asked.
    #[error("cannot {act} {path}", path = path.display())]
    Host {
        /// `look at`, `list`, `read`.
        act: &'static str,
        /// What.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is no longer what it was when it was looked at.
    #[error("{path} changed since the disk was planned: plan it again", path = path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// An archive cannot be used.
    #[error(transparent)]
    Archive(#[from] crate::archive::ArchiveError),
    /// Something is in the place of a directory, or the other way round.
    #[error("{path} is not a directory", path = path.display())]
    NotADirectory {
        /// Which.
        path: PathBuf,
    },
    /// A file that ext2 cannot hold.
    #[error("ext2 cannot hold {path}: {why}")]
    Unstorable {
        /// Where it would be on the disk.
        path: GuestPath,
        /// Which limit it passes.
        why: &'static str,
    },
    /// What it is to hold needs more than the size that was asked for.
    #[error("the disk's contents need more than {size}: give it more, or leave something out")]
    TooSmall {
        /// What was asked for.
        size: ByteLen,
    },
    /// The whole is more than a file system with blocks of 4 KiB can be.
    #[error("the disk would be larger than the 16 TiB that ext2 can be: leave something out")]
    TooLarge,
    /// The image cannot be written.
    #[error("cannot write the image at byte {at}")]
    Write {
        /// Where.
        at: u64,
        /// The cause.
        source: io::Error,
    },
}
