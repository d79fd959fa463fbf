//! Chunks on their way: who waits for which, and who fetches them.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::trace::Run;
use super::{Notice, PIECE, Shared, WIDEST};
use crate::RegistryError;
use crate::cache::{CHUNK, Claim, Entry};
use crate::digest::Digester;
use crate::http::unreachable;
use crate::repository::Range;

/// Threads that fetch for one blob.
const MOST_WORKERS: usize = 4;
/// Those of them that may fetch ahead.
const MOST_AHEAD: usize = 2;
/// Chunks that are held in memory where they cannot be kept: 32 MiB.
const MOST_RECENT: usize = 512;

/// The longest pause between two looks at what another process is doing.
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// A run of chunks that is fetched by one request.
#[derive(Debug)]
struct Job {
    first: u64,
    count: u64,
    is_urgent: bool,
    failed: Mutex<Option<Failed>>,
}

/// Why a job failed, for each who waits for it. The first gets the error itself.
#[derive(Debug)]
struct Failed {
    error: Option<RegistryError>,
    text: String,
}

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Chunks that somebody is to bring or is bringing.
    flying: HashMap<u64, Arc<Job>>,
    urgent: VecDeque<Arc<Job>>,
    ahead: VecDeque<Arc<Job>>,
    workers: usize,
    idle: usize,
    busy_ahead: usize,
    busy_urgent: usize,
    recent: HashMap<u64, Arc<[u8]>>,
    order: VecDeque<u64>,
    /// The first chunk behind what was fetched for a reader in sequence.
    expected: u64,
    /// How many chunks to fetch beyond what is asked for.
    window: u64,
    pub(super) doubts: HashMap<u64, u8>,
    pub(super) told_full: bool,
    told_no_ranges: bool,
    pub(super) ended: bool,
}

impl State {
    pub(super) fn recent(&self, chunk: u64) -> Option<Arc<[u8]>> {
        self.recent.get(&chunk).cloned()
    }

    pub(super) fn is_recent(&self, chunk: u64) -> bool {
        self.recent.contains_key(&chunk)
    }

    pub(super) fn keep_recent(&mut self, chunk: u64, bytes: &[u8]) {
        if self.recent.insert(chunk, bytes.into()).is_none() {
            self.order.push_back(chunk);
        }
        while self.recent.len() > MOST_RECENT {
            let Some(oldest) = self.order.pop_front() else { break };
            self.recent.remove(&oldest);
        }
    }

    pub(super) fn forget(&mut self, chunk: u64) {
        self.recent.remove(&chunk);
        self.order.retain(|kept| *kept != chunk);
    }

    pub(super) fn landed(&mut self, chunk: u64) {
        self.flying.remove(&chunk);
    }

    pub(super) fn has_plans(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Plans to fetch what was read last time.
    pub(super) fn remember(&mut self, runs: &[Run]) {
        for run in runs {
            self.plan(run.first, run.count, false);
        }
    }

    /// Plans to fetch chunks, but for those that somebody else brings.
    fn plan(&mut self, first: u64, count: u64, is_urgent: bool) {
        let mut at = first;
        let end = first + count;
        while at < end {
            if self.flying.contains_key(&at) {
                at += 1;
                continue;
            }
            let most = if is_urgent { u64::MAX } else { PIECE };
            let free = (at..end).take_while(|chunk| !self.flying.contains_key(chunk));
            let count = (free.count() as u64).min(most);
            let failed = Mutex::default();
            let job = Arc::new(Job { first: at, count, is_urgent, failed });
            for chunk in at..at + count {
                self.flying.insert(chunk, Arc::clone(&job));
            }
            match is_urgent {
                true => self.urgent.push_back(job),
                false => self.ahead.push_back(job),
            }
            at += count;
        }
    }

    /// The next job for a thread. Who waits goes first, and is not slowed down by what nobody waits for.
    fn next(&mut self) -> Option<(Arc<Job>, bool)> {
        if let Some(job) = self.urgent.pop_front() {
            self.busy_urgent += 1;
            return Some((job, true));
        }
        if self.busy_urgent > 0 || self.busy_ahead >= MOST_AHEAD {
            return None;
        }
        let job = self.ahead.pop_front()?;
        self.busy_ahead += 1;
        Some((job, false))
    }

    /// Somebody waits for what was only planned.
    fn hurry(&mut self, job: &Arc<Job>) {
        if let Some(at) = self.ahead.iter().position(|planned| Arc::ptr_eq(planned, job))
            && let Some(job) = self.ahead.remove(at)
        {
            self.urgent.push_back(job);
        }
    }
}

/// Makes sure that somebody does what was planned.
pub(super) fn ensure_worker(
    shared: &Arc<Shared>,
    state: &mut MutexGuard<'_, State>,
) -> Result<(), RegistryError> {
    let planned = state.urgent.len() + state.ahead.len();
    if state.idle >= planned || state.workers >= MOST_WORKERS {
        shared.changed.notify_all();
        return Ok(());
    }
    let own = Arc::clone(shared);
    let worker = std::thread::Builder::new().name("fetch".to_owned());
    let spawned = worker.spawn(move || work(&own));
    match spawned {
        Ok(_) => state.workers += 1,
        // Those there are will do.
        Err(_) if state.workers > 0 => {}
        Err(source) => {
            return Err(RegistryError::Io { act: "start", path: "a thread".into(), source });
        }
    }
    shared.changed.notify_all();
    Ok(())
}

/// Waits until a chunk is here, or could not be fetched; asks for it, and what follows up to `until`, if nobody has.
pub(super) fn bring(
    shared: &Arc<Shared>,
    chunk: u64,
    until: u64,
    is_urgent: bool,
) -> Result<(), RegistryError> {
    // Looked at without the lock, for it may have to be read.
    let missing = (chunk..until).take_while(|chunk| !shared.has(*chunk)).count() as u64;
    if missing == 0 {
        return Ok(());
    }
    let mut state = shared.lock();
    if !state.flying.contains_key(&chunk) {
        // It may have landed since it was looked at. To plan it again would say of the reader that it jumps.
        let is_kept = || shared.entry.as_ref().is_some_and(|entry| entry.has(chunk));
        if state.is_recent(chunk) || is_kept() {
            return Ok(());
        }
        let mut count = missing;
        if is_urgent {
            // A reader that goes on where the last fetch ended is in sequence.
            let is_sequential = chunk == state.expected && chunk > 0;
            state.window = if is_sequential { (state.window * 2).clamp(1, WIDEST) } else { 0 };
            count = (missing + state.window).min(shared.chunks() - chunk);
            state.expected = chunk + count;
            let trigger = if state.window > 0 { chunk + count / 2 } else { u64::MAX };
            shared.trigger.store(trigger, Ordering::Relaxed);
        }
        state.plan(chunk, count, is_urgent);
        ensure_worker(shared, &mut state)?;
    }
    let Some(job) = state.flying.get(&chunk).map(Arc::clone) else { return Ok(()) };
    if is_urgent && !job.is_urgent {
        state.hurry(&job);
        ensure_worker(shared, &mut state)?;
    }
    while state.flying.get(&chunk).is_some_and(|flying| Arc::ptr_eq(flying, &job)) {
        if state.ended {
            return Err(RegistryError::Stopped);
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    drop(state);
    let mut failed = job.failed.lock().unwrap_or_else(PoisonError::into_inner);
    match failed.as_mut() {
        None => Ok(()),
        Some(_) if shared.has(chunk) => Ok(()),
        Some(failed) => Err(failed.error.take().unwrap_or_else(|| {
            let url = shared.repository.blobs_url();
            let source = io::Error::other(failed.text.clone());
            RegistryError::Unreachable { act: "get", url, source }
        })),
    }
}

/// Fetches more ahead when a reader in sequence comes near to the end of what is there.
pub(super) fn run_ahead(shared: &Arc<Shared>, chunk: u64) -> Result<(), RegistryError> {
    if chunk < shared.trigger.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut state = shared.lock();
    let first = state.expected;
    // Another one may have been here first; and whoever jumps is not in sequence.
    if chunk < shared.trigger.load(Ordering::Relaxed) || chunk >= first {
        return Ok(());
    }
    let window = (state.window * 2).clamp(1, WIDEST);
    let count = window.min(shared.chunks() - first);
    let trigger = if count == 0 { u64::MAX } else { first + count / 2 };
    shared.trigger.store(trigger, Ordering::Relaxed);
    (state.window, state.expected) = (window, first + count);
    state.plan(first, count, false);
    if count > 0 { ensure_worker(shared, &mut state) } else { Ok(()) }
}

/// A thread that fetches until nobody reads any more.
fn work(shared: &Arc<Shared>) {
    let mut state = shared.lock();
    loop {
        if state.ended {
            state.workers -= 1;
            return;
        }
        let Some((job, is_urgent)) = state.next() else {
            state.idle += 1;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        drop(state);
        let outcome = fetch(shared, &job);
        if let Err(error) = outcome {
            let text = chain(&error);
            let failed = Failed { error: Some(error), text };
            *job.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed);
        }
        state = shared.lock();
        match is_urgent {
            true => state.busy_urgent -= 1,
            false => state.busy_ahead -= 1,
        }
        // What did not come is not on its way any more.
        state.flying.retain(|_, flying| !Arc::ptr_eq(flying, &job));
        shared.changed.notify_all();
    }
}

fn chain(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn fetch(shared: &Shared, job: &Job) -> Result<(), RegistryError> {
    let end = job.first + job.count;
    let mut next = job.first;
    let http = &shared.repository.client.http;
    http.persist_in_steps(|got_on| {
        loop {
            let first = next;
            while next < end && shared.has(next) {
                shared.lock().landed(next);
                next += 1;
            }
            if next > first {
                // Another process may have brought them.
                shared.changed.notify_all();
            }
            if next == end {
                return Ok(());
            }
            if shared.lock().ended {
                return Err(RegistryError::Stopped);
            }
            // One stream brings everything where there are no ranges, so one at a time is enough.
            let is_known = shared.lock().told_no_ranges;
            let taking_turns = is_known.then(|| shared.streaming.lock());
            let turn = match &taking_turns {
                Some(_) => take_turn(shared, next, &Entry::claim_whole)?,
                None => take_turn(shared, next, &|entry| entry.claim(next, end - next))?,
            };
            let Some(turn) = turn else { continue };
            // What others have brought in between ends the run.
            let run = next..next.saturating_add(turn.count).min(end);
            let until = next + run.take_while(|chunk| !shared.has(*chunk)).count() as u64;
            if until == next {
                continue;
            }
            let len = (until * CHUNK).min(shared.blob.size) - next * CHUNK;
            shared.requests.fetch_add(1, Ordering::Relaxed);
            let range = shared.repository.begin_range(&shared.blob, next * CHUNK, len)?;
            if !range.whole {
                receive(shared, range, &mut next, until, got_on)?;
                continue;
            }
            if is_known {
                return stream(shared, range);
            }
            if !std::mem::replace(&mut shared.lock().told_no_ranges, true) {
                let blob = shared.blob.digest.to_string();
                (shared.options.tell)(Notice::NoRanges { blob });
            }
            // It has begun, and goes on if nobody else is at it.
            let Ok(_streaming) = shared.streaming.try_lock() else { continue };
            let whole = shared.entry.as_ref().map(Entry::claim_whole);
            // A stream that another one ended while this one began has brought everything.
            if shared.has(next) {
                continue;
            }
            if whole.as_ref().is_none_or(|claim| claim.count > 0) || shared.is_impatient() {
                return stream(shared, range);
            }
        }
    })
}

/// This process's turn to fetch; others leave it alone until this is dropped.
struct Turn<'a> {
    _claim: Option<Claim<'a>>,
    /// How many chunks.
    count: u64,
}

/// Waits until this process may fetch a chunk, or another one has brought it: then `None`.
fn take_turn<'a>(
    shared: &'a Shared,
    chunk: u64,
    claim: &dyn Fn(&'a Entry) -> Claim<'a>,
) -> Result<Option<Turn<'a>>, RegistryError> {
    let alone = Turn { _claim: None, count: u64::MAX };
    let Some(entry) = &shared.entry else { return Ok(Some(alone)) };
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let claim = claim(entry);
        // Whoever had it may have brought it just now.
        if shared.has(chunk) {
            return Ok(None);
        }
        if claim.count > 0 {
            let count = claim.count;
            return Ok(Some(Turn { _claim: Some(claim), count }));
        }
        if shared.is_impatient() {
            return Ok(Some(alone));
        }
        if begun.elapsed() > shared.options.patience {
            // It may be stopped. From now on nothing is left to it.
            shared.impatient.store(true, Ordering::Relaxed);
            continue;
        }
        if shared.lock().ended || shared.repository.client.http.options.stop.wait(pause) {
            return Err(RegistryError::Stopped);
        }
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

fn receive(
    shared: &Shared,
    mut range: Range,
    next: &mut u64,
    end: u64,
    got_on: &mut bool,
) -> Result<(), RegistryError> {
    debug_assert_eq!(range.at, *next * CHUNK);
    let mut bytes = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    while *next < end {
        let len = usize::try_from(shared.len_of(*next)).unwrap_or(0);
        let read = range.reader.read_exact(&mut bytes[..len]);
        read.map_err(|source| unreachable("get", &range.url, source))?;
        shared.bytes.fetch_add(len as u64, Ordering::Relaxed);
        shared.land(*next, &bytes[..len]);
        *got_on = true;
        *next += 1;
        if shared.lock().ended {
            return Err(RegistryError::Stopped);
        }
    }
    // The connection can be used again once its end was seen.
    let _ = range.reader.read(&mut [0]);
    Ok(())
}

/// Takes a whole blob as it comes, and compares its digest.
fn stream(shared: &Shared, mut range: Range) -> Result<(), RegistryError> {
    let mut bytes = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    let mut sum = Digester::default();
    for chunk in 0..shared.chunks() {
        let len = usize::try_from(shared.len_of(chunk)).unwrap_or(0);
        let read = range.reader.read_exact(&mut bytes[..len]);
        read.map_err(|source| unreachable("get", &range.url, source))?;
        shared.bytes.fetch_add(len as u64, Ordering::Relaxed);
        sum.update(&bytes[..len]);
        if !shared.has(chunk) {
            shared.land(chunk, &bytes[..len]);
        }
        if shared.lock().ended {
            return Err(RegistryError::Stopped);
        }
    }
    let (wanted, found) = (shared.blob.digest, sum.finish());
    if wanted == found {
        return Ok(());
    }
    if let Some(entry) = &shared.entry {
        (0..shared.chunks()).for_each(|chunk| drop(entry.forget(chunk)));
    }
    Err(RegistryError::WrongBytes { what: "a blob".to_owned(), wanted, found })
}
