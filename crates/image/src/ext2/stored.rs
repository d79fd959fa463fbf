//! A [`Plan`] as a file, so that another process serves the same disk without planning it again
//! (`docs/formats/root-plan.md`).
//!
//! | field   | size | meaning                                             |
//! |---------|-----:|-----------------------------------------------------|
//! | magic   |    8 | `89 4b 52 50 0d 0a 1a 0a`                           |
//! | version |    4 | 2; readers refuse any other                         |
//! | zero    |    4 |                                                     |
//! | digest  |   32 | blake3 of all that follows                          |
//! | body    |      | shape, then the tables, each behind its length      |
//!
//! Numbers are little-endian. Whatever is wrong with such a file, it is the same as having none: the plan can
//! always be made again.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::BLOCK;
use super::archives::{Archives, Home, Member};
use super::encode::index;
use super::geometry::{GROUP_BLOCKS, Geometry};
use super::host_files::HostFiles;
use super::mapping::{Origin, Segment};
use super::plan::Plan;
use super::superblock::{Identity, Usage};
use crate::closure::host::os_str;
use crate::inventory::Stamp;

const MAGIC: [u8; 8] = *b"\x89KRP\r\n\x1a\n";
const VERSION: u32 = 2;
/// What comes before the body.
const HEAD_LEN: usize = 48;
/// Of a file without a name: folder, length of the name, stamp.
const FILE_LEN: usize = 4 + 8 + 76;
/// Of a member: file, start, length.
const MEMBER_LEN: usize = 4 + 8 + 8;
/// Larger files are somebody else's: sixteen million files have smaller plans.
const SIZE_LIMIT: u64 = 8 << 30;

/// Why a plan cannot be kept as a file, or read from one.
#[derive(Debug, thiserror::Error)]
pub enum StoredPlanError {
    /// The file made trouble.
    #[error("cannot {act} the plan of a root disk")]
    Io {
        /// What was tried.
        act: &'static str,
        /// What came of it.
        source: io::Error,
    },
    /// Some of its files lie in unpacked copies of archives that go with this process.
    #[error("a disk with files from packed archives can be written, and not kept as a plan")]
    Archives,
    /// It is not a whole plan of this version.
    #[error("the plan of a root disk is damaged, or of another version of Kiln: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
}

impl Plan {
    /// Writes the plan to a file. What the disk's files hold is not in it, only where they are and what they looked like.
    ///
    /// # Errors
    /// [`StoredPlanError::Archives`] where members lie in what nobody else can open, or when the file cannot be written.
    pub fn store(&self, mut out: &File) -> Result<(), StoredPlanError> {
        let members = self.archives.members();
        let mut body = Vec::with_capacity(self.inodes.len() + self.metadata.len() + (1 << 20));
        let (geometry, usage) = (&self.geometry, &self.usage);
        let numbers = [
            geometry.groups,
            geometry.inodes_per_group,
            geometry.blocks,
            usage.first_free_block,
            usage.last_inode,
        ];
        numbers.iter().for_each(|number| body.extend(number.to_le_bytes()));
        let Identity { uuid, label, time, indexed, extents } = self.identity;
        body.extend(uuid);
        body.extend(label);
        put32(&mut body, time);
        put32(&mut body, u32::from(indexed) | u32::from(extents) << 1);
        for table in [&self.descriptors, &self.inodes, &self.metadata] {
            put_bytes(&mut body, table);
        }
        put_count(&mut body, self.segments.len());
        for segment in &self.segments {
            let (kind, number, block) = match segment.origin {
                Origin::Metadata { block } => (0, 0, block),
                Origin::Bytes { content, block } => (1, content, block),
                Origin::Host { file, block } => (2, file, block),
                Origin::Member { member, block } => (3, member, block),
            };
            for number in [segment.start, segment.blocks, kind, number, block] {
                put32(&mut body, number);
            }
        }
        put_count(&mut body, self.contents.len());
        self.contents.iter().for_each(|content| put_bytes(&mut body, content));
        let folders = self.host.folders();
        put_count(&mut body, folders.len());
        folders.iter().for_each(|path| put_bytes(&mut body, path.as_os_str().as_encoded_bytes()));
        put_count(&mut body, self.host.len());
        for (folder, name, stamp) in self.host.files() {
            put32(&mut body, folder);
            put_bytes(&mut body, name);
            put_stamp(&mut body, &stamp);
        }
        put_count(&mut body, members.len());
        for Member { home, start, len } in members {
            let Home::Host(file) = home else { return Err(StoredPlanError::Archives) };
            put32(&mut body, *file);
            body.extend(start.to_le_bytes());
            body.extend(len.to_le_bytes());
        }
        put_count(&mut body, self.notes().len());
        self.notes().iter().for_each(|note| put_bytes(&mut body, note.as_bytes()));

        let mut head = MAGIC.to_vec();
        put32(&mut head, VERSION);
        put32(&mut head, 0);
        head.extend(blake3::hash(&body).as_bytes());
        let failed = |source| StoredPlanError::Io { act: "write", source };
        out.write_all(&head).map_err(failed)?;
        out.write_all(&body).map_err(failed)
    }

    /// Reads a plan that [`store`](Self::store) wrote.
    ///
    /// # Errors
    /// When it cannot be read, or is not one.
    pub fn load(path: &Path) -> Result<Plan, StoredPlanError> {
        let failed = |source| StoredPlanError::Io { act: "read", source };
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if len > SIZE_LIMIT {
            return Err(damaged("it is too large"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        file.take(SIZE_LIMIT).read_to_end(&mut bytes).map_err(failed)?;
        Plan::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Plan, StoredPlanError> {
        let (head, body) = bytes.split_at_checked(HEAD_LEN).ok_or(damaged("it is too short"))?;
        if head[..8] != MAGIC || head[8..12] != VERSION.to_le_bytes() || head[12..16] != [0; 4] {
            return Err(damaged("it begins otherwise"));
        }
        if head[16..] != *blake3::hash(body).as_bytes() {
            return Err(damaged("its digest is another"));
        }
        let mut body = Body(body);
        let [groups, inodes_per_group, blocks, first_free_block, last_inode] =
            [body.word()?, body.word()?, body.word()?, body.word()?, body.word()?];
        let geometry = Geometry { groups, inodes_per_group, blocks };
        check_shape(&geometry, first_free_block, last_inode)?;
        let (uuid, label) = (body.array()?, body.array()?);
        let (time, flags) = (body.number()?, body.number()?);
        let (indexed, extents) = (flags & 1 != 0, flags & 2 != 0);
        let identity = Identity { uuid, label, time, indexed, extents };
        let descriptors = body.bytes()?.to_vec();
        let inodes = body.bytes()?.to_vec();
        let metadata = body.bytes()?.to_vec();
        let segments = body.list(20, Body::segment)?;
        let contents: Vec<Arc<[u8]>> = body.list(8, |body| Ok(body.bytes()?.into()))?;
        let folders: Vec<PathBuf> =
            body.list(8, |body| Ok(PathBuf::from(os_str(body.bytes()?))))?;
        let mut host = HostFiles::default();
        for folder in &folders {
            if !folder.is_absolute() {
                return Err(damaged("a folder lies nowhere"));
            }
            host.folder(folder);
        }
        for _ in 0..body.count(FILE_LEN)? {
            let folder = body.number()?;
            let name = body.bytes()?;
            let stamp = body.stamp()?;
            let is_name = !name.contains(&b'/') && !name.contains(&0);
            if index(folder) >= folders.len() || !is_name || matches!(name, b"" | b"." | b"..") {
                return Err(damaged("a file lies nowhere"));
            }
            host.add(folder, name, stamp);
        }
        let mut archives = Archives::default();
        for _ in 0..body.count(MEMBER_LEN)? {
            let (file, start, len) = (body.number()?, body.word()?, body.word()?);
            let end = start.checked_add(len);
            if index(file) >= host.len() || end.is_none_or(|end| end > host.size(file)) {
                return Err(damaged("a member lies nowhere"));
            }
            archives.member(Home::Host(file), start, len);
        }
        let notes = body.list(8, |body| Ok(String::from_utf8_lossy(body.bytes()?).into_owned()))?;
        let mut end = 0;
        for segment in &segments {
            let known = match segment.origin {
                Origin::Bytes { content, .. } => index(content) < contents.len(),
                Origin::Host { file, .. } => index(file) < host.len(),
                Origin::Metadata { .. } => true,
                Origin::Member { member, .. } => index(member) < archives.len(),
            };
            let start = u64::from(segment.start);
            if !known || start < end || segment.blocks == 0 {
                return Err(damaged("its blocks overlap, or are of nothing"));
            }
            end = start + u64::from(segment.blocks);
        }
        if end > blocks || !body.0.is_empty() {
            return Err(damaged("it ends elsewhere"));
        }
        let usage = Usage { first_free_block, last_inode };
        Ok(Plan {
            geometry,
            usage,
            identity,
            descriptors,
            inodes,
            metadata,
            segments,
            contents,
            host,
            archives,
            notes,
        })
    }
}

fn damaged(what: &'static str) -> StoredPlanError {
    StoredPlanError::Damaged { what }
}

/// What arithmetic on a disk's shape relies on.
fn check_shape(
    geometry: &Geometry,
    first_free_block: u64,
    last_inode: u64,
) -> Result<(), StoredPlanError> {
    let Geometry { groups, inodes_per_group, blocks } = *geometry;
    let most = u64::from(u32::MAX);
    let whole = inodes_per_group > 0
        && inodes_per_group.is_multiple_of(BLOCK / super::inode::LEN)
        && inodes_per_group <= GROUP_BLOCKS;
    let fits = groups > 0
        && groups <= most.div_ceil(GROUP_BLOCKS)
        && blocks > (groups - 1) * GROUP_BLOCKS
        && blocks <= (groups * GROUP_BLOCKS).min(most);
    let heads_fit = whole
        && fits
        && (0..groups).all(|group| geometry.head_blocks(group) <= geometry.group_blocks(group));
    if heads_fit && first_free_block <= blocks && last_inode <= geometry.inodes() {
        return Ok(());
    }
    Err(damaged("no disk has that shape"))
}

fn put32(out: &mut Vec<u8>, number: u32) {
    out.extend(number.to_le_bytes());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend((count as u64).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_stamp(out: &mut Vec<u8>, stamp: &Stamp) {
    put32(out, stamp.mode);
    for number in [stamp.device, stamp.inode, stamp.links, stamp.size, stamp.stands_for] {
        out.extend(number.to_le_bytes());
    }
    for (seconds, nanos) in [stamp.modified, stamp.changed] {
        out.extend(seconds.to_le_bytes());
        out.extend(nanos.to_le_bytes());
    }
}

/// What is left of a body.
struct Body<'b>(&'b [u8]);

impl<'b> Body<'b> {
    fn take(&mut self, len: usize) -> Result<&'b [u8], StoredPlanError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(damaged("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoredPlanError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn number(&mut self) -> Result<u32, StoredPlanError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn word(&mut self) -> Result<u64, StoredPlanError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn signed(&mut self) -> Result<i64, StoredPlanError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn bytes(&mut self) -> Result<&'b [u8], StoredPlanError> {
        let len = usize::try_from(self.word()?).map_err(|_| damaged("it is cut off"))?;
        self.take(len)
    }

    /// How many things follow, of which each has at least so many bytes.
    fn count(&mut self, least: usize) -> Result<usize, StoredPlanError> {
        let count = usize::try_from(self.word()?).map_err(|_| damaged("it is cut off"))?;
        let room = self.0.len() / least;
        if count <= room { Ok(count) } else { Err(damaged("it is cut off")) }
    }

    fn list<T>(
        &mut self,
        least: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, StoredPlanError>,
    ) -> Result<Vec<T>, StoredPlanError> {
        (0..self.count(least)?).map(|_| item(self)).collect()
    }

    fn segment(&mut self) -> Result<Segment, StoredPlanError> {
        let (start, blocks) = (self.number()?, self.number()?);
        let (kind, number, block) = (self.number()?, self.number()?, self.number()?);
        if block.checked_add(blocks).is_none() || start.checked_add(blocks).is_none() {
            return Err(damaged("a stretch of blocks has no end"));
        }
        let origin = match kind {
            0 => Origin::Metadata { block },
            1 => Origin::Bytes { content: number, block },
            2 => Origin::Host { file: number, block },
            3 => Origin::Member { member: number, block },
            _ => return Err(damaged("blocks are of an unknown kind")),
        };
        Ok(Segment { start, blocks, origin })
    }

    fn stamp(&mut self) -> Result<Stamp, StoredPlanError> {
        let mode = self.number()?;
        let [device, inode, links, size, stands_for] =
            [self.word()?, self.word()?, self.word()?, self.word()?, self.word()?];
        let modified = (self.signed()?, self.signed()?);
        let changed = (self.signed()?, self.signed()?);
        Ok(Stamp { mode, device, inode, links, size, modified, changed, stands_for })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::LazyLock;

    use kiln_block::BlockSource;
    use proptest::prelude::*;

    use super::super::{Options, Tree};
    use super::*;
    use crate::archive::Stretch;

    /// A plan of a folder with a large file, a small one, a link and an archive, and what is in that.
    fn plan(folder: &Path) -> Plan {
        fs::write(folder.join("large"), vec![b'l'; 300_000]).unwrap();
        fs::write(folder.join("small"), b"small").unwrap();
        std::os::unix::fs::symlink("small", folder.join("link")).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        for (name, text) in [("member", "in an archive"), ("folder/member", "also there")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64 * 500);
            header.set_mode(0o644);
            header.set_uid(1);
            header.set_gid(1);
            archive.append_data(&mut header, name, text.repeat(500).as_bytes()).unwrap();
        }
        fs::write(folder.join("archive"), archive.into_inner().unwrap()).unwrap();
        let mut tree = Tree::new();
        tree.add_directory(folder).unwrap();
        tree.add_tar(&Stretch::open(&folder.join("archive")).unwrap(), false).unwrap();
        Plan::new(tree, &Options::default()).unwrap()
    }

    fn stored(plan: &Plan) -> Vec<u8> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        plan.store(file.as_file()).unwrap();
        let mut bytes = Vec::new();
        io::Seek::rewind(file.as_file_mut()).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn all_of(plan: &Plan) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(plan.size().get()).unwrap()];
        plan.read(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_plan_that_was_kept_is_the_same_disk() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path());
        let again = Plan::parse(&stored(&plan)).unwrap();
        assert_eq!(again.summary(), plan.summary());
        assert!(all_of(&again) == all_of(&plan));
        assert_eq!(stored(&again), stored(&plan));
    }

    #[test]
    fn a_plan_can_be_read_from_another_folder() {
        let mut host = HostFiles::default();
        for folder in ["", "some/folder", "/folder"] {
            host.folder(Path::new(folder));
        }
        let here = std::env::current_dir().unwrap();
        let folders = [here.clone(), here.join("some/folder"), PathBuf::from("/folder")];
        assert_eq!(host.folders(), folders);
    }

    #[test]
    fn a_file_that_changed_since_is_noticed_by_who_reads_the_plan() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = stored(&plan(folder.path()));
        fs::write(folder.path().join("large"), vec![b'L'; 300_000]).unwrap();
        let plan = Plan::parse(&bytes).unwrap();
        let mut disk = vec![0; usize::try_from(plan.size().get()).unwrap()];
        let error = plan.read(0, &mut disk).unwrap_err();
        let error = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.contains("large changed since the disk was planned"), "{error}");
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = stored(&plan(folder.path()));
        for len in [0, 7, 47, 48, 200, bytes.len() - 1] {
            assert!(Plan::parse(&bytes[..len]).is_err(), "{len}");
        }
        let mut other = bytes.clone();
        other[1000] ^= 1;
        assert!(Plan::parse(&other).is_err());
    }

    proptest! {
        /// A digest is no defence against who computes it.
        #[test]
        fn hostile_plans_never_panic(changes in proptest::collection::vec((48_usize..4000, any::<u8>()), 1..20)) {
            static BYTES: LazyLock<Vec<u8>> =
                LazyLock::new(|| stored(&plan(tempfile::tempdir().unwrap().path())));
            let mut bytes = BYTES.clone();
            for (at, value) in changes {
                let len = bytes.len();
                bytes[at % len] = value;
            }
            let digest = blake3::hash(&bytes[48..]);
            bytes[16..48].copy_from_slice(digest.as_bytes());
            if let Ok(plan) = Plan::parse(&bytes) && plan.size().get() < 64 << 20 {
                let mut disk = vec![0; usize::try_from(plan.size().get()).unwrap()];
                let _ = plan.read(0, &mut disk);
            }
        }
    }
}
