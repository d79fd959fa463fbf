//! The threads of a queue.
//!
//! They take turns at one *lead*: whoever has it waits for the guest and takes requests. While the disk is
//! brisk, the leader carries out what it took by itself, a batch at a time, and gives the batch back with one
//! signal. When the disk makes its callers wait, and for a flush that takes long, the lead is passed on first, so
//! the next thread takes further requests meanwhile.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::event::{EventfdFlags, Timespec, eventfd};

use vm_memory::GuestAddress;

use super::chain::Chain;
use super::disk::{Disk, Done, Memory};
use super::ring::{Ring, Setup};

/// Threads of a queue, and so requests of it that can wait for the disk at once.
const MOST_THREADS: usize = 8;
/// Requests that are given back together.
const BATCH: usize = 32;
/// One in so many requests waits for company although that did not pay lately.
const TRIAL: u32 = 64;
/// Disappointments in a row after which nobody waits.
const MOST_TRUST: u32 = 8;
/// How long what a guest wrote may take to be seen here, and a hundred times that.
const MOMENT: Duration = Duration::from_millis(1);
/// Bytes after which a batch is given back, so that nobody waits for its neighbours' long copies.
const BATCH_BYTES: u64 = 256 << 10;

/// A queue that runs.
#[derive(Debug)]
pub(crate) struct Running {
    engine: Arc<Engine>,
}

#[derive(Debug)]
struct Engine {
    name: String,
    disk: Arc<Disk>,
    memory: Memory,
    /// The guest never said that it flushes.
    always_durable: bool,
    gather: Duration,
    lead: Mutex<()>,
    ring: Mutex<Ring>,
    /// The descriptors, and how many there are.
    table: (GuestAddress, u16),
    epoll: OwnedFd,
    /// Written to when the queue stops; in the epoll set, and never read.
    enough: OwnedFd,
    stopping: AtomicBool,
    /// Threads that wait for the lead.
    waiting: AtomicUsize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What a queue runs with.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) disk: Arc<Disk>,
    pub(crate) memory: Memory,
    pub(crate) always_durable: bool,
    pub(crate) gather: Duration,
    pub(crate) ring: Ring,
}

impl Running {
    /// Carries out requests from now on: first those that are there already.
    pub(crate) fn start(parts: Parts, setup: &Setup) -> io::Result<Running> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let enough = eventfd(0, EventfdFlags::CLOEXEC)?;
        let nothing = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &enough, nothing, epoll::EventFlags::IN)?;
        if let Some(kick) = &setup.kick {
            // Every kick is an edge of its own, so the counter need not be read.
            epoll::add(&epoll, kick, nothing, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        }
        let engine = Arc::new(Engine {
            name: parts.name,
            disk: parts.disk,
            memory: parts.memory,
            always_durable: parts.always_durable,
            gather: parts.gather,
            lead: Mutex::new(()),
            table: parts.ring.table(),
            ring: Mutex::new(parts.ring),
            epoll,
            enough,
            stopping: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            threads: Mutex::new(Vec::new()),
        });
        engine.ring().tell_anyway();
        engine.spawn()?;
        Ok(Running { engine })
    }

    /// The rings, for what may change while they run.
    pub(crate) fn ring(&self) -> MutexGuard<'_, Ring> {
        self.engine.ring()
    }

    /// Takes nothing more, finishes what was taken, and says which entry is next.
    pub(crate) fn stop(self) -> u16 {
        self.engine.stop();
        self.engine.ring().next_available()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

impl Engine {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let engine = Arc::clone(self);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.len() < MOST_THREADS && !self.stopping.load(Ordering::SeqCst) {
            let thread =
                thread::Builder::new().name(self.name.clone()).spawn(move || engine.attend())?;
            threads.push(thread);
        }
        Ok(())
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // The counter cannot overflow: it is written twice at most.
        let _ = rustix::io::write(&self.enough, &1_u64.to_ne_bytes());
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic there has been told on stderr, and its requests are in flight for good.
            let _ = thread.join();
        }
    }

    /// A thread's life.
    fn attend(self: Arc<Self>) {
        let mut chain = Chain::new();
        let mut buffer = Vec::new();
        let (mut heads, mut work) = (Vec::with_capacity(BATCH), Work::default());
        let mut company = Company::default();
        loop {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            let mut lead = Some(lead);
            let brisk = self.disk.is_brisk();
            if !self.take(if brisk { BATCH } else { 1 }, &mut heads) {
                return;
            }
            if !brisk {
                self.pass_on(&mut lead);
            }
            loop {
                for head in heads.drain(..) {
                    self.carry_out(head, &mut chain, &mut buffer, &mut work);
                    if work.bytes >= BATCH_BYTES {
                        self.give_back(&mut work, &mut lead);
                    }
                }
                let full = work.finished.len() + work.unflushed.len() >= BATCH;
                if full || lead.is_none() || !work.unflushed.is_empty() || !company.expected(&self)
                {
                    break;
                }
                self.ring().take(BATCH - work.finished.len(), &mut heads);
            }
            self.give_back(&mut work, &mut lead);
            if !work.unflushed.is_empty() {
                if !self.disk.flushes.is_brisk() {
                    self.pass_on(&mut lead);
                }
                // One flush is enough for all: whatever they cover was done before it begins.
                let flushed = self.disk.flush();
                self.tell(&mut work.unflushed, &mut work.told, flushed);
            }
        }
    }

    fn carry_out(&self, head: u16, chain: &mut Chain, buffer: &mut Vec<u8>, work: &mut Work) {
        let durable = self.always_durable || !self.disk.cache_is_volatile();
        let (table, size) = self.table;
        let done = match chain.fill(&self.memory.guest, table, size, head) {
            Ok(()) => self.disk.carry_out(chain, &self.memory, buffer, durable),
            Err(_) => Done::default(),
        };
        work.bytes += u64::from(done.written);
        let list = if done.needs_flush { &mut work.unflushed } else { &mut work.finished };
        list.push((head, done));
    }

    /// Gives back what needs no flush. Whatever was written is settled first, or has failed.
    fn give_back(self: &Arc<Self>, work: &mut Work, lead: &mut Option<MutexGuard<'_, ()>>) {
        work.bytes = 0;
        if work.all().any(|done| done.unsettled) {
            if !self.disk.settles.is_brisk() {
                self.pass_on(lead);
            }
            let settled = self.disk.settle();
            work.all().for_each(|done| done.settle(settled));
        }
        self.tell(&mut work.finished, &mut work.told, true);
    }

    fn tell(&self, finished: &mut Vec<(u16, Done)>, told: &mut Vec<(u16, u32)>, flushed: bool) {
        told.extend(
            finished.drain(..).map(|(head, done)| (head, done.tell(&self.memory, flushed))),
        );
        if !told.is_empty() {
            self.ring().give_back(told);
            told.clear();
        }
    }

    /// Lets another thread take requests, and sees to it that there is one.
    fn pass_on(self: &Arc<Self>, lead: &mut Option<MutexGuard<'_, ()>>) {
        if lead.take().is_some() && self.waiting.load(Ordering::SeqCst) == 0 {
            // Without a further thread this one does all the work, later.
            let _ = self.spawn();
        }
    }

    /// Requests, as soon as there are any; `false` when the queue stops. The caller has the lead.
    fn take(&self, most: usize, heads: &mut Vec<u16>) -> bool {
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return false;
            }
            {
                let mut ring = self.ring();
                ring.take(most, heads);
                if !heads.is_empty() {
                    return true;
                }
            }
            // Twice, for the guest that looked too early (see `Ring::tell`): a kick that it left out shows in the
            // ring long before the first wait is over.
            if self.ring().ask_for_kick()
                && self.wait(Some(MOMENT)) == 0
                && self.ring().ask_for_kick()
            {
                self.wait(None);
            }
        }
    }

    /// How many events there were: kicks, or the queue's end.
    fn wait(&self, at_most: Option<Duration>) -> usize {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(2);
        let limit = at_most.and_then(|limit| Timespec::try_from(limit).ok());
        // Interrupted or not, whoever asked looks again.
        epoll::wait(self.epoll.as_fd(), spare_capacity(&mut events), limit.as_ref()).unwrap_or(0)
    }
}

/// Whether a request that is done should wait for another, so that the guest is told once of both.
///
/// Telling costs the guest far more than a request costs us. A guest that has several requests under way adds the
/// next one soon; one that waits for each does not, so what waiting brought lately decides.
#[derive(Debug, Default)]
struct Company {
    /// How much it paid lately; nobody waits at zero.
    trust: u32,
    skipped: u32,
}

impl Company {
    /// Returns when another request is there, or none is to be waited for.
    fn expected(&mut self, engine: &Engine) -> bool {
        if self.trust == 0 {
            self.skipped = self.skipped.wrapping_add(1);
            if !self.skipped.is_multiple_of(TRIAL) {
                return engine.ring().has_more();
            }
        }
        let until = Instant::now() + engine.gather;
        loop {
            if engine.ring().has_more() {
                self.trust = (self.trust + 4).min(MOST_TRUST);
                return true;
            }
            if Instant::now() >= until {
                self.trust = self.trust.saturating_sub(1);
                return false;
            }
            std::hint::spin_loop();
        }
    }
}

/// What a thread did and has not given back.
#[derive(Debug, Default)]
struct Work {
    finished: Vec<(u16, Done)>,
    /// Done once the disk was flushed.
    unflushed: Vec<(u16, Done)>,
    /// Bytes that all of it wrote into the guest's memory.
    bytes: u64,
    /// Kept, so that giving back costs no allocation.
    told: Vec<(u16, u32)>,
}

impl Work {
    fn all(&mut self) -> impl Iterator<Item = &mut Done> {
        self.finished.iter_mut().chain(&mut self.unflushed).map(|(_, done)| done)
    }
}
