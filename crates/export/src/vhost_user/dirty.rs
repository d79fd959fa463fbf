//! Which pages of guest memory were written: a bitmap that the front-end reads while it saves or moves a machine.

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

const PAGE_SHIFT: u32 = 12;

/// A bit for each 4 KiB of the guest's physical address space, shared with the front-end.
#[derive(Debug)]
pub(crate) struct DirtyLog(MmapRegion);

impl DirtyLog {
    pub(crate) fn map(file: File, at: u64, len: u64) -> Option<DirtyLog> {
        let len = usize::try_from(len).ok()?;
        MmapRegion::from_file(FileOffset::new(file, at), len).ok().map(DirtyLog)
    }

    /// Says that bytes were written; after they were, or the front-end might copy them too early.
    pub(crate) fn mark(&self, at: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|len| at.checked_add(len)) else { return };
        for page in at >> PAGE_SHIFT..=last >> PAGE_SHIFT {
            // Beyond the bitmap is memory that the front-end does not want to know about.
            let Ok(byte) = usize::try_from(page / 8) else { return };
            let Ok(bits) = self.0.get_atomic_ref::<AtomicU8>(byte) else { return };
            bits.fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }
}
