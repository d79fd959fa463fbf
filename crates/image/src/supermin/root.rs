//! What the root disk of an appliance holds: archives first, over them what packages and patterns name on this system,
//! and the modules of its kernel.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::input::Appliance;
use super::record::Seen;
use super::{SuperminError, glob};
use crate::base::is_readable;
use crate::closure::host::Input;
use crate::ext2::{Time, Tree};
use crate::inventory::{GuestPath, Stamp};
use crate::kernel::{Kernel, KernelCache, ModuleDir};
use crate::packages::{Closure, System};

/// Where all packages are named, if that is wanted.
const PACKAGE_LIST: &str = "/packagelist";
/// So many names are told where more files were left out.
const NAMES_TOLD: usize = 3;
/// Where modules are, below which the release.
const MODULES: &str = "/lib/modules";

/// What there is to be had of a system.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) packages: usize,
    /// What was asked for by name and is not there.
    pub(super) missing: Vec<String>,
    pub(super) notes: Vec<String>,
    /// Of this system, in the order in which they lie over each other.
    paths: Vec<PathBuf>,
    package_list: Option<String>,
}

impl Contents {
    /// Works out what an appliance names, and remembers everything that was looked at for that.
    pub(super) fn find(
        appliance: &Appliance,
        system: &Path,
        package_list: bool,
        seen: &mut Seen,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Contents, SuperminError> {
        let mut missing = Vec::new();
        let closure = packages(appliance, system, seen, &mut missing)?;
        let count = closure.packages.len();
        tell(&format!("build: {count} packages, including dependencies"));
        tell(&format!("build: {} files", closure.files.len()));
        // What a package's owner may have changed is in the archives, as the package had it.
        let wanted = |path: &&PathBuf| {
            !closure.config.contains_key(*path)
                && !appliance
                    .excluded
                    .iter()
                    .any(|pattern| glob::excludes(pattern, path.as_os_str()))
        };
        let mut paths: Vec<PathBuf> = closure.files.iter().filter(wanted).cloned().collect();
        tell(&format!("build: {} files, after matching excludefiles", paths.len()));
        let found = glob::glob(system, &appliance.host_files);
        for folder in &found.listed {
            let path = real(system, folder);
            seen.look(&path, true).map_err(|error| SuperminError::host("look at", &path, error))?;
        }
        let without = found.without.iter();
        missing.extend(without.map(|pattern| format!("{pattern} names nothing on this system")));
        paths.extend(found.paths);
        tell(&format!("build: {} files, after adding hostfiles", paths.len()));
        let mut known = HashSet::new();
        paths.retain(|path| known.insert(path.clone()));
        let mut contents = Contents {
            packages: count,
            missing,
            notes: closure.notes.clone(),
            paths: Vec::new(),
            package_list: None,
        };
        let mut unreadable = Vec::new();
        for path in paths {
            let real = real(system, &path);
            match fs::symlink_metadata(&real) {
                Ok(meta) if is_readable(&real, meta.mode()) => {
                    let stamp = Some(Stamp::of(&meta));
                    seen.add(Input { path: real, listed: false, stamp });
                    contents.paths.push(path);
                }
                Ok(_) => unreadable.push(path.display().to_string()),
                // What was left out when it was installed, or removed since.
                Err(_) => seen.add(Input { path: real, listed: false, stamp: None }),
            }
        }
        if !unreadable.is_empty() {
            let count = unreadable.len();
            unreadable.truncate(NAMES_TOLD);
            let (names, more) =
                (unreadable.join(", "), if count > NAMES_TOLD { ", …" } else { "" });
            let note =
                format!("{count} files that this user may not read are left out: {names}{more}");
            contents.notes.push(note);
        }
        tell(&format!("build: {} files, after removing unreadable files", contents.paths.len()));
        if package_list {
            let lines =
                closure.packages.iter().map(|(name, version)| format!("{name} {version}\n"));
            contents.package_list = Some(lines.collect());
        }
        Ok(contents)
    }

    /// All of it as a tree.
    pub(super) fn tree(
        &self,
        appliance: &Appliance,
        system: &Path,
        modified: Time,
    ) -> Result<Tree, SuperminError> {
        let mut tree = Tree::new();
        for base in &appliance.bases {
            tree.add_tar(base, false)?;
        }
        tree.add_listed(system, self.paths.iter().map(PathBuf::as_path))?;
        if let Some(list) = &self.package_list {
            tree.add_bytes(&GuestPath::new(PACKAGE_LIST)?, 0o644, modified, list.as_bytes())?;
        }
        Ok(tree)
    }
}

/// The packages an appliance names, with what they need.
fn packages(
    appliance: &Appliance,
    system: &Path,
    seen: &mut Seen,
    absent: &mut Vec<String>,
) -> Result<Closure, SuperminError> {
    if appliance.packages.is_empty() {
        return Ok(Closure::default());
    }
    let installed = System::read(system)?;
    for path in installed.databases() {
        seen.look(&path, path.is_dir())
            .map_err(|error| SuperminError::host("look at", &path, error))?;
    }
    let (there, missing): (Vec<&str>, Vec<&str>) =
        appliance.packages.iter().map(String::as_str).partition(|name| installed.has(name));
    if there.is_empty() {
        return Err(SuperminError::NoPackage { names: appliance.packages.clone() });
    }
    absent.extend(missing.iter().map(|name| format!("package {name} is not installed")));
    Ok(installed.closure(there)?)
}

/// Adds a kernel's modules where programs look for them, with an index if there is none beside them.
pub(super) fn add_modules(
    tree: &mut Tree,
    kernel: &Kernel,
    cache: &KernelCache,
    modified: Time,
) -> Result<(), SuperminError> {
    let Some(folder) = &kernel.modules else { return Ok(()) };
    let place = GuestPath::new(MODULES)?.join(&kernel.release)?;
    tree.add_directory_at(folder, &place)?;
    if !folder.join("modules.dep").exists() {
        let dir = ModuleDir::open(folder, kernel.source, cache)?;
        let text = dir.text();
        for (name, text) in [
            ("modules.dep", text.dep),
            ("modules.alias", text.alias),
            ("modules.softdep", text.softdep),
            ("modules.weakdep", text.weakdep),
        ] {
            tree.add_bytes(&place.join(name)?, 0o644, modified, text.as_bytes())?;
        }
    }
    Ok(())
}

/// Remembers a kernel's image and modules.
pub(super) fn look_at_kernel(kernel: &Kernel, seen: &mut Seen) -> Result<(), SuperminError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SuperminError::Host { act: "look at", path, source }
    };
    seen.look(&kernel.image, false).map_err(failed(&kernel.image))?;
    let Some(folder) = &kernel.modules else { return Ok(()) };
    let mut ahead = vec![folder.clone()];
    while let Some(folder) = ahead.pop() {
        seen.look(&folder, true).map_err(failed(&folder))?;
        let entries = fs::read_dir(&folder).map_err(failed(&folder))?;
        let mut entries: Vec<fs::DirEntry> =
            entries.collect::<Result<_, _>>().map_err(failed(&folder))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if entry.file_type().map_err(failed(&path))?.is_dir() {
                ahead.push(path);
            } else {
                seen.look(&path, false).map_err(failed(&path))?;
            }
        }
    }
    Ok(())
}

pub(super) fn real(system: &Path, path: &Path) -> PathBuf {
    system.join(path.strip_prefix("/").unwrap_or(path))
}
