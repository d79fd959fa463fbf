//! Where kernels live that Kiln fetched, and what it derives from any kernel once.
//!
//! | below the cache's root            | holds                                                    |
//! |-----------------------------------|----------------------------------------------------------|
//! | `kernels/NAME/`                   | a fetched kernel: `boot/`, `lib/modules/`, and `package` |
//! | `kernels/.lock`                   | held while a kernel is added or removed                  |
//! | `kernels/.fetch/`                 | downloads under way, apt's lists                         |
//! | `kernel-parts/vmlinux-1/DIGEST`   | what a boot image of that digest unpacks to              |
//! | `kernel-parts/index-1/KEY/`       | an index made for a module directory without one         |
//! | `kernel-parts/plain-1/KEY.NAME`   | a module or firmware file, uncompressed                  |
//! | `kernel-parts/identity-1/KEY`     | a boot image's digest, a blank, its release, a newline   |
//!
//! Everything appears by rename, whole or not at all. All of it may be deleted at any time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::compression::{self, Compression};
use super::{KernelError, boot_image, version};

/// Modules with debugging information are large.
const MODULE_LIMIT: u64 = 1 << 30;

/// The cache of kernels. Cheap to make: nothing is created before something is put in.
#[derive(Clone, Debug)]
pub struct KernelCache {
    root: PathBuf,
}

/// A kernel that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedKernel {
    /// Its release, which also names its folder.
    pub release: String,
    /// Its folder.
    pub path: PathBuf,
    /// The package it came in, with its version: `linux-image-… 6.12.117-1~deb12u1`.
    pub package: String,
    /// The version of the package alone.
    pub version: String,
    /// SHA-256 of the package, which was verified; of several, joined by `+`.
    pub sha256: String,
}

impl CachedKernel {
    /// The boot image.
    pub fn image(&self) -> PathBuf {
        self.path.join("boot").join(format!("vmlinuz-{}", self.release))
    }
}

impl KernelCache {
    /// The cache below `root`, Kiln's cache folder. It need not exist.
    pub fn new(root: impl Into<PathBuf>) -> KernelCache {
        KernelCache { root: root.into() }
    }

    /// Where fetched kernels are.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    fn parts(&self, kind: &str) -> PathBuf {
        self.root.join("kernel-parts").join(kind)
    }

    /// The fetched kernels, newest first. What does not look like one is skipped.
    pub fn list(&self) -> Result<Vec<CachedKernel>, KernelError> {
        let dir = self.kernels();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(KernelError::io("list", &dir, source)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| KernelError::io("list", &dir, source))?;
            let Some(release) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if boot_image::is_release(&release) {
                found.extend(read_record(release, entry.path()));
            }
        }
        found.sort_by(|a: &CachedKernel, b| version::compare(&b.release, &a.release));
        Ok(found)
    }

    /// The fetched kernel of exactly this release.
    pub fn get(&self, release: &str) -> Option<CachedKernel> {
        boot_image::is_release(release)
            .then(|| read_record(release.to_owned(), self.kernels().join(release)))
            .flatten()
    }

    /// Deletes a fetched kernel; false if there is none of this release. What was derived from it
    /// stays, and is found again should it be fetched again.
    pub fn remove(&self, release: &str) -> Result<bool, KernelError> {
        if self.get(release).is_none() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        self.remove_locked(release)
    }

    /// The same, for who holds the lock.
    pub(super) fn remove_locked(&self, release: &str) -> Result<bool, KernelError> {
        let Some(kernel) = self.get(release) else { return Ok(false) };
        let failed = |source| KernelError::io("remove", &kernel.path, source);
        // Out of sight first, so that nobody finds half a kernel.
        let doomed = tempfile::Builder::new()
            .prefix(".removed-")
            .tempdir_in(self.kernels())
            .map_err(failed)?;
        fs::rename(&kernel.path, doomed.path().join("kernel")).map_err(failed)?;
        doomed.close().map_err(failed)?;
        Ok(true)
    }

    /// Waits until no one else adds or removes kernels. Released when dropped, or with the process.
    pub(super) fn lock(&self) -> Result<File, KernelError> {
        let path = self.kernels().join(".lock");
        let open = || {
            fs::create_dir_all(self.kernels())?;
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(|source| KernelError::io("lock", &path, source))
    }

    /// Puts `kernel`, an unpacked folder on the same file system, in its place.
    pub(super) fn adopt(&self, release: &str, unpacked: &Path) -> Result<PathBuf, KernelError> {
        let path = self.kernels().join(release);
        match fs::rename(unpacked, &path) {
            Ok(()) => Ok(path),
            Err(source) => Err(KernelError::io("put into the cache", &path, source)),
        }
    }

    /// Where the `vmlinux` of the boot image with this digest is, once it was unpacked.
    pub(super) fn vmlinux(&self, digest: &str) -> PathBuf {
        self.parts("vmlinux-1").join(digest)
    }

    /// The folder for an index with this key.
    pub(super) fn index(&self, key: &str) -> PathBuf {
        self.parts("index-1").join(key)
    }

    /// Where the digest and the release of the boot image with this key are, once it was read.
    pub(super) fn identity(&self, key: &str) -> PathBuf {
        self.parts("identity-1").join(key)
    }

    /// The plain form of `path`, a module or firmware file: itself, or an uncompressed copy that is
    /// made once and found again for as long as the file stays the same. The copy has the file's
    /// modification time.
    pub fn plain(&self, path: &Path) -> Result<PathBuf, KernelError> {
        let failed = |source| KernelError::io("read", path, source);
        let mut file = File::open(path).map_err(failed)?;
        let mut start = [0; 8];
        let read = io::Read::read(&mut file, &mut start).map_err(failed)?;
        let format = Compression::of(&start[..read]);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let packed = name.as_deref().and_then(packed_stem).filter(|_| format != Compression::None);
        let Some(stem) = packed else { return Ok(path.to_owned()) };
        let meta = file.metadata().map_err(failed)?;
        let copy = self.parts("plain-1").join(format!("{}.{stem}", stat_key(path, &meta)));
        if copy.exists() {
            return Ok(copy);
        }
        let bytes = fs::read(path).map_err(failed)?;
        let plain = compression::decompress(&bytes, MODULE_LIMIT)
            .map_err(|source| KernelError::io("unpack", path, source))?;
        write_whole(&copy, &plain, meta.modified().ok())?;
        Ok(copy)
    }
}

/// The name without the ending of its compression.
pub(super) fn packed_stem(name: &str) -> Option<&str> {
    [".xz", ".zst", ".gz", ".lz4", ".lzma"].iter().find_map(|ending| name.strip_suffix(ending))
}

/// A key that changes whenever the file could have changed.
pub(super) fn stat_key(path: &Path, meta: &fs::Metadata) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(path.as_os_str().as_bytes());
    for number in [meta.dev(), meta.ino(), meta.size()] {
        hasher.update(&number.to_le_bytes());
    }
    for number in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.finalize().to_hex().chars().take(32).collect()
}

/// Writes a file so that it appears whole or not at all, also after a power cut: it is never made
/// again once it is there.
pub(super) fn write_whole(
    path: &Path,
    bytes: &[u8],
    modified: Option<std::time::SystemTime>,
) -> Result<(), KernelError> {
    let write = || {
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        file.write_all(bytes)?;
        if let Some(modified) = modified {
            file.as_file().set_modified(modified)?;
        }
        // Read by everyone who may read the folder, as files of a kernel are.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| KernelError::io("write", path, source))
}

/// The record of a fetched kernel: `key=value` lines in the file `package`.
pub(super) fn record(package: &str, version: &str, sha256: &str) -> String {
    format!("package={package}\nversion={version}\nsha256={sha256}\n")
}

fn read_record(release: String, path: PathBuf) -> Option<CachedKernel> {
    let text = fs::read_to_string(path.join("package")).ok()?;
    let field = |name: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    };
    let (package, version) = (field("package")?, field("version")?);
    let package = format!("{package} {version}");
    Some(CachedKernel { release, path, package, version, sha256: field("sha256")? })
}
