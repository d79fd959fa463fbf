//! Locks between builders, users and removers of images, of this process or of others.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Holds a lock until it is dropped; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody else holds the lock of this name.
    pub(super) fn wait(path: &Path) -> io::Result<Lock> {
        loop {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            lock(&file, FlockOperation::LockExclusive)?;
            // Somebody may have removed the file while we waited: then others lock another one.
            if is_still_there(&file, path) {
                return Ok(Lock { _file: file });
            }
        }
    }

    /// The lock, unless somebody holds it.
    pub(super) fn try_now(path: &Path) -> io::Result<Option<Lock>> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let free = lock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok((free && is_still_there(&file, path)).then_some(Lock { _file: file }))
    }
}

/// Keeps an image from being removed by Kiln for as long as it lives.
#[derive(Debug)]
pub struct Lease {
    file: File,
}

impl Lease {
    /// Takes a lease on the file at `path`; none if there is none.
    pub(super) fn take(path: &Path) -> io::Result<Option<Lease>> {
        loop {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            lock(&file, FlockOperation::LockShared)?;
            if is_still_there(&file, path) {
                return Ok(Some(Lease { file }));
            }
        }
    }

    /// The image.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The image's length.
    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Remembers that the image was used now: its modification time is when it was used last.
    pub(super) fn touch(&self) {
        // Of use to `prune` alone; a read-only store is no reason to fail.
        let _ = self.file.set_modified(std::time::SystemTime::now());
    }
}

/// Removes the file at `path` unless somebody has a lease on it. Says whether it is gone.
pub(super) fn remove_unless_leased(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    if !lock(&file, FlockOperation::NonBlockingLockExclusive)? {
        return Ok(false);
    }
    if is_still_there(&file, path) {
        std::fs::remove_file(path)?;
    }
    Ok(true)
}

/// Locks a file. Says whether it did; only a non-blocking operation may not.
fn lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}
