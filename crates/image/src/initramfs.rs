//! An inventory as an initramfs (`docs/formats/initramfs.md`): one pass, the same bytes every time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::closure::host;
use crate::inventory::{Content, Entry, GuestPath, HostFile, Identity, Inventory, Node, Stamp};
use crate::newc::{Attributes, WriteError, Writer};

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The archive's length.
    pub bytes: u64,
    /// How many members it has.
    pub entries: u64,
}

/// Why an inventory could not be written.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file is no longer what it was when it was looked at. Building again will see the new one.
    #[error("{path} changed while the image was built", path = path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An entry cannot be written.
    #[error("cannot put {path} into the image")]
    Write {
        /// Which.
        path: GuestPath,
        /// Why.
        source: WriteError,
    },
    /// The archive cannot be ended.
    #[error(transparent)]
    Finish(WriteError),
}

/// Writes an inventory to an empty file. Every modification time is `modified` (seconds since 1970), so that the same
/// content gives the same bytes on any host.
pub fn write(
    inventory: &Inventory,
    modified: u32,
    out: File,
) -> Result<(File, Written), InitramfsError> {
    let mut files = Files::of(inventory);
    let mut writer = Writer::new(out);
    let mut entries = 0;
    for (path, entry) in inventory.entries() {
        let name = &path.as_bytes()[1..];
        let failed = |source| InitramfsError::Write { path: path.clone(), source };
        let (kind, device) = match entry.node {
            Node::Directory => (host::DIRECTORY, (0, 0)),
            Node::Symlink(_) => (host::SYMLINK, (0, 0)),
            Node::File(_) => (host::REGULAR, (0, 0)),
            Node::CharDevice { major, minor } => (host::CHAR_DEVICE, (major, minor)),
            Node::BlockDevice { major, minor } => (host::BLOCK_DEVICE, (major, minor)),
            Node::Fifo => (host::FIFO, (0, 0)),
        };
        let place = files.place(entry);
        let attributes = Attributes {
            mode: kind | entry.permissions,
            inode: place.inode,
            links: if kind == host::DIRECTORY { 2 } else { place.names },
            owner: (entry.owner.user, entry.owner.group),
            modified,
            device,
        };
        entries += 1;
        match &entry.node {
            Node::Symlink(target) => writer.member(name, attributes, target).map_err(failed)?,
            Node::File(_) if !place.carries_data => {
                writer.member(name, attributes, &[]).map_err(failed)?;
            }
            Node::File(Content::Bytes(bytes)) => {
                writer.member(name, attributes, bytes).map_err(failed)?;
            }
            Node::File(Content::Host { path: source, stamp }) => {
                let file = open_as_seen(source, stamp)?;
                let copied = writer.member_from(name, attributes, &file, stamp.size);
                copied.map_err(|error| shrunk(error, source).unwrap_or_else(failed))?;
                check_unchanged(&file, source, stamp)?;
            }
            Node::File(Content::Part { file, at, len }) => {
                let HostFile { path: source, stamp } = &**file;
                let mut file = open_as_seen(source, stamp)?;
                file.seek(io::SeekFrom::Start(*at)).map_err(|error| InitramfsError::Read {
                    path: source.clone(),
                    source: error,
                })?;
                let copied = writer.member_from(name, attributes, &file, *len);
                copied.map_err(|error| shrunk(error, source).unwrap_or_else(failed))?;
                check_unchanged(&file, source, stamp)?;
            }
            _ => writer.member(name, attributes, &[]).map_err(failed)?,
        }
    }
    let (out, bytes) = writer.finish().map_err(InitramfsError::Finish)?;
    Ok((out, Written { bytes, entries }))
}

/// A file that ended early is another one than was looked at; whatever else went wrong comes back.
fn shrunk(error: WriteError, source: &Path) -> Result<InitramfsError, WriteError> {
    match error {
        WriteError::Shrunk => Ok(InitramfsError::Changed { path: source.to_owned() }),
        error => Err(error),
    }
}

/// Numbers files. A file of the host that appears under several names with the same permissions and owner is
/// one file in the archive too: the last of its names carries the data, as GNU cpio does it.
struct Files {
    groups: HashMap<Identity, Group>,
    next: u32,
}

struct Group {
    names: u32,
    written: u32,
    inode: u32,
}

struct Place {
    inode: u32,
    names: u32,
    carries_data: bool,
}

impl Files {
    fn of(inventory: &Inventory) -> Files {
        let mut groups = HashMap::new();
        for identity in inventory.entries().filter_map(|(_, entry)| entry.identity()) {
            let group = groups.entry(identity).or_insert(Group { names: 0, written: 0, inode: 0 });
            group.names += 1;
        }
        Files { groups, next: 1 }
    }

    fn place(&mut self, entry: &Entry) -> Place {
        let fresh = self.next;
        match entry.identity().and_then(|identity| self.groups.get_mut(&identity)) {
            Some(group) if group.written > 0 => {
                group.written += 1;
                let carries_data = group.written == group.names;
                Place { inode: group.inode, names: group.names, carries_data }
            }
            Some(group) => {
                self.next += 1;
                (group.inode, group.written) = (fresh, 1);
                Place { inode: fresh, names: group.names, carries_data: group.names == 1 }
            }
            None => {
                self.next += 1;
                Place { inode: fresh, names: 1, carries_data: true }
            }
        }
    }
}

/// Opens a file if it still is what it was. Never follows a link, never waits for a pipe's writer.
fn open_as_seen(path: &Path, stamp: &Stamp) -> Result<File, InitramfsError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(error) if host::is_absence(&error.into()) || error == rustix::io::Errno::LOOP => {
            return Err(InitramfsError::Changed { path: path.to_owned() });
        }
        Err(error) => {
            return Err(InitramfsError::Read { path: path.to_owned(), source: error.into() });
        }
    };
    check_unchanged(&file, path, stamp)?;
    Ok(file)
}

fn check_unchanged(file: &File, path: &Path, stamp: &Stamp) -> Result<(), InitramfsError> {
    let meta =
        file.metadata().map_err(|source| InitramfsError::Read { path: path.to_owned(), source })?;
    if Stamp::of(&meta).same_content(stamp) {
        Ok(())
    } else {
        Err(InitramfsError::Changed { path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests;
