//! `kiln disk import`, `export` and `verify`: disks and files.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use kiln_block::{BlockDevice as _, ByteLen, FileDevice};
use kiln_parallax::{DiskOptions, PoolError};
use serde_json::json;

use super::contents::{self, BLOCK, Named};
use super::store::{Name, Store};
use super::{extents_json, out_extents};
use crate::arguments::{DiskExportArgs, DiskImportArgs, DiskVerifyArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::signals::{self, Heard};
use crate::{hostile, terminal};

/// Set by Ctrl-C or a signal: whoever copies has something to clean up first.
fn listen() -> Result<Arc<AtomicBool>, Failure> {
    let enough = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&enough);
    signals::listen(move |signal| {
        if signal != Heard::Resized {
            heard.store(true, Ordering::Relaxed);
        }
    })
    .tried(|| "cannot listen for signals".to_owned())
    .exits(Exit::InfrastructureBroke)?;
    Ok(enough)
}

/// A bar on a terminal, nothing elsewhere.
fn bar(bytes: ByteLen) -> ProgressBar {
    if !terminal::is_live() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:20} {bytes} of {total_bytes} {elapsed}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes.get()).with_style(style.progress_chars("━━ "))
}

/// `kiln disk import`
pub(crate) fn import(
    session: &Session,
    pool: &Path,
    args: &DiskImportArgs,
) -> Result<Exit, Failure> {
    let name = Name::disk(&args.name)?;
    let source = FileDevice::open(&args.source, true).exits(Exit::Usage)?;
    let store = Store::open_or_create(pool)?;
    let refused = |error| store.refused(error);
    if store.pool.stat(name).is_ok() {
        return Err(refused(PoolError::Exists { name: name.to_owned() }));
    }
    let enough = listen()?;
    // It gets its name when it is complete.
    let partial = format!("{name}.partial");
    let size = ByteLen::new(source.size().get().next_multiple_of(BLOCK));
    store.pool.create_disk(&partial, size, &DiskOptions::default()).map_err(|error| {
        let left = matches!(error, PoolError::Exists { .. });
        let failure = refused(error);
        match left {
            true => failure
                .hint(format!("if an import that was killed left it: kiln disk rm {partial}")),
            false => failure,
        }
    })?;
    let written = fill(&store, &source, (&args.source, &partial), &enough).and_then(|written| {
        store.pool.rename(&partial, name).map_err(refused)?;
        Ok(written)
    });
    let written = match written {
        Ok(written) => written,
        Err(failure) => {
            // What cannot be removed is found by its name.
            let _ = store.pool.delete(&partial);
            let _ = store.close();
            return Err(failure);
        }
    };
    store.close()?;
    if session.json() {
        session.out_json(&json!({
            "name": name, "size": size.get(), "source_size": source.size().get(), "written": written,
        }))?;
    } else {
        let (name, written) = (hostile::line(name), ByteLen::new(written));
        terminal::out_line(&format!("imported {name}, {size}, of which {written} take space"))?;
    }
    Ok(Exit::Success)
}

fn fill(
    store: &Store,
    source: &FileDevice,
    (path, name): (&Path, &str),
    enough: &AtomicBool,
) -> Result<u64, Failure> {
    let disk = store.device(name)?;
    let path = path.display().to_string();
    let bar = bar(source.size());
    let copied = contents::copy(
        Named { device: source, name: &path },
        Named { device: &disk, name },
        enough,
        &mut |at| bar.set_position(at),
    );
    bar.finish_and_clear();
    copied.map_err(contents::ContentsError::explained)
}

/// `kiln disk export`
pub(crate) fn export(
    session: &Session,
    pool: &Path,
    args: &DiskExportArgs,
) -> Result<Exit, Failure> {
    let store = Store::open(pool)?;
    let disk = store.device(&args.name)?;
    if std::fs::metadata(&args.file).is_ok_and(|found| !found.is_file()) {
        let text = format!("{} is not a regular file", args.file.display());
        return Err(Failure::new(Exit::Usage, text).hint("export to a file, and copy that"));
    }
    let enough = listen()?;
    let tried = || format!("cannot write {}", args.file.display());
    // Beside the output, so that it takes its place at once; whoever looked at the old one keeps it.
    let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = tempfile::Builder::new()
        .prefix(".kiln-disk-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .tried(tried)
        .exits(Exit::Setup)?;
    let size = disk.size();
    file.as_file().set_len(size.get()).tried(tried).exits(Exit::Setup)?;
    let target = FileDevice::open(file.path(), false).exits(Exit::Setup)?;
    let path = args.file.display().to_string();
    let bar = bar(size);
    let copied = contents::copy(
        Named { device: &disk, name: &args.name },
        Named { device: &target, name: &path },
        &enough,
        &mut |at| bar.set_position(at),
    );
    bar.finish_and_clear();
    let written = copied.map_err(contents::ContentsError::explained)?;
    file.persist(&args.file).tried(tried).exits(Exit::Setup)?;
    if session.json() {
        session.out_json(&json!({
            "name": args.name, "path": args.file, "size": size.get(), "written": written,
        }))?;
    } else {
        terminal::out_line(&path)?;
    }
    Ok(Exit::Success)
}

/// `kiln disk verify`
pub(crate) fn verify(
    session: &Session,
    pool: &Path,
    args: &DiskVerifyArgs,
) -> Result<Exit, Failure> {
    let (Some(name), Some(file)) = (&args.name, &args.file) else {
        return sound(session, &Store::open(pool)?, !args.maps);
    };
    let other = FileDevice::open(file, true).exits(Exit::Usage)?;
    let store = Store::open(pool)?;
    let disk = store.device(name)?;
    let path = file.display().to_string();
    let found =
        contents::differences(Named { device: &other, name: &path }, Named { device: &disk, name })
            .map_err(contents::ContentsError::explained)?;
    // A file that is no whole number of blocks was filled with zeros.
    let longer = disk.size().get() != other.size().get().next_multiple_of(BLOCK);
    let same = found.is_empty() && !longer;
    if session.json() {
        session.out_json(&json!({
            "same": same, "size": disk.size().get(), "file_size": other.size().get(),
            "differences": extents_json(&found),
        }))?;
    } else {
        out_extents(&found)?;
        if longer {
            terminal::say(&format!(
                "{} has {}, {path} has {}",
                hostile::line(name),
                disk.size(),
                other.size()
            ));
        }
    }
    Ok(if same { Exit::Success } else { Exit::Unsound })
}

/// Looks whether the pool is whole, and says what is not.
pub(crate) fn sound(session: &Session, store: &Store, data: bool) -> Result<Exit, Failure> {
    let report = store.pool.verify(data).map_err(|error| store.refused(error))?;
    if session.json() {
        session.out_json(&json!({
            "clean": report.is_clean(), "nodes": report.nodes, "data_blocks": report.data_blocks,
            "problems": report.problems,
        }))?;
    } else {
        for problem in &report.problems {
            terminal::out_line(&hostile::line(problem))?;
        }
        let found = match report.problems.len() {
            0 => "nothing wrong".to_owned(),
            count => format!("{count} problems"),
        };
        let data = ByteLen::new(report.data_blocks * BLOCK);
        terminal::out_line(&format!("{found}: {} parts of maps, {data} of data", report.nodes))?;
    }
    if report.is_clean() {
        return Ok(Exit::Success);
    }
    terminal::say(
        "hint: kiln disk repair mends what is wrong with the free map; for damaged data, use a copy",
    );
    Ok(Exit::Unsound)
}
