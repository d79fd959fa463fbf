//! The archive the kernel unpacks into its first root file system: cpio, "newc" variant
//! (`docs/formats/initramfs.md`).
//!
//! | offset | size | field     | meaning                                                             |
//! |-------:|-----:|-----------|---------------------------------------------------------------------|
//! |      0 |    6 | magic     | `070701`                                                            |
//! |      6 |    8 | ino       | members with the same number and `nlink` above 1 are one file       |
//! |     14 |    8 | mode      | type and permissions, as `st_mode`                                  |
//! |     22 |   16 | uid, gid  | 0                                                                   |
//! |     38 |    8 | nlink     | number of names                                                     |
//! |     46 |    8 | mtime     | seconds since 1970                                                  |
//! |     54 |    8 | filesize  | bytes of data: a file's content, what a link says                   |
//! |     62 |   16 | dev       | major, minor of the file system; 0                                  |
//! |     78 |   16 | rdev      | major, minor a device node stands for                               |
//! |     94 |    8 | namesize  | bytes of the name with its NULs                                     |
//! |    102 |    8 | check     | 0                                                                   |
//!
//! All numbers are eight hexadecimal digits. Header and name together, and the data, are padded with
//! NULs to a multiple of four. A name may end in several NULs, which are counted: with them, data is
//! moved to where a page starts. The member `TRAILER!!!` ends the archive.

mod reader;
mod writer;

pub use reader::{Member, ReadError, Reader};
pub use writer::{Attributes, WriteError, Writer};

/// The first bytes of every member.
const MAGIC: &[u8; 6] = b"070701";
/// How long a header is.
const HEADER: u64 = 110;
/// The last member's name.
const TRAILER: &[u8] = b"TRAILER!!!";
/// The longest name the kernel takes, its NUL included.
const NAME_LIMIT: u64 = 4096;
/// What data is aligned to.
const PAGE: u64 = 4096;

#[cfg(test)]
mod tests;
