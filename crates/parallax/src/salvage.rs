//! What is left of a pool whose catalog is damaged.
//!
//! A checkpoint leaves the one before it where it was. As long as that one's catalog and maps can be read, it and the
//! log since say all that the newer one said; blocks that were freed in between may be others' by now, so nothing
//! is freed on the way (`docs/formats/parallax.md`). Where that cannot be read either, all records that can be read
//! are kept, and what they need of the others is put in their place: a snapshot whose disk is gone gets a disk, and a
//! parent that is gone a stand-in, which is never merged and under which nobody owns what may be another's.

use std::collections::{BTreeMap, BTreeSet};

use kiln_block::{BlockDevice, ByteOffset};

use crate::PoolError;
use crate::catalog::{Catalog, Is, State};
use crate::core::Core;
use crate::format::{BLOCK, BLOCK_LEN, SUPERBLOCKS, Superblock};
use crate::node::Entry;
use crate::pool::new_state;

/// A catalog that was put together, and what there is no more.
pub(crate) struct Salvaged {
    pub(crate) catalog: Catalog,
    pub(crate) losses: Vec<String>,
    /// The checkpoint it is of, where that is not the newest.
    pub(crate) older: Option<Superblock>,
}

/// The superblock of the checkpoint before that one, where it is still there.
fn one_before(
    device: &dyn BlockDevice,
    newest: &Superblock,
) -> Result<Option<Superblock>, PoolError> {
    let wanted = newest.generation.wrapping_sub(1);
    for copy in (0..SUPERBLOCKS).filter(|copy| copy / 2 == wanted & 1) {
        let mut bytes = [0; BLOCK];
        let at = ByteOffset::new(copy * BLOCK_LEN);
        device.read_at(at, &mut bytes).map_err(PoolError::device("read"))?;
        let found = Superblock::decode(&bytes).ok().filter(|found| {
            found.generation == wanted
                && found.uuid == newest.uuid
                && found.layout.data_start == newest.layout.data_start
                && found.wal_batch <= newest.wal_batch
        });
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

impl Core {
    /// Makes a catalog of what can be read. `why` the newest cannot be read is the error where there is nothing.
    pub(crate) fn salvage(
        &self,
        newest: &Superblock,
        why: PoolError,
    ) -> Result<Salvaged, PoolError> {
        let mut poor = None;
        if let Some(older) = one_before(&*self.device, newest)?
            && let Ok(mut catalog) = self.read_catalog(&older, None)
        {
            catalog.next_id = newest.next_id;
            forget_reclaims(&mut catalog);
            // It is looked at as if it were the pool's.
            *self.catalog() = catalog;
            let (_, problems) = self.reached_blocks();
            let catalog = std::mem::take(&mut *self.catalog());
            let losses = vec![format!(
                "the newest catalog ({why}); the pool is what the checkpoint before and the log say, and a disk that \
                 was made, renamed, resized, rolled back or deleted just then is what it was"
            )];
            let salvaged = Salvaged { catalog, losses, older: Some(older) };
            if problems.is_empty() {
                return Ok(salvaged);
            }
            poor = Some(salvaged);
        }
        let mut losses = Vec::new();
        let mut catalog = self.read_catalog(newest, Some(&mut losses))?;
        if catalog.all().next().is_none() {
            return poor.ok_or(why);
        }
        make_whole(&mut catalog, newest, &mut losses);
        catalog.store_anew();
        Ok(Salvaged { catalog, losses, older: None })
    }
}

/// What was being freed since may be others' by now: it is not freed again, and is found free when the free map is made.
fn forget_reclaims(catalog: &mut Catalog) {
    let leaving: Vec<(u64, Is)> = catalog
        .all()
        .filter(|state| state.hidden || state.is == Is::GivenUp)
        .map(|state| (state.id, state.is))
        .collect();
    for (id, is) in leaving {
        match is {
            Is::GivenUp => catalog.remove(id),
            _ => catalog.change(id, |state| {
                state.root = Entry::HOLE;
                state.cursor = 0;
            }),
        }
    }
}

/// Puts something in the place of disks and parents that are gone.
fn make_whole(catalog: &mut Catalog, newest: &Superblock, losses: &mut Vec<String>) {
    // A record that contradicts the others is as good as none.
    let wrong: Vec<u64> = catalog
        .all()
        .filter(|state| {
            state.id >= newest.next_id
                || catalog.get(state.parent).is_some_and(|parent| !may_descend(state, parent))
        })
        .map(|state| state.id)
        .collect();
    for id in wrong {
        if let Some(state) = catalog.get(id) {
            losses.push(format!("the catalog's record of {:?}", state.name));
        }
        catalog.remove(id);
    }
    let mut without_disk: BTreeMap<u64, Vec<State>> = BTreeMap::new();
    let mut without_parent: BTreeMap<u64, Vec<State>> = BTreeMap::new();
    for state in catalog.all() {
        let shown = state.is == Is::Snapshot && !state.hidden && !state.stands_in();
        if shown && catalog.get(state.owner).is_none_or(|owner| owner.is != Is::Disk) {
            without_disk.entry(state.owner).or_default().push(state.clone());
        }
        if state.parent != 0 && catalog.get(state.parent).is_none() {
            without_parent.entry(state.parent).or_default().push(state.clone());
        }
    }
    for (id, children) in without_parent {
        let snapshots = children.iter().filter(|child| child.is == Is::Snapshot);
        let oldest = snapshots.map(|child| child.epoch).min().unwrap_or(newest.epoch);
        let name = format!("lost-{id}");
        let epoch = oldest.saturating_sub(1);
        let stand_in = new_state(catalog, Is::Snapshot, &name, 0);
        catalog.add(State { id, owner: id, epoch, ..stand_in });
    }
    for (owner, mut snapshots) in without_disk {
        snapshots.sort_by_key(|state| state.epoch);
        let Some(last) = snapshots.last().cloned() else { continue };
        let mut name = format!("lost-{owner}");
        while catalog.may_take(0, &name).is_err() {
            name.push('\'');
        }
        let disk = new_state(catalog, Is::Disk, &name, last.size);
        let (id, referenced, shown) = (disk.id, last.referenced, last.shown);
        catalog.add(State { root: last.root, parent: last.id, referenced, shown, ..disk });
        let mut taken = BTreeSet::new();
        for snapshot in snapshots {
            taken.insert(snapshot.name);
            catalog.change(snapshot.id, |state| state.owner = id);
        }
        let taken = taken.into_iter().collect::<Vec<_>>().join(", ");
        losses.push(format!(
            "the disk of the snapshots {taken}; they are those of disk {name:?}, which is what {:?} was",
            last.name
        ));
    }
}

fn may_descend(state: &State, parent: &State) -> bool {
    parent.is == Is::Snapshot && (state.is != Is::Snapshot || parent.epoch < state.epoch)
}
