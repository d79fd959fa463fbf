//! Packages that are installed on a host: which there are, what they need, and which files are theirs. [`Packages`]
//! reads dpkg's own database, in process; [`Rpm`] asks the program `rpm`; a [`System`] is whichever is there.

mod alternatives;
mod control;
mod rpm;
mod system;
mod version;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use kiln_model::scenario::nearest;

use self::control::{Wanted, relations, stanzas, wanted};
pub use self::rpm::Rpm;
pub use self::system::{Manager, System};

/// Where dpkg keeps what it knows, below the root.
const DATABASE: &str = "var/lib/dpkg";

/// The installed packages of a system.
#[derive(Debug)]
pub struct Packages {
    root: PathBuf,
    all: Vec<Package>,
    by_name: HashMap<String, Vec<usize>>,
    /// Packages that say they provide a name, and as which version.
    provided: HashMap<String, Vec<(usize, Option<String>)>>,
    /// A file's package and path, and where it was moved to make room for another package's.
    diversions: HashMap<PathBuf, (String, PathBuf)>,
}

#[derive(Debug)]
struct Package {
    name: String,
    architecture: String,
    version: String,
    needs: Vec<Vec<Wanted>>,
}

/// Packages and everything they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closure {
    /// `NAME VERSION`, sorted by name.
    pub packages: Vec<(String, String)>,
    /// Every file and directory of theirs, absolute, sorted.
    pub files: Vec<PathBuf>,
    /// Those of the files that hold configuration, which may be another than was installed, and whose they are.
    pub config: BTreeMap<PathBuf, String>,
    /// Links by which a choice among packages leads to these files, such as `/usr/bin/awk`, and those on the way.
    pub links: Vec<PathBuf>,
    /// What is needed and not installed, a sentence each.
    pub notes: Vec<String>,
}

/// Packages could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The system has no database that can be read.
    #[error("cannot read {path}", path = path.display())]
    Database {
        /// What.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The program that knows packages failed.
    #[error("{program} failed: {said}")]
    Program {
        /// Which.
        program: String,
        /// Its last words, or why it did not start.
        said: String,
    },
    /// There are other packages, but not this one.
    #[error("package {name} is not installed{}", near.as_ref().map_or_else(String::new, |near| format!("; {near} is")))]
    NotInstalled {
        /// What was asked for.
        name: String,
        /// One with a similar name.
        near: Option<String>,
    },
}

fn read(path: &Path) -> Result<String, PackageError> {
    let failed = |source| PackageError::Database { path: path.to_owned(), source };
    // Fields that matter are ASCII; descriptions may be anything.
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(failed)
}

impl Packages {
    /// Reads the database of the system below a directory; `/` for the host's own.
    pub fn read(root: &Path) -> Result<Packages, PackageError> {
        let folder = root.join(DATABASE);
        let mut packages = Packages {
            root: root.to_owned(),
            all: Vec::new(),
            by_name: HashMap::new(),
            provided: HashMap::new(),
            diversions: HashMap::new(),
        };
        for stanza in stanzas(&read(&folder.join("status"))?) {
            // Wanted, flag, state: only the last says what is there.
            let installed =
                stanza.get("Status").is_some_and(|status| status.ends_with(" installed"));
            let Some(name) = stanza.get("Package").filter(|_| installed) else { continue };
            let field = |name: &str| stanza.get(name).unwrap_or_default();
            let number = packages.all.len();
            packages.by_name.entry(name.to_owned()).or_default().push(number);
            for provided in field("Provides").split(',').filter_map(wanted) {
                let version = provided.version.map(|(_, version)| version);
                packages.provided.entry(provided.name).or_default().push((number, version));
            }
            let mut needs = relations(field("Pre-Depends"));
            needs.extend(relations(field("Depends")));
            packages.all.push(Package {
                name: name.to_owned(),
                architecture: field("Architecture").to_owned(),
                version: field("Version").to_owned(),
                needs,
            });
        }
        if let Ok(text) = read(&folder.join("diversions")) {
            let lines: Vec<&str> = text.lines().collect();
            for three in lines.chunks_exact(3) {
                let moved = (three[2].to_owned(), PathBuf::from(three[1]));
                packages.diversions.insert(PathBuf::from(three[0]), moved);
            }
        }
        Ok(packages)
    }

    /// How many are installed.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a package of this name, or one that provides it, is installed.
    pub fn has(&self, name: &str) -> bool {
        wanted(name).is_some_and(|wanted| self.installed(&wanted).is_some())
    }

    /// Files that change whenever packages do.
    pub fn databases(&self) -> Vec<PathBuf> {
        let database = self.root.join(DATABASE);
        let mut all: Vec<PathBuf> = ["status", "diversions"].map(|name| database.join(name)).into();
        all.extend(alternatives::FOLDERS.map(|folder| self.root.join(folder)));
        all
    }

    /// The packages with these names, what they depend on, and the files of all. Of alternatives the first that is
    /// installed is taken, by its own name rather than by one that another package provides. A name may be one that
    /// a package provides.
    pub fn closure<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Closure, PackageError> {
        let mut ahead = Vec::new();
        for name in names {
            let found = wanted(name).and_then(|wanted| self.installed(&wanted));
            ahead.push(found.ok_or_else(|| PackageError::NotInstalled {
                name: name.to_owned(),
                near: nearest(name, self.by_name.keys().map(String::as_str)).map(str::to_owned),
            })?);
        }
        let mut taken = HashSet::new();
        let mut notes = BTreeSet::new();
        while let Some(number) = ahead.pop() {
            if !taken.insert(number) {
                continue;
            }
            let package = &self.all[number];
            for any in &package.needs {
                match any.iter().find_map(|wanted| self.installed(wanted)) {
                    Some(found) => ahead.push(found),
                    None => {
                        let names: Vec<&str> = any.iter().map(|one| one.name.as_str()).collect();
                        let missing = names.join(" or ");
                        notes.insert(format!("{} needs {missing}, not installed", package.name));
                    }
                }
            }
        }
        let (mut files, mut config) = (BTreeSet::new(), BTreeMap::new());
        for number in &taken {
            let package = &self.all[*number];
            let mut own = BTreeSet::new();
            self.files(package, &mut own)?;
            for path in &own {
                let real = || self.root.join(path.strip_prefix("/").unwrap_or(path));
                let is_file = || fs::symlink_metadata(real()).is_ok_and(|meta| meta.is_file());
                if path.starts_with("/etc") && is_file() {
                    config.insert(path.clone(), package.name.clone());
                }
            }
            files.extend(own);
        }
        let of =
            |number: &usize| (self.all[*number].name.clone(), self.all[*number].version.clone());
        let mut packages: Vec<(String, String)> = taken.iter().map(of).collect();
        packages.sort();
        let links = alternatives::links(&self.root, &files);
        Ok(Closure {
            packages,
            files: files.into_iter().collect(),
            config,
            links,
            notes: notes.into_iter().collect(),
        })
    }

    /// A package that will do.
    fn installed(&self, wanted: &Wanted) -> Option<usize> {
        let fits = |version: &str| match &wanted.version {
            Some((relation, than)) => relation.holds(version::compare(version, than)),
            None => true,
        };
        let own = self.by_name.get(&wanted.name).into_iter().flatten();
        let mut own = own.filter(|number| fits(&self.all[**number].version));
        // A version is only met by a package that says which it provides.
        let others = self.provided.get(&wanted.name).into_iter().flatten();
        let mut others = others.filter(|(_, version)| match version {
            Some(version) => fits(version),
            None => wanted.version.is_none(),
        });
        own.next().copied().or_else(|| others.next().map(|(number, _)| *number))
    }

    /// What dpkg unpacked of a package, where it is now.
    fn files(&self, package: &Package, files: &mut BTreeSet<PathBuf>) -> Result<(), PackageError> {
        let folder = self.root.join(DATABASE).join("info");
        let Package { name, architecture, .. } = package;
        let qualified = folder.join(format!("{name}:{architecture}.list"));
        let plain = folder.join(format!("{name}.list"));
        let list = if qualified.exists() { qualified } else { plain };
        let failed = |source| PackageError::Database { path: list.clone(), source };
        let bytes = fs::read(&list).map_err(failed)?;
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"/")) {
            let path = Path::new(OsStr::from_bytes(line));
            let moved = self.diversions.get(path).filter(|(by, _)| by != name);
            let path = moved.map_or(path, |(_, to)| to.as_path());
            files.insert(if line == b"/." { PathBuf::from("/") } else { path.to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(status: &str, lists: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let info = root.path().join(DATABASE).join("info");
        fs::create_dir_all(&info).unwrap();
        fs::write(root.path().join(DATABASE).join("status"), status).unwrap();
        for (name, list) in lists {
            fs::write(info.join(name), list).unwrap();
        }
        root
    }

    const STATUS: &str = "\
Package: shell
Status: install ok installed
Architecture: amd64
Version: 5.2-1
Pre-Depends: libc (>= 2.36)
Depends: awk, editor | pager (<< 2), gone | also-gone

Package: libc
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 2.36-9

Package: mawk
Status: hold ok installed
Architecture: amd64
Version: 1.3
Provides: awk, text-tool (= 7)

Package: less
Status: install ok installed
Architecture: amd64
Version: 590
Provides: pager (= 1.0)

Package: editor
Status: deinstall ok config-files
Architecture: amd64
Version: 1
";

    const LISTS: [(&str, &str); 4] = [
        ("shell.list", "/.\n/bin\n/bin/sh\n"),
        ("libc:amd64.list", "/.\n/lib\n/lib/libc.so.6\n"),
        ("mawk.list", "/usr/bin/mawk\n"),
        ("less.list", "/usr/bin/less\n"),
    ];

    #[test]
    fn alternatives_provided_names_and_versions_are_understood() {
        let root = system(STATUS, &LISTS);
        let packages = Packages::read(root.path()).unwrap();
        let closure = packages.closure(["shell"]).unwrap();
        let names: Vec<&str> = closure.packages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["less", "libc", "mawk", "shell"]);
        assert_eq!(closure.notes, ["shell needs gone or also-gone, not installed"]);
        let files: Vec<_> = closure.files.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(
            files,
            ["/", "/bin", "/bin/sh", "/lib", "/lib/libc.so.6", "/usr/bin/less", "/usr/bin/mawk"]
        );
    }

    /// What a reader loses who takes the first alternative, knows no provided names, and looks for `perl:any`.
    #[test]
    fn what_is_needed_is_found_though_it_is_written_in_another_way() {
        let package = |name: &str, more: &str| {
            format!("Package: {name}\nStatus: install ok installed\nVersion: 1\n{more}\n\n")
        };
        let status = [
            package("tool", "Depends: perl:any, lsb-base, usrmerge | usr-is-merged"),
            package("perl", ""),
            package("sysvinit-utils", "Provides: lsb-base (= 11.1.0)"),
            package("usr-is-merged", ""),
        ]
        .concat();
        let names = ["tool", "perl", "sysvinit-utils", "usr-is-merged"];
        let lists = names.map(|name| (format!("{name}.list"), String::new()));
        let lists: Vec<(&str, &str)> =
            lists.iter().map(|(name, list)| (name.as_str(), list.as_str())).collect();
        let root = system(&status, &lists);
        let closure = Packages::read(root.path()).unwrap().closure(["tool"]).unwrap();
        let found: Vec<&str> = closure.packages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, ["perl", "sysvinit-utils", "tool", "usr-is-merged"]);
        assert!(closure.notes.is_empty(), "{:?}", closure.notes);
    }

    #[test]
    fn a_provided_name_has_a_version_only_where_its_package_says_so() {
        let root = system(STATUS, &LISTS);
        let packages = Packages::read(root.path()).unwrap();
        assert_eq!(packages.closure(["text-tool (>= 7)"]).unwrap().packages.len(), 1);
        for unmet in ["text-tool (>= 8)", "awk (>= 1)", "libc (<< 2)"] {
            assert!(packages.closure([unmet]).is_err(), "{unmet}");
        }
    }

    #[test]
    fn a_package_that_is_not_installed_is_named_with_one_that_is() {
        let root = system(STATUS, &LISTS);
        let packages = Packages::read(root.path()).unwrap();
        let error = packages.closure(["shel"]).unwrap_err().to_string();
        assert_eq!(error, "package shel is not installed; shell is");
        let error = packages.closure(["editor"]).unwrap_err().to_string();
        assert_eq!(error, "package editor is not installed");
    }

    #[test]
    fn a_diverted_file_is_found_where_it_was_moved_to() {
        let root = system(STATUS, &LISTS);
        let diversions = "/bin/sh\n/bin/sh.distrib\nother\n/usr/bin/mawk\n/x\nmawk\n";
        fs::write(root.path().join(DATABASE).join("diversions"), diversions).unwrap();
        let packages = Packages::read(root.path()).unwrap();
        let files = packages.closure(["shell"]).unwrap().files;
        assert!(files.contains(&PathBuf::from("/bin/sh.distrib")));
        assert!(files.contains(&PathBuf::from("/usr/bin/mawk")), "moved for mawk's own file");
    }

    #[test]
    fn a_system_without_dpkg_is_an_error_that_names_the_file() {
        let root = tempfile::tempdir().unwrap();
        let error = Packages::read(root.path()).unwrap_err().to_string();
        assert!(error.ends_with("var/lib/dpkg/status"), "{error}");
    }
}
