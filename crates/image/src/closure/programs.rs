//! What a program needs: an ELF file its loader and libraries, a script its interpreter.
//!
//! Libraries are searched as the dynamic loader does, for the machine of the program that wants them:
//! `DT_RPATH` (its own and that of what loaded it) unless there is a `DT_RUNPATH`, then `DT_RUNPATH`,
//! the directories of `/etc/ld.so.conf`, and the default ones. `LD_LIBRARY_PATH` has no say, and neither
//! have the `glibc-hwcaps` variants: the guest's processor may be another.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::ClosureError;
use super::host::{Found, Host, HostError, REGULAR};
use super::ld_so_conf;
use crate::elf::{self, Architecture, Needs};

/// Where a binary without a path is searched.
pub(crate) const BINARY_FOLDERS: [&str; 5] =
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/lib/systemd"];

/// Longer `#!` lines are cut by the kernel too.
const SHEBANG_LIMIT: u64 = 256;
/// Scripts whose interpreters are scripts; the kernel allows a few.
const SCRIPT_DEPTH: usize = 5;

/// Finds what programs need. Remembers every ELF file it has read.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    needs: HashMap<PathBuf, Option<Rc<Needs>>>,
    extra_folders: Option<Rc<[PathBuf]>>,
}

/// What one program brings along.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    /// Files, with all links and directories on the way.
    pub(crate) files: Vec<Found>,
    /// Libraries that only `/etc/ld.so.conf` leads to, which the guest's loader does not read: their
    /// names, where they are, and whose code they are.
    pub(crate) unreachable: Vec<(Vec<u8>, PathBuf, Architecture)>,
    visited: HashSet<(PathBuf, Rc<[PathBuf]>)>,
}

/// One object whose libraries are to be found.
struct Object {
    path: PathBuf,
    needs: Rc<Needs>,
    /// `DT_RPATH` directories of what loaded it.
    inherited: Rc<[PathBuf]>,
}

impl Programs {
    /// Finds a binary by name or absolute path. None says that it is nowhere.
    pub(crate) fn find(host: &mut Host, name: &str) -> Result<Option<Found>, HostError> {
        if name.starts_with('/') {
            return host.follow(Path::new(name));
        }
        for folder in BINARY_FOLDERS {
            let found = host.follow(&Path::new(folder).join(name))?;
            if let Some(found) = found.filter(|found| found.stamp.kind() == REGULAR) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Adds to `brought` what a file needs, but not the file itself. A file that is neither ELF nor
    /// script needs nothing.
    pub(crate) fn examine(
        &mut self,
        host: &mut Host,
        found: &Found,
        brought: &mut Brought,
        depth: usize,
    ) -> Result<(), ClosureError> {
        let start = host.read(&found.path, SHEBANG_LIMIT)?;
        if let Some(script) = start.strip_prefix(b"#!") {
            return self.script(host, found, script, brought, depth);
        }
        if !elf::is_elf(&start) {
            return Ok(());
        }
        let needs = self
            .needs(host, &found.path)?
            .ok_or_else(|| ClosureError::Damaged { path: found.path.clone() })?;
        if let Some(loader) = &needs.interpreter {
            let path = Path::new(OsStr::from_bytes(loader));
            let missing = || ClosureError::MissingInterpreter {
                interpreter: path.display().to_string(),
                wanted_by: found.path.clone(),
            };
            brought.files.push(host.follow(path)?.ok_or_else(missing)?);
        }
        self.libraries(host, found, needs, brought)
    }

    /// Finds a library by name in the default places of this machine's architecture.
    pub(crate) fn find_library(
        &mut self,
        host: &mut Host,
        name: &str,
        brought: &mut Brought,
    ) -> Result<Option<Found>, ClosureError> {
        if name.starts_with('/') {
            return Ok(host.follow(Path::new(name))?);
        }
        let extra = self.extra_folders(host)?;
        let architecture = native();
        for (is_default, folder) in places(&extra, architecture) {
            let path = folder.join(name);
            if let Some(found) = self.candidate(host, &path, architecture)? {
                if !is_default {
                    let unreachable = (name.as_bytes().to_vec(), path, architecture);
                    brought.unreachable.push(unreachable);
                }
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn script(
        &mut self,
        host: &mut Host,
        script: &Found,
        line: &[u8],
        brought: &mut Brought,
        depth: usize,
    ) -> Result<(), ClosureError> {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        let Some(interpreter) = words.next() else { return Ok(()) };
        let mut wanted = vec![interpreter];
        if interpreter.rsplit('/').next() == Some("env") {
            // Options and assignments come before the command's name.
            wanted.extend(words.find(|word| !word.starts_with('-') && !word.contains('=')));
        }
        for name in wanted {
            let found =
                Programs::find(host, name)?.ok_or_else(|| ClosureError::MissingInterpreter {
                    interpreter: name.chars().take(200).collect(),
                    wanted_by: script.path.clone(),
                })?;
            if found.stamp.kind() != REGULAR {
                return Err(ClosureError::NotAFile { path: found.path });
            }
            if depth < SCRIPT_DEPTH {
                self.examine(host, &found, brought, depth + 1)?;
            }
            brought.files.push(found);
        }
        Ok(())
    }

    fn libraries(
        &mut self,
        host: &mut Host,
        program: &Found,
        needs: Rc<Needs>,
        brought: &mut Brought,
    ) -> Result<(), ClosureError> {
        let mut waiting =
            VecDeque::from([Object { path: program.path.clone(), needs, inherited: Rc::from([]) }]);
        let extra = self.extra_folders(host)?;
        while let Some(object) = waiting.pop_front() {
            let (own, inherited) = search_paths(&object);
            for name in &object.needs.libraries {
                let architecture = object.needs.architecture;
                let library = self.library(host, name, &own, &extra, architecture, brought)?;
                let Some((path, found)) = library else {
                    return Err(ClosureError::MissingLibrary {
                        library: String::from_utf8_lossy(name).chars().take(200).collect(),
                        wanted_by: object.path,
                        searched: searched(&own, &extra, architecture),
                    });
                };
                if brought.visited.insert((path.clone(), Rc::clone(&inherited))) {
                    if let Some(needs) = self.needs(host, &found.path)? {
                        waiting.push_back(Object { path, needs, inherited: Rc::clone(&inherited) });
                    }
                    brought.files.push(found);
                }
            }
        }
        Ok(())
    }

    /// One library: the path it was found at, and what is there.
    fn library(
        &mut self,
        host: &mut Host,
        name: &[u8],
        own: &[PathBuf],
        extra: &[PathBuf],
        architecture: Architecture,
        brought: &mut Brought,
    ) -> Result<Option<(PathBuf, Found)>, ClosureError> {
        let file = Path::new(OsStr::from_bytes(name));
        if name.contains(&b'/') {
            let found =
                if file.is_absolute() { self.candidate(host, file, architecture)? } else { None };
            return Ok(found.map(|found| (file.to_owned(), found)));
        }
        for folder in own {
            let path = folder.join(file);
            if let Some(found) = self.candidate(host, &path, architecture)? {
                return Ok(Some((path, found)));
            }
        }
        for (is_default, folder) in places(extra, architecture) {
            let path = folder.join(file);
            if let Some(found) = self.candidate(host, &path, architecture)? {
                if !is_default {
                    brought.unreachable.push((name.to_vec(), path.clone(), architecture));
                }
                return Ok(Some((path, found)));
            }
        }
        Ok(None)
    }

    /// What lies at `path`, if it is a library of this architecture. Damaged ones are passed over.
    fn candidate(
        &mut self,
        host: &mut Host,
        path: &Path,
        architecture: Architecture,
    ) -> Result<Option<Found>, ClosureError> {
        let followed = match host.follow(path) {
            // A search path may lead through somebody else's home: the loader passes it over, too.
            Err(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => None,
            followed => followed?,
        };
        let Some(found) = followed.filter(|found| found.stamp.kind() == REGULAR) else {
            return Ok(None);
        };
        let fits = self.needs(host, &found.path)?.is_some_and(|n| n.architecture == architecture);
        Ok(fits.then_some(found))
    }

    /// What an ELF file needs; none if it is damaged or no ELF file (a linker script, say).
    fn needs(&mut self, host: &Host, path: &Path) -> Result<Option<Rc<Needs>>, HostError> {
        if let Some(known) = self.needs.get(path) {
            return Ok(known.clone());
        }
        let needs = elf::needs_of_file(&host.open(path)?).ok().map(Rc::new);
        self.needs.insert(path.to_owned(), needs.clone());
        Ok(needs)
    }

    fn extra_folders(&mut self, host: &mut Host) -> Result<Rc<[PathBuf]>, HostError> {
        if let Some(folders) = &self.extra_folders {
            return Ok(Rc::clone(folders));
        }
        let folders: Rc<[PathBuf]> = ld_so_conf::directories(host)?.into();
        self.extra_folders = Some(Rc::clone(&folders));
        Ok(folders)
    }
}

/// The directory, among those the loader searches by default, to which a library that lies elsewhere
/// is linked.
pub(crate) fn default_folder(
    host: &mut Host,
    architecture: Architecture,
) -> Result<PathBuf, HostError> {
    let mut candidates = Vec::new();
    candidates.extend(triplet(architecture).map(|triplet| format!("/usr/lib/{triplet}")));
    candidates.extend(architecture.is_64.then(|| "/usr/lib64".to_owned()));
    for folder in candidates {
        // `lib64` with nothing but the loader in it is how multiarch hosts look.
        if let Some(found) = host.follow(Path::new(&folder))? {
            return Ok(found.path);
        }
    }
    Ok(PathBuf::from("/usr/lib"))
}

/// An object's own search path, and what it hands down to the libraries it loads.
fn search_paths(object: &Object) -> (Vec<PathBuf>, Rc<[PathBuf]>) {
    let needs = &object.needs;
    let expand = |paths: &[Vec<u8>]| -> Vec<PathBuf> {
        paths.iter().flat_map(|path| expand(path, &object.path, needs.architecture)).collect()
    };
    if !needs.runpath.is_empty() {
        return (expand(&needs.runpath), Rc::clone(&object.inherited));
    }
    if needs.rpath.is_empty() {
        return (object.inherited.to_vec(), Rc::clone(&object.inherited));
    }
    let mut own = expand(&needs.rpath);
    own.extend(object.inherited.iter().cloned());
    (own.clone(), own.into())
}

/// The directories a search path's element means; `$LIB` has several candidates.
fn expand(element: &[u8], object: &Path, architecture: Architecture) -> Vec<PathBuf> {
    let Ok(text) = std::str::from_utf8(element) else { return Vec::new() };
    let origin = object.parent().unwrap_or(Path::new("/")).to_string_lossy();
    let text = text.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", &origin);
    let text = text.replace("${LIB}", "$LIB").replace("${PLATFORM}", "$PLATFORM");
    let text = text.replace("$PLATFORM", std::env::consts::ARCH);
    let all = if text.contains("$LIB") {
        let multiarch = triplet(architecture).map(|triplet| format!("lib/{triplet}"));
        let plain = if architecture.is_64 { ["lib64", "lib"] } else { ["lib", "lib32"] };
        multiarch
            .into_iter()
            .chain(plain.map(str::to_owned))
            .map(|lib| text.replace("$LIB", &lib))
            .collect()
    } else {
        vec![text]
    };
    all.into_iter().map(PathBuf::from).filter(|path| path.is_absolute()).collect()
}

/// Where every program's libraries are searched, and whether the loader does so without its cache.
fn places(extra: &[PathBuf], architecture: Architecture) -> Vec<(bool, PathBuf)> {
    let default = default_folders(architecture);
    let mut places: Vec<(bool, PathBuf)> =
        extra.iter().map(|folder| (default.contains(folder), folder.clone())).collect();
    places.extend(default.into_iter().map(|folder| (true, folder)));
    places
}

fn default_folders(architecture: Architecture) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(triplet) = triplet(architecture) {
        folders.extend([format!("/lib/{triplet}"), format!("/usr/lib/{triplet}")]);
    }
    if architecture.is_64 {
        folders.extend(["/lib64".to_owned(), "/usr/lib64".to_owned()]);
    }
    folders.extend(["/lib".to_owned(), "/usr/lib".to_owned()]);
    folders.into_iter().map(PathBuf::from).collect()
}

fn searched(own: &[PathBuf], extra: &[PathBuf], architecture: Architecture) -> String {
    let mut all: Vec<String> = Vec::new();
    let places = places(extra, architecture).into_iter().map(|(_, folder)| folder);
    for folder in own.iter().cloned().chain(places) {
        let folder = folder.display().to_string();
        if !all.contains(&folder) && all.len() < 24 {
            all.push(folder);
        }
    }
    all.join(", ")
}

/// Debian's name for an architecture, part of its library directories.
fn triplet(architecture: Architecture) -> Option<&'static str> {
    Some(match (architecture.machine, architecture.is_64, architecture.is_big_endian) {
        (3, false, false) => "i386-linux-gnu",
        (40, false, false) => "arm-linux-gnueabihf",
        (62, true, false) => "x86_64-linux-gnu",
        (183, true, false) => "aarch64-linux-gnu",
        (21, true, false) => "powerpc64le-linux-gnu",
        (22, true, true) => "s390x-linux-gnu",
        (243, true, false) => "riscv64-linux-gnu",
        _ => return None,
    })
}

/// The architecture this program was compiled for.
fn native() -> Architecture {
    let machine = match std::env::consts::ARCH {
        "x86" => 3,
        "arm" => 40,
        "aarch64" => 183,
        "powerpc64" => 21,
        "s390x" => 22,
        "riscv64" => 243,
        _ => 62,
    };
    Architecture {
        machine,
        is_64: cfg!(target_pointer_width = "64"),
        is_big_endian: cfg!(target_endian = "big"),
    }
}
