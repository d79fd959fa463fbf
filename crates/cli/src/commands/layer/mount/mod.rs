//! `kiln layer mount` and `umount`: images as block devices, each served by a process of its own.

mod device;
mod held;
mod record;
mod table;
mod umount;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::arguments::LayerMountArgs;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::{hostile, terminal};

pub(super) use umount::umount;

/// A log that is larger than this is begun anew.
const LARGEST_LOG: u64 = 1 << 20;

/// What the process that serves an image tells whoever started it, on one line.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    /// The block device; none without root.
    device: Option<PathBuf>,
    /// The file behind it, where it is not by ublk.
    file: Option<PathBuf>,
    /// Where the file system is mounted.
    at: Option<PathBuf>,
    size: u64,
    read_only: bool,
    pid: u32,
}

/// `kiln layer mount`
pub(super) fn mount(session: &Session, args: &LayerMountArgs) -> Result<Exit, Failure> {
    if let Some(at) = &args.at {
        let at = session.folder.join(at);
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::new(Exit::Setup, "mounting a file system takes root")
                .hint("without --at the disk becomes a file, which takes no root"));
        }
        if !at.is_dir() {
            let text = format!("{} is not a folder", at.display());
            return Err(Failure::new(Exit::Usage, text).hint(format!("mkdir {}", at.display())));
        }
    }
    record::clear_dead();
    if args.detached || args.foreground {
        return held::hold(session, args);
    }
    let ready = start(session, args)?;
    match ready {
        Ok(ready) => say(session, &ready).map(|()| Exit::Success),
        // It has told why.
        Err(exit) => Ok(exit),
    }
}

fn say(session: &Session, ready: &Ready) -> Result<(), Failure> {
    if session.json() {
        return session.out_json(&json!({
            "device": ready.device, "file": ready.file, "at": ready.at, "size": ready.size,
            "read_only": ready.read_only, "pid": ready.pid,
        }));
    }
    let path = ready.device.as_ref().or(ready.file.as_ref());
    let path = path.map(|path| path.display().to_string()).unwrap_or_default();
    if ready.device.is_none() {
        terminal::say("a block device takes root: the disk is a file");
    }
    terminal::out_line(&hostile::line(&path))
}

/// Starts the process in the background and waits until the disk can be used; or says how it ended.
fn start(session: &Session, args: &LayerMountArgs) -> Result<Result<Ready, Exit>, Failure> {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("kiln"));
    let mut command = Command::new(program);
    command.args(["layer", "mount", "--detached"]);
    let image = &args.image;
    let paths = [
        ("--at", args.at.as_ref()),
        ("--upper", image.upper.as_ref()),
        ("--upper-index", image.upper_index.as_ref()),
        ("--trace", image.trace.as_ref()),
        ("--record-trace", image.record_trace.as_ref()),
        ("--auth-file", image.registry.auth_file.as_ref()),
    ];
    for (name, path) in paths {
        if let Some(path) = path {
            command.arg(name).arg(path);
        }
    }
    for (name, text) in [("--fs-type", &args.fs_type), ("--options", &args.options)] {
        if let Some(text) = text {
            command.arg(format!("{name}={text}"));
        }
    }
    let flags = [
        ("--read-only", image.read_only),
        ("--download", image.download),
        ("--plain-http", image.registry.plain_http),
    ];
    command.args(flags.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name));
    command.arg("--cache-limit").arg(image.cache_limit.to_string());
    command.arg("--").args(&image.image);
    let tried = || "cannot start the process that serves the disk".to_owned();
    let mut child = command
        .current_dir(&session.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .tried(tried)
        .exits(Exit::InfrastructureBroke)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = BufReader::new(stdout).read_line(&mut line);
        read.tried(tried).exits(Exit::InfrastructureBroke)?;
    }
    if let Ok(ready) = serde_json::from_str(&line) {
        return Ok(Ok(ready));
    }
    let status = child.wait().tried(tried).exits(Exit::InfrastructureBroke)?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    match Exit::ALL.into_iter().find(|exit| Some(exit.code()) == code && code != Some(0)) {
        Some(exit) => Ok(Err(exit)),
        None => {
            let text = format!("the process that serves the disk ended with {status}");
            Err(Failure::new(Exit::InfrastructureBroke, text))
        }
    }
}

/// Lets a process in the background write to a log instead of somebody's terminal.
fn log_to_file(session: &Session) {
    let path = session.home.cache().join("layer-mounts.log");
    let is_large = fs::metadata(&path).is_ok_and(|found| found.len() > LARGEST_LOG);
    let mut options = fs::OpenOptions::new();
    options.create(true).append(!is_large).write(true).truncate(is_large);
    // Without a log there is nobody to hear.
    let log = options.open(&path).or_else(|_| fs::OpenOptions::new().write(true).open("/dev/null"));
    if let Ok(log) = log {
        let _ = rustix::stdio::dup2_stderr(log);
    }
}
