//! What a disk is to Kiln: numbers that say what they count, and [`BlockDevice`], the one trait
//! where disk formats and the frontends that serve them meet.
//!
//! Three devices need no format and live here: a raw file ([`FileDevice`]), memory
//! ([`MemoryDevice`]) and zeros ([`ZeroDevice`]). The feature `testing` adds the conformance suite
//! that every implementation passes, and the disks that fail and crash on purpose.

mod device;
mod extents;
mod file;
mod memory;
mod read_only;
#[cfg(feature = "testing")]
pub mod testing;
mod units;
mod zero;

pub use device::{BlockDevice, DeviceError, Extent, ExtentKind, buffers_len, check_range};
pub use extents::Extents;
pub use file::{FileDevice, OpenFileError};
pub use memory::MemoryDevice;
pub use read_only::{BlockSource, ReadOnly, ZeroDevice, zeros};
pub use units::{BlockCount, BlockIndex, ByteLen, ByteOffset, ParseSizeError};
pub use zero::is_zero;
