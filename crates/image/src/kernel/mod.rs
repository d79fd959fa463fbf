//! Kernels: finding one, fetching one, and getting at what is inside.
//!
//! A [`Kernel`] is a boot image and, usually, a directory of modules. It is found in a built tree, in
//! `/boot`, or in Kiln's own cache, which [`fetch`](fetch::fetch) fills with a distribution's
//! packages. Nothing here needs root, and nothing is installed.

mod boot_image;
mod cache;
mod compression;
mod deb;
pub mod fetch;
mod find;
mod identity;
mod lz4;
mod module_dir;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod version;
mod vmlinux;

use std::io;
use std::path::{Path, PathBuf};

use kiln_model::event::KernelIdentity;
use kiln_model::module_index::IndexError;

pub use boot_image::{BootHeader, NotABootImage, parse as parse_boot_image};
pub use cache::{CachedKernel, KernelCache};
pub use compression::{Compression, decompress};
pub use deb::{DebError, DebFile, Limits, read_deb};
pub use find::{Host, find, open};
pub use module_dir::{ModuleDir, module_info, read_module_info};
pub use version::compare as compare_releases;
pub use vmlinux::{BootFile, has_pvh_entry};

/// A kernel that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` will say, as the boot image says it.
    pub release: String,
    /// blake3 of the boot image, in hexadecimal.
    pub digest: String,
    /// The boot image: a `bzImage`.
    pub image: PathBuf,
    /// The directory its modules' paths are relative to; none if there is none.
    pub modules: Option<PathBuf>,
    /// Where it was found.
    pub source: KernelSource,
}

/// Where a kernel was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelSource {
    /// A built source tree, or its build directory.
    Tree,
    /// Installed, in `/boot` or a directory like it.
    Boot,
    /// Fetched into Kiln's cache.
    Package,
}

impl KernelSource {
    /// The word of tables.
    pub fn word(self) -> &'static str {
        match self {
            KernelSource::Tree => "tree",
            KernelSource::Boot => "boot",
            KernelSource::Package => "package",
        }
    }
}

impl Kernel {
    /// What a run remembers of it.
    pub fn identity(&self) -> KernelIdentity {
        KernelIdentity { release: self.release.clone(), digest: self.digest.clone() }
    }
}

/// Why a kernel cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing there.
    #[error(
        "no kernel found for {wanted:?}; looked at {}. Name a built tree or a vmlinuz, or get one with `kiln kernel fetch debian`",
        .tried.join(", ")
    )]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// Where it was looked for.
        tried: Vec<String>,
    },
    /// It is there, and may not be read. Some distributions keep `/boot/vmlinuz-*` to root.
    #[error(
        "may not read the kernel {}: run `sudo chmod +r {}`, or use another one with `kiln kernel fetch debian`",
        .path.display(), .path.display()
    )]
    Unreadable {
        /// The boot image.
        path: PathBuf,
    },
    /// A file that is no kernel.
    #[error("{} cannot be booted", .path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NotABootImage,
    },
    /// A directory that is neither a built tree nor like `/boot`.
    #[error(
        "{} holds no kernel: {missing} is missing. {cure}",
        .path.display()
    )]
    Incomplete {
        /// The directory.
        path: PathBuf,
        /// What should be in it.
        missing: &'static str,
        /// What to do.
        cure: &'static str,
    },
    /// Its module index is damaged.
    #[error("the module index in {} is damaged; `sudo depmod {release}` makes a new one", .dir.display())]
    Index {
        /// The module directory.
        dir: PathBuf,
        /// The kernel.
        release: String,
        /// What is wrong.
        source: IndexError,
    },
    /// A module file makes no sense.
    #[error("{} is not a kernel module: {found}", .path.display())]
    BadModule {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
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
}

impl KernelError {
    pub(crate) fn io(act: &'static str, path: &Path, source: io::Error) -> KernelError {
        KernelError::Io { act, path: path.to_owned(), source }
    }
}
