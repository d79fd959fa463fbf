//! What is kept of one blob: its bytes in a sparse file, and a map of which of them are there.
//!
//! | offset | size | field | meaning                                                          |
//! |-------:|-----:|-------|------------------------------------------------------------------|
//! |      0 |    8 | magic | `KILNBLB1`                                                       |
//! |      8 |    8 | chunk | bytes in a chunk: 65536                                          |
//! |     16 |    8 | size  | bytes in the blob                                                |
//! |     24 |    8 | whole | 1 once the blob's digest was found right, else 0                 |
//! |     64 |  8 n | chunk | CRC-32C of the chunk, then its number xor `KILN`; 0 when not there |

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::Cache;
use super::claim::{self, Locked, Taken};

/// Bytes that are fetched and checked at once.
pub(crate) const CHUNK: u64 = 64 << 10;
const MAGIC: [u8; 8] = *b"KILNBLB1";
const HEADER: u64 = 64;
const WHOLE_AT: u64 = 24;
const MARK: u32 = u32::from_le_bytes(*b"KILN");
/// Bytes that are stored between two looks at how full the cache is.
const LOOK_EVERY: u64 = 16 << 20;

/// Chunks that this process may fetch, for others leave them to it until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    /// How many; none where another process is fetching the first one.
    pub(crate) count: u64,
    _locked: Option<Locked<'a>>,
}

/// One blob, open. It stays where it is until this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    cache: Arc<Cache>,
    data: File,
    map: File,
    /// Locked for as long as the blob is in use.
    _lock: File,
    size: u64,
    /// Chunks whose CRC this process has seen to be right.
    checked: Vec<AtomicU64>,
    stored: AtomicU64,
    full: AtomicBool,
}

impl Entry {
    pub(crate) fn open(cache: Arc<Cache>, folder: &Path, size: u64) -> io::Result<Entry> {
        loop {
            match fs::DirBuilder::new().mode(0o700).create(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let open = |name: &str| {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false).mode(0o600);
                options.open(folder.join(name))
            };
            let lock = match open("lock") {
                // It was removed in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                lock => lock?,
            };
            flock(&lock, FlockOperation::LockShared)?;
            if !is_at(&lock, &folder.join("lock")) {
                continue;
            }
            let (data, map) = (open("data")?, open("map")?);
            if !is_right(&map, size)? {
                // Whoever has made it right does not mind; whoever uses it has found it right before.
                flock(&lock, FlockOperation::LockExclusive)?;
                if is_at(&lock, &folder.join("lock")) && !is_right(&map, size)? {
                    begin(&data, &map, size)?;
                }
                continue;
            }
            // The least recently used goes first.
            map.set_times(FileTimes::new().set_modified(SystemTime::now()))?;
            let words = usize::try_from(size.div_ceil(CHUNK).div_ceil(64)).unwrap_or(0);
            let checked = (0..words).map(|_| AtomicU64::new(0)).collect();
            let (stored, full) = (AtomicU64::new(0), AtomicBool::new(false));
            return Ok(Entry { cache, data, map, _lock: lock, size, checked, stored, full });
        }
    }

    /// Bytes in a chunk: all have the same, but perhaps the last.
    fn len_of(&self, chunk: u64) -> u64 {
        (self.size - chunk * CHUNK).min(CHUNK)
    }

    fn is_checked(&self, chunk: u64) -> bool {
        let word = usize::try_from(chunk / 64).ok().and_then(|word| self.checked.get(word));
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (chunk % 64)) != 0)
    }

    fn set_checked(&self, chunk: u64, is_checked: bool) {
        let word = usize::try_from(chunk / 64).ok().and_then(|word| self.checked.get(word));
        let bit = 1 << (chunk % 64);
        match word {
            Some(word) if is_checked => drop(word.fetch_or(bit, Ordering::AcqRel)),
            Some(word) => drop(word.fetch_and(!bit, Ordering::AcqRel)),
            None => {}
        }
    }

    /// Whether a chunk is there and right.
    pub(crate) fn has(&self, chunk: u64) -> bool {
        self.is_checked(chunk) || self.check(chunk).unwrap_or(false)
    }

    /// Reads a chunk and compares its CRC.
    fn check(&self, chunk: u64) -> io::Result<bool> {
        let Some(crc) = self.mapped(chunk)? else { return Ok(false) };
        let mut bytes = vec![0; usize::try_from(self.len_of(chunk)).unwrap_or(0)];
        self.data.read_exact_at(&mut bytes, chunk * CHUNK)?;
        let is_right = crc32c::crc32c(&bytes) == crc;
        if is_right {
            self.set_checked(chunk, true);
        }
        Ok(is_right)
    }

    /// The CRC that the map has for a chunk, if it is there.
    fn mapped(&self, chunk: u64) -> io::Result<Option<u32>> {
        let mut word = [0; 8];
        self.map.read_exact_at(&mut word, HEADER + chunk * 8)?;
        let (crc, mark) = split(word);
        Ok((mark == mark_of(chunk)).then_some(crc))
    }

    /// Fills a buffer from within one chunk, if that is there.
    pub(crate) fn read(&self, chunk: u64, within: u64, buffer: &mut [u8]) -> io::Result<bool> {
        if !self.has(chunk) {
            return Ok(false);
        }
        self.data.read_exact_at(buffer, chunk * CHUNK + within)?;
        Ok(true)
    }

    /// Keeps a chunk, unless the cache is full of what is in use: then `false`.
    pub(crate) fn store(&self, chunk: u64, bytes: &[u8]) -> io::Result<bool> {
        let before = self.stored.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if before / LOOK_EVERY != (before + bytes.len() as u64) / LOOK_EVERY {
            self.full.store(!self.cache.make_room(), Ordering::Relaxed);
        }
        if self.full.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.data.write_all_at(bytes, chunk * CHUNK)?;
        let mut word = [0; 8];
        word[..4].copy_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
        word[4..].copy_from_slice(&mark_of(chunk).to_le_bytes());
        self.map.write_all_at(&word, HEADER + chunk * 8)?;
        self.set_checked(chunk, true);
        Ok(true)
    }

    /// Asks other processes to leave chunks to this one, as far as none of them is fetching them itself.
    pub(crate) fn claim(&self, first: u64, count: u64) -> Claim<'_> {
        match claim::take(&self.map, HEADER + first * 8, count * 8) {
            Taken::Some(locked) => Claim { count: locked.len() / 8, _locked: Some(locked) },
            Taken::None => Claim { count: 0, _locked: None },
            Taken::Unknown => Claim { count, _locked: None },
        }
    }

    /// Asks other processes to leave the fetching of the whole blob in one stream to this one.
    pub(crate) fn claim_whole(&self) -> Claim<'_> {
        match claim::take(&self.map, 0, 1) {
            Taken::Some(locked) => Claim { count: u64::MAX, _locked: Some(locked) },
            Taken::None => Claim { count: 0, _locked: None },
            Taken::Unknown => Claim { count: u64::MAX, _locked: None },
        }
    }

    /// Forgets a chunk that turned out wrong.
    pub(crate) fn forget(&self, chunk: u64) -> io::Result<()> {
        self.set_checked(chunk, false);
        self.map.write_all_at(&[0; 8], WHOLE_AT)?;
        self.map.write_all_at(&[0; 8], HEADER + chunk * 8)
    }

    /// Whether the digest of all of it was found right.
    pub(crate) fn is_whole(&self) -> bool {
        let mut word = [0; 8];
        self.map.read_exact_at(&mut word, WHOLE_AT).is_ok() && u64::from_le_bytes(word) == 1
    }

    /// Notes that the digest of all of it was found right.
    pub(crate) fn set_whole(&self) -> io::Result<()> {
        self.map.write_all_at(&1_u64.to_le_bytes(), WHOLE_AT)
    }
}

fn split(word: [u8; 8]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// An entry at another chunk's place is none. Never zero for a number that fits any file.
fn mark_of(chunk: u64) -> u32 {
    MARK ^ u32::try_from(chunk % (1 << 24)).unwrap_or(0)
}

/// Whether a file is still the one at that path.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

fn header(size: u64) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&CHUNK.to_le_bytes());
    bytes[16..24].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// Whether a map is one of ours, for a blob of that size.
fn is_right(map: &File, size: u64) -> io::Result<bool> {
    let mut found = [0; 24];
    let len = map.metadata()?.len();
    if len != HEADER + size.div_ceil(CHUNK) * 8 {
        return Ok(false);
    }
    map.read_exact_at(&mut found, 0)?;
    Ok(found == header(size)[..24])
}

/// Begins an empty blob.
fn begin(data: &File, map: &File, size: u64) -> io::Result<()> {
    map.set_len(0)?;
    data.set_len(0)?;
    data.set_len(size)?;
    map.set_len(HEADER + size.div_ceil(CHUNK) * 8)?;
    map.write_all_at(&header(size), 0)
}

#[cfg(test)]
mod tests {
    use kiln_block::ByteLen;

    use super::*;
    use crate::Digest;

    fn cache(limit: ByteLen) -> (tempfile::TempDir, Arc<Cache>) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(folder.path(), limit).unwrap());
        (folder, cache)
    }

    #[test]
    fn what_is_kept_is_there_for_the_next_one() {
        let (_folder, cache) = cache(ByteLen::gib(1));
        let digest = Digest::of(b"blob");
        let size = 3 * CHUNK + 5;
        let entry = cache.entry(&digest, size).unwrap();
        assert!(!entry.has(1) && !entry.has(3));
        assert!(entry.store(1, &[7; 65536]).unwrap());
        assert!(entry.store(3, &[9; 5]).unwrap());
        let other = cache.entry(&digest, size).unwrap();
        let mut buffer = [0; 5];
        assert!(other.read(3, 0, &mut buffer).unwrap() && buffer == [9; 5]);
        assert!(other.read(1, 65000, &mut buffer).unwrap() && buffer == [7; 5]);
        assert!(!other.read(0, 0, &mut buffer).unwrap());
        other.set_whole().unwrap();
        assert!(entry.is_whole());
        entry.forget(1).unwrap();
        assert!(!entry.has(1) && !entry.is_whole());
    }

    #[test]
    fn a_byte_that_rots_is_not_given_out() {
        let (folder, cache) = cache(ByteLen::gib(1));
        let digest = Digest::of(b"blob");
        cache.entry(&digest, CHUNK).unwrap().store(0, &[7; 65536]).unwrap();
        let data = folder.path().join("blobs").join(digest.hex()).join("data");
        let data = File::options().write(true).open(data).unwrap();
        data.write_all_at(&[8], 4000).unwrap();
        assert!(!cache.entry(&digest, CHUNK).unwrap().has(0));
    }

    #[test]
    fn the_longest_unused_goes_first_and_what_is_used_stays() {
        let (_folder, cache) = cache(ByteLen::kib(300));
        let [a, b, c] = ["a", "b", "c"].map(|name| Digest::of(name.as_bytes()));
        let fill = |digest: &Digest| {
            let entry = cache.entry(digest, 2 * CHUNK).unwrap();
            entry.store(0, &[1; 65536]).unwrap();
            entry.store(1, &[1; 65536]).unwrap();
            entry
        };
        // The clock of a file system is coarse; its order is not what is tested here.
        let used_at = |entry: &Entry, second| {
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
            entry.map.set_times(FileTimes::new().set_modified(at)).unwrap();
        };
        used_at(&fill(&a), 2);
        let used = fill(&b);
        used_at(&used, 1);
        drop(fill(&c));
        assert!(cache.make_room());
        assert!(used.has(0) && !cache.entry(&a, 2 * CHUNK).unwrap().has(0));
        assert!(cache.entry(&c, 2 * CHUNK).unwrap().has(1));
    }

    #[test]
    fn a_map_of_another_size_is_begun_anew() {
        let (_folder, cache) = cache(ByteLen::gib(1));
        let digest = Digest::of(b"blob");
        cache.entry(&digest, CHUNK).unwrap().store(0, &[7; 65536]).unwrap();
        assert!(!cache.entry(&digest, CHUNK + 1).unwrap().has(0));
        assert!(!cache.entry(&digest, CHUNK + 1).unwrap().has(1));
    }
}
