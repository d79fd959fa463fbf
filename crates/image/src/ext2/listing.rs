//! What is on a planned disk, read back from its directories as a kernel would read them.

use std::collections::HashSet;

use kiln_block::BlockSource as _;

use super::BLOCK_LEN;
use super::inode::{self, EXTENTS};
use super::plan::Plan;

/// The root directory's inode.
const ROOT: u32 = 2;
const DIRECTORY: u32 = 0o040_000;
/// Pointers in an inode that lead to blocks, and those behind them that lead to tables.
const DIRECT: u64 = 12;
const PER_TABLE: u64 = 1024;
/// Bytes of an entry before its name.
const ENTRY: usize = 8;

/// A name on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path, without the leading `/`.
    pub name: Vec<u8>,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// How many bytes it has.
    pub bytes: u64,
}

impl Plan {
    /// All names on the disk, each directory before what lies in it; no file of the host is read. Of a disk whose
    /// blocks are found by extents, which no root disk is, only directories of one stretch are listed.
    pub fn members(&self) -> Vec<Member> {
        let mut found = Vec::new();
        let mut seen = HashSet::from([ROOT]);
        let mut ahead = vec![(ROOT, Vec::new())];
        while let Some((folder, path)) = ahead.pop() {
            let first = ahead.len();
            for (number, name) in self.entries(folder) {
                let Some(inode) = self.inode(number) else { continue };
                let mut full: Vec<u8> = path.clone();
                full.extend_from_slice(&name);
                let (mode, bytes) = (u32::from(half(inode, 0)), size(inode));
                if mode & 0o170_000 == DIRECTORY && seen.insert(number) {
                    let mut inside = full.clone();
                    inside.push(b'/');
                    ahead.push((number, inside));
                }
                found.push(Member { name: full, mode, bytes });
            }
            ahead[first..].reverse();
        }
        found
    }

    fn inode(&self, number: u32) -> Option<&[u8]> {
        let at = u64::from(number.checked_sub(1)?) * inode::LEN;
        let at = usize::try_from(at).ok()?;
        self.inodes.get(at..at + usize::try_from(inode::LEN).ok()?)
    }

    /// What a directory holds but itself and its parent.
    fn entries(&self, folder: u32) -> Vec<(u32, Vec<u8>)> {
        let Some(inode) = self.inode(folder) else { return Vec::new() };
        let mut entries = Vec::new();
        // Directories are metadata, so none is longer than all of it, whatever a damaged inode says.
        let most = (self.metadata.len() / BLOCK_LEN) as u64;
        for at in 0..size(inode).div_ceil(BLOCK_LEN as u64).min(most) {
            let block = self.pointer(inode, at).and_then(|block| self.block(block));
            let Some(block) = block else { break };
            let mut rest = &block[..];
            while let Some((head, _)) = rest.split_at_checked(ENTRY) {
                let (number, len) = (word(head, 0), usize::from(half(head, 4)));
                let name = rest.get(ENTRY..ENTRY + usize::from(head[6])).unwrap_or_default();
                if number != 0 && !matches!(name, b"" | b"." | b"..") {
                    entries.push((number, name.to_vec()));
                }
                // A broken length would lead nowhere.
                match rest.get(len..) {
                    Some(next) if len >= ENTRY => rest = next,
                    _ => break,
                }
            }
        }
        entries
    }

    /// Where a block of a directory is.
    fn pointer(&self, inode: &[u8], at: u64) -> Option<u32> {
        if word(inode, 32) & EXTENTS != 0 {
            let first = word(inode, 40 + 12 + 8);
            return u32::try_from(at).ok().and_then(|at| first.checked_add(at));
        }
        let slot = |at: u64| Some(word(inode, 40 + 4 * usize::try_from(at).ok()?));
        let in_table = |table: u32, at: u64| {
            let table = self.block(table)?;
            Some(word(&table, 4 * usize::try_from(at % PER_TABLE).ok()?))
        };
        match at.checked_sub(DIRECT) {
            None => slot(at),
            Some(at) if at < PER_TABLE => in_table(slot(DIRECT)?, at),
            // More blocks than two levels lead to would be a directory of four gigabytes.
            Some(at) => {
                let at = at - PER_TABLE;
                let table = in_table(slot(DIRECT + 1)?, at / PER_TABLE)?;
                in_table(table, at)
            }
        }
    }

    /// A block of metadata.
    fn block(&self, block: u32) -> Option<[u8; BLOCK_LEN]> {
        let at = u64::from(block) * BLOCK_LEN as u64;
        if block == 0 || at + BLOCK_LEN as u64 > self.size().get() {
            return None;
        }
        let mut bytes = [0; BLOCK_LEN];
        self.read(at, &mut bytes).ok()?;
        Some(bytes)
    }
}

fn size(inode: &[u8]) -> u64 {
    u64::from(word(inode, 4)) | u64::from(word(inode, 108)) << 32
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_le_bytes([two[0], two[1]]))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Options, Tree};
    use super::*;

    #[test]
    fn all_names_are_found_however_large_their_directory() {
        let folder = tempfile::tempdir().unwrap();
        let many = folder.path().join("many");
        fs::create_dir_all(many.join("deep/deeper")).unwrap();
        // More than twelve blocks of names.
        for number in 0..900 {
            fs::write(many.join(format!("{number:0>100}")), b"12345").unwrap();
        }
        fs::write(many.join("deep/deeper/last"), b"").unwrap();
        let mut tree = Tree::new();
        tree.add_directory(folder.path()).unwrap();
        let plan = Plan::new(tree, &Options::default()).unwrap();
        let mut members = plan.members();
        assert_eq!(members.iter().filter(|member| member.bytes == 5).count(), 900);
        assert!(members.iter().all(|member| member.mode & 0o777 != 0));
        members.retain(|member| !member.name.starts_with(b"many/0"));
        let names: Vec<String> =
            members.iter().map(|member| member.name.escape_ascii().to_string()).collect();
        let all = ["lost+found", "many", "many/deep", "many/deep/deeper", "many/deep/deeper/last"];
        assert_eq!(names, all);
    }
}
