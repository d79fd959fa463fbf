//! Which kernel modules an image needs for what its user named, and where they are: the closure over
//! hard, soft and weak dependencies, with firmware, and an index of just these for the guest.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use kiln_model::module_index::{
    IndexError, ModuleIndex, Resolution, base_name, module_name, normalise, write,
};
use kiln_model::scenario::nearest;

use crate::kernel::{Kernel, KernelCache, KernelError, KernelSource, ModuleDir, read_module_info};

/// Where modules are in a guest, followed by the release. The image must have `/lib` be `usr/lib`.
pub const GUEST_MODULES: &str = "/usr/lib/modules";
/// Where firmware is in a guest.
pub const GUEST_FIRMWARE: &str = "/usr/lib/firmware";

/// A module someone asked for, by name or alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, or something its aliases match.
    pub name: String,
    /// Whether the image does without it where the kernel has none.
    pub optional: bool,
}

impl Wanted {
    /// One the image cannot do without.
    pub fn required(name: impl Into<String>) -> Wanted {
        Wanted { name: name.into(), optional: false }
    }

    /// One that is nice to have.
    pub fn optional(name: impl Into<String>) -> Wanted {
        Wanted { name: name.into(), optional: true }
    }
}

/// A module for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    /// Its name, with `_`.
    pub name: String,
    /// Where it goes, absolute; always ends in `.ko`.
    pub guest_path: String,
    /// The kernel's own file, perhaps compressed.
    pub source: PathBuf,
    /// The plain file to copy: the source, or its uncompressed copy in the cache.
    pub plain: PathBuf,
}

/// A firmware file for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFile {
    /// As drivers name it: `e100/d101m_ucode.bin`.
    pub name: String,
    /// Where it goes, absolute.
    pub guest_path: String,
    /// The plain file to copy.
    pub plain: PathBuf,
}

/// A small file made for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFile {
    /// Where it goes, absolute.
    pub guest_path: String,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// Everything an image needs for the modules asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleSet {
    /// In an order in which they can be loaded, though not all of them need to be.
    pub modules: Vec<ModuleFile>,
    /// Firmware they may ask for, as far as this machine has it.
    pub firmware: Vec<FirmwareFile>,
    /// Firmware they may ask for and this machine does not have.
    pub missing_firmware: Vec<String>,
    /// Requests which the kernel has built in.
    pub builtin: Vec<String>,
    /// Optional requests which this kernel cannot serve.
    pub absent: Vec<String>,
    /// The index of these modules, and of what is built in (`docs/formats/module-index.md`).
    pub index: Vec<IndexFile>,
}

/// How a kernel has a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// It is part of the kernel.
    BuiltIn,
    /// It is a module.
    Module,
    /// It is neither.
    Absent,
    /// The kernel came without a module directory, so nothing says.
    Unknown,
}

/// Why no closure could be made.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// No module, built-in or alias of that name.
    #[error("kernel {release} has no module {name:?}, neither built in nor by an alias: {advice}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The kernel.
        release: String,
        /// What to do.
        advice: String,
    },
    /// The kernel's files made trouble.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// The modules of one kernel.
#[derive(Clone, Debug)]
pub struct Modules {
    release: String,
    source: KernelSource,
    /// None when the kernel has no module directory.
    root: Option<PathBuf>,
    dir: ModuleDir,
    firmware: Vec<PathBuf>,
    cache: KernelCache,
}

impl Modules {
    /// Reads the index of a kernel's modules, making it in `cache` if there is none. Firmware is
    /// looked for where this machine's kernel would look.
    pub fn open(kernel: &Kernel, cache: &KernelCache) -> Result<Modules, ModuleError> {
        let dir = match &kernel.modules {
            Some(root) => ModuleDir::open(root, kernel.source, cache)?,
            None => ModuleDir::empty(),
        };
        let places = ["updates", &kernel.release, ""];
        Ok(Modules {
            release: kernel.release.clone(),
            source: kernel.source,
            root: kernel.modules.clone(),
            dir,
            firmware: places.iter().map(|place| Path::new("/lib/firmware").join(place)).collect(),
            cache: cache.clone(),
        })
    }

    /// The same, looking for firmware in `dirs`.
    pub fn with_firmware_from(self, dirs: Vec<PathBuf>) -> Modules {
        Modules { firmware: dirs, ..self }
    }

    /// How the kernel has a driver, by its module's name or an alias.
    pub fn driver(&self, name: &str) -> Result<Driver, ModuleError> {
        if self.root.is_none() {
            return Ok(Driver::Unknown);
        }
        let index = self.dir.index().map_err(|source| self.damaged(source))?;
        Ok(match index.resolve(name) {
            Resolution::Modules(_) => Driver::Module,
            Resolution::BuiltIn => Driver::BuiltIn,
            Resolution::Unknown => Driver::Absent,
        })
    }

    /// All that must be in an image so that `wanted` can be loaded. Hard dependencies must be there;
    /// soft and weak ones, and firmware, come along where they are.
    pub fn closure(&self, wanted: &[Wanted]) -> Result<ModuleSet, ModuleError> {
        let index = self.dir.index().map_err(|source| self.damaged(source))?;
        let mut set = ModuleSet::default();
        let (mut seen, mut order) = (HashSet::new(), Vec::new());
        for request in wanted {
            match index.resolve(&request.name) {
                Resolution::BuiltIn => set.builtin.push(request.name.clone()),
                Resolution::Unknown if request.optional => set.absent.push(request.name.clone()),
                Resolution::Unknown => return Err(self.unknown(&request.name, &index)),
                Resolution::Modules(paths) => {
                    for path in paths {
                        index
                            .plan(path, &mut seen, &mut order)
                            .map_err(|source| self.damaged(source))?;
                    }
                }
            }
        }
        // Weak needs of what weak needs bring count, too: `order` grows while it is walked.
        let mut at = 0;
        while let Some(&path) = order.get(at) {
            at += 1;
            for weak in index.weak_needs(&module_name(path)) {
                let Resolution::Modules(paths) = index.resolve(weak) else { continue };
                for path in paths {
                    index
                        .plan(path, &mut seen, &mut order)
                        .map_err(|source| self.damaged(source))?;
                }
            }
        }
        let mut firmware = BTreeSet::new();
        for path in &order {
            let source = self.dir.root.join(path);
            let plain = self.cache.plain(&source)?;
            firmware.extend(read_module_info(&plain)?.firmware);
            set.modules.push(ModuleFile {
                name: module_name(path).into_owned(),
                guest_path: self.guest_path(&self.path_in_guest(path)),
                source,
                plain,
            });
        }
        for name in firmware {
            match self.find_firmware(&name) {
                Some(file) => set.firmware.push(FirmwareFile {
                    guest_path: format!("{GUEST_FIRMWARE}/{name}"),
                    plain: self.cache.plain(&file)?,
                    name,
                }),
                None => set.missing_firmware.push(name),
            }
        }
        set.index = self.guest_index(&index, &order);
        Ok(set)
    }

    fn damaged(&self, source: IndexError) -> KernelError {
        KernelError::Index { dir: self.dir.root.clone(), release: self.release.clone(), source }
    }

    fn guest_path(&self, relative: &str) -> String {
        format!("{GUEST_MODULES}/{}/{relative}", self.release)
    }

    /// Where a module is below the guest's module directory: as an installation would have it.
    fn path_in_guest(&self, path: &str) -> String {
        let (dir, _) = path.split_at(path.len() - base_name(path).len());
        let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
        let name = base_name(path);
        let stem = name.split_once(".ko").map_or(name, |(stem, _)| stem);
        match self.source {
            // Absolute, or out of the directory: from elsewhere, as depmod's search may allow.
            _ if !plain => format!("extra/{stem}.ko"),
            KernelSource::Tree => format!("kernel/{dir}{stem}.ko"),
            KernelSource::Boot | KernelSource::Package => format!("{dir}{stem}.ko"),
        }
    }

    fn find_firmware(&self, name: &str) -> Option<PathBuf> {
        // The name is the module's choice and must not lead elsewhere.
        if !Path::new(name).components().all(|c| matches!(c, Component::Normal(_))) {
            return None;
        }
        let files = self.firmware.iter().flat_map(|dir| {
            ["", ".xz", ".zst"].iter().map(move |ending| dir.join(format!("{name}{ending}")))
        });
        files.into_iter().find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file()))
    }

    fn guest_index(&self, index: &ModuleIndex<'_>, order: &[&str]) -> Vec<IndexFile> {
        let (mut dep, mut alias) = (String::new(), String::new());
        let (mut softdep, mut weakdep) = (String::new(), String::new());
        let mut paths = order.to_vec();
        paths.sort_unstable();
        let mut names = HashSet::new();
        for path in &paths {
            let name = module_name(path);
            let needs: Vec<String> =
                index.hard_needs(&name).iter().rev().map(|path| self.path_in_guest(path)).collect();
            let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
            write::dep_line(&mut dep, &self.path_in_guest(path), &needs);
            let (pre, post) = index.soft_needs(&name);
            write::softdep_line(&mut softdep, &name, pre, post);
            write::weakdep_line(&mut weakdep, &name, index.weak_needs(&name));
            names.insert(name);
        }
        for (pattern, name) in index.aliases() {
            if names.contains(&normalise(name)) {
                write::alias_line(&mut alias, pattern, name);
            }
        }
        let mut builtin_modinfo = Vec::new();
        for (pattern, name) in index.builtin_aliases() {
            builtin_modinfo.extend(format!("{name}.alias={pattern}\0").into_bytes());
        }
        [
            ("modules.dep", dep.into_bytes()),
            ("modules.alias", alias.into_bytes()),
            ("modules.softdep", softdep.into_bytes()),
            ("modules.weakdep", weakdep.into_bytes()),
            ("modules.builtin", self.dir.text().builtin.as_bytes().to_vec()),
            ("modules.builtin.modinfo", builtin_modinfo),
        ]
        .into_iter()
        .map(|(name, bytes)| IndexFile { guest_path: self.guest_path(name), bytes })
        .collect()
    }

    fn unknown(&self, name: &str, index: &ModuleIndex<'_>) -> ModuleError {
        let plain = normalise(name);
        let nearest = nearest(&plain, index.names().chain(index.builtin_names()));
        let advice = if self.root.is_none() {
            "no module directory was found for this kernel".to_owned()
        } else if index.names().next().is_none() && self.source == KernelSource::Tree {
            "the tree has no modules built; run `make -j$(nproc) modules` if it should".to_owned()
        } else if let Some(nearest) = nearest {
            format!("did you mean {nearest}?")
        } else {
            "build the kernel with it, or use another kernel".to_owned()
        };
        ModuleError::Unknown { name: name.to_owned(), release: self.release.clone(), advice }
    }
}

#[cfg(test)]
mod tests;
