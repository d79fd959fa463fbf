//! What can go wrong with a registry, told so that its user knows whose turn it is.

use std::io;
use std::path::PathBuf;

use crate::{Digest, ParseReferenceError};

/// Why something was not pushed, pulled or read.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A name makes no sense.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// The registry did not answer, or stopped answering.
    #[error("cannot {act} {url}")]
    Unreachable {
        /// `get`, `send`.
        act: &'static str,
        /// Where, without what may be secret.
        url: String,
        /// The cause.
        source: io::Error,
    },
    /// The registry said no.
    #[error("cannot {act} {url}: the registry says {status}{said}")]
    Status {
        /// What was tried.
        act: &'static str,
        /// Where, without what may be secret.
        url: String,
        /// The status of its answer.
        status: u16,
        /// What it said about it.
        said: String,
        /// How long it wants to be left alone.
        pause: Option<std::time::Duration>,
    },
    /// The registry does not know us, or does not let us.
    #[error("{host} does not allow to {act} {what}: {why}")]
    Denied {
        /// The registry.
        host: String,
        /// What was tried.
        act: &'static str,
        /// With what.
        what: String,
        /// What it said, or what is missing.
        why: String,
    },
    /// The registry has no such thing.
    #[error("{what} is not in the registry {host}")]
    Missing {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The answer breaks the rules.
    #[error("{url} answered wrongly: {rule}")]
    Protocol {
        /// Where.
        url: String,
        /// What is wrong.
        rule: String,
        /// Whether another try may be answered better.
        passing: bool,
    },
    /// The bytes are not those that were asked for.
    #[error("{what} arrived damaged: its digest is {found}, not {wanted}")]
    WrongBytes {
        /// What was fetched.
        what: String,
        /// The digest it was asked for by.
        wanted: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// It is well-formed and of no use here.
    #[error("cannot use {what}: {why}")]
    Unsupported {
        /// What was fetched.
        what: String,
        /// What is missing.
        why: String,
    },
    /// Names and passwords could not be read.
    #[error("cannot use the credentials in {place}: {why}")]
    Credentials {
        /// The file or the program.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// The local file system failed.
    #[error("cannot {act} {path}")]
    Io {
        /// `open`, `write`.
        act: &'static str,
        /// What.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Somebody wants it to end.
    #[error("stopped")]
    Stopped,
}

impl RegistryError {
    /// Whether the same question may be answered better in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            RegistryError::Unreachable { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ),
            RegistryError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            RegistryError::Protocol { passing, .. } => *passing,
            RegistryError::WrongBytes { .. } => true,
            _ => false,
        }
    }
}

/// Failures of the local file system, with what was done to which file.
pub(crate) fn failed(
    act: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> RegistryError {
    let path = path.into();
    move |source| RegistryError::Io { act, path, source }
}
