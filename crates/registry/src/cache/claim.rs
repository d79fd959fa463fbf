//! Who fetches which chunks of a blob. A process locks the entries of chunks in the blob's map while it fetches them, so that
//! of several processes that read one image each chunk is fetched by one.
//!
//! A lock is a courtesy and nothing depends on it: whoever cannot have one, or has waited long enough, fetches by
//! itself, and a chunk is the same whoever stores it. The locks belong to an open file, and the kernel takes them when
//! their process ends, however it does.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, SEEK_SET, flock};

/// Bytes of a map that this process has locked; let go when this is dropped.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    map: &'a File,
    at: u64,
    len: u64,
}

/// What became of the wish for a lock.
#[derive(Debug)]
pub(super) enum Taken<'a> {
    /// This process has so many bytes from the first one on.
    Some(Locked<'a>),
    /// Somebody else has the first one.
    None,
    /// The file system knows no locks.
    Unknown,
}

impl Locked<'_> {
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Then it goes when the file is closed.
        let _ = set(self.map, F_UNLCK, self.at, self.len);
    }
}

/// Locks a range as far as nobody else has it.
pub(super) fn take(map: &File, at: u64, len: u64) -> Taken<'_> {
    let mut len = len;
    // Others come and go between two of these calls.
    for _ in 0..4 {
        match set(map, F_WRLCK, at, len) {
            Ok(()) => return Taken::Some(Locked { map, at, len }),
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(_) => return Taken::Unknown,
        }
        match first_of_others(map, at, len) {
            Ok(Some(start)) if start > at => len = start - at,
            Ok(Some(_)) => return Taken::None,
            Ok(None) => {}
            Err(_) => return Taken::Unknown,
        }
    }
    Taken::None
}

/// Where the first lock of others in a range starts.
fn first_of_others(map: &File, at: u64, len: u64) -> io::Result<Option<u64>> {
    let mut lock = lock(F_WRLCK, at, len)?;
    fcntl(map.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock))?;
    if i32::from(lock.l_type) == F_UNLCK {
        return Ok(None);
    }
    Ok(Some(u64::try_from(lock.l_start).unwrap_or(at)))
}

fn set(map: &File, kind: i32, at: u64, len: u64) -> Result<(), Errno> {
    let lock = lock(kind, at, len).map_err(|_| Errno::EINVAL)?;
    fcntl(map.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).map(|_| ())
}

fn lock(kind: i32, at: u64, len: u64) -> io::Result<flock> {
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
    Ok(flock {
        l_type: i16::try_from(kind).map_err(wrong)?,
        l_whence: i16::try_from(SEEK_SET).map_err(wrong)?,
        l_start: i64::try_from(at).map_err(wrong)?,
        l_len: i64::try_from(len).map_err(wrong)?,
        // Locks of open files belong to no process.
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(taken: Taken<'_>) -> Option<Locked<'_>> {
        match taken {
            Taken::Some(locked) => Some(locked),
            Taken::None => None,
            Taken::Unknown => panic!("this file system knows no locks"),
        }
    }

    #[test]
    fn a_range_is_taken_as_far_as_nobody_else_has_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (mine, theirs) = (open(), open());
        let first = taken(take(&mine, 100, 50)).unwrap();
        assert_eq!(first.len(), 50);
        let part = taken(take(&theirs, 20, 1000)).unwrap();
        assert_eq!(part.len(), 80, "up to the first one");
        assert!(taken(take(&theirs, 149, 1)).is_none());
        assert_eq!(taken(take(&theirs, 150, 8)).unwrap().len(), 8);
        drop(first);
        assert_eq!(taken(take(&theirs, 100, 50)).unwrap().len(), 50);
        drop(part);
        assert_eq!(taken(take(&mine, 0, 1000)).unwrap().len(), 1000);
    }
}
