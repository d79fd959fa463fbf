//! Looking after saved machines: listing and removing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::entry::{About, Entry, MAX_ENTRY};
use super::lock::Lock;
use super::{WarmStore, key};

/// What may go wrong with saved machines.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The folder made trouble.
    #[error("cannot {act} the saved machines in {}", path.display())]
    Folder {
        /// What was tried.
        act: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No machine, or more than one, has a key that starts so.
    #[error(
        "{found} saved machines have a key that starts with {wanted:?}; `kiln warm ls` lists all keys"
    )]
    NoSuch {
        /// What was asked for.
        wanted: String,
        /// How many there are.
        found: usize,
    },
}

/// One saved machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedMachine {
    /// Its key, in hexadecimal.
    pub key: String,
    /// When it was last restored, or saved.
    pub used: SystemTime,
    /// What it is; none where that cannot be read any more.
    pub about: Option<About>,
    /// Whether it can still be restored: it was saved since this host was booted, and is readable.
    pub usable: bool,
}

/// What to keep when pruning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneLimits {
    /// Machines not restored for longer than this are removed.
    pub max_age: Option<Duration>,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// What pruning removed, or would remove.
pub type Pruned = Vec<SavedMachine>;

impl WarmStore {
    fn failed(&self, act: &'static str) -> impl Fn(io::Error) -> WarmError {
        let path = self.folder.clone();
        move |source| WarmError::Folder { act, path: path.clone(), source }
    }

    /// All saved machines, the latest used first.
    ///
    /// # Errors
    /// [`WarmError::Folder`].
    pub fn list(&self) -> Result<Vec<SavedMachine>, WarmError> {
        self.all().map_err(self.failed("list"))
    }

    fn all(&self) -> io::Result<Vec<SavedMachine>> {
        let this_boot = key::this_boot()?;
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(key) = name.strip_suffix(".machine") else { continue };
            // Gone since it was listed.
            let Ok(file) = File::open(&path) else { continue };
            let used = file.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let mut bytes = Vec::new();
            file.take(MAX_ENTRY).read_to_end(&mut bytes)?;
            let about = Entry::decode(&bytes).ok().map(|entry| entry.about);
            let usable = about.as_ref().is_some_and(|about| about.boot == this_boot);
            found.push(SavedMachine { key: key.to_owned(), used, about, usable });
        }
        found.sort_by(|one, other| other.used.cmp(&one.used).then(one.key.cmp(&other.key)));
        Ok(found)
    }

    /// Removes the one whose key starts with `prefix`. Machines that run from it go on.
    ///
    /// # Errors
    /// [`WarmError`].
    pub fn remove(&self, prefix: &str) -> Result<SavedMachine, WarmError> {
        let mut found = self.list()?;
        found.retain(|machine| machine.key.starts_with(prefix));
        match (found.pop(), found.len()) {
            (Some(machine), 0) if !prefix.is_empty() => {
                self.forget(&machine.key).map_err(self.failed("remove"))?;
                Ok(machine)
            }
            (last, others) => Err(WarmError::NoSuch {
                wanted: prefix.chars().take(80).collect(),
                found: others + usize::from(last.is_some()),
            }),
        }
    }

    /// Removes what was not used for long, what cannot be restored any more, and memory that nothing leads to.
    ///
    /// # Errors
    /// [`WarmError::Folder`].
    pub fn prune(&self, limits: &PruneLimits) -> Result<Pruned, WarmError> {
        let now = SystemTime::now();
        let mut pruned = Vec::new();
        for machine in self.list()? {
            let age = now.duration_since(machine.used).unwrap_or_default();
            if machine.usable && limits.max_age.is_none_or(|limit| age <= limit) {
                continue;
            }
            if !limits.dry_run {
                self.forget(&machine.key).map_err(self.failed("remove"))?;
            }
            pruned.push(machine);
        }
        if !limits.dry_run {
            self.sweep().map_err(self.failed("tidy up"))?;
        }
        Ok(pruned)
    }

    /// All but the latest, and what another boot of this host left.
    pub(super) fn forget_old(&self, most: usize) -> io::Result<Vec<About>> {
        let mut gone = Vec::new();
        for (number, machine) in self.all()?.into_iter().enumerate() {
            if number >= most || !machine.usable {
                self.forget(&machine.key)?;
                gone.extend(machine.about);
            }
        }
        Ok(gone)
    }

    /// Memory without its machine, and locks of nobody.
    fn sweep(&self) -> io::Result<()> {
        for folder in [self.folder.clone(), self.folder.join("locks")] {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let path = entry?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let is_lock = folder != self.folder;
                let key = if is_lock { Some(name) } else { name.strip_suffix(".memory") };
                let Some(key) = key.filter(|key| !self.path(key, "machine").exists()) else {
                    continue;
                };
                // Whoever saves one has named its memory a moment before the rest.
                if let Some(_lock) = Lock::try_now(&self.lock_path(key))? {
                    if !is_lock {
                        fs::remove_file(&path)?;
                    }
                    let _ = fs::remove_file(self.lock_path(key));
                }
            }
        }
        Ok(())
    }
}
