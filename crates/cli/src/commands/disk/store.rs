//! The pool a command works on: found, made when the first disk needs it, and what its refusals mean.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, FileDevice};
use kiln_model::scenario::nearest;
use kiln_parallax::{Disk, Pool, PoolError, PoolOptions};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::terminal;

/// A pool that is open.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) pool: Pool,
    pub(crate) path: PathBuf,
    /// Of a pool that is repaired, which does not hold it itself.
    _lock: Option<File>,
}

/// `NAME` or `NAME@SNAP`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<'a> {
    pub(crate) disk: &'a str,
    pub(crate) snapshot: Option<&'a str>,
}

impl<'a> Name<'a> {
    pub(crate) fn of(text: &'a str) -> Name<'a> {
        match text.split_once('@') {
            Some((disk, snapshot)) => Name { disk, snapshot: Some(snapshot) },
            None => Name { disk: text, snapshot: None },
        }
    }

    /// A disk's name where no snapshot can be meant.
    pub(crate) fn disk(text: &'a str) -> Result<&'a str, Failure> {
        match Name::of(text) {
            Name { disk, snapshot: None } => Ok(disk),
            Name { disk, .. } => {
                Err(Failure::new(Exit::Usage, format!("{text:?} is a snapshot, not a disk"))
                    .hint(format!("the disk is {disk}; kiln disk clone {text} NEW makes another")))
            }
        }
    }

    /// Disk and snapshot where a snapshot is meant.
    pub(crate) fn snapshot(text: &'a str) -> Result<(&'a str, &'a str), Failure> {
        match Name::of(text) {
            Name { disk, snapshot: Some(snapshot) } => Ok((disk, snapshot)),
            Name { disk, snapshot: None } => {
                let text = format!("{text:?} is a disk, not a snapshot NAME@SNAP");
                Err(Failure::new(Exit::Usage, text).hint(format!("kiln disk snaps {disk}")))
            }
        }
    }
}

/// Where the pool is.
pub(crate) fn path(session: &Session, chosen: Option<&Path>) -> PathBuf {
    match chosen {
        Some(path) => session.folder.join(path),
        None => session.home.data().join("disks.pool"),
    }
}

impl Store {
    /// Opens the pool.
    pub(crate) fn open(path: &Path) -> Result<Store, Failure> {
        if !path.exists() {
            let text = format!("there is no pool at {} yet", path.display());
            return Err(Failure::new(Exit::Usage, text).hint(
                "kiln disk create NAME --size 10G, or kiln disk import FILE NAME, makes it",
            ));
        }
        match Pool::open_file(path, &PoolOptions::default()) {
            Ok(pool) => Ok(Store { pool, path: path.to_owned(), _lock: None }),
            Err(error) => Err(refused(path, error)),
        }
    }

    /// Opens the pool, or makes one and says so.
    pub(crate) fn open_or_create(path: &Path) -> Result<Store, Failure> {
        if path.exists() {
            return Store::open(path);
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        let tried = || format!("cannot make the pool {}", path.display());
        std::fs::create_dir_all(folder).tried(tried).exits(Exit::Setup)?;
        let size = size_in(folder).tried(tried).exits(Exit::Setup)?;
        // Beside its place, so that nobody opens a pool that is half made; what is left there goes by itself.
        let making = tempfile::Builder::new().prefix(".disks-").tempdir_in(folder);
        let making = making.tried(tried).exits(Exit::Setup)?;
        let file = making.path().join("pool");
        let made = Pool::create_file(&file, size, &PoolOptions::default())
            .map_err(|error| refused(path, error))
            .and_then(|pool| {
                std::fs::hard_link(&file, path).tried(tried).exits(Exit::Setup)?;
                Ok(pool)
            });
        let pool = match made {
            // Somebody else was quicker.
            Err(_) if path.exists() => return Store::open(path),
            made => made?,
        };
        terminal::say(&format!(
            "made the pool {}: a sparse file that can grow to {size}",
            path.display()
        ));
        Ok(Store { pool, path: path.to_owned(), _lock: None })
    }

    /// Opens a pool whose free map or log is damaged, and mends it.
    pub(crate) fn repair(path: &Path) -> Result<Store, Failure> {
        let tried = || format!("cannot open pool {}", path.display());
        let lock = File::open(path).tried(tried).exits(Exit::Usage)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(refused(path, PoolError::Busy { path: path.to_owned() }));
            }
            Err(errno) => return Err(Failure::from(errno)).tried(tried).exits(Exit::Setup),
        }
        FileDevice::open(path, false)
            .map_err(PoolError::from)
            .and_then(|device| Pool::repair(Arc::new(device), &PoolOptions::default()))
            .map(|pool| Store { pool, path: path.to_owned(), _lock: Some(lock) })
            .map_err(|error| refused(path, error))
    }

    /// What a refusal means for the process, with the name that was probably meant.
    pub(crate) fn refused(&self, error: PoolError) -> Failure {
        let near = match &error {
            PoolError::NoDisk { name } => {
                let disks = self.pool.disks();
                nearest(name, disks.iter().map(|disk| disk.name.as_str())).map(str::to_owned)
            }
            PoolError::NoSnapshot { disk, name } => {
                let all = self.pool.snapshots(disk).unwrap_or_default();
                let near = nearest(name, all.iter().map(|snapshot| snapshot.name.as_str()));
                near.map(|near| format!("{disk}@{near}"))
            }
            _ => None,
        };
        let failure = refused(&self.path, error);
        match near {
            Some(near) => Failure {
                hints: vec![format!("did you mean {near}? {}", failure.hints.join("; "))],
                ..failure
            },
            None => failure,
        }
    }

    /// A disk, or a snapshot that can only be read.
    pub(crate) fn device(&self, text: &str) -> Result<Disk, Failure> {
        let opened = match Name::of(text) {
            Name { disk, snapshot: Some(snapshot) } => self.pool.open_snapshot(disk, snapshot),
            Name { disk, snapshot: None } => self.pool.open_disk(disk),
        };
        opened.map_err(|error| self.refused(error))
    }

    /// The same, shared.
    pub(crate) fn shared(&self, text: &str) -> Result<Arc<dyn BlockDevice>, Failure> {
        Ok(Arc::new(self.device(text)?))
    }

    /// Stores everything in its place: the next opening is quick, and sees it.
    pub(crate) fn close(&self) -> Result<(), Failure> {
        self.pool.checkpoint().map_err(|error| self.refused(error))
    }
}

/// How large a pool may become there: what the file system has free, at least 1G, at most 256G.
fn size_in(folder: &Path) -> std::io::Result<ByteLen> {
    let space = rustix::fs::statvfs(folder)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize) >> 30;
    Ok(ByteLen::gib(free.clamp(1, 256)))
}

/// What a refusal means for the process, and what to do about it.
fn refused(path: &Path, error: PoolError) -> Failure {
    let (exit, hint) = match &error {
        PoolError::NoDisk { .. } => (Exit::Usage, "kiln disk ls".to_owned()),
        PoolError::NoSnapshot { disk, .. } => (Exit::Usage, format!("kiln disk snaps {disk}")),
        PoolError::Exists { .. } => (Exit::Usage, "kiln disk ls".to_owned()),
        PoolError::HasSnapshots { name, .. } => {
            (Exit::Usage, format!("kiln disk rm {name} --snapshots removes them too"))
        }
        PoolError::BadName { .. } | PoolError::BadSize { .. } | PoolError::InUse { .. } => {
            return Failure::from(error).with_exit(Exit::Usage);
        }
        PoolError::Busy { .. } => {
            let hint = match holder(path) {
                Some(holder) => format!("{holder} holds it: end it, or wait until it is done"),
                None => "end what holds it, or wait until it is done".to_owned(),
            };
            (Exit::Usage, hint)
        }
        PoolError::NotAPool => {
            (Exit::Usage, "--pool takes a pool that `kiln disk create` made".to_owned())
        }
        PoolError::File { .. } | PoolError::OpenFile(_) | PoolError::TooSmall { .. } => {
            (Exit::Setup, "kiln disk ls --pool PATH looks at another pool".to_owned())
        }
        PoolError::TooNew { .. } | PoolError::UnknownFeatures { .. } => {
            return Failure::from(error).with_exit(Exit::Setup);
        }
        PoolError::Damaged { .. } | PoolError::FreeMap { .. } => {
            (Exit::Unsound, "kiln disk repair".to_owned())
        }
        PoolError::NoSpace => (Exit::InfrastructureBroke, "kiln disk gc".to_owned()),
        _ => return Failure::from(error).with_exit(Exit::InfrastructureBroke),
    };
    Failure::from(error).with_exit(exit).hint(hint)
}

/// The process that holds the pool's lock, as far as this one may see it.
fn holder(path: &Path) -> Option<String> {
    let pool = std::fs::metadata(path).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF`. The device there is the lower one on an overlay, so the
    // open files of the process decide.
    let pids = locks.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (kind, pid, file) = (words.next()?, words.nth(2)?, words.next()?);
        let inode: u64 = file.rsplit(':').next()?.parse().ok()?;
        (kind == "FLOCK" && inode == pool.ino()).then(|| pid.parse::<u32>().ok())?
    });
    let same = |file: std::fs::Metadata| (file.dev(), file.ino()) == (pool.dev(), pool.ino());
    let holds = |pid: &u32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|file| std::fs::metadata(file.path()).is_ok_and(same))
    };
    let pid = pids.into_iter().find(holds)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({})", name.trim()))
}
