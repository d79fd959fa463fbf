//! [`Tree`]: what a disk will hold, gathered from directories and inventories, the later over the
//! earlier.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::archives::Archives;
use super::encode::{count32, index};
use super::host_files::HostFiles;
use super::mapping::Run;
use super::xattr::Xattrs;
use crate::inventory::GuestPath;

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Since 1970; less than zero before.
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanos: u32,
}

/// What a disk will hold.
#[derive(Debug)]
pub struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) host: HostFiles,
    pub(super) archives: Archives,
    /// What a person may want to know: attributes that ext2 cannot hold, and the like.
    pub notes: Vec<String>,
    /// Files of the host that may appear under more than one name.
    pub(super) linked: HashMap<(u64, u64, u32), NodeId>,
    /// Wildcards over paths of the disk that it is to do without.
    pub(super) excluded: Vec<String>,
}

/// Which node of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(u32);

/// Everything of a file but its names.
#[derive(Debug)]
pub(super) struct Node {
    /// With set-user-id and its relatives.
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The time's parts, which as a [`Time`] would take more room. There are as many of these as files.
    pub(super) nanos: u32,
    pub(super) seconds: i64,
    pub(super) xattrs: Xattrs,
    pub(super) kind: Kind,
}

const _: () = assert!(size_of::<Node>() <= 56);

/// What a directory holds, by name.
#[derive(Debug, Default)]
pub(super) struct Children {
    pub(super) names: BTreeMap<Box<[u8]>, NodeId>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Directory(Box<Children>),
    Symlink(Box<[u8]>),
    File(Data),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
}

/// A file's bytes.
#[derive(Debug)]
pub(super) enum Data {
    Bytes(Arc<[u8]>),
    Host {
        file: u32,
        size: u64,
        /// What is not a hole; none if all is data.
        runs: Option<Box<Runs>>,
    },
    /// A member of an archive.
    Member {
        member: u32,
        size: u64,
    },
}

/// Which of a file's blocks are not a hole.
#[derive(Debug)]
pub(super) struct Runs(pub(super) Box<[Run]>);

impl NodeId {
    pub(super) const ROOT: NodeId = NodeId(0);

    pub(super) fn index(self) -> usize {
        index(self.0)
    }
}

impl Node {
    pub(super) fn directory(permissions: u16, modified: Time) -> Node {
        let kind = Kind::Directory(Box::default());
        Node { permissions, uid: 0, gid: 0, nanos: 0, seconds: 0, xattrs: Xattrs::default(), kind }
            .modified_at(modified)
    }

    /// The same, modified at another time.
    pub(super) fn modified_at(self, time: Time) -> Node {
        Node { seconds: time.seconds, nanos: time.nanos, ..self }
    }

    pub(super) fn modified(&self) -> Time {
        Time { seconds: self.seconds, nanos: self.nanos }
    }

    pub(super) fn children(&self) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.kind {
            Kind::Directory(children) => Some(&children.names),
            _ => None,
        }
    }
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::new()
    }
}

impl Tree {
    /// An empty root directory, owned by root.
    pub fn new() -> Tree {
        Tree {
            nodes: vec![Node::directory(0o755, Time::default())],
            host: HostFiles::default(),
            archives: Archives::default(),
            notes: Vec::new(),
            linked: HashMap::new(),
            excluded: Vec::new(),
        }
    }

    /// Gives back the room that was held for more.
    pub(super) fn close(&mut self) {
        self.nodes.shrink_to_fit();
        self.host.close();
        self.linked = HashMap::new();
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(super) fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId(count32(self.nodes.len()));
        self.nodes.push(node);
        id
    }

    /// Puts a name into a directory. A directory that meets a directory takes its attributes and keeps
    /// what it holds; anything else is replaced. Returns which node the name stands for.
    pub(super) fn put(&mut self, folder: NodeId, name: &[u8], node: Node) -> NodeId {
        let there = self.child(folder, name);
        if let (Some(there), Kind::Directory(_)) = (there, &node.kind)
            && self.node(there).children().is_some()
        {
            let old = &mut self.nodes[there.index()];
            let kind = std::mem::replace(&mut old.kind, Kind::Fifo);
            *old = Node { kind, ..node };
            return there;
        }
        let id = self.push(node);
        self.link(folder, name, id);
        id
    }

    /// Gives a node a name.
    pub(super) fn link(&mut self, folder: NodeId, name: &[u8], id: NodeId) {
        if let Kind::Directory(children) = &mut self.nodes[folder.index()].kind {
            children.names.insert(name.into(), id);
        }
    }

    /// Takes a name out of a directory.
    pub(super) fn unlink(&mut self, folder: NodeId, name: &[u8]) {
        if let Kind::Directory(children) = &mut self.nodes[folder.index()].kind {
            children.names.remove(name);
        }
    }

    pub(super) fn child(&self, folder: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node(folder).children()?.get(name).copied()
    }

    /// Where a node is, for a message; looked for only then.
    pub(super) fn path_of(&self, wanted: NodeId) -> GuestPath {
        let mut ahead = vec![(NodeId::ROOT, GuestPath::root())];
        while let Some((id, path)) = ahead.pop() {
            if id == wanted {
                return path;
            }
            for (name, child) in self.node(id).children().into_iter().flatten() {
                if let Ok(path) = path.join(crate::closure::host::os_str(name)) {
                    ahead.push((*child, path));
                }
            }
        }
        GuestPath::root()
    }
}
