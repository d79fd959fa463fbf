//! Putting a folder of disks into the file system, and taking it away again.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstatfs, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use super::MountError;
use super::table::{Mounted, mounted_at};

/// How such a mount is known in the system's table of mounts.
const KIND: &str = "fuse.kiln";
/// `FUSE_SUPER_MAGIC`.
const FUSE_MAGIC: u64 = 0x6573_5546;
/// The program that mounts for those who may not, and comes with libfuse.
const HELPER: &str = "fusermount3";

/// A folder of this process in the file system.
#[derive(Debug)]
pub(super) struct Place {
    folder: PathBuf,
    mounted: Option<Mounted>,
    /// The folder below the mount, locked: of several processes only one takes it.
    below: File,
}

/// Who mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The process itself if it may, else the helper.
    Whoever,
    /// The helper.
    Helper,
}

/// Whether somebody still used the folder when it was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nobody did.
    Free,
    /// Somebody did, and was cut off.
    InUse,
    /// Somebody does, and could not be cut off.
    Lingering,
}

impl Place {
    /// Mounts, and returns the kernel's end of it.
    pub(super) fn take(folder: &Path, by: By) -> Result<(Place, OwnedFd), MountError> {
        let failed = |act| {
            let folder = folder.to_owned();
            move |source| MountError::Io { act, folder, source }
        };
        let below = claim(folder)?;
        let folder = folder.canonicalize().map_err(failed("look at"))?;
        let direct = match by {
            By::Whoever => mount_directly(&folder)?,
            By::Helper => None,
        };
        let kernel = match direct {
            Some(kernel) => kernel,
            None => mount_through_helper(&folder)?,
        };
        let mut place = Place { folder, mounted: None, below };
        // Found here, it can be told from what others may mount over it later.
        place.mounted = mounted_at(&place.folder).map_err(failed("find the mount of"))?;
        Ok((place, kernel))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes the folder away, also from those who still use it, too.
    pub(super) fn leave(&mut self) -> Left {
        let Some(mounted) = self.mounted.take() else { return Left::Free };
        // Somebody may have unmounted it, and mounted something else there.
        if mounted_at(&self.folder).ok().flatten().as_ref() != Some(&mounted) {
            return if mounted.abort() { Left::InUse } else { Left::Lingering };
        }
        match unmount(&self.folder, UnmountFlags::NOFOLLOW) {
            Ok(()) => return Left::Free,
            Err(Errno::PERM) if helper_unmounts(&self.folder, false) => return Left::Free,
            Err(_) => {}
        }
        // Whoever waits for the disks gets an error now, and so do this folder's threads.
        let aborted = mounted.abort();
        let forced = unmount(&self.folder, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW);
        if forced.is_err() && unmount(&self.folder, UnmountFlags::DETACH).is_err() {
            helper_unmounts(&self.folder, true);
        }
        // The superuser's force cuts off as well.
        match aborted || forced != Err(Errno::PERM) {
            true => Left::InUse,
            false => Left::Lingering,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
        // Closing it is not enough while a child that was just forked has it as well.
        let _ = flock(&self.below, FlockOperation::Unlock);
    }
}

/// Makes sure that a folder is free, and that it stays so for others: what a process that died left is
/// taken away first.
fn claim(folder: &Path) -> Result<File, MountError> {
    let failed = |act| move |source| MountError::Io { act, folder: folder.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let below = match open(folder, flags, Mode::empty()) {
        Err(Errno::NOTCONN) => {
            clear_dead(folder)?;
            open(folder, flags, Mode::empty())
        }
        opened => opened,
    };
    let below = File::from(below.map_err(|errno| failed("open")(errno.into()))?);
    let found = fstatfs(&below).map_err(|errno| failed("look at")(errno.into()))?;
    if u64::try_from(found.f_type).is_ok_and(|kind| kind == FUSE_MAGIC)
        || flock(&below, FlockOperation::NonBlockingLockExclusive).is_err()
    {
        return Err(MountError::InUse { folder: folder.to_owned() });
    }
    if folder.read_dir().map_err(failed("list"))?.next().is_some() {
        return Err(MountError::NotEmpty { folder: folder.to_owned() });
    }
    Ok(below)
}

/// Takes away what a process that died left: a mount of our kind that nobody answers for.
fn clear_dead(folder: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::Io {
        act: "clear the dead mount on",
        folder: folder.to_owned(),
        source,
    };
    // The folder itself cannot be looked at, but the one it is in can.
    let name = folder.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let path = parent.canonicalize().map_err(failed)?.join(name);
    let ours = mounted_at(&path).map_err(failed)?.is_some_and(|found| found.kind == KIND);
    if !ours {
        return Err(MountError::InUse { folder: folder.to_owned() });
    }
    match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) if helper_unmounts(&path, true) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Mounts as the superuser; `None` for whoever is not.
fn mount_directly(folder: &Path) -> Result<Option<OwnedFd>, MountError> {
    let failed = |source: Errno| MountError::Io {
        act: "mount",
        folder: folder.to_owned(),
        source: source.into(),
    };
    let kernel = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| MountError::NoFuse { source: errno.into() })?;
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        kernel.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    // No such text has a zero byte in it.
    let options = CString::new(options).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    match mount("kiln", folder, KIND, flags, options.as_c_str()) {
        Ok(()) => Ok(Some(kernel)),
        Err(Errno::PERM) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}

/// Lets libfuse's program mount, which then passes the kernel's end through a socket.
fn mount_through_helper(folder: &Path) -> Result<OwnedFd, MountError> {
    let failed = |source: io::Error| MountError::Helper {
        folder: folder.to_owned(),
        said: source.to_string(),
    };
    let socket = || {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)
    };
    let (ours, theirs) = socket().map_err(failed)?;
    let child = Command::new(HELPER)
        .args(["-o", "fsname=kiln,subtype=kiln,default_permissions,nosuid,nodev,noexec", "--"])
        .arg(folder)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::NoHelper { folder: folder.to_owned() });
        }
        child => child.map_err(failed)?,
    };
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said: String =
            String::from_utf8_lossy(&output.stderr).trim().chars().take(400).collect();
        return Err(MountError::Helper { folder: folder.to_owned(), said });
    }
    receive(ours.as_fd()).map_err(failed)
}

/// The descriptor that was passed through a socket.
fn receive(socket: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut passed = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut passed, RecvFlags::CMSG_CLOEXEC)?;
    passed
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("fusermount3 passed no descriptor"))
}

/// Lets libfuse's program unmount, also what is in use if `lazy`. Whether it did.
fn helper_unmounts(folder: &Path, lazy: bool) -> bool {
    let mut command = Command::new(HELPER);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(folder);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
