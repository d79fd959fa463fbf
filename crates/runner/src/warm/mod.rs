//! Machines that were saved when they were ready, for others to start from.
//!
//! ```text
//! KEY.machine   what it is, and its devices; its modification time is when it was last restored
//! KEY.memory    its memory, without what is zero
//! locks/KEY     held by the one who saves it
//! ```
//!
//! The key is a digest of all that went in, the boot of this host included, so a machine is found where booting would come
//! to the same, and is saved without a sync. Both files get their names when they are whole, so that whoever is killed
//! leaves none. Anything here may be deleted at any time, also while machines run from it: they have the file open.

mod entry;
mod key;
mod lock;
mod upkeep;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kiln_model::job::{JobSpec, Stage};
use kiln_vm::VmSpec;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, statvfs};

pub use entry::About;
use entry::{Entry, MAX_ENTRY, MemoryFile};
use lock::Lock;
pub use upkeep::{PruneLimits, Pruned, SavedMachine, WarmError};

/// While another process saves the machine that is wanted, it is looked for this often.
const GLANCE: Duration = Duration::from_millis(20);
/// What must stay free on the file system: a full one hurts more than a boot.
const SPARE: u64 = 1 << 30;
/// So many saved machines stay, the latest.
const MOST: usize = 12;

/// A folder of saved machines.
#[derive(Clone, Debug)]
pub struct WarmStore {
    folder: PathBuf,
}

/// A saved machine, to start from.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) memory: File,
    pub(crate) state: Vec<u8>,
    pub(crate) about: About,
}

/// What there is under a key.
#[derive(Debug)]
pub(crate) enum Look {
    /// A machine to start from.
    Found(Found),
    /// None; whoever looked may save one.
    Save(Saving),
    /// None, and nobody here can save one.
    Boot,
}

/// The right to save a machine.
#[derive(Debug)]
pub(crate) struct Saving {
    store: WarmStore,
    key: String,
    _lock: Lock,
}

impl WarmStore {
    /// The store in a folder, which need not be there yet.
    pub fn at(folder: &Path) -> WarmStore {
        WarmStore { folder: folder.to_owned() }
    }

    /// The key of a job's machine at the moment at which it is ready.
    pub(crate) fn key(job: &JobSpec, vm: &VmSpec, bases: &[String]) -> io::Result<String> {
        key::of_ready(job, vm, bases)
    }

    /// The key of that machine at the moment at which a stage has prepared it.
    pub(crate) fn prepared_key(ready: &str, job: &JobSpec, prepare: &Stage) -> String {
        key::of_prepared(ready, job, prepare)
    }

    fn path(&self, key: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{key}.{kind}"))
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.folder.join("locks").join(key)
    }

    /// Finds a saved machine. While another process saves it, waits for that as long as a boot may take. What is damaged
    /// is removed, and `say` is told.
    pub(crate) fn look(
        &self,
        key: &str,
        patience: Duration,
        say: &mut dyn FnMut(String),
    ) -> io::Result<Look> {
        let deadline = Instant::now() + patience;
        let mut waited = false;
        loop {
            if let Some(found) = self.find(key, say)? {
                return Ok(Look::Found(found));
            }
            if waited && Instant::now() >= deadline {
                return Ok(Look::Boot);
            }
            self.make_folders()?;
            match Lock::try_now(&self.lock_path(key))? {
                // Whoever had it did not succeed; to try one after the other would make everybody wait.
                Some(_) if waited => {
                    let found = self.find(key, say)?;
                    return Ok(found.map_or(Look::Boot, Look::Found));
                }
                Some(lock) => {
                    // It may have been saved between looking and locking.
                    if let Some(found) = self.find(key, say)? {
                        return Ok(Look::Found(found));
                    }
                    let saving = Saving { store: self.clone(), key: key.to_owned(), _lock: lock };
                    return Ok(Look::Save(saving));
                }
                None => waited = true,
            }
            thread::sleep(GLANCE);
        }
    }

    fn find(&self, key: &str, say: &mut dyn FnMut(String)) -> io::Result<Option<Found>> {
        let path = self.path(key, "machine");
        let damaged = match self.read(key) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        say(format!("the saved machine {} is not used: {damaged}", path.display()));
        self.forget(key)?;
        Ok(None)
    }

    /// The machine of that key, whole and unchanged.
    fn read(&self, key: &str) -> io::Result<Option<Found>> {
        let mut file = match File::open(self.path(key, "machine")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.by_ref().take(MAX_ENTRY).read_to_end(&mut bytes)?;
        let entry = Entry::decode(&bytes).map_err(io::Error::other)?;
        // QEMU opens the memory for writing, though it never writes to it.
        let memory = File::options().read(true).write(true).open(self.path(key, "memory"))?;
        if MemoryFile::of(&memory.metadata()?) != entry.memory {
            return Err(io::Error::other("its memory was changed since it was saved"));
        }
        // Of use to `prune` alone.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(Found { memory, state: entry.state, about: entry.about }))
    }

    /// Removes what is there under a key, the part that leads to the other first.
    pub(crate) fn forget(&self, key: &str) -> io::Result<()> {
        for kind in ["machine", "memory"] {
            match fs::remove_file(self.path(key, kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A file for nobody else, without a name.
    fn nameless(&self) -> io::Result<File> {
        let (flags, mode) =
            (OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        Ok(rustix::fs::open(&self.folder, flags, mode)?.into())
    }

    fn make_folders(&self) -> io::Result<()> {
        // The memory of a guest is its user's own.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder.join("locks"))
    }
}

impl Saving {
    /// An empty file for the machine's memory. It has no name, so it goes with whoever has it open.
    ///
    /// # Errors
    /// When the file system has no room to spare, or cannot make such a file.
    pub(crate) fn memory(&self, at_most: u64) -> io::Result<File> {
        let space = statvfs(&self.store.folder)?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < at_most.saturating_add(SPARE) {
            return Err(io::Error::other(format!(
                "{} has too little room; `kiln warm prune` makes some",
                self.store.folder.display()
            )));
        }
        self.store.nameless()
    }

    /// What the names of its disks in the pool begin with, where they are kept.
    pub(crate) fn disks(&self) -> String {
        format!("warm:{}:", &self.key[..self.key.len().min(32)])
    }

    /// Gives a saved machine its name. From here on it is found. Returns what was removed to make room for it.
    pub(crate) fn publish(
        self,
        memory: &File,
        state: Vec<u8>,
        mut about: About,
    ) -> io::Result<Vec<About>> {
        use std::os::unix::fs::MetadataExt as _;
        let (store, key) = (&self.store, &self.key);
        let kept = memory.metadata()?;
        about.bytes = kept.blocks() * 512 + state.len() as u64;
        about.boot = key::this_boot()?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        about.saved_at = since.as_secs();
        let entry = Entry { about, memory: MemoryFile::of(&kept), state };
        store.forget(key)?;
        name(memory, &store.path(key, "memory"))?;
        let machine = store.nameless()?;
        io::Write::write_all(&mut &machine, &entry.encode())?;
        name(&machine, &store.path(key, "machine"))?;
        // What is in the way of removing an old one is told by whoever removes it by hand.
        Ok(store.forget_old(MOST).unwrap_or_default())
    }
}

/// Gives a file without a name one. A link changes neither inode nor modification time.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let ours = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, ours, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests;
