//! One saver at a time for each machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held until it is dropped; the kernel gives it back when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// The lock, unless somebody has it.
    pub(super) fn try_now(path: &Path) -> io::Result<Option<Lock>> {
        loop {
            let file = File::options().create(true).append(true).open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            let same = |here: &fs::Metadata, there: &fs::Metadata| {
                (here.dev(), here.ino()) == (there.dev(), there.ino())
            };
            // Somebody may have removed the file meanwhile: then others lock another one.
            match (file.metadata(), fs::metadata(path)) {
                (Ok(here), Ok(there)) if same(&here, &there) => {
                    return Ok(Some(Lock { _file: file }));
                }
                _ => {}
            }
        }
    }
}
