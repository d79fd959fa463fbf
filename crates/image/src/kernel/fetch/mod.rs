//! Fetching a distribution's kernel package into the cache: without root, without installing it.
//!
//! Where the host has apt, apt is asked: it knows the user's mirrors, proxies and keys. Where it has
//! none (Fedora), the package list of a Debian mirror is read over HTTPS with curl. Either way the
//! package must have the SHA-256 that the list gives for it.

mod apt;
mod mirror;
mod packages;
mod sha256;
mod unpack;

use std::io;
use std::path::{Path, PathBuf};

use super::{CachedKernel, DebError, KernelCache, KernelError};
use crate::kernel::version;
use packages::{Package, Part};

pub use packages::parse as parse_package_list;

/// Which build of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: few drivers, quick to fetch.
    #[default]
    Cloud,
    /// For any machine.
    Generic,
}

impl Flavour {
    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Flavour::Cloud => "cloud",
            Flavour::Generic => "generic",
        }
    }

    /// How releases of this flavour end, and those of no other.
    fn ending(self) -> &'static str {
        match self {
            Flavour::Cloud => "-cloud-amd64",
            Flavour::Generic => "-amd64",
        }
    }

    /// Whether a release is of this flavour: `6.1.0-56-cloud-amd64`, `6.12.117+deb12-amd64`.
    fn owns(self, release: &str) -> bool {
        let Some(number) = release.strip_suffix(self.ending()) else { return false };
        // What is left must be a version: not `6.1.0-56-rt` or `6.1.0-56-cloud`, nor the `6.12` of
        // an empty package that only depends on the newest.
        number.matches('.').count() >= 2
            && number.split('-').skip(1).all(|part| part.starts_with(|c: char| c.is_ascii_digit()))
    }
}

/// What to fetch.
#[derive(Clone, Debug, Default)]
pub struct FetchRequest {
    /// A release, its beginning (`6.12`, `6.1.0-56`) or a package version; none means the newest.
    pub version: Option<String>,
    /// Which build.
    pub flavour: Flavour,
    /// Ask for the newest again although one is there that would do.
    pub refresh: bool,
}

impl FetchRequest {
    fn wants(&self, release: &str, version: &str) -> bool {
        self.flavour.owns(release)
            && self.version.as_ref().is_none_or(|wanted| {
                let begun = |text: &str| {
                    text.strip_prefix(wanted.as_str())
                        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
                };
                begun(release) || begun(version)
            })
    }
}

/// What is being done; for whoever draws it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Looking for packages, with what.
    Asking(&'a str),
    /// Downloading: bytes so far, of all.
    Downloading {
        /// The package.
        package: &'a str,
        /// Bytes there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Unpacking it: files so far.
    Unpacking {
        /// How many.
        files: u64,
    },
    /// Making the index of its modules.
    Indexing,
    /// Something failed and is tried again.
    Retrying(&'a str),
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Neither apt nor curl.
    #[error("neither apt-get nor curl is installed: install curl, or name a kernel with --kernel")]
    NoTools,
    /// No such package.
    #[error("no Debian {flavour} kernel {wanted:?} is to be had; there are: {}", .available.join(", "))]
    NoSuchKernel {
        /// The flavour asked for.
        flavour: &'static str,
        /// The version asked for.
        wanted: String,
        /// Newest first, not all.
        available: Vec<String>,
    },
    /// A program failed, and failed again.
    #[error(
        "{program} failed: {message}. Is the network up? A proxy is taken from https_proxy and http_proxy"
    )]
    Program {
        /// Which.
        program: &'static str,
        /// The end of what it said.
        message: String,
    },
    /// What came is not what was promised.
    #[error(
        "{package} has the SHA-256 {found}, its list says {expected}: it was deleted; try again"
    )]
    Digest {
        /// The package.
        package: String,
        /// What the list says.
        expected: String,
        /// What came.
        found: String,
    },
    /// The package cannot be unpacked.
    #[error("cannot unpack {package}")]
    Unpack {
        /// The package.
        package: String,
        /// Why.
        source: DebError,
    },
    /// The package holds no kernel.
    #[error("{package} holds no boot/vmlinuz")]
    NoKernelInside {
        /// The package.
        package: String,
    },
    /// The file system said no.
    #[error("cannot {act} {}", .path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// The cache, or the kernel in it, made trouble.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl FetchError {
    fn io(act: &'static str, path: &Path, source: io::Error) -> FetchError {
        FetchError::Io { act, path: path.to_owned(), source }
    }
}

/// Where packages come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The host's apt, if it has one that knows Debian kernels; else Debian's mirror.
    Auto,
    /// A Debian mirror, by the URL that holds `dists/`; read with curl.
    Mirror(String),
}

/// Fetches a Debian kernel into `cache`, or finds it there: then nothing is asked of the network.
/// Waits for another fetch under way. What a failure leaves behind is a partial download, which the
/// next call continues.
pub fn fetch(
    request: &FetchRequest,
    origin: &Origin,
    cache: &KernelCache,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<CachedKernel, FetchError> {
    let find = || -> Result<Option<CachedKernel>, FetchError> {
        let cached = cache.list()?;
        Ok(cached.into_iter().find(|kernel| request.wants(&kernel.release, &kernel.version)))
    };
    if !request.refresh
        && let Some(kernel) = find()?
    {
        return Ok(kernel);
    }
    let _lock = cache.lock()?;
    // Someone else may have fetched it while this call waited.
    if !request.refresh
        && let Some(kernel) = find()?
    {
        return Ok(kernel);
    }
    let work = cache.kernels().join(".fetch");
    std::fs::create_dir_all(&work).map_err(|source| FetchError::io("create", &work, source))?;
    sweep(&work, "unpack-");
    sweep(&cache.kernels(), ".removed-");
    let mut source = open(origin, &work, request, progress)?;
    let package = choose(request, source.packages())?;
    let same = |kernel: &CachedKernel| kernel.sha256 == package.sha256();
    if let Some(kernel) = cache.get(&package.release).filter(same) {
        return Ok(kernel);
    }
    let mut debs = Vec::new();
    for part in &package.parts {
        let deb = work.join(format!("{}.deb", part.sha256));
        if !verified(&deb, part)? {
            source.download(part, &deb, progress)?;
            if !verified(&deb, part)? {
                let found = sha256::of_file(&deb).map_err(|e| FetchError::io("read", &deb, e))?;
                let _ = std::fs::remove_file(&deb);
                let (package, expected) = (part.name.clone(), part.sha256.clone());
                return Err(FetchError::Digest { package, expected, found });
            }
        }
        debs.push(deb);
    }
    let kernel = unpack::into_cache(&debs, &package, cache, &work, progress);
    // What cannot be unpacked will not unpack better later; and if this fails, bytes are wasted.
    debs.iter().for_each(|deb| drop(std::fs::remove_file(deb)));
    kernel
}

/// Deletes what a killed process left half unpacked or half removed; its owner held the lock which
/// the caller holds now. Best effort: it costs only space.
fn sweep(dir: &Path, prefix: &str) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A list of packages and a way to get one.
enum Source {
    Apt(apt::Apt),
    Mirror(mirror::Mirror),
}

impl Source {
    fn packages(&self) -> &[Package] {
        match self {
            Source::Apt(apt) => &apt.packages,
            Source::Mirror(mirror) => &mirror.packages,
        }
    }

    fn download(
        &mut self,
        part: &Part,
        deb: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), FetchError> {
        match self {
            Source::Apt(apt) => apt.download(part, deb, progress),
            Source::Mirror(mirror) => mirror.download(part, deb, progress),
        }
    }
}

fn open(
    origin: &Origin,
    work: &Path,
    request: &FetchRequest,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Source, FetchError> {
    let url = match origin {
        Origin::Mirror(url) => url,
        Origin::Auto => {
            if let Some(apt) = apt::Apt::open(work, request, progress) {
                return Ok(Source::Apt(apt));
            }
            mirror::DEBIAN
        }
    };
    Ok(Source::Mirror(mirror::Mirror::open(url, progress)?))
}

/// The newest package that is wanted.
fn choose(request: &FetchRequest, packages: &[Package]) -> Result<Package, FetchError> {
    let mut flavoured: Vec<&Package> =
        packages.iter().filter(|package| request.flavour.owns(&package.release)).collect();
    flavoured.sort_by(|a, b| {
        version::compare(&b.release, &a.release)
            .then_with(|| version::compare(&b.version, &a.version))
    });
    let wanted = flavoured.iter().find(|package| request.wants(&package.release, &package.version));
    wanted.map(|&package| package.clone()).ok_or_else(|| FetchError::NoSuchKernel {
        flavour: request.flavour.word(),
        wanted: request.version.clone().unwrap_or_else(|| "newest".to_owned()),
        available: flavoured.iter().take(12).map(|package| package.release.clone()).collect(),
    })
}

fn verified(deb: &Path, part: &Part) -> Result<bool, FetchError> {
    match sha256::of_file(deb) {
        Ok(found) => Ok(found == part.sha256),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FetchError::io("read", deb, source)),
    }
}

#[cfg(test)]
mod tests;
