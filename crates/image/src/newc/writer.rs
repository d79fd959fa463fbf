//! Writing an archive in one pass.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::io::Errno;

use super::{HEADER, MAGIC, NAME_LIMIT, PAGE, TRAILER};

/// Small pieces are collected up to this size before they are written.
const BUFFER: usize = 256 * 1024;
/// Smaller files are read into the buffer: two system calls fewer.
const SMALL: u64 = 32 * 1024;

/// What a member is, apart from its name and data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Members with the same number and `links` above 1 are one file.
    pub inode: u32,
    /// How many names it has.
    pub links: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Seconds since 1970.
    pub modified: u32,
    /// Major and minor, for device nodes.
    pub device: (u32, u32),
}

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The archive itself.
    #[error("cannot write the image")]
    Io(#[source] io::Error),
    /// A file's content.
    #[error("cannot read the content")]
    Content(#[source] io::Error),
    /// The format has 32 bits for a size.
    #[error("it has {0} bytes; an initramfs holds no file of 4 GiB or more")]
    TooLarge(u64),
    /// The kernel skips such members.
    #[error("its name is longer than 4095 bytes")]
    NameTooLong,
    /// The content ended early.
    #[error("it is shorter than it was when it was looked at")]
    Shrunk,
}

/// Writes members, one after the other, to a file. The archive is complete after [`finish`](Writer::finish).
#[derive(Debug)]
pub struct Writer {
    out: File,
    buffer: Vec<u8>,
    /// Bytes of the archive so far, the buffer's included.
    at: u64,
}

impl Writer {
    /// Starts an archive at the beginning of an empty file.
    pub fn new(out: File) -> Writer {
        Writer { out, buffer: Vec::with_capacity(BUFFER), at: 0 }
    }

    /// Writes a member with its data in memory. `name` has no leading `/`.
    pub fn member(
        &mut self,
        name: &[u8],
        attributes: Attributes,
        data: &[u8],
    ) -> Result<(), WriteError> {
        let len = data.len() as u64;
        self.header(name, attributes, len)?;
        self.bytes(data)?;
        self.pad()
    }

    /// Writes a member whose data is the next `len` bytes of a file.
    pub fn member_from(
        &mut self,
        name: &[u8],
        attributes: Attributes,
        file: &File,
        len: u64,
    ) -> Result<(), WriteError> {
        self.header(name, attributes, len)?;
        if len <= SMALL {
            self.read_in(file, len)?
        } else {
            self.copy_in(file, len)?
        }
        self.pad()
    }

    /// Ends the archive. Returns the file and how many bytes it has.
    pub fn finish(mut self) -> Result<(File, u64), WriteError> {
        let attributes =
            Attributes { mode: 0, inode: 0, links: 1, owner: (0, 0), modified: 0, device: (0, 0) };
        self.member(TRAILER, attributes, &[])?;
        self.flush()?;
        Ok((self.out, self.at))
    }

    fn header(&mut self, name: &[u8], attributes: Attributes, len: u64) -> Result<(), WriteError> {
        let size = u32::try_from(len).map_err(|_| WriteError::TooLarge(len))?;
        let name_len = name.len() as u64 + 1;
        if name_len > NAME_LIMIT {
            return Err(WriteError::NameTooLong);
        }
        let padded = self.padded_name(name_len, len);
        let name_size = u32::try_from(padded).map_err(|_| WriteError::NameTooLong)?;
        let Attributes { mode, inode, links, owner, modified, device } = attributes;
        let fields = [
            inode, mode, owner.0, owner.1, links, modified, size, 0, 0, device.0, device.1,
            name_size, 0,
        ];
        self.bytes(MAGIC)?;
        for field in fields {
            self.bytes(&hexadecimal(field))?;
        }
        self.bytes(name)?;
        self.zeros(padded - name.len() as u64)?;
        self.pad()
    }

    /// How long to make the name so that data larger than a page starts at one. A name which would
    /// become too long for the kernel is left alone: only sharing is lost.
    fn padded_name(&self, name_len: u64, data_len: u64) -> u64 {
        if data_len <= PAGE {
            return name_len;
        }
        let data_at = self.at + HEADER + name_len;
        let padded = name_len + (data_at.next_multiple_of(PAGE) - data_at);
        if padded <= NAME_LIMIT { padded } else { name_len }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() > BUFFER {
            self.out.write_all(bytes).map_err(WriteError::Io)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> Result<(), WriteError> {
        // Never more than a name's limit.
        const ZEROS: [u8; 4096] = [0; 4096];
        let count = usize::try_from(count).unwrap_or(ZEROS.len()).min(ZEROS.len());
        self.bytes(&ZEROS[..count])
    }

    fn pad(&mut self) -> Result<(), WriteError> {
        self.zeros(self.at.next_multiple_of(4) - self.at)
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        self.out.write_all(&self.buffer).map_err(WriteError::Io)?;
        self.buffer.clear();
        Ok(())
    }

    fn read_in(&mut self, file: &File, len: u64) -> Result<(), WriteError> {
        let count = usize::try_from(len).map_err(|_| WriteError::TooLarge(len))?;
        if self.buffer.len() + count > BUFFER {
            self.flush()?;
        }
        let start = self.buffer.len();
        file.take(len).read_to_end(&mut self.buffer).map_err(WriteError::Content)?;
        self.at += len;
        if self.buffer.len() - start == count { Ok(()) } else { Err(WriteError::Shrunk) }
    }

    /// Lets the kernel copy, which shares extents where the file system can. Copies by hand where
    /// the kernel cannot: between file systems, or from one that has no such notion.
    fn copy_in(&mut self, file: &File, len: u64) -> Result<(), WriteError> {
        self.flush()?;
        let mut left = len;
        while left > 0 {
            let chunk = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
            match rustix::fs::copy_file_range(file, None, &self.out, None, chunk) {
                // Some file systems answer so for files that do have content.
                Ok(0) => break,
                Ok(count) => left -= (count as u64).min(left),
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                    break;
                }
                Err(error) => return Err(WriteError::Io(error.into())),
            }
        }
        let copied = io::copy(&mut file.take(left), &mut self.out).map_err(WriteError::Io)?;
        self.at += len;
        if copied == left { Ok(()) } else { Err(WriteError::Shrunk) }
    }
}

fn hexadecimal(field: u32) -> [u8; 8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 8];
    for (pair, byte) in text.chunks_exact_mut(2).zip(field.to_be_bytes()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
    text
}
