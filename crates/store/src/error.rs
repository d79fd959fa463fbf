//! Why a pool did not do what was asked for, in a form that crosses a socket without loss.

use std::fmt;
use std::io;
use std::path::PathBuf;

use kiln_block::DeviceError;
use kiln_parallax::PoolError;
use serde::{Deserialize, Serialize};

/// Why something asked of a pool was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The pool, or its owner, says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no pool.
    #[error("there is no pool at {path} yet")]
    NoPool {
        /// Where it should be.
        path: PathBuf,
    },
    /// Another process has the pool open and does not answer.
    #[error("pool {path} is open in another process")]
    Busy {
        /// The pool.
        path: PathBuf,
        /// The process, if it could be found.
        holder: Option<String>,
    },
    /// The owner could not be started.
    #[error("cannot start the owner of pool {path}: {said}")]
    Start {
        /// The pool.
        path: PathBuf,
        /// What it said, or why it was not there to say anything.
        said: String,
    },
    /// The owner is another user's.
    #[error("pool {path} is owned by a process of user {uid}, this is user {own}")]
    OtherUser {
        /// The pool.
        path: PathBuf,
        /// The owner's user.
        uid: u32,
        /// Ours.
        own: u32,
    },
    /// The owner speaks another version of the protocol.
    #[error(
        "the owner of pool {path} (process {pid}, Kiln {release}) speaks version {version} of the protocol, this is version {own}"
    )]
    OtherVersion {
        /// The pool.
        path: PathBuf,
        /// The owner's process.
        pid: u32,
        /// Its release.
        release: String,
        /// Its version.
        version: u32,
        /// Ours.
        own: u32,
    },
    /// The owner went away in the middle.
    #[error("the owner of pool {path} is gone")]
    Gone {
        /// The pool.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something of this process's own failed.
    #[error("cannot {act}")]
    Io {
        /// What was tried, with the thing it was tried on.
        act: String,
        /// The cause.
        source: io::Error,
    },
    /// Somebody wanted it to end.
    #[error("interrupted")]
    Stopped,
}

/// A no: what it means, in words and with its causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What it means.
    pub why: Why,
    /// In words.
    pub text: String,
    /// What lies below, outermost first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<Cause>>,
}

/// A cause of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// In words.
    pub text: String,
    /// What lies below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<Cause>>,
}

/// What a refusal means to whoever asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Why {
    /// No disk has that name.
    NoDisk {
        /// The name.
        disk: String,
    },
    /// The disk has no such snapshot.
    NoSnapshot {
        /// The disk.
        disk: String,
        /// The snapshot.
        snapshot: String,
    },
    /// The name is taken.
    Exists {
        /// The name.
        name: String,
    },
    /// Something about the request itself is wrong: a name, a size, a mixture.
    Request,
    /// A stream is not for this disk, or not a stream.
    Stream,
    /// A stream ended early; what arrived is kept.
    Cut {
        /// What the sender goes on from.
        token: String,
    },
    /// Something would be lost, and nobody said that it may.
    WouldLose,
    /// Somebody reads or writes it.
    InUse {
        /// The disk or snapshot.
        name: String,
    },
    /// The disk has snapshots.
    HasSnapshots {
        /// The disk.
        disk: String,
    },
    /// This is no pool.
    NotAPool,
    /// The pool or image is of a kind that this version does not know.
    TooNew,
    /// The pool, a disk's data or an image is damaged.
    Damaged,
    /// The pool is full.
    NoSpace,
    /// A file or device of the user's failed or is not what it should be.
    File,
    /// This machine lacks something.
    Setup,
    /// Somebody wanted it to end.
    Stopped,
    /// The pool's file failed.
    Failed,
}

impl Refusal {
    /// A no without a cause.
    pub fn new(why: Why, text: impl Into<String>) -> Refusal {
        Refusal { why, text: text.into(), cause: None }
    }

    /// A no with the words and causes of an error.
    pub fn of(why: Why, error: &dyn std::error::Error) -> Refusal {
        let cause = error.source().map(|cause| Box::new(Cause::of(cause)));
        Refusal { why, text: error.to_string(), cause }
    }

    /// The same no, for what was tried above it.
    #[must_use]
    pub fn tried(self, act: impl Into<String>) -> Refusal {
        let below = Cause { text: self.text, cause: self.cause };
        Refusal { why: self.why, text: act.into(), cause: Some(Box::new(below)) }
    }
}

impl Cause {
    fn of(error: &dyn std::error::Error) -> Cause {
        let cause = error.source().map(|cause| Box::new(Cause::of(cause)));
        Cause { text: error.to_string(), cause }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &dyn std::error::Error)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &dyn std::error::Error)
    }
}

impl From<PoolError> for Refusal {
    fn from(error: PoolError) -> Refusal {
        let why = match &error {
            PoolError::NoDisk { name } => Why::NoDisk { disk: name.clone() },
            PoolError::NoSnapshot { disk, name } => {
                Why::NoSnapshot { disk: disk.clone(), snapshot: name.clone() }
            }
            PoolError::Exists { name } => Why::Exists { name: name.clone() },
            PoolError::HasSnapshots { name, .. } => Why::HasSnapshots { disk: name.clone() },
            PoolError::InUse { name } => Why::InUse { name: name.clone() },
            PoolError::BadName { .. } | PoolError::BadSize { .. } => Why::Request,
            PoolError::NotAPool => Why::NotAPool,
            PoolError::File { .. } | PoolError::OpenFile(_) | PoolError::TooSmall { .. } => {
                Why::Setup
            }
            PoolError::TooNew { .. } | PoolError::UnknownFeatures { .. } => Why::TooNew,
            PoolError::Damaged { .. } | PoolError::FreeMap { .. } => Why::Damaged,
            PoolError::NoSpace => Why::NoSpace,
            PoolError::Flatten { source: DeviceError::NoSpace { .. }, .. } => Why::NoSpace,
            PoolError::Base { .. } => Why::File,
            PoolError::BaseTooLong { .. } => Why::Request,
            PoolError::Stopped => Why::Stopped,
            _ => Why::Failed,
        };
        Refusal::of(why, &error)
    }
}

impl From<PoolError> for StoreError {
    fn from(error: PoolError) -> StoreError {
        StoreError::Refused(error.into())
    }
}

impl Refusal {
    /// A disk or a file failed while something was done with it.
    pub(crate) fn device(act: &str, name: &str, error: &DeviceError) -> Refusal {
        let why = match error {
            DeviceError::Damaged { .. } => Why::Damaged,
            DeviceError::NoSpace { .. } => Why::NoSpace,
            _ => Why::Failed,
        };
        Refusal::of(why, error).tried(format!("cannot {act} {name}"))
    }
}
