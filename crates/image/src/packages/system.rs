//! [`System`]: whichever way a system has of knowing its packages.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Closure, PackageError, Packages, Rpm};

/// The installed packages of a system.
#[derive(Debug)]
pub enum System {
    /// Debian and its kin.
    Dpkg(Packages),
    /// Fedora, SUSE and theirs.
    Rpm(Rpm),
}

/// A kind of packages that Kiln reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Debian and its kin.
    Dpkg,
    /// Fedora, SUSE and theirs.
    Rpm,
}

impl Manager {
    /// All of them.
    pub const ALL: [Manager; 2] = [Manager::Dpkg, Manager::Rpm];

    /// The name that supermin has for it.
    pub fn name(self) -> &'static str {
        match self {
            Manager::Dpkg => "debian/dpkg",
            Manager::Rpm => "fedora/rpm",
        }
    }

    /// Whether a system has such packages.
    pub fn is_used_by(self, root: &Path) -> bool {
        match self {
            // The program `rpm` may be installed on Debian, too, and its database empty.
            Manager::Dpkg => {
                let status = root.join("var/lib/dpkg/status");
                fs::metadata(status).is_ok_and(|meta| meta.is_file() && meta.len() > 0)
            }
            Manager::Rpm => Rpm::database(root).is_some(),
        }
    }

    /// Which one a system has.
    pub fn of(root: &Path) -> Option<Manager> {
        Manager::ALL.into_iter().find(|manager| manager.is_used_by(root))
    }
}

impl System {
    /// Reads the packages of the system below a directory; `/` for the host's own.
    pub fn read(root: &Path) -> Result<System, PackageError> {
        match Manager::of(root) {
            Some(Manager::Rpm) => Rpm::read(root).map(System::Rpm),
            // It says best what is missing.
            Some(Manager::Dpkg) | None => Packages::read(root).map(System::Dpkg),
        }
    }

    /// Which kind they are.
    pub fn manager(&self) -> Manager {
        match self {
            System::Dpkg(_) => Manager::Dpkg,
            System::Rpm(_) => Manager::Rpm,
        }
    }

    /// Whether a package of this name, or one that provides it, is installed.
    pub fn has(&self, name: &str) -> bool {
        match self {
            System::Dpkg(packages) => packages.has(name),
            System::Rpm(packages) => packages.has(name),
        }
    }

    /// Files and directories that change whenever packages do.
    pub fn databases(&self) -> Vec<PathBuf> {
        match self {
            System::Dpkg(packages) => packages.databases(),
            System::Rpm(packages) => packages.databases(),
        }
    }

    /// The packages with these names, what they depend on, and the files of all.
    pub fn closure<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Closure, PackageError> {
        match self {
            System::Dpkg(packages) => packages.closure(names),
            System::Rpm(packages) => packages.closure(names),
        }
    }
}
