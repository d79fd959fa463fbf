//! The base of an image: what lies below everything that is named singly. Container images, archives and directories
//! come first, each over the one before; over them the files of installed packages; over them files by pattern.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::archive::{ArchiveError, ContainerImage, Looks, Reference, Stretch};
use crate::closure::host::{Input, REGULAR, TYPE, is_absence};
use crate::ext2::{Ext2Error, Tree};
use crate::inventory::is_excluded;
use crate::manifest::Wanted;
use crate::packages::{PackageError, System};
use crate::supermin::glob;

/// More entries than any guest should hold.
const MOST_ENTRIES: usize = 4_000_000;
/// So many names are told where more were left out.
const NAMES_TOLD: usize = 3;

/// What lies below everything else.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// Container images, archives and directories, the lowest first.
    pub sources: Vec<Source>,
    /// Installed packages by name, perhaps with a version as Debian writes it: `bash (>= 5)`. What they depend on comes
    /// along.
    pub packages: Vec<Wanted>,
    /// Absolute paths of this host with wildcards, which stop at slashes. A directory comes without what lies in it.
    pub host_files: Vec<Wanted>,
    /// Wildcards over paths in the image, in which `*` also stands for `/`.
    pub exclude: Vec<String>,
}

/// Something that holds files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// A directory, a tar archive (compressed or not), an OCI image layout, or an archive that `docker save` wrote.
    pub path: PathBuf,
    /// Which image of several.
    pub image: Option<String>,
    /// Whether it may be missing.
    pub optional: bool,
}

/// Why a base cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
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
    /// A source is not there.
    #[error("there is no {path}, which should lie at the base: correct the path", path = path.display())]
    MissingSource {
        /// What.
        path: PathBuf,
    },
    /// A source holds no files.
    #[error("{path} is no directory, no tar archive and no container image", path = path.display())]
    NoArchive {
        /// What.
        path: PathBuf,
    },
    /// A directory that cannot be meant.
    #[error("{path} holds more than {limit} entries", path = path.display())]
    TooMany {
        /// Which.
        path: PathBuf,
        /// How many are too many.
        limit: usize,
    },
    /// An archive or image cannot be used.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A package is not installed here.
    #[error(
        "package {name} is not installed{near}: install it, or mark it optional by writing \"?{name}\"",
        near = near.as_ref().map_or_else(String::new, |near| format!(" ({near} is)"))
    )]
    MissingPackage {
        /// Its name.
        name: String,
        /// One with a similar name that is.
        near: Option<String>,
    },
    /// What is installed cannot be known.
    #[error(transparent)]
    Packages(PackageError),
    /// A pattern matches nothing.
    #[error(
        "{pattern} names nothing on this host: correct it, or mark it optional by writing \"?{pattern}\""
    )]
    NothingThere {
        /// Which.
        pattern: String,
    },
    /// A file that may not be read.
    #[error(
        "this user may not read {path}: leave it out by an exclusion of its place in the image, or build as a user who may",
        path = path.display()
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Files cannot be gathered.
    #[error(transparent)]
    Tree(Ext2Error),
}

impl From<Ext2Error> for BaseError {
    fn from(error: Ext2Error) -> BaseError {
        match error {
            Ext2Error::Host { path, source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                BaseError::Unreadable { path, source }
            }
            Ext2Error::Archive(error) => BaseError::Archive(error),
            error => BaseError::Tree(error),
        }
    }
}

/// Gives the same bytes of an archive plain.
pub(crate) type Plain<'p> = dyn FnMut(&Stretch) -> Result<Stretch, ArchiveError> + 'p;

impl Base {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.packages.is_empty() && self.host_files.is_empty()
    }

    /// All of it as what a disk is to hold, from the system below a directory; `/` for this host. Archives are unpacked
    /// for this process alone.
    pub fn tree(&self, system: &Path) -> Result<Tree, BaseError> {
        self.gather(system, &mut Vec::new(), &mut |archive| Ok(archive.clone()))
    }

    /// The same, and everything that was looked at for it. `plain` says where archives are unpacked.
    pub(crate) fn gather(
        &self,
        system: &Path,
        seen: &mut Vec<Input>,
        plain: &mut Plain<'_>,
    ) -> Result<Tree, BaseError> {
        let mut tree = Tree::new();
        tree.exclude(self.exclude.iter().cloned());
        for source in &self.sources {
            source.add(&mut tree, system, seen, plain)?;
        }
        let mut listing = Listing { system, seen, paths: Vec::new(), notes: Vec::new() };
        if !self.packages.is_empty() {
            listing.packages(&self.packages)?;
        }
        for wanted in &self.host_files {
            listing.host_files(wanted)?;
        }
        let paths = listing.readable(&self.exclude)?;
        let mut notes = listing.notes;
        if !paths.is_empty() {
            tree.add_listed(system, paths.iter().map(PathBuf::as_path))?;
        }
        tree.notes.append(&mut notes);
        Ok(tree)
    }
}

impl Source {
    fn add(
        &self,
        tree: &mut Tree,
        system: &Path,
        seen: &mut Vec<Input>,
        plain: &mut Plain<'_>,
    ) -> Result<(), BaseError> {
        let absolute = std::path::absolute(&self.path).map_err(failed("look at", &self.path))?;
        let named = real(system, &absolute);
        // Perhaps a link, which might lead elsewhere tomorrow.
        look(&named, false, seen)?;
        let path = match fs::canonicalize(&named) {
            Ok(path) => path,
            Err(error) if is_absence(&error) && self.optional => {
                tree.notes.push(format!("{} left out: it is not there", self.path.display()));
                return Ok(());
            }
            Err(error) if is_absence(&error) => {
                return Err(BaseError::MissingSource { path: self.path.clone() });
            }
            Err(error) => return Err(failed("look at", &self.path)(error)),
        };
        match Looks::of(&path)? {
            Looks::Directory => {
                look_below(&path, seen)?;
                look(&path.join("oci-layout"), false, seen)?;
                Ok(tree.add_directory(&path)?)
            }
            Looks::Tar => {
                look(&path, false, seen)?;
                Ok(tree.add_tar(&plain(&Stretch::open(&path)?)?, false)?)
            }
            Looks::ContainerImage => {
                let reference = Reference { name: self.image.clone(), ..Reference::default() };
                look(&path, false, seen)?;
                for part in ["oci-layout", "index.json"] {
                    look(&path.join(part), false, seen)?;
                }
                for layer in &ContainerImage::open(&path, &reference)?.layers {
                    look(layer.path(), false, seen)?;
                    tree.add_tar(&plain(layer)?, true)?;
                }
                Ok(())
            }
            Looks::Other => Err(BaseError::NoArchive { path: self.path.clone() }),
        }
    }
}

/// Files of a system, one by one.
struct Listing<'l> {
    system: &'l Path,
    seen: &'l mut Vec<Input>,
    paths: Vec<PathBuf>,
    notes: Vec<String>,
}

impl Listing<'_> {
    fn packages(&mut self, wanted: &[Wanted]) -> Result<(), BaseError> {
        let installed = match System::read(self.system) {
            Ok(installed) => installed,
            Err(error) if wanted.iter().all(|wanted| wanted.optional) => {
                self.notes.push(format!("packages left out: {error}"));
                return Ok(());
            }
            Err(error) => return Err(BaseError::Packages(error)),
        };
        for path in installed.databases() {
            look(&path, path.is_dir(), self.seen)?;
        }
        let mut names = Vec::new();
        for wanted in wanted {
            if wanted.optional && !installed.has(&wanted.name) {
                self.notes.push(format!("package {} left out: it is not installed", wanted.name));
            } else {
                names.push(wanted.name.as_str());
            }
        }
        let mut closure = installed.closure(names).map_err(|error| match error {
            PackageError::NotInstalled { name, near } => BaseError::MissingPackage { name, near },
            error => BaseError::Packages(error),
        })?;
        self.notes.append(&mut closure.notes);
        self.paths.append(&mut closure.files);
        self.paths.append(&mut closure.links);
        Ok(())
    }

    fn host_files(&mut self, wanted: &Wanted) -> Result<(), BaseError> {
        let pattern = &wanted.name;
        // What has no wildcard yet may be missing, and come.
        let mut sure = PathBuf::from("/");
        for part in pattern.split('/').take_while(|part| !part.contains(['*', '?', '['])) {
            sure.push(part);
        }
        if sure != Path::new("/") {
            look(&real(self.system, &sure), false, self.seen)?;
        }
        let mut found = glob::glob(self.system, [pattern]);
        for folder in &found.listed {
            look(&real(self.system, folder), true, self.seen)?;
        }
        if found.paths.is_empty() {
            if !wanted.optional {
                return Err(BaseError::NothingThere { pattern: pattern.clone() });
            }
            self.notes.push(format!("{pattern} left out: it names nothing on this host"));
        }
        self.paths.append(&mut found.paths);
        Ok(())
    }

    /// Those that are there and may be read, each once.
    fn readable(&mut self, exclude: &[String]) -> Result<Vec<PathBuf>, BaseError> {
        let mut known = HashSet::new();
        let mut paths = std::mem::take(&mut self.paths);
        let (mut missing, mut unreadable) = (0, Vec::new());
        paths.retain(|path| {
            if path == Path::new("/") || !known.insert(path.clone()) {
                return false;
            }
            if is_excluded(exclude, path.as_os_str().as_bytes()) {
                return false;
            }
            let real = real(self.system, path);
            let Ok(input) = Input::look(&real, false) else {
                unreadable.push(path.display().to_string());
                return false;
            };
            let stamp = input.stamp;
            self.seen.push(input);
            let Some(stamp) = stamp else {
                missing += 1;
                return false;
            };
            let readable = is_readable(&real, stamp.mode);
            if !readable {
                unreadable.push(path.display().to_string());
            }
            readable
        });
        if missing > 0 {
            self.notes.push(format!("{missing} files of packages are not there"));
        }
        if !unreadable.is_empty() {
            let count = unreadable.len();
            unreadable.truncate(NAMES_TOLD);
            let names = unreadable.join(", ");
            let more = if count > NAMES_TOLD { ", …" } else { "" };
            let s = if count == 1 { "" } else { "s" };
            let note =
                format!("{count} file{s} that this user may not read left out: {names}{more}");
            self.notes.push(note);
        }
        Ok(paths)
    }
}

/// Whether this process may read something, as far as it has content.
pub(crate) fn is_readable(path: &Path, mode: u32) -> bool {
    mode & TYPE != REGULAR
        || mode & 0o444 == 0o444
        || rustix::fs::access(path, Access::READ_OK).is_ok()
}

/// Where a path of a system is.
fn real(system: &Path, path: &Path) -> PathBuf {
    system.join(path.strip_prefix("/").unwrap_or(path))
}

fn look(path: &Path, listed: bool, seen: &mut Vec<Input>) -> Result<(), BaseError> {
    seen.push(Input::look(path, listed).map_err(failed("look at", path))?);
    Ok(())
}

/// Looks at a directory and everything in it.
fn look_below(top: &Path, seen: &mut Vec<Input>) -> Result<(), BaseError> {
    let mut ahead = vec![top.to_owned()];
    let mut count = 0;
    while let Some(folder) = ahead.pop() {
        look(&folder, true, seen)?;
        let entries = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(failed("list", &folder))? {
            count += 1;
            if count > MOST_ENTRIES {
                return Err(BaseError::TooMany { path: top.to_owned(), limit: MOST_ENTRIES });
            }
            let path = entry.path();
            if entry.file_type().map_err(failed("look at", &path))?.is_dir() {
                ahead.push(path);
            } else {
                look(&path, false, seen)?;
            }
        }
    }
    Ok(())
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BaseError {
    move |source| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::PermissionDenied {
            return BaseError::Unreadable { path, source };
        }
        BaseError::Host { act, path, source }
    }
}

#[cfg(test)]
mod tests;
