//! QEMU's disk images, version 2 and 3: read as a block device, and written in one pass.
//!
//! An [`Image`] is one file; with what it names as its backing it becomes a [`Disk`], which is read like any other.
//! Whether a named backing file may be opened is the caller's decision ([`chain`]): an image from elsewhere can name
//! any file of this machine. [`write()`](write()) makes images that QEMU's own tools find nothing wrong with
//! (`docs/formats/qcow2.md`).

pub mod chain;
mod compressed;
mod entry;
mod error;
mod header;
mod image;
mod refcount;
mod snapshot;
mod tables;
mod view;
mod write;

pub use error::Qcow2Error;
pub use header::{BackingFile, Compression};
pub use image::{Image, ImageInfo};
pub use snapshot::SnapshotInfo;
pub use tables::TableCache;
pub use view::{Disk, View};
pub use write::{Progress, WriteOptions, Written, write, write_stream};
