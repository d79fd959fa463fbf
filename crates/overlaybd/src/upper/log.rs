//! An upper that appends: data to one file, and to another where on the disk it belongs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use super::map::SegmentMap;
use crate::LayerError;
use crate::error::failed;
use crate::lsmt::{ENTRY_SIZE, HEADER_SIZE, Header, Kind, LONGEST, SECTOR, Segment, parse_index};

/// The largest piece of data that one entry describes, in bytes: others cut there too.
const LARGEST_WRITE: usize = 4 << 20;
/// Bytes of index that may wait for a flush.
const MOST_PENDING: usize = 1 << 20;
/// The most entries in the index of an upper.
const MOST_ENTRIES: u64 = 128_000_000;

/// The files of a log.
#[derive(Debug)]
pub(crate) struct Log {
    data: File,
    index: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    map: SegmentMap,
    data_end: u64,
    index_end: u64,
    /// Entries whose data may not be durable yet.
    pending: Vec<u8>,
    /// A sync failed. What the kernel dropped then, no later sync would report.
    lost: bool,
}

impl Log {
    pub(crate) fn new(data: File, index: File) -> Log {
        let state = State {
            map: SegmentMap::default(),
            data_end: HEADER_SIZE,
            index_end: HEADER_SIZE,
            pending: Vec::new(),
            lost: false,
        };
        Log { data, index, state: Mutex::new(state) }
    }

    pub(crate) fn open(
        data: File,
        name: &str,
        index: File,
        index_name: &str,
    ) -> Result<Log, LayerError> {
        let data_len = data.metadata().map_err(failed("read", name))?.len();
        let index_len = index.metadata().map_err(failed("read", index_name))?.len();
        // A power cut may leave a part of an entry at the end; it was never acknowledged.
        let count = index_len.saturating_sub(HEADER_SIZE) / ENTRY_SIZE;
        let damaged = |at, rule| LayerError::Damaged { name: index_name.to_owned(), at, rule };
        if count > MOST_ENTRIES {
            let rule = format!("an index of {count} entries is larger than {MOST_ENTRIES}");
            return Err(damaged(HEADER_SIZE, rule));
        }
        let data_sectors = data_len.div_ceil(SECTOR);
        let mut map = SegmentMap::default();
        let mut at = HEADER_SIZE;
        let end = HEADER_SIZE + count * ENTRY_SIZE;
        let mut piece = vec![0; 1 << 20];
        while at < end {
            let take = piece.len().min(usize::try_from(end - at).unwrap_or(piece.len()));
            index.read_exact_at(&mut piece[..take], at).map_err(failed("read", index_name))?;
            for (number, segment) in parse_index(&piece[..take]) {
                if segment.len == 0 {
                    continue;
                }
                let stored = segment.stored_at..segment.stored_end();
                if !segment.zeroed && (stored.start < 8 || stored.end > data_sectors) {
                    let rule = format!(
                        "the entry speaks of sectors {} to {} of {name}, which has {data_sectors}",
                        stored.start, stored.end
                    );
                    return Err(damaged(at + number * ENTRY_SIZE, rule));
                }
                map.put(Segment { source: 0, ..segment });
            }
            at += take as u64;
        }
        let state = State {
            map,
            data_end: data_sectors.max(HEADER_SIZE / SECTOR) * SECTOR,
            index_end: end,
            pending: Vec::new(),
            lost: false,
        };
        Ok(Log { data, index, state: Mutex::new(state) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn data(&self) -> &File {
        &self.data
    }

    pub(crate) fn segments(&self) -> Vec<Segment> {
        self.state().map.all()
    }

    pub(crate) fn within(&self, start: u64, end: u64) -> Vec<Segment> {
        self.state().map.within(start, end)
    }

    /// Appends whole sectors.
    pub(crate) fn write(&self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        let mut sector = sector;
        let mut state = self.state();
        for piece in bytes.chunks(LARGEST_WRITE) {
            self.data.write_all_at(piece, state.data_end)?;
            let len = u32::try_from(piece.len() as u64 / SECTOR).unwrap_or(LONGEST);
            let stored_at = state.data_end / SECTOR;
            state.note(Segment { start: sector, stored_at, len, source: 0, zeroed: false });
            state.data_end += piece.len() as u64;
            sector += u64::from(len);
        }
        self.spill(&mut state)
    }

    /// Notes that whole sectors read as zeros.
    pub(crate) fn zero(&self, start: u64, end: u64) -> io::Result<()> {
        let mut state = self.state();
        let mut start = start;
        while start < end {
            let len = u32::try_from(end - start).unwrap_or(LONGEST).min(LONGEST);
            let stored_at = state.data_end / SECTOR;
            state.note(Segment { start, stored_at, len, source: 0, zeroed: true });
            start += u64::from(len);
        }
        self.spill(&mut state)
    }

    /// Keeps the memory that waiting entries take within its bound.
    fn spill(&self, state: &mut State) -> io::Result<()> {
        if state.pending.len() < MOST_PENDING { Ok(()) } else { self.sync(state) }
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.sync(&mut self.state())
    }

    /// Data first, then the entries that speak of it. After a failure nothing is acknowledged again.
    fn sync(&self, state: &mut State) -> io::Result<()> {
        if state.lost {
            return Err(io::Error::other("an earlier flush of this upper failed"));
        }
        let synced = self.sync_files(state);
        state.lost = synced.is_err();
        synced
    }

    fn sync_files(&self, state: &mut State) -> io::Result<()> {
        self.data.sync_data()?;
        if state.pending.is_empty() {
            return Ok(());
        }
        self.index.write_all_at(&state.pending, state.index_end)?;
        self.index.sync_data()?;
        state.index_end += state.pending.len() as u64;
        state.pending.clear();
        Ok(())
    }

    /// The size in both headers.
    pub(crate) fn write_size(&self, bytes: [u8; 8]) -> io::Result<()> {
        self.data.write_all_at(&bytes, 48)?;
        self.index.write_all_at(&bytes, 48)
    }

    /// Index, then trailer, synced in that order: without its trailer it is still a log.
    pub(crate) fn seal(&self, header: &Header) -> io::Result<()> {
        self.flush()?;
        let state = self.state();
        let segments = state.map.all();
        let mut index: Vec<u8> = segments.iter().flat_map(Segment::encode).collect();
        // Zeros, where others write whatever their memory held.
        index.resize(index.len().next_multiple_of(512), 0);
        let trailer = Header {
            index_offset: state.data_end,
            index_size: segments.len() as u64,
            user_tag: header.user_tag,
            ..Header::new(
                Kind::Trailer,
                header.virtual_size,
                header.uuid.unwrap_or_default(),
                header.parent.unwrap_or_default(),
            )
        };
        self.data.write_all_at(&index, state.data_end)?;
        self.data.sync_data()?;
        self.data.write_all_at(&trailer.encode(), state.data_end + index.len() as u64)?;
        self.data.sync_data()
    }
}

impl State {
    fn note(&mut self, segment: Segment) {
        self.pending.extend_from_slice(&segment.encode());
        self.map.put(segment);
    }
}

/// A log that is closed in peace loses nothing; whoever must know calls `flush`.
impl Drop for Log {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}
