//! Giving back the space of what was deleted, a share with each of some checkpoints.
//!
//! A snapshot is merged into its only child: what the child does not have at the same place, and what was not
//! there already in the snapshot's own parent, is free. Parts that are the same are skipped whole, so the
//! work is in proportion to what becomes free. While a merge into a disk is under way, leaves below
//! its cursor already belong to the disk, leaves above it still to the snapshot.
//!
//! Disks are written to meanwhile. A share compares stored maps as they were at the checkpoint's cut; what a disk has
//! let go of since, and did not own then, it may own when the share is done ([`Core::take_over`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::PoolError;
use crate::base::Shown;
use crate::catalog::{Catalog, Is, State};
use crate::core::{Commit, Core};
use crate::head::{Head, Place};
use crate::log::Pace;
use crate::node::{Entry, ROOT_LEVEL};
use crate::space::Run;
use crate::sync::atomic::Ordering;
use crate::tree::Reclaim;

/// How far a share goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// States it deals with, at most.
    pub(crate) merges: usize,
    /// Nodes it visits, about.
    pub(crate) nodes: usize,
    /// It also ends about then.
    pub(crate) until: Option<Instant>,
    /// Whether somebody waits for the checkpoint it is part of.
    pub(crate) pace: Pace,
}

/// The share of a checkpoint that a writer has to make.
pub(crate) const SHARE: Share = Share { merges: 32, nodes: 1024, until: None, pace: Pace::Now };

/// Nodes visited between two looks at the clock.
const STEP: usize = 64;

impl Share {
    pub(crate) const NONE: Share = Share { merges: 0, nodes: 0, until: None, pace: Pace::Now };
}

/// Where disks are after a share.
pub(crate) type Moves = BTreeMap<u64, (Arc<Head>, Place)>;

/// What a piece of a share came to.
enum Went {
    /// The state is dealt with; nodes it took.
    Through(usize),
    /// It is not yet.
    Partly,
}

impl Core {
    /// One share; says where disks are when it is done. A map that cannot be read ends the reclaiming, not the
    /// checkpoint.
    pub(crate) fn reclaim_some(
        &self,
        catalog: &mut Catalog,
        share: Share,
        gone: &mut Vec<Run>,
    ) -> Moves {
        let mut moves = Moves::new();
        let (mut merges, mut nodes) = (0, 0);
        while merges < share.merges
            && nodes < share.nodes
            && share.until.is_none_or(|until| Instant::now() < until)
            && (share.pace == Pace::Now || nodes == 0 || !self.syncs.is_hurried())
            && catalog.reclaim_stopped.is_none()
        {
            let Some(id) = catalog.next_reclaim() else { break };
            let step = STEP.min(share.nodes - nodes);
            match self.reclaim_one(catalog, id, step, gone, &mut moves) {
                Ok(Went::Through(visited)) => {
                    merges += 1;
                    nodes += visited;
                }
                Ok(Went::Partly) => nodes += step,
                Err(error) => catalog.reclaim_stopped = Some(error),
            }
        }
        moves
    }

    /// Goes on with the merge of that snapshot to its end, if one is under way: what it is merged into is about to
    /// be given up, or moved. Called before the change itself, so that disks go on meanwhile.
    pub(crate) fn finish_merge(
        &self,
        commit: &mut Commit,
        of: impl Fn(&Catalog) -> Option<u64>,
    ) -> Result<(), PoolError> {
        loop {
            let mut catalog = self.catalog();
            let under_way = of(&catalog).and_then(|id| catalog.get(id));
            if !under_way.is_some_and(|state| state.hidden && state.cursor > 0) {
                return Ok(());
            }
            if let Some(error) = catalog.reclaim_stopped.take() {
                return Err(error);
            }
            drop(catalog);
            self.store(commit, Share { merges: 1, ..SHARE })?;
        }
    }

    fn reclaim_one(
        &self,
        catalog: &mut Catalog,
        id: u64,
        budget: usize,
        gone: &mut Vec<Run>,
        moves: &mut Moves,
    ) -> Result<Went, PoolError> {
        let Some(state) = catalog.get(id).cloned() else { return Ok(Went::Through(0)) };
        let (keep, child) = match state.is {
            Is::GivenUp => (state.epoch, None),
            _ => (catalog.floor(&state), catalog.children_of(id).next()),
        };
        let new =
            child.and_then(|child| catalog.get(child)).map_or(Entry::HOLE, |child| child.root);
        let mut walk = Reclaim { keep, cursor: state.cursor, budget, freed: Vec::new() };
        let stopped = self.reclaim(&mut walk, (ROOT_LEVEL, 0), state.root, new)?;
        self.counters.reclaimed_blocks.add(walk.freed.len() as u64);
        gone.extend(self.space.unstore(&walk.freed));
        let head = child.and_then(|child| catalog.heads.get(&child)).cloned();
        let mut place = head
            .as_ref()
            .map(|head| moves.entry(head.id).or_insert_with(|| (head.clone(), head.place())));
        if let Some(cursor) = stopped {
            catalog.change(id, |state| state.cursor = cursor);
            if let Some((_, place)) = &mut place {
                place.merged = Some((cursor, keep));
            }
            return Ok(Went::Partly);
        }
        if let Some(child) = child {
            catalog.change(child, |child| child.parent = state.parent);
        }
        if let Some((_, place)) = &mut place {
            place.floor = keep;
            place.merged = None;
        }
        catalog.remove(id);
        Ok(Went::Through(budget - walk.budget + 1))
    }

    /// Disks now own what the share merged into them. What they let go of since the cut and own by that is free.
    pub(crate) fn take_over(&self, moves: Moves, close: bool) {
        if moves.is_empty() {
            self.reclaiming.store(false, Ordering::Release);
            return;
        }
        let _gate = close.then(|| self.close());
        for (head, new) in moves.into_values() {
            for (leaf, run, birth) in std::mem::take(&mut head.dirty().let_go) {
                if new.owns(leaf..leaf + 1, birth) {
                    self.space.unmap_run(run);
                }
            }
            head.move_to(|place| {
                place.floor = new.floor;
                place.merged = new.merged;
            });
        }
        self.reclaiming.store(false, Ordering::Release);
    }

    /// A disk's map no longer reaches a run of blocks within one leaf, which were born together.
    pub(crate) fn let_go(&self, head: &Head, place: &Place, leaf: u64, run: Run, birth: u64) {
        if place.owns(leaf..leaf + 1, birth) {
            self.space.unmap_run(run);
        } else if self.reclaiming.load(Ordering::Acquire) {
            head.dirty().let_go.push((leaf, run, birth));
        }
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
            shown: Shown::NOTHING,
            identity: [0; 16],
        });
    }
}
