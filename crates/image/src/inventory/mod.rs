//! The inventory: what an image will hold, decided entry by entry before a byte of it is written.

mod exclude;
mod path;
mod stamp;

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use exclude::is_excluded;
pub use path::{GuestPath, GuestPathError};
pub use stamp::Stamp;

/// The entries of an image, sorted by path, each directory before what lies in it.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    entries: BTreeMap<GuestPath, Entry>,
    /// What a person may want to know: optional things that were not found, and the like.
    pub notes: Vec<String>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits, with set-user-id and its relatives.
    pub permissions: u32,
    /// Whose it is: root's, unless it came with a package, an archive or a container image.
    pub owner: Owner,
    /// What it is.
    pub node: Node,
}

/// Whose something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The user's number.
    pub user: u32,
    /// The group's number.
    pub group: u32,
}

impl Owner {
    /// Root and its group.
    pub const ROOT: Owner = Owner { user: 0, group: 0 };
}

/// What makes entries with the same one file with several names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// Where in that file it begins; none if it is all of it.
    at: Option<u64>,
    permissions: u32,
    owner: Owner,
}

impl Entry {
    /// What other names of the same file share. Permissions and owner are part of it because a manifest may give one
    /// file of the host to the guest with several.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let Node::File(content) = &self.node else { return None };
        let (stamp, at) = match content {
            Content::Host { stamp, .. } => (stamp, None),
            Content::Part { file, at, .. } => (&file.stamp, Some(*at)),
            Content::Bytes(_) => return None,
        };
        let Entry { permissions, owner, .. } = *self;
        Some(Identity { device: stamp.device, inode: stamp.inode, at, permissions, owner })
    }
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A symbolic link and what it says.
    Symlink(Vec<u8>),
    /// A regular file.
    File(Content),
    /// A character device.
    CharDevice {
        /// Which driver.
        major: u32,
        /// Which device of it.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Which driver.
        major: u32,
        /// Which device of it.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Where a file's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file of the host, as it was when it was looked at.
    Host {
        /// Where; no symbolic link.
        path: PathBuf,
        /// What `lstat` said.
        stamp: Stamp,
    },
    /// Bytes in a row of a file of the host: a member of an archive.
    Part {
        /// Which file; it has many parts.
        file: Arc<HostFile>,
        /// Where in it.
        at: u64,
        /// How many bytes.
        len: u64,
    },
    /// Bytes.
    Bytes(Arc<[u8]>),
}

/// A file of the host, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFile {
    /// Where; no symbolic link.
    pub path: PathBuf,
    /// What `lstat` said.
    pub stamp: Stamp,
}

impl Content {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Content::Host { stamp, .. } => stamp.size,
            Content::Part { len, .. } => *len,
            Content::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Two parts of a manifest want different things at one place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} is wanted twice, as {first} and as {second}: leave one of them out")]
pub struct Conflict {
    /// Where.
    pub path: GuestPath,
    /// What is there.
    pub first: String,
    /// What should be there too.
    pub second: String,
}

impl Inventory {
    /// All entries, sorted by path.
    pub fn entries(&self) -> btree_map::Iter<'_, GuestPath, Entry> {
        self.entries.iter()
    }

    /// The entry at a path.
    pub fn get(&self, path: &GuestPath) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry. The same again is fine; a directory that is there keeps its permissions.
    pub(crate) fn add(&mut self, path: GuestPath, entry: Entry) -> Result<(), Conflict> {
        match self.entries.entry(path) {
            btree_map::Entry::Vacant(place) => {
                place.insert(entry);
                Ok(())
            }
            btree_map::Entry::Occupied(there) if same(there.get(), &entry) => Ok(()),
            btree_map::Entry::Occupied(there) => Err(Conflict {
                path: there.key().clone(),
                first: describe(there.get()),
                second: describe(&entry),
            }),
        }
    }

    /// Adds or replaces an entry, and makes the directories above it: what the manifest places by name
    /// wins over what a closure brought. A directory that holds something is not replaced, and one that
    /// is there keeps its permissions.
    pub(crate) fn put(&mut self, path: GuestPath, entry: Entry) -> Result<(), Conflict> {
        if let Some(there) = self.entries.get(&path) {
            let is_directory = there.node == Node::Directory;
            if is_directory && entry.node == Node::Directory {
                return Ok(());
            }
            if is_directory && self.holds_something(&path) {
                let (first, second) = (describe(there), describe(&entry));
                return Err(Conflict { path, first, second });
            }
        }
        self.add_parents(&path)?;
        self.entries.insert(path, entry);
        Ok(())
    }

    fn holds_something(&self, path: &GuestPath) -> bool {
        let mut below = path.as_bytes().to_vec();
        below.push(b'/');
        let after = (Bound::Excluded(path), Bound::Unbounded);
        // Names such as `/a-b` sort between `/a` and `/a/b`; few, and all shorter than the search.
        self.entries
            .range::<GuestPath, _>(after)
            .map(|(path, _)| path.as_bytes())
            .take_while(|other| other.starts_with(path.as_bytes()))
            .any(|other| other.starts_with(&below))
    }

    /// Where a path really lies, given the symbolic links in this inventory: `/bin/x` is `/usr/bin/x`
    /// where `/bin` is a link. The last component itself is not followed.
    pub(crate) fn place(&self, path: &GuestPath) -> Result<GuestPath, GuestPathError> {
        // As many links as the kernel follows; a loop is left as it was written.
        let mut path = path.clone();
        for _ in 0..40 {
            let mut ancestors = Vec::new();
            let mut next = path.parent();
            while let Some(ancestor) = next {
                next = ancestor.parent();
                ancestors.push(ancestor);
            }
            let link = ancestors.into_iter().rev().find_map(|ancestor| {
                match self.entries.get(&ancestor).map(|entry| &entry.node) {
                    Some(Node::Symlink(target)) => Some((ancestor, target.clone())),
                    _ => None,
                }
            });
            let Some((ancestor, target)) = link else { break };
            let rest = path.as_bytes()[ancestor.as_bytes().len()..].to_vec();
            let mut moved = resolve_target(&ancestor, &target);
            moved.extend_from_slice(&rest);
            path = GuestPath::new(bytes_as_os(&moved))?;
        }
        Ok(path)
    }

    /// Where a directory really lies: like [`place`](Self::place), following the last component too.
    pub(crate) fn place_directory(&self, path: &GuestPath) -> Result<GuestPath, GuestPathError> {
        Ok(self.place(&path.join("x")?)?.parent().unwrap_or_else(GuestPath::root))
    }

    /// Adds the directories above `path` that are not there yet.
    fn add_parents(&mut self, path: &GuestPath) -> Result<(), Conflict> {
        let mut next = path.parent();
        while let Some(parent) = next {
            if parent == GuestPath::root() {
                break;
            }
            match self.entries.get(&parent) {
                Some(Entry { node: Node::Directory, .. }) => break,
                Some(there) => {
                    let first = describe(there);
                    return Err(Conflict { path: parent, first, second: "a directory".to_owned() });
                }
                None => {}
            }
            next = parent.parent();
            self.entries.insert(
                parent,
                Entry { permissions: 0o755, owner: Owner::ROOT, node: Node::Directory },
            );
        }
        Ok(())
    }

    /// Feeds every entry to a digest.
    pub(crate) fn feed(&self, digest: &mut blake3::Hasher) {
        for (path, entry) in &self.entries {
            feed_bytes(digest, path.as_bytes());
            for number in [entry.permissions, entry.owner.user, entry.owner.group] {
                digest.update(&number.to_le_bytes());
            }
            match &entry.node {
                Node::Directory => drop(digest.update(b"d")),
                Node::Fifo => drop(digest.update(b"p")),
                Node::Symlink(target) => {
                    digest.update(b"l");
                    feed_bytes(digest, target);
                }
                Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
                    let is_char = matches!(entry.node, Node::CharDevice { .. });
                    digest.update(if is_char { b"c" } else { b"b" });
                    digest.update(&major.to_le_bytes());
                    digest.update(&minor.to_le_bytes());
                }
                Node::File(Content::Bytes(bytes)) => {
                    digest.update(b"t");
                    digest.update(blake3::hash(bytes).as_bytes());
                }
                Node::File(Content::Part { file, at, len }) => {
                    digest.update(b"m");
                    feed_bytes(digest, file.path.as_os_str().as_encoded_bytes());
                    file.stamp.feed(digest);
                    digest.update(&at.to_le_bytes());
                    digest.update(&len.to_le_bytes());
                }
                Node::File(Content::Host { path, stamp }) => {
                    digest.update(b"f");
                    feed_bytes(digest, path.as_os_str().as_encoded_bytes());
                    stamp.feed(digest);
                }
            }
        }
    }
}

/// Feeds bytes so that where they end is part of the digest.
pub(crate) fn feed_bytes(digest: &mut blake3::Hasher, bytes: &[u8]) {
    digest.update(&(bytes.len() as u64).to_le_bytes());
    digest.update(bytes);
}

fn same(there: &Entry, wanted: &Entry) -> bool {
    match (&there.node, &wanted.node) {
        (Node::Directory, Node::Directory) => true,
        _ => there == wanted,
    }
}

fn describe(entry: &Entry) -> String {
    match &entry.node {
        Node::Directory => "a directory".to_owned(),
        Node::Symlink(target) => format!("a symlink to {}", target.escape_ascii()),
        Node::File(Content::Host { path, .. }) => format!("the file {}", path.display()),
        Node::File(Content::Part { file, .. }) => format!("a member of {}", file.path.display()),
        Node::File(Content::Bytes(bytes)) => format!("a file of {} bytes", bytes.len()),
        Node::CharDevice { major, minor } => format!("the character device {major}:{minor}"),
        Node::BlockDevice { major, minor } => format!("the block device {major}:{minor}"),
        Node::Fifo => "a named pipe".to_owned(),
    }
}

/// What a link at `link` means, as an absolute path with `.` and `..` worked out by name.
fn resolve_target(link: &GuestPath, target: &[u8]) -> Vec<u8> {
    let base = link.parent().unwrap_or_else(GuestPath::root);
    let mut parts: Vec<&[u8]> = Vec::new();
    if target.first() != Some(&b'/') {
        parts.extend(base.as_bytes().split(|&b| b == b'/').filter(|part| !part.is_empty()));
    }
    for part in target.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut path = Vec::new();
    for part in parts {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    path
}

fn bytes_as_os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> GuestPath {
        GuestPath::new(text).unwrap()
    }

    fn link(target: &str) -> Entry {
        Entry { permissions: 0o777, owner: Owner::ROOT, node: Node::Symlink(target.into()) }
    }

    #[test]
    fn a_file_placed_below_a_link_lies_where_the_link_points() {
        let mut inventory = Inventory::default();
        inventory.put(path("/lib"), link("usr/lib")).unwrap();
        inventory.put(path("/usr/lib/jvm"), link("../share/./jvm")).unwrap();
        let placed = |text| inventory.place(&path(text)).unwrap().to_string();
        assert_eq!(placed("/lib/modules/x"), "/usr/lib/modules/x");
        assert_eq!(placed("/lib/jvm/x"), "/usr/share/jvm/x");
        assert_eq!(placed("/lib"), "/lib");
    }

    #[test]
    fn a_loop_of_links_does_not_hang() {
        let mut inventory = Inventory::default();
        inventory.put(path("/a"), link("/b")).unwrap();
        inventory.put(path("/b"), link("/a")).unwrap();
        inventory.place(&path("/a/x")).unwrap();
    }

    #[test]
    fn one_place_cannot_hold_two_things() {
        let mut inventory = Inventory::default();
        inventory.add(path("/a"), link("x")).unwrap();
        inventory.add(path("/a"), link("x")).unwrap();
        let error = inventory.add(path("/a"), link("y")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/a is wanted twice, as a symlink to x and as a symlink to y: leave one of them out"
        );
    }
}
