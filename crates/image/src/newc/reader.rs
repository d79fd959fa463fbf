//! Reading an archive's members without their data.

use std::io::{self, Read, Seek, SeekFrom};

use super::{HEADER, MAGIC, NAME_LIMIT, TRAILER};

/// More members than any image has.
const MEMBER_LIMIT: u64 = 4_000_000;

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name without the NULs at its end; hostile.
    pub name: Vec<u8>,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Members with the same number and `links` above 1 are one file.
    pub inode: u32,
    /// How many names it has.
    pub links: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds since 1970.
    pub modified: u32,
    /// Major and minor, for device nodes.
    pub device: (u32, u32),
    /// Where its data starts.
    pub data_at: u64,
    /// How many bytes of data it has.
    pub data_len: u64,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system said no.
    #[error("cannot read the archive at byte {at}")]
    Io {
        /// Where.
        at: u64,
        /// The cause.
        source: io::Error,
    },
    /// It makes no sense.
    #[error("the archive is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// Reads members, in order; seeks over their data.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    len: u64,
    at: u64,
    members: u64,
    ended: bool,
}

impl<R: Read + Seek> Reader<R> {
    /// Starts at the beginning.
    pub fn new(mut input: R) -> Result<Reader<R>, ReadError> {
        let failed = |source| ReadError::Io { at: 0, source };
        let len = input.seek(SeekFrom::End(0)).map_err(failed)?;
        input.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Reader { input, len, at: 0, members: 0, ended: false })
    }

    /// The data of a member that this reader gave; refuses more than `limit` bytes.
    pub fn data(&mut self, member: &Member, limit: u64) -> Result<Vec<u8>, ReadError> {
        let at = member.data_at;
        if member.data_len > limit || !self.reaches(at, member.data_len) {
            return Err(ReadError::Damaged { at, what: "its data is larger than it should be" });
        }
        let failed = |source| ReadError::Io { at, source };
        self.input.seek(SeekFrom::Start(at)).map_err(failed)?;
        let mut data = Vec::new();
        (&mut self.input).take(member.data_len).read_to_end(&mut data).map_err(failed)?;
        Ok(data)
    }

    fn next_member(&mut self) -> Result<Option<Member>, ReadError> {
        let start = self.at;
        let damaged = |what| ReadError::Damaged { at: start, what };
        if !self.reaches(start, HEADER) {
            return Err(damaged("it ends without its last member"));
        }
        self.members += 1;
        if self.members > MEMBER_LIMIT {
            return Err(damaged("it has too many members"));
        }
        let mut header = [0; 110];
        self.fill(start, &mut header)?;
        if !header.starts_with(MAGIC) {
            return Err(damaged("a member does not start with 070701"));
        }
        let mut fields = [0u32; 13];
        for (field, text) in fields.iter_mut().zip(header[MAGIC.len()..].chunks_exact(8)) {
            *field = number(text).ok_or(damaged("a number is not hexadecimal"))?;
        }
        let [inode, mode, uid, gid, links, modified, size, _, _, major, minor, name_size, _] =
            fields;
        let (data_len, name_size) = (u64::from(size), u64::from(name_size));
        if name_size == 0 || name_size > NAME_LIMIT {
            return Err(damaged("a name is empty or too long"));
        }
        let name_at = start + HEADER;
        if !self.reaches(name_at, name_size) {
            return Err(damaged("a name reaches past the end"));
        }
        let mut name = vec![0; usize::try_from(name_size).unwrap_or_default()];
        self.fill(name_at, &mut name)?;
        if name.pop() != Some(0) {
            return Err(damaged("a name has no NUL at its end"));
        }
        while name.last() == Some(&0) {
            name.pop();
        }
        if name.contains(&0) {
            return Err(damaged("a name has a NUL in it"));
        }
        if name == TRAILER {
            return Ok(None);
        }
        let data_at = (name_at + name_size).next_multiple_of(4);
        if !self.reaches(data_at, data_len) {
            return Err(damaged("data reaches past the end"));
        }
        self.at = (data_at + data_len).next_multiple_of(4);
        let (owner, device) = ((uid, gid), (major, minor));
        Ok(Some(Member { name, mode, inode, links, owner, modified, device, data_at, data_len }))
    }

    fn reaches(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len)
    }

    fn fill(&mut self, at: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let failed = |source| ReadError::Io { at, source };
        self.input.seek(SeekFrom::Start(at)).map_err(failed)?;
        self.input.read_exact(buffer).map_err(failed)
    }
}

impl<R: Read + Seek> Iterator for Reader<R> {
    type Item = Result<Member, ReadError>;

    /// The next member; nothing more after the end or an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let member = self.next_member().transpose();
        self.ended = !matches!(member, Some(Ok(_)));
        member
    }
}

/// Eight hexadecimal digits, and nothing else that a parser of numbers would take.
fn number(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0u32, |value, &byte| {
        let digit = char::from(byte).to_digit(16)?;
        Some(value << 4 | digit)
    })
}
