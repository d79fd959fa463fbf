//! Files whose bytes lie inside other files: the members of archives.

use std::os::unix::ffi::OsStrExt as _;

use super::encode::{count32, index};
use super::error::Ext2Error;
use super::host_files::HostFiles;
use crate::archive::Stretch;

/// Members of archives, by number.
#[derive(Debug, Default)]
pub(super) struct Archives {
    all: Vec<Stretch>,
    members: Vec<Member>,
}

/// Bytes in a row of something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) home: Home,
    /// Where they begin in it.
    pub(super) start: u64,
    pub(super) len: u64,
}

/// What a member's bytes lie in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Home {
    /// An archive that is held open, since only this process can reach it.
    Archive(u32),
    /// A file of the host, which other processes find, too.
    Host(u32),
}

impl Archives {
    /// Remembers an archive, from which members will be taken, and says where it begins in what. Only one that other
    /// processes do not find is held open.
    pub(super) fn add(&mut self, archive: &Stretch, host: &mut HostFiles) -> (Home, u64) {
        let place = archive.place();
        let named = place.as_ref().and_then(|(file, start)| {
            Some((file, start, file.path.parent()?, file.path.file_name()?))
        });
        if let Some((file, start, folder, name)) = named {
            let folder = host.folder(folder);
            return (Home::Host(host.add(folder, name.as_bytes(), file.stamp)), *start);
        }
        self.all.push(archive.clone());
        (Home::Archive(count32(self.all.len() - 1)), 0)
    }

    /// Remembers a member: its bytes within its home.
    pub(super) fn member(&mut self, home: Home, start: u64, len: u64) -> u32 {
        self.members.push(Member { home, start, len });
        count32(self.members.len() - 1)
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// All members, by number.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// All bytes of a member.
    pub(super) fn bytes(&self, host: &HostFiles, member: u32) -> Result<Vec<u8>, Ext2Error> {
        let len = self.members[index(member)].len;
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| Ext2Error::TooLarge)?];
        self.read(host, member, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills a buffer from a member; beyond its end are zeros. Fails if what it lies in is another file now.
    pub(super) fn read(
        &self,
        host: &HostFiles,
        member: u32,
        at: u64,
        buffer: &mut [u8],
    ) -> Result<(), Ext2Error> {
        let member = self.members[index(member)];
        let inside = usize::try_from(member.len.saturating_sub(at)).unwrap_or(usize::MAX);
        let (data, beyond) = buffer.split_at_mut(inside.min(buffer.len()));
        beyond.fill(0);
        let from = member.start.saturating_add(at);
        match member.home {
            Home::Archive(archive) => Ok(self.all[index(archive)].read(from, data)?),
            Home::Host(file) => host.read(file, from, data),
        }
    }
}
