//! `/etc/ld.so.conf`: the directories in which the dynamic loader's cache was built.

use std::path::{Path, PathBuf};

use kiln_model::wildcard;

use super::host::{DIRECTORY, Host, HostError, REGULAR};

const SIZE_LIMIT: u64 = 256 * 1024;
const DEPTH: usize = 8;
const FILE_LIMIT: usize = 1024;
const DIRECTORY_LIMIT: usize = 1024;

/// One meaningful line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A directory to search.
    Directory(PathBuf),
    /// More files to read, perhaps with wildcards.
    Include(String),
}

/// The lines that matter. `hwcap` lines and relative directories have no effect, as in ldconfig.
pub fn parse(text: &str) -> impl Iterator<Item = Line> {
    text.lines().filter_map(|line| {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.split_once(char::is_whitespace) {
            Some(("include", pattern)) => Some(Line::Include(pattern.trim().to_owned())),
            Some(("hwcap", _)) => None,
            _ => {
                // `/dir=libc6` is an old way to write a directory.
                let directory = line.split('=').next().unwrap_or_default().trim_end();
                directory.starts_with('/').then(|| Line::Directory(PathBuf::from(directory)))
            }
        }
    })
}

/// The directories of a host, in order, each once. A host without the file has none.
pub(crate) fn directories(host: &mut Host) -> Result<Vec<PathBuf>, HostError> {
    let mut search = Search::default();
    search.read(host, Path::new("/etc/ld.so.conf"), 0)?;
    Ok(search.directories)
}

#[derive(Debug, Default)]
struct Search {
    directories: Vec<PathBuf>,
    /// Files that were read, so that those which include each other cost one reading each.
    files: Vec<PathBuf>,
}

impl Search {
    fn read(&mut self, host: &mut Host, path: &Path, depth: usize) -> Result<(), HostError> {
        let Some(file) = host.follow(path)?.filter(|file| file.stamp.kind() == REGULAR) else {
            return Ok(());
        };
        if depth > DEPTH || self.files.len() >= FILE_LIMIT || self.files.contains(&file.path) {
            return Ok(());
        }
        self.files.push(file.path.clone());
        let bytes = host.read(&file.path, SIZE_LIMIT)?;
        for line in parse(&String::from_utf8_lossy(&bytes)) {
            match line {
                Line::Directory(directory) => {
                    let known = self.directories.contains(&directory);
                    if !known && self.directories.len() < DIRECTORY_LIMIT {
                        self.directories.push(directory);
                    }
                }
                Line::Include(pattern) => {
                    let base = path.parent().unwrap_or(Path::new("/"));
                    for file in glob(host, &base.join(pattern))? {
                        self.read(host, &file, depth + 1)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The files a pattern names; wildcards are allowed in its last component.
pub(crate) fn glob(host: &mut Host, pattern: &Path) -> Result<Vec<PathBuf>, HostError> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name()) else {
        return Ok(Vec::new());
    };
    let name = name.to_string_lossy();
    if wildcard::is_literal(&name) {
        return Ok(vec![pattern.to_owned()]);
    }
    let Some(folder) = host.follow(folder)?.filter(|found| found.stamp.kind() == DIRECTORY) else {
        return Ok(Vec::new());
    };
    let names = host.list(&folder.path)?;
    let hidden = name.starts_with('.');
    Ok(names
        .into_iter()
        .filter(|entry| {
            let entry = entry.to_string_lossy();
            (hidden || !entry.starts_with('.')) && wildcard::matches(&name, &entry)
        })
        .map(|entry| folder.path.join(entry))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SyntheticHost;

    #[test]
    fn includes_are_followed_in_order_and_comments_skipped() {
        let host = SyntheticHost::new();
        host.file(
            "/etc/ld.so.conf",
            "# local\n/first\ninclude ld.so.conf.d/*.conf\nhwcap 1 x\n/last=libc6\n",
        )
        .file("/etc/ld.so.conf.d/b.conf", "/second/b # why\nrelative\n")
        .file("/etc/ld.so.conf.d/a.conf", "/second/a\n/first\ninclude /etc/ld.so.conf\n")
        .file("/etc/ld.so.conf.d/c.txt", "/never\n");
        let found = directories(&mut Host::new(host.root())).unwrap();
        assert_eq!(found, ["/first", "/second/a", "/second/b", "/last"].map(PathBuf::from));
    }

    #[test]
    fn a_host_without_the_file_has_no_extra_directories() {
        let host = SyntheticHost::new();
        assert!(directories(&mut Host::new(host.root())).unwrap().is_empty());
    }
}
