//! Files of a system by patterns, as `glob(3)` finds them: wildcards in any part of a path stop at slashes, and only
//! match a leading dot if they begin with one.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_model::wildcard;

/// What patterns led to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Absolute paths below the system's root, in the order of the patterns.
    pub(crate) paths: Vec<PathBuf>,
    /// Directories of the system that were listed: another name in them might match, too.
    pub(crate) listed: BTreeSet<PathBuf>,
    /// Patterns that nothing matched.
    pub(crate) without: Vec<String>,
}

/// Finds what patterns name, below a directory taken for `/`. A backslash is a byte like any other.
pub(crate) fn glob<'p>(root: &Path, patterns: impl IntoIterator<Item = &'p String>) -> Found {
    let mut found = Found::default();
    for pattern in patterns {
        let mut paths = vec![PathBuf::from("/")];
        for part in pattern.split('/').filter(|part| !part.is_empty()) {
            paths = step(root, paths, part, &mut found.listed);
        }
        paths.retain(|path| fs::symlink_metadata(real(root, path)).is_ok());
        if paths.is_empty() {
            found.without.push(pattern.clone());
        }
        found.paths.extend(paths);
    }
    found
}

fn real(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The paths that one more part of a pattern leads to.
fn step(
    root: &Path,
    folders: Vec<PathBuf>,
    part: &str,
    listed: &mut BTreeSet<PathBuf>,
) -> Vec<PathBuf> {
    if !part.contains(['*', '?', '[']) {
        return folders.into_iter().map(|folder| folder.join(part)).collect();
    }
    let pattern = part.replace('\\', "\\\\");
    let mut found = Vec::new();
    for folder in folders {
        let Ok(entries) = fs::read_dir(real(root, &folder)) else { continue };
        listed.insert(folder.clone());
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            let hidden = name.as_bytes().starts_with(b".") && !part.starts_with('.');
            if !hidden && wildcard::matches(&pattern, &name.to_string_lossy()) {
                found.push(folder.join(name));
            }
        }
    }
    found
}

/// Whether a wildcard of an exclusion matches a path. There a `*` also stands for slashes.
pub(super) fn excludes(pattern: &str, path: &OsStr) -> bool {
    wildcard::matches(&pattern.replace('\\', "\\\\"), &path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stop_at_slashes_and_spare_hidden_files() {
        let root = tempfile::tempdir().unwrap();
        for name in ["lib/a", "lib/b"] {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        for name in ["lib/a/x.conf", "lib/b/y.conf", "lib/b/.z.conf", "lib/top.conf"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        let patterns = ["/lib/*/*.conf", "/lib/b/.*.conf", "/lib/top.conf", "/lib/c/*", "/gone"];
        let patterns = patterns.map(str::to_owned);
        let found = glob(root.path(), &patterns);
        let paths: Vec<_> = found.paths.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/lib/a/x.conf", "/lib/b/y.conf", "/lib/b/.z.conf", "/lib/top.conf"]);
        assert_eq!(found.without, ["/lib/c/*", "/gone"]);
        let listed: Vec<_> = found.listed.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(listed, ["/lib", "/lib/a", "/lib/b"]);
    }

    #[test]
    fn an_exclusion_reaches_below_slashes() {
        assert!(excludes("/usr/share/doc/*", OsStr::new("/usr/share/doc/a/b")));
        assert!(!excludes("/usr/share/doc/*", OsStr::new("/usr/share/doc")));
    }
}
