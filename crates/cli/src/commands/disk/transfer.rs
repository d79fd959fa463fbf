//! `kiln disk import`, `export`, `verify` and `repair`: disks and files.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use kiln_block::{ByteLen, FileDevice};
use kiln_store::{Format, Progress, Range, Reply, Request, Stop, Store, contents::BLOCK};
use serde_json::json;

use super::{out_ranges, pool};
use crate::arguments::{DiskExportArgs, DiskImportArgs, DiskVerifyArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::signals::{self, Heard};
use crate::{hostile, terminal};

/// Stopped by Ctrl-C or a signal: whoever copies has something to clean up first.
fn listen() -> Result<Stop, Failure> {
    let stop = Stop::new();
    let heard = stop.clone();
    signals::listen(move |signal| {
        if signal != Heard::Resized {
            heard.stop();
        }
    })
    .tried(|| "cannot listen for signals".to_owned())
    .exits(Exit::InfrastructureBroke)?;
    Ok(stop)
}

/// A bar on a terminal, nothing elsewhere.
fn bar() -> ProgressBar {
    if !terminal::is_live() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:20} {bytes} of {total_bytes} {elapsed}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("━━ "))
}

/// Asks something that takes its time, with a bar.
fn ask(store: &Store, request: Request, file: File) -> Result<Reply, Failure> {
    let stop = listen()?;
    let bar = bar();
    let mut seen = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let asked = store.ask_with(request, vec![file.into()], &mut seen, &stop);
    bar.finish_and_clear();
    asked.map_err(|error| pool::explained(store, error))
}

/// Opens an image to read, having looked that it can be one.
fn image(path: &Path) -> Result<File, Failure> {
    FileDevice::open(path, true).exits(Exit::Usage)?;
    File::open(path).tried(|| format!("cannot open disk {}", path.display())).exits(Exit::Usage)
}

/// `kiln disk import`
pub(super) fn import(
    session: &Session,
    path: &Path,
    args: &DiskImportArgs,
) -> Result<Exit, Failure> {
    let name = pool::disk(&args.name)?;
    let source = image(&args.source)?;
    pool::make(path)?;
    let store = pool::owner(session, path)?;
    let file = args.source.display().to_string();
    let request = Request::Import {
        name: name.to_owned(),
        format: None,
        file,
        backing: Vec::new(),
        snapshot: None,
    };
    let reply = ask(&store, request, source)?;
    let Reply::Copied { size, source_size, written } = reply else {
        return Err(pool::unexpected(&reply));
    };
    if session.json() {
        session.out_json(&json!({
            "name": name, "size": size, "source_size": source_size, "written": written,
        }))?;
    } else {
        let (name, size, written) =
            (hostile::line(name), ByteLen::new(size), ByteLen::new(written));
        terminal::out_line(&format!("imported {name}, {size}, of which {written} take space"))?;
    }
    Ok(Exit::Success)
}

/// `kiln disk export`
pub(super) fn export(
    session: &Session,
    path: &Path,
    args: &DiskExportArgs,
) -> Result<Exit, Failure> {
    let store = pool::owner(session, path)?;
    if std::fs::metadata(&args.file).is_ok_and(|found| !found.is_file()) {
        let text = format!("{} is not a regular file", args.file.display());
        return Err(Failure::new(Exit::Usage, text).hint("export to a file, and copy that"));
    }
    let tried = || format!("cannot write {}", args.file.display());
    // Beside the output, so that it takes its place at once; whoever looked at the old one keeps it.
    let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = tempfile::Builder::new()
        .prefix(".kiln-disk-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .tried(tried)
        .exits(Exit::Setup)?;
    let target = file.as_file().try_clone().tried(tried).exits(Exit::Setup)?;
    let out = args.file.display().to_string();
    let request =
        Request::Export { name: args.name.clone(), format: Format::Raw, file: out.clone(), compress: None, pipe: false };
    let reply = ask(&store, request, target)?;
    let Reply::Copied { size, written, .. } = reply else {
        return Err(pool::unexpected(&reply));
    };
    file.persist(&args.file).tried(tried).exits(Exit::Setup)?;
    if session.json() {
        session.out_json(&json!({
            "name": args.name, "path": args.file, "size": size, "written": written,
        }))?;
    } else {
        terminal::out_line(&out)?;
    }
    Ok(Exit::Success)
}

/// `kiln disk verify`
pub(super) fn verify(
    session: &Session,
    path: &Path,
    args: &DiskVerifyArgs,
) -> Result<Exit, Failure> {
    let (Some(name), Some(file)) = (&args.name, &args.file) else {
        return sound(session, &pool::owner(session, path)?, !args.maps);
    };
    let other = image(file)?;
    let store = pool::owner(session, path)?;
    let shown = file.display().to_string();
    let request = Request::Compare { name: name.clone(), file: shown.clone() };
    let reply = ask(&store, request, other)?;
    let Reply::Compared { size, file_size, ranges } = reply else {
        return Err(pool::unexpected(&reply));
    };
    same(session, (name, size), (&shown, file_size), &ranges)
}

/// Tells how a disk and a file differ.
fn same(
    session: &Session,
    (name, size): (&str, u64),
    (file, file_size): (&str, u64),
    ranges: &[Range],
) -> Result<Exit, Failure> {
    // A file that is no whole number of blocks was filled with zeros.
    let longer = size != file_size.next_multiple_of(BLOCK);
    let same = ranges.is_empty() && !longer;
    if session.json() {
        session.out_json(&json!({
            "same": same, "size": size, "file_size": file_size,
            "differences": super::ranges_json(ranges),
        }))?;
    } else {
        out_ranges(ranges)?;
        if longer {
            let (size, file_size) = (ByteLen::new(size), ByteLen::new(file_size));
            terminal::say(&format!("{} has {size}, {file} has {file_size}", hostile::line(name)));
        }
    }
    Ok(if same { Exit::Success } else { Exit::Unsound })
}

/// Looks whether the pool is whole, and says what is not.
pub(super) fn sound(session: &Session, store: &Store, data: bool) -> Result<Exit, Failure> {
    let reply = pool::ask(store, Request::Verify { data })?;
    let Reply::Verified { nodes, data_blocks, problems } = reply else {
        return Err(pool::unexpected(&reply));
    };
    if session.json() {
        session.out_json(&json!({
            "clean": problems.is_empty(), "nodes": nodes, "data_blocks": data_blocks,
            "problems": problems,
        }))?;
    } else {
        for problem in &problems {
            terminal::out_line(&hostile::line(problem))?;
        }
        let found = match problems.len() {
            0 => "nothing wrong".to_owned(),
            count => format!("{count} problems"),
        };
        let data = ByteLen::new(data_blocks.saturating_mul(BLOCK));
        terminal::out_line(&format!("{found}: {nodes} parts of maps, {data} of data"))?;
    }
    if problems.is_empty() {
        return Ok(Exit::Success);
    }
    terminal::say(
        "hint: kiln disk repair mends what is wrong with the free map; for damaged data, use a copy",
    );
    Ok(Exit::Unsound)
}
