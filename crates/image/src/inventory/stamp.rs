//! [`Stamp`]: what `lstat` says about a file of the host, to notice when it becomes another.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use crate::closure::host;

/// Everything by which a changed or replaced file can be told from what it was. The change time
/// cannot be set by programs, so even an edit that restores size and modification time is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// The file system it lies on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// How many names it has.
    pub links: u64,
    /// In bytes.
    pub size: u64,
    /// Modification time: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Change time: seconds and nanoseconds.
    pub changed: (i64, i64),
    /// The device it stands for, if it is a device node.
    pub stands_for: u64,
}

impl Stamp {
    /// Takes it from metadata.
    pub fn of(meta: &Metadata) -> Stamp {
        Stamp {
            mode: meta.mode(),
            device: meta.dev(),
            inode: meta.ino(),
            links: meta.nlink(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            stands_for: meta.rdev(),
        }
    }

    /// Takes it from what the kernel said; none if it said what no file system can mean.
    pub(crate) fn of_stat(stat: &rustix::fs::Stat) -> Option<Stamp> {
        Some(Stamp {
            mode: stat.st_mode,
            device: stat.st_dev,
            inode: stat.st_ino,
            links: stat.st_nlink,
            size: u64::try_from(stat.st_size).ok()?,
            modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).ok()?),
            changed: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).ok()?),
            stands_for: stat.st_rdev,
        })
    }

    /// The type bits of its mode.
    pub fn kind(&self) -> u32 {
        self.mode & host::TYPE
    }

    /// The permission bits of its mode.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// Whether another stamp is of the same file with the same content. The number of names may
    /// differ.
    pub fn same_content(&self, other: &Stamp) -> bool {
        Stamp { links: 0, ..*self } == Stamp { links: 0, ..*other }
    }

    /// How long ago it last changed; zero for a time in the future.
    pub(crate) fn age(&self, now: SystemTime) -> Duration {
        let (Ok(seconds), Ok(nanos)) =
            (u64::try_from(self.changed.0), u32::try_from(self.changed.1))
        else {
            return Duration::MAX;
        };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        now.duration_since(changed).unwrap_or_default()
    }

    /// Feeds all of it to a digest.
    pub(crate) fn feed(&self, digest: &mut blake3::Hasher) {
        digest.update(&self.bytes());
    }

    /// All of it, in a fixed order and width. Not the number of names: a hard link made elsewhere changes the change time
    /// already.
    pub(crate) fn bytes(&self) -> [u8; 68] {
        let mut bytes = [0; 68];
        bytes[..4].copy_from_slice(&self.mode.to_le_bytes());
        let numbers = [self.device, self.inode, self.size, self.stands_for].map(u64::to_le_bytes);
        let (modified, changed) = (self.modified, self.changed);
        let times = [modified.0, modified.1, changed.0, changed.1].map(i64::to_le_bytes);
        for (place, number) in bytes[4..].chunks_exact_mut(8).zip(numbers.iter().chain(&times)) {
            place.copy_from_slice(number);
        }
        bytes
    }
}
