//! Changes of a disk's map, a run of blocks within one leaf at a time.

use std::sync::Arc;

use crate::PoolError;
use crate::core::Core;
use crate::format::index;
use crate::head::Head;
use crate::node::{Entry, FANOUT, ZEROS};
use crate::space::Run;
use crate::sync::atomic::Ordering;

/// What happens to a run of blocks within one leaf.
#[derive(Clone, Copy)]
pub(crate) enum Apply<'a> {
    /// They are now at these blocks in a row.
    Map { block: u64, crcs: &'a [u32] },
    /// The same, unless the only block is no longer what it was.
    Replace { block: u64, crcs: &'a [u32], was: Entry },
    /// The same, unless the map says something about any of them by now.
    Fill { block: u64, crcs: &'a [u32] },
    /// The map says nothing about them.
    Clear { count: u64 },
    /// They are zeros, whatever a base has there.
    Zero { count: u64 },
}

/// Checksums of what is stored nowhere.
static NO_SUMS: [u32; 256] = [0; 256];

impl Apply<'_> {
    fn count(&self) -> u64 {
        match self {
            Apply::Map { crcs, .. } | Apply::Replace { crcs, .. } | Apply::Fill { crcs, .. } => {
                crcs.len() as u64
            }
            Apply::Clear { count } | Apply::Zero { count } => *count,
        }
    }

    /// The first block and the checksums of what is stored.
    fn stored(&self) -> Option<(u64, &[u32])> {
        match self {
            Apply::Map { block, crcs }
            | Apply::Replace { block, crcs, .. }
            | Apply::Fill { block, crcs } => Some((*block, crcs)),
            Apply::Clear { .. } | Apply::Zero { .. } => None,
        }
    }
}

impl Core {
    /// What a disk's map says about a block.
    pub(crate) fn entry(&self, head: &Head, lba: u64) -> Result<Entry, PoolError> {
        let leaf = self.leaf(head, lba / FANOUT)?;
        let map = leaf.read();
        Ok(map.get(index(lba % FANOUT)))
    }

    pub(crate) fn apply(
        &self,
        head: &Arc<Head>,
        lba: u64,
        change: Apply<'_>,
    ) -> Result<(), PoolError> {
        self.try_apply(head, lba, change).map(|_| ())
    }

    /// Changes the map of a disk, within one leaf; false if it is not what it was.
    pub(crate) fn try_apply(
        &self,
        head: &Arc<Head>,
        lba: u64,
        change: Apply<'_>,
    ) -> Result<bool, PoolError> {
        let number = lba / FANOUT;
        // It may have to be read. As long as it is held it is the one in memory.
        let leaf = self.leaf(head, number)?;
        let _gate = self.enter();
        let place = head.place();
        let birth = self.epoch.load(Ordering::Acquire);
        let count = change.count();
        let (first, places) = (index(lba % FANOUT), index(count));
        let mut leaf_map = leaf.write();
        match change {
            Apply::Replace { was, .. } if leaf_map.get(first) != was => return Ok(false),
            Apply::Fill { .. } if !leaf_map.is_silent(first, places) => return Ok(false),
            Apply::Clear { .. } if leaf_map.is_silent(first, places) => return Ok(true),
            Apply::Zero { .. } if leaf_map.is_zeros(first, places) => return Ok(true),
            _ => {}
        }
        let stored = change.stored();
        let quota = head.quota.load(Ordering::Relaxed);
        if stored.is_some() && quota > 0 {
            let holes = count - leaf_map.mapped_within(first, places) as u64;
            if holes > 0 && head.referenced.load(Ordering::Relaxed).saturating_add(holes) > quota {
                return Err(PoolError::NoSpace);
            }
        }
        let new = match change {
            Apply::Zero { .. } => Some((ZEROS, birth, &NO_SUMS[..places])),
            _ => stored.map(|(block, crcs)| (block, birth, crcs)),
        };
        let mut gone = 0;
        leaf_map.replace(first, places, new, |piece| {
            if !piece.is_zeros() {
                gone += piece.len() as u64;
                let run = Run { start: piece.block(), len: piece.len() as u64 };
                self.let_go(head, &place, number, run, piece.birth());
            }
        });
        let mut come = 0;
        match (stored, change) {
            (Some((block, crcs)), _) => {
                come = count;
                self.space.use_run(Run { start: block, len: count });
                self.gathering.map(head.id, lba, birth, block, crcs);
            }
            (None, Apply::Zero { .. }) => self.gathering.zero(head.id, lba, birth, places),
            (None, _) => self.gathering.clear(head.id, lba, places),
        }
        self.make_dirty(head, number, &leaf);
        drop(leaf_map);
        head.referenced.fetch_add(come, Ordering::Relaxed);
        head.referenced.fetch_sub(gone, Ordering::Relaxed);
        head.written.fetch_add(come, Ordering::Relaxed);
        Ok(true)
    }

    /// Looks for space, and says whether there is any: held by disks that took it ahead, beyond the pool's end, or waiting to be free.
    pub(crate) fn scrape(&self) -> Result<bool, PoolError> {
        if self.grow()? && self.space.available() > 0 {
            return Ok(true);
        }
        let heads: Vec<Arc<Head>> = self.catalog().heads.values().cloned().collect();
        for head in heads {
            self.space.give_back(head.take_lease());
        }
        let mut commit = self.commit();
        while self.space.available() == 0 {
            self.refuse_if_poisoned()?;
            let more = self.space.waiting() > 0 || self.catalog().wants_reclaim();
            if !more {
                break;
            }
            self.counters.foreground_checkpoints.add(1);
            self.store(&mut commit, crate::reclaim::SHARE)?;
        }
        Ok(self.space.available() > 0)
    }
}
