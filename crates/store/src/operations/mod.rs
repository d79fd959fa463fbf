//! What can be done with a pool's disks, each as one function of the pool and a request.

pub mod contents;
mod disks;
mod files;
mod images;
mod layers;
mod pipe;
mod streams;

use std::os::fd::OwnedFd;

use kiln_parallax::Pool;

pub(crate) use files::open;
pub(crate) use images::unfinished_prefix;

use crate::error::{Refusal, StoreError, Why};
use crate::name::TEMPORARY;
use crate::reply::{PoolFigures, Reply, Space};
use crate::request::{Progress, Request, Stop};

/// Does what is asked of a pool that this process has open.
///
/// `files` are those the request says come with it. A long operation tells how far it is, and leaves nothing behind
/// when it is stopped. What needs an owner (serving, temporary disks) is refused.
pub fn operate(
    pool: &Pool,
    request: Request,
    files: Vec<OwnedFd>,
    on_progress: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    let mut files = files.into_iter();
    let mut file = || -> Result<OwnedFd, Refusal> {
        files.next().ok_or_else(|| Refusal::new(Why::Request, "the request came without its file"))
    };
    let done = match request {
        Request::Create { name, size, with } => disks::create(pool, &name, size, with)?,
        Request::List => Reply::Disks { disks: disks::list(pool) },
        Request::Stat { disk } => disks::stat(pool, &disk)?,
        Request::Snap { disk, snapshot } => {
            pool.snapshot(&disk, &snapshot)?;
            Reply::Done
        }
        Request::Snapshots { disk } => disks::snapshots(pool, &disk)?,
        Request::Clone { disk, snapshot, name, with } => {
            disks::clone(pool, (&disk, &snapshot), &name, with)?
        }
        Request::Rollback { disk, snapshot } => {
            pool.rollback(&disk, &snapshot)?;
            Reply::Done
        }
        Request::Diff { from, to } => files::diff(pool, &from, &to, stop)?,
        Request::Resize { disk, size, shrink } => disks::resize(pool, &disk, size, shrink)?,
        Request::Rename { disk, name } => {
            refuse_reserved(&name)?;
            pool.rename(&disk, &name)?;
            Reply::Done
        }
        Request::Quota { disk, quota } => disks::quota(pool, &disk, quota)?,
        Request::Remove { names, snapshots } => disks::remove(pool, &names, snapshots)?,
        Request::Gc => {
            let before = pool.space().used;
            pool.gc()?;
            let freed = before.saturating_sub(pool.space().used).get();
            Reply::Collected { freed, space: space(pool) }
        }
        Request::Verify { data } => disks::verify(pool, data)?,
        Request::Compare { name, file: path } => {
            files::compare(pool, &name, (file()?, &path), stop)?
        }
        Request::Import { name, format, file: path, backing, snapshot } => {
            refuse_reserved(&name)?;
            let files = images::files(file()?, (path, format), backing, &mut file)?;
            images::import(pool, &name, files, snapshot.as_deref(), on_progress, stop)?
        }
        Request::ImportLazy { name, image, base } => {
            refuse_reserved(&name)?;
            disks::on_base(pool, &name, &image, &base)?
        }
        Request::Flatten { disk } => disks::flatten(pool, &disk, on_progress, stop)?,
        Request::Export { name, format, file: path, compress, pipe } => {
            let how = images::How { format, compress, pipe };
            images::export(pool, &name, how, (file()?, &path), on_progress, stop)?
        }
        Request::ExportLayer { name, from, file: path, form } => {
            layers::export(pool, (&name, from.as_deref()), &form, (file()?, &path), stop)?
        }
        Request::Send { disk, snapshot, from, compress, resume, file: path } => {
            let what = streams::What { from, compress, resume };
            streams::send(pool, (&disk, &snapshot), &what, (file()?, &path), on_progress, stop)?
        }
        Request::Receive { disk, file: path } => {
            if let Some(disk) = &disk {
                refuse_reserved(disk)?;
            }
            streams::receive(pool, disk.as_deref(), (file()?, &path), on_progress, stop)?
        }
        Request::Partials => streams::partials(pool),
        Request::Tree => Reply::Tree { nodes: disks::tree(pool) },
        Request::Space => Reply::Space(space(pool)),
        Request::Metrics => Reply::Metrics { pool: figures(pool), disks: Vec::new() },
        Request::Serve(_)
        | Request::CloneTemporary { .. }
        | Request::Adopt { .. }
        | Request::Keep { .. }
        | Request::End
        | Request::Leave => {
            return Err(Refusal::new(Why::Request, "only the pool's owner does this").into());
        }
    };
    Ok(done)
}

/// Temporary disks are removed without a question, so nobody may give their names to other disks.
fn refuse_reserved(name: &str) -> Result<(), Refusal> {
    match name.starts_with(TEMPORARY) {
        true => {
            let text =
                format!("{name:?}: names that start with {TEMPORARY} are for temporary disks");
            Err(Refusal::new(Why::Request, text))
        }
        false => Ok(()),
    }
}

fn space(pool: &Pool) -> Space {
    let space = pool.space();
    Space { total: space.total.get(), used: space.used.get(), available: space.available.get() }
}

/// What the pool itself counted.
pub(crate) fn figures(pool: &Pool) -> PoolFigures {
    let now = pool.stats();
    PoolFigures {
        space: space(pool),
        cached: now.cached.get(),
        cache_hits: now.leaf_hits + now.node_hits,
        cache_misses: now.leaf_misses + now.node_misses,
        flushes: now.flushes,
        batches: now.batches,
        data_written: now.data_written.get(),
        log_written: now.log_written.get(),
        metadata_written: now.metadata_written.get(),
        standstill: u64::try_from(now.standstill_time.as_nanos()).unwrap_or(u64::MAX),
        reclaimed: now.reclaimed_blocks.saturating_mul(4096),
        waiting: now.waiting_blocks.saturating_mul(4096),
        reclaiming: now.reclaiming,
        syncs: now.syncs,
        checkpoints: now.checkpoints,
        ..PoolFigures::default()
    }
}

/// How large a disk or snapshot looks, and how much of it is mapped; nothing where there is none.
pub(crate) fn sizes(pool: &Pool, name: &str) -> Option<(u64, u64)> {
    match name.split_once('@') {
        None => pool.stat(name).ok().map(|info| (info.size.get(), info.referenced.get())),
        Some((disk, wanted)) => {
            let snapshots = pool.snapshots(disk).ok()?;
            let found = snapshots.iter().find(|snapshot| snapshot.name == wanted)?;
            Some((found.size.get(), found.referenced.get()))
        }
    }
}
