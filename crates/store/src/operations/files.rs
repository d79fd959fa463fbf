//! Operations on disks and files: import, export, comparing.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_block::{BlockDevice as _, ByteLen, Extent, ExtentKind, FileDevice};
use kiln_parallax::{Disk, DiskOptions, Pool, PoolError};

use super::contents::{self, BLOCK, Named};
use crate::error::{Refusal, StoreError, Why};
use crate::name::{Name, TEMPORARY};
use crate::request::{Format, Kind, Progress, Range, Reply, Stop};

/// A disk, or a snapshot that can only be read.
pub(crate) fn open(pool: &Pool, text: &str) -> Result<Disk, PoolError> {
    match Name::of(text) {
        Name { disk, snapshot: Some(snapshot) } => pool.open_snapshot(disk, snapshot),
        Name { disk, snapshot: None } => pool.open_disk(disk),
    }
}

/// A file that came with a request.
fn device((file, path): (OwnedFd, &str), read_only: bool) -> Result<FileDevice, Refusal> {
    FileDevice::of(File::from(file), Path::new(path), read_only)
        .map_err(|error| Refusal::of(Why::File, &error))
}

fn ranges(extents: &[Extent]) -> Vec<Range> {
    let range = |extent: &Extent| {
        let kind = match extent.kind {
            ExtentKind::Data => Kind::Data,
            ExtentKind::Zero | ExtentKind::Hole => Kind::Hole,
        };
        Range(extent.at.get(), extent.len.get(), kind)
    };
    extents.iter().map(range).collect()
}

pub(super) fn diff(pool: &Pool, from: &str, to: &str, stop: &Stop) -> Result<Reply, StoreError> {
    let (old, new) = (Name::of(from), Name::of(to));
    let (old_disk, new_disk) = (open(pool, from)?, open(pool, to)?);
    let found = match old.snapshot {
        Some(snapshot) if old.disk == new.disk => pool.diff(old.disk, snapshot, new.snapshot)?,
        _ => {
            let old = Named { device: &old_disk, name: from };
            let new = Named { device: &new_disk, name: to };
            contents::differences(old, new, stop)?
        }
    };
    Ok(Reply::Ranges {
        from_size: old_disk.size().get(),
        to_size: new_disk.size().get(),
        ranges: ranges(&found),
    })
}

pub(super) fn compare(
    pool: &Pool,
    name: &str,
    file: (OwnedFd, &str),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    let disk = open(pool, name)?;
    let path = file.1;
    let other = device(file, true)?;
    let found = contents::differences(
        Named { device: &other, name: path },
        Named { device: &disk, name },
        stop,
    )?;
    Ok(Reply::Compared {
        size: disk.size().get(),
        file_size: other.size().get(),
        ranges: ranges(&found),
    })
}

/// Removes a disk that is not complete, however its making ends.
struct Unfinished<'a> {
    pool: &'a Pool,
    name: String,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // Where it cannot be removed, whoever opens the pool next does it, by its name.
        let _ = self.pool.delete(&self.name);
    }
}

/// A name nobody else uses.
fn unfinished_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let process = std::process::id();
    format!("{TEMPORARY}import-{process}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn import(
    pool: &Pool,
    name: &str,
    _format: Option<Format>,
    file: (OwnedFd, &str),
    on_progress: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    if pool.stat(name).is_ok() {
        return Err(PoolError::Exists { name: name.to_owned() }.into());
    }
    let path = file.1;
    let source = device(file, true)?;
    let size = ByteLen::new(source.size().get().next_multiple_of(BLOCK));
    // It gets its name when it is complete.
    let making = Unfinished { pool, name: unfinished_name() };
    pool.create_disk(&making.name, size, &DiskOptions::default())?;
    let written = {
        let disk = pool.open_disk(&making.name)?;
        let total = source.size().get();
        contents::copy(
            Named { device: &source, name: path },
            Named { device: &disk, name },
            stop,
            &mut |done| on_progress(Progress { done, total }),
        )?
    };
    pool.rename(&making.name, name)?;
    Ok(Reply::Copied { size: size.get(), source_size: source.size().get(), written })
}

pub(super) fn export(
    pool: &Pool,
    name: &str,
    _format: Format,
    (file, path): (OwnedFd, &str),
    on_progress: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    let disk = open(pool, name)?;
    let total = disk.size().get();
    let file = File::from(file);
    file.set_len(total)
        .map_err(|error| Refusal::of(Why::File, &error).tried(format!("cannot write {path}")))?;
    let target = device((file.into(), path), false)?;
    let written = contents::copy(
        Named { device: &disk, name },
        Named { device: &target, name: path },
        stop,
        &mut |done| on_progress(Progress { done, total }),
    )?;
    Ok(Reply::Copied { size: total, source_size: total, written })
}
