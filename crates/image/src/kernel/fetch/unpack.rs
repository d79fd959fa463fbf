//! From verified packages to a folder of the cache.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::packages::Package;
use super::{FetchError, Progress};
use crate::kernel::cache::record;
use crate::kernel::deb::{DebFile, Limits, read_deb};
use crate::kernel::{CachedKernel, KernelCache, KernelError, module_dir};

/// Unpacks the packages of a kernel, indexes its modules, and puts all in the cache by rename.
pub(super) fn into_cache(
    debs: &[PathBuf],
    package: &Package,
    cache: &KernelCache,
    work: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<CachedKernel, FetchError> {
    let dir = tempfile::Builder::new()
        .prefix("unpack-")
        .tempdir_in(work)
        .map_err(|source| FetchError::io("create a folder in", work, source))?;
    let root = dir.path().join("kernel");
    let mut files = 0;
    for (deb, part) in debs.iter().zip(&package.parts) {
        let opened = File::open(deb).map_err(|source| FetchError::io("open", deb, source))?;
        read_deb(io::BufReader::new(opened), Limits::default(), &mut |file, bytes| {
            let Some(path) = place(file, &package.release) else { return Ok(()) };
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap_or(&root))?;
            let mut out = File::options().write(true).create_new(true).open(&path)?;
            io::copy(bytes, &mut out)?;
            files += 1;
            if files % 50 == 0 {
                progress(Progress::Unpacking { files });
            }
            Ok(())
        })
        .map_err(|source| FetchError::Unpack { package: part.name.clone(), source })?;
    }
    progress(Progress::Unpacking { files });
    if !root.join("boot").join(format!("vmlinuz-{}", package.release)).exists() {
        return Err(FetchError::NoKernelInside { package: package.name.clone() });
    }
    let modules = root.join("lib/modules").join(&package.release);
    if modules.is_dir() && !modules.join("modules.dep").exists() {
        progress(Progress::Indexing);
        module_dir::write_own_index(&modules)?;
    }
    let text = record(&package.name, &package.version, &package.sha256());
    let path = root.join("package");
    fs::write(&path, text).map_err(|source| FetchError::io("write", &path, source))?;
    // The record is what makes a folder a kernel; its files must not be lost behind it.
    File::open(&root)
        .and_then(|dir| rustix::fs::syncfs(&dir).map_err(io::Error::from))
        .map_err(|source| FetchError::io("sync", &root, source))?;
    cache.remove_locked(&package.release)?;
    cache.adopt(&package.release, &root)?;
    cache.get(&package.release).ok_or_else(|| {
        let lost = io::Error::from(io::ErrorKind::NotFound);
        FetchError::Kernel(KernelError::io("find again", &cache.kernels(), lost))
    })
}

/// Where a file of the package goes: what is not the kernel or its modules goes nowhere. Newer
/// packages have the modules in `usr/lib`, and the boot image with them.
fn place(file: &DebFile, release: &str) -> Option<String> {
    let path = file.path.strip_prefix("usr/").unwrap_or(&file.path);
    if path.starts_with("boot/") {
        return Some(path.to_owned());
    }
    let below = path.strip_prefix("lib/modules/")?.strip_prefix(release)?.strip_prefix('/')?;
    Some(match below {
        "vmlinuz" => format!("boot/vmlinuz-{release}"),
        _ => path.to_owned(),
    })
}
