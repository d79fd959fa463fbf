//! The last step of receiving: what arrived becomes a disk, or what a disk is now, with its snapshot, in one checkpoint.

use crate::Pool;
use crate::PoolError;
use crate::catalog::{Catalog, Is, State};
use crate::core::Core;
use crate::pool::{idle_head, new_state};
use crate::stream::StreamError;
use crate::stream::record::Header;
use crate::sync::PoisonError;
use crate::sync::atomic::Ordering;

impl Pool {
    /// Gives a disk that was received whole its name and its snapshot; if it started as the snapshot of a disk, that disk
    /// becomes what it is, and it is no more.
    pub(super) fn adopt(
        &self,
        header: &Header,
        partial: &str,
        disk: &str,
    ) -> Result<(), StreamError> {
        match header.base {
            None => self.core.checkpoint(|core, catalog| {
                let of = catalog.disk(partial)?.clone();
                catalog.may_take(0, disk)?;
                let head = idle_head(catalog, &of)?;
                catalog.change(of.id, |state| disk.clone_into(&mut state.name));
                disk.clone_into(&mut head.name.lock().unwrap_or_else(PoisonError::into_inner));
                take_snapshot(core, catalog, &of, of.id, header);
                Ok(())
            })?,
            Some(_) => {
                let base = self.base_of(header, disk)?;
                self.core.checkpoint(|core, catalog| {
                    let base = catalog.snapshot(disk, &base)?.id;
                    become_what_arrived(core, catalog, (partial, disk), base, header)
                })?;
            }
        }
        Ok(())
    }
}

fn become_what_arrived(
    core: &Core,
    catalog: &mut Catalog,
    (partial, disk): (&str, &str),
    base: u64,
    header: &Header,
) -> Result<(), PoolError> {
    let new = catalog.disk(partial)?.clone();
    let old = catalog.disk(disk)?.clone();
    catalog.may_take(old.id, &header.snapshot_name)?;
    let new_head = idle_head(catalog, &new)?;
    let head = idle_head(catalog, &old)?;
    // Whoever took a snapshot or rolled back meanwhile made another disk of it.
    if old.parent != base || new.parent != base {
        return Err(PoolError::InUse { name: disk.to_owned() });
    }
    // What the disk has of its own is at most maps that say what its snapshot says.
    core.give_up(catalog, old.root, catalog.floor(&old));
    core.leaves.forget(|(owner, _)| *owner == old.id || *owner == new.id);
    core.space.give_back(new_head.take_lease());
    catalog.heads.remove(&new.id);
    catalog.remove(new.id);
    head.size.store(new.size, Ordering::Release);
    head.referenced.store(new.referenced, Ordering::Relaxed);
    let written = head.written.fetch_add(new.written, Ordering::Relaxed) + new.written;
    let (root, shown) = (new.root, new.shown);
    head.move_to(|place| place.root = root);
    head.shown.store(shown.pack(), Ordering::Release);
    catalog.change(old.id, |state| {
        state.root = root;
        state.shown = shown;
        state.size = new.size;
        state.referenced = new.referenced;
        state.written = written;
    });
    take_snapshot(core, catalog, &new, old.id, header);
    Ok(())
}

/// The snapshot that was sent, of a disk that is now `of`.
fn take_snapshot(core: &Core, catalog: &mut Catalog, of: &State, owner: u64, header: &Header) {
    let mut state = new_state(catalog, Is::Snapshot, &header.snapshot_name, of.size);
    state.owner = owner;
    state.parent = of.parent;
    state.root = of.root;
    state.shown = of.shown;
    state.referenced = of.referenced;
    state.epoch = core.epoch.fetch_add(1, Ordering::AcqRel);
    state.identity = header.snapshot;
    let (id, epoch) = (state.id, state.epoch);
    catalog.add(state);
    catalog.change(owner, |disk| disk.parent = id);
    if let Some(head) = catalog.heads.get(&owner) {
        head.move_to(|place| {
            place.floor = epoch;
            place.merged = None;
        });
    }
}
