//! From what a user wrote after `--kernel` to a [`Kernel`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::identity::Identity;
use super::{Kernel, KernelCache, KernelError, KernelSource, boot_image, version};

/// Where x86 trees put the boot image.
const TREE_IMAGE: &str = "arch/x86/boot/bzImage";

/// The parts of this machine which lookup depends on.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where installed kernels are.
    pub boot: PathBuf,
    /// Where installed kernels' modules are.
    pub modules: PathBuf,
    /// The running kernel's release.
    pub running: String,
}

impl Host {
    /// This machine.
    pub fn this() -> Host {
        Host {
            boot: "/boot".into(),
            modules: "/lib/modules".into(),
            running: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }
}

/// Finds the kernel a user means:
///
/// * a built tree (or its build directory): its boot image and its modules as they were built;
/// * a directory like `/boot`: the newest kernel in it;
/// * a boot image: itself, with the modules of its release beside it (`../lib/modules`) or installed;
/// * a release: installed, else fetched; of fetched kernels also the newest whose release starts so;
/// * nothing: the running kernel, else the newest fetched one.
///
/// Modules are optional: a kernel may have all it needs built in.
pub fn find(choice: Option<&str>, host: &Host, cache: &KernelCache) -> Result<Kernel, KernelError> {
    let Some(choice) = choice else {
        return match by_release(&host.running, host, cache) {
            Ok(kernel) => Ok(kernel),
            Err(error) => match cache.list()?.first() {
                Some(newest) => load(&newest.image(), host, cache),
                None => Err(error),
            },
        };
    };
    let path = Path::new(choice);
    let path = match choice.strip_prefix("~/").zip(std::env::home_dir()) {
        Some((rest, home)) => home.join(rest),
        None => path.to_owned(),
    };
    match fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => directory(&path, host, cache),
        Ok(_) => load(&path, host, cache),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(KernelError::Unreadable { path })
        }
        Err(_) if choice.contains('/') => {
            Err(KernelError::NotFound { wanted: choice.into(), tried: vec![choice.into()] })
        }
        Err(_) => by_release(choice, host, cache),
    }
}

fn by_release(release: &str, host: &Host, cache: &KernelCache) -> Result<Kernel, KernelError> {
    let not_found = |tried| KernelError::NotFound { wanted: release.to_owned(), tried };
    if !boot_image::is_release(release) {
        return Err(not_found(vec!["nowhere: this is neither a path nor a release".to_owned()]));
    }
    // Fedora keeps the boot image with the modules, and may keep it there alone.
    let installed =
        [host.boot.join(format!("vmlinuz-{release}")), host.modules.join(release).join("vmlinuz")];
    if let Some(path) = installed.iter().find(|path| path.exists()) {
        return load(path, host, cache);
    }
    let cached = cache.list()?;
    let named = cached.iter().find(|kernel| kernel.release == release);
    let begun = || cached.iter().find(|kernel| begins(&kernel.release, release));
    if let Some(kernel) = named.or_else(begun) {
        return load(&kernel.image(), host, cache);
    }
    let mut tried: Vec<String> = installed.iter().map(|path| path.display().to_string()).collect();
    tried.push(cache.kernels().display().to_string());
    Err(not_found(tried))
}

/// Whether `beginning` ends where a number of `release` ends: `6.1` begins `6.1.0-56`, not `6.12`.
fn begins(release: &str, beginning: &str) -> bool {
    release
        .strip_prefix(beginning)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn directory(dir: &Path, host: &Host, cache: &KernelCache) -> Result<Kernel, KernelError> {
    if dir.join(TREE_IMAGE).exists() {
        return load(&dir.join(TREE_IMAGE), host, cache);
    }
    for boot in [dir.to_owned(), dir.join("boot")] {
        if let Some(image) = newest_in(&boot)? {
            return load(&image, host, cache);
        }
    }
    let (missing, cure) = if dir.join("Kbuild").exists() || dir.join(".config").exists() {
        (TREE_IMAGE, "Build it with `make -j$(nproc) bzImage modules`")
    } else {
        (
            "vmlinuz-* (or, in a built tree, arch/x86/boot/bzImage)",
            "Name a built tree or a vmlinuz, or get one with `kiln kernel fetch debian`",
        )
    };
    Err(KernelError::Incomplete { path: dir.to_owned(), missing, cure })
}

/// The newest `vmlinuz-RELEASE` of a directory.
fn newest_in(boot: &Path) -> Result<Option<PathBuf>, KernelError> {
    let entries = match fs::read_dir(boot) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KernelError::io("list", boot, source)),
    };
    let release = |entry: fs::DirEntry| {
        let name = entry.file_name();
        name.to_str()?.strip_prefix("vmlinuz-").map(str::to_owned)
    };
    let releases = entries.filter_map(|entry| release(entry.ok()?));
    let newest = releases.max_by(|a, b| version::compare(a, b));
    Ok(newest.map(|release| boot.join(format!("vmlinuz-{release}"))))
}

/// Reads the boot image at a path, and looks for its modules.
pub fn open(path: &Path, host: &Host, cache: &KernelCache) -> Result<Kernel, KernelError> {
    load(path, host, cache)
}

fn load(path: &Path, host: &Host, cache: &KernelCache) -> Result<Kernel, KernelError> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let Identity { release, digest } = Identity::of(&path, cache)?;
    let tree = path.ancestors().nth(4).filter(|tree| path == tree.join(TREE_IMAGE));
    let (source, modules) = match tree {
        Some(tree) => (KernelSource::Tree, tree_modules(tree)),
        None => {
            let fetched = fs::canonicalize(cache.kernels()).unwrap_or_else(|_| cache.kernels());
            let source =
                if path.starts_with(fetched) { KernelSource::Package } else { KernelSource::Boot };
            (source, installed_modules(&path, &release, host))
        }
    };
    Ok(Kernel { release, digest, image: path, modules, source })
}

/// A tree has modules of its own as soon as the build wrote one of its lists.
fn tree_modules(tree: &Path) -> Option<PathBuf> {
    let lists = ["modules.order", "modules.builtin"];
    lists.iter().any(|list| tree.join(list).exists()).then(|| tree.to_owned())
}

fn installed_modules(image: &Path, release: &str, host: &Host) -> Option<PathBuf> {
    let dir = image.parent()?;
    let mut places = Vec::new();
    if let Some(above) = dir.parent() {
        places.push(above.join("lib/modules").join(release));
        places.push(above.join("usr/lib/modules").join(release));
    }
    if dir.file_name().is_some_and(|name| name == release) {
        places.push(dir.to_owned());
    }
    places.push(host.modules.join(release));
    places
        .into_iter()
        .find(|place| place.join("kernel").is_dir() || place.join("modules.dep").exists())
}
