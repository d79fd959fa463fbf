//! The closure: from what a manifest asks for to everything that must come along, as an
//! [`Inventory`]. The host's links are kept, so that every file lies in the guest where it lies here.

pub(crate) mod host;
pub mod ld_so_conf;
mod programs;
mod trees;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use kiln_model::wildcard;

use crate::base::{BaseError, is_readable};
use crate::inventory::{
    Conflict, Content, Entry, GuestPath, GuestPathError, Inventory, Node, Owner, Stamp, is_excluded,
};
use crate::manifest::{Contents, PlacedContent, PlacedFile, Wanted};
use host::{Found, Host, REGULAR, Step};
use programs::{BINARY_FOLDERS, Brought, Programs};

pub use host::HostError;

/// Directories every guest has, and their permissions.
const DIRECTORIES: [(&str, u32); 12] = [
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/mnt", 0o755),
    ("/proc", 0o755),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o755),
    ("/tmp", 0o1777),
    ("/usr/bin", 0o755),
    ("/usr/lib", 0o755),
    ("/usr/sbin", 0o755),
    ("/var/tmp", 0o1777),
];

/// Links at the root which a host with a merged `/usr` has.
const MERGED: [&str; 4] = ["/bin", "/sbin", "/lib", "/lib64"];

/// Why what a manifest asks for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// The host could not be asked.
    #[error(transparent)]
    Host(HostError),
    /// Something of the host that may not be read.
    #[error(
        "this user may not read {path}: leave it out with `exclude`, or build as a user who may",
        path = path.display()
    )]
    Unreadable {
        /// What.
        path: PathBuf,
    },
    /// A binary is nowhere.
    #[error(
        "no binary {name:?} in {searched}: install it, or mark it optional by writing \"?{name}\""
    )]
    MissingBinary {
        /// Its name.
        name: String,
        /// Where it was looked for.
        searched: String,
    },
    /// A library is nowhere.
    #[error(
        "no library {library:?}, which {wanted_by} needs, in {searched}: install it, or mark what needs it optional with a leading '?'",
        wanted_by = wanted_by.display()
    )]
    MissingLibrary {
        /// Its name.
        library: String,
        /// Who needs it.
        wanted_by: PathBuf,
        /// Where it was looked for.
        searched: String,
    },
    /// A script's interpreter, or a program's loader, is nowhere.
    #[error(
        "no {interpreter:?}, which runs {wanted_by}: install it, or mark what needs it optional with a leading '?'",
        wanted_by = wanted_by.display()
    )]
    MissingInterpreter {
        /// Its path or name.
        interpreter: String,
        /// Who needs it.
        wanted_by: PathBuf,
    },
    /// Firmware is nowhere.
    #[error(
        "no firmware {name:?} below {searched}: install it, or mark it optional by writing \"?{name}\""
    )]
    MissingFirmware {
        /// Its name.
        name: String,
        /// Where it was looked for.
        searched: String,
    },
    /// The source of a file or tree is not there.
    #[error("no {source_path}, which should become {path}: correct the path, or add optional = true", source_path = source_path.display())]
    MissingSource {
        /// Where it would lie in the guest.
        path: GuestPath,
        /// What is missing.
        source_path: PathBuf,
    },
    /// Something else than what was meant.
    #[error("{path} is not a regular file", path = path.display())]
    NotAFile {
        /// What it is about.
        path: PathBuf,
    },
    /// A tree's source is a file.
    #[error("{path} is not a directory: use `files` for a single file", path = path.display())]
    NotADirectory {
        /// What it is about.
        path: PathBuf,
    },
    /// A tree that cannot be meant.
    #[error("{path} holds more than {limit} entries", path = path.display())]
    TooMany {
        /// The tree.
        path: PathBuf,
        /// How many are too many.
        limit: usize,
    },
    /// A program that starts like an ELF file and is none.
    #[error("{path} is a damaged ELF file: install it again", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// What lies below cannot be had.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// Two things at one place.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// A path that cannot lie in the guest.
    #[error(transparent)]
    Path(#[from] GuestPathError),
}

impl From<HostError> for ClosureError {
    fn from(error: HostError) -> ClosureError {
        if error.source.kind() == std::io::ErrorKind::PermissionDenied {
            return ClosureError::Unreadable { path: error.path };
        }
        ClosureError::Host(error)
    }
}

/// Collects an inventory.
#[derive(Debug)]
pub(crate) struct Closure<'a> {
    pub(crate) host: Host,
    pub(crate) inventory: Inventory,
    /// Whether something lies below that came from elsewhere than this host's own places.
    has_base: bool,
    programs: Programs,
    exclude: &'a [String],
    done: HashSet<PathBuf>,
}

impl<'a> Closure<'a> {
    /// Everything that `contents` asks for, over `base`, except kernel modules and what lies in [`place`](Self::place).
    pub(crate) fn of(
        root: &Path,
        contents: &'a Contents,
        base: Inventory,
    ) -> Result<Closure<'a>, ClosureError> {
        let mut closure = Closure::over(root, base, &contents.manifest.exclude);
        closure.skeleton()?;
        closure.binaries(&contents.manifest.binaries)?;
        for wanted in &contents.manifest.libraries {
            let result = closure.library(&wanted.name);
            closure.unless_optional(wanted, result)?;
        }
        Ok(closure)
    }

    fn over(root: &Path, base: Inventory, exclude: &'a [String]) -> Closure<'a> {
        Closure {
            host: Host::new(root),
            has_base: !base.is_empty(),
            inventory: base,
            programs: Programs::default(),
            exclude,
            done: HashSet::new(),
        }
    }

    fn binaries(&mut self, all: &[Wanted]) -> Result<(), ClosureError> {
        for wanted in all {
            let result = self.binary(&wanted.name);
            self.unless_optional(wanted, result)?;
        }
        Ok(())
    }

    /// The rest: what the manifest places by name, over whatever has come before.
    pub(crate) fn place(&mut self, contents: &Contents) -> Result<(), ClosureError> {
        let manifest = &contents.manifest;
        for link in &manifest.symlinks {
            let path = self.inventory.place(&link.path)?;
            let node = Node::Symlink(link.target.clone().into_bytes());
            self.inventory.put(path, Entry { owner: Owner::ROOT, permissions: 0o777, node })?;
        }
        for path in &manifest.directories {
            let path = self.inventory.place_directory(path)?;
            self.inventory.put(
                path,
                Entry { owner: Owner::ROOT, permissions: 0o755, node: Node::Directory },
            )?;
        }
        for tree in &manifest.trees {
            self.tree(tree)?;
        }
        for file in &manifest.files {
            self.placed_file(file)?;
        }
        Ok(())
    }

    /// Firmware by name, as drivers ask for it: plain or compressed, wildcards allowed.
    pub(crate) fn firmware(&mut self, wanted: &Wanted, release: &str) -> Result<(), ClosureError> {
        let folders = [
            format!("/lib/firmware/updates/{release}"),
            "/lib/firmware/updates".to_owned(),
            format!("/lib/firmware/{release}"),
            "/lib/firmware".to_owned(),
        ];
        for folder in &folders {
            let mut any = false;
            for ending in ["", ".xz", ".zst"] {
                let pattern = Path::new(folder).join(format!("{}{ending}", wanted.name));
                for path in ld_so_conf::glob(&mut self.host, &pattern)? {
                    let found = self.host.follow(&path)?;
                    if let Some(found) = found.filter(|found| found.stamp.kind() == REGULAR) {
                        self.bring(&found)?;
                        any = true;
                    }
                }
            }
            if any {
                return Ok(());
            }
        }
        let missing = ClosureError::MissingFirmware {
            name: wanted.name.clone(),
            searched: folders.join(", "),
        };
        self.unless_optional(wanted, Err(missing))
    }

    /// Puts one file at a place of the guest.
    pub(crate) fn put_file(
        &mut self,
        path: &GuestPath,
        permissions: u32,
        content: Content,
    ) -> Result<(), ClosureError> {
        if !self.is_excluded(path) {
            let path = self.inventory.place(path)?;
            self.inventory
                .put(path, Entry { owner: Owner::ROOT, permissions, node: Node::File(content) })?;
        }
        Ok(())
    }

    /// A note instead of an error where what is missing is optional.
    fn unless_optional(
        &mut self,
        wanted: &Wanted,
        result: Result<(), ClosureError>,
    ) -> Result<(), ClosureError> {
        use ClosureError::{
            MissingBinary, MissingFirmware, MissingInterpreter, MissingLibrary, Unreadable,
        };
        match result {
            Err(
                error @ (MissingBinary { .. }
                | MissingLibrary { .. }
                | MissingInterpreter { .. }
                | MissingFirmware { .. }
                | Unreadable { .. }),
            ) if wanted.optional => {
                let what = match error {
                    MissingLibrary { library, .. } if library != wanted.name => {
                        format!("its library {library} is missing")
                    }
                    MissingInterpreter { interpreter, .. } => format!("{interpreter} is missing"),
                    Unreadable { path } => format!("this user may not read {}", path.display()),
                    _ => "it is not on this host".to_owned(),
                };
                self.inventory.notes.push(format!("{} left out: {what}", wanted.name));
                Ok(())
            }
            result => result,
        }
    }

    fn skeleton(&mut self) -> Result<(), ClosureError> {
        for link in MERGED {
            let target = match self.host.at(Path::new(link))? {
                Some((_, Some(target))) => target,
                // A host without one is laid out as if merged, except for the loader's own place.
                None if link != "/lib64" => Path::new("usr").join(&link[1..]),
                _ => continue,
            };
            let node = Node::Symlink(target.into_os_string().into_encoded_bytes());
            self.lay(
                GuestPath::new(link)?,
                Entry { owner: Owner::ROOT, permissions: 0o777, node },
            )?;
        }
        for (path, permissions) in DIRECTORIES {
            let path = self.inventory.place_directory(&GuestPath::new(path)?)?;
            self.inventory
                .put(path, Entry { owner: Owner::ROOT, permissions, node: Node::Directory })?;
        }
        // The kernel opens it for init before init can mount anything.
        let console = Entry {
            owner: Owner::ROOT,
            permissions: 0o600,
            node: Node::CharDevice { major: 5, minor: 1 },
        };
        self.inventory.put(GuestPath::new("/dev/console")?, console)?;
        Ok(())
    }

    fn binary(&mut self, name: &str) -> Result<(), ClosureError> {
        let found = Programs::find(&mut self.host, name)?;
        let found = found.ok_or_else(|| ClosureError::MissingBinary {
            name: name.to_owned(),
            searched: match name.rsplit_once('/') {
                Some((folder, _)) => format!("{folder}/"),
                None => BINARY_FOLDERS.join(", "),
            },
        })?;
        if found.stamp.kind() != REGULAR {
            return Err(ClosureError::NotAFile { path: found.path });
        }
        self.program(&found)
    }

    fn library(&mut self, name: &str) -> Result<(), ClosureError> {
        if name.starts_with('/') && !wildcard::is_literal(name) {
            for path in ld_so_conf::glob(&mut self.host, Path::new(name))? {
                if let Some(found) = self.host.follow(&path)?.filter(|f| f.stamp.kind() == REGULAR)
                {
                    self.program(&found)?;
                }
            }
            return Ok(());
        }
        let mut brought = Brought::default();
        let found = self.programs.find_library(&mut self.host, name, &mut brought)?;
        let found = found.ok_or_else(|| ClosureError::MissingLibrary {
            library: name.to_owned(),
            wanted_by: PathBuf::from("the manifest"),
            searched: "the loader's directories".to_owned(),
        })?;
        self.commit(brought)?;
        self.program(&found)
    }

    /// A program or library with all it needs. Nothing is added if something is missing.
    fn program(&mut self, found: &Found) -> Result<(), ClosureError> {
        if self.is_excluded_found(found)? {
            return Ok(());
        }
        if !self.done.contains(&found.path) {
            let mut brought = Brought::default();
            self.programs.examine(&mut self.host, found, &mut brought, 0)?;
            self.done.insert(found.path.clone());
            self.commit(brought)?;
        }
        self.bring(found)
    }

    fn commit(&mut self, brought: Brought) -> Result<(), ClosureError> {
        for file in &brought.files {
            self.bring(file)?;
        }
        for (name, path, architecture) in brought.unreachable {
            // The guest has no cache of libraries, so a link leads its loader from where it does look.
            let folder = programs::default_folder(&mut self.host, architecture)?;
            let link = GuestPath::new(folder)?.join(host::os_str(&name))?;
            let link = self.inventory.place(&link)?;
            if self.inventory.get(&link).is_none() && !self.is_excluded(&GuestPath::new(&path)?) {
                let node = Node::Symlink(path.into_os_string().into_encoded_bytes());
                self.inventory.put(link, Entry { owner: Owner::ROOT, permissions: 0o777, node })?;
            }
        }
        Ok(())
    }

    /// Adds a found file where it lies on the host, with the links and directories that lead there.
    pub(crate) fn bring(&mut self, found: &Found) -> Result<(), ClosureError> {
        if self.is_excluded_found(found)? {
            return Ok(());
        }
        for step in &found.trail {
            match step {
                Step::Directory(path, stamp) => {
                    let entry = Entry {
                        owner: Owner::ROOT,
                        permissions: stamp.permissions(),
                        node: Node::Directory,
                    };
                    self.lay(GuestPath::new(path)?, entry)?;
                }
                Step::Link(path, target) => {
                    let node = Node::Symlink(target.as_os_str().as_encoded_bytes().to_vec());
                    self.lay(
                        GuestPath::new(path)?,
                        Entry { owner: Owner::ROOT, permissions: 0o777, node },
                    )?;
                }
            }
        }
        self.check_readable(&found.path, &found.stamp)?;
        let content = Content::Host { path: self.host.real(&found.path), stamp: found.stamp };
        let entry = Entry {
            owner: Owner::ROOT,
            permissions: found.stamp.permissions(),
            node: Node::File(content),
        };
        self.lay(GuestPath::new(&found.path)?, entry)
    }

    /// Adds something where it lies on the host, or where the base's links lead from there. It takes the place of what
    /// the base has, but no directory's.
    fn lay(&mut self, path: GuestPath, entry: Entry) -> Result<(), ClosureError> {
        if !self.has_base {
            return Ok(self.inventory.add(path, entry)?);
        }
        let path = self.inventory.place(&path)?;
        match (self.inventory.get(&path).map(|there| &there.node), &entry.node) {
            // A link stands for a directory here: the one it leads to.
            (Some(Node::Directory | Node::Symlink(_)), Node::Directory) => return Ok(()),
            (Some(Node::Directory), Node::Symlink(target)) => {
                let target = target.escape_ascii();
                let note = format!(
                    "{path} stays a directory, as the base has it: here it is a link to {target}"
                );
                if !self.inventory.notes.contains(&note) {
                    self.inventory.notes.push(note);
                }
                return Ok(());
            }
            // The base may be laid out in another way.
            (Some(Node::Symlink(_)), Node::Symlink(_))
                if MERGED.iter().any(|merged| path.as_bytes() == merged.as_bytes()) =>
            {
                return Ok(());
            }
            _ => {}
        }
        Ok(self.inventory.put(path, entry)?)
    }

    /// Says early what would fail late.
    fn check_readable(&self, path: &Path, stamp: &Stamp) -> Result<(), ClosureError> {
        if is_readable(&self.host.real(path), stamp.mode) {
            return Ok(());
        }
        Err(ClosureError::Unreadable { path: path.to_owned() })
    }

    /// Whether a file is excluded, under its own name or one of the links that lead to it.
    fn is_excluded_found(&self, found: &Found) -> Result<bool, ClosureError> {
        if self.exclude.is_empty() {
            return Ok(false);
        }
        let links = found.trail.iter().filter_map(|step| match step {
            Step::Link(path, _) => Some(path),
            Step::Directory(..) => None,
        });
        for path in links.chain([&found.path]) {
            if self.is_excluded(&GuestPath::new(path)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a path, or a directory above it, matches one of the manifest's exclusions.
    pub(crate) fn is_excluded(&self, path: &GuestPath) -> bool {
        is_excluded(self.exclude, path.as_bytes())
    }

    fn placed_file(&mut self, file: &PlacedFile) -> Result<(), ClosureError> {
        match &file.content {
            PlacedContent::Text(text) => {
                let content = Content::Bytes(text.as_bytes().into());
                self.put_file(&file.path, file.mode.unwrap_or(0o644), content)
            }
            PlacedContent::Source(_) if self.is_excluded(&file.path) => Ok(()),
            PlacedContent::Source(source) => {
                let source = absolute(source)?;
                let Some(found) = self.host.follow(&source)? else {
                    if file.optional {
                        let note = format!("{} left out: no {}", file.path, source.display());
                        self.inventory.notes.push(note);
                        return Ok(());
                    }
                    return Err(ClosureError::MissingSource {
                        path: file.path.clone(),
                        source_path: source,
                    });
                };
                if found.stamp.kind() != REGULAR {
                    return Err(ClosureError::NotAFile { path: found.path });
                }
                self.check_readable(&found.path, &found.stamp)?;
                let permissions = file.mode.unwrap_or(found.stamp.permissions());
                let path = self.host.real(&found.path);
                self.put_file(&file.path, permissions, Content::Host { path, stamp: found.stamp })
            }
        }
    }
}

/// Programs of a system with all that they need, to be added to what a disk is to hold.
#[derive(Debug)]
pub struct ProgramFiles {
    /// Absolute paths of the system.
    pub paths: Vec<PathBuf>,
    /// Links that the system has no need of, for it has a cache of libraries.
    pub links: Inventory,
    /// Optional programs that were left out.
    pub notes: Vec<String>,
}

impl ProgramFiles {
    /// Finds programs by name or absolute path in the system below a directory.
    pub fn find(root: &Path, names: &[Wanted]) -> Result<ProgramFiles, ClosureError> {
        let mut closure = Closure::over(root, Inventory::default(), &[]);
        closure.binaries(names)?;
        let Closure { mut host, inventory, .. } = closure;
        let (mut paths, mut links) = (Vec::new(), Inventory::default());
        for (path, entry) in inventory.entries() {
            match &entry.node {
                // Those on the way come with what lies in them.
                Node::Directory => {}
                Node::Symlink(_) if host.at(path.as_path())?.is_none() => {
                    links.put(path.clone(), entry.clone())?;
                }
                _ => paths.push(path.as_path().to_owned()),
            }
        }
        Ok(ProgramFiles { paths, links, notes: inventory.notes })
    }
}

/// A source as an absolute path; relative ones are relative to the process.
fn absolute(source: &Path) -> Result<PathBuf, HostError> {
    std::path::absolute(source).map_err(|cause| HostError {
        act: "look at",
        path: source.to_owned(),
        source: cause,
    })
}

#[cfg(test)]
mod tests;
