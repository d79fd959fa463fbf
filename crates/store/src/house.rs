//! [`House`]: an open pool with what belongs to it in memory: who is served, what is temporary, what was counted.
//! [`Guest`]: one user of it, and what goes when the user goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use kiln_block::{BlockDevice as _, ByteLen, FileDevice};
use kiln_parallax::{DiskOptions, Durability, Pool, PoolError, PoolOptions};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Refusal, StoreError, Why};
use crate::frontends::Serving;
use crate::layered::Layers;
use crate::measured::{Counters, Measured};
use crate::name::{Name, TEMPORARY};
use crate::operations::{self, open, operate};
use crate::reply::{DiskFigures, Reply};
use crate::request::{Progress, Request, Serve, Stop};

/// An open pool and its users.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) pool: Pool,
    /// Of a pool that is mended, which does not hold it itself.
    _lock: Option<File>,
    opened: Instant,
    /// Says how many connections there are; an owner alone has any.
    pub(crate) connections: AtomicU64,
    /// The owner's process, or zero.
    pid: u32,
    next_guest: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the name of a disk or snapshot.
    counters: BTreeMap<String, Arc<Counters>>,
    served: Vec<InService>,
    /// Whose clients want to know about new sizes.
    servings: Vec<Weak<Serving>>,
    /// Temporary disks that some guest holds.
    temporary: BTreeSet<String>,
    /// Temporary disks whose guest is gone, but which somebody still had open.
    doomed: Vec<String>,
}

/// A disk that a guest has served.
#[derive(Debug, Clone)]
struct InService {
    name: String,
    guest: u64,
    pid: u32,
    writable: bool,
}

fn options(layers: &Layers) -> PoolOptions {
    PoolOptions { bases: Some(Arc::new(layers.clone())), ..PoolOptions::default() }
}

impl House {
    /// Opens a pool's file under its lock.
    pub(crate) fn open(path: &Path, pid: u32, layers: &Layers) -> Result<House, PoolError> {
        Pool::open_file(path, &options(layers)).map(|pool| House::new(pool, pid, None))
    }

    /// Opens a pool's file under its lock, and mends what can be mended.
    pub(crate) fn repair(path: &Path, layers: &Layers) -> Result<House, PoolError> {
        let failed = |source| PoolError::File { path: path.to_owned(), source };
        let lock = File::open(path).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(PoolError::Busy { path: path.to_owned() }),
            Err(errno) => return Err(failed(errno.into())),
        }
        let device = FileDevice::open(path, false)?;
        let pool = Pool::repair(Arc::new(device), &options(layers))?;
        Ok(House::new(pool, 0, Some(lock)))
    }

    fn new(pool: Pool, pid: u32, lock: Option<File>) -> House {
        House {
            pool,
            _lock: lock,
            opened: Instant::now(),
            connections: AtomicU64::new(0),
            pid,
            next_guest: AtomicU64::new(1),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many disks are served, and temporary disks held.
    pub(crate) fn leases(&self) -> usize {
        let state = self.state();
        state.served.len() + state.temporary.len()
    }

    /// Temporary disks that nobody holds and nobody is making: a process that had the pool open was killed.
    fn orphans(&self) -> Vec<String> {
        let disks = self.pool.disks();
        let state = self.state();
        let names = disks.into_iter().map(|disk| disk.name);
        let is_left = |name: &String| {
            name.starts_with(TEMPORARY)
                && !name.starts_with(operations::unfinished_prefix())
                && !state.temporary.contains(name)
        };
        names.filter(is_left).collect()
    }

    pub(crate) fn has_orphans(&self) -> bool {
        !self.orphans().is_empty()
    }

    /// Removes what nobody has adopted.
    pub(crate) fn remove_orphans(&self) {
        for orphan in self.orphans() {
            tracing::info!(disk = orphan, "removed a temporary disk that was left");
            self.remove_temporary(&orphan);
        }
    }

    /// Removes a temporary disk with its snapshots, or does it later.
    fn remove_temporary(&self, disk: &str) {
        let snapshots = self.pool.snapshots(disk).unwrap_or_default();
        let removed = snapshots
            .iter()
            .try_for_each(|snapshot| self.pool.delete_snapshot(disk, &snapshot.name))
            .and_then(|()| self.pool.delete(disk));
        match removed {
            Ok(()) | Err(PoolError::NoDisk { .. }) => {
                self.state().counters.remove(disk);
            }
            Err(PoolError::InUse { .. }) => self.state().doomed.push(disk.to_owned()),
            // It is looked for again when the pool is opened again.
            Err(error) => tracing::warn!(disk, %error, "a temporary disk stays for now"),
        }
    }

    /// Tries again what was still open.
    fn remove_doomed(&self) {
        let doomed = std::mem::take(&mut self.state().doomed);
        for disk in doomed {
            self.remove_temporary(&disk);
        }
    }

    fn counters(&self, name: &str) -> Arc<Counters> {
        self.state().counters.entry(name.to_owned()).or_default().clone()
    }

    pub(crate) fn metrics(&self) -> Reply {
        let mut pool = operations::figures(&self.pool);
        pool.pid = self.pid;
        pool.uptime = self.opened.elapsed().as_secs();
        pool.connections = self.connections.load(Ordering::Relaxed);
        let mut disks: Vec<DiskFigures> = {
            let state = self.state();
            let served = |name: &str| state.served.iter().any(|disk| disk.name == name);
            state.counters.iter().map(|(name, at)| at.figures(name, served(name))).collect()
        };
        for disk in &mut disks {
            // What was removed meanwhile has no size.
            (disk.size, disk.referenced) =
                operations::sizes(&self.pool, &disk.name).unwrap_or_default();
        }
        Reply::Metrics { pool, disks }
    }

    /// What an operation did to names that are known here.
    fn took_place(&self, request: &Request, reply: &mut Reply) {
        let mut state = self.state();
        match (request, reply) {
            (Request::Rename { disk, name }, _) => {
                if let Some(counters) = state.counters.remove(disk) {
                    state.counters.insert(name.clone(), counters);
                }
                for served in state.served.iter_mut().filter(|served| served.name == *disk) {
                    served.name.clone_from(name);
                }
            }
            (Request::Remove { .. }, Reply::Removed { removed }) => {
                state.counters.retain(|name, _| !removed.contains(name));
            }
            (Request::Tree, Reply::Tree { nodes }) => {
                for node in nodes {
                    node.served = state.served.iter().any(|served| served.name == node.name);
                }
            }
            (Request::Resize { .. }, _) => {
                let servings: Vec<_> = state.servings.iter().filter_map(Weak::upgrade).collect();
                drop(state);
                servings.iter().for_each(|serving| serving.resized());
            }
            _ => {}
        }
    }

    /// A refusal that only says that something is open, with who has it open.
    fn explained(&self, error: StoreError) -> StoreError {
        let StoreError::Refused(Refusal { why: Why::InUse { name }, .. }) = &error else {
            return error;
        };
        let state = self.state();
        let snapshots = format!("{name}@");
        let mut holders = state.served.iter();
        let holder = holders
            .find(|served| served.name == *name || served.name.starts_with(&snapshots))
            .cloned();
        match holder {
            Some(served) => {
                let text = format!(
                    "{:?} is being served, by process {}; end that first",
                    served.name, served.pid
                );
                Refusal::new(Why::InUse { name: name.clone() }, text).into()
            }
            None => error,
        }
    }
}

/// One user, in this process or connected to it.
#[derive(Debug)]
pub(crate) struct Guest {
    house: Arc<House>,
    number: u64,
    pid: u32,
    /// In the order in which they came.
    serving: Vec<Arc<Serving>>,
    temporary: Vec<String>,
}

impl Guest {
    pub(crate) fn new(house: Arc<House>, pid: u32) -> Guest {
        let number = house.next_guest.fetch_add(1, Ordering::Relaxed);
        Guest { house, number, pid, serving: Vec::new(), temporary: Vec::new() }
    }

    /// Does what is asked, and keeps what has to end with the guest.
    pub(crate) fn handle(
        &mut self,
        request: Request,
        files: Vec<std::os::fd::OwnedFd>,
        on_progress: &mut dyn FnMut(Progress),
        stop: &Stop,
    ) -> Result<Reply, StoreError> {
        self.house.remove_doomed();
        let done = match request {
            // Its refusals say already who is in the way.
            Request::Serve(serve) => return self.serve(&serve),
            Request::CloneTemporary { from, size, name } => {
                self.clone_temporary(from.as_deref(), size, &name)
            }
            Request::Adopt { disk } => self.adopt(disk),
            Request::Keep { disk, name } => self.keep(&disk, &name),
            Request::Metrics => Ok(self.house.metrics()),
            Request::Gc => {
                self.house.remove_orphans();
                operate(&self.house.pool, Request::Gc, files, on_progress, stop)
            }
            Request::End => Ok(Reply::Ended { cut_off: self.end() }),
            request => {
                let asked = request.clone();
                operate(&self.house.pool, request, files, on_progress, stop).map(|mut reply| {
                    self.house.took_place(&asked, &mut reply);
                    reply
                })
            }
        };
        done.map_err(|error| self.house.explained(error))
    }

    fn serve(&mut self, serve: &Serve) -> Result<Reply, StoreError> {
        let mut devices: Vec<crate::frontends::Device> = Vec::new();
        let mut entries = Vec::new();
        for name in &serve.names {
            let disk = open(&self.house.pool, name)?;
            let read_only = serve.read_only || disk.is_read_only();
            let counters = self.house.counters(name);
            let measured = Measured::counting(Arc::new(disk), counters);
            devices.push((name.clone(), Arc::new(measured), read_only));
            entries.push(InService {
                name: name.clone(),
                guest: self.number,
                pid: self.pid,
                writable: !read_only,
            });
        }
        self.announce(entries, serve.shared)?;
        match Serving::start(devices, serve) {
            Ok(serving) => {
                let (served, serving) = (serving.served.clone(), Arc::new(serving));
                let mut state = self.house.state();
                state.servings.retain(|serving| serving.strong_count() > 0);
                state.servings.push(Arc::downgrade(&serving));
                drop(state);
                self.serving.push(serving);
                Ok(Reply::Serving { served })
            }
            Err(refusal) => {
                self.withdraw(&serve.names);
                Err(refusal.into())
            }
        }
    }

    /// Enters disks as served, unless two guests would write to one of them unawares: file systems do not expect
    /// another writer, however coherent the disk is.
    fn announce(&self, entries: Vec<InService>, shared: bool) -> Result<(), Refusal> {
        let mut state = self.house.state();
        for entry in entries.iter().filter(|entry| entry.writable && !shared) {
            let other = state.served.iter().find(|served| {
                served.writable && served.name == entry.name && served.guest != self.number
            });
            if let Some(other) = other {
                let text = format!(
                    "{:?} is being served for writing, by process {}; two writers are one too many for most file systems",
                    entry.name, other.pid
                );
                return Err(Refusal::new(Why::InUse { name: entry.name.clone() }, text));
            }
        }
        state.served.extend(entries);
        Ok(())
    }

    fn withdraw(&self, names: &[String]) {
        let mut state = self.house.state();
        for name in names {
            let mine = |served: &InService| served.guest == self.number && served.name == *name;
            if let Some(at) = state.served.iter().position(mine) {
                state.served.remove(at);
            }
        }
    }

    fn clone_temporary(
        &mut self,
        from: Option<&str>,
        size: u64,
        name: &str,
    ) -> Result<Reply, StoreError> {
        let options = DiskOptions { durability: Durability::None, quota: ByteLen::ZERO };
        let pool = &self.house.pool;
        let make = |disk: &str| match from.map(|from| (from, Name::of(from))) {
            None => Ok(pool.create_disk(disk, ByteLen::new(size), &options)?),
            Some((_, Name { disk: of, snapshot: Some(snapshot) })) => {
                Ok(pool.clone_disk(of, snapshot, disk, &options)?)
            }
            Some((from, Name { snapshot: None, .. })) => {
                let text = format!("{from:?} is a disk, not a snapshot NAME@SNAP");
                Err(StoreError::Refused(Refusal::new(Why::Request, text)))
            }
        };
        // Long enough to tell what it is for, short enough for a number behind it.
        let stem = format!("{TEMPORARY}{}", &name[..name.floor_char_boundary(96)]);
        let mut disk = stem.clone();
        for number in 2..=u64::MAX {
            match make(&disk) {
                Err(StoreError::Refused(Refusal { why: Why::Exists { .. }, .. })) => {
                    disk = format!("{stem}-{number}");
                }
                made => {
                    made?;
                    break;
                }
            }
        }
        self.house.state().temporary.insert(disk.clone());
        self.temporary.push(disk.clone());
        Ok(Reply::Temporary { disk })
    }

    /// Holds a temporary disk that a killed owner left.
    fn adopt(&mut self, disk: String) -> Result<Reply, StoreError> {
        self.house.pool.stat(&disk)?;
        if !disk.starts_with(TEMPORARY) || !self.house.state().temporary.insert(disk.clone()) {
            let text = format!("{disk:?} is not a temporary disk that nobody holds");
            return Err(Refusal::new(Why::Request, text).into());
        }
        self.temporary.push(disk.clone());
        Ok(Reply::Temporary { disk })
    }

    /// The disk as it is now gets another name and outlives its guest; it may be served meanwhile, and what
    /// is written later is not part of what is kept.
    fn keep(&mut self, disk: &str, name: &str) -> Result<Reply, StoreError> {
        const MOMENT: &str = "kept";
        if name.starts_with(TEMPORARY) || !self.temporary.iter().any(|mine| mine == disk) {
            let text =
                format!("{disk:?} is not a temporary disk of this connection, or {name:?} is");
            return Err(Refusal::new(Why::Request, text).into());
        }
        let pool = &self.house.pool;
        pool.snapshot(disk, MOMENT)?;
        let made = pool.clone_disk(disk, MOMENT, name, &DiskOptions::default());
        let gone = pool.delete_snapshot(disk, MOMENT);
        made?;
        gone?;
        Ok(Reply::Done)
    }

    /// Ends what the guest holds, gracefully; returns how many clients were hung up on.
    pub(crate) fn end(&mut self) -> u64 {
        let mut cut_off = 0;
        for serving in self.serving.drain(..) {
            cut_off += serving.end();
        }
        self.house.state().served.retain(|served| served.guest != self.number);
        for disk in self.temporary.drain(..).rev() {
            self.house.state().temporary.remove(&disk);
            self.house.remove_temporary(&disk);
        }
        self.house.remove_doomed();
        cut_off
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}
