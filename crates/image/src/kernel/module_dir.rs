//! A directory of modules and its index. Where depmod has not been (a built tree, a package that was
//! only unpacked) the index is made here, from what the modules say of themselves, and cached.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kiln_model::module_index::modinfo::ModInfo;
use kiln_model::module_index::{IndexError, IndexText, ModuleIndex, write};
use object::Endianness;
use object::read::elf::{FileHeader, SectionHeader};
use object::{ReadCache, ReadRef, elf};

use super::cache::write_whole;
use super::compression::{self, Compression};
use super::{KernelCache, KernelError, KernelSource};

const FILE_LIMIT: u64 = 64 << 20;
const MODULE_LIMIT: u64 = 1 << 30;
const MODINFO_LIMIT: u64 = 4 << 20;
const DEPTH_LIMIT: u32 = 32;

/// A module directory with the text of its index, which [`index`](Self::index) borrows from.
#[derive(Clone, Debug)]
pub struct ModuleDir {
    /// What the paths in the index are relative to.
    pub root: PathBuf,
    dep: String,
    alias: String,
    softdep: String,
    weakdep: String,
    builtin: String,
    builtin_modinfo: Vec<u8>,
}

impl ModuleDir {
    /// Opens the module directory `root` of a kernel found in `source`. Makes the index in `cache`
    /// if there is none, which reads every module once.
    pub fn open(
        root: &Path,
        source: KernelSource,
        cache: &KernelCache,
    ) -> Result<ModuleDir, KernelError> {
        // A tree may hold a stale modules.dep of someone else's making: it is never believed.
        let made = source != KernelSource::Tree && root.join("modules.dep").exists();
        let index = if made { root.to_owned() } else { make_index(root, source, cache)? };
        let text = |name: &str, dir: &Path| {
            read_optional(&dir.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(ModuleDir {
            root: root.to_owned(),
            dep: text("modules.dep", &index)?,
            alias: text("modules.alias", &index)?,
            softdep: text("modules.softdep", &index)?,
            weakdep: text("modules.weakdep", &index)?,
            builtin: text("modules.builtin", root)?,
            builtin_modinfo: read_optional(&root.join("modules.builtin.modinfo"))?,
        })
    }

    /// An empty directory: what a kernel without modules has.
    pub fn empty() -> ModuleDir {
        ModuleDir {
            root: PathBuf::new(),
            dep: String::new(),
            alias: String::new(),
            softdep: String::new(),
            weakdep: String::new(),
            builtin: String::new(),
            builtin_modinfo: Vec::new(),
        }
    }

    /// The text of all index files.
    pub fn text(&self) -> IndexText<'_> {
        IndexText {
            dep: &self.dep,
            alias: &self.alias,
            softdep: &self.softdep,
            weakdep: &self.weakdep,
            builtin: &self.builtin,
            builtin_modinfo: &self.builtin_modinfo,
        }
    }

    /// The parsed index.
    pub fn index(&self) -> Result<ModuleIndex<'_>, IndexError> {
        ModuleIndex::parse(&self.text())
    }
}

fn read_optional(path: &Path) -> Result<Vec<u8>, KernelError> {
    match File::open(path) {
        Ok(file) => compression::read_bounded(file, FILE_LIMIT)
            .map_err(|source| KernelError::io("read", path, source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(KernelError::io("read", path, source)),
    }
}

/// Makes the index of `root` in the cache, unless that was done for the same files before. Returns
/// where it is.
fn make_index(
    root: &Path,
    source: KernelSource,
    cache: &KernelCache,
) -> Result<PathBuf, KernelError> {
    let paths = match source {
        KernelSource::Tree => ordered(root)?,
        KernelSource::Boot | KernelSource::Package => walked(root)?,
    };
    let mut key = blake3::Hasher::new();
    key.update(b"module index 1\0");
    key.update(root.as_os_str().as_encoded_bytes());
    for path in &paths {
        let full = root.join(path);
        let meta =
            fs::metadata(&full).map_err(|source| KernelError::io("look at", &full, source))?;
        key.update(path.as_bytes());
        key.update(&meta.size().to_le_bytes());
        for number in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
            key.update(&number.to_le_bytes());
        }
    }
    let key: String = key.finalize().to_hex().chars().take(32).collect();
    let dir = cache.index(&key);
    // modules.dep is written last: where it is, all is.
    if !dir.join("modules.dep").exists() {
        write_index(root, &paths, &dir)?;
    }
    Ok(dir)
}

/// Makes the index of a directory without one, beside its modules. For kernels Kiln unpacked itself.
pub(super) fn write_own_index(root: &Path) -> Result<(), KernelError> {
    write_index(root, &walked(root)?, root)
}

fn write_index(root: &Path, paths: &[String], dir: &Path) -> Result<(), KernelError> {
    let files = write::index(&read_all(root, paths)?);
    for (name, text) in [
        ("modules.alias", &files.alias),
        ("modules.softdep", &files.softdep),
        ("modules.weakdep", &files.weakdep),
        ("modules.dep", &files.dep),
    ] {
        write_whole(&dir.join(name), text.as_bytes(), None)?;
    }
    Ok(())
}

/// The module files a build wrote, by `modules.order`. Old kernels list `kernel/x.ko`, newer ones
/// `x.ko` or `x.o`.
fn ordered(tree: &Path) -> Result<Vec<String>, KernelError> {
    let order = read_optional(&tree.join("modules.order"))?;
    let order = String::from_utf8_lossy(&order);
    let mut paths = Vec::new();
    for line in order.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let stem = line.strip_suffix(".ko").or_else(|| line.strip_suffix(".o")).unwrap_or(line);
        let full = format!("{stem}.ko");
        let short = full.strip_prefix("kernel/").unwrap_or(&full);
        // `kernel/` is also a folder of every tree, and may be meant.
        let path = if tree.join(&full).exists() { &full } else { short };
        let climbs =
            Path::new(path).components().any(|c| !matches!(c, std::path::Component::Normal(_)));
        if climbs {
            continue;
        }
        if !tree.join(path).exists() {
            return Err(KernelError::Incomplete {
                path: tree.join(path),
                missing: "a module that modules.order lists",
                cure: "Build the tree's modules with `make -j$(nproc) modules`",
            });
        }
        paths.push(path.to_owned());
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// All module files below `root`, sorted.
fn walked(root: &Path) -> Result<Vec<String>, KernelError> {
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::new(), 0)];
    while let Some((dir, depth)) = todo.pop() {
        let full = root.join(&dir);
        let failed = |source| KernelError::io("list", &full, source);
        for entry in fs::read_dir(&full).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = dir.join(entry.file_name());
            // Not followed: `build` and `source` are links out of here.
            let kind = entry.file_type().map_err(failed)?;
            let Some(text) = path.to_str().filter(|text| !text.contains(char::is_whitespace))
            else {
                continue;
            };
            if kind.is_dir() && depth < DEPTH_LIMIT {
                todo.push((path, depth + 1));
            } else if kind.is_file() && is_module(text) {
                found.push(text.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_module(path: &str) -> bool {
    [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|ending| path.ends_with(ending))
}

/// What each module says of itself. Reads on all processors: it is decompression, mostly.
fn read_all(root: &Path, paths: &[String]) -> Result<BTreeMap<String, ModInfo>, KernelError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let chunk = paths.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = paths
            .chunks(chunk)
            .map(|paths| {
                scope.spawn(move || {
                    let read = |path: &String| {
                        Ok::<_, KernelError>((path.clone(), read_module_info(&root.join(path))?))
                    };
                    paths.iter().map(read).collect::<Result<Vec<_>, _>>()
                })
            })
            .collect();
        let mut all = BTreeMap::new();
        for reader in readers {
            match reader.join() {
                Ok(infos) => all.extend(infos?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

/// What the module file at `path`, compressed or not, says of itself.
pub fn read_module_info(path: &Path) -> Result<ModInfo, KernelError> {
    let failed = |source| KernelError::io("read", path, source);
    let bad = |found: String| KernelError::BadModule { path: path.to_owned(), found };
    let mut file = File::open(path).map_err(failed)?;
    let mut start = [0; 8];
    let read = io::Read::read(&mut file, &mut start).map_err(failed)?;
    if Compression::of(&start[..read]) == Compression::None {
        // Only the section table and one section are read: a module may be mostly debugging data.
        return info(&ReadCache::new(file)).map_err(bad);
    }
    let packed = fs::read(path).map_err(failed)?;
    let plain = compression::decompress(&packed, MODULE_LIMIT).map_err(failed)?;
    info(&plain[..]).map_err(bad)
}

/// What a plain module says of itself; why not, if it is none.
pub fn module_info(module: &[u8]) -> Result<ModInfo, String> {
    info(module)
}

fn info<'a>(data: impl ReadRef<'a>) -> Result<ModInfo, String> {
    let find = || -> object::Result<Option<&'a [u8]>> {
        let header = elf::FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let Some((_, section)) = sections.section_by_name(endian, b".modinfo") else {
            return Ok(None);
        };
        if section.sh_size(endian) > MODINFO_LIMIT {
            return Ok(None);
        }
        section.data(endian, data).map(Some)
    };
    match find() {
        Ok(Some(section)) => Ok(ModInfo::parse(section)),
        Ok(None) => Err("it has no .modinfo section".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
