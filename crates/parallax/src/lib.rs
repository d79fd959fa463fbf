//! Parallax: many virtual disks in one pool, on a file or any other block device.
//!
//! A [`Pool`] holds disks by name. A snapshot costs the same however large the disk is, and so does a
//! disk made from one; both share what neither has changed since. A [`Disk`] is a
//! [`BlockDevice`](kiln_block::BlockDevice), so that every frontend can serve it. Everything stored has a
//! checksum; after a power cut the pool opens with everything that was flushed
//! (`docs/formats/parallax.md`).
//!
//! ```
//! # use std::sync::Arc;
//! use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
//! use kiln_parallax::{DiskOptions, Pool, PoolOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = PoolOptions { log: ByteLen::mib(1), ..PoolOptions::default() };
//! let pool = Pool::create(Arc::new(MemoryDevice::new(ByteLen::mib(64))), &options)?;
//! pool.create_disk("base", ByteLen::gib(10), &DiskOptions::default())?;
//! pool.open_disk("base")?.write_at(ByteOffset::ZERO, b"prepared")?;
//! pool.snapshot("base", "ready")?;
//! pool.clone_disk("base", "ready", "vm-1", &DiskOptions::default())?;
//! let mut bytes = [0; 8];
//! pool.open_disk("vm-1")?.read_at(ByteOffset::ZERO, &mut bytes)?;
//! assert_eq!(&bytes, b"prepared");
//! # Ok(())
//! # }
//! ```

mod apply;
mod background;
mod base;
mod base_records;
mod cache;
mod catalog;
mod change;
mod check;
mod checkpoint;
mod core;
mod disk;
mod error;
mod fence;
mod file;
mod flatten;
mod format;
mod grow;
mod head;
mod info;
mod leaf;
mod log;
mod node;
mod open;
mod opened;
mod pool;
mod reclaim;
mod replay;
mod salvage;
mod space;
mod stats;
pub mod stream;
mod sync;
mod syncs;
mod tree;
mod wal;

pub use base::{Base, OpenBase, OpenedBase};
pub use check::Report;
pub use disk::Disk;
pub use error::PoolError;
pub use flatten::NewBase;
pub use info::{BaseInfo, DiskInfo, Relative, SnapshotInfo};
pub use open::PoolOptions;
pub use pool::{DiskOptions, Durability, Pool, PoolSpace};
pub use stats::PoolStats;

/// The largest disk.
pub const MAX_DISK: kiln_block::ByteLen = kiln_block::ByteLen::gib(16 << 10);
