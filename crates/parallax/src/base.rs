//! Bases: images outside of the pool that disks show where nothing was written to them.
//!
//! A disk that is made on a base has a map of holes. What its map says nothing about is read from the base, up to where the
//! disk [shows](Shown) it; zeros that hide the base are said in the map. The pool knows of a base what it takes to find
//! it again and to tell it from another; whoever gave it a way to [open](OpenBase) bases knows their formats. A base
//! is opened when it is first needed, and one that is not what it was is not read.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IoSliceMut;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, ExtentKind, Extents, buffers_len};

use crate::PoolError;
use crate::core::Core;
use crate::disk::{Disk, slices_mut};
use crate::format::{BLOCK, BLOCK_LEN, index};
use crate::node::FANOUT;
use crate::sync::atomic::Ordering;
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// For how long what could not be opened is not tried again: many blocks may be asked for meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// An image outside of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Who can open it.
    pub kind: String,
    /// What people call it.
    pub name: String,
    /// Where it is, in the words of its kind.
    pub description: String,
    /// How large it is.
    pub size: ByteLen,
    /// The same for the same bytes, as far as its kind can tell without reading them.
    pub identity: [u8; 32],
}

/// A base that is open.
#[derive(Clone)]
pub struct OpenedBase {
    /// What it holds.
    pub device: Arc<dyn BlockDevice>,
    /// The same for the same bytes.
    pub identity: [u8; 32],
}

impl fmt::Debug for OpenedBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedBase").field("size", &self.device.size()).finish_non_exhaustive()
    }
}

/// Opens bases for a pool.
pub trait OpenBase: fmt::Debug + Send + Sync {
    /// Opens a base by its kind and description. An error says in one line what is wrong where, and what helps.
    fn open(&self, kind: &str, description: &str) -> Result<OpenedBase, String>;
}

/// What a disk or snapshot shows where its map says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Which base; 0 for none.
    pub(crate) base: u32,
    /// How many blocks of it, from its start.
    pub(crate) blocks: u64,
}

impl Shown {
    pub(crate) const NOTHING: Shown = Shown { base: 0, blocks: 0 };
    /// Bases have numbers of 24 bits, blocks of 40.
    pub(crate) const MOST_BASES: u32 = (1 << 24) - 1;

    pub(crate) fn pack(self) -> u64 {
        self.blocks << 24 | u64::from(self.base)
    }

    pub(crate) fn unpack(packed: u64) -> Shown {
        let base = u32::try_from(packed & u64::from(Shown::MOST_BASES)).unwrap_or(0);
        if base == 0 { Shown::NOTHING } else { Shown { base, blocks: packed >> 24 } }
    }

    pub(crate) fn is_nothing(self) -> bool {
        self.base == 0
    }

    /// The base that shows at a block; 0 for none.
    pub(crate) fn at(self, lba: u64) -> u32 {
        if lba < self.blocks { self.base } else { 0 }
    }

    /// The leaves at which two disks whose maps say nothing show different things.
    pub(crate) fn differs_from(self, other: Shown) -> std::ops::Range<u64> {
        let most = self.blocks.max(other.blocks);
        let same = if self.base == other.base { self.blocks.min(other.blocks) } else { 0 };
        if same == most { 0..0 } else { same / FANOUT..most.div_ceil(FANOUT) }
    }

    /// What is left of it on a disk of so many blocks.
    pub(crate) fn cut(self, blocks: u64) -> Shown {
        Shown { blocks: self.blocks.min(blocks), ..self }
    }
}

/// A base and how it was opened, or why it was not.
#[derive(Default)]
struct Place {
    device: OnceLock<Arc<dyn BlockDevice>>,
    /// Held while it is being opened.
    failed: Mutex<Option<(Instant, PoolError)>>,
}

/// The bases that were needed so far.
pub(crate) struct Bases {
    opener: Option<Arc<dyn OpenBase>>,
    places: Mutex<BTreeMap<u32, Arc<Place>>>,
}

impl Bases {
    pub(crate) fn new(opener: Option<Arc<dyn OpenBase>>) -> Bases {
        Bases { opener, places: Mutex::default() }
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens what may become a base.
    pub(crate) fn open(
        &self,
        name: &str,
        kind: &str,
        description: &str,
    ) -> Result<OpenedBase, PoolError> {
        let failed = |found: String| PoolError::Base { name: name.to_owned(), found };
        let opener = self.opener.as_ref();
        let opener = opener.ok_or_else(|| failed("this program cannot open bases".to_owned()))?;
        opener.open(kind, description).map_err(failed)
    }

    /// It is open already.
    pub(crate) fn is_open(&self, number: u32, device: Arc<dyn BlockDevice>) {
        let place = self.places().entry(number).or_default().clone();
        // One that was opened meanwhile is as good.
        let _ = place.device.set(device);
    }

    /// No disk has these any more, and the numbers may become others'.
    pub(crate) fn forget(&self, numbers: &[u32]) {
        if !numbers.is_empty() {
            self.places().retain(|number, _| !numbers.contains(number));
        }
    }
}

impl Core {
    /// A base, opened if it is not yet. Called without locks but `commit`.
    pub(crate) fn base(&self, number: u32) -> Result<Arc<dyn BlockDevice>, PoolError> {
        let place = self.bases.places().entry(number).or_default().clone();
        if let Some(device) = place.device.get() {
            return Ok(device.clone());
        }
        let base = self.catalog().bases.get(number).cloned();
        let Some(base) = base else {
            let found = "the pool has no record of it".to_owned();
            return Err(PoolError::Base { name: format!("number {number}"), found });
        };
        let mut failed = place.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = place.device.get() {
            return Ok(device.clone());
        }
        if let Some((when, PoolError::Base { name, found })) = &*failed
            && when.elapsed() < PATIENCE
        {
            return Err(PoolError::Base { name: name.clone(), found: found.clone() });
        }
        match self.open_base(&base) {
            Ok(device) => {
                let _ = place.device.set(device.clone());
                Ok(device)
            }
            Err(found) => {
                let error = || PoolError::Base { name: base.name.clone(), found: found.clone() };
                *failed = Some((Instant::now(), error()));
                Err(error())
            }
        }
    }

    fn open_base(&self, base: &Base) -> Result<Arc<dyn BlockDevice>, String> {
        let opened = match self.bases.open(&base.name, &base.kind, &base.description) {
            Ok(opened) => opened,
            Err(PoolError::Base { found, .. }) => return Err(found),
            Err(error) => return Err(error.to_string()),
        };
        let size = opened.device.size();
        if size != base.size {
            let was = base.size;
            return Err(format!(
                "it has {size} and had {was} when disks were made on it; put back what was there"
            ));
        }
        if opened.identity != base.identity {
            return Err(
                "it is another image than disks were made on; put back what was there".to_owned()
            );
        }
        Ok(opened.device)
    }

    /// Fills whole blocks from a base; what it does not show is zeros.
    fn read_base(
        &self,
        shown: Shown,
        lba: u64,
        slices: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let at = ByteOffset::new(lba * BLOCK_LEN);
        let len = buffers_len(slices);
        if shown.at(lba) == 0 {
            slices.iter_mut().for_each(|slice| slice.fill(0));
            return Ok(());
        }
        let base = self.base(shown.base).map_err(|error| error.on_disk(at))?;
        let end = base.size().get().min(shown.blocks * BLOCK_LEN);
        let there = end.saturating_sub(at.get()).min(len.get());
        let read = if there == len.get() {
            base.read_vectored_at(at, slices)
        } else {
            let (there, len) = (index(there), index(len.get()));
            slices_mut(slices, there..len).iter_mut().for_each(|slice| slice.fill(0));
            base.read_vectored_at(at, &mut slices_mut(slices, 0..there))
        };
        read.map_err(|error| self.of_base(shown.base, at, error))
    }

    /// What a base answered, with its name.
    fn of_base(&self, number: u32, at: ByteOffset, error: DeviceError) -> DeviceError {
        let name = self.catalog().bases.get(number).map(|base| base.name.clone());
        let name = name.unwrap_or_default();
        let mut text = format!("base {name:?}: {error}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        match error {
            DeviceError::Damaged { .. } => DeviceError::Damaged { at, found: text },
            _ => DeviceError::Io { act: "read", at, source: std::io::Error::other(text) },
        }
    }

    /// What a base has in a range of blocks, to be added to a disk's extents. One that does not say may have data.
    fn base_extents(&self, shown: Shown, blocks: std::ops::Range<u64>, found: &mut Extents) {
        let (start, end) = (blocks.start * BLOCK_LEN, blocks.end * BLOCK_LEN);
        if shown.is_nothing() {
            return found.add(start, end - start, ExtentKind::Hole);
        }
        let cut = (shown.blocks * BLOCK_LEN).clamp(start, end);
        let Ok(base) = self.base(shown.base) else {
            found.add(start, cut - start, ExtentKind::Data);
            return found.add(cut, end - cut, ExtentKind::Hole);
        };
        let there = base.size().get().clamp(start, cut);
        let (at, len) = (ByteOffset::new(start), ByteLen::new(there - start));
        let Ok(extents) = base.extents(at, len) else {
            found.add(start, cut - start, ExtentKind::Data);
            return found.add(cut, end - cut, ExtentKind::Hole);
        };
        // Blocks that have any data have data, as if they were the disk's own.
        let mut done = start;
        for extent in extents.iter().filter(|extent| extent.kind == ExtentKind::Data) {
            let from = (extent.at.get() / BLOCK_LEN * BLOCK_LEN).max(done);
            let upto = (extent.at.get() + extent.len.get()).next_multiple_of(BLOCK_LEN).max(from);
            found.add(done, from - done, ExtentKind::Hole);
            found.add(from, upto - from, ExtentKind::Data);
            done = upto;
        }
        found.add(done, end - done, ExtentKind::Hole);
    }

    /// Whether a base is known to have nothing in a range of blocks.
    pub(crate) fn is_base_silent(&self, shown: Shown, blocks: std::ops::Range<u64>) -> bool {
        let mut found = Extents::default();
        self.base_extents(shown, blocks, &mut found);
        found.into_vec().iter().all(|extent| extent.kind == ExtentKind::Hole)
    }
}

impl Disk {
    /// What shows where its map says nothing. Looked at before the map: what hides it is in the map first.
    pub(crate) fn shown(&self) -> Shown {
        Shown::unpack(self.head.shown.load(Ordering::Acquire))
    }

    /// Fills whole blocks that the map said nothing about.
    #[cold]
    pub(crate) fn read_unmapped(
        &self,
        shown: Shown,
        lba: u64,
        slices: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        match self.core.read_base(shown, lba, slices) {
            // The base was copied into the pool meanwhile, and is no more.
            Err(_) if self.shown() != shown => {
                let count = index(buffers_len(slices).get()) / BLOCK;
                self.read_blocks(lba, count, slices)
            }
            read => read,
        }
    }

    /// Extents of blocks that the map says nothing about.
    pub(crate) fn unmapped_extents(
        &self,
        shown: Shown,
        blocks: std::ops::Range<u64>,
        found: &mut Extents,
    ) {
        if blocks.start < blocks.end {
            self.core.base_extents(shown, blocks, found);
        }
    }

    /// Makes whole blocks read as zeros where a base shows.
    pub(crate) fn hide_blocks(
        &self,
        shown: Shown,
        blocks: std::ops::Range<u64>,
    ) -> Result<(), PoolError> {
        use crate::apply::Apply;
        let mut lba = blocks.start;
        while lba < blocks.end {
            let count = (FANOUT - lba % FANOUT).min(blocks.end - lba);
            self.core.make_room()?;
            let change = match self.core.is_base_silent(shown, lba..lba + count) {
                true => Apply::Clear { count },
                false => Apply::Zero { count },
            };
            self.core.apply(&self.head, lba, change)?;
            lba += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_fits_into_its_field() {
        let most = Shown { base: Shown::MOST_BASES, blocks: 1 << 32 };
        for shown in [Shown::NOTHING, Shown { base: 1, blocks: 0 }, most] {
            assert_eq!(Shown::unpack(shown.pack()), shown);
        }
        assert_eq!(Shown::unpack(7 << 24), Shown::NOTHING);
        assert_eq!((most.cut(5).at(4), most.cut(5).at(5)), (most.base, 0));
    }
}
