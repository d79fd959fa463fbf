//! What goes wrong with a disk, in the system's numbers.

use std::io::ErrorKind;

use kiln_block::DeviceError;
use rustix::io::Errno;

/// The number that a program which uses the disk gets to see; positive.
pub(crate) fn errno_of(error: &DeviceError) -> i32 {
    let errno = match error {
        DeviceError::OutOfRange { .. } => Errno::INVAL,
        DeviceError::ReadOnly => Errno::ROFS,
        DeviceError::NoSpace { .. } => Errno::NOSPC,
        DeviceError::Damaged { .. } | DeviceError::Poisoned => Errno::IO,
        DeviceError::Io { source, .. } => match source.kind() {
            ErrorKind::OutOfMemory => Errno::NOMEM,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Errno::NOSPC,
            _ => Errno::IO,
        },
    };
    errno.raw_os_error()
}
