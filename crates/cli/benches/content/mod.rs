//! What benchmarks fill file systems with.

use std::fs;
use std::os::unix::fs as unix;
use std::path::{Path, PathBuf};

/// Takes from /usr, in the order of names, until there is that much: files, folders and links.
pub(crate) fn fill(tree: &Path, bytes: u64) {
    let mut left = bytes;
    let mut folders = vec![PathBuf::from("/usr")];
    while let Some(folder) = folders.pop() {
        let to = tree.join(folder.strip_prefix("/").unwrap());
        fs::create_dir_all(&to).unwrap();
        let mut entries: Vec<_> = fs::read_dir(&folder).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let found = entry.metadata().unwrap();
            let target = to.join(entry.file_name());
            if found.is_dir() {
                folders.push(entry.path());
            } else if found.is_symlink() {
                unix::symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
            } else if found.is_file() && found.len() <= left && found.len() < 64 << 20 {
                left -= found.len().next_multiple_of(4096).min(left);
                if fs::hard_link(entry.path(), &target).is_err() {
                    fs::copy(entry.path(), &target).unwrap();
                }
            }
        }
    }
}
