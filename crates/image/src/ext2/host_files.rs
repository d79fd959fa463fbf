//! The host's files behind a plan: opened when their bytes are wanted, and never trusted to be what
//! they were.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::encode::{count32, index};
use super::error::Ext2Error;
use crate::closure::host::{is_absence, os_str};
use crate::inventory::Stamp;

/// How many files are kept open for the next read.
const OPEN_FILES: usize = 32;
/// A file's change time moves at the clock's ticks only. A change that comes longer than this after
/// another has another time.
const TICK: Duration = Duration::from_millis(20);

/// Files of the host, by number.
#[derive(Debug, Default)]
pub(super) struct HostFiles {
    folders: Vec<PathBuf>,
    files: Vec<HostFile>,
    /// All files' names, one after the other.
    names: Vec<u8>,
    /// The file systems that files lie on; few, and mostly one.
    devices: Vec<u64>,
    /// When the one that changed last did so.
    youngest: (i64, i64),
    open: Mutex<VecDeque<(u32, Arc<File>)>>,
}

/// A file as it was seen. Of a [`Stamp`] it lacks what says nothing about a regular file's bytes.
#[derive(Clone, Copy, Debug)]
struct HostFile {
    inode: u64,
    size: u64,
    modified: i64,
    changed: i64,
    modified_nanos: u32,
    changed_nanos: u32,
    mode: u32,
    /// Which of the file systems it lies on.
    device: u32,
    folder: u32,
    /// Where its name ends in the row of names; it begins where the one before ends.
    name_end: u32,
}

// There are as many of these as files.
const _: () = assert!(size_of::<HostFile>() <= 56);

impl HostFiles {
    /// Remembers a folder that files lie in. Who keeps the plan may read it from another one.
    pub(super) fn folder(&mut self, path: &Path) -> u32 {
        let absolute = std::path::absolute(Path::new(".").join(path));
        self.folders.push(absolute.unwrap_or_else(|_| path.to_owned()));
        count32(self.folders.len() - 1)
    }

    /// Remembers a file as it was seen.
    pub(super) fn add(&mut self, folder: u32, name: &[u8], stamp: Stamp) -> u32 {
        self.youngest = self.youngest.max(stamp.changed);
        self.names.extend_from_slice(name);
        let device = self.devices.iter().rposition(|device| *device == stamp.device);
        let device = device.unwrap_or_else(|| {
            self.devices.push(stamp.device);
            self.devices.len() - 1
        });
        let nanos = |nanos: i64| u32::try_from(nanos).unwrap_or(u32::MAX);
        self.files.push(HostFile {
            inode: stamp.inode,
            size: stamp.size,
            modified: stamp.modified.0,
            changed: stamp.changed.0,
            modified_nanos: nanos(stamp.modified.1),
            changed_nanos: nanos(stamp.changed.1),
            mode: stamp.mode,
            device: count32(device),
            folder,
            name_end: count32(self.names.len()),
        });
        count32(self.files.len() - 1)
    }

    /// Gives back the room that was held for more files.
    pub(super) fn close(&mut self) {
        self.files.shrink_to_fit();
        self.names.shrink_to_fit();
        self.folders.shrink_to_fit();
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// How many bytes a file had.
    pub(super) fn size(&self, file: u32) -> u64 {
        self.files[index(file)].size
    }

    /// All folders, by number.
    pub(super) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// All files, by number: folder, name, and as they were seen.
    pub(super) fn files(&self) -> impl Iterator<Item = (u32, &[u8], Stamp)> {
        (0..).zip(&self.files).map(|(at, file)| (file.folder, self.name(at), self.stamp(at)))
    }

    pub(super) fn stamp(&self, file: u32) -> Stamp {
        let file = self.files[index(file)];
        Stamp {
            mode: file.mode,
            device: self.devices.get(index(file.device)).copied().unwrap_or_default(),
            inode: file.inode,
            links: 0,
            size: file.size,
            modified: (file.modified, file.modified_nanos.into()),
            changed: (file.changed, file.changed_nanos.into()),
            stands_for: 0,
        }
    }

    fn name(&self, file: u32) -> &[u8] {
        let end = index(self.files[index(file)].name_end);
        let before = index(file).checked_sub(1).and_then(|before| self.files.get(before));
        let start = before.map_or(0, |before| index(before.name_end));
        self.names.get(start..end).unwrap_or_default()
    }

    /// Where a file is.
    pub(super) fn path(&self, file: u32) -> PathBuf {
        self.folders[index(self.files[index(file)].folder)].join(os_str(self.name(file)))
    }

    /// Waits until whatever changes a file that was looked at also changes its stamp.
    pub(super) fn settle(&self) {
        let (seconds, nanos) = self.youngest;
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
            return;
        };
        wait_out(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
    }

    /// Fills a buffer from a file; beyond its end are zeros. Fails if the file is another now.
    pub(super) fn read(&self, file: u32, at: u64, buffer: &mut [u8]) -> Result<(), Ext2Error> {
        let size = self.files[index(file)].size;
        let inside = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
        let (data, beyond) = buffer.split_at_mut(inside.min(buffer.len()));
        beyond.fill(0);
        if data.is_empty() {
            return Ok(());
        }
        let open = self.open(file)?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pread(&*open, &mut data[done..], at + done as u64) {
                Ok(0) => return Err(Ext2Error::Changed { path: self.path(file) }),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed(file, errno.into())),
            }
        }
        self.check(file, &open)
    }

    /// A file, open. What is read from it counts only once [`check`](Self::check) has passed.
    pub(super) fn open(&self, file: u32) -> Result<Arc<File>, Ext2Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = open.iter().rev().find(|(number, _)| *number == file) {
            return Ok(Arc::clone(found));
        }
        let path = self.path(file);
        let opened = match open_plainly(&path) {
            Ok(opened) => Arc::new(opened),
            Err(error) if is_gone(&error) => return Err(Ext2Error::Changed { path }),
            Err(error) => return Err(self.failed(file, error)),
        };
        if open.len() >= OPEN_FILES {
            open.pop_front();
        }
        open.push_back((file, Arc::clone(&opened)));
        Ok(opened)
    }

    /// Fails if a file is not what it was when it was looked at. Programs that write change its
    /// times before its bytes, so what was read before this passes is what was planned.
    pub(super) fn check(&self, file: u32, open: &File) -> Result<(), Ext2Error> {
        let meta = open.metadata().map_err(|error| self.failed(file, error))?;
        let now = Stamp { stands_for: 0, ..Stamp::of(&meta) };
        if now.same_content(&self.stamp(file)) {
            return Ok(());
        }
        Err(Ext2Error::Changed { path: self.path(file) })
    }

    fn failed(&self, file: u32, source: io::Error) -> Ext2Error {
        Ext2Error::Host { act: "read", path: self.path(file), source }
    }
}

/// Opens a file for reading: never follows a link, never waits for a pipe's writer.
pub(super) fn open_plainly(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Whether an error says that what was seen is there no more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    is_absence(error) || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// Waits until a change that happens next has another time than one that happened then.
pub(super) fn wait_out(then: SystemTime) {
    if let Ok(age) = SystemTime::now().duration_since(then)
        && let Some(left) = TICK.checked_sub(age)
    {
        std::thread::sleep(left);
    }
}
