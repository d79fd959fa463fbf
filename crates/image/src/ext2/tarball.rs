//! From tar archives to a [`Tree`]: plain ones, and layers of container images, which can take away what lies
//! below them. Files' bytes stay where they are, in the archive.

use std::io::Read as _;

use super::encode::low16;
use super::error::Ext2Error;
use super::tree::{Data, Kind, Node, NodeId, Time, Tree};
use super::xattr::Xattr;
use crate::archive::{ArchiveError, Stretch};

/// In a layer's name: what follows is not there any more.
const WHITEOUT: &[u8] = b".wh.";
/// In a layer: nothing of the lower layers' directory is there any more.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The kernel follows no more symbolic links than this on one path.
const LINK_LIMIT: usize = 40;
/// Files whose holes tar left out are unpacked into memory, if they are no larger.
const LARGEST_SPARSE: u64 = 64 << 20;
/// How tar says that a file has an attribute.
const XATTR: &str = "SCHILY.xattr.";

impl Tree {
    /// Adds what a tar archive holds, with owners, times, links, devices and extended attributes. With `layer`, names
    /// that begin with `.wh.` take away what earlier sources put there, as the OCI image specification says.
    pub fn add_tar(&mut self, archive: &Stretch, layer: bool) -> Result<(), Ext2Error> {
        let archive = archive.unpacked()?;
        let (home, begin) = self.archives.add(&archive, &mut self.host);
        let broken = |error: std::io::Error| archive.malformed(error.to_string());
        let mut tar = tar::Archive::new(archive.reader());
        // Of a directory that a layer makes opaque, only what other layers put there goes.
        let mut own = std::collections::HashSet::new();
        for entry in tar.entries_with_seek().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let path = entry.path_bytes().into_owned();
            let Some(parts) = parts(&path) else {
                let why = format!("{:?} leads out of it", String::from_utf8_lossy(&path));
                return Err(archive.malformed(why).into());
            };
            let Some((name, folders)) = parts.split_last() else {
                let node = node(&mut entry, &archive, &mut self.notes)?;
                let kind =
                    std::mem::replace(&mut self.nodes[NodeId::ROOT.index()].kind, Kind::Fifo);
                self.nodes[NodeId::ROOT.index()] = Node { kind, ..node };
                continue;
            };
            let folder = self.folder_at(folders, LINK_LIMIT, &archive)?;
            if layer && *name == OPAQUE {
                let old: Vec<Box<[u8]>> = self
                    .node(folder)
                    .children()
                    .into_iter()
                    .flatten()
                    .filter(|(_, id)| !own.contains(*id))
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in old {
                    self.unlink(folder, &name);
                }
                continue;
            }
            if let Some(hidden) = name.strip_prefix(WHITEOUT).filter(|_| layer) {
                if self.child(folder, hidden).is_some_and(|id| !own.contains(&id)) {
                    self.unlink(folder, hidden);
                }
                continue;
            }
            if entry.header().entry_type().is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let found = self.hard_link(&target, &archive)?;
                let Some(id) = found else {
                    let why = format!(
                        "{:?} is a link to {:?}, which is not there",
                        String::from_utf8_lossy(&path),
                        String::from_utf8_lossy(&target)
                    );
                    return Err(archive.malformed(why).into());
                };
                self.link(folder, name, id);
                own.insert(id);
                continue;
            }
            let (start, size) = (entry.raw_file_position(), entry.size());
            let kind = entry.header().entry_type();
            let sparse = kind.is_gnu_sparse();
            let mut node = node(&mut entry, &archive, &mut self.notes)?;
            if kind.is_file() || sparse || kind.is_contiguous() {
                node.kind = Kind::File(if sparse {
                    Data::Bytes(sparse_bytes(&mut entry, &archive)?.into())
                } else {
                    if archive.part(start, size).is_none() {
                        let path = String::from_utf8_lossy(&path).into_owned();
                        return Err(archive.malformed(format!("{path:?} is cut off")).into());
                    }
                    let member = self.archives.member(home, begin + start, size);
                    Data::Member { member, size }
                });
            }
            own.insert(self.put(folder, name, node));
        }
        archive.check()?;
        Ok(())
    }

    /// The directory at a path of the tree; made where nothing is. Links on the way are followed within the tree.
    fn folder_at(
        &mut self,
        parts: &[&[u8]],
        links: usize,
        archive: &Stretch,
    ) -> Result<NodeId, Ext2Error> {
        let mut trail = vec![NodeId::ROOT];
        for part in parts {
            let at = trail.last().copied().unwrap_or(NodeId::ROOT);
            if *part == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let next = match self.child(at, part) {
                None => self.put(at, part, Node::directory(0o755, Time::default())),
                Some(id) => match &self.node(id).kind {
                    Kind::Directory(_) => id,
                    Kind::Symlink(target) => {
                        let Some(links) = links.checked_sub(1) else {
                            let name = String::from_utf8_lossy(part);
                            let why = format!("links at {name:?} lead in circles");
                            return Err(archive.malformed(why).into());
                        };
                        let target = target.clone();
                        let mut way: Vec<&[u8]> = Vec::new();
                        let walked: Vec<Box<[u8]>>;
                        if !target.starts_with(b"/") {
                            walked = self.names_of(&trail);
                            way.extend(walked.iter().map(AsRef::as_ref));
                        }
                        way.extend(split(&target));
                        self.folder_at(&way, links, archive)?
                    }
                    // A directory takes the place of what is none.
                    _ => {
                        self.unlink(at, part);
                        self.put(at, part, Node::directory(0o755, Time::default()))
                    }
                },
            };
            trail.push(next);
        }
        Ok(trail.last().copied().unwrap_or(NodeId::ROOT))
    }

    /// The names that lead along a trail of directories from the root.
    fn names_of(&self, trail: &[NodeId]) -> Vec<Box<[u8]>> {
        let step = |pair: &[NodeId]| {
            let children = self.node(pair[0]).children().into_iter().flatten();
            let mut found = children.filter(|(_, id)| **id == pair[1]);
            found.next().map(|(name, _)| name.clone()).unwrap_or_default()
        };
        trail.windows(2).map(step).collect()
    }

    /// What a hard link of an archive leads to.
    fn hard_link(&mut self, target: &[u8], archive: &Stretch) -> Result<Option<NodeId>, Ext2Error> {
        let Some(parts) = parts(target) else { return Ok(None) };
        let Some((name, folders)) = parts.split_last() else { return Ok(None) };
        let folder = self.folder_at(folders, LINK_LIMIT, archive)?;
        Ok(self.child(folder, name).filter(|id| self.node(*id).children().is_none()))
    }
}

/// The names of a path, without dots; none if it leads out of the archive.
fn parts(path: &[u8]) -> Option<Vec<&[u8]>> {
    let parts: Vec<&[u8]> = split(path).collect();
    (!parts.contains(&&b".."[..])).then_some(parts)
}

fn split(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

type Entry<'t, 's> = tar::Entry<'t, crate::archive::StretchReader<'s>>;

/// Everything of an entry but its names and a file's bytes.
fn node(
    entry: &mut Entry<'_, '_>,
    archive: &Stretch,
    notes: &mut Vec<String>,
) -> Result<Node, ArchiveError> {
    let broken = |error: std::io::Error| archive.malformed(error.to_string());
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let mut xattrs = Vec::new();
    let mut modified: Option<Time> = None;
    for extension in entry.pax_extensions().map_err(broken)?.into_iter().flatten() {
        let extension = extension.map_err(broken)?;
        let Ok(key) = extension.key() else { continue };
        if let Some(name) = key.strip_prefix(XATTR) {
            match Xattr::from_host(name.as_bytes(), extension.value_bytes()) {
                Some(xattr) => xattrs.push(xattr),
                None => {
                    notes.push(format!("{path} has the attribute {name}, which ext2 cannot hold"))
                }
            }
        } else if key == "mtime" {
            modified = extension.value().ok().and_then(time);
        } else if key.starts_with("GNU.sparse.major") {
            let why = format!(
                "{path:?} is sparse in a way that is not supported; make it with --sparse-version=0.0 or without --sparse"
            );
            return Err(archive.malformed(why));
        }
    }
    let header = entry.header();
    // GNU tar writes times before 1970 in 64 bits, as negative numbers.
    let seconds = header.mtime().map_err(broken)?.cast_signed();
    let id = |found: std::io::Result<u64>| -> Result<u32, ArchiveError> {
        u32::try_from(found.map_err(broken)?)
            .map_err(|_| archive.malformed(format!("{path:?} belongs to nobody ext2 can name")))
    };
    let device = || -> Result<(u32, u32), ArchiveError> {
        let (major, minor) = (header.device_major(), header.device_minor());
        let both = (major.map_err(broken)?, minor.map_err(broken)?);
        Ok((both.0.unwrap_or(0), both.1.unwrap_or(0)))
    };
    let kind = match header.entry_type() {
        tar::EntryType::Directory => Kind::Directory(Box::default()),
        tar::EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default();
            Kind::Symlink(target.into_owned().into())
        }
        tar::EntryType::Char => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
        tar::EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        tar::EntryType::Fifo => Kind::Fifo,
        tar::EntryType::Regular | tar::EntryType::GNUSparse | tar::EntryType::Continuous => {
            Kind::File(Data::Bytes(std::sync::Arc::from([])))
        }
        other => {
            let why = format!("{path:?} is of a kind that is not supported, {:?}", other.as_byte());
            return Err(archive.malformed(why));
        }
    };
    Ok(Node {
        permissions: low16(header.mode().map_err(broken)? & 0o7777),
        uid: id(header.uid())?,
        gid: id(header.gid())?,
        xattrs: xattrs.into(),
        kind,
        ..Node::directory(0, modified.unwrap_or(Time { seconds, nanos: 0 }))
    })
}

/// Seconds with a fraction, as pax writes them.
fn time(text: &str) -> Option<Time> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    let whole: i64 = seconds.parse().ok()?;
    if seconds.starts_with('-') && nanos > 0 {
        return Some(Time { seconds: whole.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { seconds: whole, nanos })
}

fn sparse_bytes(entry: &mut Entry<'_, '_>, archive: &Stretch) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    let read = entry.by_ref().take(LARGEST_SPARSE + 1).read_to_end(&mut bytes);
    read.map_err(|error| archive.malformed(error.to_string()))?;
    if bytes.len() as u64 > LARGEST_SPARSE {
        let why = "a sparse file of more than 64 MiB is in it; make it without --sparse".to_owned();
        return Err(archive.malformed(why));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_may_lie_before_1970() {
        let at = |seconds, nanos| Some(Time { seconds, nanos });
        assert_eq!(time("12.5"), at(12, 500_000_000));
        assert_eq!(time("12"), at(12, 0));
        assert_eq!(time("-1.25"), at(-2, 750_000_000));
        assert_eq!(time("1.1234567891"), at(1, 123_456_789));
        assert_eq!(time("x"), None);
    }

    #[test]
    fn a_path_that_leads_out_is_none() {
        assert_eq!(parts(b"./a//b/"), Some(vec![&b"a"[..], b"b"]));
        assert_eq!(parts(b"a/../../b"), None);
    }
}
