//! A [`Plan`] into a file: one pass, ascending.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kiln_block::ByteLen;
use rustix::io::Errno;

use super::error::Ext2Error;
use super::plan::Plan;
use super::source::Piece;
use super::{BLOCK, BLOCK_LEN};

/// How much is gathered before it is written.
const BUFFER: usize = 512 << 10;
/// Where extents can be shared, stretches of a file from this long on are copied by the kernel; shorter
/// ones cost less together with their neighbours.
const KERNEL_COPIES: u64 = 16 << 10;
/// `statfs` types of file systems that share extents instead of copying (`linux/magic.h`): btrfs, XFS,
/// bcachefs, and those that have a server do it. Elsewhere a kernel's copy moves page by page, which takes
/// half as long again as reading and writing.
const SHARING: [u64; 5] = [0x9123_683e, 0x5846_5342, 0xca45_1a4e, 0x6969, 0xff53_4d42];

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The image's length.
    pub size: ByteLen,
    /// How much of that is not a hole.
    pub data: ByteLen,
}

impl Plan {
    /// Writes the disk into an empty regular file, leaving holes where there is nothing. A file of the
    /// host that changed since the plan was made is an error; what was written until then is no disk.
    pub fn write(&self, out: &File) -> Result<Written, Ext2Error> {
        let size = self.geometry.blocks * BLOCK;
        out.set_len(size).map_err(|source| Ext2Error::Write { at: 0, source })?;
        let mut pen = Pen { out, buffer: vec![0; BUFFER], filled: 0, at: 0, data: 0 };
        let shares = shares_extents(out);
        let mut block = 0;
        while block < self.geometry.blocks {
            let (piece, blocks) = self.piece(block);
            let (at, len) = (block * BLOCK, blocks * BLOCK);
            match piece {
                Piece::Hole => {}
                Piece::Bytes(bytes) => {
                    let count = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
                    pen.bytes(at, &bytes[..count])?;
                }
                Piece::Host { file, at: from } if shares && len >= KERNEL_COPIES => {
                    let open = self.host.open(file)?;
                    // The last block's rest is zeros, which is what the hole after the copy reads as.
                    pen.flush()?;
                    pen.copy(&open, from, at, len)?;
                    self.host.check(file, &open)?;
                }
                piece @ (Piece::Host { .. } | Piece::Member { .. }) => {
                    let mut done = 0;
                    while done < len {
                        let room = pen.room(at + done, len - done)?;
                        let count = room.len() as u64;
                        match piece {
                            Piece::Member { member, at } => {
                                self.archives.read(&self.host, member, at + done, room)?;
                            }
                            Piece::Host { file, at } => self.host.read(file, at + done, room)?,
                            Piece::Hole | Piece::Bytes(_) => {}
                        }
                        done += count;
                    }
                }
            }
            block += blocks;
        }
        pen.flush()?;
        Ok(Written { size: ByteLen::new(size), data: ByteLen::new(pen.data) })
    }
}

/// Whether the file system that a file lies on may share its extents with other files.
fn shares_extents(file: &File) -> bool {
    rustix::fs::fstatfs(file)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|magic| SHARING.contains(&magic)))
}

/// Gathers adjacent bytes.
struct Pen<'o> {
    out: &'o File,
    buffer: Vec<u8>,
    /// How much of the buffer waits to be written.
    filled: usize,
    /// Where the buffer begins.
    at: u64,
    data: u64,
}

impl Pen<'_> {
    /// Room for some bytes at a place, which is not before the last one: for all that are wanted, or for as
    /// many as there is room for. It holds rubbish.
    fn room(&mut self, at: u64, wanted: u64) -> Result<&mut [u8], Ext2Error> {
        if self.at + self.filled as u64 != at || self.filled == BUFFER {
            self.flush()?;
            self.at = at;
        }
        let start = self.filled;
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        self.filled = start.saturating_add(wanted).min(BUFFER);
        Ok(&mut self.buffer[start..self.filled])
    }

    /// Bytes, and zeros to the end of their last block.
    fn bytes(&mut self, at: u64, bytes: &[u8]) -> Result<(), Ext2Error> {
        if bytes.len() > BUFFER / 4 {
            self.flush()?;
            return self.write(at, bytes);
        }
        let whole = bytes.len().next_multiple_of(BLOCK_LEN);
        let mut done = 0;
        while done < whole {
            let room = self.room(at + done as u64, (whole - done) as u64)?;
            let count = room.len();
            let left = bytes.get(done..).unwrap_or_default();
            let (data, rest) = room.split_at_mut(left.len().min(count));
            data.copy_from_slice(&left[..data.len()]);
            rest.fill(0);
            done += count;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Ext2Error> {
        let filled = std::mem::take(&mut self.filled);
        let at = self.at;
        self.at += filled as u64;
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.write(at, &buffer[..filled]);
        self.buffer = buffer;
        written
    }

    /// What lies behind the bytes in their last block reads as zeros, for it is a hole.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Ext2Error> {
        self.data += bytes.len().next_multiple_of(BLOCK_LEN) as u64;
        self.out.write_all_at(bytes, at).map_err(|source| Ext2Error::Write { at, source })
    }

    /// Lets the kernel copy, up to the end of the file; by hand where it cannot.
    fn copy(&mut self, from: &File, mut read: u64, at: u64, len: u64) -> Result<(), Ext2Error> {
        let failed = |at: u64, source: io::Error| Ext2Error::Write { at, source };
        let mut write = at;
        let end = at + len;
        while write < end {
            let chunk = usize::try_from((end - write).min(1 << 30)).unwrap_or(1 << 30);
            match rustix::fs::copy_file_range(
                from,
                Some(&mut read),
                self.out,
                Some(&mut write),
                chunk,
            ) {
                // The end, or a file system that answers so for files that do have content.
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                    break;
                }
                Err(errno) => return Err(failed(write, errno.into())),
            }
        }
        let mut buffer = Vec::new();
        while write < end {
            buffer.resize(BUFFER.min(usize::try_from(end - write).unwrap_or(BUFFER)), 0);
            match from.read_at(&mut buffer, read) {
                // The end; that it is where it was is checked afterwards.
                Ok(0) => break,
                Ok(count) => {
                    self.out
                        .write_all_at(&buffer[..count], write)
                        .map_err(|source| failed(write, source))?;
                    (read, write) = (read + count as u64, write + count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(failed(write, source)),
            }
        }
        self.data += len;
        Ok(())
    }
}
