//! What the nodes of a tree hold: attributes, directories, long links and bytes that came with it, before any of it
//! has a place.

use std::collections::HashMap;
use std::sync::Arc;

use super::directory::{self, Name};
use super::encode::count32;
use super::error::Ext2Error;
use super::mapping::{self, Origin, Run};
use super::plan::Numbered;
use super::tree::{Data, Kind, NodeId, Tree};
use super::xattr::{self, INLINE_LEN};
use super::{BLOCK, BLOCK_LEN};
use crate::inventory::feed_bytes;

const LONGEST_TARGET: usize = BLOCK_LEN - 1;
/// Targets up to this long lie in the inode.
const SHORT_TARGET: usize = 59;
/// An inode counts its blocks in sectors of 512 bytes, in 32 bits.
const MOST_BLOCKS: u64 = ((1 << 32) - 1) / (BLOCK / 512);
/// The kernel takes no longer file, holes or not: with all its tables it has to be countable.
const LONGEST_FILE: u64 = (MOST_BLOCKS - mapping::ALL_TABLES) * BLOCK;
const _: () = assert!(LONGEST_FILE == 2_194_719_883_264);
/// Numbers of devices have 12 and 20 bits.
const LARGEST_DEVICE: (u32, u32) = (0xfff, 0xf_ffff);

/// What nodes hold, before it has a place: blocks of attributes, directories and long links, all in
/// one row, and the bytes that came with the tree.
pub(super) struct Bodies {
    pub(super) metadata: Vec<u8>,
    /// So many of the first blocks are attributes.
    pub(super) attribute_blocks: u32,
    pub(super) attributes: HashMap<NodeId, Attributes>,
    /// Directories and long links: the first block, and how many.
    rows: HashMap<NodeId, Row>,
    pub(super) contents: Vec<Arc<[u8]>>,
    content_of: HashMap<NodeId, u32>,
    pub(super) indexed: bool,
    /// Of attributes, names and long links: what inodes do not say.
    pub(super) digest: blake3::Hasher,
}

pub(super) struct Attributes {
    pub(super) inline: Option<[u8; INLINE_LEN]>,
    pub(super) block: Option<u32>,
}

#[derive(Clone, Copy)]
struct Row {
    block: u32,
    blocks: u32,
    indexed: bool,
}

impl Bodies {
    /// Takes the names out of the tree as it writes them down: there need not be room for both.
    pub(super) fn of(tree: &mut Tree, numbered: &Numbered) -> Result<Bodies, Ext2Error> {
        for id in numbered.all() {
            check(tree, id)?;
        }
        let mut bodies = Bodies {
            metadata: Vec::new(),
            attribute_blocks: 0,
            attributes: HashMap::new(),
            rows: HashMap::new(),
            contents: Vec::new(),
            content_of: HashMap::new(),
            indexed: false,
            digest: blake3::Hasher::new(),
        };
        bodies.add_attributes(tree, numbered)?;
        for (id, parent) in &numbered.folders {
            bodies.add_folder(tree, numbered, *id, *parent);
        }
        for id in numbered.all() {
            bodies.add_rest(tree, id);
        }
        Ok(bodies)
    }

    fn add_attributes(&mut self, tree: &Tree, numbered: &Numbered) -> Result<(), Ext2Error> {
        let mut shared: HashMap<Vec<u8>, (u32, u32)> = HashMap::new();
        for id in numbered.all() {
            let mut xattrs = tree.node(id).xattrs.to_vec();
            if xattrs.is_empty() {
                continue;
            }
            let placed = xattr::place(&mut xattrs).ok_or_else(|| {
                let why = "its extended attributes are larger than 4 KiB";
                Ext2Error::Unstorable { path: tree.path_of(id), why }
            })?;
            let block = placed.block.map(|bytes| {
                if let Some((block, sharers)) = shared.get_mut(&bytes)
                    && *sharers < xattr::MOST_SHARERS
                {
                    *sharers += 1;
                    let at = super::encode::index(*block) * BLOCK_LEN;
                    xattr::set_sharers(&mut self.metadata[at..at + BLOCK_LEN], *sharers);
                    return *block;
                }
                let block = self.attribute_blocks;
                self.attribute_blocks += 1;
                self.digest.update(&bytes);
                self.metadata.extend_from_slice(&bytes);
                shared.insert(bytes, (block, 1));
                block
            });
            self.attributes.insert(id, Attributes { inline: placed.inline, block });
        }
        Ok(())
    }

    fn add_folder(&mut self, tree: &mut Tree, numbered: &Numbered, id: NodeId, parent: NodeId) {
        let Kind::Directory(children) = &mut tree.nodes[id.index()].kind else { return };
        let children = std::mem::take(&mut children.names);
        let names: Vec<Name<'_>> = children
            .iter()
            .map(|(name, child)| Name {
                name,
                inode: numbered.number(*child),
                kind: entry_type(&tree.node(*child).kind),
            })
            .collect();
        for name in &names {
            self.digest.update(&name.inode.to_le_bytes());
            feed_bytes(&mut self.digest, name.name);
        }
        let start = self.metadata.len();
        make_room(&mut self.metadata, directory::len_at_most(&names));
        let indexed = directory::append(
            numbered.number(id),
            numbered.number(parent),
            &names,
            &mut self.metadata,
        );
        self.indexed |= indexed;
        self.add_row(id, start, indexed);
    }

    fn add_row(&mut self, id: NodeId, start: usize, indexed: bool) {
        let block = count32(start / BLOCK_LEN);
        let blocks = count32((self.metadata.len() - start) / BLOCK_LEN);
        self.rows.insert(id, Row { block, blocks, indexed });
    }

    fn add_rest(&mut self, tree: &Tree, id: NodeId) {
        match &tree.node(id).kind {
            Kind::Symlink(target) if target.len() > SHORT_TARGET => {
                feed_bytes(&mut self.digest, target);
                let start = self.metadata.len();
                make_room(&mut self.metadata, BLOCK_LEN);
                self.metadata.extend_from_slice(target);
                self.metadata.resize(start + BLOCK_LEN, 0);
                self.add_row(id, start, false);
            }
            Kind::File(Data::Bytes(bytes)) => {
                self.content_of.insert(id, count32(self.contents.len()));
                self.contents.push(Arc::clone(bytes));
            }
            _ => {}
        }
    }

    pub(super) fn folder_len(&self, id: NodeId) -> u64 {
        self.rows.get(&id).map_or(0, |row| u64::from(row.blocks) * BLOCK)
    }

    pub(super) fn is_indexed(&self, id: NodeId) -> bool {
        self.rows.get(&id).is_some_and(|row| row.indexed)
    }

    /// Where a node's blocks have their bytes from, if it has blocks.
    pub(super) fn origin(&self, tree: &Tree, id: NodeId) -> Option<Origin> {
        match &tree.node(id).kind {
            Kind::File(Data::Host { file, .. }) => Some(Origin::Host { file: *file, block: 0 }),
            Kind::File(Data::Member { member, .. }) => {
                Some(Origin::Member { member: *member, block: 0 })
            }
            Kind::File(Data::Bytes(_)) => {
                self.content_of.get(&id).map(|at| Origin::Bytes { content: *at, block: 0 })
            }
            _ => self.rows.get(&id).map(|row| Origin::Metadata { block: row.block }),
        }
    }

    /// Which of a node's blocks are not holes.
    pub(super) fn runs(&self, tree: &Tree, id: NodeId) -> Vec<Run> {
        match &tree.node(id).kind {
            Kind::File(data) => file_runs(data),
            _ => self.rows.get(&id).map_or_else(Vec::new, |row| mapping::dense(row.blocks.into())),
        }
    }
}

/// Which of a file's blocks are not holes.
fn file_runs(data: &Data) -> Vec<Run> {
    match data {
        Data::Host { runs: Some(runs), .. } => runs.0.to_vec(),
        _ => mapping::dense(data.size().div_ceil(BLOCK)),
    }
}

/// Refuses what no inode can say.
fn check(tree: &Tree, id: NodeId) -> Result<(), Ext2Error> {
    let why = match &tree.node(id).kind {
        Kind::Symlink(target) if target.len() > LONGEST_TARGET => {
            "the link's target is longer than 4095 bytes"
        }
        Kind::Symlink(target) if target.is_empty() || target.contains(&0) => {
            "the link's target is no path"
        }
        Kind::File(data) if data.size() > LONGEST_FILE => {
            "it is longer than 2194719883264 bytes, the most that kernels take"
        }
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor)
            if *major > LARGEST_DEVICE.0 || *minor > LARGEST_DEVICE.1 =>
        {
            "its device's number is beyond 4095:1048575"
        }
        _ => return Ok(()),
    };
    Err(Ext2Error::Unstorable { path: tree.path_of(id), why })
}

/// Makes room for more bytes without the half that growing by doubling leaves empty.
pub(super) fn make_room(bytes: &mut Vec<u8>, more: usize) {
    if bytes.capacity() - bytes.len() < more {
        bytes.reserve_exact(more.max(bytes.len() / 256));
    }
}

impl Data {
    pub(super) fn size(&self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Host { size, .. } | Data::Member { size, .. } => *size,
        }
    }
}

/// What an entry says that its inode is.
fn entry_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => directory::DIRECTORY,
        Kind::CharDevice(..) => 3,
        Kind::BlockDevice(..) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}
