//! Whether images still have the bytes they were built with.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::lock::Lease;
use super::{ImageError, ImageStore, failed};

/// What is read at once.
const CHUNK: usize = 1 << 20;

/// A digest of all of a file.
pub(super) fn of(file: &File) -> io::Result<blake3::Hash> {
    let mut digest = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(digest.finalize()),
            Ok(count) => {
                digest.update(&buffer[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl ImageStore {
    /// What is wrong with the bytes of the one image whose key starts with `prefix`: a sentence, or nothing if they
    /// are those it was built with, or nobody remembers which those were.
    pub fn check(&self, prefix: &str) -> Result<Option<String>, ImageError> {
        let image = self.one(prefix)?;
        let path = self.image_path(&image.key, image.kind);
        let Some(digest) = image.about.and_then(|about| about.digest) else { return Ok(None) };
        // It stays while it is looked at. One that is gone by now was removed, which is no damage.
        let Some(lease) = Lease::take(&path).map_err(failed("open", &path))? else {
            return Ok(None);
        };
        let found = of(lease.file()).map_err(failed("read", &path))?;
        if found.to_hex().as_str() == digest {
            return Ok(None);
        }
        let cure = "`kiln image rm` removes it, and it is built again";
        Ok(Some(format!("its bytes are not those it was built with; {cure}")))
    }
}
