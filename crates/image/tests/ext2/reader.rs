//! A reader of ext2 that shares no code with the writer, for comparing whole trees through any disk.

use std::collections::BTreeMap;

use kiln_block::{BlockDevice, ByteOffset};

/// The flag of an inode whose blocks are found by extents.
const EXTENTS: u32 = 0x80000;

/// One file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) inode: u32,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u16,
    pub(crate) modified: (i64, u32),
    pub(crate) size: u64,
    /// Of 512 bytes.
    pub(crate) sectors: u32,
    /// Levels of nodes above the extents, if its blocks are found by extents.
    pub(crate) depth: Option<u16>,
    /// Of a regular file or link.
    pub(crate) content: Vec<u8>,
    pub(crate) device: (u32, u32),
}

/// Everything on a disk, by path; the root is the empty one.
pub(crate) fn read(device: &dyn BlockDevice) -> BTreeMap<Vec<u8>, File> {
    walk(device, true)
}

/// The same without what files hold.
pub(crate) fn read_inodes(device: &dyn BlockDevice) -> BTreeMap<Vec<u8>, File> {
    walk(device, false)
}

fn walk(device: &dyn BlockDevice, contents: bool) -> BTreeMap<Vec<u8>, File> {
    let disk = Disk::open(device);
    let mut files = BTreeMap::new();
    let mut ahead = vec![(Vec::new(), 2_u32)];
    while let Some((path, number)) = ahead.pop() {
        let inode = disk.inode(number);
        let mut file = disk.describe(number, &inode);
        let kind = file.mode & 0o170_000;
        if kind == 0o040_000 {
            for (name, child, entry_type) in disk.names(&inode, &file) {
                let mut below = path.clone();
                below.push(b'/');
                below.extend_from_slice(&name);
                let types =
                    [(0o10, 1), (0o04, 2), (0o02, 3), (0o06, 4), (0o01, 5), (0o14, 6), (0o12, 7)];
                let child_mode = disk.half(&disk.inode(child), 0) >> 12;
                assert!(types.contains(&(child_mode, entry_type)), "{child_mode:o} {entry_type}");
                ahead.push((below, child));
            }
        } else if (kind == 0o100_000 && contents) || (kind == 0o120_000 && file.sectors > 0) {
            file.content = disk.content(&inode, file.size);
        } else if kind == 0o120_000 {
            file.content = inode[40..40 + usize::try_from(file.size).unwrap()].to_vec();
        }
        assert!(files.insert(path, file).is_none(), "one name, twice");
    }
    files
}

struct Disk<'d> {
    device: &'d dyn BlockDevice,
    inodes_per_group: u32,
    tables: Vec<u64>,
}

impl Disk<'_> {
    fn open(device: &dyn BlockDevice) -> Disk<'_> {
        let mut disk = Disk { device, inodes_per_group: 0, tables: Vec::new() };
        let first = disk.block(0);
        assert_eq!(disk.half(&first, 1024 + 56), 0xef53);
        let blocks = disk.word(&first, 1024 + 4);
        assert_eq!(u64::from(blocks) * 4096, device.size().get());
        disk.inodes_per_group = disk.word(&first, 1024 + 40);
        for group in 0..blocks.div_ceil(32768) {
            let at = u64::from(group) * 32;
            let descriptors = disk.block(1 + at / 4096);
            let table = disk.word(&descriptors, usize::try_from(at % 4096).unwrap() + 8);
            disk.tables.push(u64::from(table));
        }
        disk
    }

    fn block(&self, number: u64) -> Vec<u8> {
        let mut block = vec![0; 4096];
        self.device.read_at(ByteOffset::new(number * 4096), &mut block).unwrap();
        block
    }

    fn half(&self, bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
    }

    fn word(&self, bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn inode(&self, number: u32) -> Vec<u8> {
        let (group, at) =
            ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let at = self.tables[usize::try_from(group).unwrap()] * 4096 + u64::from(at) * 256;
        let mut inode = vec![0; 256];
        self.device.read_at(ByteOffset::new(at), &mut inode).unwrap();
        inode
    }

    fn describe(&self, number: u32, inode: &[u8]) -> File {
        let extra = self.word(inode, 136);
        let seconds = i64::from(self.word(inode, 16).cast_signed()) + (i64::from(extra & 3) << 32);
        let (old, new) = (self.word(inode, 40), self.word(inode, 44));
        let device = if old != 0 {
            (old >> 8, old & 0xff)
        } else {
            (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
        };
        let mode = self.half(inode, 0);
        let is_device = [0o020_000, 0o060_000].contains(&(mode & 0o170_000));
        let is_file = mode & 0o170_000 == 0o100_000;
        let high = if is_file { u64::from(self.word(inode, 108)) << 32 } else { 0 };
        File {
            inode: number,
            mode,
            uid: u32::from(self.half(inode, 2)) | u32::from(self.half(inode, 120)) << 16,
            gid: u32::from(self.half(inode, 24)) | u32::from(self.half(inode, 122)) << 16,
            links: self.half(inode, 26),
            modified: (seconds, extra >> 2),
            size: u64::from(self.word(inode, 4)) | high,
            sectors: self.word(inode, 28),
            depth: (self.word(inode, 32) & EXTENTS != 0).then(|| self.half(inode, 46)),
            content: Vec::new(),
            device: if is_device { device } else { (0, 0) },
        }
    }

    /// Reads a small file; a large one through its tables would need more memory than a test has.
    fn content(&self, inode: &[u8], size: u64) -> Vec<u8> {
        assert!(size <= 64 << 20, "too large to compare here");
        let mut content = Vec::new();
        for at in 0..size.div_ceil(4096) {
            match self.mapped(inode, at) {
                0 => content.resize(content.len() + 4096, 0),
                block => content.extend(self.block(block)),
            }
        }
        let (keep, rest) = content.split_at(usize::try_from(size).unwrap());
        assert!(rest.iter().all(|byte| *byte == 0), "zeros behind the end");
        keep.to_vec()
    }

    fn mapped(&self, inode: &[u8], at: u64) -> u64 {
        if self.word(inode, 32) & EXTENTS != 0 {
            return self.in_extents(&inode[40..100], at);
        }
        let slot = |at: u64| 40 + usize::try_from(at).unwrap() * 4;
        if at < 12 {
            return u64::from(self.word(inode, slot(at)));
        }
        let mut beyond = at - 12;
        for level in 0..3_u32 {
            let reach = 1024_u64.pow(level + 1);
            if beyond >= reach {
                beyond -= reach;
                continue;
            }
            let mut block = u64::from(self.word(inode, slot(12 + u64::from(level))));
            for depth in (0..=level).rev() {
                if block == 0 {
                    return 0;
                }
                let place = beyond / 1024_u64.pow(depth) % 1024;
                block =
                    u64::from(self.word(&self.block(block), usize::try_from(place).unwrap() * 4));
            }
            return block;
        }
        panic!("block {at} is beyond what ext2 can map");
    }

    /// Follows a node of extents down to the one that has a block, if one does.
    fn in_extents(&self, node: &[u8], at: u64) -> u64 {
        assert_eq!(self.half(node, 0), 0xf30a);
        let (count, depth) = (usize::from(self.half(node, 2)), self.half(node, 6));
        assert!(count <= usize::from(self.half(node, 4)));
        let entries = (1..=count).rev().map(|entry| &node[entry * 12..][..12]);
        let Some(entry) = entries.into_iter().find(|e| u64::from(self.word(e, 0)) <= at) else {
            return 0;
        };
        let inside = at - u64::from(self.word(entry, 0));
        if depth > 0 {
            return self.in_extents(&self.block(self.word(entry, 4).into()), at);
        }
        let is_in = inside < u64::from(self.half(entry, 4));
        if is_in { u64::from(self.word(entry, 8)) + inside } else { 0 }
    }

    fn names(&self, inode: &[u8], file: &File) -> Vec<(Vec<u8>, u32, u8)> {
        let bytes = self.content(inode, file.size);
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (number, len) = (self.word(&bytes, at), usize::from(self.half(&bytes, at + 4)));
            let name = bytes[at + 8..at + 8 + usize::from(bytes[at + 6])].to_vec();
            if number != 0 && name != b"." && name != b".." {
                names.push((name, number, bytes[at + 7]));
            }
            assert!(len >= 8 && at / 4096 == (at + len - 1) / 4096);
            at += len;
        }
        names
    }
}
