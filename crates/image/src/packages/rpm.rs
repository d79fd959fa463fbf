//! Packages of RPM, asked of the program `rpm`: the database's form differs from one distribution to the next, and the
//! program knows them all. Three questions, whatever is wanted: what is installed, who provides some files, and which
//! files are whose.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_model::scenario::nearest;

use super::{Closure, PackageError};

/// Where databases are, newer systems first.
const DATABASES: [&str; 2] = ["usr/lib/sysimage/rpm", "var/lib/rpm"];
/// What a database's folder has in it when there is one.
const FILES: [&str; 3] = ["rpmdb.sqlite", "Packages", "Packages.db"];
/// What separates fields, and items of a field: nothing of RPM's holds them.
const FIELD: char = '\u{1f}';
const ITEM: char = '\u{1e}';
/// The flag of files that hold configuration.
const IS_CONFIG: u64 = 1;
/// The flag of files that are only owned, never installed.
const IS_GHOST: u64 = 1 << 6;
/// So many names fit on a command line.
const AT_ONCE: usize = 500;

/// The installed packages of a system that has RPM.
#[derive(Debug)]
pub struct Rpm {
    root: PathBuf,
    database: PathBuf,
    all: Vec<Package>,
    /// Packages by everything they provide, their names among it.
    provided: HashMap<String, Vec<usize>>,
}

#[derive(Debug)]
struct Package {
    name: String,
    /// `NAME-VERSION-RELEASE.ARCH`, by which it is asked for.
    full: String,
    version: String,
    needs: Vec<String>,
}

impl Rpm {
    /// The folder of the system's database, if it has one.
    pub fn database(root: &Path) -> Option<PathBuf> {
        let folders = DATABASES.map(|folder| root.join(folder)).into_iter();
        folders.into_iter().find(|folder| FILES.iter().any(|file| folder.join(file).is_file()))
    }

    /// Asks what is installed in the system below a directory; `/` for the host's own.
    pub fn read(root: &Path) -> Result<Rpm, PackageError> {
        let database = Rpm::database(root).ok_or_else(|| PackageError::Database {
            path: root.join(DATABASES[0]),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let mut rpm =
            Rpm { root: root.to_owned(), database, all: Vec::new(), provided: HashMap::new() };
        let format = format!(
            "%{{NAME}}{FIELD}%{{NAME}}-%{{VERSION}}-%{{RELEASE}}.%{{ARCH}}{FIELD}%{{EVR}}{FIELD}\
             [%{{REQUIRENAME}}{ITEM}]{FIELD}[%{{PROVIDENAME}}{ITEM}]\\n"
        );
        let said = rpm.ask(&["-qa", "--queryformat", &format], false)?;
        for line in said.lines() {
            let fields: Vec<&str> = line.split(FIELD).collect();
            let [name, full, version, needs, provides] = fields[..] else { continue };
            // Keys that signatures are checked with are packages, too.
            if name == "gpg-pubkey" {
                continue;
            }
            let items = |field: &str| {
                let items = field.split(ITEM).filter(|item| !item.is_empty() && *item != "(none)");
                items.map(str::to_owned).collect::<BTreeSet<String>>()
            };
            let number = rpm.all.len();
            let mut names = items(provides);
            names.insert(name.to_owned());
            for name in names {
                rpm.provided.entry(name).or_default().push(number);
            }
            // What begins so is a feature of rpm itself.
            let needs = items(needs).into_iter().filter(|need| !need.starts_with("rpmlib("));
            rpm.all.push(Package {
                name: name.to_owned(),
                full: full.to_owned(),
                version: version.to_owned(),
                needs: needs.collect(),
            });
        }
        Ok(rpm)
    }

    /// Whether a package of this name, or one that provides it, is installed.
    pub fn has(&self, name: &str) -> bool {
        self.provided.contains_key(name)
    }

    /// What changes whenever packages do.
    pub fn databases(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = FILES.iter().map(|file| self.database.join(file)).collect();
        // SQLite may keep the latest changes beside the database.
        files.push(self.database.join("rpmdb.sqlite-wal"));
        files
    }

    /// The packages with these names, what they depend on, and the files of all. Versions are not compared: what is
    /// installed fits, or rpm would not have installed it. Rich dependencies, which begin with a parenthesis, are
    /// left out with a note.
    pub fn closure<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Closure, PackageError> {
        let mut ahead = Vec::new();
        for name in names {
            let found = self.provided.get(name).and_then(|found| self.best(name, found));
            ahead.push(found.ok_or_else(|| {
                PackageError::NotInstalled {
                    name: name.to_owned(),
                    near: nearest(name, self.all.iter().map(|package| package.name.as_str()))
                        .map(str::to_owned),
                }
            })?);
        }
        let mut taken = HashSet::new();
        let mut notes = BTreeSet::new();
        let mut owners: HashMap<String, Option<usize>> = HashMap::new();
        while !ahead.is_empty() {
            let mut files: BTreeMap<String, String> = BTreeMap::new();
            while let Some(number) = ahead.pop() {
                if !taken.insert(number) {
                    continue;
                }
                let package = &self.all[number];
                for need in &package.needs {
                    if let Some(found) = self.provided.get(need) {
                        ahead.extend(self.best(need, found));
                    } else if need.starts_with('/') {
                        files.insert(need.clone(), package.name.clone());
                    } else {
                        notes.insert(format!("{} needs {need}, not installed", package.name));
                    }
                }
            }
            // A path that nobody provides by name belongs to whoever has that file.
            let unknown: Vec<&str> = files
                .keys()
                .map(String::as_str)
                .filter(|file| !owners.contains_key(*file))
                .collect();
            let found = self.owners(&unknown)?;
            for (file, by) in &files {
                let owner = match owners.get(file) {
                    Some(owner) => *owner,
                    None => found.get(file.as_str()).copied(),
                };
                owners.insert(file.clone(), owner);
                match owner {
                    Some(owner) => ahead.push(owner),
                    None => drop(notes.insert(format!("{by} needs {file}, not installed"))),
                }
            }
        }
        let taken: BTreeSet<usize> = taken.into_iter().collect();
        let mut closure = Closure { notes: notes.into_iter().collect(), ..self.files(&taken)? };
        let of =
            |number: &usize| (self.all[*number].name.clone(), self.all[*number].version.clone());
        closure.packages = taken.iter().map(of).collect();
        closure.packages.sort();
        Ok(closure)
    }

    /// Of packages that provide something, the one with that name, else the first.
    fn best(&self, name: &str, found: &[usize]) -> Option<usize> {
        let own = found.iter().find(|number| self.all[**number].name == name);
        own.or(found.first()).copied()
    }

    /// Who has which file.
    fn owners<'f>(&self, files: &[&'f str]) -> Result<HashMap<&'f str, usize>, PackageError> {
        let by_full: HashMap<&str, usize> = self
            .all
            .iter()
            .enumerate()
            .map(|(number, package)| (package.full.as_str(), number))
            .collect();
        let mut owners = HashMap::new();
        for file in files {
            let format = "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}\\n";
            // The database knows; what lies at that path here does not matter.
            let said = self.ask(&["-q", "--whatprovides", "--queryformat", format, file], true)?;
            let owner = said.lines().find_map(|line| by_full.get(line).copied());
            owners.extend(owner.map(|owner| (*file, owner)));
        }
        Ok(owners)
    }

    fn files(&self, taken: &BTreeSet<usize>) -> Result<Closure, PackageError> {
        let (mut files, mut config) = (BTreeSet::new(), BTreeMap::new());
        let names: Vec<&str> = taken.iter().map(|number| self.all[*number].full.as_str()).collect();
        let format = format!("[%{{FILEFLAGS}}{FIELD}%{{=NAME}}{FIELD}%{{FILENAMES}}\\n]");
        for names in names.chunks(AT_ONCE) {
            let mut arguments = vec!["-q", "--queryformat", &format];
            arguments.extend(names);
            for line in self.ask(&arguments, false)?.lines() {
                let fields: Vec<&str> = line.split(FIELD).collect();
                let [flags, name, path] = fields[..] else { continue };
                let flags: u64 = flags.parse().unwrap_or(0);
                if !path.starts_with('/') || flags & IS_GHOST != 0 {
                    continue;
                }
                if flags & IS_CONFIG != 0 {
                    config.insert(PathBuf::from(path), name.to_owned());
                }
                files.insert(PathBuf::from(path));
            }
        }
        Ok(Closure { files: files.into_iter().collect(), config, ..Closure::default() })
    }

    /// What rpm says. With `may_fail`, a status of failure says only that something is not there.
    fn ask(&self, arguments: &[&str], may_fail: bool) -> Result<String, PackageError> {
        let failed = |said: String| PackageError::Program { program: "rpm".to_owned(), said };
        let mut command = Command::new("rpm");
        if self.root != Path::new("/") {
            // Of another system: its folder need not be where this one's rpm would look.
            let database = std::path::absolute(&self.database);
            let database = database.map_err(|error| failed(error.to_string()))?;
            command.arg("--dbpath").arg(database);
        }
        let output = command
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() && !may_fail {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rev().find(|line| !line.trim().is_empty());
            return Err(failed(last.unwrap_or("it did not say why").to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests;
