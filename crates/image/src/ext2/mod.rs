//! A root disk from a list of files: an ext2 file system whose every byte is decided before the first
//! one is written (`docs/formats/ext2.md`).
//!
//! [`Tree`] gathers what the disk will hold from directories of the host and from inventories. A
//! [`Plan`] gives each file its inode and its blocks. The plan is a disk already: it is a
//! [`BlockSource`](kiln_block::BlockSource) that makes metadata from memory and reads data from the
//! host's files, and [`Plan::write`] is a copy of that disk into a file. The same tree gives the same
//! bytes.

mod archives;
mod bodies;
mod directory;
mod encode;
mod error;
mod exclude;
mod extents;
mod folder;
mod geometry;
mod hash;
mod host_files;
mod inode;
mod inventory;
mod listed;
mod listing;
mod mapping;
mod placed;
mod plan;
mod scan;
mod source;
mod stored;
mod superblock;
mod tarball;
mod tree;
mod write;
mod xattr;

pub use error::Ext2Error;
pub use folder::Unpacked;
pub use listing::Member;
pub use plan::{Mapping, Options, Plan, Summary};
pub use stored::StoredPlanError;
pub use tree::{Time, Tree};
pub use write::Written;

/// Bytes in a block. Smaller ones save little and make the tables deeper; larger ones exceed a page.
pub(crate) const BLOCK: u64 = 4096;
/// The same, for sizing buffers.
const BLOCK_LEN: usize = 4096;

#[cfg(test)]
mod tests;
