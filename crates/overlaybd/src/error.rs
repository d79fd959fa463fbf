//! What can be wrong with a layer, told so that its reader knows where to look.

use std::io;

use kiln_block::DeviceError;

/// Why a layer, a stack or an upper cannot be opened, written or changed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file system failed.
    #[error("cannot {act} {name}")]
    Io {
        /// `open`, `create`, `write`, `sync`.
        act: &'static str,
        /// Which file.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// What the layer is stored on failed.
    #[error("cannot read {name} at byte {at}")]
    Device {
        /// Which file.
        name: String,
        /// Where in it.
        at: u64,
        /// The cause.
        source: DeviceError,
    },
    /// A rule of the format is broken.
    #[error("{name} is damaged at byte {at}: {rule}")]
    Damaged {
        /// Which file.
        name: String,
        /// Where in it, or in what it unpacks to if the name says so.
        at: u64,
        /// What was found, and what must be there.
        rule: String,
    },
    /// It is well-formed, and this build cannot read it.
    #[error("cannot use {name}: {what}")]
    Unsupported {
        /// Which file.
        name: String,
        /// What is missing, and the way around it.
        what: String,
    },
    /// What was asked for cannot be done or would write what other readers refuse.
    #[error("{0}")]
    Refused(String),
    /// The configuration of an image makes no sense.
    #[error("{name}: {what}")]
    Config {
        /// Which file.
        name: String,
        /// What is wrong, and where.
        what: String,
    },
}

/// Failures of the file system, with what was done to which file.
pub(crate) fn failed(act: &'static str, name: &str) -> impl Fn(io::Error) -> LayerError {
    move |source| LayerError::Io { act, name: name.to_owned(), source }
}
