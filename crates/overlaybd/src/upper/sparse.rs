//! An upper that is one file as large as the disk, with holes where nothing was written.
//!
//! What is a hole is known to the file system alone, which tells it apart in blocks. So whoever writes
//! above other layers fills whole blocks, with what lies below; and zeros above other layers are stored
//! as zeros, for a hole would show what lies below as soon as the upper is opened again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::map::SegmentMap;
use crate::LayerError;
use crate::error::failed;
use crate::lsmt::{HEADER_SIZE, LONGEST, SECTOR, Segment};

/// What file systems tell holes apart in. The header is one of these, so blocks of the disk are blocks of the file.
pub(crate) const BLOCK: u64 = 4096;

/// The file of a sparse upper.
#[derive(Debug)]
pub(crate) struct Sparse {
    data: File,
    map: Mutex<SegmentMap>,
}

impl Sparse {
    pub(crate) fn create(data: File, size: u64, name: &str) -> Result<Sparse, LayerError> {
        data.set_len(HEADER_SIZE + size).map_err(failed("create", name))?;
        let sparse = Sparse { data, map: Mutex::default() };
        let found = sparse.scan(size).map_err(failed("read", name))?.all();
        if !found.is_empty() {
            return Err(LayerError::Unsupported {
                name: name.to_owned(),
                what: "its file system knows no holes; use a log".to_owned(),
            });
        }
        Ok(sparse)
    }

    pub(crate) fn open(data: File, size: u64, name: &str) -> Result<Sparse, LayerError> {
        let len = data.metadata().map_err(failed("read", name))?.len();
        if size >= 1 << 59 || len < HEADER_SIZE + size {
            let rule = format!("a disk of {size} bytes does not fit in a file of {len}");
            return Err(LayerError::Damaged { name: name.to_owned(), at: 48, rule });
        }
        let mut sparse = Sparse { data, map: Mutex::default() };
        sparse.map = Mutex::new(sparse.scan(size).map_err(failed("read", name))?);
        Ok(sparse)
    }

    /// Asks the file system what is there.
    fn scan(&self, size: u64) -> io::Result<SegmentMap> {
        let mut map = SegmentMap::default();
        let (mut at, end) = (HEADER_SIZE, HEADER_SIZE + size);
        while at < end {
            let data = match seek(&self.data, SeekFrom::Data(at)) {
                Ok(data) if data < end => data,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            let hole = seek(&self.data, SeekFrom::Hole(data))?.clamp(data + 1, end);
            let first = (data - HEADER_SIZE) / SECTOR;
            put(&mut map, first, (hole - HEADER_SIZE).div_ceil(SECTOR));
            at = hole;
        }
        Ok(map)
    }

    fn map(&self) -> std::sync::MutexGuard<'_, SegmentMap> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn data(&self) -> &File {
        &self.data
    }

    pub(crate) fn segments(&self) -> Vec<Segment> {
        self.map().all()
    }

    pub(crate) fn within(&self, start: u64, end: u64) -> Vec<Segment> {
        self.map().within(start, end)
    }

    /// Writes whole blocks, or up to the end of the disk.
    pub(crate) fn write(&self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, HEADER_SIZE + sector * SECTOR)?;
        put(&mut self.map(), sector, sector + bytes.len() as u64 / SECTOR);
        Ok(())
    }

    /// Makes a hole, where nothing below can show through it.
    pub(crate) fn punch(&self, start: u64, end: u64) -> io::Result<()> {
        if start >= end {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (at, len) = (HEADER_SIZE + start * SECTOR, (end - start) * SECTOR);
        fallocate(&self.data, flags, at, len)?;
        self.map().remove(start, end);
        Ok(())
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.data.sync_data()
    }

    pub(crate) fn write_size(&self, size: u64) -> io::Result<()> {
        self.data.set_len(HEADER_SIZE + size)?;
        self.data.write_all_at(&size.to_le_bytes(), 48)
    }
}

/// Notes stored sectors in runs that an index can describe.
fn put(map: &mut SegmentMap, start: u64, end: u64) {
    let mut start = start;
    while start < end {
        let len = u32::try_from(end - start).unwrap_or(LONGEST).min(LONGEST);
        let stored_at = HEADER_SIZE / SECTOR + start;
        map.put(Segment { start, stored_at, len, source: 0, zeroed: false });
        start += u64::from(len);
    }
}
