//! Trees: a directory of the host with everything in it, at a place of the guest's.

use std::path::{Path, PathBuf};

use super::host::{BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, FIFO, Found, REGULAR, SYMLINK};
use super::programs::Brought;
use super::{Closure, ClosureError, absolute};
use crate::inventory::{Content, Entry, GuestPath, Node, Owner, Stamp};
use crate::manifest::PlacedTree;

/// More entries than any guest should keep in memory.
const LIMIT: usize = 1_000_000;

impl Closure<'_> {
    pub(super) fn tree(&mut self, tree: &PlacedTree) -> Result<(), ClosureError> {
        let source = absolute(&tree.source)?;
        let Some(top) = self.host.follow(&source)? else {
            if tree.optional {
                let note = format!("{} left out: no {}", tree.path, source.display());
                self.inventory.notes.push(note);
                return Ok(());
            }
            return Err(ClosureError::MissingSource {
                path: tree.path.clone(),
                source_path: source,
            });
        };
        if top.stamp.kind() != DIRECTORY {
            return Err(ClosureError::NotADirectory { path: top.path });
        }
        let place = self.inventory.place_directory(&tree.path)?;
        let mut waiting = vec![(top.path.clone(), place, top.stamp)];
        let mut programs = Vec::new();
        let mut count = 0;
        while let Some((folder, place, stamp)) = waiting.pop() {
            if self.is_excluded(&place) {
                continue;
            }
            let entry = Entry {
                owner: Owner::ROOT,
                permissions: stamp.permissions(),
                node: Node::Directory,
            };
            self.inventory.put(place.clone(), entry)?;
            for name in self.host.list(&folder)? {
                count += 1;
                if count > LIMIT {
                    return Err(ClosureError::TooMany { path: source, limit: LIMIT });
                }
                let path = folder.join(&name);
                let place = place.join(&name)?;
                // Gone since it was listed: the build will notice that the directory has changed.
                let Some((stamp, target)) = self.host.at(&path)? else { continue };
                if stamp.kind() == DIRECTORY {
                    waiting.push((path, place, stamp));
                    continue;
                }
                if tree.programs && stamp.kind() == REGULAR && stamp.permissions() & 0o111 != 0 {
                    programs.push(Found { path: path.clone(), stamp, trail: Vec::new() });
                }
                self.leaf(&path, place, stamp, target)?;
            }
        }
        for program in programs {
            self.program_of_tree(&program, &top.path)?;
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        path: &Path,
        place: GuestPath,
        stamp: Stamp,
        target: Option<PathBuf>,
    ) -> Result<(), ClosureError> {
        if self.is_excluded(&place) {
            return Ok(());
        }
        let device = || {
            let device = stamp.stands_for;
            (rustix::fs::major(device), rustix::fs::minor(device))
        };
        let (permissions, node) = match (stamp.kind(), target) {
            (SYMLINK, Some(target)) => {
                (0o777, Node::Symlink(target.into_os_string().into_encoded_bytes()))
            }
            (REGULAR, _) => {
                self.check_readable(path, &stamp)?;
                let content = Content::Host { path: self.host.real(path), stamp };
                (stamp.permissions(), Node::File(content))
            }
            (CHAR_DEVICE, _) => {
                let (major, minor) = device();
                (stamp.permissions(), Node::CharDevice { major, minor })
            }
            (BLOCK_DEVICE, _) => {
                let (major, minor) = device();
                (stamp.permissions(), Node::BlockDevice { major, minor })
            }
            (FIFO, _) => (stamp.permissions(), Node::Fifo),
            _ => {
                self.inventory.notes.push(format!("{place} left out: it is a socket"));
                return Ok(());
            }
        };
        self.inventory.put(place, Entry { owner: Owner::ROOT, permissions, node })?;
        Ok(())
    }

    /// Brings what a tree's program needs from outside of the tree. What is missing is a note: trees
    /// hold much that nobody will run.
    fn program_of_tree(&mut self, program: &Found, top: &Path) -> Result<(), ClosureError> {
        let mut brought = Brought::default();
        match self.programs.examine(&mut self.host, program, &mut brought, 0) {
            Ok(()) => {
                brought.files.retain(|file| !file.path.starts_with(top));
                self.commit(brought)
            }
            Err(
                error @ (ClosureError::MissingLibrary { .. }
                | ClosureError::MissingInterpreter { .. }
                | ClosureError::Damaged { .. }),
            ) => {
                self.inventory.notes.push(error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
