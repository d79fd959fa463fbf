//! A disk in memory, for tests and for disks that die with their process.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::device::{buffers_len, check_range};
use crate::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind, Extents};

/// Bytes are kept in pages, so that a large empty disk costs nothing.
const PAGE: u64 = 4096;

/// A sparse disk in memory. Nothing survives the process, so a flush has nothing to do.
#[derive(Debug)]
pub struct MemoryDevice {
    size: AtomicU64,
    pages: RwLock<BTreeMap<u64, Box<[u8]>>>,
}

impl MemoryDevice {
    /// An empty disk.
    pub fn new(size: ByteLen) -> MemoryDevice {
        MemoryDevice { size: AtomicU64::new(size.get()), pages: RwLock::new(BTreeMap::new()) }
    }

    /// A disk that holds these bytes.
    pub fn holding(bytes: &[u8]) -> MemoryDevice {
        let device = MemoryDevice::new(ByteLen::of(bytes));
        if let Ok(mut pages) = device.pages.write() {
            for (index, chunk) in (0u64..).zip(bytes.chunks(4096)) {
                let mut page = vec![0; 4096].into_boxed_slice();
                page[..chunk.len()].copy_from_slice(chunk);
                pages.insert(index, page);
            }
        }
        device
    }

    /// Everything the disk holds; for small disks in tests.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size().to_usize().unwrap_or(0)];
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        for (chunk, index) in bytes.chunks_mut(4096).zip(0u64..) {
            if let Some(page) = pages.get(&index) {
                chunk.copy_from_slice(&page[..chunk.len()]);
            }
        }
        bytes
    }
}

/// The pieces of a byte range that each lie within one page: page, start in it, length.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = at;
    let mut left = len;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        // Both are below the page size, so neither conversion can fail.
        let within = usize::try_from(at % PAGE).unwrap_or(0);
        let take = left.min(4096 - within);
        let piece = (at / PAGE, within, take);
        at += take as u64;
        left -= take;
        Some(piece)
    })
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> ByteLen {
        ByteLen::new(self.size.load(Ordering::Acquire))
    }

    fn grow(&self, size: ByteLen) -> Result<(), DeviceError> {
        self.size.fetch_max(size.get(), Ordering::AcqRel);
        Ok(())
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        check_range(self.size(), at, buffers_len(buffers))?;
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut at = at.get();
        for buffer in buffers {
            let mut done = 0;
            for (page, within, len) in pieces(at, buffer.len()) {
                let target = &mut buffer[done..done + len];
                match pages.get(&page) {
                    Some(bytes) => target.copy_from_slice(&bytes[within..within + len]),
                    None => target.fill(0),
                }
                done += len;
            }
            at += done as u64;
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        check_range(self.size(), at, buffers_len(buffers))?;
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let mut at = at.get();
        for buffer in buffers {
            let mut done = 0;
            for (page, within, len) in pieces(at, buffer.len()) {
                let bytes = pages.entry(page).or_insert_with(|| vec![0; 4096].into_boxed_slice());
                bytes[within..within + len].copy_from_slice(&buffer[done..done + len]);
                done += len;
            }
            at += done as u64;
        }
        Ok(())
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.write_zeroes(at, len, false)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        check_range(self.size(), at, len)?;
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let (start, end) = (at.get(), at.get() + len.get());
        let covered = start.div_ceil(PAGE)..end / PAGE;
        let touched: Vec<u64> = if len.is_zero() {
            Vec::new()
        } else {
            pages.range(start / PAGE..=(end - 1) / PAGE).map(|(page, _)| *page).collect()
        };
        for page in touched {
            if covered.contains(&page) && !keep_allocated {
                pages.remove(&page);
                continue;
            }
            if let Some(bytes) = pages.get_mut(&page) {
                let first = start.max(page * PAGE) - page * PAGE;
                let last = end.min((page + 1) * PAGE) - page * PAGE;
                if let (Ok(first), Ok(last)) = (usize::try_from(first), usize::try_from(last)) {
                    bytes[first..last].fill(0);
                }
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        check_range(self.size(), at, len)?;
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let end = at.get() + len.get();
        let mut found = Extents::default();
        let mut cursor = at.get();
        if cursor < end {
            for (page, _) in pages.range(cursor / PAGE..=(end - 1) / PAGE) {
                let from = (page * PAGE).max(cursor);
                let to = ((page + 1) * PAGE).min(end);
                found.add(cursor, from - cursor, ExtentKind::Hole);
                found.add(from, to - from, ExtentKind::Data);
                cursor = to;
            }
            found.add(cursor, end - cursor, ExtentKind::Hole);
        }
        Ok(found.into_vec())
    }
}
