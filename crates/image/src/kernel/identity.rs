//! Which kernel a boot image is, remembered for as long as the file stays the same: to read and digest one takes longer
//! than all else that a command does which finds its image built.

use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::cache::stat_key;
use super::compression::read_bounded;
use super::{KernelCache, KernelError, boot_image};
use crate::inventory::Stamp;

/// A boot image is some 12 MB, with everything built in some 60.
const IMAGE_LIMIT: u64 = 512 << 20;
/// File systems stamp changes with a clock that ticks this often at the slowest: a file that changed only just may
/// change again and look the same.
const TICK: Duration = Duration::from_millis(20);

/// What a kernel is known by.
#[derive(Debug)]
pub(super) struct Identity {
    /// What `uname -r` will say.
    pub(super) release: String,
    /// blake3 of the boot image, in hexadecimal.
    pub(super) digest: String,
}

impl Identity {
    /// Of the boot image at a path, which is read only if it is not known.
    pub(super) fn of(path: &Path, cache: &KernelCache) -> Result<Identity, KernelError> {
        let failed = |act| move |source| KernelError::io(act, path, source);
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => KernelError::Unreadable { path: path.to_owned() },
            _ => KernelError::io("open", path, source),
        })?;
        let meta = file.metadata().map_err(failed("look at"))?;
        if let Some(known) = recall(path, &meta, cache) {
            return Ok(known);
        }
        let is_old = Stamp::of(&meta).age(SystemTime::now()) > TICK;
        let bytes = read_bounded(&file, IMAGE_LIMIT).map_err(failed("read"))?;
        let header = boot_image::parse(&bytes)
            .map_err(|source| KernelError::NotAKernel { path: path.to_owned(), source })?;
        let digest = blake3::hash(&bytes).to_hex().to_string();
        let identity = Identity { release: header.release, digest };
        let after = file.metadata().map_err(failed("look at"))?;
        if is_old && Stamp::of(&after) == Stamp::of(&meta) {
            // Of no other use than to be quick: a cache that cannot be written is no reason to fail.
            let _ = identity.remember(path, &meta, cache);
        }
        Ok(identity)
    }

    fn remember(&self, path: &Path, meta: &Metadata, cache: &KernelCache) -> io::Result<()> {
        let place = cache.identity(&stat_key(path, meta));
        let folder = place.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
        writeln!(file, "{} {}", self.digest, self.release)?;
        file.persist(place)?;
        Ok(())
    }
}

/// What was remembered; whatever is wrong with that is the same as nothing.
fn recall(path: &Path, meta: &Metadata, cache: &KernelCache) -> Option<Identity> {
    let text = fs::read_to_string(cache.identity(&stat_key(path, meta))).ok()?;
    let (digest, release) = text.strip_suffix('\n')?.split_once(' ')?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_digest && boot_image::is_release(release))
        .then(|| Identity { release: release.to_owned(), digest: digest.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::boot_image::tests::boot_image;
    use super::*;

    #[test]
    fn a_boot_image_is_read_once_and_again_when_it_changed() {
        let here = tempfile::tempdir().unwrap();
        let (path, cache) = (here.path().join("vmlinuz"), KernelCache::new(here.path()));
        let of = || {
            let identity = Identity::of(&path, &cache).unwrap();
            (identity.release, identity.digest)
        };
        fs::write(&path, boot_image("6.1.0", b"one")).unwrap();
        let first = of();
        assert_eq!(first.0, "6.1.0");
        std::thread::sleep(TICK * 2);
        assert_eq!(of(), first);
        let place = cache.identity(&stat_key(&path, &fs::metadata(&path).unwrap()));
        fs::write(&place, format!("{} 6.2.0\n", "0".repeat(64))).unwrap();
        assert_eq!(of(), ("6.2.0".to_owned(), "0".repeat(64)), "it was not read");
        for damaged in ["", "6.2.0\n", "0 6.2.0\n", "not\u{e9}"] {
            fs::write(&place, damaged).unwrap();
            assert_eq!(of(), first, "{damaged:?}");
        }
        fs::write(&path, boot_image("6.3.0", b"other")).unwrap();
        assert_eq!(of().0, "6.3.0");
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_reason_to_fail() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("vmlinuz");
        fs::write(&path, boot_image("6.1.0", b"")).unwrap();
        std::thread::sleep(TICK * 2);
        // A file where the folder should be.
        Identity::of(&path, &KernelCache::new(&path)).unwrap();
    }
}
