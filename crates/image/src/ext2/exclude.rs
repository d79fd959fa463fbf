//! What a [`Tree`] is to do without.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::tree::{Kind, NodeId, Tree};
use crate::inventory::is_excluded;

impl Tree {
    /// Leaves out what matches one of these wildcards over paths of the disk, in which `*` also stands for `/`, and
    /// everything below it. What lies in the host's directories and is left out is not even looked at, when this comes
    /// before they are added.
    pub fn exclude(&mut self, patterns: impl IntoIterator<Item = String>) {
        self.excluded.extend(patterns);
    }

    /// Whether something of a directory of the host, which lies at the disk's root, is left out.
    pub(super) fn does_without(&self, top: &Path, path: &Path) -> bool {
        if self.excluded.is_empty() {
            return false;
        }
        let Ok(below) = path.strip_prefix(top) else { return false };
        let place = [OsStr::new("/"), below.as_os_str()].map(OsStr::as_bytes).concat();
        is_excluded(&self.excluded, &place)
    }

    /// Takes out what is to be left out, wherever it came from.
    pub(super) fn leave_out_excluded(&mut self) {
        if self.excluded.is_empty() {
            return;
        }
        let patterns = std::mem::take(&mut self.excluded);
        let mut ahead = vec![(NodeId::ROOT, Vec::new())];
        while let Some((id, folder)) = ahead.pop() {
            let Kind::Directory(children) = &mut self.nodes[id.index()].kind else { continue };
            let mut below = Vec::new();
            children.names.retain(|name, child| {
                let path = [&folder[..], b"/", name].concat();
                let stays = !is_excluded(&patterns, &path);
                if stays {
                    below.push((*child, path));
                }
                stays
            });
            ahead.append(&mut below);
        }
        self.excluded = patterns;
    }
}
