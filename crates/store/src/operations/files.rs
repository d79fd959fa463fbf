//! Comparing disks and files.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use kiln_block::{BlockDevice as _, Extent, ExtentKind, FileDevice};
use kiln_parallax::{Disk, Pool, PoolError};

use super::contents::{self, Named};
use crate::error::{Refusal, StoreError, Why};
use crate::name::Name;
use crate::reply::{Kind, Range, Reply};
use crate::request::Stop;

/// A disk, or a snapshot that can only be read.
pub(crate) fn open(pool: &Pool, text: &str) -> Result<Disk, PoolError> {
    match Name::of(text) {
        Name { disk, snapshot: Some(snapshot) } => pool.open_snapshot(disk, snapshot),
        Name { disk, snapshot: None } => pool.open_disk(disk),
    }
}

/// A file that came with a request.
pub(super) fn device(
    (file, path): (OwnedFd, &str),
    read_only: bool,
) -> Result<FileDevice, Refusal> {
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
