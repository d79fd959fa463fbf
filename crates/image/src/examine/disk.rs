//! An ext2 file system, from its superblock to the last block of its last file, and whether its maps say the same as its
//! files do. What it must be is in `docs/formats/ext2.md`.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::bits::Bits;
use super::{Bytes, Content, Entry, ExamineError, Examined, Form, read};

const MAGIC: [u8; 2] = [0x53, 0xef];
/// Features that change where things are, of those that are understood: types in directories, extents.
const UNDERSTOOD: u32 = 0x2 | 0x40;
const FLAG_EXTENTS: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
const ROOT: u32 = 2;
/// More faults help nobody.
const MOST_FAULTS: usize = 100;
/// Paths no longer than the kernel's.
const LONGEST_PATH: usize = 4096;
const LARGEST_DIRECTORY: u64 = 1 << 30;

/// Whether there is the magic of such a file system.
pub(super) fn looks_like_one(image: &dyn Bytes) -> Result<bool, ExamineError> {
    let mut found = [0; 2];
    if image.size() < 2048 {
        return Ok(false);
    }
    read(image, 1024 + 56, &mut found)?;
    Ok(found == MAGIC)
}

pub(super) fn examine(image: &dyn Bytes) -> Result<Examined, ExamineError> {
    let mut disk = Disk::open(image)?;
    disk.mark_fixed();
    disk.mark_resizing()?;
    disk.walk()?;
    disk.check_links()?;
    disk.check_maps()?;
    Ok(Examined { form: Form::Ext2, entries: disk.entries, faults: disk.faults })
}

struct Disk<'i> {
    image: &'i dyn Bytes,
    superblock: Vec<u8>,
    block: u64,
    blocks: u64,
    first_block: u64,
    blocks_per_group: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_len: u64,
    descriptors: Vec<u8>,
    used: Bits,
    /// Names that lead to an inode, and links it says it has.
    links: HashMap<u32, (u32, u32)>,
    directories: HashMap<u64, u32>,
    entries: BTreeMap<Vec<u8>, Entry>,
    faults: Vec<String>,
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_le_bytes([two[0], two[1]]))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

fn damaged(what: impl Into<String>) -> ExamineError {
    ExamineError::Damaged { what: what.into() }
}

impl<'i> Disk<'i> {
    fn open(image: &'i dyn Bytes) -> Result<Disk<'i>, ExamineError> {
        let mut superblock = vec![0; 1024];
        read(image, 1024, &mut superblock)?;
        let log = word(&superblock, 24);
        if log > 6 {
            return Err(damaged("its blocks have an impossible size"));
        }
        let block = 1024_u64 << log;
        let blocks = u64::from(word(&superblock, 4));
        let first_block = u64::from(word(&superblock, 20));
        let blocks_per_group = u64::from(word(&superblock, 32));
        let (inodes, inodes_per_group) = (word(&superblock, 0), word(&superblock, 40));
        let inode_len = if word(&superblock, 76) == 0 { 128 } else { half(&superblock, 88).into() };
        let sizes = [blocks_per_group, inodes_per_group.into()];
        if sizes.iter().any(|size| *size == 0 || *size > 8 * block) {
            return Err(damaged("its groups have an impossible size"));
        }
        if inode_len < 128 || inode_len > block || first_block >= blocks.max(1) {
            return Err(damaged("its superblock makes no sense"));
        }
        if blocks.saturating_mul(block) > image.size() {
            let (has, says) = (image.size(), blocks.saturating_mul(block));
            return Err(damaged(format!("it has {has} bytes where its superblock says {says}")));
        }
        let unknown = word(&superblock, 96) & !UNDERSTOOD;
        if unknown != 0 {
            return Err(damaged(format!("it has features that are not understood, {unknown:#x}")));
        }
        let groups = (blocks - first_block).div_ceil(blocks_per_group);
        if u64::from(inodes) != groups * u64::from(inodes_per_group) {
            return Err(damaged("its count of inodes is not that of its groups"));
        }
        if u64::from(inodes) * inode_len > blocks * block {
            return Err(damaged("it has more inodes than there is room for"));
        }
        let mut descriptors = vec![0; usize::try_from(groups * 32).unwrap_or(0)];
        read(image, (first_block + 1) * block, &mut descriptors)?;
        Ok(Disk {
            image,
            superblock,
            block,
            blocks,
            first_block,
            blocks_per_group,
            inodes,
            inodes_per_group,
            inode_len,
            descriptors,
            used: Bits::new(blocks),
            links: HashMap::new(),
            directories: HashMap::new(),
            entries: BTreeMap::new(),
            faults: Vec::new(),
        })
    }

    fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.blocks_per_group)
    }

    fn descriptor(&self, group: u64, at: usize) -> u32 {
        word(&self.descriptors, usize::try_from(group * 32).unwrap_or(0) + at)
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(what);
        }
    }

    /// Whether so much is wrong that nothing more is worth looking at: it may have been made to keep us busy.
    fn is_lost(&self) -> bool {
        self.faults.len() >= MOST_FAULTS
    }

    /// Takes a block for something.
    fn mark(&mut self, block: u64, what: &str) {
        if block >= self.blocks || block < self.first_block {
            self.fault(format!("{what} uses block {block}, which is not on the disk"));
        } else if !self.used.add(block) {
            self.fault(format!("block {block} is used twice, by {what} the second time"));
        }
    }

    /// Superblocks, descriptors, maps and tables.
    fn mark_fixed(&mut self) {
        let sparse = word(&self.superblock, 100) & 1 != 0;
        let table = (u64::from(self.inodes_per_group) * self.inode_len).div_ceil(self.block);
        let descriptors = (self.groups() * 32).div_ceil(self.block);
        // Room that is kept for more descriptors belongs to an inode of its own.
        for group in 0..self.groups() {
            if self.is_lost() {
                return;
            }
            let start = self.first_block + group * self.blocks_per_group;
            if !sparse || has_superblock(group) {
                for block in start..=start + descriptors {
                    self.mark(block, "a superblock");
                }
            }
            self.mark(self.descriptor(group, 0).into(), "a map of blocks");
            self.mark(self.descriptor(group, 4).into(), "a map of inodes");
            let first = u64::from(self.descriptor(group, 8));
            for block in first..first + table {
                self.mark(block, "a table of inodes");
            }
        }
    }

    /// The inode that keeps room for growing; only its blocks are of interest.
    fn mark_resizing(&mut self) -> Result<(), ExamineError> {
        const RESIZE: u32 = 7;
        if word(&self.superblock, 92) & 0x10 == 0 {
            return Ok(());
        }
        let inode = self.inode(RESIZE)?;
        self.map(&inode, "the inode for growing", &mut |_, _, _, _| Ok(()))
    }

    fn inode(&self, number: u32) -> Result<Vec<u8>, ExamineError> {
        if number == 0 || number > self.inodes {
            return Err(damaged(format!("inode {number} is not on the disk")));
        }
        let (group, at) =
            ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let table = u64::from(self.descriptor(group.into(), 8));
        let place = table * self.block + u64::from(at) * self.inode_len;
        let mut inode = vec![0; usize::try_from(self.inode_len).unwrap_or(128)];
        if place + self.inode_len > self.blocks * self.block {
            return Err(damaged(format!("the table of inode {number} is not on the disk")));
        }
        read(self.image, place, &mut inode)?;
        Ok(inode)
    }

    fn walk(&mut self) -> Result<(), ExamineError> {
        let mut ahead = vec![(Vec::new(), ROOT, ROOT)];
        let mut folders = HashSet::from([ROOT]);
        let mut known: HashMap<u32, Entry> = HashMap::new();
        while let Some((path, number, parent)) = ahead.pop() {
            if self.is_lost() {
                return Ok(());
            }
            let shown = format!("/{}", path.escape_ascii());
            let inode = match self.inode(number) {
                Ok(inode) => inode,
                Err(error) => {
                    self.fault(format!("{shown}: {error}"));
                    continue;
                }
            };
            let is_folder = half(&inode, 0) >> 12 == 0o04;
            if let Some(entry) = known.get(&number).filter(|_| !is_folder) {
                self.entries.insert(path, entry.clone());
                continue;
            }
            let (entry, names) = self.entry(&inode, &shown)?;
            self.links.entry(number).or_default().1 = half(&inode, 26).into();
            known.insert(number, entry.clone());
            self.entries.insert(path.clone(), entry);
            if !is_folder {
                continue;
            }
            *self
                .directories
                .entry(u64::from((number - 1) / self.inodes_per_group))
                .or_default() += 1;
            let mut seen = HashSet::new();
            for (name, child) in names {
                self.links.entry(child).or_default().0 += 1;
                match name.as_slice() {
                    b"." if child == number => continue,
                    b".." if child == parent => continue,
                    b"." | b".." => {
                        self.fault(format!("{shown} has a wrong {:?}", name.escape_ascii()));
                        continue;
                    }
                    _ => {}
                }
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(&name);
                let is_usable = !name.is_empty() && !name.contains(&b'/') && !name.contains(&0);
                if !is_usable || below.len() > LONGEST_PATH || !seen.insert(name) {
                    self.fault(format!("{shown} has a name that cannot be, or has it twice"));
                    continue;
                }
                let leads_on = self.inode(child).is_ok_and(|inode| half(&inode, 0) >> 12 == 0o04);
                if leads_on && !folders.insert(child) {
                    self.fault(format!("/{} is a directory with two names", below.escape_ascii()));
                    continue;
                }
                ahead.push((below, child, number));
            }
        }
        Ok(())
    }

    /// What an inode says, and the names in it if it is a directory.
    fn entry(&mut self, inode: &[u8], shown: &str) -> Result<(Entry, Names), ExamineError> {
        let mode = half(inode, 0);
        let kind = mode >> 12;
        let extra = if self.inode_len >= 160 { word(inode, 136) } else { 0 };
        let seconds = i64::from(word(inode, 16).cast_signed()) + (i64::from(extra & 3) << 32);
        let high = if kind == 0o10 { u64::from(word(inode, 108)) << 32 } else { 0 };
        let size = u64::from(word(inode, 4)) | high;
        let attributes = u64::from(word(inode, 104));
        if attributes != 0 && !self.used.has(attributes) {
            // Shared by all with the same ones.
            self.mark(attributes, shown);
        }
        let mut entry = Entry {
            mode: mode.into(),
            owner: (
                u32::from(half(inode, 2)) | u32::from(half(inode, 120)) << 16,
                u32::from(half(inode, 24)) | u32::from(half(inode, 122)) << 16,
            ),
            modified: (seconds, extra >> 2),
            size: if kind == 0o10 { size } else { 0 },
            device: (0, 0),
            target: Vec::new(),
            content: None,
        };
        let mut names = Vec::new();
        match kind {
            0o02 | 0o06 => {
                let (old, new) = (word(inode, 40), word(inode, 44));
                entry.device = if old != 0 {
                    (old >> 8, old & 0xff)
                } else {
                    (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
                };
            }
            0o12 if size < 60 && word(inode, 32) & FLAG_EXTENTS == 0 => {
                entry.target = inode[40..40 + usize::try_from(size).unwrap_or(0)].to_vec();
            }
            0o04 if size > LARGEST_DIRECTORY.min(self.blocks * self.block) => {
                self.fault(format!("{shown} is a directory of {size} bytes"));
            }
            0o04 | 0o12 => {
                let mut bytes = Vec::new();
                let (image, block) = (self.image, self.block);
                let limit = if kind == 0o12 { block } else { size };
                self.map(inode, shown, &mut |logical, physical, count, _| {
                    let start = usize::try_from(logical * block).unwrap_or(usize::MAX);
                    let len = usize::try_from(count * block).unwrap_or(usize::MAX);
                    if start.saturating_add(len) as u64 <= limit.next_multiple_of(block) {
                        bytes.resize(bytes.len().max(start + len), 0);
                        read(image, physical * block, &mut bytes[start..start + len])?;
                    }
                    Ok(())
                })?;
                bytes.resize(usize::try_from(size.min(limit)).unwrap_or(0), 0);
                if kind == 0o12 {
                    entry.target = bytes;
                } else {
                    names = self.names(&bytes, shown);
                }
            }
            0o10 => {
                let mut digest = Content::new();
                let (image, block) = (self.image, self.block);
                let mut buffer = vec![0; 1 << 20];
                let most = buffer.len() as u64 / block;
                let mut beyond = false;
                self.map(inode, shown, &mut |logical, physical, count, written| {
                    let mut done = 0;
                    while done < count && written {
                        let part = (count - done).min(most);
                        let at = (logical + done) * block;
                        beyond |= at >= size;
                        let len = (part * block).min(size.saturating_sub(at));
                        let bytes = &mut buffer[..usize::try_from(len).unwrap_or(0)];
                        read(image, (physical + done) * block, bytes)?;
                        digest.feed(at, bytes);
                        done += part;
                    }
                    Ok(())
                })?;
                if beyond {
                    self.fault(format!("{shown} has blocks beyond its end"));
                }
                entry.content = Some(digest.finish());
            }
            0o01 | 0o14 => {}
            _ => self.fault(format!("{shown} is of an unknown kind, {mode:o}")),
        }
        Ok((entry, names))
    }

    fn names(&mut self, bytes: &[u8], shown: &str) -> Names {
        let mut names = Vec::new();
        let block = usize::try_from(self.block).unwrap_or(1024);
        for block in bytes.chunks(block) {
            let mut at = 0;
            while at < block.len() {
                let len = usize::from(half(block, at + 4));
                let name_len = usize::from(block.get(at + 6).copied().unwrap_or(0));
                if len < 8 || !len.is_multiple_of(4) || at + len > block.len() || name_len + 8 > len
                {
                    self.fault(format!("{shown} is a damaged directory"));
                    break;
                }
                let inode = word(block, at);
                if inode != 0 {
                    names.push((block[at + 8..at + 8 + name_len].to_vec(), inode));
                }
                at += len;
            }
        }
        names
    }

    /// Gives `each` the blocks of an inode as (first in the file, first on the disk, how many, whether they hold
    /// anything), and marks them and the tables that lead to them.
    fn map(&mut self, inode: &[u8], shown: &str, each: &mut Each<'_>) -> Result<(), ExamineError> {
        if word(inode, 32) & FLAG_EXTENTS != 0 {
            return self.extents(&inode[40..100], 6, shown, each);
        }
        for direct in 0..12_u64 {
            let block = word(inode, 40 + usize::try_from(direct).unwrap_or(0) * 4);
            self.run(direct, block.into(), 1, shown, each)?;
        }
        let pointers = self.block / 4;
        let mut first = 12;
        for (level, at) in [(0_u32, 88), (1, 92), (2, 96)] {
            self.table(word(inode, at).into(), level, first, shown, each)?;
            first += pointers.pow(level + 1);
        }
        Ok(())
    }

    fn table(
        &mut self,
        table: u64,
        level: u32,
        first: u64,
        shown: &str,
        each: &mut Each<'_>,
    ) -> Result<(), ExamineError> {
        if table == 0 || self.is_lost() {
            return Ok(());
        }
        let before = self.faults.len();
        self.mark(table, shown);
        if self.faults.len() > before || table >= self.blocks {
            // Circles end here.
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(self.block).unwrap_or(1024)];
        read(self.image, table * self.block, &mut bytes)?;
        let step = (self.block / 4).pow(level);
        for (number, four) in (0_u64..).zip(bytes.chunks_exact(4)) {
            let block = u64::from(word(four, 0));
            let at = first + number * step;
            match level.checked_sub(1) {
                None => self.run(at, block, 1, shown, each)?,
                Some(level) => self.table(block, level, at, shown, each)?,
            }
        }
        Ok(())
    }

    fn extents(
        &mut self,
        node: &[u8],
        depth_left: u16,
        shown: &str,
        each: &mut Each<'_>,
    ) -> Result<(), ExamineError> {
        let (count, depth) = (usize::from(half(node, 2)), half(node, 6));
        if self.is_lost() {
            return Ok(());
        }
        if half(node, 0) != EXTENT_MAGIC || 12 + count * 12 > node.len() || depth >= depth_left {
            self.fault(format!("{shown} has a damaged node of extents"));
            return Ok(());
        }
        for entry in node[12..12 + count * 12].chunks_exact(12) {
            let logical = u64::from(word(entry, 0));
            if depth == 0 {
                let len = u64::from(half(entry, 4));
                let (len, written) = if len > 32768 { (len - 32768, false) } else { (len, true) };
                let start = u64::from(word(entry, 8)) | u64::from(half(entry, 6)) << 32;
                self.extent(logical, start, len, written, shown, each)?;
            } else {
                let block = u64::from(word(entry, 4)) | u64::from(half(entry, 8)) << 32;
                let before = self.faults.len();
                self.mark(block, shown);
                if self.faults.len() > before || block >= self.blocks {
                    continue;
                }
                let mut bytes = vec![0; usize::try_from(self.block).unwrap_or(1024)];
                read(self.image, block * self.block, &mut bytes)?;
                self.extents(&bytes, depth, shown, each)?;
            }
        }
        Ok(())
    }

    fn run(
        &mut self,
        logical: u64,
        block: u64,
        count: u64,
        shown: &str,
        each: &mut Each<'_>,
    ) -> Result<(), ExamineError> {
        if block == 0 {
            return Ok(());
        }
        self.extent(logical, block, count, true, shown, each)
    }

    fn extent(
        &mut self,
        logical: u64,
        start: u64,
        count: u64,
        written: bool,
        shown: &str,
        each: &mut Each<'_>,
    ) -> Result<(), ExamineError> {
        for block in start..start.saturating_add(count) {
            self.mark(block, shown);
            if self.is_lost() {
                return Ok(());
            }
        }
        if start.saturating_add(count) > self.blocks {
            return Ok(());
        }
        each(logical, start, count, written)
    }

    /// Names that lead to an inode are as many as it says.
    fn check_links(&mut self) -> Result<(), ExamineError> {
        let mut wrong: Vec<(u32, u32, u32)> = Vec::new();
        for (number, (names, says)) in &self.links {
            if names != says {
                wrong.push((*number, *names, *says));
            }
        }
        wrong.sort_unstable();
        for (number, names, says) in wrong {
            self.fault(format!("inode {number} has {names} names, and says {says}"));
        }
        Ok(())
    }

    /// Maps and counts say what the files do.
    fn check_maps(&mut self) -> Result<(), ExamineError> {
        let first_inode =
            if word(&self.superblock, 76) == 0 { 11 } else { word(&self.superblock, 84) };
        let (mut free_blocks, mut free_inodes) = (0_u64, 0_u64);
        let mut map = vec![0; usize::try_from(self.block).unwrap_or(1024)];
        let is_set = |map: &[u8], at: u64| {
            let byte = usize::try_from(at / 8).ok().and_then(|at| map.get(at));
            byte.is_some_and(|byte| byte & 1 << (at % 8) != 0)
        };
        for group in 0..self.groups() {
            let start = self.first_block + group * self.blocks_per_group;
            let count = self.blocks_per_group.min(self.blocks - start);
            let place = u64::from(self.descriptor(group, 0));
            if place < self.blocks {
                read(self.image, place * self.block, &mut map)?;
            }
            let (mut wrong, mut free) = (0_u64, 0_u64);
            for at in 0..count {
                let used = self.used.has(start + at);
                wrong += u64::from(used != is_set(&map, at));
                free += u64::from(!used);
            }
            if wrong > 0 {
                self.fault(format!("the map of group {group} is wrong about {wrong} blocks"));
            }
            self.count("free blocks", group, free, self.descriptor(group, 12) & 0xffff);
            free_blocks += free;
            let place = u64::from(self.descriptor(group, 4));
            if place < self.blocks {
                read(self.image, place * self.block, &mut map)?;
            }
            let (mut wrong, mut free) = (0_u64, 0_u64);
            for at in 0..self.inodes_per_group {
                let number = u32::try_from(group).unwrap_or(0) * self.inodes_per_group + at + 1;
                let used = number < first_inode || self.links.contains_key(&number);
                wrong += u64::from(used != is_set(&map, at.into()));
                free += u64::from(!used);
            }
            if wrong > 0 {
                self.fault(format!("the map of group {group} is wrong about {wrong} inodes"));
            }
            self.count("free inodes", group, free, self.descriptor(group, 12) >> 16);
            free_inodes += free;
            let directories = self.directories.get(&group).copied().unwrap_or(0);
            let says = self.descriptor(group, 16) & 0xffff;
            self.count("directories", group, directories.into(), says);
        }
        for (what, found, at) in [("blocks", free_blocks, 12), ("inodes", free_inodes, 16)] {
            let says = word(&self.superblock, at);
            if found != u64::from(says) {
                self.fault(format!("{found} {what} are free, and the superblock says {says}"));
            }
        }
        Ok(())
    }

    fn count(&mut self, what: &str, group: u64, found: u64, says: u32) {
        if found != u64::from(says) {
            self.fault(format!("group {group} has {found} {what}, and says {says}"));
        }
    }
}

/// Names in a directory, and the inodes they lead to.
type Names = Vec<(Vec<u8>, u32)>;

type Each<'e> = dyn FnMut(u64, u64, u64, bool) -> Result<(), ExamineError> + 'e;

/// Which groups have a copy of the superblock, where not all have one.
fn has_superblock(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}
