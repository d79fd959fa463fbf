//! Files whose bytes lie inside other files: the members of archives.

use super::encode::{count32, index};
use super::error::Ext2Error;
use crate::archive::Stretch;

/// Members of archives, by number.
#[derive(Debug, Default)]
pub(super) struct Archives {
    all: Vec<Stretch>,
    members: Vec<Member>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    archive: u32,
    start: u64,
    len: u64,
}

impl Archives {
    /// Remembers an archive, from which members will be taken.
    pub(super) fn add(&mut self, archive: Stretch) -> u32 {
        self.all.push(archive);
        count32(self.all.len() - 1)
    }

    /// Remembers a member: its bytes within the archive.
    pub(super) fn member(&mut self, archive: u32, start: u64, len: u64) -> u32 {
        self.members.push(Member { archive, start, len });
        count32(self.members.len() - 1)
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Fills a buffer from a member; beyond its end are zeros. Fails if the archive is another file now.
    pub(super) fn read(&self, member: u32, at: u64, buffer: &mut [u8]) -> Result<(), Ext2Error> {
        let member = self.members[index(member)];
        let archive = &self.all[index(member.archive)];
        let inside = usize::try_from(member.len.saturating_sub(at)).unwrap_or(usize::MAX);
        let (data, beyond) = buffer.split_at_mut(inside.min(buffer.len()));
        beyond.fill(0);
        Ok(archive.read(member.start + at, data)?)
    }
}
