//! Extended attributes: in the inode where they fit, else in a block that equal sets share.
//!
//! | offset | size | field       | meaning                                            |
//! |-------:|-----:|-------------|----------------------------------------------------|
//! |      0 |    1 | name_len    |                                                    |
//! |      1 |    1 | name_index  | stands for the name's prefix                       |
//! |      2 |    2 | value_offs  | from the block's start, or from the inode's first entry |
//! |      4 |    4 | value_inum  | 0                                                  |
//! |      8 |    4 | value_size  |                                                    |
//! |     12 |    4 | hash        | of name and value; 0 in an inode                   |
//! |     16 |    … | name        | without its prefix, up to a multiple of four       |

use std::ops::Deref;

use super::BLOCK_LEN;
use super::encode::{count32, low16, put16, put32};

/// Starts the attributes in an inode and in a block.
const MAGIC: u32 = 0xea02_0000;
/// Room in an inode of 256 bytes after the 160 that are spoken for.
pub(super) const INLINE_LEN: usize = 96;
const INLINE_ROOM: usize = INLINE_LEN - 4 - 4;
const BLOCK_HEADER: usize = 32;
const BLOCK_ROOM: usize = BLOCK_LEN - BLOCK_HEADER - 4;
/// How many inodes may share a block; the kernel's limit.
pub(super) const MOST_SHARERS: u32 = 1024;

/// One attribute, as ext2 names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Xattr {
    index: u8,
    /// Shorter names sort first, as the kernel wants it.
    name_len: u8,
    name: Box<[u8]>,
    value: Box<[u8]>,
}

/// The attributes of a file. Most have none, so that takes as little room as can be.
#[derive(Clone, Debug, Default)]
pub(super) struct Xattrs(Option<Box<Several>>);

#[derive(Clone, Debug)]
struct Several(Box<[Xattr]>);

impl From<Vec<Xattr>> for Xattrs {
    fn from(all: Vec<Xattr>) -> Xattrs {
        Xattrs((!all.is_empty()).then(|| Box::new(Several(all.into()))))
    }
}

impl Deref for Xattrs {
    type Target = [Xattr];

    fn deref(&self) -> &[Xattr] {
        self.0.as_ref().map_or(&[], |several| &several.0)
    }
}

/// Where a set of attributes goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    pub(super) inline: Option<[u8; INLINE_LEN]>,
    pub(super) block: Option<Vec<u8>>,
}

/// What stands for the beginnings of names.
const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];

impl Xattr {
    /// Name and value as the host has them; none for access control lists, which are stored in another form.
    pub(super) fn for_host(&self) -> Option<(Vec<u8>, &[u8])> {
        let (prefix, _) = PREFIXES.iter().find(|(_, index)| *index == self.index)?;
        Some(([*prefix, &self.name].concat(), &self.value))
    }

    /// From what the host says; none if ext2 has no way to say it.
    pub(super) fn from_host(name: &[u8], value: &[u8]) -> Option<Xattr> {
        let (index, name, value) = match name {
            b"system.posix_acl_access" => (2, &b""[..], stored_acl(value)?),
            b"system.posix_acl_default" => (3, &b""[..], stored_acl(value)?),
            _ => PREFIXES.iter().find_map(|(prefix, index)| {
                let name = name.strip_prefix(*prefix).filter(|name| !name.is_empty())?;
                Some((*index, name, value.to_vec()))
            })?,
        };
        let name_len = u8::try_from(name.len()).ok()?;
        Some(Xattr { index, name_len, name: name.into(), value: value.into() })
    }

    fn room(&self) -> usize {
        16 + self.name.len().next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    fn hash(&self) -> u32 {
        let mut hash = 0_u32;
        for &byte in &self.name {
            hash = hash.rotate_left(5) ^ u32::from(byte);
        }
        for chunk in self.value.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(word);
        }
        hash
    }
}

/// An access control list as it is stored: shorter than what programs see, for entries that name
/// nobody have no number. None if it makes no sense.
fn stored_acl(value: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut stored = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let len = if tag == USER || tag == GROUP { 8 } else { 4 };
        stored.extend_from_slice(&entry[..len]);
    }
    Some(stored)
}

/// Decides where attributes go; none if they are more than an inode and a block can hold. Sorts them.
pub(super) fn place(xattrs: &mut [Xattr]) -> Option<Placed> {
    xattrs.sort();
    let all: Vec<&Xattr> = xattrs.iter().collect();
    let room = |set: &[&Xattr]| set.iter().map(|xattr| xattr.room()).sum::<usize>();
    if all.is_empty() {
        return Some(Placed::default());
    }
    if room(&all) <= INLINE_ROOM {
        return Some(Placed { inline: Some(inline(&all)), block: None });
    }
    if room(&all) <= BLOCK_ROOM {
        return Some(Placed { inline: None, block: Some(block(&all)) });
    }
    let mut left = INLINE_ROOM;
    let (small, large): (Vec<&Xattr>, Vec<&Xattr>) = all.into_iter().partition(|xattr| {
        let fits = xattr.room() <= left;
        left -= if fits { xattr.room() } else { 0 };
        fits
    });
    (room(&large) <= BLOCK_ROOM).then(|| Placed {
        inline: (!small.is_empty()).then(|| inline(&small)),
        block: Some(block(&large)),
    })
}

fn inline(xattrs: &[&Xattr]) -> [u8; INLINE_LEN] {
    let mut record = [0; INLINE_LEN];
    put32(&mut record, 0, MAGIC);
    fill(&mut record[4..], 0, xattrs, |_| 0);
    record
}

/// A block for one inode; [`set_sharers`] says when it is for more.
fn block(xattrs: &[&Xattr]) -> Vec<u8> {
    let mut record = vec![0; BLOCK_LEN];
    put32(&mut record, 0, MAGIC);
    put32(&mut record, 4, 1);
    put32(&mut record, 8, 1);
    let mut hash = 0_u32;
    for xattr in xattrs {
        match xattr.hash() {
            // A set that cannot be found by its hash is never shared by the kernel.
            0 => {
                hash = 0;
                break;
            }
            one => hash = hash.rotate_left(16) ^ one,
        }
    }
    put32(&mut record, 12, hash);
    fill(&mut record, BLOCK_HEADER, xattrs, Xattr::hash);
    record
}

/// Says how many inodes share a block.
pub(super) fn set_sharers(block: &mut [u8], sharers: u32) {
    put32(block, 4, sharers);
}

/// Entries from `at` upwards, values from the end downwards.
fn fill(record: &mut [u8], mut at: usize, xattrs: &[&Xattr], hash: fn(&Xattr) -> u32) {
    let mut end = record.len();
    for xattr in xattrs {
        end -= xattr.value.len().next_multiple_of(4);
        let offset = if xattr.value.is_empty() { 0 } else { low16(count32(end)) };
        record[end..end + xattr.value.len()].copy_from_slice(&xattr.value);
        let entry = &mut record[at..];
        (entry[0], entry[1]) = (xattr.name_len, xattr.index);
        put16(entry, 2, offset);
        put32(entry, 8, count32(xattr.value.len()));
        put32(entry, 12, hash(xattr));
        entry[16..16 + xattr.name.len()].copy_from_slice(&xattr.name);
        at += 16 + xattr.name.len().next_multiple_of(4);
    }
}
