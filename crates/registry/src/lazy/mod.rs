//! A blob that is read where it is: by ranges, through the cache, a little ahead of its reader.

mod flight;
mod trace;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_block::{BlockSource, ByteLen, ByteOffset, DeviceError};

use crate::cache::{CHUNK, Cache, Entry};
use crate::digest::Digester;
use crate::{Descriptor, RegistryError, Repository};
use flight::State;
use trace::Recorder;

pub use trace::{Run, parse_trace};

/// The most bytes that are fetched ahead of a reader, in chunks.
const WIDEST: u64 = 64;
/// How often a chunk may turn out wrong before that is the registry's fault.
const MOST_DOUBTS: u8 = 8;
/// Blobs that are fetched as a whole come in pieces of this many chunks.
const PIECE: u64 = 16;

/// Something its user should hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The registry sends whole blobs only, so this one is fetched as a whole.
    NoRanges {
        /// Which blob.
        blob: String,
    },
    /// Bytes were wrong, and are fetched again.
    Doubted {
        /// Which blob.
        blob: String,
        /// Where.
        at: u64,
    },
    /// Nothing more is kept for the next reader.
    CacheFull {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::NoRanges { blob } => {
                write!(f, "the registry does not send parts of blobs: {blob} is fetched as a whole")
            }
            Notice::Doubted { blob, at } => {
                write!(f, "what came of {blob} at byte {at} is wrong: it is fetched again")
            }
            Notice::CacheFull { why } => {
                write!(f, "what is fetched is not kept any more: {why}")
            }
        }
    }
}

/// How a blob is read.
#[derive(Clone)]
pub struct LazyOptions {
    /// Where what was fetched is kept; nowhere without.
    pub cache: Option<Arc<Cache>>,
    /// Whether to fetch in advance what was read last time, or else to note it for the next time.
    pub trace: bool,
    /// How long what another process is fetching is left to it, before it is fetched once more.
    pub patience: Duration,
    /// Hears what its user should.
    pub tell: Arc<dyn Fn(Notice) + Send + Sync>,
}

impl LazyOptions {
    /// What is fetched by a process that gets on is there much sooner.
    pub const PATIENCE: Duration = Duration::from_secs(10);
}

impl fmt::Debug for LazyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LazyOptions { cache, trace, .. } = self;
        f.debug_struct("LazyOptions").field("cache", cache).field("trace", trace).finish()
    }
}

/// What it took so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetches {
    /// Requests.
    pub requests: u64,
    /// Bytes that came.
    pub bytes: u64,
    /// Bytes that were asked for.
    pub read: u64,
}

struct Shared {
    repository: Arc<Repository>,
    blob: Descriptor,
    entry: Option<Entry>,
    options: LazyOptions,
    state: Mutex<State>,
    changed: Condvar,
    /// Held by whoever fetches everything in one stream.
    streaming: Mutex<()>,
    recorder: Option<Recorder>,
    /// Another process took too long, and nothing is left to others any more.
    impatient: AtomicBool,
    /// A read from this chunk on is a reason to fetch more ahead.
    trigger: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    read: AtomicU64,
}

/// Stops fetching when the last reader has gone.
#[derive(Debug)]
struct Guard(Arc<Shared>);

/// A blob in a registry, as bytes to read. Cheap to clone; all clones share what was fetched, and when the last of
/// them goes, so do the threads that fetch for it.
#[derive(Debug, Clone)]
pub struct Reader(Arc<Guard>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("blob", &self.blob).finish_non_exhaustive()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
        self.0.save_trace();
    }
}

impl Reader {
    /// Opens a blob for reading. Nothing is fetched yet, but for what was read last time.
    pub fn open(
        repository: &Arc<Repository>,
        blob: &Descriptor,
        options: LazyOptions,
    ) -> Result<Reader, RegistryError> {
        let entry = match &options.cache {
            Some(cache) => Some(cache.entry(&blob.digest, blob.size)?),
            None => None,
        };
        let mut state = State::default();
        let mut recorder = None;
        if let Some(cache) = options.cache.as_ref().filter(|_| options.trace) {
            match trace::load(&cache.trace(&blob.digest), blob.size) {
                Some(runs) => state.remember(&runs),
                None => recorder = Some(Recorder::new(blob.size)),
            }
        }
        let shared = Arc::new(Shared {
            repository: Arc::clone(repository),
            blob: blob.clone(),
            entry,
            options,
            state: Mutex::new(state),
            changed: Condvar::new(),
            streaming: Mutex::default(),
            recorder,
            impatient: AtomicBool::new(false),
            trigger: AtomicU64::new(u64::MAX),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            read: AtomicU64::new(0),
        });
        if shared.lock().has_plans() {
            flight::ensure_worker(&shared, &mut shared.lock())?;
        }
        Ok(Reader(Arc::new(Guard(shared))))
    }

    /// What it took so far.
    pub fn fetches(&self) -> Fetches {
        let shared = self.shared();
        Fetches {
            requests: shared.requests.load(Ordering::Relaxed),
            bytes: shared.bytes.load(Ordering::Relaxed),
            read: shared.read.load(Ordering::Relaxed),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// Fetches what is missing and compares the digest of the whole. What does not fit into the cache is fetched
    /// and not kept. Blocks until it is done, and takes turns with readers, who go first.
    pub fn complete(&self) -> Result<(), RegistryError> {
        let shared = self.shared();
        if shared.entry.as_ref().is_some_and(Entry::is_whole) {
            return Ok(());
        }
        let chunks = shared.chunks();
        let mut sum = Digester::default();
        let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
        for chunk in 0..chunks {
            let len = usize::try_from(shared.len_of(chunk)).unwrap_or(0);
            shared.fetch(chunk, 0, &mut buffer[..len], (chunk + PIECE).min(chunks), false)?;
            sum.update(&buffer[..len]);
        }
        let found = sum.finish();
        if found != shared.blob.digest {
            if let Some(entry) = &shared.entry {
                // It is fetched again by whoever reads it next.
                (0..chunks).for_each(|chunk| drop(entry.forget(chunk)));
            }
            let what = "a blob".to_owned();
            return Err(RegistryError::WrongBytes { what, wanted: shared.blob.digest, found });
        }
        // Without the note it is only looked at once more.
        let _ = shared.entry.as_ref().map(Entry::set_whole);
        Ok(())
    }

    /// Whether all of it is here, and its digest was found right.
    pub fn is_whole(&self) -> bool {
        self.shared().entry.as_ref().is_some_and(Entry::is_whole)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_impatient(&self) -> bool {
        self.impatient.load(Ordering::Relaxed)
    }

    fn chunks(&self) -> u64 {
        self.blob.size.div_ceil(CHUNK)
    }

    fn len_of(&self, chunk: u64) -> u64 {
        (self.blob.size - chunk * CHUNK).min(CHUNK)
    }

    /// Fills a buffer from what is here.
    fn look(&self, chunk: u64, within: u64, buffer: &mut [u8]) -> bool {
        // What cannot be read from the cache is fetched once more.
        if let Some(entry) = &self.entry
            && entry.read(chunk, within, buffer).unwrap_or(false)
        {
            return true;
        }
        let recent = self.lock().recent(chunk);
        let Some(bytes) = recent else { return false };
        let at = usize::try_from(within).unwrap_or(usize::MAX);
        match bytes.get(at..).and_then(|bytes| bytes.get(..buffer.len())) {
            Some(bytes) => buffer.copy_from_slice(bytes),
            None => return false,
        }
        true
    }

    fn has(&self, chunk: u64) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.has(chunk)) || self.lock().is_recent(chunk)
    }

    /// Keeps what came, and wakes who waits for it.
    fn land(&self, chunk: u64, bytes: &[u8]) {
        let stored = self.entry.as_ref().map(|entry| entry.store(chunk, bytes));
        let is_kept = matches!(stored, Some(Ok(true)));
        let why = match stored {
            Some(Err(error)) => Some(error.to_string()),
            Some(Ok(false)) => Some("the cache is full of what is in use".to_owned()),
            _ => None,
        };
        // Told before anybody can read what came.
        if let Some(why) = why
            && !std::mem::replace(&mut self.lock().told_full, true)
        {
            (self.options.tell)(Notice::CacheFull { why });
        }
        let mut state = self.lock();
        if !is_kept {
            state.keep_recent(chunk, bytes);
        }
        state.landed(chunk);
        drop(state);
        self.changed.notify_all();
    }

    fn save_trace(&self) {
        let Some(recorder) = &self.recorder else { return };
        if let (Some(cache), Some(text)) = (&self.options.cache, recorder.finish()) {
            // The next reader does without.
            let _ = cache.save_trace(&self.blob.digest, &text);
        }
    }

    /// Fills a buffer from within one chunk, which is fetched if it has to be, with what follows up to `until`.
    fn fetch(
        self: &Arc<Shared>,
        chunk: u64,
        within: u64,
        buffer: &mut [u8],
        until: u64,
        is_urgent: bool,
    ) -> Result<(), RegistryError> {
        // More than once only where memory is short and others fetch a lot.
        for _ in 0..8 {
            if self.look(chunk, within, buffer) {
                return Ok(());
            }
            flight::bring(self, chunk, until, is_urgent)?;
        }
        let url = self.repository.blobs_url();
        let rule = format!("bytes of {} do not stay long enough to be read", self.blob.digest);
        Err(RegistryError::Protocol { url, rule, passing: true })
    }

    /// Notes that a chunk is wrong, so that it is fetched again; `false` where that has happened too often.
    fn doubt(&self, chunk: u64) -> bool {
        // Many may find the same bytes wrong at once. Only the first of them finds them here.
        let was_here = self.has(chunk);
        let count = {
            let mut state = self.lock();
            state.forget(chunk);
            let doubts = state.doubts.entry(chunk).or_default();
            *doubts = doubts.saturating_add(u8::from(was_here));
            *doubts
        };
        let forgotten = self.entry.as_ref().map(|entry| entry.forget(chunk));
        if matches!(forgotten, Some(Err(_))) || count > MOST_DOUBTS {
            return false;
        }
        if was_here {
            let (blob, at) = (self.blob.digest.to_string(), chunk * CHUNK);
            (self.options.tell)(Notice::Doubted { blob, at });
        }
        true
    }
}

fn as_device_error(at: u64, error: RegistryError) -> DeviceError {
    let at = ByteOffset::new(at);
    match error {
        RegistryError::WrongBytes { .. } => DeviceError::Damaged { at, found: error.to_string() },
        error => DeviceError::Io { act: "read", at, source: std::io::Error::other(error) },
    }
}

impl BlockSource for Reader {
    fn size(&self) -> ByteLen {
        ByteLen::new(self.shared().blob.size)
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let shared = self.shared();
        shared.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let end = (at + buffer.len() as u64).div_ceil(CHUNK);
        let mut at = at;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (chunk, within) = (at / CHUNK, at % CHUNK);
            let len = usize::try_from(shared.len_of(chunk) - within).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(len.min(rest.len()));
            if let Some(recorder) = &shared.recorder {
                recorder.touched(chunk);
            }
            flight::run_ahead(shared, chunk).map_err(|error| as_device_error(at, error))?;
            let fetched = shared.fetch(chunk, within, now, end, true);
            fetched.map_err(|error| as_device_error(at, error))?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn distrust(&self, at: ByteOffset, len: ByteLen) -> bool {
        let shared = self.shared();
        let end = at.get().saturating_add(len.get()).min(shared.blob.size);
        let chunks = at.get() / CHUNK..end.div_ceil(CHUNK);
        // All of them are forgotten, also behind one that was forgotten too often.
        let again = chunks.map(|chunk| shared.doubt(chunk)).filter(|again| *again);
        again.count() > 0
    }
}
