//! A directory's blocks: a plain list of names, with an index by hash in front when it is large.
//!
//! | offset | size | field    | meaning                                             |
//! |-------:|-----:|----------|-----------------------------------------------------|
//! |      0 |    4 | inode    | 0 for an entry that names nothing                    |
//! |      4 |    2 | rec_len  | to the next entry; the last one's ends with the block |
//! |      6 |    1 | name_len | 1 to 255                                            |
//! |      7 |    1 | type     | what the inode is, to save a look at it              |
//! |      8 |    … | name     | no NUL, no `/`                                      |

use super::encode::{count32, low16, put16, put32};
use super::{BLOCK_LEN, hash};

/// Directories of more blocks than this get an index. Below, a kernel that follows the index saves
/// less than it costs to read one more block.
const LINEAR_BLOCKS: usize = 8;
/// How many blocks an index's root and its nodes can point at.
const ROOT_LIMIT: usize = (BLOCK_LEN - 32) / 8;
const NODE_LIMIT: usize = (BLOCK_LEN - 8) / 8;

/// One name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u32,
    pub(super) kind: u8,
}

/// The type of a directory in an entry.
pub(super) const DIRECTORY: u8 = 2;

/// Appends a directory's blocks. The names are sorted and hold neither `.` nor `..`. Returns whether
/// it has an index.
pub(super) fn append(own: u32, parent: u32, names: &[Name<'_>], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut packer = Packer::new(out);
    packer.push(Name { name: b".", inode: own, kind: DIRECTORY });
    packer.push(Name { name: b"..", inode: parent, kind: DIRECTORY });
    names.iter().for_each(|name| packer.push(*name));
    packer.close();
    if out.len() - start <= LINEAR_BLOCKS * BLOCK_LEN {
        return false;
    }
    let leaves = Leaves::of(names);
    if leaves.hashes.len() > ROOT_LIMIT * NODE_LIMIT {
        return false;
    }
    out.truncate(start);
    leaves.append(own, parent, out);
    true
}

/// How many bytes these names may take, at most, as a directory.
pub(super) fn len_at_most(names: &[Name<'_>]) -> usize {
    let entries: usize = names.iter().map(|name| entry_len(name.name.len())).sum();
    // No block is left with room for the longest entry.
    let blocks = (entries + 24) / (BLOCK_LEN - entry_len(255)) + 1;
    let index = if blocks > LINEAR_BLOCKS { 1 + blocks.div_ceil(NODE_LIMIT) } else { 0 };
    (blocks + index) * BLOCK_LEN
}

/// How much room an entry with a name of this length takes.
pub(super) fn entry_len(name_len: usize) -> usize {
    (8 + name_len).next_multiple_of(4)
}

/// Fills blocks with entries.
struct Packer<'o> {
    out: &'o mut Vec<u8>,
    block: usize,
    last: usize,
}

impl Packer<'_> {
    fn new(out: &mut Vec<u8>) -> Packer<'_> {
        let block = out.len();
        Packer { out, block, last: block }
    }

    /// Whether a name goes into a new block.
    fn is_full(&self, name: &[u8]) -> bool {
        self.out.len() + entry_len(name.len()) > self.block + BLOCK_LEN
    }

    fn push(&mut self, name: Name<'_>) {
        if self.is_full(name.name) {
            self.close();
        }
        self.last = self.out.len();
        let len = entry_len(name.name.len());
        self.out.resize(self.last + len, 0);
        let entry = &mut self.out[self.last..];
        put32(entry, 0, name.inode);
        put16(entry, 4, low16(count32(len)));
        entry[6] = u8::try_from(name.name.len()).unwrap_or(u8::MAX);
        entry[7] = name.kind;
        entry[8..8 + name.name.len()].copy_from_slice(name.name);
    }

    /// Ends the block: its last entry reaches to its end.
    fn close(&mut self) {
        let len = self.block + BLOCK_LEN - self.last;
        put16(&mut self.out[self.last..], 4, low16(count32(len)));
        self.block += BLOCK_LEN;
        self.last = self.block;
        self.out.resize(self.block, 0);
    }
}

/// The blocks of an indexed directory that hold names, sorted by hash, and where each begins.
struct Leaves {
    blocks: Vec<u8>,
    hashes: Vec<u32>,
}

impl Leaves {
    fn of(names: &[Name<'_>]) -> Leaves {
        let mut hashed: Vec<(u32, Name<'_>)> =
            names.iter().map(|name| (hash::of_name(name.name), *name)).collect();
        hashed.sort_by(|(one, a), (other, b)| (one, a.name).cmp(&(other, b.name)));
        let mut blocks = Vec::new();
        let mut hashes = vec![0];
        let mut packer = Packer::new(&mut blocks);
        let mut before = None;
        for (hash, name) in hashed {
            if packer.is_full(name.name) {
                packer.close();
                // Names with one hash may lie in two blocks; the lowest bit tells readers to go on.
                hashes.push(hash | u32::from(before == Some(hash)));
            }
            before = Some(hash);
            packer.push(name);
        }
        packer.close();
        Leaves { blocks, hashes }
    }

    /// Appends the index, then the leaves.
    fn append(self, own: u32, parent: u32, out: &mut Vec<u8>) {
        let nodes =
            if self.hashes.len() > ROOT_LIMIT { self.hashes.len().div_ceil(NODE_LIMIT) } else { 0 };
        let first_leaf = 1 + nodes;
        let leaves: Vec<(u32, u32)> = self
            .hashes
            .iter()
            .enumerate()
            .map(|(at, hash)| (*hash, count32(first_leaf + at)))
            .collect();
        let below: Vec<(u32, u32)> = if nodes == 0 {
            leaves.clone()
        } else {
            leaves.chunks(NODE_LIMIT).zip(1..).map(|(chunk, at)| (chunk[0].0, at)).collect()
        };

        let mut root = [0; BLOCK_LEN];
        put32(&mut root, 0, own);
        put16(&mut root, 4, 12);
        (root[6], root[7], root[8]) = (1, DIRECTORY, b'.');
        put32(&mut root, 12, parent);
        put16(&mut root, 16, low16(count32(BLOCK_LEN - 12)));
        (root[18], root[19]) = (2, DIRECTORY);
        root[20..22].copy_from_slice(b"..");
        // After four zeros: hash, length of this, levels of nodes, flags.
        root[28..32].copy_from_slice(&[hash::HALF_MD4, 8, u8::from(nodes > 0), 0]);
        put_index(&mut root[32..], ROOT_LIMIT, &below);
        out.extend_from_slice(&root);
        if nodes > 0 {
            for chunk in leaves.chunks(NODE_LIMIT) {
                let mut node = [0; BLOCK_LEN];
                // To readers who know no index, one entry that names nothing.
                put16(&mut node, 4, low16(count32(BLOCK_LEN)));
                put_index(&mut node[8..], NODE_LIMIT, chunk);
                out.extend_from_slice(&node);
            }
        }
        out.extend_from_slice(&self.blocks);
    }
}

/// Pairs of hash and block. In place of the first hash, which is known, stand limit and count.
fn put_index(record: &mut [u8], limit: usize, entries: &[(u32, u32)]) {
    for (slot, (hash, block)) in record.chunks_exact_mut(8).zip(entries) {
        put32(slot, 0, *hash);
        put32(slot, 4, *block);
    }
    put16(record, 0, low16(count32(limit)));
    put16(record, 2, low16(count32(entries.len())));
}
