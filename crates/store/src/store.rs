//! [`Store`]: a pool for whoever wants something of it, with or without an owner.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_parallax::{Pool, PoolError, PoolOptions};

use crate::connection::Connection;
use crate::error::StoreError;
use crate::house::{Guest, House};
use crate::layered::Layers;
use crate::lease::Lease;
use crate::owner::{Readiness, real};
use crate::reply::Reply;
use crate::request::{Progress, Request, Serve, Stop};

/// How long a pool may stay locked after its owner was asked to leave.
const LEAVING: Duration = Duration::from_secs(30);

/// How an owner is started, and how long is waited for the pool.
#[derive(Debug, Clone)]
pub struct Start {
    command: Vec<OsString>,
    log: Option<PathBuf>,
    patience: Duration,
    layers: Layers,
}

impl Start {
    /// The program that owns a pool, and its first arguments; `--pool PATH` follows.
    pub fn new<W: Into<OsString>>(command: impl IntoIterator<Item = W>) -> Start {
        Start {
            command: command.into_iter().map(Into::into).collect(),
            log: None,
            patience: Duration::from_secs(30),
            layers: Layers::default(),
        }
    }

    /// What opens the layers of bases where this process opens the pool itself.
    #[must_use]
    pub fn layers(mut self, layers: Layers) -> Start {
        self.layers = layers;
        self
    }

    /// Where its complaints go; by default nowhere.
    #[must_use]
    pub fn log(mut self, path: PathBuf) -> Start {
        self.log = Some(path);
        self
    }

    /// How long is waited while other processes have the pool open.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Start {
        self.patience = patience;
        self
    }
}

/// A pool that can be asked.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// This process has it open.
    Inside(Arc<House>),
    /// Its owner is asked, one request after the other.
    Owner(Mutex<Connection>),
}

impl Store {
    /// Speaks to the pool's owner if it has one, and opens the pool itself if not.
    pub fn open(path: &Path, start: &Start) -> Result<Store, StoreError> {
        let path = real(path)?;
        let deadline = Instant::now() + start.patience;
        let mut pause = Duration::from_millis(2);
        loop {
            if let Some(store) = Store::connected(&path)? {
                return Ok(store);
            }
            match House::open(&path, 0, &start.layers) {
                // What a killed owner left is another owner's to look after, for it takes time.
                Ok(house) if house.has_orphans() => {
                    drop(house);
                    return Store::owner(&path, start);
                }
                Ok(house) => return Ok(Store { path, way: Way::Inside(Arc::new(house)) }),
                Err(PoolError::Busy { .. }) if Instant::now() > deadline => {
                    let holder = holder(&path);
                    return Err(StoreError::Busy { path, holder });
                }
                Err(PoolError::Busy { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Speaks to the pool's owner, which is started if there is none.
    pub fn owner(path: &Path, start: &Start) -> Result<Store, StoreError> {
        let path = real(path)?;
        let deadline = Instant::now() + start.patience;
        loop {
            if let Some(store) = Store::connected(&path)? {
                return Ok(store);
            }
            if Instant::now() > deadline {
                let holder = holder(&path);
                return Err(StoreError::Busy { path, holder });
            }
            spawn(&path, start)?;
        }
    }

    /// Speaks to the pool's owner; nothing if there is none.
    pub fn connected(path: &Path) -> Result<Option<Store>, StoreError> {
        let path = real(path)?;
        let Some(connection) = Connection::open(&path)? else { return Ok(None) };
        let understood = connection.understood()?;
        Ok(understood.map(|it| Store { path, way: Way::Owner(Mutex::new(it)) }))
    }

    /// Makes a pool there, unless there is one; says how large a new one can grow.
    pub fn make(path: &Path) -> Result<Option<ByteLen>, StoreError> {
        if path.exists() {
            return Ok(None);
        }
        let failed =
            |source| StoreError::Io { act: format!("make the pool {}", path.display()), source };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let size = size_in(folder).map_err(failed)?;
        // Beside its place, so that nobody opens a pool that is half made.
        let making = Making::beside(folder).map_err(failed)?;
        let file = making.0.join("pool");
        drop(Pool::create_file(&file, size, &PoolOptions::default())?);
        match std::fs::hard_link(&file, path) {
            Ok(()) => Ok(Some(size)),
            // Somebody else was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Opens a pool whose free map or log is damaged, and mends it. An owner that nobody needs leaves for it.
    pub fn repair(path: &Path, layers: &Layers) -> Result<Store, StoreError> {
        let path = real(path)?;
        let deadline = Instant::now() + LEAVING;
        loop {
            Store::retire(&path)?;
            match House::repair(&path, layers) {
                Ok(house) => return Ok(Store { path, way: Way::Inside(Arc::new(house)) }),
                // Somebody was quicker.
                Err(PoolError::Busy { .. }) if Instant::now() < deadline => {}
                Err(PoolError::Busy { .. }) => {
                    let holder = holder(&path);
                    return Err(StoreError::Busy { path, holder });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What [`repair`](Store::repair) had to leave out, a sentence each.
    pub fn losses(&self) -> &[String] {
        match &self.way {
            Way::Inside(house) => house.pool.losses(),
            Way::Owner(_) => &[],
        }
    }

    /// Makes the pool's owner leave, unless somebody needs it, and waits until it has left; false if there was none.
    pub fn retire(path: &Path) -> Result<bool, StoreError> {
        let path = real(path)?;
        let deadline = Instant::now() + LEAVING;
        let mut was_there = false;
        loop {
            if let Some(connection) = Connection::open(&path)? {
                let gone = connection.watch();
                connection.ask(&Request::Leave, &[], &mut |_| {}, &Stop::new())?;
                drop(connection);
                was_there = true;
                if let Ok(gone) = gone {
                    let _ = gone.wait();
                }
            }
            // The lock is the last thing an owner lets go of: one that hangs up already may have it yet, and so may one
            // that is about to listen.
            if !is_locked(&path) || Instant::now() > deadline {
                return Ok(was_there);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The pool's path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether another process has the pool open, and is asked.
    pub fn is_owned(&self) -> bool {
        matches!(self.way, Way::Owner(_))
    }

    /// Asks something short that comes without files.
    pub fn ask(&self, request: Request) -> Result<Reply, StoreError> {
        self.ask_with(request, Vec::new(), &mut |_| {}, &Stop::new())
    }

    /// Asks. Once stopped, a store is of no further use.
    pub fn ask_with(
        &self,
        request: Request,
        files: Vec<OwnedFd>,
        on_progress: &mut dyn FnMut(Progress),
        stop: &Stop,
    ) -> Result<Reply, StoreError> {
        match &self.way {
            Way::Inside(house) => {
                let mut guest = Guest::new(Arc::clone(house), std::process::id());
                guest.handle(request, files, on_progress, stop)
            }
            Way::Owner(connection) => {
                let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
                let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
                connection.ask(&request, &files, on_progress, stop)
            }
        }
    }

    /// A lease that holds nothing yet.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        match &self.way {
            Way::Inside(house) => Ok(Lease::inside(house)),
            // This store's own connection keeps the owner there.
            Way::Owner(_) => match Connection::open(&self.path)? {
                Some(connection) => Ok(Lease::of(connection)),
                None => Err(StoreError::Gone {
                    path: self.path.clone(),
                    source: io::ErrorKind::ConnectionRefused.into(),
                }),
            },
        }
    }

    /// Serves disks for as long as the lease lasts.
    pub fn serve(&self, serve: &Serve) -> Result<Lease, StoreError> {
        let mut lease = self.lease()?;
        lease.serve(serve)?;
        Ok(lease)
    }

    /// Makes a disk for as long as the lease lasts: see [`Lease::clone_temporary`].
    pub fn clone_temporary(
        &self,
        from: Option<&str>,
        size: u64,
        name: &str,
    ) -> Result<Lease, StoreError> {
        let mut lease = self.lease()?;
        lease.clone_temporary(from, size, name)?;
        Ok(lease)
    }
}

/// Starts an owner and waits until it is ready, or another one is.
fn spawn(pool: &Path, start: &Start) -> Result<(), StoreError> {
    let failed = |said: String| StoreError::Start { path: pool.to_owned(), said };
    let Some((program, arguments)) = start.command.split_first() else {
        return Err(failed("no command for it is known".to_owned()));
    };
    let log = start.log.as_ref().and_then(|path| {
        let _ = path.parent().map(std::fs::create_dir_all);
        File::options().create(true).append(true).open(path).ok()
    });
    let said_before = log.as_ref().and_then(|log| log.metadata().ok()).map_or(0, |of| of.len());
    let mut child = Command::new(program)
        .args(arguments)
        .arg("--pool")
        .arg(pool)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.map_or_else(Stdio::null, Stdio::from))
        .spawn()
        .map_err(|error| failed(format!("{}: {error}", program.display())))?;
    let mut line = String::new();
    let read = child.stdout.take().map(|out| out.take(1 << 20).read_to_string(&mut line));
    match serde_json::from_str(&line) {
        Ok(Readiness::Ready) => {
            // It leaves when it wants; a process that lives longer than it does not keep its remains.
            let reaping = std::thread::Builder::new().name("owner-reaper".to_owned());
            let _ = reaping.spawn(move || child.wait());
            Ok(())
        }
        Ok(Readiness::Refused(refusal)) => {
            let _ = child.wait();
            Err(refusal.into())
        }
        Err(_) => {
            let ended = match (read, child.wait()) {
                (Some(Err(error)), _) | (_, Err(error)) => error.to_string(),
                (_, Ok(status)) => format!("it ended before it was ready ({status})"),
            };
            let said = start.log.as_ref().map(|path| said_since(path, said_before));
            let said = said.filter(|said| !said.is_empty());
            Err(failed(said.map_or(ended.clone(), |said| format!("{ended}: {said}"))))
        }
    }
}

/// The end of what was written to a log.
fn said_since(log: &Path, before: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let from = usize::try_from(before).unwrap_or(usize::MAX).min(bytes.len());
    let from = from.max(bytes.len().saturating_sub(4096));
    String::from_utf8_lossy(&bytes[from..]).trim().to_owned()
}

/// A folder that goes with what is left in it.
struct Making(PathBuf);

impl Making {
    fn beside(folder: &Path) -> io::Result<Making> {
        let path = folder.join(format!(".disks-{}", std::process::id()));
        // What a killed process of the same number left.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path)?;
        Ok(Making(path))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How large a pool may become there: what the file system has free, at least 1G, at most 256G.
fn size_in(folder: &Path) -> io::Result<ByteLen> {
    let space = rustix::fs::statvfs(folder)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize) >> 30;
    Ok(ByteLen::gib(free.clamp(1, 256)))
}

fn is_locked(path: &Path) -> bool {
    use rustix::fs::{FlockOperation, flock};
    File::open(path).is_ok_and(|file| {
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// The process that holds the pool's lock, as far as this one may see it.
pub(crate) fn holder(path: &Path) -> Option<String> {
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
