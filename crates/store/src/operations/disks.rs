//! Operations on disks and snapshots alone.

use std::ops::ControlFlow;

use kiln_block::ByteLen;
use kiln_parallax::{DiskInfo, DiskOptions, Durability, NewBase, Pool};

use super::refuse_reserved;
use crate::error::{Refusal, StoreError, Why};
use crate::layered::{self, LayeredBase};
use crate::name::Name;
use crate::reply::{DiskBase, DiskStat, Node, Reply, Snapshot};
use crate::request::{NewDisk, Progress, Stop};

/// Disks are made of whole ones.
const BLOCK: u64 = 4096;
/// More are of no use to anybody who reads them.
const MOST_PROBLEMS: usize = 10_000;

/// A quota in the pool's terms.
fn whole(quota: u64) -> Result<ByteLen, Refusal> {
    let quota = ByteLen::new(quota);
    match quota.is_aligned(BLOCK) {
        true => Ok(quota),
        false => {
            let text = format!("a quota of {quota} is not whole blocks of 4K");
            Err(Refusal::new(Why::Request, text))
        }
    }
}

fn options(with: NewDisk) -> Result<DiskOptions, Refusal> {
    let durability = if with.throw_away { Durability::None } else { Durability::Full };
    Ok(DiskOptions { durability, quota: whole(with.quota)? })
}

pub(super) fn create(
    pool: &Pool,
    name: &str,
    size: u64,
    with: NewDisk,
) -> Result<Reply, StoreError> {
    refuse_reserved(name)?;
    pool.create_disk(name, ByteLen::new(size), &options(with)?)?;
    Ok(Reply::Done)
}

/// A disk that shows an image where nothing is written to it.
pub(super) fn on_base(
    pool: &Pool,
    name: &str,
    image: &str,
    base: &LayeredBase,
) -> Result<Reply, StoreError> {
    let described = base.describe();
    let base = NewBase { kind: layered::KIND, name: image, description: &described };
    let size = pool.create_on_base(name, &base, &DiskOptions::default())?;
    Ok(Reply::Copied { size: size.get(), source_size: size.get(), written: 0 })
}

pub(super) fn flatten(
    pool: &Pool,
    disk: &str,
    on_progress: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    let size = pool.stat(disk)?.size.get();
    let copied = pool.flatten(disk, &mut |done, total| {
        on_progress(Progress { done: done.get(), total: total.get() });
        if stop.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(Reply::Copied { size, source_size: size, written: copied.get() })
}

pub(super) fn clone(
    pool: &Pool,
    (disk, snapshot): (&str, &str),
    name: &str,
    with: NewDisk,
) -> Result<Reply, StoreError> {
    refuse_reserved(name)?;
    pool.clone_disk(disk, snapshot, name, &options(with)?)?;
    Ok(Reply::Done)
}

fn described(disk: DiskInfo) -> DiskStat {
    DiskStat {
        name: disk.name,
        size: disk.size.get(),
        referenced: disk.referenced.get(),
        written: disk.written.get(),
        quota: disk.quota.get(),
        created: disk.created,
        throw_away: disk.durability == Durability::None,
        origin: disk.origin.map(|(disk, snapshot)| format!("{disk}@{snapshot}")),
        base: disk.base.map(|base| DiskBase { image: base.name, shown: base.shown.get() }),
        unique: None,
        snapshots: None,
    }
}

pub(super) fn list(pool: &Pool) -> Vec<DiskStat> {
    pool.disks().into_iter().map(described).collect()
}

pub(super) fn stat(pool: &Pool, disk: &str) -> Result<Reply, StoreError> {
    let mut found = described(pool.stat(disk)?);
    found.unique = Some(pool.unique(disk)?.get());
    found.snapshots = Some(pool.snapshots(disk)?.len() as u64);
    Ok(Reply::Disk(found))
}

pub(super) fn snapshots(pool: &Pool, disk: &str) -> Result<Reply, StoreError> {
    let snapshots = pool.snapshots(disk)?.into_iter().map(|snapshot| Snapshot {
        snapshot: snapshot.name,
        size: snapshot.size.get(),
        referenced: snapshot.referenced.get(),
        children: snapshot.children as u64,
        created: snapshot.created,
    });
    Ok(Reply::Snapshots { snapshots: snapshots.collect() })
}

pub(super) fn tree(pool: &Pool) -> Vec<Node> {
    let mut nodes = Vec::new();
    for disk in pool.disks() {
        for snapshot in pool.snapshots(&disk.name).unwrap_or_default() {
            nodes.push(Node {
                name: format!("{}@{}", disk.name, snapshot.name),
                origin: snapshot.origin.map(|(disk, snapshot)| format!("{disk}@{snapshot}")),
                base: snapshot.base.map(|base| base.name),
                size: snapshot.size.get(),
                referenced: snapshot.referenced.get(),
                created: snapshot.created,
                served: false,
            });
        }
        nodes.push(Node {
            origin: disk.origin.map(|(disk, snapshot)| format!("{disk}@{snapshot}")),
            base: disk.base.map(|base| base.name),
            name: disk.name,
            size: disk.size.get(),
            referenced: disk.referenced.get(),
            created: disk.created,
            served: false,
        });
    }
    nodes
}

pub(super) fn resize(
    pool: &Pool,
    disk: &str,
    size: u64,
    shrink: bool,
) -> Result<Reply, StoreError> {
    let (was, size) = (pool.stat(disk)?.size, ByteLen::new(size));
    if size < was && !shrink {
        let text = format!("{disk} has {was}; what lies behind {size} would be lost");
        return Err(Refusal::new(Why::WouldLose, text).into());
    }
    pool.resize(disk, size)?;
    pool.checkpoint()?;
    Ok(Reply::Resized { was: was.get() })
}

pub(super) fn quota(pool: &Pool, disk: &str, quota: u64) -> Result<Reply, StoreError> {
    pool.set_quota(disk, whole(quota)?)?;
    Ok(Reply::Done)
}

pub(super) fn remove(pool: &Pool, names: &[String], all: bool) -> Result<Reply, StoreError> {
    // What would be refused is refused before the first is gone.
    for name in names {
        let name = Name::of(name);
        pool.refuse_if_open(name.disk, name.snapshot)?;
    }
    let mut removed = Vec::new();
    for text in names {
        let name = Name::of(text);
        match name.snapshot {
            Some(snapshot) => pool.delete_snapshot(name.disk, snapshot)?,
            None => {
                let snapshots = if all { pool.snapshots(name.disk)? } else { Vec::new() };
                for snapshot in snapshots {
                    pool.delete_snapshot(name.disk, &snapshot.name)?;
                    removed.push(format!("{}@{}", name.disk, snapshot.name));
                }
                pool.delete(name.disk)?;
            }
        }
        removed.push(text.clone());
    }
    Ok(Reply::Removed { removed })
}

pub(super) fn verify(pool: &Pool, data: bool) -> Result<Reply, StoreError> {
    let mut report = pool.verify(data)?;
    let more = report.problems.len().saturating_sub(MOST_PROBLEMS);
    if more > 0 {
        report.problems.truncate(MOST_PROBLEMS);
        report.problems.push(format!("and {more} more"));
    }
    Ok(Reply::Verified {
        nodes: report.nodes,
        data_blocks: report.data_blocks,
        problems: report.problems,
    })
}
