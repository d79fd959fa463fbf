//! Appliances as supermin makes them: from a few names of packages, a few files and archives, to a kernel, an
//! initramfs and a root disk that boots a copy of this system (`docs/supermin.md`).
//!
//! [`prepare`] writes the small thing that travels, [`build`] makes the large one of it where it is needed, or finds
//! that what it made before is still right.

mod build;
mod direct;
mod drivers;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod glob;
mod input;
mod output;
mod prepare;
mod record;
mod root;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use kiln_block::ByteLen;

use crate::cache::GuestExecutable;
use crate::ext2::Ext2Error;
use crate::initramfs::InitramfsError;
use crate::inventory::{Conflict, GuestPathError};
use crate::kernel::{KernelCache, KernelError};
use crate::modules::ModuleError;
use crate::packages::PackageError;

pub use build::build;
pub use prepare::{PrepareRequest, Prepared, prepare};

/// What the whole disk is, if nobody says.
pub const USUAL_SIZE: ByteLen = ByteLen::gib(4);

/// What is to be built.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// Files and directories of a supermin appliance.
    pub inputs: Vec<PathBuf>,
    /// The directory that is made, or replaced.
    pub output: PathBuf,
    /// What is made.
    pub format: Format,
    /// Whether an output that is still right is left alone.
    pub if_newer: bool,
    /// A file that is locked first.
    pub lock: Option<PathBuf>,
    /// Whether `/packagelist` is to name all packages.
    pub package_list: bool,
    /// The directory taken for `/`.
    pub system: PathBuf,
}

/// What is made.
#[derive(Clone, Debug)]
pub enum Format {
    /// A directory to change root to.
    Chroot,
    /// `kernel`, `initrd` and `root`.
    Ext2(Box<Bootable>),
}

/// How an appliance boots.
#[derive(Clone, Debug)]
pub struct Bootable {
    /// The root disk's size.
    pub size: ByteLen,
    /// Whether the kernel is copied, in the form that boots fastest; else the output has a link to it.
    pub copy_kernel: bool,
    /// The machine type in the names of kernels.
    pub architecture: String,
    /// Which kernel; by default the system's newest.
    pub kernel: Option<PathBuf>,
    /// Its release, if it is not what the boot image says.
    pub release: Option<String>,
    /// Where its modules are; by default where the system has them.
    pub modules: Option<PathBuf>,
    /// Where what is derived from kernels is kept.
    pub kernels: KernelCache,
    /// What becomes process 1 until the root disk is found.
    pub guest: GuestExecutable,
}

/// What came of building.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Built {
    /// Everything is as it was when the output was made.
    StillRight,
    /// The output was made.
    Anew {
        /// How many packages are in it.
        packages: usize,
        /// How many names the root disk or directory has.
        entries: u64,
        /// What was asked for by name and is not there.
        missing: Vec<String>,
        /// What else a person may want to know.
        notes: Vec<String>,
    },
}

/// Why an appliance cannot be prepared or built.
#[derive(Debug, thiserror::Error)]
pub enum SuperminError {
    /// The host could not be asked.
    #[error("cannot {act} {path}", path = path.display())]
    Host {
        /// What was tried.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// An input is not what supermin knows.
    #[error("cannot use {path}: {why}", path = path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No package is there.
    #[error("none of these packages is installed: {}", names.join(" "))]
    NoPackage {
        /// What was asked for.
        names: Vec<String>,
    },
    /// A program that packages need failed.
    #[error("{program} failed: {said}")]
    Program {
        /// Which.
        program: String,
        /// Its last words.
        said: String,
    },
    /// Packages could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The kernel could not be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its modules could not be had.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The root disk cannot be made.
    #[error(transparent)]
    Root(#[from] Ext2Error),
    /// What the root disk is to hold cannot be read.
    #[error(transparent)]
    Unreadable(kiln_block::DeviceError),
    /// The initramfs cannot be made.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// Two things at one place of the initramfs.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// A path that cannot lie in the guest.
    #[error(transparent)]
    Path(#[from] GuestPathError),
}

impl SuperminError {
    pub(crate) fn host(act: &'static str, path: &Path, source: io::Error) -> SuperminError {
        SuperminError::Host { act, path: path.to_owned(), source }
    }
}
