//! The folder of disks, as the kernel asks for it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, OpenAccMode, OpenFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyWrite, Request,
};
use kiln_block::BlockDevice;

use super::file::OpenDisk;
use super::names::{disk_of, file_of};
use crate::{Export, Exports};

/// What the kernel may believe without asking again: nothing, for disks come, go and change their size.
const BELIEVED_FOR: Duration = Duration::ZERO;
/// The largest request in bytes.
const LARGEST_WRITE: u32 = 1 << 20;

/// The number of a file in a listing, which says that it has none yet (`FUSE_UNKNOWN_INO`).
const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);

/// All the disks there are, each a file.
pub(super) struct Folder {
    exports: Exports,
    owner: (u32, u32),
    since: SystemTime,
    files: Mutex<Files>,
    open: RwLock<HashMap<u64, Arc<OpenDisk>>>,
    listings: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
    next_handle: AtomicU64,
}

/// The files the kernel knows, by number.
#[derive(Default)]
struct Files {
    known: HashMap<u64, KnownFile>,
    last: u64,
}

/// A file the kernel knows. It keeps no disk alive that is no longer served.
struct KnownFile {
    name: String,
    device: Weak<dyn BlockDevice>,
    read_only: bool,
    lookups: u64,
}

/// One line of a listing.
struct Listed {
    number: INodeNo,
    kind: FileType,
    file: String,
}

impl Folder {
    pub(super) fn new(exports: Exports) -> Folder {
        Folder {
            exports,
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            since: SystemTime::now(),
            files: Mutex::new(Files { known: HashMap::new(), last: INodeNo::ROOT.0 }),
            open: RwLock::default(),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
        }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, number: INodeNo, size: u64, read_only: bool) -> FileAttr {
        let root = number == INodeNo::ROOT;
        FileAttr {
            ino: number,
            size,
            // How much is stored costs a walk over the disk. One block less than all is what makes copying
            // programs ask where the holes are.
            blocks: (size / 512).saturating_sub(1),
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: if root { FileType::Directory } else { FileType::RegularFile },
            perm: match (root, read_only) {
                (true, _) => 0o500,
                (false, true) => 0o400,
                (false, false) => 0o600,
            },
            nlink: if root { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The number of a disk's file; the same for as long as the kernel remembers it and the disk is served.
    fn number_of(&self, name: &str, export: &Export) -> INodeNo {
        let mut files = self.files();
        let device = Arc::downgrade(export.device());
        let found = files.known.iter_mut().find(|(_, file)| {
            file.name == name
                && file.read_only == export.is_read_only()
                && Weak::ptr_eq(&file.device, &device)
        });
        if let Some((number, file)) = found {
            file.lookups += 1;
            return INodeNo(*number);
        }
        files.last += 1;
        let number = files.last;
        let (name, read_only) = (name.to_owned(), export.is_read_only());
        files.known.insert(number, KnownFile { name, device, read_only, lookups: 1 });
        INodeNo(number)
    }

    /// The disk behind a file, while it is served or in use.
    fn disk(&self, number: INodeNo) -> Result<(Arc<dyn BlockDevice>, bool), Errno> {
        let files = self.files();
        let file = files.known.get(&number.0).ok_or(Errno::ENOENT)?;
        let device = file.device.upgrade().ok_or(Errno::ESTALE)?;
        Ok((device, file.read_only))
    }

    fn find(&self, parent: INodeNo, file: &OsStr) -> Result<FileAttr, Errno> {
        let name = file.to_str().and_then(disk_of).filter(|_| parent == INodeNo::ROOT);
        let found = name.and_then(|name| Some((self.exports.get(&name)?, name)));
        let (export, name) = found.ok_or(Errno::ENOENT)?;
        let number = self.number_of(&name, &export);
        Ok(self.attributes(number, export.device().size().get(), export.is_read_only()))
    }

    fn look_at(&self, number: INodeNo) -> Result<FileAttr, Errno> {
        if number == INodeNo::ROOT {
            return Ok(self.attributes(number, 0, false));
        }
        let (device, read_only) = self.disk(number)?;
        Ok(self.attributes(number, device.size().get(), read_only))
    }

    fn open_disk(&self, number: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        let (device, read_only) = self.disk(number)?;
        // Root may open a file that nobody may write to; the disk behind it stays what it is.
        if read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return Err(Errno::EROFS);
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(handle, Arc::new(OpenDisk { device, read_only }));
        Ok(FileHandle(handle))
    }

    fn opened(&self, handle: FileHandle) -> Result<Arc<OpenDisk>, Errno> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn list(&self) -> Vec<Listed> {
        let dots = [".", ".."].map(|file| Listed {
            number: INodeNo::ROOT,
            kind: FileType::Directory,
            file: file.to_owned(),
        });
        let names = self.exports.names();
        // What stands in a listing is known by its name; its number is made when it is looked up.
        let disks = names.iter().filter_map(|name| file_of(name)).map(|file| Listed {
            number: UNKNOWN,
            kind: FileType::RegularFile,
            file,
        });
        dots.into_iter().chain(disks).collect()
    }

    fn forget_file(&self, number: INodeNo, lookups: u64) {
        let mut files = self.files();
        if let Some(file) = files.known.get_mut(&number.0) {
            file.lookups = file.lookups.saturating_sub(lookups);
            if file.lookups == 0 {
                files.known.remove(&number.0);
            }
        }
    }
}

impl fuser::Filesystem for Folder {
    fn init(
        &mut self,
        _request: &Request,
        config: &mut fuser::KernelConfig,
    ) -> std::io::Result<()> {
        // Only a size out of bounds is refused, and this one is not.
        let _ = config.set_max_write(LARGEST_WRITE);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(attributes) => reply.entry(&BELIEVED_FOR, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        self.forget_file(number, lookups);
    }

    fn getattr(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let opened = handle.and_then(|handle| self.opened(handle).ok());
        let attributes = match opened {
            Some(disk) => Ok(self.attributes(number, disk.device.size().get(), disk.read_only)),
            None => self.look_at(number),
        };
        match attributes {
            Ok(attributes) => reply.attr(&BELIEVED_FOR, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    /// Times, owners and modes are not the file's to change, and neither is the size: programs that cut a
    /// file before they write to it expect zeros where they then write nothing.
    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<fuser::TimeOrNow>,
        _mtime: Option<fuser::TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let allowed = |now: FileAttr| {
            let unchanged = size.is_none_or(|size| size == now.size)
                && mode.is_none_or(|mode| mode & 0o7777 == u32::from(now.perm))
                && uid.is_none_or(|uid| uid == now.uid)
                && gid.is_none_or(|gid| gid == now.gid);
            unchanged.then_some(now).ok_or(Errno::EPERM)
        };
        match self.look_at(number).and_then(allowed) {
            Ok(attributes) => reply.attr(&BELIEVED_FOR, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_disk(number, flags) {
            // Past the page cache, for three reasons: a write that returned is with the disk, which says
            // at once if it failed; other frontends of the same disk see it; nothing is cached twice.
            Ok(handle) => reply.opened(
                handle,
                FopenFlags::FOPEN_DIRECT_IO
                    | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
                    | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<fuser::LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<fuser::LockOwner>,
        reply: ReplyData,
    ) {
        let outcome = self.opened(handle).and_then(|disk| disk.read(offset, size));
        match outcome {
            Ok(bytes) => bytes.give(|bytes| reply.data(bytes)),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: fuser::WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<fuser::LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.opened(handle).and_then(|disk| disk.write(offset, data, flags)) {
            Ok(count) => reply.written(count),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        finish(self.opened(handle).and_then(|disk| disk.flush()), reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        finish(self.opened(handle).and_then(|disk| disk.allocate(offset, length, mode)), reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.opened(handle).and_then(|disk| disk.seek(offset, whence)) {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        // One listing does not change while it is read, however disks come and go.
        listings.insert(handle, Arc::new(self.list()));
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        let listing = listings.get(&handle.0).cloned().unwrap_or_default();
        drop(listings);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (listed, next) in listing.iter().zip(1u64..).skip(start) {
            if reply.add(listed.number, next, listed.kind, &listed.file) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _to_parent: INodeNo,
        _to_name: &OsStr,
        _flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}

fn finish(outcome: Result<(), Errno>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
