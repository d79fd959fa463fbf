//! Disks made of images, and images made of disks.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_block::{BlockDevice, ByteLen, FileDevice};
use kiln_parallax::{DiskOptions, Pool, PoolError};
use kiln_qcow2::chain::{self, Link};
use kiln_qcow2::{Image, Qcow2Error, WriteOptions};

use super::contents::{self, BLOCK, Named};
use super::files::{self, open};
use super::pipe::Pipe;
use crate::error::{Refusal, StoreError, Why};
use crate::name::TEMPORARY;
use crate::reply::Reply;
use crate::request::{BackingImage, Compression, Format, Progress, Stop};

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
    format!("{}{}", unfinished_prefix(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// How the names of disks begin that this process has not completed yet. A number of its own tells it from
/// processes that had the pool before: those of processes come again.
pub(crate) fn unfinished_prefix() -> &'static str {
    static PREFIX: OnceLock<String> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let mut token = [0; 8];
        // Without it, the name is as good as it can be.
        let _ = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty());
        format!("{TEMPORARY}import-{:016x}-", u64::from_le_bytes(token))
    })
}

/// What a refused image means.
fn refused(error: &Qcow2Error) -> Refusal {
    let why = match error {
        Qcow2Error::Damaged { .. } => Why::Damaged,
        Qcow2Error::Version { .. } => Why::TooNew,
        Qcow2Error::Source(_) | Qcow2Error::Read { .. } | Qcow2Error::Write(_) => Why::Failed,
        Qcow2Error::Stopped => Why::Stopped,
        Qcow2Error::Refused(_) | Qcow2Error::NoSnapshot { .. } => Why::Request,
        _ => Why::File,
    };
    Refusal::of(why, error)
}

/// The files of a request, as what they are.
pub(super) fn files(
    first: OwnedFd,
    (path, format): (String, Option<Format>),
    backing: Vec<BackingImage>,
    next: &mut dyn FnMut() -> Result<OwnedFd, Refusal>,
) -> Result<Vec<Link>, Refusal> {
    if backing.len() >= chain::MAX_DEPTH {
        return Err(Refusal::new(Why::Request, "too many files on top of each other"));
    }
    let form = |format| match format {
        Format::Raw => chain::Format::Raw,
        Format::Qcow2 => chain::Format::Qcow2,
    };
    let first = File::from(first);
    let format = match format {
        Some(format) => form(format),
        None => {
            let copy = first.try_clone().map_err(|error| Refusal::of(Why::File, &error))?;
            match Image::is_one(&files::device((copy.into(), &path), true)?) {
                true => chain::Format::Qcow2,
                false => chain::Format::Raw,
            }
        }
    };
    let mut links = vec![Link { path: PathBuf::from(path), file: first, format }];
    for image in backing {
        let (path, format) = (PathBuf::from(image.file), form(image.format));
        links.push(Link { path, file: File::from(next()?), format });
    }
    Ok(links)
}

pub(super) fn import(
    pool: &Pool,
    name: &str,
    files: Vec<Link>,
    snapshot: Option<&str>,
    on_progress: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    if pool.stat(name).is_ok() {
        return Err(PoolError::Exists { name: name.to_owned() }.into());
    }
    let path = files.first().map(|link| link.path.display().to_string()).unwrap_or_default();
    let source = chain::assemble(files, snapshot, &Arc::default());
    let source = source.map_err(|error| refused(&error))?;
    let size = ByteLen::new(source.size().get().next_multiple_of(BLOCK));
    // It gets its name when it is complete.
    let making = Unfinished { pool, name: unfinished_name() };
    pool.create_disk(&making.name, size, &DiskOptions::default())?;
    let written = {
        let disk = pool.open_disk(&making.name)?;
        let total = source.size().get();
        contents::copy(
            Named { device: &*source, name: &path },
            Named { device: &disk, name },
            stop,
            &mut |done| on_progress(Progress { done, total }),
        )?
    };
    pool.rename(&making.name, name)?;
    Ok(Reply::Copied { size: size.get(), source_size: source.size().get(), written })
}

/// What a disk becomes.
pub(super) struct How {
    pub(super) format: Format,
    pub(super) compress: Option<Compression>,
    pub(super) pipe: bool,
}

pub(super) fn export(
    pool: &Pool,
    name: &str,
    how: How,
    (file, path): (OwnedFd, &str),
    on_progress: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    if how.compress.is_some() && (how.pipe || how.format == Format::Raw) {
        let text = "only a qcow2 image in a file can be compressed";
        return Err(Refusal::new(Why::Request, text).into());
    }
    let disk = open(pool, name)?;
    let total = disk.size().get();
    let mut seen = |done: u64| on_progress(Progress { done, total });
    let written = match (how.format, how.pipe) {
        (Format::Raw, false) => {
            let file = File::from(file);
            let tried = || format!("cannot write {path}");
            file.set_len(total).map_err(|error| Refusal::of(Why::File, &error).tried(tried()))?;
            let target = files::device((file.into(), path), false)?;
            let (from, to) = (Named { device: &disk, name }, Named { device: &target, name: path });
            contents::copy(from, to, stop, &mut seen)?
        }
        (Format::Raw, true) => {
            let mut pipe = Pipe::new(file, stop);
            contents::pour(Named { device: &disk, name }, (&mut pipe, path), stop, &mut seen)?
        }
        (Format::Qcow2, _) => {
            let stored = write_image(&disk, &how, (file, path), &mut seen, stop);
            stored.map_err(|refusal| refusal.tried(format!("cannot export {name} to {path}")))?
        }
    };
    Ok(Reply::Copied { size: total, source_size: total, written })
}

fn write_image(
    disk: &dyn BlockDevice,
    how: &How,
    (file, path): (OwnedFd, &str),
    seen: &mut dyn FnMut(u64),
    stop: &Stop,
) -> Result<u64, Refusal> {
    let progress = &mut |at: ByteLen| {
        seen(at.get());
        if stop.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let defaults = WriteOptions::default();
    let written = if how.pipe {
        kiln_qcow2::write_stream(disk, &mut Pipe::new(file, stop), defaults.cluster, progress)
    } else {
        let compression = how.compress.map(|how| match how {
            Compression::Zstd => kiln_qcow2::Compression::Zstd,
            Compression::Deflate => kiln_qcow2::Compression::Deflate,
        });
        let options = WriteOptions { compression, ..defaults };
        let mut file = File::from(file);
        let written = kiln_qcow2::write(disk, &mut file, &options, progress);
        let written = written.map_err(|error| refused(&error))?;
        // Whoever exported it may unplug it.
        let device = FileDevice::of(file, path.as_ref(), false);
        let device = device.map_err(|error| Refusal::of(Why::File, &error))?;
        device.flush().map_err(|error| Refusal::device("write", path, &error))?;
        Ok(written)
    };
    written.map(|written| written.stored.get()).map_err(|error| refused(&error))
}
