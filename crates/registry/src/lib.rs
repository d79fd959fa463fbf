//! Images in OCI registries: fetched, sent, and read where they are.
//!
//! A [`Repository`] is asked for manifests and blobs, and given new ones. A [`Reader`] is a blob as bytes of a disk:
//! read by ranges, through a [`Cache`] that other processes share, a little ahead of whoever reads it.
//! [`overlaybd`] says how layers of disks are carried.
//!
//! Everything a registry answers is taken with care: bounded, compared with its digest, asked for again when it is
//! damaged or late.

mod cache;
mod challenge;
mod client;
mod content;
mod credentials;
mod digest;
mod error;
mod http;
mod lazy;
mod manifest;
pub mod overlaybd;
mod reference;
mod repository;
#[cfg(feature = "testing")]
pub mod testing;

pub use cache::Cache;
pub use client::Access;
pub use content::Content;
pub use credentials::{Credentials, Login};
pub use digest::{Digest, Digester, ParseDigestError};
pub use error::RegistryError;
pub use http::{Options, Stop};
pub use lazy::{Fetches, LazyOptions, Notice, Reader};
pub use manifest::{Descriptor, ImageManifest, Manifest, Platform};
pub use reference::{ParseReferenceError, Reference};
pub use repository::{Fetched, Pushed, Repository};

/// Parsers of what registries answer, for fuzzers.
pub mod parsers {
    pub use crate::challenge::{Challenge, Token};
    pub use crate::http::{resolve, said};
    pub use crate::lazy::{Run, parse_trace};
    pub use crate::repository::content_range;
}
