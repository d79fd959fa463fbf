//! Archives that images are made of, unpacked: the plan of a root disk says where in them the bytes of its files are.
//!
//! An archive that is not compressed stays where it is. What is unpacked is kept under a digest of what its source looked
//! like, and can be removed when no plan needs it: a [`Lease`] is held from unpacking to when there is such a plan.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lock::{Lease, Lock};
use crate::archive::{ArchiveError, Stretch};

/// In the store.
pub(super) const FOLDER: &str = "archives";
/// How their names end.
pub(super) const ENDING: &str = ".tar";
/// File systems stamp changes with a clock that ticks this often at the slowest.
const TICK: Duration = Duration::from_millis(20);

/// Unpacks archives into a store, or for this process alone.
#[derive(Debug)]
pub(super) struct Unpacking<'s> {
    store: Option<&'s Path>,
    /// What was unpacked or found, by its key.
    pub(super) held: Vec<(String, Lease)>,
}

impl<'s> Unpacking<'s> {
    pub(super) fn new(store: Option<&'s Path>) -> Unpacking<'s> {
        Unpacking { store, held: Vec::new() }
    }

    /// Where what was unpacked or found lies.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let path = |(key, _): &(String, Lease)| Some(place(self.store?, key));
        self.held.iter().filter_map(path).collect()
    }

    /// The same bytes plain.
    pub(super) fn plain(&mut self, archive: &Stretch) -> Result<Stretch, ArchiveError> {
        if !archive.is_packed()? {
            return Ok(archive.clone());
        }
        let mut digest = blake3::Hasher::new();
        let (Some(store), Some(())) = (self.store, archive.feed(&mut digest)) else {
            return archive.unpacked();
        };
        let key = digest.finalize().to_hex().as_str()[..64].to_owned();
        let path = place(store, &key);
        let lease = match Lease::take(&path).map_err(failed("open", &path))? {
            Some(lease) => lease,
            None => unpack(archive, store, &key, &path)?,
        };
        let plain = Stretch::open(&path)?;
        self.held.push((key, lease));
        Ok(plain)
    }
}

/// Where an unpacked archive is, or would be.
fn place(store: &Path, key: &str) -> PathBuf {
    store.join(FOLDER).join(format!("{key}{ENDING}"))
}

fn unpack(archive: &Stretch, store: &Path, key: &str, path: &Path) -> Result<Lease, ArchiveError> {
    let lock = store.join("locks").join(key);
    let _lock = Lock::wait(&lock).map_err(failed("lock", &lock))?;
    // Somebody else may have done it while we waited.
    if let Some(lease) = Lease::take(path).map_err(failed("open", path))? {
        return Ok(lease);
    }
    // From now on a change shows in the times, and what is unpacked is what the key says.
    if let Some(left) = archive.age().and_then(|age| TICK.checked_sub(age)) {
        std::thread::sleep(left);
    }
    archive.check()?;
    let partial = path.with_extension("partial");
    let unpacked = write(archive, &partial);
    if unpacked.is_err() {
        // Disk full, most likely: what was written so far should not stay.
        let _ = fs::remove_file(&partial);
    }
    unpacked?;
    fs::rename(&partial, path).map_err(failed("rename", &partial))?;
    let lease = Lease::take(path).map_err(failed("open", path))?;
    lease.ok_or_else(|| failed("open", path)(io::ErrorKind::NotFound.into()))
}

fn write(archive: &Stretch, partial: &Path) -> Result<(), ArchiveError> {
    let mut out = File::create(partial).map_err(failed("write", partial))?;
    archive.unpack_into(&mut out)?;
    out.sync_data().map_err(failed("write", partial))
}

fn failed<'p>(act: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> ArchiveError + 'p {
    move |source| ArchiveError::Host { act, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
