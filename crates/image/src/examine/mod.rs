//! Images as they are: what one holds, whether it is whole, and how two differ. Everything is read, nothing believed: an
//! image may come from anywhere.

mod archive;
mod bits;
mod disk;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::newc;

/// An image from its first byte to its last.
pub trait Bytes {
    /// How many there are.
    fn size(&self) -> u64;
    /// Fills a buffer; all of it lies within the size.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Bytes for File {
    fn size(&self) -> u64 {
        self.metadata().map_or(0, |meta| meta.len())
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }
}

impl Bytes for crate::ext2::Plan {
    fn size(&self) -> u64 {
        kiln_block::BlockSource::size(self).get()
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        kiln_block::BlockSource::read(self, at, buffer).map_err(io::Error::other)
    }
}

/// What kind of image something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An archive for the kernel's first root.
    Initramfs,
    /// A disk with an ext2 file system, or one of its successors.
    Ext2,
}

/// What an image holds.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Its kind.
    pub form: Form,
    /// By path, without a leading slash; the root is the empty one.
    pub entries: BTreeMap<Vec<u8>, Entry>,
    /// What is wrong with it, a sentence each; none if it is whole.
    pub faults: Vec<String>,
}

/// One thing in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Modification time: seconds and nanoseconds.
    pub modified: (i64, u32),
    /// Bytes of a file.
    pub size: u64,
    /// Which device a device node stands for.
    pub device: (u32, u32),
    /// What a link says.
    pub target: Vec<u8>,
    /// A digest of a file's bytes.
    pub content: Option<blake3::Hash>,
}

/// An image cannot be examined at all.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// It cannot be read.
    #[error("cannot read the image at byte {at}")]
    Read {
        /// Where.
        at: u64,
        /// The cause.
        source: io::Error,
    },
    /// It is no image that is known.
    #[error("it is neither an initramfs nor an ext2 file system")]
    Unknown,
    /// It makes so little sense that there is nothing to tell.
    #[error("it is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: String,
    },
}

/// How an entry of one image differs from that of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Only the first has it.
    Removed,
    /// Only the second has it.
    Added,
    /// Both have it: what is different, a few words each.
    Changed(Vec<String>),
}

/// Reads all of an image of either kind.
pub fn examine(image: &dyn Bytes) -> Result<Examined, ExamineError> {
    let mut magic = [0; 6];
    if image.size() >= 6 {
        read(image, 0, &mut magic)?;
        if magic.starts_with(b"07070") {
            return archive::examine(image);
        }
    }
    if disk::looks_like_one(image)? { disk::examine(image) } else { Err(ExamineError::Unknown) }
}

/// Reads all of an image in a file.
pub fn examine_file(path: &Path) -> Result<Examined, ExamineError> {
    let file = File::open(path).map_err(|source| ExamineError::Read { at: 0, source })?;
    examine(&file)
}

/// How two images differ, by path. Modification times count only if that is wanted.
pub fn differences(
    first: &Examined,
    second: &Examined,
    times: bool,
) -> BTreeMap<Vec<u8>, Difference> {
    let mut found = BTreeMap::new();
    for (path, entry) in &first.entries {
        match second.entries.get(path) {
            None => drop(found.insert(path.clone(), Difference::Removed)),
            Some(other) => {
                let changed = changes(entry, other, times);
                if !changed.is_empty() {
                    found.insert(path.clone(), Difference::Changed(changed));
                }
            }
        }
    }
    for path in second.entries.keys().filter(|path| !first.entries.contains_key(*path)) {
        found.insert(path.clone(), Difference::Added);
    }
    found
}

fn changes(a: &Entry, b: &Entry, times: bool) -> Vec<String> {
    const TYPE: u32 = 0o170_000;
    let mut changes = Vec::new();
    if a.mode & TYPE != b.mode & TYPE {
        changes.push(format!("{} -> {}", kind(a.mode), kind(b.mode)));
    }
    if a.mode & !TYPE != b.mode & !TYPE {
        changes.push(format!("mode {:04o} -> {:04o}", a.mode & !TYPE, b.mode & !TYPE));
    }
    if a.owner != b.owner {
        changes.push(format!("owner {}:{} -> {}:{}", a.owner.0, a.owner.1, b.owner.0, b.owner.1));
    }
    if a.device != b.device {
        let ((from, minor), (to, other)) = (a.device, b.device);
        changes.push(format!("device {from}:{minor} -> {to}:{other}"));
    }
    if a.target != b.target {
        let (from, to) = (a.target.escape_ascii(), b.target.escape_ascii());
        changes.push(format!("target {from} -> {to}"));
    }
    if a.size != b.size {
        changes.push(format!("size {} -> {}", a.size, b.size));
    } else if a.content != b.content {
        changes.push("content".to_owned());
    }
    if times && a.modified != b.modified {
        let ((from, nanos), (to, others)) = (a.modified, b.modified);
        changes.push(format!("modified {from}.{nanos:09} -> {to}.{others:09}"));
    }
    changes
}

fn kind(mode: u32) -> &'static str {
    match mode >> 12 {
        0o04 => "directory",
        0o10 => "file",
        0o12 => "symlink",
        0o02 => "character device",
        0o06 => "block device",
        0o01 => "named pipe",
        0o14 => "socket",
        _ => "something unknown",
    }
}

fn read(image: &dyn Bytes, at: u64, buffer: &mut [u8]) -> Result<(), ExamineError> {
    image.read(at, buffer).map_err(|source| ExamineError::Read { at, source })
}

/// A digest of a file's bytes that does not depend on where it has holes: pages of zeros do not count.
struct Content {
    digest: blake3::Hasher,
}

impl Content {
    const PAGE: usize = 4096;

    fn new() -> Content {
        Content { digest: blake3::Hasher::new() }
    }

    /// Bytes from a place on that is a multiple of a page.
    fn feed(&mut self, at: u64, bytes: &[u8]) {
        for (number, page) in (0_u64..).zip(bytes.chunks(Content::PAGE)) {
            // The end of the last page counts as zeros do.
            let end = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if end > 0 {
                self.digest.update(&(at + number * Content::PAGE as u64).to_le_bytes());
                self.digest.update(&(end as u64).to_le_bytes());
                self.digest.update(&page[..end]);
            }
        }
    }

    fn finish(self) -> blake3::Hash {
        self.digest.finalize()
    }
}

impl From<newc::ReadError> for ExamineError {
    fn from(error: newc::ReadError) -> ExamineError {
        match error {
            newc::ReadError::Io { at, source } => ExamineError::Read { at, source },
            damaged => ExamineError::Damaged { what: damaged.to_string() },
        }
    }
}

#[cfg(test)]
mod tests;
