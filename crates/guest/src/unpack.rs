//! A container image's layer unpacked onto a file system by its own driver, for `kiln layer apply`.
//!
//! Called as `kiln-guest --unpack-layer ARCHIVE BYTES DISK TYPE`: the archive is a plain tar at the start of a block
//! device. The file system is made the root first, so that links lead where they would lead in the container, and
//! nowhere else. What the layer finds as it wants it is not touched, so that a small layer makes a small change.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    lgetxattr, linkat, lsetxattr, makedev, mknodat, symlinkat, utimensat,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// In a layer's name: what follows is not there any more.
const WHITEOUT: &[u8] = b".wh.";
/// In a layer: nothing of the lower layers' directory is there any more.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// How tar says that a file has an attribute.
const XATTR: &str = "SCHILY.xattr.";
/// Zeros in blocks of this size stay holes.
const BLOCK: usize = 4096;
/// Where the file system is while it is filled.
const PLACE: &str = "/run/kiln-layer";

/// What is done, or what failed on which path.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let [archive, bytes, disk, kind] = arguments else {
        return Err("it takes an archive, its size, a disk and the type of its file system".into());
    };
    let bytes: u64 = bytes.parse().map_err(|_| format!("{bytes:?} is no number of bytes"))?;
    let archive = File::open(archive).map_err(|error| format!("{archive}: {error}"))?;
    fs::create_dir_all(PLACE).map_err(|error| format!("{PLACE}: {error}"))?;
    let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
    // Nobody sees the disk before it is unmounted, so a journal would be one more copy of all that changes; and nothing is
    // to be changed but what the archive changes. A file system that was not unmounted needs its journal.
    let without_journal = (kind == "ext4").then_some(c"noload,noinit_itable");
    mount(disk.as_str(), PLACE, kind.as_str(), flags, without_journal)
        .or_else(|_| mount(disk.as_str(), PLACE, kind.as_str(), flags, None))
        .map_err(|errno| format!("cannot mount {disk} as {kind}: {errno}"))?;
    let unpacked = in_root(Path::new(PLACE), || Unpacker::default().all(archive.take(bytes)));
    // A part of a layer is no layer, but what was written must not be half of a write either.
    let unmounted = unmount(PLACE, UnmountFlags::empty());
    unpacked??;
    unmounted.map_err(|errno| format!("cannot unmount {disk}: {errno}"))
}

/// Runs something with another root, and comes back.
fn in_root<T>(root: &Path, run: impl FnOnce() -> T) -> Result<T, String> {
    let failed =
        |error: io::Error| format!("cannot change the root to {}: {error}", root.display());
    let old = File::open("/").map_err(failed)?;
    std::os::unix::fs::chroot(root)
        .and_then(|()| std::env::set_current_dir("/"))
        .map_err(failed)?;
    let result = run();
    rustix::process::fchdir(&old).map_err(|errno| failed(errno.into()))?;
    std::os::unix::fs::chroot(".").map_err(failed)?;
    Ok(result)
}

/// What an entry says about a file beside its content.
struct Attributes {
    owner: (u32, u32),
    mode: u32,
    modified: Timespec,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

#[derive(Default)]
struct Unpacker {
    /// What this layer has put there, which its own whiteouts do not mean.
    own: HashSet<(u64, u64)>,
    /// Directories whose times are set when nothing is put into them any more.
    folders: Vec<(PathBuf, Timespec)>,
}

impl Unpacker {
    fn all(mut self, archive: impl Read) -> Result<(), String> {
        let mut tar = tar::Archive::new(archive);
        let broken = |error: io::Error| format!("the archive is malformed: {error}");
        for entry in tar.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let name = entry.path_bytes().into_owned();
            self.entry(&mut entry, &name)
                .map_err(|error| format!("{:?}: {error}", String::from_utf8_lossy(&name)))?;
        }
        for (path, modified) in self.folders.into_iter().rev() {
            set_time(&path, modified).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, name: &[u8]) -> io::Result<()> {
        if entry.header().entry_type().is_pax_global_extensions() {
            return Ok(());
        }
        let path = inside(name)?;
        let Some(last) = path.file_name().map(OsStr::as_bytes) else {
            let attributes = attributes(entry)?;
            return self.keep_folder(&path, attributes);
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        if last == OPAQUE {
            return self.empty(folder);
        }
        if let Some(hidden) = last.strip_prefix(WHITEOUT) {
            return self.hide(&folder.join(OsStr::from_bytes(hidden)));
        }
        make_folders(folder)?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => {
                    fs::remove_file(&path)?;
                    fs::DirBuilder::new().mode(0o700).create(&path)?;
                }
                Err(_) => fs::DirBuilder::new().mode(0o700).create(&path)?,
            }
            let attributes = attributes(entry)?;
            self.note(&path)?;
            return self.keep_folder(&path, attributes);
        }
        if kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let target = inside(&target)?;
            let same = |path: &Path| fs::symlink_metadata(path).map(|it| (it.dev(), it.ino()));
            if same(&path).is_ok_and(|id| same(&target).is_ok_and(|other| other == id)) {
                return self.note(&path);
            }
            remove(&path)?;
            linkat(CWD, &target, CWD, &path, AtFlags::empty())?;
            return self.note(&path);
        }
        remove(&path)?;
        let attributes = attributes(entry)?;
        let device = || -> io::Result<u64> {
            let header = entry.header();
            let (major, minor) = (header.device_major()?, header.device_minor()?);
            Ok(makedev(major.unwrap_or(0), minor.unwrap_or(0)))
        };
        let node = |kind, device| mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device);
        match kind {
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                symlinkat(OsStr::from_bytes(&target), CWD, &path)?;
            }
            tar::EntryType::Char => node(FileType::CharacterDevice, device()?)?,
            tar::EntryType::Block => node(FileType::BlockDevice, device()?)?,
            tar::EntryType::Fifo => node(FileType::Fifo, 0)?,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                write_file(&path, entry)?;
            }
            other => {
                let kind = format!("entries of kind {:?} are not supported", other.as_byte());
                return Err(io::Error::other(kind));
            }
        }
        set(&path, &attributes)?;
        self.note(&path)
    }

    fn note(&mut self, path: &Path) -> io::Result<()> {
        let found = fs::symlink_metadata(path)?;
        self.own.insert((found.dev(), found.ino()));
        Ok(())
    }

    fn is_own(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|it| self.own.contains(&(it.dev(), it.ino())))
    }

    fn keep_folder(&mut self, path: &Path, attributes: Attributes) -> io::Result<()> {
        self.folders.push((path.to_owned(), attributes.modified));
        let found = fs::symlink_metadata(path)?;
        if (found.uid(), found.gid()) != attributes.owner {
            own(path, attributes.owner)?;
        }
        if found.mode() & 0o7777 != attributes.mode {
            chmodat(CWD, path, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
        }
        set_xattrs(path, &attributes.xattrs)
    }

    /// Removes what lower layers left in a directory.
    fn empty(&self, folder: &Path) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
        for entry in entries {
            self.hide(&entry?.path())?;
        }
        Ok(())
    }

    /// Removes what lower layers left there. Of a directory that this layer put there too, all that is not its own.
    fn hide(&self, path: &Path) -> io::Result<()> {
        if !self.is_own(path) {
            return remove(path);
        }
        if fs::symlink_metadata(path)?.is_dir() { self.empty(path) } else { Ok(()) }
    }
}

/// The path of an entry within the root.
fn inside(name: &[u8]) -> io::Result<PathBuf> {
    let mut path = PathBuf::from("/");
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => return Err(io::Error::other("it leads out of the archive")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(path)
}

/// Makes the directories of a path that are not there. Links on the way are followed; a file in the way goes.
fn make_folders(folder: &Path) -> io::Result<()> {
    if fs::metadata(folder).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folders(parent)?;
    }
    match fs::symlink_metadata(folder) {
        Ok(found) if !found.is_symlink() && !found.is_dir() => fs::remove_file(folder)?,
        _ => {}
    }
    fs::DirBuilder::new().mode(0o755).create(folder)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Something on the way is no directory, so nothing is there.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_file(path: &Path, from: &mut impl Read) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut buffer = vec![0; 64 * BLOCK];
    let mut size = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            break;
        }
        for block in buffer[..filled].chunks(BLOCK) {
            if block.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(i64::try_from(block.len()).unwrap_or(0)))?;
            } else {
                file.write_all(block)?;
            }
        }
        size += filled as u64;
    }
    file.set_len(size)
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Attributes> {
    let header = entry.header();
    let (mut uid, mut gid) = (header.uid()?, header.gid()?);
    let mode = header.mode()? & 0o7777;
    let mut modified = Timespec { tv_sec: i64::try_from(header.mtime()?).unwrap_or(0), tv_nsec: 0 };
    let mut xattrs = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let Ok(key) = extension.key() else { continue };
        let number = || extension.value().ok().and_then(|text| text.parse().ok());
        match key {
            "uid" => uid = number().unwrap_or(uid),
            "gid" => gid = number().unwrap_or(gid),
            "mtime" => {
                modified = extension.value().ok().and_then(time).unwrap_or(modified);
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    xattrs.push((OsString::from(name), extension.value_bytes().to_vec()));
                }
            }
        }
    }
    let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("its owner has no number"));
    Ok(Attributes { owner: (id(uid)?, id(gid)?), mode, modified, xattrs })
}

/// Seconds with a fraction, as pax writes them.
fn time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (seconds, nanos): (i64, i64) = (seconds.parse().ok()?, digits.parse().ok()?);
    Some(match text.starts_with('-') && nanos > 0 {
        true => Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos },
        false => Timespec { tv_sec: seconds, tv_nsec: nanos },
    })
}

/// Owner first, for the kernel takes set-user-ID and capabilities away when it changes.
fn set(path: &Path, attributes: &Attributes) -> io::Result<()> {
    own(path, attributes.owner)?;
    if !fs::symlink_metadata(path)?.file_type().is_symlink() {
        chmodat(CWD, path, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
    }
    set_xattrs(path, &attributes.xattrs)?;
    set_time(path, attributes.modified)
}

fn own(path: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn set_xattrs(path: &Path, xattrs: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    for (name, value) in xattrs {
        let mut found = vec![0; value.len() + 1];
        if lgetxattr(path, name, &mut found).is_ok_and(|len| found[..len] == value[..]) {
            continue;
        }
        lsetxattr(path, name, value, XattrFlags::empty())?;
    }
    Ok(())
}

fn set_time(path: &Path, modified: Timespec) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if (found.mtime(), found.mtime_nsec()) == (modified.tv_sec, modified.tv_nsec) {
        return Ok(());
    }
    let times = Timestamps { last_access: modified, last_modification: modified };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
