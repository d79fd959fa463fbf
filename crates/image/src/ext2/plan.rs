//! [`Plan`]: every inode and every block of a disk, decided.

use std::fmt;
use std::sync::Arc;

use kiln_block::ByteLen;

use super::archives::Archives;
use super::bodies::Bodies;
use super::encode::{count32, low16, low32};
use super::error::Ext2Error;
use super::geometry::{Allocator, Geometry};
use super::host_files::HostFiles;
use super::inode::{self, Inode};
use super::mapping::{self, Mapped, Placement, Segment};
use super::superblock::{self, FIRST_INODE, Identity, Usage};
use super::tree::{Kind, Node, NodeId, Time, Tree};
use super::{BLOCK, BLOCK_LEN, directory, extents};
use crate::inventory::GuestPath;

/// How many names an inode can have, and how many directories a directory can hold but two.
const MOST_LINKS: u32 = 65_000;
/// Longer names do not fit.
const LONGEST_NAME: usize = 255;
/// Bytes that a directory's names may take. Its length has to fit into 31 bits, and nobody lists a longer one.
const LARGEST_FOLDER: usize = 1 << 30;
/// One inode for this much free space, if not told otherwise.
const FREE_BYTES_PER_INODE: u64 = 16 << 10;

/// How a disk is to be made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Space for files to come, beside what the tree needs.
    pub free: ByteLen,
    /// How large the whole disk is, whatever of that is free; instead of `free`.
    pub size: Option<ByteLen>,
    /// Inodes for files to come; by default one for each 16 KiB of free space.
    pub free_inodes: Option<u32>,
    /// `SOURCE_DATE_EPOCH`: later modification times become this one, and the disk was made then.
    /// Without, the disk was made in 1970.
    pub epoch: Option<i64>,
    /// The file system's name, at most 16 bytes of it.
    pub label: String,
    /// The file system's identity; by default a digest of its metadata.
    pub uuid: Option<[u8; 16]>,
    /// How files' blocks are found.
    pub mapping: Mapping,
}

/// How files' blocks are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// By tables of pointers, as every reader of ext2 knows them.
    #[default]
    Tables,
    /// By extents: an ext4 file system without a journal, which `mount -t ext2` refuses. Large files have next
    /// to no metadata.
    Extents,
}

/// What a disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How large it is.
    pub size: ByteLen,
    /// Inodes in use, beyond the reserved ones.
    pub entries: u64,
    /// Bytes for which no file is needed.
    pub metadata: ByteLen,
    /// Space that nothing uses.
    pub free: ByteLen,
    /// Files of the host, and members of archives, that it reads.
    pub host_files: u64,
}

/// A disk, every byte of which is decided. It reads the host's files when their blocks are read; one
/// that changed since the plan was made is an error there, never other bytes.
///
/// What cannot be noticed: a program that keeps writing through a shared mapping it wrote through
/// before, until the kernel has written that page back.
pub struct Plan {
    pub(super) geometry: Geometry,
    pub(super) usage: Usage,
    pub(super) identity: Identity,
    pub(super) descriptors: Vec<u8>,
    /// Inodes from the first on, as far as they are in use.
    pub(super) inodes: Vec<u8>,
    /// Directories, tables, attributes and long links.
    pub(super) metadata: Vec<u8>,
    /// What blocks for files hold, ascending.
    pub(super) segments: Vec<Segment>,
    pub(super) contents: Vec<Arc<[u8]>>,
    pub(super) host: HostFiles,
    pub(super) archives: Archives,
    pub(super) notes: Vec<String>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Plan {
    /// Plans a disk. Waits a few milliseconds if files have only just been written, so that a later
    /// change can be told by their times.
    pub fn new(mut tree: Tree, options: &Options) -> Result<Plan, Ext2Error> {
        tree.leave_out_excluded();
        ensure_lost_and_found(&mut tree, options)?;
        tree.close();
        let numbered = Numbered::of(&tree)?;
        let mut bodies = Bodies::of(&mut tree, &numbered)?;
        let last_inode = u64::from(numbered.last());
        let geometry = geometry(&tree, &numbered, &bodies, options)?;
        let mut placement = Placement {
            allocator: Allocator::new(geometry),
            segments: Vec::with_capacity(numbered.order.len()),
            metadata: std::mem::take(&mut bodies.metadata),
        };
        let attribute_blocks: Vec<u32> =
            (0..bodies.attribute_blocks).map(|block| placement.place(block)).collect();
        let mut inodes = vec![0; usize::try_from(last_inode * inode::LEN).unwrap_or(0)];
        for id in numbered.placed(&tree) {
            let mapping = options.mapping;
            let bytes =
                numbered.inode(&tree, id, &bodies, mapping, &mut placement, &attribute_blocks)?;
            let at = (numbered.number(id) - 1) as usize * bytes.len();
            inodes[at..at + bytes.len()].copy_from_slice(&bytes);
        }

        let usage = Usage { first_free_block: placement.allocator.next(), last_inode };
        let descriptors =
            superblock::descriptors(&geometry, &usage, &numbered.directories_in(&geometry));
        let Placement { mut segments, mut metadata, .. } = placement;
        segments.shrink_to_fit();
        metadata.shrink_to_fit();
        let identity = Identity {
            uuid: options.uuid.unwrap_or_else(|| uuid(bodies.digest, &geometry, &inodes)),
            label: label(&options.label),
            time: low32(options.epoch.unwrap_or(0).clamp(0, i64::from(u32::MAX)).cast_unsigned()),
            indexed: bodies.indexed,
            extents: options.mapping == Mapping::Extents,
        };
        let contents = bodies.contents;
        let Tree { host, archives, notes, .. } = tree;
        host.settle();
        Ok(Plan {
            geometry,
            usage,
            identity,
            descriptors,
            inodes,
            metadata,
            segments,
            contents,
            host,
            archives,
            notes,
        })
    }

    /// What a person may want to know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What it is made of.
    pub fn summary(&self) -> Summary {
        let metadata = self.inodes.len() + self.metadata.len() + self.descriptors.len();
        Summary {
            size: ByteLen::new(self.geometry.blocks * BLOCK),
            entries: self.usage.last_inode + 1 - u64::from(FIRST_INODE) + 1,
            metadata: ByteLen::new(metadata as u64),
            free: ByteLen::new(self.usage.free_blocks(&self.geometry) * BLOCK),
            host_files: (self.host.len() + self.archives.len()) as u64,
        }
    }
}

/// The smallest disk that all of it fits on, or the one of the wanted size.
fn geometry(
    tree: &Tree,
    numbered: &Numbered,
    bodies: &Bodies,
    options: &Options,
) -> Result<Geometry, Ext2Error> {
    // Directories and long links are among the metadata; files' blocks come on top, then tables.
    let (mut own, mut tables) = ((bodies.metadata.len() / BLOCK_LEN) as u64, 0_u64);
    for id in numbered.all() {
        let runs = bodies.runs(tree, id);
        if matches!(tree.node(id).kind, Kind::File(_)) {
            own = own.checked_add(mapping::block_count(&runs)).ok_or(Ext2Error::TooLarge)?;
        }
        tables += match options.mapping {
            Mapping::Tables => mapping::table_count(&runs),
            Mapping::Extents => extents::node_count(runs.len() as u64),
        };
    }
    loop {
        let data = own.checked_add(tables).ok_or(Ext2Error::TooLarge)?;
        let geometry = geometry_with(data, u64::from(numbered.last()), options)?;
        if options.mapping == Mapping::Tables {
            return Ok(geometry);
        }
        // Where a file passes the head of a group, an extent ends. How often that happens is known once there is
        // a shape to lay files out on; more nodes may mean another shape.
        let mut allocator = Allocator::new(geometry);
        for _ in 0..bodies.attribute_blocks {
            allocator.take(1);
        }
        let needed = numbered
            .placed(tree)
            .map(|id| extents::allocate(&mut allocator, &bodies.runs(tree, id)))
            .sum();
        if needed <= tables {
            return Ok(geometry);
        }
        tables = needed;
    }
}

/// The disk for so many blocks and inodes in use.
fn geometry_with(data: u64, last_inode: u64, options: &Options) -> Result<Geometry, Ext2Error> {
    let wanted = options.size.map(|size| size.get() / BLOCK);
    let free = match wanted {
        None => options.free.get().div_ceil(BLOCK),
        Some(blocks) => blocks.saturating_sub(data),
    };
    let free_inodes = options.free_inodes.map_or(free * BLOCK / FREE_BYTES_PER_INODE, u64::from);
    let inodes = last_inode.checked_add(free_inodes).ok_or(Ext2Error::TooLarge)?;
    match (wanted, options.size) {
        (Some(blocks), Some(size)) => {
            Geometry::of_size(blocks, data, inodes).ok_or(Ext2Error::TooSmall { size })
        }
        _ => data
            .checked_add(free)
            .and_then(|blocks| Geometry::fitting(blocks, inodes))
            .ok_or(Ext2Error::TooLarge),
    }
}

/// Where checkers put what they find, and times no later than they may be.
fn ensure_lost_and_found(tree: &mut Tree, options: &Options) -> Result<(), Ext2Error> {
    const NAME: &[u8] = b"lost+found";
    let made = Time { seconds: options.epoch.unwrap_or(0), nanos: 0 };
    match tree.child(NodeId::ROOT, NAME) {
        None => drop(tree.put(NodeId::ROOT, NAME, Node::directory(0o700, made))),
        Some(there) if tree.node(there).children().is_some() => {}
        Some(there) => {
            let path = tree.path_of(there);
            return Err(Ext2Error::Unstorable { path, why: "it must be a directory" });
        }
    }
    if let Some(epoch) = options.epoch {
        let latest = Time { seconds: epoch, nanos: 0 };
        for node in &mut tree.nodes {
            let modified = node.modified().min(latest);
            (node.seconds, node.nanos) = (modified.seconds, modified.nanos);
        }
    }
    Ok(())
}

fn label(text: &str) -> [u8; 16] {
    let mut label = [0; 16];
    for (place, byte) in label.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    label
}

/// A random-looking identity of the fourth kind that is the same for the same disk.
fn uuid(mut digest: blake3::Hasher, geometry: &Geometry, inodes: &[u8]) -> [u8; 16] {
    digest.update(&geometry.blocks.to_le_bytes());
    digest.update(inodes);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.finalize().as_bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The nodes with their inode numbers: directory by directory, so that what is listed together lies
/// together.
pub(super) struct Numbered {
    numbers: Vec<u32>,
    links: Vec<u32>,
    /// The root, then the nodes from the first inode on.
    order: Vec<NodeId>,
    /// Each directory and the one it lies in.
    pub(super) folders: Vec<(NodeId, NodeId)>,
}

impl Numbered {
    fn of(tree: &Tree) -> Result<Numbered, Ext2Error> {
        let mut numbered = Numbered {
            numbers: vec![0; tree.nodes.len()],
            links: vec![0; tree.nodes.len()],
            order: Vec::with_capacity(tree.nodes.len()),
            folders: Vec::new(),
        };
        numbered.order.push(NodeId::ROOT);
        numbered.numbers[NodeId::ROOT.index()] = 2;
        numbered.links[NodeId::ROOT.index()] = 2;
        if let Some(lost) = tree.child(NodeId::ROOT, b"lost+found") {
            numbered.assign(lost);
        }
        let mut ahead = vec![(NodeId::ROOT, NodeId::ROOT)];
        while let Some((id, parent)) = ahead.pop() {
            numbered.folders.push((id, parent));
            let first = ahead.len();
            let mut room = 0;
            for (name, child) in tree.node(id).children().into_iter().flatten() {
                room += directory::entry_len(name.len());
                let unstorable = |why| Ext2Error::Unstorable { path: tree.path_of(id), why };
                if name.len() > LONGEST_NAME {
                    return Err(unstorable("a name in it is too long"));
                }
                if name.contains(&0) {
                    return Err(unstorable("a name in it has a NUL byte"));
                }
                if room > LARGEST_FOLDER {
                    return Err(unstorable("the names in it take more than 1 GiB"));
                }
                if numbered.numbers[child.index()] == 0 {
                    numbered.assign(*child);
                }
                if tree.node(*child).children().is_some() {
                    numbered.links[child.index()] = 2;
                    ahead.push((*child, id));
                } else {
                    numbered.links[child.index()] += 1;
                }
            }
            numbered.links[id.index()] += count32(ahead.len() - first);
            ahead[first..].reverse();
        }
        for id in numbered.all() {
            if numbered.links[id.index()] > MOST_LINKS {
                let why = "it has more than 65000 names or directories in it";
                return Err(Ext2Error::Unstorable { path: tree.path_of(id), why });
            }
        }
        Ok(numbered)
    }

    fn assign(&mut self, id: NodeId) {
        self.numbers[id.index()] = FIRST_INODE - 1 + count32(self.order.len());
        self.order.push(id);
    }

    pub(super) fn number(&self, id: NodeId) -> u32 {
        self.numbers[id.index()]
    }

    fn last(&self) -> u32 {
        FIRST_INODE - 1 + count32(self.order.len() - 1)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = NodeId> {
        self.order.iter().copied()
    }

    /// All nodes in the order in which they are given blocks. What a reader looks at first lies together: all
    /// directories and links before all files.
    fn placed(&self, tree: &Tree) -> impl Iterator<Item = NodeId> {
        [false, true].into_iter().flat_map(move |of_files| {
            self.all().filter(move |id| matches!(tree.node(*id).kind, Kind::File(_)) == of_files)
        })
    }

    /// How many directories each group's inodes have.
    fn directories_in(&self, geometry: &Geometry) -> Vec<u32> {
        let mut counts = vec![0; usize::try_from(geometry.groups).unwrap_or(0)];
        for (id, _) in &self.folders {
            let group = (u64::from(self.number(*id)) - 1) / geometry.inodes_per_group;
            counts[usize::try_from(group).unwrap_or(0)] += 1;
        }
        counts
    }

    /// Gives a node its blocks and makes its inode.
    fn inode(
        &self,
        tree: &Tree,
        id: NodeId,
        bodies: &Bodies,
        mapping: Mapping,
        placement: &mut Placement,
        attribute_blocks: &[u32],
    ) -> Result<[u8; 256], Ext2Error> {
        let node = tree.node(id);
        let (kind, size) = match &node.kind {
            Kind::Directory(_) => (0o040_000, bodies.folder_len(id)),
            Kind::Symlink(target) => (0o120_000, target.len() as u64),
            Kind::File(data) => (0o100_000, data.size()),
            Kind::CharDevice(..) => (0o020_000, 0),
            Kind::BlockDevice(..) => (0o060_000, 0),
            Kind::Fifo => (0o010_000, 0),
            Kind::Socket => (0o140_000, 0),
        };
        let mut block = [0; 60];
        let mut blocks = 0;
        let mut flags = if bodies.is_indexed(id) { inode::INDEXED } else { 0 };
        match (&node.kind, bodies.origin(tree, id)) {
            (_, Some(origin)) => {
                let runs = bodies.runs(tree, id);
                let mapped: Mapped = match mapping {
                    Mapping::Tables => placement.map(&runs, origin),
                    Mapping::Extents => {
                        flags |= inode::EXTENTS;
                        placement.map_by_extents(&runs, origin)
                    }
                };
                (block, blocks) = (mapped.block, mapped.blocks);
            }
            (Kind::Symlink(target), None) => block[..target.len()].copy_from_slice(target),
            (Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor), None) => {
                block = inode::device(*major, *minor);
            }
            _ => {}
        }
        let attributes = bodies.attributes.get(&id);
        let attribute_block = attributes
            .and_then(|placed| placed.block)
            .and_then(|at| attribute_blocks.get(super::encode::index(at)).copied());
        blocks += u64::from(attribute_block.is_some());
        let sectors = u32::try_from(blocks * (BLOCK / 512)).map_err(|_| Ext2Error::Unstorable {
            // No file that is as long is let in, and names are gone by now.
            path: GuestPath::root(),
            why: "a file takes 2 TiB or more",
        })?;
        let inode = Inode {
            mode: kind | node.permissions,
            uid: node.uid,
            gid: node.gid,
            size,
            time: node.modified(),
            links: low16(self.links[id.index()]),
            sectors,
            flags,
            block,
            attribute_block: attribute_block.unwrap_or(0),
            attributes: attributes.and_then(|placed| placed.inline.as_ref()),
        };
        Ok(inode.bytes())
    }
}
