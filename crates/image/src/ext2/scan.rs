//! From the host's directories and from inventories to a [`Tree`].

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, SeekFrom};
use rustix::io::Errno;

use super::archives::Home;
use super::encode::{low16, low32};
use super::error::Ext2Error;
use super::host_files::{is_gone, open_plainly, wait_out};
use super::mapping::Run;
use super::tree::{Data, Kind, Node, NodeId, Runs, Time, Tree};
use super::xattr::{Xattr, Xattrs};
use super::{BLOCK, mapping};
use crate::closure::host;
use crate::inventory::{Content, GuestPath, Inventory, Node as InventoryNode, Stamp};

const SOCKET: u32 = 0o140_000;
/// The kernel gives out no longer lists of names, nor values.
const LONGEST_XATTR: usize = 65536;

impl Tree {
    /// Adds everything below a directory of the host, with owners, times, links, holes and extended
    /// attributes, and gives the root its attributes. What lies on another file system stays out; the
    /// directory it is mounted on comes empty.
    pub fn add_directory(&mut self, path: &Path) -> Result<(), Ext2Error> {
        let unusable = |source| Ext2Error::Host { act: "look at", path: path.to_owned(), source };
        let meta = fs::metadata(path).map_err(unusable)?;
        if !meta.is_dir() {
            return Err(Ext2Error::NotADirectory { path: path.to_owned() });
        }
        // The source itself may be a link; nothing below it is followed.
        let path = fs::canonicalize(path).map_err(unusable)?;
        let mut xattrs = XattrReader::new();
        let device = self.add_root(&path, &mut xattrs)?;
        let top = path.clone();
        let mut ahead = vec![(path, NodeId::ROOT)];
        while let Some((path, folder)) = ahead.pop() {
            self.scan(&path, folder, (device, Some(&top)), &mut xattrs, &mut ahead)?;
        }
        Ok(())
    }

    /// Gives the root a directory's attributes, and returns which file system that is on.
    pub(super) fn add_root(
        &mut self,
        path: &Path,
        xattrs: &mut XattrReader,
    ) -> Result<u64, Ext2Error> {
        let meta = fs::metadata(path).map_err(failed("look at", path))?;
        let found = xattrs.read(path, &mut self.notes)?;
        let kind = std::mem::replace(&mut self.nodes[NodeId::ROOT.index()].kind, Kind::Fifo);
        self.nodes[NodeId::ROOT.index()] = attributes(&meta, found, kind);
        Ok(meta.dev())
    }

    /// Adds the entries of one directory; directories among them are left for later. `top` is what lies at the disk's
    /// root, if that is known.
    pub(super) fn scan(
        &mut self,
        path: &Path,
        folder: NodeId,
        (device, top): (u64, Option<&Path>),
        xattrs: &mut XattrReader,
        ahead: &mut Vec<(PathBuf, NodeId)>,
    ) -> Result<(), Ext2Error> {
        let mut entries = fs::read_dir(path)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(failed("list", path))?;
        entries.sort_by_cached_key(fs::DirEntry::file_name);
        let mut number = None;
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            if top.is_some_and(|top| self.does_without(top, &path)) {
                continue;
            }
            let look = || entry.metadata();
            let (id, meta) =
                self.add_entry(&path, (folder, name.as_bytes()), look, &mut number, xattrs)?;
            if meta.is_dir() && meta.dev() == device {
                ahead.push((path, id));
            }
        }
        Ok(())
    }

    /// Adds one thing of the host, without what lies in it: a name in a folder. `number` is the host's folder's,
    /// once it has one.
    pub(super) fn add_entry(
        &mut self,
        path: &Path,
        (folder, name): (NodeId, &[u8]),
        look: impl Fn() -> io::Result<Metadata>,
        number: &mut Option<u32>,
        xattrs: &mut XattrReader,
    ) -> Result<(NodeId, Metadata), Ext2Error> {
        let mut meta = look().map_err(failed("look at", path))?;
        if meta.is_file() && self.known(&meta).is_none() && may_have_holes(&meta) {
            let nanos = u32::try_from(meta.ctime_nsec()).unwrap_or(0);
            let since = u64::try_from(meta.ctime()).unwrap_or(0);
            wait_out(std::time::UNIX_EPOCH + std::time::Duration::new(since, nanos));
            meta = look().map_err(failed("look at", path))?;
        }
        if let Some(id) = self.known(&meta) {
            self.link(folder, name, id);
            return Ok((id, meta));
        }
        let device = || (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let kind = match meta.mode() & host::TYPE {
            host::DIRECTORY => Kind::Directory(Box::default()),
            host::SYMLINK => {
                let target = fs::read_link(path).map_err(failed("read", path))?;
                Kind::Symlink(target.as_os_str().as_bytes().into())
            }
            host::CHAR_DEVICE => Kind::CharDevice(device().0, device().1),
            host::BLOCK_DEVICE => Kind::BlockDevice(device().0, device().1),
            host::FIFO => Kind::Fifo,
            SOCKET => Kind::Socket,
            _ => {
                let number = *number.get_or_insert_with(|| {
                    self.host.folder(path.parent().unwrap_or(Path::new("/")))
                });
                check_readable(path, meta.mode())?;
                let runs = if may_have_holes(&meta) {
                    Some(Box::new(Runs(runs(path, &meta)?)))
                } else {
                    None
                };
                let file = self.host.add(number, name, Stamp::of(&meta));
                Kind::File(Data::Host { file, size: meta.len(), runs })
            }
        };
        let found = xattrs.read(path, &mut self.notes)?;
        let id = self.put(folder, name, attributes(&meta, found, kind));
        if !meta.is_dir() && meta.nlink() > 1 {
            self.linked.insert(identity(&meta), id);
        }
        Ok((id, meta))
    }

    /// Adds the entries of an inventory. They were modified at `modified`, and have no extended attributes but the
    /// capabilities of the host's files.
    pub fn add_inventory(
        &mut self,
        inventory: &Inventory,
        modified: Time,
    ) -> Result<(), Ext2Error> {
        let mut xattrs = XattrReader::new();
        let mut numbers = std::collections::HashMap::new();
        let mut archives = std::collections::HashMap::new();
        let mut named = std::collections::HashMap::new();
        for (path, entry) in inventory.entries() {
            let folder = self.folder_of(path, modified)?;
            let name = path.name();
            let identity = entry.identity();
            if let Some(id) = identity.and_then(|identity| named.get(&identity).copied()) {
                self.link(folder, name, id);
                continue;
            }
            let mut host_file = |tree: &mut Tree, source: &Path, stamp: &Stamp| {
                check_readable(source, stamp.mode)?;
                let parent = source.parent().unwrap_or(Path::new("/"));
                let number =
                    *numbers.entry(parent.to_owned()).or_insert_with(|| tree.host.folder(parent));
                let source_name = source.file_name().unwrap_or_default().as_bytes();
                Ok::<u32, Ext2Error>(tree.host.add(number, source_name, *stamp))
            };
            let kind = match &entry.node {
                InventoryNode::Directory => Kind::Directory(Box::default()),
                InventoryNode::Symlink(target) => Kind::Symlink(target.as_slice().into()),
                InventoryNode::CharDevice { major, minor } => Kind::CharDevice(*major, *minor),
                InventoryNode::BlockDevice { major, minor } => Kind::BlockDevice(*major, *minor),
                InventoryNode::Fifo => Kind::Fifo,
                InventoryNode::File(Content::Bytes(bytes)) => {
                    Kind::File(Data::Bytes(bytes.clone()))
                }
                InventoryNode::File(Content::Host { path: source, stamp }) => {
                    let file = host_file(self, source, stamp)?;
                    Kind::File(Data::Host { file, size: stamp.size, runs: None })
                }
                InventoryNode::File(Content::Part { file, at, len }) => {
                    let number = match archives.get(&file.path) {
                        Some(number) => *number,
                        None => {
                            let number = host_file(self, &file.path, &file.stamp)?;
                            archives.insert(file.path.clone(), number);
                            number
                        }
                    };
                    let member = self.archives.member(Home::Host(number), *at, *len);
                    Kind::File(Data::Member { member, size: *len })
                }
            };
            let found = match &entry.node {
                InventoryNode::File(Content::Host { path, .. }) => xattrs.capability(path)?,
                _ => None,
            };
            if path.as_bytes() == b"/" {
                self.nodes[NodeId::ROOT.index()].permissions = low16(entry.permissions);
                let root = &mut self.nodes[NodeId::ROOT.index()];
                (root.seconds, root.nanos) = (modified.seconds, modified.nanos);
                continue;
            }
            let node = Node {
                permissions: low16(entry.permissions & 0o7777),
                uid: entry.owner.user,
                gid: entry.owner.group,
                xattrs: found.into_iter().collect::<Vec<Xattr>>().into(),
                kind,
                ..Node::directory(0, modified)
            };
            let id = self.put(folder, name, node);
            if let Some(identity) = identity {
                named.insert(identity, id);
            }
        }
        Ok(())
    }

    /// The directory that a path lies in, made if it is not there.
    fn folder_of(&mut self, path: &GuestPath, modified: Time) -> Result<NodeId, Ext2Error> {
        let parent = path.parent().unwrap_or_else(GuestPath::root);
        let mut at = NodeId::ROOT;
        for name in parent.as_bytes().split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            at = match self.child(at, name) {
                Some(child) if self.node(child).children().is_some() => child,
                Some(_) => {
                    return Err(Ext2Error::NotADirectory { path: parent.as_path().to_owned() });
                }
                None => self.put(at, name, Node::directory(0o755, modified)),
            };
        }
        Ok(at)
    }

    /// The node of a file that has another name in the tree already.
    fn known(&self, meta: &Metadata) -> Option<NodeId> {
        if meta.is_dir() || meta.nlink() < 2 {
            return None;
        }
        self.linked.get(&identity(meta)).copied()
    }
}

/// What files with the same are one file.
fn identity(meta: &Metadata) -> (u64, u64, u32) {
    (meta.dev(), meta.ino(), meta.mode())
}

fn attributes(meta: &Metadata, xattrs: Xattrs, kind: Kind) -> Node {
    Node {
        permissions: low16(meta.mode() & 0o7777),
        uid: meta.uid(),
        gid: meta.gid(),
        nanos: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
        seconds: meta.mtime(),
        xattrs,
        kind,
    }
}

/// Says early what would fail late, when a machine already runs from the disk.
fn check_readable(path: &Path, mode: u32) -> Result<(), Ext2Error> {
    // Who reached a file that everyone may read may read it.
    if mode & 0o444 == 0o444 {
        return Ok(());
    }
    rustix::fs::access(path, Access::READ_OK).map_err(|errno| failed("read", path)(errno.into()))
}

/// Whether a file takes less space than it has bytes.
fn may_have_holes(meta: &Metadata) -> bool {
    meta.len() > BLOCK && meta.blocks().saturating_mul(512) < meta.len()
}

/// What of a file is not a hole, in whole blocks.
fn runs(path: &Path, meta: &Metadata) -> Result<Box<[Run]>, Ext2Error> {
    let file = open_plainly(path).map_err(failed("read", path))?;
    let end = meta.len();
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < end {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(_) if at == 0 => return Ok(mapping::dense(end.div_ceil(BLOCK)).into()),
            Err(errno) => return Err(failed("read", path)(errno.into())),
        };
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data))
            .map_err(|errno| failed("read", path)(errno.into()))?
            .clamp(data + 1, end.max(data + 1));
        let (first, last) = (data / BLOCK, (hole - 1) / BLOCK);
        if last >= mapping::BLOCK_LIMIT {
            // Such a file is refused, by its length.
            break;
        }
        match runs.last_mut() {
            Some(run) if u64::from(run.start) + u64::from(run.blocks) >= first => {
                run.blocks = low32(last + 1) - run.start;
            }
            _ => runs.push(Run { start: low32(first), blocks: low32(last + 1 - first) }),
        }
        at = hole;
    }
    Ok(runs.into())
}

pub(super) fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Ext2Error {
    move |source| {
        if is_gone(&source) {
            return Ext2Error::Changed { path: path.to_owned() };
        }
        Ext2Error::Host { act, path: path.to_owned(), source }
    }
}

/// Reads extended attributes into buffers of its own.
pub(super) struct XattrReader {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl XattrReader {
    pub(super) fn new() -> XattrReader {
        XattrReader { names: vec![0; LONGEST_XATTR], value: vec![0; LONGEST_XATTR] }
    }

    fn read(&mut self, path: &Path, notes: &mut Vec<String>) -> Result<Xattrs, Ext2Error> {
        let count = match rustix::fs::llistxattr(path, self.names.as_mut_slice()) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Xattrs::default()),
            Ok(count) => count,
            Err(errno) => return Err(failed("read the attributes of", path)(errno.into())),
        };
        let mut found = Vec::new();
        for name in self.names[..count].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let Some(value) = value(path, name, &mut self.value)? else { continue };
            match Xattr::from_host(name, value) {
                Some(xattr) => found.push(xattr),
                None => notes.push(format!(
                    "{} has the attribute {}, which ext2 cannot hold",
                    path.display(),
                    name.escape_ascii()
                )),
            }
        }
        Ok(found.into())
    }

    /// What a program may do beyond its user.
    fn capability(&mut self, path: &Path) -> Result<Option<Xattr>, Ext2Error> {
        const NAME: &[u8] = b"security.capability";
        Ok(value(path, NAME, &mut self.value)?.and_then(|value| Xattr::from_host(NAME, value)))
    }
}

fn value<'b>(
    path: &Path,
    name: &[u8],
    buffer: &'b mut [u8],
) -> Result<Option<&'b [u8]>, Ext2Error> {
    match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut *buffer) {
        Ok(count) => Ok(Some(&buffer[..count])),
        // Removed since, or never there.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(failed("read the attributes of", path)(errno.into())),
    }
}
