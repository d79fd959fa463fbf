//! An inventory as an initramfs (`docs/formats/initramfs.md`): one pass, the same bytes every time.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::closure::host;
use crate::inventory::{Content, Entry, GuestPath, Inventory, Node, Stamp};
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

/// Writes an inventory to an empty file. Owner and group are root, and every modification time is
/// `modified` (seconds since 1970), so that the same content gives the same bytes on any host.
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
                writer.member_from(name, attributes, &file, stamp.size).map_err(
                    |error| match error {
                        WriteError::Shrunk => InitramfsError::Changed { path: source.clone() },
                        error => failed(error),
                    },
                )?;
                check_unchanged(&file, source, stamp)?;
            }
            _ => writer.member(name, attributes, &[]).map_err(failed)?,
        }
    }
    let (out, bytes) = writer.finish().map_err(InitramfsError::Finish)?;
    Ok((out, Written { bytes, entries }))
}

/// Numbers files. A file of the host that appears under several names with the same permissions is
/// one file in the archive too: the last of its names carries the data, as GNU cpio does it.
struct Files {
    groups: HashMap<Identity, Group>,
    next: u32,
}

type Identity = (u64, u64, u32);

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
        for identity in inventory.entries().filter_map(|(_, entry)| identity(entry)) {
            let group = groups.entry(identity).or_insert(Group { names: 0, written: 0, inode: 0 });
            group.names += 1;
        }
        Files { groups, next: 1 }
    }

    fn place(&mut self, entry: &Entry) -> Place {
        let fresh = self.next;
        match identity(entry).and_then(|identity| self.groups.get_mut(&identity)) {
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

fn identity(entry: &Entry) -> Option<Identity> {
    match &entry.node {
        Node::File(Content::Host { stamp, .. }) => {
            Some((stamp.device, stamp.inode, entry.permissions))
        }
        _ => None,
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
