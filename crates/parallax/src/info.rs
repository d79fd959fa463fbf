//! What a pool says of its disks and snapshots.

use kiln_block::ByteLen;

use crate::catalog::{Catalog, Is, State};
use crate::format::BLOCK_LEN;
use crate::head::Head;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::{Durability, Pool, PoolError};

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// Its name.
    pub name: String,
    /// How large it looks.
    pub size: ByteLen,
    /// How much of it is mapped, its own or shared.
    pub referenced: ByteLen,
    /// How much was ever written to it.
    pub written: ByteLen,
    /// The most it may reference; zero for any.
    pub quota: ByteLen,
    /// What its flushes do.
    pub durability: Durability,
    /// Disk and snapshot it evolved from, where that still has a name.
    pub origin: Option<(String, String)>,
    /// What it shows where nothing was written to it.
    pub base: Option<BaseInfo>,
    /// Seconds since 1970.
    pub created: u64,
}

/// What a disk or snapshot shows where nothing was written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseInfo {
    /// What people call it.
    pub name: String,
    /// How much of it shows.
    pub shown: ByteLen,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// How large the disk was.
    pub size: ByteLen,
    /// How much of it is mapped.
    pub referenced: ByteLen,
    /// Disks and snapshots that evolved from it.
    pub children: usize,
    /// Disk and snapshot it evolved from, where that still has a name.
    pub origin: Option<(String, String)>,
    /// What it shows where nothing was written to it.
    pub base: Option<BaseInfo>,
    /// Seconds since 1970.
    pub created: u64,
}

/// A disk or a snapshot among those it is related to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relative {
    /// The disk, or the disk of the snapshot.
    pub disk: String,
    /// The snapshot; `None` for the disk as it is.
    pub snapshot: Option<String>,
    /// Disk and snapshot it evolved from: the next one before it that still has a name.
    pub parent: Option<(String, String)>,
    /// How large it is.
    pub size: ByteLen,
    /// How much of it is mapped, its own or shared.
    pub referenced: ByteLen,
    /// Seconds since 1970.
    pub created: u64,
}

impl Pool {
    /// All disks, by name.
    pub fn disks(&self) -> Vec<DiskInfo> {
        let catalog = self.core.catalog();
        catalog.disks().map(|state| describe(&catalog, state)).collect()
    }

    /// One disk.
    pub fn stat(&self, name: &str) -> Result<DiskInfo, PoolError> {
        let catalog = self.core.catalog();
        catalog.disk(name).map(|state| describe(&catalog, state))
    }

    /// A disk's snapshots, oldest first.
    pub fn snapshots(&self, disk: &str) -> Result<Vec<SnapshotInfo>, PoolError> {
        let catalog = self.core.catalog();
        let owner = catalog.disk(disk)?.id;
        let info = |state: &State| SnapshotInfo {
            name: state.name.clone(),
            size: ByteLen::new(state.size),
            referenced: ByteLen::new(state.referenced.saturating_mul(BLOCK_LEN)),
            children: catalog.children_of(state.id).count(),
            origin: origin(&catalog, state),
            base: base_info(&catalog, state),
            created: state.created,
        };
        Ok(catalog.snapshots(owner).into_iter().map(info).collect())
    }

    /// Every disk and snapshot with what it evolved from, in the order in which they were made: all it takes to draw
    /// how they descend from each other.
    pub fn lineage(&self) -> Vec<Relative> {
        let catalog = self.core.catalog();
        let visible =
            |state: &&State| state.is != Is::GivenUp && !state.hidden && !state.stands_in();
        let parent = |state: &State| {
            let mut next = catalog.get(state.parent)?;
            while next.hidden {
                next = catalog.get(next.parent)?;
            }
            if next.stands_in() {
                return None;
            }
            catalog.get(next.owner).map(|disk| (disk.name.clone(), next.name.clone()))
        };
        let relative = |state: &State| {
            let info = describe(&catalog, state);
            let owner = catalog.get(state.owner).filter(|_| state.is == Is::Snapshot);
            Relative {
                disk: owner.map_or(&state.name, |owner| &owner.name).clone(),
                snapshot: owner.map(|_| state.name.clone()),
                parent: parent(state),
                size: info.size,
                referenced: info.referenced,
                created: state.created,
            }
        };
        catalog.all().filter(visible).map(relative).collect()
    }
}

fn describe(catalog: &Catalog, state: &State) -> DiskInfo {
    let head = catalog.heads.get(&state.id);
    let now = |of: fn(&Head) -> &AtomicU64, stored: u64| {
        head.map_or(stored, |head| of(head).load(Ordering::Relaxed))
    };
    // A damaged catalog may say any number.
    let bytes = |blocks: u64| ByteLen::new(blocks.saturating_mul(BLOCK_LEN));
    DiskInfo {
        name: state.name.clone(),
        size: ByteLen::new(now(|head| &head.size, state.size)),
        referenced: bytes(now(|head| &head.referenced, state.referenced)),
        written: bytes(now(|head| &head.written, state.written)),
        quota: bytes(state.quota),
        durability: if state.throw_away { Durability::None } else { Durability::Full },
        origin: origin(catalog, state),
        base: base_info(catalog, state),
        created: state.created,
    }
}

/// What a state shows where nothing was written to it.
fn base_info(catalog: &Catalog, state: &State) -> Option<BaseInfo> {
    let base = (!state.shown.is_nothing()).then(|| catalog.bases.get(state.shown.base))?;
    // Its record may be lost, and then nobody knows more than that there was one.
    let name = base.map_or_else(String::new, |base| base.name.clone());
    Some(BaseInfo { name, shown: ByteLen::new(state.shown.blocks.saturating_mul(BLOCK_LEN)) })
}

/// Disk and snapshot that a state evolved from.
fn origin(catalog: &Catalog, state: &State) -> Option<(String, String)> {
    let parent =
        catalog.get(state.parent).filter(|parent| !parent.hidden && !parent.stands_in())?;
    catalog.get(parent.owner).map(|disk| (disk.name.clone(), parent.name.clone()))
}
