//! Why a call on a pool failed.

use kiln_block::{ByteLen, DeviceError};

/// Why a call on a pool failed. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The device below failed; if it was while storing, the pool refuses writes until it is opened again.
    #[error("cannot {act} the pool")]
    Device {
        /// `read`, `write`, `sync`, `grow`.
        act: &'static str,
        /// The cause.
        source: DeviceError,
    },
    /// The device holds something else.
    #[error("this is not a pool: neither superblock is one")]
    NotAPool,
    /// A newer version made it.
    #[error("the pool has format {version}, this build reads {reads}; use a newer Kiln", reads = crate::format::VERSION)]
    TooNew {
        /// Its version.
        version: u32,
    },
    /// It uses features this version does not know.
    #[error("the pool uses features ({bits:#x}) this build does not know; use a newer Kiln")]
    UnknownFeatures {
        /// Their bits.
        bits: u64,
    },
    /// The device cannot hold a pool of that layout.
    #[error("a pool needs {needs} bytes, the device has {has}")]
    TooSmall {
        /// The least it needs.
        needs: ByteLen,
        /// What there is.
        has: ByteLen,
    },
    /// What describes the disks, or a part of it, is damaged.
    #[error("the pool is damaged: {found}")]
    Damaged {
        /// What was found where.
        found: String,
    },
    /// The free map is damaged; no data is affected.
    #[error("page {page} of the free map is damaged; `repair` makes it again from the disks' maps")]
    FreeMap {
        /// Which page.
        page: u64,
    },
    /// An earlier flush or checkpoint failed.
    #[error("storing failed earlier, the pool refuses changes until it is opened again")]
    Poisoned,
    /// The pool was opened again since, elsewhere: this opening may no longer write.
    #[error(
        "the pool was opened again elsewhere and belongs to that now; opening {opening} of it, this one, may no longer write"
    )]
    Fenced {
        /// Which opening this one is.
        opening: u64,
    },
    /// The pool cannot become that large.
    #[error("the pool cannot grow to {size}: when it was made, its limit became {limit}")]
    TooLarge {
        /// What was asked for.
        size: ByteLen,
        /// The most it can have.
        limit: ByteLen,
    },
    /// No space is left.
    #[error("no space left in the pool")]
    NoSpace,
    /// No disk has that name.
    #[error("there is no disk {name:?}")]
    NoDisk {
        /// The name.
        name: String,
    },
    /// The disk has no such snapshot.
    #[error("disk {disk:?} has no snapshot {name:?}")]
    NoSnapshot {
        /// The disk.
        disk: String,
        /// The snapshot.
        name: String,
    },
    /// The name is taken.
    #[error("{name:?} exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// Not a name.
    #[error("{name:?} is not a name: 1 to {max} bytes, without `@`, `/` and control characters", max = crate::catalog::MAX_NAME)]
    BadName {
        /// What was given.
        name: String,
    },
    /// Not a size.
    #[error("a disk of {size} is not possible: whole blocks of 4K, at most {max}", max = crate::MAX_DISK)]
    BadSize {
        /// What was given.
        size: ByteLen,
    },
    /// Somebody reads or writes it.
    #[error("{name:?} is open; close it first")]
    InUse {
        /// The disk or snapshot.
        name: String,
    },
    /// It has snapshots.
    #[error("disk {name:?} has {snapshots} snapshots; delete them first")]
    HasSnapshots {
        /// The disk.
        name: String,
        /// How many.
        snapshots: usize,
    },
    /// What a disk was made on cannot be read; the rest of the pool is not affected.
    #[error("base {name:?}: {found}")]
    Base {
        /// What people call it.
        name: String,
        /// What is wrong where, and what helps.
        found: String,
    },
    /// A base that takes too many words.
    #[error("base {name:?} takes more than {most} bytes to describe")]
    BaseTooLong {
        /// What people call it.
        name: String,
        /// The most there may be.
        most: usize,
    },
    /// What a disk was made on could not be copied.
    #[error("cannot copy what disk {name:?} was made on into the pool")]
    Flatten {
        /// The disk.
        name: String,
        /// The cause.
        source: DeviceError,
    },
    /// The caller wanted no more.
    #[error("stopped")]
    Stopped,
    /// Another process has the pool open.
    #[error("pool {path} is open in another process")]
    Busy {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The pool's file could not be opened.
    #[error("cannot open pool {path}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The pool's file could not be opened as a disk.
    #[error(transparent)]
    OpenFile(#[from] kiln_block::OpenFileError),
}

impl PoolError {
    pub(crate) fn device(act: &'static str) -> impl FnOnce(DeviceError) -> PoolError {
        move |source| PoolError::Device { act, source }
    }

    /// As a frontend sees it: which disk, and the block there it was about.
    pub(crate) fn on_disk(self, at: kiln_block::ByteOffset) -> DeviceError {
        match self {
            PoolError::Device { source, .. } => source,
            PoolError::Poisoned => DeviceError::Poisoned,
            PoolError::NoSpace => DeviceError::NoSpace { at },
            PoolError::Base { .. } => {
                let source = std::io::Error::other(self.to_string());
                DeviceError::Io { act: "read", at, source }
            }
            PoolError::Fenced { .. } => {
                let source = std::io::Error::other(self.to_string());
                DeviceError::Io { act: "write", at, source }
            }
            other => DeviceError::Damaged { at, found: other.to_string() },
        }
    }
}
