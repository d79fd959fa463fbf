//! What can be wrong with an image, told so that its reader knows which file and what to do.

use std::io;
use std::path::PathBuf;

use kiln_block::{ByteLen, DeviceError};

/// Why an image cannot be opened or written. What names come from an image are escaped and short.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Error {
    /// What the image is stored on failed.
    #[error("cannot read {name}")]
    Read {
        /// Which image.
        name: String,
        /// The cause.
        source: DeviceError,
    },
    /// The disk that is to be stored could not be read.
    #[error("cannot read the disk")]
    Source(#[from] DeviceError),
    /// The output failed.
    #[error("cannot write the image")]
    Write(#[from] io::Error),
    /// It starts with something else.
    #[error("{name} is not a qcow2 image")]
    NotQcow2 {
        /// Which file.
        name: String,
    },
    /// It is of another version.
    #[error("{name} is a qcow2 image of version {version}, this build reads 2 and 3")]
    Version {
        /// Which image.
        name: String,
        /// Its version.
        version: u32,
    },
    /// A rule of the format is broken.
    #[error("{name} is damaged: {found}")]
    Damaged {
        /// Which image.
        name: String,
        /// What was found where.
        found: String,
    },
    /// It needs something this build does not do.
    #[error("cannot use {name}: {what}")]
    Unsupported {
        /// Which image.
        name: String,
        /// What it needs, and the way around it.
        what: String,
    },
    /// The image has no such snapshot.
    #[error("{name} has no snapshot {snapshot:?}")]
    NoSnapshot {
        /// Which image.
        name: String,
        /// What was asked for.
        snapshot: String,
    },
    /// It has a backing file, and was given none.
    #[error("{name} needs its backing file {backing}")]
    NeedsBacking {
        /// Which image.
        name: String,
        /// What it names.
        backing: String,
    },
    /// Its backing file may not be opened, or cannot be.
    #[error("{name} names {backing} as its backing file, {why}")]
    Backing {
        /// Which image.
        name: String,
        /// What it names.
        backing: String,
        /// What stands against it, and the cure.
        why: String,
    },
    /// A file could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is no disk.
    #[error(transparent)]
    File(#[from] kiln_block::OpenFileError),
    /// The caller wanted no more.
    #[error("stopped")]
    Stopped,
    /// No image can be written like that.
    #[error("{0}")]
    Refused(String),
    /// The disk is too large for the image.
    #[error(
        "a disk of {size} does not fit into a qcow2 image with clusters of {cluster}, which holds {most}"
    )]
    TooLarge {
        /// The disk.
        size: ByteLen,
        /// The clusters.
        cluster: ByteLen,
        /// The largest disk.
        most: ByteLen,
    },
}

/// Text out of an image, fit for a terminal.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
    text.chars().flat_map(char::escape_debug).collect()
}
