//! A [`Plan`] as a disk to read from: each block is looked up, and made or fetched.

use std::borrow::Cow;
use std::io;

use kiln_block::{BlockSource, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind, Extents};

use super::encode::index;
use super::error::Ext2Error;
use super::geometry::{GROUP_BLOCKS, Head};
use super::mapping::{Origin, metadata_from};
use super::plan::Plan;
use super::{BLOCK, BLOCK_LEN, inode, superblock};

/// Adjacent blocks that have their bytes from one place.
pub(super) enum Piece<'p> {
    /// Zeros.
    Hole,
    /// These bytes, then zeros.
    Bytes(Cow<'p, [u8]>),
    /// A file of the host from a byte on, then zeros.
    Host { file: u32, at: u64 },
    /// A member of an archive from a byte on, then zeros.
    Member { member: u32, at: u64 },
}

impl Plan {
    /// What a block and some after it hold, and how many they are; at least one.
    pub(super) fn piece(&self, block: u64) -> (Piece<'_>, u64) {
        let group = block / GROUP_BLOCKS;
        match self.geometry.head(group, block % GROUP_BLOCKS) {
            Some(head) => self.head(group, head),
            None => self.data(block),
        }
    }

    fn head(&self, group: u64, head: Head) -> (Piece<'_>, u64) {
        let (geometry, usage) = (&self.geometry, &self.usage);
        let made = |bytes| (Piece::Bytes(Cow::Owned(bytes)), 1);
        match head {
            Head::Superblock => made(superblock::block(geometry, usage, &self.identity, group)),
            Head::Descriptors(at) => {
                let rest = slice_from(&self.descriptors, at * BLOCK);
                (Piece::Bytes(Cow::Borrowed(rest)), geometry.descriptor_blocks() - at)
            }
            Head::BlockBitmap => {
                let used = geometry.used_blocks(group, usage.first_free_block);
                made(superblock::bitmap(used, geometry.group_blocks(group)))
            }
            Head::InodeBitmap => {
                let used = geometry.used_inodes(group, usage.last_inode);
                made(superblock::bitmap(used, geometry.inodes_per_group))
            }
            Head::InodeTable(at) => {
                let table = group * geometry.inodes_per_group * inode::LEN;
                let all = slice_from(&self.inodes, table);
                let whole = geometry.table_blocks() * BLOCK;
                let all = &all[..all.len().min(usize::try_from(whole).unwrap_or(usize::MAX))];
                let rest = slice_from(all, at * BLOCK);
                if rest.is_empty() {
                    return (Piece::Hole, geometry.table_blocks() - at);
                }
                (Piece::Bytes(Cow::Borrowed(rest)), (rest.len() as u64).div_ceil(BLOCK))
            }
        }
    }

    fn data(&self, block: u64) -> (Piece<'_>, u64) {
        let after = self.segments.partition_point(|segment| u64::from(segment.start) <= block);
        if let Some(segment) = after.checked_sub(1).and_then(|at| self.segments.get(at)) {
            let inside = block - u64::from(segment.start);
            if inside < u64::from(segment.blocks) {
                let left = u64::from(segment.blocks) - inside;
                return (self.origin(segment.origin, inside), left);
            }
        }
        let group_end = (block / GROUP_BLOCKS + 1) * GROUP_BLOCKS;
        let next = self.segments.get(after).map_or(u64::MAX, |next| u64::from(next.start));
        (Piece::Hole, next.min(group_end).min(self.geometry.blocks) - block)
    }

    fn origin(&self, origin: Origin, inside: u64) -> Piece<'_> {
        match origin.skip(super::encode::low32(inside)) {
            Origin::Metadata { block } => {
                Piece::Bytes(Cow::Borrowed(metadata_from(&self.metadata, block)))
            }
            Origin::Bytes { content, block } => {
                let bytes = &self.contents[index(content)];
                Piece::Bytes(Cow::Borrowed(slice_from(bytes, u64::from(block) * BLOCK)))
            }
            Origin::Host { file, block } => Piece::Host { file, at: u64::from(block) * BLOCK },
            Origin::Member { member, block } => {
                Piece::Member { member, at: u64::from(block) * BLOCK }
            }
        }
    }
}

fn unreadable(at: u64) -> impl FnOnce(Ext2Error) -> DeviceError {
    move |error| DeviceError::Io {
        act: "read",
        at: ByteOffset::new(at),
        source: io::Error::other(error),
    }
}

/// The rest of some bytes, from a place that may lie behind their end.
fn slice_from(bytes: &[u8], at: u64) -> &[u8] {
    usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default()
}

impl BlockSource for Plan {
    fn size(&self) -> ByteLen {
        ByteLen::new(self.geometry.blocks * BLOCK)
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let mut done = 0;
        while done < buffer.len() {
            let here = at + done as u64;
            let (piece, blocks) = self.piece(here / BLOCK);
            let inside = here % BLOCK;
            let room = usize::try_from(blocks * BLOCK - inside).unwrap_or(usize::MAX);
            let end = buffer.len().min(done.saturating_add(room));
            let part = &mut buffer[done..end];
            match piece {
                Piece::Hole => part.fill(0),
                Piece::Bytes(bytes) => {
                    let bytes = slice_from(&bytes, inside);
                    let count = bytes.len().min(part.len());
                    part[..count].copy_from_slice(&bytes[..count]);
                    part[count..].fill(0);
                }
                Piece::Host { file, at } => {
                    self.host.read(file, at + inside, part).map_err(unreadable(here))?;
                }
                Piece::Member { member, at } => {
                    self.archives
                        .read(&self.host, member, at + inside, part)
                        .map_err(unreadable(here))?;
                }
            }
            done = end;
        }
        Ok(())
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        let (mut here, end) = (at.get(), at.get() + len.get());
        let mut found = Extents::default();
        while here < end {
            let (piece, blocks) = self.piece(here / BLOCK);
            let next = ((here / BLOCK + blocks) * BLOCK).min(end);
            let kind =
                if matches!(piece, Piece::Hole) { ExtentKind::Hole } else { ExtentKind::Data };
            found.add(here, next - here, kind);
            here = next;
        }
        Ok(found.into_vec())
    }
}

const _: () = assert!(BLOCK_LEN as u64 == BLOCK);
