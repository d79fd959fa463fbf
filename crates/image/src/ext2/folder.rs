//! A [`Tree`] as a directory of the host: what a disk would hold, to look into or to change root to.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use super::error::Ext2Error;
use super::mapping::Run;
use super::tree::{Data, Kind, Node, NodeId, Time, Tree};
use super::{BLOCK, BLOCK_LEN};
use crate::closure::host::os_str;

/// What came of unpacking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// How many names were made.
    pub entries: u64,
    /// Owners, attributes and devices that could not be given without root's rights.
    pub left_out: u64,
}

impl Tree {
    /// Makes everything the tree holds below an empty directory. Absolute links become relative ones, so that they
    /// lead to the same place before and after a change of root. What only root may do (owners, devices, some
    /// attributes) is done as far as this process may.
    pub fn unpack(&self, into: &Path) -> Result<Unpacked, Ext2Error> {
        let mut unpacking =
            Unpacking { tree: self, done: Unpacked::default(), made: HashMap::new() };
        let mut folders = vec![(NodeId::ROOT, into.to_owned())];
        let mut ahead = vec![(NodeId::ROOT, into.to_owned(), 0)];
        while let Some((folder, path, depth)) = ahead.pop() {
            for (name, id) in self.node(folder).children().into_iter().flatten() {
                let path = path.join(os_str(name));
                if self.node(*id).children().is_some() {
                    fs::create_dir(&path).map_err(failed(&path))?;
                    unpacking.done.entries += 1;
                    folders.push((*id, path.clone()));
                    ahead.push((*id, path, depth + 1));
                } else {
                    unpacking.leaf(*id, &path, depth)?;
                }
            }
        }
        // From the bottom up: what is made in a directory changes its times, and it may become read-only.
        for (id, path) in folders.iter().rev() {
            unpacking.attributes(self.node(*id), path)?;
        }
        Ok(unpacking.done)
    }
}

struct Unpacking<'t> {
    tree: &'t Tree,
    done: Unpacked,
    /// Where files with several names were made first.
    made: HashMap<NodeId, PathBuf>,
}

impl Unpacking<'_> {
    fn leaf(&mut self, id: NodeId, path: &Path, depth: usize) -> Result<(), Ext2Error> {
        let node = self.tree.node(id);
        if let Some(first) = self.made.get(&id) {
            fs::hard_link(first, path).map_err(failed(path))?;
            self.done.entries += 1;
            return Ok(());
        }
        let special = |kind, device| {
            let mode = Mode::from_raw_mode(u32::from(node.permissions) & 0o777);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, device)
        };
        let made = match &node.kind {
            Kind::File(data) => {
                self.file(data, path)?;
                Ok(())
            }
            Kind::Symlink(target) => rustix::fs::symlink(&*relative(target, depth), path),
            Kind::CharDevice(major, minor) => {
                special(FileType::CharacterDevice, rustix::fs::makedev(*major, *minor))
            }
            Kind::BlockDevice(major, minor) => {
                special(FileType::BlockDevice, rustix::fs::makedev(*major, *minor))
            }
            Kind::Fifo => special(FileType::Fifo, 0),
            Kind::Socket => special(FileType::Socket, 0),
            Kind::Directory(_) => Ok(()),
        };
        match made {
            Ok(()) => {}
            Err(Errno::PERM) => {
                self.done.left_out += 1;
                return Ok(());
            }
            Err(errno) => return Err(failed(path)(errno.into())),
        }
        self.done.entries += 1;
        self.made.insert(id, path.to_owned());
        self.attributes(node, path)
    }

    fn file(&self, data: &Data, path: &Path) -> Result<(), Ext2Error> {
        let out = File::create_new(path).map_err(failed(path))?;
        match data {
            Data::Bytes(bytes) => out.write_all_at(bytes, 0).map_err(failed(path)),
            Data::Host { file, size, runs } => {
                out.set_len(*size).map_err(failed(path))?;
                let open = self.tree.host.open(*file)?;
                let all = [Run { start: 0, blocks: u32::MAX }];
                for run in runs.as_ref().map_or(&all[..], |runs| &runs.0) {
                    let start = u64::from(run.start) * BLOCK;
                    let end = (start + u64::from(run.blocks) * BLOCK).min(*size);
                    copy(&open, &out, start, end).map_err(failed(path))?;
                }
                self.tree.host.check(*file, &open)
            }
            Data::Member { member, size } => {
                let mut buffer = vec![0; 16 * BLOCK_LEN];
                let mut at = 0;
                while at < *size {
                    let left = usize::try_from(size - at).unwrap_or(usize::MAX);
                    let part = &mut buffer[..left.min(16 * BLOCK_LEN)];
                    self.tree.archives.read(&self.tree.host, *member, at, part)?;
                    out.write_all_at(part, at).map_err(failed(path))?;
                    at += part.len() as u64;
                }
                Ok(())
            }
        }
    }

    /// Owner, attributes, permissions and times, in the order in which none undoes another.
    fn attributes(&mut self, node: &Node, path: &Path) -> Result<(), Ext2Error> {
        let is_link = matches!(node.kind, Kind::Symlink(_));
        let owner = std::os::unix::fs::lchown(path, Some(node.uid), Some(node.gid));
        self.allowed(owner, path)?;
        for xattr in &*node.xattrs {
            let Some((name, value)) = xattr.for_host() else {
                self.done.left_out += 1;
                continue;
            };
            let flags = rustix::fs::XattrFlags::empty();
            let set = rustix::fs::lsetxattr(path, os_str(&name), value, flags);
            self.allowed(set.map_err(io::Error::from), path)?;
        }
        if !is_link {
            let mode = fs::Permissions::from_mode(u32::from(node.permissions));
            fs::set_permissions(path, mode).map_err(failed(path))?;
        }
        let time = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
        let times = Timestamps {
            last_access: time(node.modified()),
            last_modification: time(node.modified()),
        };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(path)(errno.into()))
    }

    /// Passes over what only root may do.
    fn allowed(&mut self, result: io::Result<()>, path: &Path) -> Result<(), Ext2Error> {
        match result {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL)
                ) =>
            {
                self.done.left_out += 1;
                Ok(())
            }
            Err(error) => Err(failed(path)(error)),
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Ext2Error {
    move |source| Ext2Error::Host { act: "make", path: path.to_owned(), source }
}

/// A link's target as seen from a directory this deep below the root.
fn relative(target: &[u8], depth: usize) -> PathBuf {
    let Some(below) = target.strip_prefix(b"/") else { return PathBuf::from(os_str(target)) };
    let mut path: PathBuf = std::iter::repeat_n("..", depth).collect();
    path.push(os_str(below));
    if path.as_os_str().as_bytes().is_empty() { PathBuf::from(".") } else { path }
}

/// Lets the kernel copy, which shares extents where it can.
fn copy(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut write) = (start, start);
    while write < end {
        let count = usize::try_from((end - write).min(1 << 30)).unwrap_or(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), count) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                break;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut buffer = vec![0; 16 * BLOCK_LEN];
    while write < end {
        let left = usize::try_from(end - write).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        match from.read_at(&mut buffer[..count], write) {
            // Shorter than it was: that it changed is noticed afterwards.
            Ok(0) => break,
            Ok(count) => {
                to.write_all_at(&buffer[..count], write)?;
                write += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn an_unpacked_tree_is_what_was_added() {
        let here = tempfile::tempdir().unwrap();
        let (source, target) = (here.path().join("source"), here.path().join("target"));
        fs::create_dir_all(source.join("etc/deep")).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("etc/file"), "content").unwrap();
        fs::hard_link(source.join("etc/file"), source.join("etc/again")).unwrap();
        std::os::unix::fs::symlink("/etc/file", source.join("etc/deep/link")).unwrap();
        let sparse = File::create(source.join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(b"end", (1 << 20) - 3).unwrap();
        fs::set_permissions(source.join("etc/deep"), fs::Permissions::from_mode(0o555)).unwrap();
        let mut tree = Tree::new();
        tree.add_directory(&source).unwrap();
        assert_eq!(tree.unpack(&target).unwrap().entries, 6);
        let meta = |name: &str| fs::symlink_metadata(target.join(name)).unwrap();
        assert_eq!(meta("etc/file").ino(), meta("etc/again").ino());
        assert_eq!(meta("etc/deep").mode() & 0o7777, 0o555);
        assert_eq!(
            fs::read_link(target.join("etc/deep/link")).unwrap(),
            Path::new("../../etc/file")
        );
        assert_eq!(fs::read(target.join("etc/deep/link")).unwrap(), b"content");
        assert!(meta("sparse").blocks() < 1024, "holes stay holes");
        assert!(
            fs::read(source.join("sparse")).unwrap() == fs::read(target.join("sparse")).unwrap()
        );
        let times = |name: &str| {
            let meta = fs::symlink_metadata(source.join(name)).unwrap();
            (meta.mtime(), meta.mtime_nsec())
        };
        for name in ["etc", "etc/file", "etc/deep/link"] {
            assert_eq!((meta(name).mtime(), meta(name).mtime_nsec()), times(name), "{name}");
        }
        // A user who is not root could not remove what lies in it.
        fs::set_permissions(target.join("etc/deep"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(source.join("etc/deep"), fs::Permissions::from_mode(0o755)).unwrap();
    }
}
