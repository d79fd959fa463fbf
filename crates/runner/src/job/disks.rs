//! The disks of one machine: clones in a pool, served to QEMU by the process that owns the pool.
//!
//! All of them are held by one lease, so they go with this process however it ends. When the owner is killed, a thread
//! finds or starts the next one, takes the disks over and has them served under the same sockets; QEMU connects again
//! and the guest goes on. Whatever an owner had acknowledged is there: served writes outlive it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_model::job::{Disk, JobSpec};
use kiln_store::{Frontend, Lease, Reply, Request, Serve, Start, Store, StoreError, Why};
use rustix::event::{EventfdFlags, eventfd};

use crate::chain::chain;

/// How long the next owner of a pool is looked for. Until then nobody takes the disks away.
const RETURN: Duration = Duration::from_secs(9);
/// How long one attempt may wait for a pool that others have open.
const HASTE: Duration = Duration::from_secs(3);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// A pool with less than this is full to whoever writes more than a block.
const FULL: u64 = 4 << 20;

/// How a job gets at its pool.
#[derive(Clone, Debug)]
pub struct PoolAccess {
    start: Start,
    inside: bool,
}

impl PoolAccess {
    /// Through the pool's owner, which is started if there is none.
    pub fn owner(start: Start) -> PoolAccess {
        PoolAccess { start, inside: false }
    }

    /// In this process, unless the pool has an owner: for programs that cannot become one.
    pub fn inside() -> PoolAccess {
        PoolAccess { start: Start::new(["false"]), inside: true }
    }

    /// Opens it, in this process or by way of its owner.
    ///
    /// # Errors
    /// When neither can be done.
    pub fn open(&self, pool: &Path) -> Result<Store, StoreError> {
        match self.inside {
            true => Store::open(pool, &self.start),
            false => Store::owner(pool, &self.start),
        }
    }

    /// The same, for who cannot wait long while others have it open.
    fn hasty(&self) -> PoolAccess {
        PoolAccess { start: self.start.clone().patience(HASTE), inside: self.inside }
    }
}

/// Where the disks of a job come from. Keeps the pool's owner there.
#[derive(Debug)]
pub(crate) struct DiskSource {
    pool: PathBuf,
    access: PoolAccess,
    store: Store,
}

/// The disks of one machine. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Disks {
    held: Arc<Held>,
    keeper: Option<JoinHandle<()>>,
    /// Written to when the keeper is not needed any more.
    enough: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Held {
    pool: PathBuf,
    access: PoolAccess,
    disks: Vec<Served>,
    lease: Mutex<Lease>,
    lost: Mutex<Option<String>>,
}

/// One disk that is served.
#[derive(Debug)]
struct Served {
    serial: String,
    /// Its name in the pool.
    name: String,
    socket: PathBuf,
    /// Whether it goes with the machine.
    temporary: bool,
}

/// A disk that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) serial: String,
    /// `NAME@SNAP` in the pool.
    pub(crate) snapshot: String,
}

impl DiskSource {
    /// The pool of a job; none where the job has no disks.
    pub(crate) fn open(spec: &JobSpec, access: &PoolAccess) -> Result<Option<DiskSource>, String> {
        let Some(pool) = spec.pool.clone().filter(|_| !spec.disks.is_empty()) else {
            return Ok(None);
        };
        let failed = |error| format!("cannot open the pool of the disks: {}", explained(&error));
        Store::make(&pool).map_err(failed)?;
        let store = access.open(&pool).map_err(failed)?;
        Ok(Some(DiskSource { pool, access: access.clone(), store }))
    }

    /// What each disk of a job starts as, beyond the name of the snapshot: another one may be made under it.
    pub(crate) fn identities(&mut self, spec: &JobSpec) -> Result<Vec<String>, String> {
        let of = |disk: &Disk| {
            let Some((name, snapshot)) = disk.base.as_deref().and_then(|base| base.split_once('@'))
            else {
                return Ok(String::new());
            };
            let answer = self.store.ask(Request::Snapshots { disk: name.to_owned() });
            let Ok(Reply::Snapshots { snapshots }) = answer else {
                return Err(format!("the pool does not tell of {name}"));
            };
            let found = snapshots.iter().find(|is| is.snapshot == snapshot);
            Ok(found.map_or_else(String::new, |is| format!("{} {}", is.created, is.referenced)))
        };
        spec.disks.iter().map(of).collect()
    }

    /// Makes and serves the disks of a machine. `on_loss` is told once, from another thread, if the owner is gone
    /// and no other one takes its place.
    pub(crate) fn disks(
        &mut self,
        spec: &JobSpec,
        machine: u32,
        on_loss: impl Fn(String) + Send + 'static,
    ) -> Result<Disks, String> {
        let failed = |serial: &str, error: &StoreError| {
            format!("cannot make disk {serial} in {}: {}", self.pool.display(), explained(error))
        };
        let mut lease = match self.store.lease() {
            Ok(lease) => lease,
            // The owner was killed between two machines.
            Err(_) => {
                let again = self.access.open(&self.pool).and_then(|store| {
                    let lease = store.lease()?;
                    self.store = store;
                    Ok(lease)
                });
                again.map_err(|error| failed("", &error))?
            }
        };
        let folder = socket_folder()?;
        let mut disks = Vec::new();
        for disk in &spec.disks {
            let socket = folder.join(format!("{}-{}.sock", unique(), disk.serial));
            let name = format!("{}-{machine}-{}", spec.run, disk.serial);
            let served = make(&mut lease, disk, &name, socket);
            disks.push(served.map_err(|error| failed(&disk.serial, &error))?);
        }
        let held = Arc::new(Held {
            pool: self.pool.clone(),
            access: self.access.clone(),
            disks,
            lease: Mutex::new(lease),
            lost: Mutex::default(),
        });
        let thread = |error: std::io::Error| format!("cannot watch over the disks: {error}");
        let enough = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| thread(errno.into()))?;
        let enough = Arc::new(enough);
        let (theirs, until) = (Arc::clone(&held), Arc::clone(&enough));
        let keeper = thread::Builder::new()
            .name("disks".into())
            .spawn(move || theirs.watch(&until, &on_loss))
            .map_err(thread)?;
        Ok(Disks { held, keeper: Some(keeper), enough })
    }
}

/// Where sockets lie, without those of processes that are gone.
pub(super) fn socket_folder() -> Result<PathBuf, String> {
    let folder = kiln_store::private_folder()
        .map_err(|error| format!("cannot make a folder for sockets: {error}"))?;
    sweep(&folder);
    Ok(folder)
}

/// Removes the sockets of processes that are gone together with the owner that would have removed them.
fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_suffix(".sock")?.split('-').next());
        let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Somebody else may have been quicker.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Part of a name that nobody else uses on this host.
pub(super) fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn make(lease: &mut Lease, disk: &Disk, name: &str, socket: PathBuf) -> Result<Served, StoreError> {
    let from = disk.base.as_deref();
    let size = if from.is_some() { 0 } else { disk.size };
    let name = match &disk.persistent {
        Some(name) => name.clone(),
        None => lease.clone_temporary(from, size, name)?,
    };
    let temporary = disk.persistent.is_none();
    let served = Served { serial: disk.serial.clone(), name, socket, temporary };
    let is = serve(lease, &served)?;
    if is < disk.size {
        let disk = Request::Resize { disk: served.name.clone(), size: disk.size, shrink: false };
        lease.ask(disk)?;
    }
    Ok(served)
}

/// Has a disk served; returns its size.
fn serve(lease: &mut Lease, disk: &Served) -> Result<u64, StoreError> {
    let serial = Some(disk.serial.clone());
    let frontend = Frontend::VhostUser { path: disk.socket.clone(), serial };
    let served = lease.serve(&Serve::new([disk.name.as_str()], frontend))?;
    Ok(served.first().map_or(0, |served| served.size))
}

impl Held {
    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, enough: &OwnedFd, on_loss: &(impl Fn(String) + Send)) {
        loop {
            let watch = self.lease().watch();
            // Nothing can be lost of a pool that this process has open itself.
            let Ok(Some(watch)) = watch else { return };
            if !watch.wait_unless(enough.as_fd()) {
                return;
            }
            if let Err(error) = self.go_on_with_the_next() {
                let reason = format!(
                    "the owner of pool {} is gone: {}",
                    self.pool.display(),
                    explained(&error)
                );
                *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
                on_loss(reason);
                return;
            }
        }
    }

    /// Takes the disks over from an owner that is gone. The lease is locked meanwhile, so that whoever wants something of
    /// the disks waits.
    fn go_on_with_the_next(&self) -> Result<(), StoreError> {
        let mut lease = self.lease();
        let deadline = Instant::now() + RETURN;
        loop {
            match self.adopted() {
                Ok(adopted) => {
                    *lease = adopted;
                    return Ok(());
                }
                // Nobody brings back what is gone for good.
                Err(error @ StoreError::Refused(_)) => return Err(error),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    fn adopted(&self) -> Result<Lease, StoreError> {
        let mut lease = self.access.hasty().open(&self.pool)?.lease()?;
        for disk in &self.disks {
            if disk.temporary {
                lease.adopt(&disk.name)?;
            }
            serve(&mut lease, disk)?;
        }
        Ok(lease)
    }

    /// Asks something, of the next owner if this one goes away meanwhile.
    fn ask(&self, request: &Request) -> Result<Reply, StoreError> {
        let deadline = Instant::now() + RETURN;
        loop {
            let answer = self.lease().ask(request.clone());
            match answer {
                Err(StoreError::Gone { .. })
                    if self.lost().is_none() && Instant::now() < deadline =>
                {
                    thread::sleep(PAUSE);
                }
                answer => return answer,
            }
        }
    }

    fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Disks {
    /// Where QEMU finds them, in the order of the job.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.held.disks.iter().map(|disk| disk.socket.as_path())
    }

    /// The pool they are in.
    pub(crate) fn pool(&self) -> &Path {
        &self.held.pool
    }

    /// Removes disks with their snapshots from that pool by what their names begin with, if it is this one. Those that are in
    /// use stay.
    pub(crate) fn remove(&self, pool: &Path, prefix: &str) {
        if pool != self.held.pool || prefix.is_empty() {
            return;
        }
        let Ok(Reply::Disks { disks }) = self.held.ask(&Request::List) else { return };
        for disk in disks.into_iter().filter(|disk| disk.name.starts_with(prefix)) {
            let names = vec![disk.name];
            let _ = self.held.ask(&Request::Remove { names, snapshots: true });
        }
    }

    /// Keeps all as they are now. Whoever wants them to agree stops the machine meanwhile.
    pub(crate) fn keep(
        &self,
        name_of: &dyn Fn(&str) -> (String, String),
    ) -> Result<Vec<Kept>, StoreError> {
        let mut kept = Vec::new();
        for disk in &self.held.disks {
            let (name, snapshot) = name_of(&disk.serial);
            let requests = [
                Request::Keep { disk: disk.name.clone(), name: name.clone() },
                Request::Snap { disk: name.clone(), snapshot: snapshot.clone() },
            ];
            for request in &requests {
                self.held.ask(request)?;
            }
            let snapshot = format!("{name}@{snapshot}");
            kept.push(Kept { serial: disk.serial.clone(), snapshot });
        }
        Ok(kept)
    }

    /// What the disks alone hold, and how large they look.
    pub(crate) fn own_bytes(&self) -> Option<(u64, u64)> {
        let (mut own, mut size) = (0, 0);
        for disk in &self.held.disks {
            let Ok(Reply::Disk(stat)) = self.held.ask(&Request::Stat { disk: disk.name.clone() })
            else {
                return None;
            };
            own += stat.unique?;
            size += stat.size;
        }
        Some((own, size))
    }

    /// What the host did to the disks that a guest must have noticed: they are lost, or requests failed.
    pub(crate) fn trouble(&self) -> Option<String> {
        if let Some(reason) = self.held.lost() {
            return Some(reason);
        }
        let Ok(Reply::Metrics { pool, disks }) = self.held.ask(&Request::Metrics) else {
            return None;
        };
        let ours = disks
            .iter()
            .filter(|figures| self.held.disks.iter().any(|disk| disk.name == figures.name));
        let failed: u64 = ours
            .map(|disk| [&disk.read, &disk.write, &disk.discard, &disk.flush])
            .flat_map(|kinds| kinds.map(|kind| kind.failed))
            .sum();
        if failed == 0 {
            return None;
        }
        let at = self.held.pool.display();
        Some(if pool.space.available < FULL {
            let total = ByteLen::new(pool.space.total);
            format!(
                "the pool {at} of {total} is full, {failed} requests of the guest failed; \
                 `kiln disk ls` shows what to remove, `kiln disk gc` gives its space back"
            )
        } else {
            format!(
                "{failed} requests of the guest failed in the pool {at}; try `kiln disk verify`"
            )
        })
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // The counter cannot overflow: it is written once.
        let _ = rustix::io::write(&*self.enough, &1_u64.to_ne_bytes());
        if let Some(keeper) = self.keeper.take() {
            // A panic there has been told on stderr.
            let _ = keeper.join();
        }
        if self.held.lost().is_some() {
            // No owner is there to do it.
            for disk in &self.held.disks {
                let _ = std::fs::remove_file(&disk.socket);
            }
        } else {
            // Awaited, so that who wants a persistent disk next finds it free. An owner that is killed just now leaves all
            // that to the next one.
            let _ = self.held.lease().ask(Request::End);
        }
    }
}

/// An error of the pool with its cure, on one line.
pub(crate) fn explained(error: &StoreError) -> String {
    let text = chain(error);
    let cure = match error {
        StoreError::Refused(refusal) => match &refusal.why {
            Why::NoSpace => {
                "`kiln disk ls` shows what to remove, `kiln disk gc` gives its space back"
            }
            Why::NoSnapshot { .. } => "`kiln disk snaps DISK` names the snapshots of a disk",
            Why::NoDisk { .. } => "`kiln disk ls` names the disks",
            Why::Damaged => "`kiln disk verify` says what is wrong",
            _ => return text,
        },
        StoreError::Busy { .. } => "end the process that has it open",
        _ => return text,
    };
    format!("{text}; {cure}")
}
