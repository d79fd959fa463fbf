//! Changes of the catalog that cost one record of the log and one sync: snapshots, clones, and a snapshot's deletion.
//!
//! They are made in memory while no disk changes, so that their record follows the records of all that the
//! snapshot is to have; the next checkpoint stores them. Opening a pool makes them again.

use crate::PoolError;
use crate::catalog::{Catalog, Is, State};
use crate::checkpoint::{FEW_LEAVES, catalog_needs};
use crate::core::Core;
use crate::log::Pace;
use crate::reclaim::Share;
use crate::sync::atomic::Ordering;
use crate::tree::{Fresh, nodes_for};
use crate::wal::Change;

impl Core {
    /// Makes a change that `decide` finds possible, and durable.
    pub(crate) fn log_change(
        &self,
        haste: Pace,
        decide: impl FnOnce(&Core, &mut Catalog) -> Result<Change, PoolError>,
    ) -> Result<(), PoolError> {
        // No checkpoint begins or ends meanwhile.
        let mut commit = self.commit();
        self.refuse_if_poisoned()?;
        if self.urgency() >= 100 || self.dirty_leaves.load(Ordering::Relaxed) > FEW_LEAVES {
            self.store(&mut commit, Share::NONE)?;
        }
        {
            // Whoever lists what is in the catalog may have it for long.
            let mut catalog = self.catalog();
            let _gate = self.close();
            let change = decide(self, &mut catalog)?;
            self.make_change(&mut catalog, &change)?;
            self.gathering.change(&change);
        }
        drop(commit);
        match haste {
            Pace::Now => self.flush_for(false),
            Pace::Patient => self.flush_with_others(),
        }
    }

    fn make_change(&self, catalog: &mut Catalog, change: &Change) -> Result<(), PoolError> {
        match change {
            Change::Snapshot { disk, id, epoch, created, name } => {
                self.store_now(catalog, *disk)?;
                self.epoch.fetch_max(epoch + 1, Ordering::AcqRel);
                let Some(of) = catalog.get(*disk) else { return Ok(()) };
                let state = State {
                    owner: *disk,
                    epoch: *epoch,
                    ..State::evolved(of, Is::Snapshot, *id, *created, name)
                };
                catalog.add(state);
                catalog.change(*disk, |disk| disk.parent = *id);
                if let Some(head) = catalog.heads.get(disk) {
                    head.move_to(|place| {
                        place.floor = *epoch;
                        place.merged = None;
                    });
                }
            }
            Change::Clone { of, id, quota, created, throw_away, name } => {
                let Some(parent) = catalog.get(*of) else { return Ok(()) };
                let state = State {
                    parent: *of,
                    quota: *quota,
                    throw_away: *throw_away,
                    ..State::evolved(parent, Is::Disk, *id, *created, name)
                };
                catalog.add(state);
            }
            Change::Hide { id } => {
                catalog.views.remove(id);
                self.leaves.forget(|(owner, _)| owner == id);
                catalog.change(*id, |state| state.hidden = true);
                self.leaving.store(catalog.reclaimable(), Ordering::Release);
            }
        }
        Ok(())
    }

    /// Makes the map of a disk that is written to, in memory, so that its root says all it has.
    fn store_now(&self, catalog: &mut Catalog, disk: u64) -> Result<(), PoolError> {
        let Some(head) = self.changed().remove(&disk) else { return Ok(()) };
        let needs = nodes_for(&head.dirty().leaves) + catalog_needs(catalog.dirty.len() as u64);
        if let Err(error) = self.set_aside(needs) {
            self.changed().insert(disk, head);
            return Err(error);
        }
        let frozen = self.freeze(head);
        let mut fresh = Fresh::default();
        let made = self.build(&frozen, &mut fresh);
        self.release_aside();
        match made {
            Ok(root) => {
                self.space.unmap_nodes(&fresh.replaced);
                self.made_nodes.fetch_add(fresh.placed.len(), Ordering::Relaxed);
                frozen.is_stored(catalog, root);
                Ok(())
            }
            Err(error) => {
                self.unmake(&fresh);
                self.thaw(frozen);
                Err(error)
            }
        }
    }

    /// Makes a change again that the log has, unless a part of what it was about was lost with the power: then nobody was told
    /// that it is durable.
    pub(crate) fn replay_change(&self, change: &Change, lost: bool) -> Result<(), PoolError> {
        let mut catalog = self.catalog();
        let is =
            |id: u64, is: Is| catalog.get(id).is_some_and(|state| state.is == is && !state.hidden);
        let fresh = |id: u64| id > 0 && id < 1 << 62 && catalog.get(id).is_none();
        let possible = match change {
            Change::Snapshot { disk, id, epoch, name, .. } => {
                let floor = catalog.get(*disk).map_or(0, |disk| catalog.floor(disk));
                is(*disk, Is::Disk)
                    && fresh(*id)
                    && (floor + 1..1 << 39).contains(epoch)
                    && catalog.may_take(*disk, name).is_ok()
            }
            Change::Clone { of, id, quota, name, .. } => {
                is(*of, Is::Snapshot)
                    && fresh(*id)
                    && *quota < 1 << 50
                    && catalog.may_take(0, name).is_ok()
            }
            Change::Hide { id } => is(*id, Is::Snapshot),
        };
        let possible = possible && !lost;
        if let (Change::Snapshot { id, .. } | Change::Clone { id, .. }, true) = (change, possible) {
            catalog.next_id = catalog.next_id.max(id + 1);
        }
        if possible {
            self.make_change(&mut catalog, change)?;
        }
        // What was written after a snapshot was born later, with it or without.
        if let Change::Snapshot { epoch, .. } = change
            && *epoch < 1 << 39
        {
            self.epoch.fetch_max(epoch + 1, Ordering::AcqRel);
        }
        Ok(())
    }
}
