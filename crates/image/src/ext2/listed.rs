//! From a list of the host's paths to a [`Tree`]: what packages hold, and files named one by one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::error::Ext2Error;
use super::scan::{XattrReader, failed};
use super::tree::{NodeId, Tree};

/// The kernel follows no more symbolic links than this on one path.
const LINK_LIMIT: usize = 40;

/// Where a path of the system led to.
#[derive(Clone, Debug)]
struct Place {
    node: NodeId,
    /// As the system's root sees it; no link on the way.
    path: PathBuf,
    /// The number that files of this folder share.
    number: Option<u32>,
}

/// Adds paths one after the other, and remembers the folders on the way.
struct Listing<'t> {
    tree: &'t mut Tree,
    root: PathBuf,
    xattrs: XattrReader,
    folders: HashMap<PathBuf, Place>,
    /// Everything added so far, by its own path.
    added: HashMap<PathBuf, fs::FileType>,
}

impl Tree {
    /// Adds files of the system below `root` by their absolute paths there: directories without what lies in
    /// them, the directories on the way with their attributes, and links on the way with what they lead to. Where
    /// nothing is any more, nothing is added; returns how many of those there were.
    pub fn add_listed<'p>(
        &mut self,
        root: &Path,
        paths: impl IntoIterator<Item = &'p Path>,
    ) -> Result<usize, Ext2Error> {
        let root = fs::canonicalize(root).map_err(failed("look at", root))?;
        let top = Place { node: NodeId::ROOT, path: PathBuf::from("/"), number: None };
        let mut listing = Listing {
            tree: self,
            root,
            xattrs: XattrReader::new(),
            folders: HashMap::from([(PathBuf::from("/"), top)]),
            added: HashMap::new(),
        };
        listing.tree.add_root(&listing.root, &mut listing.xattrs)?;
        let mut missing = 0;
        for path in paths {
            match listing.add(path) {
                Err(Ext2Error::Changed { .. }) => missing += 1,
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
        Ok(missing)
    }
}

impl Listing<'_> {
    fn add(&mut self, path: &Path) -> Result<(), Ext2Error> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let folder = self.folder(parent, LINK_LIMIT)?;
        self.entry(&folder, name)?;
        Ok(())
    }

    /// A thing's own path on the host.
    fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Adds one name in a folder, unless it is there, and says what it is.
    fn entry(&mut self, folder: &Path, name: &OsStr) -> Result<fs::FileType, Ext2Error> {
        let place = self.folders.get(folder).cloned();
        let Some(mut place) = place else {
            return Err(Ext2Error::Changed { path: folder.to_owned() });
        };
        let path = self.real(&place.path).join(name);
        let look = || fs::symlink_metadata(&path);
        let own = place.path.join(name);
        if let Some(kind) = self.added.get(&own) {
            return Ok(*kind);
        }
        let at = (place.node, name.as_bytes());
        let (node, meta) =
            self.tree.add_entry(&path, at, look, &mut place.number, &mut self.xattrs)?;
        if let Some(known) = self.folders.get_mut(folder) {
            known.number = place.number;
        }
        if meta.is_dir() {
            self.folders.insert(own.clone(), Place { node, path: own.clone(), number: None });
        }
        self.added.insert(own, meta.file_type());
        Ok(meta.file_type())
    }

    /// The folder a path leads to, by its own path; it and all on the way are added.
    fn folder(&mut self, path: &Path, links: usize) -> Result<PathBuf, Ext2Error> {
        if let Some(place) = self.folders.get(path) {
            return Ok(place.path.clone());
        }
        let mut at = PathBuf::from("/");
        for part in path.components() {
            let name = match part {
                Component::Normal(name) => name,
                Component::ParentDir => {
                    at.pop();
                    continue;
                }
                _ => continue,
            };
            let below = at.join(name);
            let kind = self.entry(&at, name)?;
            if kind.is_symlink() {
                let Some(links) = links.checked_sub(1) else {
                    return Err(Ext2Error::NotADirectory { path: below });
                };
                let link = self.real(&below);
                let target = fs::read_link(&link).map_err(failed("read", &link))?;
                at = self.folder(&at.join(target), links)?;
            } else if kind.is_dir() {
                at = below;
            } else {
                return Err(Ext2Error::NotADirectory { path: below });
            }
        }
        if let Some(place) = self.folders.get(&at).cloned() {
            self.folders.insert(path.to_owned(), place);
        }
        Ok(at)
    }
}
