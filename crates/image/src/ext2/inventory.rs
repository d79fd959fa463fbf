//! From a [`Tree`] to an [`Inventory`]: what lies below an image's own entries, gathered as a disk's would be.

use std::collections::HashMap;
use std::sync::Arc;

use super::archives::{Archives, Home};
use super::host_files::HostFiles;
use super::tree::{Data, Kind, Node, NodeId, Tree};
use super::{Ext2Error, encode::index};
use crate::closure::host::os_str;
use crate::inventory::{
    Content, Entry, GuestPath, HostFile, Inventory, Node as InventoryNode, Owner,
};

impl Tree {
    /// Everything it holds but its root, without times, and without extended attributes but those that a disk will read
    /// from the host's files again. Members of archives that nobody else can open are read.
    ///
    /// # Errors
    /// When such a member cannot be read, or a path is none.
    pub(crate) fn into_inventory(mut self) -> Result<Inventory, Ext2Error> {
        self.leave_out_excluded();
        let mut inventory = Inventory::default();
        let (mut without, mut homes) = (0_usize, HashMap::new());
        let mut ahead = vec![(NodeId::ROOT, GuestPath::root())];
        while let Some((id, folder)) = ahead.pop() {
            for (name, child) in self.node(id).children().into_iter().flatten() {
                let unstorable =
                    |_| Ext2Error::Unstorable { path: folder.clone(), why: "a name in it is none" };
                let path = folder.join(os_str(name)).map_err(unstorable)?;
                let node = self.node(*child);
                if !node.xattrs.is_empty() && matches!(node.kind, Kind::File(Data::Member { .. })) {
                    without += 1;
                }
                if node.children().is_some() {
                    ahead.push((*child, path.clone()));
                }
                match content(node, &self.host, &self.archives, &mut homes)? {
                    Some(content) => {
                        let owner = Owner { user: node.uid, group: node.gid };
                        let permissions = u32::from(node.permissions);
                        let entry = Entry { permissions, owner, node: content };
                        inventory.put(path, entry).map_err(|_| Ext2Error::NotADirectory {
                            path: folder.as_path().to_owned(),
                        })?;
                    }
                    None => inventory.notes.push(format!("{path} left out: it is a socket")),
                }
            }
        }
        inventory.notes.append(&mut self.notes);
        if without > 0 {
            let note = format!("{without} files from archives come without extended attributes");
            inventory.notes.push(note);
        }
        Ok(inventory)
    }
}

/// What a node is; none for what an image cannot hold.
fn content(
    node: &Node,
    host: &HostFiles,
    archives: &Archives,
    homes: &mut HashMap<u32, Arc<HostFile>>,
) -> Result<Option<InventoryNode>, Ext2Error> {
    Ok(Some(match &node.kind {
        Kind::Directory(_) => InventoryNode::Directory,
        Kind::Symlink(target) => InventoryNode::Symlink(target.to_vec()),
        Kind::CharDevice(major, minor) => {
            InventoryNode::CharDevice { major: *major, minor: *minor }
        }
        Kind::BlockDevice(major, minor) => {
            InventoryNode::BlockDevice { major: *major, minor: *minor }
        }
        Kind::Fifo => InventoryNode::Fifo,
        Kind::Socket => return Ok(None),
        Kind::File(Data::Bytes(bytes)) => InventoryNode::File(Content::Bytes(bytes.clone())),
        Kind::File(Data::Host { file, .. }) => {
            InventoryNode::File(Content::Host { path: host.path(*file), stamp: host.stamp(*file) })
        }
        Kind::File(Data::Member { member, .. }) => {
            let found = archives.members()[index(*member)];
            InventoryNode::File(match found.home {
                Home::Host(file) => {
                    let home = homes.entry(file).or_insert_with(|| {
                        Arc::new(HostFile { path: host.path(file), stamp: host.stamp(file) })
                    });
                    Content::Part { file: Arc::clone(home), at: found.start, len: found.len }
                }
                Home::Archive(_) => Content::Bytes(archives.bytes(host, *member)?.into()),
            })
        }
    }))
}
