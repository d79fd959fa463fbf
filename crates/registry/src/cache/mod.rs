//! Parts of blobs that were fetched, kept for the next reader (`docs/formats/blob-cache.md`).
//!
//! Blobs are kept under their digest, so what is kept is never out of date. Several processes can read and add to
//! one blob at once. Everything may be deleted at any time by whoever holds the blob's lock alone.

mod claim;
mod entry;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use kiln_block::ByteLen;
use rustix::fs::{FlockOperation, flock};

use crate::error::failed;
use crate::{Digest, RegistryError};

pub(crate) use entry::{CHUNK, Claim, Entry};

/// The most traces that are kept.
const MOST_TRACES: usize = 1000;

/// A folder of blobs, and how much may be in it.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    limit: ByteLen,
}

impl Cache {
    /// Uses a folder, which is made if it is not there. More than `limit` is kept only while it is in use.
    pub fn open(folder: &Path, limit: ByteLen) -> Result<Cache, RegistryError> {
        for part in ["blobs", "traces"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(failed("create", path))?;
        }
        Ok(Cache { folder: folder.to_owned(), limit })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens what is kept of a blob, which nobody removes until it is closed.
    pub(crate) fn entry(
        self: &Arc<Cache>,
        digest: &Digest,
        size: u64,
    ) -> Result<Entry, RegistryError> {
        let folder = self.folder.join("blobs").join(digest.hex());
        let entry =
            Entry::open(Arc::clone(self), &folder, size).map_err(failed("open", &folder))?;
        self.make_room();
        Ok(entry)
    }

    /// Removes blobs that nobody uses, the longest unused first, until the rest is within the limit. Returns whether
    /// it is.
    pub fn make_room(&self) -> bool {
        let Ok(mut blobs) = self.blobs() else { return true };
        let mut used: u64 = blobs.iter().map(|blob| blob.bytes).sum();
        blobs.sort_by_key(|blob| blob.used);
        for blob in blobs {
            if used <= self.limit.get() {
                break;
            }
            if remove_unused(&blob.folder).unwrap_or(false) {
                used -= blob.bytes;
            }
        }
        used <= self.limit.get()
    }

    /// How many bytes the kept blobs take.
    pub fn used(&self) -> io::Result<ByteLen> {
        Ok(ByteLen::new(self.blobs()?.iter().map(|blob| blob.bytes).sum()))
    }

    fn blobs(&self) -> io::Result<Vec<Blob>> {
        let mut blobs = Vec::new();
        for folder in fs::read_dir(self.folder.join("blobs"))? {
            let folder = folder?.path();
            let found = |name: &str| fs::metadata(folder.join(name));
            let bytes = ["data", "map"].iter().filter_map(|name| found(name).ok());
            let bytes = bytes.map(|metadata| metadata.blocks() * 512).sum();
            let used = found("map").and_then(|metadata| metadata.modified());
            let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
            blobs.push(Blob { folder, bytes, used });
        }
        Ok(blobs)
    }

    /// Where the order is kept in which a blob was read.
    pub(crate) fn trace(&self, digest: &Digest) -> PathBuf {
        self.folder.join("traces").join(digest.hex())
    }

    /// Keeps the order in which a blob was read.
    pub(crate) fn save_trace(&self, digest: &Digest, text: &str) -> io::Result<()> {
        let path = self.trace(digest);
        let folder = self.folder.join("traces");
        let mut others: Vec<(SystemTime, PathBuf)> = fs::read_dir(&folder)?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        if others.len() >= MOST_TRACES {
            others.sort();
            let surplus = others.len() + 1 - MOST_TRACES;
            // Somebody else may have removed it.
            others.iter().take(surplus).for_each(|(_, path)| drop(fs::remove_file(path)));
        }
        let file = tempfile::NamedTempFile::new_in(&folder)?;
        fs::write(file.path(), text)?;
        file.persist(path)?;
        Ok(())
    }
}

/// What is kept of one blob.
struct Blob {
    folder: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Removes a blob unless somebody uses it; returns whether it was removed.
fn remove_unused(folder: &Path) -> io::Result<bool> {
    let lock = match File::open(folder.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // What was left of a removal that was cut off.
            return fs::remove_dir_all(folder).map(|()| true);
        }
        lock => lock?,
    };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    // The lock goes last: whoever waits for it sees that it has gone.
    for name in ["map", "data", "lock"] {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    // Somebody may be making it anew.
    let _ = fs::remove_dir(folder);
    Ok(true)
}
