//! What a disk is to Kiln: numbers that say what they count, and [`BlockDevice`], the one trait
//! where disk formats and the frontends that serve them meet.

mod device;
mod units;

pub use device::{BlockDevice, DeviceError, Extent, ExtentKind};
pub use units::{BlockCount, BlockIndex, ByteLen, ByteOffset, ParseSizeError};
