//! Giving back the space of what was deleted, a little with every checkpoint.
//!
//! A snapshot is merged into its only child: what the child does not have at the same place, and what was not
//! there already in the snapshot's own parent, is free. Parts that are the same are skipped whole, so the
//! work is in proportion to what becomes free. While a merge into a disk is under way, leaves below
//! its cursor already belong to the disk, leaves above it still to the snapshot.

use crate::PoolError;
use crate::catalog::{Catalog, Is, State};
use crate::core::Core;
use crate::node::{Entry, ROOT_LEVEL};
use crate::tree::Reclaim;

/// Nodes one checkpoint's share visits, while writers wait.
const BUDGET: usize = 256;

impl Core {
    /// One share. A map that cannot be read ends the reclaiming, not the checkpoint.
    pub(crate) fn reclaim_some(&self, catalog: &mut Catalog) {
        let mut budget = BUDGET;
        while budget > 0 && catalog.reclaim_stopped.is_none() {
            let Some(id) = catalog.next_reclaim() else { break };
            match self.reclaim_one(catalog, id, budget) {
                Ok(left) => budget = left,
                Err(error) => catalog.reclaim_stopped = Some(error),
            }
        }
    }

    /// Goes on with the merge of that snapshot to its end, if one is under way.
    pub(crate) fn finish_merge(&self, catalog: &mut Catalog, id: u64) -> Result<(), PoolError> {
        while catalog.get(id).is_some_and(|state| state.hidden && state.cursor > 0) {
            self.reclaim_one(catalog, id, usize::MAX)?;
        }
        Ok(())
    }

    fn reclaim_one(
        &self,
        catalog: &mut Catalog,
        id: u64,
        budget: usize,
    ) -> Result<usize, PoolError> {
        let Some(state) = catalog.get(id).cloned() else { return Ok(budget) };
        let (keep, child) = match state.is {
            Is::GivenUp => (state.epoch, None),
            _ => (catalog.floor(&state), catalog.children_of(id).next()),
        };
        let new =
            child.and_then(|child| catalog.get(child)).map_or(Entry::HOLE, |child| child.root);
        let mut walk = Reclaim { keep, cursor: state.cursor, budget, freed: Vec::new() };
        let stopped = self.reclaim(&mut walk, (ROOT_LEVEL, 0), state.root, new)?;
        self.space.unmap(&walk.freed);
        let head = child.and_then(|child| catalog.heads.get(&child)).cloned();
        if let Some(cursor) = stopped {
            catalog.change(id, |state| state.cursor = cursor);
            if let Some(head) = head {
                head.move_to(|place| place.merged = Some((cursor, keep)));
            }
            return Ok(0);
        }
        if let Some(child) = child {
            catalog.change(child, |child| child.parent = state.parent);
        }
        if let Some(head) = head {
            head.move_to(|place| {
                place.floor = keep;
                place.merged = None;
            });
        }
        catalog.remove(id);
        Ok(walk.budget.saturating_sub(1))
    }

    /// Leaves a map to be freed: what was born after `keep`.
    pub(crate) fn give_up(&self, catalog: &mut Catalog, root: Entry, keep: u64) {
        if root.is_hole() || root.birth <= keep {
            return;
        }
        let id = catalog.new_id();
        catalog.add(State {
            is: Is::GivenUp,
            hidden: false,
            throw_away: false,
            name: String::new(),
            root,
            id,
            owner: 0,
            parent: 0,
            epoch: keep,
            size: 0,
            referenced: 0,
            written: 0,
            quota: 0,
            created: 0,
            cursor: 0,
            identity: [0; 16],
        });
    }
}
