//! Things of the host, and bytes, at places of a [`Tree`] that have nothing to do with where they are here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Ext2Error;
use super::scan::{XattrReader, failed};
use super::tree::{Data, Kind, Node, NodeId, Time, Tree};
use crate::inventory::GuestPath;

/// The kernel follows no more symbolic links than this on one path.
const LINK_LIMIT: usize = 40;

impl Tree {
    /// Adds a directory of the host with everything below it, at a place of the disk. Links of the disk on the way
    /// there are followed; directories that are not there are made.
    pub fn add_directory_at(&mut self, source: &Path, place: &GuestPath) -> Result<(), Ext2Error> {
        let source = std::fs::canonicalize(source).map_err(failed("look at", source))?;
        let parent = place.parent().unwrap_or_else(GuestPath::root);
        let folder = self.place(&parent, LINK_LIMIT)?;
        let mut xattrs = XattrReader::new();
        let look = || std::fs::symlink_metadata(&source);
        let at = (folder, place.name());
        let (top, meta) = self.add_entry(&source, at, look, &mut None, &mut xattrs)?;
        if !meta.is_dir() {
            return Err(Ext2Error::NotADirectory { path: source });
        }
        use std::os::unix::fs::MetadataExt as _;
        let mut ahead: Vec<(PathBuf, NodeId)> = vec![(source, top)];
        while let Some((path, folder)) = ahead.pop() {
            self.scan(&path, folder, (meta.dev(), None), &mut xattrs, &mut ahead)?;
        }
        Ok(())
    }

    /// Adds a file of root's with these bytes.
    pub fn add_bytes(
        &mut self,
        place: &GuestPath,
        permissions: u16,
        modified: Time,
        bytes: &[u8],
    ) -> Result<(), Ext2Error> {
        let parent = place.parent().unwrap_or_else(GuestPath::root);
        let folder = self.place(&parent, LINK_LIMIT)?;
        let kind = Kind::File(Data::Bytes(Arc::from(bytes)));
        self.put(folder, place.name(), Node { kind, ..Node::directory(permissions, modified) });
        Ok(())
    }

    /// The directory at a path of the disk.
    fn place(&mut self, path: &GuestPath, links: usize) -> Result<NodeId, Ext2Error> {
        let not_a_directory = || Ext2Error::NotADirectory { path: path.as_path().to_owned() };
        let mut trail = vec![NodeId::ROOT];
        let mut ahead: Vec<Box<[u8]>> = names(path.as_bytes()).rev().collect();
        let mut links = links;
        while let Some(name) = ahead.pop() {
            let at = trail.last().copied().unwrap_or(NodeId::ROOT);
            if *name == *b".." {
                trail.truncate(trail.len().saturating_sub(1).max(1));
                continue;
            }
            let Some(child) = self.child(at, &name) else {
                trail.push(self.put(at, &name, Node::directory(0o755, Time::default())));
                continue;
            };
            match &self.node(child).kind {
                Kind::Directory(_) => trail.push(child),
                Kind::Symlink(target) => {
                    links = links.checked_sub(1).ok_or_else(not_a_directory)?;
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    ahead.extend(names(target).rev());
                }
                _ => return Err(not_a_directory()),
            }
        }
        Ok(trail.last().copied().unwrap_or(NodeId::ROOT))
    }
}

/// The names of a path, without those that say nothing.
fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Box<[u8]>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(Box::from)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn path(text: &str) -> GuestPath {
        GuestPath::new(text).unwrap()
    }

    #[test]
    fn a_place_below_a_link_is_where_the_link_leads() {
        let here = tempfile::tempdir().unwrap();
        for name in ["base/usr/lib", "source/kernel"] {
            fs::create_dir_all(here.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("usr/lib", here.path().join("base/lib")).unwrap();
        fs::write(here.path().join("source/kernel/a.ko"), "module").unwrap();
        let mut tree = Tree::new();
        tree.add_directory(&here.path().join("base")).unwrap();
        tree.add_directory_at(&here.path().join("source"), &path("/lib/modules/6.1")).unwrap();
        tree.add_bytes(&path("/lib/modules/6.1/modules.dep"), 0o644, Time::default(), b"x")
            .unwrap();
        let found = tree.place(&path("/usr/lib/modules/6.1"), LINK_LIMIT).unwrap();
        let names: Vec<&[u8]> =
            tree.node(found).children().unwrap().keys().map(AsRef::as_ref).collect();
        assert_eq!(names, [&b"kernel"[..], b"modules.dep"]);
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let here = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("b", here.path().join("a")).unwrap();
        std::os::unix::fs::symlink("a", here.path().join("b")).unwrap();
        let mut tree = Tree::new();
        tree.add_directory(here.path()).unwrap();
        let error = tree.add_bytes(&path("/a/file"), 0o644, Time::default(), b"").unwrap_err();
        assert!(matches!(error, Ext2Error::NotADirectory { .. }), "{error}");
    }
}
