//! A raw file or a block device as a disk.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate};
use rustix::io::Errno;

use crate::device::{buffers_len, check_range};
use crate::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind};

/// Bytes that one call writes. What one call wrote the page cache may keep as one piece, of up to 2 MiB; of
/// such a piece ext4 (Linux 6.16) looks at every block for each block that is written there later, which then takes
/// 10 to 60 µs instead of 2. More calls cost nothing that could be measured.
const WRITTEN_AT_ONCE: usize = 64 << 10;

/// A raw file or block device. Reads and writes go through the host's page cache; a flush is
/// `fdatasync`; a discard punches a hole where the filesystem can, and is forgotten where it cannot.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    size: AtomicU64,
    read_only: bool,
    /// Set by the first flush that fails: what the kernel dropped then, no later fsync reports.
    poisoned: AtomicBool,
}

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenFileError {
    /// It could not be opened, created or measured.
    #[error("cannot {act} disk {path}")]
    Io {
        /// `open`, `create`, `measure`.
        act: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is a folder, a pipe or a socket.
    #[error("{path} is neither a regular file nor a block device")]
    NotADisk {
        /// Which file.
        path: PathBuf,
    },
}

impl FileDevice {
    /// Opens an existing file or block device.
    pub fn open(path: &Path, read_only: bool) -> Result<FileDevice, OpenFileError> {
        let failed = |act| move |source| OpenFileError::Io { act, path: path.to_owned(), source };
        let file =
            OpenOptions::new().read(true).write(!read_only).open(path).map_err(failed("open"))?;
        FileDevice::of(file, path, read_only)
    }

    /// Takes a file that somebody opened; `path` is what errors call it.
    pub fn of(file: File, path: &Path, read_only: bool) -> Result<FileDevice, OpenFileError> {
        let failed = |act| move |source| OpenFileError::Io { act, path: path.to_owned(), source };
        let kind = file.metadata().map_err(failed("measure"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenFileError::NotADisk { path: path.to_owned() });
        }
        // A block device has no length of its own in its metadata, but seeking to its end tells.
        let size = rustix::fs::seek(&file, SeekFrom::End(0))
            .map_err(|errno| failed("measure")(errno.into()))?;
        Ok(FileDevice {
            file,
            size: AtomicU64::new(size),
            read_only,
            poisoned: AtomicBool::new(false),
        })
    }

    /// Creates a sparse file of that size; an existing one is refused.
    pub fn create(path: &Path, size: ByteLen) -> Result<FileDevice, OpenFileError> {
        let failed = |act| move |source| OpenFileError::Io { act, path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed("create"))?;
        file.set_len(size.get()).map_err(failed("create"))?;
        Ok(FileDevice {
            file,
            size: AtomicU64::new(size.get()),
            read_only: false,
            poisoned: AtomicBool::new(false),
        })
    }

    fn refuse_writes(&self) -> Result<(), DeviceError> {
        if self.read_only {
            Err(DeviceError::ReadOnly)
        } else if self.poisoned.load(Ordering::Acquire) {
            Err(DeviceError::Poisoned)
        } else {
            Ok(())
        }
    }

    /// Writes buffers with one call if that is possible.
    fn write_together(
        &self,
        mut at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        if buffers.len() > 1 {
            let total = buffers_len(buffers).to_usize().unwrap_or(usize::MAX);
            // The slow path below repairs a short one.
            if let Ok(count) = rustix::io::pwritev(&self.file, buffers, at.get())
                && count == total
            {
                return Ok(());
            }
        }
        for buffer in buffers {
            until_done(at, buffer.len(), |position, done| {
                let upto = buffer.len().min(done + WRITTEN_AT_ONCE);
                rustix::io::pwrite(&self.file, &buffer[done..upto], position)
            })
            .map_err(failed("write", at))?;
            at = ByteOffset::new(at.get() + buffer.len() as u64);
        }
        Ok(())
    }

    fn fallocate(
        &self,
        flags: FallocateFlags,
        at: ByteOffset,
        len: ByteLen,
    ) -> Result<(), rustix::io::Errno> {
        if len.is_zero() {
            return Ok(());
        }
        fallocate(&self.file, flags, at.get(), len.get())
    }

    /// Zeros by writing them, where the filesystem has no quicker way.
    fn write_zero_bytes(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        let zeros = [0u8; 65536];
        let mut at = at.get();
        let end = at + len.get();
        while at < end {
            let take = zeros.len().min(usize::try_from(end - at).unwrap_or(zeros.len()));
            self.write_at(ByteOffset::new(at), &zeros[..take])?;
            at += take as u64;
        }
        Ok(())
    }
}

fn failed(act: &'static str, at: ByteOffset) -> impl Fn(io::Error) -> DeviceError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DeviceError::NoSpace { at },
        _ => DeviceError::Io { act, at, source },
    }
}

/// How many of the first buffers one call writes: one at least, whatever its length.
fn count_together(buffers: &[IoSlice<'_>]) -> usize {
    let mut total = 0;
    let fits = buffers.iter().take_while(|buffer| {
        total += buffer.len();
        total <= WRITTEN_AT_ONCE
    });
    fits.count().max(1)
}

/// Repeats a positional call until every byte of `total` went through: the kernel may do less.
fn until_done(
    at: ByteOffset,
    total: usize,
    mut call: impl FnMut(u64, usize) -> Result<usize, Errno>,
) -> Result<(), io::Error> {
    let mut done = 0;
    while done < total {
        match call(at.get() + done as u64, done) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

impl BlockDevice for FileDevice {
    fn size(&self) -> ByteLen {
        ByteLen::new(self.size.load(Ordering::Acquire))
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        check_range(self.size(), at, buffers_len(buffers))?;
        let mut at = at;
        if buffers.len() > 1 {
            let total = buffers_len(buffers).to_usize().unwrap_or(usize::MAX);
            // One call does it nearly always; the slow path below repairs a short one.
            if let Ok(count) = rustix::io::preadv(&self.file, buffers, at.get())
                && count == total
            {
                return Ok(());
            }
        }
        for buffer in buffers {
            until_done(at, buffer.len(), |position, done| {
                rustix::io::pread(&self.file, &mut buffer[done..], position)
            })
            .map_err(failed("read", at))?;
            at = ByteOffset::new(at.get() + buffer.len() as u64);
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        check_range(self.size(), at, buffers_len(buffers))?;
        self.refuse_writes()?;
        let (mut at, mut rest) = (at, buffers);
        while !rest.is_empty() {
            let (together, after) = rest.split_at(count_together(rest));
            self.write_together(at, together)?;
            at = ByteOffset::new(at.get() + buffers_len(together).get());
            rest = after;
        }
        Ok(())
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        check_range(self.size(), at, len)?;
        self.refuse_writes()?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self.fallocate(punch, at, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            Err(errno) => Err(failed("discard", at)(errno.into())),
        }
    }

    fn begin_writing_out(&self, at: ByteOffset, len: ByteLen) {
        // What was written is on its way then, and stays in the page cache meanwhile.
        let len = std::num::NonZeroU64::new(len.get());
        let _ = rustix::fs::fadvise(&self.file, at.get(), len, rustix::fs::Advice::DontNeed);
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        check_range(self.size(), at, len)?;
        self.refuse_writes()?;
        let flags = if keep_allocated {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        };
        match self.fallocate(flags, at, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.write_zero_bytes(at, len),
            Err(errno) => Err(failed("write zeros", at)(errno.into())),
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.read_only {
            return Ok(());
        }
        self.refuse_writes()?;
        self.file.sync_data().map_err(|source| {
            self.poisoned.store(true, Ordering::Release);
            DeviceError::Io { act: "flush", at: ByteOffset::ZERO, source }
        })
    }

    /// Only a regular file can.
    fn grow(&self, size: ByteLen) -> Result<(), DeviceError> {
        self.refuse_writes()?;
        let was = self.size();
        if size <= was {
            return Ok(());
        }
        let at = ByteOffset::new(was.get());
        let is_file = self.file.metadata().map_err(failed("grow", at))?.is_file();
        if !is_file {
            return Err(failed("grow", at)(io::ErrorKind::Unsupported.into()));
        }
        let more = ByteLen::new(size.get() - was.get());
        match self.fallocate(FallocateFlags::empty(), at, more) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.file.set_len(size.get()).map_err(failed("grow", at))?;
            }
            Err(errno) => {
                // What was taken before there was no more is of no use.
                self.file.set_len(was.get()).map_err(failed("grow", at))?;
                return Err(failed("grow", at)(errno.into()));
            }
        }
        self.size.fetch_max(size.get(), Ordering::AcqRel);
        Ok(())
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        check_range(self.size(), at, len)?;
        let end = at.get() + len.get();
        let mut found = Vec::new();
        let mut cursor = at.get();
        let extent = |from: u64, to: u64, kind| Extent {
            at: ByteOffset::new(from),
            len: ByteLen::new(to - from),
            kind,
        };
        while cursor < end {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(cursor)) {
                Ok(position) => position.min(end),
                Err(Errno::NXIO) => end,
                // Block devices and some filesystems know no holes: all of it is data.
                Err(_) => {
                    found.push(extent(cursor, end, ExtentKind::Data));
                    break;
                }
            };
            if data > cursor {
                found.push(extent(cursor, data, ExtentKind::Hole));
            }
            if data < end {
                let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data))
                    .map_or(end, |position| position.min(end))
                    .max(data + 1);
                found.push(extent(data, hole, ExtentKind::Data));
                cursor = hole;
            } else {
                cursor = end;
            }
        }
        Ok(found)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }
}
