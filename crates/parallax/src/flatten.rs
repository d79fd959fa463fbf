//! Disks made on a base, and made whole without it.

use std::io::{IoSlice, IoSliceMut};
use std::ops::{ControlFlow, Range};

use kiln_block::{ByteLen, ByteOffset, DeviceError, is_zero};

use crate::apply::Apply;
use crate::base::{Base, Shown};
use crate::catalog::{Is, check_size};
use crate::disk::Disk;
use crate::format::{BASES, BLOCK, BLOCK_LEN, index};
use crate::node::FANOUT;
use crate::pool::{Durability, new_state};
use crate::sync::atomic::Ordering;
use crate::{DiskOptions, Pool, PoolError};

/// What a disk is made on.
#[derive(Debug, Clone, Copy)]
pub struct NewBase<'a> {
    /// Who can open it.
    pub kind: &'a str,
    /// What people call it.
    pub name: &'a str,
    /// Where it is, in the words of its kind.
    pub description: &'a str,
}

impl Pool {
    /// Makes a disk that shows a base where nothing was written to it. Nothing of the base is copied; it is opened to see
    /// how large it is and which, and has to stay what it is. Returns the disk's size, which is whole blocks.
    ///
    /// A pool that ever had such a disk is not opened by builds that do not know of them.
    pub fn create_on_base(
        &self,
        name: &str,
        base: &NewBase<'_>,
        options: &DiskOptions,
    ) -> Result<ByteLen, PoolError> {
        self.core.catalog().may_take(0, name)?;
        let opened = self.core.bases.open(base.name, base.kind, base.description)?;
        let has = opened.device.size();
        let size = ByteLen::new(has.get().div_ceil(BLOCK_LEN).saturating_mul(BLOCK_LEN));
        check_size(size)?;
        // Who does not know of bases must find neither superblock: the one before would be a pool of the past.
        if self.core.features.fetch_or(BASES, Ordering::AcqRel) & BASES == 0 {
            self.checkpoint().and_then(|()| self.checkpoint()).inspect_err(|_| {
                self.core.features.fetch_and(!BASES, Ordering::AcqRel);
            })?;
        }
        self.core.checkpoint(|core, catalog| {
            catalog.may_take(0, name)?;
            let number = catalog.number_of(Base {
                kind: base.kind.to_owned(),
                name: base.name.to_owned(),
                description: base.description.to_owned(),
                size: has,
                identity: opened.identity,
            })?;
            let mut state = new_state(catalog, Is::Disk, name, size.get());
            state.throw_away = options.durability == Durability::None;
            state.quota = options.quota.get() / BLOCK_LEN;
            state.shown = Shown { base: number, blocks: size.get() / BLOCK_LEN };
            catalog.add(state);
            core.bases.is_open(number, opened.device.clone());
            Ok(())
        })?;
        Ok(size)
    }

    /// Copies what a disk shows of its base into the pool, and lets go of the base: what hides it is kept, and zeros
    /// take no space. The disk may be used meanwhile. Its snapshots stay what they are, on the base. `on_progress` hears how
    /// many bytes of how many are behind, and may end it; what was copied by then stays. Returns how much was copied.
    pub fn flatten(
        &self,
        disk: &str,
        on_progress: &mut dyn FnMut(ByteLen, ByteLen) -> ControlFlow<()>,
    ) -> Result<ByteLen, PoolError> {
        let handle = self.open_disk(disk)?;
        let failed = |source| PoolError::Flatten { name: disk.to_owned(), source };
        let mut copied = 0;
        let mut lba = 0;
        loop {
            // It becomes less when the disk is made smaller.
            let shown = handle.shown();
            if lba >= shown.blocks {
                break;
            }
            let behind = (ByteLen::new(lba * BLOCK_LEN), ByteLen::new(shown.blocks * BLOCK_LEN));
            if on_progress(behind.0, behind.1).is_break() {
                return Err(PoolError::Stopped);
            }
            let next = ((lba / FANOUT + 1) * FANOUT).min(shown.blocks);
            copied += handle.copy_up(shown, lba..next).map_err(failed)?;
            lba = next;
        }
        self.core.checkpoint(|_, catalog| {
            handle.head.shown.store(Shown::NOTHING.pack(), Ordering::Release);
            catalog.change(handle.head.id, |disk| disk.shown = Shown::NOTHING);
            Ok(())
        })?;
        Ok(ByteLen::new(copied * BLOCK_LEN))
    }
}

impl Disk {
    /// Copies what shows of the base in a range within one leaf; returns how many blocks that were.
    fn copy_up(&self, shown: Shown, range: Range<u64>) -> Result<u64, DeviceError> {
        if self.core.is_base_silent(shown, range.clone()) {
            return Ok(0);
        }
        let at = ByteOffset::new(range.start * BLOCK_LEN);
        let mut copied = 0;
        let mut lba = range.start;
        while lba < range.end {
            let leaf = self.core.leaf(&self.head, lba / FANOUT).map_err(|e| e.on_disk(at))?;
            let most = index(range.end - lba);
            let (block, count) = leaf.read().stretch(index(lba % FANOUT), most);
            drop(leaf);
            let stretch = lba..lba + count as u64;
            // What was written to meanwhile is looked at again.
            if block.is_some() || self.copy_stretch(stretch.clone(), &mut copied)? {
                lba = stretch.end;
            }
        }
        Ok(copied)
    }

    /// False if something was written to the stretch meanwhile.
    fn copy_stretch(&self, blocks: Range<u64>, copied: &mut u64) -> Result<bool, DeviceError> {
        let mut bytes = vec![0; index(blocks.end - blocks.start) * BLOCK];
        let count = bytes.len() / BLOCK;
        self.read_blocks(blocks.start, count, &mut [IoSliceMut::new(&mut bytes)])?;
        let chunks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
        let mut lba = blocks.start;
        for run in chunks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let end = lba + run.len() as u64;
            while lba < end && !is_zero(run[0]) {
                let from = index(lba - blocks.start) * BLOCK;
                let upto = index(end - blocks.start) * BLOCK;
                let Some(count) = self.fill(lba, &bytes[from..upto])? else { return Ok(false) };
                lba += count;
                *copied += count;
            }
            lba = end;
        }
        Ok(true)
    }

    /// Writes the first of some blocks, unless the map says something about them by now; how many it were.
    fn fill(&self, lba: u64, bytes: &[u8]) -> Result<Option<u64>, DeviceError> {
        let fail = |error: PoolError| error.on_disk(ByteOffset::new(lba * BLOCK_LEN));
        self.core.make_room().map_err(fail)?;
        let run = self.fresh_blocks((bytes.len() / BLOCK) as u64).map_err(fail)?;
        let mut crcs = vec![0; index(run.len)];
        let slices = [IoSlice::new(&bytes[..index(run.len) * BLOCK])];
        let filled = self.write_run(lba, run, &slices, &mut crcs).and_then(|()| {
            let change = Apply::Fill { block: run.start, crcs: &crcs };
            self.core.try_apply(&self.head, lba, change).map_err(fail)
        });
        if !matches!(filled, Ok(true)) {
            self.core.space.give_back(run);
        }
        Ok(filled?.then_some(run.len))
    }
}
